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
"""A training and a size in the middle of those that were fitted, from which "steps x flops" counts."""


class Shape(NamedTuple):
    """What counts of n networks, each (n,).

    Attributes:
        flops: Multiply-adds for one image.
        params: Parameters.
        layers: Convolutions.
        stem: By how much the stem divides the side of the images.
        last: Whether there is a last stage, 0 or 1.
        width: Channels of the first stage.
    """

    flops: FloatArray
    params: FloatArray
    layers: FloatArray
    stem: FloatArray
    last: FloatArray
    width: FloatArray


TERMS = ("steps", "flops", "params", "layers", "stem", "last", "width", "steps x flops")
"""What the line is a sum of: doublings of steps, multiply-adds, parameters, the stem's stride and the width;
convolutions; whether there is a last stage; and what doublings of steps are worth more in larger networks."""


def worth(steps: FloatArray, per_pass: float) -> FloatArray:
    """Optimiser steps on new images that are worth as much as steps on images that are seen again, (n,).

    Args:
        steps: Optimiser steps, (n,).
        per_pass: Steps of a pass over the images.
    """
    return 1 / (1 / steps + 1 / (PASSES * per_pass))


def terms(steps: FloatArray, of: Shape) -> FloatArray:
    """The numbers in `TERMS`, (n, 8).

    Args:
        steps: Optimiser steps of n trainings, (n,), see `worth`.
        of: The networks.
    """
    doublings = [np.log2(values) for values in (steps, of.flops, of.params, of.stem, of.width)]
    both = np.log2(steps / STEPS) * np.log2(of.flops / FLOPS)
    return np.column_stack([*doublings[:3], of.layers, doublings[3], of.last, doublings[4], both])


class Line(NamedTuple):
    """A fitted line.

    Attributes:
        center: Means of the terms that it was fitted to, (8,).
        coefficients: Of the logit of the accuracy, (8,).
        covariance: Of the coefficients, (8, 8).
    """

    center: FloatArray
    coefficients: FloatArray
    covariance: FloatArray

    def at(self, X: FloatArray) -> FloatArray:
        """The line at terms (n, 8) less one standard deviation of it, (n,).

        The best of many networks would else be one of those of which the line knows little.
        """
        away = X - self.center
        return away @ self.coefficients - np.sqrt(np.einsum("ij,jk,ik->i", away, self.covariance, away))


PENALTY = 1.0
"""Of the coefficients of standardised terms, in trainings."""


def fitted(X: FloatArray, y: FloatArray, group: FloatArray) -> Line:
    """The line through terms (n, 8) and logits (n,), whose means may differ from group to group.

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
