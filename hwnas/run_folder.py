"""What a run's folder says, read and checked."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hwnas import password
from hwnas.analysis import MOST_REPORTED
from hwnas.config import build, choices
from hwnas.core import (
    Genotype,
    Goal,
    Limit,
    Objective,
    SearchSpace,
    Trial,
    best,
    costs,
    front,
    unique,
    violations,
)
from hwnas.drawing import picture, quantity, text
from hwnas.files import to_json
from hwnas.foreign import plain_yaml, read_config, read_json, shaped
from hwnas.store import PLAN, PLAN_SHAPE, RESULT_SHAPE, metrics_from_json, read_archive


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
        goals: The direction in which each metric is better, where the run's folder says it.
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
    goals: Mapping[str, Goal]

    @property
    def best(self) -> Trial | None:
        """The best network that keeps the limits; None if none does."""
        return best(comparable_trials(self), self.objectives, self.limits)

    @property
    def front(self) -> list[Trial]:
        """The networks that no other beats in all objectives, the cheapest first."""
        supported = [t for t in comparable_trials(self) if all(map(math.isfinite, t.metrics.values()))]
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
        result = read_json(folder / "result.json")
        _require_shape(result, RESULT_SHAPE, folder / "result.json")
    result = json.loads(to_json(result or {}))
    stored = folder / ".hydra"
    config, names = read_config(stored / "config.yaml"), choices(folder)
    written = stored / "overrides.yaml"
    overrides = (
        [password.without(str(override)) for override in plain_yaml(written)] if written.is_file() else []
    )
    _require(config, ("search_space", "seed", "generations"), stored / "config.yaml")
    _require(names, ("strategy", "search_space", "dataset", "evaluator", "device"), stored / "hydra.yaml")
    plan = result or read_json(folder / PLAN)
    _require_shape(plan, PLAN_SHAPE, folder / ("result.json" if result else PLAN))
    space: SearchSpace = build(config.search_space, SearchSpace, **_image_sizes(config))

    trials = read_archive(folder / "archive.jsonl")
    if not trials:
        raise ValueError(f"{folder} holds no evaluated network yet")
    try:
        for genotype in {trial.genotype for trial in trials}:
            space.check(genotype)
        objectives = tuple(Objective(o["metric"], o["goal"]) for o in plan["objectives"])
        costs(trials, objectives)  # every trial has them
        goals = {**plan.get("goals", {}), **{o.metric: o.goal for o in objectives}}
        limits = tuple(
            Limit(metric, bound, goals.get(metric, goal_of(metric)))
            for metric, bound in plan["limits"].items()
        )
        violations(trials, limits)
        _check_shapes(result, space, len(unique(trials)))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} is corrupt: {error}") from None
    return Run(folder.absolute(), result, names, config, overrides, space, trials, objectives, limits, goals)


def _image_sizes(config: DictConfig) -> dict[str, Any]:
    """What the space is told of the images; nothing where the images' file knows it alone."""
    try:
        shape, num_classes = (
            OmegaConf.select(config, f"dataset.{k}") for k in ("image_shape", "num_classes")
        )
    except OmegaConfBaseException as error:
        raise ValueError(f"dataset is corrupt: {' '.join(str(error).split())}") from None
    if shape is None:
        return {}
    if not isinstance(shape, ListConfig):
        raise ValueError(f"dataset.image_shape must be three numbers, not {shape}")
    return {"image_shape": tuple(shape), "num_classes": num_classes}


def _check_shapes(result: Mapping[str, Any], space: SearchSpace, num: int) -> None:
    """Raise ValueError unless the tables of result.json fit the space and the number of networks."""
    for key in ("effects", "sums"):
        for metric, table in result.get(key, {}).items():
            shape = np.shape(table["added"])
            if shape != space.alpha_shape:
                raise ValueError(f"{key} of {metric} has shape {shape}, not {space.alpha_shape}")
    population = result.get("population", {"different": 1, "size": 1})
    if not 0 < int(population["different"]) <= int(population["size"]):
        raise ValueError(f"population is {population}")
    for metric, values in result.get("reports", {}).items():
        if len(values) != min(num, MOST_REPORTED):
            raise ValueError(f"reports has {len(values)} values of {metric} for {num} networks")


def goal_of(metric: str) -> Goal:
    """The direction in which a metric is better, by its name: for reports, and folders that do not say it."""
    return "max" if metric.endswith("_acc") or metric in ("rmi", "rmi_flops") else "min"


def _require_shape(content: Any, shape: Any, path: Path) -> None:
    try:
        shaped(content, shape)
    except ValueError as error:
        raise ValueError(f"{path} is corrupt: {error}") from None


def _require(content: Mapping[Any, Any], keys: Sequence[str], path: Path) -> None:
    for key in keys:
        if key not in content:
            raise ValueError(f"{path} is corrupt: it has no {key}")


def comparable_trials(run: Run) -> list[Trial]:
    """The trials among which the best one and the front are sought: all, or what the strategy returned."""
    if run.result.get("stationary", True):
        return run.trials
    names = run.trials[0].metrics
    asked = {trial.genotype: trial.generation for trial in run.trials}
    returned = [(tuple(row["genotype"]), metrics_from_json(row["metrics"])) for row in run.result["result"]]
    return [
        Trial(genotype, {name: row[name] for name in names}, asked[genotype]) for genotype, row in returned
    ]


def reported_metrics(run: Run) -> dict[Genotype, dict[str, float]]:
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
