"""The outcome of a search: answer, front, and their distance to the exact optimum where it is known."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Literal

from hwnas.core import Trial, best, checked_result, closest, front, trials_of, unique
from hwnas.data.class_folders import ClassFolders
from hwnas.devices.multi import Multi
from hwnas.evaluators.replayed import Replayed
from hwnas.evaluators.table import TRUE_ACCURACY
from hwnas.files import write_csv
from hwnas.runs.display import Display
from hwnas.runs.folder import judged_together
from hwnas.runs.result import (
    MOST_REPORTED,
    Blind,
    Comparison,
    Evaluations,
    LookedUp,
    Network,
    Population,
    Replays,
    Result,
    Risk,
    Trained,
    Transfer,
    TransferRow,
)
from hwnas.runs.units import phrase, short, text
from hwnas.searches.analysis import spread
from hwnas.searches.blind import CHOICES, Known, blind, known_networks
from hwnas.searches.exact import (
    YARDSTICKS,
    Optimum,
    cost_deciles,
    device_limits,
    exact_effects,
    exact_optimum,
    regret_in_words,
    separable_sums,
    transfers,
    yardsticks,
)
from hwnas.searches.problem import Task

MOST_SHOWN = 12
"""Networks of the front that the terminal shows, besides the answer."""


class Conclusion:
    """The end of a search; what only reports may show, e.g. test accuracies, comes in here.

    Args:
        task: What was searched.
        trials: All trials of the run, in order.

    Attributes:
        found: What the strategy returns.
        answer: The best feasible network; None if there is none.
        front: The non-dominated networks.
    """

    def __init__(self, task: Task, trials: Sequence[Trial]) -> None:
        self.task, self.trials = task, trials
        self.found = checked_result(task.strategy)
        # Values of different weights cannot be compared: the answer is among what the strategy returns.
        self._comparable = trials if task.quality.stationary else self.found
        if task.problem.robust and not task.quality.stationary:
            self._comparable = judged_together(trials, self.found)
        robust = task.problem.robust
        self.answer = best(self._comparable, task.objectives, task.limits, robust)
        self.front = front(self._comparable, task.objectives, robust)
        shown = [*self.found, *self.front, *([self.answer] if self.answer else [])]
        self._reports = {trial.genotype: row for trial, row in zip(shown, self._reported(shown), strict=True)}

    def _reported(self, trials: Sequence[Trial]) -> list[dict[str, float]]:
        """Metrics that only reports may show, per trial.

        Raises:
            ValueError: The evaluator does not say the goal of a metric that it reports.
        """
        quality = self.task.quality
        rows = quality.report([trial.genotype for trial in trials]) if trials else []
        if unknown := sorted({name for row in rows for name in row} - quality.reported.keys()):
            raise ValueError(
                f"{type(quality).__name__}.report() answers {unknown[0]}, whose goal is not said: "
                f"reported = {{{unknown[0]!r}: 'max'}}, or 'min'"
            )
        return rows

    def ranked(self, num: int) -> list[Trial]:
        """At most `num` networks that keep the limits, the best first, each the best without those before."""
        left, found = unique(self._comparable), list[Trial]()
        while len(found) < num:
            trial = best(left, self.task.objectives, self.task.limits, self.task.problem.robust)
            if trial is None:
                break
            found.append(trial)
            left.remove(trial)
        return found

    def take(self, trial: Trial) -> None:
        """Make a network the answer, with what only reports may show of it."""
        self.answer = trial
        self._reports[trial.genotype] = self._reported([trial])[0]

    @property
    def to_train(self) -> Trial | None:
        """The answer, unless nobody has to train it to know how good it is."""
        task, answer = self.task, self.answer
        if answer is None or not task.recipe.epochs or not task.has_networks:
            return None
        return None if self._reports[answer.genotype] else answer

    def described(self, trial: Trial) -> Network:
        """A trial for people and JSON, with what only reports may show."""
        metrics = {**trial.metrics, **self._reports.get(trial.genotype, {})}
        return Network(self.task.space.to_str(trial.genotype), trial.genotype, metrics)

    @cached_property
    def _optimum(self) -> Optimum | None:
        task = self.task
        return exact_optimum(task.space, task.evaluators, task.objectives, task.limits)

    @cached_property
    def _known(self) -> Known | None:
        return known_networks(self.task.space, self.task.evaluators)

    def figures(
        self, evaluations: Evaluations, seconds: Mapping[str, float], seconds_per_new: float | None = None
    ) -> Result:
        """The result, without what depends on more than the task and its trials."""
        task, evaluators, seen = self.task, self.task.evaluators, self._blind(seconds_per_new)
        return Result(
            strategy=task.names["strategy"],
            search_space=task.names["search_space"],
            dataset=task.names["dataset"],
            evaluator=task.names["evaluator"],
            device=task.names["device"],
            seed=task.seed,
            **vars(task.plan),
            generations=task.generations,
            evaluations=evaluations,
            result=tuple(map(self.described, self.found)),
            best=self.described(self.answer) if self.answer else None,
            population=self._population(),
            risk=self._risk(),
            intervals=self._intervals(),
            memory=None if self.answer is None else task.memory(self.answer.genotype),
            notes=tuple(evaluator.note for evaluator in evaluators if evaluator.note),
            stationary=task.quality.stationary,
            truth=self._comparison(),
            transfer=self._transfer(),
            yardsticks=self._yardsticks() or None,
            looked_up=self._looked_up() or None,
            blind_regret=None if seen is None else seen.mean,
            blind=seen,
            replay=self._replay(),
            # Those of the networks of a replay are no averages over all else.
            effects={} if task.held else exact_effects(task.space, evaluators, task.objectives),
            sums=separable_sums(evaluators),
            deciles={name: tuple(of) for name, of in cost_deciles(task.space, evaluators).items()},
            reports=self._columns(),
            protocol=task.dataset.protocol if isinstance(task.dataset, ClassFolders) else None,
            seconds=seconds,
        )

    def _population(self) -> Population:
        last = [trial for trial in self.trials if trial.generation == self.trials[-1].generation]
        members = self.task.strategy.survivors() or last
        return Population(len(members), len(unique(members)))

    def _replay(self) -> Replays | None:
        """What was replayed, and how many networks were not there."""
        held = self.task.held
        if held is None:
            return None
        there = set(held.space.all())
        missing = {trial.genotype for trial in self.trials} - there
        costs: Literal["run", "device"] = "run" if isinstance(held.device, Replayed) else "device"
        return Replays(held.folders, len(there), len(missing), costs)

    def _comparison(self) -> Comparison | None:
        """The answer and the front of every generation, compared with the exact optimum."""
        optimum = self._optimum
        if optimum is None:
            return None
        ratios, distances = optimum.progress(
            [list(group) for _, group in itertools.groupby(self.trials, lambda trial: trial.generation)]
        )
        return Comparison(
            best=None if optimum.best is None else self.described(optimum.best),
            best_test_acc=optimum.best_test_acc,
            regret=self._regret(optimum),
            hypervolume_ratio=tuple(ratios),
            igd_plus=tuple(distances),
            front=tuple(
                tuple(trial.metrics[o.metric] for o in self.task.objectives) for trial in optimum.front
            ),
        )

    def _regret(self, optimum: Optimum) -> dict[str, float]:
        """Lead of the best network in the space over the answer, per metric, in the metric's unit."""
        if self.answer is None or optimum.best is None:
            return {}
        first = self.task.objectives[0]
        name, sign = first.metric, 1.0 if first.goal == "max" else -1.0
        regret = {name: sign * (optimum.best.metrics[name] - self.answer.metrics[name])}
        test_acc = self._reports[self.answer.genotype].get("test_acc")
        if test_acc is not None and optimum.best_test_acc is not None:
            regret["test_acc"] = optimum.best_test_acc - test_acc
        return regret

    def _risk(self) -> dict[str, Risk]:
        """Per limit on a predicted cost how probably the answer exceeds it in fact.

        By the fraction of the networks that the profile was not fitted to whose cost was as much above its
        prediction, the answer itself counted among them.
        """
        found: dict[str, Risk] = {}
        for limit in self.task.limits if self.answer is not None else ():
            (owner,) = (e for e in self.task.evaluators if limit.metric in e.metrics)
            errors = owner.errors(limit.metric)
            if self.answer is not None and limit.goal == "min" and len(errors):
                bound = limit.bound * (1 + self.task.margins.get(limit.metric, 0.0))
                beyond = int((self.answer.metrics[limit.metric] * errors > bound).sum())
                found[limit.metric] = Risk(bound, (1 + beyond) / (1 + len(errors)), len(errors))
        return found

    def _intervals(self) -> dict[str, tuple[float, float]]:
        """Per predicted cost of the answer the bounds that it keeps with a probability of 90 %."""
        found: dict[str, tuple[float, float]] = {}
        if self.answer is None:
            return found
        for evaluator in self.task.evaluators:
            for metric in evaluator.metrics:
                bounds = evaluator.interval(metric, [self.answer.genotype])
                if bounds is not None:
                    low, high = bounds
                    found[metric] = (float(low[0]), float(high[0]))
        return found

    def _yardsticks(self) -> dict[str, Network]:
        """Networks that are known without a search, by name."""
        task = self.task
        knowing = [evaluator for evaluator in task.evaluators if evaluator.exhaustive]
        return {
            name: self.described(*trials_of([genotype], [e.evaluate([genotype]) for e in knowing], 0))
            for name, genotype in yardsticks(task.space, knowing, task.objectives, task.limits).items()
        }

    def _looked_up(self) -> dict[str, LookedUp]:
        """A benchmark's accuracies of the answer and of the best network; empty if the optimum is known."""
        if self._optimum is not None or self.answer is None:
            return {}
        if (known := self._known) is None:
            return {}
        highest, largest = known.highest(self.task.limits), known.largest(self.task.limits)
        return {
            name: LookedUp(value, highest[name] - value, largest.get(name))
            for name, value in self._reports[self.answer.genotype].items()
            if name in highest
        }

    def _blind(self, seconds_per_new: float | None) -> Blind | None:
        """The search on its estimate beside other choices; None without true validation accuracies."""
        task = self.task
        if TRUE_ACCURACY not in task.quality.reported or self._known is None:
            return None
        classes = task.dataset.num_classes
        return blind(
            self._known,
            self._comparable,
            task.objectives,
            chance=1 / classes if classes > 1 else 0.0,
            seconds_per_new=seconds_per_new,
        )

    def _transfer(self) -> Transfer | None:
        """Each device's best network on the other devices."""
        device, optimum = self.task.device, self._optimum
        if not isinstance(device, Multi):
            return None
        own = device_limits(self.task.limits, device.main, device.typical)
        pool = self._comparable if optimum is None else optimum.trials
        return Transfer(
            limits={name: {limit.metric: limit.bound for limit in bounds} for name, bounds in own.items()},
            main=device.main,
            among="the networks of the run" if optimum is None else "all networks",
            rows=tuple(
                TransferRow(
                    row.device,
                    None if row.network is None else self.described(row.network),
                    row.regret,
                    row.excess,
                )
                for row in transfers(pool, self.task.objectives, own, device.main)
            ),
        )

    def _columns(self) -> dict[str, tuple[float | None, ...]]:
        """Report-only metrics of at most `MOST_REPORTED` networks, evenly spread, as columns."""
        trials = unique(self.trials)
        rows = self._reported([trials[row] for row in spread(len(trials), MOST_REPORTED)])
        names = dict.fromkeys(name for row in rows for name in row)
        return {name: tuple(row.get(name) for row in rows) for name in names}


def write_front(path: Path, rows: Sequence[Network]) -> None:
    """Write networks as CSV."""
    names = list(dict.fromkeys(name for row in rows for name in row.metrics))
    lines: list[list[object]] = [["arch", "genotype", *names]] if rows else []
    for row in rows:
        lines.append(
            [row.arch, " ".join(map(str, row.genotype)), *(row.metrics.get(name, "") for name in names)]
        )
    write_csv(path, lines)


def say_conclusion(display: Display, end: Conclusion, result: Result) -> None:
    """The front as a table, the answer with all its metrics, and what is known of the best there is.

    Args:
        display: Where to say it.
        end: The search's end.
        result: What was found.
    """
    _say_front(display, end)
    if result.best is None:
        _say_that_none_is_feasible(display, end)
    else:
        display.say(f"best: {result.best.arch}")
        display.say("      " + _in_words(result.best.metrics))
        if result.network is not None:
            what = "" if result.network.name is None else f"{result.network.name}, in its place, "
            display.say(f"      {what}trained from scratch: {tested_in_words(result.network)}")
        if len(result.result) == 1 and result.result[0].genotype != result.best.genotype:
            (returned,) = result.result
            display.say(f"{result.strategy} itself returns {returned.arch}: {_in_words(returned.metrics)}")
    for remark in remarks(result):
        display.say(f"note: {remark}")
    if (truth := result.truth) is not None:
        display.say(f"exact: hypervolume {truth.hypervolume_ratio[-1]:.1%} of the true front's")
        if truth.regret:
            display.say(regret_in_words(truth.regret, " within the limits" if result.limits else "") + ".")
    for name, known in (result.yardsticks or {}).items():
        display.say(f"exact: {YARDSTICKS[name]} is {known.arch}: {_in_words(known.metrics)}")
    for name, figures in (result.looked_up or {}).items():
        largest = figures.by_flops
        display.say(
            f"looked up: {name} {figures.value:.4f}; the best network in the space is ahead by "
            f"{100 * figures.regret:.2f} points"
            + ("" if largest is None else f"; the one with the most multiply-adds has {largest:.4f}")
        )
    if result.blind is not None:
        display.say(f"looked up: {blind_in_words(result.blind)}")


def tested_in_words(network: Trained) -> str:
    """The test accuracy, and its mean over the classes where that is another one by half a point."""
    text, balanced = f"test accuracy {network.test_acc:.2%}", network.balanced_test_acc
    if balanced is None or abs(balanced - network.test_acc) < 0.005:
        return text
    return f"{text}, balanced over the classes {balanced:.2%}"


def blind_in_words(seen: Blind) -> str:
    """Blind regret in a line: "blind regret 0.62 points, mean of nine limits on latency_ms (...)"."""
    others = [f"{CHOICES[name]} {seen.mean_of(name):.2f}" for name in seen.regret if name != "estimate"]
    return f"blind regret {seen.mean:.2f} points, mean of nine limits on {seen.cost} ({', '.join(others)})"


def _in_words(metrics: Mapping[str, float]) -> str:
    return ", ".join(phrase(name, value) for name, value in metrics.items())


def _say_front(display: Display, end: Conclusion) -> None:
    from rich.table import Table

    objectives, trials = end.task.objectives, end.front
    table = Table(title=f"front: {len(trials)} networks", title_justify="left", box=None)
    for objective in objectives:
        table.add_column(objective.metric, justify="right", no_wrap=True, min_width=len(objective.metric))
    table.add_column("architecture", overflow="fold")
    rows = set(spread(len(trials), MOST_SHOWN))
    if end.answer in trials:
        rows.add(trials.index(end.answer))
    for row in sorted(rows):
        trial = trials[row]
        mark = " <- best" if trial == end.answer else ""
        table.add_row(
            *(short(o.metric, trial.metrics[o.metric]) for o in objectives),
            end.task.space.to_str(trial.genotype) + mark,
        )
    display.console.print(table)


def _say_that_none_is_feasible(display: Display, end: Conclusion) -> None:
    limits = end.task.limits
    near = closest(end.trials, limits)
    if near is None:
        display.warn("no network is supported by the device")
        return
    bounds = " and ".join(f"{limit.metric}={short(limit.metric, limit.bound)}" for limit in limits)
    display.warn(
        f"no network keeps limits {bounds}; the closest is {end.task.space.to_str(near.genotype)}: "
        f"{_in_words(near.metrics)}; raise a limit, or search longer (generations=)"
    )


def remarks(result: Result) -> list[str]:
    """Sentences beside an answer: what the run began with or replayed, its risk, whose costs they are."""
    return (
        warm_start_in_words(result)
        + replay_in_words(result)
        + [
            f"{metric} is predicted; by the errors for {risk.networks} networks that were not fitted "
            f"to, the real one exceeds {risk.limit:.4g} with a probability of {risk.probability:.0%}, or "
            "more: the best of many is favoured by errors"
            + ("; confidence=0.95 keeps a margin" if risk.probability > 0.05 else "")
            for metric, risk in (result.risk or {}).items()
        ]
        + [
            f"by what few measurements tell, {metric} is between {low:.4g} and {high:.4g} with a probability "
            "of 90 %"
            for metric, (low, high) in (result.intervals or {}).items()
        ]
        + memory_in_words(result)
        + list(result.notes)
    )


def memory_in_words(result: Result) -> list[str]:
    """A sentence on the memory that the answer needs, in a list; empty where it is not known, or a metric."""
    memory = result.memory
    if memory is None or result.best is None or "ram_kb" in result.best.metrics:
        return []
    ram, flash = (text(name, memory[name]) for name in ("ram_kb", "flash_kb"))
    return [
        f"in {memory['memory_bits']:g} bits the network needs {ram} of RAM for one image, and {flash} "
        "for its weights (limits.ram_kb, limits.flash_kb)"
    ]


def warm_start_in_words(result: Result) -> list[str]:
    """A sentence on what a search began with, in a list; empty for one that began with nothing."""
    warm = result.warm_start
    if warm is None:
        return []
    known = " and ".join(f"{source.networks:,} networks by {source.name}" for source in warm.sources)
    return [
        f"the search began with what is known of {known}; that took {warm.seconds:.1f} s, in which "
        f"{warm.scored:,} networks were scored; neither is counted among the evaluations"
    ]


def replay_in_words(result: Result) -> list[str]:
    """A sentence on what a search replayed, in a list; empty for a search among all networks."""
    replay = result.replay
    if replay is None:
        return []
    others = f" and {len(replay.folders) - 1} more" * (len(replay.folders) > 1)
    verb = "was" if replay.missing == 1 else "were"
    return [
        f"a replay: the space is the {replay.networks:,} networks that were evaluated in {replay.folders[0]}"
        f"{others}, with {'the answers' if replay.costs == 'run' else 'the quality'} from there"
        + f" and the costs of {result.device}" * (replay.costs == "device")
        + (f"; {replay.missing} that {verb} asked for {verb} not there and evaluated" * bool(replay.missing))
    ]


def virtual_clock(result: Result) -> str:
    """A sentence on what the search would have taken without a benchmark's table; empty if there was none."""
    if result.virtual_seconds is None:
        return ""
    return (
        f"To train these {result.evaluations.unique:,} architectures took the authors of the benchmark "
        f"{result.virtual_seconds / 86400:,.1f} GPU days."
    )
