"""Weights that all architectures of a space share: training by the epoch, accuracy by architecture.

What is not specific to a space. A space takes part by `supernet(affine=, track_running_stats=)`, a module
with

- `forward(x, weights)`: logits in training mode for mixing weights (edges, ops), an array; operations of
  weight 0 are not run;
- `plain(x, weights)`: the same, operation by operation, in either mode; the reference of tests;
- `compiled(weights, batch_statistics=)`: a fast function from images to logits, for evaluation;
- parameters named by their place and operation, so that a supernet with fewer operations finds its own;

and by `onehot`, which says what an architecture chooses on every edge.

Training is one plain loop, not a Lightning Trainer: generations of a search and epochs of training take
turns, a Trainer per generation would build optimiser and schedule anew and leaks memory, and the state must
be written together with the name of what it was trained on.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.core import FloatArray, Genotype, SearchSpace
from hwnas.data.images import Batches, Images, augment
from hwnas.models.recipe import SupernetRecipe


def mixture(space: SearchSpace, alphas: FloatArray) -> FloatArray:
    """Mixing weights of alphas: on every edge the softmax over the operations that the space allows there.

    Args:
        space: Says which operations are allowed.
        alphas: Shape (..., edges, ops).

    Returns:
        The same shape; 0 where an operation is not allowed, rows that sum to 1.
    """
    masked = np.where(space.allowed, alphas, -np.inf)
    powers = np.exp(masked - masked.max(axis=-1, keepdims=True))
    return powers / powers.sum(axis=-1, keepdims=True)


def mixing_weights(space: SearchSpace, genotypes: Sequence[Genotype], decoding: str) -> FloatArray:
    """Mixing weights of architectures, shape (n, edges, ops).

    Args:
        space: The space.
        genotypes: The architectures.
        decoding: "soft": a one-hot row put through the ordinary softmax, so that every operation runs and the
            chosen one weighs e times as much as each other; "hard": only the chosen operations run.

    Source: EvNAS, arXiv 2012.12540 ("decoded architecture parameter"; code).
    """
    onehot = space.onehot(genotypes)
    return onehot if decoding == "hard" else mixture(space, onehot)


def inherit(supernet: nn.Module, former: nn.Module) -> list[str]:
    """Copy every parameter that `former` has, too; returns the names of those that it has not.

    BatchNorm's running statistics stay fresh: they are no parameters. Source: pEvoNAS, arXiv 2203.01559
    (code).
    """
    known = dict(former.named_parameters())
    missing = []
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if name in known:
                parameter.copy_(known[name])
            else:
                missing.append(name)
    return missing


class SharedWeights:
    """A supernet in training, with its optimiser and its images on the device.

    An epoch is a function of the weights, the momenta, the seed, the epoch's number and the population: there
    is no other state.

    Args:
        space: A space with `supernet`, of the supernet's width and depth.
        dataset: Trained on "train", judged on "valid"; its augmentation is used.
        recipe: How to train.
        num_epochs: Epochs planned, for the cosine.
        affine: Whether BatchNorm in cells has a weight and a bias.
        track_running_stats: Whether BatchNorm in cells keeps running statistics.
        decoding: Of the population's members, "soft" or "hard".
        seed: Seed of initialisation, batches, augmentation and sampling.

    Raises:
        ValueError: Fewer training images than a batch.
    """

    def __init__(
        self,
        space: Any,
        dataset: Images,
        recipe: SupernetRecipe,
        *,
        num_epochs: int,
        affine: bool,
        track_running_stats: bool,
        decoding: str,
        seed: int,
    ) -> None:
        self.space, self.recipe, self.num_epochs = space, recipe, num_epochs
        self.decoding, self.seed = decoding, seed
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            supernet = space.supernet(affine=affine, track_running_stats=track_running_stats)
        self.supernet = supernet.to(self.device, memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(
            self.supernet.parameters(),
            lr=recipe.lr,
            momentum=recipe.momentum,
            weight_decay=recipe.weight_decay,
            nesterov=recipe.nesterov and recipe.momentum > 0,
        )
        self._mean, self._std = (tensor.to(self.device) for tensor in dataset.normalisation())
        self._dataset = dataset
        x, y = (tensor.to(self.device) for tensor in dataset.split("train"))
        if len(x) < recipe.batch_size:
            raise ValueError(
                f"evaluator.training.batch_size {recipe.batch_size} is more than the {len(x)} training images"
            )
        self._batches = Batches(x, y, dataset, batch_size=recipe.batch_size, seed=seed)
        self._resident: tuple[Any, list[tuple[Tensor, Tensor]]] | None = None

    def _normalised(self, x_BCHW: Tensor) -> Tensor:
        return ((x_BCHW - self._mean) / self._std).contiguous(memory_format=torch.channels_last)

    def _sampled(self, epoch: int, population: Sequence[Genotype]) -> Iterator[FloatArray]:
        """Mixing weights of each step of an epoch."""
        steps, recipe = len(self._batches), self.recipe
        rng = np.random.default_rng([self.seed, epoch])
        if recipe.sampling == "random_alpha":
            shape = (steps, *self.space.alpha_shape)
            yield from mixture(self.space, recipe.alpha_scale * rng.random(shape))
        elif recipe.sampling == "single_path":
            yield from mixing_weights(self.space, self.space.sample(rng, steps), "hard")
        else:
            weights = mixing_weights(self.space, population, self.decoding)
            yield from (weights[step % len(weights)] for step in range(steps))

    def train_epoch(self, epoch: int, population: Sequence[Genotype] = ()) -> dict[str, float]:
        """One pass over the training images; returns "loss", "train_acc" (of augmented ones, 0..1) and "lr".

        Args:
            epoch: Its number, from 0.
            population: Whom to train, where `recipe.sampling` is "population"; step s trains member
                s mod len(population).

        Raises:
            ValueError: The loss is not finite; says in which step.
        """
        lr = self.recipe.lr_at(epoch, self.num_epochs)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.supernet.train()
        self._batches.epoch = epoch
        # Nothing in the loop waits for the device: figures are read when the epoch is over.
        figures = torch.zeros(len(self._batches), 2, device=self.device)
        for step, ((x, y), weights) in enumerate(
            zip(self._batches, self._sampled(epoch, population), strict=True)
        ):
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocasts):
                logits = self.supernet(self._normalised(x), weights)
            loss = F.cross_entropy(logits.float() if self._autocasts else logits, y)
            self.optimizer.zero_grad()
            loss.backward()
            if self.recipe.grad_clip is not None:
                nn.utils.clip_grad_norm_(self.supernet.parameters(), self.recipe.grad_clip)
            self.optimizer.step()
            figures[step, 0] = loss.detach()
            figures[step, 1] = (logits.argmax(1) == y).float().mean()
        broken = (~figures[:, 0].isfinite()).nonzero().flatten().tolist()
        if broken:
            raise ValueError(
                f"the supernet's loss became {figures[broken[0], 0].item()} in step {broken[0] + 1} of epoch "
                f"{epoch + 1} at a learning rate of {lr:.3g}; try a smaller evaluator.training.lr"
            )
        loss_mean, accuracy = figures.mean(0).tolist()
        return {"loss": loss_mean, "train_acc": accuracy, "lr": lr}

    @property
    def _autocasts(self) -> bool:
        return self.recipe.autocast and self.device.type == "cuda"

    def accuracies(
        self,
        genotypes: Sequence[Genotype],
        *,
        num_images: int | None,
        batch_size: int,
        transform_seed: int | None,
        batch_statistics: bool,
        decoding: str,
    ) -> list[float]:
        """Share of validation images that each architecture gets right, in 0..1.

        Args:
            genotypes: The architectures.
            num_images: How many validation images, the first of a fixed shuffle; None takes all.
            batch_size: Images per batch.
            transform_seed: Seed of the training augmentation, drawn once for all architectures; None: none.
            batch_statistics: Whether BatchNorm uses the batch's statistics, not the running ones.
            decoding: "soft" or "hard".

        Raises:
            ValueError: Fewer validation images than `num_images`.
        """
        batches = self._validation(num_images, batch_size, transform_seed)
        self.supernet.eval()
        right = torch.zeros(len(genotypes), dtype=torch.long, device=self.device)
        for row, weights in enumerate(mixing_weights(self.space, genotypes, decoding)):
            logits: Callable[[Tensor], Tensor] = self.supernet.compiled(
                weights, batch_statistics=batch_statistics
            )
            for images, labels in batches:
                right[row] += (logits(images).argmax(1) == labels).sum()
        num = sum(len(labels) for _, labels in batches)
        return [count / num for count in right.tolist()]

    def _validation(
        self, num_images: int | None, batch_size: int, transform_seed: int | None
    ) -> list[tuple[Tensor, Tensor]]:
        """Batches of normalised validation images and their labels; they stay on the device."""
        wanted = (num_images, batch_size, transform_seed)
        if self._resident is None or self._resident[0] != wanted:
            x, y = self._dataset.split("valid")
            if num_images is not None and num_images > len(x):
                raise ValueError(
                    f"evaluator.num_valid {num_images} is more than the {len(x)} validation images"
                )
            x, y = x[:num_images].to(self.device), y[:num_images].to(self.device)
            if transform_seed is not None:
                x = augment(x, self._dataset, torch.Generator().manual_seed(transform_seed))
            parts = zip(x.split(batch_size), y.split(batch_size), strict=True)
            self._resident = wanted, [(self._normalised(part), labels) for part, labels in parts]
        return self._resident[1]

    def state(self) -> dict[str, Any]:
        """Weights, buffers and momenta, on the CPU."""
        momenta = self.optimizer.state_dict()["state"]
        return copy.deepcopy(
            {
                "weights": {name: tensor.cpu() for name, tensor in self.supernet.state_dict().items()},
                "momenta": {
                    index: values["momentum_buffer"].cpu()
                    for index, values in momenta.items()
                    if values["momentum_buffer"] is not None
                },
            }
        )

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self.supernet.load_state_dict(state["weights"])
        stored = self.optimizer.state_dict()
        stored["state"] = {index: {"momentum_buffer": tensor} for index, tensor in state["momenta"].items()}
        self.optimizer.load_state_dict(stored)


@contextmanager
def repeatable() -> Iterator[None]:
    """Convolutions on a GPU by deterministic algorithms, so that a run can be repeated bit for bit."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
        yield
