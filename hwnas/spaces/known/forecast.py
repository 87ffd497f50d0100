"""What trainings of residual networks on some images say of others, on other images.

In minutes networks are far from what they can learn: a large one that sees few batches loses to a small one
that sees many. A line over logarithms says how much each counts. Steps count less and less as the images are
seen again and again: after `PASSES` passes as many steps more count as half as many.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import NamedTuple

import numpy as np

from hwnas.core import FloatArray
from hwnas.files import read_json

FIT = Path(__file__).with_name("forecast.json")
"""The line that ships; tests/studies/test_forecast_fit.py makes it."""

PASSES = 40.0
"""See above; a choice."""

STEPS, FLOPS = 2.0**11, 2.0**23
"""A training and a size in the middle of those that were fitted, from which the last two count."""


class Shape(NamedTuple):
    """What counts of n networks, each (n,).

    Attributes:
        flops: Multiply-adds for one image.
        params: Parameters.
        layers: Convolutions.
        side: Of the images before the stem, as a part of their own.
        stem: By how much the stem divides it.
        last: Whether there is a last stage, 0 or 1.
        width: Channels of the first stage.
    """

    flops: FloatArray
    params: FloatArray
    layers: FloatArray
    side: FloatArray
    stem: FloatArray
    last: FloatArray
    width: FloatArray


TERMS = (
    *("steps", "flops", "params", "side", "stem", "width", "layers", "last"),
    *("steps x flops", "steps x stem"),
)
"""What the line is a sum of: doublings of steps, multiply-adds, parameters, the images' side, the stem's
stride and the width; convolutions; whether there is a last stage; and what doublings of steps are worth more
in larger networks, and behind a larger stride."""


def worth(steps: FloatArray, per_pass: float) -> FloatArray:
    """Optimiser steps on new images that are worth as much as steps on images that are seen again, (n,).

    Args:
        steps: Optimiser steps, (n,).
        per_pass: Steps of a pass over the images.
    """
    return 1 / (1 / steps + 1 / (PASSES * per_pass))


def terms(steps: FloatArray, of: Shape) -> FloatArray:
    """The numbers in `TERMS`, (n, 10).

    Args:
        steps: Optimiser steps of n trainings, (n,), see `worth`.
        of: The networks.
    """
    sizes = (steps, of.flops, of.params, of.side, of.stem, of.width)
    more = np.log2(steps / STEPS)
    both = (more * np.log2(of.flops / FLOPS), more * np.log2(of.stem))
    return np.column_stack([*map(np.log2, sizes), of.layers, of.last, *both])


class Line(NamedTuple):
    """A fitted line.

    Attributes:
        center: Means of the terms that it was fitted to, (10,).
        coefficients: Of the logit of the accuracy, (10,).
        covariance: Of the coefficients, (10, 10).
    """

    center: FloatArray
    coefficients: FloatArray
    covariance: FloatArray

    def at(self, X: FloatArray) -> FloatArray:
        """The line at terms (n, 10) less one standard deviation of it, (n,).

        The best of many networks would else be one of those of which the line knows little.
        """
        away = X - self.center
        return away @ self.coefficients - np.sqrt(np.einsum("ij,jk,ik->i", away, self.covariance, away))


PENALTY = 1.0
"""Of the coefficients of standardised terms, in trainings."""


def fitted(X: FloatArray, y: FloatArray, group: FloatArray) -> Line:
    """The line through terms (n, 10) and logits (n,), whose means may differ from group to group.

    Args:
        X: Terms.
        y: Logits of accuracies.
        group: Numbers of the image sets, (n,): their means say nothing.
    """
    same = group[:, None] == group
    means = same / same.sum(axis=1, keepdims=True)
    away, left = X - means @ X, y - means @ y
    scale = away.std(axis=0)
    Z = away / scale
    inverse = np.linalg.inv(Z.T @ Z + PENALTY * np.eye(Z.shape[1]))
    found = inverse @ Z.T @ left
    num_free = len(y) - Z.shape[1] - len(np.unique(group))
    variance = np.square(left - Z @ found).sum() / max(1, num_free)
    return Line(X.mean(axis=0), found / scale, variance * inverse / np.outer(scale, scale))


@cache
def line() -> Line:
    """The line that ships."""
    content = read_json(FIT)
    return Line(*(np.array(content[name]) for name in Line._fields))
