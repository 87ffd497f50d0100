"""What figures of short trainings are worth, by their length: a table for docs/measurements.md.

    pytest tests/studies/test_trainings.py -m slow -s

Half of the cells are drawn, half have the most parameters under limits of some device, as a search would
train them. Networks of C=8 and N=1 on CIFAR-10 at 16x16. Tau is over the cells that are trained; blind regret
is that of a Gaussian process over the cells' structure, fitted to the figures, whose prior is the number of
parameters, and which estimates all cells of the space. Needs HWNAS_DATA with nasbench201.npz,
hwnasbench_nasbench201.npz and cifar10_16x16.npz; about 15 CPU minutes.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau
from study import SPACE, Case, estimator, random_cells, show

from hwnas.core import Genotype
from hwnas.evaluators.train import FIGURES, Train
from hwnas.strategies.predictor import MODELS

pytestmark = pytest.mark.slow

SEED = 2027  # of the cells that are drawn; no setting was chosen on them
NUM_CELLS = 32
LENGTHS = (200, 600, 1800)  # optimiser steps


def large_cells(cases: list[Case], num: int) -> list[Genotype]:
    """Cells of the most parameters under the nine limits of each device in turn."""
    cells = [cell for cell in SPACE.all() if SPACE.is_connected([cell])[0]]
    sizes = SPACE.static_metrics([tuple(row) for row in SPACE.live(cells).tolist()])["params"]
    order = [cells[row] for row in np.argsort(-sizes, kind="stable")]
    found: dict[Genotype, None] = {}
    for place in range(9):
        for case in cases:
            keeps = (cell for cell in order if case.latency[cell] <= case.bounds[place] and cell not in found)
            found[next(keeps)] = None
            if len(found) == num:
                return list(found)
    raise AssertionError("more cells than limits")


def test_figures_of_short_trainings(cases: list[Case], tmp_path: Path) -> None:
    cases = [case for case in cases if case.name.startswith("cifar10 ")]
    cells = list(dict.fromkeys([*random_cells(NUM_CELLS // 2, SEED), *large_cells(cases, NUM_CELLS // 2)]))
    truth = [cases[0].points[cell] for cell in cells]
    everything = SPACE.all()
    connected = SPACE.is_connected(everything)
    live = [tuple(row) for row in SPACE.live(everything).tolist()]
    prior = np.log(SPACE.static_metrics(live)["params"])
    numbers = np.column_stack([prior, SPACE.features(live), SPACE.onehot(live).reshape(len(live), -1)])
    rows = [everything.index(cell) for cell in cells]

    table = []
    for steps in LENGTHS:
        settings = (
            "evaluator=train",
            "evaluator.channels=8",
            "evaluator.num_cells=1",
            "evaluator.num_valid=5000",
        )
        recipe = ("training.epochs=100", f"training.max_steps={steps}", "training.lr=0.1")
        train, _, _ = estimator(tmp_path, *settings, *(f"evaluator.{word}" for word in recipe))
        assert isinstance(train, Train)
        start = time.process_time()
        figures = [train.train(cell) for cell in cells]
        seconds = (time.process_time() - start) / len(cells)
        for name in FIGURES:
            values = np.array([0.0 if found is None else found[name] for found in figures])
            mean, _ = MODELS["Gaussian process"](numbers[rows], values, 0)(numbers)
            estimate = np.where(connected, mean, -np.inf)
            regrets = [case.blind_regrets(everything, estimate).mean() for case in cases]
            table.append(
                [f"{name}, {steps} steps", f"{seconds:.1f}", f"{kendalltau(values, truth)[0]:.2f}"]
                + [f"{regret:.2f}" for regret in regrets]
                + [f"{np.mean(regrets):.2f}"]
            )
    devices = [case.name.split()[1] for case in cases]
    show(f"{len(cells)} trainings", ["figure", "CPU s each", "tau", *devices, "mean"], table)
    longest = [row for row in table if row[0].endswith(f"{LENGTHS[-1]} steps")]
    assert all(float(row[2]) > 0 for row in longest)
