"""Trainings from scratch on scikit-learn's digits, of tiny networks: seconds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.core import SearchSpace
from hwnas.data.images import Images, SmallerImages, smaller_side
from hwnas.evaluators.table import Lookup
from hwnas.evaluators.train import Train, binomial_error, extrapolated, likelihood
from hwnas.spaces.darts import Darts
from hwnas.spaces.darts.encoding import PRESETS
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy
from hwnas.training.checkpoint import Session
from hwnas.training.classifier import Classifier, accuracy, fit
from hwnas.training.recipe import Recipe

IMAGES = {"image_shape": (1, 8, 8), "num_classes": 10}
SPACE = NasBench201(4, 1, **IMAGES)
CELLS = [(3, 3, 3, 3, 3, 3), (1, 1, 1, 1, 1, 1), (2, 0, 4, 3, 1, 2)]
RECIPE = Recipe(epochs=2, lr=0.05)


def digits(**changes: Any) -> Images:
    return Images("digits", **{"source": "digits", "image_shape": [1, 8, 8], "num_classes": 10, **changes})


def create(
    folder: Path,
    space: SearchSpace = SPACE,
    *,
    said: list[str] | None = None,
    warn: Any = pytest.fail,
    **own: Any,
) -> Train:
    defaults: dict[str, Any] = {"channels": None, "num_cells": None, "training": RECIPE, "seed": 0}
    lookup = Lookup(space, path=None, val_column=None, test_column=None, scale=1.0)
    dataset = own.pop("dataset", None) or digits()
    say = (lambda text: None) if said is None else said.append
    return Train(space, dataset, folder, say, warn, **{**defaults, "lookup": lookup, **own})


def test_accuracy_is_that_of_a_training_by_hand(tmp_path: Path) -> None:
    said: list[str] = []
    train = create(tmp_path, said=said)
    assert train.metrics == {"val_acc": "max"}
    rows = train.evaluate(CELLS)
    for genotype, row in zip(CELLS[:2], rows, strict=False):
        seed = train.seed_of(genotype)
        torch.manual_seed(seed)
        network = SPACE.network(genotype)
        module = fit(network, digits(), RECIPE, Session(tmp_path), part="train", seed=seed)
        assert row == {"val_acc": accuracy(module, digits(), "valid")}
    assert rows[0]["val_acc"] > 0.6  # ten classes
    assert len(said) == 1
    assert said[0].startswith("training takes ")
    assert said[0].endswith(" s per network")


def test_a_network_does_not_depend_on_its_company(tmp_path: Path) -> None:
    together = create(tmp_path).evaluate(CELLS)
    torch.manual_seed(123)
    assert create(tmp_path).evaluate([CELLS[2], CELLS[0]]) == [together[2], together[0]]
    assert len({create(tmp_path).seed_of(genotype) for genotype in CELLS}) == 3
    assert create(tmp_path, seed=1).evaluate(CELLS) != together


def test_it_says_how_sure_it_is(tmp_path: Path) -> None:
    """By the number of validation images, and by repeated trainings with other seeds."""
    assert binomial_error(45, 50) == pytest.approx(math.sqrt(47 * 7 / 54**3))
    assert binomial_error(50, 50) == pytest.approx(math.sqrt(52 * 2 / 54**3))
    brief = Recipe(epochs=1, max_steps=5)
    plain, sure, often = (
        create(tmp_path, training=brief, **own)
        for own in ({}, {"deviation": True}, {"deviation": True, "repeats": 2})
    )
    assert sure.metrics == {"val_acc": "max", "val_acc_std": "min"}
    assert len({each.prepare(SPACE, []) for each in (plain, sure, often)}) == 3
    (first,), num = sure.evaluate(CELLS[:1]), digits().size("valid")
    right = round(first["val_acc"] * num)
    assert first == {**plain.evaluate(CELLS[:1])[0], "val_acc_std": binomial_error(right, num)}
    one, two = (often.train(CELLS[0], repeat) for repeat in (0, 1))
    assert one is not None
    assert two is not None
    assert (one["val_acc"], one["val_acc"] == two["val_acc"]) == (first["val_acc"], False)
    (mean,) = often.evaluate(CELLS[:1])
    assert mean["val_acc"] == pytest.approx((one["val_acc"] + two["val_acc"]) / 2)
    images, between = (one["val_acc_std"] + two["val_acc_std"]) / 2, abs(one["val_acc"] - two["val_acc"]) / 2
    assert mean["val_acc_std"] == pytest.approx(math.hypot(images, between))
    with pytest.raises(ValueError, match="deviation must be false with score=train_likelihood"):
        create(tmp_path, deviation=True, score="train_likelihood")
    with pytest.raises(ValueError, match="rungs must be null with deviation=true, and with repeats"):
        create(tmp_path, repeats=2, rungs=[5])


@pytest.mark.parametrize(
    ("space", "genotype"),
    [
        (FBNet(channels=4, **IMAGES), (0, 8) * 11),
        (Darts(4, 3, **IMAGES), Darts().from_str(PRESETS["evnas_a"])),
    ],
    ids=["fbnet", "darts"],
)
def test_every_space_with_networks(tmp_path: Path, space: SearchSpace, genotype: tuple[int, ...]) -> None:
    (row,) = create(tmp_path, space, training=Recipe(epochs=1, max_steps=3)).evaluate([genotype])
    assert 0 <= row["val_acc"] <= 1


def test_a_training_that_diverges_counts_as_0_and_is_said(tmp_path: Path) -> None:
    warnings: list[str] = []
    train = create(tmp_path, warn=warnings.append, training=Recipe(epochs=1, lr=1e30, grad_clip=None))
    assert train.evaluate(CELLS[:2]) == [{"val_acc": 0.0}] * 2
    assert warnings == [
        "the training of a network diverged (evaluator.training.lr=1e+30); "
        "its accuracy counts as 0, as that of any other whose training does"
    ]


def test_version_tells_apart_whatever_changes_accuracies(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"seed": 1},
        {"channels": 8},
        {"num_cells": 2},
        {"training": Recipe(epochs=3, lr=0.05)},
        {"training": Recipe(epochs=2, lr=0.06)},
        {"dataset": digits(valid_fraction=0.3)},
        {"dataset": digits(crop=1)},
    ]
    versions = [create(tmp_path, **one).prepare(SPACE, []) for one in settings]
    assert len(set(versions)) == len(versions)
    faster = create(tmp_path, training=Recipe(epochs=2, lr=0.05, channels_last=False))
    assert versions[0] == create(tmp_path).prepare(SPACE, []) == faster.prepare(SPACE, [])
    variants = [FBNet(name, **IMAGES) for name in ("cifar100", "imagenet")]
    assert len({create(tmp_path, space).prepare(space, []) for space in variants}) == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"space": Toy(4, 3)}, "evaluator=train: the toy space has no networks to train"),
        ({"dataset": "none"}, "evaluator=train needs images; choose a dataset"),
        ({"training": 3}, r"training must be a recipe of training, not 3"),
        ({"training": Recipe(epochs=0)}, r"training\.epochs must be at least 1, not 0"),
        ({"lookup": "x"}, r"lookup must be true accuracies of a benchmark, not 'x'"),
        ({"channels": 0}, r"channels must be a whole number of at least 1 or null, not 0"),
        ({"num_cells": 1.5}, r"num_cells must be a whole number of at least 1 or fewest or null, not 1.5"),
        ({"seed": -1}, r"seed must be a whole number of at least 0, not -1"),
        ({"training": Recipe(epochs=1, drop_path=0.1)}, "drop_path=0.1 needs a network with drop-path"),
        ({"rungs": [20, 5]}, r"rungs must be increasing steps, at most the 34 of a training, not \[20, 5\]"),
        ({"rungs": [5, 5]}, r"rungs must be increasing steps"),
        ({"rungs": [5, 35]}, r"rungs must be increasing steps, at most the 34 of a training, not \[5, 35\]"),
        ({"rungs": [0, 5]}, "rungs must be a list, each a whole number of at least 1 or null, not"),
        ({"rungs": 5}, "rungs must be"),
        ({"rungs": [5], "eta": 1}, "eta must be a whole number of at least 2, not 1"),
        ({"rungs": [5], "checkpoints_gb": 0}, "checkpoints_gb must be a number above 0, not 0"),
        ({"rungs": [5], "training": Recipe(epochs=1, devices=2)}, "rungs need training.devices=1, not 2"),
    ],
)
def test_bad_input(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(tmp_path, **settings)


def test_fewer_images_than_a_batch_is_an_error_not_an_accuracy(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="5000"):
        create(tmp_path, training=Recipe(epochs=1, batch_size=5000)).evaluate(CELLS[:1])


def test_figures_of_a_training_by_hand(tmp_path: Path) -> None:
    """The likelihood is exp(-cross-entropy): of validation images in the end, of each batch on the way."""
    train = create(tmp_path, score="val_likelihood", label="short", num_valid=200)
    assert train.metrics == {"val_likelihood_short": "max", "val_acc_short": "max"}
    (row,) = train.evaluate(CELLS[:1])
    seed = train.seed_of(CELLS[0])
    torch.manual_seed(seed)
    module = fit(SPACE.network(CELLS[0]), digits(), RECIPE, Session(tmp_path), part="train", seed=seed)
    x, y = digits().split("valid")
    with torch.no_grad():
        logits = module(x[:200])
    right = logits.log_softmax(1)[torch.arange(200), y[:200]]
    assert row["val_likelihood_short"] == pytest.approx(float(right.mean().exp()), rel=1e-5)
    assert row["val_acc_short"] == int((logits.argmax(1) == y[:200]).sum()) / 200
    figures = train.train(CELLS[0])
    assert figures is not None
    losses = [math.log(1 / figures[name]) for name in ("train_likelihood", "likelihood_ahead")]
    assert losses[0] == pytest.approx(float(torch.stack(module.losses).mean()), rel=1e-5)
    assert losses[1] < losses[0]  # digits are learnt


SHORT = Recipe(epochs=2, lr=0.05, max_steps=22, drop_path=0.3)  # passes of 17 steps
DARTS = Darts(2, 3, **IMAGES)


@pytest.mark.parametrize(
    ("space", "genotype", "recipe"),
    [
        (SPACE, CELLS[0], Recipe(epochs=2, lr=0.05)),
        (DARTS, Darts().from_str(PRESETS["evnas_a"]), SHORT),
    ],
    ids=["nasbench201", "darts, drop-path"],
)
def test_rungs_end_where_one_training_does(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    space: SearchSpace,
    genotype: tuple[int, ...],
    recipe: Recipe,
) -> None:
    """Also one that stops within a pass, or that finds no checkpoint; every step is taken once."""
    plain = create(tmp_path, space, training=recipe, score="likelihood_ahead")
    version, (whole,) = plain.prepare(space, []), plain.evaluate([genotype])
    steps = []
    step = Classifier.training_step
    monkeypatch.setattr(
        Classifier, "training_step", lambda self, *args: steps.append(self.step) or step(self, *args)
    )
    train = create(tmp_path, space, training=recipe, score="likelihood_ahead", rungs=[3, 20])
    versions = [rung.prepare(space, []) for rung in train.rungs]
    assert versions[2] == version
    assert len({*versions, train.prepare(space, [])}) == 4
    assert [rung.name for rung in train.rungs] == ["train-3", "train-20", "train"]
    (first,), (second,), (last,) = (rung.evaluate([genotype]) for rung in train.rungs)
    assert (list(first), list(second)) == (
        ["likelihood_ahead_3", "val_acc_3"],
        ["likelihood_ahead_20", "val_acc_20"],
    )
    assert last == whole
    assert steps == list(range(plain.num_steps))
    assert [*tmp_path.glob("trainings/*/*")] == []
    assert train.rungs[1].evaluate([genotype]) == [second]  # from the start


def test_what_rungs_add(tmp_path: Path) -> None:
    train = create(tmp_path, rungs=[3, 20, 34], eta=4, label="x")  # of 34 steps
    assert list(train.metrics) == ["val_acc_x_by_rung", "val_acc_x", "rung", "val_acc_3_x", "val_acc_20_x"]
    assert (len(train.rungs), train.eta) == (3, 4)
    assert train.note == (
        "Trainings stop early: after 3 and 20 of 34 steps the best 1/4 of a population go on; "
        "val_acc_x_by_rung is (rung - 1 + val_acc_x there) / 3, so that those come first"
    )
    for off in (None, [], [34]):
        plain = create(tmp_path, rungs=off)
        assert (plain.rungs, plain.eta, plain.metrics, plain.note) == ((), None, {"val_acc": "max"}, "")


def test_checkpoints_are_bounded(tmp_path: Path) -> None:
    """The oldest go, but not that of the network in work; a network that diverges leaves none."""
    rung, *_ = create(tmp_path, rungs=[2], checkpoints_gb=1e-9).rungs
    rung.prepare(SPACE, [])
    rung.evaluate(CELLS[:2])
    names = [path.parent.name for path in tmp_path.glob("trainings/*/*/checkpoint.pt")]
    assert names == ["-".join(map(str, CELLS[1]))]
    rung, *_ = create(
        tmp_path, rungs=[2], warn=print, training=Recipe(epochs=1, lr=1e30, grad_clip=None)
    ).rungs
    rung.prepare(SPACE, [])
    assert rung.evaluate(CELLS[:1]) == [{"val_acc_2": 0.0}]
    assert len([*tmp_path.glob("trainings/*/*/checkpoint.pt")]) == 1


def test_versions_tell_figures_and_images_apart(tmp_path: Path) -> None:
    settings: list[dict[str, Any]] = [
        {},
        {"score": "train_likelihood"},
        {"image_size": 4},
        {"num_valid": 100},
        {"augment": "flip"},
    ]
    versions = [create(tmp_path, **own).prepare(SPACE, []) for own in settings]
    assert len(set(versions)) == 5
    assert create(tmp_path, image_size=8).prepare(SPACE, []) == versions[0]  # they have 8 pixels


def test_learning_curves_are_extrapolated() -> None:
    """1 + 2 t^-0.5 at t = 10; a curve that rises stays at its mean."""
    at = np.arange(1, 11) / 10
    assert extrapolated((1 + 2 * at**-0.5).tolist()) == pytest.approx(1 + 2 * 10**-0.5)
    assert extrapolated([1.0, 2.0, 3.0]) == pytest.approx(2.0)
    assert extrapolated([2.5]) == pytest.approx(2.5)
    assert (likelihood(0.0), likelihood(-1.0), likelihood(math.nan), likelihood(math.inf)) == (1, 1, 0, 0)


def test_smaller_images() -> None:
    whole = digits(crop=2, flip=True)
    smaller = SmallerImages(whole, 4, 10)
    x, y = smaller.split("valid")
    full, labels = whole.split("valid")
    assert torch.allclose(x, full[:10].reshape(10, 1, 4, 2, 4, 2).mean(dim=(3, 5)))
    assert torch.equal(y, labels[:10])
    assert smaller.augmentation == {"crop": 1, "flip": True, "cutout": 0}
    assert len(smaller.split("train")[0]) == whole.size("train")
    assert SmallerImages(whole, 4, 10, "flip").augmentation == {"crop": 0, "flip": True, "cutout": 0}
    assert SmallerImages(whole, 8, None).whole
    assert SmallerImages(whole, 16, None).split("train")[0].shape[-1] == 8
    ((images, _), *_) = smaller.batches("train", batch_size=32)
    assert images.shape == (32, 1, 4, 4)


@pytest.mark.parametrize(
    ("side", "smaller"), [(8, None), (16, None), (28, 16), (32, 16), (64, 32), (100, 50), (224, 64)]
)
def test_images_of_half_their_side(side: int, smaller: int | None) -> None:
    assert smaller_side("auto", (3, side, side + 10)) == smaller
