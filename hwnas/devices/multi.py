"""Several devices at once, for one network that suits all of them."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from hwnas.core import Evaluator, FloatArray, Genotype, Goal, SearchSpace, Sum, checked, listed

MOST_COSTS = 4
"""With more objectives nearly every network is on the front, and its hypervolume takes seconds."""

RELATIVE_COST = "relative_cost"


class Multi(Evaluator):
    """The costs of several devices, `<metric>@<device>`, and the worst of them, `relative_cost`.

    On each device, a network's main cost is divided by the median of this cost over the supported networks of
    the space (over a seeded sample of a space too large to list); `relative_cost` is the largest of these
    ratios. At 0.5 the network costs at most half as much as a typical one, on every device. A network is
    supported if all devices support it.

    Args:
        devices: Devices by name; all must be exhaustive.
        objective: "worst" has the run minimise `relative_cost`; "all" the main cost of each device.

    Raises:
        ValueError: Fewer than two devices, more than four for "all", an unknown objective, or a device that
            is not exhaustive.
    """

    @checked
    def __init__(self, devices: Mapping[str, Evaluator], *, objective: Literal["worst", "all"]) -> None:
        if len(devices) < 2:
            raise ValueError(f"device=multi needs at least two devices, not {list(devices)}; device=[a,b]")
        if objective == "all" and len(devices) > MOST_COSTS:
            raise ValueError(
                f"objective=all takes at most {MOST_COSTS} devices, not {len(devices)}; "
                "objective=worst takes any number"
            )
        for name, device in devices.items():
            if not isinstance(device, Evaluator) or not device.exhaustive:
                raise ValueError(f"devices.{name} does not know the costs of a whole space")
        self.name = "multi"
        self.exhaustive = True
        self.objective = objective
        self.devices = dict(devices)
        self.main = {name: f"{device.objectives[0]}@{name}" for name, device in devices.items()}
        self.metrics: dict[str, Goal] = {
            RELATIVE_COST: "min",
            **{f"{m}@{name}": goal for name, device in devices.items() for m, goal in device.metrics.items()},
        }
        self.note = "; ".join(device.note for device in devices.values() if device.note)
        self.typical: dict[str, float] = {}
        self._version = ""

    @property
    def objectives(self) -> tuple[str, ...]:
        """`relative_cost`, or the main cost of each device."""
        return (RELATIVE_COST,) if self.objective == "worst" else tuple(self.main.values())

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """Prepare the devices; the version hashes theirs and the median costs.

        Raises:
            ValueError: A device supports no network of the space, or none that all others support, or most of
                its networks cost nothing.
        """
        versions = {name: device.prepare(space, population) for name, device in self.devices.items()}
        if not self.typical:
            sample = listed(space)
            supported = np.ones(len(sample), dtype=bool)
            for name, device in self.devices.items():
                main = device.objectives[0]
                cost = np.array([row[main] for row in device.evaluate(sample)])
                supported &= np.isfinite(cost)
                typical = float(np.median(cost[np.isfinite(cost)])) if np.isfinite(cost).any() else 0.0
                if typical <= 0:
                    raise ValueError(f"device {name} has no {main} above 0 to compare with other devices'")
                self.typical[name] = typical
            if not supported.any():
                raise ValueError(f"no network is supported by all of the devices {', '.join(self.devices)}")
            content = json.dumps([versions, self.typical], sort_keys=True)
            self._version = hashlib.sha256(content.encode()).hexdigest()[:16]
        return self._version

    def separable(self, metric: str) -> Sum | None:
        """A device's own cost, if it is a sum; `relative_cost` is none."""
        own, _, name = metric.partition("@")
        return self.devices[name].separable(own) if name else None

    def errors(self, metric: str) -> FloatArray:
        """Errors of a device's own cost; none for `relative_cost`."""
        own, _, name = metric.partition("@")
        return self.devices[name].errors(own) if name else np.empty(0)

    def interval(self, metric: str, genotypes: Sequence[Genotype]) -> tuple[FloatArray, FloatArray] | None:
        """Bounds of a device's own cost; none of `relative_cost`."""
        own, _, name = metric.partition("@")
        return self.devices[name].interval(own, genotypes) if name else None

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Costs per genotype; all `inf` if one of the devices does not support the network."""
        rows: list[dict[str, float]] = [{RELATIVE_COST: 0.0} for _ in genotypes]
        for name, device in self.devices.items():
            main, typical = device.objectives[0], self.typical[name]
            for row, answer in zip(rows, device.evaluate(genotypes), strict=True):
                row[RELATIVE_COST] = max(row[RELATIVE_COST], answer[main] / typical)
                row.update({f"{metric}@{name}": value for metric, value in answer.items()})
        return [row if math.isfinite(row[RELATIVE_COST]) else dict.fromkeys(row, math.inf) for row in rows]
