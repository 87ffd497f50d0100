from __future__ import annotations

import numpy as np
import pytest

from hwnas.strategies.predictor import MODELS, Gap, best_model

FIRST = next(iter(MODELS))


def made_up(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Numbers (n, 4), of which the first is the prior, and a quality that is a sum of two of them."""
    X = np.random.default_rng(seed).normal(size=(n, 4))
    return X, 0.6 * X[:, 0] + 2.0 * X[:, 2]


def test_a_gap_is_a_rising_scale_that_comes_back() -> None:
    y = np.array([0.1, 0.9, 0.91, 0.92, 0.93])
    scale = Gap(y)
    on = scale.to(y)
    assert (np.diff(on) > 0).all()
    assert (on[4] - on[3]) / 0.01 > 3 * (on[1] - on[0]) / 0.8, "a point counts more at the top"
    mean, deviation = scale.back(on, np.full(5, 1e-4))
    assert mean == pytest.approx(y)
    assert deviation == pytest.approx((y.max() - y + 0.3 * (0.93 - 0.1) / 10) * 1e-4)


def test_equal_qualities_are_one_point_of_the_scale() -> None:
    scale = Gap(np.full(6, 0.5))
    mean, deviation = scale.back(scale.to(np.full(6, 0.5)), np.zeros(6))
    assert mean == pytest.approx(np.full(6, 0.5))
    assert not deviation.any()


def test_a_model_must_be_clearly_better_to_replace_the_first() -> None:
    X, y = made_up(80)
    assert best_model(X[:15], y[:15], 0) == FIRST, "too few are not compared"
    assert best_model(X, y, 0) in ("ridge", "Gaussian process"), "a plane is found at once by these"
    noise = np.random.default_rng(1).normal(size=80)
    assert best_model(np.column_stack([noise, X]), X[:, 1] * 0 + noise[::-1], 0) in (FIRST, "prior")


@pytest.mark.parametrize("name", MODELS)
def test_models_follow_the_qualities_and_know_what_they_know(name: str) -> None:
    X, y = made_up(60)
    new, true = made_up(200, seed=1)
    mean, deviation = MODELS[name](X, y, 0)(new)
    least = 0.2 if name == "prior" else 0.85
    assert np.corrcoef(mean, true)[0, 1] > least
    assert deviation.shape == (200,)
    assert (deviation >= 0).all()
    if name != "prior":
        assert MODELS[name](X, y, 0)(10 * new)[1].mean() > deviation.mean(), "it knows less of what is far"
