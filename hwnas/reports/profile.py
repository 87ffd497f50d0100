"""Device profiles as pages, as tables in the terminal, and compared with each other."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import spearmanr

from hwnas.core import FloatArray, SearchSpace
from hwnas.devices.profile import Profile
from hwnas.reports.charts import Axis, axis, from_top
from hwnas.runs.units import quantity, text
from hwnas.spaces.capabilities import drawing

NUM_COMPARED = 1000
"""Random networks that a comparison ranks."""

NUM_FURTHEST = 3
"""Operations that a comparison names, those that differ most from the typical ratio."""


@dataclass(frozen=True)
class Additivity:
    """Predicted against measured costs of networks.

    Attributes:
        x: Axis of the measured cost.
        y: Axis of the predicted cost, with the same range.
        points: (x, y from the top, whether the fit used the network, its text) in percent.
        note: R2, Spearman and errors in words.
    """

    x: Axis
    y: Axis
    points: list[tuple[float, float, bool, str]]
    note: str


@dataclass(frozen=True)
class Bar:
    """Timings of one operation; positions are in percent of the longest bar.

    Attributes:
        name: Kind of the operation.
        low: Start of the middle half of the timings.
        middle: Median.
        high: End of the middle half.
        cost: Median, written out.
        note: Spread and rounds in words.
        noisy: Whether the timings are noisy.
    """

    name: str
    low: float
    middle: float
    high: float
    cost: str
    note: str
    noisy: bool


def table(profile: Profile, space: SearchSpace) -> list[str]:
    """The profile's operations as lines of text; a fitted profile has costs per edge and operation."""
    if not profile.operations:
        return _edges(profile, space)
    width = max(map(len, profile.operations))
    lines = [f"{'operation':{width}}  alone ms    spread  in a network ms"]
    for name, row in profile.operations.items():
        spread = f"{row['iqr_ms'] / row['median_ms']:.1%}"
        network = f"{row['network_ms']:.4f}" if "network_ms" in row else "-"
        lines.append(
            f"{name:{width}}  {row['median_ms']:8.4f}  {spread:>8}  {network:>15}"
            f"{'  noisy' if row.get('noisy') else ''}"
        )
    return lines


def _edges(profile: Profile, space: SearchSpace) -> list[str]:
    lines, names = [], [slot.name for slot in drawing(space).slots]
    width = max(map(len, names))
    for metric, cost in profile.costs.items():
        lines.append(f"{metric}: {cost.base:.4g}, plus per edge ({len(cost.pairs)} pairs of edges add more):")
        lines.append(" " * (width + 2) + "".join(f"{name:>15}" for name in space.ops))
        lines += [
            f"{name:>{width}}  " + "".join(f"{value:15.4g}" for value in values)
            for name, values in zip(names, cost.edges, strict=True)
        ]
    return lines


def page(profile: Profile, space: SearchSpace) -> dict[str, object]:
    """The values of the template."""
    unseen = next(iter(profile.check.values()))
    return {
        "profile": profile,
        "figures": [
            ("R²", f"{unseen['r2']:.4f}"),
            ("Spearman", f"{unseen['spearman']:.3f}"),
            ("median error", f"{unseen['median_error']:.1%}"),
            ("networks outside the fit", f"{unseen['networks']:,}"),
        ],
        "noisy": sum(bool(row.get("noisy")) for row in profile.operations.values()),
        "groups": _groups(profile),
        "additivity": [
            _additivity(profile, metric)
            for metric in profile.costs
            if profile.networks and metric in profile.networks.measured
        ],
        "edges": _edge_tables(profile, space),
        "facts": [
            (key.replace("_", " "), value)
            for key, value in {**profile.network, **profile.origin}.items()
            if value is not None
        ],
    }


def _groups(profile: Profile) -> list[tuple[str, list[Bar]]]:
    """Operations by place, the most expensive first."""
    if not profile.operations:
        return []
    longest = max(row["median_ms"] + row["iqr_ms"] / 2 for row in profile.operations.values())
    groups: dict[str, list[tuple[float, Bar]]] = defaultdict(list)
    for name, row in profile.operations.items():
        kind, _, place = name.partition("@")
        middle, half = row["median_ms"], row["iqr_ms"] / 2
        low, mid, high = (
            round(100 * max(0.0, v) / longest, 2) for v in (middle - half, middle, middle + half)
        )
        network = f", adds {row['network_ms']:.4f} ms to a network" if "network_ms" in row else ""
        note = f"middle half of {row['rounds']} rounds {row['iqr_ms'] / middle:.1%} wide{network}"
        bar = Bar(kind, low, mid, high, text("latency_ms", middle), note, bool(row.get("noisy")))
        groups[place or "elsewhere"].append((middle, bar))
    return [
        (place, [bar for _, bar in sorted(bars, key=lambda entry: -entry[0])])
        for place, bars in groups.items()
    ]


def _additivity(profile: Profile, metric: str) -> Additivity:
    assert profile.networks is not None
    measured, predicted = profile.networks.measured[metric], profile.networks.predicted[metric]
    both = [*measured, *predicted]
    scale = axis(metric, both, allow_log=min(both) > 0)
    check = profile.check[metric]
    mean = f", mean error {check['mean_error']:.1%}" if "mean_error" in check else ""
    note = (
        f"R² {check['r2']:.4f}, Spearman {check['spearman']:.3f}, median error {check['median_error']:.1%}"
        f"{mean} on {check['networks']:,} networks outside the fit; errors are of networks with a path"
    )
    points = [
        (scale.at(m), from_top(scale.at(p)), number < profile.networks.fitted, arch)
        for number, (m, p, arch) in enumerate(zip(measured, predicted, profile.networks.archs, strict=True))
    ]
    name = quantity(metric).label
    x, y = (replace(scale, label=f"{how} {name}") for how in ("measured", "predicted"))
    return Additivity(x, y, points, note)


@dataclass(frozen=True)
class EdgeTable:
    """Cost that each operation (columns) adds on each edge (rows).

    Attributes:
        metric: The cost's name, with its unit.
        base: The part that every network has, written out.
        ops: Names of the operations.
        names: Names of the edges.
        rows: Per edge and operation (text, shade in percent, 0 for the cheapest).
    """

    metric: str
    base: str
    ops: Sequence[str]
    names: Sequence[str]
    rows: list[list[tuple[str, int]]]


def _edge_tables(profile: Profile, space: SearchSpace) -> list[EdgeTable]:
    names = [slot.name for slot in drawing(space).slots]
    tables = []
    for metric, cost in profile.costs.items():
        values = np.array(cost.edges)
        low, spread = values.min(), max(float(np.ptp(values)), 1e-12)
        rows = [[(f"{v:.3g}", round(70 * (v - low) / spread)) for v in row] for row in values.tolist()]
        tables.append(EdgeTable(quantity(metric).label, text(metric, cost.base), space.ops, names, rows))
    return tables


def comparison(a: Profile, b: Profile, space: SearchSpace, *, seed: int) -> list[str]:
    """Differences of two devices as lines of text: ratios of operations, ranks of networks, disagreements.

    Args:
        a: A profile.
        b: Another profile of the same space.
        space: The space.
        seed: Seed of the random networks.

    Raises:
        ValueError: The profiles have no metric in common.
    """
    metrics = [metric for metric in a.costs if metric in b.costs]
    if not metrics:
        raise ValueError(
            f"profiles of {', '.join(a.costs)} and of {', '.join(b.costs)} have no cost in common"
        )
    lines = [f"a: {a.device}, b: {b.device}"]
    if a.network != b.network:
        lines.append(f"warning: networks differ: {a.network} and {b.network}")
    common = [name for name in a.operations if name in b.operations]
    ratios = {name: b.operations[name]["median_ms"] / a.operations[name]["median_ms"] for name in common}
    if ratios:
        width = max(map(len, ratios))
        lines.append(f"{'operation':{width}}      a ms      b ms   b / a")
        for name in sorted(ratios, key=ratios.__getitem__):
            alone = (f"{profile.operations[name]['median_ms']:8.4f}" for profile in (a, b))
            lines.append(f"{name:{width}}  {'  '.join(alone)}  {ratios[name]:6.2f}")
        typical = float(np.median(list(ratios.values())))
        far = sorted(ratios, key=lambda name: -abs(np.log(ratios[name] / typical)))[:NUM_FURTHEST]
        lines.append(
            f"an operation typically takes {typical:.2f} times as long on b; furthest from this: "
            + ", ".join(f"{name} ({ratios[name] / typical:.2f})" for name in far)
        )
    sampled = np.array(space.sample(np.random.default_rng(seed), NUM_COMPARED))
    for metric in metrics:
        both = np.array([profile.predict(space, metric, sampled) for profile in (a, b)])
        supported = np.isfinite(both).all(axis=0)
        (first, second), genotypes = both[:, supported], [tuple(row) for row in sampled[supported].tolist()]
        agree, ratio = spearmanr(first, second).statistic, np.median(second / np.maximum(first, 1e-12))
        lines.append(
            f"{metric} of {len(genotypes):,} random networks: Spearman {agree:.3f}, "
            f"typically {ratio:.2f} times as much on b"
        )
        lines += _disagreements(metric, first, second, [space.to_str(genotype) for genotype in genotypes])
    return lines


def _disagreements(metric: str, first: FloatArray, second: FloatArray, names: Sequence[str]) -> list[str]:
    """The networks whose ranks differ most: one that is cheaper on a, one that is cheaper on b."""
    ranks = [values.argsort().argsort() / (len(values) - 1) for values in (first, second)]
    difference = ranks[1] - ranks[0]
    lines = []
    for i, side in ((int(difference.argmax()), "a"), (int(difference.argmin()), "b")):
        places = ", ".join(
            f"{rank[i]:.0%} on {name} ({text(metric, values[i])})"
            for name, rank, values in (("a", ranks[0], first), ("b", ranks[1], second))
        )
        lines.append(f"cheaper on {side} than expected, by rank {places}: {names[i]}")
    return lines
