"""Validation accuracy after a short training from scratch: a reliable estimate, but expensive."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from hwnas.core import DEVIATION, Count, Genotype, Positive, SearchSpace, Seed, checked
from hwnas.data.images import Images, SmallerImages, check_batch, check_images, smaller_side
from hwnas.evaluators.table import LooksUp, Lookup
from hwnas.spaces.capabilities import HasNetworks, fingerprint, in_size
from hwnas.training.accelerator import accelerator
from hwnas.training.checkpoint import Session
from hwnas.training.classifier import MAY_CHANGE, Classifier, DivergedError, answers, fit
from hwnas.training.recipe import CHECKPOINT, Recipe, forget_checkpoint

FEW_STEPS = 5
"""Steps that a training's speed is measured by."""

TRAIN_VERSION = 1  # increased when the same settings begin to give other accuracies

FIGURES = ("val_acc", "val_likelihood", "train_likelihood", "likelihood_ahead")
"""Figures of a training that a network may be judged by; each in 0..1, higher is better."""

SAMPLED = ("val_acc", "val_likelihood")
"""Those that are means over validation images, of which a standard error is known."""

WORST = dict.fromkeys([*FIGURES, *(f"{name}{DEVIATION}" for name in SAMPLED)], 0.0)
"""Figures of a training that diverged."""

NUM_PARTS = 10
"""Parts of a training whose mean losses are its learning curve."""

AHEAD = 10.0
"""Multiple of its length that a learning curve is extrapolated to."""


class Train(LooksUp):
    """`val_acc`: validation accuracy in 0..1 of each network, trained alone on the training images.

    A network may be judged by other figures, with `val_acc` beside it. A likelihood is the geometric mean of
    the probabilities that a network gives to the right classes, exp(-cross-entropy): `val_likelihood` that of
    validation images in the end, with less noise than the accuracy; `train_likelihood` that of training
    images over all steps, the learning curve as one number (Ru et al., Speedy Performance Estimation for
    Neural Architecture Search, NeurIPS 2021, sum the training losses); `likelihood_ahead` what a power law
    that is fitted to the learning curve reaches after ten times as many steps (`extrapolated`).

    Initial weights, shuffles and augmentation of a network depend on `seed` and its architecture, not on its
    population. A network that diverges (an infinite loss) has the accuracy 0.

    With `rungs` trainings stop early: after so many steps only the best 1/`eta` of a population go on, see
    `hwnas.searches.halving`. The schedule is always that of the whole training, so that a network that gets
    through all rungs has the figures, and the key in the store, of a training without them. Others have no
    `val_acc`, but `val_acc_50`, what it was at a rung of 50 steps. `rung` says how far a network got, from 1,
    and networks are judged by `val_acc_by_rung`, (rung - 1 + accuracy there) / number of rungs: one that got
    further is always better. Names of other scores are formed likewise.

    Args:
        space: A space with `network`.
        dataset: Images; networks are judged on validation images, test images are not used.
        store_dir: Folder of the store, in which trainings work.
        announce: Called once with a sentence on the time of a training.
        warn: Called with a sentence when a first training diverges.
        channels: Width of the trained networks; null: the search space's.
        num_cells: Depth of the trained networks; "fewest": as few cells as the space allows; null: the search
            space's. FBNet has a fixed depth.
        image_size: Height and width that larger images are averaged to, in pixels; "auto": half of
            their side, see `smaller_side`; null: as they are.
        num_valid: Validation images that networks are judged on; null: all.
        augment: Random changes of training images: "dataset", the data set's, or of these only "flip".
        score: The metric that networks are judged by, of `FIGURES`.
        label: Ending of the metrics' names, `val_acc_<label>`, where a run has trainings of several lengths;
            null: none.
        rungs: Optimiser steps after which networks are compared, increasing; the end of the training is the
            last rung, named or not. null: every network is trained to the end.
        eta: Of the networks that are compared the best 1/eta go on.
        checkpoints_gb: Disk for networks that may go on, in GB. Those that have waited longest are deleted,
            and would start anew.
        repeats: Trainings of each network, with other seeds; its figures are their means.
        deviation: Whether to report `val_acc_std` and `val_likelihood_std`, too, standard errors of these by
            the number of validation images (`binomial_error`; all networks have the same images, so that
            differences are surer) and by the repetitions.
        training: Training of each network.
        seed: Seed of the trainings; not the run's seed, so that all runs use the same accuracies.
        lookup: Accuracies of a benchmark's table, for reports.

    Raises:
        ValueError: A value out of range, a space without networks, no images, or a recipe with 0 epochs or
            for parts that the networks lack.
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        dataset: Images,
        store_dir: Path,
        announce: Callable[[str], None],
        warn: Callable[[str], None],
        *,
        channels: Count | None,
        num_cells: Count | Literal["fewest"] | None,
        image_size: Count | Literal["auto"] | None = None,
        num_valid: Count | None = None,
        augment: Literal["dataset", "flip"] = "dataset",
        score: Literal["val_acc", "val_likelihood", "train_likelihood", "likelihood_ahead"] = "val_acc",
        label: str | None = None,
        rungs: Sequence[Count] | None = None,
        eta: Annotated[int, Ge(2)] = 3,
        checkpoints_gb: Positive = 2.0,
        repeats: Count = 1,
        deviation: bool = False,
        training: Recipe,
        seed: Seed,
        lookup: Lookup,
    ) -> None:
        if not isinstance(space, HasNetworks):
            raise ValueError(f"evaluator=train: the {space.name} space has no networks to train")
        check_images("evaluator=train", dataset)
        if not isinstance(training, Recipe):
            raise ValueError(f"training must be a recipe of training, not {training!r}")
        if not training.epochs:
            raise ValueError("training.epochs must be at least 1, not 0")
        self.look_up(lookup)
        check_batch("training.batch_size", training.batch_size, dataset.size("train"), training.devices)
        self._networks = in_size(space, channels, num_cells)
        training.check(auxiliary=self._networks.auxiliary, drop_path=self._networks.drop_path)
        self.name = "train"
        self._ending = "" if label is None else f"_{label}"
        self._figures = tuple(dict.fromkeys([score, "val_acc"]))
        self.metrics = {f"{name}{self._ending}": "max" for name in self._figures}
        if deviation and score not in SAMPLED:
            raise ValueError(
                f"deviation must be false with score={score}: it is known of {' and '.join(SAMPLED)}"
            )
        if rungs and (deviation or repeats > 1):
            raise ValueError("rungs must be null with deviation=true, and with repeats")
        self._errors = tuple(name for name in self._figures if deviation and name in SAMPLED)
        self.metrics |= {f"{name}{self._ending}{DEVIATION}": "min" for name in self._errors}
        self._whole = tuple(self.metrics)
        self.repeats = repeats
        self.training = training
        self.seed = seed
        self._dataset = dataset
        side = smaller_side(image_size, dataset.image_shape) if space.any_image_size else None
        self._images = SmallerImages(dataset, side, num_valid, augment)
        self._augment = augment
        self._folder = store_dir / "trainings"
        self._announce = announce
        self._warn = warn
        self._said = self._warned = False
        self._version = ""
        self._until: int | None = None  # steps of a rung; None: there are no rungs
        self._checkpoint_bytes = checkpoints_gb * 1e9
        if rungs:
            self._climb(rungs, eta)

    def _climb(self, rungs: Sequence[int], eta: int) -> None:
        """Make the evaluators of the rungs."""
        last = self.num_steps
        if not all(a < b for a, b in itertools.pairwise(rungs)) or rungs[-1] > last:
            raise ValueError(
                f"rungs must be increasing steps, at most the {last} of a training, not {list(rungs)}"
            )
        if self.training.devices > 1:
            raise ValueError(f"rungs need training.devices=1, not {self.training.devices}")
        stops = [steps for steps in rungs if steps < last]
        if not stops:
            return
        self.rungs, self.eta = tuple(self._to(steps) for steps in (*stops, last)), eta
        main, *_ = self._whole
        at_stops = [name for rung in self.rungs[:-1] for name in rung.metrics]
        self.metrics = dict.fromkeys([f"{main}_by_rung", *self._whole, "rung", *at_stops], "max")
        at = " and ".join(map(str, stops))
        self.note = (
            f"Trainings stop early: after {at} of {last} steps the best 1/{eta} of a population go on; "
            f"{main}_by_rung is (rung - 1 + {main} there) / {len(self.rungs)}, so that those come first"
        )

    def _to(self, steps: int) -> Train:
        """The evaluator of a rung."""
        rung = copy.copy(self)
        rung._until = steps
        if steps < self.num_steps:
            rung.name = f"{self.name}-{steps}"
            rung._ending = f"_{steps}{self._ending}"
            rung.metrics = {f"{name}{rung._ending}": "max" for name in self._figures}
        return rung

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """The version: a hash of images, recipe, seed, kind of processor, and the networks' sizes."""
        recipe = self.training.settings()
        images, metrics = self._images, list(self._whole)
        settings = [
            TRAIN_VERSION,
            fingerprint(self._networks),
            self._dataset.identity(),
            {name: value for name, value in recipe.items() if name not in MAY_CHANGE},
            self.seed,
            accelerator().type,
            # Only what differs from the time when there was no such choice.
            *([] if metrics == ["val_acc"] else [metrics]),
            *([] if images.whole else [images.image_size, images.num_valid]),
            *([] if self._augment == "dataset" else [self._augment]),
            *([] if self.repeats == 1 else [f"{self.repeats} repeats"]),
        ]
        self._version = _hashed(settings)
        if self.rungs:
            return _hashed([self._version, [rung.name for rung in self.rungs], self.eta])
        partial = self._until is not None and self._until < self.num_steps
        return _hashed([self._version, self._until]) if partial else self._version

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """The figures of each genotype's training, one training after another."""
        import hwnas.training.classifier  # noqa: F401  # loading torch is not training

        assert not self.rungs, "rungs are evaluated instead"

        start = time.perf_counter()
        figures = [self._repeated(genotype) for genotype in genotypes]
        seconds = time.perf_counter() - start
        if genotypes and not self._said:
            self._said = True
            until = "" if self._until is None else f" to step {self._until}"
            self._announce(f"training{until} takes {seconds / len(genotypes):.1f} s per network")
        if None in figures and not self._warned:
            self._warned = True
            self._warn(
                f"the training of a network diverged (evaluator.training.lr={self.training.lr:g}); "
                "its accuracy counts as 0, as that of any other whose training does"
            )
        return [
            {
                **{f"{name}{self._ending}": (found or WORST)[name] for name in self._figures},
                **{
                    f"{name}{self._ending}{DEVIATION}": (found or WORST)[f"{name}{DEVIATION}"]
                    for name in self._errors
                },
            }
            for found in figures
        ]

    def _repeated(self, genotype: Genotype) -> dict[str, float] | None:
        """Means of the figures of a network's trainings; None if all diverge, others count as 0 then."""
        found = [self.train(genotype, repeat) for repeat in range(self.repeats)]
        if self.repeats == 1 or not any(found):
            return found[0]
        means = {name: float(np.mean([(each or WORST)[name] for each in found])) for name in WORST}
        for name in SAMPLED:
            spread = np.std([(each or WORST)[name] for each in found], ddof=1) / math.sqrt(self.repeats)
            means[f"{name}{DEVIATION}"] = math.hypot(means[f"{name}{DEVIATION}"], spread)
        return means

    def parts(self, genotypes: Sequence[Genotype]) -> list[Sequence[Genotype]]:
        """Networks one by one."""
        return [[genotype] for genotype in genotypes]

    def train(self, genotype: Genotype, repeat: int = 0) -> dict[str, float] | None:
        """Train a network; returns figures by the names of `WORST`, or None after a divergence."""
        import torch.nn.functional as F

        module = self._trained(genotype, self.training, repeat)
        if module is None:
            return None
        steps = np.array([float(loss) for loss in module.losses])
        losses = [float(part.mean()) for part in np.array_split(steps, min(NUM_PARTS, len(steps)))]
        logits, y = answers(module, self._images, "valid")
        right, valid = int((logits.argmax(1) == y).sum()), likelihood(float(F.cross_entropy(logits, y)))
        error = float(F.cross_entropy(logits, y, reduction="none").std(correction=0)) / math.sqrt(len(y))
        return {
            "val_acc": right / len(y),
            "val_likelihood": valid,
            "train_likelihood": likelihood(float(steps.mean())),
            "likelihood_ahead": likelihood(extrapolated(losses)),
            f"val_acc{DEVIATION}": binomial_error(right, len(y)),
            f"val_likelihood{DEVIATION}": valid * error,  # d exp(-loss) = -exp(-loss) d loss
        }

    def _trained(self, genotype: Genotype, recipe: Recipe, repeat: int = 0) -> Classifier | None:
        import torch

        seed = self.seed_of(genotype, repeat)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network = self._networks.network(genotype)
        if self._until is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            session = Session(self._folder, settings="evaluator.training")
        else:
            assert self._version, "prepare comes first"
            folder = self._folder / self._version / "-".join(map(str, genotype))
            identity = {"version": self._version, "genotype": list(genotype)}
            session = Session(folder, identity, settings="evaluator.training")
        try:
            module = fit(network, self._images, recipe, session, part="train", seed=seed, until=self._until)
        except DivergedError:
            module = None
        if self._until is not None:
            self._clean(session.folder, finished=module is None or self._until == self.num_steps)
        return module

    def _clean(self, folder: Path, *, finished: bool) -> None:
        """Delete the checkpoint of a finished training, and of others what is more than the disk may hold."""
        if finished:
            forget_checkpoint(folder)
            with suppress(OSError):  # another process uses it
                folder.rmdir()
            return
        kept = []
        for path in self._folder.glob(f"*/*/{CHECKPOINT}"):
            with suppress(FileNotFoundError):  # another process has finished it
                kept.append((path.stat().st_mtime, path.stat().st_size, path))
        kept.sort(reverse=True)
        sizes = itertools.accumulate(size for _, size, _ in kept)
        for (_, _, path), size in zip(kept, sizes, strict=True):
            if size > self._checkpoint_bytes and path.parent != folder:
                path.unlink(missing_ok=True)

    def seconds_each(self, genotypes: Sequence[Genotype]) -> float:
        """Seconds that a training takes here, by the first steps of two networks' trainings.

        These are of middle and large size: the networks that are worth a training are not the smallest.
        """
        sizes = self._networks.static_metrics(genotypes).get("flops", np.zeros(len(genotypes)))
        order = np.argsort(sizes, kind="stable")
        taken = []
        for genotype in [genotypes[order[int(part * (len(order) - 1))]] for part in (0.5, 0.8)]:
            clock = []
            for steps in (FEW_STEPS, 3 * FEW_STEPS):
                start = time.perf_counter()
                module = self._trained(genotype, replace(self.training, max_steps=steps))
                clock.append(time.perf_counter() - start)
            if module is None:
                continue
            start = time.perf_counter()
            answers(module, self._images, "valid")
            judging = time.perf_counter() - start
            per_step = max(clock[1] - clock[0], 0.0) / (2 * FEW_STEPS)
            taken.append(clock[0] + per_step * (self.num_steps - FEW_STEPS) + judging)
        return self.repeats * sum(taken) / max(1, len(taken))

    @property
    def num_steps(self) -> int:
        """Optimiser steps of a training."""
        recipe = self.training
        steps = recipe.epochs * (self._dataset.size("train") // recipe.batch_size)
        return min(steps, recipe.max_steps or steps)

    def seed_of(self, genotype: Genotype, repeat: int = 0) -> int:
        """A network's own seed, of one of its trainings, below 2^31."""
        text = f"{self.seed} {self._networks.to_str(genotype)}" + f" {repeat}" * (repeat > 0)
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def _hashed(settings: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]


def binomial_error(right: int, num: int) -> float:
    """Standard error of an accuracy by the number of images; above 0 also if all or none are right.

    Args:
        right: Images that are classified right.
        num: Images.

    Source: Agresti & Coull, Approximate is Better than "Exact" for Interval Estimation of Binomial
    Proportions, The American Statistician 1998: two right and two wrong ones are added.
    """
    accuracy = (right + 2) / (num + 4)
    return math.sqrt(accuracy * (1 - accuracy) / (num + 4))


def likelihood(loss: float) -> float:
    """exp(-loss), at most 1; 0 for a loss that is no number."""
    return math.exp(-max(loss, 0.0)) if loss == loss else 0.0


def extrapolated(losses: Sequence[float]) -> float:
    """The loss after `AHEAD` times as many steps, by a power law a + b t^-c that is fitted to a curve.

    c is the best of 0.1, 0.2, ..., 1 by least squares, b at least 0; a curve that does not fall, or of fewer
    than three points, stays at its mean.

    Args:
        losses: Mean losses of equal parts of a training, in order.
    """
    if len(losses) < 3:
        return float(np.mean(losses))
    at = np.arange(1, len(losses) + 1) / len(losses)
    fits = []
    for exponent in np.arange(1, 11) / 10:
        X = np.column_stack([np.ones_like(at), at**-exponent])
        (level, fall), *_ = np.linalg.lstsq(X, np.asarray(losses), rcond=None)
        if fall < 0:
            level, fall = float(np.mean(losses)), 0.0
        error = float(((X @ [level, fall] - losses) ** 2).sum())
        fits.append((error, float(level + fall * AHEAD**-exponent)))
    return min(fits)[1]
