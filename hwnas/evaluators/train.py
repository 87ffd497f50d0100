"""Validation accuracy after a short training from scratch: a reliable estimate, but expensive."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from hwnas.core import Count, Evaluator, Genotype, SearchSpace, Seed, checked
from hwnas.data.images import Images, check_batch
from hwnas.evaluators.table import Lookup
from hwnas.spaces.capabilities import HasNetworks, Resizable, fingerprint
from hwnas.training.checkpoint import Session
from hwnas.training.classifier import MAY_CHANGE, DivergedError, accuracy, fit
from hwnas.training.recipe import Recipe

TRAIN_VERSION = 1  # increased when the same settings begin to give other accuracies


class Train(Evaluator):
    """`val_acc`: validation accuracy in 0..1 of each network, trained alone on the training images.

    Initial weights, shuffles and augmentation of a network depend on `seed` and its architecture, not on its
    population. A network that diverges (an infinite loss) has the accuracy 0.

    Args:
        space: A space with `network`.
        dataset: Images; networks are judged on validation images, test images are not used.
        store_dir: Folder of the store, in which trainings work.
        announce: Called once with a sentence on the time of a training.
        warn: Called with a sentence when a first training diverges.
        channels: Width of the trained networks; null: the search space's.
        num_cells: Depth of the trained networks; null: the search space's. FBNet has a fixed depth.
        training: Training of each network.
        seed: Seed of the trainings; not the run's seed, so that all runs use the same accuracies.
        lookup: Accuracies of a benchmark's table, for reports.

    Raises:
        ValueError: A value out of range, a space without networks, no images, or a recipe with 0 epochs or
            for parts that the networks lack.
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
        channels: Count | None,
        num_cells: Count | None,
        training: Recipe,
        seed: Seed,
        lookup: Lookup,
    ) -> None:
        if not isinstance(space, HasNetworks):
            raise ValueError(f"evaluator=train: the {space.name} space has no networks to train")
        if not isinstance(dataset, Images):
            raise ValueError("evaluator=train needs images; choose a dataset")
        if not isinstance(training, Recipe):
            raise ValueError(f"training must be a recipe of training, not {training!r}")
        if not training.epochs:
            raise ValueError("training.epochs must be at least 1, not 0")
        if not isinstance(lookup, Lookup):
            raise ValueError(f"lookup must be true accuracies of a benchmark, not {lookup!r}")
        check_batch("training.batch_size", training.batch_size, dataset.size("train"), training.devices)
        given = {"channels": channels, "num_cells": num_cells}
        sizes = {name: size for name, size in given.items() if size is not None}
        self._networks: HasNetworks = space
        if sizes:
            if not isinstance(space, Resizable):
                raise ValueError(f"{next(iter(sizes))} must be null: {space.name} has one size only")
            own = {name: int(space.sizes[name]) for name in ("channels", "num_cells") if name in space.sizes}
            self._networks = space.resized(**{**own, **sizes})
        training.check(auxiliary=self._networks.auxiliary, drop_path=self._networks.drop_path)
        self.name = "train"
        self.metrics = {"val_acc": "max"}
        self.training = training
        self.seed = seed
        self._dataset = dataset
        self._folder = store_dir / "trainings"
        self._announce = announce
        self._warn = warn
        self.lookup, self.reported = lookup, lookup.goals
        self._said = self._warned = False

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """The version: a hash of images, recipe, seed, kind of processor, and the networks' sizes."""
        import torch

        recipe = asdict(self.training)
        settings = [
            TRAIN_VERSION,
            fingerprint(self._networks),
            self._dataset.identity(),
            {name: value for name, value in recipe.items() if name not in MAY_CHANGE},
            self.seed,
            "cuda" if torch.cuda.is_available() else "cpu",
        ]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()[:16]

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Validation accuracy per genotype, one training after another."""
        import hwnas.training.classifier  # noqa: F401  # loading torch is not training

        start = time.perf_counter()
        accuracies = [self.train(genotype) for genotype in genotypes]
        seconds = time.perf_counter() - start
        if genotypes and not self._said:
            self._said = True
            self._announce(f"training takes {seconds / len(genotypes):.1f} s per network")
        if any(map(math.isnan, accuracies)) and not self._warned:
            self._warned = True
            self._warn(
                f"the training of a network diverged (evaluator.training.lr={self.training.lr:g}); "
                "its accuracy counts as 0, as that of any other whose training does"
            )
        return [{"val_acc": 0.0 if math.isnan(accuracy) else accuracy} for accuracy in accuracies]

    def parts(self, genotypes: Sequence[Genotype]) -> list[Sequence[Genotype]]:
        """Networks one by one."""
        return [[genotype] for genotype in genotypes]

    def train(self, genotype: Genotype) -> float:
        """Train a network; returns its validation accuracy in 0..1, or NaN after a divergence."""
        import torch

        seed = self.seed_of(genotype)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = self._networks.network(genotype)
        self._folder.mkdir(parents=True, exist_ok=True)
        try:
            session = Session(self._folder, settings="evaluator.training")
            module = fit(network, self._dataset, self.training, session, part="train", seed=seed)
        except DivergedError:
            return math.nan
        return accuracy(module, self._dataset, "valid")

    def seed_of(self, genotype: Genotype) -> int:
        """A network's own seed, below 2^31."""
        text = f"{self.seed} {self._networks.to_str(genotype)}"
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1

    def report(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Accuracies per genotype from the benchmark's table, if there is one."""
        return self.lookup.report(genotypes)
