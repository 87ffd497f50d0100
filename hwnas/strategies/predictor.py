"""Small models of a network's quality over numbers that describe it, chosen by cross-validation.

Shapes: n networks whose quality is known, N networks to predict, d numbers per network. The first number is
a prior: a guess of the quality, in any unit.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import numpy as np

from hwnas.core import FloatArray

FOLDS = 5
"""Parts of a cross-validation."""

FEWEST_COMPARED = 16
"""Networks below which models are not compared."""

BELIEF, BELIEVED = 0.7, 8
"""Correlation of prior and quality before anything is known, and the networks that this counts as."""

SOFT = 0.3
"""Fraction of the gap between best and median that `Gap` adds to all gaps."""

MOST_SCALED = 200
"""Networks that the scales of a Gaussian process are chosen by, at most."""

Predict = Callable[[FloatArray], tuple[FloatArray, FloatArray]]
"""Mean and standard deviation of N networks' qualities, from their numbers (N, d)."""


def best_model(X: FloatArray, y: FloatArray, seed: int) -> str:
    """The name in `MODELS` of the model that predicts networks best which are left out of a fit.

    The first of them, unless another's squared errors are lower by more than a standard error of the
    difference; with fewer than `FEWEST_COMPARED` networks uncompared.

    Args:
        X: Numbers of the networks, (n, d).
        y: Their qualities, (n,).
        seed: Of folds and forests.
    """
    names = list(MODELS)
    if len(y) < FEWEST_COMPARED:
        return names[0]
    folds = np.random.default_rng(seed).permutation(len(y)) % FOLDS
    errors = np.zeros((len(names), len(y)))
    for fold in range(FOLDS):
        out = folds == fold
        for place, name in enumerate(names):
            predicted, _ = MODELS[name](X[~out], y[~out], seed)(X[out])
            errors[place, out] = (predicted - y[out]) ** 2
    gains = errors[0] - errors
    means = gains.mean(axis=1)
    sure = means > gains.std(axis=1) / len(y) ** 0.5
    return names[int(np.where(sure, means, 0.0).argmax())]


class Gap:
    """A scale on which differences among the best networks count most: -ln(gap to the best + some).

    What is added is `SOFT` times the gap of the median, or of a tenth of the range if that is more. On a
    plain scale a sample's few very bad networks make up nearly all of its variance, and models fit these.

    Args:
        y: Qualities (n,), higher is better.
    """

    def __init__(self, y: FloatArray) -> None:
        self.best = float(y.max())
        self.soft = SOFT * float(max(self.best - np.median(y), (self.best - y.min()) / 10)) or 1.0

    def to(self, y: FloatArray) -> FloatArray:
        """Qualities on this scale."""
        return -np.log(np.maximum(self.best - y, 0.0) + self.soft)

    def back(self, mean: FloatArray, deviation: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Qualities of values on this scale, and their deviations to first order."""
        gap = np.exp(-mean)
        return self.best + self.soft - gap, gap * deviation


def prior_line(X: FloatArray, y: FloatArray, seed: int) -> Predict:
    """A line over the prior that does not fall, by least squares and a belief that counts as some networks.

    The belief is a line of the correlation `BELIEF`; it has the weight of `BELIEVED` networks.
    """
    prior, n = X[:, 0], len(y)
    wide, high = float(prior.std()) if np.ptp(prior) else 0.0, float(y.std())
    if not wide:
        return lambda numbers: (np.full(len(numbers), float(y.mean())), np.full(len(numbers), high))
    correlation = float(np.mean((prior - prior.mean()) * (y - y.mean()))) / (wide * high) if high else 0.0
    slope = max(0.0, (n * correlation + BELIEVED * BELIEF) / (n + BELIEVED)) * high / wide
    level = float(y.mean() - slope * prior.mean())
    return lambda numbers: (level + slope * numbers[:, 0], np.full(len(numbers), high))


def on_line(*rest: Callable[[FloatArray, FloatArray, int], Predict]) -> Callable[..., Predict]:
    """A line over the prior, and models of what it leaves: where no network is near, the line decides.

    Of several models the mean counts; how far they differ is a part of the deviation.
    """

    def fit(X: FloatArray, y: FloatArray, seed: int) -> Predict:
        line = prior_line(X, y, seed)
        left = [one(X, y - line(X)[0], seed) for one in rest]

        def predict(numbers: FloatArray) -> tuple[FloatArray, FloatArray]:
            means, deviations = (np.array(each) for each in zip(*(one(numbers) for one in left), strict=True))
            spread = (deviations**2).mean(axis=0) + means.var(axis=0)
            return line(numbers)[0] + means.mean(axis=0), np.sqrt(spread)

        return predict

    return fit


def ridge(X: FloatArray, y: FloatArray, seed: int) -> Predict:
    """Bayesian ridge regression, whose penalty the evidence chooses, by scikit-learn."""
    from sklearn.linear_model import BayesianRidge

    mean, spread = X.mean(axis=0), X.std(axis=0)
    spread[spread == 0] = np.inf
    model = BayesianRidge().fit((X - mean) / spread, y)
    return lambda numbers: model.predict((numbers - mean) / spread, return_std=True)


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
    "Gaussian process and random forest": on_line(gaussian_process, random_forest),
    "Gaussian process": on_line(gaussian_process),
    "ridge": on_line(ridge),
    "prior": prior_line,
}
"""Models by name: each takes numbers (n, d), qualities (n,) and a seed."""
