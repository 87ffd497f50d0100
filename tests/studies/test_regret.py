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
BAD = 2.0  # points below the best network under a limit
BUDGETS = (50, 100, 200, 400)
FRONTS = ("mo_hdnas", "local_search", "random")


def test_one_run_for_all_limits(cases: list[Case]) -> None:
    """mo_hdnas, 20 x 100, knows n architectures; everybody else stops at the same n."""
    header = [case.name for case in cases]
    table: dict[str, list[list[float]]] = defaultdict(list)
    per_limit: dict[str, list[np.ndarray]] = defaultdict(list)  # of each case, (seeds, limits)
    early: dict[str, list[np.ndarray]] = defaultdict(list)  # of each case, (seeds, budgets, limits)
    for case in cases:
        columns: dict[str, list[float]] = defaultdict(list)
        regrets: dict[str, list[np.ndarray]] = defaultdict(list)
        prefixes: dict[str, list[list[np.ndarray]]] = defaultdict(list)
        for seed in SEEDS:
            published = case.run("mo_hdnas", seed, generations=GENERATIONS["mo_hdnas"])
            n = len(published)
            found = {
                "mo_hdnas": published,
                "mo_hdnas, diversity=merged": case.run("mo_hdnas", seed, generations=100, diversity="merged"),
                "mo_hdnas, diversity=none": case.run("mo_hdnas", seed, generations=100, diversity="none"),
                "mo_hdnas, crowding=all": case.run("mo_hdnas", seed, generations=100, crowding="all"),
                "local_search": case.run("local_search", seed, num_unique=n),
                "local_search, num_candidates=1": case.run(
                    "local_search", seed, num_unique=n, num_candidates=1
                ),
                "random": case.run("random", seed, num_unique=n),
            }
            for name, genotypes in found.items():
                regrets[name].append(case.regrets(genotypes))
                columns[name].append(float(regrets[name][-1].mean()))
                columns[f"unique: {name}"].append(len(genotypes))
            for name in FRONTS:
                prefixes[name].append([case.regrets(found[name][:m]) for m in BUDGETS])
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
        for name in FRONTS:
            per_limit[name].append(np.array(regrets[name]))
            early[name].append(np.array(prefixes[name]))
    names = [name for name in table if not name.startswith("unique")]
    uniques = [
        f"unique: mo_hdnas{kind}" for kind in ("", ", diversity=merged", ", diversity=none", ", crowding=all")
    ]
    show(
        "Validation regret in points, mean of nine decile limits: one run serves all limits",
        ["strategy", *header],
        [[name, *(interval(values, 3) for values in table[name])] for name in names]
        + [[name, *(f"{np.mean(values):.0f}" for values in table[name])] for name in uniques],
    )
    show(
        f"Regret at a run's worst limit, in points; runs more than {BAD:g} points off at some limit",
        ["strategy", *header, "all"],
        [
            [
                name,
                *(
                    f"{of_case.max(axis=1).mean():.2f}; {(of_case.max(axis=1) > BAD).mean():.0%}"
                    for of_case in [*per_limit[name], np.concatenate(per_limit[name])]
                ),
            ]
            for name in FRONTS
        ],
    )
    show(
        f"Runs that are more than {BAD:g} points off, by limit, all cases, after so many different networks",
        ["strategy", *(f"q0.{decile}" for decile in range(1, 10))],
        [
            [f"{name}, {after}", *(f"{part:.1%}" for part in (regret > BAD).mean(axis=0))]
            for name in FRONTS
            for after, regret in (
                *((m, np.concatenate(early[name])[:, at]) for at, m in enumerate(BUDGETS)),
                ("all", np.concatenate(per_limit[name])),
            )
        ],
    )
    rows = []
    for name in FRONTS:
        whole = np.array(early[name])  # (cases, seeds, budgets, limits)
        worst = whole.max(axis=3)
        rows.append(
            [
                name,
                *(
                    f"{interval(whole[:, :, at].mean(axis=(0, 2)).tolist())}; "
                    f"{worst[:, :, at].mean():.2f}; {(worst[:, :, at] > BAD).mean():.0%}"
                    for at in range(len(BUDGETS))
                ),
            ]
        )
    show(
        "After so many different networks, all cases: mean regret; at the worst limit; bad runs",
        ["strategy", *map(str, BUDGETS)],
        rows,
    )
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
