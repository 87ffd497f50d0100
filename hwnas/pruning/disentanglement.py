"""How disentangled a latent code is: proxies that need no labels, and scores against known factors.

Shapes: N images, L latent dimensions, F factors.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

ACTIVE_VARIANCE = 0.01
"""A dimension whose mean varies less than this over images carries nothing (Burda et al., ICLR 2016)."""

NUM_BINS = 20
"""Of a code's histogram, for mutual information (Locatello et al., ICML 2019)."""


def proxies(mean_NL: FloatArray, log_variance_NL: FloatArray | None) -> dict[str, float]:
    """Scores that need no factor labels.

    Args:
        mean_NL: Means of the code.
        log_variance_NL: Log-variances; None for a code without noise.

    Returns:
        "active_units": dimensions whose mean has a variance above 0.01; over those "total_correlation", of a
        normal distribution with the means' correlation, -1/2 ln det, in nats, and "mean_correlation", the
        mean absolute one of two different dimensions (both 0 for fewer than two); and "kl", in nats, 0
        without noise.
    """
    active = mean_NL.var(axis=0) > ACTIVE_VARIANCE
    total = correlation = 0.0
    if active.sum() > 1:
        R: FloatArray = np.asarray(np.corrcoef(mean_NL[:, active], rowvar=False))
        total = max(0.0, -0.5 * float(np.linalg.slogdet(R)[1]))
        correlation = float(np.abs(R[np.eye(len(R)) == 0]).mean())
    return {
        "active_units": float(active.sum()),
        "total_correlation": total,
        "mean_correlation": correlation,
        "kl": float(kl_per_dimension(mean_NL, log_variance_NL).sum()),
    }


def kl_per_dimension(mean_NL: FloatArray, log_variance_NL: FloatArray | None) -> FloatArray:
    """Mean KL divergence of the code to the standard normal in nats, (L,); zeros without noise."""
    if log_variance_NL is None:
        return np.zeros(mean_NL.shape[1])
    terms = mean_NL**2 + np.exp(log_variance_NL) - log_variance_NL - 1
    return 0.5 * terms.mean(axis=0)


def mutual_information(codes_NL: FloatArray, factors_NF: NDArray[np.int64]) -> FloatArray:
    """Mutual information in nats of binned codes with factors, (L, F)."""
    found = np.zeros((codes_NL.shape[1], factors_NF.shape[1]))
    for j, code in enumerate(codes_NL.T):
        edges = np.histogram_bin_edges(code, NUM_BINS)
        bins = np.clip(np.digitize(code, edges[1:-1]), 0, NUM_BINS - 1)
        for k, factor in enumerate(factors_NF.T):
            joint = np.zeros((NUM_BINS, factor.max() + 1))
            np.add.at(joint, (bins, factor), 1.0 / len(code))
            outer = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
            some = joint > 0
            found[j, k] = (joint[some] * np.log(joint[some] / outer[some])).sum()
    return found


def mig(codes_NL: FloatArray, factors_NF: NDArray[np.int64]) -> float:
    """Mutual information gap, in 0..1: how much more the best code tells of a factor than the second best.

    Mean over factors of the gap divided by the factor's entropy.

    Args:
        codes_NL: Codes, L of at least 2.
        factors_NF: Factors' values from 0.

    Source: Chen et al., Isolating Sources of Disentanglement, NeurIPS 2018, equation 6.
    """
    ordered = np.sort(mutual_information(codes_NL, factors_NF), axis=0)
    entropies = []
    for factor in factors_NF.T:
        p = np.bincount(factor) / len(factor)
        entropies.append(-(p[p > 0] * np.log(p[p > 0])).sum())
    return float(((ordered[-1] - ordered[-2]) / entropies).mean())


def sap(codes_NL: FloatArray, factors_NF: NDArray[np.int64], categorical: Sequence[bool]) -> float:
    """Separated attribute predictability, in 0..1: the gap between the two codes that predict a factor best.

    Mean over factors. An ordered factor is predicted by a line (R^2), a categorical one by a linear
    classifier (balanced accuracy, scaled so that guessing is 0).

    Args:
        codes_NL: Codes, L of at least 2.
        factors_NF: Factors' values from 0.
        categorical: Which factors have no order.

    Source: Kumar et al., DIP-VAE, ICLR 2018, section 3; the scaling is ours, so that all gaps share a range.
    """
    from sklearn.metrics import balanced_accuracy_score
    from sklearn.preprocessing import StandardScaler
    from sklearn.svm import LinearSVC

    gaps = []
    for factor, is_categorical in zip(factors_NF.T, categorical, strict=True):
        scores = []
        for code in codes_NL.T:
            if code.std() == 0:
                scores.append(0.0)
            elif is_categorical:
                x = StandardScaler().fit_transform(code[:, None])
                model = LinearSVC(C=0.01, class_weight="balanced", random_state=0).fit(x, factor)
                scores.append(balanced_accuracy_score(factor, model.predict(x), adjusted=True))
            else:
                scores.append(np.corrcoef(code, factor)[0, 1] ** 2)
        second, first = np.sort(scores)[-2:]
        gaps.append(first - second)
    return float(np.mean(gaps))


def dci(codes_NL: FloatArray, factors_NF: NDArray[np.int64], *, seed: int = 0) -> dict[str, float]:
    """Disentanglement, completeness and informativeness, each in 0..1.

    From the importances of codes in random forests that predict each factor from all codes.

    Args:
        codes_NL: Codes, L of at least 2.
        factors_NF: Factors' values from 0, F of at least 2.
        seed: Of the forests.

    Returns:
        "dci_disentanglement": whether a code tells of one factor only, codes weighted by their importance;
        "dci_completeness": whether one code tells all of a factor; "dci_informativeness": accuracy on a fifth
        of the images that the forests have not seen, mean over factors.

    Source: Eastwood & Williams, A Framework for the Quantitative Evaluation of Disentangled Representations,
        ICLR 2018, section 2; their forests predict numbers, ours values, as all factors here are discrete.
    """
    from sklearn.ensemble import RandomForestClassifier

    order = np.random.default_rng(seed).permutation(len(codes_NL))
    unseen, seen = order[: len(order) // 5], order[len(order) // 5 :]
    importances, accuracies = [], []
    for factor in factors_NF.T:
        forest = RandomForestClassifier(50, min_samples_leaf=5, max_features=None, random_state=seed)
        forest.fit(codes_NL[seen], factor[seen])
        importances.append(forest.feature_importances_)
        accuracies.append(forest.score(codes_NL[unseen], factor[unseen]))
    R = np.array(importances).T  # (L, F)
    weights = R.sum(axis=1) / max(R.sum(), np.finfo(float).tiny)
    return {
        "dci_disentanglement": float(weights @ (1 - _entropy(R))),
        "dci_completeness": float((1 - _entropy(R.T)).mean()),
        "dci_informativeness": float(np.mean(accuracies)),
    }


def _entropy(rows: FloatArray) -> FloatArray:
    """Entropy of each row as a distribution, in units of the largest there can be; 1 for a row of zeros."""
    total = rows.sum(axis=1, keepdims=True)
    p = np.divide(rows, total, out=np.full_like(rows, 1 / rows.shape[1]), where=total > 0)
    logs = np.log(p, out=np.zeros_like(p), where=p > 0)
    return -(p * logs).sum(axis=1) / np.log(rows.shape[1])
