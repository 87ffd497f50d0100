"""The FBNet space: 22 layers, each one of eight inverted residual blocks or a skip.

Source: Wu et al., FBNet, CVPR 2019, arXiv 1812.03443; sizes of the two variants from Li et al., HW-NAS-Bench,
ICLR 2021 (code).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

import numpy as np
from annotated_types import Ge, MultipleOf

from hwnas.core import Count, FloatArray, Genotype, SearchSpace, Sum, checked, checked_choices

OPS = ("k3_e1", "k3_e1_g2", "k3_e3", "k3_e6", "k5_e1", "k5_e1_g2", "k5_e3", "k5_e6", "skip")
"""Kernel of the depthwise convolution, expansion and groups of the pointwise ones."""

SKIP = 8
BLOCKS = ((3, 1, 1), (3, 1, 2), (3, 3, 1), (3, 6, 1), (5, 1, 1), (5, 1, 2), (5, 3, 1), (5, 6, 1))
"""(kernel, expansion, groups) of the operations before `SKIP`."""

LAYERS = (1, 4, 4, 4, 4, 4, 1)
"""Layers per stage."""

CHANNELS = (16, 24, 32, 64, 112, 184, 352)
"""Output channels per stage, for a stem of 16."""

TAPS = (5, 9, 17)
"""After how many layers the similarity to a reference is taken: the last at 32, 16 and 8 pixels of CIFAR."""

PRESETS = {
    "fbnet_a": (
        "skip-k3_e3-k3_e1-skip-skip-k5_e6-k3_e3-k5_e1-k3_e3-k5_e6-k5_e3-k5_e1_g2-k5_e6-"
        "k3_e6-k5_e1_g2-k5_e3-k3_e1_g2-k5_e6-k5_e6-k5_e3-k5_e6-k5_e6"
    ),
    "fbnet_b": (
        "k3_e1-k3_e6-k5_e1-k3_e1-k3_e1-k5_e6-k5_e3-k3_e6-k5_e6-k5_e6-k5_e6-skip-k5_e3-"
        "k5_e6-k3_e1-k5_e1-k5_e3-k5_e6-k5_e1-k5_e6-k5_e6-k3_e6"
    ),
    "fbnet_c": (
        "k3_e1-k3_e6-skip-k3_e1-k3_e1-k5_e6-k5_e3-k5_e6-k3_e6-k5_e6-k5_e3-k5_e6-k5_e6-"
        "k5_e6-k5_e6-k5_e6-k5_e3-k5_e6-k5_e6-k5_e6-k5_e6-k3_e6"
    ),
}
"""Found by FBNet for ImageNet, as its authors released them (mobile-vision). Their blocks of expansion 1
have no first convolution, those of HW-NAS-Bench have one; the head of their FBNet-A has 1504 channels."""


@dataclass(frozen=True)
class Variant:
    """Sizes in which the published networks differ.

    Attributes:
        strides: Stride of each stage's first layer.
        stem_stride: Stride of the stem.
        head: Channels before the classifier, for a stem of 16.
    """

    strides: tuple[int, ...]
    stem_stride: int
    head: int


VARIANTS = {
    "cifar100": Variant((1, 1, 2, 2, 1, 2, 1), 1, 1504),
    "imagenet": Variant((1, 2, 2, 2, 1, 2, 1), 2, 1984),
}


@dataclass(frozen=True)
class Layer:
    """Where a layer stands.

    Attributes:
        in_channels: Channels of its input.
        out_channels: Channels of its output.
        stride: 1 or 2.
        height: Rows of its input.
        width: Columns of its input.
    """

    in_channels: int
    out_channels: int
    stride: int
    height: int
    width: int

    @property
    def identity(self) -> bool:
        """Whether a skip needs no convolution here."""
        return self.stride == 1 and self.in_channels == self.out_channels

    @property
    def output(self) -> tuple[int, int, int]:
        """Shape (channels, height, width) of its output."""
        return self.out_channels, -(-self.height // self.stride), -(-self.width // self.stride)


class FBNetEncoding(SearchSpace):
    """9^22 networks; a genotype has one operation per layer.

    Args:
        variant: "cifar100" or "imagenet": strides and the width of the head.
        channels: Channels of the stem; all widths are in proportion to the published 16.
        image_shape: (channels, height, width) of the images.
        num_classes: Number of classes.
        choices: Operation indices allowed per layer; None allows all.

    Raises:
        ValueError: An unknown variant, a width that is odd or below 2, or choices that are empty or name an
            unknown operation.
    """

    presets: Mapping[str, str] = PRESETS

    @checked
    def __init__(
        self,
        variant: Literal["cifar100", "imagenet"] = "cifar100",
        channels: Annotated[int, Ge(2), MultipleOf(2)] = 16,
        *,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: Count = 100,
        choices: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.name = "fbnet"
        self.ops = OPS
        self.variant = variant
        self.channels = channels  # even: some blocks have 2 groups
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.choices = checked_choices(choices, sum(LAYERS), len(OPS))
        self.layers = self._layers()
        if lost := sum(layer.height * layer.width == 1 for layer in self.layers):
            _, height, width = image_shape
            self.note = (
                f"search_space=fbnet is made for larger images: of these, {height}x{width} pixels, a single "
                f"pixel reaches the last {lost} of its {len(self.layers)} layers"
            )

    def _layers(self) -> tuple[Layer, ...]:
        shape, layers = VARIANTS[self.variant], []
        _, height, width = self.image_shape
        height, width = -(-height // shape.stem_stride), -(-width // shape.stem_stride)
        before = self.channels
        for number, channels, stride in zip(LAYERS, CHANNELS, shape.strides, strict=True):
            for index in range(number):
                layer = Layer(before, self.scaled(channels), stride if index == 0 else 1, height, width)
                layers.append(layer)
                before, height, width = layer.output
        return tuple(layers)

    def scaled(self, channels: int) -> int:
        """A published width in proportion to the stem's, even."""
        return max(2, round(channels * self.channels / 32) * 2)

    @property
    def head(self) -> int:
        """Channels before the classifier."""
        return self.scaled(VARIANTS[self.variant].head)

    @property
    def stem_stride(self) -> int:
        """Stride of the stem."""
        return VARIANTS[self.variant].stem_stride

    @property
    def sizes(self) -> dict[str, int | str]:
        """Width and variant of the networks; their depth is fixed."""
        return {"channels": self.channels, "variant": self.variant}

    def resized(self, *, channels: int, num_cells: int | None = None) -> Self:
        """The same space with networks of another width; their depth is fixed, `num_cells` means nothing.

        Raises:
            ValueError: A width that is odd or below 2.
        """
        return self._like(channels=channels)

    def restrict(self, keep: Sequence[Sequence[int]]) -> Self:
        """The sub-space with only the operations `keep[layer]` in each layer."""
        return self._like(choices=keep)

    def _like(self, **changes: object) -> Self:
        settings = {
            "channels": self.channels,
            "image_shape": self.image_shape,
            "num_classes": self.num_classes,
            "choices": self.choices,
        }
        return type(self)(self.variant, **{**settings, **changes})  # type: ignore[arg-type]

    def to_str(self, genotype: Genotype) -> str:
        """The operations of the layers, e.g. "k3_e1-k5_e6-skip-..."."""
        return "-".join(OPS[op] for op in genotype)

    def from_str(self, text: str) -> Genotype:
        """The genotype of a text as `to_str` writes it.

        Raises:
            ValueError: Another number of layers or an unknown operation; says which and what is allowed.
        """
        names = [name.strip() for name in text.strip().split("-")]
        if len(names) != len(self.choices):
            raise ValueError(
                f"{text!r} has {len(names)} layers, not {len(self.choices)}; the form is k3_e1-k5_e6-skip-..."
            )
        for name in names:
            if name not in OPS:
                raise ValueError(f"unknown operation {name!r} in {text!r}; known: {', '.join(OPS)}")
        return self.check([OPS.index(name) for name in names])

    def static_metrics(self, genotypes: Sequence[Genotype]) -> dict[str, FloatArray]:
        """`flops` (multiply-adds) and `params` per genotype, shape (n,), in closed form.

        Convolutions and the classifier with its bias count; BatchNorm counts for the parameters only.
        """
        G = np.asarray(genotypes, dtype=np.intp).reshape(-1, len(self.choices))
        rows = np.arange(len(self.choices))
        return {
            name: total.base + total.added[rows, G].sum(axis=1) for name, total in self.static_sums().items()
        }

    def static_sums(self) -> dict[str, Sum]:
        """`flops` and `params` as sums over operations."""
        return {
            name: Sum(base, added)
            for name, base, added in zip(("flops", "params"), self._base, self._added, strict=True)
        }

    @property
    def _base(self) -> tuple[float, float]:
        """(multiply-adds, parameters) of stem and head."""
        in_channels, height, width = self.image_shape
        _, rows, columns = self.layers[-1].output
        stem = 9 * in_channels * self.channels
        last = self.layers[-1].out_channels * self.head
        classifier = (self.head + 1) * self.num_classes
        pixels = -(-height // self.stem_stride) * -(-width // self.stem_stride)
        flops = stem * pixels + last * rows * columns + classifier
        return flops, stem + 2 * self.channels + last + 2 * self.head + classifier

    @property
    def _added(self) -> tuple[FloatArray, FloatArray]:
        """Multiply-adds and parameters that an operation adds in a layer, each (layers, ops)."""
        flops, params = np.zeros((2, len(self.layers), len(OPS)))
        for index, layer in enumerate(self.layers):
            _, rows, columns = layer.output
            before, after = layer.height * layer.width, rows * columns
            for op, (kernel, expansion, groups) in enumerate(BLOCKS):
                inner = layer.in_channels * expansion
                first, middle = layer.in_channels * inner // groups, kernel * kernel * inner
                last = inner * layer.out_channels // groups
                flops[index, op] = first * before + (middle + last) * after
                params[index, op] = first + middle + last + 4 * inner + 2 * layer.out_channels
            if not layer.identity:
                weights = layer.in_channels * layer.out_channels
                flops[index, SKIP] = weights * after
                params[index, SKIP] = weights + 2 * layer.out_channels
        return flops, params
