"""What evolutionary strategies share, as functions over numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.core import Count, FloatArray, Fraction, Objective, Trial, WholeNumber, checked, costs, violations


def check_told(trials: Sequence[Trial], num_asked: int) -> None:
    """Raise ValueError unless as many trials are observed as architectures were asked for."""
    if len(trials) != num_asked:
        raise ValueError(f"tell takes the {num_asked} trials of the last ask, not {len(trials)}")


def fitness(trials: Sequence[Trial], objectives: Sequence[Objective]) -> FloatArray:
    """The first objective as a fitness, shape (n,), higher is better; -inf for unsupported networks."""
    quality = -costs(trials, objectives[:1])[:, 0]
    return np.where(np.isfinite(violations(trials, ())), quality, -np.inf)


def fittest(trials: Sequence[Trial], fitness: FloatArray) -> list[Trial]:
    """The fittest trial, of equals the first; none if the device supports none of them."""
    best = int(np.argmax(fitness))
    return [trials[best]] if np.isfinite(fitness[best]) else []


def cost_diversity(cost: FloatArray) -> FloatArray:
    """Sum of squared differences to the whole population, shape (n,): chi of MO-HDNAS, eq. 3.

    In squared units of the cost. Members with an infinite cost neither count nor get any (0). Its mean over
    the population is 2 n Var(cost).
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

    The elites stay as they are. Every child takes each row (the alphas of one edge) from either of two
    tournament winners, who may be the same, with equal chance; each row is then replaced by a fresh one,
    uniform in [0, 1), with the probability `mutation_rate`.

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
    """EvNAS' genetic algorithm over alphas, by ask and tell; what EvNAS, pEvoNAS and HW-EvRSNAS share.

    Args:
        seed: Seed of the generator.
        population_size: Members of the population.
        tournament_size: Members per tournament, at most `population_size`.
        num_elites: Members that stay from generation to generation.
        mutation_rate: Probability that the alphas of an edge are drawn anew.
        crossover: As for `evolve`.

    Attributes:
        alphas: The population, shape (n, edges, ops), 0 where an operation is not allowed, best first once
            told; None before the first `ask`.

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
        self._told = False

    def ask(self, allowed: NDArray[np.bool_]) -> FloatArray:
        """Uniform alphas first, then what `evolve` makes of those told, shape (n, edges, ops).

        Args:
            allowed: Which operation is allowed on which edge, shape (edges, ops).
        """
        alphas = self.alphas
        if alphas is None:
            alphas = self._rng.random((self.population_size, *allowed.shape))
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
        """Sort the population, best first; of equals those asked first, so elites stay.

        Args:
            trials: Those of the last `ask`, in order.
            fitness: Of each, shape (n,), higher is better.

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
