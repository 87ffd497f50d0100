"""The end of a search: the best network is trained, beside networks that anyone could take off the shelf.

Off-the-shelf networks are timed on the device in turns with the found one. Those within the limits are
trained like it, by the same recipe for the same time, on the training images without those that validate. The
validation images say which is to be taken, with what the space forecasts of the rest of the training, if it
does; that one is trained on all training images.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core import FloatArray, Genotype, Trial
from hwnas.data.folder import ImageFolder
from hwnas.data.images import Images
from hwnas.devices.memory import Memory
from hwnas.files import write_json
from hwnas.runs.result import Contender, Result, Trained
from hwnas.runs.units import phrase
from hwnas.searches.baselines import USUAL
from hwnas.searches.budget import seconds_of
from hwnas.searches.outcome import Conclusion
from hwnas.searches.problem import RunContext
from hwnas.searches.spending import (
    PLAN,
    TRIAL_PART,
    TRIALS,
    part_for_final,
    read_plan,
    steps_per_pass,
    trainings,
)
from hwnas.spaces.capabilities import HasForecast, HasNetworks
from hwnas.spaces.known import KnownNetworks

if TYPE_CHECKING:
    from torch import nn

    from hwnas.training.recipe import Recipe

NUM_TIMED = 6
"""Networks whose latency is measured to find one within the limit."""

FOUND = "found"
"""Name of the found network in `PLAN`, and of its folder in `TRIALS`."""


@dataclass(frozen=True)
class Finished:
    """What the end of a search gives.

    Attributes:
        network: The network that was trained on all training images; None: none.
        found: The best network that was found, as it compares; None: nothing was compared.
        baselines: Off-the-shelf networks.
    """

    network: Trained | None = None
    found: Contender | None = None
    baselines: tuple[Contender, ...] = ()


class Finish:
    """Times, compares and trains.

    Args:
        end: The search's end.
        context: The run.
    """

    def __init__(self, end: Conclusion, context: RunContext) -> None:
        self._task, self._end = end.task, end
        self._folder, self._display = context.folder, context.display
        self._began = context.began
        budget = self._task.problem.budget
        self._budget = None if budget is None else seconds_of(budget)
        self._planned = read_plan(context.folder / PLAN)

    def carry_out(self) -> Finished:
        """Do all of it; what was measured and trained before is not done again.

        Raises:
            ValueError: What `training.classifier.fit` raises.
        """
        task, display = self._task, self._display
        if self._end.to_train is None or not isinstance(task.space, HasNetworks):
            return Finished()
        if self._budget is not None or task.problem.baselines not in ("auto", []):
            self._keep_the_limit()
        answer = self._end.answer
        assert answer is not None
        if not task.space.is_connected([answer.genotype])[0]:
            display.doubt(
                "the best network has no path from input to output: it answers the same for all images and "
                "is not trained"
            )
            return Finished()
        names = self._names()
        if not names:
            return Finished(self._trained(task.space, answer.genotype, None, None))
        with display.phase("baselines", f"training {' and '.join(names)} beside the best network"):
            found, baselines = self._compared(answer, names)
        best = max(baselines, key=lambda other: other.promise)
        if best.promise <= found.promise:
            network = self._trained(task.space, answer.genotype, None, found.latency_ms)
        else:
            space = self._known([best.name])
            network = self._trained(space, (0,), best.name, best.latency_ms)
        return Finished(network, found, baselines)

    def _keep_the_limit(self) -> None:
        """Have the best network be one whose latency is measured to be within the limit.

        What a profile predicts has errors, and the best of many networks within a limit is favoured by them.
        """
        task, display, name = self._task, self._display, "latency_ms"
        bounds = [limit.bound for limit in task.limits if limit.metric == name and limit.goal == "min"]
        if not bounds or not isinstance(task.space, HasNetworks) or task.device.timed([]) is None:
            return
        ranked = self._end.ranked(NUM_TIMED)
        if "candidates_ms" not in self._planned:
            timed = task.device.timed([task.space.network(trial.genotype) for trial in ranked])
            self._keep(candidates_ms=timed)
        for trial, measured in zip(ranked, self._planned["candidates_ms"], strict=True):
            if measured <= bounds[0]:
                self._end.take(trial)
                return
            display.say(
                f"{task.space.to_str(trial.genotype)} takes {phrase(name, measured)}, measured, not "
                f"{phrase(name, trial.metrics[name])} as predicted: more than the limit"
            )
        display.doubt(
            f"none of the {len(ranked)} best networks takes at most {phrase(name, bounds[0])}, measured; "
            "confidence=0.95 keeps a margin, device.rounds= measures more"
        )

    @property
    def _dataset(self) -> Images | ImageFolder:
        assert isinstance(self._task.dataset, Images | ImageFolder)  # or `set_up` would have refused it
        return self._task.dataset

    def _known(self, names: Sequence[str]) -> KnownNetworks:
        dataset = self._dataset
        return KnownNetworks(names, image_shape=dataset.image_shape, num_classes=dataset.num_classes)

    def _names(self) -> list[str]:
        """The baselines of this run."""
        baselines = self._task.problem.baselines
        if not isinstance(baselines, str):
            return list(baselines)
        if self._budget is None or self._task.device.timed([]) is None:
            return []
        if "names" not in self._planned:
            self._keep(names=self._usual())
        return list(self._planned["names"])

    def _usual(self) -> list[str]:
        """Of each family of `USUAL` the network within the limits that is to be expected the best.

        Where the space forecasts what a training brings, it says which; else it is the largest one that the
        budget can train, or the smallest where none is; see `spending.within_budget`.
        """
        task, presets = self._task, self._task.space.presets
        known = self._known(USUAL)
        sizes = known.static_metrics(known.all())
        latency = self._task.device.timed([known.network(genotype) for genotype in known.all()]) or []
        costs = [
            {"latency_ms": ms, **{name: float(values[row]) for name, values in sizes.items()}}
            for row, ms in enumerate(latency)
        ]
        kept = [row for row, of in enumerate(costs) if self._within(of)]
        chosen = []
        for family in ("mobilenet", "resnet"):
            members = sorted((row for row in kept if USUAL[row].startswith(family)), key=sizes["flops"].item)
            fast = [row for row in members if sizes["flops"][row] <= self._planned.get("most_flops", np.inf)]
            told = [row for row in members if USUAL[row] in presets]
            if told:
                networks = [task.space.from_str(presets[USUAL[row]]) for row in told]
                expected = task.quality.expected(networks)
                fast = fast if expected is None else [told[int(expected.argmax())]]
            chosen += [USUAL[row] for row in (fast[-1:] or members[:1])]
        return chosen

    def _steps(self, space: HasNetworks, genotype: Genotype, seconds: float, part: str) -> int:
        steps: int = trainings().steps_within(
            space.network(genotype),
            self._dataset,
            self._task.recipe,
            seconds,
            part=part,
            folder=self._folder / TRIALS / "pace",
        )
        return steps

    def _sizes(self, space: HasNetworks, networks: Sequence[Genotype]) -> dict[str, FloatArray]:
        """Costs of networks that no device has to be asked for, each (n,)."""
        sizes = space.static_metrics(networks)
        for evaluator in self._task.evaluators:
            if isinstance(evaluator, Memory):
                sizes |= evaluator.of(space).costs(networks)
        return sizes

    def _within(self, costs: Mapping[str, float]) -> bool:
        """Whether known costs keep the user's limits on costs."""
        added = "most_flops" in self._planned and not isinstance(self._task.space, HasForecast)
        own = {"flops"} if added else set()  # see `spending.within_budget`
        return all(
            costs[limit.metric] <= limit.bound
            for limit in self._task.limits
            if limit.goal == "min" and limit.metric in costs and limit.metric not in own
        )

    def _compared(self, answer: Trial, names: Sequence[str]) -> tuple[Contender, tuple[Contender, ...]]:
        """The found network and the baselines, timed and trained alike."""
        assert isinstance(self._task.space, HasNetworks)
        known = self._known(names)
        asked: dict[str, tuple[HasNetworks, Genotype]] = {FOUND: (self._task.space, answer.genotype)}
        asked |= {name: (known, (number,)) for number, name in enumerate(names)}
        latency = self._latency({name: space.network(genotype) for name, (space, genotype) in asked.items()})
        contenders, right = {}, {}
        for name, (space, genotype) in asked.items():
            sizes = {key: float(of[0]) for key, of in self._sizes(space, [genotype]).items()}
            costs = sizes if latency is None else {**sizes, "latency_ms": latency[name]}
            contenders[name] = Contender(
                name=space.to_str(genotype),
                flops=sizes["flops"],
                params=sizes["params"],
                within=name == FOUND or self._within(costs),
                latency_ms=None if latency is None else latency[name],
            )
        trained = [name for name, contender in contenders.items() if contender.within]
        for name in trained if len(trained) > 1 else ():
            start = time.perf_counter()
            valid, right[name] = self._tried(name, *asked[name])
            lead, error = lead_of(right[name], right[FOUND])
            contenders[name] = replace(
                contenders[name],
                val_acc=valid,
                test_acc=float(right[name].mean()),
                seconds=time.perf_counter() - start,
                lead=None if name == FOUND else lead,
                lead_std=None if name == FOUND else error,
            )
            self._display.say(f"  {contender_in_words(contenders[name])}")
        contenders = self._foreseen(contenders)
        found = contenders.pop(FOUND)
        return found, tuple(contenders.values())

    def _foreseen(self, contenders: dict[str, Contender]) -> dict[str, Contender]:
        """The networks, each with the accuracy that is to be expected after the rest of the training.

        A trial is short, and favours small networks. Where the space forecasts what more steps bring, the
        accuracy's logit rises by it, of networks outside of the space by the mean of the others.
        """
        task = self._task
        space = task.space
        if self._budget is None or not isinstance(space, HasForecast):
            return contenders
        more = part_for_final(space, self._budget) / TRIAL_PART
        gains = {}
        for name, of in contenders.items():
            text = of.name if name == FOUND else space.presets.get(of.name)
            if text is not None and of.val_acc is not None:
                genotype, steps = space.from_str(text), self._planned["steps"][name]
                few, many = space.forecast(
                    [genotype] * 2, steps * np.array([1.0, more]), steps_per_pass(task)
                )
                gains[name] = float(many - few)
        mean = float(np.mean([*gains.values()] or [0.0]))
        found = dict(contenders)
        for name, of in contenders.items():
            if of.val_acc is not None:
                known = np.clip(of.val_acc, 0.005, 0.995)  # a few images say no more
                odds = known / (1 - known) * np.exp(gains.get(name, mean))
                found[name] = replace(of, foreseen=float(odds / (1 + odds)))
        return found

    def _latency(self, networks: Mapping[str, nn.Module]) -> Mapping[str, float] | None:
        """Measured milliseconds per network; None where the device measures none."""
        if "latency_ms" not in self._planned:
            measured = self._task.device.timed(list(networks.values()))
            self._keep(latency_ms=None if measured is None else dict(zip(networks, measured, strict=True)))
        found: Mapping[str, float] | None = self._planned["latency_ms"]
        return found

    def _tried(self, name: str, space: HasNetworks, genotype: Genotype) -> tuple[float, FloatArray]:
        """Validation accuracy of a network after its training, and which test images it answers right."""
        training, dataset, recipe = trainings(), self._dataset, self._task.recipe
        seconds = None if self._budget is None else TRIAL_PART * self._budget
        recipe = self._timed(recipe, name, space, genotype, seconds, "train")
        folder = self._folder / TRIALS / name
        folder.mkdir(parents=True, exist_ok=True)
        session = training.Session(folder, announce=self._display.say)
        valid, test = training.tried(space, genotype, dataset, recipe, session, seed=self._task.seed)
        return float(valid.mean()), test

    def _timed(
        self,
        recipe: Recipe,
        name: str,
        space: HasNetworks,
        genotype: Genotype,
        seconds: float | None,
        part: str,
    ) -> Recipe:
        """The recipe for so many seconds, as planned once; as it is without a budget."""
        if seconds is None:
            return recipe
        steps: Mapping[str, int] = self._planned.get("steps", {})
        if name not in steps:
            self._keep(steps={**steps, name: self._steps(space, genotype, seconds, part)})
        timed: Recipe = trainings().within(recipe, self._planned["steps"][name], self._dataset, part)
        return timed

    def _trained(
        self, space: HasNetworks, genotype: Genotype, name: str | None, latency_ms: float | None
    ) -> Trained:
        """Train a network on all training images; within a budget for what is left of it."""
        task, display, training = self._task, self._display, trainings()
        with display.phase("final network", "training the final network"):
            left = None
            if self._budget is not None:
                least = TRIAL_PART * self._budget
                left = max(least, self._budget - (time.perf_counter() - self._began))
            recipe = self._timed(task.recipe, "network", space, genotype, left, "all")
            figures = training.train_network(
                space,
                genotype,
                self._dataset,
                recipe,
                training.Session(self._folder / "network", announce=display.say, warn=display.doubt),
                seed=task.seed,
            )
        return Trained(**figures, name=name, latency_ms=latency_ms)

    def _keep(self, **figures: object) -> None:
        """Write what was measured or planned."""
        self._planned = {**self._planned, **figures}
        write_json(self._folder / PLAN, self._planned)


def lead_of(right: FloatArray, other: FloatArray) -> tuple[float, float]:
    """The accuracy of one network less that of another on the same images, and its standard error.

    Args:
        right: Of each image, 1 if the network answers it right, else 0; shape (n,).
        other: Likewise of the other network.
    """
    difference = right - other
    return float(difference.mean()), float(difference.std() / len(difference) ** 0.5)


def contender_in_words(of: Contender) -> str:
    """A line on a network that was compared."""
    costs = [] if of.latency_ms is None else [phrase("latency_ms", of.latency_ms)]
    costs.append(phrase("flops", of.flops))
    if of.test_acc is None:
        return f"{of.name}: {', '.join(costs)}: not within the limits"
    lead = "" if of.lead is None else f" ({100 * of.lead:+.1f} ± {100 * (of.lead_std or 0.0):.1f} points)"
    return f"{of.name}: {', '.join(costs)}, test accuracy {of.test_acc:.2%}{lead} after {of.seconds:.0f} s"


def advice(result: Result) -> str | None:
    """A sentence on the network to take; None if nothing was compared.

    Its certainty is that of the test images: a lead of less than two standard errors may be luck.
    """
    found, trained = result.found, [other for other in result.baselines if other.test_acc is not None]
    if found is None or result.network is None:
        return None
    taken = "the best network that was found" if result.network.name is None else result.network.name
    if not trained:
        return f"take {taken}: no off-the-shelf network of those asked for keeps the limits"
    rival = max(trained, key=lambda other: other.promise)
    lead, error = -(rival.lead or 0.0), rival.lead_std or 0.0
    if result.network.name is not None:
        lead, rival = -lead, found
    what = "the found one" if result.network.name is not None else rival.name
    sure = "" if lead > 2 * error else ", which may be luck"
    if lead < 0 and found.foreseen is not None:
        sure = ", and gains more by the rest of its training, as trainings on other images say"
    return (
        f"take {taken}: trained alike for {found.seconds:.0f} s it has {100 * lead:+.1f} ± {100 * error:.1f} "
        f"points on test images against {what}{sure}; trained to the end {result.network.test_acc:.2%}"
    )
