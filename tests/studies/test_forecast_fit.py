"""Short trainings of random residual networks: the fit that ships as hwnas/spaces/known/forecast.json.

    pytest tests/studies/test_forecast_fit.py -m slow -s

Networks of `search_space=resnet` of random size are trained for a random time of 15 to 110 CPU seconds by
`trainer=strong`, on the 10,000 images of cifar10_small.npz and on the first 1,200 of them; shallow networks
are more frequent, and few are of bottlenecks or begin with a pool. A line over `forecast.terms` tells what
steps and sizes are worth; its error is that of networks it did not see. Needs HWNAS_DATA with
cifar10_small.npz; two hours of one core. Write what is printed to the file to ship it.

The line that ships is of 61 trainings: about 30 like these, others of full resolution, some of up to 300
seconds, and of networks off the shelf and near them; 5 on the smaller set.
"""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path

import numpy as np
import pytest
import scipy.special
import torch
from scipy.stats import spearmanr
from study import show

from hwnas import compose
from hwnas.build import build
from hwnas.core import FloatArray
from hwnas.data.images import DataSet
from hwnas.files import find_file
from hwnas.spaces.known import ResNetSpace
from hwnas.spaces.known.forecast import fitted, line
from hwnas.training.checkpoint import Session
from hwnas.training.classifier import accuracy, fit
from hwnas.training.pace import within
from hwnas.training.recipe import Recipe

pytestmark = pytest.mark.slow

NUM = 40
"""Trainings per set of images."""

SECONDS = (15, 110)
"""CPU seconds of a training, one thread: the shortest and the longest."""

FEW = 1200
"""Images of the smaller set."""

POINT = 0.04
"""A point of accuracy as a part of its logit, at an accuracy of one half."""


def trained(words: list[str], num: int, folder: Path, seed: int) -> tuple[FloatArray, FloatArray]:
    """The terms of networks, (num, 10), and the logits of their test accuracies, (num,)."""
    config = compose(*words, "dataset.crop=2", "dataset.flip=true", "experiment=images")
    dataset, recipe = build(config.dataset, DataSet, "dataset"), build(config.recipe, Recipe, "trainer")
    space = ResNetSpace(image_shape=dataset.image_shape, num_classes=dataset.num_classes)
    rng = np.random.default_rng(seed)
    pool = space.sample(rng, 20_000)
    options = [dict(word.split("=") for word in space.to_str(genotype).split()) for genotype in pool]
    blocks = np.array([sum(int(of[f"s{stage}.depth"]) for stage in range(1, 5)) for of in options])
    rare = np.array([(of["stem"] == "7x7-pool") + (of["block"] == "bottleneck") for of in options])
    kept = np.flatnonzero(rng.random(len(pool)) < 0.75 ** np.maximum(0, blocks - 4) * 0.3**rare)
    flops = space.static_metrics(pool)["flops"]
    X, y = [], []
    for _ in range(num):
        seconds = 2 ** rng.uniform(*np.log2(SECONDS))
        target = seconds * 2e5 * 2 ** rng.uniform(-3.5, 1.3)
        genotype = pool[rng.choice(kept[np.argsort(abs(np.log(flops[kept] / target)))[:40]])]
        torch.manual_seed(0)
        network = space.network(genotype)

        def training(steps: int, network: torch.nn.Module = network) -> float:
            start = time.process_time()
            module = copy.deepcopy(network)
            fit(module, dataset, within(recipe, steps, dataset, "all"), Session(folder), part="all", seed=0)
            return time.process_time() - start

        training(4)
        steps = max(8, int(seconds * 12 / (training(16) - training(4))))
        timed = within(recipe, steps, dataset, "all")
        module = fit(network, dataset, timed, Session(folder), part="all", seed=0)
        per_pass = dataset.size("all") / recipe.batch_size
        X.append(space.terms([genotype], np.array([float(steps)]), per_pass)[0])
        y.append(scipy.special.logit(accuracy(module, dataset, "test")))
    return np.array(X), np.array(y)


def test_the_fit_that_ships(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    with np.load(find_file("cifar10_small.npz")) as arrays:
        few = {name: arrays[name][:FEW] if "train" in name else arrays[name] for name in arrays.files}
    np.savez(tmp_path / "few.npz", **few)
    parts = [
        trained(["dataset=npz", f"dataset.path={path}"], NUM, tmp_path, seed)
        for seed, path in enumerate(("cifar10_small.npz", tmp_path / "few.npz"))
    ]
    X = np.vstack([of for of, _ in parts])
    y = np.concatenate([logits for _, logits in parts])
    group = np.repeat(np.arange(len(parts)), [len(of) for of, _ in parts]).astype(float)
    away = y - np.concatenate([np.full(len(logits), logits.mean()) for _, logits in parts])
    left_out = np.zeros(len(y))
    for row in range(len(y)):
        others = np.arange(len(y)) != row
        one = fitted(X[others], y[others], group[others])
        same = others & (group == group[row])
        left_out[row] = (X[row] - X[same].mean(axis=0)) @ one.coefficients
    found = fitted(X, y, group)
    print(json.dumps({name: np.round(values, 6).tolist() for name, values in found._asdict().items()}))
    shipped = (
        X - np.vstack([np.tile(of.mean(axis=0), (len(of), 1)) for of, _ in parts])
    ) @ line().coefficients
    rows = [
        [name, f"{np.std(away - predicted) / POINT:.2f}", f"{spearmanr(predicted, away)[0]:.2f}"]
        for name, predicted in (("networks left out one by one", left_out), ("the line that ships", shipped))
    ]
    title = f"{len(y)} trainings, deviation {np.std(away) / POINT:.2f} points"
    show(title, ["line", "error, points", "Spearman"], rows)
    assert spearmanr(shipped, away)[0] > 0.6
