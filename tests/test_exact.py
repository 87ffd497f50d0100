from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from hwnas.core import Genotype, Limit, Objective, Trial
from hwnas.devices.flops import Flops
from hwnas.searches.blind import known_networks
from hwnas.searches.exact import (
    Optimum,
    check_possible,
    cost_deciles,
    exact_effects,
    exact_optimum,
    separable_sums,
    yardsticks,
)
from hwnas.spaces.darts import Darts
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.toy import Toy, ToyCost

OBJECTIVES = (Objective("val_acc", "max"), Objective("latency_ms", "min"))


def trial(val_acc: float, latency_ms: float, name: int = 0) -> Trial:
    return Trial((name,), {"val_acc": val_acc, "latency_ms": latency_ms}, 0)


def test_progress_by_hand() -> None:
    """The true front is (0.5, 1), (0.8, 2), (0.9, 5); scaled as costs (1, 0), (1/4, 1/4), (0, 1)."""
    optimum = Optimum([trial(0.5, 1, 0), trial(0.8, 2, 1), trial(0.9, 5, 2)], None, None, OBJECTIVES, [])
    ratios, distances = optimum.progress(
        [[trial(0.4, 6, 3)], [trial(0.7, 3, 4)], [trial(0.8, 2, 1)], [trial(0.5, 1, 0), trial(0.9, 5, 2)]]
    )
    # (0.7, 3) is (1/2, 1/2): it dominates a quarter of the box, the middle of the front 9/16 of it.
    assert ratios == pytest.approx([0.0, (1 / 4) / (9 / 16), 1.0, 1.0])
    assert distances[0] > distances[1] > distances[2] > distances[3] == pytest.approx(0.0)
    # From (1/2, 1/2): 1/2 to (1, 0), sqrt(2)/4 to the middle, 1/2 to (0, 1).
    assert distances[1] == pytest.approx((0.5 + 2**0.5 / 4 + 0.5) / 3)


def test_unsupported_networks_are_no_progress() -> None:
    optimum = Optimum([trial(0.5, 1, 0), trial(0.9, 5, 2)], None, None, OBJECTIVES, [])
    assert optimum.progress([[trial(0.95, float("inf"))]]) == ([0.0], [float("inf")])


def test_exact_on_a_small_toy() -> None:
    space = Toy(4, 3)
    evaluators = [ToyCost(space, metric=objective.metric) for objective in OBJECTIVES]
    limit = Limit("latency_ms", 1.8, "min")
    optimum = exact_optimum(space, evaluators, OBJECTIVES, [limit])
    assert optimum is not None
    quality, latency = (
        np.array([row[o.metric] for row in evaluator.evaluate(space.all())])
        for evaluator, o in zip(evaluators, OBJECTIVES, strict=True)
    )
    feasible = latency <= 1.8
    assert optimum.best is not None
    assert optimum.best.metrics["val_acc"] == quality[feasible].max()
    assert optimum.best_test_acc is None
    dominated = [
        ((quality >= q) & (latency <= c) & ((quality > q) | (latency < c))).any()
        for q, c in zip(quality, latency, strict=True)
    ]
    assert {t.genotype for t in optimum.front} == {
        genotype for genotype, beaten in zip(space.all(), dominated, strict=True) if not beaten
    }
    ratios, distances = optimum.progress([optimum.front])
    assert (ratios, distances) == ([1.0], [0.0])


@pytest.mark.parametrize(
    ("space", "limits", "message"),
    [
        # Of the nine networks bc is the cheapest, 1 ms, and has the lowest accuracy; ab has 1, and 1.8815 ms.
        (
            Toy(2, 3),
            {"latency_ms": 0.99},
            r"keeps limits.latency_ms=0.99: the lowest latency_ms is 1 \(bc\);",
        ),
        (
            Toy(2, 3),
            {"val_acc": 1.1},
            r"=1.1: the highest val_acc is 1 \(ab\); try limits.val_acc=1, or more$",
        ),
        (
            Toy(2, 3),
            {"latency_ms": 1.88, "val_acc": 0.99},
            r"limits latency_ms=1.88 and val_acc=0.99 together; the closest is ab with latency_ms 1.882",
        ),
        (Toy(), {"latency_ms": 0.99}, "the lowest latency_ms is 1 "),  # a sum over the edges of 5^16 networks
        (
            Toy(2, 3, choices=[[0], [0, 1]]),
            {"latency_ms": 1.6},
            r"is 1.618 \(aa\); try limits.latency_ms=1.62,",
        ),
    ],
)
def test_impossible_limits(space: Toy, limits: dict[str, float], message: str) -> None:
    evaluators = [ToyCost(space, metric=objective.metric) for objective in OBJECTIVES]
    goals = {o.metric: o.goal for o in OBJECTIVES}
    asked = [Limit(name, bound, goals[name]) for name, bound in limits.items()]
    with pytest.raises(ValueError, match=message):
        check_possible(space, evaluators, asked, ", or more")
    evaluators[0].exhaustive = evaluators[1].exhaustive = False  # then nobody knows before
    check_possible(space, evaluators, asked, "")


def test_possible_limits() -> None:
    space = Toy(2, 3)
    evaluators = [ToyCost(space, metric=objective.metric) for objective in OBJECTIVES]
    check_possible(space, evaluators, [Limit("latency_ms", 1.0), Limit("val_acc", 0.0, "max")], "")
    check_possible(space, evaluators, [], "")


def test_nothing_is_exact_where_it_cannot_be_known() -> None:
    space = Toy()
    evaluators = [ToyCost(space, metric=objective.metric) for objective in OBJECTIVES]
    assert exact_optimum(space, evaluators, OBJECTIVES, []) is None
    small = Toy(3, 3)
    evaluators = [ToyCost(small, metric=objective.metric) for objective in OBJECTIVES]
    evaluators[0].exhaustive = False
    assert exact_optimum(small, evaluators, OBJECTIVES, []) is None


class Reporter(ToyCost):
    """Quality of the toy that also reports twice its value, and nothing of the first architecture."""

    def report(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        rows = self.evaluate(genotypes)
        return [
            {"test_acc": 2 * row["val_acc"]} if any(g) else {} for g, row in zip(genotypes, rows, strict=True)
        ]


def test_best_that_only_reports_know() -> None:
    space = Toy(4, 3)
    reporter, cost = Reporter(space, metric="val_acc"), ToyCost(space, metric="latency_ms")
    latency = np.array([row["latency_ms"] for row in cost.evaluate(space.all())])
    quality = np.array([row["val_acc"] for row in reporter.evaluate(space.all())])
    limit = Limit("latency_ms", 1.8, "min")
    kept = (latency <= 1.8) & (np.arange(81) > 0)
    assert 0 < kept.sum() < 80
    known = known_networks(space, [reporter, cost])
    assert known is not None
    assert known.highest([limit]) == {"test_acc": 2 * quality[kept].max()}
    assert known.highest([])["test_acc"] == 2 * quality[1:].max()
    assert known.highest([Limit("latency_ms", 1e-9)]) == {}
    assert (
        known.highest([Limit("latency_ms", latency.max(), "max")])["test_acc"]
        == 2 * quality[latency.argmax()]
    )
    assert known.highest([Limit("val_acc", 0.5, "max")]) == {}
    assert known.largest([]) == {}
    assert known_networks(space, [cost, reporter]) is None
    flops = ToyCost(space, metric="latency_ms")
    flops.name, flops.metrics = "flops", {"flops": "min"}
    flops.evaluate = lambda genotypes: [{"flops": float(sum(g))} for g in genotypes]  # type: ignore[method-assign]
    (largest,) = (row for row in reporter.report([(2,) * 4]))
    known = known_networks(space, [reporter, flops])
    assert known is not None
    assert known.largest([]) == largest
    # Within two multiply-adds, the ten networks with two have the most.
    two = [2 * q for q, g in zip(quality, space.all(), strict=True) if sum(g) == 2]
    assert len(two) == 10
    assert known.largest([Limit("flops", 2.0)]) == pytest.approx({"test_acc": np.mean(two)})
    cost.exhaustive = False
    assert known_networks(space, [reporter, cost]) is None
    assert known_networks(Toy(), [Reporter(Toy(), metric="val_acc")]) is None


def test_yardsticks_of_a_large_space() -> None:
    """The best is at least as good as any of many random networks; the cheapest costs 1 by construction."""
    space = Toy()
    evaluators = [ToyCost(space, metric=objective.metric) for objective in OBJECTIVES]
    quality, latency = evaluators
    found = yardsticks(space, evaluators, OBJECTIVES, [Limit("latency_ms", 4.0)])
    assert list(found) == ["cheapest", "best"]
    assert latency.evaluate([found["cheapest"]])[0]["latency_ms"] == 1.0
    assert latency.evaluate([found["best"]])[0]["latency_ms"] <= 4.0
    best_value = quality.evaluate([found["best"]])[0]["val_acc"]
    sampled = space.sample(np.random.default_rng(0), 50_000)
    kept = np.array([row["latency_ms"] for row in latency.evaluate(sampled)]) <= 4.0
    assert kept.any()
    assert np.array([row["val_acc"] for row in quality.evaluate(sampled)])[kept].max() <= best_value
    assert list(yardsticks(space, evaluators, OBJECTIVES, [])) == ["cheapest"]
    assert list(yardsticks(space, evaluators, OBJECTIVES, [Limit("latency_ms", 0.5)])) == ["cheapest"]
    assert yardsticks(space, evaluators, OBJECTIVES, [Limit("val_acc", 0.5, "max")]) == {}
    assert yardsticks(Toy(4, 3), evaluators, OBJECTIVES, []) == {}


def test_the_largest_network_within_a_limit() -> None:
    space = FBNet()
    evaluators = [ToyCost(space, metric="latency_ms"), Flops(space)]
    found = yardsticks(space, evaluators, (Objective("rmi", "max"), OBJECTIVES[1]), [Limit("latency_ms", 9)])
    assert list(found) == ["cheapest", "largest"]
    sampled = space.sample(np.random.default_rng(0), 20_000)
    kept = np.array([row["latency_ms"] for row in evaluators[0].evaluate(sampled)]) <= 9
    assert kept.any()
    most = space.static_metrics([found["largest"]])["flops"][0]
    assert space.static_metrics(sampled)["flops"][kept].max() <= most


class Product(ToyCost):
    """A quality that is no sum: 1 where both operations are the last one, else 0."""

    def separable(self, metric: str) -> None:
        return None

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        return [{"val_acc": float(genotype == (1, 1))} for genotype in genotypes]


def test_exact_effects_of_what_is_no_sum() -> None:
    """Of four networks one has 1: an operation b makes it 1/2 instead of 0 on average, a sum explains 2/3."""
    space = Toy(2, 2)
    cost = ToyCost(space, metric="latency_ms")
    effects = exact_effects(space, [Product(space, metric="val_acc"), cost], OBJECTIVES)
    assert list(effects) == ["val_acc", "latency_ms"]
    assert effects["val_acc"].mean == 0.25
    assert effects["val_acc"].added.tolist() == [[-0.25, 0.25], [-0.25, 0.25]]
    assert effects["val_acc"].r2 == pytest.approx(2 / 3)
    assert effects["latency_ms"].r2 == 1.0
    assert list(separable_sums([Product(space, metric="val_acc"), cost])) == ["latency_ms"]


def test_effects_that_nobody_knows() -> None:
    space = Toy(20, 2)  # a million networks
    assert exact_effects(space, [Product(space, metric="val_acc")], OBJECTIVES) == {}


def test_decisions_that_depend_on_each_other_have_no_effects_of_a_sum() -> None:
    """A node of a DARTS cell has two inputs: an edge is none more often than a product of choices says."""
    assert exact_effects(Darts(), [ToyCost(Darts(), metric="val_acc")], OBJECTIVES) == {}


def test_deciles_of_costs() -> None:
    """Costs 1 + 0 and 1 + d: the median is in the middle, a tenth a tenth of the way."""
    space = Toy(1, 2)
    cost = ToyCost(space, metric="latency_ms")
    low, high = 1.0, 1.0 + float(cost.table.max())
    deciles = cost_deciles(space, [ToyCost(space, metric="val_acc"), cost])
    assert list(deciles) == ["latency_ms"]
    assert deciles["latency_ms"] == pytest.approx([low + i / 10 * (high - low) for i in range(11)])
