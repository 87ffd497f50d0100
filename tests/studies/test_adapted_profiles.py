"""How well a profile adapted to a few networks predicts others and serves a search; every device on its own.

The sources are the profiles that come with the package, without the device's own. Settings of `adapt` are
round numbers; alternatives were compared on the same latencies of these devices.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from scipy.stats import spearmanr
from study import show

from hwnas.core import FloatArray
from hwnas.data.tables import official_order, read_table
from hwnas.devices.adapt import adapt
from hwnas.devices.benchmark import source_profiles
from hwnas.files import find_file
from hwnas.searches.blind import DECILES
from hwnas.spaces.nasbench201 import NasBench201

pytestmark = pytest.mark.slow

SPACE = NasBench201()
NUMBERS, SEEDS = (10, 20, 100), range(20)
REPORTED = ("raspi4", "eyeriss", "fpga", "gold6226", "edgegpu", "edgetpu")
DEVICES = (*REPORTED, "pixel3", "gtx1080ti")
HELP = {"raspi4": 0.890, "eyeriss": 0.940, "fpga": 0.985, "gold6226": 0.989}
"""Spearman with ten networks as Lee et al., HELP, NeurIPS 2021, print it."""


def columns() -> dict[str, FloatArray]:
    """Latencies of all CIFAR-10 networks, `inf` where a device does not support them."""
    table = read_table(find_file("hwnasbench_nasbench201.npz"))
    more = read_table(find_file("nasbench201_cifar10_devices.npz"))
    names = {"gtx1080ti": "1080ti_1", "gold6226": "gold_6226"}
    found = {
        name: more[f"{names[name]}_latency_ms"] if name in names else table[f"cifar10_{name}_latency_ms"]
        for name in DEVICES
    }
    return {name: np.where(y < 0, np.inf, y) for name, y in found.items()}


def draws(y: FloatArray, number: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Per seed, rows of measured networks and the others, of those that the device supports."""
    for seed in SEEDS:
        order = np.random.default_rng(seed).permutation(np.flatnonzero(np.isfinite(y)))
        yield order[:number], order[number:]


def lost(predicted: FloatArray, y: FloatArray, quality: FloatArray) -> tuple[float, float]:
    """Points lost by a search by predicted costs against one by true costs, and its excess over the limit.

    Limits are deciles, of the predicted costs in the one search and of the true costs in the other. Lost is
    what the best network has more that is truly as fast as the limit, or as the answer where this is slower.
    The excess is relative.
    """
    supported = np.isfinite(y)
    points, excess = [], []
    for decile in DECILES:  # plus a thousandth, since some costs have few values
        bound, limit = (1.001 * np.quantile(cost[supported], decile) for cost in (predicted, y))
        kept = np.flatnonzero((predicted <= bound) & supported)
        answer = kept[quality[kept].argmax()]
        allowed = max(limit, y[answer])
        points.append(quality[y <= allowed].max() - quality[answer])
        excess.append(max(0.0, y[answer] / limit - 1))
    return float(np.mean(points)), float(np.mean(excess))


def test_few_networks_of_a_new_device() -> None:
    G, quality = official_order(), read_table(find_file("nasbench201.npz"))["cifar10_valid_200"]
    connected = SPACE.is_connected(G)
    rows, search = [], []
    for name, y in columns().items():
        sources = {other: p for other, p in source_profiles(SPACE, None).items() if other != name}
        cells, found = [], {}
        for number in NUMBERS:
            figures = []
            for seed, (known, others) in enumerate(draws(y, number)):
                if number == max(NUMBERS) and seed >= 3:
                    break
                adapted = adapt(
                    SPACE,
                    G[known],
                    {"latency_ms": y[known]},
                    sources,
                    device=name,
                    seed=seed,
                    network={},
                    origin={},
                )
                predicted = adapted.profile.predict(SPACE, "latency_ms", G)
                path = others[connected[others]]  # without a path some cost next to nothing
                some = others[:: len(others) // 1000]
                low, high = adapted.interval("latency_ms", G[some])
                figures.append(
                    [
                        spearmanr(predicted[others], y[others]).statistic,
                        np.median(np.abs(predicted - y)[path] / y[path]),
                        np.mean((low <= y[some]) & (y[some] <= high)),
                        *lost(predicted, y, quality),
                    ]
                )
            found[number] = figures = np.array(figures)
            rank, error, inside = figures[:, :3].mean(axis=0)
            cells.append(f"{rank:.3f} ({figures[:, 0].min():.2f}), {error:.1%}, {inside:.0%}")
        rows.append([name, *cells, f"{HELP[name]:.3f}" if name in HELP else ""])
        search.append([name, *(f"{found[n][:, 3].mean():.2f}, {found[n][:, 4].mean():.1%}" for n in NUMBERS)])
        print(rows[-1], search[-1], flush=True)
        assert found[10][:, 0].mean() > 0.87
        assert found[10][:, 2].mean() > 0.8
    header = ["device", *(f"{number} networks" for number in NUMBERS)]
    show("Spearman (worst draw), median error, inside 90 % intervals", [*header, "HELP, 10"], rows)
    show("Points of accuracy lost, excess over the limit", header, search)
