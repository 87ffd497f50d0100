"""Trainings that keep a checkpoint of every epoch and resume from it as if never interrupted."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NotRequired, Protocol, TypedDict, cast

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from hwnas.data import images
from hwnas.files import read_torch, write_torch
from hwnas.training.accelerator import fits
from hwnas.training.recipe import CHECKPOINT

Batch = tuple[Tensor, Tensor]


class Passes(Protocol):
    """Batches for training or evaluation; `epoch` chooses shuffle and augmentation of the next pass."""

    epoch: int

    def __len__(self) -> int:
        """Batches per pass."""

    def __iter__(self) -> Iterator[Batch]:
        """(images (B, C, H, W) in 0..1, labels (B,)) per batch."""


class Checkpoint(TypedDict):
    """All that a training needs to resume after the last finished epoch, in plain types and tensors.

    Attributes:
        network: Its state.
        average: That of the averaged weights, of a training that averages them.
        optimizer: Its state.
        precision: Loss scale of fp16; older ones lack it.
        step: Optimiser steps taken; older ones were written after whole passes only.
        losses: Of each step, shape (steps,), of a training that stops on the way.
        random: States of torch's generators, on the CPU and, if there is one, on the GPU, likewise.
        history: Figures per epoch.
        identity: What is trained.
    """

    network: dict[str, Tensor]
    average: NotRequired[dict[str, Tensor]]
    optimizer: dict[str, object]
    precision: NotRequired[dict[str, object]]
    step: NotRequired[int]
    losses: NotRequired[Tensor]
    random: NotRequired[list[Tensor]]
    history: list[dict[str, float]]
    identity: Mapping[str, object]


@dataclass(frozen=True)
class Session:
    """Where a training works, what it keeps there, and whom it tells.

    Args:
        folder: Working folder.
        identity: What is trained, by name, JSON-able. The folder then keeps a checkpoint of the last finished
            epoch, and a training that finds one resumes from it. None keeps none.
        on_epoch: Called with the figures of each epoch.
        announce: Called with sentences on the progress, e.g. that a training resumes.
        warn: Called with a sentence where something is doubtful.
        settings: Where the recipe stands in the configuration, for errors.
    """

    folder: Path
    identity: Mapping[str, object] | None = None
    on_epoch: Callable[[dict[str, float]], None] = lambda figures: None
    announce: Callable[[str], None] = lambda text: None
    warn: Callable[[str], None] = lambda text: None
    settings: str = "trainer"

    @property
    def path(self) -> Path:
        """The file of the checkpoint."""
        return self.folder / CHECKPOINT

    def start(self) -> Checkpoint | None:
        """The checkpoint to resume from; None where there is none.

        Raises:
            ValueError: It is damaged, or of another training.
        """
        if self.identity is None or not self.path.is_file():
            return None
        found = read_checkpoint(self.path, self.identity)
        self.announce(f"resuming after epoch {len(found['history'])}")
        return found

    def keep(self) -> KeepLast | None:
        """The callback that writes the checkpoint; None if none is kept."""
        return None if self.identity is None else KeepLast(self.path, self.identity)


class Resumable(pl.LightningModule):
    """A network in training, by whole passes over the training images.

    `training_step` adds to `sums` the batch's mean of each figure that `figures` names.

    Args:
        network: Trained in place.
        steps_per_epoch: Optimiser steps per pass.
        start: Checkpoint to resume from; None starts anew.
        first_epoch: Number of the first pass, from 0.
        on_epoch: Called with the figures of each epoch.

    Attributes:
        history: Per epoch "epoch", from 1, and the figures.
        sums: Figures of each step of the epoch.
    """

    figures: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        network: nn.Module,
        *,
        steps_per_epoch: int,
        start: Checkpoint | None,
        on_epoch: Callable[[dict[str, float]], None],
        first_epoch: int = 0,
    ) -> None:
        super().__init__()
        self.network, self.steps_per_epoch, self.first_epoch = network, steps_per_epoch, first_epoch
        self._start, self._on_epoch = start, on_epoch
        self.history: list[dict[str, float]] = []
        if start is not None:
            network.load_state_dict(start["network"])
            self.history += start["history"]
        whole = len(self.history) * steps_per_epoch
        self._steps_before = whole if start is None else start.get("step", whole)
        self.sums: list[Tensor] = []

    def __getstate__(self) -> dict[str, Any]:
        """For processes that start anew: they cannot reach whom this one tells, and tell nobody."""
        return {**super().__getstate__(), "_on_epoch": _tell_nobody}

    @property
    def step(self) -> int:
        """Optimiser steps taken, also before the training was interrupted."""
        return self._steps_before + self.global_step

    @property
    def epoch(self) -> int:
        """Number of the pass, from `first_epoch`; follows from the steps, so that a resumed one is right."""
        return self.first_epoch + self.step // self.steps_per_epoch

    def restored(self, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
        """An optimiser with the checkpoint's state, if there is a checkpoint."""
        if self._start is not None:
            optimizer.load_state_dict(self._start["optimizer"])
        return optimizer

    def on_fit_start(self) -> None:
        """Restore the loss scale of fp16."""
        if self._start is not None and self._start.get("precision"):
            self.trainer.precision_plugin.load_state_dict(self._start["precision"])

    def on_train_epoch_end(self) -> None:
        """Write down the epoch's figures."""
        sums = torch.stack(self.sums).mean(0)
        if self.trainer.world_size > 1:
            sums = self.trainer.strategy.reduce(sums, reduce_op="mean")
        self.sums = []
        values = dict(zip(self.figures, sums.tolist(), strict=True))
        self.history.append({"epoch": len(self.history) + 1, **values, **self.epoch_settings()})
        if self.trainer.is_global_zero:
            self._on_epoch(self.history[-1])

    def epoch_settings(self) -> dict[str, float]:
        """Further figures of an epoch."""
        return {}

    def checkpoint(self, identity: Mapping[str, object]) -> Checkpoint:
        """The training after its last finished epoch."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self.trainer.optimizers[0].state_dict(),
            "precision": self.trainer.precision_plugin.state_dict(),
            "step": self.step,
            "history": self.history,
            "identity": identity,
        }


def _tell_nobody(figures: dict[str, float]) -> None:
    """Ignore the figures of an epoch."""


class InOrder:
    """The batches of a training, each pass with the module's number of it and from the module's step on."""

    def __init__(self, batches: Passes, module: Resumable) -> None:
        self.batches, self.module = batches, module

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        self.batches.epoch = self.module.epoch
        if isinstance(self.batches, images.Passes):
            device = self.module.device
            x = self.batches.x if isinstance(self.batches, images.Batches) else None
            self.batches.to(device, resident=x is not None and fits(device, x))
        return itertools.islice(self.batches, self.module.step % self.module.steps_per_epoch, None)


class KeepLast(pl.callbacks.Checkpoint):
    """Writes a checkpoint after every epoch, in one piece; resumed from Lightning's, a batch came twice.

    Args:
        path: The file.
        identity: What is trained, JSON-able.
    """

    def __init__(self, path: Path, identity: Mapping[str, object]) -> None:
        self.path, self.identity = path, dict(identity)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write it, in the first process only."""
        if trainer.is_global_zero:
            write_torch(self.path, cast(Resumable, pl_module).checkpoint(self.identity))


def read_checkpoint(path: Path, identity: Mapping[str, object]) -> Checkpoint:
    """The checkpoint that `KeepLast` wrote.

    Raises:
        ValueError: It is damaged, or of another training; says in what they differ.
    """
    advice = "; delete it to train from the start"
    stored = read_torch(path, "network", "optimizer", "history", "identity", advice=advice)
    found = dict(stored["identity"])
    for key, value in identity.items():
        if found.get(key) != value:
            raise ValueError(
                f"{path} is of another training: its {key} is {found.get(key)}, not {value}{advice}"
            )
    return cast(Checkpoint, stored)
