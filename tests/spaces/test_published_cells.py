from __future__ import annotations

import numpy as np
import pytest

from hwnas.spaces.capabilities import HasPublished
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.nasbench201.published import expected, fits, fitted, terms

NONE, SKIP, CONV_1, CONV_3, POOL = range(5)


def test_terms_are_operations_and_pairs_of_operations() -> None:
    cell = np.array([[CONV_3, NONE, NONE, SKIP, POOL, NONE]])
    (row,) = terms(cell)
    assert row.shape == (24 + 15 * 16,)
    # Edge 0 has the third operation after none, edge 3 the first, edge 4 the fourth.
    assert np.flatnonzero(row[:24]).tolist() == [2, 12, 19]
    # Pairs of edges in order: (0, 3) is the third, (0, 4) the fourth, (3, 4) the thirteenth.
    pairs = [2 * 16 + 2 * 4 + 0, 3 * 16 + 2 * 4 + 3, 12 * 16 + 0 * 4 + 3]
    assert np.flatnonzero(row[24:]).tolist() == pairs
    assert not terms(np.zeros((1, 6), dtype=np.intp)).any()


def test_fit_recovers_an_order_that_pairs_make() -> None:
    space = NasBench201()
    live = np.unique(space.live(space.all()), axis=0)
    worth = 2.0 * (live == CONV_3).sum(axis=1) + 3.0 * ((live[:, 0] == SKIP) & (live[:, 5] == CONV_1))
    accuracy = 1.0 - np.exp(-worth / 10)  # the logarithm of the gap is linear in the worth
    coefficients = fitted(live, accuracy)
    predicted = coefficients[0] + terms(live) @ coefficients[1:]
    assert predicted.mean() == pytest.approx(0, abs=1e-9)
    assert predicted.std() == pytest.approx(1)
    assert np.corrcoef(predicted, worth)[0, 1] > 0.95


def test_other_images_only() -> None:
    live = NasBench201().live([(3, 3, 3, 1, 3, 3), (1, 0, 0, 0, 4, 1)])
    X = terms(live)
    each = {name: values[0] + X @ values[1:] for name, values in fits().items()}
    assert set(each) == {"cifar10", "cifar100"}
    np.testing.assert_allclose(expected(live, {"cifar10"}), each["cifar100"])
    np.testing.assert_allclose(expected(live, {"digits"}), (each["cifar10"] + each["cifar100"]) / 2)
    assert expected(live, ())[0] > expected(live, ())[1] + 1


def test_a_space_says_so_of_live_operations() -> None:
    space = NasBench201()
    assert isinstance(space, HasPublished)
    dead = (3, 2, 0, 3, 0, 0)  # node 2 leads nowhere, node 1 neither
    first, second = space.expected([dead, (0, 0, 0, 3, 0, 0)], "cifar10")
    assert first == second
    every = space.expected(space.all(), "")
    assert abs(every.mean()) < 0.5
    assert 0.5 < every.std() < 1.5
