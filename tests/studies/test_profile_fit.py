"""How well a profile that is fitted to 200 measured networks predicts 2,000 others, per device."""

from __future__ import annotations

import numpy as np
import pytest

from hwnas.config import find_file
from hwnas.data.tables import read_table
from hwnas.devices.profile import fit
from hwnas.spaces.nasbench201 import NasBench201

pytestmark = pytest.mark.slow

NUM_FITTED, NUM_OTHERS, SEEDS = 200, 2000, range(10)


@pytest.mark.parametrize(
    ("device", "spearman", "error"),
    [("raspi4", 0.93, 0.11), ("pixel3", 0.92, 0.12), ("1080ti_1", 0.98, 0.03), ("gold_6226", 0.98, 0.04)],
)
def test_two_hundred_networks(device: str, spearman: float, error: float) -> None:
    space = NasBench201()
    G = read_table(find_file("nasbench201.npz"))["arch_ops"].astype(np.intp)
    y = read_table(find_file("nasbench201_cifar10_devices.npz"))[f"{device}_latency_ms"]
    found = []
    for seed in SEEDS:
        rows = np.random.default_rng(seed).permutation(len(G))[: NUM_FITTED + NUM_OTHERS]
        profile = fit(
            space,
            G[rows],
            {"latency_ms": y[rows]},
            device=device,
            fraction=NUM_FITTED / len(rows),
            seed=seed,
            network={},
            origin={},
        )
        unseen = np.random.default_rng(seed).permutation(len(rows))[NUM_FITTED:]
        actual, predicted = y[rows][unseen], profile.predict(space, "latency_ms", G[rows][unseen])
        connected = space.is_connected(G[rows][unseen])  # without a path some cost next to nothing
        errors = np.abs(predicted - actual)[connected] / actual[connected]
        check = profile.check["latency_ms"]
        found.append((check["spearman"], check["median_error"], float(errors.mean())))
    mean, spread = np.mean(found, axis=0), np.std(found, axis=0)
    print(
        f"\n{device}: Spearman {mean[0]:.3f} +- {spread[0]:.3f}, "
        f"median error {mean[1]:.1%} +- {spread[1]:.1%}, "
        f"mean error of connected cells {mean[2]:.1%} +- {spread[2]:.1%}"
    )
    assert mean[0] > spearman
    assert mean[1] < error
