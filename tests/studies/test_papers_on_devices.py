"""The two hardware papers' methods on six devices and both data sets, each with its paper's budget.

MO-HDNAS (20 x 100) is one run for all limits, HW-EvRSNAS (50 x 50) one for each of the nine deciles; quality
is the table's validation accuracy. `hwnas search -m experiment=table_devices` writes a page per run.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from study import Case, interval, show

pytestmark = pytest.mark.slow

SEEDS = range(3)
DEVICES = 6


def test_both_papers_on_six_devices(cases: list[Case]) -> None:
    regrets: dict[str, list[list[float]]] = {"mo_hdnas, 20 x 100": [], "hw_evrsnas, 50 x 50": []}
    for case in cases:
        of_case: dict[str, list[float]] = {name: [] for name in regrets}
        for seed in SEEDS:
            found = case.run("mo_hdnas", seed, generations=100)
            of_case["mo_hdnas, 20 x 100"].append(float(case.regrets(found).mean()))
            points = []
            for place, bound in enumerate(map(float, case.bounds)):
                found = case.run("hw_evrsnas", seed, generations=50, bound=bound)
                points.append(float(case.regrets(found)[place]))
            of_case["hw_evrsnas, 50 x 50"].append(float(np.mean(points)))
        for name, values in of_case.items():
            regrets[name].append(values)
            assert min(values) >= 0  # nobody is better than the best supported network
    rows = [[name, *(interval(values) for values in of)] for name, of in regrets.items()]
    for start, end in pairwise((0, DEVICES, 2 * DEVICES)):
        header = ["regret in points", *(case.name for case in cases[start:end])]
        show("Mean of nine decile limits", header, [[row[0], *row[1:][start:end]] for row in rows])
    assert all(np.mean(values) < 1.0 for of in regrets.values() for values in of)
