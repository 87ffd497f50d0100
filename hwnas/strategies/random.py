"""Random search, the baseline of all methods."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwnas.core import Count, Genotype, Hints, Objective, SearchSpace, Strategy, Trial, checked, front
from hwnas.strategies.evolution import check_told


class RandomSearch(Strategy):
    """Ask for architectures drawn uniformly, operation by operation.

    Args:
        space: Search space.
        objectives: Quality and cost; only `result` uses them.
        seed: Seed of the sampler.
        population_size: Architectures per generation.

    Raises:
        ValueError: A population size below 1.
    """

    @checked
    def __init__(
        self, space: SearchSpace, objectives: tuple[Objective, ...], seed: int, *, population_size: Count
    ) -> None:
        self.space = space
        self.objectives = objectives
        self.population_size = population_size
        self._rng = np.random.default_rng(seed)
        self._asked = 0
        self._trials: list[Trial] = []
        self._first: list[Genotype] = []

    def hint(self, hints: Hints) -> None:
        """Have the best known networks in the first population; the others are drawn."""
        self._first = hints.best(self.population_size)

    def ask(self) -> list[Genotype]:
        """A new sample."""
        self._asked = self.population_size
        first, self._first = self._first, []
        return first + self.space.sample(self._rng, self.population_size - len(first))

    def tell(self, trials: Sequence[Trial]) -> None:
        """Remember the trials."""
        check_told(trials, self._asked)
        self._trials.extend(trials)

    def result(self) -> list[Trial]:
        """The non-dominated trials of the whole run."""
        return front(self._trials, self.objectives)
