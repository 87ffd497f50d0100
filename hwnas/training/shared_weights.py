"""Weights that all architectures of a space share: training by the epoch, accuracy by architecture.

What is not specific to a space. A space takes part by `supernet(affine=, track_running_stats=)`, a module of
`hwnas.spaces.supernet.Supernet`, and by `onehot`, which says what an architecture chooses on every edge.

The weights are a Lightning module that a Trainer can fit. On one device a search drives it by a plain loop
instead: generations of a search and epochs of training take turns, a Trainer per generation leaks memory, and
the state must be written together with the name of what made it. Several devices are left to Lightning's DDP.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import numpy as np
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from hwnas.core import FloatArray, Genotype, SearchSpace, seed_of
from hwnas.data.images import Batches, Images, augment
from hwnas.files import read_torch, temporary_folder, write_torch
from hwnas.spaces.capabilities import HasSupernet
from hwnas.spaces.supernet import CellSupernet, Supernet
from hwnas.training.accelerator import Execution, accelerator, execution
from hwnas.training.importance import Importance
from hwnas.training.lightning import Devices, fit_by_lightning
from hwnas.training.partial_sgd import PartialSGD
from hwnas.training.progress import progress
from hwnas.training.recipe import SupernetRecipe
from hwnas.training.static_step import StaticStep


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


def complexities(space: SearchSpace, genotypes: Sequence[Genotype]) -> FloatArray:
    """Complexity of architectures, shape (n,): ln(parameters), from 0 (the smallest of the space) to 1.

    Source: CaLR, arXiv 2503.10740 (code). Parameters of operations that lead nowhere count, as there.
    """
    params = space.static_sums()["params"]
    lowest = params.base + np.where(space.allowed, params.added, np.inf).min(axis=1).sum()
    highest = params.base + np.where(space.allowed, params.added, -np.inf).max(axis=1).sum()
    values = np.log([params(genotype) for genotype in genotypes]) - np.log(lowest)
    return values / (np.log(highest / lowest) or 1.0)


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


def execution_of(recipe: SupernetRecipe, device: torch.device) -> Execution:
    """How the steps of a recipe are computed on a device.

    Raises:
        ValueError: Settings that exclude each other.
    """
    casts = recipe.autocast if device.type != "cpu" else False  # only a GPU gains by it
    return execution(
        device,
        way=recipe.execution,
        channels_last=recipe.channels_last,
        autocast=casts,
        graphs=recipe.graphs,
        resident=recipe.resident,
    )


Population = Sequence[Genotype] | FloatArray
"""Whom an epoch trains: architectures, or undecoded alphas, shape (n, edges, ops)."""


Scored = tuple[Sequence[Genotype], FloatArray]
"""Architectures with scores, shape (n,), higher ones for those that are expected to be better."""


@dataclass(frozen=True)
class Judges:
    """The validation images that judge architectures.

    Args:
        num: How many, the first of a fixed shuffle; None takes all.
        batch_size: Images per batch.
        transform_seed: Seed of the training augmentation, drawn once for all architectures; None: none.
    """

    num: int | None
    batch_size: int
    transform_seed: int | None


class State(TypedDict):
    """Weights and buffers by name, and momenta by the number of their parameter, on the CPU.

    With the recipe's `importance` also the probabilities that the next epoch draws by.
    """

    weights: dict[str, Tensor]
    momenta: dict[int, Tensor]
    importance: NotRequired[dict[str, Tensor]]


Keep = Callable[[Callable[[], State], int], None]
"""Gets what gives the state, and the number of the next epoch."""


class SharedWeights(pl.LightningModule):
    """A supernet in training, with its optimiser and its images on the device.

    An epoch is a function of the state, the seed, the epoch's number and the population. `train_epoch` is the
    loop for one device, `train_epochs` for several; a Lightning Trainer with the recipe's `grad_clip` ends
    with the same weights where nobody has to know a population or the importance of anything.

    Args:
        space: A space with `supernet`, of the supernet's width and depth.
        dataset: Trained on "train", judged on "valid"; its augmentation is used.
        recipe: How to train.
        num_epochs: Epochs planned, for the schedule.
        affine: Whether BatchNorm in cells has a weight and a bias.
        track_running_stats: Whether BatchNorm in cells keeps running statistics.
        decoding: Of the population's members, "hard", or else soft.
        seed: Seed of initialisation, batches, augmentation and sampling.
        scored: Called once before the first epoch, for the architectures that the ranking loss compares; only
            with the recipe's `ranking_weight`.

    Attributes:
        execution: How steps are computed on the device, from the recipe and the device's row of the table.
        not_recorded: Why steps that could be a CUDA graph are none; "" if they are, or if nothing was tried.
        first_epoch: Number of a Trainer's first epoch.
        told: What a Trainer's last epoch came to, as `train_epoch` returns it.

    Raises:
        ValueError: Fewer training images than a batch on every device, or importance of operations in a space
            whose supernet does not name their kernels.
    """

    def __init__(
        self,
        space: HasSupernet,
        dataset: Images,
        recipe: SupernetRecipe,
        *,
        num_epochs: int,
        affine: bool,
        track_running_stats: bool,
        decoding: str,
        seed: int,
        scored: Callable[[], Scored] | None = None,
    ) -> None:
        super().__init__()
        assert scored is not None or not recipe.ranking_weight
        self.space, self.recipe, self.num_epochs = space, recipe, num_epochs
        self.decoding, self.seed = decoding, seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            supernet = space.supernet(affine=affine, track_running_stats=track_running_stats)
        self.execution = execution_of(recipe, accelerator())
        self.not_recorded = ""
        self._static: StaticStep | None = None
        supernet.plainly = self.execution.way == "plain"
        self.supernet = supernet.to(memory_format=self._format)
        self.optimizer = self._sgd()
        self._mean, self._std = dataset.normalisation()
        self._dataset = dataset
        self._batches = Batches(
            dataset.split("train"),
            dataset,
            batch_size=recipe.batch_size,
            seed=seed,
            num_shards=recipe.devices,
        )
        self.first_epoch = 0
        self._population: Population = ()  # whom a Trainer trains
        self._mixtures: list[FloatArray] = []  # mixing weights of the epoch's steps
        self._lrs: list[float] = []  # learning rates of the epoch's steps
        self._figures: list[Tensor] = []  # loss and fraction of right answers of the epoch's steps
        self._epoch = 0  # that is being trained
        self._give_scored = scored
        self._scored: Scored | None = None  # once it was needed
        self._better: list[float] = []  # of the epoch's pairs: 1 if the first one should be better, or -1
        self._operation_norms: list[Tensor] = []  # norms of gradients (ops,) of the epoch's steps
        self._image_norms: list[Tensor] = []  # norms of gradients (B,) of the epoch's steps
        self._importance: Importance | None = None
        if recipe.importance != "none":
            self._importance = Importance(len(space.ops), self._batches.num_images)
        if self._draws_operations and not supernet.kernels():
            raise ValueError(
                f"evaluator.training.importance={recipe.importance} needs a space whose edges choose their "
                f"operations independently: nasbench201, not {space.name}"
            )
        self.told: dict[str, float] = {}
        self._resident: tuple[Judges, list[tuple[Tensor, Tensor]]] | None = None
        if recipe.devices == 1:  # else processes take them from the CPU
            self._move(accelerator())

    @property
    def _draws_operations(self) -> bool:
        return self.recipe.importance in ("operations", "both")

    @property
    def _draws_images(self) -> bool:
        return self.recipe.importance in ("images", "both")

    @property
    def _format(self) -> torch.memory_format:
        return torch.channels_last if self.execution.channels_last else torch.contiguous_format

    def _move(self, device: torch.device, *, images: bool = True) -> None:
        """Weights, momenta and, unless other processes get them from the CPU, training images to a device."""
        if self.device.type == self._mean.device.type == device.type:
            return
        self._static = None  # it reads the weights where they were
        self.to(device)
        stored = self.optimizer.state_dict()
        self.optimizer.load_state_dict(stored)  # puts momenta where the weights are
        self._mean, self._std = self._mean.to(device), self._std.to(device)
        if images:
            resident = self.execution.on_images(device, self._batches.x)
            self._batches.to(device, resident=resident)

    def _sgd(self) -> torch.optim.SGD:
        recipe = self.recipe
        settings: dict[str, Any] = {
            "lr": recipe.lr,
            "momentum": recipe.momentum,
            "weight_decay": recipe.weight_decay,
            "nesterov": recipe.nesterov and recipe.momentum > 0,
        }
        if self.supernet.slices:
            return PartialSGD(self.supernet.parameters(), self.supernet.used, **settings)
        return torch.optim.SGD(self.supernet.parameters(), **settings)

    def configure_optimizers(self) -> torch.optim.SGD:
        """SGD with its momenta; for a Trainer. Steps set the learning rate themselves."""
        return self.optimizer

    def train_dataloader(self) -> Batches:
        """Shuffled and augmented batches of the training images; for a Trainer."""
        return self._batches

    def on_fit_start(self) -> None:
        """Images to the device of the process, convolutions deterministic there; for a Trainer."""
        self._move(self.device)
        # Processes that start anew have each other's memory; Lightning takes care of the weights only.
        self.optimizer.load_state_dict(copy.deepcopy(self.optimizer.state_dict()))
        if self.trainer.world_size > 1:
            torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False

    def on_train_epoch_start(self) -> None:
        """Draw the architectures of an epoch, the same in every process; for a Trainer."""
        epoch = self.first_epoch + self.current_epoch
        self._start(epoch, self._population)
        if self.trainer.world_size > 1:
            torch.manual_seed(seed_of(self.seed, epoch))  # of dropout

    def on_train_epoch_end(self) -> None:
        """Figures of an epoch, of all processes together; for a Trainer."""
        figures = torch.stack(self._figures)
        if self.trainer.world_size > 1:
            figures = self.trainer.strategy.reduce(figures, reduce_op="mean")
        self.told = self._summary(self.first_epoch + self.current_epoch, figures)

    def _start(self, epoch: int, population: Population) -> None:
        self.supernet.train()
        self._epoch = self._batches.epoch = epoch
        self._mixtures = list(self._sampled(epoch, population))
        steps = np.zeros(len(self._batches))
        if self.recipe.schedule == "complexity":  # of a pair the mean
            steps = complexities(self.space, self._paths(epoch)).reshape(len(steps), -1).mean(axis=1)
        self._lrs = [self.recipe.lr_at(epoch, self.num_epochs, step) for step in steps.tolist()]
        if self.recipe.ranking_weight:
            first, second = self._ranked()[1][self._pairs(epoch)].T
            self._better = np.sign(first - second).tolist()
        self._figures, self._operation_norms, self._image_norms = [], [], []
        if self._importance is not None and self._draws_images:
            images = self._importance.images
            self._batches.weights = None if images is None else torch.tensor(images)

    def _summary(self, epoch: int, figures: Tensor) -> dict[str, float]:
        """Figures of an epoch; raises ValueError where a loss was not finite."""
        broken = (~figures[:, 0].isfinite()).nonzero().flatten().tolist()
        if broken:
            step, lr = broken[0], self._lrs[broken[0]]
            raise ValueError(
                f"the supernet's loss became {figures[step, 0].item()} in step {step + 1} of epoch "
                f"{epoch + 1} at a learning rate of {lr:.3g}; try a smaller evaluator.training.lr"
            )
        loss, accuracy = figures.mean(0).tolist()
        return {"loss": loss, "train_acc": accuracy, "lr": self._lrs[-1]}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of a batch, with the step's mixing weights.

        Args:
            batch: Images (B, C, H, W) in 0..1 and labels (B,).
            batch_idx: Number of the step in its epoch.
        """
        x, y = batch
        self._set_lr(batch_idx)
        x = self._normalised(x)
        if self.recipe.ranking_weight:
            return self._pair_loss(x, y, batch_idx)
        weights = self._mixtures[batch_idx]
        logits, loss = self._run(x, y, weights, self._numbers(weights))
        self._note(loss, logits, y)
        return loss

    def _set_lr(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self._lrs[step]

    def _numbers(self, weights: FloatArray) -> Tensor | None:
        """Mixing weights on a GPU, copied there once per step; None where they are used as numbers."""
        hard = ((weights == 0) | (weights == 1)).all()
        stacked = self.execution.way == "stacked" and isinstance(self.supernet, CellSupernet)
        if hard or self.device.type == "cpu" or not stacked:
            return None
        return torch.tensor(weights, dtype=torch.float32).to(self.device, non_blocking=True)

    def _run(
        self, x: Tensor, y: Tensor, weights: FloatArray, numbers: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Logits (B, classes) of normalised images, and their cross-entropy."""
        loss, logits = _forward(self.supernet, self.execution.autocast, weights, x, y, numbers)
        return logits, loss

    def _note(self, loss: Tensor, logits: Tensor, y: Tensor) -> None:
        """Keep a step's figures; nothing waits for the device, they are read when the epoch is over."""
        if self._draws_images:
            onehot = F.one_hot(y, self.space.num_classes)
            self._image_norms.append((logits.detach().float().softmax(1) - onehot).norm(dim=1))
        self._figures.append(torch.stack([loss.detach(), (logits.detach().argmax(1) == y).float().mean()]))

    def _pair_loss(self, x: Tensor, y: Tensor, step: int) -> Tensor:
        """Losses of a step's two architectures and what their order costs.

        Source: RD-NAS, arXiv 2301.09850.
        """
        logits, a = self._run(x, y, self._mixtures[2 * step], None)
        for module in self.supernet.modules():  # a backward pass must find running statistics as it left them
            for name, buffer in module.named_buffers(recurse=False):
                setattr(module, name, buffer.clone())
        others, b = self._run(x, y, self._mixtures[2 * step + 1], None)
        self._note((a + b) / 2, torch.cat([logits, others]), torch.cat([y, y]))
        wanted = self._better[step]  # 1: the loss b should be larger than a
        weight = self.recipe.ranking_weight_at(self._epoch, self.num_epochs)
        return a + b + weight * F.relu(wanted * (a - b) + self.recipe.ranking_margin) * abs(wanted)

    def _normalised(self, x_BCHW: Tensor) -> Tensor:
        return ((x_BCHW - self._mean) / self._std).contiguous(memory_format=self._format)

    def _sampled(self, epoch: int, population: Population) -> Iterator[FloatArray]:
        """Mixing weights of each step of an epoch."""
        steps, recipe = len(self._batches), self.recipe
        if recipe.sampling == "random_alpha":
            shape = (steps, *self.space.alpha_shape)
            alphas = np.random.default_rng([self.seed, epoch]).random(shape)
            yield from mixture(self.space, recipe.alpha_scale * alphas)
        elif recipe.sampling == "single_path":
            yield from mixing_weights(self.space, self._paths(epoch), "hard")
        else:
            if isinstance(population, np.ndarray):
                weights = mixture(self.space, population)
            else:
                decoding = "hard" if self.decoding == "hard" else "soft"
                weights = mixing_weights(self.space, population, decoding)
            yield from (weights[step % len(weights)] for step in range(steps))

    def _paths(self, epoch: int) -> list[Genotype]:
        """The architecture of each step of an epoch, with sampling=single_path; with a ranking loss two."""
        if self.recipe.ranking_weight:
            genotypes, _ = self._ranked()
            return [genotypes[row] for row in self._pairs(epoch).ravel().tolist()]
        rng, steps = np.random.default_rng([self.seed, epoch]), len(self._batches)
        if self._importance is None or not self._draws_operations:
            return self.space.sample(rng, steps)
        columns = []
        for ops in self.space.choices:
            probabilities = self._importance.operations[list(ops)]
            columns.append(rng.choice(ops, size=steps, p=probabilities / probabilities.sum()))
        return [tuple(row) for row in np.stack(columns, axis=1).tolist()]

    def _ranked(self) -> Scored:
        """The architectures that the ranking loss compares, with their scores."""
        if self._scored is None:
            assert self._give_scored is not None
            self._scored = self._give_scored()
        return self._scored

    def _pairs(self, epoch: int) -> NDArray[np.intp]:
        """Two different rows of `_ranked` for each step of an epoch, uniformly; shape (steps, 2)."""
        rng, steps, n = np.random.default_rng([self.seed, epoch]), len(self._batches), len(self._ranked()[0])
        first, ahead = rng.integers(n, size=steps), rng.integers(1, n, size=steps)
        return np.stack([first, (first + ahead) % n], axis=1)

    def train_epoch(self, epoch: int, population: Population = ()) -> dict[str, float]:
        """One pass over the training images; returns "loss", "train_acc" (of augmented ones, 0..1) and "lr".

        The learning rate is that of the last step.

        Args:
            epoch: Its number, from 0.
            population: Whom to train, where `recipe.sampling` is "population" or "population_alpha", then
                alphas; step s trains member s mod len(population).

        Raises:
            ValueError: The loss is not finite; says in which step.
        """
        self._start(epoch, population)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed_of(self.seed, epoch))  # of dropout
            records = self._records()
            for step, batch in enumerate(self._batches):
                if not (records and self._replayed(batch, step)):
                    loss = self.training_step(batch, step)
                    self.optimizer.zero_grad()
                    loss.backward()
                if self.recipe.grad_clip is not None:
                    nn.utils.clip_grad_norm_(self.supernet.parameters(), self.recipe.grad_clip)
                if self._draws_operations:
                    self._operation_norms.append(self._kernel_norms(self._mixtures[step]))
                self.optimizer.step()
                progress("steps", step + 1, len(self._batches))
        summary = self._summary(epoch, torch.stack(self._figures))
        self._learn_importance(epoch)
        return summary

    def _records(self) -> bool:
        """Whether steps are to be recorded, and all of the epoch run all operations of the space."""
        soft = isinstance(self.supernet, CellSupernet) and self.recipe.sampling != "single_path"
        if not self.execution.graphs or not soft:
            return False
        return all(((weights != 0) == self.space.allowed).all() for weights in self._mixtures)

    def _replayed(self, batch: tuple[Tensor, Tensor], step: int) -> bool:
        """Compute a step's gradients by the recorded step; False, and nothing is done, if none can be."""
        if self.not_recorded:
            return False
        x, y = self._normalised(batch[0]), batch[1]
        weights = self._mixtures[step]
        numbers = torch.tensor(weights, dtype=torch.float32).to(self.device, non_blocking=True)
        if self._static is None:
            work = partial(_forward, self.supernet, self.execution.autocast, weights)
            try:
                self._static = StaticStep(work, self.supernet, (x, y, numbers), self.device)
            except RuntimeError as error:
                self.not_recorded = str(error).strip().splitlines()[0]
                return False
        self._set_lr(step)
        loss, logits = self._static(x, y, numbers)
        self._note(loss, logits, y)
        return True

    def _kernel_norms(self, weights: FloatArray) -> Tensor:
        """Norms of the gradients of each operation, shape (ops,): the sum over its kernels, per edge.

        Args:
            weights: Mixing weights of the step's single architecture, (edges, ops).
        """
        norms = torch.zeros(weights.shape[1], device=self.device)
        for op, kernels in self.supernet.kernels().items():
            grads = [kernel.grad for kernel in kernels if kernel.grad is not None]
            if grads:
                norms[op] = torch.stack([grad.norm() for grad in grads]).sum() / weights[:, op].sum()
        return norms

    def _learn_importance(self, epoch: int) -> None:
        """Probabilities of the next epoch, from what this one has seen."""
        if self._importance is None:
            return
        if self._draws_operations:
            for norms in torch.stack(self._operation_norms).double().cpu().numpy():
                self._importance.see_operations(norms)
        if self._draws_images:
            assert self._batches.rows is not None
            self._importance.see_images(self._batches.rows.tolist(), torch.cat(self._image_norms).tolist())
        # After the last planned epoch, too, some of it stays uniform.
        self._importance.end(min(epoch, self.num_epochs - 1) / self.num_epochs)

    def train_epochs(
        self,
        first_epoch: int,
        num_epochs: int,
        population: Population = (),
        keep: Keep | None = None,
    ) -> dict[str, float]:
        """Passes over the training images on the recipe's devices by DDP; returns the last one's figures.

        Every step has the mixing weights that it would have on one device, and gradients averaged over the
        batches of all devices. BatchNorm uses the statistics of its own device's batch; running ones are
        those of the first device. Parameters that a step does not use stay as they are, momenta too.

        On GPUs processes start anew and get weights and images from the CPU's memory; tried on CPUs only.

        Args:
            first_epoch: Number of the first one, from 0.
            num_epochs: How many; one start of processes serves them all.
            population: As for `train_epoch`.
            keep: Called in the first process after every epoch but the last, with what gives the state and
                the number of the next epoch.

        Raises:
            ValueError: The loss is not finite (says in which step), or a process was killed.
            RuntimeError: Not enough memory.
        """
        self._move(torch.device("cpu"), images=False)
        self.first_epoch, self._population = first_epoch, population
        self._batches.epoch = first_epoch
        resident, self._resident = self._resident, None  # not for other processes
        strategy, sampling = self.recipe.strategy, self.recipe.sampling
        hard = sampling == "single_path" or (sampling == "population" and self.decoding == "hard")
        with temporary_folder() as folder:
            handed = Path(folder) / "state.pt"
            fit_by_lightning(
                self,
                folder=Path(folder),
                devices=Devices(self.recipe.devices, strategy, unused=hard or not self.space.allowed.all()),
                keep=_Hand(handed, keep),
                max_epochs=num_epochs,
                gradient_clip_val=self.recipe.grad_clip,
            )
            stored = read_torch(handed)
        self.trainer = None  # it refers to all that it had
        self._resident = resident
        self.load(cast(State, stored))
        return dict(stored["figures"])

    def accuracies(
        self,
        genotypes: Sequence[Genotype],
        judges: Judges,
        *,
        batch_statistics: bool,
        decoding: str,
        alphas: FloatArray | None = None,
    ) -> list[float]:
        """Fraction of validation images that each architecture gets right, in 0..1.

        Args:
            genotypes: The architectures.
            judges: The images.
            batch_statistics: Whether BatchNorm uses the batch's statistics, not the running ones.
            decoding: "soft" or "hard".
            alphas: Judged as they are, put through the softmax, instead of `genotypes` and whatever
                `decoding` says; shape (len(genotypes), edges, ops).

        Raises:
            ValueError: Fewer validation images than `judges.num`.
        """
        self._move(accelerator(), images=self.recipe.devices == 1)
        batches = self._validation(judges)
        self.supernet.eval()
        right = torch.zeros(len(genotypes), dtype=torch.long, device=self.device)
        mixtures = (
            mixing_weights(self.space, genotypes, decoding) if alphas is None else mixture(self.space, alphas)
        )
        for row, weights in enumerate(mixtures):
            logits: Callable[[Tensor], Tensor] = self.supernet.compiled(
                weights, batch_statistics=batch_statistics
            )
            for images, labels in batches:
                right[row] += (logits(images).argmax(1) == labels).sum()
            progress("networks", row + 1, len(genotypes))
        num = sum(len(labels) for _, labels in batches)
        return [count / num for count in right.tolist()]

    def for_evaluation(self, judges: Judges) -> SharedWeights:
        """These weights and their validation images, without what trains them; for other processes.

        Its `accuracies` can be called with these images only.
        """
        self._move(accelerator(), images=self.recipe.devices == 1)
        self._validation(judges)
        other: Any = copy.copy(self)
        other.optimizer = other._batches = other._importance = other._static = None
        other._mixtures, other._figures = [], []
        other._give_scored = other._scored = None
        return other

    def _validation(self, judges: Judges) -> list[tuple[Tensor, Tensor]]:
        """Batches of normalised validation images and their labels; they stay on the device."""
        if self._resident is None or self._resident[0] != judges:
            x, y = self._dataset.split("valid")
            if judges.num is not None and judges.num > len(x):
                raise ValueError(
                    f"evaluator.num_valid {judges.num} is more than the {len(x)} validation images"
                )
            x, y = x[: judges.num].to(self.device), y[: judges.num].to(self.device)
            if judges.transform_seed is not None:
                x = augment(x, self._dataset, torch.Generator().manual_seed(judges.transform_seed))
            parts = zip(x.split(judges.batch_size), y.split(judges.batch_size), strict=True)
            self._resident = judges, [(self._normalised(part), labels) for part, labels in parts]
        return self._resident[1]

    def state(self) -> State:
        """Weights, buffers and momenta, on the CPU."""
        momenta = self.optimizer.state_dict()["state"]
        state: State = {
            "weights": {name: tensor.cpu() for name, tensor in self.supernet.state_dict().items()},
            "momenta": {
                index: values["momentum_buffer"].cpu()
                for index, values in momenta.items()
                if values["momentum_buffer"] is not None
            },
        }
        if self._importance is not None:
            state["importance"] = self._importance.state()
        return copy.deepcopy(state)

    def load(self, state: State) -> None:
        """Go on from a state."""
        self.supernet.load_state_dict(state["weights"])
        stored = self.optimizer.state_dict()
        stored["state"] = {index: {"momentum_buffer": tensor} for index, tensor in state["momenta"].items()}
        self.optimizer.load_state_dict(stored)
        if self._importance is not None:
            self._importance.load(state["importance"])


def _forward(
    supernet: Supernet, casts: bool, weights: FloatArray, x: Tensor, y: Tensor, numbers: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy and logits (B, classes) of normalised images, in bfloat16 if it `casts`."""
    # Each weight is cast once per step anyway, and a recorded step must not use those of an earlier one.
    with torch.autocast(x.device.type, torch.bfloat16, enabled=casts, cache_enabled=False):
        logits = supernet(x, weights) if numbers is None else supernet(x, weights, numbers)
    return F.cross_entropy(logits.float() if casts else logits, y), logits


class _Hand(pl.callbacks.Checkpoint):
    """Writes the last state, for the process that started those of the devices; earlier ones by `keep`.

    Args:
        path: The file.
        keep: As for `train_epochs`.
    """

    def __init__(self, path: Path, keep: Keep | None) -> None:
        self.path, self.keep = path, keep

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """In the first process only."""
        weights, epochs = cast(SharedWeights, pl_module), trainer.current_epoch + 1
        if trainer.is_global_zero and epochs == trainer.max_epochs:
            write_torch(self.path, {**weights.state(), "figures": weights.told})
        elif trainer.is_global_zero and self.keep is not None:
            self.keep(weights.state, weights.first_epoch + epochs)


@contextmanager
def repeatable() -> Iterator[None]:
    """Convolutions on a GPU by deterministic algorithms, so that a run can be repeated bit for bit."""
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, benchmark=False):
        yield
