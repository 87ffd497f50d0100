"""One network that holds every NAS-Bench-201 architecture; `hwnas.spaces.supernet` says how it is executed.

Operations that do not lead to the output are not run.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import ClassVar, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from hwnas.core import FloatArray
from hwnas.spaces.blocks import ResidualBlock, box_mean, box_mean_adjoint, folded_convolution, normalisation
from hwnas.spaces.nasbench201.encoding import (
    AVG_POOL,
    CONV_1X1,
    CONV_3X3,
    EDGES,
    NONE,
    SKIP,
    NasBench201Encoding,
)
from hwnas.spaces.supernet import (
    Body,
    CellSupernet,
    Number,
    add_weighted,
    is_one,
    leaving,
    mixing,
    runs,
    vector,
)

KERNELS = ((3, CONV_3X3), (1, CONV_1X1))
"""Kernel size and operation of the convolutions."""


class _Convolutions(nn.Module):
    """ReLU-convolution-BatchNorm of one kernel size on the edges that leave one node of a cell.

    Kernels are parameters of their own, named by edge, so that a smaller supernet finds those it inherits;
    running statistics lie side by side, as the stacked convolution needs them.

    Args:
        edges: The edges on which the operation is allowed.
        kernel: Kernel size.
        channels: C.
        affine: Whether BatchNorm has a weight and a bias.
        track_running_stats: Whether BatchNorm keeps running statistics; without, it always uses the batch's.
    """

    running_mean: Tensor | None
    running_var: Tensor | None
    momentum, eps = 0.1, 1e-5  # torch's defaults

    def __init__(
        self, edges: Sequence[int], kernel: int, channels: int, *, affine: bool, track_running_stats: bool
    ) -> None:
        super().__init__()
        self.edges = tuple(edges)
        self.kernel = kernel
        self.channels = channels
        self.track_running_stats = track_running_stats
        self.kernels = nn.ParameterDict()
        for edge in edges:
            weight = nn.Parameter(torch.empty(channels, channels, kernel, kernel))
            nn.init.kaiming_uniform_(weight, a=math.sqrt(5))  # torch's default for convolutions
            self.kernels[str(edge)] = weight
        values = {str(edge): channels for edge in edges} if affine else {}
        self.weights = nn.ParameterDict({edge: nn.Parameter(torch.ones(n)) for edge, n in values.items()})
        self.biases = nn.ParameterDict({edge: nn.Parameter(torch.zeros(n)) for edge, n in values.items()})
        size = len(edges) * channels
        self.register_buffer("running_mean", torch.zeros(size) if track_running_stats else None)
        self.register_buffer("running_var", torch.ones(size) if track_running_stats else None)

    def rows(self, edge: int) -> slice:
        """Where an edge's channels lie in the running statistics."""
        start = self.edges.index(edge) * self.channels
        return slice(start, start + self.channels)

    def running(self) -> tuple[Tensor, Tensor]:
        """Running mean and variance of all edges."""
        assert self.running_mean is not None
        assert self.running_var is not None
        return self.running_mean, self.running_var

    def alone(self, x_BCHW: Tensor, edge: int) -> Tensor:
        """One edge's operation, the plain way; keeps (B, C, H, W)."""
        y = F.conv2d(F.relu(x_BCHW), self.kernels[str(edge)], padding=self.kernel // 2)
        rows, name = self.rows(edge), str(edge)
        mean = var = None
        if self.track_running_stats:
            mean, var = (statistic[rows] for statistic in self.running())
        return F.batch_norm(
            y,
            mean,
            var,
            self.weights.get(name),
            self.biases.get(name),
            training=self.training or mean is None,
            momentum=self.momentum,
            eps=self.eps,
        )

    def stacked(
        self, positive_BCHW: Tensor, edges: Sequence[int], mix: Sequence[Number], update: bool
    ) -> Tensor:
        """Several edges' operations as one convolution, times their mixing weights, with batch statistics.

        Args:
            positive_BCHW: The node after ReLU.
            edges: The edges that run.
            mix: Mixing weight of each; they are folded into BatchNorm's weight.
            update: Whether to update running statistics, as training does.

        Returns:
            Shape (B, len(edges) * C, H, W).
        """
        names = [str(edge) for edge in edges]
        kernels = [self.kernels[name] for name in names]
        y = F.conv2d(positive_BCHW, _joined(kernels), padding=self.kernel // 2)
        weight = bias = None
        if self.weights:
            weight = _joined([self.weights[name] * m for name, m in zip(names, mix, strict=True)])
            bias = _joined([self.biases[name] * m for name, m in zip(names, mix, strict=True)])
        elif not all(map(is_one, mix)):
            weight = vector(mix, kernels[0]).repeat_interleave(self.channels)
        update = update and self.track_running_stats
        part = update and len(edges) < len(self.edges)
        mean, var = self.running() if update else (None, None)
        if part:
            rows = torch.cat([torch.arange(self.channels) + self.rows(edge).start for edge in edges])
            rows = rows.to(y.device, non_blocking=True)
            own = [statistic[rows] for statistic in self.running()]
            mean, var = own
        y = F.batch_norm(y, mean, var, weight, bias, training=True, momentum=self.momentum, eps=self.eps)
        if part:
            for statistic, updated in zip(self.running(), own, strict=True):
                statistic[rows] = updated
        return y

    def folded(self, edge: int, mix: float) -> tuple[Tensor, Tensor]:
        """Kernel and bias of one edge's operation under running statistics, times its mixing weight."""
        rows, name = self.rows(edge), str(edge)
        mean, var = self.running()
        scale = mix * (var[rows] + self.eps).rsqrt()
        if self.weights:
            scale = scale * self.weights[name]
        bias = -mean[rows] * scale
        if self.biases:
            bias = bias + mix * self.biases[name]
        return self.kernels[name] * scale[:, None, None, None], bias


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


class _Context(FunctionCtx):
    """Values that a forward pass keeps for the backward pass."""

    skips: list[Number]
    pools: list[Number]
    owners: list[list[int]]
    had: list[bool]


class _Sums(torch.autograd.Function):
    """Contributions of a node to its targets, added in place: convolutions, itself, and its pool.

    Target t gets its former sum (if any), its channels of the stacks that name it, skips[t] x and
    pools[t] mean(x); None if all of these are missing. Equal to plain sums; in neither direction there is a
    temporary for every term.
    """

    @staticmethod
    def forward(
        ctx: _Context,
        x: Tensor,
        skips: list[Number],
        pools: list[Number],
        owners: list[list[int]],
        *tensors: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """The new sums; `tensors` are the former sums, then the stacks, whose targets are `owners`."""
        ctx.skips, ctx.pools, ctx.owners = skips, pools, owners
        num = len(skips)
        ctx.had = [before is not None for before in tensors[:num]]
        terms: list[list[tuple[Tensor, Number]]] = [[] for _ in range(num)]
        for targets, stack in zip(owners, tensors[num:], strict=True):
            assert stack is not None
            for target, share in zip(targets, stack.chunk(len(targets), dim=1), strict=True):
                terms[target].append((share, 1.0))
        pooled = box_mean(x) if any(map(runs, pools)) else x
        totals: list[Tensor | None] = []
        for target, before in enumerate(tensors[:num]):
            mine = terms[target] + ([] if before is None else [(before, 1.0)])
            mine += [(y, w) for y, w in ((x, skips[target]), (pooled, pools[target])) if runs(w)]
            if len(mine) < 2:
                totals.append(mine[0][0] * mine[0][1] if mine else None)
                continue
            (first, a), (second, b), *others = mine
            start = first if is_one(a) else first * a
            total = (
                torch.addcmul(start, second, b)
                if isinstance(b, Tensor)
                else torch.add(start, second, alpha=b)
            )
            for tensor, weight in others:
                add_weighted(total, tensor, weight)
            totals.append(total)
        return tuple(totals)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        from_skips = from_pools = None
        for grad, skip, pool in zip(grads, ctx.skips, ctx.pools, strict=True):
            if grad is not None and runs(skip):
                from_skips = grad * skip if from_skips is None else add_weighted(from_skips, grad, skip)
            if grad is not None and runs(pool):
                from_pools = grad * pool if from_pools is None else add_weighted(from_pools, grad, pool)
        if from_pools is not None:
            pooled = box_mean_adjoint(from_pools)
            from_skips = pooled if from_skips is None else from_skips.add_(pooled)
        stacks: dict[tuple[int, ...], Tensor] = {}
        for targets in map(tuple, ctx.owners):
            if targets not in stacks:
                stacks[targets] = _joined([cast(Tensor, grads[target]) for target in targets], dim=1)
        before = [grad if had else None for grad, had in zip(grads, ctx.had, strict=True)]
        return from_skips, None, None, None, *before, *(stacks[tuple(targets)] for targets in ctx.owners)


class _MixedCell(nn.Module):
    """A cell whose edges are mixtures of all operations that the space allows there."""

    def __init__(
        self, space: NasBench201Encoding, channels: int, *, affine: bool, track_running_stats: bool
    ) -> None:
        super().__init__()
        self.channels = channels
        self.convolutions = nn.ModuleDict()
        for kernel, op in KERNELS:
            for source in range(3):
                edges = [e for e in _leaving(source) if op in space.choices[e]]
                if edges:
                    self.convolutions[f"{kernel}x{kernel}_from_{source}"] = _Convolutions(
                        edges, kernel, channels, affine=affine, track_running_stats=track_running_stats
                    )

    def convolution(self, kernel: int, source: int) -> _Convolutions:
        """The convolutions of a kernel size that leave a node."""
        return self.convolutions[f"{kernel}x{kernel}_from_{source}"]  # type: ignore[return-value]

    def kernels(self, size: int) -> list[nn.Parameter]:
        """The kernels of a size."""
        convolutions = cast(Iterable[_Convolutions], self.convolutions.values())
        return [kernel for c in convolutions if c.kernel == size for kernel in c.kernels.values()]

    def plain(self, x_BCHW: Tensor, weights: FloatArray) -> Tensor:
        """The cell, operation by operation; keeps (B, C, H, W)."""
        nodes = [x_BCHW]
        for target in range(1, 4):
            total = torch.zeros_like(x_BCHW)
            for edge, (source, end) in enumerate(EDGES):
                if end != target:
                    continue
                for op, weight in enumerate(weights[edge].tolist()):
                    if weight == 0:
                        continue
                    if op == SKIP:
                        output = nodes[source]
                    elif op == AVG_POOL:
                        output = F.avg_pool2d(nodes[source], 3, 1, 1, count_include_pad=False)
                    else:
                        kernel = 3 if op == CONV_3X3 else 1
                        output = self.convolution(kernel, source).alone(nodes[source], edge)
                    total = total + weight * output
            nodes.append(total)
        return nodes[-1]

    def forward(
        self, x_BCHW: Tensor, weights: FloatArray, update: bool, numbers: Tensor | None = None
    ) -> Tensor:
        """The cell with batch statistics, equal operations of a node's outgoing edges stacked."""
        sums: list[Tensor | None] = [x_BCHW, None, None, None]
        for source in range(3):
            start = sums[source]
            if start is None:
                start = torch.zeros_like(x_BCHW)
            leaving = _leaving(source)
            positive, owners, stacks = None, [], []
            for kernel, op in KERNELS:
                edges = [e for e in leaving if weights[e, op] != 0]
                if edges:
                    positive = F.relu(start) if positive is None else positive
                    mix = mixing(weights, numbers, edges, op)
                    stacks.append(self.convolution(kernel, source).stacked(positive, edges, mix, update))
                    owners.append([leaving.index(edge) for edge in edges])
            skips, pools = (mixing(weights, numbers, leaving, op) for op in (SKIP, AVG_POOL))
            # A node's outgoing edges lead to all later nodes, in order.
            sums[source + 1 :] = _Sums.apply(start, skips, pools, owners, *sums[source + 1 :], *stacks)
        output = sums[3]
        return torch.zeros_like(x_BCHW) if output is None else output

    def folded(self, weights: FloatArray) -> Callable[[Tensor], Tensor]:
        """The cell under running statistics for one architecture: one convolution per node and kernel size.

        A 1x1 convolution is added to the centre of the 3x3 one on its edge, if there is one. A convolution on
        an empty node gives a constant, not 0.
        """
        plan = [(self._folded_convolutions(source, weights), _linear(source, weights)) for source in range(3)]

        def run(x: Tensor) -> Tensor:
            sums = _InPlaceSums(x)
            for source, (convolutions, linear) in enumerate(plan):
                if not convolutions and not linear:
                    continue
                start = sums.node(source)
                if convolutions:
                    positive = F.relu(start)
                    for weight, bias, padding, targets in convolutions:
                        y = F.conv2d(positive, weight, bias, padding=padding)
                        for target, part in zip(targets, y.split(self.channels, dim=1), strict=True):
                            sums.add(target, part, 1.0, new=True)
                pooled = box_mean(start) if any(pool for _, _, pool in linear) else start
                for target, mix, pool in linear:
                    sums.add(target, pooled if pool else start, mix, new=False)
            return sums.node(3)

        return run

    def _folded_convolutions(
        self, source: int, weights: FloatArray
    ) -> list[tuple[Tensor, Tensor, int, list[int]]]:
        """Kernel, bias, padding and targets of the convolutions that leave a node, one per kernel size."""
        kernels: dict[int, Tensor] = {}
        biases: dict[int, Tensor] = {}
        for edge in _leaving(source):
            for kernel, op in KERNELS:
                if weights[edge, op] != 0:
                    w, b = self.convolution(kernel, source).folded(edge, float(weights[edge, op]))
                    if edge in kernels:
                        kernels[edge] = kernels[edge].clone()
                        kernels[edge][:, :, 1:2, 1:2] += w
                        biases[edge] = biases[edge] + b
                    else:
                        kernels[edge], biases[edge] = w, b
        convolutions = []
        for kernel, _ in KERNELS:
            edges = [edge for edge in kernels if kernels[edge].shape[-1] == kernel]
            if edges:
                weight = torch.cat([kernels[edge] for edge in edges])
                convolutions.append(
                    (
                        weight.contiguous(memory_format=torch.channels_last),
                        torch.cat([biases[edge] for edge in edges]),
                        kernel // 2,
                        [EDGES[edge][1] for edge in edges],
                    )
                )
        return convolutions


class _InPlaceSums:
    """A cell's nodes, summed up in their own memory once they have some.

    Args:
        x_BCHW: The first node, which stays as it is.
    """

    def __init__(self, x_BCHW: Tensor) -> None:
        self._empty = x_BCHW
        self._nodes: list[Tensor | None] = [x_BCHW, None, None, None]
        self._mine = [False] * 4  # whether a node's tensor may be changed in place

    def node(self, number: int) -> Tensor:
        """A node; zeros where nothing was added."""
        node = self._nodes[number]
        return torch.zeros_like(self._empty) if node is None else node

    def add(self, target: int, term: Tensor, weight: float, *, new: bool) -> None:
        """Add a term times its weight; a new one may be changed in place."""
        node = self._nodes[target]
        if node is None:
            self._nodes[target] = term if weight == 1.0 else term * weight
            self._mine[target] = new or weight != 1.0
        elif self._mine[target]:
            node.add_(term, alpha=weight)
        elif new and weight == 1.0:
            self._nodes[target], self._mine[target] = term.add_(node), True
        else:
            self._nodes[target], self._mine[target] = torch.add(node, term, alpha=weight), True


class NasBench201Supernet(CellSupernet):
    """Every architecture of a NAS-Bench-201 space in one network with shared weights.

    Stem, residual blocks and head are those of the published network; BatchNorm in the cells differs as the
    papers have it.

    Args:
        space: Width, depth, image and class count; its `choices` say which operations exist.
        affine: Whether BatchNorm in the cells has a weight and a bias.
        track_running_stats: Whether BatchNorm in the cells keeps running statistics.
    """

    chunk: ClassVar[int | None] = 32

    def __init__(self, space: NasBench201Encoding, *, affine: bool, track_running_stats: bool) -> None:
        C, N = space.channels, space.num_cells
        super().__init__(space.allowed, space.image_shape[0], C, track_running_stats=track_running_stats)
        self.stages = nn.ModuleList(
            nn.ModuleList(
                _MixedCell(space, C << stage, affine=affine, track_running_stats=track_running_stats)
                for _ in range(N)
            )
            for stage in range(3)
        )
        self.reductions = nn.ModuleList(ResidualBlock(C << stage) for stage in range(2))
        self.last_norm = nn.BatchNorm2d(4 * C)
        self.classifier = nn.Linear(4 * C, space.num_classes)

    def _body(self) -> Iterator[_MixedCell | ResidualBlock]:
        """Cells and the blocks between stages, in order."""
        for stage, cells in enumerate(self.stages):
            if stage > 0:
                yield cast(ResidualBlock, self.reductions[stage - 1])
            yield from cast(Iterable[_MixedCell], cells)

    def kernels(self) -> dict[int, list[nn.Parameter]]:
        """Kernels of each convolution, on all edges of all cells."""
        cells = [part for part in self._body() if isinstance(part, _MixedCell)]
        return {op: [kernel for cell in cells for kernel in cell.kernels(size)] for size, op in KERNELS}

    def _effective(self, weights: FloatArray) -> FloatArray:
        """The weights, with 0 for `none` and for whatever does not lead to the output."""
        weights = super()._effective(weights)
        weights = np.where(np.arange(weights.shape[1]) == NONE, 0.0, weights)
        live = [False, False, False, True]
        for edge in reversed(range(len(EDGES))):
            source, target = EDGES[edge]
            if not live[target]:
                weights[edge] = 0.0
            live[source] |= bool(weights[edge].any())
        return weights

    def _plain(self, x_BCHW: Tensor, weights: FloatArray) -> Tensor:
        x = x_BCHW
        for part in self._body():
            x = part.plain(x, weights) if isinstance(part, _MixedCell) else part(x)
        return self.classifier(F.relu(self.last_norm(x)).mean(dim=(2, 3)))

    def _trained(self, x_BCHW: Tensor, weights: FloatArray, numbers: Tensor | None) -> Tensor:
        x = self.stem(x_BCHW.contiguous(memory_format=torch.channels_last))
        for part in self._body():
            x = part(x, weights, True, numbers) if isinstance(part, _MixedCell) else part(x)
        return self.classifier(F.relu(self.last_norm(x)).mean(dim=(2, 3)))

    def _batchwise(self, weights: FloatArray, batch_statistics: bool) -> Body:
        return self._evaluated(lambda cell: partial(cell, weights=weights, update=False), batch_statistics)

    def _folded(self, weights: FloatArray) -> Body:
        return self._evaluated(lambda cell: cell.folded(weights), False)

    def _evaluated(self, run: Callable[[_MixedCell], Body], batch_statistics: bool) -> Body:
        steps = [
            run(part) if isinstance(part, _MixedCell) else _residual(part, batch_statistics)
            for part in self._body()
        ]
        last = normalisation(self.last_norm, batch_statistics)

        def body(x_BCHW: Tensor) -> Tensor:
            x = x_BCHW
            for step in steps:
                x = step(x)
            return self.classifier(F.relu(last(x)).mean(dim=(2, 3)))

        return body


def _residual(block: ResidualBlock, batch_statistics: bool) -> Callable[[Tensor], Tensor]:
    """The block between two stages."""
    a, b = (folded_convolution(conv[1], conv[2], batch_statistics) for conv in (block.conv_a, block.conv_b))
    return lambda x: b(F.relu_(a(F.relu(x)))).add_(block.downsample(x))


def _linear(source: int, weights: FloatArray) -> list[tuple[int, float, bool]]:
    """Targets and mixing weights of the identities and pools that leave a node, and whether it is a pool."""
    return [
        (EDGES[edge][1], float(weights[edge, op]), op == AVG_POOL)
        for edge in _leaving(source)
        for op in (SKIP, AVG_POOL)
        if weights[edge, op] != 0
    ]


_leaving = partial(leaving, EDGES)
