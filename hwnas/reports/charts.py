"""Numbers behind the run page's drawings: units, axes with round ticks, and the shapes of cells.

Positions are in percent of the plot, so that the page can stretch its drawings to any width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from hwnas.core import Genotype, Limit, Objective, SearchSpace, Trial, front
from hwnas.runs.units import quantity, text
from hwnas.searches.analysis import spread
from hwnas.spaces.darts import encoding as darts
from hwnas.spaces.fbnet import encoding as fbnet
from hwnas.spaces.nasbench201.encoding import EDGES, OPS

NUM_COLOURS = 8
MOST_DRAWN = 500
"""Points of a curve."""
COLOURS = {
    f"c{index}": colour
    for index, colour in enumerate(
        ("#67707a", "#0067a5", "#00805c", "#b9540a", "#a8457f", "#7d6500", "#1b87b8", "#6b3fa0")
    )
}
"""Of operations, by style class, as on a page in daylight."""

LOG_RATIO = 30.0
"""From this ratio of largest to smallest on, an axis is logarithmic."""


def phrase(metric: str, value: float) -> str:
    """A metric in a line of the terminal: "latency_ms 5.93", "153.3 M multiply-adds"."""
    counted = metric in ("flops", "params")
    return (
        f"{short(metric, value)} {quantity(metric).name}" if counted else f"{metric} {short(metric, value)}"
    )


def short(metric: str, value: float) -> str:
    """A value in the metric's own unit to four digits, "5.93"; large counts as "153.3 M"."""
    return text(metric, value) if metric in ("flops", "params") else f"{value:.4g}"


def count(number: int) -> str:
    """A number of architectures: "15,625", "9.8 x 10^20"."""
    if number < 10**9:
        return f"{number:,}"
    digits, _, exponent = f"{number:.1e}".partition("e")
    return f"{digits} x 10^{int(exponent)}"


@dataclass(frozen=True)
class Axis:
    """One axis of a plot.

    Args:
        label: What it shows, with the unit.
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
        """Position of a value in percent; the nearer end for values beyond the axis."""
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
        metric: Which metric, or "generation", "epoch" or "evaluations": no margin, and whole ticks.
        values: What is plotted, at least one finite value. With `keep`, at most a fifth of them may stay
            beyond either end: far outliers (Tukey's outer fences) that would squeeze the rest to less than
            half, such as networks without a path, whose similarity is 0.
        keep: Values that the axis should reach, the front's, unless they are far outliers themselves.
        marks: Values that it should reach where they are near, the limits'.
        num_ticks: About how many ticks.
        allow_log: Choose a logarithmic scale where the values span a ratio of `LOG_RATIO`.
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
    """Powers of ten between the ends; with 2 and 5 times them if there are few."""
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
        places: (x, y) per point, at the nearer end of an axis for a point beyond it.
        beyond: Whether the point lies beyond an axis.
        path: The front as steps, SVG path data in a square of 100 by 100.
        true_path: The same of the true front; empty where nobody knows it.
        shaded: (x, y, width, height) of what each limit excludes.
        lines: (whether it is vertical, position, text) of the limits within the axes.
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
        objectives: Quality, drawn upwards, then cost, drawn to the right; of a front of more objectives only
            what no other beats in these two is joined by the line.
        limits: Those on other metrics are left out.
        points: Metrics per network, finite.
        optimal: Metrics of the front's networks.
        true_front: Objectives of the best networks that there are, where they are known.
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
        after = vertical == (limit.goal == "min")  # y points down: a lower bound excludes what is below it
        begin, size = (at, round(100 - at, 2)) if after else (0.0, at)
        shaded.append((begin, 0.0, size, 100.0) if vertical else (0.0, begin, 100.0, size))
        if 0 < at < 100:
            lines.append((vertical, at, f"limit {text(limit.metric, limit.bound, exact=True)}"))
    places = [place(metrics) for metrics in points]
    return Scatter(x, y, places, beyond, line(optimal), line(true_front), shaded, lines)


def dots(places: Sequence[tuple[float, float]], step: float = 0.2) -> str:
    """Points as SVG path data of zero-length lines, which round caps make dots.

    Args:
        places: (x, y) in percent.
        step: Rounded to so much; those that fall together are drawn once.
    """
    cells = dict.fromkeys((round(x / step), round(y / step)) for x, y in places)
    return "".join(f"M{x * step:.4g} {y * step:.4g}h0" for x, y in cells)


def steps(places: Sequence[tuple[float, float]]) -> str:
    """The line of a front through its networks' places, cheapest first, as SVG path data."""
    if not places:
        return ""
    (x, y), *rest = places
    return f"M{x} {y}" + "".join(f"H{a}V{b}" for a, b in rest) + "H100"


def from_top(percent: float) -> float:
    """A height in percent as SVG counts it, from the top."""
    return round(100 - percent, 2)


@dataclass(frozen=True)
class LineChart:
    """One curve.

    Args:
        title: What it shows.
        x: Horizontal axis.
        y: Vertical axis.
        path: The curve, SVG path data in a square of 100 by 100.
        end: (x, y from the top) of its last point.
        last: Its last value, written out.
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
    """A curve of a metric; values that are not finite are left out, at least one must be.

    Args:
        title: What it shows.
        metric: Metric of `ys`.
        horizontal: "generation", "epoch" or "evaluations".
        xs: Where.
        ys: Values.
    """
    known = [(a, b) for a, b in zip(xs, ys, strict=True) if math.isfinite(b)]
    x = axis(horizontal, xs)
    y = axis(metric, [b for _, b in known], num_ticks=5)
    places = [(x.at(a), from_top(y.at(b))) for a, b in (known[i] for i in spread(len(known), MOST_DRAWN))]
    path = "M" + "L".join(f"{a} {b}" for a, b in places)
    return LineChart(title, x, y, path, places[-1], text(metric, known[-1][1]))


@dataclass(frozen=True)
class Slot:
    """Where one decision of a genotype is drawn.

    Args:
        shape: "edge", a path that ends in an arrow, or "box".
        path: SVG path data.
        x: Centre of the label.
        y: Centre of the label.
        name: Of the decision, in words.
    """

    shape: str
    path: str
    x: float
    y: float
    name: str


@dataclass(frozen=True)
class Drawing:
    """The shape that all architectures of a space share, and how each operation looks in it.

    Args:
        width: Of the drawing, in its own units.
        height: Of the drawing.
        slots: One per decision of a genotype.
        nodes: (x, y, name) of the nodes.
        ops: (style class, label) per operation; "ghost" is drawn faintly, "off" not at all.
        names: Full name per operation, for a legend.
        captions: (x, y, text) beside the drawing's parts.
    """

    width: int
    height: int
    slots: tuple[Slot, ...]
    nodes: tuple[tuple[float, float, str], ...]
    ops: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    captions: tuple[tuple[float, float, str], ...] = ()


NODE_RADIUS = 14
_NODES = ((22.0, 92.0, "in"), (124.0, 34.0, "1"), (222.0, 92.0, "2"), (328.0, 92.0, "out"))
_BENDS = {(0, 3): 88.0, (1, 3): -36.0}  # the two long edges pass outside the others
_LOOKS = {
    "none": ("ghost", ""),
    "skip_connect": ("c0", "skip"),
    "nor_conv_1x1": ("c2", "1×1"),
    "nor_conv_3x3": ("c1", "3×3"),
    "avg_pool_3x3": ("c3", "pool"),
}
_DARTS_LOOKS = {
    "none": ("off", ""),
    "max_pool_3x3": ("c3", "max"),
    "avg_pool_3x3": ("c5", "avg"),
    "skip_connect": ("c0", "skip"),
    "sep_conv_3x3": ("c1", "sep3"),
    "sep_conv_5x5": ("c6", "sep5"),
    "dil_conv_3x3": ("c2", "dil3"),
    "dil_conv_5x5": ("c4", "dil5"),
}


def drawing(space: SearchSpace) -> Drawing:
    """The drawing of a space: NAS-Bench-201's graph, the two cells of DARTS, FBNet's stages, else a strip.

    A strip has a box per decision.
    """
    if space.ops == OPS and len(space.choices) == len(EDGES):
        slots = tuple(_edge(source, target) for source, target in EDGES)
        return Drawing(350, 158, slots, _NODES, tuple(_LOOKS[op] for op in OPS), OPS)
    if space.ops == darts.OPS and len(space.choices) == len(darts.EDGES):
        return _cells()
    if space.ops == fbnet.OPS and len(space.choices) == sum(fbnet.LAYERS):
        return _stages()
    size, per_row, count = 20, 16, len(space.choices)
    boxes: list[Slot] = []
    for i in range(count):
        x, y = 1 + (i % per_row) * (size + 2), 1 + (i // per_row) * (size + 2)
        boxes.append(
            Slot("box", f"M{x} {y}h{size}v{size}h-{size}z", x + size / 2, y + size / 2, f"decision {i + 1}")
        )
    labels = [op if len(op) == 1 else str(index) for index, op in enumerate(space.ops)]
    ops = tuple((f"c{index % NUM_COLOURS}", label) for index, label in enumerate(labels))
    rows = -(-count // per_row)
    return Drawing(min(count, per_row) * (size + 2), rows * (size + 2), tuple(boxes), (), ops, space.ops)


def picture(space: SearchSpace, genotype: Genotype) -> str:
    """An architecture as an SVG picture of its own."""
    shape = drawing(space)
    parts = []
    for slot, op in zip(shape.slots, genotype, strict=True):
        style, label = shape.ops[op]
        if style == "off":
            continue
        colour = COLOURS.get(style, "#b6bcc4")
        line = f'stroke="{colour}"' + (' stroke-dasharray="2 4"' if style == "ghost" else "")
        if slot.shape == "edge":
            parts.append(
                f'<path d="{slot.path}" fill="none" {line} stroke-width="2" marker-end="url(#hwnas-end)"/>'
            )
        else:
            parts.append(f'<path d="{slot.path}" fill="white" {line}/>')
        if label:
            parts.append(
                f'<text x="{slot.x}" y="{slot.y}" fill="{colour}" stroke="white" stroke-width="4" '
                f'paint-order="stroke">{label}</text>'
            )
    parts += [
        f'<circle cx="{x}" cy="{y}" r="{NODE_RADIUS}" fill="white" stroke="#67707a"/>'
        f'<text x="{x}" y="{y}" fill="#1c2126">{name}</text>'
        for x, y, name in shape.nodes
    ]
    parts += [f'<text x="{x}" y="{y}" fill="#67707a">{name}</text>' for x, y, name in shape.captions]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{shape.width}" height="{shape.height}" '
        f'viewBox="0 0 {shape.width} {shape.height}" font-family="sans-serif" font-size="11" '
        'font-weight="600" text-anchor="middle" dominant-baseline="central">'
        '<defs><marker id="hwnas-end" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="5" markerHeight="5" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#67707a"/></marker></defs>' + "".join(parts) + "</svg>"
    )


def _stages() -> Drawing:
    """FBNet: a column per stage, its layers from top to bottom, each a box with kernel and expansion."""
    width, height, gap = 46, 20, 4
    boxes: list[Slot] = []
    for stage, number in enumerate(fbnet.LAYERS):
        for layer in range(number):
            x, y = 1 + stage * (width + gap), 1 + layer * (height + gap)
            path = f"M{x} {y}h{width}v{height}h-{width}z"
            boxes.append(Slot("box", path, x + width / 2, y + height / 2, f"layer {len(boxes) + 1}"))
    looks = [
        (f"c{index}", f"{kernel}×{kernel} " + (f"g{groups}" if groups > 1 else f"e{expansion}"))
        for index, (kernel, expansion, groups) in enumerate(fbnet.BLOCKS)
    ]
    looks.append(("ghost", "skip"))
    size = len(fbnet.LAYERS) * (width + gap), max(fbnet.LAYERS) * (height + gap)
    return Drawing(*size, tuple(boxes), (), tuple(looks), fbnet.OPS)


def _cells() -> Drawing:
    """DARTS: a cell's nodes in a row, edges of even sources in arcs above it, of odd ones below."""
    step, height, rise = 61.0, 158.0, 15.0
    nodes, slots, captions = [], [], []
    for row, cell in enumerate(("normal", "reduce")):
        middle = row * height + 92.0
        captions.append((26.0, row * height + 10.0, cell))
        nodes += [(22.0 + node * step, middle, str(node)) for node in range(darts.NUM_NODES + 2)]
        for source, target in darts.CELL_EDGES:
            a, b = 22.0 + source * step, 22.0 + target * step
            x, span = (a + b) / 2, target - source
            if span == 1:
                slots.append((f"M{a + NODE_RADIUS} {middle}H{b - NODE_RADIUS - 2}", x, middle))
            else:
                top = middle + (rise * span + 1) * (1 if source % 2 else -1)
                control = 2 * top - middle  # a quadratic curve comes half as near
                length = math.hypot(x - a, control - middle)
                out = (x - a) / length, (control - middle) / length
                start = f"{a + NODE_RADIUS * out[0]:.1f} {middle + NODE_RADIUS * out[1]:.1f}"
                end = f"{b - (NODE_RADIUS + 2) * out[0]:.1f} {middle + (NODE_RADIUS + 2) * out[1]:.1f}"
                slots.append((f"M{start}Q{x} {control:.1f} {end}", x, top))
    named = [
        Slot("edge", path, x, y, f"{cell} {source}→{target}")
        for (path, x, y), (cell, source, target) in zip(slots, darts.EDGES, strict=True)
    ]
    looks = tuple(_DARTS_LOOKS[op] for op in darts.OPS)
    return Drawing(350, int(2 * height), tuple(named), tuple(nodes), looks, darts.OPS, tuple(captions))


def _edge(source: int, target: int) -> Slot:
    """A quadratic curve between two nodes, cut at their circles, with its label in the middle."""
    a, b = np.array(_NODES[source][:2]), np.array(_NODES[target][:2])
    control = (a + b) / 2 + (0.0, _BENDS.get((source, target), 0.0))
    start = a + (control - a) / np.linalg.norm(control - a) * NODE_RADIUS
    end = b + (control - b) / np.linalg.norm(control - b) * (NODE_RADIUS + 2)
    x, y = (start + 2 * control + end) / 4
    points = " ".join(f"{value:.1f}" for value in (*control, *end))
    path, name = f"M{start[0]:.1f} {start[1]:.1f}Q{points}", f"{_NODES[source][2]}→{_NODES[target][2]}"
    return Slot("edge", path, round(float(x), 1), round(float(y), 1), name)
