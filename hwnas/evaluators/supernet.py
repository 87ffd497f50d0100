"""Validation accuracy with the shared weights of a supernet."""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal, cast

import numpy as np
from annotated_types import Ge, Len

from hwnas.core import (
    Count,
    FloatArray,
    Genotype,
    SearchSpace,
    Seed,
    WholeNumber,
    checked,
    log_rank_sum,
)
from hwnas.data.images import Images, check_batch, check_images
from hwnas.evaluators.table import LooksUp, Lookup
from hwnas.evaluators.zero_cost import TRIES, ZeroCost
from hwnas.files import only_maker, read_torch, write_torch
from hwnas.spaces.capabilities import HasSupernet, in_size
from hwnas.training.accelerator import accelerator, within_memory
from hwnas.training.progress import progress
from hwnas.training.recipe import SupernetRecipe
from hwnas.training.shared_weights import (
    Judges,
    Population,
    Scored,
    SharedWeights,
    State,
    execution_of,
    inherit,
    repeatable,
)

WEIGHTS_VERSION = 1  # increased when the same settings begin to give other weights or accuracies
SECONDS_BETWEEN_CHECKPOINTS = 60.0
OFF = (
    ("devices", 1, ()),
    ("schedule", "cosine", ("power",)),
    ("importance", "none", ()),
    ("ranking_weight", 0, ("ranking_margin",)),
    ("execution", "auto", ()),
    ("channels_last", "auto", ()),
    ("graphs", "auto", ()),
    ("resident", "auto", ()),
)
"""Settings of the recipe that weights do not depend on at a value, and others that then mean nothing."""
GROUP_SIZE = 5
"""Networks per call of a worker: few, so that workers finish together, but enough to be worth a call."""


@checked
@dataclass(frozen=True)
class RankingScores:
    """Training-free scores of a fixed sample of networks, whose order a ranking loss teaches.

    Networks are compared by the sum of ln(rank / n) over the scores (`hwnas.core.log_rank_sum`).

    Args:
        scores: Any that `ZeroCost` knows.
        channels: As for `ZeroCost`; so are the others up to `group_size`.
        num_cells: Likewise.
        image_size: Likewise, in pixels.
        batch_size: Likewise, in images.
        group_size: Likewise, in networks.
        num_networks: Networks of the sample, drawn from the space with a path from input to output; as many
            as are found, if those are fewer.
        seed: Of the sample, and as for `ZeroCost`.
    """

    scores: Annotated[Sequence[str], Len(1)]
    channels: Count | None
    num_cells: Count | Literal["fewest"] | None
    image_size: Count | None
    batch_size: Annotated[int, Ge(2)]
    group_size: Count
    num_networks: Annotated[int, Ge(2)]
    seed: Seed

    def evaluator(
        self,
        space: SearchSpace,
        dataset: Images,
        store_dir: Path,
        announce: Callable[[str], None],
        lookup: Lookup,
    ) -> ZeroCost:
        """What computes the scores."""
        settings = asdict(self)
        del settings["num_networks"]
        return ZeroCost(space, dataset, store_dir, announce, num_reference=0, lookup=lookup, **settings)

    def sample(self, space: SearchSpace, zero_cost: ZeroCost) -> Scored:
        """The sample of a space, all different, with what their scores come to.

        Raises:
            ValueError: Fewer than two networks with a path.
        """
        drawn = list(dict.fromkeys(space.sample(np.random.default_rng(self.seed), TRIES * self.num_networks)))
        found = [g for g, whole in zip(drawn, space.is_connected(drawn), strict=True) if whole]
        found = found[: self.num_networks]
        if len(found) < 2:
            raise ValueError(
                f"a ranking loss needs two networks of {space.name} that lead from input to output"
            )
        rows = [row for group in zero_cost.parts(found) for row in zero_cost.raw(group)]
        return found, log_rank_sum(np.array([list(row.values()) for row in rows]))


@dataclass(frozen=True)
class _Link:
    """One step of a supernet's history: a stage (a new supernet, warmed up) or a generation of training.

    Attributes:
        chain: Hash of this step and all earlier ones, on which the weights after it depend.
        space: The space of the supernet, of its width and depth.
        stage: Number of the stage, from 0.
        first_epoch: Number of its first epoch, counted from the start of the stage.
        num_epochs: Epochs that it trains.
        population: What it trains, architectures or undecoded alphas; None for a stage.
    """

    chain: str
    space: HasSupernet
    stage: int
    first_epoch: int
    num_epochs: int
    population: Population | None


@dataclass
class _Checkpoint:
    """File with the weights of a link; processes that train on several devices get it.

    Attributes:
        path: The file.
        names: Description of the weights, checked when they are loaded.
        first_epoch: First epoch of the link, counted from the start of the stage.
        shared: Whether all runs use it; in a run's folder the previous one is kept, too.
        seconds: Shortest time between two checkpoints during training.
        written: Time of the last checkpoint, by the monotonic clock.
    """

    path: Path
    names: Mapping[str, object]
    first_epoch: int
    shared: bool
    seconds: float
    written: float = field(default_factory=time.monotonic)

    def write(self, state: State, epochs: int) -> None:
        """Write weights after `epochs` of the link, atomically."""
        if not self.shared and self.path.is_file():
            os.replace(self.path, self.path.with_suffix(".previous.pt"))
        write_torch(self.path, {**self.names, "epochs": epochs, **state})
        self.written = time.monotonic()

    def keep(self, state: Callable[[], State], next_epoch: int) -> None:
        """Write the result of `state`, before epoch `next_epoch` of the stage, if the last one is old."""
        if time.monotonic() - self.written > self.seconds:
            self.write(state(), next_epoch - self.first_epoch)


class Supernet(LooksUp):
    """`val_acc`: accuracy on validation images with the weights of a supernet, in 0..1.

    A stage begins with the first population, and whenever the choices of the strategy's space change. A
    supernet with these choices is built, inherits weights if asked to, and trains for `warmup_epochs` with
    its own optimiser and learning rates. Then every population trains it for `epochs_per_generation` epochs,
    before the population is evaluated. Without these epochs, all answers of a stage can be compared.

    A state of the weights is identified by a chain of hashes over settings, images and training history.
    Training waits until an answer is needed that the store does not have. States that do not depend on the
    run are kept in the store's folder, for all runs; of the others, the last two are kept in the run's
    folder. A killed run resumes there, and trains lost states again from its archive.

    Args:
        space: A space with `resized` and `supernet`.
        dataset: Images; only training images are used.
        store_dir: Folder of the store, for supernets that all runs use.
        folder: The run's folder, for supernets that are trained on its populations.
        announce: Called with a sentence about each training.
        channels: C of the supernet; None: the space's. Spaces of one size ignore it, and `num_cells`.
        num_cells: Cells of the supernet, in the space's unit; None: the space's; "fewest": as few as
            possible.
        affine: Whether BatchNorm in cells has a weight and a bias.
        track_running_stats: Whether BatchNorm in cells keeps running statistics; else it uses the batch's.
        warmup_epochs: Epochs of training before the first population of a stage.
        epochs_per_generation: Epochs of training on every population.
        planned_generations: Number of populations for the schedule of the learning rate.
        training: Training of the supernet.
        scores: Of the networks that `training.ranking_weight` compares, if it is above 0.
        decoding: "soft": architectures are evaluated as mixtures, by the softmax of one-hot alphas, and
            trained so if sampled from the population; "hard": alone. "none": the softmax gets the strategy's
            alphas; of members with the same architecture in a population the first one counts; for EvNAS'
            ablations.
        inherit: Whether a smaller supernet starts with the weights of its former operations.
        cutout: Side in pixels of the square cut out of training images; None: the data set's.
        num_valid: Number of validation images, the first of a fixed shuffle; None: all.
        valid_batch_size: Images per batch of an evaluation; it matters if the batch's statistics are used.
        valid_transform: "test", or "train": validation images are augmented as in training, once for all
            architectures of a version.
        eval_mode: "running": BatchNorm uses its running statistics, if it has them; "batch": the batch's.
        seed: Seed of initialisation, batches, augmentation and sampling; not the run's seed, so that all runs
            use the same supernet.
        lookup: Accuracies of a benchmark's table, for reports.

    Raises:
        ValueError: A value out of range, settings without any training, or a space without a supernet.

    Source: EvNAS (arXiv 2012.12540), CMANAS (2107.07266), NEvoNAS (2204.00188), pEvoNAS (2203.01559) and
    their authors' code.
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        dataset: Images,
        store_dir: Path,
        folder: Path,
        announce: Callable[[str], None],
        *,
        channels: Count | None,
        num_cells: Count | Literal["fewest"] | None,
        affine: bool,
        track_running_stats: bool,
        warmup_epochs: WholeNumber,
        epochs_per_generation: WholeNumber,
        planned_generations: Count,
        training: SupernetRecipe,
        scores: RankingScores | None,
        decoding: Literal["soft", "hard", "none"],
        inherit: bool,
        cutout: WholeNumber | None,
        num_valid: Count | None,
        valid_batch_size: Annotated[int, Ge(2)],
        valid_transform: Literal["test", "train"],
        eval_mode: Literal["running", "batch"],
        seed: Seed,
        lookup: Lookup,
    ) -> None:
        if not isinstance(space, HasSupernet):
            raise ValueError(f"evaluator=supernet: the {space.name} space has no supernet")
        check_images("evaluator=supernet", dataset)
        if not isinstance(training, SupernetRecipe):
            raise ValueError(f"training must be a recipe of training, not {training!r}")
        self.look_up(lookup)
        self._scores, self._zero_cost = scores, None
        if training.ranking_weight:
            if not isinstance(scores, RankingScores):
                raise ValueError(f"scores must be RankingScores for training.ranking_weight, not {scores!r}")
            try:
                self._zero_cost = scores.evaluator(space, dataset, store_dir, announce, lookup)
            except ValueError as error:
                raise ValueError(f"scores.{error}") from error
        if training.schedule == "complexity" and "params" not in space.static_sums():
            raise ValueError(
                "training.schedule=complexity needs a space that adds up parameters by operation: "
                f"nasbench201, not {space.name}"
            )
        if not space.mixes and (decoding != "hard" or training.sampling not in ("single_path", "population")):
            raise ValueError(
                f"evaluator=supernet runs single networks of {space.name}, not mixtures: training.sampling="
                f"single_path (or population) and decoding=hard, not {training.sampling} and {decoding}"
            )
        check_batch("training.batch_size", training.batch_size, dataset.size("train"), training.devices)
        try:
            execution_of(training, accelerator())
        except ValueError as error:
            raise ValueError(f"training.{error}") from None
        self.name = "supernet"
        self.metrics = {"val_acc": "max"}
        self.training = training
        self.decoding, self.valid_transform, self.eval_mode = decoding, valid_transform, eval_mode
        self.affine, self.track_running_stats, self.inherit = affine, track_running_stats, inherit
        self.warmup_epochs, self.epochs_per_generation = warmup_epochs, epochs_per_generation
        self.planned_generations = planned_generations
        self.num_epochs = warmup_epochs + epochs_per_generation * planned_generations
        if not self.num_epochs:
            raise ValueError(
                "warmup_epochs and epochs_per_generation are both 0: the supernet would never be trained"
            )
        trains_populations = training.sampling in ("population", "population_alpha")
        if trains_populations and (self.warmup_epochs or not self.epochs_per_generation):
            raise ValueError(
                f"training.sampling={training.sampling} trains on populations: it needs "
                "epochs_per_generation of at least 1 and warmup_epochs=0"
            )
        self.num_valid, self.valid_batch_size, self.seed = num_valid, valid_batch_size, seed
        sizes = in_size(space, channels, num_cells).sizes  # which checks what it needs
        self.channels, self.num_cells = (
            int(sizes[size]) if size in sizes else None for size in ("channels", "num_cells")
        )
        if cutout is not None:
            dataset = copy.copy(dataset)
            dataset.cutout = cutout
        self._space, self._dataset = space, dataset
        self._store_dir, self._folder, self._announce = store_dir, folder, announce
        hard = training.sampling == "single_path" or decoding == "hard"
        if hard and eval_mode == "running" and track_running_stats:
            announce(
                "note: running statistics of a supernet are of little use to single architectures; "
                "evaluator.eval_mode=batch does without them"
            )
        self._needs_alphas = decoding == "none" or training.sampling == "population_alpha"
        self._alphas: FloatArray | None = None  # of the population that comes next
        self._judged: dict[Genotype, FloatArray] = {}  # alphas of the population's architectures
        self._root = ""
        self._links: list[_Link] = []
        self._at = -1  # the link that the weights in memory have reached
        self._weights: SharedWeights | None = None
        self._looked = False  # for checkpoints in the run's folder
        self._said_not_recorded = False

    @property
    def stationary(self) -> bool:
        """Whether all answers so far come from the same weights."""
        alone = self.epochs_per_generation == 0 and self.decoding != "none"
        return alone and all(link.stage == 0 for link in self._links)

    def see(self, alphas: FloatArray | None) -> None:
        """Take the alphas of the next population, for ablations without decoding."""
        self._alphas = alphas

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """Note the training that is due; the version identifies the weights and the evaluation.

        Every call with a population is a generation, also if its answers are known. A call without a
        population trains at once what depends on none.
        """
        assert isinstance(space, HasSupernet)
        resized = in_size(space, self.channels, self.num_cells)
        assert isinstance(resized, HasSupernet)
        if not self._links or resized.choices != self._links[-1].space.choices:
            stage = self._links[-1].stage + 1 if self._links else 0
            parent = self._links[-1].chain if self._links and self.inherit else self._rooted(resized)
            chain = _hash(parent, "stage", stage, resized.choices, self.warmup_epochs)
            self._links.append(_Link(chain, resized, stage, 0, self.warmup_epochs, None))
        alphas = self._alphas_of(population) if population and self._needs_alphas else None
        if population and self.epochs_per_generation:
            last, sampling = self._links[-1], self.training.sampling
            trained: Population = tuple(population)
            members: object = trained if sampling == "population" else ()
            if alphas is not None and sampling == "population_alpha":
                trained, members = alphas, alphas.tolist()
            chain = _hash(last.chain, "generation", members, self.epochs_per_generation)
            first = last.first_epoch + last.num_epochs
            self._links.append(_Link(chain, resized, last.stage, first, self.epochs_per_generation, trained))
        if not population:
            self._train()
        judged = [self.decoding, self.num_valid, self.valid_batch_size, self.valid_transform, self.eval_mode]
        if self.decoding == "none" and alphas is not None:
            self._judged = dict(reversed(list(zip(population, alphas, strict=True))))  # of equals the first
            judged.append(alphas.tolist())
        return _hash(self._links[-1].chain, *judged)

    def _alphas_of(self, population: Sequence[Genotype]) -> FloatArray:
        """Alphas from which the population was decoded."""
        if self._alphas is None:
            setting = "decoding=none" if self.decoding == "none" else "training.sampling=population_alpha"
            raise ValueError(f"evaluator.{setting} needs alphas, which only strategy=evnas hands over")
        assert len(self._alphas) == len(population)
        return self._alphas

    def _rooted(self, space: HasSupernet) -> str:
        """Hash of everything that all weights depend on, besides their training."""
        if not self._root:
            self._root = _hash(
                WEIGHTS_VERSION,
                [space.name, self.channels, self.num_cells, space.image_shape, space.num_classes],
                [self.affine, self.track_running_stats, self.seed, self.num_epochs],
                [self._recipe(), self.decoding if self.training.sampling == "population" else ""],
                self._dataset.identity(),
                accelerator().type,
                *self._compared(),
            )
        return self._root

    def _compared(self) -> list[object]:
        """What the networks and scores of a ranking loss depend on; empty without one."""
        if self._zero_cost is None:
            return []
        assert self._scores is not None
        return [self._zero_cost.prepare(self._space, []), self._scores.num_networks]

    def _recipe(self) -> dict[str, object]:
        """The part of the recipe that weights depend on; what is off is left out, as in old versions."""
        recipe = asdict(self.training)
        del recipe["strategy"]
        if self.training.autocast == "auto":
            recipe["autocast"] = execution_of(self.training, accelerator()).autocast
        for setting, off, others in OFF:
            if recipe[setting] == off:
                for name in (setting, *others):
                    del recipe[name]
        return recipe

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Complete the training; returns the accuracy per genotype."""
        self._train()
        assert self._weights is not None
        with self._within_memory("evaluation", "valid_batch_size"):
            accuracies = self._weights.accuracies(
                genotypes,
                self._images(),
                batch_statistics=self.eval_mode == "batch",
                decoding=self.decoding,
                alphas=np.array([self._judged[genotype] for genotype in genotypes])
                if self.decoding == "none"
                else None,
            )
        return [{"val_acc": accuracy} for accuracy in accuracies]

    def _images(self) -> Judges:
        """The validation images, in the form of `SharedWeights`."""
        seed = (
            int(_hash(self._links[-1].chain, "augment")[:12], 16) if self.valid_transform == "train" else None
        )
        return Judges(self.num_valid, self.valid_batch_size, seed)

    def for_workers(self, genotypes: Sequence[Genotype]) -> list[Sequence[Genotype]]:
        """Complete the training; returns small groups, because networks are evaluated one by one."""
        self._train()
        return [genotypes[i : i + GROUP_SIZE] for i in range(0, len(genotypes), GROUP_SIZE)]

    def __getstate__(self) -> dict[str, object]:
        """The state that a worker needs: trained weights and validation images."""
        weights = None if self._weights is None else self._weights.for_evaluation(self._images())
        return {**self.__dict__, "_weights": weights, "_zero_cost": None}

    def _train(self) -> None:
        """Bring the weights in memory to the last link: from a checkpoint, by training, or both."""
        links = self._links
        if self._at == len(links) - 1:
            return
        first = self._at + 1
        if not self.inherit:  # a new stage needs nothing of the former ones
            first = max([first, *(i for i, link in enumerate(links) if link.population is None)])
        start, epochs = self._resume(first)
        for index in range(start, len(links)):
            path, shared = self._path(index), self._shared(index) and links[index].num_epochs > 0
            with only_maker(path, self._announce) if shared else contextlib.nullcontext():
                if shared and epochs < links[index].num_epochs:
                    epochs = self._restore(index, path) or epochs  # another run may have been faster
                if links[index].population is None and epochs == 0:
                    self._begin(links[index], self._weights if self.inherit else None)
                self._train_link(index, epochs)
            self._at, epochs = index, 0

    def _resume(self, first: int) -> tuple[int, int]:
        """The latest link from `first` on that a checkpoint has reached, and the epochs of it done."""
        own = [self._own_path, self._own_path.with_suffix(".previous.pt")]
        paths = [] if self._looked else own  # later on, the weights in memory are ahead of them
        for index in reversed(range(first, len(self._links))):
            self._looked |= not self._shared(index)
            for path in [self._path(index)] if self._shared(index) else paths:
                epochs = self._restore(index, path)
                if epochs:
                    return index, epochs
        return first, 0

    def _begin(self, link: _Link, former: SharedWeights | None) -> None:
        """New weights for a stage, inherited if there are former ones."""
        self._weights = None  # the former ones go as soon as they are copied
        with self._within_memory("training", "training.batch_size"):
            weights = SharedWeights(
                link.space,
                self._dataset,
                self.training,
                num_epochs=self.num_epochs,
                affine=self.affine,
                track_running_stats=self.track_running_stats,
                decoding=self.decoding,
                seed=int(_hash(self.seed, link.stage)[:7], 16),
                scored=None if self._zero_cost is None else functools.partial(self._scored, link.space),
            )
            if former is not None:
                missing = inherit(weights.supernet, former.supernet)
                assert not missing, f"the former supernet has no {missing}"
        self._weights = weights

    def _scored(self, space: SearchSpace) -> Scored:
        """The networks that a ranking loss compares in a stage, with their scores."""
        assert self._scores is not None
        assert self._zero_cost is not None
        self._zero_cost.prepare(self._space, [])
        start = time.perf_counter()
        genotypes, scores = self._scores.sample(space, self._zero_cost)
        seconds = time.perf_counter() - start
        self._announce(f"zero-cost scores of {len(genotypes)} networks, to be compared, in {seconds:.1f} s")
        return genotypes, scores

    def _train_link(self, index: int, epochs: int) -> None:
        """Train the rest of a link after `epochs`, with checkpoints."""
        link = self._links[index]
        assert self._weights is not None
        if link.population is None and epochs < link.num_epochs:
            which = f" of stage {link.stage + 1}" if link.stage else ""
            self._announce(f"training the supernet{which}: {link.num_epochs - epochs} epochs")
            if self.training.autocast is True and self._weights.device.type == "cpu":
                self._announce("note: evaluator.training.autocast has no effect without a GPU")
        every, devices = max(1, link.num_epochs // 5), self.training.devices
        checkpoint = self._checkpoint(index)
        while epochs < link.num_epochs:
            progress("epochs", epochs, link.num_epochs)
            at, population = link.first_epoch + epochs, () if link.population is None else link.population
            num = link.num_epochs - epochs
            if devices == 1:
                num = 1
            elif link.population is None:  # as far as the next announcement
                num = min(num, every - epochs % every)
            with self._within_memory("training", "training.batch_size"), repeatable():
                if devices == 1:
                    figures = self._weights.train_epoch(at, population)
                else:
                    figures = self._weights.train_epochs(at, num, population, checkpoint.keep)
            epochs += num
            if self._weights.not_recorded and not self._said_not_recorded:
                self._said_not_recorded = True
                self._announce(f"note: steps run without a CUDA graph ({self._weights.not_recorded})")
            if link.population is None and epochs % every == 0:
                self._announce(
                    f"  epoch {epochs}/{link.num_epochs}  loss {figures['loss']:.3f}  "
                    f"training accuracy {figures['train_acc']:.2%}"
                )
            if epochs == link.num_epochs:
                checkpoint.write(self._weights.state(), epochs)
            else:
                checkpoint.keep(self._weights.state, link.first_epoch + epochs)
        progress("epochs", epochs, link.num_epochs)

    @property
    def _own_path(self) -> Path:
        return self._folder / "supernet" / "checkpoint.pt"

    def _shared(self, index: int) -> bool:
        """Whether the weights after a link do not depend on the run, so that other runs can use them."""
        return all(link.population is None for link in self._links[: index + 1])

    def _path(self, index: int) -> Path:
        """Path of a link's checkpoint."""
        if self._shared(index):
            return self._store_dir / "supernets" / f"{self._links[index].chain}.pt"
        return self._own_path

    def _made_for(self, link: _Link) -> dict[str, object]:
        """Description of the weights, which a checkpoint must match."""
        space = link.space
        size = "" if self.channels is None else f" {self.channels}x{self.num_cells}"
        return {
            "space": f"{space.name}{size}",
            "images": list(space.image_shape),
            "classes": space.num_classes,
        }

    def _checkpoint(self, index: int) -> _Checkpoint:
        link = self._links[index]
        names = {"made_for": self._made_for(link), "root": self._root, "chain": link.chain}
        return _Checkpoint(
            self._path(index), names, link.first_epoch, self._shared(index), SECONDS_BETWEEN_CHECKPOINTS
        )

    def _restore(self, index: int, path: Path) -> int:
        """Load a checkpoint if it belongs to this link; returns the number of the link's epochs it has, or 0.

        Raises:
            ValueError: It belongs to another space, data set or run.
        """
        if not path.is_file():
            return 0
        link = self._links[index]
        try:
            state = read_torch(path, "made_for", "root", "chain", "epochs")
        except ValueError as error:
            self._announce(f"note: {error}; training again what it held")
            return 0
        made_for, root, chain, epochs = (state[key] for key in ("made_for", "root", "chain", "epochs"))
        if made_for != self._made_for(link):
            raise ValueError(
                f"{path} is the checkpoint of {_said(made_for)}, not of {_said(self._made_for(link))}"
            )
        if root != self._root:
            raise ValueError(f"{path} was trained with other settings or images; start a new run")
        if chain != link.chain:
            return 0
        self._begin(link, None)
        assert self._weights is not None
        self._weights.load(cast(State, state))
        self._announce(f"supernet after {link.first_epoch + epochs} epochs from {path}")
        return int(epochs)

    def _within_memory(self, what: str, setting: str) -> contextlib.AbstractContextManager[None]:
        """Turn a lack of memory into one line on settings that need less."""
        smaller = f"evaluator.{setting}"
        if self.channels is not None:
            smaller += f", evaluator.channels ({self.channels}) or evaluator.num_cells ({self.num_cells})"
        return within_memory("evaluator=supernet", smaller, f" in {what}")


def _said(made_for: Mapping[str, object]) -> str:
    return ", ".join(f"{name} {value}" for name, value in dict(made_for).items())


def _hash(*values: object) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
