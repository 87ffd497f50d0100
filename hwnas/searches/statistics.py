"""Statistics of repeated runs: intervals, ranks, and paired tests that are corrected for their number.

Numbers in, numbers out. A loss is better the lower it is. scipy's modules take a second to load, and are
imported by the functions that need them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from hwnas.core import FloatArray

LEVEL = 0.05
"""Highest probability that a family of tests shows a difference where there is none."""

MOST_EXACT = 50
"""Differences up to which the distribution of the signed-rank statistic is computed exactly."""

DIGITS = 9
"""Digits to which losses count; further ones are rounding errors, which would break ties."""


def holm(ps: Sequence[float]) -> list[float]:
    """P values corrected for their number by Holm's step-down method."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, ps[index] * (len(ps) - rank)))
        corrected[index] = highest
    return corrected


def rounded(losses: ArrayLike) -> FloatArray:
    """Losses without rounding errors: to `DIGITS` digits of the largest one."""
    values = np.asarray(losses, dtype=np.float64)
    largest = np.abs(values).max(initial=0.0)
    return values if largest == 0 else np.round(values, DIGITS - 1 - math.floor(math.log10(largest)))


def signed_rank(differences: ArrayLike) -> tuple[float, float]:
    """Wilcoxon's signed-rank test that differences are symmetric about 0.

    Differences of 0 are left out, equal ones share their mean rank. Up to `MOST_EXACT` differences p is
    exact, with ties too: scipy's is exact without ties only, and its normal approximation is far off where p
    is as small as tests of many pairs need. Beyond that it is scipy's.

    Args:
        differences: Shape (n,).

    Returns:
        The sum of the ranks of differences above 0 minus that of the others, and the two-sided p.
    """
    from scipy.stats import rankdata, wilcoxon

    d = rounded(differences)
    d = d[d != 0]
    if len(d) == 0:
        return 0.0, 1.0
    doubled = np.rint(2 * rankdata(np.abs(d))).astype(np.intp)  # whole numbers, with ties too
    above, total = int(doubled[d > 0].sum()), int(doubled.sum())
    balance = above - total / 2
    if len(d) > MOST_EXACT:
        return balance, float(wilcoxon(d).pvalue)
    fractions = np.zeros(total + 1)  # of all 2^n choices of signs, by the ranks of the positive ones
    fractions[0] = 1.0
    for rank in doubled:
        fractions[rank:] = (fractions[rank:] + fractions[: total + 1 - rank]) / 2
        fractions[:rank] /= 2
    tail = min(fractions[: above + 1].sum(), fractions[above:].sum())
    return balance, float(min(1.0, 2 * tail))


@dataclass(frozen=True)
class Paired:
    """Two methods, by the losses of runs that are paired by seed.

    Attributes:
        difference: Mean loss of the first minus that of the second.
        low: Lower end of its 95 % interval (Student's t).
        high: Upper end.
        wins: Seeds with which the first has the lower loss.
        losses: Seeds with which the second has.
        ties: Seeds with which they are equal.
        balance: Above 0 where the ranks speak against the first method, below 0 where they speak for it.
        p: Of Wilcoxon's signed-rank test, two-sided, not corrected.
    """

    difference: float
    low: float
    high: float
    wins: int
    losses: int
    ties: int
    balance: float
    p: float


def paired(first: Sequence[float] | FloatArray, second: Sequence[float] | FloatArray) -> Paired:
    """Compare two methods.

    Args:
        first: Losses of its runs, shape (seeds,), at least two.
        second: Losses of the other method's runs with the same seeds.
    """
    d = np.subtract(*rounded(np.array([first, second])))
    mean, half = interval(d)
    balance, p = signed_rank(d)
    wins, losses = int((d < 0).sum()), int((d > 0).sum())
    return Paired(
        difference=float(mean),
        low=float(mean - half),
        high=float(mean + half),
        wins=wins,
        losses=losses,
        ties=len(d) - wins - losses,
        balance=balance,
        p=p,
    )


def interval(values: ArrayLike) -> tuple[FloatArray, FloatArray]:
    """Mean over the first axis, and half the width of its 95 % interval (Student's t).

    Args:
        values: Shape (runs, ...), at least two runs.
    """
    from scipy.stats import t

    of = np.asarray(values, dtype=np.float64)
    return of.mean(axis=0), t.ppf(0.975, len(of) - 1) * of.std(axis=0, ddof=1) / math.sqrt(len(of))


def mean_ranks(losses: ArrayLike) -> FloatArray:
    """Mean rank of each method, 1 for the lowest loss; equal ones share their ranks. Shape (methods,).

    Args:
        losses: Shape (methods, seeds).
    """
    from scipy.stats import rankdata

    return np.asarray(rankdata(rounded(losses), axis=0).mean(axis=1), dtype=np.float64)


def fewest_seeds(tests: int) -> int:
    """The number of seeds from which on one of so many tests can show a difference at all.

    If the same method is better with each of n seeds, p is 2 / 2^n, and Holm's method multiplies it by the
    number of tests.
    """
    return math.ceil(math.log2(2 * tests / LEVEL))
