"""The DARTS space: a normal and a reduction cell of four nodes, two inputs per node, seven operations.

The encoding and the closed forms of cost; no torch.
Source: Liu et al., DARTS, ICLR 2019; operations and edges in the order of EvNAS, arXiv 2012.12540 (code).
"""

from __future__ import annotations

import ast
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal, Self

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from hwnas.core import Count, FloatArray, Genotype, SearchSpace, checked, checked_choices

OPS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
NONE, MAX_POOL, AVG_POOL, SKIP, SEP_3X3, SEP_5X5, DIL_3X3, DIL_5X5 = range(8)

NUM_NODES = 4
"""Nodes of a cell, besides its two inputs; a cell's output is their concatenation."""

CELL_EDGES = tuple((source, node + 2) for node in range(NUM_NODES) for source in range(node + 2))
"""(source, target) of a cell's 14 edges; 0 and 1 are the outputs of the cells before, 2..5 the nodes."""

EDGES = tuple((cell, *edge) for cell in ("normal", "reduce") for edge in CELL_EDGES)
"""(cell, source, target) of every edge, in genotype order."""

NODES = tuple(
    tuple(edge for edge, (kind, _, target) in enumerate(EDGES) if kind == cell and target == node + 2)
    for cell in ("normal", "reduce")
    for node in range(NUM_NODES)
)
"""Edges that enter each of the eight nodes: four of the normal cell, four of the reduction cell."""

LARGE_IMAGE = 128
"""Images of at least so many pixels per side get the ImageNet stem with `stem="auto"`."""

CONVOLUTIONS = {SEP_3X3: (3, 2), SEP_5X5: (5, 2), DIL_3X3: (3, 1), DIL_5X5: (5, 1)}
"""Kernel and repetitions of the convolutions; those without a repetition are dilated by 2."""


def _cells(normal: str, reduce: str) -> str:
    """A genotype's text from short ones, e.g. "sep3-0 sep3-1 ..."."""
    short = ("none", "max", "avg", "skip", "sep3", "sep5", "dil3", "dil5")
    names = dict(zip(short, OPS, strict=True))
    lists = [
        [(names[op], int(source)) for op, source in (pair.split("-") for pair in cell.split())]
        for cell in (normal, reduce)
    ]
    return (
        f"Genotype(normal={lists[0]}, normal_concat=range(2, 6), "
        f"reduce={lists[1]}, reduce_concat=range(2, 6))"
    )


PRESETS = {
    "evnas_a": _cells(
        "sep3-0 sep3-1 sep5-2 sep3-1 skip-0 skip-2 dil5-3 sep3-1",
        "dil5-1 avg-0 sep3-0 avg-2 skip-1 skip-2 skip-1 sep5-0",
    ),
    "evnas_b": _cells(
        "sep5-0 sep3-1 sep5-2 max-0 sep3-0 sep3-1 skip-0 sep5-2",
        "skip-1 max-0 max-0 avg-1 skip-2 avg-3 sep5-2 sep5-0",
    ),
    "evnas_c": _cells(
        "skip-0 sep3-1 skip-2 sep5-1 max-1 sep3-0 sep3-0 sep5-3",
        "sep5-1 dil3-0 sep5-0 skip-1 max-0 max-1 max-0 max-2",
    ),
    "darts_v1": _cells(
        "sep3-1 sep3-0 skip-0 sep3-1 skip-0 sep3-1 sep3-0 skip-2",
        "max-0 max-1 skip-2 max-0 max-0 skip-2 skip-2 avg-0",
    ),
    "darts_v2": _cells(
        "sep3-0 sep3-1 sep3-0 sep3-1 sep3-1 skip-0 skip-0 dil3-2",
        "max-0 max-1 skip-2 max-1 max-0 skip-2 skip-2 max-1",
    ),
    "cmanas_c10a": _cells(
        "skip-0 sep3-1 sep5-0 dil3-1 max-1 sep5-2 sep3-3 sep3-2",
        "sep3-0 sep3-1 skip-0 sep3-2 sep3-3 dil5-2 dil3-0 max-1",
    ),
    "cmanas_c100a": _cells(
        "sep3-1 skip-0 skip-1 skip-2 sep5-1 sep3-0 sep3-3 dil5-0",
        "sep3-0 dil5-1 avg-0 dil3-2 sep5-0 dil5-2 max-2 sep5-1",
    ),
    "nevonas_c10a": _cells(
        "dil5-1 sep5-0 sep3-1 sep5-2 dil3-3 skip-0 dil3-3 max-0",
        "sep3-0 skip-1 sep3-0 sep3-2 dil5-3 skip-1 dil3-0 skip-3",
    ),
    "nevonas_c10b": _cells(
        "sep3-0 skip-1 dil5-0 dil5-2 sep3-1 max-2 skip-0 avg-2",
        "skip-0 dil3-1 sep3-2 max-1 sep3-2 avg-3 sep3-4 max-3",
    ),
    "nevonas_c10c": _cells(
        "sep3-0 skip-1 sep3-2 avg-1 dil3-0 sep5-1 avg-3 dil3-4",
        "sep5-0 sep5-1 dil3-0 sep3-2 sep5-1 dil3-2 avg-0 dil5-2",
    ),
    "nevonas_c100a": _cells(
        "skip-0 sep3-1 sep3-0 sep5-1 sep3-2 skip-1 sep5-3 sep3-2",
        "skip-0 sep5-1 sep5-0 skip-1 avg-0 skip-3 max-0 skip-1",
    ),
    "nevonas_c100b": _cells(
        "skip-0 dil3-1 max-2 avg-1 sep5-0 sep3-1 avg-3 dil3-4",
        "skip-0 sep5-1 sep3-0 dil3-2 max-0 sep3-1 dil3-2 sep5-4",
    ),
    "nevonas_c100c": _cells(
        "avg-0 sep5-1 sep3-0 max-1 max-0 skip-2 skip-0 sep5-2",
        "dil5-0 max-1 max-2 skip-1 avg-0 dil3-2 max-4 sep3-3",
    ),
    "pevonas_c10a": _cells(
        "skip-0 sep3-1 dil3-0 avg-2 dil5-3 sep5-1 sep5-2 sep3-3",
        "sep3-1 dil5-0 dil5-2 sep5-0 dil3-2 dil5-0 sep3-4 avg-0",
    ),
    "pevonas_c10b": _cells(
        "sep5-0 sep3-1 skip-0 avg-1 max-3 sep5-1 sep3-0 sep3-4",
        "dil3-1 avg-0 skip-2 sep3-1 avg-3 dil3-0 dil5-4 sep5-0",
    ),
    "pevonas_c10c": _cells(
        "max-1 dil5-0 sep3-2 sep3-0 avg-2 skip-0 sep5-1 max-0",
        "skip-0 sep5-1 dil3-2 dil5-1 sep5-3 max-1 avg-0 sep5-2",
    ),
    "pevonas_c100a": _cells(
        "sep5-1 max-0 sep5-1 sep3-0 avg-3 max-2 avg-1 dil3-3",
        "sep3-0 max-1 avg-0 dil3-1 avg-0 dil3-2 sep5-0 dil5-4",
    ),
    "pevonas_c100b": _cells(
        "max-1 avg-0 dil5-1 dil5-0 dil3-3 skip-0 sep3-4 sep5-0",
        "sep5-1 sep5-0 sep5-2 max-0 avg-3 dil5-0 max-3 sep5-0",
    ),
    "pevonas_c100c": _cells(
        "avg-1 dil3-0 sep3-2 max-0 sep3-1 max-0 sep5-0 sep3-3",
        "dil3-1 dil3-0 avg-1 avg-2 sep5-3 sep5-2 dil3-1 skip-3",
    ),
}
"""Published cells by name.

Of EvNAS, and of DARTS' first and second order: as in EvNAS' genotypes.py. Of CMANAS, NEvoNAS and pEvoNAS,
found on CIFAR-10 (c10) and CIFAR-100 (c100): from the pictures in their repositories, which draw no others
of CMANAS.
"""


class DartsEncoding(SearchSpace):
    """The DARTS cells in their final network, for any width, depth, image size and class count.

    A genotype has one entry per edge: the operation of an edge that is kept, 0 (`none`) on the others;
    exactly two edges per node are kept, so the order of a node's inputs cannot matter. Alphas have one row
    per edge, those of the normal cell first.

    A network is a stem, `num_cells` cells at C channels that double in the reduction cells at a third and
    two thirds of the depth, global average pooling and a linear classifier. Published: C=36 and 20 cells on
    CIFAR, C=48 and 14 cells on ImageNet.

    Args:
        channels: C, channels per node of the first cells.
        num_cells: Cells, at least 3.
        image_shape: (channels, height, width) of the images.
        num_classes: Number of classes.
        auxiliary: Whether networks have a second classifier at two thirds of the depth, for training only;
            never counted.
        stem: "cifar", one 3x3 convolution to 3C channels; "imagenet", three of stride 2 to C; "auto", by
            the size of the images.
        choices: Operation indices that an edge may use; None allows all. `none` is no choice of an edge that
            is kept, and edges that are not kept have it in any case.

    Attributes:
        drop_path: Whether networks have drop-path: they do.

    Raises:
        ValueError: A size that is too small, an unknown stem, or choices that are empty, name an unknown
            operation, or leave a node fewer than two inputs.
    """

    presets: Mapping[str, str] = PRESETS
    drop_path = True
    fewest_cells = 3

    @checked
    def __init__(
        self,
        channels: Annotated[int, Ge(2)] = 36,
        num_cells: Annotated[int, Ge(3)] = 20,
        *,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: Count = 10,
        auxiliary: bool = False,
        stem: Literal["auto", "cifar", "imagenet"] = "auto",
        choices: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.name = "darts"
        self.ops = OPS
        self.channels = channels
        self.num_cells = num_cells
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.auxiliary = auxiliary
        large = min(image_shape[1:]) >= LARGE_IMAGE
        self.stem = ("imagenet" if large else "cifar") if stem == "auto" else stem
        self.choices = checked_choices(choices, len(EDGES), len(OPS))
        self._nodes = [_options([self.choices[edge] for edge in edges]) for edges in NODES]
        for node, options in enumerate(self._nodes):
            if len(options) == 0:
                cell = "normal" if node < NUM_NODES else "reduction"
                raise ValueError(
                    f"choices leave node {node % NUM_NODES} of the {cell} cell fewer than two inputs with an "
                    "operation other than none"
                )

    def _like(self, **changes: object) -> Self:
        settings: dict[str, object] = {
            "channels": self.channels,
            "num_cells": self.num_cells,
            "image_shape": self.image_shape,
            "num_classes": self.num_classes,
            "auxiliary": self.auxiliary,
            "stem": self.stem,
            "choices": self.choices,
        }
        return type(self)(**{**settings, **changes})  # type: ignore[arg-type]

    @property
    def sizes(self) -> dict[str, int | str]:
        """Width, depth and stem of the networks."""
        return {"channels": self.channels, "num_cells": self.num_cells, "stem": self.stem}

    def resized(self, *, channels: int, num_cells: int) -> Self:
        """The same space with networks of another width and depth, without an auxiliary classifier.

        Raises:
            ValueError: A size that is too small.
        """
        return self._like(channels=channels, num_cells=num_cells, auxiliary=False)

    def restrict(self, keep: Sequence[Sequence[int]]) -> Self:
        """The sub-space with only the operations `keep[edge]` on each edge; `none` may be among them.

        An edge that keeps only `none` and one other has one operation left, as in pEvoNAS: `none` is never
        decoded.
        """
        return self._like(choices=keep)

    @property
    def size(self) -> int:
        """Number of architectures: two kept edges per node, an operation other than `none` on each."""
        return math.prod(len(options) for options in self._nodes)

    def sample(self, rng: np.random.Generator, num: int) -> list[Genotype]:
        """`num` architectures, uniform over all valid ones."""
        columns = [options[rng.integers(len(options), size=num)] for options in self._nodes]
        return [tuple(row) for row in np.concatenate(columns, axis=1).tolist()]

    def _every(self) -> list[Genotype]:
        nodes = [[tuple(option) for option in options.tolist()] for options in self._nodes]
        return [tuple(itertools.chain(*parts)) for parts in itertools.product(*nodes)]

    def decode(self, alphas: FloatArray) -> list[Genotype]:
        """The DARTS rule: per node the two edges with the largest softmax weight of an operation but `none`.

        The kept edges carry that operation; of equal edges or operations the first counts. Operations that
        are not allowed are never chosen and count in the softmax with an alpha of 0 (pEvoNAS, arXiv
        2203.01559, code).

        Args:
            alphas: Shape (n, edges, ops).

        Raises:
            ValueError: Another shape.
        """
        if alphas.ndim != 3 or alphas.shape[1:] != self.alpha_shape:
            raise ValueError(f"alphas must have shape (n, {self.alpha_shape}), not {alphas.shape}")
        padded = np.where(self.allowed, alphas, 0.0)
        weights = np.exp(padded - padded.max(axis=2, keepdims=True))
        weights /= weights.sum(axis=2, keepdims=True)
        candidates = self.allowed.copy()
        candidates[:, NONE] = False
        # By alpha, not by weight: weights that differ may round to the same number.
        ops = np.where(candidates, padded, -np.inf).argmax(axis=2)
        scores = np.take_along_axis(weights, ops[:, :, None], axis=2)[:, :, 0]
        scores = np.where(candidates.any(axis=1), scores, -1.0)
        G = np.zeros(ops.shape, dtype=np.intp)
        for edges in NODES:
            best = np.argsort(-scores[:, edges], axis=1, kind="stable")[:, :2] + edges[0]
            np.put_along_axis(G, best, np.take_along_axis(ops, best, axis=1), axis=1)
        return [tuple(row) for row in G.tolist()]

    def onehot(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Alphas that decode to the genotypes, shape (n, edges, ops): 1 at the kept operations, else 0.

        Rows of edges that are not kept are all 0. Source: EvNAS, arXiv 2012.12540 (code).
        """
        alphas = super().onehot(genotypes)
        alphas[:, :, NONE] = 0.0
        return alphas

    def distances(self, a: Sequence[Genotype], b: Sequence[Genotype]) -> FloatArray:
        """Jaccard distances between sets of (node, operation, input), shape (len(a), len(b)), in 0..1.

        With c common ones of 16, 1 - c / (32 - c). Source: NEvoNAS, arXiv 2204.00188 (code).
        """
        A, B = (np.asarray(genotypes).reshape(-1, len(EDGES)) for genotypes in (a, b))
        common = ((A[:, None, :] == B[None, :, :]) & (A[:, None, :] != NONE)).sum(axis=2)
        return 1.0 - common / (4 * len(NODES) - common)

    def check(self, genotype: Sequence[int]) -> Genotype:
        """The genotype as a tuple of ints.

        Raises:
            ValueError: Wrong length, an operation that is not allowed on its edge, or a node that has not
                exactly two inputs.
        """
        if len(genotype) != len(EDGES):
            raise ValueError(f"a {self.name} genotype has {len(EDGES)} entries, not {len(genotype)}")
        for edge, (op, ops) in enumerate(zip(genotype, self.choices, strict=True)):
            if op != NONE and op not in ops:
                raise ValueError(f"operation {op!r} on edge {edge} of {self.name} is not one of {ops}")
        for node, edges in enumerate(NODES):
            num = sum(genotype[edge] != NONE for edge in edges)
            if num != 2:
                cell = "normal" if node < NUM_NODES else "reduction"
                raise ValueError(
                    f"node {node % NUM_NODES} of the {cell} cell has {num} inputs in {tuple(genotype)}, not 2"
                )
        return tuple(int(op) for op in genotype)

    def mutate(self, genotype: Genotype, rng: np.random.Generator) -> Genotype:
        """The genotype with another operation on a kept edge or, with equal chance, another input of a node.

        A new input keeps the operation where its edge allows it, else any that it allows. All draws are
        uniform over what is possible; where only one kind of change is possible, that is made.

        Source: the two mutations of Real et al., AAAI 2019, for this encoding.
        """
        kept = [edge for edge, op in enumerate(genotype) if op != NONE]
        other_ops = {
            edge: [op for op in self.choices[edge] if op not in (NONE, genotype[edge])] for edge in kept
        }
        other_edges = {
            edge: [
                other
                for other in next(edges for edges in NODES if edge in edges)
                if genotype[other] == NONE and any(op != NONE for op in self.choices[other])
            ]
            for edge in kept
        }
        kinds = [kind for kind in (other_ops, other_edges) if any(kind.values())]
        if not kinds:
            return genotype
        kind = kinds[rng.integers(len(kinds))]
        edges = [edge for edge in kept if kind[edge]]
        edge = edges[rng.integers(len(edges))]
        change = kind[edge][rng.integers(len(kind[edge]))]
        child = list(genotype)
        if kind is other_ops:
            child[edge] = change
        else:
            ops = [op for op in self.choices[change] if op != NONE]
            child[change] = genotype[edge] if genotype[edge] in ops else ops[rng.integers(len(ops))]
            child[edge] = NONE
        return tuple(child)

    def neighbours(self, genotype: Genotype) -> list[Genotype]:
        """All genotypes with another operation on a kept edge, or another input of a node.

        A new input comes with every operation that its edge allows.
        """
        near: dict[Genotype, None] = {}
        for edges in NODES:
            for edge in edges:
                if genotype[edge] == NONE:
                    continue
                places = [edge, *(other for other in edges if genotype[other] == NONE)]
                for place in places:
                    for op in self.choices[place]:
                        if op != NONE:
                            child = list(genotype)
                            child[edge] = NONE
                            child[place] = op
                            near[tuple(child)] = None
        near.pop(genotype, None)
        return list(near)

    def to_str(self, genotype: Genotype) -> str:
        """DARTS' text, "Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), ...)".

        A node's inputs are in ascending order.
        """
        cells: dict[str, list[tuple[str, int]]] = {"normal": [], "reduce": []}
        for (cell, source, _), op in zip(EDGES, genotype, strict=True):
            if op != NONE:
                cells[cell].append((OPS[op], source))
        return (
            f"Genotype(normal={cells['normal']}, normal_concat=range(2, 6), "
            f"reduce={cells['reduce']}, reduce_concat=range(2, 6))"
        )

    def from_str(self, text: str) -> Genotype:
        """The genotype of DARTS' text, with a node's inputs in any order; it is parsed, never executed.

        Raises:
            ValueError: Malformed text, an unknown operation, or inputs that a node cannot have.
        """
        genotype = [NONE] * len(EDGES)
        index = {edge: number for number, edge in enumerate(EDGES)}
        for cell, pairs in _parse(text).items():
            for position, (op, source) in enumerate(pairs):
                node = position // 2
                if op not in OPS[1:]:
                    raise ValueError(
                        f"unknown operation {op!r} in the {cell} cell; known: {', '.join(OPS[1:])}"
                    )
                edge = index.get((cell, source, node + 2))
                if edge is None:
                    raise ValueError(
                        f"node {node} of the {cell} cell cannot have the input {source}, only 0..{node + 1}"
                    )
                if genotype[edge] != NONE:
                    raise ValueError(
                        f"node {node} of the {cell} cell has the input {source} twice; two are needed"
                    )
                genotype[edge] = OPS.index(op)
        return self.check(genotype)

    def reductions(self) -> tuple[int, int]:
        """Indices of the two reduction cells, at a third and two thirds of the depth."""
        return self.num_cells // 3, 2 * self.num_cells // 3

    def static_metrics(self, genotypes: Sequence[Genotype]) -> dict[str, FloatArray]:
        """`flops` (multiply-adds) and `params` of the final networks, shape (n,), in closed form.

        Convolutions and the classifier with its bias count, BatchNorm, pooling and the auxiliary classifier
        do not; BatchNorm's weights are parameters.
        """
        G = np.asarray(genotypes, dtype=np.intp).reshape(-1, len(EDGES))
        params, flops = self._costs()
        edges = np.arange(len(EDGES))
        return {
            "flops": flops[-1, 0] + flops[edges, G].sum(axis=1),
            "params": params[-1, 0] + params[edges, G].sum(axis=1),
        }

    def _costs(self) -> tuple[FloatArray, FloatArray]:
        """Parameters and multiply-adds per edge and operation, (edges + 1, ops); the last row is the rest."""
        params, flops = np.zeros((2, len(EDGES) + 1, len(OPS)))

        def rest(weights: int, norms: int, pixels: int) -> None:
            params[-1] += weights + 2 * norms
            flops[-1] += weights * pixels

        C = self.channels
        in_channels, height, width = self.image_shape
        if self.stem == "imagenet":
            for inputs, outputs in ((in_channels, C // 2), (C // 2, C), (C, C)):
                height, width = _half(height), _half(width)
                rest(9 * inputs * outputs, outputs, height * width)
            before, last = C, C
        else:
            rest(9 * in_channels * 3 * C, 3 * C, height * width)
            before, last = 3 * C, 3 * C
        c = C
        for index in range(self.num_cells):
            reduction = index in self.reductions()
            c *= 2 if reduction else 1
            for inputs in (before, last):
                rest(inputs * c, c, height * width)
            halves = _half(height) * _half(width)
            for edge, (source, _) in enumerate(CELL_EDGES):
                row = edge + (len(CELL_EDGES) if reduction else 0)
                strided = reduction and source < 2
                pixels = halves if reduction else height * width
                for op, (kernel, times) in CONVOLUTIONS.items():
                    weights = times * (kernel**2 * c + c * c)
                    params[row, op] += weights + 2 * times * c
                    flops[row, op] += weights * pixels
                if strided:
                    params[row, SKIP] += c * c + 2 * c
                    flops[row, SKIP] += c * c * pixels
            if reduction:
                height, width = _half(height), _half(width)
            before, last = last, 4 * c
        head = (last + 1) * self.num_classes
        return params + _last_row(head), flops + _last_row(head)


def _half(size: int) -> int:
    return -(-size // 2)


def _last_row(value: float) -> FloatArray:
    row = np.zeros((len(EDGES) + 1, 1))
    row[-1] = value
    return row


def _options(choices: Sequence[Sequence[int]]) -> NDArray[np.intp]:
    """Every way to fill one node, shape (options, edges of the node), in lexicographic order."""
    ops = [[op for op in allowed if op != NONE] for allowed in choices]
    rows = []
    for first, second in itertools.combinations(range(len(ops)), 2):
        for pair in itertools.product(ops[first], ops[second]):
            row = [NONE] * len(ops)
            row[first], row[second] = pair
            rows.append(row)
    return np.array(sorted(rows), dtype=np.intp).reshape(-1, len(ops))


def _parse(text: str) -> dict[str, list[tuple[str, int]]]:
    """(operation, input) pairs of both cells from a genotype's text."""
    example = "Genotype(normal=[('sep_conv_3x3', 0), ...], normal_concat=range(2, 6), reduce=[...], ...)"
    shown = text if len(text) <= 60 else text[:57] + "..."
    wrong = ValueError(f"{shown!r} is no architecture of the darts space; the form is {example}")
    if len(text) > 5000:
        raise wrong
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise wrong from None
    if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
        raise wrong
    values: dict[str, object] = {}
    for keyword in call.keywords:
        if keyword.arg not in ("normal", "normal_concat", "reduce", "reduce_concat"):
            raise ValueError(f"{keyword.arg!r} is no part of a genotype; the form is {example}")
        node: ast.expr = keyword.value
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "range":
            node = ast.List(elts=node.args, ctx=ast.Load())
        try:
            values[keyword.arg] = ast.literal_eval(node)
        except (ValueError, TypeError, RecursionError, MemoryError):
            raise wrong from None
    cells = {}
    for cell in ("normal", "reduce"):
        concat = values.get(f"{cell}_concat", [2, 6])
        if not isinstance(concat, list | tuple) or list(concat) not in ([2, 6], [2, 3, 4, 5]):
            raise ValueError(f"{cell}_concat must be range(2, 6), all four nodes, not {concat}")
        pairs = values.get(cell)
        if not isinstance(pairs, list | tuple) or not all(
            isinstance(pair, list | tuple)
            and len(pair) == 2
            and isinstance(pair[0], str)
            and type(pair[1]) is int
            for pair in pairs
        ):
            raise wrong
        if len(pairs) != 2 * NUM_NODES:
            raise ValueError(f"the {cell} cell of {shown!r} has {len(pairs)} inputs, not {2 * NUM_NODES}")
        cells[cell] = [(op, source) for op, source in pairs]
    return cells
