"""Zero-cost scores, short trainings and long ones, as the rungs of one evaluator."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence

from hwnas.core import FloatArray, Genotype, SearchSpace, checked
from hwnas.evaluators.table import LooksUp, Lookup
from hwnas.evaluators.train import Train
from hwnas.evaluators.zero_cost import ZeroCost
from hwnas.spaces.capabilities import HasForecast, HasPublished


class Cascade(LooksUp):
    """`estimate`: quality by a model that `strategy=cascade` fits to scores and trainings of a run.

    The evaluator itself answers nothing. Its rungs do, each with metrics and a version of its own: the
    store keeps scores and accuracies for all runs, and a run's archive what was observed. The estimate is
    computed from these. It is one of the last generation's model; those of earlier generations cannot be
    compared with it.

    Where a space has accuracies that were published for other images, a fit to these says what is expected of
    its networks before any evaluation (`HasPublished`). Those of the searched images themselves are not used.
    Where a space forecasts what trainings bring (`HasForecast`), that is expected, for the steps that the
    answer will be trained.

    Args:
        space: Search space.
        zero_cost: Scores, without their combination.
        short: Short trainings.
        long: Longer ones, or of larger networks.
        published: Whether accuracies on other images count, published ones or forecasts.
        images: The benchmark's name of the images that are searched on.
        lookup: Accuracies of a benchmark's table, for reports.

    Raises:
        ValueError: Rungs that report the same metric, a combination of scores, or trainings that stop early.
    """

    stationary = False

    @checked
    def __init__(
        self,
        space: SearchSpace,
        *,
        zero_cost: ZeroCost,
        short: Train,
        long: Train,
        published: bool,
        images: str,
        lookup: Lookup,
    ) -> None:
        self.name = "cascade"
        self._published = space if published and isinstance(space, HasPublished) else None
        self._images = images
        self._forecasts = space if published and isinstance(space, HasForecast) else None
        self._steps: Callable[[Sequence[Genotype]], FloatArray] | None = None
        self._per_pass = 1.0
        if self._published:
            self.note = (
                "what to expect of networks follows from accuracies published for images other than "
                f"{images}, then from this run; evaluator.published=false leaves the former out"
            )
        elif self._forecasts:
            self.note = (
                "what to expect of networks follows from trainings on other images and the steps that the "
                "answer will be trained, then from this run; evaluator.published=false leaves the former out"
            )
        self.rungs = (zero_cost, short, long)
        if twice := [name for name in long.metrics if name in short.metrics]:
            raise ValueError(f"long.label must differ from short.label: both report {twice[0]}")
        if zero_cost.num_reference:
            raise ValueError("zero_cost.num_reference must be 0: strategy=cascade combines scores itself")
        if short.rungs or long.rungs:
            raise ValueError("short.rungs and long.rungs must be null: the strategy says who trains longer")
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

    @property
    def expected_part(self) -> float:
        """1 of a forecast, whose errors scores do not tell; 0.8 of published accuracies."""
        return 0.8 if self._forecasts is None or self._steps is None else 1.0

    def will_train(self, steps: Callable[[Sequence[Genotype]], FloatArray], per_pass: float) -> None:
        """Be told how the answer will be trained, on which a forecast depends; see `Evaluator.will_train`."""
        self._steps, self._per_pass = steps, per_pass

    def expected(self, genotypes: Sequence[Genotype]) -> FloatArray | None:
        """What is known of networks by accuracies on other images, higher is better, (n,); None: nothing."""
        if self._published is not None:
            return self._published.expected(genotypes, self._images)
        if self._forecasts is None or self._steps is None:
            return None
        found = self._forecasts.forecast(genotypes, self._steps(genotypes), self._per_pass)
        return (found - found.mean()) / (found.std() or 1.0)

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Not possible: a rung does.

        Raises:
            ValueError: Always; says which strategy asks rungs.
        """
        raise ValueError("evaluator=cascade needs strategy=cascade, which says which rung evaluates")
