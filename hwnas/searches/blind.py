"""Blind regret: what a search on an estimate costs in true accuracy, by a benchmark's table afterwards.

The estimate chooses among the networks within a limit, and its choice is compared with the best network
within it. A rank correlation says less: it counts networks that nobody would choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwnas.core import (
    MOST_LISTED,
    Evaluator,
    FloatArray,
    Genotype,
    Limit,
    Objective,
    SearchSpace,
    Trial,
    costs,
    unique,
)
from hwnas.evaluators.table import TRUE_ACCURACY, LooksUp
from hwnas.runs.result import Blind
from hwnas.searches.analysis import agreement

DECILES = np.arange(1, 10) / 10
"""Quantiles of the cost over the space's supported networks that are the nine limits."""

CHOICES = {
    "estimate": "this run's estimate",
    "early": "12 epochs of full training",
    "expected": "accuracies published for other images",
    "params": "most parameters",
    "flops": "most multiply-adds",
    "random": "a random network",
}
"""Keys of `Blind.regret` in words: how a network is chosen within a limit."""

FEWEST_RANKED = 10
"""Networks below which no rank correlation is computed."""


def best_within(truth: FloatArray, cost: FloatArray, limits: FloatArray, guess: float = 0.0) -> FloatArray:
    """The highest truth within each limit, shape (limits,); `guess` where there is no network.

    Args:
        truth: True quality of every network, shape (n,); higher is better.
        cost: Its cost, shape (n,); `inf`: not supported.
        limits: Highest costs, shape (limits,).
        guess: Quality of guessing.
    """
    return np.array([truth[cost <= limit].max(initial=guess) for limit in limits])


def blind_regret(
    truth: FloatArray,
    cost: FloatArray,
    estimate: FloatArray,
    limits: FloatArray,
    best: FloatArray,
    *,
    ties: Literal["mean", "cheapest"] = "mean",
    guess: float = 0.0,
) -> FloatArray:
    """Lead of the best network over the one of the highest estimate, within each limit.

    Args:
        truth: True quality of the networks to choose from, shape (n,); higher is better, NaN is not allowed.
        cost: Their cost, shape (n,); `inf`: not supported, never chosen.
        estimate: Their estimated quality, shape (n,); higher is better.
        limits: Highest costs, shape (limits,).
        best: Truth of the best network within each limit, shape (limits,), e.g. of `best_within` over a whole
            space, of which the networks here may be a part.
        ties: What counts of networks with the same estimate: the mean truth of all, or that of the cheapest
            (of these the first).
        guess: Truth that counts where no network keeps a limit.

    Returns:
        Shape (limits,), in the unit of `truth`.
    """
    chosen = np.full(len(limits), guess)
    for place, limit in enumerate(limits):
        rows = np.flatnonzero(cost <= limit)
        if len(rows):
            rows = rows[estimate[rows] == estimate[rows].max()]
            chosen[place] = truth[rows].mean() if ties == "mean" else truth[rows[np.argmin(cost[rows])]]
    return best - chosen


def taus(estimate: FloatArray, truth: FloatArray) -> dict[str, float | None]:
    """Kendall's tau (b) over all networks, the better half and the top tenth of them by truth.

    None: fewer than `FEWEST_RANKED` networks, or a constant column.

    Args:
        estimate: Shape (n,).
        truth: Shape (n,).
    """
    found: dict[str, float | None] = {}
    for name, fraction in (("all", 0.0), ("better_half", 0.5), ("top_tenth", 0.9)):
        rows = truth >= np.quantile(truth, fraction) if len(truth) else np.zeros(0, dtype=bool)
        ranked = rows.sum() >= FEWEST_RANKED
        found[name] = agreement(estimate[rows].tolist(), truth[rows].tolist()) if ranked else None
    return found


@dataclass(frozen=True)
class Known:
    """All networks of a space, with what is known of them without a search.

    Attributes:
        genotypes: The n architectures.
        costs: Metrics of the exhaustive evaluators, shape (n,) each; `inf`: not supported.
        reports: Metrics that only reports show, shape (n,) each; NaN: unknown.
        early: Accuracy after 12 epochs, shape (n,), NaN: unknown; None if no table has it.
        expected: What was known before any evaluation, shape (n,); None if nothing was.
    """

    genotypes: Sequence[Genotype]
    costs: Mapping[str, FloatArray]
    reports: Mapping[str, FloatArray]
    early: FloatArray | None = None
    expected: FloatArray | None = None

    def within(self, limits: Sequence[Limit]) -> NDArray[np.bool_]:
        """Which networks are supported and keep the limits, shape (n,); none if a metric is unknown."""
        kept = np.ones(len(self.genotypes), dtype=bool)
        for values in self.costs.values():
            kept &= np.isfinite(values)
        for limit in limits:
            if limit.metric not in self.costs:
                return np.zeros_like(kept)
            values = self.costs[limit.metric]
            kept &= values <= limit.bound if limit.goal == "min" else values >= limit.bound
        return kept

    def highest(self, limits: Sequence[Limit]) -> dict[str, float]:
        """The highest value of each report-only metric within the limits."""
        kept = self.within(limits)
        known = {name: values[kept & ~np.isnan(values)] for name, values in self.reports.items()}
        return {name: float(values.max()) for name, values in known.items() if len(values)}

    def largest(self, limits: Sequence[Limit]) -> dict[str, float]:
        """Report-only metrics of the network with the most multiply-adds within the limits.

        A simple baseline. Means, if several networks have the most; empty without the metric `flops`.
        """
        kept = self.within(limits)
        if "flops" not in self.costs or not kept.any():
            return {}
        most = kept & (self.costs["flops"] == self.costs["flops"][kept].max())
        known = {name: values[most & ~np.isnan(values)] for name, values in self.reports.items()}
        return {name: float(values.mean()) for name, values in known.items() if len(values)}


def known_networks(space: SearchSpace, evaluators: Sequence[Evaluator]) -> Known | None:
    """What is known of every network of a space; None without report-only metrics, or if costs are not known.

    Args:
        space: The space, which is listed completely.
        evaluators: Prepared; the first one reports, the others must be exhaustive.
    """
    reporter, *others = evaluators
    if space.size > MOST_LISTED or not all(evaluator.exhaustive for evaluator in others):
        return None
    genotypes = space.all()
    reports = _columns(reporter.report(genotypes))
    if not reports:
        return None
    known: dict[str, FloatArray] = {}
    for evaluator in others:
        known |= _columns(evaluator.evaluate(genotypes))
    early = reporter.lookup.early(genotypes) if isinstance(reporter, LooksUp) else None
    return Known(genotypes, known, reports, early, reporter.expected(genotypes))


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, FloatArray]:
    """Values by name, shape (rows,); NaN where a row has none."""
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: np.array([row.get(name, np.nan) for row in rows]) for name in names}


def blind(
    known: Known,
    trials: Sequence[Trial],
    objectives: Sequence[Objective],
    *,
    chance: float,
    seconds_per_new: float | None = None,
) -> Blind | None:
    """Blind regret of a run, in points of validation accuracy, and of simpler ways to choose a network.

    The limits are the nine deciles of the first cost among the objectives over the supported networks of the
    space, whatever limit the run had. None without true validation accuracies, such a cost, or a supported
    network.

    Args:
        known: All networks of the space.
        trials: The run's networks whose estimates can be compared.
        objectives: Objectives of the run; the first one is the estimate.
        chance: Accuracy of guessing in 0..1, which counts where the run has no network within a limit.
        seconds_per_new: As in the result.
    """
    named = [o.metric for o in objectives[1:] if o.goal == "min" and o.metric in known.costs]
    if TRUE_ACCURACY not in known.reports or not named:
        return None
    truth, cost = 100 * known.reports[TRUE_ACCURACY], known.costs[named[0]]
    if not np.isfinite(cost).any():
        return None
    limits = np.quantile(cost[np.isfinite(cost)], DECILES)
    usable = np.isfinite(truth) & known.within([])
    best = best_within(truth[usable], cost[usable], limits, 100 * chance)

    def regret(rows: NDArray[np.intp], estimate: FloatArray, *, run: bool = False) -> tuple[float, ...]:
        ties: Literal["mean", "cheapest"] = "cheapest" if run else "mean"
        found = blind_regret(truth[rows], cost[rows], estimate, limits, best, ties=ties, guess=100 * chance)
        return tuple(found.tolist())

    place = {genotype: row for row, genotype in enumerate(known.genotypes)}
    own = [trial for trial in unique(trials) if usable[place[trial.genotype]]]
    rows = np.array([place[trial.genotype] for trial in own], dtype=np.intp)
    estimate = -costs(own, objectives[:1])[:, 0]
    regrets, every = {"estimate": regret(rows, estimate, run=True)}, np.flatnonzero(usable)
    if known.early is not None:
        trained = np.flatnonzero(usable & np.isfinite(known.early))
        regrets["early"] = regret(trained, known.early[trained])
    if known.expected is not None:
        regrets["expected"] = regret(every, known.expected[every])
    for name in ("params", "flops"):
        if name in known.costs:
            regrets[name] = regret(every, known.costs[name][every])
    regrets["random"] = regret(every, np.zeros(len(every)))  # all are tied: their mean
    return Blind(
        cost=named[0],
        limits=tuple(limits.tolist()),
        regret=regrets,
        tau=taus(estimate, truth[rows]),
        networks=len(own),
        seconds_per_new=seconds_per_new,
    )
