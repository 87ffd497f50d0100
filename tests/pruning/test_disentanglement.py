from __future__ import annotations

import itertools

import numpy as np
import pytest

from hwnas.pruning.disentanglement import dci, kl_per_dimension, mig, mutual_information, proxies, sap

FACTORS = np.array(list(itertools.product(range(4), repeat=4)) * 4)
"""Four independent factors of four values, 1,024 images."""
CATEGORICAL = (True, False, False, False)
CENTRED = FACTORS - 1.5


def hadamard() -> np.ndarray:
    """Every code is a sum or difference of all four factors: each tells as little of one as of another."""
    H = np.array([[1, 1], [1, -1]])
    return CENTRED @ np.kron(H, H) / 2


def test_perfectly_disentangled_codes() -> None:
    codes = CENTRED[:, [2, 0, 3, 1]] * [1, -2, 0.5, 3]  # whichever order and scale
    assert mig(codes, FACTORS) == pytest.approx(1)
    assert sap(codes, FACTORS, (False,) * 4) == pytest.approx(1)
    # A line classifies the two values at its ends of a factor of four, not those between: 0.5, scaled 1/3
    assert 0.75 < sap(codes, FACTORS, CATEGORICAL) < 1
    assert dci(codes, FACTORS) == pytest.approx(
        {"dci_disentanglement": 1, "dci_completeness": 1, "dci_informativeness": 1}, abs=0.01
    )


def test_perfectly_entangled_codes() -> None:
    codes = hadamard()
    assert mig(codes, FACTORS) == pytest.approx(0, abs=0.01)
    assert sap(codes, FACTORS, (False,) * 4) == pytest.approx(0, abs=1e-9)
    scores = dci(codes, FACTORS)
    assert scores["dci_disentanglement"] < 0.05
    assert scores["dci_completeness"] < 0.05


def test_a_factor_in_two_codes_has_no_gap() -> None:
    codes = np.concatenate([CENTRED, 2 * CENTRED], axis=1)
    assert mig(codes, FACTORS) == pytest.approx(0)
    assert sap(codes, FACTORS, CATEGORICAL) == pytest.approx(0)
    scores = dci(codes, FACTORS)
    assert scores["dci_disentanglement"] == pytest.approx(1, abs=0.01)  # each code has one factor
    assert scores["dci_completeness"] < 0.8  # but each factor has two codes


def test_two_factors_in_one_code() -> None:
    codes = np.stack([4 * FACTORS[:, 0] + FACTORS[:, 1], FACTORS[:, 2], FACTORS[:, 3]], axis=1)
    scores = dci(codes, FACTORS)
    assert scores["dci_completeness"] == pytest.approx(1, abs=0.02)
    assert scores["dci_disentanglement"] < 0.85


def test_codes_that_say_nothing() -> None:
    codes = np.zeros((len(FACTORS), 3))
    assert mig(codes, FACTORS) == sap(codes, FACTORS, CATEGORICAL) == 0
    scores = dci(codes, FACTORS)
    assert scores["dci_disentanglement"] == 0
    assert scores["dci_completeness"] == pytest.approx(0)
    assert scores["dci_informativeness"] < 0.4


def test_mutual_information_of_a_copy_is_the_entropy() -> None:
    told = mutual_information(CENTRED, FACTORS)
    assert np.diag(told) == pytest.approx([np.log(4)] * 4)
    assert told[~np.eye(4, dtype=bool)] == pytest.approx([0] * 12, abs=1e-9)


def test_proxies() -> None:
    rng = np.random.default_rng(0)
    z = rng.normal(size=(20_000, 2))
    # Correlation 0.6 of two dimensions, a third that is dead
    mean = np.stack([z[:, 0], 0.6 * z[:, 0] + 0.8 * z[:, 1], 1e-3 * z[:, 1]], axis=1)
    found = proxies(mean, np.zeros_like(mean))
    assert found["active_units"] == 2
    assert found["mean_correlation"] == pytest.approx(0.6, abs=0.01)
    assert found["total_correlation"] == pytest.approx(-0.5 * np.log(1 - 0.36), abs=0.01)
    assert found["kl"] == pytest.approx(1.0, abs=0.03)  # two dimensions of unit variance: 1/2 each
    assert kl_per_dimension(mean, np.zeros_like(mean)) == pytest.approx([0.5, 0.5, 0], abs=0.02)
    dead = proxies(np.zeros((10, 3)), None)
    assert dead == {"active_units": 0, "mean_correlation": 0, "total_correlation": 0, "kl": 0}
