"""Blind regret, worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hwnas.core import Objective, Trial
from hwnas.searches.blind import Known, best_within, blind, blind_regret, taus

TRUTH = np.array([90.0, 80.0, 70.0, 60.0, 99.0])
COST = np.array([4.0, 3.0, 2.0, 1.0, math.inf])
LIMITS = np.array([0.5, 1.0, 2.0, 3.0, 10.0])
OBJECTIVES = (Objective("rmi", "max"), Objective("latency_ms", "min"))


def test_the_best_network_within_each_limit() -> None:
    np.testing.assert_array_equal(best_within(TRUTH, COST, LIMITS, 10.0), [10, 60, 70, 80, 90])


def test_the_network_of_the_highest_estimate_is_compared_with_the_best() -> None:
    best = best_within(TRUTH, COST, LIMITS, 10.0)

    def regret(*estimate: float, **how: object) -> list[float]:
        return blind_regret(TRUTH, COST, np.array(estimate), LIMITS, best, guess=10.0, **how).tolist()  # type: ignore[arg-type]

    assert regret(4, 3, 2, 1, 9) == [0, 0, 0, 0, 0]
    assert regret(1, 2, 3, 4, 9) == [0, 0, 10, 20, 30]  # the one of 1 ms, wherever it is within the limit
    assert regret(1, 3, 3, 0, 9) == [0, 0, 0, 5, 15]  # two are tied: 80 and 70
    assert regret(1, 3, 3, 0, 9, ties="cheapest") == [0, 0, 0, 10, 20]
    some = blind_regret(TRUTH[:1], COST[:1], np.ones(1), LIMITS, best, guess=10.0)
    assert some.tolist() == [0, 50, 60, 70, 0]  # below 4 ms it only guesses


def test_tau_looks_at_the_top() -> None:
    truth = np.arange(100.0)
    assert taus(truth, truth) == pytest.approx({"all": 1, "better_half": 1, "top_tenth": 1})
    turned = np.where(truth >= 90, -truth, truth)  # the ten best are the worst, in the opposite order
    found = taus(turned, truth)
    assert found["top_tenth"] == pytest.approx(-1)
    # Of 4,950 pairs, 45 + 10 * 90 are in the wrong order; of 1,225, 45 + 10 * 40.
    assert found["all"] == pytest.approx(1 - 2 * 945 / 4950)
    assert found["better_half"] == pytest.approx(1 - 2 * 445 / 1225)
    few = taus(truth[:20], truth[:20])
    assert (few["better_half"], few["top_tenth"]) == (pytest.approx(1), None)
    assert taus(np.ones(20), truth[:20])["all"] is None
    assert taus(np.ones(0), np.ones(0)) == {"all": None, "better_half": None, "top_tenth": None}


def known(early: np.ndarray | None = None, expected: np.ndarray | None = None) -> Known:
    """Networks 1 to 10 cost as many ms and have ten times as many percent; 11 is not supported, 0 unknown."""
    number = np.arange(12.0)
    truth, cost = number / 10, number.copy()
    truth[[0, 11]], cost[[0, 11]] = (math.nan, 1.0), (5.5, math.inf)
    return Known(
        [(int(n),) for n in number],
        {"latency_ms": cost, "params": number, "flops": np.full(12, 7.0)},
        {"table_val_acc": truth},
        early,
        expected,
    )


def trials(**estimates: float) -> list[Trial]:
    return [
        Trial((int(name[1:]),), {"rmi": value, "latency_ms": float(name[1:])}, 0)
        for name, value in estimates.items()
    ]


def test_a_run_beside_simpler_choices() -> None:
    """5.5 ms, of the network that the table does not know, is a cost of the space, and its median."""
    early = -np.arange(12.0)
    early[1] = math.nan
    found = blind(
        known(early, np.arange(12.0) % 6), trials(_3=1, _5=2, _8=0.5, _0=9, _11=9), OBJECTIVES, chance=0.1
    )
    assert found is not None
    assert (found.cost, found.networks, found.seconds_per_new) == ("latency_ms", 3, None)
    assert found.limits == pytest.approx((2, 3, 4, 5, 5.5, 6, 7, 8, 9))
    # The best have 20, 30, 40, 50, 50, 60, 70, 80, 90 %; the run guesses (10 %), then takes 3, then 5.
    assert found.regret["estimate"] == pytest.approx((10, 0, 10, 0, 0, 10, 20, 30, 40))
    assert found.mean == pytest.approx(120 / 9)
    assert found.regret["early"] == pytest.approx((0, 10, 20, 30, 30, 40, 50, 60, 70))  # 2, as 1 is unknown
    assert found.regret["expected"] == pytest.approx((0, 0, 0, 0, 0, 10, 20, 30, 40))  # 5, however dear
    assert found.regret["params"] == pytest.approx((0,) * 9)
    # The mean of 1 to k is (k + 1) / 2; with the same multiply-adds, the most are any.
    assert found.regret["random"] == pytest.approx((5, 10, 15, 20, 20, 25, 30, 35, 40))
    assert found.regret["flops"] == found.regret["random"]
    assert found.tau == {"all": None, "better_half": None, "top_tenth": None}


def test_what_is_unknown_is_left_out() -> None:
    some, without = known(), trials(_3=1)
    found = blind(some, without, OBJECTIVES, chance=0.1)
    assert found is not None
    assert list(found.regret) == ["estimate", "params", "flops", "random"]
    assert blind(some, [], OBJECTIVES, chance=0.1) is not None
    assert blind(some, without, OBJECTIVES[:1], chance=0.1) is None
    assert blind(Known(some.genotypes, some.costs, {}), without, OBJECTIVES, chance=0.1) is None
    unsupported = {"latency_ms": np.full(12, math.inf)}
    assert blind(Known(some.genotypes, unsupported, some.reports), without, OBJECTIVES, chance=0.1) is None


def test_an_estimate_may_be_better_when_it_is_lower_and_the_latest_counts() -> None:
    """Network 5 is asked for twice: a supernet's later answer replaces the earlier one; ties go to 3 ms."""
    asked = trials(_5=1, _3=2) + trials(_5=2)
    found = blind(known(), asked, (Objective("rmi", "min"), OBJECTIVES[1]), chance=0.1)
    assert found is not None
    assert found.regret["estimate"] == pytest.approx((10, 0, 10, 20, 20, 30, 40, 50, 60))
