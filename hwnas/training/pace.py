"""The length of a training in seconds instead of steps, by the speed of this machine."""

from __future__ import annotations

import copy
import math
import time
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from hwnas.training.checkpoint import Session
from hwnas.training.classifier import TrainingData, answers, fit
from hwnas.training.recipe import SLOW_EPOCHS, Recipe

FEW_STEPS, MOST_STEPS, CLOCKED_SECONDS = 4, 256, 1.5
"""Steps that are clocked first, and steps and seconds at most."""

RESERVE = 0.97
"""Part of the seconds that is planned; the rest is for what the first steps do not show."""


def steps_within(
    network: nn.Module, dataset: TrainingData, recipe: Recipe, seconds: float, *, part: str, folder: Path
) -> int:
    """Optimiser steps for which a training and its answers on validation or test images take so many seconds.

    A copy of the network is trained for a moment: twice as long again and again, until the difference of two
    trainings, without what only their start takes, can be trusted.

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
    clock: dict[int, float] = {}
    steps = FEW_STEPS
    while True:
        start = time.perf_counter()
        module = fit(
            copy.deepcopy(network),
            dataset,
            within(recipe, steps, dataset, part),
            Session(folder),
            part=part,
            seed=0,
        )
        clock[steps] = time.perf_counter() - start
        if steps > FEW_STEPS and (clock[steps] > CLOCKED_SECONDS or steps >= MOST_STEPS):
            break
        steps *= 2
    per_step = max(1e-6, (clock[steps] - clock[FEW_STEPS]) / (steps - FEW_STEPS))
    start = time.perf_counter()
    answers(module, dataset, "valid" if part == "train" else "test")
    judging, starting = time.perf_counter() - start, max(0.0, clock[FEW_STEPS] - FEW_STEPS * per_step)
    return max(1, int((RESERVE * seconds - judging - starting) / per_step))


def within(recipe: Recipe, steps: int, dataset: TrainingData, part: str) -> Recipe:
    """The recipe with so many optimiser steps, and its schedule stretched over them."""
    per_pass = len(dataset.batches(part, batch_size=recipe.batch_size, num_shards=recipe.devices))
    epochs = math.ceil(steps / max(1, per_pass))
    least = SLOW_EPOCHS + 1 if recipe.schedule == "linear" else 1
    return replace(recipe, epochs=max(least, epochs), max_steps=steps)


def right(module: nn.Module, dataset: TrainingData, part: str) -> Tensor:
    """Which images of a part a trained classifier answers right, (N,) of bool."""
    logits, y = answers(module, dataset, part)  # type: ignore[arg-type]
    return logits.argmax(1) == y
