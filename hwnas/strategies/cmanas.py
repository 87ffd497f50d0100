"""CMANAS: CMA-ES over the alphas; the answer is the architecture of the final mean."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from hwnas.core import FloatArray, Genotype, Hints, Objective, Positive, SearchSpace, Strategy, Trial, checked
from hwnas.strategies.cma_es import CMAES, PyCMA
from hwnas.strategies.evolution import check_told, fitness


class CMANAS(Strategy):
    """Sample alphas from a normal distribution that CMA-ES adapts towards the fitter ones.

    All alphas of an architecture form one vector of n = edges * ops. From the second generation on, a
    population begins with the architecture of the mean, which CMA-ES never observes. The last generation is
    the mean alone, so that a run of G + 1 generations has G generations of CMA-ES. Limits have no effect;
    unsupported networks are the least fit.

    Args:
        space: Search space.
        objectives: The first one is the fitness (paper: validation accuracy).
        seed: Seed of the generator.
        generations: The run's number of generations, at least 2.
        population_size: lambda, samples per generation, at least 4; None means 4 + floor(3 ln n).
        sigma: Initial step size, in units of the alphas; the mean starts at 0.
        engine: "published", CMA-ES with the published constants, or "pycma", the package `cma`.

    Raises:
        ValueError: Fewer than 2 generations, or a setting out of range.

    Source: Sinha & Chen, CMANAS, Evolutionary Computation 32(2) 2024, arXiv 2107.07266 (code).
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        seed: int,
        generations: int,
        *,
        population_size: Annotated[int, Ge(4)] | None,
        sigma: Positive,
        engine: Literal["published", "pycma"],
    ) -> None:
        self.space = space
        self.objectives = objectives
        if generations < 2:
            raise ValueError(
                f"generations must be at least 2 for CMANAS, the last evaluates the mean, not {generations}"
            )
        self._engine: Callable[[FloatArray], CMAES | PyCMA] = lambda start: (
            CMAES(start, sigma, np.random.default_rng(seed), population_size)
            if engine == "published"
            else PyCMA(start, sigma, seed, population_size)
        )
        self._cma_es = self._engine(np.zeros(math.prod(space.alpha_shape)))
        self.population_size = self._cma_es.population_size
        self._num_left = generations
        self._mean: Trial | None = None
        self._started = False
        self._asked = 0

    def hint(self, hints: Hints) -> None:
        """Have the best known network as the first mean."""
        for genotype in hints.best(1):
            self._cma_es = self._engine(self.space.onehot([genotype]).ravel())

    def ask(self) -> list[Genotype]:
        """The mean, except in the first generation, then samples, except in the last one; decoded."""
        X = [self._cma_es.mean[None]] if self._started else []
        if self._num_left > 1:
            X.append(self._cma_es.ask())
        genotypes = self.space.decode(np.concatenate(X).reshape(-1, *self.space.alpha_shape))
        self._asked = len(genotypes)
        return genotypes

    def tell(self, trials: Sequence[Trial]) -> None:
        """Adapt the distribution to the samples; remember the mean."""
        check_told(trials, self._asked)
        cost = -fitness(trials, self.objectives)
        if self._started:
            self._mean = trials[0]
        if self._num_left > 1:
            self._cma_es.tell(cost[-self.population_size :])
            self._num_left -= 1
        else:
            self.done = True
        self._started = True

    def result(self) -> list[Trial]:
        """The mean that was evaluated last; samples may have been fitter."""
        return [] if self._mean is None else [self._mean]
