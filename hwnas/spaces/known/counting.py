"""Costs of all networks of `search_space=mobile` and `resnet` in closed form, for whole populations at once.

They equal what torch counts (`tests/spaces/test_known_spaces.py`), and take microseconds where building a
network takes a tenth of a second.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from hwnas.core import FloatArray
from hwnas.spaces.known.mobile import ACTIVATIONS, STAGES, STEM
from hwnas.spaces.known.resnet import STEMS

Whole = NDArray[np.int64] | int
"""A whole number per network, shape (n,), or the same one for all."""

Where = NDArray[np.bool_]
"""Whether a network has a layer, shape (n,)."""

Labels = Mapping[str, NDArray[np.str_]]
"""Options of n networks by name of the choice, each (n,)."""


class Chain:
    """n networks that grow layer by layer: the shape of their features, and figures of their layers.

    Args:
        labels: Options of the networks; those of "resolution" say to which side images are resized.
        image_shape: (channels, height, width) of the images.

    Attributes:
        everywhere: All networks, shape (n,).
        channels: Of the features, shape (n,).
        height: Of the features, shape (n,).
        width: Of the features, shape (n,).
        figures: Sums over layers by name, each (n,), the same as `module.tracing` counts: "flops", "params",
            and of each kind of layer "<kind> layers", "<kind> flops" and "<kind> elements".
        kept: Numbers that are alive besides the features, (n,): a block's input, until it is added.
        most_alive: Most numbers alive at once so far, (n,), by the schedule of `hwnas.devices.memory`.
    """

    def __init__(self, labels: Labels, image_shape: tuple[int, int, int]) -> None:
        resolution = whole(labels["resolution"])
        self.everywhere = np.ones(len(resolution), dtype=bool)
        self.figures: dict[str, FloatArray] = {}
        self.channels = np.full(len(resolution), image_shape[0])
        self.height, self.width = np.full(len(resolution), 1), np.full(len(resolution), 1)
        self.kept = np.zeros(len(resolution), dtype=np.int64)
        self.most_alive = np.full(len(resolution), math.prod(image_shape))
        side = min(image_shape[1:])
        block = side // resolution
        before = self.most_alive
        height, width = whole(image_shape[1] // block), whole(image_shape[2] // block)
        self._become(self.channels, height, width, self.everywhere)
        self.function(block > 1)
        self._alive(before, block > 1)
        before = self.elements
        rest = resolution * block / side
        self._become(self.channels, whole(self.height * rest), whole(self.width * rest), self.everywhere)
        self.function(rest < 1)
        self._alive(before, rest < 1)

    @property
    def elements(self) -> NDArray[np.int64]:
        """Elements of the features of one image, shape (n,)."""
        return self.channels * self.height * self.width

    def add(self, figure: str, amount: Whole, where: Where) -> None:
        """Add to a figure of the networks that have a layer."""
        self.figures.setdefault(figure, np.zeros(len(self.everywhere)))
        self.figures[figure] += np.where(where, amount, 0)

    def layer(self, kind: str, elements: Whole, where: Where) -> None:
        """A layer with so many elements of input and output, and no multiply-adds."""
        self.add(f"{kind} layers", 1, where)
        self.add(f"{kind} elements", elements, where)

    def function(self, where: Where) -> None:
        """A function that returns features of this shape."""
        self.layer("functions", self.elements, where)

    def addition(self, where: Where) -> None:
        """The sum with the tensor that was kept, which is not needed any more."""
        self.function(where)
        self._alive(self.elements, where)
        self.kept = np.where(where, 0, self.kept)

    def pointwise(self, kinds: str | NDArray[np.str_], where: Where) -> None:
        """A layer that changes each element for itself, e.g. an activation; its kind may be a choice."""
        for kind in np.unique(kinds).tolist():
            self.layer(kind, 2 * self.elements, where & (kinds == kind))

    def convolution(
        self,
        outputs: Whole,
        kernel: Whole = 1,
        stride: Whole = 1,
        *,
        where: Where,
        depthwise: bool = False,
        norm: bool = True,
    ) -> None:
        """A convolution padded by half its kernel, with BatchNorm or else a bias."""
        before, inputs = self.elements, self.channels
        rows, columns = whole((self.height - 1) // stride) + 1, whole((self.width - 1) // stride) + 1
        self._become(outputs, rows, columns, where)
        self._alive(before, where)
        pixels = self.height * self.width
        for size in np.unique(kernel).tolist():
            kind = f"{'depthwise' if depthwise else 'conv'}{size}x{size}"
            weights = size * size * outputs * (1 if depthwise else inputs)
            self._weighted(kind, weights, pixels, before + self.elements, where & (kernel == size))
        self.add("params", 2 * outputs if norm else outputs, where)
        if norm:
            self.pointwise("BatchNorm2d", where)

    def attention(self, squeezed: Whole, where: Where) -> None:
        """Squeeze and excitation through so many channels; keeps the features' shape."""
        self.layer("AdaptiveAvgPool2d", self.elements + self.channels, where)
        pooled = copy.copy(self)
        pooled._become(self.channels, 1, 1, self.everywhere)
        pooled.convolution(squeezed, where=where, norm=False)
        pooled.pointwise("ReLU", where)
        pooled.convolution(self.channels, where=where, norm=False)
        pooled.pointwise("Hardsigmoid", where)
        self.function(where)
        self._alive(self.elements + self.channels, where)  # the product

    def max_pool(self, where: Where) -> None:
        """A max-pool of 3x3 with a stride of 2."""
        before = self.elements
        self._become(self.channels, (self.height - 1) // 2 + 1, (self.width - 1) // 2 + 1, where)
        self.layer("MaxPool2d", before + self.elements, where)
        self._alive(before, where)

    def classify(self, num_classes: int) -> None:
        """The mean over all pixels, and a linear layer with a bias."""
        before = self.elements
        self._become(self.channels, 1, 1, self.everywhere)
        self.function(self.everywhere)
        self._alive(before, self.everywhere)
        self.most_alive = np.maximum(self.most_alive, self.channels + num_classes)
        weights, elements = self.channels * num_classes, self.channels + num_classes
        self._weighted("Linear", weights, 1, elements, self.everywhere)
        self.add("flops", num_classes, self.everywhere)
        self.add("params", num_classes, self.everywhere)

    def _alive(self, others: Whole, where: Where) -> None:
        """Note the features beside others and what is kept."""
        now = np.where(where, self.elements + others + self.kept, 0)
        self.most_alive = np.maximum(self.most_alive, now)

    def _become(self, channels: Whole, height: Whole, width: Whole, where: Where) -> None:
        self.channels = np.where(where, channels, self.channels)
        self.height, self.width = np.where(where, height, self.height), np.where(where, width, self.width)

    def _weighted(self, kind: str, weights: Whole, pixels: Whole, elements: Whole, where: Where) -> None:
        """A layer with weights that are used at each pixel of its output."""
        self.layer(kind, elements, where)
        self.add(f"{kind} flops", weights * pixels, where)
        self.add("flops", weights * pixels, where)
        self.add("params", weights, where)


def whole(values: NDArray[np.generic]) -> NDArray[np.int64]:
    """Labels as numbers, or numbers rounded down."""
    return values.astype(np.int64)


def scaled(channels: Whole, multiplier: FloatArray | float) -> NDArray[np.int64]:
    """As `mobile.scaled`, of arrays."""
    exact = np.asarray(channels * multiplier)
    nearest = np.maximum(8, whole(exact + 4) // 8 * 8)
    return np.where(nearest < 0.9 * exact, nearest + 8, nearest)


def mobile(labels: Labels, image_shape: tuple[int, int, int], num_classes: int) -> Chain:
    """Networks of `mobile.MobileNet`.

    Args:
        labels: Options of the networks.
        image_shape: (channels, height, width) of the images.
        num_classes: Number of classes.
    """
    chain = Chain(labels, image_shape)
    multiplier = labels["width"].astype(float)
    kinds = np.array([ACTIVATIONS[label].__name__ for label in labels["activation"].tolist()], dtype=str)
    stride = whole(labels["stem.stride"])
    chain.convolution(scaled(STEM, multiplier), np.where(stride < 3, 3, 7), stride, where=chain.everywhere)
    chain.pointwise(kinds, chain.everywhere)
    for number, fixed in enumerate(STAGES, start=1):
        stage = {
            name.partition(".")[2]: values
            for name, values in labels.items()
            if name.startswith(f"s{number}.")
        }
        outputs, expansion = scaled(whole(stage["width"]), multiplier), whole(stage["expand"])
        kernel, depth = whole(stage["kernel"]), whole(stage["depth"])
        for index in range(int(depth.max(initial=0))):
            here, inputs = depth > index, chain.channels
            first = whole(stage["stride"]) if "stride" in stage else fixed.stride
            stride = np.full(len(here), 1 if index else first)
            hidden = inputs * expansion
            residual, x = here & (stride == 1) & (inputs == outputs), chain.elements
            chain.convolution(hidden, where=here & (expansion > 1))
            chain.kept = np.where(residual & (expansion > 1), x, 0)
            chain.pointwise(kinds, here & (expansion > 1))
            chain.convolution(hidden, kernel, stride, where=here, depthwise=True)
            chain.kept = np.where(residual, x, 0)
            chain.pointwise(kinds, here)
            chain.attention(scaled(hidden, 0.25), here & (stage["se"] == "yes"))
            chain.convolution(outputs, where=here)
            chain.addition(residual)
    chain.convolution(whole(labels["head"]), where=chain.everywhere)
    chain.pointwise(kinds, chain.everywhere)
    chain.layer("Dropout", 2 * chain.channels, chain.everywhere)
    chain.classify(num_classes)
    return chain


def resnet(labels: Labels, image_shape: tuple[int, int, int], num_classes: int) -> Chain:
    """Networks of `resnet.ResNet`; arguments as of `mobile`."""
    chain = Chain(labels, image_shape)
    base, deep = whole(labels["width"]), labels["block"] == "bottleneck"
    kernel, stride, pool = np.array([STEMS[label] for label in labels["stem"].tolist()]).reshape(-1, 3).T
    chain.convolution(base, kernel, stride, where=chain.everywhere)
    chain.pointwise("ReLU", chain.everywhere)
    chain.max_pool(pool == 1)
    for number in range(1, 5):
        depth = whole(labels[f"s{number}.depth"])
        planes = base if number == 1 else base * whole(labels[f"s{number}.width"])
        outputs = np.where(deep, 4 * planes, planes)
        for index in range(int(depth.max(initial=0))):
            here, step = depth > index, 1 if index or number == 1 else 2
            shortcut, x = copy.copy(chain), chain.elements
            beside = here & ((chain.channels != outputs) | (step > 1))
            chain.convolution(planes, where=here & deep)
            chain.kept = np.where(here & deep, x, 0)
            chain.pointwise("ReLU", here & deep)
            chain.convolution(planes, 3, step, where=here)
            chain.kept = np.where(here, x, 0)
            chain.pointwise("ReLU", here)
            chain.convolution(planes, 3, where=here & ~deep)
            chain.convolution(outputs, where=here & deep)
            shortcut.kept, shortcut.most_alive = np.where(here, chain.elements, 0), chain.most_alive
            shortcut.convolution(outputs, 1, step, where=beside)
            chain.most_alive = shortcut.most_alive
            chain.kept = np.where(here, chain.elements, 0)  # the shortcut, or the input of the same shape
            chain.addition(here)
            chain.pointwise("ReLU", here)
    chain.classify(num_classes)
    return chain
