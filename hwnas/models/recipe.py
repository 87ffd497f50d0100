"""How a classifier is trained from scratch: plain numbers, checked before any work starts."""

from __future__ import annotations

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
