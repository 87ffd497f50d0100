"""Capabilities of search spaces besides encoding architectures, as types to inherit from.

Encodings need numpy only. What builds networks imports torch when it is called, not before.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from hwnas.core import FloatArray, Genotype, Largest, SearchSpace
from hwnas.spaces.drawing import Drawing, strip

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwnas.spaces.blocks import Blocks, Population
    from hwnas.spaces.supernet import Supernet

SIZES = ("channels", "num_cells", "variant")
"""Settings of spaces that a network is rebuilt from; spaces have some of them."""


class Named(Protocol):
    """An object with a name, e.g. a data set."""

    @property
    def name(self) -> str:
        """Its name."""


class HasNetworks(SearchSpace):
    """A space whose architectures can be built, trained and exported.

    Attributes:
        image_shape: (channels, height, width) of the images.
        num_classes: Number of classes.
        auxiliary: Whether networks have a second classifier for training.
        drop_path: Whether networks have drop-path (`set_drop_path`).
        made_for: Side of the images for which the networks were designed, in pixels; None: any.
        any_image_size: Whether networks also take images of other sizes than `image_shape`.
    """

    image_shape: tuple[int, int, int]
    num_classes: int
    auxiliary: bool = False
    drop_path: bool = False
    made_for: int | None = None
    any_image_size: bool = True

    @property
    def sizes(self) -> Mapping[str, int | str]:
        """Settings of the space that its networks are built from, by name; here none."""
        return {}

    @abstractmethod
    def network(self, genotype: Genotype) -> nn.Module:
        """The network of one architecture, randomly initialised by torch's generator.

        It takes images (B, C, H, W) to logits (B, classes).
        """

    def most_alive(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Most numbers of one image that networks hold at once, (n,), by the schedule of `devices/memory.py`.

        Here each network is built, and run on `device="meta"`, in tens of milliseconds.
        """
        # torch is loaded once networks are built: encodings and tables need none.
        from hwnas.spaces import liveness

        networks = map(self.network, genotypes)
        return np.array([liveness.most_alive(each, self.image_shape) for each in networks], dtype=np.float64)

    def largest_alive(self) -> Largest | None:
        """`most_alive` as the largest value of operations; None where it is not, as in cells."""
        return None


class HasDepth(SearchSpace):
    """A space with a closed form of its networks' depth."""

    @abstractmethod
    def depth(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Most convolutions on a path from input to output, of a cell or of the whole network, shape (n,)."""


class Resizable(HasNetworks):
    """A space whose networks can be smaller or larger, e.g. to judge many of them."""

    @abstractmethod
    def resized(self, *, channels: int, num_cells: int) -> Self:
        """The same space with networks of another width and depth.

        Raises:
            ValueError: A size that is too small.
        """


def in_size(
    space: HasNetworks, channels: int | None, num_cells: int | Literal["fewest"] | None
) -> HasNetworks:
    """A space with networks of another size.

    Args:
        space: The space.
        channels: Width; None: the space's.
        num_cells: Depth; "fewest": as little as the space allows; None: the space's.

    Raises:
        ValueError: The space has one size only, or a size is too small.
    """
    given = {"channels": channels, "num_cells": space.fewest_cells if num_cells == "fewest" else num_cells}
    sizes = {name: size for name, size in given.items() if size is not None}
    if not sizes:
        return space
    if not isinstance(space, Resizable):
        raise ValueError(f"{next(iter(sizes))} must be null: {space.name} has one size only")
    own = {name: int(space.sizes[name]) for name in given if name in space.sizes}
    return space.resized(**{**own, **sizes})


class HasSimilarity(Resizable):
    """A space whose networks tell features, so that they can be compared with those of a reference."""

    @abstractmethod
    def initial_weights(self, seed: int) -> dict[str, Tensor]:
        """Weights of all operations everywhere, drawn with a seed, for `population`."""

    @abstractmethod
    def population(self, genotypes: Sequence[Genotype], weights: dict[str, Tensor]) -> Population:
        """The networks of K architectures as one module.

        Its `features` takes images (B, C, H, W) to features per stage, each (B, K, C, H, W), and logits
        (K, B, classes).

        Args:
            genotypes: The architectures.
            weights: Initial weights of all operations, from `initial_weights`.
        """


class HasFeatures(Resizable):
    """A space whose networks tell features, and draw their initial weights themselves."""

    @abstractmethod
    def drawn(self, genotypes: Sequence[Genotype], seed: int) -> Population:
        """The networks of K architectures as one module, each with weights drawn with the seed.

        Its `features` takes images (B, C, H, W) to features per stage, each (B, K, C, H, W), and logits
        (K, B, classes).
        """


class HasSupernet(Resizable):
    """A space with one network that holds every architecture.

    Attributes:
        mixes: Whether that network also runs mixtures of operations, or only single architectures.
    """

    mixes: bool = True

    @abstractmethod
    def supernet(self, *, affine: bool, track_running_stats: bool) -> Supernet:
        """Every architecture of the space in one network, randomly initialised by torch's generator.

        Args:
            affine: Whether BatchNorm in the cells has a weight and a bias.
            track_running_stats: Whether BatchNorm in the cells keeps running statistics.

        Raises:
            ValueError: Settings that the supernet does not have.
        """


class HasCosts(HasNetworks):
    """A space whose networks are sums of blocks that a device can be asked for one by one."""

    @abstractmethod
    def blocks(self) -> Blocks:
        """Each operation at each place, and how networks add them up."""

    def work(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> dict[str, FloatArray]:
        """Amounts of work per genotype, each (n,), by which networks without blocks are timed; here none."""
        return {}


class HasPublished(SearchSpace):
    """A space of whose networks accuracies on some images were published."""

    @abstractmethod
    def expected(self, genotypes: Sequence[Genotype], apart_from: str) -> FloatArray:
        """What accuracies on other images say of networks, higher is better, (n,).

        Over all networks the mean is about 0 and the standard deviation about 1.

        Args:
            genotypes: The architectures.
            apart_from: Images whose accuracies are not used.
        """


class HasForecast(SearchSpace):
    """A space that knows what short trainings of its networks bring, by such on other images."""

    @abstractmethod
    def forecast(self, genotypes: Sequence[Genotype], steps: FloatArray, per_pass: float) -> FloatArray:
        """Logits of the accuracies that networks may have after a training, but for a constant, (n,).

        Args:
            genotypes: The architectures.
            steps: Optimiser steps of each, (n,).
            per_pass: Steps of a pass over the training images.
        """


class Drawable(SearchSpace):
    """A space that says how its architectures are drawn."""

    @abstractmethod
    def drawing(self) -> Drawing:
        """The shape that all architectures share, and how each operation looks in it."""


def drawing(space: SearchSpace) -> Drawing:
    """The drawing of a space: its own, or a strip of boxes."""
    return space.drawing() if isinstance(space, Drawable) else strip(space)


def examples(space: SearchSpace) -> list[Genotype]:
    """A few architectures in which every allowed operation of every edge occurs."""
    return [tuple(ops[number % len(ops)] for ops in space.choices) for number in range(len(space.ops))]


def fingerprint(space: SearchSpace) -> str:
    """A hash of what a few architectures cost, which tells spaces with other networks apart."""
    values = space.static_metrics(examples(space))
    return hashlib.sha256(str([value.tolist() for value in values.values()]).encode()).hexdigest()[:16]


def identity(space: HasNetworks, genotype: Genotype, dataset: Named) -> dict[str, object]:
    """All that a trained network is rebuilt from, as JSON; the first part of architecture.json."""
    return {
        "arch": space.to_str(genotype),
        "genotype": list(genotype),
        "search_space": space.name,
        "dataset": dataset.name,
        **{name: size for name, size in space.sizes.items() if name in SIZES},
        "image_shape": list(space.image_shape),
        "num_classes": space.num_classes,
    }
