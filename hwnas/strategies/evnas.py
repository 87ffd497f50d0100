"""EvNAS: a genetic algorithm over alphas, evaluated with a supernet that trains along."""

from __future__ import annotations

from collections.abc import Sequence

from hwnas.core import (
    Count,
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


class EvNAS(Strategy):
    """Evolve alphas; every generation evaluates the whole population again, with the elite.

    The fitness is the first objective; unsupported networks are the least fit. Limits have no effect.

    Args:
        space: Search space.
        objectives: The first one is the fitness (paper: validation accuracy in the supernet).
        seed: Seed of the generator.
        population_size: Members of the population.
        tournament_size: Members per tournament, at most `population_size`.
        num_elites: Members that stay from generation to generation.
        mutation_rate: Probability that the alphas of an edge are drawn again; 0 is "crossover only".
        crossover: False is "mutation only": children are mutated copies of one tournament winner.

    Raises:
        ValueError: A size or rate out of range.

    Source: Sinha & Chen, EvNAS, GECCO 2021, arXiv 2012.12540 (code). "Crossover only" and "mutation only" are
    our reading of the labels in its table of ablations.
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        seed: int,
        *,
        population_size: Count,
        tournament_size: Count,
        num_elites: WholeNumber,
        mutation_rate: Fraction,
        crossover: bool,
    ) -> None:
        self.space = space
        self.objectives = objectives
        self._genetic = GeneticAlgorithm(
            seed,
            population_size=population_size,
            tournament_size=tournament_size,
            num_elites=num_elites,
            mutation_rate=mutation_rate,
            crossover=crossover,
        )
        self._best: list[Trial] = []  # of the last generation, if it is supported

    def hint(self, hints: Hints) -> None:
        """Have the best known networks in the first population; the others are drawn."""
        self._genetic.begin(self.space.onehot(hints.best(self._genetic.population_size)))

    def ask(self) -> list[Genotype]:
        """Random alphas at first, later the elite and its children, decoded."""
        self.alphas = self._genetic.ask(self.space.allowed)
        return self.space.decode(self.alphas)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take the answers; the next `ask` evolves."""
        F = fitness(trials, self.objectives)
        self._genetic.tell(trials, F)
        self._best = fittest(trials, F)

    def result(self) -> list[Trial]:
        """The best trial of the last generation; empty if the device supports none."""
        return self._best
