from __future__ import annotations

import math

import numpy as np
import pytest

from hwnas.core import (
    Limit,
    Objective,
    Trial,
    best,
    closest,
    costs,
    front,
    non_dominated,
    positive,
    unique,
    violations,
    whole_number,
)
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy

ACC, LATENCY = Objective("val_acc", "max"), Objective("latency_ms", "min")


def trial(*genotype: int, acc: float = 0.5, ms: float = 1.0, generation: int = 0) -> Trial:
    return Trial(genotype, {"val_acc": acc, "latency_ms": ms}, generation)


def test_costs_flip_what_is_maximised() -> None:
    F = costs([trial(0, acc=0.25, ms=3.0), trial(1, acc=0.75, ms=5.0)], [ACC, LATENCY])
    assert F.tolist() == [[-0.25, 3.0], [-0.75, 5.0]]
    assert costs([], [ACC, LATENCY]).shape == (0, 2)


def test_unsupported_costs_inf_whatever_the_goal() -> None:
    F = costs([trial(0, acc=math.inf, ms=math.inf)], [ACC, LATENCY])
    assert F.tolist() == [[math.inf, math.inf]]


def test_costs_name_the_missing_metric_and_the_reported_ones() -> None:
    with pytest.raises(ValueError, match=r"no evaluator reports 'energy_mj'; reported: val_acc, latency_ms"):
        costs([trial(0)], [Objective("energy_mj", "min")])


def test_violations_are_relative_excesses_that_add_up() -> None:
    limits = [Limit("latency_ms", 4.0), Limit("val_acc", 0.8, "max")]
    trials = [
        trial(0, acc=0.8, ms=4.0),  # exactly at both bounds
        trial(1, acc=0.9, ms=5.0),  # (5 - 4) / 4
        trial(2, acc=0.6, ms=1.0),  # (0.8 - 0.6) / 0.8
        trial(3, acc=0.6, ms=6.0),  # 0.25 + 0.5
        trial(4, acc=0.9, ms=math.inf),
    ]
    assert violations(trials, limits) == pytest.approx([0.0, 0.25, 0.25, 0.75, math.inf])


def test_violations_of_zero_and_negative_bounds() -> None:
    assert violations([trial(0, ms=3.0)], [Limit("latency_ms", 0.0)]).tolist() == [3.0]
    assert violations([trial(0, ms=-1.0)], [Limit("latency_ms", -2.0)]).tolist() == [0.5]


def test_unsupported_violates_even_without_limits() -> None:
    assert violations([trial(0), trial(1, ms=math.inf)], []).tolist() == [0.0, math.inf]


def brute_force_front(F: np.ndarray) -> list[int]:
    finite = [i for i, row in enumerate(F) if np.isfinite(row).all()]
    return [
        i
        for i in finite
        if not any(
            (F[j] <= F[i]).all() and ((F[j] < F[i]).any() or j < i)  # of equal rows the first stays
            for j in finite
            if j != i
        )
    ]


@pytest.mark.parametrize("num_objectives", [1, 2, 3, 4])
@pytest.mark.parametrize("levels", [4, 10**6])  # few levels: many ties and duplicates
def test_non_dominated_equals_brute_force(num_objectives: int, levels: int) -> None:
    rng = np.random.default_rng(num_objectives)
    for n in (1, 2, 7, 60, 120):
        F = rng.integers(levels, size=(n, num_objectives)).astype(float)
        F[rng.random(F.shape) < 0.03] = math.inf
        F[rng.random(F.shape) < 0.02] = math.nan
        F[rng.random(F.shape) < 0.02] = -math.inf
        assert non_dominated(F).tolist() == brute_force_front(F)


def test_non_dominated_literals() -> None:
    F = np.array([[3, 1], [1, 3], [2, 2], [2, 2], [3, 3], [math.inf, 0], [math.nan, 0], [1, 4]], dtype=float)
    assert non_dominated(F).tolist() == [0, 1, 2]
    F = np.array([[1, 1, 2], [1, 2, 1], [1, 1, 2], [1, 2, 2], [0, 9, 9]], dtype=float)
    assert non_dominated(F).tolist() == [0, 1, 4]
    assert non_dominated(np.empty((0, 2))).tolist() == []
    assert non_dominated(np.full((2, 3), math.inf)).tolist() == []


def test_unique_keeps_the_latest_answer_in_order_of_appearance() -> None:
    trials = [trial(0, acc=0.1), trial(1, acc=0.2), trial(0, acc=0.3, generation=2)]
    assert unique(trials) == [trials[2], trials[1]]


def test_front_is_sorted_by_cost_and_has_no_repeats() -> None:
    trials = [
        trial(0, acc=0.9, ms=9.0),
        trial(1, acc=0.5, ms=1.0),
        trial(2, acc=0.4, ms=2.0),  # dominated by 1
        trial(3, acc=0.7, ms=3.0),
        trial(0, acc=0.9, ms=9.0),
        trial(4, acc=1.0, ms=math.inf),
    ]
    assert [t.genotype for t in front(trials, [ACC, LATENCY])] == [(1,), (3,), (0,)]


def test_best_keeps_limits_and_breaks_ties_by_the_next_objective() -> None:
    trials = [
        trial(0, acc=0.9, ms=9.0),
        trial(1, acc=0.7, ms=4.0),
        trial(2, acc=0.7, ms=3.0),
        trial(3, acc=1.0, ms=math.inf),
    ]
    assert best(trials, [ACC, LATENCY], []) is trials[0]
    assert best(trials, [ACC, LATENCY], [Limit("latency_ms", 5.0)]) is trials[2]
    assert best(trials, [ACC, LATENCY], [Limit("latency_ms", 1.0)]) is None
    assert best([], [ACC, LATENCY], []) is None


def test_closest_has_the_smallest_violation() -> None:
    trials = [trial(0, ms=math.inf), trial(1, ms=9.0), trial(2, ms=6.0)]
    assert closest(trials, [Limit("latency_ms", 5.0)]) is trials[2]
    assert closest(trials[:1], [Limit("latency_ms", 5.0)]) is None
    assert closest([], [Limit("latency_ms", 5.0)]) is None


def test_whole_number_and_positive_accept() -> None:
    assert whole_number("x", 3) == 3
    assert whole_number("x", 3.0) == 3
    assert isinstance(whole_number("x", 3.0), int)
    assert whole_number("x", 0, least=0) == 0
    assert positive("x", 1) == 1.0
    assert positive("x", 1e-9) == 1e-9


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "3", None, math.nan, math.inf, [1]])
def test_whole_number_refuses_and_names_the_setting(value: object) -> None:
    with pytest.raises(
        ValueError, match=r"^strategy\.size must be a whole number of at least 1, not "
    ) as error:
        whole_number("strategy.size", value)
    assert repr(value) in str(error.value)


@pytest.mark.parametrize("value", [0, -0.5, True, "1", None, math.nan, math.inf])
def test_positive_refuses_and_names_the_setting(value: object) -> None:
    with pytest.raises(ValueError, match=r"^evaluator\.lr must be a number above 0, not ") as error:
        positive("evaluator.lr", value)
    assert repr(value) in str(error.value)


CHOICES = ((0,), (1, 4), (0, 1, 2, 3, 4), (2, 3))


def test_restricted_space_sizes() -> None:
    space = Toy(4, 5, choices=CHOICES)
    assert space.alpha_shape == (4, 5)
    assert space.size == 20
    assert space.allowed.astype(int).tolist() == [
        [1, 0, 0, 0, 0],
        [0, 1, 0, 0, 1],
        [1, 1, 1, 1, 1],
        [0, 0, 1, 1, 0],
    ]


def test_sample_is_uniform_over_the_choices_and_seeded() -> None:
    space = Toy(4, 5, choices=CHOICES)
    genotypes = space.sample(np.random.default_rng(1), 4000)
    assert genotypes == space.sample(np.random.default_rng(1), 4000)
    assert all(space.check(g) == g for g in genotypes)
    assert all(type(op) is int for op in genotypes[0])
    for edge, ops in enumerate(CHOICES):
        counts = np.bincount([g[edge] for g in genotypes], minlength=5)
        assert set(np.flatnonzero(counts)) == set(ops)
        assert np.abs(counts[list(ops)] / 4000 - 1 / len(ops)).max() < 0.04  # five standard deviations
    assert space.sample(np.random.default_rng(1), 0) == []


def test_decode_takes_the_largest_allowed_alpha() -> None:
    space = Toy(4, 5, choices=CHOICES)
    alphas = np.zeros((2, 4, 5))
    alphas[0, :, 2] = 1.0  # allowed on the last two edges only
    alphas[1, :] = [-5.0, -4.0, -3.0, -2.0, -1.0]
    assert space.decode(alphas) == [(0, 1, 2, 2), (0, 4, 4, 3)]


@pytest.mark.parametrize("shape", [(4, 5), (1, 5, 4), (1, 4, 6), (2, 3, 5)])
def test_decode_refuses_another_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"alphas must have shape \(n, \(4, 5\)\)"):
        Toy(4, 5).decode(np.zeros(shape))


def test_onehot_decodes_back() -> None:
    space = Toy(4, 5, choices=CHOICES)
    genotypes = space.sample(np.random.default_rng(0), 50)
    alphas = space.onehot(genotypes)
    assert alphas.shape == (50, 4, 5)
    assert alphas.sum(axis=2).tolist() == [[1.0] * 4] * 50
    assert space.decode(alphas) == genotypes
    assert space.onehot([(0, 4, 2, 3)])[0].argmax(axis=1).tolist() == [0, 4, 2, 3]
    assert space.onehot([]).shape == (0, 4, 5)


def test_distances_of_nasbench201() -> None:
    first = (3, 3, 3, 3, 3, 3)
    others = [(3,) * c + (1,) * (6 - c) for c in range(7)]
    d = NasBench201().distances([first], others)
    assert d.shape == (1, 7)
    assert d[0] == pytest.approx([1, 0.9091, 0.8, 0.6667, 0.5, 0.2857, 0], abs=5e-5)
    assert NasBench201().distances(others, [first]).tolist() == d.T.tolist()


def test_check_returns_a_tuple_of_ints() -> None:
    space = Toy(4, 5, choices=CHOICES)
    checked = space.check(np.array([0, 4, 2, 3]))
    assert checked == (0, 4, 2, 3)
    assert all(type(op) is int for op in checked)


def test_check_refuses_length_and_operation() -> None:
    space = Toy(4, 5, choices=CHOICES)
    with pytest.raises(ValueError, match="a toy genotype has 4 entries, not 3"):
        space.check((0, 1, 2))
    with pytest.raises(ValueError, match=r"operation 2 on edge 1 of toy is not one of \(1, 4\)"):
        space.check((0, 2, 2, 2))
    with pytest.raises(ValueError, match="operation -1 on edge 0"):
        space.check((-1, 1, 2, 2))
