"""Finished searches, read from their folders to be compared: of a sweep by any launcher, or of several."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hwnas.core import FloatArray, Limit, Trial
from hwnas.files import consistent
from hwnas.runs.folder import given_settings
from hwnas.runs.jobs import Jobs
from hwnas.runs.result import Result, read_result
from hwnas.searches.judge import Case, Found, columns
from hwnas.store.archive import read_archive

OF_THE_PROBLEM = ("search_space", "dataset", "evaluator", "device")
"""Groups whose choices and settings make a problem."""

OF_THE_STRATEGY = (
    *("strategy", "generations", "budget", "experiment"),
    *("warm_start", "warm_start_scored", "robust"),
)
"""The group, and the settings, that make a strategy; those that all of its runs share are not named."""


@dataclass(frozen=True)
class Finished:
    """A finished search.

    Attributes:
        folder: Its folder.
        settings: Values of its overrides by name.
        result: Its result.
    """

    folder: Path
    settings: Mapping[str, str]
    result: Result

    @property
    def seed(self) -> int:
        """Its seed; 0 in results of early versions, which do not say it."""
        return self.result.seed or 0


def read_finished(folders: Sequence[Path]) -> tuple[list[Finished], list[str]]:
    """The finished searches in folders of runs or of sweeps, and a sentence for what is left out.

    Raises:
        ValueError: A folder without any, or a file that is corrupt; says which.
    """
    found: list[Finished] = []
    notes: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder} is not a folder")
        alone = (folder / "result.json").is_file()
        paths = [folder / "result.json"] if alone else sorted(folder.glob("*/result.json"))
        searches = [path for path in paths if (path.parent / "archive.jsonl").is_file()]
        if not searches:
            raise ValueError(f"{folder} holds no finished search; give the folder of a sweep")
        for path in searches:
            with consistent(path.parent):
                found.append(Finished(path.parent, given_settings(path.parent), read_result(path)))
        states = Jobs.read(folder)
        others = (states.failed.keys() | states.unfinished | states.running) - {p.parent.name for p in paths}
        if others:
            notes.append(f"{len(others)} unfinished or failed runs of {folder} are left out")
    changing = [run for run in found if not run.result.stationary]
    if changing:
        notes.append(
            f"{len(changing)} runs by evaluator={changing[0].result.evaluator} are left out: they train the "
            "weights that they evaluate by, so that their values of different times cannot be compared"
        )
    return [run for run in found if run.result.stationary], notes


def cases_of(finished: Sequence[Finished]) -> tuple[list[tuple[Case, list[Found]]], list[str]]:
    """The problems that several strategies searched with the same seeds, and a sentence for each other one.

    Raises:
        ValueError: There is none; says what the runs have in common, and what not.
    """
    of_problem = _varied(finished, OF_THE_PROBLEM)
    of_strategy = {
        name: _varied([run for run in finished if run.result.strategy == name], OF_THE_STRATEGY, "strategy")
        for name in dict.fromkeys(run.result.strategy for run in finished)
    }
    groups: dict[tuple[str, ...], list[Finished]] = {}
    for run in finished:
        groups.setdefault(_problem(run, of_problem), []).append(run)
    parts = [group[:4] for group in groups]
    shared = [len({part[place] for part in parts}) == 1 for place in range(4)]
    cases, notes, left_out = [], [], []
    for group, runs in groups.items():
        title = ", ".join(text for text, same in zip(group, shared, strict=False) if not same)
        title = title or f"{group[0] if group[1] == 'none' else group[1]}, {group[3]}"
        title = ", ".join([title, *filter(None, group[5:])])
        by_limits = sorted({_bounds(run) for run in runs})
        has = _by_strategy(runs, of_strategy, by_limits)
        common = set.intersection(*(set(own) for own in has.values()))
        places = sorted({place for _, place in common})
        seeds = sorted(seed for seed in {s for s, _ in common} if all((seed, p) in common for p in places))
        if len(has) < 2 or len(seeds) < 2:
            having = ", ".join(
                f"{name} (seeds {_listed(sorted({seed for seed, _ in own}))})" for name, own in has.items()
            )
            left_out.append(f"{title}: {having}")
            continue
        fewest = len(seeds) * len(places)
        for name, own in has.items():
            if len(own) > fewest:
                notes.append(
                    f"{title}: {fewest} of {len(own)} runs of {name} count; the others have no counterpart"
                )
        first = next(iter(has.values()))
        with consistent(first[seeds[0], places[0]].folder):
            case = _case(title, [first[seeds[0], place].result for place in places])
        limited = bool(by_limits[places[0]])
        cases.append(
            (
                case,
                [
                    _found(name, own[seed, place], number if limited else None)
                    for name, own in has.items()
                    for seed in seeds
                    for number, place in enumerate(places)
                ],
            )
        )
    if not cases:
        what = "; ".join(left_out) or "no runs are left"
        raise ValueError(
            f"nothing to compare: no problem was searched by two strategies with two seeds in common ({what})"
        )
    left_out = [f"left out, no two strategies with two common seeds: {note}" for note in left_out]
    return cases, notes + left_out


def _by_strategy(
    runs: Sequence[Finished],
    of_strategy: Mapping[str, Sequence[str]],
    by_limits: Sequence[tuple[tuple[str, float], ...]],
) -> dict[str, dict[tuple[int, int], Finished]]:
    """The runs of each strategy on a problem, by seed and place of their limits.

    Raises:
        ValueError: Two runs have the same.
    """
    has: dict[str, dict[tuple[int, int], Finished]] = {}
    for run in runs:
        own = has.setdefault(_strategy(run, of_strategy[run.result.strategy]), {})
        key = (run.seed, by_limits.index(_bounds(run)))
        if key in own:
            raise ValueError(
                f"{own[key].folder} and {run.folder} are runs of the same strategy, problem and seed; "
                "leave out one of them"
            )
        own[key] = run
    return has


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds[:5])) + (", ..." if len(seeds) > 5 else "")


def _varied(finished: Sequence[Finished], groups: Sequence[str], choice: str = "") -> list[str]:
    """Settings of some groups that are others in some of the runs.

    Args:
        finished: The runs.
        groups: Groups, and settings by their whole name.
        choice: The name of a group whose choice the runs share, which is no setting.
    """
    names = dict.fromkeys(name for run in finished for name in run.settings)

    def differs(name: str) -> bool:
        group, dot, _ = name.partition(".")
        if group not in OF_THE_PROBLEM:
            return len({run.settings.get(name) for run in finished}) > 1
        values = {(vars(run.result)[group], run.settings.get(name)) for run in finished}
        return bool(dot) and len(values) > len({chosen for chosen, _ in values})

    return [n for n in names if n != choice and n.partition(".")[0] in groups and differs(n)]


def _problem(run: Finished, names: Sequence[str]) -> tuple[str, ...]:
    """Space, data set, evaluator and device; then objectives, whether there are limits, other settings."""
    found = run.result
    settings = [f"{name}={run.settings[name]}" for name in names if name in run.settings]
    objectives = [objective.metric for objective in found.objectives]
    return (
        *(found.search_space, found.dataset, found.evaluator, found.device),
        " and ".join(objectives),
        "a run per limit" if found.limits else "",
        *settings,
    )


def _strategy(run: Finished, names: Sequence[str]) -> str:
    """The strategy, with the settings in which runs differ, as `hwnas compare` names it."""
    own = [f"{name.removeprefix('strategy.')}={run.settings[name]}" for name in names if name in run.settings]
    return ":".join([run.result.strategy, *own])


def _bounds(run: Finished) -> tuple[tuple[str, float], ...]:
    return tuple(sorted(run.result.limits.items()))


def _case(name: str, results: Sequence[Result]) -> Case:
    """The problem of some runs, one for each limit, with what is known of its exact optimum."""
    first = results[0]
    quality, *others = first.objectives
    if first.limits:
        best = [
            result.truth.best.metrics[quality.metric]
            for result in results
            if result.truth is not None and result.truth.best is not None
        ]
        limits = tuple(result.bounds for result in results)
        return Case(name, first.objectives, limits, tuple(best) if len(best) == len(results) else None)
    cost = next((o for o in others if o.goal == "min" and o.metric in first.deciles), None)
    if first.truth is None or cost is None:
        return Case(name, first.objectives, ())
    front = np.array(first.truth.front)
    values, place = front[:, 0], first.objectives.index(cost)
    # The best network within a limit is on the true front, or as good as one that is.
    bounds = tuple(first.deciles[cost.metric][1:10])
    within = [values[front[:, place] <= bound] for bound in bounds]
    pick = max if quality.goal == "max" else min
    kept = [(bound, float(pick(of))) for bound, of in zip(bounds, within, strict=True) if len(of)]
    return Case(
        name,
        first.objectives,
        tuple((Limit(cost.metric, bound),) for bound, _ in kept),
        tuple(value for _, value in kept),
    )


def _found(name: str, run: Finished, limit: int | None) -> Found:
    with consistent(run.folder):
        everything = read_archive(run.folder / "archive.jsonl")
        first: dict[tuple[int, ...], Trial] = {}
        for trial in everything:
            first.setdefault(trial.genotype, trial)
        trials = list(first.values())
        wanted = [o.metric for o in run.result.objectives] + list(run.result.limits)
        metrics = columns(trials)
        if missing := [metric for metric in wanted if metric not in metrics]:
            raise ValueError(f"archive.jsonl has no {missing[0]}")
        return Found(name, run.seed, metrics, clock=_clock(run.folder, trials), limit=limit)


def _clock(folder: Path, trials: Sequence[Trial]) -> FloatArray | None:
    """Seconds of a benchmark until each architecture was known, by metrics.csv; None: it has none.

    The new architectures of a generation share its seconds.
    """
    path = folder / "metrics.csv"
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        ends = {int(row["step"]): 3600 * float(row["virtual_hours"]) for row in rows}
        generations = np.array([trial.generation for trial in trials])
        clock, before = np.empty(len(trials)), 0.0
        for generation in sorted(set(generations.tolist())):
            mine = np.flatnonzero(generations == generation)
            end = ends[generation]
            clock[mine] = before + (end - before) * np.arange(1, len(mine) + 1) / len(mine)
            before = end
    except (KeyError, ValueError):
        return None
    return clock if np.isfinite(clock).all() else None
