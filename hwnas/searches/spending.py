"""What a budget is spent on: the networks that can be trained in it, and the plan of the search."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from hwnas.core import Genotype, Limit, trials_of, violations
from hwnas.data.folder import ImageFolder
from hwnas.data.images import Images
from hwnas.files import consistent, read_json, shaped, write_json
from hwnas.runs.units import phrase
from hwnas.searches.budget import NUM_MEASURED, paces, seconds_of
from hwnas.searches.problem import RunContext, Task, make_strategy
from hwnas.spaces.capabilities import HasNetworks

PLAN, TRIALS = "finish.json", "trials"
"""File of what was measured and planned, and folder of the trainings that are compared, in a run's folder."""

FEWEST_PASSES, FEWEST_STEPS, FINAL_PART = 20, 2500, 0.5
"""Passes over the training images, and steps, for which half of a budget must suffice for every network."""

SEARCH_SECONDS, SEARCH_PART, MOST_PART = 30.0, 0.15, 0.35
"""Seconds and part of a budget for the search, at most `MOST_PART`; what is left then is for training."""

NUM_DRAWN = 64
"""Networks of which a small and a large one are trained for a moment."""

NUM_PACED = 8 * NUM_MEASURED
"""Networks that are drawn to find those whose evaluation is timed for a budget."""


def part_for_search(budget: float) -> float:
    """The part of a budget, in seconds, that the search may use if what it finds is trained."""
    return min(MOST_PART, SEARCH_PART + SEARCH_SECONDS / budget)


def within_budget(task: Task, context: RunContext) -> Task:
    """The task with a limit on multiply-adds, so that a budget suffices to train what is found.

    A training must get through `FEWEST_PASSES` and `FEWEST_STEPS` in `FINAL_PART` of the budget. How long a
    step takes is measured for a small and a large network of the space, once for the run. A limit of the
    user's on multiply-adds takes the place of this one.

    Args:
        task: The task.
        context: The run.
    """
    name, budget = "flops", task.problem.budget
    known = {metric for evaluator in task.evaluators[1:] for metric in evaluator.metrics}
    given = any(limit.metric == name for limit in task.limits)
    if budget is None or not task.trains or given or name not in known:
        return task
    planned = read_plan(context.folder / PLAN)
    if "most_flops" not in planned:
        bound = _trainable(task, context.folder, FINAL_PART * seconds_of(budget))
        planned = {**planned, "most_flops": bound}
        write_json(context.folder / PLAN, planned)
    bound = planned["most_flops"]
    context.display.say(
        f"budget={budget} suffices to train networks of up to {phrase(name, bound)}, a limit of this search; "
        "another limits.flops takes its place"
    )
    limits = (*task.limits, Limit(name, bound))
    strategy = make_strategy(task.problem, task.space, task.evaluators, task.objectives, limits)
    return replace(task, limits=limits, strategy=strategy)


def _trainable(task: Task, folder: Path, seconds: float) -> float:
    """Multiply-adds of the largest network that can be trained in so many seconds."""
    space, dataset, recipe, training = task.space, task.dataset, task.recipe, trainings()
    assert isinstance(space, HasNetworks)
    assert isinstance(dataset, Images | ImageFolder)
    drawn = space.sample(np.random.default_rng(0), NUM_DRAWN)
    sizes = space.static_metrics(drawn)["flops"]
    order = np.argsort(sizes, kind="stable")
    small, large = (int(order[int(part * (NUM_DRAWN - 1))]) for part in (0.05, 0.4))
    steps = max(FEWEST_STEPS, FEWEST_PASSES * dataset.size("all") / recipe.batch_size)
    fast, slow = (
        training.seconds_per_step(space.network(drawn[row]), dataset, recipe, folder / TRIALS / "pace")
        for row in (small, large)
    )
    slope = max(slow - fast, 1e-9) / max(float(sizes[large] - sizes[small]), 1.0)
    bound = float(sizes[small]) + (seconds / steps - fast) / slope
    return float(np.clip(bound, sizes[small], sizes[order[-1]]))


def plan(task: Task, context: RunContext, workers: int) -> None:
    """Have the strategy plan by the budget, if there is one."""
    if task.problem.budget is not None:
        budget = seconds_of(task.problem.budget)
        before = time.perf_counter() - context.began if task.trains else 0.0
        announce = context.display.say
        networks = _allowed(task)
        spent, each = paces(context.folder, budget, task.quality, networks, workers, announce, before)
        task.strategy.plan(budget, each, spent, part_for_search(budget) if task.trains else 1.0)


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
                "latency_ms?": ({str: float}, None),
                "steps?": {str: int},
            },
        )
    return dict(content)
