"""CMA-ES with the constants that CMANAS published, and CMA-ES of the package `cma`.

The package has other constants, and not all of them can be set: the learning rate of the step size (mu_eff +
n + 3 instead of 5 in the denominator), the rate of the rank-mu update, and the condition for stalling the
path.
"""

from __future__ import annotations

import math

import numpy as np

from hwnas.core import FloatArray

LEAST_EIGENVALUE = 1e-8  # in place of negative ones, which rounding makes
LARGEST_SIGMA = 1e32


class CMAES:
    """Minimise over R^n by sampling a normal distribution that follows the better samples.

    The covariance is full, negative weights are active, and there are no bounds and no stopping rules. There
    is no division by eigenvalues of the covariance: with a degenerate one, samples lie in a smaller subspace.

    Args:
        mean: Start, shape (n,).
        sigma: Initial step size, in units of the variables.
        rng: Source of randomness.
        population_size: lambda, at least 4; None means 4 + floor(3 ln n).

    Attributes:
        mean: Mean of the distribution, shape (n,).
        sigma: Step size.
        C: Covariance in units of sigma, shape (n, n).
        population_size: lambda.

    Source: Hansen, The CMA Evolution Strategy: A Tutorial, arXiv 1604.00772: symbols and equations. CMANAS,
    arXiv 2107.07266 (code): constants.
    """

    def __init__(
        self, mean: FloatArray, sigma: float, rng: np.random.Generator, population_size: int | None = None
    ) -> None:
        n = len(mean)
        lambda_ = 4 + math.floor(3 * math.log(n)) if population_size is None else population_size
        self.population_size = lambda_
        self.mean = np.array(mean, dtype=float)
        self.sigma = sigma
        self.C = np.eye(n)
        self._rng = rng
        self._p_sigma, self._p_c = np.zeros(n), np.zeros(n)
        self._num_updates = 0
        self._Z: FloatArray | None = None  # the last samples, standard normal
        self._BD: tuple[FloatArray, FloatArray] | None = None  # C = B diag(D^2) B'

        self._mu = mu = lambda_ // 2
        raw = math.log((lambda_ + 1) / 2) - np.log(np.arange(1, lambda_ + 1))  # eq. 49
        self._mu_eff = mu_eff = raw[:mu].sum() ** 2 / (raw[:mu] ** 2).sum()
        mu_eff_minus = raw[mu:].sum() ** 2 / (raw[mu:] ** 2).sum()
        self._c_1 = c_1 = 2 / ((n + 1.3) ** 2 + mu_eff)  # eq. 57
        self._c_mu = c_mu = min(  # eq. 58
            1 - c_1 - 1e-8, 2 * (mu_eff - 2 + 1 / mu_eff) / ((n + 2) ** 2 + mu_eff)
        )
        alpha_minus = min(  # eqs. 50 to 52
            1 + c_1 / c_mu, 1 + 2 * mu_eff_minus / (mu_eff + 2), (1 - c_1 - c_mu) / (n * c_mu)
        )
        positive = raw > 0
        self._weights = np.where(  # eq. 53
            positive, raw / raw[positive].sum(), alpha_minus * raw / -raw[~positive].sum()
        )
        self._c_sigma = (mu_eff + 2) / (n + mu_eff + 5)  # eq. 55
        self._d_sigma = 1 + 2 * max(0.0, math.sqrt((mu_eff - 1) / (n + 1)) - 1) + self._c_sigma
        self._c_c = (4 + mu_eff / n) / (n + 4 + 2 * mu_eff / n)  # eq. 56
        self._chi_n = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n**2))

    def ask(self) -> FloatArray:
        """New samples, shape (lambda, n)."""
        if self._BD is None:
            eigenvalues, B = np.linalg.eigh(self.C)
            self._BD = B, np.sqrt(np.where(eigenvalues < 0, LEAST_EIGENVALUE, eigenvalues))
        B, D = self._BD
        self._Z = self._rng.standard_normal((self.population_size, len(self.mean)))
        return self.mean + self.sigma * (self._Z * D) @ B.T

    def tell(self, cost: FloatArray) -> None:
        """Move mean, step size and covariance.

        Args:
            cost: Of the last samples, shape (lambda,), lower is better; `inf` and NaN are the worst.
        """
        assert self._Z is not None, "ask comes first"
        assert self._BD is not None
        assert cost.shape == (self.population_size,)
        n, mu_eff, weights = len(self.mean), self._mu_eff, self._weights
        B, D = self._BD
        Z = self._Z[np.argsort(cost, kind="stable")]
        Y = (Z * D) @ B.T
        y_w = weights[: self._mu] @ Y[: self._mu]
        self.mean = self.mean + self.sigma * y_w
        self._num_updates += 1

        white = B @ (weights[: self._mu] @ Z[: self._mu])  # C^-1/2 y_w
        decay = 1 - self._c_sigma
        self._p_sigma = decay * self._p_sigma + math.sqrt((1 - decay**2) * mu_eff) * white
        length = float(np.linalg.norm(self._p_sigma))
        self.sigma *= math.exp(self._c_sigma / self._d_sigma * (length / self._chi_n - 1))
        self.sigma = min(self.sigma, LARGEST_SIGMA)

        start = math.sqrt(1 - decay ** (2 * (self._num_updates + 1)))
        h_sigma = float(length / start < (1.4 + 2 / (n + 1)) * self._chi_n)
        c_c, c_1, c_mu = self._c_c, self._c_1, self._c_mu
        self._p_c = (1 - c_c) * self._p_c + h_sigma * math.sqrt(c_c * (2 - c_c) * mu_eff) * y_w
        shrink = np.where(weights < 0, n / ((Z**2).sum(axis=1) + LEAST_EIGENVALUE), 1.0)  # |C^-1/2 y|^2
        C = (1 + c_1 * (1 - h_sigma) * c_c * (2 - c_c) - c_1 - c_mu * weights.sum()) * self.C
        C += c_1 * np.outer(self._p_c, self._p_c) + c_mu * (Y.T * (weights * shrink)) @ Y
        self.C = (C + C.T) / 2
        self._Z = self._BD = None


class PyCMA:
    """CMA-ES of the package `cma`, with its constants and without its stopping rules.

    Args:
        mean: Start, shape (n,).
        sigma: Initial step size, in units of the variables.
        seed: Seed of the sampler.
        population_size: lambda; None means 4 + floor(3 ln n).

    Attributes:
        population_size: lambda.

    Source: Hansen, Akimoto & Baudis, CMA-ES/pycma, zenodo 2559634.
    """

    def __init__(self, mean: FloatArray, sigma: float, seed: int, population_size: int | None = None) -> None:
        from cma import CMAEvolutionStrategy

        # By default the package reseeds NumPy's global generator and draws from it.
        options: dict[str, object] = {
            "seed": math.nan,
            "randn": np.random.RandomState(seed).randn,
            "verbose": -9,
        }
        if population_size is not None:
            options["popsize"] = population_size
        self._inner = CMAEvolutionStrategy(mean, sigma, options)
        self.population_size = int(self._inner.popsize)
        self._asked: list[FloatArray] = []

    @property
    def mean(self) -> FloatArray:
        """Of the distribution, shape (n,)."""
        return np.array(self._inner.mean)

    def ask(self) -> FloatArray:
        """New samples, shape (lambda, n)."""
        self._asked = self._inner.ask()
        return np.array(self._asked)

    def tell(self, cost: FloatArray) -> None:
        """Move mean, step size and covariance.

        Args:
            cost: Of the last samples, shape (lambda,), lower is better; `inf` and NaN are the worst.
        """
        finite = cost[np.isfinite(cost)]
        worst = finite.max() + 1.0 if len(finite) else 0.0
        self._inner.tell(self._asked, np.where(np.isfinite(cost), cost, worst).tolist())
