"""Exact optima of spaces that evaluators know completely, and the distance of a search from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.core import (
    DEVIATION,
    MOST_LISTED,
    Evaluator,
    FloatArray,
    Genotype,
    Limit,
    Objective,
    SearchSpace,
    Sum,
    Trial,
    best,
    checked_answers,
    closest,
    costs,
    front,
    listed,
    non_dominated,
    trials_of,
    violations,
)
from hwnas.runs.units import difference, quantity
from hwnas.searches.analysis import Effects, main_effects, sum_effects
from hwnas.searches.knapsack import cheapest, optimum


def regret_in_words(regret: Mapping[str, float], within: str) -> str:
    """A sentence on how far a search is from the best network in the space, without its full stop.

    Args:
        regret: Lead of the best network in the space per metric, the quality first.
        within: " within the limits", or empty.
    """
    points = [(difference(name, value), quantity(name).name) for name, value in regret.items()]
    (first, *_), exact = points, next(iter(regret.values())) <= 0
    others = " and ".join(f"{value} of {name}" for value, name in (points[1:] if exact else points))
    if not exact:
        return f"The best network in the space{within} is ahead by {others}"
    found = f"This search found the best network in the space{within}, by {first[1]}"
    better = any(value > 0 for value in list(regret.values())[1:])
    return found + (f"; another is ahead by {others}" if better else "")


@dataclass(frozen=True)
class Optimum:
    """The exact optimum of a space.

    Attributes:
        front: The true front, cheapest first.
        best: The best architecture that keeps the limits; None if none does.
        best_test_acc: Highest test accuracy among those that keep the limits; None if it is unknown.
        objectives: Objectives of the front.
        trials: All architectures.
    """

    front: list[Trial]
    best: Trial | None
    best_test_acc: float | None
    objectives: tuple[Objective, ...]
    trials: list[Trial]

    def _scaled(self, trials: Sequence[Trial]) -> FloatArray:
        """Costs in units of the true front: 0 is its best value, 1 its worst (the nadir)."""
        F = costs(self.front, self.objectives)
        low, span = F.min(axis=0), np.ptp(F, axis=0)
        return (costs(trials, self.objectives) - low) / np.where(span > 0, span, 1.0)

    def progress(self, generations: Sequence[Sequence[Trial]]) -> tuple[list[float], list[float]]:
        """Hypervolume ratio and IGD+ of all trials up to each generation.

        The reference point of the hypervolume is the nadir of the true front: against the range of the whole
        space even a random search reaches 0.995. Both scale the objectives by the true front; a ratio of 1
        and an IGD+ of 0 mean that the true front is found.
        """
        from pymoo.indicators.hv import HV
        from pymoo.indicators.igd_plus import IGDPlus

        true = self._scaled(self.front)
        hypervolume, distance = HV(ref_point=np.ones(true.shape[1])), IGDPlus(true)
        whole = float(hypervolume(true))
        ratios, distances = [], []
        found = np.empty((0, true.shape[1]))
        for trials in generations:
            found = np.concatenate([found, self._scaled(trials)])
            found = found[non_dominated(found)]
            if len(found) == 0:
                ratios.append(0.0)
                distances.append(float("inf"))
                continue
            ratios.append(float(hypervolume(found)) / whole if whole > 0 else 1.0)
            distances.append(float(distance(found)))
        return ratios, distances


def exact_optimum(
    space: SearchSpace,
    evaluators: Sequence[Evaluator],
    objectives: tuple[Objective, ...],
    limits: Sequence[Limit],
) -> Optimum | None:
    """The exact optimum of a space; None if the space is too large, unsupported, or unknown to an evaluator.

    Args:
        space: The space, which is listed completely.
        evaluators: All must be exhaustive and prepared; the first one may report test accuracies.
        objectives: Quality and cost.
        limits: Limits of the run.
    """
    if space.size > MOST_LISTED or not all(evaluator.exhaustive for evaluator in evaluators):
        return None
    genotypes = space.all()
    trials = trials_of(genotypes, [evaluator.evaluate(genotypes) for evaluator in evaluators], 0)
    answer, whole_front = best(trials, objectives, limits), front(trials, objectives)
    if not whole_front:
        return None
    tests = [
        Trial(trial.genotype, {**trial.metrics, **report}, 0)
        for trial, report in zip(trials, evaluators[0].report(genotypes), strict=True)
        if "test_acc" in report
    ]
    tested = best(tests, (Objective("test_acc", "max"),), limits)
    test_acc = None if tested is None else tested.metrics["test_acc"]
    return Optimum(whole_front, answer, test_acc, objectives, trials)


NUM_STARTS = 500
"""Networks whose best one a descent to the least memory begins with."""

YARDSTICKS = {
    "cheapest": "the network of the lowest cost",
    "best": "the best network within the limit",
    "largest": "the network of the most multiply-adds within the limit",
}
"""Keys of `yardsticks` in words."""


def yardsticks(
    space: SearchSpace,
    evaluators: Sequence[Evaluator],
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
) -> dict[str, Genotype]:
    """Exact answers about a space too large to list, where metrics are sums over operations.

    Args:
        space: The space.
        evaluators: Their metrics may be sums, by `Evaluator.separable`.
        objectives: Objectives of the run, quality first.
        limits: Limits of the run.

    Returns:
        "cheapest": the network of the lowest cost, in the limited metric or else in the last objective. With
        a single limit on a cost also "best", the network of the highest quality within the limit, and
        "largest", the one with the most multiply-adds within it, a simple baseline. A limit on the largest
        value of operations (`Evaluator.largest`) forbids some of them, and does not count. Networks that are
        unknown are left out; the result is empty for a space that `exact_optimum` lists.
    """
    if space.size <= MOST_LISTED:
        return {}
    sums, limited = separable_sums(evaluators), len(limits) > 0
    space, limits = _within(space, evaluators, limits)
    cost = limits[0].metric if limits else objectives[-1].metric
    if len(limits) > 1 or (limits and (cost not in sums or limits[0].goal == "max")):
        return {}

    def most(value: Sum) -> Genotype | None:
        if limits:
            return optimum(space, value, sums[cost], limits[0].bound)
        return cheapest(space, Sum(-value.base, -value.added))

    found = {"cheapest": cheapest(space, sums[cost])} if cost in sums else {}
    if limited:
        quality = objectives[0]
        if quality.metric in sums and quality.goal == "max":
            found["best"] = most(sums[quality.metric])
        if "flops" in sums and cost != "flops":
            found["largest"] = most(sums["flops"])
    return {name: genotype for name, genotype in found.items() if genotype is not None}


def _within(
    space: SearchSpace, evaluators: Sequence[Evaluator], limits: Sequence[Limit]
) -> tuple[SearchSpace, list[Limit]]:
    """The networks that keep the limits on largest values, as a space, and the other limits."""
    others = []
    for limit in limits:
        (owner,) = (evaluator for evaluator in evaluators if limit.metric in evaluator.metrics)
        peak = owner.largest(limit.metric)
        if peak is None:
            others.append(limit)
        elif peak.base <= limit.bound:
            fits = space.allowed & (peak.values <= limit.bound)
            if fits.any(axis=1).all():
                space = space.restrict([np.flatnonzero(row).tolist() for row in fits])
    return space, others


def separable_sums(evaluators: Sequence[Evaluator]) -> dict[str, Sum]:
    """The metrics that are sums over operations."""
    return {
        metric: total
        for evaluator in evaluators
        for metric in evaluator.metrics
        if (total := evaluator.separable(metric)) is not None
    }


def exact_effects(
    space: SearchSpace, evaluators: Sequence[Evaluator], objectives: Sequence[Objective]
) -> dict[str, Effects]:
    """Effects of each operation on the objectives for which they are known exactly.

    These are sums over operations in spaces with independent decisions, and metrics that an exhaustive
    evaluator knows for all networks of a space that can be listed.

    Args:
        space: The space.
        evaluators: Prepared.
        objectives: Objectives of the run.
    """
    wanted = [objective.metric for objective in objectives]
    found = {
        metric: sum_effects(space, total)
        for metric, total in separable_sums(evaluators).items()
        if metric in wanted and space.size == math.prod(map(len, space.choices))
    }
    for evaluator in evaluators:
        missing = [metric for metric in evaluator.metrics if metric in wanted and metric not in found]
        if missing and evaluator.exhaustive and space.size <= MOST_LISTED:
            genotypes = space.all()
            rows = evaluator.evaluate(genotypes)
            for metric in missing:
                values = np.array([row[metric] for row in rows])
                if np.isfinite(values).any():
                    found[metric] = main_effects(genotypes, values, space.alpha_shape)
    return {metric: found[metric] for metric in wanted if metric in found}


def cost_deciles(space: SearchSpace, evaluators: Sequence[Evaluator]) -> dict[str, list[float]]:
    """The 0, 0.1, ..., 1 quantiles of each cost over the supported networks of the space.

    Args:
        space: The space; see `listed`.
        evaluators: Prepared; costs are the minimised metrics of the exhaustive ones.
    """
    genotypes, found = listed(space), {}
    for evaluator in evaluators:
        names = [
            metric
            for metric, goal in evaluator.metrics.items()
            if goal == "min" and not metric.endswith(DEVIATION)
        ]
        if names and evaluator.exhaustive:
            rows = evaluator.evaluate(genotypes)
            for name in names:
                values = np.array([row[name] for row in rows])
                if np.isfinite(values).any():
                    found[name] = np.quantile(values[np.isfinite(values)], np.arange(11) / 10).tolist()
    return found


@dataclass(frozen=True)
class Transfer:
    """The best network for one device, judged on all devices.

    Attributes:
        device: The device; None: the best network for all devices together.
        network: The best network under the device's limits; None if none keeps them.
        regret: Per device, the lead of that device's own best network, in units of the quality; None if the
            network violates that device's limits, or that device has no network.
        excess: Relative violation of each device's limits; 0 if the network keeps them.
    """

    device: str | None
    network: Trial | None
    regret: dict[str, float | None]
    excess: dict[str, float]


def device_limits(
    limits: Sequence[Limit], main: Mapping[str, str], typical: Mapping[str, float]
) -> dict[str, list[Limit]]:
    """Limits per device: its own limits, and those that name no device.

    A device without a limit of its own gets its typical cost as a limit, so that networks can be compared.

    Args:
        limits: Limits of the run, e.g. on "latency_ms@raspi4".
        main: Main cost per device, e.g. "latency_ms@raspi4".
        typical: Median of the main cost over the space, per device.
    """
    return {
        device: [limit for limit in limits if limit.metric.partition("@")[2] in ("", device)]
        + [Limit(metric, typical[device])]
        * (not any(limit.metric.partition("@")[2] == device for limit in limits))
        for device, metric in main.items()
    }


def transfers(
    trials: Sequence[Trial],
    objectives: Sequence[Objective],
    limits: Mapping[str, Sequence[Limit]],
    main: Mapping[str, str],
) -> list[Transfer]:
    """A row for the best network of each device, and a last one for the best network of all devices together.

    Args:
        trials: Networks to choose from, with costs on all devices.
        objectives: The first one is the quality.
        limits: Limits per device, of `device_limits`.
        main: Main cost per device; it decides between networks of equal quality.
    """
    quality = objectives[0]
    chosen: dict[str | None, Trial | None] = {
        device: best(trials, (quality, Objective(main[device], "min")), own) for device, own in limits.items()
    }
    together = list(dict.fromkeys(limit for own in limits.values() for limit in own))
    costs_of_all = [Objective(metric, "min") for metric in main.values()]
    rows = []
    for device, network in {**chosen, None: best(trials, (quality, *costs_of_all), together)}.items():
        regret: dict[str, float | None] = {}
        excess: dict[str, float] = {}
        if network is not None:
            for other, own in limits.items():
                target = chosen[other]
                excess[other] = float(violations([network], own)[0])
                regret[other] = None
                if target is not None and excess[other] == 0:
                    regret[other] = float(np.subtract(*costs([network, target], [quality])[:, 0]))
        rows.append(Transfer(device, network, regret, excess))
    return rows


def check_possible(
    space: SearchSpace, evaluators: Sequence[Evaluator], limits: Sequence[Limit], advice: str
) -> None:
    """Raise ValueError if no network keeps the limits, as far as this is known before the search.

    It is known, for each limit and for all together, if the space can be listed and exhaustive evaluators
    know the limited metrics; and for a single limit on a cost that is a sum over operations, or the largest
    of their values.

    Args:
        space: The space.
        evaluators: Prepared; only exhaustive ones matter here.
        limits: Limits of the run.
        advice: Advice besides another limit, for the end of the message.
    """
    knowing = [e for e in evaluators if e.exhaustive and any(limit.metric in e.metrics for limit in limits)]
    known = [limit for limit in limits if any(limit.metric in e.metrics for e in knowing)]
    everything: list[Trial] = []
    if known and space.size <= MOST_LISTED:
        genotypes = space.all()
        answers = [checked_answers(e, genotypes, e.evaluate(genotypes)) for e in knowing]
        everything = trials_of(genotypes, answers, 0)
    sums = separable_sums(knowing)
    for limit in known:
        name = limit.metric
        if everything:
            extreme = best(everything, [Objective(name, limit.goal)], [])
        else:
            extreme = _least(space, knowing, limit, sums) if limit.goal == "min" else None
        if extreme is not None and violations([extreme], [limit])[0] > 0:
            value = extreme.metrics[name]
            possible = f"limits.{name}={_rounded(value, math.ceil if limit.goal == 'min' else math.floor):g}"
            raise ValueError(
                f"no network of {space.name} keeps limits.{name}={limit.bound:g}: the "
                f"{'lowest' if limit.goal == 'min' else 'highest'} {name} is {value:.4g} "
                f"({space.to_str(extreme.genotype)}); try {possible}{advice}"
            )
    near = closest(everything, known)
    if near is not None and violations([near], known)[0] > 0:
        bounds = " and ".join(f"{limit.metric}={limit.bound:.4g}" for limit in known)
        reached = ", ".join(f"{limit.metric} {near.metrics[limit.metric]:.4g}" for limit in known)
        raise ValueError(
            f"no network of {space.name} keeps limits {bounds} together; the closest is "
            f"{space.to_str(near.genotype)} with {reached}: loosen one of them{advice}"
        )


def _least(
    space: SearchSpace, evaluators: Sequence[Evaluator], limit: Limit, sums: Mapping[str, Sum]
) -> Trial | None:
    """The network of the lowest cost in a space too large to list; None if it is unknown.

    Of a cost that is neither a sum nor a largest value, it is the first network within the limit that a
    descent from the best of a sample finds, or else its end.
    """
    (owner,) = (evaluator for evaluator in evaluators if limit.metric in evaluator.metrics)
    if limit.metric in sums:
        network = cheapest(space, sums[limit.metric])
        return None if network is None else Trial(network, {limit.metric: sums[limit.metric](network)}, 0)
    if (peak := owner.largest(limit.metric)) is not None:
        values = np.where(space.allowed, peak.values, np.inf)
        return _lowest(owner, limit.metric, [tuple(values.argmin(axis=1).tolist())])
    here = _lowest(owner, limit.metric, space.sample(np.random.default_rng(0), NUM_STARTS))
    while here.metrics[limit.metric] > limit.bound:
        there = _lowest(owner, limit.metric, [here.genotype, *space.neighbours(here.genotype)])
        if there.metrics == here.metrics:
            break
        here = there
    return here


def _lowest(owner: Evaluator, metric: str, networks: Sequence[Genotype]) -> Trial:
    """The network of the lowest metric, of equal ones that of the lowest other metrics, then the first."""
    trials = trials_of(networks, [owner.evaluate(networks)], 0)
    return min(trials, key=lambda trial: (trial.metrics[metric], *trial.metrics.values()))


def _rounded(value: float, to_whole: Callable[[float], float]) -> float:
    """A positive number with three digits; other numbers are unchanged."""
    if not 0 < value < math.inf:
        return value
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    return to_whole(value / unit) * unit


def quantile(space: SearchSpace, evaluator: Evaluator, metric: str, q: float) -> float:
    """A quantile of a metric over the supported networks of a space.

    All architectures count in a space that can be listed, otherwise a seeded sample of `NUM_SAMPLED`.

    Args:
        space: The space.
        evaluator: Reports the metric; must be exhaustive. It is prepared here.
        metric: Name of the metric.
        q: The quantile, in 0..1.

    Raises:
        ValueError: A quantile outside 0..1, or an evaluator that is not exhaustive.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"limits.{metric}: the quantile must be in 0..1, not {q:g}")
    if not evaluator.exhaustive:
        raise ValueError(f"limits.{metric}: {evaluator.name} does not know quantiles; give a number")
    evaluator.prepare(space, [])
    values = np.array([row[metric] for row in evaluator.evaluate(listed(space))])
    return float(np.quantile(values[np.isfinite(values)], q))
