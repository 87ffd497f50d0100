"""Figures of many networks from those of few: each part of a network depends on some of its choices only.

A part is a layer: its figures are the same in all networks that agree on the choices that it depends on.
Which these are is found out. As long as nothing says otherwise a part depends on nothing. When two networks
that agree on all choices that a part is known to depend on have different figures of it, one is changed into
the other, choice by choice, and whatever changes the part on the way is a choice that it depends on. So every
network that is counted also checks what is known, and a space of 10^20 networks is known after some hundreds.

A layer behind a concatenation depends on many widths, but on their sum alone. So where more than a few
networks would be needed, choices of numbers are tried in pairs: if one may give what the other takes, then
their sum stands for both, and is checked like all else.
"""

from __future__ import annotations

import math
import operator
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, permutations

import numpy as np
from numpy.typing import NDArray

from hwnas.core import FloatArray, Genotype

SECONDS_BETWEEN_NOTES = 15.0
"""Time after which counting says that it goes on."""

FEW = 100
"""Networks that a part may need to be known, before sums are looked for."""

MOST_PAIRS = 60
"""Pairs of choices that are tried for it."""

TRIALS = 3
"""Networks in which a pair is tried."""

QUIET = 3
"""Walks that tell nothing new before what parts depend on counts as known."""

Figures = tuple[float, ...]
"""Figures of a part."""

Depends = tuple[tuple[int, ...], tuple[tuple[int, ...], ...]]
"""Choices whose options count, and sets of choices of which only the sum counts."""


class Parts:
    """Sums of the figures of the parts of networks, or the largest of them.

    Args:
        count: Figures per part of one network, by its name; parts that are missing have zeros.
        num_figures: Figures of each part.
        say: Called with a sentence when counting takes long.
        amounts: Number that each option stands for, shape (choices, options); below 0: none.
        largest: Whether `totals` are the largest figures, not sums.
    """

    def __init__(
        self,
        count: Callable[[Genotype], Mapping[str, Figures]],
        num_figures: int,
        say: Callable[[str], None],
        amounts: NDArray[np.intp],
        *,
        largest: bool = False,
    ) -> None:
        self._largest = largest
        self._count, self._say, self._amounts = count, say, amounts
        self._sums_of: dict[str, tuple[tuple[int, ...], ...]] = {}
        self._nothing: Figures = (0,) * num_figures
        self._same: dict[Figures, Figures] = {}
        self._counted: dict[Genotype, Mapping[str, Figures]] = {}
        self._depends: dict[str, set[int]] = {}
        self._known: dict[str, dict[Genotype, tuple[Figures, Genotype]]] = {}
        self._sums: dict[Depends, dict[Genotype, Figures]] | None = None

    @property
    def num_counted(self) -> int:
        """Number of networks that were counted."""
        return len(self._counted)

    def depends(self, part: str) -> tuple[int, ...]:
        """The choices that a part is known to depend on."""
        return tuple(sorted(self._depends.get(part, ())))

    @property
    def together(self) -> list[tuple[int, ...]]:
        """The sets of choices that parts depend on."""
        return sorted({self.depends(part) for part in self._depends})

    def figures(self, genotype: Genotype) -> Mapping[str, Figures]:
        """Figures per part of a network that is counted for it."""
        if genotype not in self._counted:
            self._learn(genotype)
        return self._counted[genotype]

    def explore(self, sample: Callable[[int], Sequence[Genotype]]) -> None:
        """Find out what parts depend on, by changing random networks into others, choice by choice.

        It ends when `QUIET` of them in a row have told nothing new.

        Args:
            sample: Draws so many networks.
        """
        quiet = 0
        while quiet < QUIET:
            start, end = sample(2)
            before = sum(map(len, self._depends.values()))
            self.figures(start)
            self._settle(dict.fromkeys(self._walk(start, end), (start, end)))
            self.figures(end)
            quiet = quiet + 1 if sum(map(len, self._depends.values())) == before else 0
        self._find_sums(sample)

    def totals(self, genotypes: Sequence[Genotype] | np.ndarray) -> FloatArray:
        """Sums over the parts of each network, or the largest figures, shape (n, figures)."""
        G = np.asarray(genotypes, dtype=np.intp)
        if not len(G):
            return np.zeros((0, len(self._nothing)))
        if not self._counted:
            self._learn(tuple(G[0].tolist()))
        counted, told = len(self._counted), time.monotonic()
        while True:
            total = np.zeros((len(G), len(self._nothing)))
            missing: dict[int, None] = {}
            for depends, known in self._groups().items():
                keys = self._keys(depends, G)
                first, inverse = _different(keys)
                found = [known.get(tuple(row)) for row in keys[first].tolist()]
                missing.update(
                    (row, None) for row, sums in zip(first.tolist(), found, strict=True) if not sums
                )
                figures = np.array([sums or self._nothing for sums in found], dtype=np.float64)[inverse]
                total = np.maximum(total, figures) if self._largest else total + figures
            if not missing:
                return total
            for row in missing:
                self._complete(tuple(G[row].tolist()))
                if time.monotonic() - told > SECONDS_BETWEEN_NOTES:
                    told = time.monotonic()
                    self._say(
                        f"{len(self._counted) - counted:,} networks built to count {len(G):,}; layers whose "
                        "costs depend on many choices need that many"
                    )

    def _complete(self, genotype: Genotype) -> None:
        """Count a network, unless the sums of all its parts are known."""
        for depends, known in self._groups().items():
            if self._key(depends, genotype) not in known:
                self._learn(genotype)
                return

    def _groups(self) -> dict[Depends, dict[Genotype, Figures]]:
        """Sums over the parts that depend on the same choices, by the options of these choices.

        Or the largest of their figures.
        """
        together = max if self._largest else operator.add
        if self._sums is None:
            self._sums = {}
            for part, known in self._known.items():
                sums = self._sums.setdefault(self._signature(part), {})
                for key, (figures, _) in known.items():
                    before = sums.get(key, self._nothing)
                    sums[key] = tuple(map(together, before, figures))
        return self._sums

    def _learn(self, genotype: Genotype) -> None:
        """Count a network, and find out what explains its parts."""
        self._settle(self._add(genotype))

    def _settle(self, contradictions: dict[str, tuple[Genotype, Genotype]]) -> None:
        """Explain networks of equal choices and different figures, and what comes to light on the way."""
        while contradictions:
            part, (start, end) = contradictions.popitem()
            for changed in sorted({part} | self._walk(start, end)):
                contradictions.pop(changed, None)
                contradictions |= self._arranged(changed)
        self._sums = None

    def _add(self, genotype: Genotype) -> dict[str, tuple[Genotype, Genotype]]:
        """Count a network; returns the parts that it contradicts, with two networks that differ."""
        figures = {  # equal ones are one object: most layers are alike
            part: self._same.setdefault(numbers, numbers) for part, numbers in self._count(genotype).items()
        }
        self._counted[genotype] = figures
        first = next(iter(self._counted))
        for part in figures.keys() - self._known.keys():  # which the networks before do not have
            self._depends[part] = set()
            self._known[part] = {} if first == genotype else {(): (self._nothing, first)}
        self._sums = None
        return {part: pair for part in self._known if (pair := self._note(part, genotype))}

    def _note(self, part: str, genotype: Genotype) -> tuple[Genotype, Genotype] | None:
        """Keep the figures of a part; returns two networks that should have the same ones and do not."""
        key = self._key(self._signature(part), genotype)
        figures = self._counted[genotype].get(part, self._nothing)
        known, where = self._known[part].setdefault(key, (figures, genotype))
        return None if known == figures else (where, genotype)

    def _walk(self, start: Genotype, end: Genotype) -> set[str]:
        """Change one network into another, choice by choice; returns parts for which more choices count."""
        here, changed = start, set[str]()
        for choice, option in enumerate(end):
            if here[choice] == option:
                continue
            there = (*here[:choice], option, *here[choice + 1 :])
            if there not in self._counted:
                changed |= self._add(there).keys()
            before, after = self._counted[here], self._counted[there]
            for part in before.keys() | after.keys():
                if before.get(part) != after.get(part) and choice not in self._depends[part]:
                    self._depends[part].add(choice)
                    changed.add(part)
            here = there
        return changed

    def _arranged(self, part: str) -> dict[str, tuple[Genotype, Genotype]]:
        """Arrange the figures of a part by what it depends on now; returns a contradiction."""
        self._known[part] = {}
        for genotype in self._counted:
            if pair := self._note(part, genotype):
                start, end = pair
                if part in self._sums_of and any(start[each] != end[each] for each in self._depends[part]):
                    del self._sums_of[part]  # it is not their sum that counts
                    return self._arranged(part)
                return {part: pair}
        return {}

    def _signature(self, part: str) -> Depends:
        """The choices that a part depends on, and those of which only the sum counts."""
        sums = self._sums_of.get(part, ())
        summed = {choice for together in sums for choice in together}
        return tuple(choice for choice in self.depends(part) if choice not in summed), sums

    def _key(self, depends: Depends, genotype: Genotype) -> Genotype:
        """What a network has of choices."""
        single, sums = depends
        totals = (sum(int(self._amounts[choice, genotype[choice]]) for choice in each) for each in sums)
        return (*(genotype[choice] for choice in single), *totals)

    def _keys(self, depends: Depends, G: NDArray[np.intp]) -> NDArray[np.intp]:
        """As `_key` of many networks (n, choices), an array (n, numbers)."""
        single, sums = depends
        totals = [sum(self._amounts[choice, G[:, choice]] for choice in each) for each in sums]
        return np.column_stack([G[:, single], *totals])

    def _find_sums(self, sample: Callable[[int], Sequence[Genotype]]) -> None:
        """Find choices of which only the sum counts, for parts that depend on many."""
        numbers = [set(np.flatnonzero(row >= 0).tolist()) for row in self._amounts]
        large = {}
        for part, depends in self._depends.items():
            numeric = [choice for choice in sorted(depends) if len(numbers[choice]) > 1]
            if len(numeric) > 2 and math.prod(len(numbers[choice]) for choice in numeric) > FEW:
                large[part] = numeric
        often = Counter(pair for numeric in large.values() for pair in combinations(numeric, 2))
        same: dict[str, list[tuple[int, int]]] = {part: [] for part in large}
        for a, b in sorted(pair for pair, _ in often.most_common(MOST_PAIRS)):
            outcomes: dict[str, list[bool]] = {}
            for base in sample(TRIALS):
                pair = self._exchanged(base, a, b)
                if pair is None:
                    break
                one, other = map(self.figures, pair)
                for part, numeric in large.items():
                    if {a, b} <= set(numeric) and part in one and part in other:
                        outcomes.setdefault(part, []).append(one[part] == other[part])
            for part, equal in outcomes.items():
                if all(equal):
                    same[part].append((a, b))
        for part, pairs in same.items():
            if pairs:
                self._sums_of[part] = _connected(pairs)
                self._settle(self._arranged(part))
        self._sums = None

    def _exchanged(self, base: Genotype, a: int, b: int) -> tuple[Genotype, Genotype] | None:
        """Two networks that differ in two choices whose sum is the same, if there are options for it."""
        options = [np.flatnonzero(self._amounts[choice] >= 0) for choice in (a, b)]
        for low, high in combinations(options[0].tolist(), 2):
            gives = self._amounts[a, high] - self._amounts[a, low]
            for less, more in permutations(options[1].tolist(), 2):
                if gives == self._amounts[b, more] - self._amounts[b, less] != 0:
                    one, other = list(base), list(base)
                    one[a], one[b], other[a], other[b] = low, more, high, less
                    return tuple(one), tuple(other)
        return None


def _connected(pairs: Sequence[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """Sets of choices that pairs connect."""
    sets: list[set[int]] = []
    for pair in pairs:
        joined = [each for each in sets if each & set(pair)]
        sets = [each for each in sets if not each & set(pair)] + [set(pair).union(*joined)]
    return tuple(sorted(tuple(sorted(each)) for each in sets))


def _different(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each of the different rows is first, and which of these each row is."""
    base = int(rows.max(initial=0)) + 1
    if base ** rows.shape[1] < 2**62:  # as numbers, twenty times faster
        codes = rows @ (base ** np.arange(rows.shape[1], dtype=np.int64))
        _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    else:
        _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    return first, inverse.reshape(-1)
