"""Zero-cost scores, short trainings and long ones, as the rungs of one evaluator."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from hwnas.core import Genotype, SearchSpace, checked
from hwnas.evaluators.table import LooksUp, Lookup
from hwnas.evaluators.train import Train
from hwnas.evaluators.zero_cost import ZeroCost


class Cascade(LooksUp):
    """`estimate`: quality by a model that `strategy=cascade` fits to scores and trainings of a run.

    The evaluator itself answers nothing. Its rungs do, each with metrics and a version of its own: the
    store keeps scores and accuracies for all runs, and a run's archive what was observed. The estimate is
    computed from these. It is one of the last generation's model; those of earlier generations cannot be
    compared with it.

    Args:
        zero_cost: Scores, without their combination.
        short: Short trainings.
        long: Longer ones, or of larger networks.
        lookup: Accuracies of a benchmark's table, for reports.

    Raises:
        ValueError: Rungs that report the same metric, or a combination of scores.
    """

    stationary = False

    @checked
    def __init__(self, *, zero_cost: ZeroCost, short: Train, long: Train, lookup: Lookup) -> None:
        self.name = "cascade"
        self.rungs = (zero_cost, short, long)
        if twice := [name for name in long.metrics if name in short.metrics]:
            raise ValueError(f"long.label must differ from short.label: both report {twice[0]}")
        if zero_cost.num_reference:
            raise ValueError("zero_cost.num_reference must be 0: strategy=cascade combines scores itself")
        self.metrics = {
            "estimate": "max",
            "estimate_std": "min",
            **{k: goal for rung in self.rungs for k, goal in rung.metrics.items()},
        }
        self.look_up(lookup)

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """The rungs' versions, hashed."""
        versions = [rung.prepare(space, population) for rung in self.rungs]
        return hashlib.sha256(" ".join(versions).encode()).hexdigest()[:16]

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Not possible: a rung does.

        Raises:
            ValueError: Always; says which strategy asks rungs.
        """
        raise ValueError("evaluator=cascade needs strategy=cascade, which says which rung evaluates")
