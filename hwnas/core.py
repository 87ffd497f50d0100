"""Types of the framework: genotypes, objectives, trials, and three abstract classes.

numpy only. All other modules depend on this file, and it depends on none of them.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
import inspect
import itertools
import math
import time
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, cast

import numpy as np
from annotated_types import Ge, Gt, Le, Len, Lt, MultipleOf
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pydantic import TypeAdapter
    from torch import nn

Genotype = tuple[int, ...]
"""One operation index per decision, canonical and hashable: the cache key of an architecture."""

Goal = Literal["max", "min"]
FloatArray = NDArray[np.float64]

MOST_LISTED = 100_000
"""Size up to which a space may be listed as a whole."""


@dataclass(frozen=True)
class Objective:
    """A metric and the direction in which it is better.

    Args:
        metric: Name with its unit, as an evaluator reports it, e.g. "latency_ms".
        goal: "max" or "min".
    """

    metric: str
    goal: Goal


@dataclass(frozen=True)
class Limit:
    """A bound that networks must keep: at most `bound` for costs, at least `bound` for qualities.

    Args:
        metric: Name with its unit, e.g. "latency_ms".
        bound: The bound, in the metric's unit.
        goal: The metric's own direction: "min" makes `bound` an upper bound, "max" a lower one.
    """

    metric: str
    bound: float
    goal: Goal = "min"


@dataclass(frozen=True)
class Trial:
    """One evaluated architecture.

    Args:
        genotype: The architecture.
        metrics: Value per metric; `inf`: a device does not support the network.
        generation: Index of the generation that asked for it, from 0.
    """

    genotype: Genotype
    metrics: Mapping[str, float]
    generation: int


def trials_of(
    genotypes: Sequence[Genotype], answers: Sequence[Sequence[Mapping[str, float]]], generation: int
) -> list[Trial]:
    """One trial per genotype, with the metrics of all evaluators.

    Args:
        genotypes: The architectures.
        answers: Per evaluator the metrics of every genotype, in order.
        generation: Index of their generation.
    """
    return [
        Trial(genotype, {name: value for row in rows for name, value in row.items()}, generation)
        for genotype, *rows in zip(genotypes, *answers, strict=True)
    ]


def checked_population(strategy: Strategy, population: object) -> list[Genotype]:
    """The population that a strategy asked for, checked, as genotypes of its space.

    Raises:
        ValueError: It is something else; names the strategy's class and the rule.
    """
    asked, space = f"{type(strategy).__name__}.ask()", strategy.space
    if not isinstance(population, list | tuple) or not population:
        raise ValueError(
            f"{asked} returned {population!r}; it must return a list of at least one genotype "
            f"(or set done, and is not asked again)"
        )
    checked = []
    for genotype in population:
        if not isinstance(genotype, tuple):
            raise ValueError(
                f"{asked} returned {genotype!r} as a genotype of {space.name}; a genotype is a tuple of "
                f"{len(space.choices)} ints"
            )
        try:
            checked.append(space.check(genotype))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{asked} returned {genotype!r}: {error}") from None
    return checked


def checked_result(strategy: Strategy) -> list[Trial]:
    """The answer of a strategy, checked.

    Raises:
        ValueError: It is no list of trials; names the strategy's class and the rule.
    """
    result = strategy.result()
    if not isinstance(result, list | tuple) or not all(isinstance(trial, Trial) for trial in result):
        raise ValueError(
            f"{type(strategy).__name__}.result() returned {result!r}; it must return a list of trials that "
            "it observed"
        )
    return list(result)


def checked_answers(
    evaluator: Evaluator, genotypes: Sequence[Genotype], rows: object
) -> list[dict[str, float]]:
    """The answers of an evaluator for `genotypes`, checked: a float per metric.

    Raises:
        ValueError: It answered something else; names the evaluator's class and the rule.
    """
    asked = f"{type(evaluator).__name__}.evaluate()"
    if not isinstance(rows, list | tuple) or len(rows) != len(genotypes):
        found = f"{len(rows)} answers" if isinstance(rows, list | tuple) else repr(rows)
        raise ValueError(
            f"{asked} returned {found} for {len(genotypes)} genotypes; it must return one for each"
        )
    checked = []
    for genotype, row in zip(genotypes, rows, strict=True):
        if not isinstance(row, Mapping) or row.keys() != evaluator.metrics.keys():
            raise ValueError(
                f"{asked} returned {row!r} for {list(genotype)}; it must return a dict with "
                f"{', '.join(evaluator.metrics)}, the metrics that the class names"
            )
        for name, value in row.items():
            if not isinstance(value, Real) or isinstance(value, bool) or value != value:
                raise ValueError(
                    f"{asked} returned {name}={value!r} for {list(genotype)}; a metric is a number, and inf "
                    "where the network is not supported"
                )
        checked.append({name: float(value) for name, value in row.items()})
    return checked


def costs(trials: Sequence[Trial], objectives: Sequence[Objective]) -> FloatArray:
    """Objective values as costs, shape (trials, objectives): always minimised.

    The only function that flips a sign. Unsupported networks keep `inf`.

    Raises:
        ValueError: A trial lacks a metric.
    """
    F = np.empty((len(trials), len(objectives)))
    for column, objective in enumerate(objectives):
        sign = -1.0 if objective.goal == "max" else 1.0
        for row, trial in enumerate(trials):
            try:
                value = trial.metrics[objective.metric]
            except KeyError:
                raise ValueError(
                    f"no evaluator reports {objective.metric!r}; reported: {', '.join(trial.metrics)}"
                ) from None
            F[row, column] = math.inf if math.isinf(value) else sign * value
    return F


def violations(trials: Sequence[Trial], limits: Sequence[Limit]) -> FloatArray:
    """Violation of the limits per trial, shape (trials,): 0 if the trial keeps all limits.

    Each limit contributes its relative excess, (value - bound) / |bound|, or the plain excess for a bound of
    0. Unsupported networks (a metric of `inf`) have a violation of `inf`, also without limits. A quality that
    a trial lacks, because its training stopped early, counts as 0.
    """
    total = np.zeros(len(trials))
    for row, trial in enumerate(trials):
        if any(math.isinf(value) for value in trial.metrics.values()):
            total[row] = math.inf
            continue
        for limit in limits:
            if limit.goal == "max":
                excess = limit.bound - trial.metrics.get(limit.metric, 0.0)
            else:
                excess = trial.metrics[limit.metric] - limit.bound
            total[row] += max(0.0, excess) / (abs(limit.bound) or 1.0)
    return total


def non_dominated(F: FloatArray) -> NDArray[np.intp]:
    """Indices of the non-dominated rows of F (n, m), minimised, in order; the first of equal rows.

    Rows with a value that is not finite are never on a front. O(n log n) for two objectives.
    """
    rows = np.flatnonzero(np.isfinite(F).all(axis=1))
    if len(rows) == 0:
        return rows
    order = rows[np.lexsort(F[rows].T[::-1])]  # by the first objective, ties by the next; stable
    kept: list[int] = []
    if F.shape[1] == 2:
        lowest = math.inf
        for row in order:
            if F[row, 1] < lowest:
                kept.append(int(row))
                lowest = F[row, 1]
    else:
        for row in order:  # rows that dominate a row come before it
            if not kept or not (F[kept] <= F[row]).all(axis=1).any():
                kept.append(int(row))
    return np.sort(np.asarray(kept, dtype=np.intp))


DEVIATION = "_std"
"""Ending of a metric that says how sure another one is: `val_acc_std` is the standard error of `val_acc`."""


def deviations(trials: Sequence[Trial], objectives: Sequence[Objective]) -> FloatArray:
    """Standard errors of the objectives, shape (trials, objectives): `<metric>_std`, or 0 without one."""
    rows = [[trial.metrics.get(o.metric + DEVIATION, 0.0) for o in objectives] for trial in trials]
    return np.array(rows).reshape(len(trials), len(objectives))


def unbeaten(F: FloatArray, S: FloatArray) -> NDArray[np.intp]:
    """Indices of the rows of F (n, m), minimised, that no other row surely beats, in order.

    Row a beats b if f_a + sqrt(s_a^2 + s_b^2) <= f_b in all objectives: with S of k standard errors, if each
    lead is at least k standard errors of the difference. A lead of k such errors is real with a probability
    of Phi(k), 84 % for k = 1, if the errors are normal and independent. What beats b beats all that b beats,
    too. Where S is 0 this is `non_dominated`.

    Args:
        F: Costs; rows with a value that is not finite are never kept.
        S: Standard errors, times k, shape (n, m).

    Source: dominance with a probability, of Hughes and of Teich, EMO 2001.
    """
    rows = np.flatnonzero(np.isfinite(F).all(axis=1))
    kept = np.empty(len(rows), dtype=np.intp)
    num = 0
    for row in rows[np.lexsort(F[rows].T[::-1])]:  # rows that beat a row come before it
        better = kept[:num]
        if not (F[better] + np.hypot(S[better], S[row]) <= F[row]).all(axis=1).any():
            kept[num] = row
            num += 1
    return np.sort(kept[:num])


def unique(trials: Sequence[Trial]) -> list[Trial]:
    """The trials with different genotypes, each with its latest answer, in order of first appearance."""
    return list({trial.genotype: trial for trial in trials}.values())


def front(
    trials: Sequence[Trial], objectives: Sequence[Objective], robust: float | None = None
) -> list[Trial]:
    """Non-dominated trials of different genotypes, sorted by the last objective (cheapest first).

    With `robust` those that no other beats by at least so many standard errors (`unbeaten`), which are more.
    """
    candidates = unique(trials)
    F = costs(candidates, objectives)
    rows = unbeaten(F, robust * deviations(candidates, objectives)) if robust else non_dominated(F)
    return [candidates[row] for row in rows[np.argsort(F[rows, -1], kind="stable")]]


def best(
    trials: Sequence[Trial],
    objectives: Sequence[Objective],
    limits: Sequence[Limit],
    robust: float | None = None,
) -> Trial | None:
    """The best trial that keeps all limits, by the first objective, ties by the next; None if none does.

    With `robust` values count less so many of their standard errors: of many noisy values the highest is so
    by luck. The best is on the front of the same `robust`.
    """
    candidates = [
        trial for trial, violation in zip(trials, violations(trials, limits), strict=True) if violation == 0.0
    ]
    if not candidates:
        return None
    F = costs(candidates, objectives)
    if robust:
        F = F + robust * deviations(candidates, objectives)
    return candidates[np.lexsort(F.T[::-1])[0]]


def closest(trials: Sequence[Trial], limits: Sequence[Limit]) -> Trial | None:
    """The trial with the smallest violation of the limits; None if none is supported."""
    excess = violations(trials, limits)
    if len(excess) == 0 or not np.isfinite(excess).any():
        return None
    return trials[int(np.argmin(excess))]


class Interrupted(KeyboardInterrupt):
    """Ctrl-C, with a sentence on how to resume; not an error, so that a sweep stops."""


def is_near_chance(accuracy: float, chance: float) -> bool:
    """Whether an accuracy is below 1.5 times chance and below chance plus a tenth of the rest.

    Args:
        accuracy: In 0..1.
        chance: Accuracy of guessing the most frequent class, in 0..1.
    """
    return accuracy < min(1.5 * chance, chance + 0.1 * (1 - chance))


def log_rank_sum(raw: FloatArray) -> FloatArray:
    """Scores of a whole population in one: the sum over scores of ln(rank / n), shape (n,); at most 0.

    Rank n is that of the largest score, and equal ones share the mean of their ranks.

    Args:
        raw: m scores of n networks, larger ones better, shape (n, m).

    Source: Lee & Ham, AZ-NAS, CVPR 2024.
    """
    total = np.zeros(len(raw))
    for scores in raw.T:
        ordered = np.sort(scores)
        below, up_to = (np.searchsorted(ordered, scores, side=side) for side in ("left", "right"))
        total += np.log((below + 1 + up_to) / (2 * len(raw)))
    return total


MAX_WHOLE = 2**63 - 1
"""The largest integer of databases and torch, 64 bits with a sign."""

Positive = Annotated[float, Gt(0)]
"""A number above 0."""

NotNegative = Annotated[float, Ge(0)]
"""A number of at least 0."""

Fraction = Annotated[float, Ge(0), Le(1)]
"""A number in 0..1."""

BelowOne = Annotated[float, Ge(0), Lt(1)]
"""A number of at least 0 and below 1."""

Count = Annotated[int, Ge(1)]
"""A whole number of at least 1."""

WholeNumber = Annotated[int, Ge(0)]
"""A whole number of at least 0."""

Seed = WholeNumber
"""Seed of a generator of random numbers."""

_Checked = TypeVar("_Checked", bound=Callable[..., Any])


def checked(target: _Checked) -> _Checked:
    """Check a constructor's settings against its signature, and keep them for `settings_of`.

    Settings are parameters whose type consists of bool, int, float, str, None, `Literal`, `Annotated` bounds,
    and sequences of these. Numbers must be finite; a whole number may be written as 3.0. Other parameters,
    the objects of a run, are not checked. Values from Python and from YAML are checked alike.

    Args:
        target: An `__init__`, a dataclass, or a function that makes an object.

    Raises:
        ValueError: When an object is made: "population_size must be a whole number of at least 2, not 1".
    """
    if isinstance(target, type):
        target.__init__ = checked(target.__init__)  # type: ignore[misc]
        return target
    signature = inspect.signature(target)

    @functools.wraps(target)
    def check(*args: object, **kwargs: object) -> object:
        try:
            given = signature.bind(*args, **kwargs)
        except TypeError:
            return target(*args, **kwargs)  # Python's own message names the class
        for name, kind in _kinds(target).items():
            if name in given.arguments:
                given.arguments[name] = check_setting(name, kind, given.arguments[name])
        if target.__name__ == "__init__":
            made, *_ = given.args
            if "_settings" not in made.__dict__:  # not a base class's constructor
                kept = {name: value for name, value in given.arguments.items() if value is not made}
                object.__setattr__(made, "_settings", kept)
        return target(*given.args, **given.kwargs)

    return cast("_Checked", check)


def settings_of(made: object) -> dict[str, object]:
    """The settings that an object's `checked` constructor got, by name; empty for other objects."""
    try:
        return dict(vars(made).get("_settings", {}))
    except TypeError:  # an object without attributes of its own
        return {}


@functools.cache
def _kinds(target: Callable[..., object]) -> dict[str, object]:
    """Types of a constructor's settings by name."""
    kinds = {}
    for name, parameter in inspect.signature(target).parameters.items():
        kind = parameter.annotation
        if isinstance(kind, str):
            try:
                kind = eval(kind, target.__globals__)  # our own source, as typing evaluates it
            except NameError:
                continue  # imported for type checkers only: an object, not a setting
        if _phrase(kind) is not None:
            kinds[name] = kind
    return kinds


def check_setting(name: str, kind: object, value: object) -> Any:
    """A value as a setting of a type: a whole number as an int, a list as a tuple if needed.

    Args:
        name: Name of the setting, for the message.
        kind: A type, as for `checked`.
        value: Anything.

    Raises:
        ValueError: The value does not fit; says which values do.
    """
    from pydantic import ValidationError  # a tenth of a second

    candidates = [value]
    if isinstance(value, float) and value.is_integer():
        candidates.append(int(value))
    elif isinstance(value, np.integer):
        candidates = [int(value)]
    elif isinstance(value, list):
        candidates.append(tuple(value))
    for candidate in candidates:
        with contextlib.suppress(ValidationError):
            _adapter(kind).validate_python(candidate)
            if not isinstance(candidate, int) or candidate <= MAX_WHOLE:
                return candidate
            raise ValueError(f"{name} must be a whole number of at most {MAX_WHOLE}, not {value!r}")
    raise ValueError(f"{name} must be {_phrase(kind)}, not {value!r}")


@functools.cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(kind, config=ConfigDict(strict=True, allow_inf_nan=False))


def _phrase(kind: Any) -> str | None:
    """Values of a setting's type, in words; None if it is no type of a setting."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        base = _phrase(inner[0])
        if base is None:
            return None
        if base.startswith("a list"):
            return base.replace("a list", f"a list{_length(inner[1])}", 1)
        return ("an even whole number" if MultipleOf(2) in inner else base) + _bounds(inner[1:])
    if origin is Literal:
        known = dict.fromkeys(map(str, inner))
        return f"one of {', '.join(known)}" if len(known) > 1 else str(inner[0])
    if origin in (typing.Union, types.UnionType):
        parts = [_phrase(part) for part in inner]
        return None if None in parts else " or ".join(map(str, parts))
    if origin in (Sequence, list, tuple):
        parts = [_phrase(part) for part in inner if part is not Ellipsis]
        return None if None in parts else f"a list, each {' or '.join(dict.fromkeys(map(str, parts)))}"
    words = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "text",
        None: "null",
        types.NoneType: "null",
    }
    return words.get(kind)


def _length(mark: Len) -> str:
    """Length of a list in words."""
    return f" of {mark.max_length}" if mark.max_length else f" of at least {mark.min_length}"


def _bounds(marks: Sequence[Any]) -> str:
    """Bounds of a number in words."""
    at = {type(mark): mark for mark in marks}
    if Ge in at and Le in at:
        return f" in {at[Ge].ge:g}..{at[Le].le:g}"
    low = f" of at least {at[Ge].ge:g}" if Ge in at else f" above {at[Gt].gt:g}" if Gt in at else ""
    high = f" of at most {at[Le].le:g}" if Le in at else f" below {at[Lt].lt:g}" if Lt in at else ""
    return f"{low}{' and' * bool(low and high)}{high}"


def seed_of(seed: int, number: int) -> int:
    """The seed of a part, e.g. an epoch, from the seed of the whole; of 63 bits, for torch."""
    return (seed * 1_000_003 + number) % 2**63


def checked_choices(
    choices: Sequence[Sequence[int]] | None, num_edges: int, num_ops: int
) -> tuple[tuple[int, ...], ...]:
    """Operation indices per edge, sorted, without repetitions; None allows all.

    Raises:
        ValueError: Another number of edges, none for an edge, or an unknown operation.
    """
    if choices is None:
        return (tuple(range(num_ops)),) * num_edges
    kept = tuple(tuple(sorted(set(ops))) for ops in choices)
    if len(kept) != num_edges or any(not ops or not set(ops) <= set(range(num_ops)) for ops in kept):
        raise ValueError(f"choices must be {num_edges} non-empty sets of 0..{num_ops - 1}, not {choices}")
    return kept


@dataclass(frozen=True)
class Sum:
    """A metric that is the sum of a constant and a value per operation.

    Attributes:
        base: The constant, in the metric's unit.
        added: Shape (edges, ops); `inf` marks an operation that a device does not support.
    """

    base: float
    added: FloatArray

    def __call__(self, genotype: Genotype) -> float:
        """The metric of a network."""
        return self.base + math.fsum(self.added[edge, op] for edge, op in enumerate(genotype))


@dataclass(frozen=True)
class Largest:
    """A metric that is the largest of a constant and a value per operation, e.g. a peak of memory.

    Attributes:
        base: The constant, in the metric's unit.
        values: Shape (edges, ops).
    """

    base: float
    values: FloatArray

    def __call__(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> FloatArray:
        """The metric of networks, shape (n,)."""
        G = np.asarray(genotypes, dtype=np.intp).reshape(-1, len(self.values))
        return self.values[np.arange(G.shape[1]), G].max(axis=1, initial=self.base)


class SearchSpace(ABC):
    """A set of architectures with one operation per edge; numpy only, networks are built on demand.

    Attributes:
        name: Identifies the space in stores and files.
        ops: Names of the operations, in index order.
        choices: Operation indices still allowed, one tuple per edge.
        presets: Published architectures by name, in the space's text form.
        fewest_cells: Cells of the smallest networks, if their number can be set.
        note: A sentence if the images do not suit the space's networks; else empty.
    """

    name: str
    ops: tuple[str, ...]
    choices: tuple[tuple[int, ...], ...]
    presets: Mapping[str, str] = MappingProxyType({})
    fewest_cells: int = 1
    note: str = ""

    @property
    def alpha_shape(self) -> tuple[int, int]:
        """Shape (edges, ops) of an architecture's alphas."""
        return len(self.choices), len(self.ops)

    @property
    def size(self) -> int:
        """Number of architectures."""
        return math.prod(len(allowed) for allowed in self.choices)

    @property
    def allowed(self) -> NDArray[np.bool_]:
        """Shape (edges, ops): which operation is allowed on which edge."""
        mask = np.zeros(self.alpha_shape, dtype=bool)
        for edge, ops in enumerate(self.choices):
            mask[edge, list(ops)] = True
        return mask

    def sample(self, rng: np.random.Generator, num: int) -> list[Genotype]:
        """`num` architectures, each operation uniform over those allowed on its edge."""
        columns = [np.asarray(ops)[rng.integers(len(ops), size=num)] for ops in self.choices]
        return [tuple(row) for row in np.stack(columns, axis=1).tolist()]

    def all(self) -> list[Genotype]:
        """Every architecture, in lexicographic order.

        Raises:
            ValueError: More than `MOST_LISTED` architectures.
        """
        if self.size > MOST_LISTED:
            raise ValueError(f"the {self.name} space has {self.size:.3g} architectures, too many to list")
        return self._every()

    def _every(self) -> list[Genotype]:
        """The list of `all`."""
        return list(itertools.product(*self.choices))

    def decode(self, alphas: FloatArray) -> list[Genotype]:
        """The allowed operation with the largest alpha on every edge.

        Args:
            alphas: Shape (n, edges, ops).

        Raises:
            ValueError: Another shape.
        """
        if alphas.ndim != 3 or alphas.shape[1:] != self.alpha_shape:
            raise ValueError(f"alphas must have shape (n, {self.alpha_shape}), not {alphas.shape}")
        return [tuple(row) for row in np.where(self.allowed, alphas, -np.inf).argmax(axis=2).tolist()]

    def onehot(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Alphas that decode to the genotypes, shape (n, edges, ops): 1 at the chosen operations, else 0."""
        return np.eye(len(self.ops))[np.asarray(genotypes, dtype=np.intp).reshape(-1, len(self.choices))]

    def distances(self, a: Sequence[Genotype], b: Sequence[Genotype]) -> FloatArray:
        """Jaccard distances between sets of (edge, op), shape (len(a), len(b)), in 0..1.

        With E edges of which c agree, 1 - c / (2E - c). Source: NEvoNAS, arXiv 2204.00188 (code).
        """
        equal = (np.asarray(a)[:, None, :] == np.asarray(b)[None, :, :]).sum(axis=2)
        return 1.0 - equal / (2 * len(self.choices) - equal)

    def check(self, genotype: Sequence[int]) -> Genotype:
        """The genotype as a tuple of ints.

        Raises:
            ValueError: Wrong length, or an operation that is not allowed on its edge.
        """
        if len(genotype) != len(self.choices):
            raise ValueError(f"a {self.name} genotype has {len(self.choices)} entries, not {len(genotype)}")
        for edge, (op, ops) in enumerate(zip(genotype, self.choices, strict=True)):
            if op not in ops:
                raise ValueError(f"operation {op!r} on edge {edge} of {self.name} is not one of {ops}")
        return tuple(int(op) for op in genotype)

    def mutate(self, genotype: Genotype, rng: np.random.Generator) -> Genotype:
        """The genotype with another operation on one edge; edge and operation are uniform.

        Only edges with several choices change; in a space of one architecture the genotype stays.
        """
        edges = [edge for edge, ops in enumerate(self.choices) if len(ops) > 1]
        if not edges:
            return genotype
        edge = edges[rng.integers(len(edges))]
        others = [op for op in self.choices[edge] if op != genotype[edge]]
        op = others[rng.integers(len(others))]
        return (*genotype[:edge], op, *genotype[edge + 1 :])

    def neighbours(self, genotype: Genotype) -> list[Genotype]:
        """All genotypes with another operation on one edge, or the operations of two edges exchanged.

        Each one once, in a fixed order, without the genotype itself; only allowed operations.
        """
        near: dict[Genotype, None] = {}
        for edge, ops in enumerate(self.choices):
            for op in ops:
                near[(*genotype[:edge], op, *genotype[edge + 1 :])] = None
        for a, b in itertools.combinations(range(len(self.choices)), 2):
            if genotype[b] in self.choices[a] and genotype[a] in self.choices[b]:
                exchanged = list(genotype)
                exchanged[a], exchanged[b] = genotype[b], genotype[a]
                near[tuple(exchanged)] = None
        near.pop(genotype, None)
        return list(near)

    def static_metrics(self, genotypes: Sequence[Genotype]) -> dict[str, FloatArray]:
        """`flops` (multiply-adds) and `params` per genotype, if the space has closed forms."""
        return {}

    def static_sums(self) -> dict[str, Sum]:
        """The `static_metrics` that are sums over operations."""
        return {}

    def live(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> NDArray[np.intp]:
        """Genotypes (n, edges) without operations that are on no path from input to output, as compilers do.

        Here every edge is used.
        """
        return np.array(genotypes, dtype=np.intp).reshape(-1, len(self.choices))

    def used(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> NDArray[np.intp]:
        """Genotypes (n, edges) without operations whose output nothing uses; here as `live`.

        What a graph's export leaves of a network, also where it does not know which inputs are constant.
        """
        return self.live(genotypes)

    def features(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Structure in numbers, shape (n, features), from which models predict quality.

        Here how often each operation is live, and the logarithms of `static_metrics`.
        """
        live = self.live(genotypes)
        counts = [(live == op).sum(axis=1) for op in range(len(self.ops))]
        return np.column_stack([*counts, *map(np.log1p, self.static_metrics(genotypes).values())]).astype(
            float
        )

    def is_connected(self, genotypes: Sequence[Genotype] | NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether a path leads from input to output, shape (n,); here always."""
        return np.ones(len(genotypes), dtype=bool)

    @abstractmethod
    def restrict(self, keep: Sequence[Sequence[int]]) -> SearchSpace:
        """The sub-space with only the operations `keep[edge]` on each edge."""

    @abstractmethod
    def to_str(self, genotype: Genotype) -> str:
        """The space's usual text form of an architecture."""

    @abstractmethod
    def from_str(self, text: str) -> Genotype:
        """The architecture of a text form.

        Raises:
            ValueError: Malformed text or an unknown operation; says what is allowed.
        """


class Evaluator(ABC):
    """An estimator of metrics for whole populations; a device is one whose metrics are costs.

    Attributes:
        name: Identifies the evaluator in the store.
        metrics: Goal per metric; the first one is the evaluator's main metric.
        reported: Goal per metric that only `report` shows.
        rungs: Evaluators of growing cost and reliability, for a strategy that chooses one per population
            (`Strategy.rung`); empty: the evaluator itself answers.
        held: Answers that are there before anything is evaluated, by network; as a rule none.
        eta: With rungs, for strategies that know none: the best 1/eta of a rung's networks go on to the next
            one, successive halving; None: the strategy chooses a rung.
        exhaustive: Whether it can answer for a whole space at once (a table, a formula, a profile).
        note: A sentence to show beside every answer, e.g. on the source of costs; may be empty.
        stationary: Whether answers of different generations can be compared. It is false if the weights
            behind them change; then the answer is among the networks that the strategy returns.
    """

    name: str
    metrics: Mapping[str, Goal]
    reported: Mapping[str, Goal] = MappingProxyType({})
    rungs: tuple[Evaluator, ...] = ()
    held: Mapping[Genotype, Mapping[str, float]] = MappingProxyType({})
    eta: int | None = None
    exhaustive: bool = False
    note: str = ""

    @property
    def objectives(self) -> tuple[str, ...]:
        """The metrics that a run optimises: the main one, unless an evaluator says otherwise."""
        return (next(iter(self.metrics)),)

    @property
    def stationary(self) -> bool:
        """True unless an evaluator says otherwise; may change in a run."""
        return True

    @abstractmethod
    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """Prepare for a population; returns the version of the answers, part of the store's key.

        Called once without a population before the search, then for every population in order, also for those
        that a resumed run replays.

        The version hashes everything that the answers depend on besides space, dataset and genotype.
        """

    def at(self, rung: int | None) -> Evaluator | None:
        """The evaluator of a rung; None if nothing evaluates at it. Without `rungs` the evaluator itself."""
        if not self.rungs:
            return self
        return None if rung is None else self.rungs[rung]

    def see(self, alphas: FloatArray | None) -> None:  # noqa: B027 - few evaluators need it
        """Take `Strategy.alphas` of the next population, before `prepare`; most evaluators ignore them."""

    @abstractmethod
    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Metrics per genotype, in order. `inf` means not supported; NaN is an error of the evaluator."""

    def parts(self, genotypes: Sequence[Genotype]) -> list[Sequence[Genotype]]:
        """The population in parts that can be evaluated separately with the same answers.

        The answers of a part are stored when it is done.
        """
        return [genotypes]

    def for_workers(self, genotypes: Sequence[Genotype]) -> list[Sequence[Genotype]]:
        """The population in parts for several workers, after common work, such as training, is done here.

        Copies of the evaluator evaluate the parts. They are those of `parts` by default.
        """
        return self.parts(genotypes)

    def report(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Metrics for reports only (test accuracy of tables), which strategies never observe.

        They are among `reported`.
        """
        return [{} for _ in genotypes]

    def separable(self, metric: str) -> Sum | None:
        """The metric as a sum over operations; None if it is no such sum."""
        return None

    def largest(self, metric: str) -> Largest | None:
        """The metric as the largest value of operations; None if it is no such one."""
        return None

    def errors(self, metric: str) -> FloatArray:
        """Measured over predicted values of networks outside a fit; empty without predictions."""
        return np.empty(0)

    def interval(self, metric: str, genotypes: Sequence[Genotype]) -> tuple[FloatArray, FloatArray] | None:
        """Bounds that a predicted metric keeps with a probability of 90 %, each (n,); None: not known."""
        return None

    def expected(self, genotypes: Sequence[Genotype]) -> FloatArray | None:
        """What is known of networks before any evaluation, higher is better, (n,); None if nothing is."""
        return None

    @property
    def expected_part(self) -> float:
        """The weight of `expected` against scores without training, in 0..1."""
        return 0.8

    def will_train(self, steps: Callable[[Sequence[Genotype]], FloatArray], per_pass: float) -> None:
        """Be told how the answer will be trained, on which `expected` may depend; here nothing does.

        Args:
            steps: Says for how many optimiser steps networks will be, (n,).
            per_pass: Steps of a pass over the training images.
        """
        del steps, per_pass

    def seconds_each(self, genotypes: Sequence[Genotype]) -> float:
        """Seconds by the clock that an evaluation takes here, on average over some networks."""
        self.evaluate(genotypes[:1])  # a first evaluation loads what it needs
        start = time.perf_counter()
        self.evaluate(genotypes)
        return (time.perf_counter() - start) / len(genotypes)

    def seconds(self, genotypes: Sequence[Genotype]) -> float | None:
        """Training time of the genotypes in a benchmark, in seconds; None if it is unknown."""
        return None

    def timed(self, networks: Sequence[nn.Module]) -> list[float] | None:
        """Milliseconds that any networks take, measured on the device now; None if it measures none."""
        return None


@dataclass(frozen=True)
class Hints:
    """What is known of networks before a search begins.

    Attributes:
        sources: By the source's name its numbers per network, higher is better; of different sources they
            cannot be compared.
        costs: Costs of the networks that keep the run's limits, where the device knows those of all; else
            empty.
    """

    sources: Mapping[str, Mapping[Genotype, float]]
    costs: Mapping[Genotype, float]

    def best(self, num: int) -> list[Genotype]:
        """At most `num` networks: the best under each of as many bounds, which are spread over the costs.

        The best is that of the highest sum over sources of ln(fraction of networks that are no better). A
        source that does not know a network counts with its mean. Of equal ones the first counts.
        """
        networks = list(dict.fromkeys(g for of in self.sources.values() for g in of))
        if self.costs:
            networks = [genotype for genotype in networks if genotype in self.costs]
        total = np.zeros(len(networks))
        for of in self.sources.values():
            ordered = np.sort(list(of.values()))
            found = np.array([of.get(genotype, np.nan) for genotype in networks])
            found = np.log(np.searchsorted(ordered, found, side="right").clip(1) / len(ordered)) + 0 * found
            total += np.where(np.isnan(found), np.nanmean(found) if np.isfinite(found).any() else 0.0, found)
        cost = np.array([self.costs.get(genotype, 0.0) for genotype in networks])
        chosen: list[int] = []
        for place in range(min(num, len(networks))):
            under = cost <= np.quantile(cost, (place + 1) / num)
            under[chosen] = False
            rows = np.flatnonzero(under)
            if len(rows):
                chosen.append(int(rows[total[rows].argmax()]))
        left = [row for row in np.argsort(-total, kind="stable").tolist() if row not in set(chosen)]
        return [networks[row] for row in [*chosen, *left][:num]]


class Strategy(ABC):
    """A search method by ask and tell, a deterministic function of its seed and of observed trials.

    Attributes:
        space: The search space.
        objectives: Objectives of the run, quality first, then costs.
        done: Whether the strategy has finished.
        alphas: Alphas of the last population, shape (n, edges, ops), for evaluators without decoding; None if
            the strategy has none.
        rung: Which of `Evaluator.rungs` evaluates the last population; None: none of them, as for strategies
            that know no rungs.
    """

    space: SearchSpace
    objectives: tuple[Objective, ...]
    done: bool = False
    rung: int | None = None
    alphas: FloatArray | None = None

    @abstractmethod
    def ask(self) -> list[Genotype]:
        """The next population; may repeat architectures."""

    @abstractmethod
    def tell(self, trials: Sequence[Trial]) -> None:
        """Take the answers, in the order of the last `ask`.

        Raises:
            ValueError: Another number of trials than `ask` returned.
        """

    @abstractmethod
    def result(self) -> list[Trial]:
        """The answer of the method: a front, an elite, a mean."""

    def plan(self, seconds: float, each: Sequence[float], spent: float = 0.0, part: float = 1.0) -> None:
        """Plan the populations of a run by a budget, before the first is asked for.

        Args:
            seconds: The budget.
            each: Seconds per network of each of `Evaluator.rungs`.
            spent: Seconds of the budget that are gone.
            part: Of the budget, for the search; the rest is for trainings after it.

        Raises:
            ValueError: The strategy cannot plan, as most, or the budget is too small.
        """
        raise ValueError(f"budget must be null: {type(self).__name__} does not plan; strategy=cascade does")

    def hint(self, hints: Hints) -> None:
        """Begin with what is known of networks; called once, before the first population is asked for.

        Raises:
            ValueError: The strategy takes no hints, as those that do not override this.
        """
        raise ValueError(f"warm_start must be null: {type(self).__name__} does not begin with known networks")

    def judged(self, trials: Sequence[Trial]) -> list[Trial]:
        """Observed trials with the metrics that the strategy itself estimates by all that it has observed."""
        return list(trials)

    def survivors(self) -> list[Trial]:
        """The population that is kept from one generation to the next; empty if there is none."""
        return []


def suggestion(word: str, known: Sequence[str]) -> str:
    """A hint for an unknown word: the nearest known ones, or all if they are few; may be empty."""
    near = list(dict.fromkeys(difflib.get_close_matches(word, known, n=3, cutoff=0.5)))
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 12 else ""


NUM_SAMPLED = 20_000


def listed(space: SearchSpace) -> list[Genotype]:
    """All architectures of a space that can be listed, or a seeded sample of `NUM_SAMPLED`."""
    return space.all() if space.size <= MOST_LISTED else space.sample(np.random.default_rng(0), NUM_SAMPLED)


def extent(space: SearchSpace) -> str:
    """The architectures of `listed`, in words."""
    return "all networks" if space.size <= MOST_LISTED else f"a seeded sample of {NUM_SAMPLED:,} networks"
