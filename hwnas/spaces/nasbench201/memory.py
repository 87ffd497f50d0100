"""Most numbers that a NAS-Bench-201 network holds at once, in closed form.

All tensors of a cell have the size of its input. So every cell of a network needs the same number of them,
whatever its width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hwnas.core import FloatArray, Genotype
from hwnas.spaces.nasbench201.encoding import (
    AVG_POOL,
    CONV_1X1,
    CONV_3X3,
    EDGES,
    NONE,
    NasBench201Encoding,
)
from hwnas.spaces.schedules import CONSTANT, NOTHING, Schedules


def most_alive(space: NasBench201Encoding, genotypes: Sequence[Genotype]) -> FloatArray:
    """Most numbers alive at once per genotype, shape (n,), by the schedule of `hwnas.devices.memory`.

    A network without a path from input to output is a constant: it holds the image.
    """
    in_channels, height, width = space.image_shape
    c, pixels = space.channels, height * width
    cell = alive_in_cell(genotypes)
    sizes, rest = [c * pixels], [(in_channels + c) * pixels]
    for _ in range(2):
        before, (height, width) = sizes[-1], (-(-height // 2), -(-width // 2))
        pooled, after = c * height * width, 2 * c * height * width
        # The pool's convolution beside the input; the first 3x3 convolution; the second.
        rest += [before + pooled + after, before + 2 * after, 3 * after]
        sizes.append(after)
        c *= 2
    rest += [sizes[-1] + c, c + space.num_classes]
    most = np.maximum(cell * max(sizes), max(rest))
    return np.where(space.is_connected(genotypes), most, float(in_channels * pixels))


def alive_in_cell(genotypes: Sequence[Genotype] | NDArray[np.intp]) -> FloatArray:
    """Most tensors alive at once in a cell, each of the size of its input, shape (n,); at least 1.

    Edges run in the order of the genotype. What does not reach the output does not run, and what comes from a
    node that nothing reaches is a constant.
    """
    G = np.asarray(genotypes, dtype=np.intp).reshape(-1, len(EDGES))
    used = np.zeros((len(G), 4), dtype=bool)
    used[:, 3] = True
    for edge, (source, target) in sorted(enumerate(EDGES), key=lambda item: -item[1][0]):
        used[:, source] |= used[:, target] & (G[:, edge] != NONE)
    cell = Schedules(len(G))
    nodes = [cell.given(1), *(np.full(len(G), NOTHING) for _ in range(3))]
    for edge, (source, target) in enumerate(EDGES):
        op, x, total = G[:, edge], nodes[source], nodes[target]
        there = (op != NONE) & used[:, target]
        convolution = there & (x >= 0) & np.isin(op, (CONV_1X1, CONV_3X3))
        pool = there & (x >= 0) & (op == AVG_POOL)
        positive = cell.once("relu", [x], 1, convolution, in_place=True)
        output = np.where(there, np.maximum(x, CONSTANT), NOTHING)
        output = np.where(convolution, cell.run([positive], 1, convolution), output)
        output = np.where(pool, cell.once("pool", [x], 1, pool), output)
        first = there & (total == NOTHING)
        more = there & ~first
        constant = more & (total < 0) & (output < 0)
        added = cell.once("add", [total, output], 1, more & ~constant)
        nodes[target] = np.where(first, output, np.where(more & ~constant, added, total))
    return cell.most_alive(kept=[nodes[3]])
