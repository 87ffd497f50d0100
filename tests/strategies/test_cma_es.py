from __future__ import annotations

import math
from collections.abc import Callable

import cma
import numpy as np
import pytest

from hwnas.core import FloatArray
from hwnas.strategies.cma_es import CMAES

Cost = Callable[[FloatArray], FloatArray]


def create(n: int, seed: int = 0, **settings: float) -> CMAES:
    return CMAES(np.zeros(n), 1.3, np.random.default_rng(seed), **settings)


@pytest.mark.parametrize(("n", "population_size"), [(224, 20), (30, 14), (2, 6), (1, 4)])
def test_population_size(n: int, population_size: int) -> None:
    assert create(n).ask().shape == (population_size, n)


def test_constants_by_hand() -> None:
    """n = 2, lambda = 6, mu = 3; raw weights 1.252763, .559616, .154151, -.133531, -.356675, -.538997."""
    es = create(2)
    assert es._mu_eff == pytest.approx(1.966530**2 / (1.569415 + 0.313170 + 0.023762), rel=1e-5)  # 2.02861
    assert es._c_1 == pytest.approx(2 / (3.3**2 + 2.028611), rel=1e-6)
    assert es._c_mu == pytest.approx(2 * (2.028611 - 2 + 1 / 2.028611) / (16 + 2.028611), rel=1e-5)
    assert es._c_sigma == pytest.approx(4.028611 / 9.028611, rel=1e-6)
    assert es._d_sigma == pytest.approx(1 + 4.028611 / 9.028611, rel=1e-6)
    assert es._c_c == pytest.approx((4 + 1.014306) / (6 + 2.028611), rel=1e-6)
    assert es._chi_n == pytest.approx(1.414214 * (1 - 1 / 8 + 1 / 84), rel=1e-6)
    # alpha = min(1 + c_1/c_mu = 3.6757, 1 + 2 mu_eff^-/(mu_eff+2) = 2.2073, (1-c_1-c_mu)/(2 c_mu) = 6.804);
    # mu_eff^- = 1.029203^2 / 0.435565 = 2.43191
    expected = [0.637043, 0.284570, 0.078387, -0.286384, -0.764958, -1.155982]
    assert es._weights == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("n", "mu_eff", "c_1", "c_mu", "c_sigma", "c_c"),
    [
        (30, 4.287135, 0.00203257, 0.00490212, 0.160030, 0.120834),
        (224, 5.938804, 3.93964e-05, 1.60808e-04, 0.0337909, 0.0176560),
    ],
)
def test_constants_of_the_published_spaces(
    n: int, mu_eff: float, c_1: float, c_mu: float, c_sigma: float, c_c: float
) -> None:
    es = create(n)
    found = (es._mu_eff, es._c_1, es._c_mu, es._c_sigma, es._c_c)
    assert found == pytest.approx((mu_eff, c_1, c_mu, c_sigma, c_c), rel=1e-5)


def test_updates_equal_those_of_another_implementation() -> None:
    """Eight generations on given samples; expected is what the package `cmaes` 0.13.1 makes of the same.

    The samples are C^1/2 w with the symmetric root, so that the signs of eigenvectors do not matter; those
    of the third generation go one way and stall the path of the covariance.
    """
    es = CMAES(np.array([1.0, -2.0, 3.0]), 1.3, np.random.default_rng(0))
    for generation in range(8):
        es.ask()
        assert es._BD is not None
        W = 1.3 * np.sin((generation + 1) * np.arange(1, 22)).reshape(7, 3) + (2 if generation == 2 else 0)
        B, D = es._BD
        es._Z = W @ B
        X = es.mean + es.sigma * W @ (B * D) @ B.T
        es.tell((X**2) @ [1.0, 10.0, 100.0])
    assert es.mean == pytest.approx([4.721574711485974, -0.3307247032392443, -0.4958763952985972], rel=1e-9)
    assert es.sigma == pytest.approx(2.087836257519947, rel=1e-9)
    expected = [
        [0.7718283424693267, 0.24006401825541812, -0.3029424283244895],
        [0.24006401825541812, 0.975931424826173, -0.1134258056575675],
        [-0.3029424283244895, -0.1134258056575675, 0.8056978115724067],
    ]
    assert np.allclose(es.C, expected, rtol=1e-8, atol=0)


def evaluations_of_ours(cost: Cost, n: int, seed: int) -> int:
    es = CMAES(np.ones(n), 1.3, np.random.default_rng(seed))
    for generation in range(1, 2000):
        values = cost(es.ask())
        if values.min() < 1e-8:
            return generation * len(values)
        es.tell(values)
    raise AssertionError("no convergence")


def evaluations_of_cma(cost: Cost, n: int, seed: int) -> int:
    es = cma.CMAEvolutionStrategy(
        n * [1.0], 1.3, {"seed": math.nan, "randn": np.random.RandomState(seed).randn, "verbose": -9}
    )
    for generation in range(1, 2000):
        X = es.ask()
        values = cost(np.array(X))
        if values.min() < 1e-8:
            return generation * len(values)
        es.tell(X, values.tolist())
    raise AssertionError("no convergence")


@pytest.mark.parametrize("power", [0, 3], ids=["sphere", "ellipsoid"])
def test_converges_like_the_cma_package(power: int) -> None:
    n = 8
    scale = 10 ** (power * np.arange(n) / (n - 1))

    def cost(X: FloatArray) -> FloatArray:
        return ((scale * X) ** 2).sum(axis=1)

    ours, theirs = (
        np.mean([count(cost, n, seed) for seed in range(5)])
        for count in (evaluations_of_ours, evaluations_of_cma)
    )
    assert 0.7 < ours / theirs < 1.3, (ours, theirs)


def test_samples_have_the_covariance() -> None:
    es = CMAES(np.array([5.0, -5.0]), 0.5, np.random.default_rng(0), 40_000)
    es.C = np.array([[4.0, 1.0], [1.0, 1.0]])
    X = es.ask()
    assert X.mean(axis=0) == pytest.approx([5, -5], abs=0.02)
    assert np.cov(X.T) == pytest.approx(0.25 * es.C, abs=0.02)


@pytest.mark.parametrize("value", [1.0, math.inf, math.nan])
def test_equal_inf_and_nan_costs_are_survived(value: float) -> None:
    es = create(6)
    for _ in range(1500):
        assert np.isfinite(es.ask()).all()
        es.tell(np.full(es.population_size, value))
    assert 0 < es.sigma < 1e30


def test_inf_and_nan_are_the_worst() -> None:
    runs = []
    for bad in (math.inf, math.nan, 1e9):
        es = create(6)
        for _ in range(5):
            X = es.ask()
            cost = X[:, 0] ** 2
            es.tell(np.where(X[:, 1] > 1, bad, cost))
        runs.append(es.mean.tolist())
    assert runs[0] == runs[1] == runs[2]


@pytest.mark.parametrize(
    "C",
    [np.zeros((3, 3)), np.ones((3, 3)), np.diag([1.0, -1e-12, 1e300]), np.diag([1e-320, 1.0, 0.0])],
    ids=["zero", "rank one", "negative", "extreme"],
)
def test_degenerate_covariances_are_survived(C: FloatArray) -> None:
    es = create(3)
    es.C = C
    for _ in range(30):
        X = es.ask()
        assert np.isfinite(X).all()
        es.tell(np.arange(es.population_size, dtype=float))
    assert np.isfinite(es.C).all()


def test_a_step_size_of_zero_stays_where_it_is() -> None:
    es = CMAES(np.ones(3), 0.0, np.random.default_rng(0))
    for _ in range(3):
        assert (es.ask() == 1).all()
        es.tell(np.arange(es.population_size, dtype=float))
