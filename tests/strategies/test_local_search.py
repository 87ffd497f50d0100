from __future__ import annotations

import math

import pytest

from hwnas.core import Genotype, Objective, Trial
from hwnas.spaces.toy import Toy
from hwnas.strategies.local_search import LocalSearch

OBJECTIVES = (Objective("val_acc", "max"), Objective("latency_ms", "min"))


def create(num_candidates: int = 1, population_size: int = 4, edges: int = 3, ops: int = 3) -> LocalSearch:
    return LocalSearch(
        Toy(edges, ops), OBJECTIVES, 0, population_size=population_size, num_candidates=num_candidates
    )


def tell(strategy: LocalSearch, population: list[Genotype], values: list[tuple[float, float]]) -> None:
    strategy.tell(
        [
            Trial(genotype, {"val_acc": quality, "latency_ms": cost}, 0)
            for genotype, (quality, cost) in zip(population, values, strict=True)
        ]
    )


def test_nothing_is_asked_twice_until_the_space_is_known() -> None:
    strategy = create(population_size=9)
    asked: list[Genotype] = []
    for _ in range(3):
        population = strategy.ask()
        tell(strategy, population, [(sum(genotype), genotype[0] + 1.0) for genotype in population])
        asked += population
    assert sorted(asked) == strategy.space.all()  # 27 architectures
    assert len(strategy.ask()) == 9  # repetitions, but no failure


def test_children_neighbour_the_best_under_their_bounds() -> None:
    """Costs 1, 2, 3, 4; the second is better than the third: the bounds' parents are 1st, 2nd, 2nd, 4th."""
    strategy = create(population_size=4, edges=8, ops=5)
    first = strategy.ask()
    tell(strategy, first, [(0.1, 1.0), (0.5, 2.0), (0.4, 3.0), (0.9, 4.0)])
    children = strategy.ask()
    # Bounds are at the quantiles 0..1/4, .., 3/4..1 of 1, 2, 3, 4: below 1.75, 2.5, 3.25 and 4.
    near = [set(strategy.space.neighbours(parent)) for parent in first]
    assert children[0] in near[0]
    assert children[1] in near[0] | near[1]
    assert children[2] in near[1]
    assert children[3] in near[1] | near[3]
    assert not set(children) & set(first)


def test_the_candidate_with_the_best_known_neighbours_is_asked() -> None:
    """From (0, 0) on 2 edges of 3 operations; (1, 0) and (0, 2) are also near the good (1, 2)."""
    strategy = create(num_candidates=10, population_size=1, edges=2, ops=3)
    known = {(0, 0): 0.5, (1, 2): 0.4, (1, 1): 0.1}
    strategy._known = {genotype: (-quality, 1.0) for genotype, quality in known.items()}
    strategy._seen = {*known, (2, 0), (2, 1), (2, 2)}
    # Unknown near (0, 0): (1, 0): its two best known are .5 and .4; (0, 1): .5 and .1; (0, 2): .5 and .4.
    assert {strategy._guess(g) for g in ((1, 0), (0, 2))} == {-0.45}
    assert strategy._guess((0, 1)) == pytest.approx(-0.3)
    assert strategy.ask()[0] in {(1, 0), (0, 2)}


def test_unsupported_networks_are_no_parents() -> None:
    strategy = create(population_size=4, edges=8, ops=5)
    first = strategy.ask()
    tell(strategy, first, [(0.9, math.inf), (0.1, 1.0), (0.9, math.inf), (0.9, math.inf)])
    near = set(strategy.space.neighbours(first[1]))
    assert set(strategy.ask()) <= near
    assert [trial.genotype for trial in strategy.result()] == [first[1]]


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"num_candidates must be a whole number of at least 1"):
        create(num_candidates=0)
    with pytest.raises(ValueError, match="needs one quality and one cost"):
        LocalSearch(Toy(), OBJECTIVES[:1], 0, population_size=4, num_candidates=1)
