"""Answers of a user's classes that are wrong: one line that names the class and the rule."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas import compose, read_run, search
from hwnas.core import Evaluator, Genotype, Objective, SearchSpace, Strategy, Trial, checked_result
from hwnas.runs.result import read_plan
from hwnas.searches.loop import search as loop
from hwnas.spaces.toy import Toy, ToyCost
from hwnas.store.archive import Archive
from hwnas.store.cache import CachedEvaluator
from hwnas.store.evaluations import EvaluationStore

SPACE = Toy(3, 4)


class Mine(Strategy):
    """Asks for what it is given, and returns what it is given."""

    def __init__(self, population: Any, result: Any = ()) -> None:
        self.space, self.objectives = SPACE, (Objective("latency_ms", "min"),)
        self._population, self._result = population, result

    def ask(self) -> list[Genotype]:
        return self._population

    def tell(self, trials: Sequence[Trial]) -> None:
        pass

    def result(self) -> list[Trial]:
        return self._result


class Board(Evaluator):
    """Answers what it is given."""

    name = "board"
    metrics = {"latency_ms": "min"}  # noqa: RUF012

    def __init__(self, rows: Any, version: Any = "1") -> None:
        self._rows, self._version = rows, version

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        return self._version

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        return self._rows


class Judge(ToyCost):
    """Reports a test error beside its accuracy, and may say that less of it is better."""

    def __init__(self, space: Toy, *, says: bool = True) -> None:
        super().__init__(space, metric="val_acc")
        self.reported = {"test_error": "min"} if says else {}

    def report(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        return [{"test_error": 0.25} for _ in genotypes]


def test_goals_of_what_is_reported_come_from_the_evaluator(tmp_path: Path) -> None:
    toy = ["experiment=toy", "generations=1"]
    found = search(compose(*toy, evaluator=Judge), tmp_path / "run", show=False)
    for plan in (found.plan, read_run(found.folder).plan, read_plan(found.folder / "plan.json")):
        assert plan.goal("test_error") == "min"
    problem = compose(*toy, evaluator=partial(Judge, says=False))
    with pytest.raises(
        ValueError, match=r"report\(\) answers test_error, whose goal is not said: reported = "
    ):
        search(problem, tmp_path / "unsaid", show=False)


def run(folder: Path, population: Any, rows: Any, version: Any = "1") -> list[Trial]:
    """A generation of a search; the trials of its archive."""
    store = EvaluationStore(None, "run")
    with contextlib.closing(store), contextlib.closing(Archive(folder / "archive.jsonl")) as archive:
        board = CachedEvaluator(Board(rows, version), store, "digits")
        loop(Mine(population), [board], archive, 1)
        return list(archive.trials)


def test_what_numpy_computes_is_welcome(tmp_path: Path) -> None:
    """Integers of numpy in a genotype, its floats and ints in an answer; inf is a network not supported."""
    population = [tuple(np.array([0, 1, 2])), (0, 0, 3)]
    rows = [{"latency_ms": np.float32(1.5)}, {"latency_ms": math.inf}]
    first, second = run(tmp_path, population, rows)
    assert (first.genotype, first.metrics) == ((0, 1, 2), {"latency_ms": 1.5})
    assert second.metrics == {"latency_ms": math.inf}
    assert [type(value) for value in (*first.genotype, first.metrics["latency_ms"])] == [int, int, int, float]


@pytest.mark.parametrize(
    ("population", "message"),
    [
        (None, "returned None; it must return a list of at least one genotype"),
        ([], "returned []; it must return a list of at least one genotype"),
        ([None], "returned None as a genotype of toy; a genotype is a tuple of 3 ints"),
        ([[0, 1, 2]], "returned [0, 1, 2] as a genotype of toy; a genotype is a tuple of 3 ints"),
        ([(0, 1)], "returned (0, 1): a toy genotype has 3 entries, not 2"),
        ([(0, 1, 4)], "returned (0, 1, 4): operation 4 on edge 2 of toy is not one of (0, 1, 2, 3)"),
        ([(0, 1, "x")], "returned (0, 1, 'x'): operation 'x' on edge 2 of toy is not one of (0, 1, 2, 3)"),
        ([(0, 1, None)], "returned (0, 1, None): operation None on edge 2 of toy is not one of"),
    ],
)
def test_wrong_populations(tmp_path: Path, population: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        run(tmp_path, population, [{"latency_ms": 1.0}])
    assert str(error.value).startswith("Mine.ask() " + message)
    assert "\n" not in str(error.value)
    assert (tmp_path / "archive.jsonl").read_text() == ""


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (None, "returned None for 2 genotypes; it must return one for each"),
        ([{"latency_ms": 1.0}], "returned 1 answers for 2 genotypes; it must return one for each"),
        ([1.0, 2.0], "returned 1.0 for [0, 1, 2]; it must return a dict with latency_ms"),
        ([{"latency_ms": 1.0}, {}], "returned {} for [0, 0, 3]; it must return a dict with latency_ms"),
        ([{"ms": 1.0}] * 2, "returned {'ms': 1.0} for [0, 1, 2]; it must return a dict with latency_ms"),
        ([{"latency_ms": "fast"}] * 2, "returned latency_ms='fast' for [0, 1, 2]; a metric is a number"),
        ([{"latency_ms": None}] * 2, "returned latency_ms=None for [0, 1, 2]; a metric is a number"),
        ([{"latency_ms": 1.0}, {"latency_ms": math.nan}], "returned latency_ms=nan for [0, 0, 3]; a metric"),
    ],
)
def test_wrong_answers(tmp_path: Path, rows: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        run(tmp_path, [(0, 1, 2), (0, 0, 3)], rows)
    assert str(error.value).startswith("Board.evaluate() " + message)
    assert "\n" not in str(error.value)
    assert (tmp_path / "archive.jsonl").read_text() == ""


def test_wrong_versions(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^Board\.prepare\(\) returned None; it must return a text"):
        run(tmp_path, [(0, 1, 2)], [{"latency_ms": 1.0}], version=None)


@pytest.mark.parametrize("result", [None, [None], [(0, 1, 2)]])
def test_wrong_results(result: Any) -> None:
    with pytest.raises(ValueError, match=r"^Mine\.result\(\) returned .*; it must return a list of trials"):
        checked_result(Mine([], result))
