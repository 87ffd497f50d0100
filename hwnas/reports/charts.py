"""Geometry of charts: axes with round ticks, scatter plots and curves.

Positions are in percent of the plot, so that a page can stretch its charts to any width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwnas.core import Limit, Objective, Trial, front
from hwnas.runs.units import quantity, text
from hwnas.searches.analysis import spread

MAX_POINTS = 500
"""Points of a curve."""

LOG_RATIO = 30.0
"""Ratio of the largest to the smallest value from which on an axis is logarithmic."""


@dataclass(frozen=True)
class Axis:
    """One axis of a plot.

    Args:
        label: Name of the quantity, with its unit.
        low: Value at 0 percent.
        high: Value at 100 percent.
        ticks: (position in percent, text) of each tick.
        log: Whether it is logarithmic.
    """

    label: str
    low: float
    high: float
    ticks: tuple[tuple[float, str], ...] = ()
    log: bool = False

    def at(self, value: float) -> float:
        """Position of a value in percent; values beyond the axis are at its nearer end."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, self.low))
        return round(100.0 * min(1.0, max(0.0, (value - low) / (high - low))), 2)


def axis(
    metric: str,
    values: Sequence[float],
    *,
    keep: Sequence[float] = (),
    marks: Sequence[float] = (),
    num_ticks: int = 6,
    allow_log: bool = False,
) -> Axis:
    """An axis over values with a margin and round ticks.

    Args:
        metric: The metric; "generation", "epoch" and "evaluations" have no margin and whole ticks.
        values: Values to plot, at least one, all finite. With `keep`, far outliers (Tukey's outer fences)
            stay outside, at most a fifth of the values at either end, if they would squeeze the others to
            less than half of the axis; e.g. networks without a path, whose similarity is 0.
        keep: Values that the axis should reach, those of the front, unless they are far outliers.
        marks: Values that the axis should reach if they are near, those of limits.
        num_ticks: Approximate number of ticks.
        allow_log: Whether the scale is logarithmic if the values span a ratio of `LOG_RATIO`.
    """
    low, high = float(min(values)), float(max(values))
    log = allow_log and low > 0 and high / low >= LOG_RATIO
    if keep and not log:
        rest, q25, q75, most = np.quantile(values, [0.2, 0.25, 0.75, 0.8])
        inner_low = max(low, min(rest, q25 - 3 * (q75 - q25)))
        inner_high = min(high, max(most, q75 + 3 * (q75 - q25)))
        reach = 2 * (inner_high - inner_low)
        near = [value for value in keep if inner_low - reach <= value <= inner_high + reach]
        inner_low, inner_high = min(inner_low, *near, inner_high), max(inner_high, *near, inner_low)
        if inner_high - inner_low < (high - low) / 2:
            low, high = float(inner_low), float(inner_high)
    for mark in marks:
        reach = (high - low) / 4
        if low - reach <= mark <= high + reach and (mark > 0 or not log):
            low, high = min(low, mark), max(high, mark)
    how = quantity(metric, max(abs(low), abs(high)))
    counted = metric in ("generation", "epoch", "evaluations")
    if counted:
        high = max(high, low + 1)
    elif log:
        low, high = low / 1.15, high * 1.15
    else:
        margin = 0.05 * (high - low) or 0.05 * abs(high) or 0.5
        low = max(0.0, low - margin) if low >= 0 else low - margin
        high += margin
    if log:
        numbers = _log_ticks(low * how.factor, high * how.factor)
    else:
        numbers = _ticks(low * how.factor, high * how.factor, num_ticks, least=1.0 if counted else 0.0)
    bare = Axis(how.label, low, high, log=log)
    ticks = tuple((bare.at(number / how.factor), label) for number, label in numbers)
    return replace(bare, ticks=ticks)


def _ticks(low: float, high: float, num: int, *, least: float) -> list[tuple[float, str]]:
    """Round numbers between the ends: 1, 2 or 5 times a power of ten apart, at least `least`."""
    raw = max(least, (high - low) / num)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= raw * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    numbers = [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]
    return [(number, f"{number:,.{digits}f}") for number in numbers]


def _log_ticks(low: float, high: float) -> list[tuple[float, str]]:
    """Powers of ten between the ends; also 2 and 5 times these if they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high < 2000 * low else (1,)
    numbers = [step * 10.0**power for power in powers for step in steps]
    return [(number, f"{number:g}") for number in numbers if low <= number <= high]


@dataclass(frozen=True)
class Scatter:
    """Cost against quality, with the front and the limits; y counts from the top.

    Args:
        x: Axis of the cost.
        y: Axis of the quality.
        places: (x, y) per point; points beyond an axis are at its nearer end.
        beyond: Whether each point lies beyond an axis.
        path: The front as steps, as SVG path data in a square of 100 by 100.
        true_path: The true front likewise; empty if it is unknown.
        shaded: (x, y, width, height) of the area that each limit excludes.
        lines: (whether it is vertical, position, text) of each limit within the axes.
    """

    x: Axis
    y: Axis
    places: list[tuple[float, float]]
    beyond: list[bool]
    path: str
    true_path: str
    shaded: list[tuple[float, float, float, float]]
    lines: list[tuple[bool, float, str]]


def scatter(
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    points: Sequence[Mapping[str, float]],
    optimal: Sequence[Mapping[str, float]],
    true_front: Sequence[Mapping[str, float]] = (),
) -> Scatter:
    """Place networks in the plane of two objectives.

    Args:
        objectives: Quality, drawn upwards, then cost, drawn to the right. If there are more objectives, the
            line joins only networks that are not dominated in these two.
        limits: Limits of the run; those on other metrics are left out.
        points: Metrics per network, finite.
        optimal: Metrics of the front's networks.
        true_front: Objectives of the networks of the true front, if it is known.
    """
    y, x = (
        axis(
            objective.metric,
            [metrics[objective.metric] for metrics in points],
            keep=[metrics[objective.metric] for metrics in optimal],
            marks=[limit.bound for limit in limits if limit.metric == objective.metric],
            num_ticks=num_ticks,
            allow_log=objective.goal == "min",
        )
        for objective, num_ticks in zip(objectives, (8, 6), strict=True)
    )
    quality, cost = (objective.metric for objective in objectives)

    def place(metrics: Mapping[str, float]) -> tuple[float, float]:
        return x.at(metrics[cost]), from_top(y.at(metrics[quality]))

    beyond = [
        not (x.low <= metrics[cost] <= x.high and y.low <= metrics[quality] <= y.high) for metrics in points
    ]

    def line(networks: Sequence[Mapping[str, float]]) -> str:
        joined = front([Trial((index,), metrics, 0) for index, metrics in enumerate(networks)], objectives)
        return steps([place(trial.metrics) for trial in joined])

    shaded, lines = [], []
    for limit in limits:
        if limit.metric not in (quality, cost):
            continue
        vertical = limit.metric == cost
        at = x.at(limit.bound) if vertical else from_top(y.at(limit.bound))
        after = vertical == (limit.goal == "min")  # y points down, so a lower bound excludes the area below
        begin, size = (at, round(100 - at, 2)) if after else (0.0, at)
        shaded.append((begin, 0.0, size, 100.0) if vertical else (0.0, begin, 100.0, size))
        if 0 < at < 100:
            lines.append((vertical, at, f"limit {text(limit.metric, limit.bound, exact=True)}"))
    places = [place(metrics) for metrics in points]
    return Scatter(x, y, places, beyond, line(optimal), line(true_front), shaded, lines)


def dots(places: Sequence[tuple[float, float]], step: float = 0.2) -> str:
    """Points as SVG path data: lines of length zero, which round caps turn into dots.

    Args:
        places: (x, y) in percent.
        step: Unit to which positions are rounded; equal positions are drawn once.
    """
    cells = dict.fromkeys((round(x / step), round(y / step)) for x, y in places)
    return "".join(f"M{x * step:.4g} {y * step:.4g}h0" for x, y in cells)


def steps(places: Sequence[tuple[float, float]]) -> str:
    """The line of a front through the places of its networks, cheapest first, as SVG path data."""
    if not places:
        return ""
    (x, y), *rest = places
    return f"M{x} {y}" + "".join(f"H{a}V{b}" for a, b in rest) + "H100"


def from_top(percent: float) -> float:
    """A height in percent, counted from the top as in SVG."""
    return round(100 - percent, 2)


@dataclass(frozen=True)
class LineChart:
    """One curve.

    Args:
        title: Title.
        x: Horizontal axis.
        y: Vertical axis.
        path: The curve as SVG path data in a square of 100 by 100.
        end: (x, y from the top) of the last point.
        last: The last value, written out.
    """

    title: str
    x: Axis
    y: Axis
    path: str
    end: tuple[float, float]
    last: str


def line_chart(
    title: str, metric: str, horizontal: str, xs: Sequence[float], ys: Sequence[float]
) -> LineChart:
    """A curve of a metric.

    Args:
        title: Title.
        metric: Metric of `ys`.
        horizontal: "generation", "epoch" or "evaluations".
        xs: Horizontal positions.
        ys: Values; those that are not finite are left out, and at least one must be finite.
    """
    known = [(a, b) for a, b in zip(xs, ys, strict=True) if math.isfinite(b)]
    x = axis(horizontal, xs)
    y = axis(metric, [b for _, b in known], num_ticks=5)
    places = [(x.at(a), from_top(y.at(b))) for a, b in (known[i] for i in spread(len(known), MAX_POINTS))]
    path = "M" + "L".join(f"{a} {b}" for a, b in places)
    return LineChart(title, x, y, path, places[-1], text(metric, known[-1][1]))


@dataclass(frozen=True)
class Curves:
    """Curves of several kinds of runs in one plot.

    Args:
        title: Title.
        x: Horizontal axis.
        y: Vertical axis.
        series: (name, colour, path, path of the band around it or "") per kind, in percent.
    """

    title: str
    x: Axis
    y: Axis
    series: list[tuple[str, int, str, str]]


def banded(
    x: Axis, y: Axis, xs: Sequence[float], middle: Sequence[float], half: Sequence[float]
) -> tuple[str, str]:
    """A curve and the band around it as SVG path data, in percent; the band is empty if it has no width.

    Args:
        x: Horizontal axis.
        y: Vertical axis.
        xs: Horizontal positions.
        middle: Heights.
        half: Half of the band's width at each.
    """

    def line(heights: Sequence[float]) -> list[str]:
        return [f"{x.at(a)} {from_top(y.at(b))}" for a, b in zip(xs, heights, strict=True)]

    upper, lower = (line([m + sign * h for m, h in zip(middle, half, strict=True)]) for sign in (1, -1))
    band = "M" + "L".join([*upper, *reversed(lower)]) + "Z" if any(half) else ""
    return "M" + "L".join(line(middle)), band
