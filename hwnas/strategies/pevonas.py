"""pEvoNAS: EvNAS' genetic algorithm in stages, each on a smaller space around the best of the last stage."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

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
    WholeNumber,
    checked,
)
from hwnas.strategies.evolution import GeneticAlgorithm, fitness, fittest


class PEvoNAS(Strategy):
    """Evolve alphas; every stage but the first has only the best member's top operations on every edge.

    A stage starts with random alphas. It ends after `max_generations`; or earlier, after more than
    `convergence` generations of which the last `convergence` have the same best architecture. `space` is the
    space of the current stage. Limits have no effect; unsupported networks are the least fit.

    Args:
        space: Search space of the first stage.
        objectives: The first one is the fitness (paper: validation accuracy in the stage's supernet).
        seed: Seed of the generator.
        generations: The run's number of generations. If it is too small for all stages, the remaining
            generations are divided evenly among the remaining stages.
        progression: Operations per edge, one number per stage; the first one is None: all operations.
        max_generations: Maximum of generations per stage.
        convergence: Generations with the same best architecture that end a stage.
        population_size: Members of the population.
        tournament_size: Members per tournament, at most `population_size`.
        num_elites: Members that stay from generation to generation.
        mutation_rate: Probability that the alphas of an edge are drawn again.

    Attributes:
        stage: Number of the stage, from 0.

    Raises:
        ValueError: A setting out of range, or fewer generations than stages.

    Source: Sinha & Chen, pEvoNAS, GECCO 2022, arXiv 2203.01559 (code).
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        seed: int,
        generations: int,
        *,
        progression: Sequence[Count | None],
        max_generations: Count,
        convergence: Count,
        population_size: Count,
        tournament_size: Count,
        num_elites: WholeNumber,
        mutation_rate: Fraction,
    ) -> None:
        self.space = space
        self.objectives = objectives
        self.num_ops = tuple(number for number in progression if number is not None)
        if list(progression) != [None, *self.num_ops]:
            raise ValueError(
                f"progression must start with its only null, e.g. [null, 3, 2], not {progression!r}"
            )
        if any(small >= large for large, small in itertools.pairwise(self.num_ops)):
            raise ValueError(f"progression must fall from stage to stage, not {progression!r}")
        if generations < len(progression):
            raise ValueError(
                f"generations must be at least {len(progression)}, one per stage of the progression, "
                f"not {generations}"
            )
        self.max_generations = max_generations
        self.convergence = convergence
        self._genetic = GeneticAlgorithm(
            seed,
            population_size=population_size,
            tournament_size=tournament_size,
            num_elites=num_elites,
            mutation_rate=mutation_rate,
        )
        self.stage = 0
        self._num_left = generations
        self._leaders: list[Genotype] = []  # best of each generation of the stage
        self._limit = self._generations_of_stage()
        self._stage_is_over = False
        self._best: list[Trial] = []

    def _generations_of_stage(self) -> int:
        """Maximum of generations for the stage that starts now."""
        num_stages = len(self.num_ops) + 1 - self.stage
        return min(self.max_generations, -(-self._num_left // num_stages))

    def hint(self, hints: Hints) -> None:
        """Have the best known networks in the first population; the others are drawn."""
        self._genetic.begin(self.space.onehot(hints.best(self._genetic.population_size)))

    def ask(self) -> list[Genotype]:
        """Random alphas at the start of a stage, later the elite and its children, decoded."""
        if self._stage_is_over and not self.done:
            assert self._genetic.alphas is not None
            best = self._genetic.alphas[0]
            self.space = self.space.restrict(keep(best, self.space, self.num_ops[self.stage]))
            self._genetic.restart()
            self.stage += 1
            self._limit = self._generations_of_stage()
            self._leaders, self._stage_is_over = [], False
        return self.space.decode(self._genetic.ask(self.space.allowed))

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take the answers, and check whether the stage is over."""
        F = fitness(trials, self.objectives)
        self._genetic.tell(trials, F)
        self._best = fittest(trials, F)
        self._num_left -= 1
        self._leaders.append(trials[int(np.argmax(F))].genotype)
        # As in the authors' code for DARTS. Their code for NAS-Bench-201 also counts an architecture from
        # before the first generation, and can stop one generation earlier.
        converged = (
            len(self._leaders) > self.convergence and len(set(self._leaders[-self.convergence :])) == 1
        )
        self._stage_is_over = converged or len(self._leaders) >= self._limit
        self.done = self._stage_is_over and self.stage == len(self.num_ops)

    def result(self) -> list[Trial]:
        """The best trial of the last generation; empty if the device supports none."""
        return self._best


def keep(alpha: FloatArray, space: SearchSpace, num: int) -> list[list[int]]:
    """Per edge, the `num` allowed operations with the largest alphas (edges, ops); all if they are fewer."""
    ranked = np.argsort(-np.where(space.allowed, alpha, -np.inf), axis=1, kind="stable").tolist()
    return [ops[: min(num, len(choices))] for ops, choices in zip(ranked, space.choices, strict=True)]
