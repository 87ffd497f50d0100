"""A Gaussian process over architectures that grows by a few networks at a time and predicts chosen ones.

scikit-learn's starts anew at every fit: predicting the 9,784 different networks of NAS-Bench-201 then takes
half a second after 600 evaluations. What stays is kept here: see tests/benchmarks/test_surrogate_speed.py.

Shapes: n networks whose quality is known, N watched ones, whose quality is predicted; d numbers per network.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.optimize import minimize

from hwnas.core import FloatArray

USUAL = np.log([1.0, 0.5, 0.03, 0.3])
"""Scales before anything is known, in logarithms: those of `Scales`."""

DOUBT = np.array([0.7, 0.7, 1.5, 1.0])
"""Standard deviations of the logarithms of scales."""

BOUNDS = np.log([(0.05, 10.0), (0.05, 10.0), (1e-5, 1.0), (1e-3, 20.0)])
"""Ranges of the logarithms of scales."""

LINEAR = 3.0
"""Variance of the linear part, over that of the others, of a network one deviation off in every number."""

STEPS = 15
"""Steps of the optimiser of the scales, at most."""


def features_and_operations(features: FloatArray, onehot: FloatArray) -> tuple[FloatArray, FloatArray]:
    """The two halves of what the process looks at, each of about unit length per network.

    Args:
        features: Standardised, (n, f).
        onehot: Which operations there are, (n, edges * ops).
    """
    lengths = np.sqrt(np.maximum(onehot.sum(axis=1, keepdims=True), 1.0))
    return features / max(1, features.shape[1]) ** 0.5, onehot / lengths


class GaussianProcess:
    """A Gaussian process with noise: y = constant + f + noise, in closed form.

    The covariance of f between two networks is v (k + 3 x.x'), where x are their features (`LINEAR`) and k is
    the weighted mean of exp(-|x - x'|² / 2a²) and of exp(-h / b), with h the fraction of operations in which
    they differ. Constant and v are the likeliest; a, b, the noise and the weight are the likeliest with a
    prior (`USUAL`, `DOUBT`), without which five networks would decide.

    Known networks K have the covariance K = L L'. Watched networks keep V = L^-1 k(K, watched). A known
    network more adds a row to L and one to V, which costs O(n N), not O(n² N); their means and variances are
    z'V and k - sum of V² over rows, with z = L^-1 (y - constant).

    Args:
        num_features: f, how many of the numbers of a network are features; the others are operations.

    Source: Rasmussen & Williams, Gaussian Processes for Machine Learning, MIT Press 2006, chapters 2 and 5.
    """

    def __init__(self, num_features: int) -> None:
        self._f = num_features
        self._scales = USUAL.copy()
        self._known = self._watched = np.empty((0, 0))
        self._L = self._V = np.empty((0, 0))
        self._explained = np.empty(0)  # sum of V² over its rows, (N,)

    def __len__(self) -> int:
        """Known networks."""
        return len(self._known)

    def fit(self, X: FloatArray, y: FloatArray) -> None:
        """Choose the scales by networks (n, d) and their qualities (n,), from those of the last fit on.

        `know` and `watch` come next.
        """
        parts, n = self._parts(X, X), len(y)

        def cost(scales: FloatArray) -> float:
            L = cholesky(self._mixed(parts, scales, np.eye(n)), lower=True, check_finite=False)
            _, _, variance = _whitened(L, y)
            belief = 0.5 * (((scales - USUAL) / DOUBT) ** 2).sum()
            return float(0.5 * n * np.log(variance) + np.log(np.diag(L)).sum() + belief)

        if np.ptp(y):
            found = minimize(cost, self._scales, method="L-BFGS-B", bounds=BOUNDS, options={"maxiter": STEPS})
            self._scales = np.asarray(found.x)

    def know(self, X: FloatArray) -> None:
        """Know networks (n, d), and no others; watch none."""
        self._known = X
        K = self._mixed(self._parts(X, X), self._scales, np.eye(len(X)))
        self._L = cholesky(K, lower=True, check_finite=False)
        self.keep(np.empty(0, dtype=np.intp))

    def add(self, X: FloatArray) -> None:
        """Know further networks (m, d)."""
        n, m = len(self._known), len(X)
        B = self._solved(self._covariance(self._known, X))
        S = self._mixed(self._parts(X, X), self._scales, np.eye(m)) - B.T @ B
        corner = cholesky(S, lower=True, check_finite=False)
        rest = self._covariance(X, self._watched) - B.T @ self._V
        rows = solve_triangular(corner, rest, lower=True, check_finite=False)
        self._L = np.block([[self._L, np.zeros((n, m))], [B.T, corner]])
        self._V = np.vstack([self._V, rows])
        self._explained = self._explained + (rows**2).sum(axis=0)
        self._known = np.vstack([self._known, X])

    def watch(self, X: FloatArray) -> None:
        """Watch further networks (N, d)."""
        V = self._solved(self._covariance(self._known, X))
        first = not len(self._watched)
        self._watched = X if first else np.vstack([self._watched, X])
        self._V = V if first else np.hstack([self._V, V])
        self._explained = np.append(self._explained, (V**2).sum(axis=0))

    def keep(self, rows: NDArray[np.intp]) -> None:
        """Watch only some of the watched networks, by their rows (N,)."""
        self._watched = self._watched[rows] if len(rows) else np.empty((0, self._known.shape[1]))
        self._V = self._V[:, rows] if len(rows) else np.empty((len(self._known), 0))
        self._explained = self._explained[rows] if len(rows) else np.empty(0)

    def predict(self, y: FloatArray) -> tuple[FloatArray, FloatArray, float]:
        """Means and variances of f of the watched networks, (N,) each, and the variance of the noise.

        Args:
            y: Qualities of the known networks, (n,); may differ between calls.
        """
        z, constant, variance = _whitened(self._L, y)
        self._variance = variance
        unexplained = np.maximum(self._itself(self._watched) - self._explained, 1e-12)
        return constant + z @ self._V, variance * unexplained, variance * self._noise

    def compare(self, rows: NDArray[np.intp]) -> None:
        """Have `lessons` of some of the watched networks, by their rows (m,), after `predict`."""
        self._compared = self._watched[rows], self._V[:, rows]

    def lessons(self, place: int, taught: FloatArray) -> FloatArray:
        """Row that knowing one compared network would add to V, on the scale of y, (m,).

        Its squares are the variances that the compared networks would lose.

        Args:
            place: The network, among the compared ones.
            taught: The same of networks before it that are not known yet, (k, m).
        """
        (X, V), scale = self._compared, self._variance
        own = scale * (self._covariance(X[[place]], X)[0] - V[:, place] @ V) - taught[:, place] @ taught
        return own / np.sqrt(max(own[place] + scale * self._noise, 1e-12 * scale))

    @property
    def _noise(self) -> float:
        return float(np.exp(self._scales[2]))

    def _solved(self, K: FloatArray) -> FloatArray:
        return solve_triangular(self._L, K, lower=True, check_finite=False)

    def _covariance(self, A: FloatArray, B: FloatArray) -> FloatArray:
        return self._mixed(self._parts(A, B), self._scales)

    def _parts(self, A: FloatArray, B: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        """Of each pair the squared distance, the differing fraction and the inner product, (a, b) each."""
        a, b = A[:, : self._f], B[:, : self._f]
        inner = a @ b.T
        squares = -2 * inner
        squares += (a**2).sum(axis=1)[:, None]
        squares += (b**2).sum(axis=1)
        return squares, 1.0 - A[:, self._f :] @ B[:, self._f :].T, inner

    def _mixed(
        self,
        parts: tuple[FloatArray, FloatArray, FloatArray],
        scales: FloatArray,
        noisy: FloatArray | None = None,
    ) -> FloatArray:
        """Covariances of pairs over v; `noisy` is 1 where the noise counts."""
        squares, different, inner = parts
        a, b, noise, weight = np.exp(scales)
        K = squares * (-0.5 / a**2)
        np.exp(K, out=K)
        edges = different * (-1 / b)
        np.exp(edges, out=edges)
        edges *= weight
        K += edges
        K /= 1 + weight
        K += LINEAR * inner
        return K if noisy is None else K + noise * noisy

    def _itself(self, X: FloatArray) -> FloatArray:
        """Variances of networks over v, (n,)."""
        return 1.0 + LINEAR * (X[:, : self._f] ** 2).sum(axis=1)


def _whitened(L: FloatArray, y: FloatArray) -> tuple[FloatArray, float, float]:
    """L^-1 (y - constant), the likeliest constant, and v: the mean square; var(y) counts as one of them."""
    both = solve_triangular(L, np.column_stack([y, np.ones(len(y))]), lower=True, check_finite=False)
    constant = float(both[:, 0] @ both[:, 1] / (both[:, 1] @ both[:, 1]))
    z = both[:, 0] - constant * both[:, 1]
    return z, constant, float((z @ z + y.var()) / (len(y) + 1)) or 1e-12
