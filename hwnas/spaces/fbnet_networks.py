"""Networks of the FBNet space, and what a device has to be asked about them.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.core import Genotype
from hwnas.spaces.blocks import Blocks, StackedNorm, draw, load
from hwnas.spaces.fbnet import BLOCKS, OPS, SKIP, TAPS, FBNet, Layer


class ConvBNReLU(nn.Sequential):
    """Convolution without bias, BatchNorm, ReLU: (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False),
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

    def __init__(self, space: FBNet, genotype: Genotype) -> None:
        super().__init__()
        self.genotype = genotype
        self.stem = ConvBNReLU(space.image_shape[0], space.channels, 3, space.stem_stride)
        self.layers = nn.ModuleList(map(operation, genotype, space.layers))
        self.head = head(space)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Copy this architecture's share of `initial_weights` into the network."""
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


def head(space: FBNet) -> nn.Sequential:
    """Pointwise convolution, mean over all pixels, classifier: (B, C, H, W) to (B, classes)."""
    return nn.Sequential(
        ConvBNReLU(space.layers[-1].out_channels, space.head, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(space.head, space.num_classes),
    )


def initial_weights(space: FBNet, seed: int, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Random weights for every operation in every layer, by torch's default rule.

    Architectures share the draw of an operation that they share, so that they are compared with common
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


class _Stack(nn.Module):
    """P equal convolutions with BatchNorm and perhaps ReLU, of P networks side by side.

    Args:
        weights: Where the convolution's and the norm's weights are.
        prefix: Beginning of their names.
        num: P.
        stride: Of the convolution.
        groups: Groups of one network's convolution.
        relu: Whether ReLU follows.
    """

    def __init__(
        self, weights: dict[str, Tensor], prefix: str, num: int, *, stride: int, groups: int, relu: bool
    ) -> None:
        super().__init__()
        weight = weights[f"{prefix}0.weight"]
        self.weight = nn.Parameter(weight.repeat(num, 1, 1, 1))
        self.norm = StackedNorm(len(self.weight), weight.dtype)
        self.stride, self.groups, self.relu = stride, groups, relu

    def forward(self, x: Tensor) -> Tensor:
        """(B, P * C_in, H, W) to (B, P * C_out, H / stride, W / stride)."""
        padding = self.weight.shape[-1] // 2
        x = self.norm(F.conv2d(x, self.weight, None, self.stride, padding, groups=self.groups))
        return F.relu(x, inplace=True) if self.relu else x


class _Layer(nn.Module):
    """One layer of K networks: equal operations run together.

    Args:
        ops: Operation per network.
        layer: Where it stands.
        weights: `initial_weights` of the space.
        prefix: Beginning of the layer's names in them.
    """

    def __init__(self, ops: Sequence[int], layer: Layer, weights: dict[str, Tensor], prefix: str) -> None:
        super().__init__()
        self.layer = layer
        self.members: list[tuple[int, list[int]]] = [
            (op, [k for k, own in enumerate(ops) if own == op]) for op in sorted(set(ops))
        ]
        order = [k for _, networks in self.members for k in networks]
        self.back = [order.index(k) for k in range(len(ops))]
        self.stacks = nn.ModuleList()
        for op, networks in self.members:
            P, place = len(networks), f"{prefix}{OPS[op]}."
            if op == SKIP:
                parts = [] if layer.identity else [("", layer.stride, P, True)]
            else:
                _, expansion, groups = BLOCKS[op]
                inner = layer.in_channels * expansion
                parts = [
                    ("expand.", 1, P * groups, True),
                    ("depthwise.", layer.stride, P * inner, True),
                    ("project.", 1, P * groups, False),
                ]
            self.stacks.append(
                nn.ModuleList(
                    _Stack(weights, place + part, P, stride=stride, groups=groups, relu=relu)
                    for part, stride, groups, relu in parts
                )
            )

    def forward(self, x_BKCHW: Tensor) -> Tensor:
        """(B, K, C_in, H, W) to (B, K, C_out, H / stride, W / stride)."""
        B, _, _, H, W = x_BKCHW.shape
        outputs = []
        for (op, networks), stacks in zip(self.members, self.stacks, strict=True):
            own = x_BKCHW[:, networks]
            x = own.reshape(B, -1, H, W)
            for number, stack in enumerate(stacks):
                x = stack(x)
                if number == 0 and op != SKIP and (groups := BLOCKS[op][2]) > 1:
                    x = x.view(B, len(networks), groups, -1, H, W).transpose(2, 3).reshape(x.shape)
            x = x.view(B, len(networks), -1, *x.shape[2:])
            outputs.append(own + x if op != SKIP and self.layer.identity else x)
        return torch.cat(outputs, dim=1)[:, self.back]


class FBNetPopulation(nn.Module):
    """K architectures' networks as one module, each with weights of its own.

    In each layer equal operations run as one grouped convolution. BatchNorm always uses batch statistics;
    meant for short training, not for deployment.

    Args:
        space: Width, image and class count.
        genotypes: K architectures.
        weights: `initial_weights` of the space.
    """

    def __init__(self, space: FBNet, genotypes: Sequence[Genotype], weights: dict[str, Tensor]) -> None:
        super().__init__()
        K = self.num_networks = len(genotypes)
        self.stem = _Stack(weights, "stem.", K, stride=space.stem_stride, groups=1, relu=True)
        self.layers = nn.ModuleList(
            _Layer(ops, layer, weights, f"layers.{index}.")
            for index, (ops, layer) in enumerate(zip(zip(*genotypes, strict=True), space.layers, strict=True))
        )
        self.head = _Stack(weights, "head.0.", K, stride=1, groups=K, relu=True)
        self.classifier_weight = nn.Parameter(weights["head.3.weight"].T.repeat(K, 1, 1))
        self.classifier_bias = nn.Parameter(weights["head.3.bias"].repeat(K, 1, 1))

    def features(self, x_BCHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """Outputs (B, K, C, H, W) at the taps of `FBNetNetwork`, and logits (K, B, classes)."""
        B, K = len(x_BCHW), self.num_networks
        x = self.stem(x_BCHW)
        x = x.view(B, K, -1, *x.shape[2:])
        taps = []
        for number, layer in enumerate(self.layers, start=1):
            x = layer(x)
            if number in TAPS:
                taps.append(x)
        x = self.head(x.reshape(B, -1, *x.shape[3:]))
        pooled_KBC = x.mean(dim=(2, 3)).view(B, K, -1).transpose(0, 1)
        return taps, torch.baddbmm(self.classifier_bias, pooled_KBC, self.classifier_weight)


def measurable_blocks(space: FBNet) -> Blocks:
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
    return Blocks(modules, {"stem": 1, "head": 1}, edges)
