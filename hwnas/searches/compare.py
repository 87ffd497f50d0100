"""Many short runs on problems that are known at once: tables, formulas, profiles of devices.

They run through the loop of every search, in memory: no folders, no store. Runs with the same objects share
them, and worker processes divide the runs.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from hwnas.core import (
    MOST_LISTED,
    Limit,
    Strategy,
    Trial,
    costs,
    trials_of,
)
from hwnas.files import end_with, identity, temporary_folder
from hwnas.searches.blind import DECILES
from hwnas.searches.judge import Case, Found, columns
from hwnas.searches.loop import search
from hwnas.searches.problem import Choice, Problem, Task, make_strategy
from hwnas.searches.warm_start import begin
from hwnas.store.archive import Archive
from hwnas.store.evaluations import open_for_run
from hwnas.store.workers import Unpickler, packed
from hwnas.training.progress import progress

SEEDS_AT_ONCE = 5
"""Runs that a worker process does in one go."""


@dataclass(frozen=True)
class Contender:
    """A strategy that is compared.

    Attributes:
        name: Its name in the comparison.
        strategy: The strategy, as a problem has it.
        generations: Populations that it is asked for; None: as many as the problem says.
    """

    name: str
    strategy: Choice[Strategy]
    generations: int | None = None

    def of(self, problem: Problem, seed: int) -> Problem:
        """The problem with this strategy, and a seed."""
        generations = self.generations or problem.generations
        return replace(problem, strategy=self.strategy, generations=generations, seed=seed)


@dataclass(frozen=True)
class Setting:
    """What the runs on a case share.

    Attributes:
        case: The case.
        task: The problem and its objects, of which strategy, seed and limits are replaced.
        limits: Limits of the runs, numbered as those of the case; one without any for runs that are judged by
            all of the case's limits.
        store: The folder of evaluations that warm starts read, and that they keep scores in.
    """

    case: Case
    task: Task
    limits: tuple[tuple[Limit, ...], ...]
    store: Path

    def place(self, number: int) -> int | None:
        """Which of the case's limits the runs with a limit of this number are judged by; None: all."""
        return number if self.limits[number] else None


@dataclass(frozen=True)
class Failed:
    """A strategy that raised an error in the middle of a run."""

    strategy: str
    case: str
    seed: int
    reason: str
    traceback: str


def setting(name: str, task: Task, limits: Sequence[tuple[Limit, ...]], store: Path) -> Setting:
    """A case, its exact answers where they are known, and what its runs share.

    Args:
        name: Tells the case from the others.
        task: Made without limits; its device is prepared.
        limits: Limits of runs, a run for each; empty: one run, judged under the nine deciles of the first
            cost, or by its whole front where the space cannot be listed.
        store: The folder of what all runs share.

    Raises:
        ValueError: An evaluator that computes its answers, network by network.
    """
    for evaluator in task.evaluators:
        if not evaluator.exhaustive or not evaluator.stationary:
            raise ValueError(
                f"{evaluator.name} computes its answers; hwnas compare runs on tables, formulas and profiles "
                "alone: search in a sweep (hwnas search -m strategy=... seed=...), then give its folder: "
                "hwnas compare multirun/sweeps/<sweep>"
            )
    evaluators, objectives = task.evaluators, task.objectives
    evaluators[0].prepare(task.space, [])
    judged_by, best, worst = tuple(limits), None, None
    if task.space.size <= MOST_LISTED:
        genotypes = task.space.all()
        everything = trials_of(genotypes, [evaluator.evaluate(genotypes) for evaluator in evaluators], 0)
        whole = Found("", 0, columns(everything))
        cost = next(o for o in objectives if o.goal == "min" and o.metric in task.device.metrics)
        values = whole.metrics[cost.metric]
        bounds = np.quantile(values[np.isfinite(values)], DECILES).tolist()
        judged_by = judged_by or tuple((Limit(cost.metric, bound),) for bound in bounds)
        sign = 1.0 if objectives[0].goal == "min" else -1.0
        quality = whole.costs(objectives[:1])[:, 0]
        best = tuple(sign * float(quality[whole.within(kept)].min()) for kept in judged_by)
        worst = sign * float(quality[np.isfinite(quality)].max())
    case = Case(name, objectives, judged_by, best, worst)
    return Setting(case, task, tuple(limits) or ((),), store.absolute())


class _Enough(Exception):  # noqa: N818 - no error
    """A run knows as many architectures as it is judged by."""


def run(setting: Setting, contender: Contender, seed: int, number: int, most: int) -> Found:
    """A search in memory.

    Args:
        setting: What is searched.
        contender: By what.
        seed: Of the strategy.
        number: Which of the setting's limits it has.
        most: Different architectures after which it ends, or before if the strategy has finished or the
            problem's generations are over.

    Raises:
        Exception: Whatever the strategy raises.
    """
    start = time.perf_counter()
    task = _task(setting, contender, seed, number)
    evaluators = task.evaluators
    if task.problem.warm_start is not None:
        _begin(task, setting.store)
    found: dict[tuple[int, ...], Trial] = {}

    def log(generation: int, trials: list[Trial], replayed: bool) -> None:
        for trial in trials:
            found.setdefault(trial.genotype, trial)
        if len(found) >= most:
            raise _Enough

    with contextlib.suppress(_Enough):
        search(task.strategy, evaluators, Archive(), task.generations, log)
    spent = time.perf_counter() - start
    trials = list(found.values())[:most]
    costs(trials, setting.case.objectives)  # every trial has them
    seconds = [evaluators[0].seconds([trial.genotype]) for trial in trials]
    known = [each for each in seconds if each is not None]
    return Found(
        contender.name,
        seed,
        columns(trials),
        clock=np.cumsum(known) if len(known) == len(trials) else None,
        limit=setting.place(number),
        spent=spent,
    )


def _task(setting: Setting, contender: Contender, seed: int, number: int) -> Task:
    """What a run searches, with a strategy made for it."""
    task, limits = setting.task, setting.limits[number]
    problem = contender.of(task.problem, seed)
    strategy = make_strategy(problem, task.space, task.evaluators, task.objectives, limits)
    return replace(task, problem=problem, strategy=strategy, limits=limits)


def _begin(task: Task, store_dir: Path) -> None:
    """Tell the strategy what a warm start knows."""

    def silent(sentence: str) -> None:
        """Every run would say the same."""

    with temporary_folder() as name:
        folder = Path(name)
        url = f"sqlite:///{store_dir / 'evaluations.sqlite'}"
        with contextlib.closing(open_for_run(url, "compare", folder, silent)) as store:
            begin(task, folder, store, silent)


def check(settings: Sequence[Setting], contenders: Sequence[Contender]) -> None:
    """Make every strategy once, so that a setting that does not fit is an error before anything runs.

    Raises:
        ValueError: It does not fit; names the strategy.
    """
    for setting, contender in itertools.product(settings, contenders):
        try:
            task = _task(setting, contender, 0, 0)
            if task.problem.warm_start is not None:
                _begin(task, setting.store)
        except ValueError as error:
            raise ValueError(f"{contender.name}: {error}") from None


@dataclass(frozen=True)
class _Part:
    """Runs that are done in one go."""

    setting: int
    contender: Contender
    number: int
    seeds: tuple[int, ...]
    most: int


def _runs(setting: Setting, part: _Part) -> list[Found | Failed]:
    """The runs of a part; the first that fails is the last."""
    done: list[Found | Failed] = []
    for seed in part.seeds:
        try:
            done.append(run(setting, part.contender, seed, part.number, part.most))
        except Exception as error:  # whatever a strategy of one's own raises: the others still count
            reason = " ".join(str(error).split())
            named = reason if isinstance(error, ValueError) else f"{type(error).__name__}: {reason}"
            trace = "".join(traceback.format_exception(error))
            done.append(Failed(part.contender.name, setting.case.name, seed, named, trace))
            break
    return done


_latest: tuple[str, Setting] | None = None
"""The last setting of this worker, and the file that it was read from."""


def _runs_of_file(parent: str, path: Path, part: _Part) -> tuple[int, list[Found | Failed]]:
    """The runs of a part on the setting in a file; in a worker."""
    global _latest
    end_with(parent)
    if _latest is None or _latest[0] != path.name:
        _latest = path.name, Unpickler(path.read_bytes(), []).load()
    return part.setting, _runs(_latest[1], part)


def run_all(
    settings: Sequence[Setting],
    contenders: Sequence[Contender],
    seeds: Sequence[int],
    most: int,
    *,
    workers: int = 1,
    say: dict[str, object] | None = None,
) -> tuple[list[list[Found]], list[Failed]]:
    """Every strategy with every seed on every case.

    Args:
        settings: The cases.
        contenders: The strategies.
        seeds: Seeds.
        most: Different architectures after which a run ends.
        workers: Processes that divide the runs.
        say: Functions that evaluators may hold, by name, which are not sent to workers.

    Returns:
        The runs of each case, in order, without strategies of which a run failed; and the failed runs.
    """
    size = len(seeds) if workers == 1 else SEEDS_AT_ONCE
    parts = [
        _Part(index, contender, number, tuple(seeds[first : first + size]), most)
        for contender, index in itertools.product(contenders, range(len(settings)))
        for number in range(len(settings[index].limits))
        for first in range(0, len(seeds), size)
    ]
    found: list[list[Found]] = [[] for _ in settings]
    failed: list[Failed] = []
    total, done = sum(len(part.seeds) for part in parts), 0
    for index, runs in _in_order_of_end(settings, parts, workers, say or {}):
        done += len(runs)
        progress("runs", done, total)
        found[index] += [one for one in runs if isinstance(one, Found)]
        failed += [one for one in runs if isinstance(one, Failed)]
    lost = {one.strategy for one in failed}
    order = {contender.name: place for place, contender in enumerate(contenders)}

    def key(one: Found) -> tuple[int, int, int]:
        return order[one.strategy], one.seed, one.limit or 0

    kept = [sorted((one for one in runs if one.strategy not in lost), key=key) for runs in found]
    return kept, sorted(failed, key=lambda one: (order[one.strategy], one.case, one.seed))


def _in_order_of_end(
    settings: Sequence[Setting], parts: Sequence[_Part], workers: int, say: dict[str, object]
) -> Iterator[tuple[int, list[Found | Failed]]]:
    """The runs of each part, and the number of its setting."""
    if workers == 1:
        yield from ((part.setting, _runs(settings[part.setting], part)) for part in parts)
        return
    from joblib import Parallel, delayed, parallel_config
    from joblib.externals.loky import get_reusable_executor

    with temporary_folder() as folder, parallel_config(backend="loky", inner_max_num_threads=1):
        paths = []
        for setting in settings:
            copy = packed(setting, say)  # type: ignore[arg-type]
            paths.append(Path(folder) / hashlib.sha256(copy).hexdigest()[:16])
            paths[-1].write_bytes(copy)
        pool = Parallel(
            workers,
            return_as="generator_unordered",
            batch_size=1,
            pre_dispatch="all",
            temp_folder=folder,
        )
        me = identity()
        try:
            yield from pool(delayed(_runs_of_file)(me, paths[part.setting], part) for part in parts)
        except BrokenProcessPool:
            raise ValueError(
                "a process that runs strategies died (out of memory, or by a strategy); workers=1 shows where"
            ) from None
        finally:
            get_reusable_executor(max_workers=workers).shutdown(wait=True, kill_workers=True)
