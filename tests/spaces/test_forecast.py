"""What `search_space=resnet` forecasts of trainings."""

from __future__ import annotations

import math

import numpy as np
import pytest

from hwnas.spaces.blocks import count
from hwnas.spaces.capabilities import HasForecast
from hwnas.spaces.known import ResNetSpace, forecast
from hwnas.spaces.presets import architecture


@pytest.fixture(scope="module")
def space() -> ResNetSpace:
    return ResNetSpace(image_shape=(3, 32, 32), num_classes=10)


def test_steps_on_images_that_were_seen_count_less() -> None:
    """One pass over 10 batches counts almost whole; `PASSES` passes half; the most is `PASSES` passes."""
    found = forecast.worth(np.array([10.0, 10 * forecast.PASSES, 1e12]), 10)
    assert found == pytest.approx([10 / (1 + 1 / forecast.PASSES), 5 * forecast.PASSES, 10 * forecast.PASSES])


def test_terms_of_a_network(space: ResNetSpace) -> None:
    """ResNet-10: a stem of stride 1, two convolutions in each of four blocks, one beside three of these."""
    (found,) = space.terms([architecture(space, "resnet10_w8")], np.array([100.0]), per_pass=1e9)
    params, flops = count(space.network(architecture(space, "resnet10_w8")), (3, 32, 32))
    doublings = [math.log2(100), math.log2(flops), math.log2(params)]
    both = math.log2(100 / forecast.STEPS) * math.log2(flops / forecast.FLOPS)
    assert found == pytest.approx([*doublings, 0.0, 0.0, 3.0, 12, 1.0, both, 0.0])


def test_a_line_through_points_of_two_sets_of_images() -> None:
    """The second set is easier by 5 everywhere; ten thousand exact points leave no doubt."""
    rng = np.random.default_rng(0)
    X, truth = rng.normal(3.0, 2.0, (10_000, 10)), np.arange(10.0)
    group = rng.integers(2, size=10_000).astype(float)
    found = forecast.fitted(X, X @ truth + 5 * group, group)
    assert found.coefficients == pytest.approx(truth, abs=1e-3)
    ends = np.array([found.center, found.center + 1.0])
    assert np.diff(found.at(ends)) == pytest.approx(truth.sum(), abs=0.01)
    vague = found._replace(covariance=4 * np.eye(10))
    assert vague.at(ends)[1] == pytest.approx(truth.sum() - 2 * 10**0.5, abs=0.01)


def test_more_steps_bring_more(space: ResNetSpace) -> None:
    """Of any network, and less the more there were; other spaces forecast nothing."""
    assert isinstance(space, HasForecast)
    for genotype in space.sample(np.random.default_rng(0), 20):
        found = space.forecast([genotype] * 3, np.array([500.0, 1000.0, 1500.0]), per_pass=20)
        assert 0 < found[2] - found[1] < found[1] - found[0]


def test_a_small_network_for_few_minutes(space: ResNetSpace) -> None:
    """One of sixteen times the multiply-adds gets a tenth of the steps in the same time."""
    small, large = (architecture(space, name) for name in ("resnet10_w8", "resnet18_w32"))
    few = space.forecast([small, large], np.array([2000.0, 200.0]), per_pass=156)
    many = space.forecast([small, large], np.array([2e6, 2e5]), per_pass=156)
    assert few[0] > few[1]
    assert many[0] < many[1]
