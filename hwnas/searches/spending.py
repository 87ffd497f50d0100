"""What a budget is spent on: the networks that can be trained in it, and the plan of the search."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hwnas.core import FloatArray, Genotype, Limit, SearchSpace, trials_of, violations
from hwnas.data.folder import ImageFolder
from hwnas.data.images import Images
from hwnas.files import consistent, read_json, shaped, write_json
from hwnas.runs.units import phrase
from hwnas.searches.budget import NUM_MEASURED, paces, seconds_of
from hwnas.searches.problem import RunContext, Task, make_strategy
from hwnas.spaces.capabilities import HasCosts, HasForecast, HasNetworks

PLAN, TRIALS = "finish.json", "trials"
"""File of what was measured and planned, and folder of the trainings that are compared, in a run's folder."""

FEWEST_PASSES, FEWEST_STEPS, FINAL_PART = 20, 2500, 0.5
"""Passes over the training images, and steps, for which half of a budget must suffice for every network."""

SEARCH_SECONDS, SEARCH_PART, MOST_PART = 30.0, 0.15, 0.35
"""Seconds and part of a budget for the search, at most `MOST_PART`; what is left then is for training.

Where a space forecasts what trainings bring, a third of it: most is known before.
"""

NUM_DRAWN, CLOCKED = 64, (0.02, 0.2, 0.4)
"""Networks that are drawn, if none are published, and which of them, by size, are trained for a moment."""

TRIAL_PART, NUM_TRIALS = 0.04, 3
"""Part of a budget for each training that is compared, and how many there usually are."""

NUM_PACED = 8 * NUM_MEASURED
"""Networks that are drawn to find those whose evaluation is timed for a budget."""


def part_for_search(space: SearchSpace, budget: float) -> float:
    """The part of a budget, in seconds, that the search may use if what it finds is trained."""
    part = min(MOST_PART, SEARCH_PART + SEARCH_SECONDS / budget)
    return part / 3 if isinstance(space, HasForecast) else part


def part_for_final(space: SearchSpace, budget: float) -> float:
    """The part of a budget, in seconds, that is left for the final training."""
    return 1 - part_for_search(space, budget) - NUM_TRIALS * TRIAL_PART


def steps_per_pass(task: Task) -> int:
    """Optimiser steps of the final training in a pass over its images."""
    assert isinstance(task.dataset, Images | ImageFolder)
    return max(1, task.dataset.size("all") // task.recipe.batch_size)


def within_budget(task: Task, context: RunContext) -> Task:
    """The task, whose evaluator is told for how many steps the answer will be trained.

    Within a budget these follow from the seconds of a step, which are measured for networks of some sizes,
    once for the run. Where a space forecasts nothing, there is a limit on multiply-adds then: a training must
    get through `FEWEST_PASSES` and `FEWEST_STEPS` in `FINAL_PART` of the budget. A limit of the user's takes
    its place.

    Args:
        task: The task.
        context: The run.
    """
    if not task.trains or not isinstance(task.space, HasNetworks):
        return task
    recipe, per_pass = task.recipe, steps_per_pass(task)
    if task.problem.budget is None:
        steps = float(min(recipe.epochs * per_pass, recipe.max_steps or np.inf))
        task.quality.will_train(lambda genotypes: np.full(len(genotypes), steps), per_pass)
        return task
    seconds = seconds_of(task.problem.budget)
    planned = dict(read_plan(context.folder / PLAN))
    if "seconds_per_step" not in planned:
        planned["seconds_per_step"] = _step_times(task, context.folder)
    step = Step(task.space, planned["seconds_per_step"])
    if "most_flops" not in planned:
        planned["most_flops"] = _trainable(task, step, FINAL_PART * seconds)
    write_json(context.folder / PLAN, planned)
    final = part_for_final(task.space, seconds) * seconds
    task.quality.will_train(lambda genotypes: np.maximum(1.0, final / step.seconds(genotypes)), per_pass)
    name, bound = "flops", planned["most_flops"]
    known = {metric for evaluator in task.evaluators[1:] for metric in evaluator.metrics}
    given = any(limit.metric == name for limit in task.limits)
    if isinstance(task.space, HasForecast) or given or name not in known:
        return task
    context.display.say(
        f"budget={task.problem.budget} suffices to train networks of up to {phrase(name, bound)}, a limit of "
        "this search; another limits.flops takes its place"
    )
    limits = (*task.limits, Limit(name, bound))
    strategy = make_strategy(task.problem, task.space, task.evaluators, task.objectives, limits)
    return replace(task, limits=limits, strategy=strategy)


class Step:
    """The seconds of an optimiser step on this machine: a sum over a network's amounts of work.

    Args:
        space: The space.
        seconds: Seconds of a step without any work, and per unit of work, by name.
    """

    def __init__(self, space: HasNetworks, seconds: Mapping[str, float]) -> None:
        self._space, self._seconds = space, seconds

    def seconds(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Seconds of a step of networks, (n,)."""
        return work_of(self._space, genotypes) @ np.array([self._seconds[name] for name in WORK])


WORK = ("steps", "work")
"""What takes time in a step: the step itself, and the network's work in multiply-adds."""

ELEMENT = 18.0
"""Multiply-adds that take as long as an element of a layer's result; of 30 residual networks on one core."""


def work_of(space: HasNetworks, genotypes: Sequence[Genotype]) -> FloatArray:
    """Amounts of `WORK` per network, (n, 2); without elements where the space does not count them."""
    work = space.static_metrics(genotypes)["flops"]
    done = space.work(genotypes) if isinstance(space, HasCosts) else {}
    for name, values in done.items():
        if name.endswith(" elements"):
            work = work + ELEMENT * values
    return np.column_stack([np.ones(len(work)), work])


def _step_times(task: Task, folder: Path) -> dict[str, float]:
    """Seconds of a step by amount of work: networks of some sizes are trained for a moment."""
    from scipy.optimize import nnls

    space, dataset = task.space, task.dataset
    assert isinstance(space, HasNetworks)
    assert isinstance(dataset, Images | ImageFolder)
    published = [space.from_str(text) for text in space.presets.values()]  # near these is searched
    drawn = published or space.sample(np.random.default_rng(0), NUM_DRAWN)
    order = np.argsort(space.static_metrics(drawn)["flops"], kind="stable")
    chosen = [drawn[order[int(part * (len(drawn) - 1))]] for part in CLOCKED]
    clock, place = trainings().seconds_per_step, folder / TRIALS / "pace"
    seconds = np.array([clock(space.network(g), dataset, task.recipe, place) for g in chosen])
    work = work_of(space, chosen)
    scale = work.max(axis=0)
    found, _ = nnls(work / scale / seconds[:, None], np.ones(len(seconds)))  # relative errors count
    return dict(zip(WORK, (found / scale).tolist(), strict=True))


def _trainable(task: Task, step: Step, seconds: float) -> float:
    """Multiply-adds of the largest network that can be trained in so many seconds."""
    dataset = task.dataset
    assert isinstance(dataset, Images | ImageFolder)
    drawn = task.space.sample(np.random.default_rng(0), NUM_PACED)
    sizes = task.space.static_metrics(drawn)["flops"]
    steps = max(FEWEST_STEPS, FEWEST_PASSES * dataset.size("all") / task.recipe.batch_size)
    fast = step.seconds(drawn) * steps <= seconds
    return float(sizes[fast].max() if fast.any() else sizes.min())


def plan(task: Task, context: RunContext, workers: int) -> None:
    """Have the strategy plan by the budget, if there is one."""
    if task.problem.budget is not None:
        budget = seconds_of(task.problem.budget)
        before = time.perf_counter() - context.began if task.trains else 0.0
        announce = context.display.say
        networks = _allowed(task)
        spent, each = paces(context.folder, budget, task.quality, networks, workers, announce, before)
        task.strategy.plan(budget, each, spent, part_for_search(task.space, budget) if task.trains else 1.0)


def _allowed(task: Task) -> list[Genotype]:
    """Some networks with a path that keep the limits on costs; without regard to these if they are rare."""
    drawn = task.space.sample(np.random.default_rng(0), NUM_PACED)
    whole = [g for g, there in zip(drawn, task.space.is_connected(drawn), strict=True) if there] or drawn
    bounds = [
        limit for limit in task.limits if limit.goal == "min" and limit.metric not in task.quality.metrics
    ]
    if not bounds or not task.device.exhaustive:
        return whole
    trials = trials_of(whole, [evaluator.evaluate(whole) for evaluator in task.evaluators[1:]], 0)
    kept = [g for g, excess in zip(whole, violations(trials, bounds), strict=True) if excess == 0]
    return kept or whole


def trainings() -> ModuleType:
    """The trainings, which need torch; a search on tables does not."""
    import hwnas.training.pace

    return hwnas.training.pace


def read_plan(path: Path) -> Mapping[str, Any]:
    """What an earlier session measured and planned."""
    if not path.is_file():
        return {}
    content = read_json(path)
    with consistent(path):
        shaped(
            content,
            {
                "candidates_ms?": [float],
                "names?": [str],
                "most_flops?": float,
                "seconds_per_step?": dict.fromkeys(WORK, float),
                "latency_ms?": ({str: float}, None),
                "steps?": {str: int},
            },
        )
    return dict(content)
