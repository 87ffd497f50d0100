"""Most numbers that a DARTS network holds at once, in closed form: cell by cell."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.core import FloatArray, Genotype
from hwnas.spaces.darts.encoding import (
    AVG_POOL,
    CELL_EDGES,
    CONVOLUTIONS,
    EDGES,
    MAX_POOL,
    NONE,
    NUM_NODES,
    SEP_3X3,
    SEP_5X5,
    SKIP,
    DartsEncoding,
)
from hwnas.spaces.schedules import NOTHING, Schedules, Tensors

Shape = tuple[int, int, int]
"""(channels, height, width)."""


@dataclass(frozen=True)
class _Place:
    """Where a cell stands.

    Attributes:
        before: Output of the cell before the last.
        last: Output of the last cell.
        same: Whether both are one tensor, the stem's output.
        channels: Channels per node.
        reduction: Whether the cell halves the resolution.
        final: Whether it is the last one.
    """

    before: Shape
    last: Shape
    same: bool
    channels: int
    reduction: bool
    final: bool


def most_alive(space: DartsEncoding, genotypes: Sequence[Genotype]) -> FloatArray:
    """Most numbers alive at once per genotype, shape (n,), by the schedule of `hwnas.devices.memory`."""
    G = np.asarray(genotypes, dtype=np.intp).reshape(-1, len(EDGES))
    image, C = space.image_shape, space.channels
    imagenet = space.stem == "imagenet"
    stem = [image]
    for channels in (C // 2, C, C) if imagenet else (3 * C,):
        stem.append(_halved(stem[-1], channels) if imagenet else (channels, *image[1:]))
    before, last = stem[-2] if imagenet else stem[-1], stem[-1]
    most = np.full(len(G), float(max(math.prod(a) + math.prod(b) for a, b in zip(stem, stem[1:]))))  # noqa: RUF007, B905
    places: dict[_Place, None] = {}
    for index in range(space.num_cells):
        reduction = index in space.reductions()
        C *= 2 if reduction else 1
        final = index == space.num_cells - 1
        places[_Place(before, last, index == 0 and not imagenet, C, reduction, final)] = None
        before, last = last, _halved(last, 4 * C) if reduction else (4 * C, *last[1:])
    for place in places:
        edges = slice(len(CELL_EDGES), None) if place.reduction else slice(len(CELL_EDGES))
        most = np.maximum(most, _alive_in_cell(G[:, edges], place))
    return np.maximum(most, max(math.prod(last) + last[0], last[0] + space.num_classes))


def _halved(shape: Shape, channels: int) -> Shape:
    return channels, -(-shape[1] // 2), -(-shape[2] // 2)


def _alive_in_cell(ops: NDArray[np.intp], place: _Place) -> FloatArray:
    """Most numbers alive at once in a cell, and of the last cell's output, shape (n,).

    The output of a cell is only read by ReLUs, which are one and in place: its inputs are positive already.

    Args:
        ops: Operation per edge of this kind of cell, shape (n, 14).
        place: Where it stands.
    """
    cell = Schedules(len(ops))
    shape = (place.channels, *place.last[1:])
    halved = _halved(shape, place.channels)
    size, node = math.prod(shape), math.prod(halved if place.reduction else shape)

    def factorized(x: Tensors, of: Shape, where: NDArray[np.bool_] | bool = True) -> Tensors:
        """Two convolutions of stride 2 side by side, after their ReLU."""
        channels, height, width = of
        if height % 2 or width % 2:
            height, width = height + height % 2, width + width % 2
            x = cell.once("pad", [x], channels * height * width, where)
        out = math.prod(_halved(of, place.channels))
        first = out // place.channels * (place.channels // 2)
        halves: list[Tensors] = []
        for numbers in (first, out - first):
            if halves:  # the second one reads the pixels but the first row and column
                height, width = height - 1, width - 1
                x = cell.part("rows but the first", x, channels * height * (width + 1), where)
                x = cell.part("columns but the first", x, channels * height * width, where)
            read = x
            if channels < 8:  # as `StridedPointwise` does
                read = cell.part("odd rows", x, channels * -(-height // 2) * width, where)
                read = cell.part("odd columns", read, channels * -(-height // 2) * -(-width // 2), where)
            halves.append(cell.run([read], numbers, where))
        return cell.run(halves, out, where)

    before = cell.given(math.prod(place.before))
    last = before if place.same else cell.given(math.prod(place.last))
    if place.before[1:] != place.last[1:]:
        states = [factorized(before, place.before)]
    else:
        states = [cell.run([before], size)]
    states.append(cell.run([last], size))
    sums: list[Tensors] = [np.full(len(ops), NOTHING) for _ in range(NUM_NODES)]
    for (source, target), op in zip(CELL_EDGES, ops.T, strict=True):
        if len(states) < target:
            states.append(sums[target - 3])
        x, strided = states[source], place.reduction and source < 2
        convolution = np.isin(op, list(CONVOLUTIONS))
        twice, halves = np.isin(op, (SEP_3X3, SEP_5X5)), (op == SKIP) & strided
        relu = convolution | halves
        positive = cell.once("relu", [x], size if source < 2 else node, relu, in_place=True)
        deep = cell.run([positive], node, convolution)
        once = cell.run([deep], node, convolution)
        deep = cell.run([once], node, twice)
        output = np.where(twice, cell.run([deep], node, twice), once)
        for name, pool in (("max", MAX_POOL), ("avg", AVG_POOL)):
            output = np.where(op == pool, cell.once(name, [x], node, op == pool), output)
        if strided:
            output = np.where(halves, factorized(positive, shape, halves), output)
        else:
            output = np.where(op == SKIP, x, output)
        total = sums[target - 2]
        first = (op != NONE) & (total == NOTHING)
        added = cell.once("add", [total, output], node, (op != NONE) & ~first)
        sums[target - 2] = np.where(first, output, np.where(op == NONE, total, added))
    together = cell.run(sums, NUM_NODES * node)
    return cell.most_alive(kept=[together] if place.final else [together, last])
