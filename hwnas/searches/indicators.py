"""Figures of a search in progress: hypervolume and diversity."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwnas.core import (
    FloatArray,
    Genotype,
    Objective,
    SearchSpace,
    Trial,
    costs,
    non_dominated,
    unique,
)


class Hypervolume:
    """Hypervolume of the trials so far, in units of the box that the first generation spans.

    The reference point is the worst value of every objective in the first generation, so that a curve never
    falls and a resumed run continues it. Unsupported trials are left out.

    Args:
        objectives: What spans the space; minimised after `core.costs`.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.objectives = objectives
        self._front: list[Trial] = []
        self._worst: FloatArray | None = None  # of the first generation, per objective
        self._span: FloatArray = np.ones(len(objectives))

    def forget(self) -> None:
        """Start anew, in the same units: earlier trials cannot be compared with later ones."""
        self._front = []

    def add(self, trials: Sequence[Trial]) -> float:
        """The hypervolume once `trials` belong to it; 0 while no supported trial was seen."""
        from pymoo.indicators.hv import HV

        candidates = unique([*self._front, *trials])
        F = costs(candidates, self.objectives)
        rows = non_dominated(F)
        self._front = [candidates[row] for row in rows]
        finite = F[np.isfinite(F).all(axis=1)]
        if len(finite) == 0:
            return 0.0
        if self._worst is None:
            self._worst = finite.max(axis=0)
            span = self._worst - finite.min(axis=0)
            self._span = np.where(span > 0, span, 1.0)
        return float(HV(ref_point=np.zeros(len(self.objectives)))((F[rows] - self._worst) / self._span))

    @property
    def front(self) -> list[Trial]:
        """The non-dominated trials so far."""
        return self._front


def diversity(space: SearchSpace, population: Sequence[Genotype]) -> float:
    """Mean distance between two networks of a population, in 0..1; 0 for a single one."""
    if len(population) < 2:
        return 0.0
    return float(space.distances(population, population).sum() / (len(population) * (len(population) - 1)))
