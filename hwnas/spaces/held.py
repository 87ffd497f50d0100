"""A search space of which only some networks may be asked for: those whose answers are there already."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hwnas.core import FloatArray, Genotype, SearchSpace

NEAR = 5
"""Networks that count as near another one, at least; those that are as near as the last of them count too."""


class Held(SearchSpace):
    """Some networks of a space, in its encoding, so that every strategy can search among them.

    What draws networks draws among these: `sample` uniformly, `mutate` by the space's own rule where its
    result is held, else among the near ones, and `decode` takes the most probable one. With all networks of
    the space held, all of these but `neighbours` do what they do in the space itself.

    It is the first base of a class whose second base is the class of the space (`held`): networks are drawn,
    built and described as there.

    Attributes:
        whole: The space itself.
        others: Whether other networks of the space may be asked for.
    """

    whole: SearchSpace
    others: bool
    _networks: list[Genotype]
    _codes: NDArray[np.int16]
    _rows: dict[Genotype, int]
    _near: dict[int, NDArray[np.intp]]
    _nearby: list[set[int]] | None

    def __reduce__(self) -> tuple[object, ...]:
        return partial(held, others=self.others), (self.whole, self._networks)

    @property
    def size(self) -> int:
        """Number of held networks."""
        return len(self._networks)

    def all(self) -> list[Genotype]:
        """Every held network, in lexicographic order."""
        return list(self._networks)

    def sample(self, rng: np.random.Generator, num: int) -> list[Genotype]:
        """`num` held networks, uniform, with repetitions."""
        return [self._networks[row] for row in rng.integers(self.size, size=num)]

    def decode(self, alphas: FloatArray) -> list[Genotype]:
        """What the space decodes, where it is held; else the held network of the highest probability.

        The probability is the product over the network's operations of the softmax of their edges' alphas.

        Args:
            alphas: Shape (n, edges, ops).

        Raises:
            ValueError: Another shape.
        """
        decoded = super().decode(alphas)
        missing = [row for row, genotype in enumerate(decoded) if genotype not in self._rows]
        if missing:
            wanted = alphas[missing]
            logs = wanted - np.logaddexp.reduce(wanted, axis=2, keepdims=True)
            known = self.onehot(self._networks).reshape(self.size, -1)
            best = (logs.reshape(len(missing), -1) @ known.T).argmax(axis=1)
            for row, place in zip(missing, best, strict=True):
                decoded[row] = self._networks[place]
        return decoded

    def check(self, genotype: Sequence[int]) -> Genotype:
        """The genotype as a tuple of ints.

        Raises:
            ValueError: It is none of the space, or not held where others may not be asked for.
        """
        checked = self.whole.check(genotype)
        if checked not in self._rows and not self.others:
            raise ValueError(
                f"{self.to_str(checked)} is none of the {self.size:,} networks that are replayed; "
                "replay_missing=evaluate evaluates what is missing"
            )
        return checked

    def mutate(self, genotype: Genotype, rng: np.random.Generator) -> Genotype:
        """The space's own mutation, where it is held; else one of the near networks, uniform."""
        child = super().mutate(genotype, rng)
        if child in self._rows:
            return child
        near = self._near_of(genotype)
        return self._networks[near[rng.integers(len(near))]] if len(near) else genotype

    def neighbours(self, genotype: Genotype) -> list[Genotype]:
        """The networks that are near this one, and those that this one is near; without itself."""
        if self._nearby is None:
            self._nearby = [set(self._near_of(other).tolist()) for other in self._networks]
            for row, near in enumerate(list(map(list, self._nearby))):
                for other in near:
                    self._nearby[other].add(row)
        if genotype not in self._rows:
            return [self._networks[row] for row in self._near_of(genotype)]
        return [self._networks[row] for row in sorted(self._nearby[self._rows[genotype]])]

    def _near_of(self, genotype: Genotype) -> NDArray[np.intp]:
        """Rows of the space's neighbours, if at least `NEAR` are held; else of the nearest by distance."""
        own = self._rows.get(genotype, -1)
        if own in self._near:
            return self._near[own]
        steps = [self._rows[near] for near in super().neighbours(genotype) if near in self._rows]
        near = np.array(sorted(steps), dtype=np.intp)
        fewest = min(NEAR, self.size - (own >= 0))
        if len(near) < fewest:
            distances = self.distances(np.array([genotype]), self._codes)[0]  # type: ignore[arg-type]
            if own >= 0:
                distances[own] = np.inf
            near = np.flatnonzero(distances <= np.sort(distances)[fewest - 1] + 1e-12)
        if own >= 0:
            self._near[own] = near
        return near

    def restrict(self, keep: Sequence[Sequence[int]]) -> SearchSpace:
        """The held networks with only the operations `keep[edge]`, at least the `NEAR` with most of them."""
        kept = np.zeros(self.alpha_shape)
        for edge, ops in enumerate(keep):
            kept[edge, list(ops)] = 1.0
        within = self.onehot(self._networks).reshape(self.size, -1) @ kept.ravel()
        best = np.flatnonzero(within >= np.sort(within)[-min(NEAR, self.size)])
        return held(self.whole, [self._networks[row] for row in best], others=self.others)


def held(space: SearchSpace, networks: Sequence[Genotype], *, others: bool = False) -> SearchSpace:
    """A space of some networks of a space.

    Args:
        space: The space.
        networks: At least one of its networks.
        others: Whether other networks of the space may be asked for, by strategies that name them.

    Raises:
        ValueError: No network, or one that is none of the space's.
    """
    if not networks:
        raise ValueError(f"there must be at least one network of {space.name} to replay")
    kind = type(f"Held{type(space).__name__}", (Held, type(space)), {})  # has what the space has
    made: Held = copy.copy(space)  # type: ignore[assignment]
    made.__class__ = kind
    made.whole, made.others = space, others
    made._networks = sorted({space.check(genotype) for genotype in networks})
    made._codes = np.array(made._networks, dtype=np.int16)
    made._rows = {genotype: row for row, genotype in enumerate(made._networks)}
    made._near, made._nearby = {}, None
    made.choices = tuple(tuple(np.unique(column).tolist()) for column in made._codes.T)
    return made
