"""A search as a user states it (`Problem`), and with its objects made (`Task`)."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, TypeVar, Union

from annotated_types import Ge

from hwnas.build import build
from hwnas.core import (
    DEVIATION,
    Count,
    Evaluator,
    Fraction,
    Genotype,
    Goal,
    Limit,
    Objective,
    Positive,
    SearchSpace,
    Seed,
    Strategy,
    check_setting,
    checked,
    suggestion,
)
from hwnas.data.folder import ImageFolder
from hwnas.data.images import DataSet, Images, check_batch
from hwnas.devices.energy import Meter
from hwnas.devices.flops import Flops
from hwnas.devices.memory import METRICS, Bits, Memory
from hwnas.devices.profile import margin
from hwnas.runs.display import Display
from hwnas.runs.result import Plan
from hwnas.searches.baselines import check_baselines
from hwnas.searches.budget import seconds_of
from hwnas.searches.exact import check_possible, quantile
from hwnas.searches.replay import Held, Replay, hold
from hwnas.spaces.capabilities import HasNetworks
from hwnas.spaces.module import ModuleSpace
from hwnas.spaces.module.source import is_network, named
from hwnas.training.recipe import Recipe
from hwnas.training.teacher import teacher_in

T = TypeVar("T")

Choice = Union[T, Callable[..., T], Mapping[str, object]]  # noqa: UP007 - mypy reads no alias with |
"""An object; a class, a function or a partial that makes it; or a node of a configuration."""

Bound = float | str
"""A number, or "q0.3" for the 0.3 quantile over the space's networks."""

Limits = Bound | Mapping[str, Bound | None] | None
"""A bound, one by device, or none."""

GROUPS = {
    "space": "search_space",
    "dataset": "dataset",
    "evaluator": "evaluator",
    "device": "device",
    "strategy": "strategy",
    "recipe": "trainer",
}
"""The parts of a problem, and the config groups that choose them."""


@checked
@dataclass(frozen=True)
class WarmStart:
    """What a search begins with.

    Attributes:
        sources: "scores", "store", files of architectures, and folders of runs.
        scored: Networks that are drawn and scored for "scores".

    Raises:
        ValueError: No source, or a number out of range.
    """

    sources: Sequence[str]
    scored: Annotated[int, Ge(5)] = 500

    def __post_init__(self) -> None:
        if not self.sources or not all(self.sources):
            raise ValueError(
                "warm_start must name scores, store, a file of architectures or the folder of a run"
            )


@checked
@dataclass(frozen=True)
class Problem:
    """A search as a user states it.

    A part is an object, or what makes one: a class, a function or a `functools.partial` is given those of
    the run's objects that its parameters name. These are `dataset`, `space`, `seed`, `folder` (of the run),
    `kept` (a folder for what the run began with), `store_dir`, `announce` and `warn` (functions that take a
    sentence); for a space `image_shape`, `num_classes` and `announce`; for a strategy also `objectives`,
    `limits`, `generations`, `evaluator`, `device` and `sizes` (evaluators of further costs).

    Attributes:
        space: Which networks there are; a class of `nn.Module` in which words mark what may vary is one, too.
        dataset: Images, or the name that stands for them where a table has the accuracies.
        evaluator: Says how good networks are.
        device: Says what networks cost.
        strategy: Asks for populations, and observes what they are worth.
        recipe: How the best network is trained in the end; 0 epochs leave it out.
        limits: Bound per metric: costs at most, qualities at least. Where several devices report a metric, a
            bound counts for each of them, or is a mapping by device. None is no limit.
        confidence: In 0..1; limits on predicted costs are lowered so that this fraction of the networks that
            a profile is tested on keeps them. None: as they are.
        robust: Standard errors by which a network must be better to beat another, where the evaluator says
            how sure it is (`<metric>_std`); the best network is that of the highest quality less as many.
            None: any lead counts.
        budget: Time for the evaluations, e.g. "10min", for a strategy that plans by it; None: no plan.
        generations: Populations to ask for.
        memory_bits: Bits of a number for limits on `ram_kb` and `flash_kb`: 32 for float32, or 8.
        seed: Of the strategy, the evaluator and the final training.
        warm_start: What the strategy begins with; None: with nothing.
        replay: Runs whose networks are searched, with the answers that are there; None: all networks.
        baselines: Names of off-the-shelf networks that are trained beside the best one; "auto": usual ones
            within the limits, if there is a budget, and the device measures networks.
        names: What pages and files call the parts, by config group; the others are called by their own name,
            or that of their class.

    Raises:
        ValueError: A number out of range, or limits that are no mapping.
    """

    space: Choice[SearchSpace]
    dataset: Choice[DataSet]
    evaluator: Choice[Evaluator]
    device: Choice[Evaluator]
    strategy: Choice[Strategy]
    recipe: Choice[Recipe] = field(default_factory=lambda: Recipe(epochs=0))
    limits: Mapping[str, Limits] = field(default_factory=dict)
    confidence: float | None = None
    robust: Positive | None = None
    budget: str | float | None = None
    generations: Count = 20
    seed: Seed = 0
    warm_start: WarmStart | None = None
    replay: Replay | None = None
    baselines: str | Sequence[str] = "auto"
    names: Mapping[str, str] = field(default_factory=dict)
    memory_bits: Bits = 32

    def __post_init__(self) -> None:
        if not isinstance(self.limits, Mapping):
            raise ValueError(f"limits takes metrics, e.g. limits.latency_ms=5, not limits={self.limits}")
        if self.budget is not None:
            seconds_of(self.budget)
        check_setting("memory_bits", Bits, self.memory_bits)
        if is_network(self.space):
            object.__setattr__(self, "space", partial(ModuleSpace, **named(self.space)))


@dataclass(frozen=True)
class RunContext:
    """The run, for the objects that are made for it.

    Attributes:
        folder: The run's folder.
        kept: Folder of what the run, or the sweep that it belongs to, began with.
        store_dir: Folder of profiles and reference networks that all runs share.
        display: Where notes go.
        began: When the session began, on the clock `time.perf_counter`.
        meter: Counters of the energy that is used since.
    """

    folder: Path
    kept: Path
    store_dir: Path
    display: Display
    began: float = field(default_factory=time.perf_counter)
    meter: Meter = field(default_factory=Meter)

    @property
    def offered(self) -> dict[str, object]:
        """The arguments that constructors may name."""
        return {
            "folder": self.folder,
            "kept": self.kept,
            "store_dir": self.store_dir,
            "announce": self.display.say,
            "warn": self.display.doubt,
        }


@dataclass(frozen=True)
class Task:
    """A problem whose objects are made, and checked to fit each other.

    Attributes:
        problem: What was stated.
        names: What pages and files call the parts, by config group.
        dataset: Images, or what stands for them.
        space: The search space.
        evaluators: Quality, device, and what every report can tell; none of them cached.
        objectives: What is optimised, the quality first.
        limits: Bounds as numbers.
        quantiles: Bounds that were given as quantiles, e.g. "q0.3", by metric.
        strategy: Asks for populations.
        recipe: How the final network is trained; 0 epochs leave it out.
        margins: By how much limits on predicted costs were lowered, relative, by metric.
        held: What earlier runs hold for a search that replays them.
    """

    problem: Problem
    names: Mapping[str, str]
    dataset: DataSet
    space: SearchSpace
    evaluators: tuple[Evaluator, ...]
    objectives: tuple[Objective, ...]
    limits: tuple[Limit, ...]
    quantiles: Mapping[str, str]
    strategy: Strategy
    recipe: Recipe
    margins: Mapping[str, float]
    held: Held | None = None

    @property
    def generations(self) -> int:
        """Populations to ask for."""
        return self.problem.generations

    @property
    def seed(self) -> int:
        """Of the strategy and the final network."""
        return self.problem.seed

    @property
    def quality(self) -> Evaluator:
        """The evaluator that was chosen."""
        return self.evaluators[0]

    @property
    def device(self) -> Evaluator:
        """The device that was chosen."""
        return self.evaluators[1]

    @property
    def goals(self) -> dict[str, Goal]:
        """Goal per metric that the run knows, those of the objectives first."""
        metrics = _metrics(self.evaluators)
        return {o.metric: o.goal for o in self.objectives} | metrics

    @property
    def paid(self) -> set[str]:
        """Names of the evaluators whose answers are paid for, in the store; of successive rungs the first."""
        rungs = self.quality.rungs if self.quality.eta is None else self.quality.rungs[:1]
        return {evaluator.name for evaluator in rungs or (self.quality,)}

    def memory(self, genotype: Genotype) -> dict[str, float] | None:
        """`ram_kb` and `flash_kb` of a network, and the `memory_bits` of a number; None: not known."""
        if not isinstance(self.space, HasNetworks) or "params" not in self.space.static_metrics([]):
            return None
        bits = self.problem.memory_bits
        found = Memory(self.space, metric="ram_kb", bits=bits).evaluate([genotype])[0]
        return {**found, "memory_bits": bits}

    @property
    def has_networks(self) -> bool:
        """Whether an architecture of the space can be built and trained."""
        return isinstance(self.space, HasNetworks)

    @property
    def trains(self) -> bool:
        """Whether the search ends with a training; where accuracies are known nobody trains."""
        return bool(self.recipe.epochs) and self.has_networks and not self.quality.reported

    @property
    def plan(self) -> Plan:
        """Objectives, limits as numbers, and the goals of all metrics, reported ones included."""
        limits = {limit.metric: limit.bound for limit in self.limits}
        goals = {**self.goals, **self.quality.reported}
        known = isinstance(self.dataset, Images | ImageFolder)
        return Plan(
            objectives=self.objectives,
            limits=limits,
            goals=goals,
            robust=self.problem.robust,
            image_shape=self.dataset.image_shape if known else None,
            num_classes=self.dataset.num_classes if known else None,
        )

    def prepare_device(self) -> None:
        """Get the costs ready."""
        for evaluator in self.evaluators[1:]:
            evaluator.prepare(self.space, [])

    def check_limits(self) -> None:
        """Raise ValueError if no network can keep the limits; says what would help."""
        sized = [f"search_space.{name}" for name in ("num_cells", "channels") if name in vars(self.space)]
        follows = sized and self.names["device"] in (
            "host",
            "flops",
            "memory",
        )  # the costs follow the networks' size
        check_possible(
            self.space,
            self.evaluators,
            self.limits,
            f", or search smaller networks ({', '.join(sized)})" if follows else "",
        )


def set_up(problem: Problem, context: RunContext, limited: Collection[str] = ()) -> Task:
    """Make and check the objects of a problem.

    Args:
        problem: What is searched.
        context: The run.
        limited: Metrics that will have limits, besides those of the problem.

    Raises:
        ValueError: A setting of the wrong kind, or choices that do not fit each other.
    """
    warn = context.display.warn
    dataset = build(problem.dataset, DataSet, "dataset", **context.offered)
    if isinstance(dataset, Images) and dataset.validates_on_test_images:
        warn(dataset.protocol)
    shape = {"image_shape": dataset.image_shape, "num_classes": dataset.num_classes}
    space = build(problem.space, SearchSpace, "search_space", **shape, announce=context.display.say)
    if space.note:
        context.display.doubt(space.note)
    recipe = build(problem.recipe, Recipe, "trainer")
    if recipe.epochs and isinstance(space, HasNetworks):
        recipe.check(auxiliary=space.auxiliary, drop_path=space.drop_path, teacher=True)
        if recipe.teacher is not None:
            teacher_in(recipe.teacher, space.image_shape, space.num_classes)
    offered = {**context.offered, "dataset": dataset, "space": space, "seed": problem.seed}
    quality = build(problem.evaluator, Evaluator, "evaluator", **offered)
    trains = bool(recipe.epochs) and isinstance(space, HasNetworks) and not quality.reported
    check_baselines(problem.baselines, trains)
    if trains:  # where accuracies are known nobody reads images
        if not isinstance(dataset, Images | ImageFolder):
            raise ValueError(
                f"dataset={dataset.name} has no images to train on; trainer=none leaves that out"
            )
        check_batch("trainer.batch_size", recipe.batch_size, dataset.size("all"), recipe.devices)
    device = build(problem.device, Evaluator, "device", **offered)
    whole, held = space, None
    if problem.replay is not None:
        held = hold(problem.replay, space, dataset.name, quality, device, context.display.doubt)
        space, quality, device = held.space, held.quality, held.device
    evaluators = [quality, device]
    if space.static_metrics([]) and "flops" not in device.metrics:
        evaluators.append(Flops(whole))  # every report can tell, and limits.params works on any device
    limited = {*limited, *(name for name, bound in problem.limits.items() if bound is not None)}
    if METRICS & limited and not METRICS & device.metrics.keys():
        evaluators.append(Memory(whole, metric="ram_kb", bits=problem.memory_bits))
    _check_owners(evaluators)
    limits, margins = with_margins(
        parse_limits(problem.limits, space, evaluators), space, evaluators, problem.confidence, warn
    )
    metrics = _metrics(evaluators)
    objectives = tuple(Objective(name, metrics[name]) for name in (*quality.objectives, *device.objectives))
    strategy = make_strategy(problem, space, evaluators, objectives, limits)
    _check_rungs(problem, quality, strategy)
    if problem.robust and not any(o.metric + DEVIATION in metrics for o in objectives):
        raise ValueError(
            f"robust={problem.robust:g} needs an evaluator that says how sure it is, as cascade does, and "
            f"table and train with evaluator.deviation=true; {quality.name} reports "
            f"{', '.join(quality.metrics)}"
        )
    names = {"search_space": space.name, "dataset": dataset.name, "evaluator": quality.name}
    names |= {"device": device.name, "strategy": type(strategy).__name__}
    return Task(
        problem=problem,
        names={**names, **problem.names},
        dataset=dataset,
        space=space,
        evaluators=tuple(evaluators),
        objectives=objectives,
        limits=limits,
        quantiles={
            name: bound for name, bound in _by_device(problem.limits, metrics) if isinstance(bound, str)
        },
        strategy=strategy,
        recipe=recipe,
        margins=margins,
        held=held,
    )


def make_strategy(
    problem: Problem,
    space: SearchSpace,
    evaluators: Sequence[Evaluator],
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
) -> Strategy:
    """The strategy of a problem.

    Args:
        problem: Its strategy, seed and generations count.
        space: The search space.
        evaluators: The quality, then the device.
        objectives: What is optimised, the quality first.
        limits: Bounds as numbers.

    Raises:
        ValueError: A setting of the wrong kind.
    """
    return build(
        problem.strategy,
        Strategy,
        "strategy",
        space=space,
        objectives=tuple(objectives),
        limits=tuple(limits),
        seed=problem.seed,
        generations=problem.generations,
        evaluator=evaluators[0],
        device=evaluators[1],
        sizes=tuple(evaluators[2:]),
    )


def _check_rungs(problem: Problem, quality: Evaluator, strategy: Strategy) -> None:
    """Raise ValueError if nobody chooses among an evaluator's rungs, or plans by the budget."""
    if problem.budget is not None and (quality.eta is not None or not quality.rungs):
        raise ValueError(
            f"budget={problem.budget} needs evaluator=cascade and strategy=cascade, which plan by it"
        )
    if quality.rungs and quality.eta is None and strategy.rung is None:
        raise ValueError(
            f"evaluator={quality.name} has rungs, of which strategy={type(strategy).__name__} chooses none; "
            "strategy=cascade does"
        )


def with_margins(
    limits: Sequence[Limit],
    space: SearchSpace,
    evaluators: Sequence[Evaluator],
    confidence: float | None,
    warn: Callable[[str], None],
) -> tuple[tuple[Limit, ...], dict[str, float]]:
    """Limits on predicted costs, lowered so that the real costs keep them with a confidence; and by how much.

    Args:
        limits: As the user gave them.
        space: The search space.
        evaluators: Those that report the metrics; the errors of their predictions make the margin.
        confidence: In 0..1; None: no margins.
        warn: Called with a sentence where the confidence has no effect.
    """
    if confidence is None:
        return tuple(limits), {}
    if not 0 < check_setting("confidence", Fraction, confidence) < 1:
        raise ValueError(f"confidence must be between 0 and 1, e.g. 0.95, not {confidence!r}")
    lowered, margins = [], {}
    for limit in limits:
        owner = next(evaluator for evaluator in evaluators if limit.metric in evaluator.metrics)
        if owner.exhaustive:
            owner.prepare(space, [])
        errors = owner.errors(limit.metric)
        if limit.goal == "min" and len(errors):
            margins[limit.metric] = margin(errors, confidence)
            limit = replace(limit, bound=limit.bound / (1 + margins[limit.metric]))
        lowered.append(limit)
    if not margins:
        warn(f"confidence={confidence} has no effect: no limit is on a cost that a profile predicts")
    return tuple(lowered), margins


def parse_limits(
    limits: Mapping[str, Limits], space: SearchSpace, evaluators: Sequence[Evaluator]
) -> tuple[Limit, ...]:
    """The limits of a configuration; null means none.

    Args:
        limits: Bound per metric: a number, or "q0.3" for the 0.3 quantile over the space's networks. Where
            several devices report a metric, a bound counts for each of them, or is a mapping by device.
        space: The search space.
        evaluators: Those that report the metrics.

    Raises:
        ValueError: A metric that nobody reports, a bound that is not above 0, a quantile outside 0..1.
    """
    owners = {name: evaluator for evaluator in evaluators for name in evaluator.metrics}
    metrics = _metrics(evaluators)
    parsed = []
    for name, bound in _by_device(limits, metrics):
        if name not in metrics:
            raise ValueError(
                f"limits.{name}: no evaluator or device of this run reports {name}"
                f"{suggestion(name, list(metrics))}"
            )
        given = re.fullmatch(r"q(-?\d*\.?\d+)", bound) if isinstance(bound, str) else None
        if given is not None:
            value = quantile(space, owners[name], name, float(given[1]))
        else:
            if isinstance(bound, str):
                raise ValueError(
                    f"limits.{name} must be a number above 0, or a quantile like q0.3, not {bound!r}"
                )
            value = float(check_setting(f"limits.{name}", Positive, bound))
        parsed.append(Limit(name, value, metrics[name]))
    return tuple(parsed)


def _by_device(limits: Mapping[str, Limits], metrics: Mapping[str, Goal]) -> Iterator[tuple[str, Bound]]:
    """The limits that are set, with one of `<metric>@<device>` for each device where several report it."""
    for name, bound in limits.items():
        devices = [metric.partition("@")[2] for metric in metrics if metric.startswith(f"{name}@")]
        if isinstance(bound, Mapping):
            yield from ((f"{name}@{device}", own) for device, own in bound.items() if own is not None)
        elif bound is not None and devices and name not in metrics:
            yield from ((f"{name}@{device}", bound) for device in devices)
        elif bound is not None:
            yield name, bound


def _metrics(evaluators: Sequence[Evaluator]) -> dict[str, Goal]:
    """Goal per metric that any of the evaluators reports."""
    return {name: goal for evaluator in evaluators for name, goal in evaluator.metrics.items()}


def _check_owners(evaluators: Sequence[Evaluator]) -> None:
    """Raise ValueError if two evaluators share a name or report the same metric."""
    owners: dict[str, str] = {}
    for evaluator in evaluators:
        if evaluator.name in owners.values():
            raise ValueError(
                f"evaluator and device are both {evaluator.name}; choose another for one of them"
            )
        for metric in evaluator.metrics:
            if metric in owners:
                raise ValueError(
                    f"{metric} is reported by {owners[metric]} and by {evaluator.name}; only one of them may"
                )
        owners |= dict.fromkeys(evaluator.metrics, evaluator.name)
