"""Similarity on scikit-learn's digits, with tiny networks and an untrained reference: fast."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.core import SearchSpace
from hwnas.data.images import Images
from hwnas.evaluators.rmi import RMI, quantiles
from hwnas.evaluators.table import Lookup
from hwnas.spaces.darts import Darts
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy
from hwnas.training.checkpoint import Session
from hwnas.training.recipe import Recipe
from hwnas.training.reference import reference_model

SPACE = NasBench201(image_shape=(1, 8, 8))
CELLS = [(3, 3, 3, 3, 3, 3), (1, 1, 1, 1, 1, 1), (2, 0, 4, 3, 1, 2), (0, 0, 0, 0, 0, 0)]


def create(
    folder: Path,
    *,
    space: SearchSpace = SPACE,
    warn: Any = pytest.fail,
    table: Path | None = None,
    dataset: Images | None = None,
    **settings: Any,
) -> RMI:
    defaults: dict[str, Any] = {
        "channels": 2,
        "num_cells": 1,
        "batch_size": 8,
        "batch_choice": "random",
        "steps": 2,
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 5e-4,
        "beta": 0.8,
        "flops_weight": 0,
        "repeats": 1,
        "seed": 0,
        "group_size": 64,
        "reference": Recipe(epochs=0),
    }
    images = dataset or Images("digits", source="digits", image_shape=[1, 8, 8], num_classes=10)
    path = None if table is None else str(table)
    lookup = Lookup(space, path=path, val_column=None, test_column="test", scale=1.0)
    rmi = RMI(space, images, folder, lambda text: None, warn, **{**defaults, **settings}, lookup=lookup)
    rmi.prepare(space, [])
    return rmi


def test_similarity_of_cells_and_of_none(tmp_path: Path) -> None:
    rmi = create(tmp_path)
    assert rmi.metrics == {"rmi": "max"}
    rows = rmi.evaluate(CELLS)
    assert all(list(row) == ["rmi"] for row in rows)
    assert all(0 < row["rmi"] <= 3 for row in rows[:3])


def test_what_is_cut_out_of_the_batch_is_0_once_normalised(tmp_path: Path) -> None:
    """Candidates and reference see 0 there, the mean colour, and not black."""
    images = Images("digits", source="digits", image_shape=[1, 8, 8], num_classes=10, cutout=20)
    whole, cut = create(tmp_path), create(tmp_path, dataset=images)
    assert (whole._batches[0].x != 0).all()
    ((_, share),) = [(batch.x.shape, (batch.x == 0).double().mean()) for batch in cut._batches]
    assert share > 0.9  # of 20 pixels a side little is left of an image of 8


def test_flops_weight_scales_what_similarity_lacks(tmp_path: Path) -> None:
    """n 1x1 convolutions count 1, n 3x3 ones 9: nothing is below the 729 cells without convolutions (3^6 of
    15,625), one cell is at the top."""
    plain, rmi_flops = create(tmp_path), create(tmp_path, flops_weight=2.0)
    assert rmi_flops.metrics == {"rmi_flops": "max"}
    shares = [
        np.log((3 - base["rmi"]) / (3 - row["rmi_flops"])) / 2
        for row, base in zip(rmi_flops.evaluate(CELLS), plain.evaluate(CELLS), strict=True)
    ]
    # Two 1x1 and one 3x3 cost 11: below are all with fewer than one 3x3 (4^6 = 4096), and those of one 3x3
    # with at most one 1x1 (6 * (3^5 + 5 * 3^4) = 3888); equal are 6 * C(5, 2) * 3^3 = 1620.
    assert [share * 15625 for share in shares] == pytest.approx(
        [15624 + 0.5, 729 / 2, 4096 + 3888 + 1620 / 2, 729 / 2], abs=1e-6
    )


def test_repeats_are_averaged(tmp_path: Path) -> None:
    """The reference is untrained but still drawn from `seed`, so the second repeat is not seed 1 alone."""
    once, twice = create(tmp_path), create(tmp_path, repeats=2)
    first, mean = once.evaluate(CELLS), twice.evaluate(CELLS)
    twice._batches = twice._batches[1:] * 2
    second = twice.evaluate(CELLS)
    assert [row["rmi"] for row in mean] == pytest.approx(
        [(a["rmi"] + b["rmi"]) / 2 for a, b in zip(first, second, strict=True)]
    )
    assert first != second


def test_quantiles() -> None:
    ordered = np.array([1.0, 2.0, 2.0, 5.0])
    assert quantiles(ordered, np.array([0.0, 1.0, 2.0, 3.0, 5.0, 9.0])).tolist() == [
        *(0.0, 0.125, 0.5, 0.75, 0.875, 1.0)
    ]


def test_version_tells_apart_whatever_changes_the_scores(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"flops_weight": 1.0},
        {"flops_weight": 0.5},
        {"steps": 3},
        {"repeats": 2},
        {"lr": 0.2},
        {"beta": 0.5},
        {"seed": 1},
        {"batch_choice": "easiest"},
        {"channels": 3},
    ]
    versions = [create(tmp_path, **one).prepare(SPACE, []) for one in settings]
    assert len(set(versions)) == len(versions)
    assert create(tmp_path).prepare(SPACE, []) == versions[0]


def test_a_population_that_diverges_is_said(tmp_path: Path) -> None:
    warnings: list[str] = []
    rmi = create(tmp_path, warn=warnings.append, lr=1e30)
    assert rmi.evaluate(CELLS) == [{"rmi": 0.0}] * 4
    assert len(warnings) == 1
    assert warnings[0].startswith(
        "all 4 new networks of a population have the similarity 0: their training diverged "
        "(evaluator.lr=1e+30)"
    )
    assert rmi.evaluate(CELLS[3:]) == [{"rmi": 0.0}]  # no path through the cell: nothing to warn about
    assert len(warnings) == 1


def test_true_accuracy_only_shows_in_the_report(tmp_path: Path) -> None:
    genotypes = np.array(SPACE.all(), dtype=np.int8)
    values = np.arange(15625) / 15625
    np.savez(tmp_path / "table.npz", arch_ops=genotypes, ops=np.array(SPACE.ops), test=values)
    rmi = create(tmp_path, table=tmp_path / "table.npz")
    assert list(rmi.evaluate(CELLS[:1])[0]) == ["rmi"]
    assert rmi.report([(0, 0, 0, 0, 0, 1)]) == [{"test_acc": 1 / 15625}]
    assert create(tmp_path).report([(0, 0, 0, 0, 0, 1)]) == [{}]


@pytest.mark.parametrize("weight", [-1, float("inf"), "x"])
def test_bad_weight(tmp_path: Path, weight: Any) -> None:
    with pytest.raises(ValueError, match=r"flops_weight must be a number of at least 0, not"):
        create(tmp_path, flops_weight=weight)


@pytest.mark.parametrize(
    ("space", "num_cells"),
    [(FBNet(image_shape=(1, 8, 8)), 1), (Darts(image_shape=(1, 8, 8)), 3)],
    ids=["fbnet", "darts"],
)
def test_networks_one_after_another(tmp_path: Path, space: SearchSpace, num_cells: int) -> None:
    """A network scores the same alone, and in any group."""
    genotypes = space.sample(np.random.default_rng(0), 3)
    rmi = create(tmp_path, space=space, num_cells="fewest")  # 1, and 3 of the DARTS space
    rows = rmi.evaluate(genotypes)
    assert all(0 < row["rmi"] <= 3 for row in rows)
    assert len({row["rmi"] for row in rows}) == 3
    again = create(tmp_path, space=space, num_cells=num_cells, group_size=1)
    for row, alone in zip(rows, again.evaluate(genotypes), strict=True):
        assert alone["rmi"] == pytest.approx(row["rmi"], abs=1e-5)


def test_versions_tell_variants_apart(tmp_path: Path) -> None:
    spaces = [FBNet(name, image_shape=(1, 8, 8)) for name in ("cifar100", "imagenet")]
    assert len({create(tmp_path, space=space).prepare(space, []) for space in spaces}) == 2


@pytest.mark.parametrize(
    ("space", "settings", "message"),
    [
        (
            Toy(4, 3),
            {},
            "the toy space does not build; nasbench201, darts, fbnet, resnet, mob",
        ),
        (Darts(), {"num_cells": 1}, r"num_cells must be a whole number of at least 3, not 1"),
        (FBNet(), {"channels": 7}, r"channels must be an even whole number of at least 2, not 7"),
    ],
)
def test_bad_candidates(tmp_path: Path, space: SearchSpace, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(tmp_path, space=space, **settings)


def training_images(images: Images, part: str) -> set[bytes]:
    mean, std = images.normalisation()
    return {row.numpy().tobytes() for row in (images.split(part)[0] - mean) / std}


def test_all_training_images_make_the_reference_and_the_batch(tmp_path: Path) -> None:
    """As RMI-NAS has it; by default images that validate are seen by neither."""
    asked: list[str] = []

    class Spied(Images):
        def batches(self, part: str, **settings: Any) -> Any:
            asked.append(part)
            return super().batches(part, **settings)

    images = Spied("digits", source="digits", image_shape=[1, 8, 8], num_classes=10, valid_fraction=0.9)
    recipe = Recipe(epochs=1, max_steps=1)
    doubts: list[str] = []  # a step teaches little
    clean = create(tmp_path, dataset=images, reference=recipe, warn=doubts.append)
    assert asked == ["train", "valid"]  # trained, then judged
    everything = create(tmp_path, dataset=images, reference=recipe, images="all", warn=doubts.append)
    assert asked == ["train", "valid", "all", "valid"]
    assert len(list((tmp_path / "references").glob("*.pt"))) == 2
    validate = training_images(images, "valid")
    of_clean, of_everything = (
        {row.numpy().tobytes() for row in rmi._batches[0].x} for rmi in (clean, everything)
    )
    assert not of_clean & validate
    assert of_everything & validate
    assert of_everything <= training_images(images, "all")
    with pytest.raises(ValueError, match=r"images must be one of train, all, not 'test'"):
        create(tmp_path, images="test")


def test_a_reference_is_of_its_images_split_and_augmentation(tmp_path: Path) -> None:
    """None is taken for another: more images, others, or squares cut out in another colour."""

    class Black(Images):
        """As cutout was before it painted the mean."""

        @property
        def augmentation(self) -> dict[str, Any]:
            return {"crop": self.crop, "flip": self.flip, "cutout": self.cutout}

    said: list[str] = []

    def reference(kind: type[Images] = Images, part: str = "train", **settings: Any) -> None:
        images = kind("digits", source="digits", image_shape=[1, 8, 8], num_classes=10, **settings)
        recipe = Recipe(epochs=1, max_steps=1)
        session = Session(tmp_path, announce=said.append, warn=print)
        reference_model(images, recipe, session, seed=0, part=part)

    reference()
    reference(part="all")
    reference(split="ordered")
    reference(cutout=2)
    reference(Black, cutout=2)
    assert len(list((tmp_path / "references").glob("*.pt"))) == 5
    assert "validation accuracy" in said[0]
    assert "accuracy on validation images that it was trained on, too, " in said[1]


def say_where_it_is_from(folder: Path, said: Any) -> None:
    images = Images("digits", source="digits", image_shape=[1, 8, 8], num_classes=10)
    recipe = Recipe(epochs=1, batch_size=256, max_steps=2)
    sentences: list[str] = []
    model = reference_model(images, recipe, Session(folder, announce=sentences.append, warn=print), seed=0)
    said.put((sentences[-1].split()[2], float(model.network.classifier.weight.sum()), sentences[0]))


def test_runs_that_start_together_train_one_reference(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    said = spawn.Queue()
    processes = [spawn.Process(target=say_where_it_is_from, args=(tmp_path, said)) for _ in range(3)]
    for process in processes:
        process.start()
    answers = [said.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert sorted(answer[0] for answer in answers) == ["from", "from", "trained,"]
    assert len({answer[1] for answer in answers}) == 1
    assert len(list((tmp_path / "references").glob("*.pt"))) == 1
