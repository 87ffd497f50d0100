"""EvNAS: a genetic algorithm over alphas, evaluated with a supernet that trains along."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwnas.core import FloatArray, Genotype, Objective, SearchSpace, Strategy, Trial
from hwnas.strategies.evolution import check_genetic, check_told, evolve, fitness


class EvNAS(Strategy):
    """Evolve alphas; the whole population, the elite too, is evaluated anew in every generation.

    The fitness is the first objective; unsupported networks are the least fit. Limits are not looked at.

    Args:
        space: Search space.
        objectives: The first one is the fitness (paper: validation accuracy in the supernet).
        seed: Seed of the generator.
        population_size: Members of the population.
        tournament_size: Members per tournament, at most `population_size`.
        num_elites: Members that stay from generation to generation.
        mutation_rate: Probability that the alphas of an edge are drawn anew; 0 is "crossover only".
        crossover: False is "mutation only": children are mutated copies of one tournament winner.

    Raises:
        ValueError: A size or rate out of range.

    Source: Sinha & Chen, EvNAS, GECCO 2021, arXiv 2012.12540 (code). "Crossover only" and "mutation only" are
    our reading of the labels in its table of ablations.
    """

    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        seed: int,
        *,
        population_size: int,
        tournament_size: int,
        num_elites: int,
        mutation_rate: float,
        crossover: bool,
    ) -> None:
        self.space = space
        self.objectives = objectives
        self.population_size, self.tournament_size, self.num_elites, self.mutation_rate = check_genetic(
            population_size=population_size,
            tournament_size=tournament_size,
            num_elites=num_elites,
            mutation_rate=mutation_rate,
        )
        if not isinstance(crossover, bool):
            raise ValueError(f"strategy.crossover must be true or false, not {crossover!r}")
        self.crossover = crossover
        self._rng = np.random.default_rng(seed)
        self._alphas: FloatArray | None = None
        self._asked = 0
        self._best: list[Trial] = []  # of the last generation, if it is supported
        self._told = False

    def ask(self) -> list[Genotype]:
        """Random alphas first, then the elite and its children, decoded."""
        if self._alphas is None:
            self._alphas = self._rng.random((self.population_size, *self.space.alpha_shape))
        elif self._told:
            self._alphas = evolve(
                self._alphas,
                self._rng,
                num_elites=self.num_elites,
                tournament_size=self.tournament_size,
                mutation_rate=self.mutation_rate,
                crossover=self.crossover,
            )
        self._told = False
        self._asked = self.population_size
        return self.space.decode(self._alphas)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Sort the population, best first; of equals those asked first, so elites stay."""
        check_told(trials, self._asked)
        F = fitness(trials, self.objectives)
        order = np.argsort(-F, kind="stable")
        assert self._alphas is not None
        self._alphas = self._alphas[order]
        self._best = [trials[order[0]]] if np.isfinite(F[order[0]]) else []
        self._told = True

    def result(self) -> list[Trial]:
        """The best trial of the last generation, none if the device supports none of it."""
        return self._best
