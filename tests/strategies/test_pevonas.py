from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from hwnas.build import build, conf_folder
from hwnas.core import Genotype, Objective, SearchSpace, Trial
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy
from hwnas.strategies.pevonas import PEvoNAS, keep

OBJECTIVES = (Objective("val_acc", "max"), Objective("latency_ms", "min"))
Score = Callable[[Genotype], float]


def create(space: SearchSpace | None = None, generations: int = 300, **settings: Any) -> PEvoNAS:
    config = OmegaConf.merge(OmegaConf.load(conf_folder() / "strategy" / "pevonas.yaml"), settings)
    built = build(
        config, space=space or NasBench201(), objectives=OBJECTIVES, seed=0, generations=generations
    )
    assert isinstance(built, PEvoNAS)
    return built


def good(genotype: Genotype) -> float:
    return sum((edge + 1) * op for edge, op in enumerate(genotype)) / 100


def run(strategy: PEvoNAS, score: Score = good) -> list[tuple[int, SearchSpace, list[Trial]]]:
    """Stage, space and trials of every generation, until the strategy is done."""
    told: list[tuple[int, SearchSpace, list[Trial]]] = []
    while not strategy.done:
        population = strategy.ask()
        trials = [Trial(g, {"val_acc": score(g), "latency_ms": 1.0}, len(told)) for g in population]
        told.append((strategy.stage, strategy.space, trials))
        strategy.tell(trials)
    return told


def lengths(told: list[tuple[int, SearchSpace, list[Trial]]]) -> list[int]:
    """Generations per stage."""
    return np.bincount([stage for stage, _, _ in told]).tolist()


def test_published_settings() -> None:
    strategy = create()
    assert (strategy.num_ops, strategy.max_generations, strategy.convergence) == ((3, 2), 100, 10)
    genetic = strategy._genetic
    assert (genetic.population_size, genetic.tournament_size) == (20, 5)
    assert (genetic.num_elites, genetic.mutation_rate) == (1, 0.1)


@pytest.mark.parametrize(
    ("space", "progression", "sizes"),
    [(NasBench201(), [None, 3, 2], [5, 3, 2]), (Toy(28, 8), [None, 5, 2], [8, 5, 2])],
)
def test_operations_per_edge(space: SearchSpace, progression: list[int | None], sizes: list[int]) -> None:
    told = run(create(space, progression=progression, max_generations=4))
    assert lengths(told) == [4, 4, 4]
    for stage, restricted, trials in told:
        assert {len(ops) for ops in restricted.choices} == {sizes[stage]}
        assert all(restricted.check(t.genotype) == t.genotype for t in trials)
    for (_, before, _), (_, after, _) in itertools.pairwise(told):
        assert all(
            set(small) <= set(large) for small, large in zip(after.choices, before.choices, strict=True)
        )


def test_keep_takes_the_largest_allowed_alphas() -> None:
    space = Toy(3, 5, choices=[(0, 1, 2, 3, 4), (0, 2, 4), (1,)])
    alpha = np.array([[0.1, 0.9, 0.5, 0.7, 0.2], [0.3, 0.9, 0.1, 0.9, 0.6], [0.9, 0.0, 0.9, 0.9, 0.9]])
    assert keep(alpha, space, 3) == [[1, 3, 2], [4, 0, 2], [1]]
    assert keep(alpha, space, 2) == [[1, 3], [4, 0], [1]]


def test_the_best_of_a_stage_stays_possible_and_its_alphas_decide() -> None:
    strategy = create(max_generations=5)
    told = run(strategy)
    for stage in (0, 1):
        last = [trials for at, _, trials in told if at == stage][-1]
        leader = max(last, key=lambda t: t.metrics["val_acc"]).genotype
        following = next(space for at, space, _ in told if at == stage + 1)
        assert following.check(leader) == leader


def test_every_stage_starts_from_random_alphas_of_allowed_operations() -> None:
    strategy = create(max_generations=2, population_size=400, tournament_size=5)
    for generation in range(6):
        population = strategy.ask()
        alphas, allowed = strategy._genetic.alphas, strategy.space.allowed
        assert alphas is not None
        assert (alphas[:, ~allowed] == 0).all()
        if generation % 2 == 0:
            assert alphas[:, allowed].mean() == pytest.approx(0.5, abs=0.02)
            assert alphas[:, allowed].var() == pytest.approx(1 / 12, abs=0.005)
            for edge, ops in enumerate(strategy.space.choices):
                shares = np.bincount([g[edge] for g in population], minlength=5)[list(ops)] / 400
                assert shares == pytest.approx([1 / len(ops)] * len(ops), abs=0.1)
        strategy.tell([Trial(g, {"val_acc": good(g), "latency_ms": 1.0}, generation) for g in population])


def test_a_stage_ends_when_the_best_was_the_same_for_ten_generations() -> None:
    """All equally good: the elite leads from the first generation on, more than ten are over at eleven."""
    told = run(create(), lambda genotype: 0.5)
    assert lengths(told) == [11, 11, 11]


def test_a_change_of_the_best_postpones_the_end() -> None:
    """The leader changes for the last time in generation 7 of the first stage, so it ends with number 16."""
    strategy = create()
    count = 0

    def tell(population: list[Genotype]) -> None:
        nonlocal count
        count += 1
        new = next((g for g in population if g not in seen), None) if count <= 7 else None
        seen.update(population)
        for genotype in population:
            scores.setdefault(genotype, 0.0)
        if new is not None:
            scores[new] = float(count)
        strategy.tell([Trial(g, {"val_acc": scores[g], "latency_ms": 1.0}, count) for g in population])

    seen: set[Genotype] = set()
    scores: dict[Genotype, float] = {}
    while strategy.stage == 0:
        population = strategy.ask()
        if strategy.stage == 0:
            tell(population)
    assert count == 16


def test_a_stage_ends_after_its_most_generations() -> None:
    counter = iter(range(10**9))
    told = run(
        create(max_generations=20), lambda genotype: float(next(counter))
    )  # ever better: no convergence
    assert lengths(told) == [20, 20, 20]


@pytest.mark.parametrize(
    ("generations", "expected"),
    [(300, [100, 100, 100]), (400, [100, 100, 100]), (20, [7, 7, 6]), (4, [2, 1, 1]), (3, [1, 1, 1])],
)
def test_short_runs_share_their_generations(generations: int, expected: list[int]) -> None:
    counter = iter(range(10**9))
    told = run(create(generations=generations), lambda genotype: float(next(counter)))
    assert lengths(told) == expected


def test_what_a_stage_saves_goes_to_the_next() -> None:
    strategy = create(generations=60)
    counter = iter(range(10**9))
    told = run(strategy, lambda g: 0.5 if strategy.stage == 0 else float(next(counter)))
    assert lengths(told) == [11, 25, 24]


def test_the_result_is_the_best_of_the_last_generation() -> None:
    strategy = create(max_generations=3)
    told = run(strategy)
    assert strategy.result() == [max(told[-1][2], key=lambda t: t.metrics["val_acc"])]
    assert strategy.stage == 2


def test_replay_over_the_stages() -> None:
    whole = create(max_generations=3)
    told = run(whole)
    for replayed in (2, 3, 5, 9):
        again = create(max_generations=3)
        for stage, space, trials in told[:replayed]:
            assert again.ask() == [t.genotype for t in trials]
            assert (again.stage, again.space.choices) == (stage, space.choices)
            again.tell(trials)
        rest = run(again)
        assert [trials for _, _, trials in told[:replayed]] + [
            [Trial(t.genotype, t.metrics, t.generation + replayed) for t in trials] for _, _, trials in rest
        ] == [trials for _, _, trials in told]
        assert again.result()[0].genotype == whole.result()[0].genotype


def test_edges_with_few_operations_keep_what_they_have() -> None:
    space = Toy(4, 5, choices=[(0,), (1, 3), (0, 2, 4), (0, 1, 2, 3, 4)])
    told = run(create(space, max_generations=2))
    assert [[len(ops) for ops in told[g][1].choices] for g in (0, 2, 4)] == [
        [1, 2, 3, 5],
        [1, 2, 3, 3],
        [1, 2, 2, 2],
    ]


@pytest.mark.parametrize(
    ("generations", "settings", "message"),
    [
        (
            300,
            {"progression": [5, 3, 2]},
            "progression must start with its only null, e.g. [null, 3, 2], not [5, 3, 2]",
        ),
        (300, {"progression": []}, "progression must start with its only null"),
        (
            300,
            {"progression": 3},
            "progression must be a list, each a whole number of at least 1 or null, not 3",
        ),
        (300, {"progression": [None, 2, 3]}, "progression must fall from stage to stage"),
        (
            300,
            {"progression": [None, 0]},
            "progression must be a list, each a whole number of at least 1 or null, not [None, 0]",
        ),
        (300, {"max_generations": 0}, "max_generations must be a whole number of at least 1, not 0"),
        (300, {"convergence": 0}, "convergence must be a whole number of at least 1, not 0"),
        (300, {"tournament_size": 21}, "tournament_size 21 is larger than the population of 20"),
        (2, {}, "generations must be at least 3, one per stage of the progression, not 2"),
    ],
)
def test_settings_are_checked(generations: int, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        create(generations=generations, **settings)
