"""How far the strategies are from the best network there is, at equal numbers of different architectures.

Quality is the table's validation accuracy; nobody looks at test accuracies. The regret of a run is the best
accuracy under a limit minus the best that the run has found under it, in points, averaged over the nine
decile limits of the device. 20 seeds that no setting was tuned on; mean and 95 % confidence interval.
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import pytest
from study import Case, interval, show

pytestmark = pytest.mark.slow

SEEDS = range(1000, 1020)  # nobody tuned on these
GENERATIONS = {"mo_hdnas": 100, "hw_evrsnas": 50}  # published (20 x 100); EvNAS' (50 x 50)


def test_one_run_for_all_limits(cases: list[Case]) -> None:
    """mo_hdnas, 20 x 100, knows n architectures; everybody else stops at the same n."""
    header = [case.name for case in cases]
    table: dict[str, list[list[float]]] = defaultdict(list)
    for case in cases:
        columns: dict[str, list[float]] = defaultdict(list)
        for seed in SEEDS:
            published = case.run("mo_hdnas", seed, generations=GENERATIONS["mo_hdnas"])
            n = len(published)
            found = {
                "mo_hdnas": published,
                "mo_hdnas, diversity=merged": case.run("mo_hdnas", seed, generations=100, diversity="merged"),
                "mo_hdnas, diversity=none": case.run("mo_hdnas", seed, generations=100, diversity="none"),
                "local_search": case.run("local_search", seed, num_unique=n),
                "local_search, num_candidates=1": case.run(
                    "local_search", seed, num_unique=n, num_candidates=1
                ),
                "random": case.run("random", seed, num_unique=n),
            }
            for name, genotypes in found.items():
                columns[name].append(float(case.regrets(genotypes).mean()))
                columns[f"unique: {name}"].append(len(genotypes))
            columns["regularized_evolution, n / 9 per limit"].append(
                float(
                    np.mean(
                        [
                            case.regrets(
                                case.run("regularized_evolution", seed, num_unique=n // 9, bound=float(bound))
                            )[place]
                            for place, bound in enumerate(case.bounds)
                        ]
                    )
                )
            )
        for name, values in columns.items():
            table[name].append(values)
    names = [name for name in table if not name.startswith("unique")]
    uniques = [f"unique: mo_hdnas{kind}" for kind in ("", ", diversity=merged", ", diversity=none")]
    show(
        "Validation regret in points, mean of nine decile limits: one run serves all limits",
        ["strategy", *header],
        [[name, *(interval(values, 3) for values in table[name])] for name in names]
        + [[name, *(f"{np.mean(values):.0f}" for values in table[name])] for name in uniques],
    )
    for note in sorted({note for case in cases for note in case.notes}):
        print(f"cifar100: {note.split(':')[0]}")
    mean = {name: np.array([np.mean(values) for values in rows]) for name, rows in table.items()}
    assert (mean["mo_hdnas"] < mean["random"]).all()
    assert (mean["mo_hdnas"] < mean["regularized_evolution, n / 9 per limit"]).all()
    assert (mean["local_search"] < 0.6 * mean["mo_hdnas"]).all()


def test_one_run_per_limit(cases: list[Case]) -> None:
    """hw_evrsnas, 50 x 50, knows n architectures after a run for one limit; the others stop at the same n."""
    table: dict[str, list[list[float]]] = defaultdict(list)
    for case in cases:
        columns: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in SEEDS])
        for seed in SEEDS:
            for place, bound in enumerate(map(float, case.bounds)):
                own = case.run("hw_evrsnas", seed, generations=GENERATIONS["hw_evrsnas"], bound=bound)
                n = len(own)
                found = {
                    "hw_evrsnas": own,
                    "regularized_evolution": case.run(
                        "regularized_evolution", seed, num_unique=n, bound=bound
                    ),
                    "random": case.run("random", 100 * seed + place, num_unique=n),
                }
                for name, genotypes in found.items():
                    columns[name][seed - SEEDS.start].append(float(case.regrets(genotypes)[place]))
                columns["unique"][seed - SEEDS.start].append(n)
        for name, runs in columns.items():
            table[name].append([float(np.mean(values)) for values in runs])
    show(
        "Validation regret in points, mean of nine decile limits: a run per limit",
        ["strategy", *(case.name for case in cases)],
        [[name, *(interval(v, 3) for v in rows)] for name, rows in table.items() if name != "unique"]
        + [["unique per run", *(f"{np.mean(values):.0f}" for values in table["unique"])]],
    )
    mean = {name: np.array([np.mean(values) for values in rows]) for name, rows in table.items()}
    assert (mean["hw_evrsnas"] < mean["random"]).all()
