"""The algebra of the DARTS supernet: pixels as rows of matrices, and gradients that need less memory.

Products of 1x1 convolutions and BatchNorm by batch statistics, for rows z of Z (N, C_in), without U = Z W:

    mean(U) = mean(Z) W        var(U_j) = W_j' cov(Z) W_j        r = 1 / sqrt(var(U) + eps)
    X = (U - mean(U)) r = Z (W diag(r)) - mean(U) r

so that BatchNorm is another matrix and a constant. Given the gradient G of m X, m a mixing weight, and
s = m r, BatchNorm's own gradient is dU = s (G - mean(G) - X q) with q = mean(G X). With P = Z' G,

    q_j = r_j (W_j' P_j - mean(U_j) sum(G_j)) / N
    dU = s G - s mean(G) - s q r (Z W - mean(U))
    dZ = dU W' = G (W diag(s))' - Z W diag(s q r) W' + (s q r mean(U) - s mean(G)) W'
    dW = Z' dU = P diag(s) - N mean(Z)' (s mean(G)) - N cov(Z) W diag(s q r)

as Z' (Z W - mean(U)) = N cov(Z) W. Neither direction needs more than Z and G, where autograd keeps U and X
too, of every operation: a training step at C = 16, 8 cells and 64 images takes 4.2 GB instead of 10.

Shapes: B images, C channels, H height, W width, N = B * H * W pixels, n stacked operations.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx

from hwnas.spaces.darts.network import FactorizedReduce
from hwnas.spaces.supernet import Number, add_weighted, runs, vector


class _Context(FunctionCtx):
    """Values that a forward pass keeps for the backward pass."""

    saved_tensors: tuple[Tensor, ...]
    relu: bool
    mix: list[Number]
    weights: list[list[Number]]


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


def linear(x_BCHW: Tensor, matrix_IO: Tensor, constant: Tensor) -> Tensor:
    """A 1x1 convolution (C_in, C_out) plus a constant (C_out,)."""
    B, _, H, W = x_BCHW.shape
    return images(torch.addmm(constant, rows(x_BCHW), matrix_IO), B, H, W)


def side_by_side(x_BCHW: Tensor, num: int) -> Tensor:
    """The images `num` times: (B, num * C, H, W)."""
    return torch.cat([x_BCHW] * num, dim=1).contiguous(memory_format=torch.channels_last)


def depthwise(x_BCHW: Tensor, kernels: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """A depthwise convolution by kernels (C, 1, k, k) with k = `kernel`, padded to keep H and W."""
    return F.conv2d(x_BCHW, kernels, None, stride, dilation * (kernel // 2), dilation, len(kernels))


def trained_depthwise(x_BCHW: Tensor, kernels: Tensor, stride: int) -> Tensor:
    """A depthwise convolution that gradients go through."""
    if stride == 1 and x_BCHW.device.type == "cpu":
        return _Depthwise.apply(x_BCHW, kernels)
    return depthwise(x_BCHW, kernels, kernels.shape[-1], stride, 1)


def stacked(kernels: list[Tensor]) -> Tensor:
    """Depthwise kernels (C, 1, k, k) of n operations as (n * C, 1, k, k)."""
    return torch.cat(kernels).contiguous(memory_format=torch.channels_last)


def add_products(nodes: Tensor, targets: list[int], x_ENC: Tensor, matrices: Tensor) -> None:
    """Products of stacked matrices, added to their nodes."""
    first, num = targets[0], len(targets)
    if targets[-1] - first == num - 1:
        nodes[first : first + num].baddbmm_(x_ENC, matrices)
    else:
        for target, x, m in zip(targets, x_ENC, matrices, strict=True):
            nodes[target].addmm_(x, m)


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution of stride 1 with gradients that are fast on a CPU.

    The gradient of the input is a convolution by the mirrored kernel. That of a kernel of five columns takes
    torch ten times as long as one of three, so that it is put together from three and two.
    """

    @staticmethod
    def forward(ctx: _Context, x_BCHW: Tensor, kernels: Tensor) -> Tensor:
        """Keeps (B, C, H, W); `kernels` are (C, 1, k, k) with k of 3 or 5."""
        ctx.save_for_backward(x_BCHW, kernels)
        return depthwise(x_BCHW, kernels, kernels.shape[-1], 1, 1)

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, kernels = ctx.saved_tensors
        g = grads[0].contiguous(memory_format=torch.channels_last)
        dx = depthwise(g, kernels.flip(2, 3), kernels.shape[-1], 1, 1)
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


class PointwiseNorm(torch.autograd.Function):
    """Stacks of 1x1 convolutions with BatchNorm by batch statistics; their products Z W are not stored."""

    @staticmethod
    def forward(
        ctx: _Context, x_BCHW: Tensor, W: Tensor, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
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
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and W."""
        x, W, *small = ctx.saved_tensors
        g = grads[0].contiguous(memory_format=torch.channels_last)
        if ctx.relu:
            g = torch.ops.aten.threshold_backward(g, small.pop(), 0.0)
        n = len(W)
        sums = _sum(rows(g)).view(n, -1)
        dx, dW = _gradients(x, W, small, list(parts(g, n)), sums, [1.0] * n)
        return images(dx, len(x), *x.shape[2:]), dW, None, None


class AddPointwiseNorm(torch.autograd.Function):
    """Nodes plus 1x1 convolutions with BatchNorm by batch statistics, times mixing weights; in place."""

    @staticmethod
    def forward(
        ctx: _Context, x_BCHW: Tensor, W: Tensor, eps: float, mix: list[Number], *nodes: Tensor
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
        scale = batch.rstd * vector(mix, W)[:, None]
        products, constants = W * scale[:, None], batch.mean * scale
        for node, Z, product, constant in zip(nodes, batch.Z, products, constants, strict=True):
            node.addmm_(Z, product).sub_(constant)
        ctx.mix = mix
        ctx.save_for_backward(x_BCHW, W, *batch.small)
        ctx.mark_dirty(*nodes)
        ctx.mark_non_differentiable(batch.mean, batch.unbiased)
        return *nodes, batch.mean, batch.unbiased

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x and W, and of the nodes."""
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
        """Values that the gradients need besides Z and W."""
        return self.mean_in, self.covariance, self.mean, self.rstd


def _sum(rows_NC: Tensor) -> Tensor:
    """Sum over the rows, as a product: faster."""
    return (rows_NC.new_ones(1, len(rows_NC)) @ rows_NC)[0]


def _gradients(
    x_BCHW: Tensor, W: Tensor, small: list[Tensor], grads: list[Tensor], sums: Tensor, mix: list[Number]
) -> tuple[Tensor, Tensor]:
    """Gradients dZ of the input as rows and dW, given the outputs' (N, C_out) and their sums (n, C_out)."""
    mean_in, covariance, mean, rstd = small
    n, inputs, _ = W.shape
    own = x_BCHW.shape[1] // inputs
    Z = parts(x_BCHW, own).expand(n, -1, -1)
    num = Z.shape[1]
    s = rstd * vector(mix, W)[:, None]
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


class AddTerms(torch.autograd.Function):
    """Nodes plus weighted sums of the same terms, in place."""

    @staticmethod
    def forward(ctx: _Context, weights: list[list[Number]], num: int, *tensors: Tensor) -> tuple[Tensor, ...]:
        """The new nodes; `weights[term][node]`, then how many terms, the terms, and the nodes."""
        ctx.weights = weights
        nodes = tensors[num:]
        for term, row in zip(tensors[:num], weights, strict=True):
            for node, weight in zip(nodes, row, strict=True):
                if runs(weight):
                    add_weighted(node, term, weight)
        ctx.mark_dirty(*nodes)
        return nodes

    @staticmethod
    def backward(ctx: _Context, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of the terms and of the nodes."""
        terms: list[Tensor | None] = []
        for row in ctx.weights:
            total: Tensor | None = None
            for grad, weight in zip(grads, row, strict=True):
                if runs(weight):
                    total = grad * weight if total is None else add_weighted(total, grad, weight)
            terms.append(total)
        return None, None, *terms, *grads
