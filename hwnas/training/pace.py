"""The length of a training in seconds instead of steps, by the speed of this machine."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from hwnas.core import FloatArray, Genotype
from hwnas.spaces.capabilities import HasNetworks, identity
from hwnas.training.checkpoint import Session
from hwnas.training.classifier import Classifier, TrainingData, answers, fit
from hwnas.training.final import NamedData, train_network
from hwnas.training.recipe import SLOW_EPOCHS, Recipe

__all__ = ["Session", "seconds_per_step", "steps_within", "train_network", "tried", "within"]

FEW_STEPS, MOST_STEPS = 4, 256
"""Steps that are clocked first, and at most."""

SMALL_LR = 1e-6
"""Learning rate of steps that are clocked: so few have no warm-up, and at the recipe's they may diverge."""

ENOUGH = 1.5
"""Seconds of a training that suffice to clock it."""

RESERVE = 0.97
"""Part of the seconds that is planned; the rest is for what the first steps do not show."""


def steps_within(
    network: nn.Module, dataset: TrainingData, recipe: Recipe, seconds: float, *, part: str, folder: Path
) -> int:
    """Optimiser steps for which a training and its answers on validation or test images take so many seconds.

    Args:
        network: As it is before the training.
        dataset: Images.
        recipe: How it is trained.
        seconds: Of training and answers together.
        part: The images that train, "train" or "all".
        folder: Working folder of the training; nothing is left there.

    Returns:
        At least 1.

    Raises:
        ValueError: What `fit` raises.
    """
    per_step, starting, module = _clocked(network, dataset, recipe, part, folder)
    start = time.perf_counter()
    answers(module, dataset, "valid" if part == "train" else "test")
    judging = time.perf_counter() - start
    return max(1, int((RESERVE * seconds - judging - starting) / per_step))


def seconds_per_step(network: nn.Module, dataset: TrainingData, recipe: Recipe, folder: Path) -> float:
    """Seconds of an optimiser step on all training images; arguments as for `steps_within`."""
    return _clocked(network, dataset, recipe, "all", folder)[0]


def _clocked(
    network: nn.Module, dataset: TrainingData, recipe: Recipe, part: str, folder: Path
) -> tuple[float, float, Classifier]:
    """Seconds per step, seconds that a training takes to start, and a network after a few steps.

    A copy of the network is trained for a moment, twice as long again and again, until a training takes
    enough seconds. It is compared with the one before: only the first one pays for what is made once.
    """
    clock: dict[int, float] = {}
    steps = FEW_STEPS
    recipe = replace(recipe, lr=SMALL_LR, teacher=recipe.teacher if part == "all" else None)
    while True:
        start = time.perf_counter()
        few = within(recipe, steps, dataset, part)
        module = fit(copy.deepcopy(network), dataset, few, Session(folder), part=part, seed=0)
        clock[steps] = time.perf_counter() - start
        if steps > FEW_STEPS and (clock[steps] > ENOUGH or steps >= MOST_STEPS):
            break
        steps *= 2
    per_step = max(1e-6, (clock[steps] - clock[steps // 2]) / (steps - steps // 2))
    return per_step, max(0.0, clock[steps] - steps * per_step), module


def within(recipe: Recipe, steps: int, dataset: TrainingData, part: str) -> Recipe:
    """The recipe with so many optimiser steps, and its schedule stretched over them."""
    per_pass = len(dataset.batches(part, batch_size=recipe.batch_size, num_shards=recipe.devices))
    epochs = math.ceil(steps / max(1, per_pass))
    least = SLOW_EPOCHS + 1 if recipe.schedule == "linear" else 1
    return replace(recipe, epochs=max(least, epochs), max_steps=steps)


def tried(
    space: HasNetworks, genotype: Genotype, dataset: NamedData, recipe: Recipe, session: Session, *, seed: int
) -> tuple[FloatArray, FloatArray]:
    """Train an architecture on the training images without those that validate.

    Args:
        space: The space.
        genotype: The architecture.
        dataset: Images.
        recipe: How to train; without its teacher, who may have learnt from the validation images.
        session: Its folder, created if needed, and whom it tells; an interrupted training resumes there.
        seed: Seed of initialisation, shuffling and augmentation.

    Returns:
        Of each validation and each test image 1 if the network answers it right, else 0.

    Raises:
        ValueError: What `fit` raises.
    """
    session.folder.mkdir(parents=True, exist_ok=True)
    session = replace(session, identity=identity(space, genotype, dataset))
    recipe = replace(recipe, teacher=None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = fit(space.network(genotype), dataset, recipe, session, part="train", seed=seed)
    pairs = (answers(module, dataset, part) for part in ("valid", "test"))
    valid, test = ((logits.argmax(1) == y).double().numpy() for logits, y in pairs)
    return valid, test
