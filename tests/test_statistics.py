"""Statistics of repeated runs: beside scipy, by hand, and how often they raise a false alarm."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import PermutationMethod, binom, wilcoxon

from hwnas.searches.statistics import (
    LEVEL,
    fewest_seeds,
    holm,
    interval,
    mean_ranks,
    paired,
    signed_rank,
)


def test_holm_by_hand() -> None:
    # Sorted 0.01, 0.02, 0.04 times 3, 2, 1, never falling
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize("n", [1, 2, 5, 12, 20, 50])
def test_p_is_scipys_without_ties(n: int) -> None:
    for seed in range(3):
        d = np.random.default_rng(seed).normal(0.3, 1.0, n)
        assert signed_rank(d)[1] == pytest.approx(wilcoxon(d, method="exact").pvalue, rel=1e-9)


def test_p_with_ties_is_that_of_all_signs() -> None:
    """Scipy enumerates all signs, too, if it is told to."""
    for seed in range(3):
        d = np.random.default_rng(seed).integers(-2, 4, 11).astype(float)
        d = d[d != 0]
        exhaustive = PermutationMethod(n_resamples=2 ** len(d), rng=np.random.default_rng(0))
        assert signed_rank(d)[1] == pytest.approx(wilcoxon(d, method=exhaustive).pvalue, rel=1e-9)


def test_p_of_many_is_scipys_approximation() -> None:
    d = np.random.default_rng(0).normal(0.2, 1.0, 80)
    assert signed_rank(d)[1] == wilcoxon(d).pvalue


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([0.0, 0.0], 1.0),  # nothing but ties
        ([1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2 / 2**6),
        ([2.0] * 20, 2 / 2**20),
        ([-1.0, 2.0, 0.0], 1.0),  # signs of the ranks 1 and 2: three of four choices are as low as -1 + 2
        ([0.1, 0.3 - 0.2], 0.5),  # equal but for rounding: two signs
    ],
)
def test_p_by_hand(differences: list[float], p: float) -> None:
    assert signed_rank(differences)[1] == pytest.approx(p)


def test_two_methods_by_hand() -> None:
    one = paired([1.0, 2.0, 3.0, 5.0], [2.0, 4.0, 6.0, 5.0])
    assert (one.wins, one.losses, one.ties) == (3, 0, 1)
    assert one.difference == -1.5  # of -1, -2, -3, 0
    assert one.balance == -6  # ranks 1 + 2 + 3
    assert one.p == 2 / 2**3
    # standard deviation of -1, -2, -3, 0: sqrt(5 / 3); Student's t with three degrees of freedom: 3.1824
    assert one.high - one.difference == pytest.approx(3.1824463 * (5 / 3) ** 0.5 / 2)
    assert paired([0.1 + 0.2, 1.0], [0.3, 1.0]).ties == 2


def test_interval_and_ranks_by_hand() -> None:
    mean, half = interval([[1.0, 2.0], [3.0, 2.0]])
    assert mean.tolist() == [2.0, 2.0]
    assert half.tolist() == pytest.approx(
        [12.7062047, 0.0]
    )  # t with one degree of freedom, times sqrt(2 / 2)
    assert mean_ranks([[0.1, 0.5], [0.3, 0.5], [0.2, 0.1]]).tolist() == [1.75, 2.75, 1.5]


def test_fewest_seeds() -> None:
    assert fewest_seeds(1) == 6  # 2 / 2^6 is .03, 2 / 2^5 is .06
    assert fewest_seeds(15) == 10  # 15 * 2 / 2^10 is .029
    for tests in (1, 3, 15, 60):
        n = fewest_seeds(tests)
        assert tests * signed_rank([1.0] * n)[1] <= LEVEL < tests * signed_rank([1.0] * (n - 1))[1]


@pytest.mark.parametrize("ties", [False, True])
def test_few_false_alarms(ties: bool) -> None:
    """Four methods that do not differ, on two cases: 12 tests. At most 5 % of families have an alarm.

    By chance more than 18 of 200 have one in less than 1 % of such tests.
    """
    rng, alarms = np.random.default_rng(1), 0
    for _ in range(200):
        losses = rng.gamma(0.5, 1.0, (2, 4, 20))
        if ties:
            losses = np.round(losses)
        ps = [paired(*pair).p for case in losses for pair in itertools.combinations(case, 2)]
        alarms += min(holm(ps)) <= LEVEL
    assert alarms <= binom.ppf(0.99, 200, LEVEL)


def test_a_difference_is_shown() -> None:
    """A method whose loss is half of the other's, with the same scatter: nearly always at 20 seeds."""
    rng, shown = np.random.default_rng(1), 0
    for _ in range(50):
        first, second = rng.gamma(4.0, 0.1, 20), rng.gamma(4.0, 0.2, 20)
        one = paired(first, second)
        shown += one.p <= LEVEL and one.balance < 0
    assert shown >= 45
