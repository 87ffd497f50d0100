"""A cascade of estimates: cheap scores of many networks, trainings of some, a model of what they tell."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
from annotated_types import Len
from scipy.stats import rankdata

from hwnas.core import (
    DEVIATION,
    Evaluator,
    FloatArray,
    Genotype,
    Limit,
    NotNegative,
    Objective,
    SearchSpace,
    Strategy,
    Trial,
    WholeNumber,
    checked,
    front,
    non_dominated,
    violations,
)
from hwnas.strategies.evolution import check_told
from hwnas.strategies.pool import Pool
from hwnas.strategies.predictor import MODELS, Gap, best_model, gaussian_process

ESTIMATE = "estimate"
"""Metrics that this strategy adds to trials: a network's estimated quality, and how unsure it is."""

SCORED_IN = 4
"""Populations in which networks of a space too large to list are scored; all but the first are children."""

FEWEST = (100, 4)
"""Networks that are scored and trained, at least: fewer say nothing. A budget may leave out trainings."""

FEW_SCORED = 24
"""Networks that are scored, at least, where all that counts before trainings is what is expected of them."""

SCORES_PART, USED_PART = 0.15, 0.9
"""Largest part of a budget for scores, and for all evaluations; the rest is for models."""

MOST = (500, 48)
"""Networks that a budget has scored and trained shortly, at most: what is left goes into long trainings."""

FEW_LONG = 6
"""Long trainings that a model needs, and that a budget must suffice for, or there are none."""

PRIOR_PART = 0.8
"""Part of a rung's prior in its estimates; the rest is the model of its trainings.

Short trainings favour networks that learn fast over those that can learn more; scores know of that.
"""

BATCH = 4
"""Networks of a batch of trainings, at least."""

TRIES = 50
"""Draws per network that is to be of a new form, at most."""

PROPOSED, PROPOSED_TRIES = 2000, 3
"""Networks of which a population is chosen where only what is expected counts, and draws for each."""


class Cascade(Strategy):
    """Score many networks without training, train some of them shortly and a few of these longer.

    The evaluator has three rungs (`evaluator=cascade`): zero-cost scores, short trainings, long trainings.

    1. Score `networks[0]` networks: drawn uniformly in a space that can be listed; else the first quarter,
       and then children of the front of scores and costs, of networks that keep the limits; where all that
       counts is what is expected before (`Evaluator.expected_part`), those of which most is, see `_to_score`.
    2. Train `networks[1]` in batches. Each network is the one of the highest estimate plus `curiosity` times
       its standard deviation under a bound on the cost; the bounds are spread over the quantiles of the cost,
       so that one run serves every limit. One of the first batch is drawn uniformly. With limits only
       networks that keep them are trained. The estimate is that of a model that is fitted to all trainings,
       `best_model`, over the operations, `SearchSpace.features` and quantiles of the scores, smoothed by a
       Gaussian process, which also predicts those of networks that were not scored. It predicts what is left
       of a line over a prior on a scale of gaps to the best, `Gap`. The prior is the sum of the logarithms of
       these quantiles; where something is known before any evaluation (`Evaluator.expected`), the weighted
       mean of both. An estimate is the mean of model and prior, with the weight `PRIOR_PART` of the latter.
    3. Train `networks[2]` longer, chosen likewise. The prior of their model is the estimate by short ones.
    4. Return the front of estimate and cost of all networks that are known or can be listed. The last
       population is this front and all networks of earlier ones, with the estimates of the last model.

    Networks whose live operations are equal are one network to it. Before anything is trained the estimate is
    the fraction of networks with a lower prior.

    Args:
        space: Search space.
        objectives: The estimate, then costs.
        limits: Limits of the run; those on costs restrict what is trained.
        seed: Seed of the generator.
        generations: Populations to ask for, at most; batches are larger if there are few.
        evaluator: With three rungs.
        device: Says what networks cost; if it is exhaustive, also of networks that were never asked for.
        sizes: What knows further costs that limits may name, e.g. parameters.
        networks: Networks per rung, unless a budget plans them; of the last none, or at least `FEW_LONG`.
        curiosity: Standard deviations that are added to an estimate when a network is chosen for training.

    Raises:
        ValueError: An evaluator without three rungs, no cost, too few generations or networks.

    Source: this project; every number is a choice. Measured in docs/measurements.md.
    """

    rung: int | None = 0

    @checked
    def __init__(
        self,
        space: SearchSpace,
        objectives: tuple[Objective, ...],
        limits: tuple[Limit, ...],
        seed: int,
        generations: int,
        evaluator: Evaluator,
        device: Evaluator,
        sizes: Sequence[Evaluator] = (),
        *,
        networks: Annotated[Sequence[WholeNumber], Len(3, 3)],
        curiosity: NotNegative,
    ) -> None:
        if len(evaluator.rungs) != 3 or objectives[0].metric != ESTIMATE:
            raise ValueError(
                f"strategy=cascade needs evaluator=cascade, with scores and trainings, not {evaluator.name}"
            )
        if not (networks[0] and networks[1]):
            raise ValueError(f"networks must score and train at least one network, not {list(networks)}")
        if 0 < networks[2] < FEW_LONG:
            raise ValueError(
                f"networks must train none or at least {FEW_LONG} networks longer, not {list(networks)}"
            )
        if len(objectives) < 2:
            raise ValueError("strategy=cascade needs a device with a cost")
        if generations < SCORED_IN + 4:
            raise ValueError(
                f"generations must be at least {SCORED_IN + 4} for strategy=cascade, not {generations}"
            )
        self.space, self.objectives, self.limits = space, objectives, limits
        self.networks = tuple(networks)
        self.curiosity = curiosity
        self._seed, self._generations = seed, generations
        self._rng = np.random.default_rng(seed)
        self._pool = Pool(space, device, objectives, limits, sizes)
        self._evaluator = evaluator
        self._scores = tuple(evaluator.rungs[0].metrics)
        self._read = (*self._scores, *(next(iter(rung.metrics)) for rung in evaluator.rungs[1:]))
        self._accuracies = tuple(next(iter(rung.metrics)) for rung in evaluator.rungs[1:])
        self._schedule: Iterator[tuple[int | None, int]] | None = None
        self._asked: list[Genotype] = []
        self._seen: dict[Genotype, None] = {}  # networks that were asked for, in order
        self._known: dict[Genotype, dict[str, float]] = {}  # of every form its scores and accuracies
        self._estimates: dict[Genotype, tuple[float, float, float]] = {}  # see `_estimated`
        self._models: dict[str, tuple[str, int]] = {}  # of every accuracy, and the networks it was chosen by
        self._numbers_of = (0, 0)  # forms, and scored ones
        self._matrix: FloatArray = np.empty((0, 0))
        self._answer: list[Trial] = []

    def plan(self, seconds: float, each: Sequence[float], spent: float = 0.0, part: float = 1.0) -> None:
        """Set `networks` by a budget.

        Args:
            seconds: The budget.
            each: Seconds per network and rung.
            spent: Seconds of the budget that are gone.
            part: Of the budget, for the search.

        Raises:
            ValueError: The budget does not suffice for the scores of the fewest networks; says what does.
        """
        fewest = FEWEST[0] if self._evaluator.expected_part < 1 else FEW_SCORED
        least = fewest * each[0]
        needed = spent + least / USED_PART
        if seconds < needed:
            raise ValueError(
                f"budget must be at least {math.ceil(needed)}s here, not {seconds:g}s: getting ready took "
                f"{spent:.1f} s, scores of {fewest} networks take {least:.1f} s"
            )
        left = max(least, USED_PART * (part * seconds - spent))
        scored = min(MOST[0], max(fewest, int(SCORES_PART * left / each[0])))
        short = int((left - scored * each[0]) / each[1])
        long = int((left - scored * each[0] - MOST[1] * each[1]) / each[2])
        if short < FEWEST[1]:  # too few for a model
            scored, short = min(MOST[0], int(left / each[0])), 0
        self.networks = (scored, min(short, MOST[1]), long) if long >= FEW_LONG else (scored, short, 0)

    def ask(self) -> list[Genotype]:
        """The next networks to score or to train; at last the estimated front, and all earlier networks."""
        if self._schedule is None:
            self._schedule = self._populations()
            if self._pool.listed:
                self._pool.add(self.space.all())
        self.rung, size = next(self._schedule)
        if self.rung is None:
            best = [trial.genotype for trial in self.result()]
            self._asked = list(dict.fromkeys([*best, *self._seen]))
        elif self.rung == 0:
            self._asked = self._to_score(size)
        else:
            self._asked = self._to_train(size)
        return list(self._asked)

    def tell(self, trials: Sequence[Trial]) -> None:
        """Take scores or accuracies in, and fit the model to all of them."""
        check_told(trials, len(self._asked))
        genotypes = [trial.genotype for trial in trials]
        self._seen.update(dict.fromkeys(genotypes))
        if not self._pool.listed:
            self._pool.add(genotypes, trials)
        for trial, form in zip(trials, self._pool.forms(genotypes), strict=True):
            found = {name: trial.metrics[name] for name in self._read if name in trial.metrics}
            self._known.setdefault(form, {}).update(found)
        self.done = self.rung is None
        if self.done:
            self._answer = list(trials)
        else:
            self._estimates = self._estimated()

    def judged(self, trials: Sequence[Trial]) -> list[Trial]:
        """The trials with `estimate` and `estimate_std`."""
        found = []
        for trial, form in zip(trials, self._pool.forms([t.genotype for t in trials]), strict=True):
            estimate, deviation, _ = self._estimates[form]
            metrics = {ESTIMATE: estimate, ESTIMATE + DEVIATION: deviation, **trial.metrics}
            found.append(replace(trial, metrics=metrics))
        return found

    def result(self) -> list[Trial]:
        """The front of estimate and costs over all networks that are known or can be listed.

        Where limits are on sizes that are no objectives, the front of those that keep them is added.
        """
        if self.done:
            trials = self.judged(self._answer)
            found = front(trials, self.objectives)
            if self._pool.sizes:
                within = [trial for trial in trials if violations([trial], self._pool.limits)[0] == 0]
                found += [trial for trial in front(within, self.objectives) if trial not in found]
            return found
        candidates = self._pool.candidates()
        names, forms, cost, _ = candidates
        estimate = np.array([self._estimates[form][0] for form in forms])
        F = np.column_stack([-estimate, cost])
        rows = np.asarray(non_dominated(F))
        if self._pool.sizes:
            kept = np.flatnonzero(candidates.allowed)
            rows = np.union1d(rows, kept[non_dominated(F[kept])])
        return self.judged(self._pool.trials([names[row] for row in rows], cost[rows]))

    def _populations(self) -> Iterator[tuple[int | None, int]]:
        """Rung and size of every population."""
        scored, short, long = self.networks
        rounds = 1 if self._pool.listed else SCORED_IN
        yield from ((0, size) for size in _divided(scored, rounds))
        left = self._generations - rounds - 1
        batch = max(BATCH, math.ceil((short + long) / (left - 1)))
        yield from ((1, size) for size in _divided(short, math.ceil(short / batch)))
        yield from ((2, size) for size in _divided(long, math.ceil(long / batch)))
        yield None, 0

    def _to_score(self, size: int) -> list[Genotype]:
        """Networks of new forms: uniform ones at first, then children of the front.

        Of a space that cannot be listed those that keep the limits, as long as there are any. Where all that
        counts is what is expected of networks, those of which most is: of all that keep the limits, or
        without any under bounds that are spread over the quantiles of a cost. They are children of published
        networks, if the space has some: the less networks are like others, the less sure is the expectation.
        """
        if self._pool.listed:
            names, forms, *_ = self._pool.candidates()
            new = [name for name, form in zip(names, forms, strict=True) if form not in self._known]
            return [new[row] for row in self._rng.permutation(len(new))[:size]] or [self._stranger()]
        if self._evaluator.expected_part < 1:
            return self._new(size)
        published = [self.space.from_str(text) for text in self.space.presets.values()]
        children = self._new(PROPOSED, published, tries=PROPOSED_TRIES)
        named = list(dict.fromkeys([*published, *children]))
        of_form = zip(named, self._pool.forms(named), strict=True)
        proposed = [name for name, form in of_form if form not in self._known] or children
        within = self._pool.within(proposed)
        if within.any():
            proposed = [proposed[row] for row in np.flatnonzero(within)]
        expected = self._evaluator.expected(proposed)
        assert expected is not None
        size = min(size, len(proposed))
        if self._pool.restricts or not self._pool.exhaustive:
            return [proposed[row] for row in np.argsort(-expected, kind="stable")[:size]]
        cost = self._pool.costs_before(proposed)[:, 0]
        open_ = np.ones(len(proposed), dtype=bool)
        for bound in np.quantile(cost, (np.arange(size) + 1) / size):
            under = np.flatnonzero(open_ & (cost <= bound))
            open_[under[expected[under].argmax()]] = False
        return [proposed[row] for row in np.flatnonzero(~open_)]

    def _new(self, size: int, parents: list[Genotype] | None = None, tries: int = TRIES) -> list[Genotype]:
        """Networks of new forms, of a space that cannot be listed; at least one.

        Args:
            size: How many.
            parents: Of which they are children; None: the front, or nobody at first.
            tries: Draws per network, at most.
        """
        parents = parents or ([trial.genotype for trial in self.result()] if self._known else [])
        chosen: dict[Genotype, Genotype] = {}
        dear: dict[Genotype, Genotype] = {}
        at_once = size if self._pool.restricts else 1
        for _ in range(tries * size // at_once):
            children = [
                self._child(parents[self._rng.integers(len(parents))]) if parents else self._stranger()
                for _ in range(at_once)
            ]
            facts = zip(
                children,
                self._pool.forms(children),
                self._pool.within(children),
                self.space.is_connected(children),
                strict=True,
            )
            for child, form, within, connected in facts:
                if form not in self._known and connected:
                    (chosen if within else dear).setdefault(form, child)
            if len(chosen) >= size:
                break
        return [*chosen.values(), *dear.values()][:size] or [self._stranger()]

    def _stranger(self) -> Genotype:
        return self.space.sample(self._rng, 1)[0]

    def _child(self, parent: Genotype) -> Genotype:
        """The parent with one operation changed, or two or three."""
        for _ in range(self._rng.integers(1, 4)):
            parent = self.space.mutate(parent, self._rng)
        return parent

    def _to_train(self, size: int) -> list[Genotype]:
        """Networks of the highest estimates under bounds on the cost, which were not trained so long yet."""
        accuracy = self._accuracies[(self.rung or 1) - 1]
        names, forms, *_ = self._pool.candidates()
        if not names:
            return [self._stranger()]
        first = not any(self._accuracies[0] in known for known in self._known.values())
        chosen = self._pool.choose(
            np.array([self._estimates[form][2] for form in forms]),
            np.array([accuracy not in self._known.get(form, {}) for form in forms]),
            size,
            self._rng,
            num_drawn=int(first),
        )
        return chosen or names[:1]

    def _estimated(self) -> dict[Genotype, tuple[float, float, float]]:
        """Of every form, by all that was observed: estimate, its deviation, and what may be hoped for.

        The hope is the estimate plus `curiosity` deviations, on the scale of the model.
        """
        forms = self._pool.all_forms()
        numbers = self._numbers(forms)
        mean, std = numbers[:, 0].argsort().argsort() / len(forms), np.zeros(len(forms))
        hope = mean
        for accuracy, least in zip(self._accuracies, (FEWEST[1], FEW_LONG), strict=True):
            known = [self._known.get(form, {}).get(accuracy, np.nan) for form in forms]
            rows = np.flatnonzero(np.isfinite(known))
            if len(rows) < min(least, len(forms)):
                break
            y = np.array(known)[rows]
            scale = Gap(y)
            name = self._model_for(accuracy, numbers[rows], scale.to(y))
            mean, std = MODELS[name](numbers[rows], scale.to(y), self._seed)(numbers)
            prior = numbers[:, 0] - numbers[rows, 0].mean()
            if np.ptp(prior):  # on the scale of the accuracies
                prior = scale.to(y).mean() + scale.to(y).std() / prior.std() * prior
                mean, std = mean + PRIOR_PART * (prior - mean), (1 - PRIOR_PART) * std
            numbers = np.column_stack([mean, numbers[:, 1:]])  # the prior of the next rung's model
            hope = mean + self.curiosity * std
            mean, std = scale.back(mean, std)
        return dict(zip(forms, zip(mean.tolist(), std.tolist(), hope.tolist(), strict=True), strict=True))

    def _model_for(self, accuracy: str, X: FloatArray, y: FloatArray) -> str:
        """The best model of an accuracy, compared again whenever half as many networks more are known."""
        name, compared = self._models.get(accuracy, ("", 0))
        if len(y) >= 1.5 * compared:
            name = best_model(X, y, self._seed)
            self._models[accuracy] = name, len(y)
        return name

    def _numbers(self, forms: Sequence[Genotype]) -> FloatArray:
        """Numbers that models look at, (forms, d).

        The first number is the prior, the others are the scores' quantiles and the structure. A Gaussian
        process over the structure predicts the quantiles, also those of networks that were scored: scores are
        noisy, and the highest of many are mostly so by luck.
        """
        scored = [row for row, form in enumerate(forms) if self._scores[0] in self._known.get(form, {})]
        if self._numbers_of != (len(forms), len(scored)):
            self._numbers_of = (len(forms), len(scored))
            every = self._pool.numbers(forms)
            raw = np.array([[self._known[forms[row]][name] for name in self._scores] for row in scored])
            quantiles = (rankdata(raw, axis=0) - 0.5) / len(raw)
            smooth = gaussian_process(every[scored], quantiles, self._seed)(every)[0]
            smooth = smooth.reshape(len(forms), -1).round(9).clip(0.5 / len(raw), 1.0)  # equal ones stay so
            prior = np.log(smooth).sum(axis=1)
            expected = self._evaluator.expected(forms)
            if expected is not None:
                prior = (prior - prior.mean()) / (prior.std() or 1.0)
                part = self._evaluator.expected_part
                prior = part * expected + (1 - part) * prior
            self._matrix = np.column_stack([prior, smooth, every])
        return self._matrix


def _divided(total: int, parts: int) -> list[int]:
    """A number as a sum of about equal ones, without zeros."""
    sizes = [total * (part + 1) // parts - total * part // parts for part in range(parts)]
    return [size for size in sizes if size]
