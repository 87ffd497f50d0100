from __future__ import annotations

import math

import numpy as np
import pytest
from omegaconf import OmegaConf

from hwnas.build import build, conf_folder
from hwnas.core import Limit, Objective, Trial
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.strategies.hw_evrsnas import HWEvRSNAS

OBJECTIVES = (Objective("rmi", "max"), Objective("latency_ms", "min"))
LIMIT = (Limit("latency_ms", 5.0, "min"),)


def strategy(limits: tuple[Limit, ...] = LIMIT, **settings: object) -> HWEvRSNAS:
    config = OmegaConf.merge(OmegaConf.load(conf_folder() / "strategy" / "hw_evrsnas.yaml"), settings)
    built = build(config, space=NasBench201(), objectives=OBJECTIVES, limits=limits, seed=0)
    assert isinstance(built, HWEvRSNAS)
    return built


def trial(rmi: float, latency_ms: float, generation: int = 0) -> Trial:
    return Trial((0, 1, 2, 3, 4, 0), {"rmi": rmi, "latency_ms": latency_ms}, generation)


def test_fitness_by_hand() -> None:
    trials = [trial(2.0, 4.0), trial(2.0, 5.0), trial(2.0, 7.5), trial(2.9, math.inf)]
    assert strategy().fitness(trials).tolist() == [2.0, 2.0, 1.5, -math.inf]
    assert strategy(penalty_weight=10).fitness(trials).tolist() == [2.0, 2.0, -3.0, -math.inf]
    two_sided = strategy(penalty="two_sided").fitness(trials).tolist()
    assert two_sided == pytest.approx([1.8, 2.0, 1.5, -math.inf])
    assert strategy(limits=()).fitness(trials).tolist() == [2.0, 2.0, 2.0, -math.inf]


def test_the_fittest_stays_and_the_answer_is_the_best_feasible_ever() -> None:
    search = strategy(population_size=6, tournament_size=3)
    rng = np.random.default_rng(0)
    told: list[Trial] = []
    elite = None
    for generation in range(5):
        asked = search.ask()
        if elite is not None:
            assert asked[0] == elite
        trials = [
            Trial(genotype, {"rmi": rng.random(), "latency_ms": 10 * rng.random()}, generation)
            for genotype in asked
        ]
        elite = asked[int(np.argmax(search.fitness(trials)))]
        search.tell(trials)
        told += trials
    feasible = [t for t in told if t.metrics["latency_ms"] <= 5]
    assert search.result() == [max(feasible, key=lambda t: t.metrics["rmi"])]


def test_without_a_feasible_trial_the_fittest_is_the_answer() -> None:
    search = strategy(population_size=3, tournament_size=1)
    search.ask()
    trials = [trial(2.0, 9.0), trial(1.9, 6.0), trial(2.9, math.inf)]
    search.tell(trials)
    assert search.result() == [trials[1]]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tournament_size": 51}, "tournament_size 51 is larger than the population of 50"),
        ({"num_elites": 51}, "num_elites 51 is larger than the population of 50"),
        ({"mutation_rate": 1.5}, "mutation_rate must be a number in 0..1, not 1.5"),
        ({"penalty": "log"}, "penalty must be one of one_sided, two_sided, not 'log'"),
        ({"penalty_weight": -1}, "penalty_weight must be a number of at least 0, not -1"),
        ({"population_size": 0}, "population_size must be a whole number of at least 1, not 0"),
    ],
)
def test_bad_settings(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        strategy(**settings)
