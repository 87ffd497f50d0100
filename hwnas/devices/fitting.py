"""Fit a device profile to measured networks, few or many: additive costs by cross-validated kernel ridge."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from hwnas.core import FloatArray, SearchSpace
from hwnas.devices.profile import SCHEMA_VERSION, Additive, Networks, Profile, agreement

FEWEST = 10
"""Networks that a fit needs."""

MOST_FITTED = 3_000
"""Maximum of networks in a fit, to bound time and memory; the others check it."""

MOST_CHOSEN_ON = 300
"""Maximum of networks for the comparison of kinds of features."""

NUM_FOLDS = 5
MOST_SHOWN = 200
"""Checked networks that a profile keeps, for its page and for the margin of limits."""

NUM_ORDERS = 8
"""Random orders in which a set of unsupported networks is made larger."""

CONSTANT = 10.0
"""Prior variance of the constant, in units of the costs' variance; large, so that it hardly shrinks."""

PRIORS = (
    (1.0, 0.0, 0.0),
    (1.0, 0.01, 0.0),
    (1.0, 0.1, 0.0),
    (1.0, 1.0, 0.0),
    (1.0, 0.1, 0.01),
    (1.0, 0.1, 0.1),
    (1.0, 1.0, 0.1),
    (1.0, 1.0, 1.0),
)
"""Prior variances of the parts for counts of operations, operations by edge, and pairs of operations."""

NOISES = (1e-7, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Variances of the residual, in units of the costs' variance: the ridge penalties."""


@dataclass(frozen=True)
class _Choice:
    """A kind of features: a prior of `PRIORS`, a noise, and whether dead operations are left out."""

    prior: tuple[float, float, float]
    noise: float
    live: bool


def fit(
    space: SearchSpace,
    genotypes: np.ndarray,
    columns: Mapping[str, FloatArray],
    *,
    device: str,
    seed: int,
    network: Mapping[str, object],
    origin: Mapping[str, object],
) -> Profile:
    """Fit a profile to measured networks.

    A cost is a constant, plus a part for the number of each operation, plus shrunk deviations by edge and by
    pair of operations. Leave-one-out cross-validation decides how much they shrink (up to counts of
    operations alone), and whether operations with unused output are removed first. The profile is fitted to
    all networks, at most `MOST_FITTED`. It is checked on the others; if there are none, on five folds, each
    predicted by a fit to the other four. Networks that the device does not support are left out.

    Args:
        space: The space.
        genotypes: Shape (n, edges).
        columns: Measured values per metric, each (n,).
        device: Name of the device.
        seed: Seed of the order of the networks, which decides on fit, check and folds.
        network: Shape of the networks, kept in the profile.
        origin: Kept in the profile.

    Raises:
        ValueError: Fewer than `FEWEST` supported networks, or costs that are all equal.
    """
    known = np.flatnonzero(np.all([np.isfinite(values) for values in columns.values()], axis=0))
    if len(known) < FEWEST:
        raise ValueError(
            f"{len(known)} supported networks are too few to fit a profile to; {FEWEST} are needed"
        )
    rows = np.random.default_rng(seed).permutation(known)
    G, Y = genotypes[rows].astype(np.intp), {metric: values[rows] for metric, values in columns.items()}
    for metric, y in Y.items():
        if np.ptp(y[:MOST_FITTED]) == 0:
            raise ValueError(f"device {device}: all networks have the same {metric}; there is nothing to fit")
    costs, live = _fitted(space, G[:MOST_FITTED], {metric: y[:MOST_FITTED] for metric, y in Y.items()})
    held_out, predicted = _held_out(space, G, Y, costs, live)
    shown = held_out[:MOST_SHOWN]
    return Profile(
        schema=SCHEMA_VERSION,
        device=device,
        space=space.name,
        network=dict(network),
        origin={**origin, "fitted_to": min(len(G), MOST_FITTED), "seed": seed},
        costs=costs,
        check={
            metric: agreement(predicted[metric][held_out], y[held_out], space.is_connected(G[held_out]))
            for metric, y in Y.items()
        },
        live=live,
        networks=Networks(
            archs=[space.to_str(tuple(row)) for row in G[shown].tolist()],
            fitted=0,
            measured={metric: y[shown].tolist() for metric, y in Y.items()},
            predicted={metric: values[shown].tolist() for metric, values in predicted.items()},
        ),
        unsupported=_unsupported(space, genotypes.astype(np.intp), known, seed),
    )


def _unsupported(space: SearchSpace, G: np.ndarray, known: np.ndarray, seed: int) -> list[list[list[int]]]:
    """Sets of operations per edge whose combinations are the networks that are not in `known`, none other.

    Found greedily: a network not yet in a set becomes one, and takes up operations as long as nothing that is
    supported comes in; of a few random orders of operations the one that makes the largest set counts. Empty
    for a table that lacks networks of the space, since these might be supported or not.
    """
    refused = np.setdiff1d(np.arange(len(G)), known)
    if not len(refused) or len(G) < space.size:
        return []
    open_ = np.zeros((len(space.ops),) * G.shape[1], dtype=bool)
    open_[tuple(G[refused].T)] = True
    bad, rng, found = open_.copy(), np.random.default_rng(seed), []
    more = list(itertools.product(range(G.shape[1]), range(len(space.ops))))
    for genotype in G[rng.permutation(refused)].tolist():
        if not open_[tuple(genotype)]:
            continue
        grown = []
        for _ in range(NUM_ORDERS):
            sets = [[op] for op in genotype]
            for edge, op in (more[number] for number in rng.permutation(len(more))):
                with_it = [[op] if other == edge else ops for other, ops in enumerate(sets)]
                if op not in sets[edge] and bad[np.ix_(*with_it)].all():
                    sets[edge].append(op)
            grown.append([sorted(ops) for ops in sets])
        largest = max(grown, key=lambda sets: math.prod(map(len, sets)))
        open_[np.ix_(*largest)] = False
        found.append(largest)
    return found


def _held_out(
    space: SearchSpace, G: np.ndarray, Y: Mapping[str, FloatArray], costs: Mapping[str, Additive], live: bool
) -> tuple[np.ndarray, dict[str, FloatArray]]:
    """The rows of a fit's check, and predictions for them, (n,) per metric; NaN in all other rows."""
    predicted = {metric: np.full(len(G), np.nan) for metric in Y}
    rows = np.arange(len(G))
    if len(rows) - MOST_FITTED >= FEWEST:
        for metric, cost in costs.items():
            predicted[metric][MOST_FITTED:] = _predicted(space, cost, live, G[MOST_FITTED:])
        return rows[MOST_FITTED:], predicted
    rows = rows[:MOST_FITTED]
    for fold in (rows[k::NUM_FOLDS] for k in range(NUM_FOLDS)):
        rest = np.setdiff1d(rows, fold)
        parts, without = _fitted(space, G[rest], {metric: y[rest] for metric, y in Y.items()})
        for metric, cost in parts.items():
            predicted[metric][fold] = _predicted(space, cost, without, G[fold])
    return rows, predicted


def _predicted(space: SearchSpace, cost: Additive, live: bool, G: np.ndarray) -> FloatArray:
    return np.where(space.is_connected(G), cost(space.live(G)), cost.floor) if live else cost(G)


def _fitted(
    space: SearchSpace, G: np.ndarray, Y: Mapping[str, FloatArray]
) -> tuple[dict[str, Additive], bool]:
    """Costs per metric, and whether they count live operations only."""
    few = slice(0, MOST_CHOSEN_ON)
    found = {metric: _chosen(space, G[few], y[few]) for metric, y in Y.items()}
    shared = set.intersection(*(set(by_live) for by_live in found.values()))
    live = min(shared, key=lambda each: sum(by_live[each][0] for by_live in found.values()))
    return {metric: _solved(space, G, y, found[metric][live][1]) for metric, y in Y.items()}, live


def _chosen(space: SearchSpace, G: np.ndarray, y: FloatArray) -> dict[bool, tuple[float, _Choice]]:
    """Per treatment of dead operations: the least leave-one-out error, and its features.

    With A the inverse of kernel plus noise, the errors are (A z) / diag(A).
    """
    z, connected = _standardised(y)[0], space.is_connected(G)
    best: dict[bool, tuple[float, _Choice]] = {}
    for live in (False, True):
        rows = np.flatnonzero(connected) if live else np.arange(len(G))
        if live and (type(space).live is SearchSpace.live or len(rows) < FEWEST // 2):
            continue
        without = z[~connected] if live else z[:0]
        left = float(((without - np.median(without)) ** 2).sum()) if len(without) else 0.0
        errors = {}
        for prior in PRIORS:
            covariance = _covariance(space, _seen(space, G[rows], live), prior)
            for noise in NOISES:
                inverse = np.linalg.inv(covariance + noise * np.eye(len(rows)))
                residuals = inverse @ z[rows] / np.diag(inverse)
                errors[_Choice(prior, noise, live)] = float(residuals @ residuals) + left
        choice = min(errors, key=errors.__getitem__)
        best[live] = errors[choice], choice
    return best


def _solved(space: SearchSpace, G: np.ndarray, y: FloatArray, choice: _Choice) -> Additive:
    """The fit of a kind of features to all networks, as additive costs; six digits are enough."""
    z, mean, scale = _standardised(y)
    connected = space.is_connected(G)
    rows = np.flatnonzero(connected) if choice.live else np.arange(len(G))
    X = _seen(space, G[rows], choice.live)
    covariance = _covariance(space, X, choice.prior)
    covariance[np.diag_indices(len(rows))] += choice.noise
    weights = scale * np.linalg.solve(covariance, z[rows])
    onehot, num_edges = np.eye(len(space.ops))[X], X.shape[1]
    by_count, by_edge, by_pair = _units(num_edges) * choice.prior
    edges = by_edge * np.einsum("n,neo->eo", weights, onehot) + by_count * (weights @ onehot.sum(axis=1))
    pairs = {}
    for a, b in itertools.combinations(range(num_edges), 2) if by_pair else ():
        pairs[f"{a},{b}"] = _all_rounded(2 * by_pair * onehot[:, a].T @ (weights[:, None] * onehot[:, b]))
    nothing = y[~connected]
    floor = float(np.median(nothing)) if choice.live and len(nothing) else float(y.min())
    return Additive(_rounded(mean + CONSTANT * weights.sum()), _all_rounded(edges), pairs, floor)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _all_rounded(values: FloatArray) -> list[list[float]]:
    return [[_rounded(value) for value in row] for row in values.tolist()]


def _standardised(y: FloatArray) -> tuple[FloatArray, float, float]:
    """Costs of mean 0 and variance 1, their mean and their deviation."""
    mean, scale = float(y.mean()), float(y.std()) or 1.0
    return (y - mean) / scale, mean, scale


def _seen(space: SearchSpace, G: np.ndarray, live: bool) -> np.ndarray:
    return space.live(G) if live else G


def _units(num_edges: int) -> FloatArray:
    """Scales that give the kernels a similar size: of counts, of edges and of pairs of edges."""
    return np.array([3 / num_edges**2, 1 / num_edges, 1 / max(1, num_edges * (num_edges - 1))])


def _covariance(space: SearchSpace, X: np.ndarray, prior: tuple[float, float, float]) -> FloatArray:
    """The kernel, shape (n, n): scalar products of counts, of operations by edge and of pairs of them.

    Two networks that agree on m edges agree on m (m - 1) / 2 pairs of edges, so that the many pairs need not
    be written out.
    """
    onehot = np.eye(len(space.ops))[X]
    counts, flat = onehot.sum(axis=1), onehot.reshape(len(X), -1)
    by_count, by_edge, by_pair = _units(X.shape[1]) * prior
    same = flat @ flat.T
    return CONSTANT + by_count * (counts @ counts.T) + same * (by_edge + by_pair * (same - 1))
