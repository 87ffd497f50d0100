"""The process in closed form against the formulas of the book, written down plainly."""

from __future__ import annotations

import numpy as np
import pytest

from hwnas.strategies.gaussian_process import GaussianProcess, features_and_operations

NOISE, WEIGHT = 0.03, 0.3


def made_up(n: int, seed: int) -> np.ndarray:
    """Numbers (n, 3 + 8): three features, and four edges of two operations."""
    rng = np.random.default_rng(seed)
    onehot = np.eye(2)[rng.integers(2, size=(n, 4))].reshape(n, -1)
    return np.hstack(features_and_operations(rng.normal(size=(n, 3)), onehot))


def covariance(A: np.ndarray, B: np.ndarray) -> np.ndarray:
    """That of scales which were never fitted, pair by pair."""
    found = np.empty((len(A), len(B)))
    for i, a in enumerate(A):
        for j, b in enumerate(B):
            distance = ((a[:3] - b[:3]) ** 2).sum()
            differing = ((a[3:] > 0) != (b[3:] > 0)).sum() / 2 / 4
            mixed = (np.exp(-distance / 2) + WEIGHT * np.exp(-differing / 0.5)) / (1 + WEIGHT)
            found[i, j] = mixed + 3 * a[:3] @ b[:3]
    return found


def plainly(X: np.ndarray, y: np.ndarray, watched: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Means, variances without noise, and v, by inverse matrices."""
    inverse = np.linalg.inv(covariance(X, X) + NOISE * np.eye(len(X)))
    ones = np.ones(len(X))
    constant = ones @ inverse @ y / (ones @ inverse @ ones)
    v = ((y - constant) @ inverse @ (y - constant) + y.var()) / (len(y) + 1)
    K = covariance(X, watched)
    mean = constant + K.T @ inverse @ (y - constant)
    return mean, v * (np.diag(covariance(watched, watched)) - np.diag(K.T @ inverse @ K)), v


def test_it_predicts_as_the_formulas_say_in_whatever_order_it_learns() -> None:
    X, watched, y = made_up(12, 0), made_up(9, 1), np.random.default_rng(2).normal(size=12)
    process = GaussianProcess(3)
    process.know(X[:5])
    process.watch(watched[:4])
    process.add(X[5:8])
    process.watch(watched[4:])
    process.add(X[8:])
    assert len(process) == 12
    mean, variance, noise = process.predict(y)
    expected, spread, v = plainly(X, y, watched)
    assert mean == pytest.approx(expected)
    assert variance == pytest.approx(spread)
    assert noise == pytest.approx(NOISE * v)
    process.keep(np.array([7, 2]))
    assert process.predict(y)[0] == pytest.approx(expected[[7, 2]])


def test_lessons_are_what_variances_lose() -> None:
    X, watched, y = made_up(6, 0), made_up(5, 1), np.random.default_rng(2).normal(size=6)
    process = GaussianProcess(3)
    process.know(X)
    process.watch(watched)
    _, before, noise = process.predict(y)
    process.compare(np.arange(5))
    first = process.lessons(3, np.empty((0, 5)))
    second = process.lessons(1, first[None])
    process.add(watched[[3, 1]])
    _, after, later = process.predict(np.append(y, [0.0, 0.0]))
    assert (before - first**2 - second**2) / noise == pytest.approx(after / later)


def test_scales_follow_the_data() -> None:
    """A quality without noise that the features explain is learnt; pure noise is told as such."""
    X, new = made_up(60, 0), made_up(20, 1)
    rng = np.random.default_rng(2)

    def quality(numbers: np.ndarray) -> np.ndarray:
        return np.sin(2 * numbers[:, 0]) + numbers[:, 1] * numbers[:, 2]

    def noise_and_error(y: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
        process = GaussianProcess(3)
        process.fit(X, y)
        process.know(X)
        process.watch(new)
        mean, _, noise = process.predict(y)
        return float(noise**0.5), float(np.sqrt(((mean - truth) ** 2).mean()))

    noise, error = noise_and_error(quality(X), quality(new))
    assert noise < 0.05
    assert error < 0.2 * quality(new).std()
    noise, _ = noise_and_error(rng.normal(size=60), np.zeros(20))
    assert noise > 0.5


def test_equal_qualities_leave_the_scales() -> None:
    process = GaussianProcess(3)
    process.fit(made_up(5, 0), np.full(5, 0.7))
    process.know(made_up(5, 0))
    process.watch(made_up(4, 1))
    mean, _, _ = process.predict(np.full(5, 0.7))
    assert mean == pytest.approx(np.full(4, 0.7))
