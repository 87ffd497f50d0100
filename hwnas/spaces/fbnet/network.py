"""Networks of the FBNet space, and what a device has to be asked about them.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hwnas.core import Genotype
from hwnas.spaces.blocks import Blocks, StridedPointwise, draw, load
from hwnas.spaces.blocks import SeparateNetworks as SeparateNetworks
from hwnas.spaces.fbnet.encoding import BLOCKS, OPS, SKIP, TAPS, FBNetEncoding, Layer


class ConvBNReLU(nn.Sequential):
    """Convolution without bias, BatchNorm, ReLU: (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            StridedPointwise(in_channels, out_channels, stride)
            if kernel == 1 and stride > 1
            else nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class InvertedResidual(nn.Module):
    """Pointwise, depthwise and pointwise convolution, added to the input where the shapes allow it.

    Args:
        layer: Where it stands.
        kernel: Kernel size of the depthwise convolution.
        expansion: Inner channels per input channel.
        groups: Groups of the pointwise convolutions; channels are shuffled between them if there are several.
    """

    def __init__(self, layer: Layer, kernel: int, expansion: int, groups: int) -> None:
        super().__init__()
        inner = layer.in_channels * expansion
        self.expand = ConvBNReLU(layer.in_channels, inner, 1, groups=groups)
        self.shuffle = nn.ChannelShuffle(groups) if groups > 1 else nn.Identity()
        self.depthwise = ConvBNReLU(inner, inner, kernel, layer.stride, groups=inner)
        self.project = nn.Sequential(
            nn.Conv2d(inner, layer.out_channels, 1, groups=groups, bias=False),
            nn.BatchNorm2d(layer.out_channels),
        )
        self.residual = layer.identity

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        y = self.project(self.depthwise(self.shuffle(self.expand(x_BCHW))))
        return x_BCHW + y if self.residual else y


def operation(op: int, layer: Layer) -> nn.Module:
    """The module of an operation in a layer; a skip that changes the shape is a pointwise convolution."""
    if op != SKIP:
        return InvertedResidual(layer, *BLOCKS[op])
    if layer.identity:
        return nn.Identity()
    return ConvBNReLU(layer.in_channels, layer.out_channels, 1, layer.stride)


class FBNetNetwork(nn.Module):
    """One architecture's network."""

    def __init__(self, space: FBNetEncoding, genotype: Genotype) -> None:
        super().__init__()
        self.genotype = genotype
        self.stem = ConvBNReLU(space.image_shape[0], space.channels, 3, space.stem_stride)
        self.layers = nn.ModuleList(map(operation, genotype, space.layers))
        self.head = head(space)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Copy this architecture's part of `initial_weights` into the network."""
        load(self, weights, skip=("layers",))
        for index, (op, layer) in enumerate(zip(self.genotype, self.layers, strict=True)):
            load(layer, weights, f"layers.{index}.{OPS[op]}.")

    def features(self, x_BCHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """Outputs after the layers of `TAPS`, each (B, C, H, W), and the logits (B, classes)."""
        x = self.stem(x_BCHW)
        taps = []
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if number in TAPS:
                taps.append(x)
        return taps, self.head(x)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Logits, shape (B, classes)."""
        return self.features(x_BCHW)[1]


def head(space: FBNetEncoding) -> nn.Sequential:
    """Pointwise convolution, mean over all pixels, classifier: (B, C, H, W) to (B, classes)."""
    return nn.Sequential(
        ConvBNReLU(space.layers[-1].out_channels, space.head, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(space.head, space.num_classes),
    )


def initial_weights(
    space: FBNetEncoding, seed: int, *, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Random weights for every operation in every layer, by torch's default rule.

    Architectures get the same draw for an operation that they have in common: they are compared with common
    random numbers.

    Args:
        space: Width, image and class count.
        seed: Seed of the draw.
        dtype: Type of the weights; the values are the same up to its precision.

    Returns:
        Parameters under their names in an `FBNetNetwork`; those of a layer under
        "layers.<layer>.<operation>.<name>".
    """

    def modules() -> Iterator[tuple[str, nn.Module]]:
        yield "stem.", ConvBNReLU(space.image_shape[0], space.channels, 3, space.stem_stride)
        yield "head.", head(space)
        for index, layer in enumerate(space.layers):
            for op, name in enumerate(OPS):
                yield f"layers.{index}.{name}.", operation(op, layer)

    return draw(modules, seed, dtype)


def measurable_blocks(space: FBNetEncoding) -> Blocks:
    """Each operation at each place, once for layers of equal shape, and stem and head.

    A block's place is what comes in and goes out, e.g. "k3_e6@32x16x16-64/2": 32 channels of 16 x 16 pixels
    to 64 channels, with stride 2.
    """
    first = nn.Sequential(*FBNetNetwork(space, (SKIP,) * len(space.layers)).stem)
    modules: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
        "stem": (first, space.image_shape),
        "head": (head(space), space.layers[-1].output),
    }
    edges: list[list[Counter[str]]] = []
    for layer in space.layers:
        place = f"{layer.in_channels}x{layer.height}x{layer.width}-{layer.out_channels}"
        place += f"/{layer.stride}" if layer.stride > 1 else ""
        row: list[Counter[str]] = []
        for op, name in enumerate(OPS):
            if op == SKIP and layer.identity:
                row.append(Counter())
                continue
            block = f"{name}@{place}"
            if block not in modules:
                modules[block] = operation(op, layer), (layer.in_channels, layer.height, layer.width)
            row.append(Counter({block: 1}))
        edges.append(row)
    in_a_row = [(layer, layer + 1) for layer in range(len(edges) - 1)]
    # Networks differ less than those of cells, so that more are needed to tell what makes the difference.
    return Blocks(modules, {"stem": 1, "head": 1}, edges, {"in a row": in_a_row}, num_networks=240)
