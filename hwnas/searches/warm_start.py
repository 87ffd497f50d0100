"""What is known before a search begins: scores, evaluations that are there, a list of architectures."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from omegaconf import OmegaConf

from hwnas.build import build, conf_folder, read_config
from hwnas.core import Evaluator, Genotype, Hints, SearchSpace, costs, trials_of, violations
from hwnas.files import consistent, read_json, shaped, write_json
from hwnas.runs.folder import read_run
from hwnas.runs.result import WarmSource, WarmStarted
from hwnas.searches.problem import Task
from hwnas.store.cache import CachedEvaluator
from hwnas.store.evaluations import EvaluationStore

WARM_START = "warm_start.json"
"""File in a run's folder: what was known when it began."""

FEWEST = 5
"""Networks that a part of the store must hold to be a source."""

QUALITIES = ("val_acc", "zero_cost", "rmi")
"""Metrics that count as a quality where a part of the store has not that of the run; higher is better."""

Values = dict[Genotype, float]
"""A number per network, higher is better."""


def begin(task: Task, folder: Path, store: EvaluationStore, announce: Callable[[str], None]) -> WarmStarted:
    """Tell the strategy what is known, and say what that is.

    It is found out once and then read from the run's folder, so that a run that is resumed begins the same.

    Args:
        task: What is searched, with a warm start; its evaluators are prepared.
        folder: The run's folder.
        store: Where evaluations are found and scores are kept.
        announce: Called with a sentence per source.

    Raises:
        ValueError: A source that is not there or has no network of the space; a strategy that takes no
            hints; the file is corrupt.
    """
    path = folder / WARM_START
    if not path.is_file():
        start, computed = time.perf_counter(), 0
        sources: dict[str, Values] = {}
        assert task.problem.warm_start is not None
        for name in task.problem.warm_start.sources:
            if name == "scores":
                found, computed = _scored(task, store, task.problem.warm_start.scored)
            elif name == "store":
                found = _stored(task, store)
            else:
                found = {name: _listed(Path(name).expanduser(), task)}
            sources |= found
        took = time.perf_counter() - start
        content = {
            "seconds": took,
            "scored": computed,
            "sources": {
                name: [[list(genotype), value] for genotype, value in values.items()]
                for name, values in sources.items()
            },
        }
        write_json(path, content)
    content = read_json(path)
    with consistent(path):
        shaped(content, {"seconds": float, "scored": int, "sources": dict})
        sources = {
            name: {task.space.check(genotype): float(value) for genotype, value in rows}
            for name, rows in content["sources"].items()
        }
    known = tuple(WarmSource(name, len(values)) for name, values in sources.items())
    for source in known:
        announce(f"known before the search: {source.networks:,} networks by {source.name}")
    task.strategy.hint(Hints(sources, _costs(task, sources)))
    return WarmStarted(known, int(content["scored"]), float(content["seconds"]))


def _costs(task: Task, sources: Mapping[str, Values]) -> dict[Genotype, float]:
    """The first cost of the networks that keep the limits on costs, where the device knows those of all."""
    device, costly = task.device, [o for o in task.objectives if o.metric in task.device.metrics]
    networks = list(dict.fromkeys(genotype for of in sources.values() for genotype in of))
    if not (device.exhaustive and networks and costly):
        return {}
    trials = trials_of(networks, [device.evaluate(networks)], 0)
    limits = [limit for limit in task.limits if limit.metric in device.metrics]
    kept = violations(trials, limits) == 0
    cost = costs(trials, costly[:1])[:, 0]
    return {networks[row]: float(cost[row]) for row in np.flatnonzero(kept & np.isfinite(cost)).tolist()}


def _scored(task: Task, store: EvaluationStore, num: int) -> tuple[dict[str, Values], int]:
    """Training-free scores of networks that are drawn, per score, and how many were computed here."""
    no_table = dict.fromkeys(("path", "val_column", "test_column", "early_column"))
    settings = {"num_reference": 0, "lookup": no_table}  # each score is a source
    node = OmegaConf.merge(read_config(conf_folder() / "evaluator" / "zero_cost.yaml"), settings)
    scores = build(
        node,
        Evaluator,
        "evaluator",
        space=task.space,
        dataset=task.dataset,
        store_dir=Path(),  # only the reference sample is kept there
        announce=lambda sentence: None,
    )
    cached = CachedEvaluator(scores, store, task.dataset.name)
    cached.prepare(task.space, [])
    drawn = task.space.sample(np.random.default_rng(task.seed), 4 * num)
    whole = task.space.is_connected(drawn)
    networks = list(dict.fromkeys(g for g, there in zip(drawn, whole, strict=True) if there))[:num]
    rows = cached.evaluate(networks)
    found = {
        metric: {genotype: row[metric] for genotype, row in zip(networks, rows, strict=True)}
        for metric in scores.metrics
    }
    return found, cached.computed


def _stored(task: Task, store: EvaluationStore) -> dict[str, Values]:
    """Qualities of networks of this space that the store holds, by what they depend on.

    Raises:
        ValueError: There are none.
    """
    found: dict[str, Values] = {}
    for content in store.contents():
        evaluator, space, dataset, version = content.key
        if space != task.space.name or content.evaluations < FEWEST:
            continue
        values: Values = {}
        for row in store.rows([content.key]):
            metric = next((m for m in (task.objectives[0].metric, *QUALITIES) if m in row.metrics), None)
            genotype = _valid(task.space, [int(op) for op in row.genotype.split(",")])
            if metric is not None and genotype is not None and math.isfinite(row.metrics[metric]):
                values[genotype] = row.metrics[metric]
        if len(values) >= FEWEST:
            found[f"{evaluator} of {dataset}, version {version}"] = values
    if not found:
        raise ValueError(
            f"warm_start=store: the store holds no qualities of {FEWEST} or more networks of the space "
            f"{task.space.name}"
        )
    return found


def _listed(path: Path, task: Task) -> Values:
    """Networks of a run's folder with their qualities, or of a file.

    A table (.csv) has a column `arch`, and may have one of the run's quality; other files have a network per
    line, in the space's text form. Networks without numbers are all equally good.

    Raises:
        ValueError: There is no such file, or a line of it is no network of the space.
    """
    quality = task.objectives[0]
    if path.is_dir():
        run = read_run(path)
        if run.space.name != task.space.name or run.space.alpha_shape != task.space.alpha_shape:
            raise ValueError(
                f"warm_start: {path} holds networks of {run.space.name}, not of {task.space.name}"
            )
        values = -costs(run.comparable, run.objectives[:1])[:, 0]
        checked = [_valid(task.space, trial.genotype) for trial in run.comparable]
        pairs = zip(checked, values.tolist(), strict=True)
        return {genotype: value for genotype, value in pairs if genotype and math.isfinite(value)}
    if not path.is_file():
        raise ValueError(
            f"warm_start={path} is none of scores, store, a file of architectures and the folder of a run"
        )
    lines = path.read_text(encoding="utf-8").splitlines()
    rows: list[dict[str, str]] = [{"arch": line.strip()} for line in lines if line.strip()]
    if path.suffix == ".csv":
        rows = list(csv.DictReader(lines))
    found: Values = {}
    sign = -1.0 if quality.goal == "min" else 1.0
    for number, row in enumerate(rows, start=1):
        try:
            genotype = task.space.from_str(row["arch"])
            found[genotype] = sign * float(row.get(quality.metric) or 0.0)
        except KeyError:
            raise ValueError(f"warm_start: {path} has no column arch") from None
        except ValueError as error:
            raise ValueError(f"warm_start: network {number} of {path}: {error}") from None
    if not found:
        raise ValueError(f"warm_start: {path} holds no network")
    return found


def _valid(space: SearchSpace, genotype: Sequence[int]) -> Genotype | None:
    """A genotype of the space; None if it is not, as one of other choices."""
    try:
        return space.check(genotype)
    except ValueError:
        return None
