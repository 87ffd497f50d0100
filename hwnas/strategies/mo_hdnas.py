"""MO-HDNAS: NSGA-II over quality, hardware cost and hardware-cost diversity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from hwnas.core import (
    FloatArray,
    Fraction,
    Genotype,
    Hints,
    Objective,
    SearchSpace,
    Strategy,
    Trial,
    checked,
    costs,
    unique,
)
from hwnas.strategies.evolution import cost_diversity
from hwnas.strategies.nsga2 import NSGA2, Crowding, Even


class MOHDNAS(Strategy):
    """Evolve alphas with NSGA-II; the third objective rewards costs far from those of the population.

    Architectures are encoded as alphas in [0, 1] and decoded by the argmax of every edge. Networks that the
    device does not support violate NSGA-II's constraint and lose against every supported one.

    Args:
        space: Search space.
        objectives: Quality (phi in the paper) and hardware cost (Psi). Several costs are an extension of this
            project: their diversities are added, with each cost in units of its mean over the population.
        seed: Seed of NSGA-II.
        population_size: N_pop, even (paper: 20).
        diversity: Networks over which the cost diversity chi is computed. "population": once, over the
            population; "merged": at every selection, over parents and children; "none": two objectives.
        crossover_prob: Probability of simulated binary crossover (eta 15).
        mutation_prob: Probability of polynomial mutation (eta 20), per alpha.
        crowding: As for `NSGA2`.

    Raises:
        ValueError: A setting out of range, or no cost.

    Source: Sinha et al., MO-HDNAS, CVPRW 2024, arXiv 2404.12403, Alg. 1. The paper publishes neither settings
    of the operators nor the networks that chi is computed over. Here the operators are those of NEvoNAS, and
    "population" is the literal reading.
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        seed: int,
        *,
        population_size: Even,
        diversity: Literal["population", "merged", "none"],
        crossover_prob: Fraction,
        mutation_prob: Fraction,
        crowding: Crowding,
    ) -> None:
        if len(objectives) < 2:
            raise ValueError(f"mo_hdnas needs a quality and a cost, not {[o.metric for o in objectives]}")
        self.space = space
        self.objectives = objectives
        self.diversity = diversity
        self._algorithm = NSGA2(
            space.alpha_shape,
            len(objectives) + (diversity != "none"),
            seed,
            population_size=population_size,
            crossover_prob=crossover_prob,
            mutation_prob=mutation_prob,
            crowding=crowding,
        )

    def hint(self, hints: Hints) -> None:
        """Have the best known networks in the first population; the others are drawn."""
        self._algorithm.begin(self.space.onehot(hints.best(self._algorithm.population_size)))

    def ask(self) -> list[Genotype]:
        """Random alphas at first, later offspring by binary tournament, crossover and mutation, decoded."""
        return self.space.decode(self._algorithm.ask())

    def tell(self, trials: Sequence[Trial]) -> None:
        """Let NSGA-II select among parents and children."""
        self._algorithm.check_told(trials)
        F = costs(trials, self.objectives)
        supported = np.asarray(np.isfinite(F).all(axis=1))
        if self.diversity == "population":
            F = np.column_stack([F, -_diversity(F[:, 1:], supported)])
        elif self.diversity == "merged":
            F = np.column_stack([F, self._merged_diversity(F[:, 1:], supported)])
        self._algorithm.tell(trials, F, supported)

    def _merged_diversity(self, cost: FloatArray, supported: np.ndarray) -> FloatArray:
        """-chi of the children among parents and children; updates -chi of the parents."""
        parents = self._algorithm.pop
        if parents is None or len(parents) == 0:
            return -_diversity(cost, supported)
        F = parents.get("F")[:, : 1 + cost.shape[1]]
        chi = _diversity(
            np.concatenate([F[:, 1:], cost]), np.concatenate([parents.get("CV")[:, 0] <= 0, supported])
        )
        parents.set("F", np.column_stack([F, -chi[: len(parents)]]))
        return -chi[len(parents) :]

    def result(self) -> list[Trial]:
        """The supported, non-dominated members of the last population, without repeated architectures."""
        return unique(self._algorithm.front())

    def survivors(self) -> list[Trial]:
        """The last population."""
        return self._algorithm.survivors()


def _diversity(cost: FloatArray, supported: np.ndarray) -> FloatArray:
    """Chi of the supported members, for cost (n, costs): of one cost, or the sum over several scaled ones."""
    scale = cost[supported].mean(axis=0) if cost.shape[1] > 1 and supported.any() else 1.0
    scaled = np.where(supported[:, None], cost, np.inf) / scale
    return np.sum([cost_diversity(column) for column in scaled.T], axis=0)
