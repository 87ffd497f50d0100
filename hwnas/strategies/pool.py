"""Networks that a strategy knows of, with their costs, and a choice among them for limits over all costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hwnas.core import (
    MOST_LISTED,
    Evaluator,
    FloatArray,
    Genotype,
    Limit,
    Objective,
    SearchSpace,
    Trial,
    costs,
    trials_of,
    violations,
)


class Candidates(NamedTuple):
    """Networks to choose among.

    Attributes:
        genotypes: The networks, n of them.
        forms: Their live operations.
        costs: Their costs, (n, c).
        excess: By how much they violate the limits on costs, (n,); see `violations`.
    """

    genotypes: list[Genotype]
    forms: list[Genotype]
    costs: FloatArray
    excess: FloatArray

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Which of them keep the limits on costs, (n,); if none does, those that are nearest to it."""
        return nearest(self.excess)


def nearest(excess: FloatArray) -> NDArray[np.bool_]:
    """Which networks keep the limits, by violations (n,); if none does, those that are nearest to it."""
    return excess == (0.0 if (excess == 0).any() else excess.min(initial=np.inf))


class Pool:
    """Networks with their costs; of those with the same live operations, a *form*, the cheapest counts.

    Args:
        space: Search space.
        device: Says what networks cost; if it is exhaustive, also of networks that nobody asked for.
        objectives: The costs, c of them.
        limits: Limits of the run; those on metrics of neither the device nor the others are ignored.
        others: What knows further costs of all networks, e.g. their parameters.

    Attributes:
        costs: The objectives that are costs of the device.
        sizes: Metrics of limits that are no objectives.
        limits: Those that are kept.
    """

    def __init__(
        self,
        space: SearchSpace,
        device: Evaluator,
        objectives: Sequence[Objective],
        limits: Sequence[Limit],
        others: Sequence[Evaluator] = (),
    ) -> None:
        self.space = space
        self.costs = [objective for objective in objectives if objective.metric in device.metrics]
        self._device = device
        known = [objective.metric for objective in self.costs]
        further = {limit.metric for limit in limits}.difference(known)
        owners = {name: each for each in (device, *others) if each.exhaustive for name in each.metrics}
        self.sizes = sorted(further & owners.keys())
        self._owners = list({id(owners[name]): owners[name] for name in self.sizes}.values())
        self.limits = [limit for limit in limits if limit.metric in (*known, *self.sizes)]
        self._networks: dict[Genotype, tuple[Genotype, FloatArray]] = {}  # form and costs (c,)
        self._found: Candidates | None = None
        self._every: FloatArray | None = None

    @property
    def listed(self) -> bool:
        """Whether all networks and their costs are known before they are asked for."""
        return self.space.size <= MOST_LISTED and self._device.exhaustive

    def forms(self, genotypes: Sequence[Genotype]) -> list[Genotype]:
        """The live operations of networks: those of equal ones compute the same."""
        return [tuple(row) for row in self.space.live(genotypes).tolist()]

    def numbers(self, forms: Sequence[Genotype]) -> FloatArray:
        """What models look at: `SearchSpace.features` and which operations there are, (n, d)."""
        return np.column_stack([self.space.features(forms), self.space.onehot(forms).reshape(len(forms), -1)])

    def add(self, genotypes: Sequence[Genotype], trials: Sequence[Trial] | None = None) -> None:
        """Know of networks, with the costs of their trials, or with those that the device answers."""
        found = trials or trials_of(genotypes, [self._device.evaluate(genotypes)], 0)
        for genotype, form, cost in zip(
            genotypes, self.forms(genotypes), costs(found, self.costs), strict=True
        ):
            self._networks[genotype] = form, cost
        self._found = self._every = None

    def all_forms(self) -> list[Genotype]:
        """The forms of all networks, each once."""
        return list(dict.fromkeys(form for form, _ in self._networks.values()))

    def candidates(self) -> Candidates:
        """Supported networks with a path, the cheapest of each form."""
        if self._found is None:
            first = {form: members[0] for form, members in self.members().items()}
            cost = np.array([self._networks[name][1] for name in first.values()]).reshape(-1, len(self.costs))
            excess = self.excess(list(first.values()), cost)
            self._found = Candidates(list(first.values()), list(first), cost, excess)
        return self._found

    def members(self) -> dict[Genotype, list[Genotype]]:
        """Supported networks with a path of each form, the cheapest first; forms by their cheapest."""
        names, cost = list(self._networks), self.costs_of_all()
        kept = np.isfinite(cost).all(axis=1) & self.space.is_connected(names)
        found: dict[Genotype, list[Genotype]] = {}
        for row in np.lexsort(cost.T[::-1]):
            if kept[row]:
                found.setdefault(self._networks[names[row]][0], []).append(names[row])
        return found

    def excess(self, genotypes: Sequence[Genotype], cost: FloatArray) -> FloatArray:
        """By how much networks of costs (n, c) violate the limits on costs, (n,); see `violations`."""
        return violations(self.trials(genotypes, cost), self.limits)

    @property
    def restricts(self) -> bool:
        """Whether there are limits on costs that are known without asking."""
        return bool(self.limits) and self._device.exhaustive

    def within(self, genotypes: Sequence[Genotype]) -> NDArray[np.bool_]:
        """Which networks keep the limits on costs, (n,); all where the device has to be asked for each."""
        if not self.restricts:
            return np.ones(len(genotypes), dtype=np.bool_)
        kept: NDArray[np.bool_] = self.excess(genotypes, self.costs_before(genotypes)) == 0
        return kept

    @property
    def exhaustive(self) -> bool:
        """Whether the device knows the costs of all networks."""
        return self._device.exhaustive

    def costs_before(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Costs of networks that need not be known of, (n, c), of an exhaustive device."""
        return costs(trials_of(genotypes, [self._device.evaluate(genotypes)], 0), self.costs)

    def cost(self, genotype: Genotype) -> FloatArray:
        """Costs of a network that is known of, (c,)."""
        return self._networks[genotype][1]

    def trials(self, genotypes: Sequence[Genotype], cost: FloatArray) -> list[Trial]:
        """Trials of networks with costs (n, c), and with what limits need to know besides."""
        names = [objective.metric for objective in self.costs]
        more = trials_of(genotypes, [owner.evaluate(genotypes) for owner in self._owners], 0)
        return [
            replace(trial, metrics={**trial.metrics, **dict(zip(names, costs, strict=True))})
            for trial, costs in zip(more, cost.tolist(), strict=True)
        ]

    def choose(
        self,
        value: FloatArray,
        new: NDArray[np.bool_],
        size: int,
        rng: np.random.Generator,
        num_drawn: int = 0,
    ) -> list[Genotype]:
        """New candidates of the highest values under bounds that are spread over the costs' quantiles.

        So one run serves every limit. Bound i of n is drawn between the quantiles i/n and (i+1)/n of all
        networks that cost no more than the dearest of those that are allowed, also those without a path, as
        those that limits may be given by.

        Args:
            value: What is hoped for of each candidate, (n,).
            new: Which of them were not chosen before, (n,).
            size: Networks to choose; fewer if there are not so many.
            rng: Source of randomness.
            num_drawn: How many of them are drawn uniformly instead, from the second on.
        """
        found = self.candidates()
        names, cost, allowed = found.genotypes, found.costs, found.allowed
        every = self.costs_of_all()
        every = every[np.isfinite(every).all(axis=1)]
        open_ = allowed & new
        chosen: list[int] = []
        for place in range(size):
            if not open_.any():
                break
            which = rng.integers(cost.shape[1])
            column, dearest = cost[:, which], cost[allowed, which].max()
            part = (place + rng.random()) / size
            bound = np.quantile(every[every[:, which] <= dearest, which], part)
            under = np.flatnonzero(open_ & (column <= bound))
            if not len(under):
                under = np.flatnonzero(open_)[[column[open_].argmin()]]
            drawn = 0 < place <= num_drawn
            row = int(rng.choice(under) if drawn else under[value[under].argmax()])
            open_[row] = False
            chosen.append(row)
        return [names[row] for row in chosen]

    def costs_of_all(self) -> FloatArray:
        """Costs of all networks that are known of, (n, c); `inf`: not supported."""
        if self._every is None:
            every = [cost for _, cost in self._networks.values()]
            self._every = np.array(every).reshape(-1, len(self.costs))
        return self._every
