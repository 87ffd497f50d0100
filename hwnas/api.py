"""A search as a Python function: `from hwnas import Problem, search`."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import shutil
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from types import MappingProxyType

from hwnas.build import build
from hwnas.core import Count, Interrupted, SearchSpace, check_setting, extent, unique
from hwnas.files import consistent, read_json, shaped, write_json, write_text
from hwnas.reports.page import write_report
from hwnas.runs.display import Display
from hwnas.runs.folder import CONFIG, PROBLEM, VERSIONS, Run
from hwnas.runs.folder import read_run as read
from hwnas.runs.lock import STORED, own_folder
from hwnas.runs.log import writing
from hwnas.runs.result import Evaluations, Result
from hwnas.runs.tracking import Tracker
from hwnas.runs.units import count, phrase
from hwnas.searches.finish import Finish, advice
from hwnas.searches.halving import Halving
from hwnas.searches.loop import search as loop
from hwnas.searches.outcome import Conclusion, say_conclusion, virtual_clock, write_front
from hwnas.searches.problem import Choice, Problem, RunContext, Task, set_up
from hwnas.searches.progress import Progress
from hwnas.searches.spending import TRIALS, plan, within_budget
from hwnas.searches.stored import described, keep
from hwnas.searches.warm_start import begin
from hwnas.store.archive import PLAN, Archive
from hwnas.store.cache import CachedEvaluator
from hwnas.store.evaluations import EvaluationStore, open_for_run
from hwnas.store.workers import Processes, Workers, cores
from hwnas.training.recipe import forget_checkpoint

LOG = "search.log"
"""File of a run's messages, in its folder."""

CSV: Mapping[str, object] = MappingProxyType({"wandb": False})
"""The logger that writes metrics.csv and nothing else."""


@dataclass(frozen=True)
class Execution:
    """Settings of how a search is carried out; none of them changes what is found.

    Attributes:
        url: Database of the evaluations that runs share, e.g. "sqlite:///evaluations.sqlite".
        workers: Parts of a population that are evaluated at once; "auto": as many as this machine has cores.
        logger: {"wandb": False}, or with "wandb": True also "project" and "mode"; "tensorboard": True.
        config: Settings of the run that loggers show.
        cluster: Makes the workers, where there are several.
    """

    url: str | None
    workers: int | str
    logger: Mapping[str, object]
    config: Mapping[str, object]
    cluster: Choice[Workers] = Processes


def search(
    problem: Problem,
    folder: str | Path | None = None,
    *,
    store: str | Path = "multirun/store",
    workers: int | str = 1,
    logger: Mapping[str, object] = CSV,
    show: bool = True,
) -> Run:
    """Search, train the answer, write the run's folder.

    Args:
        problem: What is searched.
        folder: Of the run; a new one below multirun/runs/search by default. An unfinished run of the same
            problem in it is resumed.
        store: Folder of what runs share: evaluations, profiles, reference networks.
        workers: Parts of a population that processes of this machine evaluate at once.
        logger: As for `Execution`.
        show: Whether to print what happens; the run's log file has it either way.

    Returns:
        The run: `trials`, `front`, `best`, `page` (path of the report), `folder`, `result`, `space`.

    Raises:
        ValueError: What does not fit, in one line; the folder holds another run, or is in use.
        OSError: Of the disk, e.g. a full one.
    """
    if folder is None:
        folder = Path("multirun/runs/search", f"{datetime.now():%Y-%m-%d_%H-%M-%S-%f}")
    folder, store = Path(folder).expanduser().absolute(), Path(store).expanduser()
    if (folder / CONFIG).is_file():
        raise ValueError(f"{folder} holds a run of the command line; resume it: hwnas search resume={folder}")
    silence = contextlib.nullcontext() if show else contextlib.redirect_stdout(io.StringIO())
    with silence, own_folder(folder, LOG, [PROBLEM]), writing(folder / LOG):
        try:
            space = _searched(problem, RunContext(folder, folder / STORED, store, Display()), workers, logger)
        except (Exception, KeyboardInterrupt) as error:
            logging.getLogger("hwnas").error(str(error), exc_info=error)
            raise
    return read(folder, space=space)


def _searched(
    problem: Problem, context: RunContext, workers: int | str, logger: Mapping[str, object]
) -> SearchSpace:
    """Search a problem in the folder of a run, unless it is finished already; returns its space."""
    folder, display = context.folder, context.display
    task = set_up(problem, context)
    content = described(problem, task.names)
    keep(folder, content)
    if (folder / "result.json").is_file():
        display.say(f"this run is finished already; see {folder / 'report.html'}")
        return task.space
    with display.phase("device", f"preparing device {task.names['device']}"):
        task.prepare_device()
    task.check_limits()
    url = f"sqlite:///{context.store_dir / 'evaluations.sqlite'}"
    carry_out(task, context, Execution(url, workers, logger, content))
    return task.space


def read_run(folder: str | Path) -> Run:
    """The search in a folder, finished or not.

    Raises:
        ValueError: There is none, or one of its files is corrupt.
    """
    return read(Path(folder).expanduser())


def carry_out(task: Task, context: RunContext, how: Execution) -> Result:
    """Search a task, train the answer, write the files of the run's folder.

    Args:
        task: What is searched; its device is prepared.
        context: The run.
        how: Store, workers and loggers.

    Raises:
        ValueError: An evaluator or a strategy that answers wrongly, or what does not fit the folder.
        Interrupted: By the user; the folder's run can be resumed.
    """
    folder, display = context.folder, context.display
    run_id = _run_id(folder)
    task = within_budget(task, context)
    with contextlib.ExitStack() as opened:
        store = open_for_run(how.url, run_id, folder, display.warn)
        opened.callback(store.close)
        workers, num_workers = None, cores() if how.workers == "auto" else how.workers
        if check_setting("workers", Count, num_workers) > 1:
            workers = build(how.cluster, Workers, "cluster", workers=num_workers, **context.offered)
            opened.callback(workers.close)
        archive = Archive(folder / "archive.jsonl")
        opened.callback(archive.close)
        evaluators = _cached(task, store, workers, archive)
        for note in archive.notes:
            display.warn(note)
        if not (folder / PLAN).is_file():
            task.plan.write(folder / PLAN)
        tracker = Tracker(folder, how.logger, how.config, run_id=run_id, job="search", warn=display.warn)
        # Offline logs of jobs in one process must end up in runs of their own, whatever happens.
        opened.push(lambda kind, *_: tracker.finish(failed=kind is not None))
        try:
            _announce(display, task, archive)
            with display.phase("quality", f"preparing evaluator {task.names['evaluator']}"):
                evaluators[0].prepare(task.space, [])
            for evaluator in evaluators[1:]:  # with their versions in the store
                evaluator.prepare(task.space, [])
            _check_versions(folder / VERSIONS, task, evaluators, resumed=bool(archive.trials))
            plan(task, context, int(num_workers))
            warm = None if task.problem.warm_start is None else begin(task, folder, store, display.say)
            progress = Progress(task, evaluators[0], tracker, display, context.meter)
            with display.generations(task.generations):
                loop(task.strategy, evaluators, archive, task.generations, progress.log)
            end = Conclusion(task, archive.trials)
            finished = Finish(end, context).carry_out()
            asked = len(archive.trials)
            counts = Evaluations(asked, len(unique(archive.trials)), asked - sum(map(store.paid, task.paid)))
            result = replace(
                end.figures(
                    counts, {"total": time.perf_counter() - context.began}, evaluators[0].seconds_per_new
                ),
                virtual_seconds=None if task.quality.seconds([]) is None else progress.seconds,
                hypervolume=tuple(progress.hypervolumes),
                versions={evaluator.name: evaluator.version for evaluator in evaluators},
                warm_start=warm,
                **vars(finished),
                doubts=tuple(display.doubts),
            )
            result = _write(context, end, result, tracker)
        except KeyboardInterrupt:
            python = (folder / PROBLEM).is_file()
            again = f"hwnas.search(problem, {str(folder)!r})" if python else f"hwnas search resume={folder}"
            raise Interrupted(f"interrupted; nothing is lost, resume with: {again}") from None
    _say_end(context, end, result)
    return result


def _cached(
    task: Task, store: EvaluationStore, workers: Workers | None, archive: Archive
) -> list[CachedEvaluator]:
    """The evaluators of a run with the store before them, the quality first.

    Devices are not divided among workers: what is measured on this machine is measured alone.
    """
    name = task.dataset.name
    costs = [CachedEvaluator(evaluator, store, name) for evaluator in task.evaluators[1:]]
    if task.quality.eta is None:
        return [CachedEvaluator(task.quality, store, name, workers), *costs]
    halving = Halving(
        task.quality,
        store,
        name,
        workers,
        costs=costs,
        archive=archive,
        objectives=task.objectives,
        limits=task.limits,
    )
    return [halving, *costs]


def _check_versions(path: Path, task: Task, evaluators: Sequence[CachedEvaluator], *, resumed: bool) -> None:
    """Keep what evaluators answer by when a run begins; it must be the same when the run is resumed.

    Raises:
        ValueError: It is not: the run's archive would hold costs or qualities that cannot be compared.
    """
    versions = {evaluator.name: evaluator.version for evaluator in evaluators}
    if task.held is not None:
        versions["replay"] = task.held.digest
    if not (resumed and path.is_file()):
        write_json(path, versions)
        return
    known = read_json(path)
    with consistent(path):
        shaped(known, {str: str})
    if task.held is not None and known.get("replay") != task.held.digest:
        raise ValueError(
            f"what replay= names has changed since the run in {path.parent} began; start a new run"
        )
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


def _write(
    context: RunContext,
    end: Conclusion,
    result: Result,
    tracker: Tracker,
) -> Result:
    """Write the run's files, result.json last, and send them to the tracker; what was found, with seconds."""
    folder, display = context.folder, context.display
    rows = [end.described(trial) for trial in end.front]
    write_front(folder / "pareto.csv", rows)
    with display.phase("report", "drawing the report"):
        spent = {"total": time.perf_counter() - context.began, **display.seconds}
        write_report(folder, replace(result, seconds=spent), end.task.space)
    spent = {"total": time.perf_counter() - context.began, **display.seconds}
    result = replace(result, seconds=spent, energy_kwh=context.meter.read())
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
        shutil.rmtree(folder / TRIALS, ignore_errors=True)
    tracker.artifact("result", [folder / name for name in ("result.json", "pareto.csv", "report.html")])
    if result.network is not None:
        tracker.artifact(
            "network", [folder / "network" / name for name in ("weights.pt", "architecture.json")]
        )
    return result


def _say_end(context: RunContext, end: Conclusion, result: Result) -> None:
    """Say what was found, what it took, where it is and what comes next."""
    folder, display, quality = context.folder, context.display, end.task.quality
    if not quality.stationary:
        display.say(
            f"{quality.name}: values of different generations are of different weights; "
            "the answer is among what the strategy returns"
        )
    say_conclusion(display, end, result)
    evaluations, network = result.evaluations, result.network
    display.say(
        f"{evaluations.asked:,} evaluations ({evaluations.new:,} new, "
        f"{evaluations.cached:,} repeated or already stored), {result.seconds['total']:.0f} s"
    )
    if sentence := virtual_clock(result):
        display.say(sentence)
    if network is not None:
        display.say(f"weights: {folder / network.weights}")
    display.say(f"report: {folder / 'report.html'}")
    if end.answer is not None and end.task.has_networks:
        display.say(f"next: hwnas {'train' if network is None else 'export'} run={folder}")
    if (advised := advice(result)) is not None:
        display.say(advised)


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
