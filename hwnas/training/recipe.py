"""How a classifier is trained from scratch: plain numbers, checked before any work starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Literal

from annotated_types import Ge, Le

from hwnas.core import BelowOne, Count, Fraction, NotNegative, Positive, WholeNumber, checked
from hwnas.files import remove

Precision = Literal["32", "bf16", "fp16", "auto", 32]
"""A precision; YAML may have 32 as a number."""

CHECKPOINT = "checkpoint.pt"
"""File of the last finished epoch, in a training's folder; a new training in that folder resumes from it."""

NEWER = {
    *("mixup", "cutmix", "mix_prob", "shift", "rotate", "scale", "colour", "ema", "decay_norms"),
    *("teacher", "teacher_weight", "temperature"),
}
"""Settings that recipes did not have at first; stores and checkpoints of that time have no word for them."""

SLOW_EPOCHS = 5
"""Length of the warm-up and of the last, flatter part of the linear schedule."""


@checked
@dataclass(frozen=True)
class Recipe:
    """SGD with a schedule of its learning rate, and what the machine does for speed.

    Args:
        epochs: Passes over the training images; 0 leaves the network as it is.
        batch_size: Images per step, on each device.
        lr: Peak learning rate.
        momentum: SGD's momentum, in 0..1.
        weight_decay: Of all parameters.
        nesterov: Whether the momentum is Nesterov's.
        label_smoothing: In 0..1.
        grad_clip: Largest global gradient norm; None does not clip.
        max_steps: Optimiser steps at most, also within an epoch; None leaves it to the epochs.
        schedule: "one_cycle": a linear warm-up over a tenth of the steps, then one cosine to zero, changing
            every step; "cosine": to zero, changing every epoch (DARTS); "linear": changing every epoch, flat
            in the last five, with a warm-up in the first five if a batch has more than 256 images (P-DARTS).
        auxiliary_weight: Weight of the auxiliary classifier's loss; 0: none is needed.
        drop_path: Probability of drop-path that would be reached after the last epoch; it grows linearly
            from 0, changing every epoch.
        precision: "32", or mixed "bf16" or "fp16"; "auto" chooses by the device
            (`accelerator.lightning_precision`).
        channels_last: Memory format of the network; faster on most machines.
        compile: Whether torch.compile is used; the first steps take minutes.
        devices: GPUs (or processes on a CPU) that share the work.
        strategy: Lightning's name of how they do; "auto" forks a process for each, with one thread.
        mixup: Alpha of mixup, see `hwnas.data.augmentation.mixed`; 0: none.
        cutmix: Alpha of cutmix; 0: none. With both, each batch has one of them.
        mix_prob: Probability that a batch is mixed, in 0..1, where one of them is above 0.
        shift: Largest random shift of an image, as a fraction of its side, see
            `hwnas.data.augmentation.moved`; these changes come after those of the data set.
        rotate: Largest random rotation, in degrees.
        scale: Largest random enlargement and reduction, e.g. 0.1 for 0.9 to 1.1 times the size.
        colour: Largest random change of brightness, contrast and saturation, in 0..1, see
            `hwnas.data.augmentation.recoloured`.
        ema: The network that is tested has the exponential moving average of the weights, which forgets over
            this fraction of the training's steps, in 0..1; 0: the weights of the last step.
        decay_norms: Whether `weight_decay` is also of biases and of normalisations' weights.
        teacher: Folder of a trained network for the same images and classes, whose answers on the same
            changed images are learnt, too; None: none.
        teacher_weight: Weight of the teacher's loss, in 0..1; that of the labels has the rest. It is
            temperature^2 times the Kullback-Leibler divergence from the teacher's probabilities.
        temperature: What the logits of both are divided by for it.

    Raises:
        ValueError: A value out of range; names the setting.
    """

    epochs: WholeNumber
    batch_size: Count = 64
    lr: Positive = 0.1
    momentum: BelowOne = 0.9
    weight_decay: Fraction = 5e-4
    nesterov: bool = True
    label_smoothing: BelowOne = 0.0
    grad_clip: Positive | None = 5.0
    max_steps: Count | None = None
    schedule: Literal["one_cycle", "cosine", "linear"] = "one_cycle"
    auxiliary_weight: NotNegative = 0.0
    drop_path: BelowOne = 0.0
    precision: Precision = "32"
    channels_last: bool = True
    compile: bool = False
    devices: Count = 1
    strategy: str = "auto"
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    mix_prob: Fraction = 1.0
    shift: Fraction = 0.0
    rotate: Annotated[float, Ge(0), Le(180)] = 0.0
    scale: BelowOne = 0.0
    colour: Fraction = 0.0
    ema: Fraction = 0.0
    decay_norms: bool = True
    teacher: str | None = None
    teacher_weight: Fraction = 0.5
    temperature: Positive = 2.0

    def __post_init__(self) -> None:
        if self.schedule == "linear" and 0 < self.epochs <= SLOW_EPOCHS:
            raise ValueError(f"epochs must be above {SLOW_EPOCHS} with schedule=linear, not {self.epochs}")

    def check(self, *, auxiliary: bool, drop_path: bool, teacher: bool = False) -> None:
        """Raise ValueError if the recipe needs what a network has not.

        Args:
            auxiliary: Whether it has an auxiliary classifier.
            drop_path: Whether it has drop-path.
            teacher: Whether it may have a teacher.
        """
        if self.teacher is not None and not teacher:
            raise ValueError(
                f"teacher={self.teacher} is for final networks only (trainer.teacher): it may have learnt "
                "from the validation images on which other networks are judged"
            )
        if self.auxiliary_weight and not auxiliary:
            raise ValueError(
                f"trainer.auxiliary_weight={self.auxiliary_weight} needs a network with an auxiliary "
                "classifier: search_space=darts search_space.auxiliary=true, or trainer.auxiliary_weight=0"
            )
        if self.drop_path and not drop_path:
            raise ValueError(
                f"trainer.drop_path={self.drop_path} needs a network with drop-path: search_space=darts, "
                "or trainer.drop_path=0"
            )

    def lr_factor(self, step: int, num_steps: int, steps_per_epoch: int) -> float:
        """The learning rate of a step, as a fraction of `lr`.

        Args:
            step: From 0.
            num_steps: Of the whole training.
            steps_per_epoch: Batches per epoch.
        """
        if self.schedule == "one_cycle":
            warm_up = max(1, num_steps // 10)
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, num_steps - warm_up))
        epoch = step // steps_per_epoch
        if self.schedule == "cosine":
            return 0.5 + 0.5 * math.cos(math.pi * epoch / self.epochs)
        left, long = self.epochs - epoch, self.epochs - SLOW_EPOCHS
        factor = (left - SLOW_EPOCHS) / long if left > SLOW_EPOCHS else left / (long * SLOW_EPOCHS)
        if epoch < SLOW_EPOCHS and self.batch_size * self.devices > 256:
            factor *= (epoch + 1) / SLOW_EPOCHS
        return factor

    def ema_decay(self, num_averaged: int, num_steps: int) -> float:
        """The decay of the moving average in a step: it forgets over `ema` of the steps, at first faster.

        Args:
            num_averaged: Steps that are in the average.
            num_steps: Of the whole training.
        """
        longest = math.exp(-1 / (self.ema * num_steps))
        return min(longest, (1 + num_averaged) / (10 + num_averaged))

    def settings(self) -> dict[str, object]:
        """All settings by name, for identities; those of `NEWER` only where they are not as before."""
        values = {field.name: (getattr(self, field.name), field.default) for field in fields(self)}
        return {k: value for k, (value, usual) in values.items() if k not in NEWER or value != usual}

    def drop_path_at(self, epoch: int) -> float:
        """The probability of drop-path in an epoch, from 0."""
        return self.drop_path * epoch / self.epochs


@checked
@dataclass(frozen=True)
class SupernetRecipe:
    """How a supernet is trained: SGD with a learning rate that falls from `lr` to `lr_min`.

    Args:
        sampling: What each step trains. "random_alpha": alphas drawn anew from U[0, alpha_scale), put through
            the softmax as they are (CMANAS, pEvoNAS); "population": the population's members in turn, decoded
            (EvNAS, NEvoNAS); "population_alpha": the same, but their alphas put through the softmax as they
            are (EvNAS' ablations without decoding in training); "single_path": one architecture drawn
            uniformly, nothing else runs.
        importance: What is drawn with probabilities that follow the norms of gradients in the last epoch,
            instead of uniformly: "operations" of single paths, "images", "both" or "none". Their share rises
            from 0 in the first epochs to 1 at the end.
        alpha_scale: Upper end of random alphas (pEvoNAS on the DARTS space: 1e-3).
        batch_size: Images per step, on each device.
        lr: Learning rate of the first epoch.
        lr_min: Learning rate after the last one.
        schedule: "cosine", the same for all architectures of an epoch; "complexity": each step has a learning
            rate that depends on the parameters of its architecture, larger ones keep a high one for longer.
        power: With schedule=complexity the exponent of the smallest architecture; that of the largest one is
            1 / power.
        momentum: SGD's momentum, in 0..1.
        weight_decay: Of all parameters.
        nesterov: Whether the momentum is Nesterov's.
        grad_clip: Largest global gradient norm; None does not clip.
        autocast: Whether a GPU computes in bfloat16 while training; without a GPU it has no effect. "auto",
            here and below: as `hwnas.training.accelerator.EXECUTIONS` says for the device.
        execution: "stacked": equal operations are computed as one; "plain": one by one.
        channels_last: Whether channels of a pixel lie side by side in memory; "stacked" needs it.
        graphs: Whether soft steps are recorded and replayed as a CUDA graph, on one device.
        resident: Whether training images lie in the GPU's memory. "auto": if they fill at most a quarter of
            what is free.
        ranking_weight: Largest weight of the ranking loss of pairs; 0: none. Above 0, each step trains two
            single paths, drawn from networks with a score, and adds max(0, loss of the one with the better
            score - loss of the other + margin). The weight of an epoch is `ranking_weight_at`.
        ranking_margin: That margin, in units of the cross-entropy.
        devices: GPUs (or processes on a CPU) that share the training.
        strategy: How their processes start: "ddp_fork", with one thread each; "ddp_spawn", anew, which takes
            seconds; "auto": forked on a CPU, anew on GPUs, since CUDA does not survive a fork.

    Raises:
        ValueError: A value out of range; names the setting.
    """

    sampling: Literal["random_alpha", "population", "population_alpha", "single_path"]
    importance: Literal["none", "operations", "images", "both"] = "none"
    alpha_scale: Positive = 1.0
    batch_size: Annotated[int, Ge(2)] = 64
    lr: Positive = 0.025
    lr_min: Fraction = 0.001
    schedule: Literal["cosine", "complexity"] = "cosine"
    power: Annotated[float, Ge(1)] = 3.0
    momentum: Fraction = 0.9
    weight_decay: Fraction = 3e-4
    nesterov: bool = True
    grad_clip: Positive | None = 5.0
    autocast: bool | Literal["auto"] = "auto"
    execution: Literal["auto", "stacked", "plain"] = "auto"
    channels_last: bool | Literal["auto"] = "auto"
    graphs: bool | Literal["auto"] = "auto"
    resident: bool | Literal["auto"] = "auto"
    ranking_weight: NotNegative = 0.0
    ranking_margin: NotNegative = 0.0
    devices: Count = 1
    strategy: Literal["auto", "ddp_fork", "ddp_spawn"] = "auto"

    def __post_init__(self) -> None:
        if self.lr_min > self.lr:
            raise ValueError(f"lr_min must be at most lr ({self.lr:g}), not {self.lr_min!r}")
        if self.schedule == "complexity" and self.sampling != "single_path":
            raise ValueError(
                "schedule=complexity needs sampling=single_path: only a step of a single architecture has "
                f"its parameters, not one of sampling={self.sampling}"
            )
        if self.importance in ("operations", "both") and self.sampling != "single_path":
            raise ValueError(
                f"importance={self.importance} needs sampling=single_path, not sampling={self.sampling}"
            )
        if self.importance != "none" and self.devices > 1:
            raise ValueError(f"importance={self.importance} needs devices=1, not {self.devices}")
        needed = {"sampling": "single_path", "importance": "none", "devices": 1}
        for name, value in needed.items() if self.ranking_weight else ():
            if getattr(self, name) != value:
                raise ValueError(
                    f"ranking_weight={self.ranking_weight:g} needs {name}={value}, not {getattr(self, name)}"
                )

    def lr_at(self, epoch: int, num_epochs: int, complexity: float = 0.0) -> float:
        """The learning rate of a step.

        With schedule=complexity it is `lr_min` + (`lr` - `lr_min`) (1 - epoch / num_epochs) ** kappa, where
        kappa falls from `power` (complexity 0) to 1 / `power` (complexity 1).

        Args:
            epoch: Number of its epoch, from 0.
            num_epochs: Epochs planned; beyond those the learning rate is `lr_min`.
            complexity: Of the step's architecture, in 0..1; only for schedule=complexity.

        Source: CaLR, arXiv 2503.10740 (code).
        """
        progress = min(epoch / num_epochs, 1.0)
        if self.schedule == "complexity":
            kappa = self.power + (1 / self.power - self.power) * complexity
            return self.lr_min + (self.lr - self.lr_min) * (1 - progress) ** kappa
        return self.lr_min + (self.lr - self.lr_min) * 0.5 * (1 + math.cos(math.pi * progress))

    def ranking_weight_at(self, epoch: int, num_epochs: int) -> float:
        """The weight of the ranking loss: `ranking_weight` sin(0.8 pi epoch / num_epochs).

        It rises from 0 to `ranking_weight` in the first 62.5 % of the planned epochs and ends at 0.59 of it.

        Source: RD-NAS, arXiv 2301.09850 (the authors' code, with a weight of 2).
        """
        return self.ranking_weight * math.sin(0.8 * math.pi * min(epoch / num_epochs, 1.0))


def forget_checkpoint(folder: Path) -> None:
    """Delete the checkpoint of a network whose figures are written down."""
    remove(folder / CHECKPOINT)
