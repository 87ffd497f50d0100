"""What evolutionary strategies share, as functions over numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from hwnas.core import FloatArray, Genotype, Trial


def check_told(trials: Sequence[Trial], num_asked: int) -> None:
    """Raise ValueError unless as many trials are told as architectures were asked for."""
    if len(trials) != num_asked:
        raise ValueError(f"tell takes the {num_asked} trials of the last ask, not {len(trials)}")


def mutate_operation(
    genotype: Genotype, choices: Sequence[Sequence[int]], rng: np.random.Generator
) -> Genotype:
    """The genotype with another operation on one edge, both uniform over what is allowed.

    Edges with a single choice cannot change; a space of one architecture returns it unchanged.
    """
    edges = [edge for edge, ops in enumerate(choices) if len(ops) > 1]
    if not edges:
        return genotype
    edge = edges[rng.integers(len(edges))]
    others = [op for op in choices[edge] if op != genotype[edge]]
    op = others[rng.integers(len(others))]
    return (*genotype[:edge], op, *genotype[edge + 1 :])


def neighbours(genotype: Genotype, choices: Sequence[Sequence[int]]) -> list[Genotype]:
    """All genotypes with another operation on one edge, or the operations of two edges exchanged.

    Each once, without the genotype itself, in a fixed order; only operations that the edges allow.
    """
    near: dict[Genotype, None] = {}
    for edge, ops in enumerate(choices):
        for op in ops:
            near[(*genotype[:edge], op, *genotype[edge + 1 :])] = None
    for a, b in itertools.combinations(range(len(choices)), 2):
        if genotype[b] in choices[a] and genotype[a] in choices[b]:
            exchanged = list(genotype)
            exchanged[a], exchanged[b] = genotype[b], genotype[a]
            near[tuple(exchanged)] = None
    near.pop(genotype, None)
    return list(near)


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

    Source: Sinha & Chen, EvNAS, GECCO 2021, arXiv 2012.12540 (code).
    """
    n, edges, ops = alphas.shape
    children = np.empty_like(alphas)
    children[:num_elites] = alphas[:num_elites]
    for child in range(num_elites, n):
        mother = alphas[tournament(n, tournament_size, rng)]
        father = alphas[tournament(n, tournament_size, rng)]
        rows = np.where(rng.random((edges, 1)) < 0.5, mother, father)
        mutated = rng.random((edges, 1)) < mutation_rate
        children[child] = np.where(mutated, rng.random((edges, ops)), rows)
    return children
