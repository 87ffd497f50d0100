"""A Lightning module that trains any network to classify images, and the function that runs it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Protocol, cast, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.optim.swa_utils import AveragedModel

from hwnas.core import seed_of
from hwnas.data.augmentation import mixed, moved, recoloured
from hwnas.training.accelerator import PRECISIONS, accelerator, lightning_precision, out_of_memory
from hwnas.training.checkpoint import (
    Batch,
    Checkpoint,
    InOrder,
    Passes,
    Resumable,
    Session,
    read_checkpoint,
)
from hwnas.training.lightning import Devices, fit_by_lightning
from hwnas.training.recipe import Recipe
from hwnas.training.teacher import Teacher, teacher_in

MAY_CHANGE = {"channels_last", "compile", "strategy"}
"""Settings of a recipe that may be others when a training resumes."""


Tensors = tuple[Tensor, ...] | list[Tensor]


STEPS_BETWEEN_LOOKS = 50
"""Steps after which a GPU is asked whether its losses are finite; it waits for each answer."""


class DivergedError(ValueError):
    """A loss that is not finite."""


class TrainingData(Protocol):
    """The part of a data set that training needs."""

    def batches(
        self, part: str, *, batch_size: int, seed: int = 0, train: bool = True, num_shards: int = 1
    ) -> Passes:
        """Passes over a part: "train", "valid", "all" or "test"."""

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel, each (C, 1, 1)."""

    @property
    def augmentation(self) -> Mapping[str, object]:
        """How training images are changed at random, JSON-able."""


@runtime_checkable
class HasDropPath(Protocol):
    """A network with drop-path."""

    def set_drop_path(self, prob: float) -> None:
        """Set its probability."""


class Classifier(Resumable):
    """Normalises images, classifies them with a network, and trains it by a recipe.

    Args:
        network: (B, C, H, W) to logits (B, classes). With an auxiliary classifier it takes a second argument
            True and answers both logits; with drop-path it has `set_drop_path(prob)`.
        mean: Mean per channel, shape (C, 1, 1).
        std: Standard deviation per channel, shape (C, 1, 1).
        recipe: How to train.
        num_steps: Optimiser steps of the whole training, for the schedule.
        steps_per_epoch: Optimiser steps per pass.
        seed: Seed of drop-path, of which every epoch has its own, and of the recipe's changes of images, of
            which every step has its own.
        start: Checkpoint to resume from; None starts anew.
        on_epoch: Called with the figures of each epoch.
        stops: Whether the training may stop within a pass and resume there: checkpoints then also have the
            losses and the states of generators.
        teacher: Gives logits (B, classes) of images in 0..1, which the network learns from by the recipe.

    Attributes:
        losses: Of each step of this session, of the main classifier; those before are among them if `stops`.
        history: Per epoch "epoch", "loss" (of the main classifier), "train_acc" (of augmented batches, in
            0..1) and "lr".

    Raises:
        ValueError: The recipe asks for what the network has not.
    """

    figures = ("loss", "train_acc")
    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        mean: Tensor,
        std: Tensor,
        recipe: Recipe,
        num_steps: int,
        steps_per_epoch: int = 1,
        seed: int = 0,
        start: Checkpoint | None = None,
        on_epoch: Callable[[dict[str, float]], None] = lambda figures: None,
        stops: bool = False,
        teacher: nn.Module | None = None,
    ) -> None:
        recipe.check(
            auxiliary="auxiliary" in dict(network.named_children()),
            drop_path=isinstance(network, HasDropPath),
            teacher=teacher is not None,
        )
        super().__init__(network, steps_per_epoch=steps_per_epoch, start=start, on_epoch=on_epoch)
        self.recipe = recipe
        self.num_steps = num_steps
        self.seed = seed
        self.stops = stops
        self.losses: list[Tensor] = []
        self._unseen: list[Tensor] = []  # losses of the latest steps, which nobody has looked at
        self._num_averaged = 0  # steps in the average
        if start is not None and stops:
            self.losses += start["losses"]
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.teacher = teacher
        self.average: AveragedModel | None = None
        if recipe.ema and num_steps:
            self.average = AveragedModel(network, multi_avg_fn=self._average, use_buffers=True)
            self.average.requires_grad_(requires_grad=False)
            if start is not None:
                self.average.load_state_dict(start["average"])

    def normalise(self, x_BCHW: Tensor) -> Tensor:
        """Images in 0..1 as the network takes them."""
        x = (x_BCHW - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last) if self.recipe.channels_last else x

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits (B, classes) of images in 0..1."""
        return self.network(self.normalise(x_BCHW))

    def on_train_start(self) -> None:
        """Keep the counter of averaged steps where it can be read without waiting for the device."""
        if self.average is not None and self.trainer.world_size == 1:  # several devices exchange it
            self.average.n_averaged = self.average.n_averaged.cpu()

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Set drop-path and its seed at the start of a pass, or where the training stopped within one."""
        epoch, batch_in_epoch = divmod(self.step, self.steps_per_epoch)
        if not self.recipe.drop_path or (batch_in_epoch and self.global_step):
            return
        cast(HasDropPath, self.network).set_drop_path(self.recipe.drop_path_at(epoch))
        if batch_in_epoch and self._start is not None:
            here, *on_gpu = self._start["random"]
            torch.set_rng_state(here)
            if on_gpu and self.device.type != "cpu":
                getattr(torch, self.device.type).set_rng_state(on_gpu[0])
        else:
            torch.manual_seed(seed_of(self.seed, epoch * 1_009 + self.global_rank))

    @torch.no_grad()
    def _average(self, averages: Tensors, values: Tensors, _: Tensor | int) -> None:
        """Take the values of a step, all of one type, into their moving averages."""
        if values[0].is_floating_point():
            keep = self.recipe.ema_decay(self._num_averaged, self.num_steps)
            torch._foreach_lerp_(averages, values, 1 - keep)
        else:  # counters
            torch._foreach_copy_(averages, values)

    def on_train_batch_end(self, *_: object) -> None:
        """Average the weights of the step."""
        if self.average is not None:
            self._num_averaged = int(self.average.n_averaged)
            self.average.update_parameters(self.network)

    def take_average(self) -> None:
        """Give the network the averaged weights, if weights are averaged, for its tests."""
        if self.average is not None:
            self.network.load_state_dict(self.average.module.state_dict())

    def changed(self, x_BCHW: Tensor) -> tuple[Tensor, Tensor | None, float]:
        """The images of a step, changed as the recipe asks, and what `mixed` says of them, if they are."""
        recipe, rows, weight = self.recipe, None, 1.0
        rng = np.random.default_rng((self.seed, self.step, self.global_rank))
        if recipe.shift or recipe.rotate or recipe.scale:
            x_BCHW = moved(x_BCHW, rng, shift=recipe.shift, rotate=recipe.rotate, scale=recipe.scale)
        if recipe.colour:
            x_BCHW = recoloured(x_BCHW, rng, recipe.colour)
        if (recipe.mixup or recipe.cutmix) and rng.random() < recipe.mix_prob:
            x_BCHW, rows, weight = mixed(x_BCHW, rng, mixup=recipe.mixup, cutmix=recipe.cutmix)
        return x_BCHW, rows, weight

    @torch.no_grad()
    def _taught(self, teacher: nn.Module, x_BCHW: Tensor) -> Tensor:
        """The teacher's log-probabilities (B, classes) at the recipe's temperature."""
        logits = teacher.eval()(x_BCHW)  # Lightning may have put all parts into training mode
        return (logits.float() / self.recipe.temperature).log_softmax(1)

    def _with_teacher(self, loss: Tensor, logits: Tensor, taught: Tensor) -> Tensor:
        """The loss by labels and the teacher's, weighted."""
        T, weight = self.recipe.temperature, self.recipe.teacher_weight
        own = (logits.float() / T).log_softmax(1)
        return (1 - weight) * loss + weight * T**2 * F.kl_div(
            own, taught, reduction="batchmean", log_target=True
        )

    def training_step(self, batch: Batch, index: int) -> Tensor:
        """Loss of a batch, with the auxiliary classifier's; stops when it is not finite."""
        y = batch[1]
        x, rows, own = self.changed(batch[0])

        def of_labels(measure: Callable[[Tensor], Tensor]) -> Tensor:
            """A figure by the labels; of mixed images the weighted mean by both."""
            return measure(y) if rows is None else own * measure(y) + (1 - own) * measure(y[rows])

        taught = None if self.teacher is None else self._taught(self.teacher, x)

        def loss_of(answers: Tensor) -> Tensor:
            smoothing = self.recipe.label_smoothing
            loss = of_labels(lambda labels: F.cross_entropy(answers, labels, label_smoothing=smoothing))
            return loss if taught is None else self._with_teacher(loss, answers, taught)

        if self.recipe.auxiliary_weight:
            logits, auxiliary = self.network(self.normalise(x), True)
            loss = main = loss_of(logits)
            loss = loss + self.recipe.auxiliary_weight * loss_of(auxiliary)
        else:
            logits = self(x)
            loss = main = loss_of(logits)
        right = of_labels(lambda labels: (logits.argmax(1) == labels).float().mean())
        self.losses.append(main.detach())
        self.sums.append(torch.stack([main.detach(), right]))
        self._unseen.append(loss.detach())
        if loss.device.type == "cpu" or len(self._unseen) == STEPS_BETWEEN_LOOKS:
            self._look_at_losses(self.step + 1)
        return loss

    def _look_at_losses(self, steps: int) -> None:
        """Raise an error if a loss is not finite, after so many steps; a GPU must finish them for that."""
        losses = torch.stack(self._unseen).tolist() if self._unseen else []
        self._unseen = []
        for step, loss in enumerate(losses, steps - len(losses)):
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the loss became {loss} in step {step} at a learning rate of "
                    f"{self.optimizers().param_groups[0]['lr']:.3g}; try a smaller lr"  # type: ignore[union-attr]
                )

    def on_train_epoch_end(self) -> None:
        """Write down the epoch's figures, if all its losses are finite."""
        self._look_at_losses(self.step)
        super().on_train_epoch_end()

    def checkpoint(self, identity: Mapping[str, object]) -> Checkpoint:
        """The training so far."""
        found = super().checkpoint(identity)
        if self.average is not None:
            found["average"] = self.average.state_dict()
        if self.stops:
            device = self.losses[-1].device  # those of before the training stopped are on the CPU
            found["losses"] = torch.stack([loss.to(device) for loss in self.losses])
            on_gpu = [] if device.type == "cpu" else [getattr(torch, device.type).get_rng_state()]
            found["random"] = [torch.get_rng_state(), *on_gpu]
        return found

    def epoch_settings(self) -> dict[str, float]:
        """The learning rate at the end of an epoch."""
        return {"lr": self.optimizers().param_groups[0]["lr"]}  # type: ignore[union-attr]

    def configure_optimizers(self) -> dict[str, object]:  # type: ignore[override]
        """SGD and the recipe's schedule, per step."""
        recipe, parameters = self.recipe, list(self.network.parameters())
        groups: list[dict[str, object]] = [{"params": parameters}]
        if not recipe.decay_norms:
            kernels, others = ([p for p in parameters if (p.ndim > 1) is wide] for wide in (True, False))
            groups = [{"params": kernels}, {"params": others, "weight_decay": 0.0}]
        optimizer = self.restored(
            torch.optim.SGD(
                groups,
                lr=recipe.lr,
                momentum=recipe.momentum,
                weight_decay=recipe.weight_decay,
                nesterov=recipe.nesterov and recipe.momentum > 0,
            )
        )
        for group in optimizer.param_groups:
            group["lr"] = recipe.lr  # the schedule starts from it, at the right step
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer,
            lambda step: recipe.lr_factor(self._steps_before + step, self.num_steps, self.steps_per_epoch),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def _started(
    session: Session,
    dataset: TrainingData,
    recipe: Recipe,
    seed: int,
    until: int | None,
    teacher: Teacher | None,
) -> tuple[Session, Checkpoint | None]:
    """The session with all that a training depends on in its identity, and the checkpoint to resume from.

    A teacher counts by its weights, wherever it lies. A checkpoint of more than `until` steps is left as it
    is: the session then keeps nothing.
    """
    if session.identity is not None:
        session.folder.mkdir(parents=True, exist_ok=True)
        chosen = {f"trainer.{k}": value for k, value in recipe.settings().items() if k not in MAY_CHANGE}
        if teacher is not None:
            chosen["trainer.teacher"] = teacher.digest
        added = {"augmentation": dataset.augmentation, "seed": seed, **chosen}
        session = replace(session, identity={**session.identity, **added})
    start = session.start()
    if until is not None and start is not None and start.get("step", 0) > until:
        return replace(session, identity=None), None
    return session, start


def fit(
    network: nn.Module,
    dataset: TrainingData,
    recipe: Recipe,
    session: Session,
    *,
    part: str,
    seed: int,
    until: int | None = None,
) -> Classifier:
    """Train a network; returns the module in evaluation mode, on the CPU.

    Weights, optimiser, schedule, shuffles, augmentation and drop-path of a training that resumes are those of
    one that was never interrupted.

    Args:
        network: Initialised by the caller.
        dataset: Images.
        recipe: How to train.
        session: Its folder, created if needed, and what it keeps there; augmentation, seed and recipe are
            added to its identity.
        part: Which training images: "train" or "all".
        seed: Seed of shuffling, augmentation and drop-path.
        until: Optimiser steps after which the training stops, to resume later; its schedule is that of the
            whole training all the same. A checkpoint of more steps is neither used nor replaced. None: it
            does not stop.

    Raises:
        ValueError: Fewer images than a batch, a teacher of other images or for part="train", a loss that is
            not finite, a checkpoint that is damaged or of something else, or not enough memory.
    """
    try:
        batches = dataset.batches(part, batch_size=recipe.batch_size, seed=seed, num_shards=recipe.devices)
    except ValueError as error:  # the data set does not know whose batches they are
        raise ValueError(str(error).replace("trainer.", f"{session.settings}.")) from None
    steps = len(batches)
    num_steps = min(recipe.epochs * steps, recipe.max_steps or recipe.epochs * steps)
    last = num_steps if until is None else min(until, num_steps)
    teacher = None
    if recipe.teacher is not None and part == "all":  # others are refused by `Recipe.check`
        x, _ = next(iter(dataset.batches(part, batch_size=1, train=False)))
        teacher = teacher_in(recipe.teacher, tuple(x.shape[1:]))
    session, start = _started(session, dataset, recipe, seed, None if until is None else last, teacher)
    module = Classifier(
        network,
        *dataset.normalisation(),
        recipe,
        num_steps,
        max(1, steps),
        seed,
        start,
        session.on_epoch,
        stops=until is not None,
        teacher=None if teacher is None else _classifying(teacher),
    )
    if recipe.channels_last:
        module.to(memory_format=torch.channels_last)  # 1.4 times faster on a CPU
    if module.step < last:
        if recipe.compile:
            network.compile()
        try:
            fit_by_lightning(
                module,
                InOrder(batches, module),
                folder=session.folder,
                devices=Devices(
                    recipe.devices,
                    recipe.strategy,
                    unused=recipe.devices > 1 and _leaves_unused(network, dataset, recipe),
                ),
                keep=session.keep(),
                max_steps=last - module.step,
                precision=_precision(network, dataset, recipe),
                gradient_clip_val=recipe.grad_clip,
            )
        except (ValueError, RuntimeError) as error:
            if (explained := _explained(error, module, session)) is None:
                raise
            raise explained from error
        if session.identity is not None and recipe.devices > 1:  # trained in other processes
            module.history = read_checkpoint(session.path, session.identity)["history"]
    module.take_average()
    module.teacher = None
    return module.cpu().eval()


def _classifying(teacher: Teacher) -> Classifier:
    """A teacher as a module that takes images in 0..1."""
    module = Classifier(teacher.network(), *teacher.normalisation(), Recipe(epochs=0), num_steps=0)
    return module.requires_grad_(requires_grad=False)


def _precision(network: nn.Module, dataset: TrainingData, recipe: Recipe) -> str:
    """Lightning's name of the precision in which a network is trained.

    On processors the gradients of convolutions whose input has fewer pixels than their stride are garbage in
    bfloat16 (torch 2.14 with AVX512-BF16): such networks are trained in 32 bits, or refused.

    Raises:
        ValueError: The recipe asks for bfloat16 by name, and that would go wrong.
    """
    precision = lightning_precision(recipe.precision)
    if precision != PRECISIONS["bf16"] or accelerator().type != "cpu" or not _outstrides(network, dataset):
        return precision
    if recipe.precision == "auto":
        return PRECISIONS["32"]
    raise ValueError(
        "precision=bf16 gives this network wrong gradients on a processor: a convolution's stride is larger "
        "than its input; precision=32 or auto trains it"
    )


def _outstrides(network: nn.Module, dataset: TrainingData) -> bool:
    """Whether a convolution of the network has a stride larger than its input's height or width."""
    x, _ = next(iter(dataset.batches("train", batch_size=2, train=False)))
    found = []

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        stride = cast(nn.Conv2d, module).stride
        found.append(any(side < step for side, step in zip(inputs[0].shape[-2:], stride, strict=True)))

    probe = copy.deepcopy(network).eval()
    for module in probe.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(look)
    with torch.no_grad():
        probe(x)
    return any(found)


def _leaves_unused(network: nn.Module, dataset: TrainingData, recipe: Recipe) -> bool:
    """Whether a network has parameters that its answers do not depend on, e.g. of branches of a cell.

    Processes that share the work must know: those that look for them in vain at every step say so loudly.
    Told by the graph of a forward pass, because a backward pass starts threads that forked processes lack.
    """
    x, _ = next(iter(dataset.batches("train", batch_size=2, train=False)))
    probe = copy.deepcopy(network).train()
    with torch.random.fork_rng(devices=[]):
        answers = probe(x, True) if recipe.auxiliary_weight else (probe(x),)
    seen: set[Node] = set()
    used: set[Tensor] = set()
    steps: list[Node | None] = [answer.grad_fn for answer in answers]
    while steps:
        step = steps.pop()
        if step is not None and step not in seen:
            seen.add(step)
            if step.name() == "torch::autograd::AccumulateGrad":  # the end of the graph: a parameter
                used.add(cast(Tensor, step.variable))  # type: ignore[attr-defined]
            steps += [before for before, _ in step.next_functions]
    return not used.issuperset(probe.parameters())


def _explained(error: Exception, module: Classifier, session: Session) -> ValueError | None:
    """A sentence on an error of training and its remedy; None where the error says it."""
    text = str(error)
    if out_of_memory(error):
        return ValueError(
            f"out of memory in step {module.step}: lower {session.settings}.batch_size "
            f"({module.recipe.batch_size}), search_space.channels or search_space.num_cells"
        )
    if "the loss became" not in text:
        return None
    if session.identity is not None and session.path.is_file():
        text += f"; the last finished epoch is kept in {session.path}"
    return DivergedError(text)


def accuracy(module: Classifier, dataset: TrainingData, part: str) -> float:
    """Share of correct answers on a part of the data set, in 0..1; the module ends on the CPU."""
    return accuracy_and_chance(module, dataset, part)[0]


def accuracy_and_chance(module: Classifier, dataset: TrainingData, part: str) -> tuple[float, float]:
    """As `accuracy`, and the fraction of the most frequent class, which a guess would reach."""
    logits, y = answers(module, dataset, part)
    return int((logits.argmax(1) == y).sum()) / len(y), int(y.bincount().max()) / len(y)


def answers(module: Classifier, dataset: TrainingData, part: str) -> tuple[Tensor, Tensor]:
    """Logits (N, classes) and labels (N,) of a part of the data set; the module ends on the CPU."""
    batches = ((logits, y) for _, logits, y in answers_by_batch(module, dataset, part))
    logits, labels = zip(*batches, strict=True)
    return torch.cat(logits), torch.cat(labels)


@torch.inference_mode()
def answers_by_batch(
    module: Classifier, dataset: TrainingData, part: str
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Images (B, C, H, W), logits (B, classes) and labels (B,) per batch; the module ends on the CPU."""
    device = accelerator()
    module.to(device)
    for x, y in dataset.batches(part, batch_size=max(100, module.recipe.batch_size), train=False):
        yield x, module(x.to(device)).float().cpu(), y
    module.cpu()
