"""What accuracies that were published for some images say of cells on others."""

from __future__ import annotations

from collections.abc import Collection
from functools import cache
from itertools import combinations
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hwnas.core import FloatArray
from hwnas.files import read_json
from hwnas.spaces.nasbench201.encoding import EDGES, NONE, OPS
from hwnas.strategies.predictor import Gap

FITS = Path(__file__).with_name("published.json")
"""Coefficients by image set; tests/studies/test_published_fit.py makes them of the benchmark's table."""

PENALTIES = np.logspace(-2, 3, 11)
"""Penalties of the ridge regression, of which cross-validation chooses."""


def terms(live: NDArray[np.intp]) -> FloatArray:
    """Which operation is on which edge, and which two are on which two, (n, 264) of 0 and 1.

    `none` has no terms: it is the cell from which the others differ.

    Args:
        live: Live operations (n, 6).
    """
    there = live[:, :, None] == np.flatnonzero(np.arange(len(OPS)) != NONE)  # (n, edges, 4)
    pairs = [
        there[:, first, :, None] & there[:, second, None, :]
        for first, second in combinations(range(len(EDGES)), 2)
    ]
    return np.column_stack([there.reshape(len(live), -1), *(pair.reshape(len(live), -1) for pair in pairs)])


def fitted(live: NDArray[np.intp], accuracy: FloatArray) -> FloatArray:
    """Coefficients of a ridge regression over `terms`, the constant first, (265,).

    It predicts the accuracy on a scale of gaps to the best (`hwnas.strategies.predictor.Gap`), of which the
    predictions of the given cells have mean 0 and standard deviation 1.

    Args:
        live: Live operations of cells, each once, (n, 6).
        accuracy: Their accuracies (n,).
    """
    from sklearn.linear_model import RidgeCV

    X = terms(live).astype(np.float64)
    mean, spread = X.mean(axis=0), X.std(axis=0)
    spread[spread == 0] = np.inf
    model = RidgeCV(PENALTIES).fit((X - mean) / spread, Gap(accuracy).to(accuracy))
    weights = model.coef_ / spread
    predicted = X @ weights
    return np.r_[-predicted.mean(), weights] / predicted.std()


@cache
def fits() -> dict[str, FloatArray]:
    """The shipped coefficients by image set."""
    return {name: np.array(values) for name, values in read_json(FITS)["coefficients"].items()}


def expected(live: NDArray[np.intp], apart_from: Collection[str]) -> FloatArray:
    """Mean prediction of the fits to image sets, (n,); about mean 0 and deviation 1 over all cells.

    Args:
        live: Live operations (n, 6).
        apart_from: Image sets whose accuracies are not to be used.
    """
    X = terms(live)
    used = [values for name, values in fits().items() if name not in apart_from]
    return np.mean([values[0] + X @ values[1:] for values in used], axis=0)
