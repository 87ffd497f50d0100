"""Small models of a network's quality over numbers that describe it, chosen by cross-validation.

Shapes: n networks whose quality is known, N networks to predict, d numbers per network. The first number is
a prior: a guess of the quality, in any unit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hwnas.core import FloatArray

FOLDS = 5
"""Parts of a cross-validation."""

FEWEST_COMPARED = 16
"""Networks below which models are not compared, and the first of `choices` is taken."""

MOST_SCALED = 200
"""Networks that the scales of a Gaussian process are chosen by, at most."""

Predict = Callable[[FloatArray], tuple[FloatArray, FloatArray]]
"""Mean and standard deviation of N networks' qualities, from their numbers (N, d)."""


@dataclass(frozen=True)
class Choice:
    """A model, and the numbers that it looks at.

    Attributes:
        model: Its name in `MODELS`.
        columns: Name of the set of numbers.
        places: Their places among all numbers, that of the prior first.
        error: Root of the mean squared error for networks that were left out of a fit, in units of the
            standard deviation of all qualities; NaN if models were not compared.
    """

    model: str
    columns: str
    places: NDArray[np.intp]
    error: float = np.nan

    def fitted(self, X: FloatArray, y: FloatArray, seed: int) -> Predict:
        """The model, fitted to networks with all numbers (n, d) and qualities (n,); it takes all numbers."""
        predict = MODELS[self.model](X[:, self.places], y, seed)
        return lambda numbers: predict(numbers[:, self.places])


def best_choice(X: FloatArray, y: FloatArray, choices: Sequence[Choice], seed: int) -> Choice:
    """The choice that predicts networks best which are left out of a fit; the first one if n is small.

    Args:
        X: Numbers of the networks, (n, d).
        y: Their qualities, (n,).
        choices: What to choose from.
        seed: Of folds and forests.
    """
    if len(y) < FEWEST_COMPARED:
        return choices[0]
    folds = np.random.default_rng(seed).permutation(len(y)) % FOLDS
    scale = float(y.std()) or 1.0
    found = []
    for choice in choices:
        residuals = np.empty(len(y))
        for fold in range(FOLDS):
            out = folds == fold
            residuals[out] = choice.fitted(X[~out], y[~out], seed)(X[out])[0] - y[out]
        found.append(replace(choice, error=float(np.sqrt(np.mean(residuals**2))) / scale))
    return min(found, key=lambda choice: choice.error)


def prior_line(X: FloatArray, y: FloatArray, seed: int) -> Predict:
    """A line over the prior that does not fall, by least squares."""
    prior = X[:, 0]
    spread = float(prior.var())
    slope = max(0.0, float(np.mean((prior - prior.mean()) * (y - y.mean()))) / spread) if spread else 0.0
    level, deviation = float(y.mean() - slope * prior.mean()), float(y.std())
    return lambda numbers: (level + slope * numbers[:, 0], np.full(len(numbers), deviation))


def prior_and_process(X: FloatArray, y: FloatArray, seed: int) -> Predict:
    """A line over the prior, and a Gaussian process of what it leaves: far from all networks the line."""
    line = prior_line(X, y, seed)
    rest = gaussian_process(X, y - line(X)[0], seed)

    def predict(numbers: FloatArray) -> tuple[FloatArray, FloatArray]:
        mean, deviation = rest(numbers)
        return line(numbers)[0] + mean, deviation

    return predict


def gaussian_process(X: FloatArray, y: FloatArray, seed: int) -> Predict:
    """A Gaussian process: squared exponential and noise, of the likeliest scales, by scikit-learn.

    The deviation is that of the quality without the noise. Numbers that are the same for all n networks are
    ignored. y may be (n, m), m qualities of common scales; mean and deviation are (N, m) then.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    mean, spread = X.mean(axis=0), X.std(axis=0)
    spread[spread == 0] = np.inf

    def scaled(numbers: FloatArray) -> FloatArray:
        return (numbers - mean) / spread

    wide, some = X.shape[1] ** 0.5, np.random.default_rng(seed).permutation(len(X))[:MOST_SCALED]
    kernel = ConstantKernel(1.0, (1e-2, 1e2)) * RBF(wide, (0.3 * wide, 20 * wide)) + WhiteKernel(
        0.1, (1e-2, 1.0)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a scale at an end of its range is fine
        process = GaussianProcessRegressor(kernel, normalize_y=True, random_state=seed)
        kernel = process.fit(scaled(X[some]), y[some]).kernel_
    process = GaussianProcessRegressor(kernel, normalize_y=True, optimizer=None).fit(scaled(X), y)
    noise = y.std(axis=0) ** 2 * kernel.k2.noise_level

    def predict(numbers: FloatArray) -> tuple[FloatArray, FloatArray]:
        predicted, deviation = process.predict(scaled(numbers), return_std=True)
        return predicted, np.sqrt(np.maximum(deviation**2 - noise, 0.0))

    return predict


def random_forest(X: FloatArray, y: FloatArray, seed: int) -> Predict:
    """A random forest of 100 trees, by scikit-learn; the deviation is that of its trees."""
    from sklearn.ensemble import RandomForestRegressor

    model = RandomForestRegressor(100, max_features=0.5, random_state=seed).fit(X, y)

    def predict(numbers: FloatArray) -> tuple[FloatArray, FloatArray]:
        each = np.array([tree.predict(numbers) for tree in model.estimators_])
        return each.mean(axis=0), each.std(axis=0)

    return predict


MODELS: Mapping[str, Callable[[FloatArray, FloatArray, int], Predict]] = {
    "prior": prior_line,
    "prior and Gaussian process": prior_and_process,
    "Gaussian process": gaussian_process,
    "random forest": random_forest,
}
"""Models by name: each takes numbers (n, d), qualities (n,) and a seed."""
