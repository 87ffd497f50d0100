"""NAS-Bench-201: cells of four nodes, six edges, five operations; 15,625 architectures.

The encoding and the closed forms of cost; no torch.
Source: Dong & Yang, NAS-Bench-201, ICLR 2020.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray

from hwnas.core import Count, FloatArray, Genotype, SearchSpace, Sum, checked, checked_choices

OPS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
NONE, SKIP, CONV_1X1, CONV_3X3, AVG_POOL = range(5)

EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""(source, target) node of every edge, in genotype order."""

PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))
"""Edges of every path from input to output."""


class NasBench201Encoding(SearchSpace):
    """The NAS-Bench-201 cell in its published network, for any width, depth, image size and class count.

    A network is a 3x3 stem, three stages of `num_cells` cells at C, 2C, 4C channels with a residual block of
    stride 2 between them, BatchNorm, ReLU, global average pooling and a linear classifier.

    Args:
        channels: C, channels of the first stage (benchmark: 16).
        num_cells: N, cells per stage (benchmark: 5).
        image_shape: (channels, height, width) of the images.
        num_classes: Number of classes.
        choices: Operation indices allowed per edge; None allows all.

    Raises:
        ValueError: A size below 1, or choices that are empty or name an unknown operation.
    """

    @checked
    def __init__(
        self,
        channels: Count = 16,
        num_cells: Count = 5,
        *,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: Count = 10,
        choices: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.name = "nasbench201"
        self.ops = OPS
        self.channels = channels
        self.num_cells = num_cells
        self.image_shape = image_shape
        self.num_classes = num_classes
        self.choices = checked_choices(choices, len(EDGES), len(OPS))

    @property
    def sizes(self) -> dict[str, int | str]:
        """Width and depth of the networks."""
        return {"channels": self.channels, "num_cells": self.num_cells}

    def resized(self, *, channels: int, num_cells: int) -> Self:
        """The same space with networks of another width and depth."""
        return type(self)(
            channels,
            num_cells,
            image_shape=self.image_shape,
            num_classes=self.num_classes,
            choices=self.choices,
        )

    def restrict(self, keep: Sequence[Sequence[int]]) -> Self:
        """The sub-space with only the operations `keep[edge]` on each edge."""
        return type(self)(
            self.channels,
            self.num_cells,
            image_shape=self.image_shape,
            num_classes=self.num_classes,
            choices=keep,
        )

    def to_str(self, genotype: Genotype) -> str:
        """The benchmark's string, e.g. "|avg_pool_3x3~0|+|none~0|skip_connect~1|+|...|"."""
        nodes: list[list[str]] = [[], [], []]
        for (source, target), op in zip(EDGES, genotype, strict=True):
            nodes[target - 1].append(f"{OPS[op]}~{source}")
        return "+".join(f"|{'|'.join(node)}|" for node in nodes)

    def from_str(self, text: str) -> Genotype:
        """The genotype of a benchmark string.

        Raises:
            ValueError: Malformed text or an unknown operation; says which and what is allowed.
        """
        example = self.to_str((CONV_3X3,) * len(EDGES))
        nodes = text.strip().split("+")
        if len(nodes) != 3:
            raise ValueError(f"{text!r} has {len(nodes)} nodes, not 3; the form is {example}")
        genotype = []
        for target, node in enumerate(nodes, start=1):
            tokens = node.strip().strip("|").split("|")
            if len(tokens) != target:
                raise ValueError(f"node {target} of {text!r} has {len(tokens)} inputs, not {target}")
            for source, token in enumerate(tokens):
                match = re.fullmatch(r"(\w+)~(\d+)", token.strip())
                if match is None or int(match[2]) != source:
                    raise ValueError(f"{token!r} should be <operation>~{source}; the form is {example}")
                if match[1] not in OPS:
                    raise ValueError(f"unknown operation {match[1]!r} in {text!r}; known: {', '.join(OPS)}")
                genotype.append(OPS.index(match[1]))
        return self.check(genotype)

    def static_metrics(self, genotypes: Sequence[Genotype]) -> dict[str, FloatArray]:
        """`flops` (multiply-adds) and `params` per genotype, shape (n,), in closed form.

        The benchmark's convention: convolutions and the classifier with its bias count, BatchNorm and
        pooling do not.
        """
        G = np.asarray(genotypes, dtype=np.intp).reshape(-1, len(EDGES))
        num_3x3 = (G == CONV_3X3).sum(axis=1)
        num_1x1 = (G == CONV_1X1).sum(axis=1)
        C, N = self.channels, self.num_cells
        in_channels, height, width = self.image_shape

        params = 9 * in_channels * C + 2 * C
        flops = 9 * in_channels * C * height * width
        per_3x3 = np.zeros(2)  # parameters, multiply-adds
        per_1x1 = np.zeros(2)
        for stage in range(3):
            c = C << stage
            if stage > 0:
                height, width = -(-height // 2), -(-width // 2)
                weights = 9 * c // 2 * c + 9 * c * c + c // 2 * c
                params += weights + 4 * c
                flops += weights * height * width
            per_3x3 += N * np.array([9 * c * c + 2 * c, 9 * c * c * height * width])
            per_1x1 += N * np.array([c * c + 2 * c, c * c * height * width])
        head = (4 * C + 1) * self.num_classes
        params += 2 * 4 * C + head
        flops += head
        return {
            "flops": flops + num_3x3 * per_3x3[1] + num_1x1 * per_1x1[1],
            "params": params + num_3x3 * per_3x3[0] + num_1x1 * per_1x1[0],
        }

    def static_sums(self) -> dict[str, Sum]:
        """`flops` and `params` as sums over operations."""
        values = self.static_metrics([(op,) * len(EDGES) for op in range(len(OPS))])
        return {
            name: Sum(float(of[NONE]), np.tile((of - of[NONE]) / len(EDGES), (len(EDGES), 1)))
            for name, of in values.items()
        }

    def depth(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Most live convolutions on a path from the input of the cell to its output, shape (n,), in 0..3."""
        G = self.live(genotypes)
        most = np.full((len(G), 4), -np.inf)
        most[:, 0] = 0
        for edge, (source, target) in enumerate(EDGES):
            path = most[:, source] + np.isin(G[:, edge], (CONV_1X1, CONV_3X3))
            most[:, target] = np.where(G[:, edge] == NONE, most[:, target], np.maximum(most[:, target], path))
        return np.maximum(most[:, 3], 0)

    def is_connected(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether a path of operations other than `none` leads from input to output, shape (n,)."""
        G = np.asarray(genotypes, dtype=np.intp).reshape(-1, len(EDGES))
        reached = np.zeros((len(G), 4), dtype=bool)
        reached[:, 0] = True
        for edge, (source, target) in enumerate(EDGES):
            reached[:, target] |= reached[:, source] & (G[:, edge] != NONE)
        return reached[:, 3]

    def features(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Structure in numbers, shape (n, 37).

        After those of every space: of each of the four paths from input to output whether it is live, and its
        3x3 convolutions, all its convolutions, skips and pools; then over the live paths their number, the
        most and the fewest convolutions and pools, and the sums of convolutions.
        """
        live = self.live(genotypes)
        rows = []
        for path in PATHS:
            ops = live[:, path]
            there = (ops != NONE).all(axis=1)
            kinds = (ops == CONV_3X3, (ops == CONV_3X3) | (ops == CONV_1X1), ops == SKIP, ops == AVG_POOL)
            rows.append(np.column_stack([there, *(of.sum(axis=1) * there for of in kinds)]))
        paths = np.stack(rows)  # (paths, n, 5)
        there, wide, convolutions, _, pools = paths.transpose(2, 0, 1)
        most = len(EDGES)
        over = [
            there.sum(axis=0),
            *(of.max(axis=0) for of in (wide, convolutions, pools)),
            *(np.where(there, of, most).min(axis=0) for of in (convolutions, pools)),
            *(of.sum(axis=0) for of in (wide, convolutions, pools)),
        ]
        return np.column_stack([super().features(genotypes), *paths, *over])

    def live(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> NDArray[np.intp]:
        """Genotypes (n, edges) as a compiler leaves them.

        Edges from which no path leads to the output become `none`. Those that leave a node which nothing
        reaches become `skip_connect`: their output is a constant, and what remains is to add it.
        """
        G = np.array(genotypes, dtype=np.intp).reshape(-1, len(EDGES))
        before, after = np.zeros((2, len(G), 4), dtype=bool)
        before[:, 0] = after[:, 3] = True
        for edge, (source, target) in enumerate(EDGES):  # in the order of their targets
            before[:, target] |= before[:, source] & (G[:, edge] != NONE)
        for edge, (source, target) in sorted(enumerate(EDGES), key=lambda item: -item[1][0]):
            after[:, source] |= after[:, target] & (G[:, edge] != NONE)
        for edge, (source, target) in enumerate(EDGES):
            G[~after[:, target], edge] = NONE
            G[~before[:, source] & (G[:, edge] != NONE), edge] = SKIP
        return G

    def used(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> NDArray[np.intp]:
        """Genotypes (n, edges) with `none` on edges from which no path leads to the output."""
        G = np.array(genotypes, dtype=np.intp).reshape(-1, len(EDGES))
        after = np.zeros((len(G), 4), dtype=bool)
        after[:, 3] = True
        for edge, (source, target) in sorted(enumerate(EDGES), key=lambda item: -item[1][0]):
            after[:, source] |= after[:, target] & (G[:, edge] != NONE)
        for edge, (_, target) in enumerate(EDGES):
            G[~after[:, target], edge] = NONE
        return G
