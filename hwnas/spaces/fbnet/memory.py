"""Most numbers that an FBNet network holds at once, in closed form: the largest of its layers' figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from hwnas.core import FloatArray, Genotype, Largest
from hwnas.spaces.fbnet.encoding import BLOCKS, OPS, SKIP, FBNetEncoding


def most_alive(space: FBNetEncoding, genotypes: Sequence[Genotype]) -> FloatArray:
    """Most numbers alive at once per genotype, shape (n,), by the schedule of `hwnas.devices.memory`."""
    return alive_in_layers(space)(genotypes)


def alive_in_layers(space: FBNetEncoding) -> Largest:
    """Most numbers alive at once in stem and head, and per layer and operation.

    A layer's input stays alive until it is added to the output, or else until the first convolution has read
    it.
    """
    in_channels, height, width = space.image_shape
    first, last = space.layers[0], space.layers[-1].output
    stem = in_channels * height * width + first.in_channels * first.height * first.width
    pixels = last[1] * last[2]
    head = math.prod(last) + space.head * pixels, space.head * pixels + space.head
    alive = np.zeros((len(space.layers), len(OPS)))
    for index, layer in enumerate(space.layers):
        x, out = layer.in_channels * layer.height * layer.width, math.prod(layer.output)
        kept = x if layer.identity else 0
        for op, (_, expansion, groups) in enumerate(BLOCKS):
            inner, deep = expansion * x, expansion * layer.in_channels * out // layer.out_channels
            steps = [x + inner, kept + inner + deep, kept + deep + out]
            steps += [kept + 2 * inner] if groups > 1 else []  # the channels shuffled
            steps += [kept + 2 * out] if layer.identity else []  # the sum
            alive[index, op] = max(steps)
        chain = [x, out]
        if layer.stride > 1 and layer.in_channels < 8:  # rows, then pixels are copied first
            rows = layer.in_channels * layer.output[1]
            copies = (rows * layer.width, rows * layer.output[2])
            chain = [x, *(size for size, before in zip(copies, (x, *copies)) if size < before), out]  # noqa: B905
        alive[index, SKIP] = x if layer.identity else max(a + b for a, b in itertools.pairwise(chain))
    return Largest(float(max(stem, *head, space.head + space.num_classes)), alive)
