"""Regret after few evaluations under one limit on benchmark tables, printed.

    pytest tests/studies/test_surrogate_tables.py -m slow -s

The regret of a run is the best accuracy under its limit minus the best that it has found under it, in points.
`surrogate` begins with nothing. Seeds that no setting was tuned on; the settings were chosen on CIFAR-10 with
raspi4 and edgegpu. Mean and 95 % confidence interval. Needs HWNAS_DATA with the tables; about two minutes.
Runs for all limits at once, and those of other strategies: `hwnas compare`, in docs/measurements.md.
"""

from __future__ import annotations

import numpy as np
import pytest
from study import Case, interval, show

pytestmark = pytest.mark.slow

SEEDS = range(1000, 1020)
QUANTILES = (0.3, 0.5)
EVALUATIONS = 30
STRATEGIES = ("surrogate", "local_search", "random")
DEVICES = ("raspi4", "pixel3", "eyeriss", "fpga")


def test_regret_under_one_limit(cases: list[Case]) -> None:
    cases = [case for case in cases if case.name.endswith(DEVICES)]
    datasets = list(dict.fromkeys(case.dataset for case in cases))
    rows, mean = [], {}
    for strategy in STRATEGIES:
        for quantile in QUANTILES:
            place, found = round(10 * quantile) - 1, []
            for case in cases:
                bound = float(case.bounds[place])
                runs = [case.run(strategy, seed, num_unique=EVALUATIONS, bound=bound) for seed in SEEDS]
                found.append([float(case.regrets(run)[place]) for run in runs])
            for dataset in datasets:
                own = [each for case, each in zip(cases, found, strict=True) if case.dataset == dataset]
                mean[strategy, quantile, dataset] = float(np.mean(own))
            figures = [f"{mean[strategy, quantile, dataset]:.2f}" for dataset in datasets]
            rows.append([f"{strategy}, q{quantile}", *map(interval, found), *figures])
    header = ["limit", *(case.name for case in cases), *(f"mean {dataset}" for dataset in datasets)]
    show(f"one limit, {EVALUATIONS} evaluations", header, rows)
    for quantile in QUANTILES:
        for dataset in datasets:
            others = [mean[strategy, quantile, dataset] for strategy in STRATEGIES[1:]]
            assert mean["surrogate", quantile, dataset] < 0.5 * min(others)
