from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest

from hwnas.core import Genotype
from hwnas.spaces.toy import Toy, ToyCost


def values(cost: ToyCost, metric: str, genotypes: list[Genotype]) -> list[float]:
    rows = cost.evaluate(genotypes)
    assert all(list(row) == [metric] for row in rows)
    return [row[metric] for row in rows]


def test_default_size() -> None:
    space = Toy()
    assert space.alpha_shape == (16, 5)
    assert space.size == 5**16
    assert space.ops == ("a", "b", "c", "d", "e")


def test_val_acc_is_1_at_the_best_operations_and_0_at_the_worst() -> None:
    space = Toy()
    cost = ToyCost(space, metric="val_acc")
    assert cost.metrics == {"val_acc": "max"}
    best, worst = (
        tuple(extreme.tolist()) for extreme in (cost.table.argmax(axis=1), cost.table.argmin(axis=1))
    )
    assert values(cost, "val_acc", [best, worst]) == pytest.approx([1.0, 0.0], abs=1e-12)
    sampled = values(cost, "val_acc", space.sample(np.random.default_rng(0), 500))
    assert 0 < min(sampled) < max(sampled) < 1


def test_latency_is_1_at_the_fastest_operations() -> None:
    space = Toy()
    cost = ToyCost(space, metric="latency_ms")
    assert cost.metrics == {"latency_ms": "min"}
    fastest = tuple(cost.table.argmin(axis=1).tolist())
    assert values(cost, "latency_ms", [fastest]) == [1.0]
    assert min(values(cost, "latency_ms", space.sample(np.random.default_rng(0), 500))) > 1.0


def test_extremes_are_those_of_the_whole_small_space() -> None:
    space = Toy(3, 4)
    genotypes = list(itertools.product(range(4), repeat=3))
    quality = values(ToyCost(space, metric="val_acc"), "val_acc", genotypes)
    latency = values(ToyCost(space, metric="latency_ms"), "latency_ms", genotypes)
    assert (min(quality), max(quality)) == pytest.approx((0.0, 1.0), abs=1e-12)
    assert min(latency) == 1.0
    # in conflict: better architectures are slower
    assert np.corrcoef(quality, latency)[0, 1] > 0.3
    assert latency[int(np.argmax(quality))] > 1.0


def test_costs_are_separable_and_the_same_in_every_process() -> None:
    space = Toy()
    cost = ToyCost(space, metric="latency_ms")
    rng = np.random.default_rng(1)
    a, b = space.sample(rng, 2)
    mixed = [(*a[:8], *b[8:]), (*b[:8], *a[8:])]
    assert sum(values(cost, "latency_ms", [a, b])) == pytest.approx(sum(values(cost, "latency_ms", mixed)))
    assert np.array_equal(cost.table, ToyCost(space, metric="latency_ms").table)
    assert (
        cost.prepare(space, [a])
        == cost.prepare(space, [b])
        != ToyCost(Toy(3, 4), metric="latency_ms").prepare(Toy(3, 4), [])
    )


def test_strings_return() -> None:
    space = Toy(4, 3)
    assert space.to_str((0, 2, 1, 0)) == "acba"
    for genotype in itertools.product(range(3), repeat=4):
        assert space.from_str(space.to_str(genotype)) == genotype


def test_errors() -> None:
    with pytest.raises(ValueError, match="metric must be one of val_acc, latency_ms, not 'flops'"):
        ToyCost(Toy(), metric="flops")
    with pytest.raises(ValueError, match="unknown operation 'x' in 'axba'; known: a, b, c"):
        Toy(4, 3).from_str("axba")
    with pytest.raises(ValueError, match="a toy genotype has 4 entries, not 3"):
        Toy(4, 3).from_str("aba")
    with pytest.raises(ValueError, match="operation 1 on edge 0 of toy is not one of"):
        Toy(2, 3, choices=[[0], [1]]).from_str("bb")
    with pytest.raises(ValueError, match=r"num_ops must be a whole number in 1\.\.26, not 27"):
        Toy(4, 27)
    with pytest.raises(ValueError, match=r"num_edges must be a whole number of at least 1, not 0"):
        Toy(0)


def test_restrict() -> None:
    small = Toy(3, 4).restrict([[0], [1, 3], [2]])
    assert small.size == 2
    assert set(small.sample(np.random.default_rng(0), 50)) == {(0, 1, 2), (0, 3, 2)}
    assert small.alpha_shape == (3, 4)


@pytest.mark.parametrize("keep", [[[0]] * 2, [[0], [], [0]], [[0], [4], [0]], []])
def test_restrict_refuses(keep: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"choices must be 3 non-empty sets of 0\.\.3, not "):
        Toy(3, 4).restrict(keep)


def test_mutation_is_uniform_over_edges_and_other_operations() -> None:
    space = Toy(3, 5, choices=[(0,), (0, 1, 2), (3, 4)])
    rng = np.random.default_rng(0)
    counts = Counter(space.mutate((0, 1, 3), rng) for _ in range(4000))
    assert set(counts) == {(0, 0, 3), (0, 2, 3), (0, 1, 4)}
    assert [counts[g] / 4000 for g in ((0, 0, 3), (0, 2, 3), (0, 1, 4))] == pytest.approx(
        [0.25, 0.25, 0.5], abs=0.04
    )
    assert Toy(2, 2, choices=[(0,), (1,)]).mutate((0, 1), rng) == (0, 1)


def test_neighbours_by_hand() -> None:
    space = Toy(3, 3).restrict([(0, 1, 2), (0, 1), (2,)])
    # Edge 0 may become 1 or 2, edge 1 may become 0; only edges 0 and 1 can exchange.
    assert space.neighbours((0, 1, 2)) == [(1, 1, 2), (2, 1, 2), (0, 0, 2), (1, 0, 2)]
    assert space.neighbours((1, 1, 2)) == [(0, 1, 2), (2, 1, 2), (1, 0, 2)]  # equals: no exchange
    assert Toy(2, 3).restrict([(0,), (0,)]).neighbours((0, 0)) == []
