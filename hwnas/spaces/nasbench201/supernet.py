"""One network that holds every NAS-Bench-201 architecture; stacked for training, folded for evaluation.

Architectures are told to it as mixing weights, an array (edges, ops): every edge is the sum of its
operations' outputs times their weights. An operation of weight 0, or one that does not lead to the output, is
not run. A softmax makes a soft mixture, a one-hot row a hard choice; `hwnas.training.shared_weights`
makes both.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.core import FloatArray
from hwnas.spaces.blocks import (
    ResidualBlock,
    box_mean,
    box_mean_adjoint,
    check_mixing,
    folded_convolution,
    normalisation,
)
from hwnas.spaces.nasbench201.encoding import (
    AVG_POOL,
    CONV_1X1,
    CONV_3X3,
    EDGES,
    NONE,
    SKIP,
    NasBench201Encoding,
)

KERNELS = ((3, CONV_3X3), (1, CONV_1X1))
"""Kernel size and operation of the convolutions."""

CHUNK = 32
"""Images that a folded network takes at a time on a CPU: their activations stay in its cache."""


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

    running_mean: Any  # tensors, or None where none are kept
    running_var: Any
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

    def alone(self, x_BCHW: Tensor, edge: int) -> Tensor:
        """One edge's operation, the plain way; keeps (B, C, H, W)."""
        y = F.conv2d(F.relu(x_BCHW), self.kernels[str(edge)], padding=self.kernel // 2)
        rows, name = self.rows(edge), str(edge)
        running = self.running_mean is not None and (not self.training or self.track_running_stats)
        return F.batch_norm(
            y,
            self.running_mean[rows] if running else None,
            self.running_var[rows] if running else None,
            self.weights.get(name),
            self.biases.get(name),
            training=self.training or not running,
            momentum=self.momentum,
            eps=self.eps,
        )

    def stacked(
        self, positive_BCHW: Tensor, edges: Sequence[int], mix: Sequence[float], update: bool
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
        elif any(m != 1.0 for m in mix):
            weight = torch.tensor([m for m in mix for _ in range(self.channels)], dtype=kernels[0].dtype)
            weight = weight.to(y.device, non_blocking=True)
        update = update and self.track_running_stats
        part = update and len(edges) < len(self.edges)
        mean: Any = self.running_mean if update else None
        var: Any = self.running_var if update else None
        if part:
            rows = torch.cat([torch.arange(self.channels) + self.rows(edge).start for edge in edges])
            rows = rows.to(y.device, non_blocking=True)
            mean, var = mean[rows], var[rows]
        y = F.batch_norm(y, mean, var, weight, bias, training=True, momentum=self.momentum, eps=self.eps)
        if part:
            self.running_mean[rows], self.running_var[rows] = mean, var
        return y

    def folded(self, edge: int, mix: float) -> tuple[Tensor, Tensor]:
        """Kernel and bias of one edge's operation under running statistics, times its mixing weight."""
        rows, name = self.rows(edge), str(edge)
        scale = mix * (self.running_var[rows] + self.eps).rsqrt()
        if self.weights:
            scale = scale * self.weights[name]
        bias = -self.running_mean[rows] * scale
        if self.biases:
            bias = bias + mix * self.biases[name]
        return self.kernels[name] * scale[:, None, None, None], bias


def _joined(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim)


class _Sums(torch.autograd.Function):
    """What a node gives to its targets, added up in place: convolutions, itself, and its pool.

    Target t gets its former sum (if any), its channels of the stacks that name it, skips[t] x and
    pools[t] mean(x); None if all of these are missing. Equal to plain sums; in neither direction there is a
    temporary for every term.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        skips: list[float],
        pools: list[float],
        owners: list[list[int]],
        *tensors: Tensor | None,
    ) -> tuple[Tensor | None, ...]:
        """The new sums; `tensors` are the former sums, then the stacks, whose targets are `owners`."""
        ctx.skips, ctx.pools, ctx.owners = skips, pools, owners
        num = len(skips)
        ctx.had = [before is not None for before in tensors[:num]]
        terms: list[list[tuple[Tensor, float]]] = [[] for _ in range(num)]
        for targets, stack in zip(owners, tensors[num:], strict=True):
            assert stack is not None
            for target, share in zip(targets, stack.chunk(len(targets), dim=1), strict=True):
                terms[target].append((share, 1.0))
        pooled = box_mean(x) if any(pools) else x
        totals: list[Tensor | None] = []
        for target, before in enumerate(tensors[:num]):
            mine = terms[target] + ([] if before is None else [(before, 1.0)])
            mine += [(y, w) for y, w in ((x, skips[target]), (pooled, pools[target])) if w]
            if len(mine) < 2:
                totals.append(mine[0][0] * mine[0][1] if mine else None)
                continue
            (first, a), (second, b), *others = mine
            total = torch.add(first if a == 1.0 else first * a, second, alpha=b)
            for tensor, weight in others:
                total.add_(tensor, alpha=weight)
            totals.append(total)
        return tuple(totals)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        from_skips = from_pools = None
        for grad, skip, pool in zip(grads, ctx.skips, ctx.pools, strict=True):
            if grad is not None and skip:
                from_skips = grad * skip if from_skips is None else from_skips.add_(grad, alpha=skip)
            if grad is not None and pool:
                from_pools = grad * pool if from_pools is None else from_pools.add_(grad, alpha=pool)
        if from_pools is not None:
            pooled = box_mean_adjoint(from_pools)
            from_skips = pooled if from_skips is None else from_skips.add_(pooled)
        stacks: dict[tuple[int, ...], Tensor] = {}
        for targets in map(tuple, ctx.owners):
            if targets not in stacks:
                stacks[targets] = _joined([grads[target] for target in targets], dim=1)
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

    def forward(self, x_BCHW: Tensor, weights: FloatArray, update: bool) -> Tensor:
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
                    mix = weights[edges, op].tolist()
                    stacks.append(self.convolution(kernel, source).stacked(positive, edges, mix, update))
                    owners.append([leaving.index(edge) for edge in edges])
            skips, pools = weights[leaving, SKIP].tolist(), weights[leaving, AVG_POOL].tolist()
            # A node's outgoing edges lead to all later nodes, in order.
            sums[source + 1 :] = _Sums.apply(start, skips, pools, owners, *sums[source + 1 :], *stacks)
        output = sums[3]
        return torch.zeros_like(x_BCHW) if output is None else output

    def folded(self, weights: FloatArray) -> Callable[[Tensor], Tensor]:
        """The cell under running statistics for one architecture: one convolution per node and kernel size.

        A 1x1 convolution is added to the centre of the 3x3 one on its edge, if there is one. A convolution on
        an empty node gives a constant, not 0.
        """
        plan = []
        for source in range(3):
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
                edges = [e for e in _leaving(source) if e in kernels and kernels[e].shape[-1] == kernel]
                if edges:
                    weight = torch.cat([kernels[e] for e in edges])
                    convolutions.append(
                        (
                            weight.contiguous(memory_format=torch.channels_last),
                            torch.cat([biases[e] for e in edges]),
                            kernel // 2,
                            [EDGES[e][1] for e in edges],
                        )
                    )
            linear = [
                (EDGES[e][1], float(weights[e, op]), op == AVG_POOL)
                for e in _leaving(source)
                for op in (SKIP, AVG_POOL)
                if weights[e, op] != 0
            ]
            plan.append((convolutions, linear))

        def run(x: Tensor) -> Tensor:
            nodes: list[Tensor | None] = [x, None, None, None]
            mine = [False] * 4  # whether a node's tensor may be changed in place

            def add(target: int, share: Tensor, weight: float, new: bool) -> None:
                node = nodes[target]
                if node is None:
                    nodes[target] = share if weight == 1.0 else share * weight
                    mine[target] = new or weight != 1.0
                elif mine[target]:
                    node.add_(share, alpha=weight)
                elif new and weight == 1.0:
                    nodes[target], mine[target] = share.add_(node), True
                else:
                    nodes[target], mine[target] = torch.add(node, share, alpha=weight), True

            for source, (convolutions, linear) in enumerate(plan):
                if not convolutions and not linear:
                    continue
                start = nodes[source]
                if start is None:
                    start = torch.zeros_like(x)
                if convolutions:
                    positive = F.relu(start)
                    for weight, bias, padding, targets in convolutions:
                        y = F.conv2d(positive, weight, bias, padding=padding)
                        for target, share in zip(targets, y.split(self.channels, dim=1), strict=True):
                            add(target, share, 1.0, True)
                pooled = box_mean(start) if any(pool for _, _, pool in linear) else start
                for target, mix, pool in linear:
                    add(target, pooled if pool else start, mix, False)
            output = nodes[3]
            return torch.zeros_like(x) if output is None else output

        return run


class NasBench201Supernet(nn.Module):
    """Every architecture of a NAS-Bench-201 space in one network with shared weights.

    Stem, residual blocks and head are those of the published network; BatchNorm in the cells differs as the
    papers have it.

    Args:
        space: Width, depth, image and class count; its `choices` say which operations exist.
        affine: Whether BatchNorm in the cells has a weight and a bias.
        track_running_stats: Whether BatchNorm in the cells keeps running statistics.
    """

    def __init__(self, space: NasBench201Encoding, *, affine: bool, track_running_stats: bool) -> None:
        super().__init__()
        C, N = space.channels, space.num_cells
        self.allowed = space.allowed
        self.tracks = track_running_stats
        self.stem = nn.Sequential(
            nn.Conv2d(space.image_shape[0], C, 3, padding=1, bias=False), nn.BatchNorm2d(C)
        )
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

    def _effective(self, weights: FloatArray) -> FloatArray:
        """The weights, checked, with 0 for `none` and for whatever does not lead to the output."""
        check_mixing(weights, self.allowed)
        weights = np.where(np.arange(weights.shape[1]) == NONE, 0.0, weights)
        live = [False, False, False, True]
        for edge in reversed(range(len(EDGES))):
            source, target = EDGES[edge]
            if not live[target]:
                weights[edge] = 0.0
            live[source] |= bool(weights[edge].any())
        return weights

    def plain(self, x_BCHW: Tensor, weights: FloatArray) -> Tensor:
        """Logits (B, classes), operation by operation: what faster executions are compared with.

        Args:
            x_BCHW: Images.
            weights: Mixing weights (edges, ops).

        Raises:
            ValueError: Weights of another shape, or of operations that are not allowed.
        """
        weights = self._effective(weights)
        x = self.stem(x_BCHW)
        for part in self._body():
            x = part.plain(x, weights) if isinstance(part, _MixedCell) else part(x)
        return self.classifier(F.relu(self.last_norm(x)).mean(dim=(2, 3)))

    def forward(self, x_BCHW: Tensor, weights: FloatArray) -> Tensor:
        """Logits (B, classes) in training mode, equal to `plain`, faster.

        Args:
            x_BCHW: Images.
            weights: Mixing weights (edges, ops).

        Raises:
            ValueError: Weights of another shape, or of operations that are not allowed.
        """
        assert self.training, "`compiled` is for evaluation"
        weights = self._effective(weights)
        x = self.stem(x_BCHW.contiguous(memory_format=torch.channels_last))
        for part in self._body():
            x = part(x, weights, True) if isinstance(part, _MixedCell) else part(x)
        return self.classifier(F.relu(self.last_norm(x)).mean(dim=(2, 3)))

    @torch.no_grad()
    def compiled(self, weights: FloatArray, *, batch_statistics: bool = False) -> Callable[[Tensor], Tensor]:
        """One architecture as a function from images to logits, for evaluation; buffers stay as they are.

        The function is valid until the weights of the supernet change.

        Args:
            weights: Mixing weights (edges, ops).
            batch_statistics: Whether every BatchNorm uses the batch's statistics instead of the running ones;
                those in cells that track none always do.

        Raises:
            ValueError: Weights of another shape, or of operations that are not allowed.
        """
        weights = self._effective(weights)
        stem = folded_convolution(self.stem[0], self.stem[1], batch_statistics)
        whole = batch_statistics or not self.tracks
        steps: list[Callable[[Tensor], Tensor]] = []
        for part in self._body():
            if not isinstance(part, _MixedCell):
                steps.append(_residual(part, batch_statistics))
            elif whole:
                steps.append(partial(part, weights=weights, update=False))
            else:
                steps.append(part.folded(weights))
        last = normalisation(self.last_norm, batch_statistics)

        def logits(x: Tensor) -> Tensor:
            x = stem(x.contiguous(memory_format=torch.channels_last))
            for step in steps:
                x = step(x)
            return self.classifier(F.relu(last(x)).mean(dim=(2, 3)))

        @torch.no_grad()
        def run(x_BCHW: Tensor) -> Tensor:
            if whole or x_BCHW.device.type != "cpu":
                return logits(x_BCHW)
            return torch.cat([logits(chunk) for chunk in x_BCHW.split(CHUNK)])

        return run


def _residual(block: ResidualBlock, batch_statistics: bool) -> Callable[[Tensor], Tensor]:
    """The block between two stages."""
    a, b = (folded_convolution(conv[1], conv[2], batch_statistics) for conv in (block.conv_a, block.conv_b))
    return lambda x: b(F.relu_(a(F.relu(x)))).add_(block.downsample(x))


def _leaving(source: int) -> list[int]:
    return [edge for edge, (start, _) in enumerate(EDGES) if start == source]
