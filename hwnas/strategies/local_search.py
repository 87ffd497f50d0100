"""Local search along the front, for all limits at once; a method of this project."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwnas.core import (
    Count,
    Genotype,
    Hints,
    Objective,
    SearchSpace,
    Strategy,
    Trial,
    checked,
    costs,
    front,
)
from hwnas.strategies.evolution import check_told

NUM_TRIES = 100
"""Draws until a new architecture is found; after that a repetition is accepted."""


class LocalSearch(Strategy):
    """Evaluate new neighbours of the best network under a bound on the cost, for bounds over the whole range.

    The first population is uniform. Later, child i of n draws a bound on the cost between the quantiles i/n
    and (i+1)/n of the costs so far. Its parent is the network of best quality within the bound that has a new
    neighbour, and the child is one of these neighbours (`SearchSpace.neighbours`: another operation on one
    edge, or the operations of two edges exchanged, which changes the quality but hardly the cost).
    Architectures repeat only when no new one is found. One run serves every limit, like the front of
    MO-HDNAS. With fewer than about 200 architectures it may neglect the cheapest bounds
    (docs/measurements.md).

    Args:
        space: Search space.
        objectives: Quality and cost.
        seed: Seed of the generator.
        population_size: Architectures per generation.
        num_candidates: New neighbours drawn per child. The child is the candidate whose two best known
            neighbours have the best mean quality; this is the only estimate of unknown networks. 1: none.

    Raises:
        ValueError: A size below 1, or not two objectives.

    Source: this project. Local search on one objective is a known strong baseline on NAS-Bench-201 (White et
    al., Exploring the Loss Landscape in Neural Architecture Search, UAI 2021, arXiv 2005.02960).
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        seed: int,
        *,
        population_size: Count,
        num_candidates: Count,
    ) -> None:
        if len(objectives) != 2:
            raise ValueError(
                f"local_search needs one quality and one cost, not {[o.metric for o in objectives]}"
            )
        self.space = space
        self.objectives = objectives
        self.population_size = population_size
        self.num_candidates = num_candidates
        self._rng = np.random.default_rng(seed)
        self._asked: list[Genotype] = []
        self._first: list[Genotype] = []  # known before the run
        self._seen: set[Genotype] = set()  # asked for, now or before
        self._exhausted: set[Genotype] = set()  # all neighbours are in _seen
        self._trials: list[Trial] = []
        self._known: dict[Genotype, tuple[float, float]] = {}  # supported networks: both objectives as costs

    def hint(self, hints: Hints) -> None:
        """Have the best known networks in the first population; the others are drawn."""
        self._first = hints.best(self.population_size)

    def ask(self) -> list[Genotype]:
        """A random population at first, later new neighbours of the best network under each bound."""
        self._asked = []
        for genotype in self._first:
            self._add(genotype)
        self._first = []
        if self._known:
            F = np.array(list(self._known.values()))
            order = np.lexsort(F.T[::-1])
            ranked = [list(self._known)[row] for row in order]
            n = self.population_size
            for bound in np.quantile(F[:, 1], (np.arange(n) + self._rng.random(n)) / n):
                within = [ranked[place] for place in np.flatnonzero(F[order, 1] <= bound)]
                self._add(self._child(within))
        while len(self._asked) < self.population_size:
            self._add(self._stranger())
        return list(self._asked)

    def _add(self, genotype: Genotype) -> None:
        self._asked.append(genotype)
        self._seen.add(genotype)

    def _stranger(self) -> Genotype:
        """A uniform architecture; a new one, if `NUM_TRIES` draws find it."""
        for genotype in self.space.sample(self._rng, NUM_TRIES):
            if genotype not in self._seen:
                return genotype
        return self.space.sample(self._rng, 1)[0]

    def _child(self, within: Sequence[Genotype]) -> Genotype:
        """A new neighbour of the first network that has one."""
        for parent in within:
            if parent in self._exhausted:
                continue
            unknown = [near for near in self.space.neighbours(parent) if near not in self._seen]
            if not unknown:
                self._exhausted.add(parent)
                continue
            num = min(self.num_candidates, len(unknown))
            drawn = [unknown[i] for i in self._rng.choice(len(unknown), size=num, replace=False)]
            return drawn[0] if num == 1 else min(drawn, key=self._guess)
        return self._stranger()

    def _guess(self, genotype: Genotype) -> float:
        """Mean quality, as a cost, of the two best known neighbours; one at least is known, the parent."""
        near = self.space.neighbours(genotype)
        return float(np.mean(sorted(self._known[other][0] for other in near if other in self._known)[:2]))

    def tell(self, trials: Sequence[Trial]) -> None:
        """Remember the trials."""
        check_told(trials, len(self._asked))
        F = costs(trials, self.objectives)
        for trial, (quality, cost) in zip(trials, F.tolist(), strict=True):
            if np.isfinite([quality, cost]).all():
                self._known[trial.genotype] = quality, cost
        self._trials.extend(trials)

    def result(self) -> list[Trial]:
        """The non-dominated trials of the whole run."""
        return front(self._trials, self.objectives)
