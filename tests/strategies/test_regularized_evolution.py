from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hwnas.core import Genotype, Limit, Objective, SearchSpace, Trial
from hwnas.spaces.toy import Toy
from hwnas.strategies.regularized_evolution import RegularizedEvolution

OBJECTIVES = (Objective("val_acc", "max"), Objective("latency_ms", "min"))
LIMIT = Limit("latency_ms", 10.0)
Score = Callable[[Genotype], tuple[float, float]]


def create(
    space: SearchSpace | None = None, limits: tuple[Limit, ...] = (), seed: int = 0, **settings: Any
) -> RegularizedEvolution:
    sizes = {"population_size": 4, "sample_size": 4, "num_children": 1, **settings}
    return RegularizedEvolution(space or Toy(), OBJECTIVES, limits, seed, **sizes)


def tell(
    strategy: RegularizedEvolution, population: list[Genotype], score: Score, generation: int = 0
) -> None:
    rows = [score(genotype) for genotype in population]
    strategy.tell(
        [
            Trial(g, {"val_acc": a, "latency_ms": m}, generation)
            for g, (a, m) in zip(population, rows, strict=True)
        ]
    )


def differences(a: Genotype, b: Genotype) -> int:
    return sum(x != y for x, y in zip(a, b, strict=True))


def test_tournament_of_everybody_picks_the_best_and_changes_one_edge() -> None:
    for seed in range(20):
        strategy = create(seed=seed)
        first = strategy.ask()
        best = first[2]
        tell(strategy, first, lambda g, best=best: (0.9 if g == best else 0.5, 1.0))
        (child,) = strategy.ask()
        assert differences(child, best) == 1


def test_every_child_of_a_generation_differs_from_a_living_parent_in_one_edge() -> None:
    strategy = create(population_size=10, sample_size=2, num_children=None)
    alive = strategy.ask()
    for generation in range(10):
        tell(strategy, alive, lambda g: (sum(g) / 100, 1.0), generation)
        children = strategy.ask()
        assert len(children) == 10
        assert all(1 in {differences(child, parent) for parent in alive} for child in children)
        alive = children


def test_the_oldest_dies_even_if_it_is_the_best() -> None:
    strategy = create()
    first = strategy.ask()
    oldest = first[0]
    # The oldest is the best and has all the children; once it is dead, its children have them.
    tell(strategy, first, lambda g: (1.0 if g == oldest else 0.1, 1.0))
    (child,) = strategy.ask()
    assert differences(child, oldest) == 1
    tell(strategy, [child], lambda _: (0.6, 1.0), 1)
    for generation in range(2, 5):  # three more turns: `child` is now the oldest, the rest is worse
        (grandchild,) = strategy.ask()
        assert differences(grandchild, child) == 1
        tell(strategy, [grandchild], lambda _: (0.2, 1.0), generation)
    (last,) = strategy.ask()
    assert differences(last, child) == 1
    tell(strategy, [last], lambda _: (0.3, 1.0), 5)  # now `child` dies as well
    (orphan,) = strategy.ask()
    assert (differences(orphan, last), differences(orphan, child)) == (1, 2)
    assert [t.genotype for t in strategy.result()] == [oldest]  # the best of the whole run


def test_first_population_size_and_children() -> None:
    strategy = create(population_size=7, sample_size=3, num_children=2)
    sizes = []
    for generation in range(4):
        population = strategy.ask()
        sizes.append(len(population))
        tell(strategy, population, lambda _: (0.5, 1.0), generation)
    assert sizes == [7, 2, 2, 2]


def test_larger_samples_press_harder() -> None:
    """The share of children whose parent is the best of ten: S/P for S distinct members of P."""
    shares = []
    for sample_size in (1, 5):
        strategy = create(population_size=10, sample_size=sample_size, num_children=1000)
        first = strategy.ask()
        tell(strategy, first, lambda g, best=first[3]: (0.9 if g == best else 0.5, 1.0))
        shares.append(np.mean([differences(child, first[3]) == 1 for child in strategy.ask()]))
    assert shares == pytest.approx([0.1, 0.5], abs=0.06)


def test_choices_are_respected() -> None:
    space = Toy(6, 5, choices=[(0,), (1, 3), (4,), (0, 1, 2, 3, 4), (2, 4), (1, 2, 3)])
    strategy = create(space)
    for generation in range(100):
        population = strategy.ask()
        assert all(space.check(genotype) for genotype in population)
        tell(strategy, population, lambda g: (sum(g) / 100, 1.0), generation)


def deb(first: tuple[float, float], second: tuple[float, float]) -> int:
    """Which of two networks, each (val_acc, latency_ms), is the parent under the limit of 10 ms."""
    strategy = create(limits=(LIMIT,), population_size=2, sample_size=2)
    population = strategy.ask()
    scores = dict(zip(population, (first, second), strict=True))
    tell(strategy, population, scores.__getitem__)
    (child,) = strategy.ask()
    (result,) = strategy.result()
    winner = [differences(child, genotype) == 1 for genotype in population].index(True)
    assert result.genotype == population[winner]
    return winner


def test_debs_rule() -> None:
    assert deb((0.5, 10.0), (0.9, 10.1)) == 0  # keeps the limit: wins whatever its accuracy
    assert deb((0.5, 1.0), (0.6, 9.0)) == 1  # both keep it: the accuracy counts
    assert deb((0.9, 12.0), (0.1, 11.0)) == 1  # both break it: the smaller violation counts
    assert deb((0.1, 12.0), (0.9, 12.0)) == 1  # equal violations: the accuracy counts
    assert deb((0.9, math.inf), (0.1, 99.0)) == 1  # unsupported loses against everything


def test_unsupported_loses_without_limits() -> None:
    strategy = create(population_size=2, sample_size=2)
    population = strategy.ask()
    tell(strategy, population, lambda g: (0.1, 50.0) if g == population[1] else (0.9, math.inf))
    assert [t.genotype for t in strategy.result()] == [population[1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population_size": 0}, r"population_size must be a whole number of at least 1, not 0"),
        ({"sample_size": 0}, r"sample_size must be a whole number of at least 1, not 0"),
        ({"num_children": 0}, r"num_children must be a whole number of at least 1 or null, not 0"),
        ({"sample_size": 5}, r"sample_size 5 is larger than the population of 4"),
    ],
)
def test_settings_are_checked(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(**settings)
