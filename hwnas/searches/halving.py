"""Successive halving: of networks that were trained shortly, only the best train on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.core import (
    Evaluator,
    Genotype,
    Limit,
    Objective,
    SearchSpace,
    Trial,
    costs,
    trials_of,
    unique,
    violations,
)
from hwnas.store.archive import Archive
from hwnas.store.cache import CachedEvaluator
from hwnas.store.evaluations import EvaluationStore
from hwnas.store.workers import Workers

RUNG = "rung"
"""Metric: the number of rungs that a network got to, from 1."""


class Halving(CachedEvaluator):
    """A cached evaluator whose rungs are asked one after another, each about fewer networks of a population.

    Of n new networks at a rung the best max(1, n // eta) go on to the next one, `best_first`, and of these
    only such as are among the best 1/eta of all that the run has had at this rung: a poor population costs
    little, and populations of one network are compared with earlier ones. A network that got further in an
    earlier generation goes on in any case, and takes nobody's place.

    The choice depends on the population and on the run's archive, not on the order in which trainings
    finish: workers train all networks of a rung at once, and the answers are the same for any number of
    workers, and in a resumed run. Therefore rungs of one population wait for each other: the asynchronous
    algorithm lets a network go on by what has finished so far, which no seed repeats. No worker is idle where
    a population is the number of workers times eta per rung that stops some.

    The store keeps the answers of each rung, which depend on the network alone. What depends on the
    population is only in the archive: a trial has the metrics of the rungs that its network got to.

    Args:
        inner: Computes new answers; with `eta`, and rungs whose metrics have different names. The first of
            its own metrics is made here, (rung - 1 + main metric there) / number of rungs, of the last rung
            that a network got to; another one is `RUNG`.
        store: Keeps answers.
        dataset: Name of the data set, part of the key.
        workers: As for `CachedEvaluator`.
        costs: Evaluators of costs, prepared.
        archive: Of the run.
        objectives: The first of these metrics, then costs.
        limits: Of the run.

    Source: Jamieson & Talwalkar, Non-stochastic Best Arm Identification and Hyperparameter Optimization,
    AISTATS 2016; comparison with all networks at a rung: Li et al., A System for Massively Parallel
    Hyperparameter Tuning, MLSys 2020. Both have one objective; for several `best_first` is ours. Fronts with
    crowding distances instead lose more (docs/measurements.md).
    """

    def __init__(
        self,
        inner: Evaluator,
        store: EvaluationStore,
        dataset: str,
        workers: Workers | None,
        *,
        costs: Sequence[Evaluator],
        archive: Archive,
        objectives: Sequence[Objective],
        limits: Sequence[Limit],
    ) -> None:
        super().__init__(inner, store, dataset, workers)
        assert inner.eta is not None
        self._eta = inner.eta
        self._steps, self.rungs = self.rungs, ()  # which are no longer the strategy's to choose
        self._costs, self._archive, self._objectives = costs, archive, objectives
        known = {name for evaluator in costs for name in evaluator.metrics}
        self._limits = [limit for limit in limits if limit.metric in known]

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """Prepare the rungs; the version is that of all of them."""
        for rung in self._steps:
            rung.prepare(space, population)
        return super().prepare(space, population)

    @property
    def answering(self) -> tuple[CachedEvaluator, ...]:
        """The first rung: its answers are counted, one per network."""
        return self._steps[:1]

    @property
    def seconds_per_new(self) -> float | None:
        """Seconds that a network took whose first rung was computed here, all of its rungs; None if none."""
        computed = self._steps[0].computed
        return sum(rung.spent for rung in self._steps) / computed if computed else None

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Metrics per genotype, in order, of the rungs that it gets to."""
        name, *_ = self.metrics
        asked = trials_of(genotypes, [evaluator.evaluate(genotypes) for evaluator in self._costs], 0)
        here = {trial.genotype: dict(trial.metrics) for trial in asked}
        answers: dict[Genotype, dict[str, float]] = {genotype: {} for genotype in genotypes}
        last = len(self._steps)
        for number, rung in enumerate(self._steps, start=1):
            main, *_ = rung.metrics
            for genotype, row in zip(here, rung.evaluate(list(here)), strict=True):
                answers[genotype] |= {name: (number - 1 + row[main]) / last, RUNG: float(number), **row}
                here[genotype][name] = row[main]
            if number < last:
                here = self._going_on(here, number, main)
        return [answers[genotype] for genotype in genotypes]

    def _going_on(
        self, here: Mapping[Genotype, dict[str, float]], number: int, main: str
    ) -> dict[Genotype, dict[str, float]]:
        """Those of the networks at a rung that go on to the next one, with what is known of them.

        Args:
            here: Per network its costs, and its main metric at this rung as the first objective.
            number: Of the rung, from 1.
            main: The rung's main metric.
        """
        name = self._objectives[0].metric
        earlier = [trial for trial in unique(self._archive.trials) if main in trial.metrics]
        further = {trial.genotype for trial in earlier if trial.metrics[RUNG] > number}
        everyone = {t.genotype: Trial(t.genotype, {**t.metrics, name: t.metrics[main]}, 0) for t in earlier}
        everyone |= {genotype: Trial(genotype, metrics, 0) for genotype, metrics in here.items()}
        trials = list(everyone.values())
        order = [trials[row].genotype for row in best_first(trials, self._objectives, self._limits)]
        good = set(order[: max(1, len(order) // self._eta)])
        new = [genotype for genotype in order if genotype in here and genotype not in further]
        chosen = good.intersection(new[: max(1, len(new) // self._eta)]) | further
        return {genotype: metrics for genotype, metrics in here.items() if genotype in chosen}


def best_first(
    trials: Sequence[Trial], objectives: Sequence[Objective], limits: Sequence[Limit]
) -> NDArray[np.intp]:
    """Places of trials in order, the best one first; equals keep their order.

    With limits the order is that of the first objective within them; the others come after, by their
    violation. Without limits the first ones are to serve any limit: each place is for the best of those left
    under a bound on the costs, the quantiles 1, 1/2, 3/4, 1/4, 7/8, ... in turn. A network comes after those
    that dominate it. Unsupported networks come last.

    Args:
        trials: Of different networks.
        objectives: Quality first, then costs.
        limits: On costs.
    """
    # For whoever needs them: a search without rungs starts faster.
    from scipy.stats import rankdata
    from scipy.stats.qmc import Halton

    F, excess = costs(trials, objectives), violations(trials, limits)
    if limits:
        return np.lexsort((F[:, 0], excess))
    left = np.flatnonzero(np.isfinite(excess))
    last = np.flatnonzero(~np.isfinite(excess))
    quantile = np.zeros(len(trials))
    if len(left) and F.shape[1] > 1:
        quantile[left] = rankdata(F[left, 1:], "max", axis=0).max(axis=1) / len(left)
    order = []
    for bound in 1 - Halton(1, scramble=False).random(len(left))[:, 0]:
        within = left[quantile[left] <= max(bound, quantile[left].min())]
        chosen = within[F[within, 0].argmin()]
        order.append(chosen)
        left = left[left != chosen]
    return np.array([*order, *last], dtype=np.intp)
