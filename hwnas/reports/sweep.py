"""The page of a sweep: all of its runs side by side, in one HTML file that needs no other file."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, pstdev, stdev
from typing import TypeVar
from urllib.parse import quote

from hwnas.core import Trial, front
from hwnas.reports.charts import Curves, axis, banded, from_top, steps
from hwnas.runs.folder import given_settings
from hwnas.runs.jobs import Jobs
from hwnas.runs.result import Blind, Result, read_result
from hwnas.runs.units import difference, duration, quantity, text
from hwnas.searches.blind import CHOICES
from hwnas.spaces.drawing import NUM_COLOURS

LIMITS = "limits."
REPLICATE = "seed"

K = TypeVar("K")
Place = tuple[str, ...]
"""Space, data set, device and objectives; runs with the same ones can be compared."""


@dataclass(frozen=True)
class Job:
    """A finished run of a sweep.

    Args:
        name: Name of its folder.
        settings: Values of its overrides by name.
        result: Its result.
        front: Objective values of the networks on its front.
    """

    name: str
    settings: Mapping[str, str]
    result: Result
    front: list[dict[str, float]]

    @property
    def place(self) -> Place:
        """Space, data set, device and objectives."""
        found = self.result
        return (found.search_space, found.dataset, found.device, *(o.metric for o in found.objectives))


def read_jobs(folder: Path) -> list[Job]:
    """The finished searches of a sweep, sorted by name.

    Raises:
        ValueError: A file of one of them is corrupt; says which.
    """
    jobs = []
    for path in sorted(folder.glob("*/result.json")):
        try:
            result = read_result(path)
            names = [objective.metric for objective in result.objectives]
            with (path.parent / "pareto.csv").open(newline="") as file:
                rows = [{name: float(row[name]) for name in names} for row in csv.DictReader(file)]
            jobs.append(Job(path.parent.name, given_settings(path.parent), result, rows))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{path.parent} is corrupt: {error}") from None
    return jobs


def varied(jobs: Sequence[Job]) -> list[str]:
    """Names of the settings in which the runs differ, except the seed, in the order of the overrides.

    A setting of a group (`strategy.num_candidates`) counts where runs with the same choice differ in it.
    """

    def differs(name: str) -> bool:
        group, dot, _ = name.rpartition(".")
        values = {(job.settings.get(group, "") if dot else "", job.settings.get(name, "")) for job in jobs}
        return len(values) > len({choice for choice, _ in values})

    names = dict.fromkeys(name for job in jobs for name in job.settings)
    return [name for name in names if name != REPLICATE and differs(name)]


def grouped(jobs: Iterable[Job], key: Callable[[Job], K]) -> dict[K, list[Job]]:
    """The runs by `key(job)`, in order of first appearance."""
    groups: dict[K, list[Job]] = {}
    for job in jobs:
        groups.setdefault(key(job), []).append(job)
    return groups


def page(folder: Path) -> dict[str, object]:
    """The values of the template.

    Raises:
        ValueError: No run of the sweep has finished yet, or a file is corrupt.
    """
    jobs, states = read_jobs(folder), Jobs.read(folder)
    if not jobs:
        raise ValueError(f"{folder} holds no finished search")
    names = varied(jobs)
    limits = [name for name in names if name.startswith(LIMITS)]
    kinds = [
        name for name in names if name not in (*limits, "device", "device.path", "search_space", "dataset")
    ]

    def kind(job: Job, apart_from: str = "") -> str:
        named = [f"{name} {job.settings.get(name, '')}" for name in kinds if name != apart_from]
        return ", ".join(named) or job.result.strategy

    colours = {name: (index + 1) % NUM_COLOURS for index, name in enumerate(grouped(jobs, kind))}
    places = grouped(jobs, lambda job: job.place)
    shared = [len({place[part] for place in places}) == 1 for part in range(3)]
    titles = {
        place: ", ".join(name for name, same in zip(place[:3], shared, strict=True) if not same) or place[2]
        for place in places
    }
    seconds = sum(job.result.seconds["total"] for job in jobs)
    energies = [job.result.energy_kwh for job in jobs]
    energy = None if None in energies else sum(map(float, filter(None, energies)))
    num_failed, num_unfinished = len(states.failed), len(states.unfinished - {job.name for job in jobs})
    headline = [
        (f"{len(jobs):,}", "finished runs" + f", {num_failed} failed" * bool(num_failed)),
        (f"{sum(job.result.evaluations.asked for job in jobs):,}", "evaluations"),
        (
            f"{sum(job.result.evaluations.new for job in jobs):,}",
            "of them new; the others were repeated or already stored",
        ),
        (duration(seconds), "of runs, one after another"),
    ]
    if energy is not None:  # runs at the same time each count the whole machine
        headline.append((f"{energy:.3g} kWh", "of processors and GPU while they ran"))
    return {
        "folder": folder.absolute(),
        "headline": headline + [(str(num_unfinished), "unfinished")] * bool(num_unfinished),
        "varied": [*names, *([REPLICATE] if len({j.settings.get(REPLICATE) for j in jobs}) > 1 else [])],
        "matrix": _matrix(places, titles, kind, limits[0]) if len(limits) == 1 else None,
        "fronts": [_fronts(titles[place], group, kind, colours) for place, group in places.items()],
        "curves_": [_progress(titles[place], group, kind, colours) for place, group in places.items()],
        "kinds": list(colours.items()),
        "groups": _groups(jobs, names),
        "names": names,
        "blind": _blind(jobs, names),
        "blind_curves": _blind_curves(jobs, lambda job: kind(job, "budget")),
        "runs": [_run(job) for job in jobs],
        "failed": sorted(states.failed.items()),
    }


def _value(job: Job) -> float | None:
    """The first objective of the run's best network; None where no network keeps the limits."""
    best = job.result.best
    return None if best is None else best.metrics[job.result.objectives[0].metric]


def _regret(job: Job) -> float | None:
    """Regret of the run's best network against the best in the space; None if it is unknown."""
    exact = job.result.truth
    return None if exact is None else exact.regret.get(job.result.objectives[0].metric)


def spread(metric: str, values: Sequence[float]) -> str:
    """Mean of a metric, and standard deviation of several values, written out."""
    how = quantity(metric, max(map(abs, values)))
    middle = text(metric, mean(values))
    return middle if len(values) == 1 else f"{middle} ± {pstdev(values) * how.factor:.2g}"


@dataclass(frozen=True)
class Cell:
    """Best networks of runs, their regret, the number of runs without one, and a link to a run's page."""

    best: str
    regret: str
    missing: str
    link: str


def _cell(jobs: Sequence[Job]) -> Cell:
    metric = jobs[0].result.objectives[0].metric
    values = [value for job in jobs if (value := _value(job)) is not None]
    regrets = [value for job in jobs if (value := _regret(job)) is not None]
    missing = len(jobs) - len(values)
    return Cell(
        best=spread(metric, values) if values else "none",
        regret=difference(metric, mean(regrets)) if regrets else "",
        missing=f"{missing} of {len(jobs)} without" if missing and values else "",
        link=quote(f"{jobs[0].name}/report.html") if len(jobs) == 1 else "",
    )


@dataclass(frozen=True)
class Matrix:
    """Cells per limit (columns) for (title of a place, kind of run) (rows)."""

    limit: str
    columns: list[str]
    rows: list[tuple[str, str, list[Cell | None]]]


def _matrix(
    places: Mapping[Place, list[Job]],
    titles: Mapping[Place, str],
    kind: Callable[[Job], str],
    limit: str,
) -> Matrix:
    """The best feasible network per place and kind of run (rows) and limit (columns)."""
    columns = list(dict.fromkeys(job.settings.get(limit, "") for jobs in places.values() for job in jobs))
    rows = []
    for place, jobs in places.items():
        for name, group in grouped(jobs, kind).items():
            by_limit = grouped(group, lambda job: job.settings.get(limit, ""))
            cells = [_cell(by_limit[column]) if column in by_limit else None for column in columns]
            rows.append((titles[place], name, cells))
    return Matrix(limit.removeprefix(LIMITS), columns, rows)


def _fronts(
    title: str, jobs: Sequence[Job], kind: Callable[[Job], str], colours: Mapping[str, int]
) -> Curves:
    """The common front of all runs of each kind, in the plane of the first two objectives."""
    objectives = jobs[0].result.objectives[:2]
    joined = {}
    for name, group in grouped(jobs, kind).items():
        trials = [Trial((i,), row, 0) for i, row in enumerate(row for job in group for row in job.front)]
        joined[name] = front(trials, objectives)
    everything = [trial.metrics for trials in joined.values() for trial in trials]
    y, x = (
        axis(o.metric, values, keep=values, num_ticks=num, allow_log=o.goal == "min")
        for o, num in zip(objectives, (6, 5), strict=True)
        for values in [[metrics[o.metric] for metrics in everything]]
    )
    quality, cost = (objective.metric for objective in objectives)
    series = [
        (
            name,
            colours[name],
            steps([(x.at(t.metrics[cost]), from_top(y.at(t.metrics[quality]))) for t in t_s]),
            "",
        )
        for name, t_s in joined.items()
    ]
    return Curves(title, x, y, series)


def _progress(
    title: str, jobs: Sequence[Job], kind: Callable[[Job], str], colours: Mapping[str, int]
) -> Curves:
    """Hypervolume over the generations: mean and standard deviation over the runs of each kind."""
    known = all(job.result.truth for job in jobs)
    metric = "hypervolume_ratio" if known else "hypervolume"

    def curve(job: Job) -> tuple[float, ...]:
        exact = job.result.truth
        return exact.hypervolume_ratio if known and exact else job.result.hypervolume or ()

    bands = {}
    for name, group in grouped(jobs, kind).items():
        columns = zip(*map(curve, group), strict=False)  # as long as the shortest
        bands[name] = [(mean(values), pstdev(values)) for values in columns]
    length = max(map(len, bands.values()))
    y = axis(
        metric, [m + s * sign for band in bands.values() for m, s in band for sign in (-1, 1)], num_ticks=6
    )
    x = axis("generation", range(length))
    series = [
        (name, colours[name], *banded(x, y, range(len(band)), *zip(*band, strict=True)))
        for name, band in bands.items()
    ]
    return Curves(f"{title}: {quantity(metric).name}", x, y, series)


@dataclass(frozen=True)
class Group:
    """Means over runs that differ only in their seed."""

    settings: tuple[str, ...]
    num: int
    cell: Cell
    cost: str
    asked: str
    paid: str
    seconds: str


def _groups(jobs: Sequence[Job], names: Sequence[str]) -> list[Group]:
    """A row per combination of settings, over its seeds."""
    rows = []
    for settings, group in grouped(jobs, lambda job: tuple(job.settings.get(n, "") for n in names)).items():
        cost = group[0].result.objectives[1].metric
        costs = [job.result.best.metrics[cost] for job in group if job.result.best]
        rows.append(
            Group(
                settings,
                num=len(group),
                cell=_cell(group),
                cost=spread(cost, costs) if costs else "",
                asked=f"{sum(job.result.evaluations.asked for job in group):,}",
                paid=f"{sum(job.result.evaluations.new for job in group):,}",
                seconds=f"{mean(job.result.seconds['total'] for job in group):.1f}",
            )
        )
    return rows


def interval(values: Sequence[float]) -> str:
    """Mean, and half the width of its 95 % confidence interval (Student's t) for several values."""
    if len(values) == 1:
        return f"{values[0]:.2f}"
    from scipy.stats import t  # a second, and few sweeps need it

    half = t.ppf(0.975, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return f"{mean(values):.2f} ± {half:.2f}"


@dataclass(frozen=True)
class BlindRegrets:
    """Blind regret by setting, in points.

    Attributes:
        choices: Simpler ways to choose a network, in words.
        rows: (settings, number of runs, the runs' blind regret, that of each choice, mean tau, mean seconds
            per new network) per combination of settings.
    """

    choices: list[str]
    rows: list[tuple[tuple[str, ...], int, str, list[str], str, str]]


def _blind(jobs: Sequence[Job], names: Sequence[str]) -> BlindRegrets | None:
    """Blind regret per combination of settings, over its seeds; None if no run has it."""
    known = [(job, seen) for job in jobs if (seen := job.result.blind) is not None]
    if not known:
        return None
    choices = [name for name in CHOICES if name != "estimate" and any(name in s.regret for _, s in known)]
    groups: dict[tuple[str, ...], list[Blind]] = {}
    for job, seen in known:
        groups.setdefault(tuple(job.settings.get(name, "") for name in names), []).append(seen)
    rows = []
    for settings, group in groups.items():
        taus = [tau for seen in group if (tau := seen.tau.get("all")) is not None]
        seconds = [each for seen in group if (each := seen.seconds_per_new) is not None]
        by_choice = [[seen.mean_of(name) for seen in group if name in seen.regret] for name in choices]
        rows.append(
            (
                settings,
                len(group),
                interval([seen.mean for seen in group]),
                [f"{mean(values):.2f}" if values else "" for values in by_choice],
                f"{mean(taus):.2f}" if taus else "",
                f"{mean(seconds):.2g}" if seconds else "",
            )
        )
    return BlindRegrets([CHOICES[name] for name in choices], rows)


def _blind_curves(jobs: Sequence[Job], kind: Callable[[Job], str]) -> Curves | None:
    """Blind regret against the seconds of a run, by budget, and that of simpler choices.

    A curve per kind of runs: means over devices and seeds, with a band of one standard deviation. None if no
    kind has several budgets.
    """
    known = [(job, seen) for job in jobs if (seen := job.result.blind) is not None]
    curves: dict[str, list[tuple[float, float, float]]] = {}
    for name, group in grouped((job for job, _ in known), kind).items():
        for of in grouped(group, lambda job: job.settings.get("budget", "")).values():
            means = [job.result.blind.mean for job in of if job.result.blind]
            seconds = mean(job.result.seconds["total"] for job in of)
            curves.setdefault(name, []).append((seconds, mean(means), pstdev(means)))
    if not any(len(points) > 1 for points in curves.values()):
        return None
    levels = {
        choice: mean(seen.mean_of(choice) for _, seen in known if choice in seen.regret)
        for choice in CHOICES
        if choice not in ("estimate", "random") and any(choice in seen.regret for _, seen in known)
    }
    every = [point for points in curves.values() for point in points]
    x = replace(axis("seconds", [s for s, *_ in every], allow_log=True), label="seconds of a run")
    heights = [m + sign * d for _, m, d in every for sign in (-1, 1)] + list(levels.values())
    y = replace(axis("regret", [max(0.0, height) for height in heights]), label="blind regret, points")
    series = []
    for number, (name, points) in enumerate(curves.items()):
        series.append((name, (number + 1) % NUM_COLOURS, *banded(x, y, *zip(*sorted(points), strict=True))))
    for choice, level in levels.items():
        series.append(
            (CHOICES[choice], (len(series) + 1) % NUM_COLOURS, f"M0 {from_top(y.at(level))}H100", "")
        )
    return Curves("Blind regret by budget", x, y, series)


@dataclass(frozen=True)
class RunRow:
    """A run, its page, and its best network."""

    name: str
    link: str
    arch: str
    figures: str


def _run(job: Job) -> RunRow:
    best = job.result.best
    values = {} if best is None else best.metrics
    return RunRow(
        job.name,
        quote(f"{job.name}/report.html"),
        arch="no network keeps the limits" if best is None else best.arch,
        figures=", ".join(
            text(o.metric, values[o.metric]) for o in job.result.objectives if o.metric in values
        ),
    )
