"""A small problem with a known answer, for trying strategies and testing them; no networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Le

from hwnas.core import (
    Count,
    Evaluator,
    FloatArray,
    Genotype,
    Goal,
    SearchSpace,
    Sum,
    checked,
    checked_choices,
)


class Toy(SearchSpace):
    """Edges with nothing behind them: an architecture is a list of operation letters.

    16 edges of 5 operations by default; with fewer, random search is already close to the optimum.

    Args:
        num_edges: Number of edges.
        num_ops: Operations per edge, at most 26.
        choices: Operation indices allowed per edge; None allows all.

    Raises:
        ValueError: A size out of range, or choices that are empty or name an unknown operation.
    """

    @checked
    def __init__(
        self,
        num_edges: Count = 16,
        num_ops: Annotated[int, Ge(1), Le(26)] = 5,
        *,
        choices: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.name = "toy"
        self.ops = tuple(chr(ord("a") + op) for op in range(num_ops))
        self.choices = checked_choices(choices, num_edges, num_ops)

    def restrict(self, keep: Sequence[Sequence[int]]) -> Toy:
        """The sub-space with only the operations `keep[edge]` on each edge."""
        return Toy(len(self.choices), len(self.ops), choices=keep)

    def to_str(self, genotype: Genotype) -> str:
        """One letter per edge, e.g. "abbaecd"."""
        return "".join(self.ops[op] for op in genotype)

    def from_str(self, text: str) -> Genotype:
        """The genotype of a string of letters.

        Raises:
            ValueError: Another length, or a letter that is no operation.
        """
        for letter in text:
            if letter not in self.ops:
                raise ValueError(f"unknown operation {letter!r} in {text!r}; known: {', '.join(self.ops)}")
        return self.check([self.ops.index(letter) for letter in text])


class ToyCost(Evaluator):
    """Separable quality and latency of `Toy` architectures, in conflict, with known extremes.

    Every operation adds a quality and a latency of its own, drawn once. `val_acc` is the share of the way
    from the worst to the best architecture, so the best has 1.0 exactly; `latency_ms` is at least 1.

    Args:
        space: The toy space.
        metric: "val_acc" or "latency_ms".
    """

    @checked
    def __init__(self, space: SearchSpace, *, metric: Literal["val_acc", "latency_ms"]) -> None:
        goals: dict[str, Goal] = {"val_acc": "max", "latency_ms": "min"}
        self.name = f"toy_{metric}"
        self.exhaustive = True
        self.metrics = {metric: goals[metric]}
        self._metric = metric
        rng = np.random.default_rng(2024)
        quality = rng.random(space.alpha_shape)
        latency = 0.7 * quality + 0.3 * rng.random(space.alpha_shape)
        self.table: FloatArray
        if metric == "val_acc":
            lowest = quality.min(axis=1, keepdims=True)
            self.table = (quality - lowest) / ((quality - lowest).max(axis=1).sum() or 1.0)
        else:
            self.table = latency - latency.min(axis=1, keepdims=True)
        self._offset = 0.0 if metric == "val_acc" else 1.0

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """The version never changes."""
        return f"1-{space.alpha_shape[0]}x{space.alpha_shape[1]}"

    def separable(self, metric: str) -> Sum:
        """It is a sum."""
        return Sum(self._offset, self.table)

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """The sum over edges of what the chosen operations contribute."""
        G = np.asarray(genotypes)
        values = self.table[np.arange(G.shape[1]), G].sum(axis=1) + self._offset
        return [{self._metric: float(value)} for value in values]
