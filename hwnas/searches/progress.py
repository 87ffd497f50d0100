"""Figures of a search, generation by generation."""

from __future__ import annotations

from collections.abc import Sequence

from hwnas.core import Genotype, Trial, best, is_near_chance
from hwnas.devices.energy import Meter
from hwnas.runs.display import Display
from hwnas.runs.tracking import Tracker
from hwnas.runs.units import short
from hwnas.searches.indicators import Hypervolume, diversity
from hwnas.searches.problem import Task
from hwnas.store.cache import CachedEvaluator


class Progress:
    """Follows a search generation by generation: figures for the tracker and for the terminal.

    Args:
        task: What is searched.
        quality: The evaluator as it is asked, with its store.
        tracker: Where figures go.
        display: Where they are shown.
        meter: Energy counters, which have to be read now and then.

    Attributes:
        hypervolumes: After each generation.
        seconds: What the benchmark says that training the architectures would have taken.
    """

    def __init__(
        self, task: Task, quality: CachedEvaluator, tracker: Tracker, display: Display, meter: Meter
    ) -> None:
        self.hypervolumes: list[float] = []
        self.seconds = 0.0
        self._task, self._quality = task, quality
        self._tracker, self._display, self._meter = tracker, display, meter
        self._hypervolume = Hypervolume(task.objectives)
        self._version = ""
        self._charged: set[Genotype] = set()  # architectures that the virtual clock has been charged for
        self._evaluations = 0

    def log(self, generation: int, trials: list[Trial], replayed: bool) -> None:
        """Take a generation in; for `search`."""
        task, objectives = self._task, self._task.objectives
        judged = task.strategy.result() if self._quality.rungs else trials
        if self._quality.rungs or self._version != self._quality.version:
            self._hypervolume.forget()  # other weights, another model: older values cannot be compared
            self._version = self._quality.version
        self._evaluations += len(trials)
        self.hypervolumes.append(self._hypervolume.add(judged))
        pareto = self._hypervolume.front
        leader = best([*pareto, *judged] if task.limits else pareto, objectives, task.limits)
        values: dict[str, float | None] = {
            "evaluations": float(self._evaluations),
            "hypervolume": self.hypervolumes[-1],
            "front_size": float(len(pareto)),
            "diversity": diversity(task.space, [trial.genotype for trial in trials]),
        }
        new = list({trial.genotype for trial in trials} - self._charged)
        self._charged.update(new)
        self._check_chance(generation, trials)
        spent = task.quality.seconds(new)
        if spent is not None:
            self.seconds += spent
            values["virtual_hours"] = self.seconds / 3600
        for objective in objectives:
            values_of = [trial.metrics[objective.metric] for trial in judged]
            values[f"mean_{objective.metric}"] = sum(values_of) / len(values_of)
            values[f"best_{objective.metric}"] = None if leader is None else leader.metrics[objective.metric]
        self._meter.read()  # its counters start over
        saved = sum(each.saved for each in self._quality.answering)
        self._tracker.log(generation, values, replayed=replayed, session={"from_store": float(saved)})
        shown = {
            "evaluations": f"{self._evaluations:,}",
            "from store": f"{saved:,}",
            "hypervolume": f"{self.hypervolumes[-1]:.4g}",
        }
        if leader is not None:
            shown |= {f"best {o.metric}": short(o.metric, leader.metrics[o.metric]) for o in objectives}
        self._display.generation(generation, shown, replayed)

    def _check_chance(self, generation: int, trials: Sequence[Trial]) -> None:
        """Say if all networks only guess: at the start, or at the end where weights change on the way."""
        task = self._task
        last = generation + 1 == task.generations or task.strategy.done
        if not (generation == 0 if task.quality.stationary else last):
            return
        reached = max(
            (trial.metrics["val_acc"] for trial in trials if "val_acc" in trial.metrics), default=1.0
        )
        chance = 1 / task.dataset.num_classes
        if chance < 1 and is_near_chance(reached, chance):
            self._display.doubt(
                f"no network of generation {generation + 1} answers more than {reached:.1%} of the "
                f"validation images right, a guess {chance:.1%}: which is better says little; let "
                f"evaluator {task.names['evaluator']} train longer"
            )
