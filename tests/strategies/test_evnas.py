from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from hwnas.build import build, conf_folder
from hwnas.core import Objective, Trial
from hwnas.spaces.toy import Toy
from hwnas.strategies.evnas import EvNAS

OBJECTIVES = (Objective("val_acc", "max"), Objective("latency_ms", "min"))


def create(**settings: Any) -> EvNAS:
    config = OmegaConf.merge(OmegaConf.load(conf_folder() / "strategy" / "evnas.yaml"), settings)
    built = build(config, space=Toy(), objectives=OBJECTIVES, seed=0)
    assert isinstance(built, EvNAS)
    return built


def step(strategy: EvNAS, accuracies: list[float], generation: int = 0) -> list[Trial]:
    trials = [
        Trial(g, {"val_acc": acc, "latency_ms": 1.0}, generation)
        for g, acc in zip(strategy.ask(), accuracies, strict=True)
    ]
    strategy.tell(trials)
    return trials


def test_published_settings() -> None:
    genetic = create()._genetic
    assert (genetic.population_size, genetic.tournament_size) == (50, 10)
    assert (genetic.num_elites, genetic.mutation_rate, genetic.crossover) == (1, 0.1, True)


def test_first_alphas_are_uniform_in_0_1() -> None:
    strategy = create(population_size=500)
    strategy.ask()
    alphas = strategy._genetic.alphas
    assert alphas is not None
    assert alphas.shape == (500, 16, 5)
    assert alphas.min() >= 0
    assert alphas.max() < 1
    assert alphas.mean() == pytest.approx(0.5, abs=0.01)
    assert alphas.var() == pytest.approx(1 / 12, abs=0.002)


def test_the_best_is_asked_first_again_and_is_judged_by_its_new_accuracy() -> None:
    strategy = create(population_size=4, tournament_size=2)
    first = step(strategy, [0.1, 0.9, 0.3, 0.2])
    assert strategy.result() == [first[1]]
    second = step(strategy, [0.4, 0.6, 0.5, 0.3], 1)  # the supernet has changed its mind
    assert second[0].genotype == first[1].genotype
    assert strategy.result() == [second[1]]  # the best of the last generation, not 0.9 of the run
    assert strategy.ask()[0] == second[1].genotype


def test_of_equals_the_elite_stays() -> None:
    strategy = create(population_size=4, tournament_size=2)
    elite = step(strategy, [0.1, 0.9, 0.3, 0.2])[1].genotype
    step(strategy, [0.5] * 4, 1)
    assert strategy.ask()[0] == elite


def rows_of_one_parent(strategy: EvNAS) -> list[bool]:
    """For every child of a first generation: whether all its inherited rows have the same parent."""
    strategy.ask()
    parents = strategy._genetic.alphas
    assert parents is not None
    answers = np.random.default_rng(0).random(len(parents)).tolist()
    step(strategy, answers)
    strategy.ask()
    children = strategy._genetic.alphas
    assert children is not None
    single = []
    for child in children[1:]:
        inherited = [
            {p for p, parent in enumerate(parents) if (parent[e] == child[e]).all()} for e in range(16)
        ]
        single.append(len(set().union(*inherited)) == 1)
    return single


def test_crossover_and_its_ablations() -> None:
    assert sum(rows_of_one_parent(create())) < 15  # the same parent twice, 1 in 5 at most
    assert all(rows_of_one_parent(create(crossover=False)))
    assert not all(rows_of_one_parent(create(mutation_rate=0)))


def test_without_mutation_no_row_is_new() -> None:
    strategy = create(mutation_rate=0)
    strategy.ask()
    parents = strategy._genetic.alphas
    assert parents is not None
    step(strategy, np.random.default_rng(0).random(50).tolist())
    strategy.ask()
    children = strategy._genetic.alphas
    assert children is not None
    for edge in range(16):
        known = {tuple(row) for row in parents[:, edge].tolist()}
        assert all(tuple(row) in known for row in children[:, edge].tolist())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tournament_size": 51}, "tournament_size 51 is larger than the population of 50"),
        ({"num_elites": 51}, "num_elites 51 is larger than the population of 50"),
        ({"mutation_rate": -0.1}, "mutation_rate must be a number in 0..1, not -0.1"),
        ({"population_size": 0}, "population_size must be a whole number of at least 1, not 0"),
        ({"crossover": 0.5}, "crossover must be true or false, not 0.5"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        create(**settings)


def test_alphas_of_the_last_population_are_handed_over() -> None:
    """For EvNAS' ablations without decoding: what was asked is what they decode to."""
    strategy = create()
    for generation in range(3):
        population = strategy.ask()
        assert strategy.alphas is not None
        assert strategy.space.decode(strategy.alphas) == population
        strategy.tell([Trial(g, {"val_acc": sum(g), "latency_ms": 1.0}, generation) for g in population])
