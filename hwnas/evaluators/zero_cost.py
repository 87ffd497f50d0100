"""Training-free scores of networks, one by one and combined."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Len
from torch import Tensor

from hwnas.core import (
    Count,
    FloatArray,
    Genotype,
    SearchSpace,
    Seed,
    WholeNumber,
    checked,
    suggestion,
)
from hwnas.data.images import Images, check_batch, check_images, smaller_side
from hwnas.evaluators.scores import (
    MECO_SIDE,
    PASSES,
    ZICO_BATCHES,
    Data,
    OneNetwork,
    kaiming,
    measure,
)
from hwnas.evaluators.table import LooksUp, Lookup
from hwnas.files import only_maker, read_json, shaped, write_json
from hwnas.spaces.blocks import Population, SeparateNetworks, count, depth
from hwnas.spaces.capabilities import (
    HasDepth,
    HasNetworks,
    HasSimilarity,
    Resizable,
    fingerprint,
    in_size,
)
from hwnas.training.accelerator import accelerator, within_memory
from hwnas.training.progress import progress

SCORE_VERSION = 2  # increased when the same settings begin to give other scores

COUNTED = ("params", "flops", "az_complexity", "depth")
"""Scores that are counted, not computed from images; AZ-NAS' complexity is the multiply-adds."""

NAMES = (*PASSES, *COUNTED)
"""All scores."""

WORST = -1e9
"""Score of a network without a path from input to output, where 0 is not the lowest value."""

NOT_NEGATIVE = (*COUNTED, "swap", "az_expressivity", "meco")
"""Scores whose lowest value is 0."""

TRIES = 20
"""Networks drawn per network of the reference sample, at most: some spaces have many without a path."""


class ZeroCost(LooksUp):
    """`zero_cost`: training-free scores of a network with random weights, combined; in milliseconds.

    Each score s of `scores` is a metric `score_<s>`, higher for networks that are expected to be better;
    their combination is `zero_cost`, the sum of ln q(s) over the scores, at most 0, where q is the quantile
    of the network's score among those of `num_reference` networks, drawn from the space once. It approximates
    the published sum of ln(rank / n) over all n networks of a population (`hwnas.core.log_rank_sum`), but
    does not depend on the networks that a run has seen: values of different generations can be compared. See
    `quantiles` for what is between and beyond the reference scores.

    All scores are those of a network's live operations (`SearchSpace.live`): what lies on no path from input
    to output does not count. `params`, `flops` and `az_complexity` are those of the space's own networks, the
    others those of networks of `channels` and `num_cells`. A network without a path, or with a score of -inf,
    has the score `WORST`; 0 for the scores that are not negative.

    A group of networks is computed together where the space has populations of one module
    (`nasbench201`). In float32 the last digits of a score depend on the other architectures of its group. The
    store keeps the scores of a group in one transaction, so that an interrupted group is evaluated again as a
    whole.

    Args:
        space: A space with `network`.
        dataset: Images; only training images are used.
        store_dir: Folder of the store, where the scores of the reference sample are kept.
        announce: Called with a sentence about the reference sample.
        scores: Any of `NAMES`; the sources are in `hwnas.evaluators.scores`.
        channels: C of the networks, as for `RMI`; null: the search space's.
        num_cells: N of the networks; "fewest": as few as the space allows; null: the search space's.
        image_size: Height and width that images are averaged to, in pixels; "auto": half of
            their side, see `smaller_side`; null: as they are.
        batch_size: B, images that scores are computed on; `zico` takes two batches.
        seed: Seed of images, weights and reference sample; not the run's seed, so that all runs use the same
            scores.
        group_size: Largest number of networks computed together; bounds memory.
        num_reference: Networks of the reference sample; 0 leaves `zero_cost` out, and the metrics are the
            scores alone.
        lookup: Accuracies of a benchmark's table, for reports.

    Raises:
        ValueError: A value out of range, an unknown score, no images, fewer training images than a batch, or
            a space without networks or of another size; when evaluating, a score that is not a number.
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        dataset: Images,
        store_dir: Path,
        announce: Callable[[str], None],
        *,
        scores: Annotated[Sequence[str], Len(1)],
        channels: Count | None,
        num_cells: Count | Literal["fewest"] | None,
        image_size: Count | Literal["auto"] | None,
        batch_size: Annotated[int, Ge(2)],
        seed: Seed,
        group_size: Count,
        num_reference: WholeNumber,
        lookup: Lookup,
    ) -> None:
        if not isinstance(space, HasNetworks):
            raise ValueError(f"evaluator=zero_cost: the {space.name} space has no networks to score")
        check_images("evaluator=zero_cost", dataset)
        self.look_up(lookup)
        for name in scores:
            if name not in NAMES:
                hint = suggestion(name, NAMES) or f"; known: {', '.join(NAMES)}"
                raise ValueError(f"scores: {name!r} is unknown{hint}")
        if image_size is not None and not isinstance(space, Resizable):
            raise ValueError(
                f"image_size must be null: networks of the {space.name} space take images as they are"
            )
        self._num_batches = ZICO_BATCHES if "zico" in scores else 1
        num_images = dataset.size("train") // self._num_batches
        if num_images < batch_size <= dataset.size("train"):
            raise ValueError(
                f"batch_size={batch_size}: zico needs two batches of the training images; it can "
                f"be at most {num_images}"
            )
        check_batch("batch_size", batch_size, dataset.size("train"))
        self.name = "zero_cost"
        self.scores = tuple(dict.fromkeys(scores))
        self._metrics = {name: f"score_{name}" for name in self.scores}
        combined = ["zero_cost"] if num_reference else []
        self.metrics = dict.fromkeys([*combined, *self._metrics.values()], "max")
        self.image_size = smaller_side(image_size, dataset.image_shape) if space.any_image_size else None
        self.batch_size, self.seed = batch_size, seed
        self.group_size, self.num_reference = group_size, num_reference
        self._space: HasNetworks = space
        self._networks = in_size(space, channels, num_cells)
        self._dataset = dataset
        self._folder = store_dir / "zero_cost"
        self._announce = announce
        self._dtype = torch.float32
        self._version = ""
        self._reference: dict[str, FloatArray] = {}

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """Choose the images and score the reference sample, once; the version hashes all that scores need."""
        if not self._version:
            self._device = accelerator(float64=True)
            self._data = self._inputs()
            self._weights = self._draw_weights()
            settings = [
                SCORE_VERSION,
                self.scores,
                fingerprint(self._space),
                fingerprint(self._networks),
                self._networks.sizes,
                self.seed,
                self.num_reference,
                self._space.choices if self.num_reference else None,
                self._device.type,
            ]
            digest = hashlib.sha256(json.dumps(settings).encode())
            for x, y in self._data.batches:
                digest.update(x.cpu().numpy().tobytes() + y.cpu().numpy().tobytes())
            version = digest.hexdigest()[:16]
            if self.num_reference:
                self._reference = self._read_reference(version)
            self._version = version
        return self._version

    def _inputs(self) -> Data:
        """Batches of training images, drawn without replacement, and an image of noise."""
        x, y = self._dataset.split("train")
        generator = torch.Generator().manual_seed(self.seed)
        rows = torch.randperm(len(x), generator=generator)[: self._num_batches * self.batch_size]
        mean, std = self._dataset.normalisation()
        x, y = (x[rows] - mean) / std, y[rows]
        if self.image_size is not None:
            x = F.interpolate(x, (self.image_size, self.image_size), mode="area")
        # Networks of a space of one's own may take images of one size only.
        any_size = isinstance(self._networks, Resizable) and self._networks.any_image_size
        sides = (MECO_SIDE, MECO_SIDE) if any_size else x.shape[2:]
        noise = torch.randn(1, x.shape[1], *sides, generator=generator)
        x, y, noise = (tensor.to(self._device) for tensor in (x, y, noise))
        batches = zip(x.split(self.batch_size), y.split(self.batch_size), strict=True)
        return Data(list(batches), noise, self.seed)

    def _draw_weights(self) -> dict[str, Tensor]:
        """Weights of all networks, if the space has them."""
        if not isinstance(self._networks, HasSimilarity):
            return {}
        drawn = kaiming(self._networks.initial_weights(self.seed), self.seed, self._dtype)
        return {name: weight.to(self._device) for name, weight in drawn.items()}

    def _read_reference(self, version: str) -> dict[str, FloatArray]:
        """Sorted scores of the reference sample per score, from the store's folder, or computed and kept."""
        path = self._folder / f"{self._space.name}-{version}.json"
        if not path.is_file():
            with only_maker(path, self._announce):
                if not path.is_file():
                    start = time.perf_counter()
                    sample = self._sample()
                    groups, done = self.parts(sample), 0
                    rows: list[dict[str, float]] = []
                    for group in groups:
                        rows += self.raw(group)
                        done += len(group)
                        progress("networks of the reference sample", done, len(sample))
                    values = {name: sorted(row[name] for row in rows) for name in self.scores}
                    write_json(path, values)
                    self._announce(
                        f"scores of {len(sample)} reference networks computed in "
                        f"{time.perf_counter() - start:.1f} s, kept in {path}"
                    )
        values = read_json(path, "is damaged; delete it to compute the reference scores anew")
        shaped(values, {name: [float] for name in self.scores}, str(path))
        return {name: np.array(values[name], dtype=np.float64) for name in self.scores}

    def _sample(self) -> list[Genotype]:
        """The networks of the reference sample: seeded, and with a path from input to output."""
        drawn = self._space.sample(np.random.default_rng(self.seed), TRIES * self.num_reference)
        found = [g for g, whole in zip(drawn, self._space.is_connected(drawn), strict=True) if whole]
        if not found:
            raise ValueError(
                f"none of {len(drawn)} networks of {self._space.name} leads from input to output"
            )
        return found[: self.num_reference]

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """`zero_cost`, unless there is no reference sample, and each score, per genotype."""
        rows: list[dict[str, float]] = []
        for group in self.parts(genotypes):
            rows += self.raw(group)
        answers = [{self._metrics[name]: value for name, value in row.items()} for row in rows]
        if not self._reference:
            return answers
        total = np.zeros(len(rows))
        for name, reference in self._reference.items():
            total += np.log(quantiles(reference, np.array([row[name] for row in rows])))
        return [{"zero_cost": value, **answer} for value, answer in zip(total.tolist(), answers, strict=True)]

    def parts(self, genotypes: Sequence[Genotype]) -> list[Sequence[Genotype]]:
        """Groups that are computed together."""
        return [genotypes[i : i + self.group_size] for i in range(0, len(genotypes), self.group_size)]

    def raw(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """The scores of a group of networks, by their names.

        Raises:
            ValueError: A score that is not a number; names it and the network.
        """
        columns = {name: np.full(len(genotypes), -np.inf) for name in self.scores}
        connected = np.flatnonzero(self._space.is_connected(genotypes)).tolist()
        if connected:
            for name, values in self._scores([genotypes[row] for row in connected]).items():
                columns[name][connected] = values
        for name, values in columns.items():
            for row in np.flatnonzero(np.isnan(values) | (values == np.inf)).tolist():
                text = self._space.to_str(genotypes[row])
                raise ValueError(f"{name} of {text} is {values[row]}, not a number")
            values[values == -np.inf] = 0.0 if name in NOT_NEGATIVE else WORST
        rows = zip(*(values.tolist() for values in columns.values()), strict=True)
        return [dict(zip(columns, row, strict=True)) for row in rows]

    def _scores(self, genotypes: Sequence[Genotype]) -> dict[str, FloatArray]:
        """Scores of connected networks, at least one: those of equal live operations are computed once."""
        live = [tuple(row) for row in self._space.live(genotypes).tolist()]
        different = list(dict.fromkeys(live))
        found = self._counted(different)
        passes = [name for name in self.scores if name in PASSES]
        if passes:
            smaller = f"evaluator.group_size ({self.group_size}), evaluator.batch_size or .image_size"
            with within_memory("evaluator=zero_cost", smaller):
                parts = [measure(passes, make, self._data) for make in self._makers(different)]
            found |= {name: torch.cat([part[name] for part in parts]).numpy() for name in passes}
        place = [different.index(genotype) for genotype in live]
        return {name: found[name][place] for name in self.scores}

    def _counted(self, genotypes: Sequence[Genotype]) -> dict[str, FloatArray]:
        """Scores that are counted, of the space's networks in their own size."""
        names = [name for name in COUNTED if name in self.scores]
        if not names:
            return {}
        found = dict(self._space.static_metrics(genotypes))
        if not {"params", "flops"} <= set(found) and names != ["depth"]:
            counts = [count(self._space.network(g), self._space.image_shape) for g in genotypes]
            found["params"], found["flops"] = np.array(counts, dtype=np.float64).reshape(-1, 2).T
        if "az_complexity" in names:
            found["az_complexity"] = found["flops"]
        if "depth" in names:
            found["depth"] = self._depths(genotypes)
        return {name: found[name] for name in names}

    def _depths(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Most convolutions on a path from input to output: in the space's own words, or of each network."""
        space = self._space
        if isinstance(space, HasDepth):
            return space.depth(genotypes)
        return np.array([depth(space.network(g), space.image_shape) for g in genotypes], dtype=np.float64)

    def _makers(
        self, genotypes: Sequence[Genotype]
    ) -> Iterator[Callable[[Callable[[Tensor], Tensor]], Population]]:
        """Makers of populations that hold the networks in order: one of all, or one of each."""
        space = self._networks
        if not isinstance(space, HasSimilarity):
            yield from (partial(self._own_network, genotype) for genotype in genotypes)
            return

        def together(genotypes: Sequence[Genotype], change: Callable[[Tensor], Tensor]) -> Population:
            return space.population(genotypes, {n: change(weight) for n, weight in self._weights.items()})

        def alone(genotype: Genotype, change: Callable[[Tensor], Tensor]) -> Population:
            population = together([genotype], change)
            assert isinstance(population, SeparateNetworks)
            return OneNetwork(population.networks[0])

        if isinstance(together(genotypes[:1], lambda weight: weight), SeparateNetworks):
            yield from (partial(alone, genotype) for genotype in genotypes)
        else:
            yield partial(together, genotypes)

    def _own_network(self, genotype: Genotype, change: Callable[[Tensor], Tensor]) -> OneNetwork:
        """A network of a space without populations, with weights of the seed."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            network = self._networks.network(genotype)
        weights = kaiming(dict(network.named_parameters()), self.seed, self._dtype)
        changed = {name: change(weight) for name, weight in weights.items()}
        network.to(self._device, next(iter(changed.values())).dtype)
        network.load_state_dict(changed, strict=False)
        return OneNetwork(network)


def quantiles(reference: FloatArray, values: FloatArray) -> FloatArray:
    """Quantiles of values among reference scores, in 1 / (2n)..1, shape (values,).

    The i-th of n reference scores in ascending order has the quantile (i - 1/2) / n, equal ones their mean.
    Between two of them the quantile grows in proportion, so that different values do not tie. Below the
    lowest it is 1 / (2n). Above the highest, h, what lacks to 1 shrinks as 1 / (1 + (value - h) / (h - m))
    with m the median, so that better values keep their order.

    Args:
        reference: The n scores, ascending, shape (n,).
        values: Scores of networks.
    """
    n = len(reference)
    different, index = np.unique(reference, return_inverse=True)
    positions = np.bincount(index, weights=(np.arange(n) + 0.5) / n) / np.bincount(index)
    found = np.interp(values, different, positions, left=0.5 / n)
    spread = float(different[-1] - np.median(reference)) or 1.0
    beyond = np.maximum(values - different[-1], 0.0) / spread
    return np.where(beyond > 0, 1 - (1 - positions[-1]) / (1 + beyond), found)
