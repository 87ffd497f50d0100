"""Metrics in words: names, units, prefixes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from hwnas.core import DEVIATION

NAMES = {
    "val_acc": "validation accuracy",
    "test_acc": "test accuracy",
    "balanced_test_acc": "balanced test accuracy",
    "train_acc": "training accuracy",
    "table_val_acc": "true validation accuracy",
    "rmi": "representation similarity",
    "rmi_flops": "similarity and multiply-adds",
    "zero_cost": "training-free scores, combined",
    "flops": "multiply-adds",
    "params": "parameters",
    "ram_kb": "RAM",
    "flash_kb": "flash",
    "relative_cost": "relative cost, worst device",
    "rung": "rung reached",
    "hypervolume_ratio": "fraction of the true hypervolume",
}
SUFFIXES = {"ms": "ms", "mj": "mJ", "ms2": "ms²", "mj2": "mJ²", "kb": "kB"}
PREFIXES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Quantity:
    """Name and unit of a metric; the number to write is `value * factor`.

    Args:
        name: Name in words, without the unit.
        unit: Unit after the number; may be empty.
        factor: Factor from the metric's own unit to `unit`.
        note: Text that an axis shows in place of the unit.
    """

    name: str
    unit: str = ""
    factor: float = 1.0
    note: str = ""

    @property
    def label(self) -> str:
        """Name and unit, for an axis."""
        extra = self.note or self.unit
        return f"{self.name} ({extra})" if extra else self.name


def quantity(metric: str, size: float = 1.0) -> Quantity:
    """Name and unit of a metric.

    Args:
        metric: Name with its unit, e.g. "latency_ms" or, on one of several devices, "latency_ms@raspi4".
        size: Largest value to write; it chooses between k, M and G.
    """
    metric, _, device = metric.partition("@")
    if device:
        own = quantity(metric, size)
        return replace(own, name=f"{own.name} on {device}")
    if metric.endswith(DEVIATION):
        own = quantity(metric.removesuffix(DEVIATION), size)
        return replace(own, name=f"standard error of {own.name}", note="")
    stem, _, suffix = metric.rpartition("_")
    name = NAMES.get(metric, stem.replace("_", " ") if suffix in SUFFIXES else metric.replace("_", " "))
    if suffix == "acc":
        return Quantity(name, "%", 100.0)
    if suffix in SUFFIXES:
        return Quantity(name, SUFFIXES[suffix])
    if metric in ("flops", "params"):
        for factor, prefix in PREFIXES:
            if size >= factor:
                return Quantity(name, prefix, 1.0 / factor)
    return Quantity(name, note=f"{metric}, 0..3" if metric in ("rmi", "rmi_flops") else "")


def text(metric: str, value: float, *, exact: bool = False) -> str:
    """A value with its unit, to four digits, e.g. "5.930 ms"; without trailing zeros if it is `exact`."""
    if math.isinf(value):
        return "not supported"
    how = quantity(metric, abs(value))
    number = value * how.factor
    digits = f"{number:,.0f}" if abs(number) >= 999.95 else f"{number:.4g}" if exact else f"{number:#.4g}"
    return f"{digits} {how.unit}".rstrip()


def phrase(metric: str, value: float) -> str:
    """A metric in a line of the terminal: "latency_ms 5.93", "153.3 M multiply-adds"."""
    counted = metric in ("flops", "params")
    return (
        f"{short(metric, value)} {quantity(metric).name}" if counted else f"{metric} {short(metric, value)}"
    )


def short(metric: str, value: float) -> str:
    """A value in the metric's own unit, to four digits, "5.93"; counts with a prefix, "153.3 M"."""
    return text(metric, value) if metric in ("flops", "params") else f"{value:.4g}"


def listed(metrics: Mapping[str, float]) -> str:
    """Metrics with names and units: "validation accuracy 93.10 %, latency 5.930 ms"."""
    return ", ".join(f"{quantity(metric).name} {text(metric, value)}" for metric, value in metrics.items())


def difference(metric: str, value: float) -> str:
    """A difference between two values of a metric: "1.25 points" of accuracy, four digits of others."""
    return f"{100 * value:.2f} points" if metric.endswith("_acc") else f"{value:.4g}"


def duration(seconds: float) -> str:
    """A measured time: "12.3 s", "1.5 min"."""
    return f"{seconds / 60:.1f} min" if seconds >= 60 else f"{seconds:.1f} s"


def count(number: int) -> str:
    """A number of architectures: "15,625", "9.8 x 10^20"."""
    if number < 10**9:
        return f"{number:,}"
    digits, _, exponent = f"{number:.1e}".partition("e")
    return f"{digits} x 10^{int(exponent)}"
