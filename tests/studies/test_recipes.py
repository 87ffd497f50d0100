"""What a recipe of the final training is worth, at fixed steps: a table for docs/measurements.md.

    pytest tests/studies/test_recipes.py -m slow -s

`trainer=strong` was chosen on other images: other draws of digits' test images, and a fifth of CIFAR-10's
training images; not on MNIST. Networks: the cell of NAS-Bench-201 with the most convolutions, as in the
default search and with one cell per stage, and a ResNet of three blocks. Needs HWNAS_DATA with
cifar10_small.npz and mnist.npz; three quarters of an hour of one core, of which CIFAR-10 takes half.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from sklearn.datasets import load_digits
from sklearn.svm import SVC
from study import interval, show
from torch import nn
from torchvision.models.resnet import BasicBlock

from hwnas.build import build, conf_folder
from hwnas.data.images import Images
from hwnas.files import data_folder
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.training.checkpoint import Session
from hwnas.training.classifier import accuracy, fit

pytestmark = pytest.mark.slow

RECIPES = ("quick", "strong")
CELL = "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|"


def cell(images: Images, channels: int, num_cells: int) -> nn.Module:
    """A network of NAS-Bench-201: 1.3 M parameters at the default size, 0.3 M with one cell per stage."""
    shape = {"image_shape": images.image_shape, "num_classes": images.num_classes}
    space = NasBench201(channels, num_cells, **shape)
    return space.network(space.from_str(CELL))


def resnet(images: Images) -> nn.Module:
    """A ResNet of three blocks at 16, 32 and 64 channels, 0.08 M parameters."""

    def block(before: int, after: int) -> BasicBlock:
        shortcut = nn.Sequential(nn.Conv2d(before, after, 1, 2, bias=False), nn.BatchNorm2d(after))
        return BasicBlock(before, after) if before == after else BasicBlock(before, after, 2, shortcut)

    stem = (nn.Conv2d(images.image_shape[0], 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
    blocks = (block(16, 16), block(16, 32), block(32, 64))
    return nn.Sequential(
        *stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, images.num_classes)
    )


def of_digits(folder: Path, draw: int) -> Images:
    """Digits with another fifth as the test set; draw 0 is that of `dataset=digits`."""
    x, y = load_digits(return_X_y=True)
    x = np.rint(x * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
    order = np.random.default_rng(draw).permutation(len(x))
    test, train = order[: len(x) // 5], order[len(x) // 5 :]
    return of_arrays(folder / f"digits{draw}.npz", (x[train], y[train]), (x[test], y[test]), crop=1)


def of_arrays(
    path: Path,
    train: tuple[np.ndarray, np.ndarray],
    test: tuple[np.ndarray, np.ndarray],
    *,
    crop: int,
    flip: bool = False,
) -> Images:
    np.savez(path, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])
    shape = {"image_shape": None, "num_classes": None}
    return Images(path.stem, source="npz", path=str(path), crop=crop, flip=flip, **shape)


def of_mnist(folder: Path, draw: int) -> Images:
    """1,000 of MNIST's training images, and all test images."""
    file = np.load(data_folder() / "mnist.npz")
    rows = np.random.default_rng(draw).permutation(60_000)[:1_000]
    train, test = (file["x_train"][rows], file["y_train"][rows]), (file["x_test"], file["y_test"])
    return of_arrays(folder / f"mnist{draw}.npz", train, test, crop=2)


def of_cifar(folder: Path, draw: int) -> Images:
    """10,000 images of CIFAR-10 at 32x32; all draws are the same."""
    path = data_folder() / "cifar10_small.npz"
    shape = {"image_shape": None, "num_classes": None}
    return Images("cifar10", source="npz", path=str(path), crop=4, flip=True, **shape)


def trained(images: Images, network: nn.Module, words: tuple[str, ...], seed: int, folder: Path) -> float:
    """Test accuracy in points of a network, trained on all training images."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        recipe = build(compose("train", list(words)).trainer)
    module = fit(network, images, recipe, Session(folder), part="all", seed=seed)
    return 100 * accuracy(module, images, "test")


Case = tuple[str, Callable[[Path, int], Images], Callable[[Images], nn.Module], list[tuple[int, int]], int]
CASES: list[Case] = [  # images, network, (draw, seed) of each training, steps
    (
        "digits, default search",
        of_digits,
        lambda images: cell(images, 16, 5),
        [(0, s) for s in range(5)],
        550,
    ),
    (
        "digits, five draws, N=1",
        of_digits,
        lambda images: cell(images, 16, 1),
        [(d, 0) for d in range(4, 9)],
        550,
    ),
    ("MNIST, 1,000 images, 1 minute", of_mnist, resnet, [(d, 0) for d in range(10, 12)], 1_500),
    ("CIFAR-10, 10,000 images, 1 minute", of_cifar, resnet, [(0, s) for s in range(10, 12)], 1_200),
    ("CIFAR-10, 10,000 images, 5 minutes", of_cifar, resnet, [(0, 10)], 6_000),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case[0])
def test_recipes_at_equal_steps(case: Case, tmp_path: Path) -> None:
    name, images_of, network_of, runs, steps = case
    rows, means = [], []
    for recipe in RECIPES:
        words = (f"trainer={recipe}", "trainer.epochs=10000", f"trainer.max_steps={steps}")
        start, found = time.process_time(), []
        for draw, seed in runs:
            images = images_of(tmp_path, draw)
            torch.manual_seed(seed)
            found.append(trained(images, network_of(images), words, seed, tmp_path))
        each = (time.process_time() - start) / len(runs)
        means.append(np.mean(found))
        spread = interval(found) if len(found) > 1 else f"{found[0]:.2f}"
        rows.append([recipe, str(steps), f"{each:.0f}", spread, f"{min(found):.2f}"])
    show(name, ["recipe", "steps", "CPU s each", "test accuracy, mean", "least"], rows)
    assert means[1] > 50


def test_support_vector_machines_on_digits(tmp_path: Path) -> None:
    rows = []
    for draw in (0, *range(4, 9)):
        images = of_digits(tmp_path, draw)
        (x, y), (x_test, y_test) = (
            (x.flatten(1).numpy(), y.numpy()) for x, y in map(images.split, ("all", "test"))
        )
        machine = SVC(C=10, gamma=0.001 * 16**2).fit(x, y)  # 0.001 is usual for pixels in 0..16
        rows.append([str(draw), f"{100 * machine.score(x_test, y_test):.2f}"])
    show("support-vector machine", ["draw", "test accuracy"], rows)
    assert all(float(row[1]) > 97 for row in rows)
