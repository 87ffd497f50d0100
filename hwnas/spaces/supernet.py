"""One network that holds every architecture of a space, with shared weights.

`Supernet` is what training and evaluation need of it; `CellSupernet` is one of cells, executed in three ways.

An architecture is given as mixing weights, an array (edges, ops): an edge is the sum of its operations'
outputs times their weights. An operation of weight 0 is not run. A softmax makes a soft mixture, one-hot rows
a hard choice; `hwnas.training.shared_weights` makes both. All three ways give the same logits.

Plain: operation by operation. It is what the other two are compared with.

Stacked: for training, and wherever BatchNorm uses the statistics of the batch. Operations of one kind that
leave one node see the same input x. Convolving x by kernels K_1, ..., K_n is one convolution by all of them
side by side; BatchNorm treats channels one by one, so it does not mind its neighbours. A mixing weight m goes
into it: m (w y + b) = (m w) y + m b for a normalised channel y with weight w and bias b. So n small
operations are one wide one, and no product with m is stored.

Folded: for evaluation under running statistics. BatchNorm is then affine, y -> s y + c with
s = m w / sqrt(var + eps) and c = m b - s mean, and convolution is linear, s (K * x) = (s K) * x. So an
operation with its BatchNorm and its mixing weight is one convolution by s K, plus a constant. Operations that
lead from one node to another may then be added up before they run, and all that leave a node are stacked.

On one core, against the plain way with a soft mixture, at C = 16: evaluation 4.2 times (soft) and 22 times
(hard) faster, a training step 2.3 (NAS-Bench-201) and 2.7 times (DARTS); `make bench` measures it
(`tests/benchmarks/test_supernet_speed.py`).

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call

from hwnas.core import FloatArray
from hwnas.spaces.blocks import folded_convolution

Number = float | Tensor
"""A mixing weight: a number, or a tensor () on the device that computes; operations of 0.0 are not run."""

Body = Callable[[Tensor], Tensor]
"""From the stem's output to logits."""

Region = tuple[slice, ...]
"""Part of a tensor."""


class Supernet(nn.Module):
    """The weights of all architectures of a space, and how one of them, or a mixture, is run with them.

    Parameters are named by their place and operation, so that a supernet with fewer operations finds its own.

    Attributes:
        slices: Whether networks run with regions of parameters.
        plainly: Whether everything runs the plain way, where there are several.
    """

    slices: ClassVar[bool] = False
    plainly: bool = False

    def kernels(self) -> dict[int, list[nn.Parameter]]:
        """Kernels of each operation that has some, on all edges of all cells; empty if the space has no say.

        For spaces whose edges choose among the same operations, independently of each other.
        """
        return {}

    def used(self) -> dict[nn.Parameter, Region]:
        """Regions of parameters that ran in training since the last call; the others ran whole, or not."""
        return {}

    @abstractmethod
    def forward(self, x_BCHW: Tensor, weights: FloatArray, numbers: Tensor | None = None) -> Tensor:
        """Logits (B, classes) in training mode; updates running statistics.

        Args:
            x_BCHW: Images.
            weights: Mixing weights (edges, ops); operations of weight 0 are not run.
            numbers: The same weights on the images' device, which are used in place of those, so that nothing
                has to be copied there, and a recorded step can be replayed with others.

        Raises:
            ValueError: Weights of another shape, or of operations that are not allowed.
        """

    @abstractmethod
    def compiled(self, weights: FloatArray, *, batch_statistics: bool = False) -> Callable[[Tensor], Tensor]:
        """One architecture as a function from images to logits, for evaluation; buffers stay as they are.

        The function is valid until the weights of the supernet change.

        Args:
            weights: Mixing weights (edges, ops).
            batch_statistics: Whether every BatchNorm uses the batch's statistics instead of the running ones;
                those that track none always do.

        Raises:
            ValueError: Weights of another shape, or of operations that are not allowed.
        """


class CellSupernet(Supernet):
    """Stem, cells and classifier; a space's own supernet has the cells.

    Args:
        allowed: Which operations exist, (edges, ops).
        image_channels: Channels of the images.
        channels: Channels after the stem.
        track_running_stats: Whether BatchNorm in the cells keeps running statistics; without, it always uses
            the batch's.
    """

    chunk: ClassVar[int | None] = None
    """Images that a folded network takes at a time on a CPU, so that activations stay in its cache."""

    def __init__(
        self, allowed: NDArray[np.bool_], image_channels: int, channels: int, *, track_running_stats: bool
    ) -> None:
        super().__init__()
        self.allowed, self.tracks = allowed, track_running_stats
        self.stem = nn.Sequential(
            nn.Conv2d(image_channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        )

    def plain(self, x_BCHW: Tensor, weights: FloatArray) -> Tensor:
        """Logits (B, classes), operation by operation, in either mode; what the other two are compared with.

        Args:
            x_BCHW: Images.
            weights: Mixing weights (edges, ops).

        Raises:
            ValueError: Weights of another shape, or of operations that are not allowed.
        """
        return self._plain(self.stem(x_BCHW), self._effective(weights))

    def forward(self, x_BCHW: Tensor, weights: FloatArray, numbers: Tensor | None = None) -> Tensor:
        """As `Supernet.forward`, stacked."""
        assert self.training, "`compiled` is for evaluation"
        if self.plainly:
            return self.plain(x_BCHW, weights)
        return self._trained(x_BCHW, self._effective(weights), numbers)

    @torch.no_grad()
    def compiled(self, weights: FloatArray, *, batch_statistics: bool = False) -> Callable[[Tensor], Tensor]:
        """As `Supernet.compiled`, folded where that is possible."""
        if self.plainly:
            return self._compiled_plainly(weights, batch_statistics)
        weights = self._effective(weights)
        stem = folded_convolution(self.stem[0], self.stem[1], batch_statistics)
        folds = self.tracks and not batch_statistics
        body = self._folded(weights) if folds else self._batchwise(weights, batch_statistics)

        @torch.no_grad()
        def logits(x_BCHW: Tensor) -> Tensor:
            if folds and self.chunk is not None and len(x_BCHW) > self.chunk and x_BCHW.device.type == "cpu":
                return torch.cat([logits(chunk) for chunk in x_BCHW.split(self.chunk)])
            return body(stem(x_BCHW.contiguous(memory_format=torch.channels_last)))

        return logits

    def _compiled_plainly(self, weights: FloatArray, batch_statistics: bool) -> Callable[[Tensor], Tensor]:
        """As `compiled`, the plain way; of the batch's statistics only a copy of the buffers takes note."""

        @torch.no_grad()
        def logits(x_BCHW: Tensor) -> Tensor:
            before = self.training
            buffers = {name: buffer.clone() for name, buffer in self.named_buffers()}
            try:
                self.train(batch_statistics)
                return (
                    functional_call(self, buffers, (x_BCHW, weights))
                    if batch_statistics
                    else self.plain(x_BCHW, weights)
                )
            finally:
                self.train(before)

        return logits

    def _effective(self, weights: FloatArray) -> FloatArray:
        """The weights that count."""
        if weights.shape != self.allowed.shape or (weights[~self.allowed] != 0).any():
            raise ValueError(
                f"mixing weights must have shape {self.allowed.shape}, 0 where an operation is not allowed"
            )
        return weights

    @abstractmethod
    def _plain(self, x_BCHW: Tensor, weights: FloatArray) -> Tensor:
        """Logits from the stem's output, operation by operation."""

    @abstractmethod
    def _trained(self, x_BCHW: Tensor, weights: FloatArray, numbers: Tensor | None) -> Tensor:
        """Logits from images, stacked, in training mode."""

    @abstractmethod
    def _batchwise(self, weights: FloatArray, batch_statistics: bool) -> Body:
        """Stacked cells with the batch's statistics; those outside of cells as said."""

    @abstractmethod
    def _folded(self, weights: FloatArray) -> Body:
        """Folded cells, under running statistics."""


def leaving(edges: Sequence[tuple[int, int]], source: int) -> list[int]:
    """The edges that leave a node.

    Args:
        edges: (source, target) of each.
        source: The node.
    """
    return [edge for edge, (start, _) in enumerate(edges) if start == source]


def mixing(weights: FloatArray, numbers: Tensor | None, edges: Sequence[int], op: int) -> list[Number]:
    """Mixing weights of an operation on some edges, from `numbers` where there are some.

    Args:
        weights: Shape (edges, ops).
        numbers: The same, on the device; None: `weights` are used.
        edges: Which edges.
        op: The operation.
    """
    floats = weights[list(edges), op].tolist()
    if numbers is None:
        return floats
    return [numbers[edge, op] if runs(weight) else 0.0 for edge, weight in zip(edges, floats, strict=True)]


def runs(weight: Number) -> bool:
    """Whether an operation of this weight is run; no tensor is read."""
    return isinstance(weight, Tensor) or weight != 0


def is_one(weight: Number) -> bool:
    """Whether a weight changes nothing; no tensor is read."""
    return not isinstance(weight, Tensor) and weight == 1


def add_weighted(total: Tensor, term: Tensor, weight: Number) -> Tensor:
    """Add a term times its weight, in place; returns the total."""
    return total.addcmul_(term, weight) if isinstance(weight, Tensor) else total.add_(term, alpha=weight)


def vector(weights: Sequence[Number], like: Tensor) -> Tensor:
    """Weights as a tensor (n,) of the type and on the device of another one."""
    if all(map(is_one, weights)):
        return like.new_ones(len(weights))
    if any(isinstance(weight, Tensor) for weight in weights):
        tensors = [w if isinstance(w, Tensor) else like.new_full((), w) for w in weights]
        return torch.stack([tensor.to(like.dtype) for tensor in tensors])
    return torch.tensor(weights, dtype=like.dtype).to(like.device, non_blocking=True)
