"""Analyses of a run: which operations matter, where networks may come from, how they differ."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.core import FloatArray, Genotype, Limit, Objective, SearchSpace, Sum, Trial, costs, violations
from hwnas.runs.result import Effects

NUM_FOLDS = 5
PENALTIES = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)
"""Ridge penalties that `surrogate` tries."""


def main_effects(genotypes: Sequence[Genotype], values: FloatArray, shape: tuple[int, int]) -> Effects:
    """The mean of the metric over the networks with an operation on an edge, against the edge's average.

    Args:
        genotypes: Every architecture of a space, so that all else is equal on average.
        values: Metric per genotype, (n,); networks that are not finite are left out.
        shape: (edges, ops).

    Raises:
        ValueError: No value is finite.
    """
    known = np.isfinite(values)
    if not known.any():
        raise ValueError("main effects need a network with a finite value")
    G, y = np.asarray(genotypes, dtype=np.intp)[known], values[known]
    codes = G + np.arange(shape[0]) * shape[1]
    size = shape[0] * shape[1]
    count = np.bincount(codes.ravel(), minlength=size)
    total = np.bincount(codes.ravel(), np.repeat(y, shape[0]), minlength=size)
    with np.errstate(invalid="ignore"):
        added = _centred((total / count).reshape(shape))
    fitted = added[np.arange(shape[0]), G].sum(axis=1)
    return Effects(float(y.mean()), added, _r2(y, fitted - fitted.mean() + y.mean()), len(y))


def sum_effects(space: SearchSpace, total: Sum) -> Effects:
    """The effects of a metric that is a sum over operations, exact in a space of any size.

    Args:
        space: Its choices count.
        total: The metric; operations that a device does not support are left out.
    """
    known = space.allowed & np.isfinite(total.added)
    added = np.where(known, total.added, np.nan)
    mean = total.base + float(np.nanmean(added, axis=1).sum()) if known.any(axis=1).all() else math.inf
    return Effects(mean, _centred(added), 1.0, space.size)


def surrogate(genotypes: Sequence[Genotype], values: FloatArray, shape: tuple[int, int]) -> Effects | None:
    """The effects of a ridge regression on operations, with the penalty that cross-validates best.

    Args:
        genotypes: Evaluated architectures, each once.
        values: Metric per genotype, (n,), finite.
        shape: (edges, ops).

    Returns:
        `r2` is that of five folds that the fit has not seen. None for fewer than 20 networks, or where all
        have the same value.
    """
    if len(values) < 4 * NUM_FOLDS or np.ptp(values) == 0:
        return None
    G = np.asarray(genotypes, dtype=np.intp)
    mean = float(values.mean())
    X = np.ones((len(G), 1 + shape[0] * shape[1]), dtype=np.float32)
    X[:, 1:] = np.eye(shape[1], dtype=np.float32)[G].reshape(len(G), -1)
    y = (values - mean) / values.std()
    folds = [(X[k::NUM_FOLDS], y[k::NUM_FOLDS]) for k in range(NUM_FOLDS)]
    grams = [((A.T @ A).astype(np.float64), A.T.astype(np.float64) @ b) for A, b in folds]
    A, b = (sum(parts[1:], parts[0]) for parts in zip(*grams, strict=True))
    plain = np.diag([0.0] + [1.0] * (X.shape[1] - 1)) + 1e-9 * np.eye(X.shape[1])

    def error(penalty: float) -> float:
        total = 0.0
        for (own_A, own_b), (_, own_y) in zip(grams, folds, strict=True):
            w = np.linalg.solve(A - own_A + penalty * plain, b - own_b)
            total += float(own_y @ own_y - 2 * w @ own_b + w @ own_A @ w)
        return total

    errors = [error(penalty) for penalty in PENALTIES]
    chosen = int(np.argmin(errors))
    w = np.linalg.solve(A + PENALTIES[chosen] * plain, b)[1:].reshape(shape) * values.std()
    seen = X[:, 1:].any(axis=0).reshape(shape)
    added = _centred(np.where(seen, w, np.nan))
    return Effects(mean, added, 1 - errors[chosen] / len(y), len(y))


def _centred(added: FloatArray) -> FloatArray:
    known = np.isfinite(added)
    means = np.where(known, added, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return added - means[:, None]


def _r2(y: FloatArray, fitted: FloatArray) -> float:
    spread = float(((y - y.mean()) ** 2).sum())
    return 1 - float(((y - fitted) ** 2).sum()) / spread if spread > 0 else 1.0


def changes(a: Genotype, b: Genotype) -> list[tuple[int, int, int]]:
    """(edge, operation of `a`, operation of `b`) where two architectures differ."""
    return [(edge, one, other) for edge, (one, other) in enumerate(zip(a, b, strict=True)) if one != other]


def nearest_earlier(
    space: SearchSpace, trials: Sequence[Trial], rows: Sequence[int]
) -> list[tuple[int, int] | None]:
    """For some networks the nearest one that was asked for in an earlier generation.

    Runs do not record parents; this is what can be said instead.

    Args:
        space: Its distance counts.
        trials: Different networks, each with the generation that asked for it first, in that order.
        rows: For which of them.

    Returns:
        Per row (row of the nearest, how many others are as near), of equally near ones the latest; None in
        the first generation.
    """
    G = np.array([trial.genotype for trial in trials], dtype=np.int16)
    starts = np.searchsorted([t.generation for t in trials], [t.generation for t in trials])
    found: list[tuple[int, int] | None] = []
    for row in rows:
        end = int(starts[row])
        found.append(None if end == 0 else _latest_nearest(space, G[row], G, np.arange(end)))
    return found


def _latest_nearest(
    space: SearchSpace, genotype: NDArray[np.int16], G: NDArray[np.int16], rows: NDArray[np.intp]
) -> tuple[int, int]:
    distances = space.distances(genotype[None], G[rows])[0]  # type: ignore[arg-type]
    near = np.flatnonzero(distances <= distances.min() + 1e-12)
    return int(rows[near[-1]]), len(near) - 1


def ancestry(
    space: SearchSpace,
    trials: Sequence[Trial],
    genotype: Genotype,
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    *,
    comparable: bool = True,
) -> list[Trial]:
    """How a network may have come about: a chain of nearest earlier networks, from the first generation on.

    Each is, among the networks of earlier generations that are no better than its successor, the nearest one;
    of equally near ones the latest. Better is a smaller violation of the limits, then a better first
    objective. The chain begins later where every earlier network is better.

    Args:
        space: Its distance counts.
        trials: As for `nearest_earlier`.
        genotype: Where the chain ends; one of the trials'.
        objectives: The first one counts.
        limits: Of the run.
        comparable: Whether values of different generations can be compared; if not, all earlier ones count.
    """
    G = np.array([trial.genotype for trial in trials], dtype=np.int16)
    generations = np.array([trial.generation for trial in trials])
    excess, cost = violations(trials, limits), costs(trials, objectives)[:, 0]
    row = next(row for row, trial in enumerate(trials) if trial.genotype == genotype)
    chain = [row]
    while generations[row] > 0:
        earlier = generations < generations[row]
        if comparable:
            worse = (excess == excess[row]) & (cost >= cost[row])
            earlier &= (excess > excess[row]) | worse
        if not earlier.any():
            break
        row, _ = _latest_nearest(space, G[row], G, np.flatnonzero(earlier))
        chain.append(row)
    return [trials[row] for row in reversed(chain)]


def frequencies(genotypes: Sequence[Genotype], shape: tuple[int, int]) -> FloatArray:
    """Share of the genotypes that have each operation on each edge, shape (edges, ops); at least one."""
    G = np.asarray(genotypes, dtype=np.intp).reshape(-1, shape[0])
    counted = [np.bincount(column, minlength=shape[1]) for column in G.T]
    return np.stack(counted) / len(G)


def agreement(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Kendall's tau (b) of two columns; None for fewer than three pairs, or a constant column."""
    from scipy.stats import kendalltau

    if len(x) < 3 or min(x) == max(x) or min(y) == max(y):
        return None
    return float(kendalltau(x, y).statistic)


def spread(num: int, most: int) -> list[int]:
    """At most `most` of the rows 0..num - 1, evenly spread, in order."""
    if num <= most:
        return list(range(num))
    return np.linspace(0, num - 1, most).astype(int).tolist()
