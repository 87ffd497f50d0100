from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from hwnas.core import FloatArray, SearchSpace
from hwnas.devices import fitting
from hwnas.devices.profile import Profile
from hwnas.spaces.darts import Darts
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy


def fit(
    space: SearchSpace, genotypes: np.ndarray, columns: Mapping[str, FloatArray], seed: int = 0
) -> Profile:
    return fitting.fit(space, genotypes, columns, device="x", seed=seed, network={}, origin={"table": "t"})


def additive_table(space: Toy, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Costs of `num` networks: a sum over edges, and one pair of edges that does not add up."""
    rng = np.random.default_rng(5)
    genotypes = np.array(sorted(set(space.sample(rng, num))))
    edges = rng.random(space.alpha_shape)
    cost = 2.0 + edges[np.arange(genotypes.shape[1]), genotypes].sum(axis=1)
    cost += 3.0 * ((genotypes[:, 0] == 1) & (genotypes[:, 2] == 0))
    return genotypes, cost


def test_fit_finds_what_adds_up_and_the_pair_that_does_not() -> None:
    space = Toy(5, 3)
    genotypes, cost = additive_table(space, 400)
    unsupported = cost.copy()
    unsupported[7] = np.inf
    profile = fit(space, genotypes, {"latency_ms": unsupported})
    check = profile.check["latency_ms"]
    assert check["networks"] == profile.origin["fitted_to"] == len(genotypes) - 1  # all are used for both
    assert check["r2"] > 0.9999
    assert check["spearman"] > 0.999
    assert profile.costs["latency_ms"](genotypes) == pytest.approx(cost, abs=0.02)


def test_ten_networks_are_enough_to_count_operations() -> None:
    space = NasBench201()
    genotypes = np.array(space.sample(np.random.default_rng(1), 1010))
    cost = 1.0 + 2.0 * (genotypes == 3).sum(axis=1) + 0.5 * (genotypes == 2).sum(axis=1)
    profile = fit(space, genotypes[:10], {"latency_ms": cost[:10]})
    assert profile.predict(space, "latency_ms", genotypes[10:]) == pytest.approx(cost[10:], rel=0.01)
    assert profile.costs["latency_ms"].pairs == {}
    with pytest.raises(
        ValueError, match="9 supported networks are too few to fit a profile to; 10 are needed"
    ):
        fit(space, genotypes[:9], {"latency_ms": cost[:9]})
    with pytest.raises(ValueError, match="all networks have the same latency_ms; there is nothing to fit"):
        fit(space, genotypes[:50], {"latency_ms": np.ones(50)})


def test_live_operations_only_where_the_device_leaves_out_dead_ones() -> None:
    space = NasBench201()
    genotypes = np.array(space.sample(np.random.default_rng(2), 400))
    connected = space.is_connected(genotypes)
    whole = 1.0 + 2.0 * (genotypes == 3).sum(axis=1)
    live = np.where(connected, 1.0 + 2.0 * (space.live(genotypes) == 3).sum(axis=1), 0.25)
    kept, left_out = (fit(space, genotypes[:100], {"latency_ms": cost[:100]}) for cost in (whole, live))
    assert (kept.live, left_out.live) == (False, True)
    assert kept.predict(space, "latency_ms", genotypes) == pytest.approx(whole, rel=0.01)
    assert left_out.predict(space, "latency_ms", genotypes) == pytest.approx(live, rel=0.01)


def test_a_whole_table_tells_what_is_not_supported() -> None:
    space = Toy(4, 3)
    genotypes = np.array(space.all())
    y = 1.0 + genotypes.sum(axis=1)
    refused = (genotypes[:, 0] == 2) & (genotypes[:, 3] != 0) | (genotypes == 1).all(axis=1)
    profile = fit(space, genotypes, {"latency_ms": np.where(refused, np.inf, y)})
    assert len(profile.unsupported) == 2
    assert [[2], [0, 1, 2], [0, 1, 2], [1, 2]] in profile.unsupported
    assert [[1, 2], [1], [1], [1]] in profile.unsupported
    assert np.array_equal(np.isinf(profile.predict(space, "latency_ms", genotypes)), refused)
    some = fit(space, genotypes[:-1], {"latency_ms": np.where(refused, np.inf, y)[:-1]})
    assert some.unsupported == []


def test_the_kernel_is_ridge_regression_with_all_features_written_out() -> None:
    space = Toy(4, 3)
    genotypes, y = additive_table(space, 60)
    choice = fitting._Choice((1.0, 0.5, 0.25), 0.3, live=False)
    onehot = np.eye(3)[genotypes]
    pairs = [
        (onehot[:, a, :, None] * onehot[:, b, None, :]).reshape(len(y), -1)
        for a, b in itertools.combinations(range(4), 2)
    ]
    features = np.concatenate(
        [
            math.sqrt(10.0) * np.ones((len(y), 1)),
            math.sqrt(1.0 * 3 / 16) * onehot.sum(axis=1),
            math.sqrt(0.5 / 4) * onehot.reshape(len(y), -1),
            math.sqrt(0.25 * 2 / 12) * np.concatenate(pairs, axis=1),
        ],
        axis=1,
    )
    z = (y - y.mean()) / y.std()
    weights = np.linalg.solve(features.T @ features + 0.3 * np.eye(features.shape[1]), features.T @ z)
    expected = y.mean() + y.std() * features @ weights
    cost = fitting._solved(space, genotypes, y, choice)
    assert cost(genotypes) == pytest.approx(np.maximum(expected, y.min()), abs=1e-4)  # six digits are kept


@pytest.mark.parametrize("space", [FBNet(), Darts()], ids=["fbnet", "darts"])
def test_large_spaces_take_seconds(space: Any) -> None:
    """231 and 378 pairs of edges: 18,711 and 24,192 features, which are never written out per network."""
    genotypes = np.array(space.sample(np.random.default_rng(0), 700))
    rng = np.random.default_rng(1)
    by_op, by_edge = rng.random(len(space.ops)), 0.2 * rng.random(space.alpha_shape)
    cost = 1.0 + (by_op[genotypes] + by_edge[np.arange(genotypes.shape[1]), genotypes]).sum(axis=1)
    profile = fit(space, genotypes[:200], {"latency_ms": cost[:200]})
    predicted = profile.predict(space, "latency_ms", genotypes[200:])
    assert np.corrcoef(predicted, cost[200:])[0, 1] > 0.95


def test_more_networks_than_a_fit_sees_are_its_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitting, "MOST_FITTED", 100)
    space = Toy(5, 3)
    genotypes, cost = additive_table(space, 400)
    profile = fit(space, genotypes, {"latency_ms": cost})
    assert profile.origin["fitted_to"] == 100
    assert profile.check["latency_ms"]["networks"] == len(genotypes) - 100
    assert profile.networks is not None
    rows = [genotypes.tolist().index(list(space.from_str(arch))) for arch in profile.networks.archs]
    assert profile.networks.measured["latency_ms"] == cost[rows].tolist()
    assert profile.networks.predicted["latency_ms"] == profile.costs["latency_ms"](genotypes[rows]).tolist()
