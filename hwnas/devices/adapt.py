"""A profile of a new device from a handful of measured networks and the profiles of other devices.

A cost is a constant, plus a part per source (another device's cost, which the new device resembles), plus
shrunk deviations per operation, per operation and edge, and, with many networks, per pair of operations. All
have normal priors, so that a model is a Gaussian process with a linear kernel, solved exactly. Which sources
count, how strong the deviations and the noise are, and what the device runs of a network (`FORMS`) is not
decided: predictions are means over all such models, weighted by how probable they make the measurements.

Source: Rasmussen & Williams, Gaussian Processes for Machine Learning, 2006, chapters 2.1 and 5.4; the mean
over models: Hoeting et al., Bayesian Model Averaging, 1999; draws: Wilson et al., ICML 2020 (Matheron's
rule); the next measurements: Cohn, Ghahramani & Jordan, Active Learning with Statistical Models, 1996.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from hwnas.core import FloatArray, Genotype, SearchSpace
from hwnas.devices.profile import (
    FORMS,
    INTERVAL,
    SCHEMA_VERSION,
    Additive,
    Compiled,
    Doubt,
    Draw,
    Networks,
    Profile,
    agreement,
    seen,
)

FEWEST = 10
"""Networks that an adaptation needs."""

MOST = 300
"""Maximum of networks in an adaptation; `hwnas profile fit` is made for more."""

FROM_PAIRS = 40
"""Number of networks from which on pairs of operations are considered."""

MOST_PAIRS = 1_000
"""Maximum of deviations by pair; larger spaces go without."""

CONSTANT = 10.0
"""Prior variance of the constant, in units of the costs' variance; large, so that it hardly shrinks."""

BY_OPERATION = (0.03, 0.1, 0.3, 1.0)
BY_EDGE = (0.0, 0.01, 0.1)
BY_PAIR = (0.0, 0.03)
NOISES = (1e-3, 1e-2, 3e-2, 1e-1)
"""Prior variances of deviations and noise, in units of the costs' variance; all combinations are weighed."""

PRIOR_FORM = {"all": 0.5, "used": 0.45, "live": 0.05}
"""Prior probabilities of what a device runs. Eager frameworks and simulators run all; exported graphs lack
what nothing uses; few compilers also find constants."""

KNOWN = 0.8
"""Prior probability of the form that the runtime is known for."""

PRIOR_NONE, PRIOR_TOGETHER, PRIOR_SINGLE = 0.2, 0.5, 1.0
"""Prior weights of no source, of all sources together, and of a single source, shared among these."""

OTHER_FORM = 0.3
"""Factor on the prior weight of a single source where the device would run networks in another form."""

NUM_REFERENCE = 2_000
"""Random networks that features are centred and scaled on, and that intervals are shown for."""

NUM_POOL = 1_000
"""Maximum of networks that the next measurements are chosen from."""

NUM_DRAWS = 200
"""Cost functions drawn from the posterior, for the next measurements."""

NUM_KEPT = 50
"""Those that a profile keeps, for intervals: their standard deviation is known to 10 %."""

NUM_FOLDS = 10
NEGLIGIBLE = 0.02
"""Probability below which a form is left out."""

UNLIKELY = 1e-4
"""Probability relative to the best model's below which a model is left out."""

MOST_NAMED = 3
"""Sources that a summary names."""

FORM_NAMES = {"all": "all operations", "used": "operations that are used", "live": "those that compute"}

REDUNDANT = 1e-6
"""Fraction of a variance that counts as explained."""

_Pairs = list[tuple[int, int]]


@dataclass(frozen=True)
class _Source:
    """Another device's cost: a name, a sum over operations, and the form in which it adds up best."""

    name: str
    cost: Additive
    form: str


class _Features:
    """Features of networks in one form, centred and scaled on random ones.

    Columns are sources, counts of operations, operations by edge, and pairs; each of the last three blocks
    has a mean squared length of 1, so that priors mean the same in every space.
    """

    def __init__(
        self,
        space: SearchSpace,
        sources: Sequence[_Source],
        form: str,
        reference: np.ndarray,
        with_pairs: bool,
        runs: str | None = None,
    ) -> None:
        self.probability = PRIOR_FORM[form] if runs is None else KNOWN if form == runs else (1 - KNOWN) / 2
        self.form, self._space = form, space
        self._sources = [source.cost for source in sources]
        self._num_ops, self._num_edges = len(space.ops), reference.shape[1]
        num = self._num_edges * (self._num_edges - 1) // 2 * self._num_ops**2
        self.pairs: _Pairs = []
        if with_pairs and num <= MOST_PAIRS:
            self.pairs = list(itertools.combinations(range(self._num_edges), 2))
        S, by_op = len(sources), self._num_ops
        ends = np.cumsum([0, S, by_op, self._num_edges * by_op, len(self.pairs) * by_op**2])
        self.blocks = [slice(a, b) for a, b in itertools.pairwise(ends)]
        raw = self._raw(reference)
        self.mean = raw.mean(axis=0)
        variance = raw.var(axis=0)
        self.scale = np.ones(len(variance))
        self.scale[self.blocks[0]] = np.sqrt(variance[self.blocks[0]])
        for block in self.blocks[1:]:
            self.scale[block] = np.sqrt(variance[block].sum())
        self.scale[self.scale == 0] = 1.0

    def _raw(self, genotypes: np.ndarray) -> FloatArray:
        G = seen(self._space, genotypes, self.form)
        onehot = np.eye(self._num_ops)[G]
        flat = [onehot[:, a, :, None] * onehot[:, b, None, :] for a, b in self.pairs]
        return np.column_stack(
            [
                *(cost(G) for cost in self._sources),
                onehot.sum(axis=1),
                onehot.reshape(len(G), -1),
                *(pair.reshape(len(G), -1) for pair in flat),
            ]
        )

    def __call__(self, genotypes: np.ndarray) -> FloatArray:
        """Shape (n, columns)."""
        return (self._raw(genotypes) - self.mean) / self.scale

    def cost(self, constant: float, weights: FloatArray, floor: float) -> Additive:
        """The sum over operations that a constant and weights of the features stand for."""
        weights = weights / self.scale
        sources, ops, edges, pairs = (weights[block] for block in self.blocks)
        base = constant - float(weights @ self.mean)
        table = np.tile(ops, (self._num_edges, 1)) + edges.reshape(self._num_edges, -1)
        tables = {
            f"{a},{b}": one
            for (a, b), one in zip(self.pairs, pairs.reshape(-1, self._num_ops, self._num_ops), strict=True)
            if one.any()
        }
        for weight, source in zip(sources.tolist(), self._sources, strict=True):
            base += weight * source.base
            table = table + weight * np.asarray(source.edges)
            for name, added in source.pairs.items():
                tables[name] = tables.get(name, 0.0) + weight * np.asarray(added)
        return Additive(
            _rounded(base), _all_rounded(table), {n: _all_rounded(t) for n, t in tables.items()}, floor
        )


@dataclass(frozen=True)
class _Model:
    """One of the models: its features and prior variances, and what the measurements make of it.

    Attributes:
        features: Its features.
        sources: Names of its sources.
        prior: Variance per column of the features.
        noise: Variance of the noise.
        X: Features of the measured networks that it explains, (n, columns).
        z: Their costs, standardised, (n,).
        solved: (kernel + noise)^-1 z, shape (n,).
        weight: Its posterior probability.
    """

    features: _Features
    sources: tuple[str, ...]
    prior: FloatArray
    noise: float
    X: FloatArray
    z: FloatArray
    solved: FloatArray
    weight: float

    def draw(self, rng: np.random.Generator) -> tuple[float, FloatArray]:
        """A constant and weights from the posterior, by Matheron's rule."""
        constant = rng.normal(scale=CONSTANT**0.5)
        weights = rng.normal(size=len(self.prior)) * np.sqrt(self.prior)
        error = self.z - constant - self.X @ weights - rng.normal(scale=self.noise**0.5, size=len(self.z))
        kernel = CONSTANT + (self.X * self.prior) @ self.X.T + self.noise * np.eye(len(self.z))
        solved = np.linalg.solve(kernel, error)
        return constant + CONSTANT * float(solved.sum()), weights + self.prior * (self.X.T @ solved)


class _Posterior:
    """All models of one metric, after some measurements."""

    def __init__(
        self,
        space: SearchSpace,
        features: Sequence[_Features],
        sources: Sequence[_Source],
        G: np.ndarray,
        y: FloatArray,
    ) -> None:
        self._space = space
        self.middle, self.scale = float(y.mean()), float(y.std())
        connected = space.is_connected(G)
        nothing = y[~connected]
        least = float(y.min()) / 2
        empty = (
            min(float(np.median(nothing)), float(y[connected].min(initial=np.inf))) if len(nothing) else least
        )
        self._floors = {form: least if form == "all" else empty for form in FORMS}
        z = (y - self.middle) / self.scale
        found = []
        for each in features:
            rows = np.arange(len(G)) if each.form == "all" else np.flatnonzero(connected)
            if len(rows) < FEWEST // 2:
                continue
            apart = np.delete(z, rows)
            spread = apart - np.median(apart) if len(apart) else apart
            outside = -0.5 * (spread @ spread / NOISES[-1] + len(apart) * np.log(2 * np.pi * NOISES[-1]))
            found.append((each.form, float(outside), _Solved(each, sources, each(G[rows]), z[rows])))
        evidence = [outside + solved.evidence for _, outside, solved in found]
        highest = max(one.max() for one in evidence)
        weights = [np.exp(one - highest) for one in evidence]
        total = sum(one.sum() for one in weights)
        shares = {form: float(one.sum() / total) for (form, _, _), one in zip(found, weights, strict=True)}
        self.forms = {form: share for form, share in shares.items() if share >= NEGLIGIBLE}
        kept = [
            (solved, kernel, noise, float(one[kernel, noise]))
            for (form, _, solved), one in zip(found, weights, strict=True)
            if form in self.forms
            for kernel, noise in np.argwhere(one > UNLIKELY).tolist()
        ]
        total = sum(weight for *_, weight in kept)
        self.models = [solved.model(kernel, noise, weight / total) for solved, kernel, noise, weight in kept]
        self.noise = self.scale * sum(model.weight * model.noise for model in self.models) ** 0.5

    def cost(self) -> Additive:
        """The expected cost."""
        parts = {}
        for form in self.forms:
            models = [model for model in self.models if model.features.form == form]
            weight = np.array([model.weight for model in models])
            share = float(weight.sum())
            solved = weight[:, None] * np.array([model.solved for model in models])
            constant = CONSTANT * float(solved.sum())
            weights = (np.array([model.prior for model in models]) * (solved @ models[0].X)).sum(axis=0)
            parts[form] = models[0].features.cost(
                share * self.middle + self.scale * constant, self.scale * weights, share * self._floors[form]
            )
        if parts.keys() == {"all"}:
            return parts["all"]
        pairs: dict[str, FloatArray] = {}
        for part in parts.values():
            for name, table in part.pairs.items():
                pairs[name] = pairs.get(name, 0.0) + np.asarray(table)
        return Compiled(
            _rounded(sum(part.base for part in parts.values())),
            _all_rounded(np.sum([part.edges for part in parts.values()], axis=0)),
            {name: _all_rounded(table) for name, table in pairs.items()},
            _rounded(sum(part.floor for part in parts.values())),
            parts,
        )

    def doubt(self, seed: int) -> Doubt:
        """The noise, and `NUM_KEPT` costs from the posterior."""
        draws = []
        for model, constant, weights in self._drawn(NUM_KEPT, seed):
            form = model.features.form
            cost = model.features.cost(
                self.middle + self.scale * constant, self.scale * weights, self._floors[form]
            )
            draws.append(Draw(cost.base, cost.edges, cost.pairs, cost.floor, form))
        return Doubt(float(self.noise), draws)

    def _drawn(self, num: int, seed: int) -> Iterator[tuple[_Model, float, FloatArray]]:
        """Models with constants and weights from the posterior."""
        rng = np.random.default_rng(seed)
        chosen = rng.choice(len(self.models), size=num, p=np.array([m.weight for m in self.models]))
        for number in chosen:
            yield self.models[number], *self.models[number].draw(rng)

    def draws(self, genotypes: np.ndarray, seed: int) -> FloatArray:
        """Costs by `NUM_DRAWS` functions from the posterior, shape (draws, n)."""
        connected = self._space.is_connected(genotypes)
        costs = np.empty((NUM_DRAWS, len(genotypes)))
        seen_by = {id(m.features): m.features for m in self.models}
        columns = {key: features(genotypes) for key, features in seen_by.items()}
        for row, (model, constant, weights) in enumerate(self._drawn(NUM_DRAWS, seed)):
            cost = self.middle + self.scale * (constant + columns[id(model.features)] @ weights)
            form = model.features.form
            costs[row] = cost if form == "all" else np.where(connected, cost, self._floors[form])
        return costs


class _Solved:
    """All models of one form: the logarithms of evidence times prior, shape (kernels, noises)."""

    def __init__(self, features: _Features, sources: Sequence[_Source], X: FloatArray, z: FloatArray) -> None:
        self._features, self._X, self._z = features, X, z
        of_sources, *self._blocks = features.blocks
        groups: list[tuple[tuple[int, ...], float]] = [((), PRIOR_NONE)]
        if len(sources) > 1:
            groups.append((tuple(range(len(sources))), PRIOR_TOGETHER))
        for number, source in enumerate(sources):
            factor = 1 if source.form == features.form else OTHER_FORM
            groups.append(((number,), factor * PRIOR_SINGLE / len(sources)))
        by_pair = BY_PAIR if len(z) >= FROM_PAIRS and features.pairs else BY_PAIR[:1]
        variances = list(itertools.product(BY_OPERATION, BY_EDGE, by_pair))
        self._kinds = list(itertools.product([group for group, _ in groups], variances))
        self._names = [source.name for source in sources]
        like = [
            CONSTANT
            + X[:, of_sources][:, list(group)] @ X[:, of_sources][:, list(group)].T / max(1, len(group))
            for group, _ in groups
        ]
        blocks = np.array([X[:, block] @ X[:, block].T for block in self._blocks])
        deviations = np.einsum("vb,bij->vij", variances, blocks)
        kernels = (np.array(like)[:, None] + deviations).reshape(-1, len(z), len(z))
        self._values, self._vectors = np.linalg.eigh(kernels)
        self._turned = np.einsum("kij,i->kj", self._vectors, z)
        spread = np.maximum(self._values, 0)[:, None] + np.array(NOISES)[:, None]
        evidence = -0.5 * (self._turned[:, None] ** 2 / spread + np.log(2 * np.pi * spread)).sum(axis=-1)
        prior = np.repeat([weight for _, weight in groups], len(variances)) * features.probability
        self.evidence = evidence + np.log(prior)[:, None]

    def model(self, kernel: int, noise: int, weight: float) -> _Model:
        """One of the models, with its posterior probability."""
        group, variances = self._kinds[kernel]
        prior = np.zeros(self._X.shape[1])
        prior[list(group)] = 1 / max(1, len(group))
        for block, variance in zip(self._blocks, variances, strict=True):
            prior[block] = variance
        spread = np.maximum(self._values[kernel], 0) + NOISES[noise]
        return _Model(
            features=self._features,
            sources=tuple(self._names[number] for number in group),
            prior=prior,
            noise=NOISES[noise],
            X=self._X,
            z=self._z,
            solved=self._vectors[kernel] @ (self._turned[kernel] / spread),
            weight=weight,
        )


@dataclass(frozen=True)
class Adapted:
    """A profile of a new device, and how sure it is.

    Attributes:
        profile: The profile; its check leaves out measured networks, one by one or a tenth at a time.
        sources: Per metric, posterior probabilities of the sources, by name; "" is none of them.
        forms: Per metric, posterior probabilities of what the device runs of a network.
    """

    profile: Profile
    sources: dict[str, dict[str, float]]
    forms: dict[str, dict[str, float]]
    _space: SearchSpace
    _posteriors: dict[str, _Posterior]
    _measured: np.ndarray
    _num_forms: int
    _seed: int

    def interval(
        self, metric: str, genotypes: Sequence[Genotype] | np.ndarray
    ) -> tuple[FloatArray, FloatArray]:
        """Bounds that 90 % of the networks keep, each (n,)."""
        found = self.profile.interval(self._space, metric, genotypes)
        assert found is not None
        return found

    def doubt(self, metric: str, num: int = 0) -> tuple[float, float]:
        """Standard deviations relative to the mean cost, of the profile and of the noise.

        The first, root mean square over networks, would shrink with more measurements; the second is the
        scatter of single networks about any sum over operations. With `num` above 0 the first is what is left
        after the next `num` measurements.
        """
        G = self._pool()
        mean = float(self.profile.predict(self._space, metric, G).mean())
        covariance = self._chosen(metric, G, num)[1]
        noise = self._posteriors[metric].noise
        return float(max(np.diag(covariance).mean(), 0.0)) ** 0.5 / mean, noise / mean

    def next(self, metric: str, num: int) -> list[Genotype]:
        """The networks whose measurements would help most, best first.

        Each lowers the expected squared error, summed over many networks, as much as possible, given the
        ones before it.
        """
        G = self._pool()
        return [tuple(G[row].tolist()) for row in self._chosen(metric, G, num)[0]]

    def lines(self) -> list[str]:
        """What the new device resembles and runs, and how wide intervals are, as sentences."""
        number = len(self._measured)
        found = [f"adapted to {number} measured networks"]
        for metric in self.profile.costs:
            like = [
                f"{name or 'no other device'} {share:.0%}" for name, share in self.sources[metric].items()
            ]
            found.append(f"{metric} is most like that of {', '.join(like[:MOST_NAMED])}")
            if self._num_forms > 1:
                runs = [f"{FORM_NAMES[form]} {share:.0%}" for form, share in self.forms[metric].items()]
                found.append(f"the device runs {', '.join(runs)}")
            doubt, noise = self.doubt(metric)
            half = INTERVAL * float(np.hypot(doubt, noise))
            found.append(f"{metric} of a network is known to ±{half:.0%} of the mean (half a 90 % interval)")
        return found

    def advice(self, metric: str, num: int) -> str:
        """Whether more measurements would help, as a sentence."""
        before, noise = self.doubt(metric)
        after, _ = self.doubt(metric, num)
        if before <= noise:
            return (
                f"this is enough: what measurements could still tell of {metric} ({before:.1%}) is less than "
                f"the scatter of single networks ({noise:.1%})"
            )
        return (
            f"{num} more networks would lower the doubt about {metric} from {before:.1%} to about "
            f"{after:.1%} (one standard deviation, without {noise:.1%} of scatter of single networks)"
        )

    def _pool(self) -> np.ndarray:
        """Random networks with a path from input to output that are not measured."""
        known = set(map(tuple, self._measured.tolist()))
        sampled = dict.fromkeys(self._space.sample(np.random.default_rng(self._seed), 2 * NUM_POOL))
        G = np.array([genotype for genotype in sampled if genotype not in known], dtype=np.intp)
        return G[self._space.is_connected(G)][:NUM_POOL]

    def _chosen(self, metric: str, G: np.ndarray, num: int) -> tuple[list[int], FloatArray]:
        """Rows of the next measurements, and the covariance of the costs after them."""
        posterior = self._posteriors[metric]
        costs = posterior.draws(G, self._seed)
        costs = costs - costs.mean(axis=0)
        covariance = costs.T @ costs / len(costs)
        rows: list[int] = []
        for _ in range(min(num, len(G))):
            after = np.diag(covariance) + posterior.noise**2
            gain = (covariance**2).sum(axis=0) / after
            gain[rows] = -1
            row = int(gain.argmax())
            rows.append(row)
            covariance = covariance - np.outer(covariance[:, row], covariance[row]) / after[row]
        return rows, covariance


def adapt(
    space: SearchSpace,
    genotypes: np.ndarray,
    columns: Mapping[str, FloatArray],
    sources: Mapping[str, Profile],
    *,
    device: str,
    seed: int,
    network: Mapping[str, object],
    origin: Mapping[str, object],
    runs: str | None = None,
) -> Adapted:
    """Adapt the profiles of other devices to a few measured networks of a new one.

    Args:
        space: The space.
        genotypes: Measured networks, shape (n, edges), all different.
        columns: Measured costs per metric, each (n,), above 0.
        sources: Profiles of other devices by name; may be empty. A source without the metric lends its
            latency. Multiply-adds and parameters are sources, too, unless counts of operations tell them.
        device: Name of the new device.
        seed: Seed of the folds of the check, and of random networks.
        network: Shape of the networks, kept in the profile.
        origin: Kept in the profile.
        runs: What the device's runtime is known to run of a network, of `FORMS`; None: it is not known.

    Raises:
        ValueError: Fewer than `FEWEST` networks, more than `MOST`, costs that are not above 0 or all equal,
            or a source of another space.
    """
    G = genotypes.astype(np.intp)
    _check(G, columns, sources, space)
    reference = np.array(space.sample(np.random.default_rng(seed), NUM_REFERENCE), dtype=np.intp)
    forms = [form for form in FORMS if form == "all" or _differs(space, reference, form)]
    costs, check, predicted = {}, {}, {}
    posteriors, shares, of_forms = {}, {}, {}
    for metric, y in columns.items():
        known = _sources(space, sources, metric, reference, forms)
        with_pairs = len(G) >= FROM_PAIRS
        features = [_Features(space, known, form, reference, with_pairs, runs) for form in forms]
        posterior = _Posterior(space, features, known, G, y)
        costs[metric] = posterior.cost()
        left_out = np.empty(len(G))
        folds = min(len(G), max(NUM_FOLDS, FEWEST))
        order = np.random.default_rng(seed).permutation(len(G))
        for fold in (order[k::folds] for k in range(folds)):
            rest = np.setdiff1d(order, fold)
            if np.ptp(y[rest]) == 0:
                left_out[fold] = y[rest].mean()
                continue
            cost = _Posterior(space, features, known, G[rest], y[rest]).cost()
            left_out[fold] = cost.of(space, G[fold])
        check[metric] = agreement(left_out, y, space.is_connected(G))
        predicted[metric] = left_out.tolist()
        posteriors[metric], of_forms[metric] = posterior, posterior.forms
        shares[metric] = _shares(posterior.models)
    profile = Profile(
        schema=SCHEMA_VERSION,
        device=device,
        space=space.name,
        network=dict(network),
        origin={**origin, "fitted_to": len(G), "adapted_from": ", ".join(sources), "seed": seed},
        costs=costs,
        check=check,
        networks=Networks(
            archs=[space.to_str(tuple(row)) for row in G.tolist()],
            fitted=0,
            measured={metric: y.tolist() for metric, y in columns.items()},
            predicted=predicted,
        ),
        doubts={metric: posterior.doubt(seed) for metric, posterior in posteriors.items()},
    )
    return Adapted(profile, shares, of_forms, space, posteriors, G, len(forms), seed)


def _check(
    G: np.ndarray, columns: Mapping[str, FloatArray], sources: Mapping[str, Profile], space: SearchSpace
) -> None:
    """Raise ValueError unless there are enough networks, with costs that tell something."""
    different = len(np.unique(G, axis=0))
    if different < len(G):
        raise ValueError(
            f"{len(G)} networks of which {len(G) - different} are there twice; each must be once"
        )
    if len(G) < FEWEST:
        raise ValueError(f"{len(G)} measured networks are too few to adapt to; {FEWEST} are needed")
    if len(G) > MOST:
        raise ValueError(
            f"{len(G):,} measured networks are more than the {MOST} that adapt takes; hwnas profile fit does"
        )
    for metric, y in columns.items():
        wrong = np.flatnonzero(~(np.isfinite(y) & (y > 0)))
        if len(wrong):
            row = int(wrong[0])
            raise ValueError(
                f"{metric} of row {row} ({space.to_str(tuple(G[row].tolist()))}) is not measured above 0; "
                "leave out networks that the device does not run"
            )
        if np.ptp(y) == 0:
            raise ValueError(f"all networks have the same {metric}, {y[0]:g}; there is nothing to adapt to")
    for name, profile in sources.items():
        if profile.space != space.name:
            raise ValueError(f"source {name} is a profile of the {profile.space} space, not of {space.name}")


def _differs(space: SearchSpace, reference: np.ndarray, form: str) -> bool:
    """Whether a form of the space's networks is another one than those before it in `FORMS`."""
    found = seen(space, reference, form)
    return all(
        not np.array_equal(found, seen(space, reference, before)) for before in FORMS[: FORMS.index(form)]
    )


def _sources(
    space: SearchSpace,
    profiles: Mapping[str, Profile],
    metric: str,
    reference: np.ndarray,
    forms: Sequence[str],
) -> list[_Source]:
    """Costs of other devices, and those in closed form unless counts of operations tell them.

    Costs in closed form are replaced by the sums over operations that are closest to them.
    """
    found = []
    for name, profile in profiles.items():
        key = metric if metric in profile.costs else next(iter(profile.costs))
        cost = profile.costs[key]
        plain = Additive(cost.base, cost.edges, cost.pairs)
        predicted = profile.predict(space, key, reference)
        known = np.isfinite(predicted)  # the others are not supported
        form = _own_form(space, predicted[known], reference[known], forms)
        found.append(_Source(name, plain, form))
    onehot = np.eye(len(space.ops))[reference]
    counts, flat = onehot.sum(axis=1), onehot.reshape(len(reference), -1)
    for name, values in space.static_metrics(list(map(tuple, reference.tolist()))).items():
        if _unexplained(counts, values) > REDUNDANT * float(values.var()):
            edges = np.linalg.lstsq(flat, values, rcond=None)[0].reshape(onehot.shape[1:])
            found.append(_Source(name, Additive(0.0, edges.tolist()), "all"))
    return [source for source in found if np.ptp(source.cost(reference)) > 0]


def _own_form(space: SearchSpace, cost: FloatArray, reference: np.ndarray, forms: Sequence[str]) -> str:
    """The form in which counts of operations explain a cost best."""
    left = {
        form: _unexplained(np.eye(len(space.ops))[seen(space, reference, form)].sum(axis=1), cost)
        for form in forms
    }
    return min(left, key=left.__getitem__)


def _unexplained(X: FloatArray, values: FloatArray) -> float:
    """Mean squared error of values (n,) by least squares on features (n, columns)."""
    return float(np.mean((values - X @ np.linalg.lstsq(X, values, rcond=None)[0]) ** 2))


def _shares(models: Sequence[_Model]) -> dict[str, float]:
    """Probability per source; models of several share theirs among these."""
    shares: dict[str, float] = {}
    for model in models:
        for name in model.sources or ("",):
            shares[name] = shares.get(name, 0.0) + model.weight / max(1, len(model.sources))
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


def _all_rounded(values: FloatArray) -> list[list[float]]:
    return [[_rounded(value) for value in row] for row in np.asarray(values).tolist()]
