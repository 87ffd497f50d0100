"""Parts of evolutionary strategies, as functions of numbers, and EvNAS' genetic algorithm."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.core import Count, FloatArray, Fraction, Objective, Trial, WholeNumber, checked, costs, violations


def check_told(trials: Sequence[Trial], num_asked: int) -> None:
    """Raise ValueError unless the number of observed trials is the number of architectures asked for."""
    if len(trials) != num_asked:
        raise ValueError(f"tell takes the {num_asked} trials of the last ask, not {len(trials)}")


def fitness(trials: Sequence[Trial], objectives: Sequence[Objective]) -> FloatArray:
    """The first objective as a fitness, shape (n,), higher is better; -inf for unsupported networks."""
    quality = -costs(trials, objectives[:1])[:, 0]
    return np.where(np.isfinite(violations(trials, ())), quality, -np.inf)


def fittest(trials: Sequence[Trial], fitness: FloatArray) -> list[Trial]:
    """The fittest trial, the first of equals, in a list; empty if the device supports none of them."""
    best = int(np.argmax(fitness))
    return [trials[best]] if np.isfinite(fitness[best]) else []


def cost_diversity(cost: FloatArray) -> FloatArray:
    """Sum of squared differences to the whole population, shape (n,): chi of MO-HDNAS, eq. 3.

    In squared units of the cost. Members with an infinite cost do not count, and their own value is 0. The
    mean over the population is 2 n Var(cost).
    """
    known = np.isfinite(cost)
    chi = np.zeros(len(cost))
    chi[known] = ((cost[known, None] - cost[None, known]) ** 2).sum(axis=1)
    return chi


def tournament(num: int, size: int, rng: np.random.Generator) -> int:
    """Index of the fittest of `size` different members of a population sorted best first.

    Args:
        num: Members of the population.
        size: Members drawn, without replacement.
        rng: Source of randomness.
    """
    return int(rng.choice(num, size=size, replace=False).min())


def evolve(
    alphas: FloatArray,
    rng: np.random.Generator,
    *,
    num_elites: int,
    tournament_size: int,
    mutation_rate: float,
    crossover: bool = True,
) -> FloatArray:
    """The next population of EvNAS' genetic algorithm; keeps the shape (n, edges, ops).

    The elites stay unchanged. A child takes each row (the alphas of one edge) from one of two tournament
    winners, at random; the winners may be the same member. Then each row is replaced, with probability
    `mutation_rate`, by a new one that is uniform in [0, 1).

    Args:
        alphas: The population, best first.
        rng: Source of randomness.
        num_elites: Members that stay.
        tournament_size: Members per tournament.
        mutation_rate: Probability per row.
        crossover: False lets every child start as a copy of one tournament winner.

    Source: Sinha & Chen, EvNAS, GECCO 2021, arXiv 2012.12540 (code).
    """
    n, edges, ops = alphas.shape
    children = np.empty_like(alphas)
    children[:num_elites] = alphas[:num_elites]
    for child in range(num_elites, n):
        mother = alphas[tournament(n, tournament_size, rng)]
        rows = mother
        if crossover:
            father = alphas[tournament(n, tournament_size, rng)]
            rows = np.where(rng.random((edges, 1)) < 0.5, mother, father)
        mutated = rng.random((edges, 1)) < mutation_rate
        children[child] = np.where(mutated, rng.random((edges, ops)), rows)
    return children


class GeneticAlgorithm:
    """EvNAS' genetic algorithm over alphas, by ask and tell; part of EvNAS, pEvoNAS and HW-EvRSNAS.

    Args:
        seed: Seed of the generator.
        population_size: Members of the population.
        tournament_size: Members per tournament, at most `population_size`.
        num_elites: Members that stay from generation to generation.
        mutation_rate: Probability that the alphas of an edge are drawn again.
        crossover: As for `evolve`.

    Attributes:
        alphas: The population, shape (n, edges, ops), 0 where an operation is not allowed; best first after
            `tell`. None before the first `ask`.

    Raises:
        ValueError: A size or rate out of range; names the setting.
    """

    @checked
    def __init__(
        self,
        seed: int,
        *,
        population_size: Count,
        tournament_size: Count,
        num_elites: WholeNumber,
        mutation_rate: Fraction,
        crossover: bool = True,
    ) -> None:
        for name, number in (("tournament_size", tournament_size), ("num_elites", num_elites)):
            if number > population_size:
                raise ValueError(f"{name} {number} is larger than the population of {population_size}")
        self.population_size, self.tournament_size = population_size, tournament_size
        self.num_elites, self.mutation_rate, self.crossover = num_elites, mutation_rate, crossover
        self.alphas: FloatArray | None = None
        self._rng = np.random.default_rng(seed)
        self._first: FloatArray = np.empty((0, 0, 0))
        self._told = False

    def begin(self, alphas: FloatArray) -> None:
        """Have alphas (n, edges, ops) in the first population, at most `population_size`."""
        self._first = alphas[: self.population_size]

    def ask(self, allowed: NDArray[np.bool_]) -> FloatArray:
        """Uniform alphas at first, later the next population by `evolve`, shape (n, edges, ops).

        Args:
            allowed: Which operation is allowed on which edge, shape (edges, ops).
        """
        alphas = self.alphas
        if alphas is None:
            alphas = self._rng.random((self.population_size, *allowed.shape))
            if len(self._first):
                alphas[: len(self._first)] = self._first
                self._first = self._first[:0]
        elif self._told:
            alphas = evolve(
                alphas,
                self._rng,
                num_elites=self.num_elites,
                tournament_size=self.tournament_size,
                mutation_rate=self.mutation_rate,
                crossover=self.crossover,
            )
        self.alphas, self._told = alphas * allowed, False
        return self.alphas

    def tell(self, trials: Sequence[Trial], fitness: FloatArray) -> None:
        """Sort the population, best first; equal members keep their order, so that elites stay.

        Args:
            trials: Trials of the last `ask`, in order.
            fitness: Fitness per trial, shape (n,), higher is better.

        Raises:
            ValueError: Another number of trials than `ask` returned.
        """
        check_told(trials, 0 if self.alphas is None else self.population_size)
        assert self.alphas is not None
        self.alphas = self.alphas[np.argsort(-fitness, kind="stable")]
        self._told = True

    def restart(self) -> None:
        """Forget the population; the next `ask` draws another."""
        self.alphas = None
