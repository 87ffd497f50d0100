"""Exact answers in spaces too large to list, where quality and cost are sums over operations.

Choosing one operation per edge, for the most value within a budget, is a multiple-choice knapsack.
Source: Sinha & Zoltners, The multiple-choice knapsack problem, Operations Research 27(3), 1979.

Not `scipy.optimize.milp`: its solver allows a cost to exceed the limit by 1e-6, in any unit, and takes values
within 1e-6 for equal, which scipy gives no setting for; of 60 limits just below a network's cost in FBNet, 40
were exceeded. It needs 80 to 110 ms where this needs 6 (scipy 1.17), and prints lines of its own.
"""

from __future__ import annotations

import itertools

import numpy as np

from hwnas.core import FloatArray, Genotype, SearchSpace, Sum

MOST_STATES = 2_000_000
ROUNDING = 1e-12
"""Relative difference below which sums in different orders count as equal."""


def cheapest(space: SearchSpace, cost: Sum) -> Genotype | None:
    """The network of the least cost; None where the device supports no network.

    Args:
        space: Its choices count.
        cost: The cost; of equally cheap operations the first is taken.
    """
    added = np.where(space.allowed, cost.added, np.inf)
    if np.isinf(added.min(axis=1)).any():
        return None
    return tuple(added.argmin(axis=1).tolist())


def optimum(space: SearchSpace, value: Sum, cost: Sum, limit: float) -> Genotype | None:
    """The network of the highest value whose cost is at most `limit`; None where no network keeps it.

    Exact up to rounding: a cost may exceed the limit by 1e-12 of it, which sums in another order do too. Edge
    by edge the partial networks are kept that no other one beats in cost and value, that can still be
    completed within the limit, and that may, by the linear relaxation of the edges to come, reach the best
    complete network found so far.

    Args:
        space: Its choices count.
        value: To be maximised; finite.
        cost: To be kept within the limit.
        limit: In the cost's unit.

    Raises:
        ValueError: More than `MOST_STATES` partial networks would have to be kept; there is no exact answer
            then.
    """
    supported = space.allowed & np.isfinite(cost.added)
    if not supported.any(axis=1).all():
        return None
    least = np.where(supported, cost.added, np.inf).min(axis=1)
    slack = ROUNDING * max(abs(limit), abs(cost.base))
    budget = limit - cost.base - least.sum() + slack  # beyond the cheapest network
    if budget < 0:
        return None
    ops = [np.flatnonzero(row) for row in supported]
    options = [(cost.added[edge, row] - least[edge], value.added[edge, row]) for edge, row in enumerate(ops)]
    bounds = [_Relaxation(options[edge:]) for edge in range(len(options) + 1)]

    spent, gained = np.zeros(1), np.zeros(1)
    steps: list[tuple[np.ndarray, np.ndarray]] = []
    best = -np.inf
    for edge, (costs, values) in enumerate(options):
        all_spent = (spent[:, None] + costs).ravel()
        all_gained = (gained[:, None] + values).ravel()
        rows = np.flatnonzero(all_spent <= budget)
        rows = rows[np.lexsort((-all_gained[rows], all_spent[rows]))]
        highest = np.maximum.accumulate(all_gained[rows])
        rows = rows[np.concatenate([[True], all_gained[rows][1:] > highest[:-1]])]
        upper, reached = bounds[edge + 1](budget - all_spent[rows])
        upper, reached = upper + all_gained[rows], reached + all_gained[rows]
        best = max(best, float(reached.max()))
        rows = rows[upper >= best - ROUNDING * max(1.0, abs(best))]
        if len(rows) > MOST_STATES:
            raise ValueError(f"the exact optimum needs more than {MOST_STATES:,} partial networks")
        steps.append((rows // len(costs), rows % len(costs)))
        spent, gained = all_spent[rows], all_gained[rows]

    state, chosen = int(np.argmax(gained)), []
    for (parents, picks), allowed in zip(reversed(steps), reversed(ops), strict=True):
        chosen.append(int(allowed[picks[state]]))
        state = int(parents[state])
    return tuple(reversed(chosen))


class _Relaxation:
    """Bounds on what edges can add for a budget: of fractions of operations, and of whole ones, greedily."""

    def __init__(self, options: list[tuple[FloatArray, FloatArray]]) -> None:
        self._base, steps = 0.0, []
        for costs, values in options:
            order = np.lexsort((-values, costs))
            hull: list[tuple[float, float]] = []
            for c, v in zip(costs[order].tolist(), values[order].tolist(), strict=True):
                if hull and v <= hull[-1][1]:
                    continue
                while len(hull) > 1 and (v - hull[-1][1]) * (hull[-1][0] - hull[-2][0]) >= (
                    hull[-1][1] - hull[-2][1]
                ) * (c - hull[-1][0]):
                    hull.pop()
                hull.append((c, v))
            self._base += hull[0][1]
            steps += [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(hull)]
        steps.sort(key=lambda step: -step[1] / step[0])
        increments = np.array([(0.0, 0.0), *steps]).cumsum(axis=0)
        self._costs, self._values = increments[:, 0], increments[:, 1]

    def __call__(self, budgets: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Upper and lower bounds, each as `budgets`, which are not negative."""
        whole = np.searchsorted(self._costs, budgets, side="right") - 1
        upper = np.interp(budgets, self._costs, self._values)
        return self._base + upper, self._base + self._values[whole]
