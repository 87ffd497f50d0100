"""How a classifier is trained from scratch: plain numbers, checked before any work starts."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hwnas.core import positive, share, whole_number


@dataclass(frozen=True)
class Recipe:
    """SGD with one cosine cycle: a linear warm-up over a tenth of the steps, then down to zero.

    Args:
        epochs: Passes over the training images; 0 leaves the network as it is.
        batch_size: Images per step.
        lr: Peak learning rate.
        momentum: SGD's momentum, in 0..1.
        weight_decay: Of all parameters.
        nesterov: Whether the momentum is Nesterov's.
        label_smoothing: In 0..1.
        grad_clip: Largest global gradient norm; None does not clip.
        max_steps: Optimiser steps at most, also within an epoch; None leaves it to the epochs.

    Raises:
        ValueError: A value out of range; names the setting.
    """

    epochs: int
    batch_size: int = 64
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = True
    label_smoothing: float = 0.0
    grad_clip: float | None = 5.0
    max_steps: int | None = None

    def __post_init__(self) -> None:
        whole_number("epochs", self.epochs, least=0)
        whole_number("batch_size", self.batch_size)
        positive("lr", self.lr)
        for name in ("momentum", "label_smoothing"):
            share(name, getattr(self, name))
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, not {getattr(self, name)!r}")
        share("weight_decay", self.weight_decay)
        if self.grad_clip is not None:
            positive("grad_clip", self.grad_clip)
        if self.max_steps is not None:
            whole_number("max_steps", self.max_steps)


SAMPLINGS = ("random_alpha", "population", "single_path")


@dataclass(frozen=True)
class SupernetRecipe:
    """How a supernet is trained: SGD with one cosine from `lr` to `lr_min`, stepped per epoch.

    Args:
        sampling: What each step trains. "random_alpha": alphas drawn anew from U[0, alpha_scale), put through
            the softmax as they are (CMANAS, pEvoNAS); "population": the population's members in turn, decoded
            (EvNAS, NEvoNAS); "single_path": one architecture drawn uniformly, nothing else runs.
        alpha_scale: Upper end of random alphas (pEvoNAS on the DARTS space: 1e-3).
        batch_size: Images per step.
        lr: Learning rate of the first epoch.
        lr_min: Where the cosine ends.
        momentum: SGD's momentum, in 0..1.
        weight_decay: Of all parameters.
        nesterov: Whether the momentum is Nesterov's.
        grad_clip: Largest global gradient norm; None does not clip.
        autocast: Whether a GPU computes in bfloat16 while training; without a GPU it has no effect.

    Raises:
        ValueError: A value out of range; names the setting.
    """

    sampling: str
    alpha_scale: float = 1.0
    batch_size: int = 64
    lr: float = 0.025
    lr_min: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 3e-4
    nesterov: bool = True
    grad_clip: float | None = 5.0
    autocast: bool = False

    def __post_init__(self) -> None:
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling must be one of {', '.join(SAMPLINGS)}, not {self.sampling!r}")
        whole_number("batch_size", self.batch_size, least=2)
        for name in ("alpha_scale", "lr"):
            positive(name, getattr(self, name))
        if not 0 <= share("lr_min", self.lr_min) <= self.lr:
            raise ValueError(f"lr_min must be at most lr ({self.lr:g}), not {self.lr_min!r}")
        for name in ("momentum", "weight_decay"):
            share(name, getattr(self, name))
        for name in ("nesterov", "autocast"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(f"{name} must be true or false, not {getattr(self, name)!r}")
        if self.grad_clip is not None:
            positive("grad_clip", self.grad_clip)

    def lr_at(self, epoch: int, num_epochs: int) -> float:
        """The learning rate of an epoch, from 0, of `num_epochs` planned; beyond those `lr_min`."""
        progress = min(epoch / num_epochs, 1.0)
        return self.lr_min + (self.lr - self.lr_min) * 0.5 * (1 + math.cos(math.pi * progress))
