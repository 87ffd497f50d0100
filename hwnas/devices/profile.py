"""Device profiles: costs of operations, measured or fitted once, whose sum predicts any architecture."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from hwnas.core import Evaluator, FloatArray, Genotype, Goal, SearchSpace, Sum, suggestion
from hwnas.devices.table import HIGHEST
from hwnas.files import find_file, read_json, shaped, write_text
from hwnas.spaces.capabilities import HasCosts, HasNetworks

_FIGURES = {str: [float]}
_SUM = {"base": float, "edges": [[float]], "pairs?": {str: [[float]]}, "floor?": float}
PROFILE_SHAPE = {
    "schema": int,
    "device": str,
    "space": str,
    "network": {str: object},
    "origin": {str: object},
    "costs": {
        str: {**_SUM, "work?": {str: float}, "parts?": {str: _SUM}},
    },
    "check": {
        str: {"networks": int, "r2": Real, "spearman": Real, "median_error": Real, "mean_error?": Real}
    },
    "operations?": {
        str: {
            **{f"{key}_{unit}?": float for key in ("median", "iqr", "network") for unit in ("ms", "mj")},
            "variation?": float,
            "noisy?": bool,
            "rounds?": int,
        }
    },
    "live?": bool,
    "unsupported?": [[[int]]],
    "networks?": (
        {"archs": [str], "fitted": int, "measured": _FIGURES, "predicted": _FIGURES},
        None,
    ),
    "doubts?": {str: {"noise": float, "draws": [{**_SUM, "form": str}]}},
}
"""Shape of a profile's file, for `files.shaped`."""

SCHEMA_VERSION = 3
READABLE = (2, 3)
"""Schema versions that can be read; version 2 has neither networks nor `live`."""


@dataclass(frozen=True)
class Additive:
    """A cost as a constant, plus a cost per operation, plus a cost per pair of operations.

    Attributes:
        base: The constant, in the metric's unit.
        edges: `edges[edge][op]`, cost of an operation on an edge.
        pairs: `pairs["a,b"][op on edge a][op on edge b]`, additional cost of two operations together; may be
            empty.
        floor: Lower bound of all predictions.
    """

    base: float
    edges: list[list[float]]
    pairs: dict[str, list[list[float]]] = field(default_factory=dict)
    floor: float = 0.0

    def __call__(self, genotypes: Sequence[Genotype] | np.ndarray) -> FloatArray:
        """Predicted cost per genotype, shape (n,); genotypes as tuples or as an array (n, edges)."""
        G = np.asarray(genotypes, dtype=np.intp).reshape(-1, len(self.edges))
        cost = self.base + np.asarray(self.edges)[np.arange(G.shape[1]), G].sum(axis=1)
        for names, added in self.pairs.items():
            a, b = map(int, names.split(","))
            cost += np.asarray(added)[G[:, a], G[:, b]]
        return np.maximum(cost, self.floor)

    def of(self, space: SearchSpace, genotypes: Sequence[Genotype] | np.ndarray) -> FloatArray:
        """Predicted cost per genotype of a space, shape (n,)."""
        return self(genotypes)


@dataclass(frozen=True)
class Layered(Additive):
    """A cost as a sum over the work of a network's layers, for spaces whose options do not add up.

    Attributes:
        edges: What options add on average, for pages.
        work: Cost per unit of each amount of work (`HasCosts.work`).
    """

    work: dict[str, float] = field(default_factory=dict)

    def of(self, space: SearchSpace, genotypes: Sequence[Genotype] | np.ndarray) -> FloatArray:
        """Predicted cost per genotype, shape (n,)."""
        assert isinstance(space, HasCosts)
        amounts = space.work(genotypes)
        cost = sum((unit * amounts[name] for name, unit in self.work.items()), np.zeros(len(genotypes)))
        return np.maximum(self.base + cost, self.floor)


FORMS = ("all", "used", "live")
"""What a device runs of a network: everything; what is used; what is used and no constant."""


def seen(space: SearchSpace, genotypes: Sequence[Genotype] | np.ndarray, form: str) -> NDArray[np.intp]:
    """Genotypes (n, edges) as a device runs them, by one of `FORMS`."""
    if form == "all":
        return np.asarray(genotypes, dtype=np.intp).reshape(-1, len(space.choices))
    return space.used(genotypes) if form == "used" else space.live(genotypes)


@dataclass(frozen=True)
class Compiled(Additive):
    """A cost as a sum over what a device runs of a network, where it is not known for sure what that is.

    Attributes:
        edges: What operations cost if all are run, for pages; so are `base` and `pairs`.
        parts: A cost per form of the network, of `FORMS`; they add up. Without a path from input to output
            the parts "used" and "live" cost their lower bound.
    """

    parts: dict[str, Additive] = field(default_factory=dict)

    def of(self, space: SearchSpace, genotypes: Sequence[Genotype] | np.ndarray) -> FloatArray:
        """Predicted cost per genotype, shape (n,)."""
        connected = space.is_connected(genotypes)
        cost = np.zeros(len(genotypes))
        for form, part in self.parts.items():
            found = part(seen(space, genotypes, form))
            cost += found if form == "all" else np.where(connected, found, part.floor)
        return cost


@dataclass(frozen=True)
class Draw(Additive):
    """A cost that measurements leave possible, as a sum over what the device runs by one of `FORMS`."""

    form: str = "all"

    def of(self, space: SearchSpace, genotypes: Sequence[Genotype] | np.ndarray) -> FloatArray:
        """Cost per genotype, shape (n,)."""
        found = self(seen(space, genotypes, self.form))
        return found if self.form == "all" else np.where(space.is_connected(genotypes), found, self.floor)


INTERVAL = 1.645
"""Standard deviations on either side of a prediction: 90 % of a normal distribution."""


@dataclass(frozen=True)
class Doubt:
    """How sure a profile is of a cost.

    Attributes:
        noise: Standard deviation of single networks about any sum, in the metric's unit.
        draws: Random costs from what measurements leave possible.
    """

    noise: float
    draws: list[Draw]

    def half(self, space: SearchSpace, genotypes: Sequence[Genotype] | np.ndarray) -> FloatArray:
        """Half the widths of the 90 % intervals per genotype, shape (n,)."""
        costs = np.array([draw.of(space, genotypes) for draw in self.draws])
        return INTERVAL * np.sqrt(costs.var(axis=0) + self.noise**2)


@dataclass(frozen=True)
class Networks:
    """Measured whole networks, and the profile's predictions for them.

    Attributes:
        archs: Architectures as text.
        fitted: Number of the first networks, which the fit used.
        measured: Per metric, a figure per network; of timings the lower quartile of the rounds.
        predicted: Per metric, a figure per network; networks outside the fit are predicted without their
            measurements.
    """

    archs: list[str]
    fitted: int
    measured: dict[str, list[float]]
    predicted: dict[str, list[float]]


class Operation(TypedDict, total=False):
    """What was measured of a block, as `Profile.operations` says."""

    input: list[int]
    rounds: int
    passes: int
    variation: float
    noisy: bool
    median_ms: float
    iqr_ms: float
    network_ms: float
    median_mj: float
    iqr_mj: float
    network_mj: float


@dataclass(frozen=True)
class Profile:
    """Costs of a space's networks on a device, as sums over operations.

    Attributes:
        schema: Version of this file format.
        device: Name of the device.
        space: Name of the search space.
        network: Shape of the networks: width, depth, image, classes, batch.
        origin: Source of the figures: processor, threads, versions and time of a measurement, or the table of
            a fit.
        costs: Per metric, e.g. "latency_ms".
        check: Per metric, predictions against networks outside the fit: "networks", "r2", "spearman",
            "median_error" and "mean_error" (relative).
        operations: Of a measurement, per block and measured alone: "median_ms", "iqr_ms" (interquartile
            range), "variation" (coefficient of variation), "noisy" (above the threshold, measured again and
            still so), "rounds", "passes" per round, "input" (shape); and "network_ms", what the block adds to
            a network. Likewise "median_mj" and so on where energy was measured.
        live: Whether the device removes operations with unused output; a network without a path then costs
            the lower bound.
        networks: Whole networks that were measured, if any.
        unsupported: Sets of networks that the device does not support, each as the operations per edge: all
            their combinations. They cost `inf`.
        doubts: Per metric how sure the profile is; empty where nobody knows.
    """

    schema: int
    device: str
    space: str
    network: dict[str, object]
    origin: dict[str, object]
    costs: dict[str, Additive]
    check: dict[str, dict[str, float]]
    operations: dict[str, Operation] = field(default_factory=dict)
    live: bool = False
    networks: Networks | None = None
    unsupported: list[list[list[int]]] = field(default_factory=list)
    doubts: dict[str, Doubt] = field(default_factory=dict)

    def interval(
        self, space: SearchSpace, metric: str, genotypes: Sequence[Genotype] | np.ndarray
    ) -> tuple[FloatArray, FloatArray] | None:
        """Bounds that 90 % of the networks keep, each (n,); None if nobody knows how sure the profile is."""
        if metric not in self.doubts:
            return None
        expected, half = self.predict(space, metric, genotypes), self.doubts[metric].half(space, genotypes)
        return np.maximum(expected - half, 0.0), expected + half

    def predict(
        self, space: SearchSpace, metric: str, genotypes: Sequence[Genotype] | np.ndarray
    ) -> FloatArray:
        """Predicted cost per genotype, shape (n,); genotypes as tuples or as an array (n, edges).

        `inf` where the device does not support the network.
        """
        cost = self.costs[metric]
        if not self.live:
            found = cost.of(space, genotypes)
        else:
            connected = space.is_connected(genotypes)
            found = np.where(connected, cost.of(space, space.live(genotypes)), cost.floor)
        if not self.unsupported:
            return found
        G = np.asarray(genotypes, dtype=np.intp).reshape(-1, len(space.choices))
        inside = np.zeros((len(self.unsupported), G.shape[1], len(space.ops)), dtype=bool)
        for each, ops_by_edge in zip(inside, self.unsupported, strict=True):
            for edge, ops in enumerate(ops_by_edge):
                each[edge, ops] = True
        refused = inside[:, np.arange(G.shape[1]), G].all(axis=2).any(axis=0)
        return np.where(refused, math.inf, found)

    def errors(self, metric: str) -> FloatArray:
        """Measured over predicted cost of networks outside the fit; empty if none are kept."""
        if self.networks is None or metric not in self.networks.measured:
            return np.empty(0)
        measured, predicted = (
            np.array(values[metric][self.networks.fitted :])
            for values in (self.networks.measured, self.networks.predicted)
        )
        return measured[predicted > 0] / predicted[predicted > 0]

    @property
    def num_noisy(self) -> int:
        """Number of noisy operations."""
        return sum(bool(row.get("noisy")) for row in self.operations.values())

    def summary(self) -> str:
        """A sentence on how well it predicts."""
        parts = [
            f"{metric} R2 {check['r2']:.4f}, Spearman {check['spearman']:.3f}, median error "
            f"{check['median_error']:.1%}"
            + (f", mean error {check['mean_error']:.1%}" if "mean_error" in check else "")
            for metric, check in self.check.items()
        ]
        number = next(iter(self.check.values()))["networks"]
        marked = f"; {self.num_noisy} of {len(self.operations)} operations are noisy" * (self.num_noisy > 0)
        return (
            f"On {number:,} networks that the profile of {self.device} was not fitted to: {'; '.join(parts)}"
            f"{marked}"
        )

    def check_space(self, space: SearchSpace, source: Path) -> None:
        """Raise ValueError unless the profile, read from `source`, is one of the space."""
        if self.space != space.name:
            raise ValueError(f"{source} is a profile of the {self.space} space, not of {space.name}")
        for ops_by_edge in self.unsupported:
            inside = (0 <= op < len(space.ops) for ops in ops_by_edge for op in ops)
            if len(ops_by_edge) != len(space.choices) or not all(inside):
                raise ValueError(
                    f"{source} says of {ops_by_edge} that it is not supported, which is no network"
                )
        for cost in self.costs.values():
            if tuple(np.shape(cost.edges)) != space.alpha_shape:
                raise ValueError(
                    f"{source} has costs of shape {np.shape(cost.edges)}, not {space.alpha_shape} as "
                    f"{space.name}"
                )

    def content(self) -> dict[str, object]:
        """The profile as JSON."""
        content = dataclasses.asdict(self)
        for name in ("unsupported", "doubts"):
            if not content[name]:
                del content[name]  # versions of profiles without it are those of before
        return content

    def save(self, path: Path) -> None:
        """Write the profile as JSON, whole or not at all."""
        write_text(path, json.dumps(self.content(), indent=1) + "\n")

    @staticmethod
    def load(path: Path) -> Profile:
        """Read a profile.

        Raises:
            ValueError: Not a profile, of another schema version, or with figures that are no numbers.
        """
        content = read_json(path, "is not a device profile")
        try:
            if not isinstance(content, dict) or "schema" not in content:
                raise ValueError("it has no schema")
            if content["schema"] not in READABLE:
                raise ValueError(
                    f"schema version {content['schema']}, this hwnas reads {' and '.join(map(str, READABLE))}"
                )
            shaped(content, PROFILE_SHAPE)
            costs = {metric: _cost(cost) for metric, cost in content["costs"].items()}
            _check_costs(costs)
            if not costs or not costs.keys() == content["check"].keys():
                raise ValueError("it does not say how well it predicts each of its costs")
            for name, row in content.get("operations", {}).items():
                for key in ("median_ms", "median_mj"):
                    if key in row and not row[key] > 0:
                        raise ValueError(f"{key} of {name} is {row[key]}; it must be above 0")
            networks = Networks(**content["networks"]) if content.get("networks") else None
            if networks is not None:
                _check_networks(networks)
            doubts = {metric: _doubt(doubt) for metric, doubt in content.get("doubts", {}).items()}
            for metric, doubt in doubts.items():
                _check_doubt(metric, doubt, costs)
            read = {"schema": SCHEMA_VERSION, "costs": costs, "networks": networks, "doubts": doubts}
            return Profile(**{**content, **read})
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{path} is not a device profile ({error})") from None


def _doubt(content: dict[str, Any]) -> Doubt:
    return Doubt(content["noise"], [Draw(**draw) for draw in content["draws"]])


def _check_doubt(metric: str, doubt: Doubt, costs: Mapping[str, Additive]) -> None:
    """Raise ValueError unless draws are costs of the profile's space."""
    if metric not in costs or not doubt.noise >= 0 or len(doubt.draws) < 2:
        raise ValueError(f"doubts of {metric} need that cost, noise of at least 0, and two draws")
    for draw in doubt.draws:
        if draw.form not in FORMS or np.shape(draw.edges) != np.shape(costs[metric].edges):
            raise ValueError(f"a draw of {metric} has another shape than the cost, or form={draw.form!r}")
        _check_costs({f"{metric} (drawn)": draw})


def _cost(content: dict[str, Any]) -> Additive:
    """A cost of the kind that its keys tell."""
    if "parts" in content:
        if not content["parts"] or not content["parts"].keys() <= set(FORMS):
            raise ValueError(f"parts of a cost are {', '.join(FORMS)}, not {', '.join(content['parts'])}")
        parts = {form: Additive(**part) for form, part in content["parts"].items()}
        return Compiled(**{**content, "parts": parts})
    return (Layered if "work" in content else Additive)(**content)


def _check_networks(networks: Networks) -> None:
    """Raise ValueError unless every network has a measured and a predicted cost."""
    for metric, values in networks.measured.items():
        if not all(value >= 0 for value in values):
            raise ValueError(f"a network has a {metric} that is no cost: {min(values)}")
        if not len(values) == len(networks.archs) == len(networks.predicted.get(metric, ())):
            raise ValueError(f"it does not have a {metric}, measured and predicted, of every network")


def _check_costs(costs: Mapping[str, Additive]) -> None:
    """Raise ValueError unless tables are complete, with known edges only, and costs are not too large."""
    for metric, cost in costs.items():
        shape = np.shape(cost.edges)  # numpy refuses rows of different lengths
        tables = [cost.base, cost.floor, *itertools.chain(*cost.edges)]
        if isinstance(cost, Layered):
            tables += cost.work.values()
        if isinstance(cost, Compiled):
            if any(np.shape(part.edges) != shape for part in cost.parts.values()):
                raise ValueError(f"parts of {metric} have edges of other shapes than {shape}")
            _check_costs({f"{metric} ({form})": part for form, part in cost.parts.items()})
        for names, added in cost.pairs.items():
            if np.shape(added) != (shape[1], shape[1]) or not re.fullmatch(r"\d+,\d+", names, re.ASCII):
                raise ValueError(f"{metric} has a table of the pair {names!r} with shape {np.shape(added)}")
            if max(map(int, names.split(","))) >= shape[0]:
                raise ValueError(f"{metric} has a table of edges {names}, of {shape[0]}")
            tables += itertools.chain(*added)
        if np.abs(tables).max() > HIGHEST:
            raise ValueError(f"a {metric} is above {HIGHEST:g}")


class ProfileDevice(Evaluator):
    """Costs that a profile predicts.

    Args:
        space: The space of the profile's networks.
        profile: The profile.
        source: Its file, for messages.
        metric: The cost that strategies minimise; other costs of the profile are reported, too.

    Raises:
        ValueError: A profile of another space, or without the metric.
    """

    def __init__(self, space: SearchSpace, profile: Profile, source: Path, *, metric: str) -> None:
        if metric not in profile.costs:
            raise ValueError(
                f"no {metric} of device {profile.device} in {source}{suggestion(metric, list(profile.costs))}"
            )
        profile.check_space(space, source)
        self.name = profile.device
        self.exhaustive = True
        names = [metric, *(other for other in profile.costs if other != metric)]
        self.metrics: dict[str, Goal] = {name: "min" for name in names}  # noqa: C420 - the type is narrower
        self.profile = profile
        self._space = space
        content = json.dumps(profile.content(), sort_keys=True)
        self._version = hashlib.sha256(content.encode()).hexdigest()[:16]

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """The version: a hash of the profile."""
        return self._version

    def separable(self, metric: str) -> Sum | None:
        """The cost as a sum; None if pairs of operations, unused operations or the lower bound matter."""
        cost = self.profile.costs[metric]
        if isinstance(cost, Layered | Compiled) or (
            self.profile.live and type(self._space).live is not SearchSpace.live
        ):
            return None
        added = np.asarray(cost.edges, dtype=np.float64)
        if self.profile.unsupported or cost.pairs or cost.base + added.min(axis=1).sum() < cost.floor:
            return None
        return Sum(cost.base, added)

    def errors(self, metric: str) -> FloatArray:
        """As for the profile."""
        return self.profile.errors(metric)

    def interval(self, metric: str, genotypes: Sequence[Genotype]) -> tuple[FloatArray, FloatArray] | None:
        """As for the profile."""
        return self.profile.interval(self._space, metric, genotypes)

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Predicted costs per genotype."""
        G = np.frombuffer(b"".join(map(bytes, genotypes)), dtype=np.uint8)  # half the time of asarray
        G = G.reshape(len(genotypes), -1)
        rows: list[dict[str, float]] = [{} for _ in genotypes]
        for metric in self.metrics:
            for row, value in zip(rows, self.profile.predict(self._space, metric, G).tolist(), strict=True):
                row[metric] = value
        return rows


def profile_device(
    space: SearchSpace, announce: Callable[[str], None], *, path: str | None, metric: str
) -> ProfileDevice:
    """A device by its profile's file, as `hwnas profile` writes it.

    Args:
        space: The space of the profile's networks.
        announce: Called with a sentence on how well the profile predicts.
        path: The file, absolute or relative to the working folder or the data folder.
        metric: The cost that strategies minimise.

    Raises:
        ValueError: No such file, not a profile, of another space, or without the metric.
    """
    if not path:
        raise ValueError("device=profile needs device.path=<profile.json, as hwnas profile writes it>")
    file = find_file(path)
    profile = Profile.load(file)
    device = ProfileDevice(space, profile, file, metric=metric)
    announce(profile.summary())
    shape = network_shape(space, profile.network.get("batch_size", 1))
    differ = [
        f"{name} {profile.network.get(name)}, the run's {shape.get(name)}"
        for name in {**shape, **profile.network}
        if profile.network.get(name) != shape.get(name)
    ]
    if differ:
        device.note = f"the profile's networks are not those of the run: they have {'; '.join(differ)}"
        announce(f"warning: {device.note}")
    return device


def checked_on(
    profile: Profile, space: SearchSpace, G: np.ndarray, measured: Mapping[str, Sequence[float]], fitted: int
) -> Profile:
    """The profile with measured networks, of which the fit used the first `fitted`, and with its check."""
    predicted = {metric: profile.predict(space, metric, G) for metric in measured}
    return dataclasses.replace(
        profile,
        check={
            metric: agreement(
                values[fitted:], np.array(measured[metric][fitted:]), space.is_connected(G[fitted:])
            )
            for metric, values in predicted.items()
        },
        networks=Networks(
            archs=[space.to_str(tuple(row)) for row in G.tolist()],
            fitted=fitted,
            measured={metric: list(values) for metric, values in measured.items()},
            predicted={metric: values.tolist() for metric, values in predicted.items()},
        ),
    )


def margin(errors: FloatArray, confidence: float) -> float:
    """Relative margin above a predicted cost; 0 if networks cost less than predicted.

    A further network, drawn like the others, keeps this margin with the given confidence (split conformal
    prediction). With too few errors for this, the margin is the largest error.

    Args:
        errors: Measured over predicted cost, (n,), at least one.
        confidence: In 0..1.

    Source: Vovk et al., Algorithmic Learning in a Random World, 2005.
    """
    rank = min(len(errors), math.ceil((len(errors) + 1) * confidence))
    return max(0.0, float(np.sort(errors)[max(rank, 1) - 1]) - 1)


def agreement(
    predicted: FloatArray, actual: FloatArray, connected: NDArray[np.bool_] | None = None
) -> dict[str, float]:
    """Agreement of predictions with measurements.

    "networks", "r2", "spearman", and of the relative errors "median_error" and "mean_error": of networks with
    a path from input to output (`connected`; None: all), since others may cost next to nothing.
    """
    from scipy.stats import spearmanr

    residual, spread = predicted - actual, actual - actual.mean()
    counted = (actual > 0) if connected is None or not connected.any() else (actual > 0) & connected
    relative = np.abs(residual[counted]) / actual[counted]
    return {
        "networks": len(actual),
        "r2": float(1 - (residual @ residual) / (spread @ spread)),
        "spearman": float(spearmanr(predicted, actual).statistic),
        "median_error": float(np.median(relative)),
        "mean_error": float(relative.mean()),
    }


def network_shape(space: SearchSpace, batch_size: object) -> dict[str, object]:
    """All that the latency of a space's networks depends on, besides the architecture and the machine.

    Empty for a space without networks.
    """
    if not isinstance(space, HasNetworks):
        return {}
    return {
        **space.sizes,
        "image_shape": list(space.image_shape),
        "num_classes": space.num_classes,
        "batch_size": batch_size,
    }
