"""A run's page: one HTML file that draws what the run's folder holds, and needs nothing else to be read."""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import json
import math
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from platform import python_version
from typing import Any
from urllib.parse import quote

import numpy as np
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hwnas import sweep_report
from hwnas.config import build, choices, explain
from hwnas.core import (
    Genotype,
    Goal,
    Limit,
    Objective,
    SearchSpace,
    Trial,
    best,
    closest,
    costs,
    front,
    unique,
    violations,
)
from hwnas.drawing import (
    NODE_RADIUS,
    SUFFIXES,
    Drawing,
    LineChart,
    drawing,
    line_chart,
    picture,
    quantity,
    scatter,
    text,
)
from hwnas.pages import write_page
from hwnas.pruning.report import write_study
from hwnas.pruning.study import result_files
from hwnas.store import PLAN, Hypervolume, metrics_from_json, read_archive, to_json
from hwnas.strategies.evolution import cost_diversity
from hwnas.truth import YARDSTICKS

MAX_DOMINATED = 3000
NUM_SHADES = 8
"""Steps of the colour scale of generations."""

PHASES = {
    "quality": "preparing the quality estimate",
    "device": "preparing the device",
    "search": "searching",
    "final network": "training the final network",
    "report": "drawing this page",
}


@dataclass(frozen=True)
class Run:
    """What a run's folder says.

    Args:
        folder: The folder, absolute.
        result: Contents of result.json; empty for an unfinished run.
        names: Chosen option per config group.
        config: The composed configuration.
        overrides: What the user gave.
        space: The search space.
        trials: Every evaluation, in order; at least one.
        objectives: Quality first, then cost.
        limits: Bounds that networks must keep.
    """

    folder: Path
    result: Mapping[str, Any]
    names: Mapping[str, str]
    config: DictConfig
    overrides: list[str]
    space: SearchSpace
    trials: list[Trial]
    objectives: tuple[Objective, ...]
    limits: tuple[Limit, ...]

    @property
    def best(self) -> Trial | None:
        """The best network that keeps the limits; None if none does."""
        return best(_comparable(self), self.objectives, self.limits)

    @property
    def front(self) -> list[Trial]:
        """The networks that no other beats in all objectives, the cheapest first."""
        supported = [t for t in _comparable(self) if all(map(math.isfinite, t.metrics.values()))]
        return front(supported, self.objectives)

    @property
    def page(self) -> Path:
        """The report."""
        return self.folder / "report.html"

    def _repr_html_(self) -> str:
        """What a notebook shows: the answer, drawn, and a link to the report."""
        link = quote(os.path.relpath(self.page))  # notebooks open links below their own folder
        lines = [
            f"<b>{self.names['strategy']}</b> on {self.names['search_space']}, {len(self.trials):,} "
            f'evaluations, {len(self.front)} networks on the front: <a href="{link}">report</a>'
        ]
        if self.best is not None:
            values = ", ".join(f"{quantity(m).name} {text(m, v)}" for m, v in self.best.metrics.items())
            lines += [f"best: {values}", picture(self.space, self.best.genotype)]
        return "<br>".join(lines)


def write_report(folder: Path, result: Mapping[str, Any] | None = None) -> Path:
    """Draw the page of a run; returns the path of its report.html.

    Args:
        folder: The run's folder.
        result: What result.json is going to hold; None reads it, and if there is none the run is unfinished.

    Raises:
        ValueError: There is no run in the folder, or one of its files is corrupt; says which.
    """
    return write_page("report.html.j2", page(read_run(folder, result)), folder / "report.html")


def write_sweep_report(folder: Path) -> Path:
    """Draw the page of a sweep; returns the path of its report.html.

    Args:
        folder: The sweep's folder, with a folder per run.

    Raises:
        ValueError: No search has finished in it yet, or a file is corrupt; says which.
    """
    return write_page("sweep.html.j2", sweep_report.page(folder), folder / "report.html")


def write_page_of(folder: Path) -> tuple[Path, str]:
    """Draw the page of a run, of a sweep's runs or of a pruning study; its path, and a study's conclusion.

    Raises:
        ValueError: There is none of them in the folder, or a file is corrupt; says which.
    """
    if result_files(folder):
        path, study = write_study(folder)
        return path, study.conclusion
    sweep = not (folder / "archive.jsonl").is_file() and any(folder.glob("*/archive.jsonl"))
    return write_sweep_report(folder) if sweep else write_report(folder), ""


def command(arguments: list[str]) -> int:
    """`hwnas report`: draw pages again and print their paths; returns the exit code, 0, 1 or 2."""
    parser = argparse.ArgumentParser(
        prog="hwnas report", description="Draw the page of a run, of a sweep's runs, or of a pruning study."
    )
    parser.add_argument(
        "folders", nargs="+", type=Path, metavar="folder", help="folder of a run, a sweep, or several sweeps"
    )
    try:
        given = parser.parse_args(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        for folder in map(Path.expanduser, given.folders):
            path, conclusion = write_page_of(folder)
            if conclusion:
                print(conclusion)
            print(path)
    except (ValueError, OSError) as error:
        print(f"hwnas report: error: {explain(error, 'search')}", file=sys.stderr)
        return 1
    return 0


def read_run(folder: Path, result: Mapping[str, Any] | None = None) -> Run:
    """Everything that the page shows, from the run's folder.

    Args:
        folder: The run's folder.
        result: As for `write_report`.

    Raises:
        ValueError: There is no run in the folder, or one of its files is corrupt; says which.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    for name in ("archive.jsonl", PLAN, ".hydra/config.yaml", ".hydra/hydra.yaml"):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no search: {name} is missing")
    if result is None and (folder / "result.json").is_file():
        result = _read_json(folder / "result.json")
    result = json.loads(to_json(result or {}))
    stored = folder / ".hydra"
    try:
        config, names = OmegaConf.load(stored / "config.yaml"), choices(folder)
        shape, num_classes = (
            OmegaConf.select(config, f"dataset.{k}") for k in ("image_shape", "num_classes")
        )
        written = stored / "overrides.yaml"
        overrides = [str(override) for override in OmegaConf.load(written)] if written.is_file() else []
    except (YAMLError, OmegaConfBaseException) as error:
        raise ValueError(f"{stored} is corrupt: {' '.join(str(error).split())}") from None
    assert isinstance(config, DictConfig)
    _require(config, ("search_space", "seed", "generations"), stored / "config.yaml")
    _require(names, ("strategy", "search_space", "dataset", "evaluator", "device"), stored / "hydra.yaml")
    plan = result or _read_json(folder / PLAN)
    _require(plan, ("objectives", "limits"), folder / ("result.json" if result else PLAN))
    if result:
        _require(result, ("evaluations", "seconds"), folder / "result.json")
    known = {} if shape is None else {"image_shape": tuple(shape), "num_classes": num_classes}
    space: SearchSpace = build(config.search_space, **known)

    trials = read_archive(folder / "archive.jsonl")
    if not trials:
        raise ValueError(f"{folder} holds no evaluated network yet")
    try:
        for genotype in {trial.genotype for trial in trials}:
            space.check(genotype)
        objectives = tuple(Objective(o["metric"], o["goal"]) for o in plan["objectives"])
        costs(trials, objectives)  # every trial has them
        goals = {objective.metric: objective.goal for objective in objectives}
        limits = tuple(
            Limit(str(metric), float(bound), goals.get(metric, _goal(metric)))
            for metric, bound in plan["limits"].items()
        )
        violations(trials, limits)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} is corrupt: {error}") from None
    return Run(folder.absolute(), result, names, config, overrides, space, trials, objectives, limits)


def _goal(metric: str) -> Goal:
    return "max" if metric.endswith("_acc") or metric in ("rmi", "rmi_flops") else "min"


def _require(content: Mapping[Any, Any], keys: Sequence[str], path: Path) -> None:
    for key in keys:
        if key not in content:
            raise ValueError(f"{path} is corrupt: it has no {key}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is corrupt: {error}") from None


def page(run: Run) -> dict[str, Any]:
    """The values of the template: everything is decided here, the template only arranges it."""
    answer, pareto = run.best, run.front
    supported = [t for t in unique(run.trials) if all(map(math.isfinite, t.metrics.values()))]
    marked = {trial.genotype: trial for trial in [*pareto, *([answer] if answer else [])]}
    ordered = sorted(marked.values(), key=lambda trial: trial.metrics[run.objectives[1].metric])
    dominated = [trial for trial in supported if trial.genotype not in marked]
    drawn = _thinned(dominated)
    shape = drawing(run.space)
    names = list(dict.fromkeys(name for trial in run.trials for name in trial.metrics))
    reported = _reported(run)
    names += [name for name in dict.fromkeys(itertools.chain(*reported.values())) if name not in names]
    points = _points([*drawn, *ordered], names, reported, pareto, answer, run)
    on_front = [point for point in points if point["front"]]
    num_unsupported = len(unique(run.trials)) - len(supported)
    trained = _trained(run.folder)
    return {
        "run": run,
        "objectives": [quantity(objective.metric) for objective in run.objectives],
        "goals": [("high" if objective.goal == "max" else "low") for objective in run.objectives],
        "limits": [_spoken(limit) for limit in run.limits],
        "closest": _closest(run),
        "headline": _headline(run, answer, reported, trained),
        "drawing": shape,
        "node_radius": NODE_RADIUS,
        "names": [*(quantity(name).name for name in names), "generation"],
        "points": points,
        "answer": next((p for p in points if p["best"]), None),
        "scatter": scatter(
            run.objectives[:2],
            run.limits,
            [point["metrics"] for point in points],
            [trial.metrics for trial in pareto],
            [
                dict(zip((objective.metric for objective in run.objectives), values, strict=True))
                for values in (run.result.get("truth") or {}).get("front", [])
            ],
        )
        if points
        else None,
        "cells": _cells(points, pareto, answer, run),
        "metrics": names,
        "front": on_front,
        "csv": _csv(on_front, names),
        "counts": {"drawn": len(drawn), "dominated": len(dominated), "unsupported": num_unsupported},
        "curves": _generations(run),
        "truth": _truth(run),
        "transfer": _transfer(run),
        "yardsticks": _yardsticks(run),
        "trained": trained,
        "phases": _phases(run.result.get("seconds", {})),
        "evaluations": _evaluations(run),
        "clock": virtual_clock(run.result),
        "data": _data(points, shape),
        "num_shades": NUM_SHADES,
        "last_generation": max(trial.generation for trial in run.trials),
        "command": shlex.join(["hwnas", "search", *run.overrides]),
        "next": _next(run, answer, trained),
        "yaml": (run.folder / ".hydra" / "config.yaml").read_text(encoding="utf-8"),
        "versions": {
            "hwnas": _version("hwnas"),
            "torch": _version("torch"),
            "python": python_version(),
            **run.result.get("versions", {}),
        },
    }


def _spoken(limit: Limit) -> str:
    sign = "≤" if limit.goal == "min" else "≥"
    return f"{quantity(limit.metric).name} {sign} {text(limit.metric, limit.bound, exact=True)}"


def _comparable(run: Run) -> list[Trial]:
    """The trials among which the best one and the front are sought: all, or what the strategy returned."""
    if run.result.get("stationary", True):
        return run.trials
    names = run.trials[0].metrics
    asked = {trial.genotype: trial.generation for trial in run.trials}
    returned = [(tuple(row["genotype"]), metrics_from_json(row["metrics"])) for row in run.result["result"]]
    return [
        Trial(genotype, {name: row[name] for name in names}, asked[genotype]) for genotype, row in returned
    ]


def _closest(run: Run) -> str:
    near = closest(run.trials, run.limits)
    if near is None:
        return ""
    values = ", ".join(f"{quantity(name).name} {text(name, value)}" for name, value in near.metrics.items())
    return f"the closest is {run.space.to_str(near.genotype)}: {values}."


def _thinned(dominated: Sequence[Trial]) -> list[Trial]:
    """At most `MAX_DOMINATED` trials, evenly over the run."""
    if len(dominated) <= MAX_DOMINATED:
        return list(dominated)
    return [dominated[i] for i in np.linspace(0, len(dominated) - 1, MAX_DOMINATED).astype(int)]


def _reported(run: Run) -> dict[Genotype, dict[str, float]]:
    """Metrics per genotype of the networks that result.json and pareto.csv describe.

    They have what only reports may know; some of the networks are not in the archive.
    """
    described = [*run.result.get("result", []), *filter(None, [run.result.get("best")])]
    reported = {tuple(item["genotype"]): metrics_from_json(item["metrics"]) for item in described}
    path = run.folder / "pareto.csv"
    if run.result and path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                try:
                    genotype = tuple(map(int, row.pop("genotype").split()))
                    del row["arch"]
                    reported[genotype] = {name: float(value) for name, value in row.items() if value}
                except (KeyError, ValueError, AttributeError) as error:
                    raise ValueError(f"{path} is corrupt: {error}") from None
    return reported


def _points(
    trials: Sequence[Trial],
    names: Sequence[str],
    reported: Mapping[Genotype, Mapping[str, float]],
    pareto: Sequence[Trial],
    answer: Trial | None,
    run: Run,
) -> list[dict[str, Any]]:
    """One record per drawn network, in drawing order."""
    first = {trial.genotype: trial.generation for trial in reversed(run.trials)}
    last = max(first.values()) or 1
    on_front = {trial.genotype for trial in pareto}
    points: list[dict[str, Any]] = []
    for trial, excess in zip(trials, violations(trials, run.limits), strict=True):
        metrics = {**reported.get(trial.genotype, {}), **trial.metrics}
        generation, feasible = first[trial.genotype], bool(excess == 0)
        is_best = answer is not None and trial.genotype == answer.genotype
        title = "on the front" if trial.genotype in on_front else "dominated"
        if is_best:
            title = "best feasible network" if run.limits else "best network"
        if not feasible:
            title += ", beyond the limits"
        texts = [text(name, metrics[name]) if name in metrics else "" for name in names]
        spoken = [f"{quantity(name).name} {value}" for name, value in zip(names, texts, strict=True) if value]
        arch = run.space.to_str(trial.genotype)
        shade = round((NUM_SHADES - 1) * generation / last)
        points.append(
            {
                "index": len(points),
                "genotype": trial.genotype,
                "arch": arch,
                "generation": generation,
                "metrics": metrics,
                "texts": [*texts, str(generation)],
                "title": title,
                "label": f"{title}: {arch}; {', '.join(spoken)}; generation {generation}",
                "style": f"g{shade}" if feasible else f"g{shade} out",
                "best": is_best,
                "front": trial.genotype in on_front,
                "feasible": feasible,
            }
        )
    return points


def _generations(run: Run) -> list[LineChart]:
    """Line charts over generations: hypervolume, the population's mean objectives and its cost diversity."""
    groups = [list(group) for _, group in itertools.groupby(run.trials, key=lambda trial: trial.generation)]
    hypervolume = Hypervolume(run.objectives)
    curve = run.result.get("hypervolume") or [hypervolume.add(group) for group in groups]
    charts = [line_chart("hypervolume", "hypervolume", "generation", range(len(curve)), curve)]
    truth = run.result.get("truth") or {}
    for key, name in (
        ("hypervolume_ratio", "of the true hypervolume"),
        ("igd_plus", "distance to the true front"),
    ):
        values = [math.inf if value is None else value for value in truth.get(key, [])]
        if any(map(math.isfinite, values)):
            charts.append(line_chart(name, key, "generation", range(len(values)), values))
    for objective in run.objectives:
        told = [[v for t in group if math.isfinite(v := t.metrics[objective.metric])] for group in groups]
        means = [sum(values) / len(values) if values else math.inf for values in told]
        if any(map(math.isfinite, means)):
            generations = [group[0].generation for group in groups]
            name = f"mean {quantity(objective.metric).name}"
            charts.append(line_chart(name, objective.metric, "generation", generations, means))
    diversity = _diversity(run, groups)
    return charts if diversity is None else [*charts, diversity]


def _diversity(run: Run, groups: Sequence[Sequence[Trial]]) -> LineChart | None:
    """The mean cost diversity of the architectures asked for together, in squared units of the cost.

    Source: chibar of MO-HDNAS, eq. 4. None where the cost has no unit, or nothing is supported.
    """
    stem, _, unit = run.objectives[1].metric.rpartition("_")
    if unit not in SUFFIXES:
        return None
    means = []
    for group in groups:
        cost = costs(group, run.objectives)[:, 1]
        known = cost[np.isfinite(cost)]
        means.append(float(cost_diversity(known).mean()) if len(known) else math.inf)
    if not any(map(math.isfinite, means)):
        return None
    metric = f"{stem}_diversity_{unit}2"
    generations = [group[0].generation for group in groups]
    return line_chart(quantity(metric).name, metric, "generation", generations, means)


def _truth(run: Run) -> str:
    """A sentence on how far the answer is from the best network that there is; empty where nobody knows."""
    truth = run.result.get("truth") or {}
    if not truth:
        return _looked_up(run)
    sentence = f"The dashed line is the true front, of {len(truth['front'])} networks"
    sentence += f"; this search covers {truth['hypervolume_ratio'][-1]:.1%} of its hypervolume"
    if truth["best"] is not None and truth["regret"]:
        regrets = ", ".join(
            f"{100 * value:.2f} points of {quantity(name).name}"
            if name.endswith("_acc")
            else f"{value:.4g} of {quantity(name).name}"
            for name, value in truth["regret"].items()
        )
        within = " within the limits" if run.limits else ""
        sentence += f". The best network that there is{within} is ahead by {regrets}"
    return sentence + "."


def _yardsticks(run: Run) -> list[tuple[str, str, str]]:
    """(what it is, its figures, its architecture) of networks that are known exactly, where costs add up."""
    rows = []
    for name, network in (run.result.get("yardsticks") or {}).items():
        metrics = metrics_from_json(network["metrics"])
        figures = ", ".join(
            f"{quantity(metric).name} {text(metric, value)}" for metric, value in metrics.items()
        )
        rows.append((YARDSTICKS[name], figures, network["arch"]))
    return rows


def _transfer(run: Run) -> dict[str, Any] | None:
    """The table of each device's best network on every device, written out; None for a run on one device."""
    transfer = run.result.get("transfer")
    if transfer is None:
        return None
    quality = run.objectives[0].metric
    rows = []
    for row in transfer["rows"]:
        network, cells = row["network"], []
        for device, metric in transfer["main"].items():
            if network is None:
                cells.append(("", "", "none"))
                continue
            value, excess = network["metrics"][metric], row["excess"][device]
            regret = row["regret"][device]
            if excess is None or excess > 0:
                verdict = "not supported" if excess is None else f"{excess:.0%} beyond the limit"
                cells.append((text(metric, value), verdict, "over"))
            elif regret is not None:
                lost = f"{100 * regret:.2f} points" if quality.endswith("_acc") else f"{regret:.4g}"
                own = regret == 0
                cells.append((text(metric, value), "the best there" if own else f"− {lost}", "own" * own))
        title = "all of them" if row["device"] is None else row["device"]
        reached = "" if network is None else text(quality, network["metrics"][quality])
        rows.append(
            (title, reached, "no network keeps the limits" if network is None else network["arch"], cells)
        )
    limits = [
        (device, ", ".join(_spoken(Limit(metric, bound, _goal(metric))) for metric, bound in own.items()))
        for device, own in transfer["limits"].items()
    ]
    return {"rows": rows, "limits": limits, "among": transfer["among"], "quality": quantity(quality).name}


def _looked_up(run: Run) -> str:
    """A sentence on how good the answer of an estimate really is, where a benchmark's table knows it."""
    figures = run.result.get("looked_up") or {}
    if not figures:
        return ""
    within = " within the limits" if run.limits else ""
    parts = [
        f"{text(name, one['value'])} of {quantity(name).name}, where the best network that there is{within} "
        f"has {text(name, one['value'] + one['regret'])}"
        + (
            f" and the one with the most multiply-adds {text(name, one['by_flops'])}"
            if one.get("by_flops") is not None
            else ""
        )
        for name, one in figures.items()
    ]
    return f"Looked up in a benchmark's table, which the search never saw: the best has {'; '.join(parts)}."


def _cells(
    points: Sequence[Mapping[str, Any]], pareto: Sequence[Trial], answer: Trial | None, run: Run
) -> list[tuple[str, Mapping[str, Any]]]:
    """(title, point) of the networks worth a look; one that is several things at once comes once."""
    titles: dict[Genotype, list[str]] = {}
    if answer is not None:
        titles.setdefault(answer.genotype, []).append("best feasible" if run.limits else "best")
    if pareto:
        titles.setdefault(pareto[_knee(costs(pareto, run.objectives))].genotype, []).append(
            "knee of the front"
        )
        titles.setdefault(pareto[0].genotype, []).append("cheapest on the front")
    by_genotype = {point["genotype"]: point for point in points}
    return [(", ".join(what), by_genotype[genotype]) for genotype, what in titles.items()]


def _knee(F: np.ndarray) -> int:
    """The row of a front, F (n, 2) as costs, that is farthest below the line between its ends."""
    span = np.ptp(F, axis=0)
    return int(np.argmin(((F - F.min(axis=0)) / np.where(span > 0, span, 1.0)).sum(axis=1)))


def _csv(points: Sequence[Mapping[str, Any]], names: Sequence[str]) -> str:
    """The points as a data URI."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["arch", "genotype", *names])
    for point in points:
        genotype = " ".join(map(str, point["genotype"]))
        writer.writerow([point["arch"], genotype, *(point["metrics"].get(name, "") for name in names)])
    return "data:text/csv;charset=utf-8," + quote(buffer.getvalue())


def _trained(folder: Path) -> dict[str, Any] | None:
    """The final network: its figures and learning curves; None if none was trained."""
    described, curves = folder / "network" / "architecture.json", folder / "network" / "curves.csv"
    if not (described.is_file() and curves.is_file()):
        return None
    figures = _read_json(described)
    with curves.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        epochs = [float(row["epoch"]) for row in rows]
        charts = [
            line_chart("training loss", "loss", "epoch", epochs, [float(row["loss"]) for row in rows]),
            line_chart(
                "training accuracy",
                "train_acc",
                "epoch",
                epochs,
                [float(row["train_acc"]) for row in rows],
            ),
        ]
        facts = [
            (quantity(name).name, text(name, figures[name]))
            for name in ("test_acc", "params", "flops")
            if name in figures
        ]
        return {
            "arch": figures["arch"],
            "test_acc": float(figures["test_acc"]),
            "facts": [*facts, ("epochs", str(figures["epochs"]))],
            "weights": folder / "network" / "weights.pt",
            "charts": charts,
        }
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'network'} is corrupt: {error}") from None


def _headline(
    run: Run,
    answer: Trial | None,
    reported: Mapping[Genotype, Mapping[str, float]],
    trained: Mapping[str, Any] | None,
) -> list[tuple[str, str]]:
    """(number, caption) pairs for the top of the page."""
    row: list[tuple[str, str]] = []
    if answer is None:
        row.append(("none", "keeps the limits" if run.limits else "is supported by the device"))
    else:
        for objective in run.objectives:
            name = quantity(objective.metric).name
            row.append((text(objective.metric, answer.metrics[objective.metric]), f"{name} of the best"))
        test_acc = trained["test_acc"] if trained else reported.get(answer.genotype, {}).get("test_acc")
        if test_acc is not None:
            row.append((text("test_acc", test_acc), "test accuracy" + ", trained" * (trained is not None)))
    row.append((f"{len(run.trials):,}", f"evaluations, {len(unique(run.trials)):,} different networks"))
    if run.result:
        row.append((f"{run.result['evaluations']['cached']:,}", "of them from the store"))
        seconds = run.result["seconds"]["total"]
        row.append((f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s", "in all"))
    return row


def _data(points: Sequence[Mapping[str, Any]], shape: Drawing) -> dict[str, Any]:
    """What the page's script needs to fill a card with any of the points."""
    titles = list(dict.fromkeys(point["title"] for point in points))
    rows = [[p["genotype"], p["arch"], titles.index(p["title"]), p["texts"]] for p in points]
    return {"ops": shape.ops, "titles": titles, "points": rows}


def _phases(seconds: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """(phase, seconds, percent of the whole) in order; the last are short ones and what no phase covers."""
    phases = [
        (PHASES.get(name, name), spent)
        for name, spent in seconds.items()
        if name != "total" and spent >= 0.05
    ]
    whole = max(seconds.get("total", 0.0), sum(spent for _, spent in phases)) or 1.0
    phases.append(("starting, and all else", whole - sum(spent for _, spent in phases)))
    return [(name, f"{spent:.1f} s", round(100 * spent / whole, 2)) for name, spent in phases]


def _evaluations(run: Run) -> list[tuple[str, str, float]]:
    """(origin, number, percent of the whole) of the evaluations; empty for an unfinished run."""
    if not run.result:
        return []
    asked, cached = run.result["evaluations"]["asked"], run.result["evaluations"]["cached"]
    parts = [("paid for", asked - cached), ("from the store (repeats, earlier runs)", cached)]
    return [(name, f"{number:,}", round(100 * number / asked, 2)) for name, number in parts]


def virtual_clock(result: Mapping[str, Any]) -> str:
    """A sentence on what the search would have taken without a benchmark's table; empty if there was none."""
    seconds = result.get("virtual_seconds")
    if seconds is None:
        return ""
    unique = result["evaluations"]["unique"]
    return (
        f"To train these {unique:,} architectures took the authors of the benchmark "
        f"{seconds / 86400:,.1f} GPU days."
    )


def _next(run: Run, answer: Trial | None, trained: Mapping[str, Any] | None) -> str | None:
    """The command that a user may want now; None if there is nothing left to do."""
    if not run.result:
        return shlex.join(["hwnas", "search", f"resume={run.folder}"])
    if answer is not None and trained is None and hasattr(run.space, "network"):
        return shlex.join(["hwnas", "train", f"run={run.folder}"])
    return None


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
