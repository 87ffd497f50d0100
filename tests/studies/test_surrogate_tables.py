"""What a model of the quality saves: regret after few evaluations on benchmark tables, printed.

    pytest tests/studies/test_surrogate_tables.py -m slow -s

One run for all limits. The regret of a run is the best accuracy under a limit minus the best that it has
found under it, in points, averaged over the nine decile limits of the device. Seeds that no setting was tuned
on; mean and 95 % confidence interval. Needs HWNAS_DATA with the tables; about six minutes.
"""

from __future__ import annotations

import time

import numpy as np
import pytest
from study import Case, interval, show

pytestmark = pytest.mark.slow

SEEDS = range(1000, 1003)
SIZES = (60, 100, 150)
STRATEGIES = ("surrogate", "local_search")


def test_regret_after_few_evaluations(cases: list[Case]) -> None:
    rows, mean = [], {}
    for strategy in STRATEGIES:
        start, found = time.perf_counter(), []
        for case in cases:
            runs = [case.run(strategy, seed, num_unique=max(SIZES)) for seed in SEEDS]
            found.append([[case.regrets(run[:size]).mean() for size in SIZES] for run in runs])
        regrets = np.array(found)  # (cases, seeds, sizes)
        each = (time.perf_counter() - start) / regrets.shape[0] / regrets.shape[1] / max(SIZES)
        mean[strategy] = regrets.mean(axis=(0, 1))
        for place, size in enumerate(SIZES):
            by_case = (interval(values[:, place].tolist()) for values in regrets)
            last = (f"{mean[strategy][place]:.2f}", f"{1000 * each:.1f} ms")
            rows.append([f"{strategy}, {size}", *by_case, *last])
    show(
        "one run for all limits",
        ["evaluations", *(case.name for case in cases), "mean", "each"],
        rows,
    )
    assert (mean["surrogate"] < mean["local_search"]).all()
