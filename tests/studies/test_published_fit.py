"""What fits to accuracies of one image set find on another one: of all cells, and of those left out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hwnas.core import FloatArray
from hwnas.data.tables import read_table
from hwnas.files import find_file
from hwnas.searches.blind import DECILES, best_within, blind_regret
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.nasbench201.published import FITS, fits, fitted, terms

pytestmark = pytest.mark.slow

DEVICES = ("edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss", "fpga")
IMAGES = ("cifar10", "cifar100")
DECIMALS = 3


def cells() -> tuple[np.ndarray, np.ndarray, dict[str, FloatArray]]:
    """Rows of different cells with a path; live operations of all; accuracies."""
    table, space = read_table(find_file("nasbench201.npz")), NasBench201()
    genotypes = table["arch_ops"].astype(np.intp)
    live = space.live(genotypes)
    _, first = np.unique(live, axis=0, return_index=True)
    rows = np.array([row for row in np.sort(first) if space.is_connected(genotypes[row : row + 1])[0]])
    return rows, live, {name: table[f"{name}_valid_200"] for name in IMAGES}


def test_coefficients(capsys: pytest.CaptureFixture[str]) -> None:
    """The shipped coefficients are those of the table."""
    rows, live, accuracy = cells()
    found = {name: fitted(live[rows], accuracy[name][rows]).round(DECIMALS).tolist() for name in IMAGES}
    content = {
        "source": "Dong & Yang, NAS-Bench-201, ICLR 2020: validation accuracy after 200 epochs",
        "terms": "hwnas.spaces.nasbench201.published.terms, after a constant",
        "coefficients": found,
    }
    Path("build").mkdir(exist_ok=True)
    Path("build/published.json").write_text(json.dumps(content) + "\n")
    for name in IMAGES:
        np.testing.assert_allclose(fits()[name], found[name], atol=2 * 10.0**-DECIMALS, err_msg=str(FITS))


def test_other_images(capsys: pytest.CaptureFixture[str]) -> None:
    """Blind regret on images that a fit has not seen: of all cells, and of half of them by the other."""
    rows, live, accuracy = cells()
    costs = read_table(find_file("hwnasbench_nasbench201.npz"))
    half = np.random.default_rng(0).random(len(rows)) < 0.5
    for source, target in (IMAGES, IMAGES[::-1]):
        for fitted_to, judged, name in (
            (half, ~half, "half of the cells, judged on the other"),
            (half | True, half | True, "all cells"),
        ):
            values = fitted(live[rows[fitted_to]], accuracy[source][rows[fitted_to]])
            own = rows[judged]
            estimate, truth = values[0] + terms(live[own]) @ values[1:], accuracy[target][own]
            found = []
            for device in DEVICES:
                cost = costs[f"{target}_{device}_latency_ms"][own]
                cost = np.where(cost < 0, np.inf, cost)
                limits = np.quantile(cost[np.isfinite(cost)], DECILES)
                best = best_within(truth, cost, limits)
                found.append(blind_regret(truth, cost, estimate, limits, best).mean())
            with capsys.disabled():
                print(f"\n{source} -> {target}, {name}: " + " ".join(f"{one:.2f}" for one in found), end="")
                print(f", mean {np.mean(found):.2f}")
            assert np.mean(found) < 1.0  # most parameters: 1.8
