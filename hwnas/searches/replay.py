"""Replaying: a search among networks that were evaluated before, with the answers that are there."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from omegaconf import OmegaConf

from hwnas.core import Evaluator, Genotype, SearchSpace, checked, suggestion
from hwnas.evaluators.replayed import Replayed
from hwnas.runs.folder import Run, read_run, run_folders, versions_of
from hwnas.runs.units import phrase
from hwnas.spaces.held import held
from hwnas.store.evaluations import EvaluationStore

Answers = dict[Genotype, dict[str, float]]
"""Metrics of an evaluator by network."""


@checked
@dataclass(frozen=True)
class Replay:
    """What a search replays.

    Attributes:
        folders: Runs, sweeps of runs, and SQLite files of stores, of one space, data set and evaluator.
        missing: A network that a strategy asks for and that is not there is refused, or evaluated.
        metric: The quality among those that are there; None: that of the problem's evaluator.
        costs: Whether they are those that are there, by the device's name, or the problem's device answers.

    Raises:
        ValueError: No folder, or a setting out of range.
    """

    folders: Sequence[str]
    missing: Literal["refuse", "evaluate"] = "refuse"
    metric: str | None = None
    costs: Literal["run", "device"] = "run"

    def __post_init__(self) -> None:
        if not self.folders or not all(self.folders):
            raise ValueError("replay must name at least one folder of a run or a sweep, or file of a store")


@dataclass(frozen=True)
class Held:
    """What is there for a search that replays.

    Attributes:
        space: The networks that may be asked for.
        quality: The evaluator with the answers that are there.
        device: Likewise; or the device itself, if the runs were on another.
        folders: The runs, and files of stores.
        digest: A hash of the answers.
    """

    space: SearchSpace
    quality: Evaluator
    device: Evaluator
    folders: tuple[str, ...]
    digest: str


@dataclass(frozen=True)
class _Source:
    """A run or a store.

    Attributes:
        path: Its folder or file.
        versions: Of its answers, by the evaluators' names; empty: unknown.
        rows: Networks and their metrics, in order.
    """

    path: Path
    versions: Mapping[str, str]
    rows: Sequence[tuple[Genotype, Mapping[str, float]]]


def hold(
    given: Replay,
    space: SearchSpace,
    dataset: str,
    quality: Evaluator,
    device: Evaluator,
    warn: Callable[[str], None],
) -> Held:
    """Read what a search replays.

    Networks are held of which all metrics of the quality and of the device are there. A device of which
    nothing is there answers itself, if it knows all networks. Where two sources have different answers for a
    network, the first one counts.

    Args:
        given: What is replayed.
        space: The search space of the problem.
        dataset: Name of its data set.
        quality: Its evaluator.
        device: Its device.
        warn: Called with a sentence where answers differ.

    Raises:
        ValueError: A folder that holds no run, or one of another space, data set or evaluator; answers that
            cannot be compared; no network that all of it is known of.
    """
    asked, alone = _rung(quality, given.metric), given.missing == "refuse"
    sources: list[_Source] = []
    for path in [Path(folder).expanduser() for folder in given.folders]:
        if path.is_file():
            sources.append(_stored(path, space, dataset, [asked, device]))
        else:
            runs = map(read_run, run_folders(path))
            sources += [_recorded(run, space, dataset, quality, asked) for run in runs]
    answers, version = _answers(sources, asked, space, warn)
    costs, of_costs = _answers(sources if given.costs == "run" else (), device, space, warn)
    for evaluator, found in ((asked, answers), (device, costs)):
        if not found and (evaluator is asked or not device.exhaustive):
            raise ValueError(
                f"replay: no network of {_named(sources)} has {' and '.join(evaluator.metrics)} of "
                f"{evaluator.name}{_known(sources)}"
            )
    networks = [g for g in answers if (g in costs or not costs) and _is_of(space, g)]
    if not networks:
        raise ValueError(
            f"replay: of the {len(answers):,} networks of {_named(sources)} none is in the search space "
            f"{space.name} with all of {', '.join([*asked.metrics, *device.metrics])}"
        )
    ours = Replayed(
        asked,
        space,
        {genotype: answers[genotype] for genotype in networks},
        alone=alone,
        exhaustive=alone or asked.exhaustive,
        version=version if alone or asked is quality else None,  # a run says no version of a rung
        metric=given.metric,
    )
    digest = ours.digest
    if costs:
        known = {genotype: costs[genotype] for genotype in networks}
        device = Replayed(device, space, known, alone=alone, exhaustive=device.exhaustive, version=of_costs)
        digest = hashlib.sha256(f"{digest} {device.digest}".encode()).hexdigest()[:16]
    names = tuple(str(source.path.absolute()) for source in sources)
    return Held(held(space, networks, others=not alone), ours, device, names, digest)


def _recorded(run: Run, space: SearchSpace, dataset: str, quality: Evaluator, asked: Evaluator) -> _Source:
    """What a run has; its networks must be of the space, which may allow fewer, and of the data set."""
    theirs = run.space
    if theirs.name != space.name:
        raise ValueError(f"replay: {run.folder} holds networks of {theirs.name}, not of {space.name}")
    same = (theirs.alpha_shape, theirs.ops) == (space.alpha_shape, space.ops)
    some = [trial.genotype for trial in run.trials[:100]]
    if not same or any(
        not np.array_equal(values, theirs.static_metrics(some).get(metric, np.empty(0)))
        for metric, values in space.static_metrics(some).items()
    ):
        raise ValueError(f"replay: {run.folder} holds {space.name} networks of another size")
    name = OmegaConf.select(run.config, "dataset.name")
    if name is not None and name != dataset:
        raise ValueError(f"replay: {run.folder} is of dataset={name}, not of {dataset}")
    if not asked.stationary or not (quality.rungs or run.stationary):
        raise ValueError(
            f"replay: answers of {quality.name} in {run.folder} are of weights that change on the way, and "
            "cannot be compared"
        )
    versions = versions_of(run)
    if quality.name in versions:  # that of a rung is part of it
        versions = {**versions, asked.name: versions[quality.name]}
    return _Source(run.folder, versions, [(trial.genotype, trial.metrics) for trial in run.trials])


def _stored(path: Path, space: SearchSpace, dataset: str, evaluators: Sequence[Evaluator]) -> _Source:
    """What a store has of the evaluators as they answer now."""
    rows: dict[Genotype, dict[str, float]] = {}
    with closing(EvaluationStore(f"sqlite:///{path}", "hwnas-replay")) as store:
        versions = {each.name: each.prepare(space, []) for each in evaluators}
        for name, version in versions.items():
            for row in store.rows([(name, space.name, dataset, version)]):
                genotype = tuple(map(int, row.genotype.split(",")))
                rows.setdefault(genotype, {}).update(row.metrics)
    return _Source(path, versions, list(rows.items()))


def _rung(quality: Evaluator, metric: str | None) -> Evaluator:
    """The evaluator that answers a metric: the quality, or one of its rungs."""
    choices = quality.rungs or (quality,)
    metrics = [name for each in choices for name, goal in each.metrics.items() if goal == "max"]
    if metric is None and quality.rungs:
        raise ValueError(
            f"replay_metric must name the quality, as evaluator={quality.name} has several: "
            f"{', '.join(metrics)}"
        )
    for each in choices:
        if metric is None or metric in each.metrics:
            return each
    raise ValueError(
        f"replay_metric={metric} is no metric of evaluator {quality.name}{suggestion(str(metric), metrics)}"
    )


def _answers(
    sources: Sequence[_Source], evaluator: Evaluator, space: SearchSpace, warn: Callable[[str], None]
) -> tuple[Answers, str | None]:
    """Answers of an evaluator by network, from the sources that it took part in, and their version.

    Raises:
        ValueError: Answers of several versions, or several in one source for one network.
    """
    found: Answers = {}
    origin: dict[Genotype, _Source] = {}
    first: _Source | None = None  # of a known version
    differ: list[str] = []
    name = evaluator.name
    for source in sources:
        if source.versions and name not in source.versions:
            continue
        if first is not None and source.versions and source.versions[name] != first.versions[name]:
            raise ValueError(
                f"replay: {name} answered in another version in {source.path} ({source.versions[name]}) than "
                f"in {first.path} ({first.versions[name]}); their answers cannot be compared"
            )
        first = first or (source if source.versions else None)
        for genotype, metrics in source.rows:
            if not evaluator.metrics.keys() <= metrics.keys():
                continue
            row = {metric: metrics[metric] for metric in evaluator.metrics}
            before, by = found.setdefault(genotype, row), origin.setdefault(genotype, source)
            if row == before:
                continue
            metric = next(metric for metric in row if row[metric] != before[metric])
            sentence = (
                f"{space.to_str(genotype)} has {phrase(metric, before[metric])} in {by.path} and "
                f"{phrase(metric, row[metric])} in {source.path}"
            )
            if by is source:
                raise ValueError(f"replay: answers of {name} cannot be compared: {sentence}")
            differ.append(sentence)
    if differ:
        warn(f"{len(differ)} answers of {name} differ, and the first one counts, e.g. {differ[0]}")
    return found, first.versions[name] if first else None


def _is_of(space: SearchSpace, genotype: Genotype) -> bool:
    try:
        space.check(genotype)
    except ValueError:
        return False
    return True


def _named(sources: Sequence[_Source]) -> str:
    """The sources in words."""
    return f"{sources[0].path}{f' and {len(sources) - 1} more' * (len(sources) > 1)}"


def _known(sources: Sequence[_Source]) -> str:
    """What the sources have instead, for the end of a message."""
    names = dict.fromkeys(name for source in sources for name in source.versions)
    metrics = dict.fromkeys(name for source in sources for _, row in source.rows[-1:] for name in row)
    return (f"; they have {', '.join(metrics)}" if metrics else "; they have none") + (
        f" of {', '.join(names)}" if metrics and names else ""
    )
