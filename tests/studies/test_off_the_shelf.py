"""The network that a search finds on somebody's images against the best one off the shelf: a table, printed.

    pytest tests/studies/test_off_the_shelf.py -m slow -s -k "5min or 30min"

A cell is a set of images, a limit on the measured latency, a time and a seed. The search has the time for
everything, its own training included (`hwnas search dataset=... limits.latency_ms=... budget=...`). Each of
the three largest networks off the shelf within the limit is trained by the same recipe for the whole time;
the one of the highest test accuracy counts, which is more than anyone can know beforehand. Nothing else may
run on the machine. Needs HWNAS_DATA with cifar10_small.npz and mnist.npz. A cell takes four times its time.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter
from study import show

from hwnas import compose
from hwnas.build import build
from hwnas.data.images import DataSet
from hwnas.devices.measure import time_modules
from hwnas.files import find_file
from hwnas.spaces.known import KnownNetworks, known_names
from hwnas.training.checkpoint import Session
from hwnas.training.final import train_network
from hwnas.training.pace import steps_within, within
from hwnas.training.recipe import Recipe

pytestmark = pytest.mark.slow

SEEDS = (300, 301, 302)
REFERENCES = ("resnet10_w8", "resnet10_w16", "resnet18_w24")
"""The limits are 1.1 times the latencies of these."""

NUM_RIVALS = 3
"""Networks off the shelf that are trained per cell, the largest within the limit."""


def cifar(folder: Path) -> list[str]:
    """10,000 images of CIFAR-10, 32x32."""
    return ["dataset=npz", "dataset.path=cifar10_small.npz", "dataset.crop=2", "dataset.flip=true"]


def mnist(folder: Path) -> list[str]:
    """1,000 images of MNIST, and 2,000 to test."""
    with np.load(find_file("mnist.npz")) as arrays:
        few = {name: arrays[name][: 1000 if "train" in name else 2000] for name in arrays.files}
    np.savez(folder / "few.npz", **few)
    return ["dataset=npz", f"dataset.path={folder / 'few.npz'}", "dataset.crop=2"]


def stars(folder: Path) -> list[str]:
    """Stars that differ by the number and the depth of their points: JPEGs of 96 to 256 pixels, 8 classes."""
    return _drawn(folder / "stars", [120] * 8, wrong=0.0)


def spoiled(folder: Path) -> list[str]:
    """Such stars, with 5 % wrong labels, and classes of 200 to 25 images."""
    return _drawn(folder / "spoiled", [200, 150, 110, 80, 60, 45, 33, 25], wrong=0.05)


def _drawn(folder: Path, numbers: list[int], wrong: float) -> list[str]:
    rng = np.random.default_rng(7)
    for label, number in enumerate(numbers):
        for index in range(number):
            given = int(rng.integers(len(numbers))) if rng.random() < wrong else label
            place = folder / f"class{given}"
            place.mkdir(parents=True, exist_ok=True)
            _star(rng, label).save(place / f"{label}-{index}.jpg", quality=85)
    return ["dataset=folder", f"dataset.path={folder}", "dataset.image_size=64"]


def _star(rng: np.random.Generator, label: int) -> Image.Image:
    """A star of 5 to 8 points, deep or shallow, of any place, angle and colour, before soft colours."""
    side = int(rng.integers(96, 257))
    noise = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)
    points, inner = 5 + label // 2, (0.45, 0.6)[label % 2]
    radius, turn = side * rng.uniform(0.2, 0.38), rng.uniform(0, 2 * np.pi)
    x, y = (side * rng.uniform(0.4, 0.6) for _ in range(2))
    corners = []
    for corner in range(2 * points):
        far, angle = radius * (inner if corner % 2 else 1.0), turn + np.pi * corner / points
        corners.append((x + far * np.cos(angle), y + far * np.sin(angle)))
    ImageDraw.Draw(image).polygon(corners, fill=tuple(int(c) for c in rng.integers(0, 256, 3)))
    return image.filter(ImageFilter.GaussianBlur(side / 200))


SETS: dict[str, Callable[[Path], list[str]]] = {
    "cifar10_small": cifar,
    "mnist_1000": mnist,
    "stars": stars,
    "spoiled_stars": spoiled,
}


@pytest.mark.parametrize("minutes", [2, 5, 30], ids="{}min".format)
@pytest.mark.parametrize("name", SETS)
def test_the_found_network_against_those_off_the_shelf(name: str, minutes: int, tmp_path: Path) -> None:
    words = [*SETS[name](tmp_path), "experiment=images"]
    config = compose(*words)
    dataset, recipe = build(config.dataset, DataSet, "dataset"), build(config.recipe, Recipe, "trainer")
    known = KnownNetworks(known_names(), image_shape=dataset.image_shape, num_classes=dataset.num_classes)
    genotypes = known.all()
    shape = [1, *dataset.image_shape]
    latency = time_modules([(known.network(g), shape) for g in genotypes], threads=1, rounds=7)
    flops = known.static_metrics(genotypes)["flops"]
    rows, gains = [], []
    for seed, reference in zip(SEEDS, REFERENCES, strict=True):
        limit = 1.1 * latency[known_names().index(reference)]
        folder = tmp_path / f"run{seed}"
        command = [
            *(sys.executable, "-m", "hwnas", "search", *words, f"limits.latency_ms={limit:.4f}"),
            *(f"budget={minutes}min", f"seed={seed}", f"hydra.run.dir={folder}", "logger=csv"),
            f"store.dir={tmp_path / f'store{seed}'}",
        ]
        subprocess.run(command, check=True, capture_output=True)
        result = json.loads((folder / "result.json").read_text())
        rivals = [row for row, ms in enumerate(latency) if ms <= limit]
        rivals = sorted(rivals, key=lambda row: -flops[row])[:NUM_RIVALS]
        reached = {}
        for row in rivals:
            rival = known.to_str(genotypes[row])
            place = tmp_path / f"{rival}-{seed}"
            place.mkdir()
            with torch.random.fork_rng():
                network = known.network(genotypes[row])
            steps = steps_within(network, dataset, recipe, 60.0 * minutes, part="all", folder=place)
            timed = within(recipe, steps, dataset, "all")
            found = train_network(known, genotypes[row], dataset, timed, Session(place), seed=seed)
            reached[rival] = found["test_acc"]
        best = max(reached, key=lambda rival: reached[rival])
        tested, taken = result["network"]["test_acc"], result["network"]["name"] or "found"
        gains.append(100 * (tested - reached[best]))
        figures = [f"{100 * tested:.2f}", best, f"{100 * reached[best]:.2f}", f"{gains[-1]:+.2f}"]
        rows.append([f"{limit:.2f}", f"{result['seconds']['total']:.0f}", taken, *figures])
    show(
        f"{name}, {minutes} minutes: the search's network is better by {np.mean(gains):+.2f} points",
        ["limit, ms", "seconds", "taken", "test_acc, %", "best off the shelf", "test_acc, %", "difference"],
        rows,
    )
    assert np.isfinite(gains).all()
