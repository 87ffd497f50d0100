"""The recommended search against the network of most parameters, on images without a table: tables, printed.

    pytest tests/studies/test_most_parameters.py -m slow -s

Five runs with five limits, deciles of the Raspberry Pi 4's latency. Each finds a network in a budget of one
minute; the other network is the one of most parameters within the limit. Both are trained by one recipe,
which was not used for searching, and judged on the validation images; the seeds are new ones.
Needs HWNAS_DATA with hwnasbench_nasbench201.npz, nasbench201.npz and cifar10_16x16.npz; about half an hour.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t
from study import SPACE, Case, estimator, show

from hwnas.api import read_run
from hwnas.evaluators.train import Train

pytestmark = pytest.mark.slow

SEEDS = (100, 101, 102, 103, 104)
DECILE = (0, 2, 4, 6, 8)  # of the limits, from 0
RECIPES = {  # images, steps; networks of C=16 and N=3
    "digits": ("training.epochs=30", "training.max_steps=null"),
    "cifar10_16x16": ("training.epochs=3", "training.max_steps=null"),
}


@pytest.mark.parametrize("dataset", RECIPES)
def test_the_recommended_search_against_most_parameters(dataset: str, tmp_path: Path) -> None:
    case = Case("cifar10", "raspi4")
    cells = [cell for cell in SPACE.all() if SPACE.is_connected([cell])[0]]
    params = SPACE.static_metrics(cells)["params"]
    rows, gains = [], []
    for seed, place in zip(SEEDS, DECILE, strict=True):
        bound = float(case.bounds[place])
        folder = tmp_path / f"run{seed}"
        command = [
            *(sys.executable, "-m", "hwnas", "search", "experiment=blind", f"dataset={dataset}"),
            *("device=raspi4", f"limits.latency_ms={bound}", f"seed={seed}", "budget=1min", "trainer=none"),
            *(f"hydra.run.dir={folder}", f"store.dir={tmp_path / 'store'}"),
        ]
        subprocess.run(command, check=True, capture_output=True)
        found = read_run(folder).best.genotype
        within = [row for row, cell in enumerate(cells) if case.latency[cell] <= bound]
        largest = cells[within[int(params[within].argmax())]]
        judge, _, _ = estimator(
            tmp_path,
            *(f"dataset={dataset}", "evaluator=train", "evaluator.channels=16", "evaluator.num_cells=3"),
            *(f"evaluator.{word}" for word in (*RECIPES[dataset], "training.lr=0.1", f"seed={seed}")),
        )
        assert isinstance(judge, Train)
        a, b = (100 * (judge.train(cell) or {"val_acc": 0.0})["val_acc"] for cell in (found, largest))
        gains.append(a - b)
        rows.append([f"{bound:.1f}", SPACE.to_str(found), f"{a:.2f}", f"{b:.2f}", f"{a - b:+.2f}"])
    half = t.ppf(0.975, len(gains) - 1) * np.std(gains, ddof=1) / len(gains) ** 0.5
    show(
        f"{dataset}: the search's network is better by {np.mean(gains):.2f} points +- {half:.2f}",
        ["limit, ms", "found", "val_acc, %", "most parameters, %", "difference"],
        rows,
    )
    assert np.isfinite(gains).all()
