from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwnas.data.images import Images
from hwnas.spaces.known import KnownNetworks
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.training.checkpoint import Session
from hwnas.training.classifier import Classifier, answers, fit
from hwnas.training.final import train_network
from hwnas.training.pace import tried
from hwnas.training.recipe import CHECKPOINT, Recipe
from hwnas.training.teacher import teacher_in

SPACE = NasBench201(2, 1, image_shape=(1, 8, 8), num_classes=3)
TEACHERS = NasBench201(3, 2, image_shape=(1, 8, 8), num_classes=3)
GENOTYPE = SPACE.from_str("|nor_conv_3x3~0|+|skip_connect~0|none~1|+|nor_conv_1x1~0|none~1|nor_conv_3x3~2|")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    rng = np.random.default_rng(0)
    y = np.arange(60) % 3
    x = np.clip(rng.random((60, 8, 8)) * 0.3 + y[:, None, None] * 0.3, 0, 1)
    path = tmp_path_factory.mktemp("images") / "bright.npz"
    np.savez(path, x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    return Images("x", source="npz", image_shape=None, num_classes=None, path=str(path), crop=1)


@pytest.fixture(scope="module")
def taught(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a trained network."""
    folder = tmp_path_factory.mktemp("teacher") / "network"
    train_network(TEACHERS, GENOTYPE, images, Recipe(epochs=1, batch_size=8), Session(folder), seed=3)
    return folder


def test_a_teacher_is_read_as_it_was_trained(images: Images, taught: Path) -> None:
    teacher = teacher_in(str(taught.parent), (1, 8, 8), 3)
    module = Classifier(teacher.network(), *teacher.normalisation(), Recipe(epochs=0), num_steps=0)
    logits, y = answers(module.eval(), images, "test")
    facts = json.loads((taught / "architecture.json").read_text())
    assert (logits.argmax(1) == y).float().mean().item() == pytest.approx(facts["test_acc"])


def test_one_step_by_hand(images: Images, taught: Path, tmp_path: Path) -> None:
    recipe = Recipe(
        epochs=1, batch_size=40, lr=0.5, momentum=0.0, weight_decay=0.0, grad_clip=None, schedule="cosine",
        teacher=str(taught), teacher_weight=0.7, temperature=3.0, channels_last=False,
    )  # fmt: skip
    teacher = teacher_in(str(taught), SPACE.image_shape, SPACE.num_classes)
    torch.manual_seed(0)
    network = SPACE.network(GENOTYPE)
    expected = copy.deepcopy(network).train()
    module = fit(network, images, recipe, Session(tmp_path), part="all", seed=5)
    mean, std = images.normalisation()
    (x, y), = images.batches("all", batch_size=40, seed=5)  # fmt: skip
    logits = expected((x - mean) / std)
    with torch.no_grad():
        probabilities = (teacher.network()((x - mean) / std) / 3).softmax(1)
    soft = (probabilities * (probabilities.log() - (logits / 3).log_softmax(1))).sum(1).mean()
    loss = 0.3 * F.cross_entropy(logits, y) + 0.7 * 9 * soft
    loss.backward()
    assert module.history[0]["loss"] == pytest.approx(loss.item(), rel=1e-5)
    for p, found in zip(expected.parameters(), module.network.parameters(), strict=True):
        assert torch.allclose(found, p if p.grad is None else p - 0.5 * p.grad, atol=1e-5)


def test_a_checkpoint_is_of_its_teacher(images: Images, taught: Path, tmp_path: Path) -> None:
    """Its folder may move; its weights are those that count."""
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("weights.pt", "architecture.json"):
        (moved / name).write_bytes((taught / name).read_bytes())

    def train(teacher: Path) -> list[str]:
        said: list[str] = []
        recipe = Recipe(epochs=1, batch_size=20, teacher=str(teacher))
        train_network(SPACE, GENOTYPE, images, recipe, Session(tmp_path / "it", announce=said.append), seed=0)
        return said

    assert not any("resuming" in text for text in train(taught))
    assert train(moved)[0] == "resuming after epoch 1"
    weights = torch.load(moved / "weights.pt")
    torch.save({name: 2 * value for name, value in weights.items()}, moved / "weights.pt")
    with pytest.raises(ValueError, match=r"of another training: its trainer.teacher is [0-9a-f]{16}, not"):
        train(moved)


def test_teachers_that_do_not_fit(images: Images, taught: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"trainer.teacher=.* learnt images of num_classes=3, not 4"):
        teacher_in(str(taught), (1, 8, 8), 4)
    with pytest.raises(ValueError, match=r"learnt images of image_shape=\(1, 8, 8\), not \(3, 8, 8\)"):
        teacher_in(str(taught), (3, 8, 8), 3)
    with pytest.raises(ValueError, match=r"must be the folder of a trained network, with weights.pt and"):
        teacher_in(str(tmp_path), (1, 8, 8), 3)
    recipe = Recipe(epochs=1, batch_size=8, teacher=str(taught))
    with pytest.raises(ValueError, match=r"is for final networks only"):
        fit(SPACE.network(GENOTYPE), images, recipe, Session(tmp_path), part="train", seed=0)
    (tmp_path / "weights.pt").write_bytes((taught / "weights.pt").read_bytes())
    facts = json.loads((taught / "architecture.json").read_text())
    (tmp_path / "architecture.json").write_text(json.dumps({**facts, "channels": 4}))
    with pytest.raises(ValueError, match=r"weights.pt are not of this network: size mismatch"):
        teacher_in(str(tmp_path), (1, 8, 8), 3).network()


def test_trials_that_are_judged_on_validation_images_have_no_teacher(
    images: Images, taught: Path, tmp_path: Path
) -> None:
    recipe = Recipe(epochs=1, batch_size=8)
    alone, _ = tried(SPACE, GENOTYPE, images, recipe, Session(tmp_path / "1"), seed=0)
    recipe = Recipe(epochs=1, batch_size=8, teacher=str(taught))
    found, _ = tried(SPACE, GENOTYPE, images, recipe, Session(tmp_path / "2"), seed=0)
    assert found.tolist() == alone.tolist()
    assert [torch.load(tmp_path / name / CHECKPOINT)["history"] for name in "12"] == 2 * [
        torch.load(tmp_path / "1" / CHECKPOINT)["history"]
    ]


def test_a_network_off_the_shelf_teaches(images: Images, tmp_path: Path) -> None:
    """Its name says what it is, whatever the space of the run in whose folder it lies."""
    space = KnownNetworks(["resnet10_w8"], image_shape=(1, 8, 8), num_classes=3)
    folder = tmp_path / "network"
    train_network(space, (0,), images, Recipe(epochs=1, batch_size=40), Session(folder), seed=0)
    (tmp_path / ".hydra").mkdir()
    (tmp_path / ".hydra" / "config.yaml").write_text("search_space: {_target_: hwnas.spaces.toy.Toy}")
    stored = torch.load(folder / "weights.pt")
    found = teacher_in(str(tmp_path), (1, 8, 8), 3).network().state_dict()
    assert all(torch.equal(found[name], value) for name, value in stored.items())
