"""CMANAS: CMA-ES over the alphas; the answer is the architecture of the final mean."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from hwnas.core import Genotype, Objective, Positive, SearchSpace, Strategy, Trial, checked
from hwnas.strategies.cma_es import CMAES, PyCMA
from hwnas.strategies.evolution import check_told, fitness


class CMANAS(Strategy):
    """Sample alphas from a normal distribution that CMA-ES adapts towards the fitter ones.

    All alphas of an architecture form one vector of n = edges * ops. From the second generation on the
    architecture of the mean is asked for too, before the samples; it is never told to CMA-ES. The last
    generation asks for the mean alone: a run of G + 1 generations holds G of CMA-ES. Limits are not looked
    at; unsupported networks are the least fit.

    Args:
        space: Search space.
        objectives: The first one is the fitness (paper: validation accuracy).
        seed: Seed of the generator.
        generations: The run's number of generations, at least 2.
        population_size: lambda, samples per generation, at least 4; None means 4 + floor(3 ln n).
        sigma: Initial step size, in units of the alphas; the mean starts at 0.
        engine: "published", CMA-ES with the published constants, or "pycma", that of pip's `cma`.

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
        start = np.zeros(math.prod(space.alpha_shape))
        self._cma_es = (
            CMAES(start, sigma, np.random.default_rng(seed), population_size)
            if engine == "published"
            else PyCMA(start, sigma, seed, population_size)
        )
        self.population_size = self._cma_es.population_size
        self._num_left = generations
        self._mean: Trial | None = None
        self._started = False
        self._asked = 0

    def ask(self) -> list[Genotype]:
        """The mean, unless nothing was told yet, then samples, unless it is the last generation; decoded."""
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
        """The latest mean that was evaluated, though others may have been fitter."""
        return [] if self._mean is None else [self._mean]
