from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Ge, Len, MultipleOf

from hwnas.core import (
    BelowOne,
    Count,
    Fraction,
    Limit,
    NotNegative,
    Objective,
    Positive,
    SearchSpace,
    Seed,
    Trial,
    WholeNumber,
    best,
    check_setting,
    checked,
    closest,
    costs,
    front,
    non_dominated,
    settings_of,
    unique,
    violations,
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


def test_a_quality_that_is_not_known_counts_as_0() -> None:
    limits = (Limit("val_acc", 0.8, "max"), Limit("val_acc_50", 0.2, "max"))
    assert violations([Trial((0,), {"val_acc_50": 0.1}, 0)], limits).tolist() == [1.5]


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


class Base:
    @checked
    def __init__(self, space: object, size: Count) -> None:
        self.space, self.size = space, size


class Example(Base):
    @checked
    def __init__(
        self,
        space: SearchSpace,
        *,
        size: Annotated[int, Ge(4), MultipleOf(2)] = 3,  # type: ignore[assignment]  # defaults are ours
        lr: Positive = 0.1,
        momentum: BelowOne = 0.9,
        rate: Fraction | None = None,
        engine: Literal["fast", "slow"] = "fast",
        precision: Literal["32", 32, "bf16"] = 32,
        flip: bool = False,
        name: str | None = None,
        shape: tuple[int, ...] = (1,),
        widths: Annotated[Sequence[Count], Len(1)] = (1,),
        corners: Annotated[Sequence[Fraction], Len(2, 2)] | None = None,
        reference: Recipe | None = None,  # noqa: F821  # type: ignore[name-defined]  # as under TYPE_CHECKING
        seed: Seed = 0,
    ) -> None:
        super().__init__(space, 1)
        self.size, self.lr, self.shape = size, lr, shape


@checked
@dataclass(frozen=True)
class Plain:
    epochs: WholeNumber
    lr: NotNegative = 1

    def __post_init__(self) -> None:
        if self.lr > self.epochs:
            raise ValueError(f"lr must be at most epochs ({self.epochs}), not {self.lr}")


@checked
def made(space: SearchSpace, *, metric: Literal["only"]) -> Example:
    return Example(space)


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("size", 3, "an even whole number of at least 4"),
        ("size", 5, "an even whole number of at least 4"),
        ("size", 4.5, "an even whole number of at least 4"),
        ("size", True, "an even whole number of at least 4"),
        ("size", "4", "an even whole number of at least 4"),
        ("size", [4], "an even whole number of at least 4"),
        ("size", None, "an even whole number of at least 4"),
        ("seed", -1, "a whole number of at least 0"),
        ("seed", math.nan, "a whole number of at least 0"),
        ("seed", 2**63, f"a whole number of at most {2**63 - 1}"),
        ("lr", 0, "a number above 0"),
        ("lr", math.inf, "a number above 0"),
        ("lr", math.nan, "a number above 0"),
        ("lr", True, "a number above 0"),
        ("lr", "abc", "a number above 0"),
        ("momentum", 1, "a number of at least 0 and below 1"),
        ("rate", 1.5, "a number in 0..1 or null"),
        ("engine", "quick", "one of fast, slow"),
        ("engine", ["fast"], "one of fast, slow"),
        ("precision", 8, "one of 32, bf16"),
        ("flip", 1, "true or false"),
        ("flip", "true", "true or false"),
        ("name", 3, "text or null"),
        ("shape", [1, 2.5], "a list, each a whole number"),
        ("shape", 3, "a list, each a whole number"),
        ("widths", [], "a list of at least 1, each a whole number of at least 1"),
        ("widths", [2, 0], "a list of at least 1, each a whole number of at least 1"),
        ("widths", "12", "a list of at least 1, each a whole number of at least 1"),
        ("corners", [0.5], "a list of 2, each a number in 0..1 or null"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused_in_one_line(setting: str, value: Any, rule: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(f'{setting} must be {rule}, not {value!r}')}$"):
        Example(Toy(), **{setting: value})


def test_settings_that_fit_arrive_as_given() -> None:
    example = Example(Toy(), size=6.0, lr=1, shape=[2, 3], reference=object())  # type: ignore[arg-type]
    assert (example.size, example.lr, example.shape) == (6, 1, (2, 3))
    assert [type(value) for value in (example.size, example.lr, example.shape)] == [int, int, tuple]
    assert Example(Toy()).size == 3
    assert Example(Toy(), lr=np.float64(0.5)).lr == 0.5


def test_whole_numbers_of_numpy_are_kept_as_ints() -> None:
    size = settings_of(Example(Toy(), size=np.int64(4)))["size"]
    assert (size, type(size)) == (4, int)
    with pytest.raises(ValueError, match=r"^size must be an even whole number of .*, not np.int64\(5\)$"):
        Example(Toy(), size=np.int64(5))


def test_settings_of_a_constructor_are_those_it_was_given() -> None:
    space = Toy()
    assert settings_of(Example(space, size=6.0, lr=1)) == {"space": space, "size": 6, "lr": 1}
    assert settings_of(Plain(3)) == {"epochs": 3}
    assert settings_of(object()) == {}


def test_checked_dataclasses() -> None:
    assert Plain(2.0) == Plain(2, lr=1)  # type: ignore[arg-type]
    assert asdict(Plain(2)) == {"epochs": 2, "lr": 1}
    with pytest.raises(ValueError, match=r"^epochs must be a whole number of at least 0, not 'x'$"):
        Plain("x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^lr must be at most epochs \(2\), not 3$"):
        replace(Plain(2), lr=3)


def test_checked_functions() -> None:
    assert isinstance(made(Toy(), metric="only"), Example)
    with pytest.raises(ValueError, match=r"^metric must be only, not 'other'$"):
        made(Toy(), metric="other")  # type: ignore[arg-type]


def test_unknown_and_missing_arguments_are_said_in_pythons_words() -> None:
    with pytest.raises(TypeError, match=r"__init__\(\) got an unexpected keyword argument 'sise'"):
        Example(Toy(), sise=4)  # type: ignore[call-arg]
    with pytest.raises(TypeError, match=r"__init__\(\) missing 1 required positional argument: 'space'"):
        Example()  # type: ignore[call-arg]


def test_values_outside_constructors_are_checked_by_the_same_rule() -> None:
    assert check_setting("generations", Count, 3.0) == 3
    with pytest.raises(ValueError, match=r"^host\.rounds must be a whole number of at least 1, not None$"):
        check_setting("host.rounds", Count, None)


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
