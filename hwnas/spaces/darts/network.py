"""Networks of DARTS cells, as the papers train them in the end.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.core import Genotype
from hwnas.spaces.blocks import (
    Addition,
    Blocks,
    Concatenation,
    Norm,
    ReLUConvBN,
    SpatialMean,
    StridedPointwise,
    adjacent,
    draw,
    load,
)
from hwnas.spaces.blocks import (
    SeparateNetworks as SeparateNetworks,
)
from hwnas.spaces.darts.encoding import (
    AVG_POOL,
    CELL_EDGES,
    DIL_3X3,
    DIL_5X5,
    EDGES,
    MAX_POOL,
    NONE,
    NUM_NODES,
    OPS,
    SEP_3X3,
    SEP_5X5,
    SKIP,
    DartsEncoding,
)


class FactorizedReduce(nn.Module):
    """ReLU, two 1x1 convolutions of stride 2 on shifted pixels, BatchNorm: halves the resolution.

    (B, C_in, H, W) to (B, C_out, ceil(H / 2), ceil(W / 2)); an odd side is padded by zeros.

    Args:
        in_channels: C_in.
        out_channels: C_out.
        norm: Makes the BatchNorm of so many channels.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: Norm = nn.BatchNorm2d) -> None:
        super().__init__()
        half = out_channels // 2
        self.conv_1 = StridedPointwise(in_channels, half, 2)
        self.conv_2 = StridedPointwise(in_channels, out_channels - half, 2)
        self.norm = norm(out_channels)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C_out, ceil(H / 2), ceil(W / 2))."""
        x = F.relu(x_BCHW)
        height, width = x.shape[2:]
        if height % 2 or width % 2:
            x = F.pad(x, (0, width % 2, 0, height % 2))
        return self.norm(torch.cat([self.conv_1(x), self.conv_2(x[:, :, 1:, 1:])], dim=1))


class SeparableConv(nn.Sequential):
    """ReLU, depthwise and 1x1 convolution, BatchNorm; `times` times, the stride in the first.

    Args:
        channels: C, kept.
        kernel: Side of the depthwise kernel.
        stride: 1 or 2.
        dilation: Of the depthwise kernel.
        times: 2 for the `sep_conv` operations, 1 for `dil_conv`.
        norm: Makes the BatchNorm of so many channels.
    """

    def __init__(
        self,
        channels: int,
        kernel: int,
        stride: int,
        *,
        dilation: int = 1,
        times: int = 1,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        padding = dilation * (kernel // 2)
        layers: list[nn.Module] = []
        for number in range(times):
            layers += [
                nn.ReLU(),
                nn.Conv2d(
                    channels,
                    channels,
                    kernel,
                    stride if number == 0 else 1,
                    padding,
                    dilation,
                    groups=channels,
                    bias=False,
                ),
                nn.Conv2d(channels, channels, 1, bias=False),
                norm(channels),
            ]
        super().__init__(*layers)


def operation(op: int, channels: int, stride: int, norm: Norm = nn.BatchNorm2d) -> nn.Module:
    """The module of an operation other than `none`: (B, C, H, W) to (B, C, ceil(H / stride), ...).

    Args:
        op: Its index.
        channels: C.
        stride: 1, or 2 on the edges that leave a reduction cell's inputs.
        norm: Makes the BatchNorm of so many channels.

    Raises:
        ValueError: `none`, which has no module.
    """
    if op == MAX_POOL:
        return nn.MaxPool2d(3, stride, 1)
    if op == AVG_POOL:
        return nn.AvgPool2d(3, stride, 1, count_include_pad=False)
    if op == SKIP:
        return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels, norm)
    if op in (SEP_3X3, SEP_5X5):
        return SeparableConv(channels, 3 if op == SEP_3X3 else 5, stride, times=2, norm=norm)
    if op in (DIL_3X3, DIL_5X5):
        return SeparableConv(channels, 3 if op == DIL_3X3 else 5, stride, dilation=2, norm=norm)
    raise ValueError(f"operation {op} has no module")


def drop_path(x_BCHW: Tensor, keep: Tensor) -> Tensor:
    """The tensor with whole images set to zero at random, the others scaled to keep the mean.

    Args:
        x_BCHW: Output of an operation.
        keep: Probability that an image stays, above 0; no dimensions.

    Source: DARTS (code): one Bernoulli draw per image, from torch's generator.
    """
    mask = torch.bernoulli(keep.expand(len(x_BCHW), 1, 1, 1)) / keep
    return x_BCHW * mask.to(x_BCHW.dtype)


class Cell(nn.Module):
    """A cell: preprocessed inputs, four nodes that are each the sum of two edges, their concatenation.

    Args:
        ops: Operation per edge of this kind of cell, 0 where it is not kept.
        channels_before: Channels of the output of the cell before the last.
        channels_last: Channels of the output of the last cell.
        channels: C, channels per node.
        reduction: Whether the cell halves the resolution.
        after_reduction: Whether the last cell did.
    """

    def __init__(
        self,
        ops: Genotype,
        channels_before: int,
        channels_last: int,
        channels: int,
        *,
        reduction: bool,
        after_reduction: bool,
    ) -> None:
        super().__init__()
        self.preprocess_0 = (
            FactorizedReduce(channels_before, channels)
            if after_reduction
            else ReLUConvBN(channels_before, channels, 1)
        )
        self.preprocess_1 = ReLUConvBN(channels_last, channels, 1)
        self.kept = tuple((edge, op) for edge, op in enumerate(ops) if op != NONE)
        self.wiring = tuple(CELL_EDGES[edge] for edge, _ in self.kept)
        self.edges = nn.ModuleList(
            operation(op, channels, 2 if reduction and CELL_EDGES[edge][0] < 2 else 1)
            for edge, op in self.kept
        )

    def forward(self, before_BCHW: Tensor, last_BCHW: Tensor, keep: Tensor | None = None) -> Tensor:
        """(B, 4C, H, W), or half the resolution in a reduction cell.

        Args:
            before_BCHW: Output of the cell before the last.
            last_BCHW: Output of the last cell.
            keep: Probability per image and edge that drop-path leaves it; None drops nothing. Identities are
                never dropped.
        """
        states = [self.preprocess_0(before_BCHW), self.preprocess_1(last_BCHW)]
        sums: list[Tensor | None] = [None] * NUM_NODES
        for (source, target), module in zip(self.wiring, self.edges, strict=True):
            output = module(states[source])
            if keep is not None and not isinstance(module, nn.Identity):
                output = drop_path(output, keep)
            partial = sums[target - 2]
            if partial is None:
                sums[target - 2] = output
            else:
                states.append(partial + output)  # the node's second input: complete
        return torch.cat(states[2:], dim=1)


class AuxiliaryHead(nn.Sequential):
    """The auxiliary classifier: pool to 2x2, 1x1 and 2x2 convolutions, linear; (B, C, H, W) to (B, classes).

    Args:
        channels: C.
        size: (H, W) of its input. The published pool needs 8x8 (stride 3) or, for ImageNet, 7x7 (stride 2);
            other sizes get an adaptive pool.
        num_classes: Number of classes.
        imagenet: The ImageNet version, which has no BatchNorm after its last convolution.

    Source: DARTS (code).
    """

    def __init__(self, channels: int, size: tuple[int, int], num_classes: int, *, imagenet: bool) -> None:
        stride = 2 if imagenet else 3
        fits = all((side - 5) // stride + 1 == 2 for side in size)
        super().__init__(
            nn.ReLU(),
            nn.AvgPool2d(5, stride, count_include_pad=False) if fits else nn.AdaptiveAvgPool2d(2),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(),
            nn.Conv2d(128, 768, 2, bias=False),
            *([] if imagenet else [nn.BatchNorm2d(768)]),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(768, num_classes),
        )


class DartsNetwork(nn.Module):
    """One architecture's final network.

    Args:
        space: Width, depth, images, classes, stem, and whether there is an auxiliary classifier.
        genotype: The architecture.

    Attributes:
        auxiliary: The auxiliary classifier, or None.
    """

    keep: Tensor

    def __init__(self, space: DartsEncoding, genotype: Genotype) -> None:
        super().__init__()
        C = space.channels
        in_channels, height, width = space.image_shape
        imagenet = space.stem == "imagenet"
        self.drops_path = False
        self.register_buffer("keep", torch.ones(()), persistent=False)  # a tensor: compiled once
        self.stem_0: nn.Module | None = None
        if imagenet:
            self.stem_0 = nn.Sequential(
                nn.Conv2d(in_channels, C // 2, 3, 2, 1, bias=False),
                nn.BatchNorm2d(C // 2),
                nn.ReLU(),
                nn.Conv2d(C // 2, C, 3, 2, 1, bias=False),
                nn.BatchNorm2d(C),
            )
            self.stem: nn.Module = nn.Sequential(
                nn.ReLU(), nn.Conv2d(C, C, 3, 2, 1, bias=False), nn.BatchNorm2d(C)
            )
            height, width = -(-height // 8), -(-width // 8)
            before, last = C, C
        else:
            self.stem = nn.Sequential(
                nn.Conv2d(in_channels, 3 * C, 3, 1, 1, bias=False), nn.BatchNorm2d(3 * C)
            )
            before, last = 3 * C, 3 * C
        reductions = space.reductions()
        self.taps = (reductions[0] - 1, reductions[1] - 1, space.num_cells - 1)
        self.auxiliary_at = reductions[1]
        self.cells = nn.ModuleList()
        self.auxiliary: AuxiliaryHead | None = None
        num_edges = len(CELL_EDGES)
        after_reduction = imagenet
        channels = C
        for index in range(space.num_cells):
            reduction = index in reductions
            if reduction:
                channels, height, width = 2 * channels, -(-height // 2), -(-width // 2)
            self.cells.append(
                Cell(
                    genotype[num_edges:] if reduction else genotype[:num_edges],
                    before,
                    last,
                    channels,
                    reduction=reduction,
                    after_reduction=after_reduction,
                )
            )
            before, last, after_reduction = last, NUM_NODES * channels, reduction
            if space.auxiliary and index == self.auxiliary_at:
                self.auxiliary = AuxiliaryHead(last, (height, width), space.num_classes, imagenet=imagenet)
        self.classifier = nn.Linear(last, space.num_classes)

    def set_drop_path(self, prob: float) -> None:
        """Set the probability of drop-path while training, in 0..1, below 1; a new network has 0."""
        self.drops_path = prob > 0
        self.keep.fill_(1 - prob)

    def load(self, weights: dict[str, Tensor]) -> None:
        """Copy this architecture's part of `initial_weights` into the network."""
        load(self, weights, skip=("cells", "auxiliary"))
        for index, cell in enumerate(self.cells):
            assert isinstance(cell, Cell)
            load(cell, weights, f"cells.{index}.", skip=("edges",))
            for (edge, op), module in zip(cell.kept, cell.edges, strict=True):
                load(module, weights, f"cells.{index}.{edge}.{OPS[op]}.")

    def _run(self, x_BCHW: Tensor) -> list[Tensor]:
        """Outputs of all cells."""
        if self.stem_0 is None:
            before = last = self.stem(x_BCHW)
        else:
            before = self.stem_0(x_BCHW)
            last = self.stem(before)
        keep = self.keep if self.training and self.drops_path else None
        outputs = []
        for cell in self.cells:
            before, last = last, cell(before, last, keep)
            outputs.append(last)
        return outputs

    def features(self, x_BCHW: Tensor) -> tuple[list[Tensor], Tensor]:
        """Outputs of the last cell before each reduction and of the last cell, and the logits (B, classes).

        The stages end after cells L // 3 - 1, 2 L // 3 - 1 and L - 1; their outputs are (B, 4C, H, W),
        (B, 8C, H/2, W/2) and (B, 16C, H/4, W/4) of the stem's resolution.
        """
        outputs = self._run(x_BCHW)
        return [outputs[index] for index in self.taps], self.classifier(outputs[-1].mean(dim=(2, 3)))

    def forward(self, x_BCHW: Tensor, with_auxiliary: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, classes); with `with_auxiliary` also those of the auxiliary classifier, for training."""
        outputs = self._run(x_BCHW)
        logits = self.classifier(outputs[-1].mean(dim=(2, 3)))
        if not with_auxiliary:
            return logits
        assert self.auxiliary is not None
        return logits, self.auxiliary(outputs[self.auxiliary_at])


def initial_weights(
    space: DartsEncoding, seed: int, *, dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Random weights for every operation on every edge of every cell, by torch's default rule.

    Architectures get the same draw for an operation that they have in common: they are compared with common
    random numbers.

    Args:
        space: Width, depth, image and class count.
        seed: Seed of the draw.
        dtype: Type of the weights; the values are the same up to its precision.

    Returns:
        Parameters under their names in a `DartsNetwork`; those of an operation under
        "cells.<cell>.<edge>.<operation>.<name>", with the edge's index in its kind of cell.
    """

    def modules() -> Iterator[tuple[str, nn.Module]]:
        skeleton = DartsNetwork(space, space.sample(np.random.default_rng(0), 1)[0])
        for cell in skeleton.cells:
            cell.edges = nn.ModuleList()  # drawn below, on all edges
        yield "", skeleton
        channels = space.channels
        for index in range(space.num_cells):
            reduction = index in space.reductions()
            channels *= 2 if reduction else 1
            for edge, (source, _) in enumerate(CELL_EDGES):
                for op in range(NONE + 1, len(OPS)):
                    stride = 2 if reduction and source < 2 else 1
                    yield f"cells.{index}.{edge}.{OPS[op]}.", operation(op, channels, stride)

    return draw(modules, seed, dtype)


def measurable_blocks(space: DartsEncoding) -> Blocks:
    """Each operation at each resolution, by stride in reduction cells, and what is the same in every network.

    A block's place is the channels and the side of its input, e.g. "sep_conv_3x3@16x32", with "/2" where it
    has stride 2. Every node adds its two inputs, every cell lays four nodes side by side: both are charged to
    every network.
    """
    network = DartsNetwork(space, space.sample(np.random.default_rng(0), 1)[0])
    modules: dict[str, tuple[nn.Module, tuple[int, ...]]] = {}
    always: Counter[str] = Counter()
    edges: list[list[Counter[str]]] = [[Counter() for _ in OPS] for _ in range(2 * len(CELL_EDGES))]

    def block(
        kind: str, module: Callable[[], nn.Module] | nn.Module, shape: tuple[int, ...], stride: int = 1
    ) -> str:
        size = "x".join(map(str, shape[:2] if shape[1] == shape[2] else shape))
        name = f"{kind}@{size}{'/2' if stride == 2 else ''}"
        if name not in modules:
            modules[name] = (module if isinstance(module, nn.Module) else module()), shape
        return name

    def half(shape: tuple[int, ...]) -> tuple[int, ...]:
        return (shape[0], -(-shape[1] // 2), -(-shape[2] // 2))

    C, (_, height, width) = space.channels, space.image_shape
    before: tuple[int, ...]
    last: tuple[int, ...]
    if network.stem_0 is None:
        stem, before = network.stem, (3 * C, height, width)
        last = before
    else:
        stem = nn.Sequential(network.stem_0, network.stem)
        last = (C, -(-height // 8), -(-width // 8))
        before = (C, -(-height // 4), -(-width // 4))
    always[block("stem", stem, space.image_shape)] += 1
    for index, cell in enumerate(cast(Iterable[Cell], network.cells)):
        reduction = index in space.reductions()
        C *= 2 if reduction else 1
        halves = before[1:] != last[1:]
        always[block(f"preprocess_to_{C}", cell.preprocess_0, before, 2 if halves else 1)] += 1
        always[block(f"preprocess_to_{C}", cell.preprocess_1, last)] += 1
        inputs = (C, *last[1:])
        nodes = half(inputs) if reduction else inputs
        always[block("add", Addition, nodes)] += NUM_NODES
        always[block("concatenation", partial(Concatenation, NUM_NODES), nodes)] += 1
        for edge, (source, _) in enumerate(CELL_EDGES):
            stride = 2 if reduction and source < 2 else 1
            shape = inputs if source < 2 else nodes
            for op in range(1, len(OPS)):
                if op != SKIP or stride == 2:
                    name = block(OPS[op], partial(operation, op, C, stride), shape, stride)
                    edges[edge + len(CELL_EDGES) * reduction][op][name] += 1
        before, last = last, (NUM_NODES * C, *nodes[1:])
    head = nn.Sequential(SpatialMean(), network.classifier)
    always[block("head", head, last)] += 1
    return Blocks(modules, always, edges, adjacent(EDGES))
