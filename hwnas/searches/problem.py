"""What `hwnas search` works on: the objects that its configuration names, checked to fit each other."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hwnas.build import build
from hwnas.core import (
    Count,
    Evaluator,
    Fraction,
    Goal,
    Limit,
    Objective,
    Positive,
    SearchSpace,
    Seed,
    Strategy,
    check_setting,
    suggestion,
)
from hwnas.data.folder import ImageFolder
from hwnas.data.images import Images, check_batch
from hwnas.devices.flops import Flops
from hwnas.devices.profile import margin
from hwnas.runs.display import Display
from hwnas.runs.folder import choices, sweep_or_run
from hwnas.runs.result import Plan
from hwnas.searches.exact import quantile
from hwnas.spaces.capabilities import HasNetworks


@dataclass(frozen=True)
class Task:
    """A search before it begins.

    Attributes:
        names: Which option was chosen, by config group.
        dataset: Images, or what stands for them.
        space: The search space.
        evaluators: Quality, device, and what every report can tell; none of them cached.
        objectives: What is optimised, the quality first.
        limits: Bounds as numbers.
        quantiles: Bounds that were given as quantiles, e.g. "q0.3", by metric.
        strategy: Asks for populations.
        recipe: How the final network is trained; 0 epochs leave it out.
        generations: Populations to ask for.
        seed: Of the strategy and the final network.
        offered: Objects of the run for what is built later.
        margins: By how much limits on predicted costs were lowered, relative, by metric.
    """

    names: Mapping[str, str]
    dataset: Any
    space: SearchSpace
    evaluators: tuple[Evaluator, ...]
    objectives: tuple[Objective, ...]
    limits: tuple[Limit, ...]
    quantiles: Mapping[str, str]
    strategy: Strategy
    recipe: Any
    generations: int
    seed: int
    offered: Mapping[str, Any]
    margins: Mapping[str, float] = field(default_factory=dict)

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
    def has_networks(self) -> bool:
        """Whether an architecture of the space can be built and trained."""
        return isinstance(self.space, HasNetworks)

    @property
    def plan(self) -> Plan:
        """Objectives, limits as numbers, and the goals of all metrics, reported ones included."""
        limits = {limit.metric: limit.bound for limit in self.limits}
        return Plan(objectives=self.objectives, limits=limits, goals={**self.goals, **self.quality.reported})


def set_up(cfg: DictConfig, folder: Path, display: Display) -> Task:
    """Build and check what a configuration names.

    Args:
        cfg: Of `hwnas search`.
        folder: The run's folder, with Hydra's record of what was chosen.
        display: Where notes go.

    Raises:
        ValueError: A setting of the wrong kind, or choices that do not fit each other.
    """
    generations = check_setting("generations", Count, cfg.generations)
    seed = check_setting("seed", Seed, cfg.seed)
    if not isinstance(cfg.store, DictConfig) or not isinstance(cfg.store.dir, str):
        raise ValueError(f"store.dir must be a folder; the configuration has store={cfg.store}")
    if cfg.limits is not None and not isinstance(cfg.limits, DictConfig):
        raise ValueError(f"limits takes metrics, e.g. limits.latency_ms=5, not limits={cfg.limits}")
    dataset = build(cfg.dataset)
    if isinstance(dataset, Images) and dataset.validates_on_test_images:
        display.warn(dataset.protocol)
    offered: dict[str, Any] = {
        "dataset": dataset,
        "store_dir": Path(cfg.store.dir).expanduser(),
        "folder": folder,
        "kept": sweep_or_run(folder) / ".hydra",
        "announce": display.say,
        "warn": display.doubt,
        "seed": seed,
    }
    space: SearchSpace = build(
        cfg.search_space, SearchSpace, image_shape=dataset.image_shape, num_classes=dataset.num_classes
    )
    offered["space"] = space
    if space.note:
        display.doubt(space.note)
    recipe = build(cfg.trainer)
    if recipe.epochs and isinstance(space, HasNetworks):
        recipe.check(auxiliary=space.auxiliary, drop_path=space.drop_path)
    quality: Evaluator = build(cfg.evaluator, Evaluator, **offered)
    trains = recipe.epochs and isinstance(space, HasNetworks) and not quality.reported
    if trains and isinstance(dataset, Images | ImageFolder):  # where accuracies are known nobody reads images
        check_batch("trainer.batch_size", recipe.batch_size, dataset.size("all"), recipe.devices)
    device: Evaluator = build(cfg.device, Evaluator, **offered)
    evaluators = [quality, device]
    if space.static_metrics([]) and "flops" not in device.metrics:
        evaluators.append(Flops(space))  # every report can tell, and limits.params works on any device
    _check_owners(evaluators)
    asked: Mapping[str, Any] = cfg.limits or {}
    limits, margins = with_margins(
        parse_limits(asked, space, evaluators), space, evaluators, cfg.get("confidence"), display.warn
    )
    metrics = _metrics(evaluators)
    objectives = tuple(Objective(name, metrics[name]) for name in (*quality.objectives, *device.objectives))
    strategy: Strategy = build(
        cfg.strategy,
        Strategy,
        space=space,
        objectives=objectives,
        limits=limits,
        seed=seed,
        generations=generations,
    )
    return Task(
        names=choices(folder),
        dataset=dataset,
        space=space,
        evaluators=tuple(evaluators),
        objectives=objectives,
        limits=limits,
        quantiles={name: bound for name, bound in _by_device(asked, metrics) if isinstance(bound, str)},
        strategy=strategy,
        recipe=recipe,
        generations=generations,
        seed=seed,
        offered=offered,
        margins=margins,
    )


def with_margins(
    limits: Sequence[Limit],
    space: SearchSpace,
    evaluators: Sequence[Evaluator],
    confidence: Any,
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
    limits: Mapping[str, Any], space: SearchSpace, evaluators: Sequence[Evaluator]
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
        share = re.fullmatch(r"q(-?\d*\.?\d+)", bound) if isinstance(bound, str) else None
        if share is not None:
            value = quantile(space, owners[name], name, float(share[1]))
        else:
            if isinstance(bound, str):
                raise ValueError(
                    f"limits.{name} must be a number above 0, or a quantile like q0.3, not {bound!r}"
                )
            value = float(check_setting(f"limits.{name}", Positive, bound))
        parsed.append(Limit(name, value, metrics[name]))
    return tuple(parsed)


def _by_device(limits: Mapping[str, Any], metrics: Mapping[str, Goal]) -> Iterator[tuple[str, Any]]:
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
