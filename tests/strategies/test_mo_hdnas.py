from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from hwnas.core import Genotype, Objective, Trial, costs, non_dominated
from hwnas.spaces.toy import Toy
from hwnas.strategies.evolution import cost_diversity
from hwnas.strategies.mo_hdnas import MOHDNAS

OBJECTIVES = (Objective("val_acc", "max"), Objective("latency_ms", "min"))
Score = Callable[[Genotype], tuple[float, float]]


def create(objectives: tuple[Objective, ...] = OBJECTIVES, **settings: Any) -> MOHDNAS:
    defaults = {
        "population_size": 4,
        "diversity": "population",
        "crossover_prob": 0.7,
        "mutation_prob": 0.2,
        "crowding": "unique",
    }
    return MOHDNAS(Toy(5, 3), objectives, 0, **{**defaults, **settings})


def step(strategy: MOHDNAS, score: Score, generation: int = 0) -> list[Trial]:
    trials = []
    for genotype in strategy.ask():
        acc, ms = score(genotype)
        trials.append(Trial(genotype, {"val_acc": acc, "latency_ms": ms}, generation))
    strategy.tell(trials)
    return trials


def smooth(genotype: Genotype) -> tuple[float, float]:
    """Accuracy and latency in conflict, different for different genotypes."""
    number = sum(op * 3**edge for edge, op in enumerate(genotype))
    return sum(genotype) / 10 + number / 1e5, 1.0 + sum(genotype) + number / 1e3


def test_cost_diversity_by_hand() -> None:
    assert cost_diversity(np.array([1.0, 2.0, 4.0])).tolist() == [10.0, 5.0, 13.0]  # 1+9, 1+4, 9+4
    assert cost_diversity(np.array([3.0])).tolist() == [0.0]
    assert cost_diversity(np.array([2.5] * 4)).tolist() == [0.0] * 4
    assert cost_diversity(np.array([])).tolist() == []


def test_mean_cost_diversity_is_twice_n_times_the_variance() -> None:
    cost = np.random.default_rng(0).random(20) * 10
    assert cost_diversity(cost).mean() == pytest.approx(2 * 20 * cost.var(), rel=1e-12)


def test_unsupported_neither_count_nor_get_diversity() -> None:
    assert cost_diversity(np.array([1.0, math.inf, 2.0, 4.0])).tolist() == [10.0, 0.0, 5.0, 13.0]
    assert cost_diversity(np.array([math.inf, math.inf])).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"population_size": 5}, r"population_size must be an even whole number of at least 2, not 5"),
        ({"population_size": 0}, r"population_size must be an even whole number of at least 2, not 0"),
        (
            {"population_size": 2.5},
            r"population_size must be an even whole number of at least 2, not 2\.5",
        ),
        ({"diversity": "some"}, r"diversity must be one of population, merged, none, not 'some'"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create(**settings)


def test_a_quality_alone_is_refused() -> None:
    with pytest.raises(ValueError, match="mo_hdnas needs a quality and a cost, not"):
        create(OBJECTIVES[:1])


@pytest.mark.parametrize("diversity", ["population", "merged"])
def test_diversities_of_several_costs_are_added_each_in_units_of_its_mean(diversity: str) -> None:
    """An unsupported network neither counts nor gets any."""
    strategy = create((*OBJECTIVES, Objective("energy_mj", "min")), diversity=diversity)
    population = strategy.ask()
    latency, energy = np.array([1.0, 2.0, 3.0]), np.array([10.0, 10.0, 40.0])
    rows = [*zip(latency, energy, strict=True), (np.inf, 5.0)]
    trials = [
        Trial(g, {"val_acc": 0.5, "latency_ms": a, "energy_mj": b}, 0)
        for g, (a, b) in zip(population, rows, strict=True)
    ]
    strategy.tell(trials)
    chi = cost_diversity(latency / 2) + cost_diversity(energy / 20)
    expected = {id(trial): value for trial, value in zip(trials, [*chi, 0.0], strict=True)}
    for member in strategy._algorithm.pop:
        assert member.get("F").shape == (4,)
        assert -member.get("F")[3] == pytest.approx(expected[id(member.get("trial"))])


def test_asked_are_the_argmax_of_the_alphas() -> None:
    strategy = create(population_size=6)
    for generation in range(5):
        genotypes = strategy.ask()
        alphas = strategy._algorithm.asked.get("X").reshape(6, 5, 3)
        assert ((alphas >= 0) & (alphas <= 1)).all()
        assert genotypes == [tuple(row) for row in alphas.argmax(axis=2).tolist()]
        strategy.tell(
            [
                Trial(g, dict(zip(("val_acc", "latency_ms"), smooth(g), strict=True)), generation)
                for g in genotypes
            ]
        )


def test_first_population_is_uniform() -> None:
    genotypes = create(population_size=2000).ask()
    share = np.array([[np.mean([g[edge] == op for g in genotypes]) for op in range(3)] for edge in range(5)])
    assert np.abs(share - 1 / 3).max() < 0.05


@pytest.mark.parametrize(("diversity", "num_objectives"), [("population", 3), ("merged", 3), ("none", 2)])
def test_number_of_objectives(diversity: str, num_objectives: int) -> None:
    strategy = create(diversity=diversity)
    trials = step(strategy, smooth)
    F = strategy._algorithm.pop.get("F")
    assert F.shape == (4, num_objectives)
    by_genotype = {t.genotype: row for t, row in zip(trials, costs(trials, OBJECTIVES).tolist(), strict=True)}
    for member, row in zip(strategy._algorithm.pop, F.tolist(), strict=True):
        assert row[:2] == by_genotype[member.get("trial").genotype]


def test_population_diversity_is_that_of_those_asked_together() -> None:
    strategy = create(population_size=6)
    chi: dict[tuple[Genotype, int], float] = {}
    for generation in range(6):
        trials = step(strategy, smooth, generation)
        latency = np.array([t.metrics["latency_ms"] for t in trials])
        chi |= {(t.genotype, generation): c for t, c in zip(trials, cost_diversity(latency), strict=True)}
        generations = set()
        for member in strategy._algorithm.pop:
            trial = member.get("trial")
            generations.add(trial.generation)
            assert member.F[2] == pytest.approx(-chi[trial.genotype, trial.generation])
    assert len(generations) > 1  # parents kept the value of their own generation


def test_merged_diversity_is_computed_anew_among_parents_and_children() -> None:
    strategy = create(population_size=6, diversity="merged")
    parents: list[Trial] = []
    for generation in range(6):
        children = step(strategy, smooth, generation)
        merged = [*parents, *children]
        chi = cost_diversity(np.array([t.metrics["latency_ms"] for t in merged]))
        expected = {id(t): c for t, c in zip(merged, chi, strict=True)}
        survivors = list(strategy._algorithm.pop)
        for member in survivors:
            assert member.F[2] == pytest.approx(-expected[id(member.get("trial"))])
        parents = [member.get("trial") for member in survivors]
    assert {t.generation for t in parents} != {5}  # some parents stayed, with a new value


def test_diversity_keeps_an_extreme_cost_that_two_objectives_drop() -> None:
    """A bad and very slow network: dominated, unless its distance from the others counts."""
    kept = {}
    for diversity in ("none", "population"):
        strategy = create(diversity=diversity)
        first = strategy.ask()
        bad = first[0]
        rows = [(0.1, 50.0) if g == bad else (0.5 + 0.1 * k, 1.0 + k) for k, g in enumerate(first)]
        strategy.tell(
            [Trial(g, {"val_acc": a, "latency_ms": m}, 0) for g, (a, m) in zip(first, rows, strict=True)]
        )
        kept[diversity] = bad in [t.genotype for t in strategy.result()]
    assert kept == {"none": False, "population": True}


def test_two_objectives_return_the_front_of_the_last_population() -> None:
    strategy = create(diversity="none", population_size=10)
    for generation in range(8):
        step(strategy, smooth, generation)
    result = strategy.result()
    F = costs(result, OBJECTIVES)
    assert len(non_dominated(F)) == len(result)
    everyone = [member.get("trial") for member in strategy._algorithm.pop]
    front = [everyone[row] for row in non_dominated(costs(everyone, OBJECTIVES))]
    assert {t.genotype for t in result} == {t.genotype for t in front}


@pytest.mark.parametrize("diversity", ["population", "merged", "none"])
def test_unsupported_are_never_in_the_result_while_a_supported_one_exists(diversity: str) -> None:
    strategy = create(diversity=diversity, population_size=8)

    def score(genotype: Genotype) -> tuple[float, float]:
        acc, ms = smooth(genotype)
        return acc + (genotype[0] > 0), math.inf if genotype[0] > 0 else ms  # unsupported and accurate

    seen_supported = False
    for generation in range(12):
        trials = step(strategy, score, generation)
        seen_supported |= any(t.genotype[0] == 0 for t in trials)
        result = strategy.result()
        assert bool(result) == seen_supported
        assert all(t.genotype[0] == 0 for t in result)
    survivors = [member.get("trial") for member in strategy._algorithm.pop]
    assert all(math.isfinite(t.metrics["latency_ms"]) for t in survivors)


def test_nothing_supported_gives_no_result() -> None:
    strategy = create()
    for generation in range(3):
        step(strategy, lambda _: (0.9, math.inf), generation)
    assert strategy.result() == []
