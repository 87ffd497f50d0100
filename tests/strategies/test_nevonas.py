from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from hwnas.build import build, conf_folder
from hwnas.core import Genotype, Objective, Trial
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy
from hwnas.strategies.nevonas import NEvoNAS, nearest

OBJECTIVES = (Objective("val_acc", "max"), Objective("latency_ms", "min"))


def create(**settings: Any) -> NEvoNAS:
    config = OmegaConf.merge(OmegaConf.load(conf_folder() / "strategy" / "nevonas.yaml"), settings)
    built = build(config, space=Toy(6, 5), objectives=OBJECTIVES, seed=0)
    assert isinstance(built, NEvoNAS)
    return built


def step(strategy: NEvoNAS, generation: int = 0, noise: float = 0.0) -> list[Trial]:
    """Accuracy is the sum of operations; with noise the same architecture scores anew in each generation."""
    rng = np.random.default_rng(generation)
    trials = [
        Trial(g, {"val_acc": sum(g) + noise * rng.random(), "latency_ms": 1.0}, generation)
        for g in strategy.ask()
    ]
    strategy.tell(trials)
    return trials


def costs_of(strategy: NEvoNAS) -> dict[int, list[float]]:
    """F of the parents by the identity of their trials."""
    return {id(member.get("trial")): member.F.tolist() for member in strategy._algorithm.pop}


def test_published_settings() -> None:
    strategy = create()
    assert (len(strategy.ask()), strategy.num_neighbors) == (20, 5)
    algorithm = strategy._algorithm._algorithm
    crossover, mutation = algorithm.mating.crossover, algorithm.mating.mutation
    assert (crossover.prob.value, crossover.eta.value) == (0.7, 15)
    assert (mutation.prob_var.value, mutation.eta.value, mutation.prob.value) == (0.2, 20, 1.0)


def test_distances_on_nasbench201() -> None:
    a = (0, 1, 2, 3, 4, 0)
    others = [tuple(op if edge < same else (op + 1) % 5 for edge, op in enumerate(a)) for same in range(7)]
    found = NasBench201().distances([a], others)[0]
    assert found == pytest.approx([1, 10 / 11, 0.8, 2 / 3, 0.5, 2 / 7, 0])


def test_nearest_by_hand() -> None:
    distances = np.array([[0, 0.5, 0.2, 0.9], [0.5, 0, 0.7, 0.0], [0.2, 0.7, 0, 0.2]])
    means, neighbors = nearest(distances, 2)
    assert means == pytest.approx([0.35, 0.25, 0.2])  # nobody counts itself; others may be equal to it
    assert neighbors.tolist() == [[2, 1], [3, 0], [0, 3]]
    assert nearest(distances, 9)[0] == pytest.approx([1.6 / 3, 1.2 / 3, 1.1 / 3])
    assert distances[0, 0] == 0


def test_novelty_is_relative_to_the_population_and_all_seen_before() -> None:
    strategy = create(population_size=6, num_neighbors=2)
    space = strategy.space
    archive: list[Genotype] = []
    for generation in range(5):
        trials = step(strategy, generation)
        population = [t.genotype for t in trials]
        F = strategy._algorithm.asked.get("F").tolist()
        for index, trial in enumerate(trials):
            others = population[:index] + population[index + 1 :] + archive
            novelty = sorted(space.distances([trial.genotype], others)[0].tolist())[:2]
            assert F[index] == pytest.approx([-trial.metrics["val_acc"], -sum(novelty) / 2])
        archive = list(dict.fromkeys([*archive, *population]))
        assert list(strategy._archive) == archive


def test_survivors_keep_their_stale_costs() -> None:
    strategy = create(population_size=8)
    before: dict[int, list[float]] = {}
    trials = []
    stale = 0
    for generation in range(6):
        trials.append(step(strategy, generation, noise=0.5))  # kept alive: identities must not be reused
        now = costs_of(strategy)
        shared = set(now) & set(before)
        assert all(now[key] == before[key] for key in shared)
        stale += len(shared)
        before = now
    assert stale > 10


def test_local_fitness_counts_weaker_neighbours_by_their_first_accuracy() -> None:
    """Toy(6, 5), k = 2: distances are 0 for equal, 2/7 for five equal edges, 1/2 for four."""
    strategy = create(population_size=4, num_neighbors=2, fitness="local", novelty=False)

    def local(genotypes: list[str], accuracies: list[float]) -> list[float]:
        strategy.ask()
        letters = map(strategy.space.from_str, genotypes)
        strategy.tell(
            [Trial(g, {"val_acc": a, "latency_ms": 1.0}, 0) for g, a in zip(letters, accuracies, strict=True)]
        )
        return (-strategy._algorithm.asked.get("F")[:, 0]).tolist()

    # Nearest of each: b, c; a, c; a, b; of the last one all are at distance 1, so the first two: a, b.
    assert local(["aaaaaa", "aaaaab", "aaaaac", "ddddde"], [0.5, 0.6, 0.4, 0.9]) == [1, 2, 0, 2]
    # aaaaaa has 0.7 now: its nearest is itself as first seen, 0.5, then aaaaab; the first answer counts, 0.6.
    # eeeeee twice: they see each other, with 0.1, the first of the two, and ddddde of before, 0.9, which sees
    # itself as it was, and an eeeeee.
    assert local(["aaaaaa", "eeeeee", "eeeeee", "ddddde"], [0.7, 0.1, 0.3, 0.2]) == [2, 0, 1, 1]


@pytest.mark.parametrize(
    ("settings", "num_costs", "num_results"),
    [
        ({}, 2, None),
        ({"novelty": False}, 1, 1),
        ({"fitness": "none"}, 1, None),
        ({"fitness": "local"}, 2, None),
    ],
    ids=["both", "only accuracy", "only novelty", "local"],
)
def test_variants(settings: dict[str, Any], num_costs: int, num_results: int | None) -> None:
    strategy = create(**settings)
    told = [step(strategy, generation, noise=0.01) for generation in range(8)]
    assert all(len(row) == num_costs for row in costs_of(strategy).values())
    result = strategy.result()
    assert result
    if num_results is not None:
        best = max((t for trials in told for t in trials), key=lambda t: t.metrics["val_acc"])
        assert result == [best]


def test_only_novelty_is_blind_to_accuracy() -> None:
    asked = []
    for sign in (1, -1):
        strategy = create(fitness="none")
        for generation in range(4):
            population = strategy.ask()
            strategy.tell(
                [Trial(g, {"val_acc": sign * sum(g), "latency_ms": 1.0}, generation) for g in population]
            )
        asked.append(population)
    assert asked[0] == asked[1]


def test_the_result_is_the_last_front_once_each_the_most_accurate_first() -> None:
    strategy = create()
    for generation in range(10):
        step(strategy, generation)
    result = strategy.result()
    accuracies = [t.metrics["val_acc"] for t in result]
    assert len(result) > 1
    assert accuracies == sorted(accuracies, reverse=True)
    assert len({t.genotype for t in result}) == len(result)
    members = [(member.get("trial"), member.F.tolist()) for member in strategy._algorithm.pop]
    front = {
        trial.genotype
        for trial, F in members
        if not any(G[0] <= F[0] and G[1] <= F[1] and G != F for _, G in members)
    }
    assert {t.genotype for t in result} == front


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fitness": "loss"}, "fitness must be one of accuracy, local, none, not 'loss'"),
        ({"novelty": "some"}, "novelty must be true or false, not 'some'"),
        (
            {"fitness": "none", "novelty": False},
            "novelty must be true where fitness is none",
        ),
        ({"num_neighbors": 0}, "num_neighbors must be a whole number of at least 1, not 0"),
        ({"population_size": 5}, "population_size must be an even whole number of at least 2, not 5"),
        ({"mutation_prob": 2}, "mutation_prob must be a number in 0..1, not 2"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        create(**settings)
