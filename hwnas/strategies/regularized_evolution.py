"""Regularized (aging) evolution, a single-objective baseline."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import numpy as np

from hwnas.core import (
    Count,
    Genotype,
    Hints,
    Limit,
    Objective,
    SearchSpace,
    Strategy,
    Trial,
    checked,
    costs,
    violations,
)
from hwnas.strategies.evolution import check_told


class RegularizedEvolution(Strategy):
    """Mutate the best member of a random sample of the population; every child replaces the oldest member.

    It optimises the first objective. So that it can be compared under limits, it follows Deb's rule: a trial
    that violates limits loses against every trial that keeps them, and of two violations the smaller one
    wins.

    Args:
        space: Search space.
        objectives: Quality and cost; the first one is optimised.
        limits: Limits of the run.
        seed: Seed of the generator.
        population_size: P, size of the population and of the first generation.
        sample_size: S, size of a sample, at most P.
        num_children: Children per generation after the first; None: P. 1 is the published, sequential rule.

    Raises:
        ValueError: A size below 1, or S larger than P.

    Source: Real et al., Regularized Evolution for Image Classifier Architecture Search, AAAI 2019, Alg. 1.
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
        sample_size: Count,
        num_children: Count | None = None,
    ) -> None:
        self.space = space
        self.objectives = objectives
        self.population_size = population_size
        self.sample_size = sample_size
        if sample_size > population_size:
            raise ValueError(f"sample_size {sample_size} is larger than the population of {population_size}")
        self.num_children = population_size if num_children is None else num_children
        self._limits = limits
        self._rng = np.random.default_rng(seed)
        self._alive: deque[tuple[tuple[float, float], Trial]] = deque(maxlen=self.population_size)
        self._asked = 0
        self._first: list[Genotype] = []
        self._best: tuple[tuple[float, float], Trial] | None = None

    def hint(self, hints: Hints) -> None:
        """Have the best known networks in the first population; the others are drawn."""
        self._first = hints.best(self.population_size)

    def ask(self) -> list[Genotype]:
        """A random population at first, later children of the samples' best members."""
        if not self._alive:
            drawn = self.population_size - len(self._first)
            asked = self._first + self.space.sample(self._rng, drawn)
        else:
            asked = [self._child() for _ in range(self.num_children)]
        self._asked = len(asked)
        return asked

    def _child(self) -> Genotype:
        sample = self._rng.choice(len(self._alive), size=self.sample_size, replace=False)
        parent = min((self._alive[index] for index in sample), key=lambda member: member[0])
        return self.space.mutate(parent[1].genotype, self._rng)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Add the observed trials to the population; as many of the oldest members leave it."""
        check_told(trials, self._asked)
        fitness = zip(violations(trials, self._limits), costs(trials, self.objectives)[:, 0], strict=True)
        for (violation, cost), trial in zip(fitness, trials, strict=True):
            member = (float(violation), float(cost)), trial
            self._alive.append(member)
            if self._best is None or member[0] < self._best[0]:
                self._best = member

    def result(self) -> list[Trial]:
        """The best trial of the whole run."""
        return [] if self._best is None else [self._best[1]]

    def survivors(self) -> list[Trial]:
        """The population."""
        return [trial for _, trial in self._alive]
