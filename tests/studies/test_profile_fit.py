"""How well a profile that is fitted to a few measured networks predicts others, by number and device."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from hwnas.core import FloatArray
from hwnas.data.tables import read_table
from hwnas.devices.fitting import fit
from hwnas.devices.profile import margin
from hwnas.files import find_file
from hwnas.spaces.nasbench201 import NasBench201

pytestmark = pytest.mark.slow

NUMBERS, NUM_OTHERS, SEEDS = (10, 20, 50, 100, 200), 2000, range(10)
DEVICES = ("edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss", "fpga")
LIMITS = (0.2, 0.4, 0.6, 0.8)
"""Quantiles of the real cost that limits are at."""

CONFIDENCE = 0.95


def columns() -> dict[str, FloatArray]:
    """Latencies of CIFAR-10 networks on eight devices."""
    table = read_table(find_file("hwnasbench_nasbench201.npz"))
    found = {name: table[f"cifar10_{name}_latency_ms"] for name in DEVICES}
    more = read_table(find_file("nasbench201_cifar10_devices.npz"))
    found |= {name: more[f"{name}_latency_ms"] for name in ("1080ti_1", "gold_6226")}
    return {name: np.where(values < 0, np.inf, values) for name, values in found.items()}


def counted(G: np.ndarray, y: FloatArray, others: np.ndarray) -> FloatArray:
    """Least squares on how often each operation occurs: the plain guess that a fit has to beat."""
    X, Z = ((genotypes[:, :, None] == np.arange(5)).sum(axis=1) for genotypes in (G, others))
    return Z @ np.linalg.lstsq(X, y, rcond=None)[0]


def exceeding(
    predicted: FloatArray, actual: FloatArray, quality: FloatArray, bounds: FloatArray, allowed: FloatArray
) -> list[float]:
    """Per limit 1 where the best network that is predicted to keep `allowed` really exceeds the bound."""
    kept = [np.flatnonzero(predicted <= most) for most in allowed]
    return [
        float(actual[rows[quality[rows].argmax()]] > bound)
        for rows, bound in zip(kept, bounds, strict=True)
        if len(rows)
    ]


def test_numbers_of_networks() -> None:
    space, table = NasBench201(), read_table(find_file("nasbench201.npz"))
    genotypes, quality = table["arch_ops"].astype(np.intp), table["cifar10_valid_200"]
    print(f"\n{'networks':>8}  {'device':10} Spearman (counting)  median  mean error  beyond a limit")
    for number in NUMBERS:
        rows: dict[str, list[list[float]]] = {}
        for name, y in columns().items():
            rows[name] = []
            supported = np.flatnonzero(np.isfinite(y))
            for seed in SEEDS:
                order = np.random.default_rng(seed).permutation(supported)
                seen, others = order[:number], order[number : number + NUM_OTHERS]
                profile = fit(
                    space,
                    genotypes[seen],
                    {"latency_ms": y[seen]},
                    device=name,
                    seed=seed,
                    network={},
                    origin={},
                )
                predicted, actual = profile.predict(space, "latency_ms", genotypes[others]), y[others]
                connected = space.is_connected(genotypes[others])  # without a path some cost next to nothing
                errors = np.abs(predicted - actual)[connected] / actual[connected]
                bounds = np.quantile(actual, LIMITS)
                lower = bounds / (1 + margin(profile.errors("latency_ms"), CONFIDENCE))
                rows[name].append(
                    [
                        float(spearmanr(predicted, actual).statistic),
                        float(
                            spearmanr(counted(genotypes[seen], y[seen], genotypes[others]), actual).statistic
                        ),
                        float(np.median(errors)),
                        float(errors.mean()),
                        float(np.mean(exceeding(predicted, actual, quality[others], bounds, bounds))),
                        float(np.mean(exceeding(predicted, actual, quality[others], bounds, lower) or [0.0])),
                    ]
                )
        means = {name: np.mean(found, axis=0) for name, found in rows.items()}
        for name, mean in {**means, "all": np.mean(list(means.values()), axis=0)}.items():
            print(
                f"{number:8}  {name:10} {mean[0]:8.3f} ({mean[1]:.3f})  {mean[2]:14.1%}  {mean[3]:10.1%}  "
                f"{mean[4]:21.0%}, {mean[5]:.0%}"
            )
        assert mean[0] > mean[1] - 0.01  # no worse than counting, from the fewest on
