"""What evolutionary strategies share, as functions over numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwnas.core import FloatArray, Objective, Trial, costs, share, violations, whole_number


def check_told(trials: Sequence[Trial], num_asked: int) -> None:
    """Raise ValueError unless as many trials are told as architectures were asked for."""
    if len(trials) != num_asked:
        raise ValueError(f"tell takes the {num_asked} trials of the last ask, not {len(trials)}")


def fitness(trials: Sequence[Trial], objectives: Sequence[Objective]) -> FloatArray:
    """The first objective as a fitness, shape (n,), higher is better; -inf for unsupported networks."""
    quality = -costs(trials, objectives[:1])[:, 0]
    return np.where(np.isfinite(violations(trials, ())), quality, -np.inf)


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


def check_genetic(
    *, population_size: int, tournament_size: int, num_elites: int, mutation_rate: float
) -> tuple[int, int, int, float]:
    """The settings of `evolve`, in this order.

    Raises:
        ValueError: A size or rate out of range; names the setting.
    """
    population = whole_number("strategy.population_size", population_size)
    tournament_of = whole_number("strategy.tournament_size", tournament_size)
    elites = whole_number("strategy.num_elites", num_elites, least=0)
    if tournament_of > population:
        raise ValueError(
            f"strategy.tournament_size {tournament_size} is larger than the population of {population_size}"
        )
    if elites > population:
        raise ValueError(
            f"strategy.num_elites {num_elites} is larger than the population of {population_size}"
        )
    return population, tournament_of, elites, share("strategy.mutation_rate", mutation_rate)


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
