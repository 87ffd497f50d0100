"""Which strategy finds more: runs judged at equal numbers of different architectures, and at equal time.

Numbers only: where the runs come from, `searches.compare` and `searches.finished` know.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hwnas.core import FloatArray, Limit, Objective, Trial, non_dominated
from hwnas.searches.statistics import LEVEL, Paired, fewest_seeds, holm, paired

Measure = Literal["regret", "gap", "hypervolume"]
Stage = Literal["evaluations", "time"]

MEASURES: dict[Measure, str] = {
    "regret": "behind the best network of the space within the limit",
    "gap": "behind the best network within the limit that any of the runs found",
    "hypervolume": "missing of the hypervolume of the front that all runs found together",
}
"""How much is missing to what; less is better."""

NUM_DRAWN = 60
"""Points of a curve, besides the numbers at which runs are compared."""


@dataclass(frozen=True)
class Case:
    """A problem on which strategies are compared.

    Attributes:
        name: Tells it from the others of a comparison, e.g. "cifar10, raspi4".
        objectives: What runs optimise, the quality first.
        limits: What the answer must keep: each entry is a set of limits, and the loss of a run is the mean
            over them. Empty: the whole front counts.
        best: The best quality of the space within each of the limits; None if it is not known.
        worst: The worst quality of the space, which counts where a run knows no network within a limit; None:
            the worst that any run knows.
    """

    name: str
    objectives: tuple[Objective, ...]
    limits: tuple[tuple[Limit, ...], ...]
    best: tuple[float, ...] | None = None
    worst: float | None = None

    @property
    def measure(self) -> Measure:
        """How runs are judged."""
        if not self.limits:
            return "hypervolume"
        return "gap" if self.best is None else "regret"

    @property
    def factor(self) -> float:
        """From the unit of the quality, or fractions, to that of losses."""
        return 100.0 if self.unit else 1.0

    @property
    def unit(self) -> str:
        """Unit of losses: "points" of accuracy, "%" of a hypervolume, empty for others."""
        if not self.limits:
            return "%"
        return "points" if self.objectives[0].metric.endswith("_acc") else ""


@dataclass(frozen=True)
class Found:
    """The different architectures of a run, in the order in which it asked for them first.

    Attributes:
        strategy: Name of the strategy.
        seed: Its seed.
        metrics: Values per metric, shape (n,) each; NaN: unknown, e.g. of a training that was stopped early.
        clock: Seconds until each was evaluated, by a benchmark or as measured, shape (n,); None: unknown.
        limit: Which of the case's limits the run had; None: none, so that it is judged by all.
        spent: Seconds that the whole run took here; None: unknown.
    """

    strategy: str
    seed: int
    metrics: Mapping[str, FloatArray]
    clock: FloatArray | None = None
    limit: int | None = None
    spent: float | None = None

    def __len__(self) -> int:
        return len(next(iter(self.metrics.values())))

    def costs(self, objectives: Sequence[Objective]) -> FloatArray:
        """Values of the objectives as costs, shape (n, objectives); `inf`: not supported, or unknown."""
        stacked = []
        for objective in objectives:
            values = self.metrics[objective.metric]
            costs = values if objective.goal == "min" else -values
            stacked.append(np.where(np.isfinite(values), costs, np.inf))
        return np.stack(stacked, axis=1)

    def within(self, limits: Sequence[Limit]) -> NDArray[np.bool_]:
        """Which architectures are supported and keep the limits, shape (n,)."""
        kept = np.ones(len(self), dtype=bool)
        for values in self.metrics.values():
            kept &= ~np.isinf(values)
        for limit in limits:
            values = self.metrics[limit.metric]
            kept &= values <= limit.bound if limit.goal == "min" else values >= limit.bound
        return kept


def columns(trials: Sequence[Trial]) -> dict[str, FloatArray]:
    """Values per metric of at least one trial, shape (trials,) each; NaN where a trial lacks it."""
    names = dict.fromkeys(name for trial in trials for name in trial.metrics)
    return {name: np.array([trial.metrics.get(name, math.nan) for trial in trials]) for name in names}


@dataclass(frozen=True)
class Judged:
    """Losses of the runs on a case, in its unit; lower is better.

    Attributes:
        case: The case.
        strategies: Names, in the order of the arrays.
        seeds: Seeds that all of them have.
        at: Numbers of different architectures at which they are compared, rising; runs ended at the last.
        drawn: Numbers at which the curves have points, those of `at` among them.
        curves: Shape (strategies, seeds, limits, drawn); a whole front counts as one limit.
        times: Seconds at which they are compared; empty if the runs have no clock. The last one is the least
            that a run took for the last number of `at`.
        by_time: Shape (strategies, seeds, limits, times).
        known: How many different architectures each run knew in the end, the fewest over its limits, shape
            (strategies, seeds); fewer than the last of `at` if it ended before.
        spent: Milliseconds per architecture that each strategy's runs took here, shape (strategies,); NaN:
            unknown.
        runs: How many runs there are.
    """

    case: Case
    strategies: tuple[str, ...]
    seeds: tuple[int, ...]
    at: tuple[int, ...]
    drawn: tuple[int, ...]
    curves: FloatArray
    times: tuple[float, ...]
    by_time: FloatArray
    known: NDArray[np.intp]
    spent: FloatArray
    runs: int

    @property
    def losses(self) -> FloatArray:
        """Losses at the numbers of `at`, shape (strategies, seeds, limits, at)."""
        return self.curves[..., [self.drawn.index(number) for number in self.at]]

    def final(self, stage: Stage) -> FloatArray:
        """Losses at the last number of architectures, or time, shape (strategies, seeds, limits)."""
        return (self.losses if stage == "evaluations" else self.by_time)[..., -1]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """By what runs are compared."""
        return ("evaluations", "time") if self.times else ("evaluations",)


def judge(case: Case, runs: Sequence[Found], at: Sequence[int]) -> Judged:
    """Judge the runs on a case.

    A run that ended before a number of architectures counts with what it knew.

    Args:
        case: The case.
        runs: For every strategy and seed one without a limit, or one for each of the case's limits.
        at: Numbers of different architectures, rising.
    """
    strategies = tuple(dict.fromkeys(run.strategy for run in runs))
    seeds = tuple(sorted({run.seed for run in runs}))
    by_key = {(run.strategy, run.seed, run.limit): run for run in runs}
    places = range(max(1, len(case.limits)))

    def run_of(name: str, seed: int, place: int) -> Found:
        own = (name, seed, place)
        return by_key[own if own in by_key else (name, seed, None)]

    grid = [[[run_of(name, seed, place) for place in places] for seed in seeds] for name in strategies]
    last = at[-1]
    drawn = sorted({*at, *np.linspace(1, last, min(last, NUM_DRAWN)).astype(int).tolist()})
    loss = FrontLoss(case, runs, last) if case.measure == "hypervolume" else QualityLoss(case, runs, last)

    def curve(run: Found, place: int, counts: Sequence[int]) -> FloatArray:
        return case.factor * loss(run, place, np.minimum(np.array(counts, dtype=np.intp), len(run)))

    def array(of: Sequence[Sequence[Sequence[FloatArray]]], width: int) -> FloatArray:
        return np.array(of, dtype=np.float64).reshape(len(strategies), len(seeds), len(places), width)

    clocks = [run.clock[: min(last, len(run))] for run in runs if run.clock is not None]
    times: tuple[float, ...] = ()
    if len(clocks) == len(runs):
        whole = [clock[-1] for clock in clocks if len(clock) == last] or [clock[-1] for clock in clocks]
        times = tuple(float(min(whole)) * number / last for number in at)
    return Judged(
        case=case,
        strategies=strategies,
        seeds=seeds,
        at=tuple(at),
        drawn=tuple(drawn),
        curves=array(
            [[[curve(run, p, drawn) for p, run in enumerate(row)] for row in rows] for rows in grid],
            len(drawn),
        ),
        times=times,
        by_time=array(
            [
                [[curve(run, p, _until(run, times, last)) for p, run in enumerate(row)] for row in rows]
                for rows in grid
            ],
            len(times),
        ),
        known=np.array([[min(map(len, row)) for row in rows] for rows in grid]),
        spent=np.array([_pace([run for run in runs if run.strategy == name]) for name in strategies]),
        runs=len(runs),
    )


def _until(run: Found, times: Sequence[float], last: int) -> list[int]:
    """How many architectures a run knew at each time."""
    if run.clock is None:
        return []
    return np.searchsorted(run.clock[:last], np.asarray(times) * (1 + 1e-12), side="right").tolist()


def _pace(runs: Sequence[Found]) -> float:
    """Milliseconds that runs took per architecture."""
    known = [(run.spent, len(run)) for run in runs if run.spent is not None]
    return 1e3 * sum(s for s, _ in known) / sum(n for _, n in known) if known else math.nan


class QualityLoss:
    """How far the best network within a limit is behind, after so many architectures of a run."""

    def __init__(self, case: Case, runs: Sequence[Found], last: int) -> None:
        self.case, (quality, *_) = case, case.objectives
        sign = 1.0 if quality.goal == "min" else -1.0
        known = [run.costs([quality])[:last, 0] for run in runs]
        finite = np.concatenate([values[np.isfinite(values)] for values in known] or [np.zeros(0)])
        self.worst = sign * case.worst if case.worst is not None else float(finite.max(initial=-math.inf))
        if math.isinf(self.worst):  # no run knows a network that is supported
            self.worst = 0.0
        if case.best is None:
            self.best = [
                min(
                    (
                        float(values[run.within(limits)[:last]].min(initial=self.worst))
                        for run, values in zip(runs, known, strict=True)
                    ),
                    default=self.worst,
                )
                for limits in case.limits
            ]
        else:
            self.best = [sign * value for value in case.best]

    def __call__(self, run: Found, place: int, counts: NDArray[np.intp]) -> FloatArray:
        """Shape (counts,)."""
        own = np.where(
            run.within(self.case.limits[place]), run.costs(self.case.objectives[:1])[:, 0], self.worst
        )
        reached = np.minimum.accumulate(np.concatenate([[self.worst], own]))
        return reached[counts] - self.best[place]


class FrontLoss:
    """The fraction that is missing of the hypervolume of all runs' common front.

    In units of that front, from its best to its worst values, as `Optimum.progress` has those of a true one.
    """

    def __init__(self, case: Case, runs: Sequence[Found], last: int) -> None:
        from pymoo.indicators.hv import HV

        self.objectives = case.objectives
        F = np.concatenate([run.costs(case.objectives)[:last] for run in runs])
        front = F[non_dominated(F)]
        self.low = front.min(axis=0) if len(front) else np.zeros(F.shape[1])
        span = np.ptp(front, axis=0) if len(front) else np.ones(F.shape[1])
        self.span = np.where(span > 0, span, 1.0)
        self.volume = HV(ref_point=np.ones(F.shape[1]))
        self.whole = float(self.volume((front - self.low) / self.span)) if len(front) else 0.0

    def __call__(self, run: Found, place: int, counts: NDArray[np.intp]) -> FloatArray:
        """Shape (counts,)."""
        scaled = (run.costs(self.objectives) - self.low) / self.span
        missing, front, done, covered = [], np.empty((0, scaled.shape[1])), 0, 0.0
        for count in counts.tolist():  # rising
            if count > done:
                before, front = front, np.concatenate([front, scaled[done:count]])
                front, done = front[non_dominated(front)], count
                if len(front) != len(before) or not np.array_equal(front, before):
                    covered = float(self.volume(front)) if len(front) else 0.0
            missing.append(1 - covered / self.whole if self.whole > 0 else 0.0)
        return np.array(missing)


@dataclass(frozen=True)
class Verdict:
    """Two strategies compared at the end of their runs.

    Attributes:
        case: Name of the case; empty: the mean over all cases that have both.
        limit: Which of the case's limits; None: the mean over them.
        stage: Whether both had evaluated as many architectures, or had as much time.
        at: Number of architectures, or seconds; NaN for a time that is another in each case.
        unit: Unit of the difference.
        first: A strategy.
        second: Another.
        paired: Losses of the first against those of the second.
        p: Corrected for the number of tests.
    """

    case: str
    limit: int | None
    stage: Stage
    at: float
    unit: str
    first: str
    second: str
    paired: Paired
    p: float

    @property
    def shown(self) -> bool:
        """Whether there is a difference."""
        return self.p <= LEVEL

    @property
    def winner(self) -> str | None:
        """The strategy with the lower losses, by their ranks; None if no difference is shown."""
        if not self.shown:
            return None
        return self.first if self.paired.balance < 0 else self.second

    def in_words(self) -> str:
        """A sentence, without its full stop."""
        where = f"{self._when} on {self.case}" if self.case else f"{self._when}, mean over the problems"
        if (winner := self.winner) is None:
            return f"no difference shown between {self.first} and {self.second} {where} ({_p(self.p)})"
        loser = self.second if winner == self.first else self.first
        beats = f"{winner} beats {loser} {where}" + "," * (not self.case)
        if self.lead <= 0:
            return (
                f"{beats} with most seeds, but not on average, where it is behind by "
                f"{amount(-self.lead, self.unit)} ({self._counts})"
            )
        return f"{beats} by {amount(self.lead, self.unit)} ({self._counts})"

    def besides(self, other: Verdict) -> str:
        """What it adds to the sentence of another verdict on the same pair and case."""
        if self.winner is None and other.winner is None:
            return f"nor {self._when} ({_p(self.p)})"
        if self.winner is None or self.lead <= 0 or self.winner != other.winner:
            return self.in_words()
        return f"{self._when} by {amount(self.lead, self.unit)} ({self._counts})"

    @property
    def lead(self) -> float:
        """How much lower the winner's mean loss is."""
        return -self.paired.difference if self.winner == self.first else self.paired.difference

    @property
    def _when(self) -> str:
        if self.stage == "time":
            return "after equal time" + ("" if math.isnan(self.at) else f" ({in_time(self.at)})")
        return f"after {self.at:.0f} evaluation{'s' * (self.at != 1)}"

    @property
    def _counts(self) -> str:
        wins = self.paired.wins if self.winner == self.first else self.paired.losses
        seeds = self.paired.wins + self.paired.losses + self.paired.ties
        return f"{_p(self.p)}; better with {wins} of {seeds} seeds"


def sentences(found: Sequence[Verdict]) -> list[str]:
    """A sentence per pair and case: at equal evaluations, and at equal time where that is known."""
    words: dict[tuple[str, str, str], list[Verdict]] = {}
    for one in found:
        words.setdefault((one.case, one.first, one.second), []).append(one)
    said = []
    for first, *others in words.values():
        text = "; ".join([first.in_words(), *(one.besides(first) for one in others)])
        said.append((text[0].upper() + text[1:] if first.winner is None else text) + ".")
    return said


def _p(p: float) -> str:
    return "p < 0.0001" if p < 1e-4 else f"p = {p:.2g}"


def amount(loss: float, unit: str) -> str:
    """A loss, or a difference of two, with its unit: "0.08 points"."""
    size = abs(loss)
    digits = 2 if size >= 0.1 or size == 0 else 3 if size >= 0.01 else 4
    return (
        f"{loss:.{digits}f} {unit}".rstrip() if size >= 1e-4 or size == 0 else f"{loss:.1e} {unit}".rstrip()
    )


def in_time(seconds: float) -> str:
    """A time of many trainings: "1.4 days", "3.2 h", "41 s"."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.2g} s"


@dataclass(frozen=True)
class Comparison:
    """Strategies compared on some problems.

    Attributes:
        judged: Losses on each case.
        verdicts: Pairs of strategies, over all cases and on each.
        by_limit: Pairs of strategies under each single limit.
        notes: Sentences about what was left out, and what the figures cannot show.
    """

    judged: tuple[Judged, ...]
    verdicts: tuple[Verdict, ...]
    by_limit: tuple[Verdict, ...]
    notes: tuple[str, ...]

    @property
    def strategies(self) -> tuple[str, ...]:
        """All strategies."""
        return tuple(dict.fromkeys(name for one in self.judged for name in one.strategies))

    @property
    def overall(self) -> list[Verdict]:
        """The verdicts over all cases; where there is only one, those on it."""
        return [one for one in self.verdicts if len(self.judged) == 1 or not one.case]


def conclude(judged: Sequence[Judged], notes: Sequence[str] = ()) -> Comparison:
    """Test every pair of strategies, and note what the figures cannot show.

    Args:
        judged: Losses on each case.
        notes: Further notes.
    """
    tests, said = verdicts(judged), list(notes)
    seeds = min(len(one.seeds) for one in judged)
    if tests and seeds < (needed := fewest_seeds(len(tests))):
        said.append(
            f"{seeds} seeds cannot show a difference, however large: {len(tests)} "
            f"{'tests need' if len(tests) > 1 else 'test needs'} {needed} seeds; fewer strategies or "
            "problems need fewer"
        )
    names = dict.fromkeys(name for one in judged for name in one.strategies)
    for name in names:
        short = [
            (float(one.known[one.strategies.index(name)].mean()), one.at[-1])
            for one in judged
            if name in one.strategies and (one.known[one.strategies.index(name)] < one.at[-1]).any()
        ]
        if short:
            few, last = min(short)
            said.append(
                f"{name} ended before {last:,} different architectures, on average after {few:,.0f}"
                + (" or more" if len(short) > 1 else "")
                + "; from there on it counts with what it knew (more generations= let it go on)"
            )
    return Comparison(tuple(judged), tuple(tests), tuple(by_limit(judged)), tuple(said))


def verdicts(judged: Sequence[Judged]) -> list[Verdict]:
    """Every pair of strategies on every case, and over all cases that have both.

    All of them together are a family of tests, corrected by Holm's method: with no difference anywhere, at
    most `LEVEL` of all comparisons show one.
    """
    found = [
        Verdict(
            case=one.case.name,
            limit=None,
            stage=stage,
            at=float(one.at[-1] if stage == "evaluations" else one.times[-1]),
            unit=one.case.unit,
            first=first,
            second=second,
            paired=paired(*(_losses(one, name, stage).mean(axis=1) for name in (first, second))),
            p=1.0,
        )
        for one in judged
        for stage in one.stages
        for first, second in itertools.combinations(one.strategies, 2)
    ]
    return _corrected([*_pooled(judged), *found])


def by_limit(judged: Sequence[Judged]) -> list[Verdict]:
    """Every pair of strategies under each limit of every case; a family of tests of its own."""
    return _corrected(
        [
            Verdict(
                case=one.case.name,
                limit=place,
                stage="evaluations",
                at=float(one.at[-1]),
                unit=one.case.unit,
                first=first,
                second=second,
                paired=paired(*(_losses(one, name, "evaluations")[:, place] for name in (first, second))),
                p=1.0,
            )
            for one in judged
            if len(one.case.limits) > 1
            for place in range(len(one.case.limits))
            for first, second in itertools.combinations(one.strategies, 2)
        ]
    )


def _losses(one: Judged, name: str, stage: Stage) -> FloatArray:
    """Of a strategy in the end, shape (seeds, limits)."""
    return one.final(stage)[one.strategies.index(name)]


def _pooled(judged: Sequence[Judged]) -> list[Verdict]:
    """Pairs of strategies over all cases that have both; none where these have several units."""
    names = tuple(dict.fromkeys(name for one in judged for name in one.strategies))
    found = []
    for first, second in itertools.combinations(names, 2):
        both = [one for one in judged if {first, second} <= set(one.strategies)]
        seeds = sorted(set.intersection(*(set(one.seeds) for one in both))) if both else []
        if len(both) < 2 or len(seeds) < 2 or len({(o.case.unit, o.case.measure, o.at) for o in both}) > 1:
            continue
        for stage in both[0].stages:
            if any(stage not in one.stages for one in both):
                continue
            means = [
                np.mean(
                    [
                        _losses(one, name, stage)[[one.seeds.index(seed) for seed in seeds]].mean(axis=1)
                        for one in both
                    ],
                    axis=0,
                )
                for name in (first, second)
            ]
            found.append(
                Verdict(
                    case="",
                    limit=None,
                    stage=stage,
                    at=float(both[0].at[-1]) if stage == "evaluations" else math.nan,
                    unit=both[0].case.unit,
                    first=first,
                    second=second,
                    paired=paired(*means),
                    p=1.0,
                )
            )
    return found


def _corrected(found: Sequence[Verdict]) -> list[Verdict]:
    ps = holm([one.paired.p for one in found])
    return [replace(one, p=p) for one, p in zip(found, ps, strict=True)]
