"""Exact optima against listing every network, and on spaces that cannot be listed."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from hwnas.core import Genotype, SearchSpace, Sum
from hwnas.searches import knapsack
from hwnas.searches.knapsack import cheapest, optimum
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.toy import Toy


def random_sum(space: SearchSpace, rng: np.random.Generator, *, whole: bool = False) -> Sum:
    values = rng.integers(0, 4, space.alpha_shape).astype(float) if whole else rng.random(space.alpha_shape)
    return Sum(1.0, values)


def brute(space: SearchSpace, value: Sum, cost: Sum, limit: float) -> float | None:
    kept = [value(g) for g in space.all() if cost(g) <= limit + 1e-9]
    return max(kept, default=None)


@pytest.mark.parametrize("whole", [False, True], ids=["real", "ties"])
@pytest.mark.parametrize("seed", range(8))
def test_against_every_network(seed: int, whole: bool) -> None:
    rng = np.random.default_rng(seed)
    space = Toy(6, 4).restrict([[0, 1, 2, 3], [1, 3], [2], [0, 1, 2, 3], [0, 2, 3], [0, 1, 2, 3]])
    value, cost = random_sum(space, rng, whole=whole), random_sum(space, rng, whole=whole)
    listed = [cost(genotype) for genotype in space.all()]
    least = cheapest(space, cost)
    assert least is not None
    assert cost(space.check(least)) == min(listed)
    for limit in [*np.quantile(listed, [0, 0.01, 0.1, 0.5, 0.9, 1]).tolist(), min(listed) - 0.1]:
        found = optimum(space, value, cost, limit)
        expected = brute(space, value, cost, limit)
        if expected is None:
            assert found is None
            continue
        assert found is not None
        assert value(space.check(found)) == pytest.approx(expected, rel=1e-12)
        assert cost(found) <= limit * (1 + 1e-12)


def test_values_may_be_negative() -> None:
    """A quality that falls is the negative of a cost: the same answer as for its opposite."""
    space, rng = Toy(5, 4), np.random.default_rng(1)
    value, cost = Sum(0.0, -rng.random((5, 4))), random_sum(Toy(5, 4), rng)
    found = optimum(space, value, cost, 3.5)
    assert found is not None
    assert value(found) == pytest.approx(brute(space, value, cost, 3.5))


def test_operations_that_are_not_supported() -> None:
    space = Toy(2, 3)
    cost = Sum(0.0, np.array([[np.inf, 2.0, 3.0], [1.0, np.inf, 5.0]]))
    assert cheapest(space, cost) == (1, 0)
    assert optimum(space, Sum(0.0, np.array([[9.0, 2, 2], [0, 9, 1]])), cost, 7.0) == (1, 2)
    assert cheapest(space, Sum(0.0, np.full((2, 3), np.inf))) is None
    assert optimum(space, cost, Sum(0.0, np.full((2, 3), np.inf)), 9.0) is None


def test_a_limit_just_below_a_cost() -> None:
    space, rng = FBNet(), np.random.default_rng(3)
    cost = random_sum(space, rng)
    value = Sum(0.0, cost.added + 0.3 * rng.random(space.alpha_shape))
    found = optimum(space, value, cost, 9.0)
    assert found is not None
    limit = cost(found) * (1 - 1e-9)
    other = optimum(space, value, cost, limit)
    assert other is not None
    assert cost(other) <= limit
    assert limit - cost(other) < 0.01
    assert value(other) < value(found)


def test_too_many_partial_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(knapsack, "MOST_STATES", 1)
    space, rng = Toy(), np.random.default_rng(0)
    value, cost = random_sum(space, rng), random_sum(space, rng)
    with pytest.raises(ValueError, match="needs more than 1 partial networks"):
        optimum(space, value, cost, 5.5)


def test_no_network_of_a_large_space_beats_it() -> None:
    """FBNet: random networks, and every change of one or two layers of the answer, within the same limit."""
    space, rng = FBNet(), np.random.default_rng(5)
    cost = random_sum(space, rng)
    value = Sum(0.0, cost.added + 0.3 * rng.random(space.alpha_shape))
    for limit in (5.0, 9.0, 13.0):
        found = optimum(space, value, cost, limit)
        assert found is not None
        assert cost(found) <= limit
        near: list[Genotype] = space.sample(rng, 2_000)
        for a, b in itertools.combinations(range(22), 2):
            for x, y in itertools.product(range(9), repeat=2):
                changed = list(found)
                changed[a], changed[b] = x, y
                near.append(tuple(changed))
        G, rows = np.array(near), np.arange(22)
        within = cost.base + cost.added[rows, G].sum(axis=1) <= limit
        assert value.added[rows, G].sum(axis=1)[within].max() <= value(found) + 1e-9
