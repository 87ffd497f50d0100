"""Building blocks that spaces share, and the description of a network as a sum of measurable blocks.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import combinations
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, handle_torch_function, has_torch_function
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary

Norm = Callable[[int], nn.Module]
"""Makes the BatchNorm of so many channels; `nn.BatchNorm2d`, or that with other settings."""


class StridedPointwise(nn.Conv2d):
    """Convolution 1x1 with a stride, without bias: takes the pixels that count first, then convolves those.

    With fewer than 8 input channels, oneDNN's own gives wrong gradients on CPUs with AVX2, or writes past
    its memory (uxlfoundation/oneDNN issue 6035, seen with torch 2.14: networks crashed while training).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(in_channels, out_channels, 1, stride, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C_out, ceil(H / stride), ceil(W / stride))."""
        if self.in_channels >= 8:
            return super().forward(x_BCHW)
        vertical, horizontal = self.stride
        return F.conv2d(x_BCHW[:, :, ::vertical, ::horizontal], self.weight)


class ReLUConvBN(nn.Sequential):
    """ReLU, convolution without bias, BatchNorm: (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        stride: int = 1,
        norm: Norm = nn.BatchNorm2d,
    ) -> None:
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
            norm(out_channels),
        )
        self.kernel = kernel


class ResidualBlock(nn.Module):
    """NAS-Bench-201's block between stages: halves the resolution, doubles the channels."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.conv_a = ReLUConvBN(in_channels, 2 * in_channels, 3, stride=2)
        self.conv_b = ReLUConvBN(2 * in_channels, 2 * in_channels, 3)
        self.downsample = nn.Sequential(
            nn.AvgPool2d(2, 2, ceil_mode=True), nn.Conv2d(in_channels, 2 * in_channels, 1, bias=False)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """(B, C, H, W) to (B, 2C, ceil(H / 2), ceil(W / 2))."""
        return self.downsample(x_BCHW) + self.conv_b(self.conv_a(x_BCHW))


class _BoxMean(torch.autograd.Function):
    """3x3 mean over the pixels inside the image; separable sums, six to ten times faster than a pool."""

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor) -> Tensor:
        return _box_sum(x).mul_(_per_pixel(*x.shape[-2:], x.dtype, x.device))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, *grads: Tensor) -> Tensor:
        return box_mean_adjoint(grads[0])


def _box_sum(x: Tensor) -> Tensor:
    if x.dim() == 4 and x.device.type == "cpu" and x.is_contiguous(memory_format=torch.channels_last):
        return F.conv2d(x, _ones(x.shape[1], x.dtype), padding=1, groups=x.shape[1])  # six times faster still
    rows = x.clone()
    rows[..., 1:, :] += x[..., :-1, :]
    rows[..., :-1, :] += x[..., 1:, :]
    total = rows.clone()
    total[..., 1:] += rows[..., :-1]
    total[..., :-1] += rows[..., 1:]
    return total


def box_mean(x: Tensor) -> Tensor:
    """Average pool 3x3, stride 1, padding 1, padding not counted: equal to `F.avg_pool2d`, faster.

    Args:
        x: Shape (..., H, W).
    """
    return _BoxMean.apply(x)


def box_mean_adjoint(grad: Tensor) -> Tensor:
    """The gradient of the input of `box_mean`, from that of its output; shape (..., H, W)."""
    return _box_sum(grad * _per_pixel(*grad.shape[-2:], grad.dtype, grad.device))


def box_max(x: Tensor) -> Tensor:
    """Max pool 3x3, stride 1, padding 1: equal to `F.max_pool2d`, faster; without a gradient.

    Args:
        x: Shape (..., H, W).
    """
    rows = x.clone()
    torch.maximum(rows[..., 1:, :], x[..., :-1, :], out=rows[..., 1:, :])
    torch.maximum(rows[..., :-1, :], x[..., 1:, :], out=rows[..., :-1, :])
    total = rows.clone()
    torch.maximum(total[..., 1:], rows[..., :-1], out=total[..., 1:])
    torch.maximum(total[..., :-1], rows[..., 1:], out=total[..., :-1])
    return total


@lru_cache(maxsize=64)
def _ones(channels: int, dtype: torch.dtype) -> Tensor:
    """The kernel that adds up the 3x3 neighbourhood of each pixel in each channel."""
    with torch.inference_mode(False):
        return torch.ones(channels, 1, 3, 3, dtype=dtype)


@lru_cache(maxsize=64)
def _per_pixel(height: int, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """One over the number of pixels of the image in the 3x3 neighbourhood of each, shape (H, W)."""
    with torch.inference_mode(False), torch.no_grad():
        return 1.0 / _box_sum(torch.ones(1, height, width, dtype=dtype, device=device))[0]


class BoxMean(nn.Module):
    """Average pool 3x3, stride 1, padding 1, padding not counted, as a module: keeps (B, C, H, W)."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The mean of every pixel's neighbourhood inside the image."""
        return F.avg_pool2d(x_BCHW, 3, 1, 1, count_include_pad=False)


def normalisation(norm: nn.BatchNorm2d, batch_statistics: bool) -> Callable[[Tensor], Tensor]:
    """BatchNorm with the batch's or with its running statistics, whatever its mode; never updates them."""
    mean, var = (None, None) if batch_statistics else (norm.running_mean, norm.running_var)
    return partial(
        F.batch_norm,
        running_mean=mean,
        running_var=var,
        weight=norm.weight,
        bias=norm.bias,
        training=batch_statistics,
        eps=norm.eps,
    )


def folded_convolution(
    convolution: nn.Module, norm: nn.Module, batch_statistics: bool
) -> Callable[[Tensor], Tensor]:
    """A convolution without bias and its BatchNorm, folded into it under running statistics."""
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert not isinstance(convolution.padding, str)
    run = partial(F.conv2d, stride=convolution.stride, padding=convolution.padding)
    if batch_statistics:
        normalised = normalisation(norm, True)
        return lambda x: normalised(run(x, convolution.weight))
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    weight = (convolution.weight * scale[:, None, None, None]).contiguous(memory_format=torch.channels_last)
    return partial(run, weight=weight, bias=norm.bias - norm.running_mean * scale)


def rectified(x: Tensor, num_networks: int, uses: Tensor | None = None) -> Tensor:
    """ReLU of features of several networks; keeps the shape.

    A `TorchFunctionMode` sees calls of this function like those of torch's, with all that it needs to
    attribute them to networks.

    Args:
        x: Shape (B, networks * C, H, W) or (B, networks, C, H, W).
        num_networks: K.
        uses: Number of ReLUs in each network that this one stands for, shape (K,); None: one.
    """
    if has_torch_function((x,)):
        return handle_torch_function(rectified, (x,), x, num_networks, uses)
    return F.relu(x)


class Population(nn.Module):
    """Several networks as one module, whose ReLUs are calls of `rectified`.

    Attributes:
        num_networks: K.
    """

    num_networks: int

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of all networks per stage, each (B, K, C, H, W), and logits (K, B, classes).

        Args:
            x: Images (B, C, H, W) for all networks, or (B, K, C, H, W), some for each.
        """
        raise NotImplementedError

    def layers(self) -> Iterator[tuple[Tensor, Sequence[int]]]:
        """Weights of convolutions and linear layers, and whose they are.

        A weight holds those of a layer of each of the listed networks, one after another: as a view of shape
        (networks, weights).
        """
        raise NotImplementedError

    def cells(self) -> list[nn.Module]:
        """The stem and every cell: modules that return features, (B, K * C, H, W) or (B, K, C, H, W)."""
        raise NotImplementedError


class SeparateNetworks(Population):
    """K networks as one module, run one after another, channels last, which is faster on a CPU.

    Args:
        networks: The networks, with `features` and `load`.
        weights: Initial weights of the space, which are copied.
    """

    def __init__(self, networks: Iterable[nn.Module], weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        example = next(iter(weights.values()))
        self.networks = nn.ModuleList(network.to(example.device, example.dtype) for network in networks)
        for network in self.networks:
            network.load(weights)  # type: ignore[operator]
        self.num_networks = len(self.networks)
        self.to(memory_format=torch.channels_last)

    def features(self, x: Tensor) -> tuple[list[Tensor], Tensor]:
        """Features of all networks per stage, each (B, K, C, H, W), and logits (K, B, classes).

        Args:
            x: Images (B, C, H, W) for all networks.
        """
        x = x.contiguous(memory_format=torch.channels_last)
        taps, logits = zip(*(network.features(x) for network in self.networks), strict=True)  # type: ignore[operator]
        return [torch.stack(stage, dim=1) for stage in zip(*taps, strict=True)], torch.stack(logits)


def draw(
    modules: Callable[[], Iterable[tuple[str, nn.Module]]], seed: int, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Parameters of newly made modules, initialised with a seed; torch's own generator stays as it is.

    Args:
        modules: Makes them, each with the beginning of its parameters' names.
        seed: Seed of the draw.
        dtype: Type of the parameters; the values are the same up to its precision.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return {
            prefix + name: parameter.detach().to(dtype)
            for prefix, module in modules()
            for name, parameter in module.named_parameters()
        }


def load(
    module: nn.Module, weights: Mapping[str, Tensor], prefix: str = "", skip: Sequence[str] = ()
) -> None:
    """Copy weights into a module's parameters.

    Args:
        module: The module.
        weights: By name.
        prefix: Beginning of the parameters' names in `weights`.
        skip: Children that keep their own.
    """
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.partition(".")[0] not in skip:
                parameter.copy_(weights[prefix + name])


def count(network: nn.Module, image_shape: Sequence[int]) -> tuple[int, int]:
    """(parameters, multiply-adds) of a network for one image, counted on `device="meta"`.

    Convolutions and linear layers count, a linear layer's bias as one multiply-add per output;
    BatchNorm, pooling and activations do not: the convention of the papers' tables.
    """
    network = network.to("meta").eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.empty(1, *image_shape, device="meta"))
    biases = sum(
        module.bias.numel()
        for module in network.modules()
        if isinstance(module, nn.Linear) and module.bias is not None
    )
    params = sum(parameter.numel() for parameter in network.parameters())
    return params, counter.get_total_flops() // 2 + biases


def depth(network: nn.Module, image_shape: Sequence[int]) -> int:
    """Most convolutions on a path from a network's input to its output, counted on `device="meta"`."""
    network = network.to("meta").eval()
    with torch.no_grad(), _Depths() as depths:
        return depths.of(network(torch.empty(1, *image_shape, device="meta")))


class _Depths(TorchFunctionMode):
    """Most convolutions on a path to each tensor that is computed while this is entered."""

    def __init__(self) -> None:
        super().__init__()
        self._known = WeakIdKeyDictionary()

    def of(self, values: object) -> int:
        """The largest of all tensors in a structure."""
        tensors = (leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor))
        return max((self._known.get(tensor, 0) for tensor in tensors), default=0)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Call a function, and count it if it is a convolution."""
        number = self.of((args, kwargs)) + (func in (F.conv1d, F.conv2d, F.conv3d))
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._known[leaf] = number
        return result


class Addition(nn.Module):
    """The addition of each input of a node after its first; keeps (B, C, H, W)."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Twice the input."""
        return x_BCHW + x_BCHW


class Concatenation(nn.Module):
    """The concatenation of tensors: (B, C, H, W) to (B, times * C, H, W)."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self.times = times

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The input, `times` times."""
        return torch.cat([x_BCHW] * self.times, dim=1)


class SpatialMean(nn.Module):
    """Global average pooling: (B, C, H, W) to (B, C)."""

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """The mean over all pixels."""
        return x_BCHW.mean(dim=(2, 3))


@dataclass(frozen=True)
class Blocks:
    """A space's networks as sums of blocks that a device can be asked for one by one.

    A block's name is its kind and its place, e.g. "nor_conv_3x3@stage1"; blocks of one kind are expected to
    be faster or slower in a network than alone by a similar factor.

    Attributes:
        modules: Module and its input shape (without the batch) per block name.
        always: How often each block occurs in every network; less than 0 where edges are charged too much.
        edges: `edges[edge][op]` is how often each block occurs when `op` is chosen on `edge`.
        pairs: Pairs of edges by how they lie to each other. Operations of such a pair may cost more or less
            together than one by one: what they read is computed once, additions vanish in convolutions.
        num_networks: How many whole networks a profile should be fitted to.
    """

    modules: Mapping[str, tuple[nn.Module, tuple[int, ...]]]
    always: Mapping[str, int]
    edges: Sequence[Sequence[Mapping[str, int]]]
    pairs: Mapping[str, Sequence[tuple[int, int]]] = field(default_factory=dict)
    num_networks: int = 60


def adjacent(edges: Sequence[tuple[object, ...]]) -> dict[str, list[tuple[int, int]]]:
    """Pairs of a cell's edges that meet at a node, as `Blocks.pairs`.

    Args:
        edges: (cell, source, target) of each; edges of different cells do not meet.
    """
    pairs: dict[str, list[tuple[int, int]]] = {"same source": [], "same target": [], "in a row": []}
    for (a, (*cell_a, source_a, target_a)), (b, (*cell_b, source_b, target_b)) in combinations(
        enumerate(edges), 2
    ):
        if cell_a == cell_b:
            for kind, meet in (
                ("same source", source_a == source_b),
                ("same target", target_a == target_b),
                ("in a row", target_a == source_b),
            ):
                if meet:
                    pairs[kind].append((a, b))
    return pairs
