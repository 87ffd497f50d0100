"""Most numbers alive at once while operations run in order, for many networks at once; numpy only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hwnas.core import FloatArray

Tensors = NDArray[np.intp]
"""A tensor of each network by its number, shape (n,); below 0: none, or a constant."""

NOTHING, CONSTANT = -2, -1


@dataclass(frozen=True)
class _Step:
    """An operation of the networks where `runs`."""

    reads: Sequence[Tensors]
    runs: NDArray[np.bool_]
    in_place: bool


class Schedules:
    """Operations of n networks in the order in which they run; not all networks have all of them.

    A tensor is alive from the operation that makes it to the last that reads it. An operation in place takes
    over its input if that has the size of its output and nobody reads it later.

    Args:
        num: Number of networks, n.
    """

    def __init__(self, num: int) -> None:
        self._num = num
        self._sizes: list[int] = []
        self._steps: dict[int, _Step] = {}
        self._known: dict[str, list[tuple[Sequence[Tensors], Tensors]]] = {}

    def given(self, size: int) -> Tensors:
        """A tensor that is there from the beginning."""
        self._sizes.append(size)
        return np.full(self._num, len(self._sizes) - 1)

    def run(
        self,
        reads: Sequence[Tensors],
        size: int,
        where: NDArray[np.bool_] | bool = True,
        *,
        in_place: bool = False,
    ) -> Tensors:
        """The output of an operation where it runs; `NOTHING` elsewhere.

        Args:
            reads: Its inputs; constants need no memory.
            size: Numbers of its output.
            where: Networks that have it, shape (n,).
            in_place: Whether it may take over its input.
        """
        self._sizes.append(size)
        number, runs = len(self._sizes) - 1, np.broadcast_to(where, self._num)
        if runs.any():
            self._steps[number] = _Step(reads, runs, in_place)
        return np.where(runs, number, NOTHING)

    def once(
        self,
        name: str,
        reads: Sequence[Tensors],
        size: int,
        where: NDArray[np.bool_] | bool = True,
        *,
        in_place: bool = False,
    ) -> Tensors:
        """As `run` without weights: what an operation of this name made of the same is not made again.

        Args:
            name: What tells operations apart.
            reads: As for `run`.
            size: As for `run`.
            where: As for `run`.
            in_place: As for `run`.
        """
        known = self._known.setdefault(name, [])
        output = np.full(self._num, NOTHING)
        for theirs, made in known:
            same = np.all([a == b for a, b in zip(theirs, reads, strict=True)], axis=0)
            output = np.where(same & (made >= 0) & where & (output < 0), made, output)
        new = self.run(reads, size, where & (output < 0), in_place=in_place)
        known.append((reads, new))
        return np.where(new >= 0, new, output)

    def part(self, name: str, x: Tensors, size: int, where: NDArray[np.bool_] | bool = True) -> Tensors:
        """A copy of a part of a tensor; the tensor itself if that is all of it.

        Args:
            name: What tells parts apart.
            x: The same number of numbers in all networks that have it.
            size: Numbers of the part.
            where: Networks that need it.
        """
        whole = np.array(self._sizes)[x] == size
        return np.where(whole, x, self.once(name, [x], size, where & ~whole))

    def most_alive(self, kept: Sequence[Tensors] = ()) -> FloatArray:
        """Most numbers alive at once, shape (n,).

        Args:
            kept: Tensors that are needed after the last operation.
        """
        rows = np.arange(self._num)
        sizes = np.array(self._sizes, dtype=np.float64)
        last = np.full((self._num, len(sizes)), -1)
        for place, step in self._steps.items():
            for read in step.reads:
                there = step.runs & (read >= 0)
                last[rows[there], read[there]] = place
        for tensor in kept:
            last[rows[tensor >= 0], tensor[tensor >= 0]] = len(sizes)
        now = np.zeros(self._num)
        for number in set(range(len(sizes))) - self._steps.keys():
            now += np.where(last[:, number] >= 0, sizes[number], 0.0)
        most = now.copy()
        for place, step in self._steps.items():
            gone = np.zeros(self._num)
            for index, read in enumerate(step.reads):
                ends = step.runs & (read >= 0) & (last[rows, read] == place)
                for other in step.reads[:index]:
                    ends &= read != other
                gone += np.where(ends, sizes[read], 0.0)
            over = (gone == sizes[place]) & step.in_place
            most = np.maximum(most, now + np.where(step.runs & ~over, sizes[place], 0.0))
            now += np.where(step.runs, sizes[place], 0.0) - gone
        return most
