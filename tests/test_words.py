"""Numbers and sentences as people write them."""

from __future__ import annotations

import math

import pytest

from hwnas.runs.units import count, phrase, short
from hwnas.searches.exact import regret_in_words


@pytest.mark.parametrize(
    ("number", "words"),
    [(15_625, "15,625"), (999_999_999, "999,999,999"), (9**22, "9.8 x 10^20"), (10**9, "1.0 x 10^9")],
)
def test_numbers_of_architectures(number: int, words: str) -> None:
    assert count(number) == words


def test_figures_of_the_terminal() -> None:
    assert phrase("flops", 153_274_368.0) == "153.3 M multiply-adds"
    assert phrase("params", 1_073_466.0) == "1.073 M parameters"
    assert phrase("latency_ms@raspi4", 5.93012) == "latency_ms@raspi4 5.93"
    assert phrase("latency_ms", math.inf) == "latency_ms inf"
    assert (short("flops", 7_783_210.0), short("val_acc", 0.91234)) == ("7.783 M", "0.9123")


@pytest.mark.parametrize(
    ("regret", "within", "words"),
    [
        ({"val_acc": 0.0}, "", "This search found the best network in the space, by validation accuracy"),
        (
            {"val_acc": 0.0, "test_acc": 0.0},
            " within the limits",
            "This search found the best network in the space within the limits, by validation accuracy",
        ),
        (
            {"val_acc": 0.0, "test_acc": 0.0125},
            "",
            "This search found the best network in the space, by validation accuracy; another is ahead by "
            "1.25 points of test accuracy",
        ),
        (
            {"val_acc": 0.125, "test_acc": 0.25},
            " within the limits",
            "The best network in the space within the limits is ahead by 12.50 points of validation accuracy "
            "and 25.00 points of test accuracy",
        ),
        (
            {"score": 0.5},
            "",
            "The best network in the space is ahead by 0.5 of score",
        ),
    ],
)
def test_how_far_a_search_is_from_the_best(regret: dict[str, float], within: str, words: str) -> None:
    assert regret_in_words(regret, within) == words
