"""One network that holds every DARTS architecture: plain, stacked for training, folded for evaluation.

Architectures are told to it as mixing weights, an array (edges, ops), those of the normal cell first: every
edge is the sum of its operations' outputs times their weights. An operation of weight 0 is not run. A softmax
makes a soft mixture, the one-hot rows of the kept edges a hard choice; `hwnas.training.shared_weights`
makes both.

Source: Liu et al., DARTS, ICLR 2019 (code); Sinha & Chen, EvNAS, arXiv 2012.12540 (code).

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.core import FloatArray
from hwnas.spaces.blocks import Norm, ReLUConvBN, box_max, box_mean, check_mixing, folded_convolution
from hwnas.spaces.darts.encoding import (
    AVG_POOL,
    CELL_EDGES,
    CONVOLUTIONS,
    MAX_POOL,
    NONE,
    NUM_NODES,
    OPS,
    SKIP,
    DartsEncoding,
)
from hwnas.spaces.darts.network import FactorizedReduce, operation

IN_CACHE = 1 << 18
"""Numbers of a stack of operations that stay in a core's cache: so few images a folded cell takes at once."""


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of stride 1 with gradients that are fast on a CPU.

    The gradient of the input is a convolution by the mirrored kernel. That of a kernel of five columns takes
    torch ten times as long as one of three, so that it is put together from three and two.
    """

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, kernels: Tensor) -> Tensor:
        """Keeps (B, C, H, W); `kernels` are (C, 1, k, k) with k of 3 or 5."""
        ctx.save_for_backward(x_BCHW, kernels)
        return _depthwise(x_BCHW, kernels, kernels.shape[-1], 1, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, kernels = ctx.saved_tensors
        g = grads[0].contiguous(memory_format=torch.channels_last)
        dx = _depthwise(g, kernels.flip(2, 3), kernels.shape[-1], 1, 1)
        if kernels.shape[-1] == 3:
            return dx, _kernel_gradient(x, g, kernels, 1)
        left = _kernel_gradient(F.pad(x, (2, 0)), g, kernels[..., :3], 0)
        right = _kernel_gradient(F.pad(x, (-1, 2)), g, kernels[..., 3:], 0)
        return dx, torch.cat([left, right], dim=3)


def _kernel_gradient(x_BCHW: Tensor, g_BCHW: Tensor, kernels: Tensor, columns: int) -> Tensor:
    """Gradient of depthwise kernels, given the padding of columns; rows are padded to keep H."""
    padding = [kernels.shape[2] // 2, columns]
    return torch.ops.aten.convolution_backward(
        *(g_BCHW, x_BCHW, kernels.contiguous(), None, [1, 1], padding, [1, 1]),
        *(False, [0, 0], len(kernels), [False, True, False]),
    )[1]


class _PointwiseNorm(torch.autograd.Function):
    """Stacks of 1x1 convolutions with BatchNorm by batch statistics, without their output before BatchNorm.

    The statistics of a product Z W follow from those of Z: its mean is mean(Z) W, its variance the diagonal
    of W' cov(Z) W. So BatchNorm becomes a change of W, and neither direction needs more than Z.
    """

    @staticmethod
    def forward(ctx: Any, x_BCHW: Tensor, W: Tensor, eps: float, relu: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Output (B, n * C_out, H, W); mean and unbiased variance (n, C_out) of what is normalised.

        Args:
            ctx: Of autograd.
            x_BCHW: n stacks of C_in channels, in channels_last.
            W: Matrices (n, C_in, C_out).
            eps: BatchNorm's.
            relu: Whether ReLU follows.
        """
        n, _, outputs = W.shape
        batch = _Statistics(x_BCHW, W, eps)
        y = torch.empty(len(rows(x_BCHW)), n * outputs, dtype=x_BCHW.dtype, device=x_BCHW.device)
        y_parts = y.view(-1, n, outputs).transpose(0, 1)
        torch.bmm(batch.Z, W * batch.rstd[:, None], out=y_parts)
        y.sub_((batch.mean * batch.rstd).flatten())
        if relu:
            y.relu_()
        y_BCHW = images(y, len(x_BCHW), *x_BCHW.shape[2:])
        ctx.relu = relu
        ctx.save_for_backward(x_BCHW, W, *batch.small, *([y_BCHW] if relu else []))
        ctx.mark_non_differentiable(batch.mean, batch.unbiased)
        return y_BCHW, batch.mean, batch.unbiased

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, W, *small = ctx.saved_tensors
        g = grads[0].contiguous(memory_format=torch.channels_last)
        if ctx.relu:
            g = torch.ops.aten.threshold_backward(g, small.pop(), 0.0)
        n = len(W)
        sums = _sum(rows(g)).view(n, -1)
        dx, dW = _gradients(x, W, small, list(parts(g, n)), sums, [1.0] * n)
        return images(dx, len(x), *x.shape[2:]), dW, None, None


class _AddPointwiseNorm(torch.autograd.Function):
    """Nodes plus 1x1 convolutions with BatchNorm by batch statistics, times mixing weights; in place."""

    @staticmethod
    def forward(
        ctx: Any, x_BCHW: Tensor, W: Tensor, eps: float, mix: list[float], *nodes: Tensor
    ) -> tuple[Tensor, ...]:
        """The new nodes (B * H * W, C); mean and unbiased variance (n, C) of what is normalised.

        Args:
            ctx: Of autograd.
            x_BCHW: n stacks of C_in channels, or C_in channels that all share; in channels_last.
            W: Matrices (n, C_in, C).
            eps: BatchNorm's.
            mix: n mixing weights.
            nodes: n nodes.
        """
        batch = _Statistics(x_BCHW, W, eps)
        scale = batch.rstd * torch.tensor(mix, dtype=W.dtype, device=W.device)[:, None]
        products, constants = W * scale[:, None], batch.mean * scale
        for node, Z, product, constant in zip(nodes, batch.Z, products, constants, strict=True):
            node.addmm_(Z, product).sub_(constant)
        ctx.mix = mix
        ctx.save_for_backward(x_BCHW, W, *batch.small)
        ctx.mark_dirty(*nodes)
        ctx.mark_non_differentiable(batch.mean, batch.unbiased)
        return *nodes, batch.mean, batch.unbiased

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        x, W, *small = ctx.saved_tensors
        g = [grad.contiguous() for grad in grads[: len(W)]]
        dx, dW = _gradients(x, W, small, g, torch.stack([_sum(grad) for grad in g]), ctx.mix)
        return images(dx, len(x), *x.shape[2:]), dW, None, None, *grads[: len(W)]


class _Statistics:
    """Mean, variance and their like of products Z W, shapes (n, N, C_in) and (n, C_in, C_out).

    Args:
        x_BCHW: n stacks of C_in channels, or C_in channels that all share; in channels_last.
        W: Matrices (n, C_in, C_out).
        eps: BatchNorm's.
    """

    def __init__(self, x_BCHW: Tensor, W: Tensor, eps: float) -> None:
        n, inputs, _ = W.shape
        own = x_BCHW.shape[1] // inputs
        once = parts(x_BCHW, own)
        self.Z = once if own == n else once.expand(n, -1, -1)
        num = once.shape[1]
        self.mean_in = _sum(rows(x_BCHW)).view(own, inputs) / num
        products = torch.stack([z.T @ z for z in once]) / num
        self.covariance = products - self.mean_in[:, :, None] * self.mean_in[:, None, :]
        self.mean = (self.mean_in[:, None] @ W)[:, 0]
        variance = (W * (self.covariance @ W)).sum(dim=1).clamp_min(0.0)
        self.unbiased = variance * (num / max(1, num - 1))
        self.rstd = (variance + eps).rsqrt()

    @property
    def small(self) -> tuple[Tensor, ...]:
        """What the gradients need besides Z and W."""
        return self.mean_in, self.covariance, self.mean, self.rstd


def _sum(rows_NC: Tensor) -> Tensor:
    """Sum over the rows, as a product: faster."""
    return (rows_NC.new_ones(1, len(rows_NC)) @ rows_NC)[0]


def _gradients(
    x_BCHW: Tensor, W: Tensor, small: list[Tensor], grads: list[Tensor], sums: Tensor, mix: list[float]
) -> tuple[Tensor, Tensor]:
    """Gradients of the input as rows and of W, given the outputs' (N, C_out) and their sums (n, C_out).

    With U = Z W and its normalised form X, BatchNorm's gradient is dU = s (G - mean(G) - X mean(G X)).
    """
    mean_in, covariance, mean, rstd = small
    n, inputs, _ = W.shape
    own = x_BCHW.shape[1] // inputs
    Z = parts(x_BCHW, own).expand(n, -1, -1)
    num = Z.shape[1]
    s = rstd * torch.tensor(mix, dtype=W.dtype, device=W.device)[:, None]
    products = torch.stack([z.T @ g for z, g in zip(Z, grads, strict=True)])
    q = rstd * ((W * products).sum(dim=1) - mean * sums) / num
    scaled = s * q * rstd
    W_transposed = W.transpose(1, 2)
    forward = (W * s[:, None]).transpose(1, 2).contiguous()
    back = (W * -scaled[:, None]) @ W_transposed
    constant = ((scaled * mean - s * sums / num)[:, None] @ W_transposed)[:, 0]
    dW = products * s[:, None] - mean_in[:, :, None] * (s * sums)[:, None]
    dW = dW - num * (covariance @ W) * scaled[:, None]
    if own < n:  # all share their input
        dZ = torch.addmm(constant.sum(0), Z[0], back.sum(0))
        for g, m in zip(grads, forward, strict=True):
            dZ.addmm_(g, m)
        return dZ, dW
    dZ = torch.empty(num, n, inputs, dtype=Z.dtype, device=Z.device)
    for e in range(n):
        torch.mm(grads[e], forward[e], out=dZ[:, e])
    dZ.transpose(0, 1).baddbmm_(Z, back)
    dZ = dZ.view(num, -1)
    return dZ.add_(constant.flatten()), dW


class _AddShares(torch.autograd.Function):
    """Nodes plus shares of the same terms, in place."""

    @staticmethod
    def forward(ctx: Any, shares: list[list[float]], num: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The new nodes; `shares[term][node]`, then how many terms, the terms, and the nodes."""
        ctx.shares = shares
        nodes = tensors[num:]
        for term, row in zip(tensors[:num], shares, strict=True):
            for node, share in zip(nodes, row, strict=True):
                if share:
                    node.add_(term, alpha=share)
        ctx.mark_dirty(*nodes)
        return nodes

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        terms: list[Tensor | None] = []
        for row in ctx.shares:
            total: Tensor | None = None
            for grad, share in zip(grads, row, strict=True):
                if share:
                    total = grad * share if total is None else total.add_(grad, alpha=share)
            terms.append(total)
        return None, None, *terms, *grads


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
        tracks: Whether these keep running statistics.
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
        tracks: bool,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.reduction = reduction
        self.tracks = tracks
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

    def forward(self, before_BCHW: Tensor, last_BCHW: Tensor, weights: FloatArray, update: bool) -> Tensor:
        """The cell with batch statistics, equal operations of a source's outgoing edges stacked.

        Args:
            before_BCHW: Output of the cell before the last, after ReLU, in channels_last.
            last_BCHW: Output of the last cell, the same.
            weights: Mixing weights of this kind of cell.
            update: Whether to update running statistics, as training does.
        """
        statistics: list[tuple[nn.BatchNorm2d, Tensor, Tensor]] = []
        first: Any = self.preprocess_0
        second: Any = self.preprocess_1
        if isinstance(first, FactorizedReduce):
            one = self._normalised(shifted(before_BCHW), [factorized_matrix(first)], [first.norm], statistics)
        else:
            one = self._normalised(before_BCHW, [matrix(first[1])], [first[2]], statistics)
        inputs = [one, self._normalised(last_BCHW, [matrix(second[1])], [second[2]], statistics)]
        B, C, H, W = inputs[1].shape
        if self.reduction:
            H, W = -(-H // 2), -(-W // 2)
        nodes = [inputs[1].new_zeros(B * H * W, C) for _ in range(NUM_NODES)]
        for source in range(1 + NUM_NODES):
            x = inputs[source] if source < 2 else images(nodes[source - 2], B, H, W)
            self._give(source, x, nodes, weights, statistics)
        if update and self.tracks:
            for norm, mean, var in statistics:
                assert norm.running_mean is not None
                assert norm.running_var is not None
                assert norm.num_batches_tracked is not None
                assert norm.momentum is not None
                norm.running_mean.lerp_(mean, norm.momentum)
                norm.running_var.lerp_(var, norm.momentum)
                norm.num_batches_tracked += 1
        return images(torch.cat(nodes, dim=1), B, H, W)

    def _normalised(
        self,
        x_BCHW: Tensor,
        matrices: list[Tensor],
        norms: list[Any],
        statistics: list[Any],
        relu: bool = False,
    ) -> Tensor:
        """Stacks of 1x1 convolutions with BatchNorm."""
        y, means, variances = _PointwiseNorm.apply(x_BCHW, torch.stack(matrices), norms[0].eps, relu)
        statistics += zip(norms, means, variances, strict=True)
        return y

    def _give(
        self, source: int, x: Tensor, nodes: list[Tensor], weights: FloatArray, statistics: list[Any]
    ) -> None:
        """Add what a source gives to the nodes, in place, with batch statistics."""
        stride, leaving = self.stride(source), _leaving(source)
        positive = F.relu(x)
        wide: dict[tuple[int, int], Tensor] = {}

        def add(op: int, y: Tensor, get: Callable[[Any], tuple[Tensor, nn.BatchNorm2d]]) -> None:
            """Last 1x1 convolutions of an operation, their BatchNorm and mixing weights."""
            edges = [edge for edge in leaving if weights[edge, op] != 0]
            products, norms = zip(*(get(self.edges[edge][OPS[op]]) for edge in edges), strict=True)  # type: ignore[index]
            targets = _targets(edges)
            mix = weights[edges, op].tolist()
            mine = [nodes[target] for target in targets]
            *mine, means, variances = _AddPointwiseNorm.apply(
                y, torch.stack(products), norms[0].eps, mix, *mine
            )
            for target, node in zip(targets, mine, strict=True):
                nodes[target] = node
            statistics.extend(zip(norms, means, variances, strict=True))

        for op, (_, times) in CONVOLUTIONS.items():
            modules: Any = [self.edges[edge][OPS[op]] for edge in leaving if weights[edge, op] != 0]  # type: ignore[index]
            if not modules:
                continue
            n, dilation = len(modules), 3 - times
            if (n, dilation) not in wide:
                y = positive
                if dilation == 2:
                    y = positive[:, :, ::2, ::2] if stride == 2 else quarters(positive)
                wide[n, dilation] = _side_by_side(y, n)
            # Dilated convolutions are plain ones of every other row and column: their gradients are slow.
            y = _trained(
                wide[n, dilation],
                _stacked([module[1].weight for module in modules]),
                stride if dilation == 1 else 1,
            )
            if dilation == 2 and stride == 1:
                y = whole(y, *positive.shape[2:])
            if times == 2:
                y = self._normalised(
                    y, [matrix(m[2]) for m in modules], [m[3] for m in modules], statistics, relu=True
                )
                y = _trained(y, _stacked([module[5].weight for module in modules]), 1)
            add(op, y, lambda module: (matrix(module[-2]), module[-1]))
        if stride == 2 and weights[leaving, SKIP].any():
            add(SKIP, shifted(positive), lambda module: (factorized_matrix(module), module.norm))
        terms, shares = [], []
        if stride == 1:
            terms.append(rows(x))
            shares.append(weights[leaving, SKIP].tolist())
        for op in (MAX_POOL, AVG_POOL):
            edges = [edge for edge in leaving if weights[edge, op] != 0]
            if edges:
                norms = [self.edges[edge][OPS[op]][1] for edge in edges]  # type: ignore[index]
                pooled = F.max_pool2d(x, 3, stride, 1) if op == MAX_POOL else _mean(x, stride)
                y = rows(pooled)
                mean, var = y.new_zeros(2, y.shape[1])
                # A momentum of 1 gives this batch's statistics; the edges differ in their buffers only.
                terms.append(F.batch_norm(y, mean, var, training=True, momentum=1.0, eps=norms[0].eps))
                shares.append(weights[leaving, op].tolist())
                statistics.extend((norm, mean, var) for norm in norms)
        if any(any(share) for share in shares):
            targets = _targets(leaving)
            mine = _AddShares.apply(shares, len(terms), *terms, *(nodes[target] for target in targets))
            for target, node in zip(targets, mine, strict=True):
                nodes[target] = node

    def folded(self, weights: FloatArray) -> Callable[[Tensor, Tensor], Tensor]:
        """The cell under running statistics for one architecture, as a function of its inputs after ReLU.

        Depthwise convolutions of a kernel that leave one source are one convolution, 1x1 convolutions one
        product of stacked matrices that adds to the nodes in place; pools and ReLU run once per source. Nodes
        begin as the sum of all constants: those of BatchNorm.
        """
        C = self.channels
        preprocess_0, preprocess_1 = self._folded_preprocess()
        constants = preprocess_1[1].new_zeros(NUM_NODES, 1, C)
        plans = [self._folded_source(source, weights, constants) for source in range(1 + NUM_NODES)]

        num = max((weights[_leaving(source)] != 0).sum(axis=0).max() for source in range(1 + NUM_NODES))
        width = max(1, int(num)) * C

        def output(before: Tensor, last: Tensor) -> Tensor:
            factorized = isinstance(self.preprocess_0, FactorizedReduce)
            inputs = [
                _linear(shifted(before) if factorized else before, *preprocess_0),
                _linear(last, *preprocess_1),
            ]
            B, _, H, W = inputs[1].shape
            if self.reduction:
                H, W = -(-H // 2), -(-W // 2)
            nodes = constants.expand(NUM_NODES, B * H * W, C).clone()
            for source, plan in enumerate(plans):
                plan(inputs[source] if source < 2 else images(nodes[source - 2], B, H, W), nodes)
            return images(torch.cat(list(nodes), dim=1), B, H, W)

        def run(before: Tensor, last: Tensor) -> Tensor:
            size = max(1, IN_CACHE // (width * last[0, 0].numel()))
            if len(last) <= size or last.device.type != "cpu":
                return output(before, last)
            pairs = zip(before.split(size), last.split(size), strict=True)
            return torch.cat([output(*pair) for pair in pairs])

        return run

    def _folded_preprocess(self) -> list[tuple[Tensor, Tensor]]:
        """Matrix (C_in, C) and constant (C,) of both inputs."""
        first: Any = self.preprocess_0
        second: Any = self.preprocess_1
        if isinstance(first, FactorizedReduce):
            one = folded(factorized_matrix(first), first.norm)
        else:
            one = folded(matrix(first[1]), first[2])
        return [one, folded(matrix(second[1]), second[2])]

    def _folded_source(
        self, source: int, weights: FloatArray, constants: Tensor
    ) -> Callable[[Tensor, Tensor], None]:
        """What a source gives to the nodes, added in place; puts what is constant into `constants`."""
        C, stride = self.channels, self.stride(source)
        leaving = _leaving(source)

        def running(op: int) -> list[int]:
            return [edge for edge in leaving if weights[edge, op] != 0]

        def last(op: int, edges: list[int], get: Callable[[Any], tuple[Tensor, nn.Module]]) -> Tensor:
            """Matrices (edges, C_in, C) of the last 1x1 convolutions, their BatchNorm and mixing weights."""
            matrices = []
            for edge in edges:
                product, norm = get(self.edges[edge][OPS[op]])  # type: ignore[index]
                m, constant = folded(product, norm, float(weights[edge, op]))
                constants[CELL_EDGES[edge][1] - 2, 0] += constant
                matrices.append(m)
            return torch.stack(matrices)

        convolutions = []
        for op, (kernel, times) in CONVOLUTIONS.items():
            edges = running(op)
            if not edges:
                continue
            modules: Any = [self.edges[edge][OPS[op]] for edge in edges]  # type: ignore[index]
            middle = None
            if times == 2:
                pairs = [folded(matrix(module[2]), module[3]) for module in modules]
                middle = (
                    torch.stack([m for m, _ in pairs]),
                    torch.cat([constant for _, constant in pairs]),
                    _stacked([module[5].weight for module in modules]),
                )
            end = last(op, edges, lambda module: (matrix(module[-2]), module[-1]))
            depthwise = _stacked([module[1].weight for module in modules])
            convolutions.append((kernel, 3 - times, depthwise, middle, end, _targets(edges)))
        reductions = None
        if stride == 2 and running(SKIP):
            edges = running(SKIP)
            end = last(SKIP, edges, lambda module: (factorized_matrix(module), module.norm))
            reductions = (end, _targets(edges))
        skips = []
        if stride == 1:
            skips = [(CELL_EDGES[edge][1] - 2, float(weights[edge, SKIP])) for edge in running(SKIP)]
        pools = []
        for op in (MAX_POOL, AVG_POOL):
            scales = []
            for edge in running(op):
                norm = self.edges[edge][OPS[op]][1]  # type: ignore[index]
                scale, constant = scale_of(norm, float(weights[edge, op]))
                constants[CELL_EDGES[edge][1] - 2, 0] += constant
                scales.append((CELL_EDGES[edge][1] - 2, scale))
            pools.append(scales)

        def run(x: Tensor, nodes: Tensor) -> None:
            if convolutions or reductions:
                positive = F.relu(x)
                wide: dict[tuple[int, bool], Tensor] = {}
                for kernel, dilation, depthwise, middle, end, targets in convolutions:
                    n = len(depthwise) // C
                    thin = stride == 2 and dilation == 2  # only every other row and column is looked at
                    if (n, thin) not in wide:
                        wide[n, thin] = _side_by_side(positive[:, :, ::2, ::2] if thin else positive, n)
                    how = (1, 1) if thin else (stride, dilation)
                    y = _depthwise(wide[n, thin], depthwise, kernel, *how)
                    if middle is not None:
                        matrices, constant, second = middle
                        inner = torch.empty(len(rows(y)), n * C, dtype=y.dtype, device=y.device)
                        torch.bmm(parts(y, n), matrices, out=inner.view(-1, n, C).transpose(0, 1))
                        inner = images(inner.add_(constant).relu_(), len(y), *y.shape[2:])
                        y = _depthwise(inner, second, kernel, 1, 1)
                    _add(nodes, targets, parts(y, n), end)
                if reductions:
                    end, targets = reductions
                    y = rows(shifted(positive))
                    _add(nodes, targets, y.expand(len(end), *y.shape), end)
            for target, mix in skips:
                nodes[target].add_(rows(x), alpha=mix)
            for scales, pool in zip(pools, (_max, _mean), strict=True):
                if scales:
                    y = rows(pool(x, stride))
                    for target, scale in scales:
                        nodes[target].addcmul_(y, scale)

        return run


class DartsSupernet(nn.Module):
    """Every architecture of a DARTS space in one network with shared weights.

    Pools are followed by BatchNorm, and BatchNorm in the cells has neither weight nor bias, as in the papers'
    code.

    Args:
        space: Width, depth, image and class count; its `choices` say which operations exist.
        track_running_stats: Whether BatchNorm in the cells keeps running statistics; without, it always uses
            the batch's.

    Raises:
        ValueError: A space with the stem for large images.
    """

    def __init__(self, space: DartsEncoding, *, track_running_stats: bool) -> None:
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
                    tracks=track_running_stats,
                )
            )
            before, last, after_reduction = last, NUM_NODES * channels, reduction
        self.classifier = nn.Linear(last, space.num_classes)

    def _split(self, weights: FloatArray) -> tuple[FloatArray, FloatArray]:
        """The weights, checked, of the normal and of the reduction cells."""
        check_mixing(weights, self.allowed)
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

    def forward(self, x_BCHW: Tensor, weights: FloatArray) -> Tensor:
        """Logits (B, classes) in training mode, equal to `plain`, faster and in less memory.

        Args:
            x_BCHW: Images.
            weights: Mixing weights (edges, ops).

        Raises:
            ValueError: Weights of another shape, or of operations that are not allowed.
        """
        assert self.training, "`compiled` is for evaluation"
        normal, reduce = self._split(weights)
        # Statistics are differences of large sums: not for bfloat16.
        with torch.autocast(x_BCHW.device.type, enabled=False):
            x = self.stem(x_BCHW.float() if x_BCHW.dtype == torch.bfloat16 else x_BCHW)
            return self._through(x, normal, reduce, update=True)

    def _through(self, x_BCHW: Tensor, normal: FloatArray, reduce: FloatArray, *, update: bool) -> Tensor:
        """Logits from the stem's output, with batch statistics in the cells."""
        before = last = F.relu(x_BCHW).contiguous(memory_format=torch.channels_last)
        for index, cell in enumerate(self.cells):
            output = cell(before, last, reduce if cell.reduction else normal, update)
            before, last = last, output if index == len(self.cells) - 1 else F.relu(output)
        return self.classifier(last.mean(dim=(2, 3)))

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
        normal, reduce = self._split(weights)
        stem = folded_convolution(self.stem[0], self.stem[1], batch_statistics)

        @torch.no_grad()
        def run_whole(x_BCHW: Tensor) -> Tensor:
            x = stem(x_BCHW.contiguous(memory_format=torch.channels_last))
            return self._through(x, normal, reduce, update=False)

        if batch_statistics or not self.tracks:
            return run_whole
        cells = [cell.folded(reduce if cell.reduction else normal) for cell in self.cells]  # type: ignore[operator]

        @torch.no_grad()
        def run(x_BCHW: Tensor) -> Tensor:
            before = last = stem(x_BCHW.contiguous(memory_format=torch.channels_last)).relu_()
            for index, cell in enumerate(cells):
                output = cell(before, last)
                before, last = last, output if index == len(cells) - 1 else output.relu_()
            return self.classifier(last.mean(dim=(2, 3)))

        return run


def rows(x_BCHW: Tensor) -> Tensor:
    """Images in channels_last as a matrix (B * H * W, C), a view."""
    return x_BCHW.permute(0, 2, 3, 1).flatten(0, 2)


def images(rows_NC: Tensor, B: int, H: int, W: int) -> Tensor:
    """A matrix (B * H * W, C) as images (B, C, H, W) in channels_last, a view."""
    return rows_NC.view(B, H, W, -1).permute(0, 3, 1, 2)


def parts(x_BCHW: Tensor, num: int) -> Tensor:
    """Images of `num` stacks of C channels as matrices (num, B * H * W, C), a view."""
    return rows(x_BCHW).unflatten(1, (num, -1)).transpose(0, 1)


def shifted(x_BCHW: Tensor) -> Tensor:
    """Pixels of even and of odd rows and columns side by side: (B, 2C, ceil(H / 2), ceil(W / 2)).

    What `FactorizedReduce` looks at.
    """
    height, width = x_BCHW.shape[2:]
    if height % 2 or width % 2:
        x_BCHW = F.pad(x_BCHW, (0, width % 2, 0, height % 2))
    y = torch.cat([x_BCHW[:, :, ::2, ::2], x_BCHW[:, :, 1::2, 1::2]], dim=1)
    return y.contiguous(memory_format=torch.channels_last)


def quarters(x_BCHW: Tensor) -> Tensor:
    """Pixels by whether their row and column are even, as images of their own: (4B, C, H / 2, W / 2).

    Odd sides get a row or column of zeros.
    """
    B, C, H, W = x_BCHW.shape
    x = F.pad(x_BCHW, (0, W % 2, 0, H % 2)) if H % 2 or W % 2 else x_BCHW
    x = x.unflatten(3, (-1, 2)).unflatten(2, (-1, 2))  # B C h 2 w 2
    return x.permute(3, 5, 0, 2, 4, 1).reshape(4 * B, -(-H // 2), -(-W // 2), C).permute(0, 3, 1, 2)


def whole(x_BCHW: Tensor, H: int, W: int) -> Tensor:
    """The inverse of `quarters` for images of H x W pixels."""
    y = x_BCHW.permute(0, 2, 3, 1).unflatten(0, (2, 2, -1))  # 2 2 B h w C
    y = y.permute(2, 3, 0, 4, 1, 5).flatten(3, 4).flatten(1, 2)
    return y[:, :H, :W].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def matrix(convolution: nn.Conv2d) -> Tensor:
    """A 1x1 convolution as a matrix (C_in, C_out) for rows of pixels."""
    return convolution.weight[:, :, 0, 0].T


def factorized_matrix(module: FactorizedReduce) -> Tensor:
    """Both convolutions of a FactorizedReduce as a matrix (2 C_in, C_out) for `shifted` pixels."""
    return torch.block_diag(matrix(module.conv_1), matrix(module.conv_2))


def scale_of(norm: nn.Module, mix: float = 1.0) -> tuple[Tensor, Tensor]:
    """Scale and constant (C,) of a BatchNorm under running statistics, times a mixing weight."""
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = mix * (norm.running_var + norm.eps).rsqrt()
    return scale, -norm.running_mean * scale


def folded(matrix_IO: Tensor, norm: nn.Module, mix: float = 1.0) -> tuple[Tensor, Tensor]:
    """Matrix and constant of a 1x1 convolution and its BatchNorm, times a mixing weight."""
    scale, constant = scale_of(norm, mix)
    return matrix_IO * scale, constant


def _linear(x_BCHW: Tensor, matrix_IO: Tensor, constant: Tensor) -> Tensor:
    B, _, H, W = x_BCHW.shape
    return images(torch.addmm(constant, rows(x_BCHW), matrix_IO), B, H, W)


def _side_by_side(x_BCHW: Tensor, num: int) -> Tensor:
    return torch.cat([x_BCHW] * num, dim=1).contiguous(memory_format=torch.channels_last)


def _depthwise(x_BCHW: Tensor, kernels: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    return F.conv2d(x_BCHW, kernels, None, stride, dilation * (kernel // 2), dilation, len(kernels))


def _trained(x_BCHW: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """A depthwise convolution that gradients go through."""
    if stride == 1 and x_BCHW.device.type == "cpu":
        return _Depthwise.apply(x_BCHW, kernels)
    return _depthwise(x_BCHW, kernels, kernels.shape[-1], stride, 1)


def _stacked(kernels: list[Tensor]) -> Tensor:
    return torch.cat(kernels).contiguous(memory_format=torch.channels_last)


def _targets(edges: list[int]) -> list[int]:
    return [CELL_EDGES[edge][1] - 2 for edge in edges]


def _add(nodes: Tensor, targets: list[int], x_ENC: Tensor, matrices: Tensor) -> None:
    """Products of stacked matrices, added to their nodes."""
    first, num = targets[0], len(targets)
    if targets[-1] - first == num - 1:
        nodes[first : first + num].baddbmm_(x_ENC, matrices)
    else:
        for target, x, m in zip(targets, x_ENC, matrices, strict=True):
            nodes[target].addmm_(x, m)


def _max(x: Tensor, stride: int) -> Tensor:
    return box_max(x) if stride == 1 else F.max_pool2d(x, 3, 2, 1)


def _mean(x: Tensor, stride: int) -> Tensor:
    return box_mean(x) if stride == 1 else F.avg_pool2d(x, 3, 2, 1, count_include_pad=False)


def _leaving(source: int) -> list[int]:
    return [edge for edge, (start, _) in enumerate(CELL_EDGES) if start == source]
