"""NEvoNAS: NSGA-II over accuracy and novelty of architectures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from hwnas.core import (
    Count,
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
from hwnas.strategies.evolution import fitness
from hwnas.strategies.nsga2 import NSGA2, Crowding, Even


class NEvoNAS(Strategy):
    """Evolve alphas with NSGA-II; the second objective rewards architectures unlike all earlier ones.

    Survivors keep the accuracy and the novelty of the generation in which they were evaluated. Limits have no
    effect; unsupported networks lose against every supported one.

    Args:
        space: Search space.
        objectives: The first one is the fitness (paper: validation accuracy in the supernet).
        seed: Seed of NSGA-II.
        population_size: Members of the population, even.
        num_neighbors: k; the novelty is the mean distance to the k nearest architectures.
        fitness: "accuracy": the first objective; "local": the number of the k nearest architectures with a
            lower one; "none": the ablation "only novelty".
        novelty: False: the ablation "only accuracy".
        crossover_prob: Probability of simulated binary crossover (eta 15).
        mutation_prob: Probability of polynomial mutation (eta 20), per alpha.
        crowding: As for `NSGA2`.

    Raises:
        ValueError: A setting out of range, or neither fitness nor novelty.

    Source: Sinha & Chen, NEvoNAS, GECCO 2022 companion, arXiv 2204.00188 (code). The paper does not say which
    network of the final front is the answer (the code reports the best *test* accuracy); here it is the
    fittest.
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        seed: int,
        *,
        population_size: Even,
        num_neighbors: Count,
        fitness: Literal["accuracy", "local", "none"],
        novelty: bool,
        crossover_prob: Fraction,
        mutation_prob: Fraction,
        crowding: Crowding,
    ) -> None:
        if fitness == "none" and not novelty:
            raise ValueError("novelty must be true where fitness is none")
        self.space = space
        self.objectives = objectives
        self.num_neighbors = num_neighbors
        self.fitness = fitness
        self.novelty = novelty
        self._algorithm = NSGA2(
            space.alpha_shape,
            (fitness != "none") + novelty,
            seed,
            population_size=population_size,
            crossover_prob=crossover_prob,
            mutation_prob=mutation_prob,
            crowding=crowding,
        )
        self._archive: dict[Genotype, float] = {}  # all architectures seen, with their first fitness

    def hint(self, hints: Hints) -> None:
        """Have the best known networks in the first population; the others are drawn."""
        self._algorithm.begin(self.space.onehot(hints.best(self._algorithm.population_size)))

    def ask(self) -> list[Genotype]:
        """Random alphas at first, later offspring by binary tournament, crossover and mutation, decoded."""
        return self.space.decode(self._algorithm.ask())

    def tell(self, trials: Sequence[Trial]) -> None:
        """Compute the novelty, and let NSGA-II select among parents and children."""
        self._algorithm.check_told(trials)
        quality = fitness(trials, self.objectives)
        population = [trial.genotype for trial in trials]
        others = [*population, *self._archive]
        distances = self.space.distances(population, others)
        novelties, neighbors = nearest(distances, self.num_neighbors)
        for genotype, value in zip(population, quality.tolist(), strict=True):
            self._archive.setdefault(genotype, value)
        F = []
        if self.fitness == "accuracy":
            F.append(-quality)
        elif self.fitness == "local":
            known = np.array([self._archive[genotype] for genotype in others])
            F.append(-(quality[:, None] > known[neighbors]).sum(axis=1).astype(float))
        if self.novelty:
            F.append(-novelties)
        self._algorithm.tell(trials, np.column_stack(F), np.isfinite(quality))

    def result(self) -> list[Trial]:
        """The supported, non-dominated members of the last population, once each, the fittest first."""
        front = self._algorithm.front()
        order = np.argsort(costs(front, self.objectives[:1])[:, 0], kind="stable")
        return unique([front[row] for row in order])

    def survivors(self) -> list[Trial]:
        """The last population."""
        return self._algorithm.survivors()


def nearest(distances: FloatArray, num: int) -> tuple[FloatArray, np.ndarray]:
    """Mean distance to the nearest neighbours, shape (n,), and their columns, shape (n, at most num).

    Args:
        distances: Distances from n members to these members, in the same order, and to others, shape
            (n, n + others). A member is not its own neighbour, but an equal one is.
        num: Number of neighbours, or all of them if they are fewer.
    """
    n = len(distances)
    distances = distances.copy()
    distances[np.arange(n), np.arange(n)] = np.inf
    neighbors = np.argsort(distances, axis=1, kind="stable")[:, : min(num, distances.shape[1] - 1)]
    return np.take_along_axis(distances, neighbors, axis=1).mean(axis=1), neighbors
