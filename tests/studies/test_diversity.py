"""What the third objective of MO-HDNAS does to the population, beside what its paper shows (Fig. 2 and 6).

FPGA latencies, 20 x 100, validation accuracy of the table as quality (the paper's is the similarity to a
ResNet-20). chibar is the mean cost diversity of a population, in ms^2. Algorithm 1 computes it for the
population P that is evaluated next: those asked together. What survives the selection is printed beside it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from study import OBJECTIVES, Case, interval, show

from hwnas.core import Trial, costs, non_dominated, unique
from hwnas.strategies.evolution import cost_diversity

pytestmark = pytest.mark.slow

SHOWN = (1, 10, 30, 50, 70, 100)
ARMS = (  # strategy.diversity, strategy.crowding
    ("population", "unique"),
    ("merged", "unique"),
    ("none", "unique"),
    ("population", "all"),
    ("none", "all"),
)
PUBLISHED = {  # Fig. 6, CIFAR-10, one run
    "none": ("41.96", "44.10", "44.32", "38.11", "36.30", "33.07"),
    "population": ("67.86", "38.34", "91.44", "139.74", "107.08", "177.85"),
}


def chibar(trials: Sequence[Trial]) -> float:
    return float(cost_diversity(np.array([trial.metrics["latency_ms"] for trial in trials])).mean())


def survivors(strategy: Any) -> list[Trial]:
    return [member.get("trial") for member in strategy._algorithm.pop]


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_diversity_rises_with_the_third_objective(cases: list[Case], dataset: str) -> None:
    """chibar per generation; the slowest network of the last population; how near the accurate end it is."""
    case = next(case for case in cases if case.name == f"{dataset} fpga")
    best = max(case.points.values())
    rows, ends = [], []
    last: dict[str, dict[str, list[float]]] = {}
    for kind in ("none", "population", "merged"):
        curves: dict[str, list[list[float]]] = {"asked": [], "survivors": []}
        end: dict[str, list[float]] = defaultdict(list)
        for seed in range(10):
            asked: list[float] = []
            kept: list[float] = []
            final: list[list[Trial]] = []

            def watch(
                strategy: Any,
                trials: list[Trial],
                asked: list[float] = asked,
                kept: list[float] = kept,
                final: list[list[Trial]] = final,
            ) -> None:
                asked.append(chibar(trials))
                kept.append(chibar(survivors(strategy)))
                final[:] = [trials, survivors(strategy)]

            found = case.run("mo_hdnas", seed, generations=100, diversity=kind, watch=watch)
            curves["asked"].append([asked[g - 1] for g in SHOWN])
            curves["survivors"].append([kept[g - 1] for g in SHOWN])
            for name, trials in zip(("asked", "survivors"), final, strict=True):
                end[f"max {name}"].append(max(trial.metrics["latency_ms"] for trial in trials))
            end["regret survivors"].append(best - 100 * max(trial.metrics["val_acc"] for trial in final[1]))
            end["regret run"].append(best - max(case.points[genotype] for genotype in found))
        if kind in PUBLISHED and dataset == "cifar10":
            rows.append([f"{kind}, Fig. 6", *PUBLISHED[kind]])
        for name, values in curves.items():
            means = np.array(values)
            rows.append([f"{kind}, {name}", *(interval(column.tolist(), 1) for column in means.T)])
            end[f"chibar {name}"] = means[:, -1].tolist()
        last[kind] = end
        names = ("max asked", "max survivors", "regret survivors", "regret run")
        ends.append([kind, *(interval(end[name]) for name in names)])
    show(
        f"chibar in ms², {dataset}, fpga, 10 seeds",
        ["diversity", *(f"generation {g}" for g in SHOWN)],
        rows,
    )
    show(
        f"Generation 100, {dataset}: slowest network in ms; points below the best accuracy there is",
        ["diversity", "slowest asked", "slowest survivor", "best survivor", "best of the run"],
        ends,
    )
    for name in ("asked", "survivors"):
        without, having = (np.array(last[kind][f"chibar {name}"]) for kind in ("none", "population"))
        assert having.mean() > 1.2 * without.mean()


def test_why_the_front_is_missed(cases: list[Case]) -> None:
    """Survivors of the second half of a run, mean over generations and 20 seeds, CIFAR-10.

    With the third objective nearly all are non-dominated, so that only crowding selects, a third of them are
    dominated in accuracy and latency, and most of the front that the run has seen is no longer there.
    """
    rows = []
    measured: dict[tuple[str, str, str], np.ndarray] = {}
    cifar10 = [case for case in cases if case.name.startswith("cifar10 ")]
    for case in cifar10:
        true = non_dominated(
            np.column_stack([-np.array(list(case.points.values())), list(case.latency.values())])
        )
        for kind, crowding in ARMS:
            values: list[list[float]] = []
            for seed in range(20):
                seen: list[Trial] = []
                told: list[int] = []

                def watch(
                    strategy: Any,
                    trials: list[Trial],
                    seen: list[Trial] = seen,
                    told: list[int] = told,
                    values: list[list[float]] = values,
                ) -> None:
                    seen[:] = unique([*seen, *trials])
                    told.append(len(trials))
                    if len(told) <= 50:
                        return
                    kept = survivors(strategy)
                    F, whole = costs(kept, OBJECTIVES), strategy._algorithm.pop.get("F")
                    front = {seen[row].genotype for row in non_dominated(costs(seen, OBJECTIVES))}
                    values.append(
                        [
                            share_not_dominated(whole),
                            share_not_dominated(F),
                            len({trial.genotype for trial in kept}),
                            len(told) - 1 - float(np.mean([trial.generation for trial in kept])),
                            len(front),
                            len(front - {trial.genotype for trial in kept}) / len(front),
                        ]
                    )

                case.run("mo_hdnas", seed, generations=100, diversity=kind, crowding=crowding, watch=watch)
            mean = np.mean(values, axis=0)
            measured[case.name, kind, crowding] = mean
            rows.append(
                [case.name, f"{kind}, {crowding}", *(f"{value:.2f}" for value in mean), str(len(true))]
            )
    show(
        "Survivors of generations 51 to 100",
        [
            "case",
            "diversity, crowding",
            "non-dominated",
            "in accuracy and latency",
            "different of 20",
            "age in generations",
            "front of the run",
            "of it lost",
            "true front",
        ],
        rows,
    )
    for case in cifar10:
        with_it, without = (measured[case.name, kind, "unique"] for kind in ("population", "none"))
        assert with_it[0] > 0.95
        assert with_it[1] < 0.8 < without[1]
        assert with_it[5] > without[5]
        for kind in ("population", "none"):
            # Different networks survive when copies have no crowding distance.
            assert measured[case.name, kind, "unique"][2] > measured[case.name, kind, "all"][2]


def share_not_dominated(F: np.ndarray) -> float:
    """Share of the rows that no other row dominates; equal rows do not dominate each other."""
    return float(np.mean([not ((row >= F).all(axis=1) & (row > F).any(axis=1)).any() for row in F]))
