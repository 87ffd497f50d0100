"""What evolutionary strategies share, as functions over numbers."""

from __future__ import annotations

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


def cost_diversity(cost: FloatArray) -> FloatArray:
    """Sum of squared differences to the whole population, shape (n,): chi of MO-HDNAS, eq. 3.

    In squared units of the cost. Members with an infinite cost neither count nor get any (0). Its mean over
    the population is 2 n Var(cost).
    """
    known = np.isfinite(cost)
    chi = np.zeros(len(cost))
    chi[known] = ((cost[known, None] - cost[None, known]) ** 2).sum(axis=1)
    return chi
