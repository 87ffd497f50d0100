"""A Beta-VAE that also classifies, and its training.

The part that is deployed, and pruned, is `Deployed`: encoder, mean of the latent code, classifier. The
decoder and the log-variance are there while it trains.

Shapes: B images, C channels, H height, W width, L latent dimensions, K classes.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal, TypedDict, cast

import torch
import torch.nn.functional as F
from annotated_types import Ge, Len
from torch import Tensor, nn

from hwnas.core import Count, NotNegative, Positive, checked, seed_of
from hwnas.data.images import Images
from hwnas.files import read_torch
from hwnas.training.accelerator import lightning_precision
from hwnas.training.checkpoint import Batch, Checkpoint, InOrder, Passes, Resumable, Session
from hwnas.training.lightning import fit_by_lightning
from hwnas.training.recipe import Precision

KERNEL = 4
"""Side of all kernels; with a stride of 2 and a padding of 1 every convolution halves height and width."""


@checked
@dataclass(frozen=True)
class BetaVAESettings:
    """The network and its loss: reconstruction + beta * KL + gamma * cross-entropy.

    Args:
        channels: Channels of the convolutions; each halves height and width.
        hidden: Units of the layer before the latent code.
        latent: Dimensions of the latent code.
        norm: Whether batch normalisation follows each convolution.
        likelihood: "bernoulli": cross-entropy per pixel; "gaussian": squared error, which is a variance of
            1/2; both summed over pixels. "none": no decoder, which with a KL is an information bottleneck.
        noise: Whether the code is sampled while training; False needs beta=0, and with likelihood=none is a
            plain classifier.
        beta: Weight of the KL divergence to the standard normal.
        gamma: Weight of the classifier's cross-entropy.
        capacity: Where the KL is led to, in nats: beta * |KL - C|, C rising linearly from 0; None: beta * KL.
        capacity_epochs: Epochs over which C rises.

    Raises:
        ValueError: A value out of range; names the setting.

    Source: Higgins et al., beta-VAE, ICLR 2017; the capacity: Burgess et al., arXiv 1804.03599, equation 8;
        the bottleneck: Alemi et al., Deep Variational Information Bottleneck, ICLR 2017.
    """

    channels: Annotated[Sequence[Count], Len(1)]
    hidden: Count
    latent: Count
    norm: bool
    likelihood: Literal["bernoulli", "gaussian", "none"]
    noise: bool
    beta: NotNegative
    gamma: NotNegative
    capacity: Positive | None
    capacity_epochs: Positive

    def __post_init__(self) -> None:
        if self.beta and not self.noise:
            raise ValueError(
                f"beta must be 0 without noise: a code that is not sampled has no KL, not {self.beta:g}"
            )
        if self.gamma == 0 and self.likelihood == "none":
            raise ValueError("gamma must be above 0 where there is no decoder: nothing would be learnt")

    @property
    def kind(self) -> str:
        """The kind of network: "beta-VAE", "bottleneck" (no decoder), "classifier" (no code either)."""
        if self.likelihood != "none":
            return "beta-VAE"
        return "bottleneck" if self.noise else "classifier"

    def network(self, image_shape: Sequence[int], num_classes: int) -> BetaVAE:
        """A new network for images of (C, H, W), initialised by torch's global generator.

        Raises:
            ValueError: The images are too small for that many convolutions.
        """
        return BetaVAE(self, image_shape, num_classes)


@checked
@dataclass(frozen=True)
class BetaVAERecipe:
    """How a Beta-VAE is trained: Adam with decoupled weight decay (AdamW), at a constant learning rate.

    Args:
        epochs: Passes over the training images.
        batch_size: Images per step.
        lr: Learning rate.
        weight_decay: Of all parameters, times the learning rate per step.
        precision: "32", mixed "bf16" or "fp16", or "auto"; tests are always in 32 bits.

    Raises:
        ValueError: A value out of range; names the setting.
    """

    epochs: Count
    batch_size: Annotated[int, Ge(2)]
    lr: Positive
    weight_decay: NotNegative
    precision: Precision


class Arguments(TypedDict):
    """The settings that a deployed network is built from."""

    image_shape: list[int]
    channels: list[int]
    hidden: int
    latent: int
    num_classes: int
    norm: bool


class Deployed(nn.Module):
    """Images to logits: convolutions, a hidden layer, the mean of the code, a linear classifier.

    Args:
        image_shape: (C, H, W).
        channels: Channels of the convolutions.
        hidden: Units of the hidden layer.
        latent: Dimensions of the code.
        num_classes: Number of classes.
        norm: Whether batch normalisation follows each convolution.

    Attributes:
        map_shape: (channels, height, width) of the last convolution's output.

    Raises:
        ValueError: The images are too small for that many convolutions.
    """

    def __init__(
        self,
        image_shape: Sequence[int],
        channels: Sequence[int],
        hidden: int,
        latent: int,
        num_classes: int,
        *,
        norm: bool,
    ) -> None:
        super().__init__()
        widths = [image_shape[0], *channels]
        factor = 2 ** len(channels)
        if min(image_shape[1:]) < factor:
            raise ValueError(
                f"model.channels has {len(channels)} convolutions that halve images of "
                f"{image_shape[1]}x{image_shape[2]} to nothing; give fewer"
            )
        self.convs = nn.ModuleList(
            nn.Conv2d(a, b, KERNEL, stride=2, padding=1, bias=not norm)
            for a, b in zip(widths, channels, strict=False)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) if norm else nn.Identity() for width in channels)
        self.map_shape = (channels[-1], image_shape[1] // factor, image_shape[2] // factor)
        self.hidden = nn.Linear(self.map_shape[0] * self.map_shape[1] * self.map_shape[2], hidden)
        self.mean = nn.Linear(hidden, latent)
        self.classifier = nn.Linear(latent, num_classes)
        self.arguments: Arguments = {
            "image_shape": list(image_shape),
            "channels": list(channels),
            "hidden": hidden,
            "latent": latent,
            "num_classes": num_classes,
            "norm": norm,
        }

    def layers(self) -> dict[str, nn.Conv2d | nn.Linear]:
        """The layers whose weights are pruned, in the order of the forward pass."""
        convs = {f"conv{number}": cast(nn.Conv2d, conv) for number, conv in enumerate(self.convs, start=1)}
        return {**convs, "hidden": self.hidden, "mean": self.mean, "classifier": self.classifier}

    def features(self, x_BCHW: Tensor) -> Tensor:
        """Output of the hidden layer, (B, hidden)."""
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x_BCHW = F.relu(norm(conv(x_BCHW)))
        return F.relu(self.hidden(x_BCHW.flatten(1)))

    def code(self, x_BCHW: Tensor) -> Tensor:
        """Mean of the code, (B, L)."""
        return self.mean(self.features(x_BCHW))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, K)."""
        return self.classifier(self.code(x_BCHW))


class BetaVAE(nn.Module):
    """The deployed network, and the parts that only training needs: log-variance and decoder.

    Args:
        settings: Its widths and parts.
        image_shape: (C, H, W).
        num_classes: Number of classes.

    Attributes:
        deployed: Images to logits.
        log_variance: Of the code; None without noise.
        decoder: The encoder's mirror, code to what `pixels` takes; None where likelihood is "none".

    Raises:
        ValueError: The images are too small for that many convolutions.
    """

    def __init__(self, settings: BetaVAESettings, image_shape: Sequence[int], num_classes: int) -> None:
        super().__init__()
        self.settings = settings
        channels, hidden, latent = settings.channels, settings.hidden, settings.latent
        self.deployed = Deployed(image_shape, channels, hidden, latent, num_classes, norm=settings.norm)
        self.log_variance = nn.Linear(hidden, latent) if settings.noise else None
        self.decoder = None if settings.likelihood == "none" else self._decoder(image_shape)

    def _decoder(self, image_shape: Sequence[int]) -> nn.Sequential:
        settings, map_shape = self.settings, self.deployed.map_shape
        size = map_shape[0] * map_shape[1] * map_shape[2]
        layers: list[nn.Module] = [
            *(nn.Linear(settings.latent, settings.hidden), nn.ReLU()),
            *(nn.Linear(settings.hidden, size), nn.ReLU(), nn.Unflatten(1, map_shape)),
        ]
        widths = [image_shape[0], *settings.channels]
        for index in reversed(range(len(settings.channels))):
            odd = [(length >> index) % 2 for length in image_shape[1:]]  # what halving lost of a side
            last = index == 0
            layers.append(
                nn.ConvTranspose2d(
                    *(widths[index + 1], widths[index], KERNEL),
                    stride=2,
                    padding=1,
                    output_padding=(odd[0], odd[1]),
                    bias=last or not settings.norm,
                )
            )
            if not last:
                layers += [*([nn.BatchNorm2d(widths[index])] if settings.norm else []), nn.ReLU()]
        return nn.Sequential(*layers)

    def forward(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor]:
        """One pass in training.

        Returns:
            Mean (B, L), log-variance (B, L) or None, the decoder's output (B, C, H, W) or None, and the
            logits (B, K) of the sampled code.
        """
        features = self.deployed.features(x_BCHW)
        mean, log_variance = self.deployed.mean(features), None
        code = mean
        if self.log_variance is not None:
            log_variance = self.log_variance(features)
            code = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
        decoded = None if self.decoder is None else self.decoder(code)
        return mean, log_variance, decoded, self.deployed.classifier(code)

    def pixels(self, code_BL: Tensor) -> Tensor:
        """Images (B, C, H, W) in 0..1 of codes.

        Raises:
            ValueError: There is no decoder.
        """
        if self.decoder is None:
            raise ValueError("a network without a decoder reconstructs nothing")
        decoded = self.decoder(code_BL)
        return decoded.sigmoid() if self.settings.likelihood == "bernoulli" else decoded.clamp(0, 1)


def divergence(mean_BL: Tensor, log_variance_BL: Tensor) -> Tensor:
    """KL divergence in nats from N(mean, exp(log_variance)) to N(0, 1), per dimension, (B, L)."""
    return 0.5 * (mean_BL.square() + log_variance_BL.exp() - log_variance_BL - 1)


def reconstruction_loss(decoded_BCHW: Tensor, x_BCHW: Tensor, likelihood: str) -> Tensor:
    """Negative log-likelihood of images in nats, summed over pixels, mean over the batch.

    Of "gaussian" the constant is left out, which makes it the squared error.
    """
    if likelihood == "bernoulli":
        total = F.binary_cross_entropy_with_logits(decoded_BCHW, x_BCHW, reduction="sum")
    else:
        total = F.mse_loss(decoded_BCHW, x_BCHW, reduction="sum")
    return total / len(x_BCHW)


class BetaVAETraining(Resumable):
    """Trains a Beta-VAE with its loss.

    Args:
        network: The network.
        training: How to train.
        steps_per_epoch: Optimiser steps per pass.
        seed: Seed of the noise; every epoch has its own.
        start: Checkpoint to resume from; None starts anew.
        first_epoch: Number of the first pass, from 0, for the noise and the capacity; later passes are
            fine-tuning.
        before_step: Called with the number of each step, from 0, before it.
        on_epoch: Called with the figures of each epoch.

    Attributes:
        history: Per epoch "epoch", "loss", "reconstruction" and "kl" in nats, "cross_entropy" and "train_acc"
            of sampled codes, in 0..1.
    """

    figures = ("loss", "reconstruction", "kl", "cross_entropy", "train_acc")
    network: BetaVAE

    def __init__(
        self,
        network: BetaVAE,
        training: BetaVAERecipe,
        *,
        steps_per_epoch: int,
        seed: int,
        start: Checkpoint | None = None,
        first_epoch: int = 0,
        before_step: Callable[[int], None] = lambda step: None,
        on_epoch: Callable[[dict[str, float]], None] = lambda figures: None,
    ) -> None:
        super().__init__(
            network, steps_per_epoch=steps_per_epoch, start=start, on_epoch=on_epoch, first_epoch=first_epoch
        )
        self.training_settings, self.settings, self.seed = training, network.settings, seed
        self._before_step = before_step

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the noise at the start of a pass."""
        if self.step % self.steps_per_epoch == 0:
            torch.manual_seed(seed_of(self.seed, self.epoch * 1_009))
        self._before_step(self.step)

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """The loss of a batch; stops when it is not finite."""
        x, y = batch
        x = x.contiguous(memory_format=torch.channels_last)
        settings = self.settings
        mean, log_variance, decoded, logits = self.network(x)
        cross_entropy = F.cross_entropy(logits.float(), y)
        loss = settings.gamma * cross_entropy
        recon = kl = torch.zeros((), device=x.device)
        if decoded is not None:
            recon = reconstruction_loss(decoded.float(), x, settings.likelihood)
            loss = loss + recon
        if log_variance is not None:
            kl = divergence(mean.float(), log_variance.float()).sum(1).mean()
            loss = loss + settings.beta * (kl if settings.capacity is None else (kl - self._capacity()).abs())
        if not torch.isfinite(loss):
            raise ValueError(f"the loss became {loss.item()} in step {self.step}; try a smaller training.lr")
        accuracy = (logits.argmax(1) == y).float().mean()
        self.sums.append(torch.stack([t.detach() for t in (loss, recon, kl, cross_entropy, accuracy)]))
        return loss

    def _capacity(self) -> float:
        """C of this step in nats."""
        assert self.settings.capacity is not None
        epochs = self.first_epoch + self.step / self.steps_per_epoch
        return self.settings.capacity * min(1.0, epochs / self.settings.capacity_epochs)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW at the constant learning rate."""
        training = self.training_settings
        return self.restored(
            torch.optim.AdamW(
                self.network.parameters(), lr=training.lr, weight_decay=training.weight_decay, fused=True
            )
        )


@dataclass(frozen=True)
class Steps:
    """Which optimiser steps a training takes.

    Args:
        number: How many; None: all of the recipe's epochs.
        first_epoch: As for `BetaVAETraining`.
        before: Called with the number of each step, from 0, before it.
    """

    number: int | None = None
    first_epoch: int = 0
    before: Callable[[int], None] = lambda step: None


ALL_STEPS = Steps()


def train(
    network: BetaVAE,
    batches: Passes,
    training: BetaVAERecipe,
    session: Session,
    *,
    seed: int,
    steps: Steps = ALL_STEPS,
) -> list[dict[str, float]]:
    """Train a network in place; returns the figures per epoch. It ends in evaluation mode, on the CPU.

    Args:
        network: Initialised by the caller.
        batches: Passes over the training images.
        training: How to train.
        session: Its folder, and what it keeps there.
        seed: Seed of the noise.
        steps: Which steps it takes.

    Raises:
        ValueError: A loss that is not finite, or a checkpoint that is damaged or of something else.
    """
    steps_per_epoch = max(1, len(batches))
    num_steps = training.epochs * steps_per_epoch if steps.number is None else steps.number
    module = BetaVAETraining(
        network,
        training,
        steps_per_epoch=steps_per_epoch,
        seed=seed,
        start=session.start(),
        first_epoch=steps.first_epoch,
        before_step=steps.before,
        on_epoch=session.on_epoch,
    )
    keep_freed_memory()
    network.to(memory_format=torch.channels_last)
    network.train()
    if module.step < num_steps:
        fit_by_lightning(
            module,
            InOrder(batches, module),
            folder=session.folder,
            keep=session.keep(),
            max_steps=num_steps - module.step,
            precision=lightning_precision(training.precision),
        )
    network.cpu().eval()
    return module.history


def keep_freed_memory() -> None:
    """Let glibc keep what torch frees on a CPU: tensors of megabytes come and go in every step.

    By default each goes back to the system and comes again page by page, a sixth of a training's time.
    """
    if sys.platform == "linux":
        try:
            mallopt = ctypes.CDLL(None).mallopt
        except (OSError, AttributeError):  # another C library
            return
        mallopt(-3, 2**30)  # M_MMAP_THRESHOLD
        mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def identity_of(
    settings: BetaVAESettings, training: BetaVAERecipe, dataset: Images, seed: int, part: str
) -> dict[str, object]:
    """All that a trained network depends on, as JSON."""
    return {
        "model": {**asdict(settings), "channels": list(settings.channels)},
        "training": asdict(training),
        "images": dataset.identity(),
        "part": part,
        "seed": seed,
    }


def load(network: BetaVAE, path: Path) -> None:
    """Put the weights of a checkpoint into a network.

    Raises:
        ValueError: Missing, damaged, or of a network of another shape; names the first weight that differs.
    """
    weights = read_torch(path).get("network")
    if not isinstance(weights, dict):
        raise ValueError(f"{path} is no checkpoint of a Beta-VAE: it has no network")
    own = network.state_dict()
    for name in sorted(own.keys() ^ weights.keys()):
        owner, other = ("the model", "the checkpoint") if name in own else ("the checkpoint", "the model")
        raise ValueError(f"checkpoint {path} is of another network: {owner} has {name}, {other} has not")
    for name, value in own.items():
        if value.shape != weights[name].shape:
            raise ValueError(
                f"checkpoint {path} is of another network: its {name} has shape "
                f"{tuple(weights[name].shape)}, the model's {tuple(value.shape)}"
            )
    network.load_state_dict(weights)


@torch.inference_mode()
def accuracy(network: nn.Module, x_NCHW: Tensor, y_N: Tensor, batch_size: int = 1000) -> float:
    """Share of correct answers of a network in evaluation mode, in 0..1."""
    right = sum(
        int((network(x).argmax(1) == y).sum())
        for x, y in zip(x_NCHW.split(batch_size), y_N.split(batch_size), strict=True)
    )
    return right / len(y_N)


@torch.inference_mode()
def codes(network: BetaVAE, x_NCHW: Tensor, batch_size: int = 1000) -> tuple[Tensor, Tensor | None]:
    """Mean (N, L) and log-variance (N, L), or None without noise, of images."""
    means, log_variances = [], []
    for x in x_NCHW.split(batch_size):
        features = network.deployed.features(x)
        means.append(network.deployed.mean(features))
        if network.log_variance is not None:
            log_variances.append(network.log_variance(features))
    return torch.cat(means), torch.cat(log_variances) if log_variances else None
