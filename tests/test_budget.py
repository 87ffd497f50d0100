from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hwnas import compose, search
from hwnas.core import Evaluator, Genotype, SearchSpace
from hwnas.searches.budget import BUDGET, paces, seconds_of
from hwnas.spaces.toy import Toy

SMALL = (
    *("experiment=blind", "device=flops", "trainer=none", "search_space.channels=2", "generations=8"),
    *(
        "evaluator.zero_cost.num_cells=1",
        "evaluator.short.training.max_steps=2",
        "evaluator.long.training.max_steps=3",
    ),
)


@pytest.mark.parametrize(
    ("budget", "seconds"),
    [("90s", 90), ("10min", 600), ("1.5h", 5400), ("45", 45), (30, 30), (2.5, 2.5), ("2 min", 120)],
)
def test_budgets(budget: object, seconds: float) -> None:
    assert seconds_of(budget) == seconds


@pytest.mark.parametrize("budget", ["", "ten", "0", 0, "-1min", "5days", True, "1min30", "nan", []])
def test_what_is_no_budget(budget: object) -> None:
    with pytest.raises(ValueError, match="budget must be a time like 90s, 10min or 2h, not"):
        seconds_of(budget)


TOYS = Toy().sample(np.random.default_rng(0), 4)


class Slow(Evaluator):
    name, metrics = "slow", {"x": "max"}

    def __init__(self, *seconds: float) -> None:
        self.rungs = tuple(Pace(each) for each in seconds)

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        return "1"

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        return [{"x": 0.0} for _ in genotypes]


class Pace(Slow):
    def __init__(self, seconds: float) -> None:
        self.each = seconds

    def seconds_each(self, genotypes: Sequence[Genotype]) -> float:
        return self.each


def test_speeds_are_measured_once(tmp_path: Path) -> None:
    """Four workers that share a machine need a quarter more each: 8 s and 40 s are 2.5 s and 12.5 s."""
    said: list[str] = []
    spent, each = paces(tmp_path, 60.0, Slow(8.0, 40.0), TOYS, 4, said.append)
    assert 0 < spent < 60
    assert each == [2.5, 12.5]
    assert paces(tmp_path, 60.0, Slow(1.0, 1.0), TOYS, 1, said.append) == (spent, each)  # of another machine
    assert len(said) == 1
    kept = json.loads((tmp_path / BUDGET).read_text())
    assert kept == {"seconds": 60.0, "measuring": spent, "workers": 4, "seconds_per_network": each}


@pytest.mark.parametrize(
    "content", ["{", "{}", '{"seconds": 1, "workers": 1, "seconds_per_network": [1]}', "[]"]
)
def test_a_corrupt_file(tmp_path: Path, content: str) -> None:
    (tmp_path / BUDGET).write_text(content)
    with pytest.raises(ValueError, match=BUDGET):
        paces(tmp_path, 60.0, Slow(1.0, 1.0), TOYS, 1, print)


def test_a_budget_that_is_too_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"budget must be at least \d+s here, not 0.01s: getting ready took"):
        search(compose(*SMALL, "budget=0.01s"), "run", show=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("budget=soon",), "budget must be a time like 90s, 10min or 2h, not 'soon'"),
        (("strategy=random",), "evaluator=cascade has rungs, of which strategy=RandomSearch chooses none"),
        (
            ("evaluator=zero_cost", "strategy=cascade"),
            "strategy=cascade needs evaluator=cascade, with scores",
        ),
        (("evaluator=zero_cost", "budget=1min"), "budget=1min needs evaluator=cascade"),
        (
            ("evaluator.long.label=short",),
            "long.label must differ from short.label: both report",
        ),
        (("evaluator.zero_cost.num_reference=9",), "zero_cost.num_reference must be 0"),
        (("+evaluator.long.rungs=[1]",), "short.rungs and long.rungs must be null"),
        (("search_space=toy",), "the toy space has no networks"),
        (("dataset=none",), "needs images"),
        (
            ("evaluator.short.training.batch_size=5000",),
            r"batch_size=5000 is more than the [\d,]+ training images",
        ),
        (
            ("evaluator.zero_cost.batch_size=5000",),
            r"batch_size=5000 is more than the [\d,]+ training images",
        ),
    ],
)
def test_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    small = SMALL[1:3] if "evaluator=zero_cost" in words else SMALL[:3]
    with pytest.raises(ValueError, match=message):
        search(compose(*small, *words), "run", show=False)
