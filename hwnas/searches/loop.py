"""The loop that every method runs in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from hwnas.core import (
    Evaluator,
    Strategy,
    Trial,
    checked_population,
    trials_of,
)
from hwnas.store.archive import Archive


def search(
    strategy: Strategy,
    evaluators: Sequence[Evaluator],
    archive: Archive,
    generations: int,
    log: Callable[[int, list[Trial], bool], None] = lambda generation, trials, replayed: None,
) -> None:
    """Run the loop; `archive` holds every trial, in order, when it returns, and on disk if it is killed.

    A generation that the archive already holds is observed again instead of evaluated: that is
    how a run resumes.

    Args:
        strategy: Asks for populations.
        evaluators: Each answers its own metrics for the whole population.
        archive: Empty, or what an earlier session of the same run left.
        generations: Populations to ask for.
        log: Called after each generation with its number, its trials and whether they were replayed.
    """
    for generation in range(generations):
        population = checked_population(strategy, strategy.ask())
        asked = [at for evaluator in evaluators if (at := evaluator.at(strategy.rung)) is not None]
        for evaluator in asked:  # also for a replayed one: what they train may be a history
            evaluator.see(strategy.alphas)
            evaluator.prepare(strategy.space, population)
        trials = archive.recorded(generation, population)
        replayed = trials is not None
        if trials is None:
            answers = [evaluator.evaluate(population) for evaluator in asked]
            trials = trials_of(population, answers, generation)
            strategy.tell(trials)
            trials = strategy.judged(trials)
            archive.extend(trials)
        else:
            strategy.tell(trials)
        log(generation, trials, replayed)
        if strategy.done:
            break
