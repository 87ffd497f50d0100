"""A run's folder, read and checked: its configuration, its choices, its trials."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hwnas.build import build, read_config, read_yaml
from hwnas.core import (
    Genotype,
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
from hwnas.files import consistent, plain_yaml, read_json, shaped
from hwnas.runs.lock import STORED
from hwnas.runs.result import MOST_REPORTED, Comparison, Plan, Result, read_plan, read_result
from hwnas.runs.units import quantity, text
from hwnas.spaces.capabilities import drawing
from hwnas.spaces.drawing import picture
from hwnas.store import password
from hwnas.store.archive import PLAN, read_archive

STORE = "multirun/store"
"""Folder of what runs share, for commands that have no `store.dir`."""

CONFIG, HYDRA = f"{STORED}/config.yaml", f"{STORED}/hydra.yaml"
"""The configuration of a run of the command line, and what Hydra knows of it (choices, working folder)."""

PROBLEM = "problem.json"
"""In their place, the problem of a run that Python began."""

VERSIONS = "versions.json"
"""The evaluators' versions when a run began."""

MEMBER = "device@device.devices."  # the config group of one of several devices, before its name

RUN_GROUPS = ("search_space", "dataset")  # what `hwnas train run=` takes from the run


def choices(folder: Path) -> dict[str, str]:
    """Which option was chosen in each config group of the run in `folder`."""
    return choices_in(_choices(folder), OmegaConf.select(read_yaml(config_file(folder)), "device"))


def choices_in(chosen: Mapping[str, str], device: Mapping[str, object] | None) -> dict[str, str]:
    """Which option was chosen in each config group.

    Several devices are one text, and a device that is read from a file has the file's name.

    Args:
        chosen: As Hydra has it: with the groups of its own node, and of each of several devices.
        device: The device's node.
    """
    names = dict(chosen)
    members = [group.removeprefix(MEMBER) for group in names if group.startswith(MEMBER)]
    if members:
        names["device"] = ", ".join(members)
    elif names.get("device") in FILES.values():
        own = (device or {}).get("device") or (device or {}).get("path")
        names["device"] = Path(str(own)).stem if own else names["device"]
    return {group: option for group, option in names.items() if "/" not in group and "@" not in group}


def config_file(folder: Path) -> Path:
    """The file that has what a run's groups set up.

    Raises:
        ValueError: There is none.
    """
    for name in (CONFIG, PROBLEM):
        if (folder / name).is_file():
            return folder / name
    raise ValueError(f"{folder} holds no run: {CONFIG} is missing")


def _choices(folder: Path) -> dict[str, str]:
    """All that is known of the choices of a run, with groups in other packages."""
    if (path := config_file(folder)).name == PROBLEM:
        shaped(content := read_json(path), {"names": dict})
        names = content["names"]
        return {str(group): str(name) for group, name in names.items()}
    chosen = hydra_says(folder, "runtime", "choices")
    if not isinstance(chosen, dict):
        raise ValueError(f"{folder / HYDRA} is corrupt: hydra.runtime.choices are missing")
    return {str(group): str(option) for group, option in chosen.items()}


def hydra_says(folder: Path, *keys: str) -> object:
    """A value of Hydra's node in a run's folder, as it is written; None if there is none."""
    if not (folder / HYDRA).is_file():
        return None
    found: object = plain_yaml(folder / HYDRA)
    for key in ("hydra", *keys):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def check_command(folder: Path, command: str) -> None:
    """Raise ValueError if the run in `folder` is one of another command."""
    name = hydra_says(folder, "job", "name")  # None: a folder that was put together by hand
    if name != command and name in ("search", "train", "prune", "export", "profile"):
        raise ValueError(f"{folder} holds a run of `hwnas {name}`, not of `hwnas {command}`")


def overrides(folder: Path) -> list[str]:
    """What the user gave on the command line, without passwords."""
    path = folder / STORED / "overrides.yaml"
    return [password.without(str(override)) for override in plain_yaml(path)] if path.is_file() else []


def given_settings(folder: Path) -> dict[str, str]:
    """What tells the run in `folder` from others: settings of its command, or of its problem, by name."""
    file = config_file(folder)
    if file.name != PROBLEM:
        pairs = [override.lstrip("+").partition("=") for override in overrides(folder)]
        return {name: value for name, _, value in pairs}
    problem = _flat(dict(plain_yaml(file)))
    settings = {name.removeprefix("names."): str(value) for name, value in problem.items()}
    return {name: value for name, value in settings.items() if not name.endswith("_target_")}


def check_same(folder: Path, ours: Mapping[str, object], theirs: Mapping[str, object]) -> None:
    """Raise ValueError unless the run in a folder has these settings; names the first difference."""
    ours, theirs = _flat(ours), _flat(theirs)
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            has = f"{key}={theirs[key]}" if key in theirs else f"no {key}"
            wanted = f"{key}={ours[key]}" if key in ours else f"no {key}"
            raise ValueError(f"{folder} holds a run with {has}, not {wanted}; choose another folder")


def _flat(settings: Mapping[str, object], prefix: str = "") -> dict[str, object]:
    """Settings by dotted name."""
    found: dict[str, object] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            found |= _flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def working_folder(folder: Path) -> Path | None:
    """Where the run in `folder` was started, for its relative paths; None if that is gone."""
    cwd = hydra_says(folder, "runtime", "cwd")
    if isinstance(cwd, str) and Path(cwd).is_absolute() and Path(cwd).is_dir():
        return Path(cwd)
    return None


FILES = {".json": "profile", ".csv": "table", ".txt": "table", ".npz": "table"}
"""The device that reads a file, by the file's ending in any case of letters."""


def take_from_run(cfg: DictConfig, folder: Path, overrides: Sequence[str]) -> None:
    """Put the space and the data set of the run in `folder` into `cfg`, as they were composed there.

    A group for which another option was given stays; single settings that were given win.

    Args:
        cfg: The configuration of `hwnas train`.
        folder: The run's folder.
        overrides: Those of this command.
    """
    stored = read_yaml(config_file(folder))
    cwd = working_folder(folder)
    for group in RUN_GROUPS:
        options = [o.partition("=")[2] for o in overrides if o.startswith(f"{group}=")]
        if options and options[-1] != choices(folder).get(group):
            continue
        tree = OmegaConf.create(OmegaConf.to_container(stored[group]))
        path = OmegaConf.select(tree, "path")
        if path and cwd is not None and (cwd / str(path)).exists():
            tree.path = str(cwd / str(path))
        for override in overrides:
            name = override.partition("=")[0].lstrip("+")
            if name.startswith(f"{group}."):
                OmegaConf.update(tree, name.removeprefix(f"{group}."), OmegaConf.select(cfg, name))
        cfg[group] = tree


REPLAY_GROUPS = ("search_space", "dataset", "evaluator", "device")
"""What a search that replays a run takes from it."""


def run_folders(folder: Path) -> list[Path]:
    """The folder itself, if it holds a search; else those of the sweep's searches that have networks.

    Raises:
        ValueError: It holds neither.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    if (folder / "archive.jsonl").is_file():
        return [folder]
    jobs = [path.parent for path in sorted(folder.glob("*/archive.jsonl")) if path.stat().st_size]
    if not jobs:
        raise ValueError(f"{folder} holds no search, and no sweep of searches")
    return jobs


def take_replayed(cfg: DictConfig, folder: Path, overrides: Sequence[str]) -> None:
    """Put what the networks of a run or a sweep were evaluated by into `cfg`, with the values it had there.

    Another device that was given stays, and `replay_costs` says so.

    Args:
        cfg: The configuration of `hwnas search`.
        folder: The folder of the run or the sweep.
        overrides: Those of this command.

    Raises:
        ValueError: There is no run, or a setting that was given contradicts it.
    """
    run = run_folders(folder)[0]
    stored, chosen, cwd = read_config(config_file(run)), _choices(run), working_folder(run)
    _require(stored, REPLAY_GROUPS, config_file(run))
    for group in REPLAY_GROUPS:
        if not isinstance(stored[group], DictConfig):
            raise ValueError(f"{config_file(run)} is corrupt: {group} is {stored[group]!r}")
        tree = OmegaConf.create({group: OmegaConf.to_container(stored[group], resolve=True)})
        members = tree[group].get("devices")
        for node in (tree[group], *(members.values() if isinstance(members, DictConfig) else ())):
            path = OmegaConf.select(node, "path") if isinstance(node, DictConfig) else None
            if path and cwd is not None and (cwd / str(path)).is_file():
                node.path = str(cwd / str(path))
        contradiction = _contradiction(group, cfg, tree, chosen, overrides)
        if not contradiction:
            cfg[group] = tree[group]
        elif group == "device":
            cfg.replay_costs = "device"
        else:
            raise ValueError(f"{contradiction} in {run}, which is replayed; leave it out")


def _contradiction(
    group: str, cfg: DictConfig, tree: DictConfig, chosen: Mapping[str, str], overrides: Sequence[str]
) -> str:
    """The first word on a group that says another thing than a run has, and what that is; empty if none."""
    given = dict(override.lstrip("+").partition("=")[::2] for override in overrides)
    words = {name: option for name, option in given.items() if name == group or name.startswith(f"{group}@")}
    there = {name: option for name, option in chosen.items() if name in words or name.startswith(f"{group}@")}
    if words and words != there:
        return f"{group}={given.get(group)} is {group}={chosen.get(group)}"
    for name in given:
        if name.startswith(f"{group}."):
            ours, theirs = (OmegaConf.select(each, name) for each in (cfg, tree))
            same = ours == theirs or (
                name.endswith(".path") and Path(str(ours)).absolute() == Path(str(theirs))
            )
            if not same:
                return f"{name}={ours} is {name}={theirs}"
    return ""


def judged_together(trials: Sequence[Trial], found: Sequence[Trial]) -> list[Trial]:
    """Of a run whose qualities change, e.g. by the model behind them, those that can be compared in the end.

    The trials of the last generation, where it has all that the strategy returned, as that of the cascade
    has; else what it returned.

    Args:
        trials: All trials, in order.
        found: What the strategy returned.
    """
    last = [trial for trial in trials if trial.generation == trials[-1].generation]
    there = {trial.genotype for trial in last}
    return last if all(trial.genotype in there for trial in found) else list(found)


@dataclass(frozen=True)
class Run:
    """What a run's folder says.

    Args:
        folder: The folder, absolute.
        plan: What is optimised.
        result: What was found; None for an unfinished run.
        names: Chosen option per config group.
        config: The composed configuration.
        overrides: What the user gave on the command line; None for a run that Python began.
        space: The search space.
        trials: Every evaluation, in order; at least one.
    """

    folder: Path
    plan: Plan
    result: Result | None
    names: Mapping[str, str]
    config: DictConfig
    overrides: list[str] | None
    space: SearchSpace
    trials: list[Trial]

    @property
    def objectives(self) -> tuple[Objective, ...]:
        """What is optimised: quality first, then costs."""
        return self.plan.objectives

    @property
    def limits(self) -> tuple[Limit, ...]:
        """Bounds that networks must keep."""
        return self.plan.bounds

    @property
    def stationary(self) -> bool:
        """Whether qualities of different generations can be compared."""
        return self.result is None or self.result.stationary

    @property
    def truth(self) -> Comparison | None:
        """The exact optimum and how near the search came to it, where it is known."""
        return None if self.result is None else self.result.truth

    @property
    def comparable(self) -> list[Trial]:
        """The trials among which best and front are sought: all, or what the strategy returned.

        With `robust` all of the last generation, if they include these (`judged_together`).
        """
        if self.result is None or self.result.stationary:
            return self.trials
        names = self.trials[0].metrics
        asked = {trial.genotype: trial.generation for trial in self.trials}
        found = [
            Trial(
                row.genotype,
                {name: value for name, value in row.metrics.items() if name in names},
                asked[row.genotype],
            )
            for row in self.result.result
        ]
        return judged_together(self.trials, found) if self.plan.robust else found

    @property
    def best(self) -> Trial | None:
        """The best network that keeps the limits; None if none does."""
        return best(self.comparable, self.objectives, self.limits, self.plan.robust)

    @property
    def front(self) -> list[Trial]:
        """The networks that no other beats in all objectives, the cheapest first."""
        supported = [t for t in self.comparable if all(map(math.isfinite, t.metrics.values()))]
        return front(supported, self.objectives, self.plan.robust)

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
            lines += [f"best: {values}", picture(drawing(self.space), self.best.genotype)]
        return "<br>".join(lines)


def read_run(folder: Path, result: Result | None = None, space: SearchSpace | None = None) -> Run:
    """Everything that the page shows, from the run's folder.

    Args:
        folder: The run's folder.
        result: What was found; None reads it, where the run is finished.
        space: The search space; None sets it up as the folder says.

    Raises:
        ValueError: There is no run in the folder, or one of its files is corrupt; says which.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder")
    python = (folder / PROBLEM).is_file()
    for name in ("archive.jsonl", PLAN, *((PROBLEM,) if python else (CONFIG, HYDRA))):
        if not (folder / name).is_file():
            raise ValueError(f"{folder} holds no search: {name} is missing")
    if result is None and (folder / "result.json").is_file():
        result = read_result(folder / "result.json")
    file = config_file(folder)
    config, names = read_config(file), choices(folder)
    given = None if python else overrides(folder)
    _require(config, ("search_space", "seed", "generations"), file)
    _require(names, ("strategy", "search_space", "dataset", "evaluator", "device"), file)
    plan = result or read_plan(folder / PLAN)
    if space is None:
        space = build(config.search_space, SearchSpace, "search_space", **_image_sizes(config, plan))

    trials = read_archive(folder / "archive.jsonl")
    if not trials:
        raise ValueError(f"{folder} holds no evaluated network yet")
    try:
        for genotype in {trial.genotype for trial in trials}:
            space.check(genotype)
        costs(trials, plan.objectives)  # every trial has them
        for metric in dict.fromkeys([*trials[0].metrics, *(result.reports if result else ())]):
            plan.goal(metric)
        violations(trials, plan.bounds)
        if result is not None:
            _check_tables(result, space, len(unique(trials)))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder} is corrupt: {error}") from None
    return Run(folder.absolute(), plan, result, names, config, given, space, trials)


def versions_of(run: Run) -> dict[str, str]:
    """The version of each evaluator's answers by its name; empty for runs of early versions.

    Raises:
        ValueError: The file that says it is corrupt.
    """
    path = run.folder / VERSIONS
    if not path.is_file():
        return dict(run.result.versions) if run.result else {}
    known = read_json(path)
    with consistent(path):
        shaped(known, {str: str})
    return {str(name): str(version) for name, version in known.items()}


def _image_sizes(config: DictConfig, plan: Plan) -> dict[str, object]:
    """What the space is told of the images; nothing where only the images of an older run's file know it."""
    try:
        shape, num_classes = (
            OmegaConf.select(config, f"dataset.{k}") for k in ("image_shape", "num_classes")
        )
    except OmegaConfBaseException as error:
        raise ValueError(f"dataset is corrupt: {' '.join(str(error).split())}") from None
    if shape is None and plan.image_shape is not None:
        if len(plan.image_shape) != 3 or min(plan.image_shape) < 1:
            raise ValueError(f"image_shape must be three numbers above 0, not {list(plan.image_shape)}")
        return {"image_shape": plan.image_shape, "num_classes": plan.num_classes}
    if shape is None:
        return {}
    if not isinstance(shape, ListConfig):
        raise ValueError(f"dataset.image_shape must be three numbers, not {shape}")
    return {"image_shape": tuple(shape), "num_classes": num_classes}


def _check_tables(result: Result, space: SearchSpace, num: int) -> None:
    """Raise ValueError unless the tables of result.json fit the space and the number of networks."""
    for key, tables in (("effects", result.effects), ("sums", result.sums)):
        for metric, table in tables.items():
            if table.added.shape != space.alpha_shape:
                raise ValueError(f"{key} of {metric} has shape {table.added.shape}, not {space.alpha_shape}")
    for metric, values in result.reports.items():
        if len(values) != min(num, MOST_REPORTED):
            raise ValueError(f"reports has {len(values)} values of {metric} for {num} networks")


def _require(content: Mapping[str, object] | DictConfig, keys: Sequence[str], path: Path) -> None:
    for key in keys:
        if key not in content:
            raise ValueError(f"{path} is corrupt: it has no {key}")


def reported_metrics(run: Run) -> dict[Genotype, Mapping[str, float]]:
    """Metrics per genotype of the networks that result.json and pareto.csv describe.

    They have what only reports may know; some of the networks are not in the archive.
    """
    if run.result is None:
        return {}
    described = [*run.result.result, *([run.result.best] if run.result.best else [])]
    reported = {network.genotype: network.metrics for network in described}
    path = run.folder / "pareto.csv"
    if path.is_file():
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                try:
                    genotype = tuple(map(int, row.pop("genotype").split()))
                    del row["arch"]
                    reported[genotype] = {name: float(value) for name, value in row.items() if value}
                except (KeyError, ValueError, AttributeError) as error:
                    raise ValueError(f"{path} is corrupt: {error}") from None
    return reported


def sweep_or_run(folder: Path) -> Path:
    """The folder of the sweep that the run in `folder` is a job of; of the run, if it is none."""
    return folder.parent if hydra_says(folder, "mode") == "MULTIRUN" else folder
