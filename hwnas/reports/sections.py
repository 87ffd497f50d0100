"""Sections of a run's page that analyse the run, as numbers and words for the template."""

from __future__ import annotations

import itertools
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from hwnas.core import DEVIATION, FloatArray, Genotype, Objective, SearchSpace, Trial, violations
from hwnas.reports import view as drawn
from hwnas.reports.charts import Axis, Scatter, axis, dots, from_top
from hwnas.reports.view import View
from hwnas.runs.folder import Run
from hwnas.runs.result import Effects
from hwnas.runs.units import duration, quantity, text
from hwnas.searches.analysis import (
    agreement,
    ancestry,
    changes,
    frequencies,
    nearest_earlier,
    spread,
    surrogate,
)
from hwnas.searches.blind import CHOICES
from hwnas.spaces.drawing import Drawing

MAX_NEAREST = 4_000
"""Networks up to which each gets its nearest earlier network; with more, only those of the front get it."""

MAX_FIGURES = 24
"""Steps of the best network's lineage that are drawn; all others are only described."""

LABEL_ROOM = 12.0
"""Width of a decile's label on a phone, in percent of the plot."""

NUM_BINS = 24
"""Points in time for which frequencies of operations are computed."""

DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
SIGNIFICANT = 6
"""Digits of the numbers in the page's data."""


def signed(metric: str, value: float, largest: float | None = None) -> str:
    """A difference with its sign and unit; accuracies are in points.

    Args:
        metric: Name of the metric.
        value: The difference, in the metric's own unit.
        largest: The value that is written with three digits; `value` gets the same decimals. None: `value`.
    """
    size = abs(value) if largest is None else abs(largest)
    how = quantity(metric, size)
    unit = " points" if how.unit == "%" else f" {how.unit}".rstrip()
    shown = float(f"{size * how.factor:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(shown))) if shown > 0 else 0
    digits = f"{abs(value) * how.factor:,.{decimals}f}"
    sign = "" if not digits.strip("0.,") else "−" if value < 0 else "+"
    return f"{sign}{digits}{unit}"


def changes_in_words(shape: Drawing, space: SearchSpace, a: Genotype, b: Genotype) -> list[str]:
    """Changes from one architecture to another, e.g. "in→1: skip_connect → none"."""
    return [
        f"{shape.slots[edge].name}: {space.ops[one]} → {space.ops[other]}"
        for edge, one, other in changes(a, b)
    ]


def template(space: SearchSpace, genotypes: Sequence[Genotype]) -> list[str] | None:
    """The texts before, between and after the names of operations, which all architectures have in common.

    Args:
        space: The space.
        genotypes: Architectures; up to 200 of them are compared.

    Returns:
        The texts, or None if architectures are not written in this form.
    """
    first = space.to_str(genotypes[0])
    parts, start = [], 0
    for op in genotypes[0]:
        at = first.find(space.ops[op], start)
        if at < 0:
            return None
        parts.append(first[start:at])
        start = at + len(space.ops[op])
    parts.append(first[start:])

    def filled(genotype: Genotype) -> str:
        return "".join(part + space.ops[op] for part, op in zip(parts, genotype, strict=False)) + parts[-1]

    some = [genotypes[row] for row in spread(len(genotypes), 200)]
    return parts if all(filled(genotype) == space.to_str(genotype) for genotype in some) else None


def data(view: View) -> str:
    """Data for the page's script, as compact JSON that is safe inside HTML; empty without a plot."""
    if view.plot is None:
        return ""
    run, shape, nets, optimal = view.run, view.drawing, view.networks, view.front
    names, best, pool = view.metrics, view.best, None if view.run.stationary else view.run.comparable
    rows = {trial.genotype: row for row, trial in enumerate(nets)}
    few = None if len(nets) <= MAX_NEAREST else [rows[trial.genotype] for trial in optimal]
    near = nearest_earlier(run.space, nets, range(len(nets)) if few is None else few)
    parts = template(run.space, [trial.genotype for trial in nets])
    known, repeats = _replay(view, rows)
    content: dict[str, object] = {
        "ops": shape.ops,
        "names": run.space.ops,
        "slots": [slot.name for slot in shape.slots],
        "parts": parts,
        "archs": None if parts else [run.space.to_str(trial.genotype) for trial in nets],
        "genotypes": "".join(DIGITS[op] for trial in nets for op in trial.genotype),
        "known": known,
        "repeats": list(itertools.chain(*repeats)),
        "starts": list(itertools.accumulate(map(len, repeats), initial=0)),
        "metrics": [_metric(view, view.plot, name, rows) for name in names],
        "objectives": [list(names).index(objective.metric) for objective in run.objectives],
        "front": [rows[trial.genotype] for trial in optimal],
        "best": rows[best.genotype] if best is not None else -1,
        "robust": run.plan.robust or 0,
        "pool": None if pool is None else sorted({rows[t.genotype] for t in pool if t.genotype in rows}),
        "near": [None if one is None else list(one) for one in near],
        "nearRows": few,
        "labelRoom": LABEL_ROOM,
        "truth": [list(map(_rounded, point)) for point in (run.truth.front if run.truth else ())],
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def bars(view: View) -> list[tuple[float, float, float]]:
    """(x, top, bottom) in percent of the plot: standard errors of the marked networks' quality, if known."""
    run, plot = view.run, view.plot
    quality, cost = (objective.metric for objective in run.objectives[:2])
    name = quality + DEVIATION
    if plot is None or name not in view.metrics:
        return []
    placed = []
    for point in view.points:
        value, error = point.metrics[quality], point.metrics.get(name, 0.0)
        top, bottom = (from_top(plot.y.at(value + sign * error)) for sign in (1, -1))
        placed.append((plot.x.at(point.metrics[cost]), top, bottom))
    return placed


def _metric(view: View, plot: Scatter, name: str, rows: Mapping[Genotype, int]) -> dict[str, object]:
    """A metric for the page's script; one that all networks have can be an axis."""
    run, nets, reported = view.run, view.networks, view.reported
    known = [row for row, trial in enumerate(nets) if name in trial.metrics or name in reported[row]]
    values = [_rounded(nets[row].metrics.get(name, reported[row].get(name, 0.0))) for row in known]
    bounds = [limit.bound for limit in run.limits if limit.metric == name]
    how, goal = quantity(name), run.plan.goal(name)
    entry: dict[str, object] = {
        "key": name,
        "name": how.name,
        "unit": how.unit,
        "factor": how.factor,
        "prefixed": name in ("flops", "params"),
        "goal": goal,
        "values": values,
        "bound": bounds[0] if bounds else None,
    }
    if len(known) < len(nets):
        return {**entry, "rows": known}
    objectives = zip(run.objectives, (plot.y, plot.x), strict=False)
    own = next((of for objective, of in objectives if objective.metric == name), None)
    front = [values[rows[trial.genotype]] for trial in view.front]
    scale = own or axis(name, values, keep=front, marks=bounds, allow_log=goal == "min")
    return {**entry, "axis": asdict(scale), "deciles": _deciles(run, name)}


def _replay(view: View, rows: Mapping[Genotype, int]) -> tuple[list[int], list[list[int]]]:
    """Per generation, the number of networks known after it, and the rows of those that it repeats."""
    known, repeats = [0], []
    for group in view.generations:
        asked = [rows[trial.genotype] for trial in group if trial.genotype in rows]
        new = range(known[-1], max([known[-1], *(row + 1 for row in asked)]))
        known.append(new.stop)
        repeats.append(list((Counter(asked) - Counter(new)).elements()))
    step = max(
        1, math.ceil(sum(map(len, repeats)) / drawn.MAX_DRAWN)
    )  # of many repetitions only some are kept
    return known[1:], [again[number % step :: step] for number, again in enumerate(repeats)]


def _rounded(value: float) -> float | int:
    short = float(f"{value:.{SIGNIFICANT}g}")
    return int(short) if short.is_integer() else short


@dataclass(frozen=True)
class Control:
    """A metric that can be chosen as an objective or a limit; `factor` converts to the unit in its label."""

    index: int
    metric: str
    label: str
    name: str
    sign: str
    factor: float
    bound: str


def controls(view: View) -> list[Control]:
    """The metrics that all networks have; a reader of the page can choose among them."""
    run, nets = view.run, view.networks
    bounds = {limit.metric: limit.bound for limit in run.limits}
    found = []
    for index, name in enumerate(view.metrics):
        if nets and all(name in trial.metrics for trial in nets):
            how = quantity(name, max(abs(trial.metrics[name]) for trial in nets))
            found.append(
                Control(
                    index,
                    metric=name,
                    label=how.label if how.unit else how.name,
                    name=how.name,
                    sign="≥" if run.plan.goal(name) == "max" else "≤",
                    factor=how.factor,
                    bound=f"{bounds[name] * how.factor:.6g}" if name in bounds else "",
                )
            )
    return found


def decile_lines(view: View) -> list[tuple[float, str]]:
    """(position, label) of the space's deciles of the cost; every fourth has a label if there is room."""
    if view.plot is None:
        return []
    lines, free = [], 0.0
    for tenth, value in enumerate(_deciles(view.run, view.run.objectives[1].metric), 1):
        at = view.plot.x.at(value)
        if 0 < at < 100:
            labelled = tenth in (1, 5, 9) and at >= free
            lines.append((at, f"q0.{tenth}" if labelled else ""))
            free = at + LABEL_ROOM if labelled else free
    return lines


def _deciles(run: Run, metric: str) -> tuple[float, ...]:
    """The 0.1, 0.2, ..., 0.9 quantiles of a cost over the space; empty if they are unknown."""
    return run.result.deciles.get(metric, ())[1:10] if run.result else ()


def best_so_far(run: Run, groups: Sequence[Sequence[Trial]]) -> tuple[str, list[float]]:
    """Title and values, after each generation, of the regret, or of the best quality if no optimum is known.

    Args:
        run: The run.
        groups: Its trials by generation.

    Returns:
        Title and values; infinite until a network keeps the limits, and if values cannot be compared.
    """
    quality = run.objectives[0]
    sign = 1.0 if quality.goal == "max" else -1.0
    values, reached = [], -math.inf
    for group in groups:
        kept = violations(group, run.limits) == 0
        feasible = [sign * t.metrics[quality.metric] for t, keeps in zip(group, kept, strict=True) if keeps]
        reached = max([reached, *feasible])
        values.append(sign * reached)
    if not run.stationary:
        return "", [math.inf]
    if run.truth is None or run.truth.best is None:
        return f"best {quantity(quality.metric).name} so far", values
    goal = run.truth.best.metrics[quality.metric]
    return f"regret of {quantity(quality.metric).name}", [sign * (goal - value) for value in values]


@dataclass(frozen=True)
class Step:
    """A network of the best network's lineage: its changes from the step before, and its objectives."""

    generation: int
    genotype: Genotype
    arch: str
    changed: set[int]
    changes: list[str]
    texts: list[str]


def lineage(view: View) -> list[Step]:
    """The inferred steps to the best network, in order; empty if there is none, or a single step."""
    run, best = view.run, view.best
    if best is None:
        return []
    limits = run.limits if run.stationary else ()
    chain = ancestry(
        run.space, view.supported, best.genotype, run.objectives, limits, comparable=run.stationary
    )
    before: list[Trial | None] = [None, *chain[:-1]]
    return [
        Step(
            trial.generation,
            trial.genotype,
            run.space.to_str(trial.genotype),
            changed=set() if one is None else {edge for edge, _, _ in changes(one.genotype, trial.genotype)},
            changes=[]
            if one is None
            else changes_in_words(view.drawing, run.space, one.genotype, trial.genotype),
            texts=[text(o.metric, trial.metrics[o.metric]) for o in run.objectives],
        )
        for one, trial in zip(before, chain, strict=True)
        if len(chain) > 1
    ]


@dataclass(frozen=True)
class Frequencies:
    """Fractions of a decision's operations: areas over the generations, bars of the front, and in words."""

    name: str
    areas: list[tuple[str, str]]
    front: list[tuple[str, float, float]]
    words: str


def over_time(view: View) -> list[Frequencies]:
    """Per decision, fractions of its operations over the generations, as stacked areas, and on the front."""
    run, shape, optimal = view.run, view.drawing, view.front
    size, num = run.space.alpha_shape, len(view.generations)
    bins = np.array_split(np.arange(num), min(NUM_BINS, num))
    over_bins = np.stack(
        [frequencies([t.genotype for i in rows for t in view.generations[i]], size) for rows in bins]
    )
    on_front = frequencies([t.genotype for t in optimal], size) if optimal else None
    return [
        Frequencies(
            slot.name,
            areas=_areas(shape, over_bins[:, edge]),
            front=[] if on_front is None else _stack(shape, on_front[edge]),
            words=_most(run.space, over_bins[0, edge], over_bins[-1, edge], on_front, edge),
        )
        for edge, slot in enumerate(shape.slots)
    ]


def _areas(shape: Drawing, fractions: FloatArray) -> list[tuple[str, str]]:
    """(style, path) of stacked areas in a square of 100 by 100, for fractions of shape (bins, ops)."""
    if len(fractions) == 1:
        fractions = np.repeat(fractions, 2, axis=0)
    xs = np.linspace(0, 100, len(fractions))
    tops = 100 * np.cumsum(fractions, axis=1)
    areas = []
    for op in np.flatnonzero(fractions.any(axis=0)):
        upper, lower = tops[:, op], tops[:, op] - 100 * fractions[:, op]
        points = [*zip(xs, upper, strict=True), *zip(xs[::-1], lower[::-1], strict=True)]
        path = "M" + "L".join(f"{x:.4g} {100 - y:.4g}" for x, y in points) + "z"
        areas.append((shape.ops[op][0], path))
    return areas


def _stack(shape: Drawing, fractions: FloatArray) -> list[tuple[str, float, float]]:
    """(style, y, height) of one stacked bar of height 100, for fractions of shape (ops,)."""
    tops = 100 * np.cumsum(fractions)
    return [
        (shape.ops[op][0], round(float(100 - tops[op]), 2), round(float(100 * fractions[op]), 2))
        for op in np.flatnonzero(fractions)
    ]


def _most(
    space: SearchSpace, first: FloatArray, last: FloatArray, on_front: FloatArray | None, edge: int
) -> str:
    """The most frequent operation at the start, at the end and on the front, in words."""
    parts = [("first", first), ("last", last)] + ([] if on_front is None else [("front", on_front[edge])])
    return ", ".join(f"{when} {space.ops[of.argmax()]} {of.max():.0%}" for when, of in parts)


@dataclass(frozen=True)
class EffectsTable:
    """Effects of each operation (rows) on a metric for each edge (columns), written out.

    Attributes:
        name: Name of the metric.
        source: "exact" or "fitted".
        r2: As in `Effects`.
        num: As in `Effects`.
        mean: Mean of the metric.
        rows: (text, effect from -1, worst, to 1, best); None if it is unknown.
        ranges: Range of the effects per edge.
        order: Edges by range, the largest first.
        best: Best operation per edge.
    """

    name: str
    source: str
    r2: float
    num: int
    mean: str
    rows: list[list[tuple[str, float] | None]]
    ranges: list[str]
    order: list[int]
    best: list[int]


def effects(view: View) -> list[EffectsTable]:
    """Effects of operations per objective: exact if result.json has them, else fitted."""
    run, nets = view.run, view.networks
    exact = run.result.effects if run.result else {}
    found = []
    for objective in run.objectives:
        known = exact.get(objective.metric)
        if known is not None:
            of, source = known, "exact"
            if math.isinf(known.mean):
                continue
        elif not run.stationary and objective == run.objectives[0]:
            continue  # values from different weights cannot be compared
        else:
            values = np.array([trial.metrics[objective.metric] for trial in nets])
            fit = surrogate([trial.genotype for trial in nets], values, run.space.alpha_shape)
            if fit is None:
                continue
            of, source = fit, "fitted"
        found.append(_effects_table(objective, of, source))
    return found


def _effects_table(objective: Objective, of: Effects, source: str) -> EffectsTable:
    known = np.isfinite(of.added)
    filled = np.where(known, of.added, 0.0)
    most = float(np.abs(filled).max()) or 1.0
    sign = 1.0 if objective.goal == "max" else -1.0
    ranges = filled.max(axis=1) - filled.min(axis=1)
    return EffectsTable(
        name=quantity(objective.metric).name,
        source=source,
        r2=of.r2,
        num=of.num,
        mean=text(objective.metric, of.mean),
        rows=[
            [
                (signed(objective.metric, value, most), round(sign * value / most, 3)) if there else None
                for value, there in zip(values, known[:, op].tolist(), strict=True)
            ]
            for op, values in enumerate(filled.T.tolist())
        ],
        ranges=[signed(objective.metric, value, most).lstrip("+") for value in ranges],
        order=np.argsort(-ranges, kind="stable").tolist(),
        best=np.where(known, sign * of.added, -np.inf).argmax(axis=1).tolist(),
    )


@dataclass(frozen=True)
class Spending:
    """Parts of a cost: (place, operation, cost, percent of the sum, length of the bar, alternatives)."""

    name: str
    total: str
    rows: list[tuple[str, str, str, float, float, str]]


def breakdown(view: View) -> list[Spending]:
    """Per cost that is a sum, the cost of each operation of the best network, the largest first."""
    run, best = view.run, view.best
    if best is None:
        return []
    found = []
    for name, of in (run.result.sums if run.result else {}).items():
        if name not in best.metrics or run.plan.goal(name) == "max":
            continue
        value = of(best.genotype)
        parts = [
            (
                view.drawing.slots[edge].name,
                run.space.ops[op],
                float(of.added[edge, op]),
                _span(name, of.added[edge, list(run.space.choices[edge])]),
            )
            for edge, op in enumerate(best.genotype)
        ]
        parts.sort(key=lambda part: -part[2])
        largest = max([of.base, *(added for _, _, added, _ in parts)]) or 1.0
        found.append(
            Spending(
                quantity(name).name,
                text(name, value),
                [
                    (where, op, text(name, added), _percent(added, value), _percent(added, largest), span)
                    for where, op, added, span in [("everything else", "", of.base, ""), *parts]
                ],
            )
        )
    return found


def _span(metric: str, added: FloatArray) -> str:
    known = added[np.isfinite(added)]
    return f"{text(metric, float(known.min()))} to {text(metric, float(known.max()))}"


def _percent(part: float, whole: float) -> float:
    return round(100 * max(0.0, part) / whole, 1) if whole > 0 else 0.0


@dataclass(frozen=True)
class Proxy:
    """The estimate against a benchmark's accuracy: dots, and Kendall's tau of all and of the better half."""

    name: str
    tau: float
    tau_better_half: float | None
    num: int
    x: Axis
    y: Axis
    path: str


def proxies(view: View) -> list[Proxy]:
    """The estimate against each accuracy of a benchmark's table, with Kendall's tau."""
    quality = view.run.objectives[0]
    columns: dict[str, list[tuple[float, float]]] = {}
    for trial, known in zip(view.networks, view.reported, strict=True):
        for name, value in known.items():
            if name.endswith("_acc"):
                columns.setdefault(name, []).append((trial.metrics[quality.metric], value))
    found = []
    for name, pairs in columns.items():
        pairs.sort(reverse=quality.goal == "max")
        xs, ys = [x for x, _ in pairs], [y for _, y in pairs]
        tau, half = agreement(xs, ys), (len(pairs) + 1) // 2
        if tau is None:
            continue
        x, y = axis(quality.metric, xs, keep=xs[:1]), axis(name, ys, keep=ys[:1], num_ticks=5)
        found.append(
            Proxy(
                quantity(name).name,
                tau=tau,
                tau_better_half=agreement(xs[:half], ys[:half]),
                num=len(pairs),
                x=x,
                y=y,
                path=dots([(x.at(a), from_top(y.at(b))) for a, b in pairs]),
            )
        )
    return found


@dataclass(frozen=True)
class BlindRegret:
    """Blind regret of the run beside simpler choices, written out.

    Attributes:
        cost: Name of the cost that is limited.
        columns: (name, value) of each limit.
        rows: (choice, mean, regret at each limit), in points, the run's first.
        taus: Rank correlations in words.
        seconds: What the estimate took, in words.
    """

    cost: str
    columns: list[tuple[str, str]]
    rows: list[tuple[str, str, list[str]]]
    taus: str
    seconds: str


def blind_regret(view: View) -> BlindRegret | None:
    """Blind regret of the run; None without true accuracies."""
    result = view.run.result
    seen = None if result is None else result.blind
    if result is None or seen is None:
        return None
    taus = [
        f"{words} {'unknown' if (tau := seen.tau.get(name)) is None else f'{tau:.2f}'}"
        for name, words in (
            ("all", "over all of them"),
            ("better_half", "over their better half"),
            ("top_tenth", "over their top tenth"),
        )
    ]
    each = seen.seconds_per_new
    return BlindRegret(
        quantity(seen.cost).name,
        columns=[(f"q0.{tenth}", text(seen.cost, limit)) for tenth, limit in enumerate(seen.limits, 1)],
        rows=[
            (CHOICES.get(name, name), f"{seen.mean_of(name):.2f}", [f"{value:.2f}" for value in regret])
            for name, regret in seen.regret.items()
        ],
        taus=f"Kendall's tau with the truth, of the run's {seen.networks:,} networks: {', '.join(taus)}.",
        seconds=(f"The evaluator took {each:.2g} s per new network; t" if each is not None else "T")
        + f"he run took {duration(result.seconds['total'])} in all.",
    )


@dataclass(frozen=True)
class Gap:
    """A neighbour of the knee: decisions that differ, changes in words, and (metric, difference)."""

    title: str
    arch: str
    genotype: Genotype
    changed: set[int]
    changes: list[str]
    differences: list[tuple[str, str]]


def knee_gaps(view: View) -> list[Gap]:
    """Differences of the knee from the next cheaper and the next more expensive network of the front."""
    run, knee = view.run, view.knee
    if knee is None:
        return []
    ordered = sorted(view.front, key=lambda trial: trial.metrics[run.objectives[1].metric])
    row, gaps = ordered.index(knee), []
    for title, beside in (("the next cheaper one", row - 1), ("the next more expensive one", row + 1)):
        if 0 <= beside < len(ordered):
            other = ordered[beside]
            gaps.append(
                Gap(
                    title,
                    run.space.to_str(other.genotype),
                    other.genotype,
                    changed={edge for edge, _, _ in changes(knee.genotype, other.genotype)},
                    changes=changes_in_words(view.drawing, run.space, knee.genotype, other.genotype),
                    differences=[
                        (quantity(o.metric).name, signed(o.metric, _difference(knee, other, o.metric)))
                        for o in run.objectives
                    ],
                )
            )
    return gaps


def _difference(a: Trial, b: Trial, metric: str) -> float:
    """The metric of `b` minus that of `a`; 0 if they differ by rounding only."""
    one, other = a.metrics[metric], b.metrics[metric]
    return 0.0 if math.isclose(one, other, rel_tol=1e-9) else other - one
