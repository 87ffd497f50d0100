"""A Lightning module that trains any network to classify images, and the function that runs it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.data.images import Batches, Images
from hwnas.models.recipe import Recipe


class Classifier(pl.LightningModule):
    """Normalises images, classifies them with a network, and trains it by a recipe.

    Args:
        network: (B, C, H, W) to logits (B, classes).
        mean: Mean per channel, shape (C, 1, 1).
        std: Standard deviation per channel, shape (C, 1, 1).
        recipe: How to train.
        num_steps: Optimiser steps of the whole training, for the schedule.
        on_epoch: Called with the figures of each epoch.

    Attributes:
        history: Per epoch "epoch", "loss", "train_acc" (of augmented batches, in 0..1) and "lr".
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Tensor,
        std: Tensor,
        recipe: Recipe,
        num_steps: int,
        on_epoch: Callable[[dict[str, float]], None] = lambda figures: None,
    ) -> None:
        super().__init__()
        self.network = network
        self.recipe = recipe
        self.num_steps = num_steps
        self.history: list[dict[str, float]] = []
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self._on_epoch = on_epoch
        self._sums: list[Tensor] = []

    def normalise(self, x_BCHW: Tensor) -> Tensor:
        """Images in 0..1 as the network takes them."""
        return ((x_BCHW - self.mean) / self.std).contiguous(memory_format=torch.channels_last)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, classes) of images in 0..1."""
        return self.network(self.normalise(x_BCHW))

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        """Cross-entropy of a batch; stops the training when it is not finite."""
        x, y = batch
        logits = self(x)
        loss = F.cross_entropy(logits, y, label_smoothing=self.recipe.label_smoothing)
        if not torch.isfinite(loss):
            raise ValueError(
                f"the loss became {loss.item()} in step {self.global_step} at a learning rate of "
                f"{self.optimizers().param_groups[0]['lr']:.3g}; try a smaller lr"  # type: ignore[union-attr]
            )
        self._sums.append(torch.stack([loss.detach(), (logits.argmax(1) == y).float().mean()]))
        return loss

    def on_train_epoch_end(self) -> None:
        """Write down the epoch's figures."""
        loss, accuracy = torch.stack(self._sums).mean(0).tolist()
        figures = {
            "epoch": self.current_epoch + 1,
            "loss": loss,
            "train_acc": accuracy,
            "lr": self.optimizers().param_groups[0]["lr"],  # type: ignore[union-attr]
        }
        self._sums = []
        self.history.append(figures)
        self._on_epoch(figures)

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """SGD and the recipe's schedule, per step."""
        recipe = self.recipe
        optimizer = torch.optim.SGD(
            self.network.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov and recipe.momentum > 0,
        )
        warm_up = max(1, self.num_steps // 10)

        def factor(step: int) -> float:
            if step < warm_up:
                return (step + 1) / warm_up
            return 0.5 + 0.5 * math.cos(math.pi * (step - warm_up) / max(1, self.num_steps - warm_up))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def fit(
    network: nn.Module,
    dataset: Images,
    recipe: Recipe,
    *,
    part: str,
    seed: int,
    folder: Path,
    on_epoch: Callable[[dict[str, float]], None] = lambda figures: None,
) -> Classifier:
    """Train a network; returns the module in evaluation mode, on the CPU.

    Args:
        network: Initialised by the caller.
        dataset: Images.
        recipe: How to train.
        part: Which training images: "train" or "all".
        seed: Seed of shuffling and augmentation.
        folder: Lightning's working folder.
        on_epoch: Called with the figures of each epoch.

    Raises:
        ValueError: Fewer images than a batch, or a loss that is not finite.
    """
    batches = Batches(*dataset.split(part), dataset, batch_size=recipe.batch_size, seed=seed)
    num_steps = min(recipe.epochs * len(batches), recipe.max_steps or recipe.epochs * len(batches))
    module = Classifier(network, *dataset.normalisation(), recipe, num_steps, on_epoch)
    module.to(memory_format=torch.channels_last)  # 1.4 times faster on a CPU
    if num_steps:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="pytorch_lightning")  # about loaders that we do not use
            trainer = pl.Trainer(
                max_steps=num_steps,
                accelerator="auto",
                devices=1,
                gradient_clip_val=recipe.grad_clip,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                default_root_dir=folder,
            )
            try:
                trainer.fit(module, batches)
            except SystemExit:  # Lightning's answer to Ctrl-C
                raise KeyboardInterrupt from None
            if trainer.interrupted:
                raise KeyboardInterrupt
    return module.cpu().eval()


@torch.inference_mode()
def accuracy(module: Classifier, dataset: Images, part: str) -> float:
    """Share of correct answers on a part of the data set, in 0..1."""
    x, y = dataset.split(part)
    answers = [module(chunk).argmax(1) for chunk in x.split(1000)]
    return (torch.cat(answers) == y).float().mean().item()
