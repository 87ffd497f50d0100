"""Representation similarity to a reference model, measured after a short training on one batch.

Shapes: B images, K networks, C channels, H height, W width, d = C * H * W.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from annotated_types import Ge

from hwnas.core import (
    Count,
    FloatArray,
    Fraction,
    Genotype,
    NotNegative,
    Positive,
    SearchSpace,
    Seed,
    WholeNumber,
    checked,
    listed,
)
from hwnas.data.images import Images, augment, check_batch, check_images
from hwnas.evaluators.table import LooksUp, Lookup
from hwnas.spaces.capabilities import HasFeatures, HasSimilarity, fingerprint
from hwnas.training.accelerator import accelerator, within_memory
from hwnas.training.checkpoint import Session
from hwnas.training.classifier import Classifier
from hwnas.training.progress import progress
from hwnas.training.recipe import Recipe
from hwnas.training.reference import reference_model

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.spaces.blocks import Population

SCORE_VERSION = 1  # increased when the same settings begin to give other scores


@dataclass(frozen=True)
class _Batch:
    """Training data of candidates: images (B, C, H, W), labels (B,), the reference's Gram matrices (B, B)."""

    x: Tensor
    y: Tensor
    grams: list[Tensor]
    seed: int


class RMI(LooksUp):
    """`rmi`: sum over three stages of the linear CKA between a candidate and a trained ResNet-20, in 0..3.

    With a `flops_weight` w above 0 the metric is `rmi_flops`, also in 0..3, which is not published: 3 - (3 -
    rmi) exp(-w q), where q in 0..1 is the fraction of the space's networks with fewer multiply-adds. It
    scales the distance from perfect similarity. Longer training shrinks the distances of all networks alike,
    so that one weight suits few steps and many.

    Each candidate is a small network of the architecture. It is trained for `steps` on one fixed batch
    towards the reference's representations and the labels; the score is its similarity after that. The whole
    population trains as one module. If a candidate diverges, or has constant features, the stages concerned
    score 0.

    In float32 the last digits of a score depend on the other architectures of its group. The store keeps the
    scores of a group in one transaction, so that an interrupted group is evaluated again as a whole.

    Args:
        space: A space whose networks tell features (`HasSimilarity`, `HasFeatures`).
        dataset: Images; only training images are used, except for the accuracy of the reference.
        store_dir: Folder of the store, for the reference model.
        announce: Called with a sentence about the reference model.
        warn: Called with a sentence when the reference only guesses, or a whole population scores 0.
        channels: C of the candidates (RMI-NAS: 16); FBNet: channels of the stem; all widths are in
            proportion.
        num_cells: N of the candidates (RMI-NAS: 5); DARTS: cells in all (RMI-NAS: 8); FBNet: no effect.
            "fewest": as few as the space allows.
        batch_size: B, images of the batch (RMI-NAS: 32; DARTS: 128).
        batch_choice: "easiest": of 16 B augmented images those with the lowest cross-entropy of the reference
            (RMI-NAS); "random": a random batch.
        steps: Training steps per candidate (RMI-NAS: 150); 0 scores untrained networks.
        lr: SGD's constant learning rate (RMI-NAS: 0.1).
        momentum: SGD's momentum (RMI-NAS: 0.9).
        weight_decay: SGD's weight decay (RMI-NAS: 5e-4).
        beta: Weight of (1 - CKA) in the loss; cross-entropy has the weight 1 - beta (RMI-NAS: 0.8).
        flops_weight: w, at least 0; 0 is the published method. A larger weight ranks better if accuracy grows
            with multiply-adds. It is not for searches that study whether it does, nor for `device=flops`,
            which minimises what it rewards.
        repeats: Trainings per candidate with the same reference; each has its own batch and initial weights
            (seeds `seed`, `seed` + 1, ...), and scores are averaged (RMI-NAS: 1).
        seed: Seed of batch, candidates and reference; not the run's seed, so that all runs use the same
            scores.
        group_size: Largest number of networks trained together; bounds memory.
        reference: Training of the reference; 0 epochs leave it untrained.
        images: Images for the reference and the batch: "train": training images except validation images;
            "all": all training images (RMI-NAS).
        lookup: Accuracies of a benchmark's table, for reports.

    Raises:
        ValueError: A value out of range, or a space without networks.

    Source: Zheng et al., RMI-NAS, CVPR 2022 (reference code); Sinha et al., MO-HDNAS, CVPRW 2024, eq. 2.
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        dataset: Images,
        store_dir: Path,
        announce: Callable[[str], None],
        warn: Callable[[str], None],
        *,
        channels: Count,
        num_cells: Count | Literal["fewest"],
        batch_size: Annotated[int, Ge(2)],
        batch_choice: Literal["random", "easiest"],
        steps: WholeNumber,
        lr: Positive,
        momentum: Fraction,
        weight_decay: Fraction,
        beta: Fraction,
        flops_weight: NotNegative,
        repeats: Count,
        seed: Seed,
        group_size: Count,
        reference: Recipe,
        lookup: Lookup,
        images: Literal["train", "all"] = "train",
    ) -> None:
        if not isinstance(space, HasSimilarity | HasFeatures):
            raise ValueError(
                f"evaluator=rmi trains whole populations, which the {space.name} space does not build; "
                "nasbench201, darts, fbnet, resnet, mobile and module do"
            )
        check_images("evaluator=rmi", dataset)
        if not isinstance(reference, Recipe):
            raise ValueError(f"reference must be a recipe of training, not {reference!r}")
        self.look_up(lookup)
        num_images = dataset.size(images)
        check_batch("batch_size", batch_size, num_images)
        if reference.epochs:
            check_batch("reference.batch_size", reference.batch_size, num_images, reference.devices)
        self.name = "rmi"
        self._metric = "rmi_flops" if flops_weight else "rmi"
        self.metrics = {self._metric: "max"}
        self.batch_size, self.steps, self.group_size = batch_size, steps, group_size
        self.lr, self.momentum, self.weight_decay = float(lr), float(momentum), float(weight_decay)
        self.beta, self.flops_weight = float(beta), float(flops_weight)
        self.repeats, self.seed = repeats, seed
        self.batch_choice = batch_choice
        self.images = images
        self.reference = reference
        self._candidates = space.resized(
            channels=channels, num_cells=space.fewest_cells if num_cells == "fewest" else num_cells
        )
        self._dataset = dataset
        self._store_dir = store_dir
        self._announce = announce
        self._warn = warn
        self._version = ""
        self._space = space
        self._sorted_flops = np.sort(_flops(space, listed(space))) if self.flops_weight else None

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """Train or load the reference and choose the batch, once; the version hashes all that scores need."""
        if not self._version:
            import torch

            device = accelerator()
            model = reference_model(
                self._dataset,
                self.reference,
                Session(self._store_dir, announce=self._announce, warn=self._warn),
                seed=self.seed,
                part=self.images,
            )
            digest = hashlib.sha256()
            self._batches = []
            for seed in range(self.seed, self.seed + self.repeats):
                x, y = self._choose_batch(model, seed)
                with torch.no_grad():
                    taps, _ = model.network.features(model.normalise(x))  # type: ignore[operator]
                grams = [centred_gram(tap[:, None])[0][0].to(device) for tap in taps]
                self._batches.append(_Batch(model.normalise(x).to(device), y.to(device), grams, seed))
                digest.update(x.numpy().tobytes() + y.numpy().tobytes())
            self._device = device
            for tensor in model.network.state_dict().values():
                digest.update(tensor.numpy().tobytes())
            settings = [
                fingerprint(self._candidates),
                self.batch_size,
                self.steps,
                SCORE_VERSION,
                device.type,
                self.lr,
                self.momentum,
                self.weight_decay,
                self.beta,
                self.seed,
                self.repeats,
            ]
            if self._sorted_flops is not None:
                settings.append(self.flops_weight)
                digest.update(self._sorted_flops.tobytes())
            digest.update(json.dumps([settings, self.reference.settings()]).encode())
            self._version = digest.hexdigest()[:16]
        return self._version

    def _choose_batch(self, model: Classifier, seed: int) -> tuple[Tensor, Tensor]:
        import torch
        import torch.nn.functional as F

        x, y = self._dataset.split(self.images)
        generator = torch.Generator().manual_seed(seed)
        pool = self.batch_size * (16 if self.batch_choice == "easiest" else 1)
        rows = torch.randperm(len(x), generator=generator)[:pool]
        x, y = augment(x[rows], self._dataset, generator), y[rows]
        if self.batch_choice == "easiest":
            with torch.no_grad():
                losses = F.cross_entropy(model(x), y, reduction="none")
            rows = losses.argsort(stable=True)[: self.batch_size]
            x, y = x[rows], y[rows]
        return x, y

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Scores per genotype; groups of at most `group_size` train together."""
        totals = np.zeros(len(genotypes))
        groups = self.parts(genotypes)
        smaller = f"evaluator.group_size ({self.group_size}), evaluator.batch_size or evaluator.channels"
        for repeat, batch in enumerate(self._batches):
            weights = self._initial_weights(batch.seed)
            scores: list[float] = []
            for index, group in enumerate(groups):
                with within_memory("evaluator=rmi", smaller):
                    scores += self.train_and_score(group, weights, batch)
                progress("groups", repeat * len(groups) + index + 1, self.repeats * len(groups))
            totals += scores
        means = totals / self.repeats
        if not means.any() and self._with_path(genotypes):
            self._warn(
                f"all {len(means)} new networks of a population have the similarity 0: their training "
                f"diverged (evaluator.lr={self.lr:g}), or their features are the same for all images"
            )
        if self._sorted_flops is not None:
            means = rmi_flops(
                means, self.flops_weight, quantiles(self._sorted_flops, _flops(self._space, genotypes))
            )
        return [{self._metric: score} for score in means.tolist()]

    def _initial_weights(self, seed: int) -> dict[str, Tensor]:
        """Weights of all operations; empty where each network draws its own."""
        if isinstance(self._candidates, HasFeatures):
            return {}
        drawn = self._candidates.initial_weights(seed)
        return {name: tensor.to(self._device) for name, tensor in drawn.items()}

    def _population(self, genotypes: Sequence[Genotype], weights: dict[str, Tensor], seed: int) -> Population:
        """The networks as one module, with their initial weights."""
        if isinstance(self._candidates, HasFeatures):
            return self._candidates.drawn(genotypes, seed).to(self._device)
        return self._candidates.population(genotypes, weights)

    def parts(self, genotypes: Sequence[Genotype]) -> list[Sequence[Genotype]]:
        """Groups that train together."""
        return [genotypes[i : i + self.group_size] for i in range(0, len(genotypes), self.group_size)]

    def _with_path(self, genotypes: Sequence[Genotype]) -> bool:
        """Whether any of the networks should have a similarity above 0."""
        return bool(self._space.is_connected(genotypes).any())

    def train_and_score(
        self, genotypes: Sequence[Genotype], weights: dict[str, Tensor], batch: _Batch
    ) -> list[float]:
        """Train the networks together, from `weights` on `batch`; their similarities afterwards."""
        import torch
        import torch.nn.functional as F

        population = self._population(genotypes, weights, batch.seed)
        optimizer = torch.optim.SGD(
            population.parameters(), lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay
        )
        labels = batch.y.repeat(len(genotypes))
        x = batch.x.to(next(population.parameters()).dtype)
        for step in range(self.steps):
            taps, logits = population.features(x)
            similarity = similarities(taps, batch.grams).sum()
            # The sum over networks of what each would minimise alone: their gradients do not mix.
            cross_entropy = F.cross_entropy(logits.flatten(0, 1), labels, reduction="sum") / self.batch_size
            loss = (1 - self.beta) * cross_entropy - self.beta * similarity
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress("steps", step + 1, self.steps)
        with torch.no_grad():
            taps, _ = population.features(x)
            return similarities(taps, batch.grams).nan_to_num(nan=0.0).sum(dim=0).tolist()


def _flops(space: SearchSpace, genotypes: Sequence[Genotype]) -> FloatArray:
    return np.asarray(space.static_metrics(genotypes)["flops"], dtype=np.float64)


def rmi_flops(scores: FloatArray, weight: float, shares: FloatArray) -> FloatArray:
    """`rmi_flops` of similarities in 0..3 and fractions of cheaper networks in 0..1, shape (n,) each."""
    return 3.0 - (3.0 - scores) * np.exp(-weight * shares)


def quantiles(ordered: FloatArray, values: FloatArray) -> FloatArray:
    """Fraction of the `ordered` numbers below each value, equal ones counted half: in 0..1, shape (n,)."""
    below, up_to = (np.searchsorted(ordered, values, side=side) for side in ("left", "right"))
    return (below + up_to) / (2 * len(ordered))


def centred_gram(x_BKCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Centred Gram matrices (K, B, B) of flattened features, and their trace before centring, (K,)."""
    import torch

    x_KBd = x_BKCHW.transpose(0, 1).flatten(2)
    centred = x_KBd - x_KBd.mean(dim=1, keepdim=True)
    return torch.bmm(centred, centred.transpose(1, 2)), x_KBd.square().sum(dim=(1, 2))


def similarities(taps: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """Linear CKA of every network's stages with the reference's, shape (stages, K), each in 0..1.

    CKA(X, Y) = <K, L> / (|K| |L|) of the centred Gram matrices K = X X^T and L = Y Y^T (biased HSIC). A stage
    whose features are the same for all images, up to rounding, has the similarity 0.

    Args:
        taps: Features per stage, each (B, K, C, H, W).
        reference: Centred Gram matrix of the reference per stage, each (B, B).
    """
    import torch

    rows = []
    for tap, target in zip(taps, reference, strict=True):
        gram, trace = centred_gram(tap)
        target = target.to(gram.dtype)
        norm = gram.square().sum(dim=(1, 2)).clamp_min(torch.finfo(gram.dtype).tiny).sqrt()
        constant = norm <= trace * torch.finfo(gram.dtype).eps ** 0.75
        inner = (gram * target).sum(dim=(1, 2))
        value = inner / (torch.where(constant, torch.ones_like(norm), norm) * target.norm())
        rows.append(torch.where(constant, torch.zeros_like(value), value))
    return torch.stack(rows)
