"""HW-EvRSNAS: a genetic algorithm over alphas, quality minus a penalty for exceeding hardware limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from hwnas.core import (
    Count,
    Fraction,
    Genotype,
    Hints,
    Limit,
    NotNegative,
    Objective,
    SearchSpace,
    Strategy,
    Trial,
    WholeNumber,
    best,
    checked,
    costs,
    violations,
)
from hwnas.strategies.evolution import GeneticAlgorithm, fittest


class HWEvRSNAS(Strategy):
    """Maximise quality minus a penalty in proportion to the cost beyond its limit.

    fitness = quality - weight * sum over limits of max(0, (cost - limit) / limit). The two-sided penalty has
    the absolute value instead of max, so that networks cheaper than the limit get a penalty, too. Without
    limits the fitness is the quality. A network that the device does not support has the fitness -inf.

    Args:
        space: Search space.
        objectives: Quality and cost; the first one is optimised.
        limits: Limits of the run, usually one on the device's cost.
        seed: Seed of the generator.
        population_size: Members of the population.
        tournament_size: Members per tournament, at most `population_size`.
        num_elites: Members that stay from generation to generation.
        mutation_rate: Probability that the alphas of an edge are drawn again.
        penalty: "one_sided" or "two_sided".
        penalty_weight: lambda, in units of the quality per 100 % violation.

    Raises:
        ValueError: A setting out of range.

    Source: Sinha et al., HW-EvRSNAS, WACV 2024, arXiv 2311.03923: the structure. The paper publishes neither
    formula and weight of the penalty nor settings of the algorithm. Here they are the simplest formula that
    fits the abstract, and EvNAS' algorithm and settings.
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        limits: tuple[Limit, ...],
        seed: int,
        *,
        population_size: Count,
        tournament_size: Count,
        num_elites: WholeNumber,
        mutation_rate: Fraction,
        penalty: Literal["one_sided", "two_sided"],
        penalty_weight: NotNegative,
    ) -> None:
        self.space = space
        self.objectives = objectives
        self._genetic = GeneticAlgorithm(
            seed,
            population_size=population_size,
            tournament_size=tournament_size,
            num_elites=num_elites,
            mutation_rate=mutation_rate,
        )
        self.penalty = penalty
        self.penalty_weight = penalty_weight
        self._limits = limits
        self._trials: list[Trial] = []

    def hint(self, hints: Hints) -> None:
        """Have the best known networks in the first population; the others are drawn."""
        self._genetic.begin(self.space.onehot(hints.best(self._genetic.population_size)))

    def ask(self) -> list[Genotype]:
        """Random alphas at first, later the next population of the genetic algorithm, decoded."""
        return self.space.decode(self._genetic.ask(self.space.allowed))

    def fitness(self, trials: Sequence[Trial]) -> np.ndarray:
        """Quality minus penalty per trial, shape (n,)."""
        excess = violations(trials, self._limits)
        if self.penalty == "two_sided":
            below = [
                sum(
                    max(0.0, (limit.bound - trial.metrics[limit.metric]) / limit.bound)
                    for limit in self._limits
                    if limit.goal == "min"
                )
                for trial in trials
            ]
            excess = excess + np.array(below)
        quality = -costs(trials, self.objectives)[:, 0]
        supported = np.isfinite(excess) & np.isfinite(quality)
        fitness = np.full(len(trials), -np.inf)
        fitness[supported] = quality[supported] - self.penalty_weight * excess[supported]
        return fitness

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take the answers; the next `ask` evolves."""
        self._genetic.tell(trials, self.fitness(trials))
        self._trials.extend(trials)

    def result(self) -> list[Trial]:
        """The best feasible trial of the run, or the fittest one if none is feasible."""
        if not self._trials:
            return []
        feasible = best(self._trials, self.objectives, self._limits)
        if feasible is not None:
            return [feasible]
        return fittest(self._trials, self.fitness(self._trials))
