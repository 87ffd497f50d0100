"""How far the strategies are from the best network there is, at equal numbers of different architectures.

Quality is the table's validation accuracy; nobody looks at test accuracies. The regret of a run is the best
accuracy under a limit minus the best that the run has found under it, in points, averaged over the nine
decile limits of the device. 20 seeds that no setting was tuned on.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from study import Case, interval, show

from hwnas import compare

pytestmark = pytest.mark.slow

SEEDS = range(1000, 1020)  # nobody tuned on these
GENERATIONS = 50  # of hw_evrsnas: EvNAS' (50 x 50)
BAD = 2.0  # points below the best network under a limit
COMMAND = (
    "strategy=surrogate:generations=130,local_search,mo_hdnas,mo_hdnas:diversity=none,mo_hdnas:crowding=all,random",
    "dataset=cifar10,cifar100",
    "device=edgegpu,raspi4,edgetpu,pixel3,eyeriss,fpga",
    "seed=1000",
    "evaluations=50,100,150,200,400,620",
)
"""As in docs/measurements.md."""


def test_one_run_for_all_limits(cases: list[Case], tmp_path: Path) -> None:
    """What `hwnas compare` prints, and what a mean over limits hides: the worst of them."""
    folder = compare(*COMMAND, folder=tmp_path).folder
    runs: dict[tuple[str, int], dict[tuple[str, str], list[float]]] = defaultdict(lambda: defaultdict(list))
    with (folder / "runs.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            if row["limit"] != "mean":
                run = (row["case"], row["seed"])
                runs[row["strategy"], int(row["evaluations"])][run].append(float(row["loss"]))
    regrets = {key: np.array(list(of.values())) for key, of in runs.items()}  # (cases * seeds, limits)
    names, sizes = dict.fromkeys(name for name, _ in regrets), sorted({size for _, size in regrets})
    show(
        f"Mean regret in points; at the worst limit; runs more than {BAD:g} points off at some limit",
        ["strategy", *map(str, sizes)],
        [
            [
                name,
                *(
                    f"{of.mean():.2f}; {of.max(axis=1).mean():.2f}; {(of.max(axis=1) > BAD).mean():.0%}"
                    for of in (regrets[name, size] for size in sizes)
                ),
            ]
            for name in names
        ],
    )
    show(
        f"Runs that are more than {BAD:g} points off, by limit, after so many different networks",
        ["strategy", *(f"q0.{decile}" for decile in range(1, 10))],
        [
            [f"{name}, {size}", *(f"{part:.1%}" for part in (regrets[name, size] > BAD).mean(axis=0))]
            for name in names
            for size in sizes
        ],
    )
    mean = {name: regrets[name, sizes[-1]].mean() for name in names}
    assert mean["surrogate:generations=130"] < mean["local_search"] < 0.6 * mean["mo_hdnas"]
    assert mean["mo_hdnas"] < mean["random"]


def test_one_run_per_limit(cases: list[Case]) -> None:
    """hw_evrsnas, 50 x 50, knows n architectures after a run for one limit; the others stop at the same n."""
    table: dict[str, list[list[float]]] = defaultdict(list)
    for case in cases:
        columns: dict[str, list[list[float]]] = defaultdict(lambda: [[] for _ in SEEDS])
        for seed in SEEDS:
            for place, bound in enumerate(map(float, case.bounds)):
                own = case.run("hw_evrsnas", seed, generations=GENERATIONS, bound=bound)
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
