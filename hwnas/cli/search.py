"""`hwnas search`: set up, search, train the answer, write the folder."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hwnas.build import build
from hwnas.core import (
    Count,
    Genotype,
    Goal,
    Interrupted,
    Trial,
    best,
    check_setting,
    extent,
    is_near_chance,
    suggestion,
    unique,
)
from hwnas.devices.energy import Meter
from hwnas.files import consistent, read_json, shaped, write_json, write_text
from hwnas.reports.page import write_report
from hwnas.runs.display import Display
from hwnas.runs.result import Evaluations, Result, Trained, read_result
from hwnas.runs.tracking import Tracker
from hwnas.runs.units import count, phrase, short
from hwnas.searches.exact import check_possible
from hwnas.searches.indicators import Hypervolume, diversity
from hwnas.searches.loop import search
from hwnas.searches.outcome import Conclusion, say_conclusion, virtual_clock, write_front
from hwnas.searches.problem import Task, set_up
from hwnas.spaces.capabilities import HasNetworks
from hwnas.store.archive import PLAN, Archive
from hwnas.store.cache import CachedEvaluator
from hwnas.store.evaluations import open_for_run
from hwnas.store.workers import Workers
from hwnas.training.recipe import forget_checkpoint

VERSIONS = "versions.json"
"""The evaluators' versions when a run began, in its folder."""

Returned = float | list[float]
"""What a sweeper gets of a run: a metric of its best network, or several."""


def main(cfg: DictConfig) -> Returned:
    """The command: build, search, train the answer, write the run's folder.

    Returns:
        The best feasible network's first objective, or the metrics that `returns` names, for sweepers; the
        worst values there can be if no network keeps the limits.
    """
    from hydra.core.hydra_config import HydraConfig

    start, meter = time.perf_counter(), Meter()
    folder = Path(HydraConfig.get().runtime.output_dir)
    display = Display()
    finished = folder / "result.json"
    if finished.is_file():
        display.say(f"this run is finished already; see {folder / 'report.html'}")
        result = read_result(finished)
        if result.network is not None:
            forget_checkpoint(folder / "network")
        return _returned_before(cfg, result)
    task = set_up(cfg, folder, display)
    for_sweeper(cfg.get("returns"), task.goals, {})
    with display.phase("device", f"preparing device {task.names['device']}"):
        for evaluator in task.evaluators[1:]:
            evaluator.prepare(task.space, [])
    try:
        _check_possible(task)
    except ValueError as error:
        if "optuna" not in str(HydraConfig.get().sweeper.get("_target_")):
            raise
        display.warn(str(error))  # one of many settings, and as bad as can be
        return for_sweeper(cfg.get("returns"), task.goals, {})
    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    run_id = _run_id(folder)
    with contextlib.ExitStack() as opened:
        store = open_for_run(cfg.store.url, run_id, folder, display.warn)
        opened.callback(store.close)
        workers = None
        if check_setting("workers", Count, cfg.workers) > 1:
            workers = build(cfg.cluster, Workers, workers=cfg.workers, **task.offered)
            opened.callback(workers.close)
        # Devices are not divided: what is measured on this machine is measured alone.
        evaluators = [
            CachedEvaluator(
                evaluator, store, task.dataset.name, workers if evaluator is task.quality else None
            )
            for evaluator in task.evaluators
        ]
        archive = Archive(folder / "archive.jsonl")
        opened.callback(archive.close)
        for note in archive.notes:
            display.warn(note)
        if not (folder / PLAN).is_file():
            task.plan.write(folder / PLAN)
        tracker = Tracker(
            folder,
            cfg.logger,
            {str(k): v for k, v in config.items()},
            run_id=run_id,
            job="search",
            warn=display.warn,
        )
        # Offline logs of jobs in one process must end up in runs of their own, whatever happens.
        opened.push(lambda kind, *_: tracker.finish(failed=kind is not None))
        try:
            _announce(display, task, archive)
            with display.phase("quality", f"preparing evaluator {task.names['evaluator']}"):
                evaluators[0].prepare(task.space, [])
            for evaluator in evaluators[1:]:  # with their versions in the store
                evaluator.prepare(task.space, [])
            _check_versions(folder / VERSIONS, task, evaluators, resumed=bool(archive.trials))
            progress = Progress(task, evaluators[0], tracker, display, meter)
            with display.generations(task.generations):
                search(task.strategy, evaluators, archive, task.generations, progress.log)
            if not task.quality.stationary:
                display.say(
                    f"{task.quality.name}: values of different generations are of different weights; "
                    "the answer is among what the strategy returns"
                )
            end = Conclusion(task, archive.trials)
            network = _trained(end, folder / "network", display)
            asked = len(archive.trials)
            counts = Evaluations(asked, len(unique(archive.trials)), asked - store.paid(task.quality.name))
            result = replace(
                end.figures(counts, {"total": time.perf_counter() - start}),
                virtual_seconds=None if task.quality.seconds([]) is None else progress.seconds,
                hypervolume=tuple(progress.hypervolumes),
                versions={evaluator.name: evaluator.version for evaluator in evaluators},
                network=network,
                doubts=tuple(display.doubts),
            )
            _write(folder, end, result, tracker, display, meter, start)
        except KeyboardInterrupt:
            raise Interrupted(
                f"interrupted; nothing is lost, go on with: hwnas search resume={folder}"
            ) from None
    _say_end(folder, end, result, display, start)
    return for_sweeper(cfg.get("returns"), task.goals, {} if end.answer is None else end.answer.metrics)


def _check_possible(task: Task) -> None:
    """Raise ValueError if no network can keep the limits; says what would help."""
    sized = [f"search_space.{name}" for name in ("num_cells", "channels") if hasattr(task.space, name)]
    follows = sized and task.names["device"] in ("host", "flops")  # the costs follow the size of the networks
    check_possible(
        task.space,
        task.evaluators,
        task.limits,
        f", or search smaller networks ({', '.join(sized)})" if follows else "",
    )


def _returned_before(cfg: DictConfig, result: Result) -> Returned:
    """What a finished run returned to its sweeper."""
    reached = result.best.metrics if result.best else {}
    names = dict.fromkeys([*(o.metric for o in result.objectives), *result.goals, *reached])
    return for_sweeper(cfg.get("returns"), {name: result.goal(name) for name in names}, reached)


def _check_versions(path: Path, task: Task, evaluators: Sequence[CachedEvaluator], *, resumed: bool) -> None:
    """Keep what evaluators answer by when a run begins; it must be the same when the run is resumed.

    Raises:
        ValueError: It is not: the run's archive would hold costs or qualities that cannot be compared.
    """
    versions = {evaluator.name: evaluator.version for evaluator in evaluators}
    if not (resumed and path.is_file()):
        write_json(path, versions)
        return
    known = read_json(path)
    with consistent(path):
        shaped(known, {str: str})
    groups = ("evaluator", "device")
    for evaluator, group in itertools.zip_longest(evaluators, groups[: len(evaluators)]):
        name = evaluator.name if group is None else f"{group}={task.names[group]}"
        if known.get(evaluator.name) != evaluator.version:
            raise ValueError(
                f"{name} does not answer as when the run in {path.parent} began (version "
                f"{known.get(evaluator.name)}, now {evaluator.version}): its files, its settings or hwnas "
                "have changed; restore them, or start a new run"
            )


def _announce(display: Display, task: Task, archive: Archive) -> None:
    """Say what is searched, and how far it got before."""
    names = task.names
    display.say(
        f"{names['strategy']} on {names['search_space']} ({count(task.space.size)} architectures): "
        f"{' and '.join(o.metric for o in task.objectives)} of {names['dataset']} on {names['device']}, "
        f"{task.generations} generations, seed {task.seed}"
    )
    for limit in task.limits:
        if (bound := task.quantiles.get(limit.metric)) is not None:
            display.say(
                f"limits.{limit.metric}={bound} is {phrase(limit.metric, limit.bound)}, a quantile over "
                f"{extent(task.space)}"
            )
    for limit in task.limits:
        if (added := task.margins.get(limit.metric)) is not None:
            display.say(
                f"limits.{limit.metric}={limit.bound * (1 + added):.4g} less a margin of {added:.1%} for the "
                f"errors of predictions is {limit.bound:.4g}"
            )
    if archive.trials:
        display.say(f"resuming after {len(archive.trials)} evaluations")


class Progress:
    """Follows a search generation by generation: figures for the tracker and for the terminal.

    Args:
        task: What is searched.
        quality: The evaluator as it is asked, with its store.
        tracker: Where figures go.
        display: Where they are shown.
        meter: Energy counters, which have to be read now and then.

    Attributes:
        hypervolumes: After each generation.
        seconds: What the benchmark says that training the architectures would have taken.
    """

    def __init__(
        self, task: Task, quality: CachedEvaluator, tracker: Tracker, display: Display, meter: Meter
    ) -> None:
        self.hypervolumes: list[float] = []
        self.seconds = 0.0
        self._task, self._quality = task, quality
        self._tracker, self._display, self._meter = tracker, display, meter
        self._hypervolume = Hypervolume(task.objectives)
        self._version = ""
        self._charged: set[Genotype] = set()  # architectures that the virtual clock has been charged for
        self._evaluations = 0

    def log(self, generation: int, trials: list[Trial], replayed: bool) -> None:
        """Take a generation in; for `search`."""
        task, objectives = self._task, self._task.objectives
        if self._version != self._quality.version:  # other weights: older values cannot be compared
            self._hypervolume.forget()
            self._version = self._quality.version
        self._evaluations += len(trials)
        self.hypervolumes.append(self._hypervolume.add(trials))
        pareto = self._hypervolume.front
        leader = best([*pareto, *trials] if task.limits else pareto, objectives, task.limits)
        values: dict[str, float | None] = {
            "evaluations": float(self._evaluations),
            "hypervolume": self.hypervolumes[-1],
            "front_size": float(len(pareto)),
            "diversity": diversity(task.space, [trial.genotype for trial in trials]),
        }
        new = list({trial.genotype for trial in trials} - self._charged)
        self._charged.update(new)
        self._check_chance(generation, trials)
        spent = task.quality.seconds(new)
        if spent is not None:
            self.seconds += spent
            values["virtual_hours"] = self.seconds / 3600
        for objective in objectives:
            told = [trial.metrics[objective.metric] for trial in trials]
            values[f"mean_{objective.metric}"] = sum(told) / len(told)
            values[f"best_{objective.metric}"] = None if leader is None else leader.metrics[objective.metric]
        self._meter.read()  # its counters start over
        saved = self._quality.saved
        self._tracker.log(generation, values, replayed=replayed, session={"from_store": float(saved)})
        shown = {
            "evaluations": f"{self._evaluations:,}",
            "from store": f"{saved:,}",
            "hypervolume": f"{self.hypervolumes[-1]:.4g}",
        }
        if leader is not None:
            shown |= {f"best {o.metric}": short(o.metric, leader.metrics[o.metric]) for o in objectives}
        self._display.generation(generation, shown, replayed)

    def _check_chance(self, generation: int, trials: Sequence[Trial]) -> None:
        """Say if all networks only guess: at the start, or at the end where weights change on the way."""
        task = self._task
        last = generation + 1 == task.generations or task.strategy.done
        if not (generation == 0 if task.quality.stationary else last):
            return
        reached = max(trial.metrics.get("val_acc", 1.0) for trial in trials)
        chance = 1 / task.dataset.num_classes
        if chance < 1 and is_near_chance(reached, chance):
            self._display.doubt(
                f"no network of generation {generation + 1} answers more than {reached:.1%} of the "
                f"validation images right, a guess {chance:.1%}: which is better says little; let "
                f"evaluator {task.names['evaluator']} train longer"
            )


def _trained(end: Conclusion, folder: Path, display: Display) -> Trained | None:
    """Train the answer from scratch, if that is asked for and a benchmark does not know its accuracy."""
    task, answer = end.task, end.to_train
    if answer is None or not isinstance(task.space, HasNetworks):
        return None
    if not task.space.is_connected([answer.genotype])[0]:
        display.doubt(
            "the best network has no path from input to output: it answers the same for all images and is "
            "not trained"
        )
        return None
    # torch is loaded once a network is trained: a search on tables needs none.
    from hwnas.training.final import Session, train_network

    with display.phase("final network", "training the final network"):
        figures = train_network(
            task.space,
            answer.genotype,
            task.dataset,
            task.recipe,
            Session(folder, announce=display.say, warn=display.doubt),
            seed=task.seed,
        )
    return Trained(**figures)


def _write(
    folder: Path,
    end: Conclusion,
    result: Result,
    tracker: Tracker,
    display: Display,
    meter: Meter,
    start: float,
) -> None:
    """Write the run's files, result.json last, and send them to the tracker."""
    rows = [end.described(trial) for trial in end.front]
    write_front(folder / "pareto.csv", rows)
    with display.phase("report", "drawing the report"):
        spent = {"total": time.perf_counter() - start, **display.seconds}
        write_report(folder, replace(result, seconds=spent))
    spent = {"total": time.perf_counter() - start, **display.seconds}
    result = replace(result, seconds=spent, energy_kwh=meter.read())
    quality, cost = end.task.objectives[:2]
    tracker.front(
        ["arch", *rows[0].metrics] if rows else ["arch"],
        [[row.arch, *row.metrics.values()] for row in rows],
        x=cost.metric,
        y=quality.metric,
    )
    written = result.to_json()
    tracker.summary({name: written[name] for name in ("best", "network", "evaluations")})
    result.write(folder / "result.json")
    if result.network is not None:
        forget_checkpoint(folder / "network")
    tracker.artifact("result", [folder / name for name in ("result.json", "pareto.csv", "report.html")])
    if result.network is not None:
        tracker.artifact(
            "network", [folder / "network" / name for name in ("weights.pt", "architecture.json")]
        )


def _say_end(folder: Path, end: Conclusion, result: Result, display: Display, start: float) -> None:
    """Say what was found, what it took, where it is and what comes next."""
    say_conclusion(display, end, result)
    evaluations, network = result.evaluations, result.network
    display.say(
        f"{evaluations.asked:,} evaluations ({evaluations.new:,} new, "
        f"{evaluations.cached:,} repeated or already stored), {time.perf_counter() - start:.0f} s"
    )
    if sentence := virtual_clock(result):
        display.say(sentence)
    if network is not None:
        display.say(f"weights: {folder / network.weights}")
    display.say(f"report: {folder / 'report.html'}")
    if end.answer is not None and end.task.has_networks:
        display.say(f"next: hwnas {'train' if network is None else 'export'} run={folder}")


def for_sweeper(names: Any, goals: Mapping[str, Goal], metrics: Mapping[str, float]) -> Returned:
    """What a sweeper gets: the metrics that `names` names, where missing the worst there can be.

    Args:
        names: A metric or several; None is the first that has a goal.
        goals: Goal per metric that the run knows.
        metrics: Of the best network; empty if there is none.

    Raises:
        ValueError: An unknown metric.
    """
    listed = (
        [str(name) for name in names] if isinstance(names, Sequence) and not isinstance(names, str) else None
    )
    wanted = listed or [next(iter(goals)) if names is None else str(names)]
    for name in wanted:
        if name not in goals:
            raise ValueError(f"returns={name}: this run has no such metric{suggestion(name, list(goals))}")
    values = [metrics.get(name, -math.inf if goals[name] == "max" else math.inf) for name in wanted]
    return values[0] if listed is None else values


def _run_id(folder: Path) -> str:
    """The run's identity, drawn once and kept in its folder.

    Raises:
        ValueError: The file that keeps it is empty.
    """
    path = folder / "run_id"
    if not path.is_file():
        write_text(path, uuid.uuid4().hex[:12] + "\n")
    run_id = path.read_text().strip()
    if not run_id:
        raise ValueError(f"{path} is empty: without it the run's evaluations cannot be told from others'")
    return run_id
