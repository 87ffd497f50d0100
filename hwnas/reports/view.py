"""The run as its page shows it: networks, front, best network and metrics, for all sections."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.core import Genotype, Trial, costs, unique, violations
from hwnas.reports.charts import scatter
from hwnas.runs.folder import Run, reported_metrics
from hwnas.runs.result import MOST_REPORTED
from hwnas.runs.units import quantity, text
from hwnas.searches.analysis import spread
from hwnas.spaces.capabilities import drawing

NUM_SHADES = 8
"""Steps of the colour scale of generations."""

MAX_DRAWN = 50_000
"""Networks that the page holds besides those of the front: all, or so many, evenly spread over the search."""


@dataclass(frozen=True)
class Point:
    """A network of the front, or the best one, as the page shows it.

    Attributes:
        index: Row among the networks that are drawn.
        genotype: Operations.
        arch: Architecture as text.
        generation: The generation that asked for it first.
        metrics: Metrics, with report-only ones.
        texts: Metrics and generation, written out.
        title: Its role, e.g. "best network".
        label: Title, architecture, metrics and generation in a sentence.
        style: Style of its dot.
        best: Whether it is the best network.
        front: Whether it is on the front.
        feasible: Whether it keeps the limits.
    """

    index: int
    genotype: Genotype
    arch: str
    generation: int
    metrics: Mapping[str, float]
    texts: list[str]
    title: str
    label: str
    style: str
    best: bool
    front: bool
    feasible: bool


class View:
    """A run as its page shows it; every section is a function of it.

    Attributes:
        run: The run.
        generations: Trials per generation.
        best: The best network; None if none keeps the limits.
        front: The non-dominated networks, cheapest first.
        knee: The network of the front farthest below the line between its ends; None without a front.
        marked: The networks of the front and the best one, by genotype.
        supported: The different networks that the device supports, in order.
        networks: The networks that are drawn, in order.
        reported: Report-only metrics of each of `networks`.
        metrics: Names of all metrics.
        shades: Style of the dot of each of `networks`.
        drawing: Drawing of architectures.
        points: The front's networks and the best one, cheapest first.
        answer: The best network among `points`.
        plot: The plane of the first two objectives; None if no network is supported.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.best, self.front, self.drawing = run, run.best, run.front, drawing(run.space)
        self.generations = [
            list(group) for _, group in itertools.groupby(run.trials, key=lambda trial: trial.generation)
        ]
        self.knee = _knee(run, self.front) if self.front else None
        self.marked = {t.genotype: t for t in [*self.front, *([self.best] if self.best else [])]}
        self.supported = _supported(run, self.marked)
        self.networks = _drawn(self.supported, self.marked)
        self.reported = _reported(run, self.networks)
        rows = itertools.chain((trial.metrics for trial in run.trials), self.reported)
        self.metrics = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
        self.shades = _shades(self.networks, run)
        self.points = _points(self)
        self.answer = next((point for point in self.points if point.best), None)
        names = [objective.metric for objective in run.objectives]
        self.plot = None
        if self.networks:
            self.plot = scatter(
                run.objectives[:2],
                run.limits,
                [trial.metrics for trial in self.networks],
                [trial.metrics for trial in self.front],
                [dict(zip(names, row, strict=True)) for row in (run.truth.front if run.truth else ())],
            )


def _supported(run: Run, marked: Mapping[Genotype, Trial]) -> list[Trial]:
    """The different networks that are supported, in order, each with its first generation.

    Args:
        run: The run.
        marked: Networks of the front, with the metrics that put them there.
    """
    first = {trial.genotype: trial.generation for trial in reversed(run.trials)}
    trials = [marked.get(trial.genotype, trial) for trial in unique(run.trials)]
    return [
        Trial(trial.genotype, trial.metrics, first[trial.genotype])
        for trial in trials
        if all(map(math.isfinite, trial.metrics.values()))
    ]


def _drawn(nets: Sequence[Trial], marked: Mapping[Genotype, Trial]) -> list[Trial]:
    """At most `MAX_DRAWN` of the networks, evenly spread, and the marked ones; in order."""
    rows = set(spread(len(nets), MAX_DRAWN))
    return [trial for row, trial in enumerate(nets) if row in rows or trial.genotype in marked]


def _reported(run: Run, nets: Sequence[Trial]) -> list[dict[str, float]]:
    """Report-only metrics per network, from result.json and pareto.csv."""
    known: dict[Genotype, dict[str, float]] = {}
    columns, asked = run.result.reports if run.result else {}, unique(run.trials)
    for place, row in enumerate(spread(len(asked), MOST_REPORTED)):
        values = {name: value for name, column in columns.items() if (value := column[place]) is not None}
        known[asked[row].genotype] = values
    described = reported_metrics(run)
    return [
        {
            name: value
            for name, value in {**known.get(t.genotype, {}), **described.get(t.genotype, {})}.items()
            if name not in t.metrics
        }
        for t in nets
    ]


def _shades(trials: Sequence[Trial], run: Run) -> list[str]:
    """The style of each network, by its first generation and by whether it keeps the limits."""
    last = max((trial.generation for trial in trials), default=0) or 1
    return [
        f"g{round((NUM_SHADES - 1) * trial.generation / last)}{'' if excess == 0 else ' out'}"
        for trial, excess in zip(trials, violations(trials, run.limits), strict=True)
    ]


def _points(view: View) -> list[Point]:
    """One per network of the front, and the best one, cheapest first."""
    run, names = view.run, view.metrics
    on_front = {trial.genotype for trial in view.front}
    points: list[Point] = []
    for index, (trial, style) in enumerate(zip(view.networks, view.shades, strict=True)):
        if trial.genotype not in view.marked:
            continue
        metrics = {**view.reported[index], **trial.metrics}
        feasible = not style.endswith("out")
        is_best = view.best is not None and trial.genotype == view.best.genotype
        title = "on the front" if trial.genotype in on_front else "dominated"
        if is_best:
            title = "best feasible network" if run.limits else "best network"
        if not feasible:
            title += ", beyond the limits"
        texts = [text(name, metrics[name]) if name in metrics else "" for name in names]
        spoken = [f"{quantity(name).name} {value}" for name, value in zip(names, texts, strict=True) if value]
        arch = run.space.to_str(trial.genotype)
        points.append(
            Point(
                index=index,
                genotype=trial.genotype,
                arch=arch,
                generation=trial.generation,
                metrics=metrics,
                texts=[*texts, str(trial.generation)],
                title=title,
                label=f"{title}: {arch}; {', '.join(spoken)}; generation {trial.generation}",
                style=style,
                best=is_best,
                front=trial.genotype in on_front,
                feasible=feasible,
            )
        )
    return sorted(points, key=lambda point: point.metrics[run.objectives[1].metric])


def _knee(run: Run, pareto: Sequence[Trial]) -> Trial:
    """The network of a front that is farthest below the line between its ends.

    Networks without a path from input to output count only if there are no others: they guess at almost no
    cost, and with a line that begins there, the knee would be a bad network.
    """
    connected = run.space.is_connected([trial.genotype for trial in pareto])
    pool = list(itertools.compress(pareto, connected)) or list(pareto)
    F = costs(pool, run.objectives)
    span = np.ptp(F, axis=0)
    return pool[np.argmin(((F - F.min(axis=0)) / np.where(span > 0, span, 1.0)).sum(axis=1))]
