"""Search by a model of the quality: an evaluation is spent where it may move the front."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hwnas.core import (
    Count,
    Evaluator,
    FloatArray,
    Genotype,
    Limit,
    NotNegative,
    Objective,
    SearchSpace,
    Strategy,
    Trial,
    checked,
    costs,
    front,
)
from hwnas.strategies.evolution import check_told
from hwnas.strategies.pool import Pool
from hwnas.strategies.predictor import Gap, gaussian_process, random_forest

FEWEST = 5
"""Evaluated networks that a model is fitted to, at least."""

MOST_PROCESSED = 400
"""Evaluated networks up to which the model is a Gaussian process; it is a random forest beyond."""

GROWTH = 1.05
"""Factor by which the evaluated networks must have grown for a new fit."""

LEAST_NOISE = 1e-6
"""Variance of the noise of a quality, as a fraction of that of all qualities, at least."""

TRIES = 20
"""Draws per candidate that is to be of a new form, at most."""


class Surrogate(Strategy):
    """Evaluate the networks of which a model hopes most, under bounds over the whole range of costs.

    The first population is drawn, spread over the costs. Later, a model of each quality is fitted to all
    evaluated networks over `SearchSpace.features` and the operations, on a scale of gaps to the best (`Gap`):
    a Gaussian process, or a random forest beyond `MOST_PROCESSED` networks. Each place of a population but
    the last has a bound on a cost, and takes the new network of the highest prediction plus `curiosity`
    standard deviations under it (`Pool.choose`); with several qualities a place takes one of them by chance.
    With limits on costs only networks that keep them are asked for.

    Costs are the device's, not predicted, where it knows those of any network; else they are predicted from
    the networks that were asked for. A space that can be listed is searched as a whole; in a larger one the
    candidates are mutated and crossed members of the front. Networks whose live operations are equal are one
    network to it, and none is asked for twice.

    Args:
        space: Search space.
        objectives: A quality, then further ones and costs of the device.
        limits: Limits of the run; those on costs restrict what is asked for.
        seed: Seed of the generator.
        device: Says what networks cost.
        population_size: Networks per generation; fewer than 5 wait until 5 are known.
        num_candidates: Children per generation in spaces that are too large to list.
        curiosity: Standard deviations that are added to a prediction.

    Raises:
        ValueError: A size below 1, or no cost.

    Source: this project.
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        limits: tuple[Limit, ...],
        seed: int,
        device: Evaluator,
        *,
        population_size: Count,
        num_candidates: Count,
        curiosity: NotNegative,
    ) -> None:
        self.space, self.objectives, self.limits = space, objectives, limits
        self.population_size, self.num_candidates, self.curiosity = population_size, num_candidates, curiosity
        self._device = device
        self._pool = Pool(space, device, objectives[1:], limits)
        if not self._pool.costs:
            raise ValueError(
                "strategy=surrogate needs a quality and a cost of the device, not "
                f"{[objective.metric for objective in objectives]}"
            )
        self._qualities = [objective for objective in objectives if objective not in self._pool.costs]
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._asked = 0
        self._trials: dict[Genotype, Trial] = {}  # by form
        self._fitted = 0  # evaluated networks at the last fit
        self._hopes: dict[Genotype, FloatArray] = {}  # of every form, one per quality

    def ask(self) -> list[Genotype]:
        """The next population; networks repeat only when there are no new ones."""
        if not self._pool.listed:
            self._pool = self._children()
        elif not self._trials:
            self._pool.add(self.space.all())
        forms = self._pool.candidates().forms
        new = np.array([form not in self._trials for form in forms], dtype=bool)
        hope = self._hoped(forms)
        population = self._pool.choose(hope, new, self.population_size, self._rng, unbounded=True)
        population = population or self.space.sample(self._rng, 1)
        self._asked = len(population)
        return population

    def tell(self, trials: Sequence[Trial]) -> None:
        """Keep the trials of a population."""
        check_told(trials, self._asked)
        for trial, form in zip(trials, self._pool.forms([t.genotype for t in trials]), strict=True):
            self._trials.setdefault(form, trial)

    def result(self) -> list[Trial]:
        """The front of all evaluated networks."""
        return front(list(self._trials.values()), self.objectives)

    def _hoped(self, forms: Sequence[Genotype]) -> FloatArray:
        """What is hoped for of each form, (n, qualities): uniform draws while too little is known."""
        known = [form for form, trial in self._trials.items() if np.isfinite(self._cost_of(trial)).all()]
        if len(known) < FEWEST:
            return self._rng.random((len(forms), len(self._qualities)))
        if not self._pool.listed or not self._hopes or len(known) >= GROWTH * self._fitted:
            self._fitted = len(known)
            X, every = self._pool.numbers(known), self._pool.numbers(forms)
            y = -costs([self._trials[form] for form in known], self._qualities)
            columns = [self._predicted(X, each, every) for each in y.T]
            self._hopes = dict(zip(forms, np.column_stack(columns), strict=True))
        return np.array([self._hopes[form] for form in forms])

    def _predicted(self, X: FloatArray, y: FloatArray, every: FloatArray) -> FloatArray:
        """Prediction plus `curiosity` deviations of one quality, on the model's scale, (n,)."""
        scale = Gap(y).to(y)
        if len(y) <= MOST_PROCESSED:
            mean, deviation = gaussian_process(X, scale, self._seed, LEAST_NOISE)(every)
        else:
            mean, deviation = random_forest(X, scale, self._seed)(every)
        return mean + self.curiosity * deviation

    def _cost_of(self, trial: Trial) -> FloatArray:
        return costs([trial], self._pool.costs)[0]

    def _children(self) -> Pool:
        """A pool of the evaluated networks, and of strangers at first, later of children of the front."""
        pool = Pool(self.space, self._device, self._pool.costs, self.limits)
        known = list(self._trials.values())
        parents = [trial.genotype for trial in self.result()]
        found: dict[Genotype, Genotype] = {}
        for _ in range(TRIES * self.num_candidates):
            inherits = parents and len(known) >= FEWEST
            child = self._child(parents) if inherits else self.space.sample(self._rng, 1)[0]
            (form,) = pool.forms([child])
            if form not in self._trials:
                found.setdefault(form, child)
            if len(found) == self.num_candidates:
                break
        if known:
            pool.add([trial.genotype for trial in known], known)
        children = list(found.values())
        if self._device.exhaustive:
            pool.add(children)
        elif children:
            pool.add(children, self._priced(children, known))
        return pool

    def _child(self, parents: Sequence[Genotype]) -> Genotype:
        """A mix of two parents, or one of them where the mix is no network, with one to three changes."""
        mother, father = (parents[int(self._rng.integers(len(parents)))] for _ in range(2))
        take = self._rng.random(len(mother)) < 0.5
        child = tuple(a if own else b for a, b, own in zip(mother, father, take, strict=True))
        try:
            self.space.check(child)
        except ValueError:
            child = mother
        for _ in range(self._rng.integers(1, 4)):
            child = self.space.mutate(child, self._rng)
        return child

    def _priced(self, children: Sequence[Genotype], known: Sequence[Trial]) -> list[Trial]:
        """Children with costs predicted by the networks that were asked for; 0 before 5 are known."""
        seen = [trial for trial in known if np.isfinite(self._cost_of(trial)).all()]
        cost = np.zeros((len(children), len(self._pool.costs)))
        if len(seen) >= FEWEST:
            X = self._pool.numbers(self._pool.forms([trial.genotype for trial in seen]))
            y = costs(seen, self._pool.costs)
            every = self._pool.numbers(self._pool.forms(children))
            cost = np.column_stack(
                [gaussian_process(X, each, self._seed, LEAST_NOISE)(every)[0] for each in y.T]
            )
        return [Trial(child, self._pool.metrics(row), 0) for child, row in zip(children, cost, strict=True)]
