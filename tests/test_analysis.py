"""Numbers behind the run page's explanations, by hand on small spaces."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hwnas.core import Limit, Objective, Sum, Trial
from hwnas.searches.analysis import (
    agreement,
    ancestry,
    changes,
    frequencies,
    main_effects,
    nearest_earlier,
    spread,
    sum_effects,
    surrogate,
)
from hwnas.spaces.toy import Toy, ToyCost

OBJECTIVES = (Objective("val_acc", "max"), Objective("latency_ms", "min"))


def trial(text: str, generation: int, quality: float, cost: float = 1.0) -> Trial:
    genotype = tuple(ord(letter) - ord("a") for letter in text)
    return Trial(genotype, {"val_acc": quality, "latency_ms": cost}, generation)


def test_main_effects_of_a_whole_space():
    """aa 1, ab 3, ba 5, bb 7: the first letter decides by 2 each way, the second by 1."""
    effects = main_effects([(0, 0), (0, 1), (1, 0), (1, 1)], np.array([1.0, 3.0, 5.0, 7.0]), (2, 2))
    assert effects.mean == 4.0
    assert effects.added.tolist() == [[-2.0, 2.0], [-1.0, 1.0]]
    assert (effects.r2, effects.num) == (1.0, 4)


def test_main_effects_say_how_little_a_sum_explains():
    """Exclusive or: no operation matters by itself."""
    effects = main_effects([(0, 0), (0, 1), (1, 0), (1, 1)], np.array([0.0, 1.0, 1.0, 0.0]), (2, 2))
    assert effects.added.tolist() == [[0.0, 0.0], [0.0, 0.0]]
    assert effects.r2 == 0.0


def test_main_effects_leave_unsupported_networks_and_operations_out():
    effects = main_effects([(0,), (1,), (2,)], np.array([1.0, 3.0, math.inf]), (1, 3))
    assert effects.added[0, :2].tolist() == [-1.0, 1.0]
    assert np.isnan(effects.added[0, 2])
    assert effects.num == 2
    with pytest.raises(ValueError, match="finite"):
        main_effects([(0,)], np.array([math.inf]), (1, 1))


def test_effects_of_a_sum_are_those_of_the_listed_space():
    space = Toy(3, 4)
    cost = ToyCost(space, metric="latency_ms")
    values = np.array([row["latency_ms"] for row in cost.evaluate(space.all())])
    listed = main_effects(space.all(), values, space.alpha_shape)
    known = sum_effects(space, cost.separable("latency_ms"))
    np.testing.assert_allclose(known.added, listed.added, atol=1e-12)
    assert known.mean == pytest.approx(listed.mean)
    assert (known.r2, known.num) == (1.0, 64)


def test_effects_of_a_sum_keep_to_what_is_allowed_and_supported():
    space = Toy(2, 3, choices=[[0, 1], [0, 1, 2]])
    effects = sum_effects(space, Sum(1.0, np.array([[2.0, 4.0, 100.0], [0.0, 6.0, math.inf]])))
    assert effects.mean == 1.0 + 3.0 + 3.0
    assert effects.added[0, :2].tolist() == [-1.0, 1.0]
    assert effects.added[1, :2].tolist() == [-3.0, 3.0]
    assert np.isnan([effects.added[0, 2], effects.added[1, 2]]).all()


def test_the_surrogate_finds_a_sum():
    rng = np.random.default_rng(0)
    space = Toy(5, 4)
    table = rng.normal(size=(5, 4))
    genotypes = list(dict.fromkeys(space.sample(rng, 400)))
    values = np.array([Sum(3.0, table)(genotype) for genotype in genotypes])
    effects = surrogate(genotypes, values, (5, 4))
    np.testing.assert_allclose(effects.added, table - table.mean(axis=1, keepdims=True), atol=0.01)
    assert effects.r2 > 0.999
    noise = surrogate(genotypes, rng.normal(size=len(genotypes)), (5, 4))
    assert noise.r2 < 0.1  # what it has not seen it cannot predict


def test_the_surrogate_does_not_know_what_it_has_not_seen():
    genotypes = [(a, b) for a, b in itertools.product(range(5), range(5))]
    effects = surrogate(genotypes, np.array([float(a) for a, _ in genotypes]), (2, 6))
    assert np.isnan(effects.added[:, 5]).all()
    assert np.isfinite(effects.added[:, :5]).all()
    assert surrogate(genotypes[:19], np.arange(19.0), (2, 6)) is None
    assert surrogate(genotypes, np.ones(25), (2, 6)) is None


def test_changes():
    assert changes((0, 1, 2, 3), (0, 2, 2, 1)) == [(1, 1, 2), (3, 3, 1)]
    assert changes((0, 1), (0, 1)) == []


def test_the_nearest_earlier_network():
    trials = [
        trial("aaaa", 0, 0.1),
        trial("bbbb", 0, 0.2),
        trial("aaab", 1, 0.3),
        trial("abbb", 1, 0.4),
        trial("aabb", 2, 0.5),
    ]
    rows = range(5)
    # aabb differs in one letter from aaab and abbb: the later one, and one more is as near
    assert nearest_earlier(Toy(4, 2), trials, rows) == [None, None, (0, 0), (1, 0), (3, 1)]


def test_the_chain_goes_back_over_networks_that_are_no_better():
    trials = [
        trial("aaaa", 0, 0.1),
        trial("bbbb", 0, 0.9),
        trial("aaab", 1, 0.3),
        trial("abbb", 1, 0.8),
        trial("aabb", 2, 0.5),
    ]
    chain = ancestry(Toy(4, 2), trials, (0, 0, 1, 1), OBJECTIVES, ())
    assert [t.genotype for t in chain] == [(0, 0, 0, 0), (0, 0, 0, 1), (0, 0, 1, 1)]
    anything = ancestry(Toy(4, 2), trials, (0, 0, 1, 1), OBJECTIVES, (), comparable=False)
    assert [t.genotype for t in anything] == [(1, 1, 1, 1), (0, 1, 1, 1), (0, 0, 1, 1)]


def test_the_chain_begins_where_every_earlier_network_is_better():
    trials = [trial("aa", 0, 0.9), trial("ab", 1, 0.2), trial("bb", 2, 0.3)]
    chain = ancestry(Toy(2, 2), trials, (1, 1), OBJECTIVES, ())
    assert [t.genotype for t in chain] == [(0, 1), (1, 1)]


def test_a_network_beyond_the_limits_is_worse():
    trials = [trial("aa", 0, 0.9, cost=3.0), trial("bb", 0, 0.1), trial("ab", 1, 0.5)]
    chain = ancestry(Toy(2, 2), trials, (0, 1), OBJECTIVES, (Limit("latency_ms", 2.0),))
    assert [t.genotype for t in chain] == [(1, 1), (0, 1)]  # both are as near; the latest counts
    without = ancestry(Toy(2, 2), trials[:1] + trials[2:], (0, 1), OBJECTIVES, (Limit("latency_ms", 2.0),))
    assert [t.genotype for t in without] == [(0, 0), (0, 1)]


def test_frequencies():
    shares = frequencies([(0, 1), (0, 0), (0, 1), (1, 1)], (2, 3))
    assert shares.tolist() == [[0.75, 0.25, 0.0], [0.25, 0.75, 0.0]]


def test_kendalls_tau():
    assert agreement([1, 2, 3, 4], [1, 2, 4, 3]) == pytest.approx(4 / 6)  # five pairs agree, one does not
    assert agreement([1, 2], [1, 2]) is None
    assert agreement([1, 1, 1], [1, 2, 3]) is None


def test_spread():
    assert spread(3, 5) == [0, 1, 2]
    assert spread(9, 3) == [0, 4, 8]
