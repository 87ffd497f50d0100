"""One network that holds every DARTS architecture: plain, stacked for training, folded for evaluation.

Architectures are told to it as mixing weights, an array (edges, ops), those of the normal cell first: every edge is
the sum of its operations' outputs times their weights. An operation of weight 0 is not run. A softmax makes a soft
mixture, the one-hot rows of the kept edges a hard choice; `hwnas.models.supernet` makes both.

Source: Liu et al., DARTS, ICLR 2019 (code); Sinha & Chen, EvNAS, arXiv 2012.12540 (code).

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from hwnas.core import FloatArray
from hwnas.spaces.blocks import Norm, ReLUConvBN
from hwnas.spaces.darts import (
    AVG_POOL,
    CELL_EDGES,
    MAX_POOL,
    NONE,
    NUM_NODES,
    OPS,
    Darts,
)
from hwnas.spaces.darts_networks import FactorizedReduce, operation


class _MixedCell(nn.Module):
    """A cell whose edges are mixtures of all operations that the space allows there.

    Args:
        choices: Allowed operations per edge of this kind of cell.
        channels_before: Channels of the output of the cell before the last.
        channels_last: Channels of the output of the last cell.
        channels: C, channels per node.
        reduction: Whether the cell halves the resolution.
        after_reduction: Whether the last cell did.
        norm: Makes the BatchNorm of so many channels.
    """

    def __init__(
        self,
        choices: tuple[tuple[int, ...], ...],
        channels_before: int,
        channels_last: int,
        channels: int,
        *,
        reduction: bool,
        after_reduction: bool,
        norm: Norm,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.reduction = reduction
        self.preprocess_0 = (
            FactorizedReduce(channels_before, channels, norm)
            if after_reduction
            else ReLUConvBN(channels_before, channels, 1, norm=norm)
        )
        self.preprocess_1 = ReLUConvBN(channels_last, channels, 1, norm=norm)
        self.edges = nn.ModuleList()
        for (source, _), ops in zip(CELL_EDGES, choices, strict=True):
            modules: dict[str, nn.Module] = {}
            for op in ops:
                if op != NONE:
                    module = operation(op, channels, self.stride(source), norm)
                    pool = op in (MAX_POOL, AVG_POOL)
                    modules[OPS[op]] = nn.Sequential(module, norm(channels)) if pool else module
            self.edges.append(nn.ModuleDict(modules))

    def stride(self, source: int) -> int:
        """Stride of the edges that leave a source."""
        return 2 if self.reduction and source < 2 else 1

    def plain(self, before_BCHW: Tensor, last_BCHW: Tensor, weights: FloatArray) -> Tensor:
        """The cell, operation by operation: (B, 4C, H, W), or half the resolution in a reduction cell."""
        states = [self.preprocess_0(before_BCHW), self.preprocess_1(last_BCHW)]
        B, C, H, W = states[1].shape
        if self.reduction:
            H, W = -(-H // 2), -(-W // 2)
        for node in range(2, 2 + NUM_NODES):
            total = states[1].new_zeros(B, C, H, W)
            for edge, (source, target) in enumerate(CELL_EDGES):
                if target == node:
                    for op, module in self.edges[edge].items():  # type: ignore[operator]
                        weight = float(weights[edge, OPS.index(op)])
                        if weight != 0:
                            total = total + weight * module(states[source])
            states.append(total)
        return torch.cat(states[2:], dim=1)


class DartsSupernet(nn.Module):
    """Every architecture of a DARTS space in one network with shared weights.

    Pools are followed by BatchNorm, and BatchNorm in the cells has neither weight nor bias, as in the papers' code.

    Args:
        space: Width, depth, image and class count; its `choices` say which operations exist.
        track_running_stats: Whether BatchNorm in the cells keeps running statistics; without, it always uses
            the batch's.

    Raises:
        ValueError: A space with the stem for large images.
    """

    def __init__(self, space: Darts, *, track_running_stats: bool) -> None:
        super().__init__()
        if space.stem != "cifar":
            raise ValueError(f"a supernet needs search_space.stem=cifar, not {space.stem!r}")
        C = space.channels
        norm = partial(nn.BatchNorm2d, affine=False, track_running_stats=track_running_stats)
        self.allowed = space.allowed
        self.tracks = track_running_stats
        self.stem = nn.Sequential(
            nn.Conv2d(space.image_shape[0], 3 * C, 3, padding=1, bias=False), nn.BatchNorm2d(3 * C)
        )
        num = len(CELL_EDGES)
        self.cells = nn.ModuleList()
        before = last = 3 * C
        channels, after_reduction = C, False
        for index in range(space.num_cells):
            reduction = index in space.reductions()
            channels *= 2 if reduction else 1
            self.cells.append(
                _MixedCell(
                    space.choices[num:] if reduction else space.choices[:num],
                    before,
                    last,
                    channels,
                    reduction=reduction,
                    after_reduction=after_reduction,
                    norm=norm,
                )
            )
            before, last, after_reduction = last, NUM_NODES * channels, reduction
        self.classifier = nn.Linear(last, space.num_classes)

    def _split(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The weights, checked, of the normal and of the reduction cells."""
        if weights.shape != self.allowed.shape or (weights[~self.allowed] != 0).any():
            raise ValueError(
                f"mixing weights must have shape {self.allowed.shape}, and 0 where an operation is not allowed"
            )
        return weights[: len(CELL_EDGES)], weights[len(CELL_EDGES) :]

    def plain(self, x_BCHW: Tensor, weights: FloatArray) -> Tensor:
        """Logits (B, classes), operation by operation: what faster executions are compared with.

        Args:
            x_BCHW: Images.
            weights: Mixing weights (edges, ops).

        Raises:
            ValueError: Weights of another shape, or of operations that are not allowed.
        """
        normal, reduce = self._split(weights)
        before = last = self.stem(x_BCHW)
        for cell in self.cells:
            before, last = last, cell.plain(before, last, reduce if cell.reduction else normal)  # type: ignore[operator]
        return self.classifier(last.mean(dim=(2, 3)))
