"""What a search is going to do (plan.json) and what it found (result.json), as objects.

The attributes have the names of the files' keys. Their types are what is checked when a file is read: a
mapping, a list or a number of another kind is refused in one line that says where it stands.
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np

from hwnas.core import FloatArray, Goal, Limit, Objective, Sum
from hwnas.files import read_json, shaped, write_json

SCHEMA = 2
"""Version of both files; those that were written before there were versions are of version 1.

Since version 2 the goals of all metrics are said.
"""

MOST_REPORTED = 5_000
"""Of at most so many networks of a run, evenly spread, result.json says what only reports may show."""

Cost = Annotated[float, math.inf]
"""A number that JSON writes as null where it is infinite: the device does not support the network."""


@dataclass(frozen=True)
class Network:
    """A network that the search describes.

    Attributes:
        arch: Its architecture as text.
        genotype: Its operations, one per decision.
        metrics: What is known of it, with what only reports may show; `inf`: the device does not support it.
    """

    arch: str
    genotype: tuple[int, ...]
    metrics: Mapping[str, Cost]


@dataclass(frozen=True)
class Trained:
    """The best network after its training from scratch.

    Attributes:
        test_acc: Test accuracy in 0..1.
        epochs: How long it was trained.
        weights: The file of its weights, relative to the run's folder.
        seconds: What training and testing took.
        balanced_test_acc: Mean over the classes of their test accuracy, in 0..1; None: not known.
        classes: Names of the classes, in the order of their labels; None: they have numbers only.
        name: Of the off-the-shelf network that was trained instead, because it did better; None: the best
            network that was found.
        latency_ms: Measured on the device, with those of `Result.baselines`; None: not measured.
    """

    test_acc: float
    epochs: int
    weights: str
    seconds: float = 0.0
    balanced_test_acc: float | None = None
    classes: tuple[str, ...] | None = None
    name: str | None = None
    latency_ms: float | None = None


@dataclass(frozen=True)
class Contender:
    """A network beside others that were trained by the same recipe for the same time, on the same images.

    Attributes:
        name: Of the off-the-shelf network, or the text of the found one.
        flops: Multiply-adds.
        params: Parameters.
        within: Whether it keeps the limits, as far as its costs are known; others were not trained.
        latency_ms: Measured on the device, all in turns; None: the device measures no networks.
        val_acc: In 0..1, on the validation images; None: not trained.
        foreseen: The same after the rest of the training, in 0..1, by which the one to take was chosen; None:
            nothing was forecast, and `val_acc` chose.
        test_acc: In 0..1, on the test images; None: not trained.
        seconds: Of the training.
        lead: Of an off-the-shelf network its test accuracy less that of the found one; None: not compared.
        lead_std: Its standard error, by the test images that only one of both answers right.
    """

    name: str
    flops: float
    params: float
    within: bool
    latency_ms: float | None = None
    val_acc: float | None = None
    test_acc: float | None = None
    seconds: float = 0.0
    lead: float | None = None
    lead_std: float | None = None
    foreseen: float | None = None

    @property
    def promise(self) -> float:
        """By what the one to take is chosen, in 0..1."""
        return self.foreseen or self.val_acc or 0.0


@dataclass(frozen=True)
class Evaluations:
    """How many evaluations the strategy asked for, of how many networks, and how many cost nothing."""

    asked: int
    unique: int
    cached: int

    @property
    def new(self) -> int:
        """Those that this run computed."""
        return self.asked - self.cached


@dataclass(frozen=True)
class Population:
    """Members of the last population, and how many different networks they are."""

    size: int
    different: int

    def __post_init__(self) -> None:
        if not 0 < self.different <= self.size:
            raise ValueError(f"population has {self.different} different networks among {self.size}")


@dataclass(frozen=True)
class Risk:
    """How probably the best network exceeds a limit on a predicted cost, by the errors for other networks.

    Attributes:
        limit: The bound, in the cost's unit.
        probability: In 0..1.
        networks: How many networks the errors are known of.
    """

    limit: float
    probability: float
    networks: int


@dataclass(frozen=True)
class Comparison:
    """The search beside the exact optimum of a space that is known as a whole.

    Attributes:
        best: The best network of the space that keeps the limits; None if none does.
        best_test_acc: The highest test accuracy of a network that keeps them, in 0..1.
        regret: How far the search's best network is behind, per metric and in its unit.
        hypervolume_ratio: After each generation, the covered part of the true front's hypervolume.
        igd_plus: After each generation, the distance of the front to the true one.
        front: Values of the objectives of the true front's networks.
    """

    best: Network | None
    regret: Mapping[str, Cost]
    hypervolume_ratio: tuple[float, ...]
    igd_plus: tuple[Cost, ...]
    front: tuple[tuple[float, ...], ...]
    best_test_acc: float | None = None


@dataclass(frozen=True)
class TransferRow:
    """The best network for one device, on all of them.

    Attributes:
        device: Whose network it is; None: the one that suits all of them.
        network: None if none keeps the device's limits.
        regret: Per device, how much better its own best network is; None where they cannot be compared.
        excess: Per device, how far the network is beyond its limits, relative; 0 where it keeps them.
    """

    device: str | None
    network: Network | None
    regret: Mapping[str, float | None]
    excess: Mapping[str, Cost]


@dataclass(frozen=True)
class Transfer:
    """What becomes of each device's best network on the other devices.

    Attributes:
        limits: Per device its bounds by metric.
        main: Per device its main cost.
        among: Which networks were compared, in words.
        rows: One per device, and one for all of them.
    """

    limits: Mapping[str, Mapping[str, float]]
    main: Mapping[str, str]
    among: str
    rows: tuple[TransferRow, ...]


@dataclass(frozen=True)
class LookedUp:
    """What a benchmark's table, which the search never saw, knows of the best network.

    Attributes:
        value: A metric of it.
        regret: How far it is behind the best network of the space.
        by_flops: The metric of the network with the most multiply-adds.
    """

    value: float
    regret: float
    by_flops: float | None = None


@dataclass(frozen=True)
class Blind:
    """Blind regret: what choosing by an estimate costs in true validation accuracy, by a benchmark's table.

    Within a limit, the network of the best estimate is behind the best network of the space by the regret.
    The limits are the nine deciles of a cost over the supported networks of the space.

    Attributes:
        cost: Metric that is limited.
        limits: Its 0.1, 0.2, ..., 0.9 quantiles, in its unit.
        regret: At each limit, in points; by how the network is chosen: "estimate" is the run's, among its own
            networks, "early" the benchmark's after 12 epochs, "expected" what was known before any
            evaluation, "params" and "flops" choose the largest network and "random" any one, all among all
            networks. With equal estimates the run's cheapest network is chosen; of the others it is the mean.
        tau: Kendall's tau of the estimate with the truth over the run's networks: "all", the "better_half"
            and the "top_tenth" by truth; None for fewer than ten networks, or where all are equal.
        networks: How many of the run's networks are compared.
        seconds_per_new: Seconds of the evaluator for a network that it computed in the run's last session;
            None if it computed none. What it prepared is not in it, nor what other sessions computed.
    """

    cost: str
    limits: tuple[float, ...]
    regret: Mapping[str, tuple[float, ...]]
    tau: Mapping[str, float | None]
    networks: int
    seconds_per_new: float | None = None

    def __post_init__(self) -> None:
        if "estimate" not in self.regret or not self.limits:
            raise ValueError("blind has no limits, or no regret of the estimate")
        for choice, regret in self.regret.items():
            if len(regret) != len(self.limits):
                raise ValueError(f"blind has {len(self.limits)} limits and {len(regret)} regrets of {choice}")

    def mean_of(self, choice: str) -> float:
        """The mean over the limits of a kind of choice, in points."""
        return sum(self.regret[choice]) / len(self.limits)

    @property
    def mean(self) -> float:
        """The run's blind regret, in points."""
        return self.mean_of("estimate")


@dataclass(frozen=True)
class Replays:
    """The earlier runs among whose networks a search looked, with their answers.

    Attributes:
        folders: The runs.
        networks: How many networks they hold.
        missing: How many different networks the strategy asked for that are not there; they were evaluated.
        costs: Whether costs are those of the "run", too, or the "device" answered.
    """

    folders: tuple[str, ...]
    networks: int
    missing: int
    costs: Literal["run", "device"] = "run"


@dataclass(frozen=True)
class WarmSource:
    """A source of what a search began with: its name, and of how many networks it has a number."""

    name: str
    networks: int


@dataclass(frozen=True)
class WarmStarted:
    """What a search began with.

    Attributes:
        sources: Where it is from.
        scored: Networks that were scored for it in this run.
        seconds: That finding it took, by the clock.
    """

    sources: tuple[WarmSource, ...]
    scored: int
    seconds: float


@dataclass(frozen=True)
class Effects:
    """What each operation does to a metric, against the average operation of its edge.

    Attributes:
        mean: The metric on average over the networks, in its unit; `inf` where an edge has no operation
            that is supported.
        added: Shape (edges, ops), in the metric's unit; the known ones of an edge have the mean 0. NaN: not
            allowed there, or never seen.
        r2: Share of the metric's variance that the sum of the effects explains; of a fit, cross-validated.
        num: How many networks it is known from.
    """

    mean: Cost
    added: Annotated[FloatArray, math.nan]
    r2: Cost
    num: int


class _GoalsByName(dict[str, Goal]):
    """Goals of a folder of version 1: what it does not say was meant by the metric's name."""

    def __missing__(self, metric: str) -> Goal:
        return "max" if metric.endswith("_acc") or metric in ("rmi", "rmi_flops") else "min"


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search optimises.

    Attributes:
        objectives: The quality first, then costs.
        limits: Bound per metric.
        goals: The direction in which each metric of the run is better, also those that only reports show.
        robust: Standard errors by which a network must be better to beat another; None: any lead counts.
        image_shape: (channels, height, width) of the images; None: no images, or not kept by that version.
        num_classes: Number of classes; None likewise.
    """

    objectives: tuple[Objective, ...]
    limits: Mapping[str, float]
    goals: Mapping[str, Goal] = field(default_factory=dict)
    robust: float | None = None
    image_shape: tuple[int, ...] | None = None
    num_classes: int | None = None

    def goal(self, metric: str) -> Goal:
        """The direction in which a metric is better.

        Raises:
            ValueError: Nothing says it.
        """
        of_objectives = {objective.metric: objective.goal for objective in self.objectives}
        try:
            return of_objectives.get(metric) or self.goals[metric]
        except KeyError:
            raise ValueError(f"goals do not say in which direction {metric} is better") from None

    @property
    def bounds(self) -> tuple[Limit, ...]:
        """The limits, each with its direction."""
        return tuple(Limit(metric, bound, self.goal(metric)) for metric, bound in self.limits.items())

    @classmethod
    def from_json(cls, content: object) -> Self:
        """What a file's content says.

        Raises:
            ValueError: Something is missing or of another kind; says where.
        """
        shaped(content, _shape(cls) | {"schema?": int})
        assert isinstance(content, dict)
        schema = content.get("schema", 1)
        if schema not in (1, SCHEMA):
            raise ValueError(f"schema is {schema}, and this version of hwnas reads 1 and {SCHEMA}")
        read: Self = _made(cls, content)
        if schema == 1:
            read = replace(read, goals=_GoalsByName(read.goals))
        assert all(map(read.goal, read.limits))
        return read

    def to_json(self) -> dict[str, Any]:
        """The file's content, for `files.write_json`."""
        return {"schema": SCHEMA, **_plain(self)}

    def write(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        write_json(path, self.to_json())


@dataclass(frozen=True, kw_only=True)
class Result(Plan):
    """What a finished search found.

    Attributes:
        strategy: The option that was chosen in this group; so are `search_space`, `dataset`, `evaluator` and
            `device`, where several devices are one text.
        evaluations: How many there were.
        virtual_seconds: What training the networks took the authors of the benchmark whose table was used.
        hypervolume: After each generation.
        result: The networks that the strategy returns.
        best: The best network that keeps the limits; None if none does.
        intervals: Per predicted cost bounds that the answer keeps with a probability of 90 %, where known.
        memory: `ram_kb` and `flash_kb` of the answer, and the `memory_bits` of a number; None: not known.
        notes: Sentences that belong beside the answer.
        stationary: Whether qualities of different generations can be compared.
        truth: Where the whole space is known.
        transfer: Of a search for several devices.
        yardsticks: Networks that are known without a search, by name.
        looked_up: Per metric of a benchmark's table.
        blind_regret: What the run's estimate costs in validation accuracy, in points; None without a table.
        blind: How that was found, beside other ways to choose.
        warm_start: What the search began with; None: with nothing.
        replay: What was replayed; None for a search among all networks.
        effects: Per objective, where they are known exactly.
        sums: Per metric that is a sum over operations.
        deciles: Per cost its 0, 0.1, ..., 1 quantiles over the space.
        reports: What only reports may show of at most `MOST_REPORTED` networks, evenly spread.
        versions: What each evaluator's answers depend on.
        network: The final network; None if none was trained.
        baselines: Off-the-shelf networks, and what they reached in the time that the found one had.
        found: The best network that was found, trained beside them; None: there were none.
        doubts: Warnings that were given on the way.
        protocol: The images that validate, in words; None where the configuration says it.
        seconds: Per phase, and "total".
        energy_kwh: Of processors and GPU; None where nobody counts it.
    """

    status: Literal["finished"] = "finished"
    strategy: str = ""
    search_space: str = ""
    dataset: str = ""
    evaluator: str = ""
    device: str = ""
    seed: int | None = None
    generations: int | None = None
    evaluations: Evaluations
    virtual_seconds: float | None = None
    hypervolume: tuple[float, ...] | None = None
    result: tuple[Network, ...]
    best: Network | None
    population: Population | None = None
    risk: Mapping[str, Risk] | None = None
    intervals: Mapping[str, tuple[float, float]] | None = None
    memory: Mapping[str, float] | None = None
    notes: tuple[str, ...] = ()
    stationary: bool = True
    truth: Comparison | None = None
    transfer: Transfer | None = None
    yardsticks: Mapping[str, Network] | None = None
    looked_up: Mapping[str, LookedUp] | None = None
    blind_regret: float | None = None
    blind: Blind | None = None
    warm_start: WarmStarted | None = None
    replay: Replays | None = None
    effects: Mapping[str, Effects] = field(default_factory=dict)
    sums: Mapping[str, Sum] = field(default_factory=dict)
    deciles: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    reports: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    network: Trained | None = None
    baselines: tuple[Contender, ...] = ()
    found: Contender | None = None
    doubts: tuple[str, ...] = ()
    protocol: str | None = None
    seconds: Mapping[str, float]
    energy_kwh: float | None = None

    def __post_init__(self) -> None:
        if "total" not in self.seconds:
            raise ValueError("seconds has no total")


def read_plan(path: Path) -> Plan:
    """A run's plan.json.

    Raises:
        ValueError: It is corrupt; names the file and the place.
    """
    content = read_json(path)
    try:
        return Plan.from_json(content)
    except ValueError as error:
        raise ValueError(f"{path} is corrupt: {error}") from None


def read_result(path: Path) -> Result:
    """A run's result.json.

    Raises:
        ValueError: Not the result of a finished search; names the file and the place.
    """
    wrong = "is not the result of a finished search"
    content = read_json(path, wrong)
    try:
        return Result.from_json(content)
    except ValueError as error:
        raise ValueError(f"{path} {wrong}: {error}") from None


@cache
def _types(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def _shape(kind: Any) -> Any:
    """The shape of the JSON that becomes an object of a type, for `files.shaped`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        missing = dataclasses.MISSING
        return {
            each.name + "?" * (each.default is not missing or each.default_factory is not missing): _shape(
                _types(kind)[each.name]  # type: ignore[arg-type]
            )
            for each in dataclasses.fields(kind)
        }
    if origin is np.ndarray:
        return [[(float, None)]]
    if origin is Annotated:
        return _shape(inner[0]) if typing.get_origin(inner[0]) is np.ndarray else (_shape(inner[0]), None)
    if origin in (typing.Union, types.UnionType):
        return tuple(None if each is types.NoneType else _shape(each) for each in inner)
    if origin is Literal:
        return inner
    if origin is tuple:
        return [_shape(inner[0])]
    return {str: _shape(inner[1])} if origin is Mapping else kind


def _made(kind: Any, value: Any, null: float = math.inf) -> Any:
    """The object of a type that JSON of the right shape stands for; `null` is what a missing number is."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        known = {name: each for name, each in _types(kind).items() if name in value}  # type: ignore[arg-type]
        return kind(**{name: _made(each, value[name]) for name, each in known.items()})  # type: ignore[operator]
    if origin is np.ndarray:
        if len({len(row) for row in value}) > 1:
            raise ValueError("a table has rows of different lengths")
        return np.array([[null if each is None else each for each in row] for row in value], dtype=float)
    if origin is Annotated:
        return _made(inner[0], value, inner[1])
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _made(inner[0], value)
    if origin is tuple:
        return tuple(_made(inner[0], each) for each in value)
    if origin is Mapping:
        return {name: _made(inner[1], each) for name, each in value.items()}
    return (null if value is None else float(value)) if kind is float else value


def _plain(value: Any) -> Any:
    """An object as JSON: mappings, lists and numbers."""
    if dataclasses.is_dataclass(value):
        return {each.name: _plain(vars(value)[each.name]) for each in dataclasses.fields(value)}
    if isinstance(value, np.ndarray):
        return [[each if math.isfinite(each) else None for each in row] for row in value.tolist()]
    if isinstance(value, Mapping):
        return {name: _plain(each) for name, each in value.items()}
    return [_plain(each) for each in value] if isinstance(value, tuple | list) else value
