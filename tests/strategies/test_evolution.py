from __future__ import annotations

import math

import numpy as np
import pytest

from hwnas.core import Objective, Trial
from hwnas.strategies.evolution import cost_diversity, evolve, fitness, tournament


def test_elites_stay_and_rows_come_from_parents_or_are_fresh() -> None:
    """Parents' alphas are 10 + their index, so that the origin of every row can be read off."""
    parents = np.full((8, 30, 5), 10.0) + np.arange(8)[:, None, None]
    children = evolve(parents, np.random.default_rng(0), num_elites=2, tournament_size=3, mutation_rate=0.25)
    assert np.array_equal(children[:2], parents[:2])
    rows = children[2:].reshape(-1, 5)
    inherited = rows[:, 0] >= 10
    assert (rows[inherited] == rows[inherited][:, :1]).all()
    assert ((rows[~inherited] >= 0) & (rows[~inherited] < 1)).all()
    assert len(np.unique(rows[~inherited])) == rows[~inherited].size


def test_the_expected_share_of_rows_is_mutated() -> None:
    parents = np.full((201, 50, 5), 10.0)
    children = evolve(parents, np.random.default_rng(1), num_elites=1, tournament_size=10, mutation_rate=0.1)
    mutated = (children[1:, :, 0] < 1).mean()
    assert mutated == pytest.approx(0.1, abs=4 * (0.1 * 0.9 / 10_000) ** 0.5)
    same = evolve(parents, np.random.default_rng(1), num_elites=1, tournament_size=10, mutation_rate=0.0)
    assert np.array_equal(same, parents)


def test_children_mix_two_parents_evenly() -> None:
    parents = np.full((2, 400, 5), 10.0)
    parents[1] += 1
    children = evolve(
        np.repeat(parents, 100, axis=0),
        np.random.default_rng(2),
        num_elites=0,
        tournament_size=1,
        mutation_rate=0,
    )
    shares = children[:, :, 0].mean(axis=1) - 10
    assert shares.mean() == pytest.approx(0.5, abs=0.05)
    mixed = (shares > 0) & (shares < 1)
    assert mixed.mean() == pytest.approx(0.5, abs=0.12)  # both parents alike: half of all pairs
    assert shares[mixed].mean() == pytest.approx(0.5, abs=0.02)


def test_tournament() -> None:
    rng = np.random.default_rng(0)
    assert [tournament(5, 5, rng) for _ in range(20)] == [0] * 20
    winners = np.bincount([tournament(5, 4, rng) for _ in range(4000)], minlength=5) / 4000
    assert winners == pytest.approx([0.8, 0.2, 0, 0, 0], abs=0.03)  # the best is drawn in 4 of 5 samples


def test_cost_diversity_by_hand() -> None:
    assert cost_diversity(np.array([1.0, 2.0, 4.0])).tolist() == [10.0, 5.0, 13.0]


def test_without_crossover_children_have_one_parent() -> None:
    parents = np.full((40, 30, 5), 10.0) + np.arange(40)[:, None, None]
    children = evolve(
        parents,
        np.random.default_rng(0),
        num_elites=1,
        tournament_size=3,
        mutation_rate=0.2,
        crossover=False,
    )
    for child in children[1:]:
        assert len({row[0] for row in child.tolist() if row[0] >= 10}) == 1


def test_fitness_is_the_first_objective_and_nothing_for_unsupported() -> None:
    objectives = (Objective("val_acc", "max"), Objective("latency_ms", "min"))
    trials = [
        Trial((0,), {"val_acc": acc, "latency_ms": ms}, 0)
        for acc, ms in [(0.3, 2.0), (0.9, math.inf), (0.5, 1.0)]
    ]
    assert fitness(trials, objectives).tolist() == [0.3, -math.inf, 0.5]
    assert fitness(trials[::2], (Objective("latency_ms", "min"),)).tolist() == [-2.0, -1.0]
