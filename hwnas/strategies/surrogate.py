"""Search by a model of the quality: an evaluation is spent where it may improve most limits most."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from hwnas.core import (
    Count,
    Evaluator,
    FloatArray,
    Genotype,
    Hints,
    Limit,
    NotNegative,
    Objective,
    SearchSpace,
    Strategy,
    Trial,
    checked,
    costs,
    front,
    trials_of,
)
from hwnas.strategies.evolution import check_told
from hwnas.strategies.gaussian_process import GaussianProcess, features_and_operations
from hwnas.strategies.pool import Pool, nearest
from hwnas.strategies.predictor import Gap

FEWEST = 5
"""Evaluated networks that a model is fitted to, at least."""

LEVELS = 20
"""Bounds on a cost whose best networks are to be improved."""

MOST_KNOWN = 400
"""Evaluated networks that a model begins with, at most: the best half, and others by chance."""

MOST_FITTED = 200
"""Evaluated networks that a model's scales are chosen by, at most."""

GROWTH = 1.5
"""Factor by which a model has grown when it begins anew, with new scales."""

MOST_WATCHED = 2000
"""Candidates that are predicted between two such beginnings, at most: the most hopeful ones."""

MOST_COMPARED = 500
"""Candidates whose expected improvement is computed, at most: the most hopeful ones."""

MOST_HINTED = 500
"""Networks that the model of a source knows, at most."""

TWINS = 2.0
"""Evaluated pairs of one form that the noise of the model counts as, for the noise between such networks."""

REFRESHED = 0.1
"""Children per population, as a fraction of `num_candidates`."""

TRIES = 20
"""Draws per child that is to be of a new form, at most."""


class Surrogate(Strategy):
    """Evaluate the networks that promise the largest expected improvement under bounds over all costs.

    The first `FEWEST` networks, or the first population, are far from each other in `SearchSpace.features`.
    Later, a Gaussian process of each quality is fitted to the evaluated networks over features and live
    operations, on a scale of gaps to the best (`Gap`). The *expected improvement* of a network is the mean
    over its predicted distribution of what it would add to the best known quality under a bound, summed over
    `LEVELS` bounds that it keeps, which are spread over the quantiles of the costs. With limits on costs only
    networks that keep them are asked for, and the limits are the only bound. A population is chosen one by
    one, each as if those before it had been evaluated with the predicted outcome. With several qualities a
    place takes one of them by chance.

    Costs are the device's, not predicted, where it knows those of any network; else they are predicted from
    the networks that were asked for. A space that can be listed is searched as a whole; in a larger one
    candidates are mutated and crossed, half from the front and half from the best candidates before them.
    Networks whose live operations are equal, of one *form*, have the same prediction. The cheapest is asked
    for first, others only where the noise between such networks, as far as it is known, promises more.

    Args:
        space: Search space.
        objectives: A quality, then further ones and costs of the device.
        limits: Limits of the run; those on costs restrict what is asked for.
        seed: Seed of the generator.
        device: Says what networks cost.
        sizes: What knows further costs that limits may name, e.g. parameters.
        population_size: Networks per generation; fewer than 5 wait until 5 are known.
        num_candidates: Candidates that are kept in spaces that are too large to list.
        curiosity: Factor of predicted standard deviations; 1: as predicted.

    Raises:
        ValueError: A size below 1, or no cost.

    Source: this project; expected improvement is from Mockus, 1975, and Jones et al., EGO, Journal of Global
    Optimization 1998; a population by predicted outcomes is their kriging believer (Ginsbourger et al.,
    2010). Every number is a choice, made on CIFAR-10 with the latencies of two devices.
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        limits: tuple[Limit, ...],
        seed: int,
        device: Evaluator,
        sizes: Sequence[Evaluator] = (),
        *,
        population_size: Count,
        num_candidates: Count,
        curiosity: NotNegative,
    ) -> None:
        self.space, self.objectives, self.limits = space, objectives, limits
        self.population_size, self.num_candidates, self.curiosity = population_size, num_candidates, curiosity
        self._device = device
        self._pool = Pool(space, device, objectives[1:], limits, sizes)
        if not self._pool.costs:
            raise ValueError(
                "strategy=surrogate needs a quality and a cost of the device, not "
                f"{[objective.metric for objective in objectives]}"
            )
        self._costs = self._pool.costs
        self._qualities = [objective for objective in objectives if objective not in self._costs]
        self._limited = any(limit.metric in {cost.metric for cost in self._costs} for limit in limits)
        self._rng = np.random.default_rng(seed)
        self._asked = 0
        self._trials: dict[Genotype, Trial] = {}
        self._front: list[Trial] = []
        # Evaluated networks of finite metrics, in order: numbers (n, d), qualities, costs, forms.
        self._X, self._y = np.empty((0, 0)), np.empty((0, len(self._qualities)))
        self._cost, self._form = np.empty((0, len(self._costs))), list[Genotype]()
        self._candidates = CandidateRows(len(self._costs))
        self._members: dict[Genotype, list[Genotype]] = {}  # networks of each form, the cheapest first
        self._scaling: tuple[FloatArray, FloatArray] | None = None  # mean and deviation of features
        self._models: list[GaussianProcess] = []  # of every quality
        self._pricers: list[GaussianProcess] = []  # of every cost, if the device does not know it
        self._modelled = np.empty(0, dtype=np.intp)  # evaluated networks that the models know
        self._begun = 0  # how many these were when the models began
        self._watched = np.empty(0, dtype=np.intp)  # candidates that the models predict
        self._seen = (0, 0)  # evaluated networks and candidates that the models were told of
        self._hopeful: list[Genotype] = []  # the best candidates of the last population
        self._first: list[Genotype] = []  # the best networks that were known before the search
        self._hints: list[tuple[GaussianProcess, FloatArray]] = []  # model and numbers per source

    def hint(self, hints: Hints) -> None:
        """Have the best known networks in the first population, and what is known as features of all others.

        The numbers of a source are replaced by their quantiles, which a Gaussian process over the structure
        smooths and predicts where they are not known.
        """
        self._first = hints.best(max(FEWEST, self.population_size))
        drawn = self.space.sample(np.random.default_rng(0), MOST_WATCHED)
        self._numbers(self._pool.forms(drawn))  # what features are standardised by
        for known in hints.sources.values():
            forms = dict(zip(self._pool.forms(list(known)), known.values(), strict=True))
            if len(forms) < FEWEST or len(set(forms.values())) < 2:
                continue
            rows = self._rng.permutation(len(forms))[:MOST_HINTED]
            X = self._numbers(list(forms))[rows]
            values = np.array(list(forms.values()))[rows]
            sides = [np.searchsorted(np.sort(values), values, side) for side in ("left", "right")]
            y = np.mean(sides, axis=0) / len(rows)
            model = GaussianProcess(self._num_features)
            model.fit(X[:MOST_FITTED], y[:MOST_FITTED])
            model.know(X)
            self._hints.append((model, y))

    def ask(self) -> list[Genotype]:
        """The next population; networks repeat only when there are no new ones."""
        if self._first:
            population, self._first = self._first[: self.population_size], self._first[self.population_size :]
            self._asked = len(population)
            if self._pool.listed:
                self._list()
            return population
        few = len(self._y) < FEWEST
        if self._pool.listed:
            self._list()
        else:
            self._breed(strangers=few)
        rows = self._distant() if few else self._improving()
        population = [self._candidates.names[row] for row in rows] or self.space.sample(self._rng, 1)
        self._asked = len(population)
        return population

    def tell(self, trials: Sequence[Trial]) -> None:
        """Keep the trials of a population."""
        check_told(trials, self._asked)
        new = [trial for trial in trials if trial.genotype not in self._trials]
        if not new:
            return
        forms = self._pool.forms([trial.genotype for trial in new])
        self._trials |= {trial.genotype: trial for trial in new}
        self._front = front([*self._front, *new], self.objectives)
        for form in forms:
            self._next_twin(form)
        y, cost = -costs(new, self._qualities), costs(new, self._costs)
        rows = np.flatnonzero(np.isfinite(np.column_stack([y, cost])).all(axis=1))
        if len(rows):
            X = self._looked_at([forms[row] for row in rows])
            self._X = np.vstack([self._X.reshape(-1, X.shape[1]), X])
            self._y, self._cost = np.vstack([self._y, y[rows]]), np.vstack([self._cost, cost[rows]])
            self._form += [forms[row] for row in rows]

    def result(self) -> list[Trial]:
        """The front of all evaluated networks."""
        return list(self._front)

    def _numbers(self, forms: Sequence[Genotype]) -> FloatArray:
        """Features and operations, (n, d); features are standardised by the first networks it is asked of."""
        features = self.space.features(forms)
        if self._scaling is None:
            deviation = features.std(axis=0)
            self._scaling = features.mean(axis=0), np.where(deviation > 0, deviation, np.inf)
        mean, deviation = self._scaling
        scaled = ((features - mean) / deviation)[:, np.isfinite(deviation)]
        halves = features_and_operations(scaled, self.space.onehot(forms).reshape(len(forms), -1))
        return np.hstack(halves)

    def _looked_at(self, forms: Sequence[Genotype]) -> FloatArray:
        """What models of qualities look at, (n, d): before features and operations what sources say."""
        X = self._numbers(forms)
        columns = []
        for model, y in self._hints:
            model.watch(X)
            columns.append((model.predict(y)[0] - 0.5) * 12**0.5)  # of deviation 1 over all networks
            model.keep(np.empty(0, dtype=np.intp))
        return np.column_stack([*(column / len(columns) ** 0.5 for column in columns), X])

    @property
    def _num_features(self) -> int:
        """Features, without what sources say."""
        assert self._scaling is not None
        return int(np.isfinite(self._scaling[1]).sum())

    def _list(self) -> None:
        """Make all networks of the space candidates, once; those of one form are one candidate."""
        if not self._trials and not self._members:
            self._pool.add(self.space.all())
            self._members = self._pool.members()
            found = self._pool.candidates()
            self._add(found.genotypes, found.forms, found.costs)

    def _add(self, names: Sequence[Genotype], forms: Sequence[Genotype], cost: FloatArray | None) -> None:
        """Add candidates of costs (n, c), or of those that are found out here, if they are supported."""
        if not len(names):
            return
        X = self._looked_at(forms)
        cost = self._priced(names, X) if cost is None else cost
        rows = np.flatnonzero(np.isfinite(cost).all(axis=1))
        names, forms = ([of[int(row)] for row in rows] for of in (names, forms))
        self._candidates.add(names, forms, X[rows], cost[rows], self._pool.excess(names, cost[rows]))

    def _next_twin(self, form: Genotype) -> None:
        """Have another network of a form in the place of one that is evaluated, or none."""
        row = self._candidates.row.get(form)
        if row is not None:
            self._candidates.open[row] = False
            for name in self._members.get(form, []):
                cost = self._pool.cost(name)
                if name not in self._trials and self._pool.excess([name], cost[None])[0] == 0:
                    self._candidates.replace(row, name, cost)
                    break

    def _breed(self, *, strangers: bool) -> None:
        """Have more candidates: strangers at first, later children."""
        parents = [some for some in ([t.genotype for t in self._front], self._hopeful) if some]
        wanted = max(self.population_size, round(REFRESHED * self.num_candidates))
        if strangers or not parents:
            parents, wanted = [], max(wanted, self.num_candidates - int(self._candidates.open.sum()))
        known = {*self._form, *self._candidates.row}
        found: dict[Genotype, Genotype] = {}
        for _ in range(TRIES):
            some = [self._child(parents) for _ in range(wanted)] if parents else []
            some = some or self.space.sample(self._rng, wanted)
            whole = self.space.is_connected(some)
            for name, form, there in zip(some, self._pool.forms(some), whole, strict=True):
                if there and form not in known and name not in self._trials:
                    found.setdefault(form, name)
            if len(found) >= wanted:
                break
        self._add(list(found.values())[:wanted], list(found)[:wanted], None)

    def _child(self, parents: Sequence[Sequence[Genotype]]) -> Genotype:
        """A mix of two parents, or one of them where the mix is no network, with one to three changes."""
        some = [parents[int(self._rng.integers(len(parents)))] for _ in range(2)]
        mother, father = (each[int(self._rng.integers(len(each)))] for each in some)
        take = self._rng.random(len(mother)) < 0.5
        child = tuple(a if own else b for a, b, own in zip(mother, father, take, strict=True))
        try:
            self.space.check(child)
        except ValueError:
            child = mother
        for _ in range(self._rng.integers(1, 4)):
            child = self.space.mutate(child, self._rng)
        return child

    def _priced(self, names: Sequence[Genotype], X: FloatArray) -> FloatArray:
        """Costs of networks, (n, c): the device's, or predicted; 0 before `FEWEST` are known."""
        if self._device.exhaustive:
            return costs(trials_of(names, [self._device.evaluate(names)], 0), self._costs)
        cost = np.zeros((len(names), len(self._costs)))
        for column, model in enumerate(self._pricers):
            model.watch(X)
            cost[:, column] = model.predict(self._cost[self._modelled[: self._begun], column])[0]
            model.keep(np.empty(0, dtype=np.intp))
        return cost

    def _distant(self) -> list[int]:
        """Candidates for a population that are far from each other, and from evaluated networks."""
        rows = self._rng.permutation(np.flatnonzero(self._candidates.allowed))[:MOST_COMPARED]
        if not len(rows):
            return []
        place = self._candidates.X[rows, : self._num_features]
        near = np.full(len(rows), np.inf)  # squared distance to the nearest chosen one
        for other in self._X[:, : self._num_features]:
            near = np.minimum(near, ((place - other) ** 2).sum(axis=1))
        chosen: list[int] = []
        for _ in range(min(self.population_size, len(rows))):
            last = int(near.argmax())
            chosen.append(int(rows[last]))
            near = np.minimum(near, ((place - place[last]) ** 2).sum(axis=1))
            near[last] = -1.0
        return chosen

    def _improving(self) -> list[int]:
        """Candidates for a population, of the largest expected improvement, one by one."""
        y = np.column_stack([Gap(each).to(each) for each in self._y.T])
        levels = self._levels()
        reached = _reached(self._cost, levels)[:, :, None]
        best = np.where(reached, y[:, None], y.min(axis=0)).max(axis=0)  # (levels, qualities)
        if not self._models or len(self._modelled) >= GROWTH * self._begun:
            self._begin(y)
            most = MOST_WATCHED
        else:
            self._go_on()
            most = MOST_WATCHED if self._pool.listed else self.num_candidates
        mean, variance = self._predicted(y)
        hope = self._hope(mean, variance, levels, best)
        if len(hope) > most:
            rows = np.sort(np.argsort(-hope, kind="stable")[:most])
            hope, mean, variance, self._watched = hope[rows], mean[rows], variance[rows], self._watched[rows]
            for model in self._models:
                model.keep(rows)
        order = np.argsort(-hope, kind="stable")
        order = order[self._candidates.allowed[self._watched[order]]][:MOST_COMPARED]
        self._hopeful = [
            self._candidates.names[row] for row in self._watched[order[: 10 * self.population_size]]
        ]
        return self._one_by_one(order, mean[order], variance[order], levels, best)

    def _levels(self) -> FloatArray:
        """Bounds on the costs, (levels, c): quantiles of one cost each; with limits, none but these."""
        if self._limited:
            return np.full((1, len(self._costs)), np.inf)
        every = self._pool.costs_of_all() if self._pool.listed else self._candidates.cost
        every = every[np.isfinite(every).all(axis=1)]
        bounds = np.full((len(self._costs), LEVELS, len(self._costs)), np.inf)
        for column in range(len(self._costs)):
            parts = (np.arange(LEVELS) + self._rng.random(LEVELS)) / LEVELS
            bounds[column, :-1, column] = np.quantile(every[:, column], parts[:-1])
        return bounds.reshape(-1, len(self._costs))

    def _begin(self, y: FloatArray) -> None:
        """Begin models of qualities y (n, q) with new scales, and watch all candidates."""
        rows, half = np.arange(len(y)), MOST_KNOWN // 2
        if len(y) > MOST_KNOWN:
            order = np.argsort(-y.argsort(axis=0).argsort(axis=0).max(axis=1), kind="stable")
            rows = np.sort([*order[:half], *self._rng.permutation(order[half:])[:half]])
        some = np.sort(self._rng.permutation(len(rows))[:MOST_FITTED])
        self._modelled, self._begun = rows, len(rows)
        if not self._models:
            num = len(self._hints) + self._num_features
            self._models = [GaussianProcess(num) for _ in self._qualities]
            priced = [] if self._device.exhaustive else self._costs
            self._pricers = [GaussianProcess(num) for _ in priced]
        targets = [*y.T, *self._cost.T]
        for model, target in zip([*self._models, *self._pricers], targets, strict=False):
            model.fit(self._X[rows[some]], target[rows[some]])
            model.know(self._X[rows])
        if not self._pool.listed:
            self._candidates.keep(np.flatnonzero(self._candidates.open))
        if self._pricers:
            self._candidates.cost = self._priced(self._candidates.names, self._candidates.X)
            self._candidates.excess = self._pool.excess(self._candidates.names, self._candidates.cost)
        self._watched = np.flatnonzero(self._candidates.open)
        for model in self._models:
            model.watch(self._candidates.X[self._watched])
        self._seen = len(y), len(self._candidates.names)

    def _go_on(self) -> None:
        """Have the models know the networks that were evaluated last, and watch new candidates."""
        known, candidates = (
            np.arange(before, now)
            for before, now in zip(self._seen, (len(self._y), len(self._candidates.names)), strict=True)
        )
        for model in self._models:
            model.add(self._X[known])
            model.watch(self._candidates.X[candidates])
        self._modelled = np.append(self._modelled, known)
        self._watched = np.append(self._watched, candidates)
        self._seen = len(self._y), len(self._candidates.names)

    def _predicted(self, y: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Means and variances of the qualities of watched candidates, (N, q) each."""
        forms = {form: place for place, form in enumerate(dict.fromkeys(self._form))}
        form = np.array([forms[form] for form in self._form])
        times = np.bincount(form)
        means, variances = [], []
        for model, target in zip(self._models, y.T, strict=True):
            mean, variance, noise = model.predict(target[self._modelled])
            middle = np.bincount(form, target) / times
            apart = float(((target - middle[form]) ** 2).sum())
            twins = (TWINS * noise + apart) / (TWINS + len(form) - len(times))
            means.append(mean)
            variances.append(variance + np.where(self._candidates.twin[self._watched], twins, noise))
        return np.column_stack(means), np.column_stack(variances)

    def _hope(
        self, mean: FloatArray, variance: FloatArray, levels: FloatArray, best: FloatArray
    ) -> FloatArray:
        """Deviations that a candidate is above the best under the bound that it may improve most, (N,)."""
        reached = _reached(self._candidates.cost[self._watched], levels)
        hopes = [
            (mean[:, place] - np.where(reached, best[:, place], np.inf).min(axis=1))
            / np.sqrt(variance[:, place])
            for place in range(mean.shape[1])
        ]
        return np.where(reached.any(axis=1), np.max(hopes, axis=0), -np.inf)

    def _one_by_one(
        self,
        rows: NDArray[np.intp],
        mean: FloatArray,
        variance: FloatArray,
        levels: FloatArray,
        best: FloatArray,
    ) -> list[int]:
        """The choice among watched candidates, by their rows (m,), with what is predicted of them (m, q)."""
        reached = _reached(self._candidates.cost[self._watched[rows]], levels)
        taught = [np.empty((0, len(rows))) for _ in self._models]
        for model in self._models:
            model.compare(rows)
        open_, chosen = np.ones(len(rows), dtype=bool), []
        for _ in range(min(self.population_size, len(rows))):
            which = int(self._rng.integers(len(self._models)))
            deviation = np.maximum(self.curiosity * np.sqrt(np.maximum(variance[:, which], 0.0)), 1e-9)
            value = _expected_improvement(mean[:, which], deviation, best[:, which], reached)
            if not value[open_].any():
                value = mean[:, which] + deviation
            last = int(np.where(open_, value, -np.inf).argmax())
            chosen.append(int(self._watched[rows[last]]))
            open_[last] = False
            for place, model in enumerate(self._models):
                lesson = model.lessons(last, taught[place])
                taught[place] = np.vstack([taught[place], lesson])
                variance[:, place] -= lesson**2
            best = np.where(reached[last][:, None], np.maximum(best, mean[last]), best)
        return chosen


class CandidateRows:
    """Networks that may be asked for, as rows.

    Args:
        num_costs: c.

    Attributes:
        names: The n networks.
        forms: Their forms.
        X: What models look at, (n, d).
        cost: Costs, (n, c).
        excess: Violations of the limits on costs, (n,).
        open: Which may be asked for, (n,).
        twin: Which have the form of an evaluated network, (n,).
        row: The row of each form.
    """

    def __init__(self, num_costs: int) -> None:
        self.names: list[Genotype] = []
        self.forms: list[Genotype] = []
        self.X, self.cost, self.excess = np.empty((0, 0)), np.empty((0, num_costs)), np.empty(0)
        self.open = self.twin = np.empty(0, dtype=bool)
        self.row: dict[Genotype, int] = {}

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Which may be asked for and keep the limits; if none does, those that are nearest to it, (n,)."""
        allowed = self.open.copy()
        allowed[self.open] = nearest(self.excess[self.open])
        return allowed

    def add(
        self,
        names: Sequence[Genotype],
        forms: Sequence[Genotype],
        X: FloatArray,
        cost: FloatArray,
        excess: FloatArray,
    ) -> None:
        """Add networks."""
        self.row |= {form: len(self.names) + place for place, form in enumerate(forms)}
        self.names, self.forms = [*self.names, *names], [*self.forms, *forms]
        self.X = np.vstack([self.X.reshape(-1, X.shape[1]), X])
        self.cost, self.excess = np.vstack([self.cost, cost]), np.append(self.excess, excess)
        self.open = np.append(self.open, np.ones(len(names), dtype=bool))
        self.twin = np.append(self.twin, np.zeros(len(names), dtype=bool))

    def replace(self, row: int, name: Genotype, cost: FloatArray) -> None:
        """Have another network of the same form in the place of an evaluated one."""
        self.names[row], self.cost[row] = name, cost
        self.open[row] = self.twin[row] = True

    def keep(self, rows: NDArray[np.intp]) -> None:
        """Forget all networks but some."""
        self.names, self.forms = ([of[row] for row in rows] for of in (self.names, self.forms))
        self.X, self.cost, self.excess = self.X[rows], self.cost[rows], self.excess[rows]
        self.open, self.twin = self.open[rows], self.twin[rows]
        self.row = {form: row for row, form in enumerate(self.forms)}


def _reached(cost: FloatArray, levels: FloatArray) -> NDArray[np.bool_]:
    """Which bounds (levels, c) networks of costs (n, c) keep, (n, levels)."""
    return np.all(cost[:, None] <= levels, axis=2)


def _expected_improvement(
    mean: FloatArray, deviation: FloatArray, best: FloatArray, reached: NDArray[np.bool_]
) -> FloatArray:
    """Sum over bounds of what networks are expected to add to the best quality under each, (m,).

    E max(y - b, 0) = s (z Phi(z) + phi(z)) for y of mean m and deviation s, with z = (m - b) / s.

    Args:
        mean: Predicted qualities, (m,).
        deviation: Their standard deviations, (m,).
        best: The best known quality under each bound, (levels,).
        reached: Which bounds a network keeps, (m, levels).
    """
    z = (mean[:, None] - best) / deviation[:, None]
    gain = deviation[:, None] * (z * ndtr(z) + np.exp(-0.5 * z * z) / np.sqrt(2 * np.pi))
    return np.where(reached, gain, 0.0).sum(axis=1)
