"""`hwnas search`: the problem that a configuration states, searched in the run's folder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig

from hwnas.api import Execution, carry_out
from hwnas.cli.job import Job
from hwnas.core import Goal, suggestion
from hwnas.runs.display import Display
from hwnas.runs.folder import choices, sweep_or_run, take_replayed
from hwnas.runs.lock import STORED
from hwnas.runs.result import Result, read_result
from hwnas.searches.problem import Problem, RunContext, WarmStart, set_up
from hwnas.searches.replay import Replay
from hwnas.training.recipe import forget_checkpoint

Returned = float | list[float]
"""The values that a sweeper gets of a run: a metric of its best network, or several."""


def main(job: Job) -> Returned:
    """The command: build, search, train the answer, write the run's folder.

    Returns:
        The best feasible network's first objective, or the metrics that `returns` names, for sweepers; the
        worst values there can be if no network keeps the limits.
    """
    cfg, folder, display = job.cfg, job.folder, Display()
    finished = folder / "result.json"
    if finished.is_file():
        display.say(f"this run is finished already; see {folder / 'report.html'}")
        result = read_result(finished)
        if result.network is not None:
            forget_checkpoint(folder / "network")
        return _returned_before(cfg, result)
    if not isinstance(cfg.store, DictConfig) or not isinstance(cfg.store.dir, str):
        raise ValueError(f"store.dir must be a folder; the configuration has store={cfg.store}")
    if choices(folder).get("experiment") == "images":
        display.say(
            "residual networks (search_space=resnet) are searched by evaluator=cascade and strategy=cascade; "
            "search_space=mobile searches others, experiment=blind NAS-Bench-201's cells"
        )
    kept = sweep_or_run(folder) / STORED
    context = RunContext(folder, kept, Path(cfg.store.dir).expanduser(), display)
    task = set_up(problem_of(cfg, choices(folder)), context)
    for_sweeper(cfg.get("returns"), task.goals, {})
    with display.phase("device", f"preparing device {task.names['device']}"):
        task.prepare_device()
    try:
        task.check_limits()
    except ValueError as error:
        if "optuna" not in str(job.hydra.sweeper.get("_target_")):
            raise
        display.warn(str(error))  # one of many settings, and as bad as can be
        return for_sweeper(cfg.get("returns"), task.goals, {})
    how = Execution(cfg.store.url, cfg.workers, cfg.logger, job.settings, cfg.cluster)
    best = carry_out(task, context, how).best
    return for_sweeper(cfg.get("returns"), task.goals, {} if best is None else best.metrics)


def settle(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Put what a replayed run was evaluated by into the configuration; a resumed run has it already.

    Args:
        cfg: Of `hwnas search`; changed in place.
        overrides: Those of the command.

    Raises:
        ValueError: As `take_replayed`.
    """
    replay = _replay(cfg)
    if replay is not None and cfg.get("resume") is None:
        first = Path(replay.folders[0]).expanduser()
        if not first.is_file():  # of a store: words say what is wanted of it
            take_replayed(cfg, first, overrides)


def _replay(cfg: DictConfig) -> Replay | None:
    """What a configuration replays."""
    folders = cfg.get("replay")
    if folders is None:
        return None
    named = [folders] if isinstance(folders, str) else list(folders)
    how = (cfg.get("replay_missing", "refuse"), cfg.get("replay_metric"), cfg.get("replay_costs", "run"))
    return Replay(named, *how)


def _warm_start(cfg: DictConfig) -> WarmStart | None:
    """What a configuration begins with."""
    sources = cfg.get("warm_start")
    if sources is None:
        return None
    return WarmStart(
        [sources] if isinstance(sources, str) else list(sources), cfg.get("warm_start_scored", 500)
    )


def _baselines(cfg: DictConfig) -> str | list[str]:
    """The off-the-shelf networks that a configuration compares with; those of earlier versions know none."""
    named = cfg.get("baselines", [])
    return named if isinstance(named, str) else [str(name) for name in named or []]


def problem_of(cfg: DictConfig, names: Mapping[str, str]) -> Problem:
    """The problem that a configuration states.

    Args:
        cfg: Of `hwnas search`.
        names: Chosen option per config group.

    Raises:
        ValueError: A setting of the wrong kind.
    """
    return Problem(
        space=cfg.search_space,
        dataset=cfg.dataset,
        evaluator=cfg.evaluator,
        device=cfg.device,
        strategy=cfg.strategy,
        recipe=cfg.trainer,
        limits={} if cfg.limits is None else cfg.limits,
        confidence=cfg.get("confidence"),
        robust=cfg.get("robust"),
        budget=cfg.get("budget"),
        generations=cfg.generations,
        seed=cfg.seed,
        names=names,
        memory_bits=cfg.get("memory_bits", 32),
        warm_start=_warm_start(cfg),
        replay=_replay(cfg),
        baselines=_baselines(cfg),
    )


def _returned_before(cfg: DictConfig, result: Result) -> Returned:
    """The values that a finished run returned to its sweeper."""
    reached = result.best.metrics if result.best else {}
    names = dict.fromkeys([*(o.metric for o in result.objectives), *result.goals, *reached])
    return for_sweeper(cfg.get("returns"), {name: result.goal(name) for name in names}, reached)


def for_sweeper(names: object, goals: Mapping[str, Goal], metrics: Mapping[str, float]) -> Returned:
    """Values for a sweeper: the metrics that `names` names; infinitely bad ones where there is no network.

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
