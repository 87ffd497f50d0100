"""How every Lightning Trainer of this package is made and run, on one device or several."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException

from hwnas.training.accelerator import accelerator
from hwnas.training.progress import progress

logging.getLogger("pytorch_lightning").handlers.clear()  # what it says belongs in the run's log only
logging.getLogger("pytorch_lightning").propagate = True


class _Progress(pl.Callback):
    """Tells how many steps are done."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: object) -> None:
        """Called after every step."""
        steps = trainer.max_steps
        if steps < 0:
            steps = (trainer.max_epochs or 0) * int(trainer.num_training_batches)
        progress("steps", trainer.global_step, steps)


class _OneThread(pl.Callback):
    """One thread for a forked process: OpenMP waits forever for the threads that its parent had."""

    def __init__(self) -> None:
        self._parent = os.getpid()

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Called in every process before anything is computed."""
        if os.getpid() != self._parent:
            torch.set_num_threads(1)


FORKING = ("fork", "notebook")
"""Parts of the names of Lightning's strategies that fork."""


@dataclass(frozen=True)
class Devices:
    """GPUs, or processes on a CPU, that share a training.

    Args:
        number: How many.
        strategy: Lightning's name of how they work together. "auto" forks a process for each, with one
            thread; on GPUs each starts anew, since CUDA does not survive a fork.
        unused: Whether a step may leave parameters unused, for strategies of the DDP family.
    """

    number: int = 1
    strategy: str = "auto"
    unused: bool = False

    def lightning(self) -> str:
        """The strategy's whole name."""
        strategy = self.strategy
        if self.number > 1 and strategy == "auto":
            strategy = "ddp_spawn" if accelerator().type == "cuda" else "ddp_fork"
        finds = self.unused and strategy.startswith("ddp")
        return f"{strategy}_find_unused_parameters_true" if finds else strategy


ONE_DEVICE = Devices()


def fit_by_lightning(
    module: pl.LightningModule,
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
    *,
    folder: Path,
    devices: Devices = ONE_DEVICE,
    keep: pl.callbacks.Checkpoint | None = None,
    **settings: Any,
) -> None:
    """Let a Trainer fit a module.

    What several devices learn is in the module's weights and buffers afterwards; its other attributes are
    those from before.

    Args:
        module: Trained in place.
        batches: What it is trained on, sharded among the devices by itself; None: the module has them.
        folder: Lightning's working folder.
        devices: On what it is trained.
        keep: Writes checkpoints.
        settings: Further arguments of the Trainer.

    Raises:
        ValueError: What the module raises as such in any process, devices that there are not, or a process
            that was killed.
        RuntimeError: Anything else that fails in a process.
        KeyboardInterrupt: Ctrl-C.
    """
    strategy = devices.lightning()
    forks = any(part in strategy for part in FORKING)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", module="pytorch_lightning")  # about loaders that we do not use
        # fp16 leaves out the first steps of the optimiser, until its loss scale fits.
        warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step")
        try:
            trainer = pl.Trainer(
                accelerator=accelerator().type,
                devices=devices.number,
                strategy=strategy,
                callbacks=[_Progress(), *([keep] if keep else []), *([_OneThread()] if forks else [])],
                use_distributed_sampler=False,  # the batches share the images among devices themselves
                logger=False,
                enable_checkpointing=keep is not None,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
                **settings,
            )
            trainer.fit(module, batches)
        except SystemExit:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from None
        except MisconfigurationException as error:
            raise ValueError(" ".join(str(error).split())) from None
        except ProcessRaisedException as error:
            raise _as_here(str(error)) from None
        except ProcessExitedException:
            raise ValueError("a process of the training was killed (out of memory?)") from None
        if trainer.interrupted:
            raise KeyboardInterrupt


def _as_here(traceback: str) -> Exception:
    """The error of another process, as this one would have raised it."""
    lines = [line for line in traceback.splitlines() if line.strip()]
    text = next((line for line in reversed(lines) if "Error: " in line), lines[-1])
    if failed := re.fullmatch(r"(?:[\w.]+\.)?\w*Error: \[Errno (\d+)\] (.*?)(?:: '(.*)')?", text):
        return OSError(int(failed[1]), failed[2], failed[3])
    known = re.fullmatch(r"(?:[\w.]+\.)?(?:Value|Diverged|Memory)Error: (.*)", text)
    return ValueError(known[1]) if known else RuntimeError(text)
