"""What result.json and plan.json say, as objects, and what is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.core import Limit, Objective
from hwnas.files import write_json
from hwnas.runs.result import Network, Plan, Result, read_plan, read_result

NETWORK = {"arch": "ab", "genotype": [0, 1], "metrics": {"val_acc": 0.5, "latency_ms": None}}
OLD: dict[str, Any] = {
    "status": "finished",
    "objectives": [{"metric": "val_acc", "goal": "max"}, {"metric": "latency_ms", "goal": "min"}],
    "limits": {"rmi": 0.5, "latency_ms": 3.0},
    "evaluations": {"asked": 5, "unique": 4, "cached": 2},
    "seconds": {"total": 1.0},
    "result": [NETWORK],
    "best": None,
}
"""What the first version wrote."""
BLIND = {
    "cost": "latency_ms",
    "limits": [1.0, 2.0],
    "regret": {"estimate": [2.0, 0.0], "random": [9.0, 4.0]},
    "tau": {"all": 0.5, "top_tenth": None},
    "networks": 4,
    "seconds_per_new": None,
}
NEW = {
    **OLD,
    "schema": 2,
    "goals": {"rmi": "min"},
    "best": NETWORK,
    "effects": {"val_acc": {"mean": None, "added": [[0.5, None]], "r2": 1.0, "num": 2}},
    "sums": {"latency_ms": {"base": 1.0, "added": [[0.5, None]]}},
    "reports": {"test_acc": [0.5, None]},
    "transfer": None,
    "population": {"size": 3, "different": 2},
    "blind_regret": 1.0,
    "blind": BLIND,
}


def test_an_older_file_is_read() -> None:
    result = Result.from_json(OLD)
    assert result.objectives == (Objective("val_acc", "max"), Objective("latency_ms", "min"))
    assert result.bounds == (Limit("rmi", 0.5, "max"), Limit("latency_ms", 3.0, "min"))
    assert result.evaluations.new == 3
    assert result.result == (Network("ab", (0, 1), {"val_acc": 0.5, "latency_ms": math.inf}),)
    assert (result.best, result.truth, result.stationary, dict(result.effects)) == (None, None, True, {})
    assert (result.blind_regret, result.blind) == (None, None)


def test_what_a_file_says_wins_over_the_name_of_a_metric() -> None:
    assert Result.from_json(NEW).bounds[0] == Limit("rmi", 0.5, "min")


def test_null_is_infinite_not_a_number_or_nothing() -> None:
    result = Result.from_json(NEW)
    assert result.best is not None
    assert result.best.metrics["latency_ms"] == math.inf
    assert result.effects["val_acc"].mean == math.inf
    np.testing.assert_array_equal(result.effects["val_acc"].added, [[0.5, math.nan]])
    np.testing.assert_array_equal(result.sums["latency_ms"].added, [[0.5, math.inf]])
    assert result.reports["test_acc"] == (0.5, None)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    Result.from_json(NEW).write(path)
    written = json.loads(path.read_text())
    assert {name: written[name] for name in NEW} == NEW
    assert read_result(path).to_json() == Result.from_json(NEW).to_json()
    plan = Plan(objectives=(Objective("f1", "max"),), limits={}, goals={"f1": "max"})
    plan.write(path)
    assert read_plan(path) == plan


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seconds": {}}, "seconds has no total"),
        ({"best": {**NETWORK, "genotype": ["a"]}}, r'best\.genotype\[0\] is "a", not a whole number'),
        ({"limits": {"rmi": None}}, r"limits\.rmi is null, not a number"),
        ({"population": {"size": 1, "different": 2}}, "population has 2 different networks among 1"),
        ({"sums": {"a": {"base": 1.0, "added": [[1.0], []]}}}, "a table has rows of different lengths"),
        ({"blind": BLIND | {"limits": []}}, "blind has no limits, or no regret of the estimate"),
        ({"blind": BLIND | {"regret": {}}}, "blind has no limits, or no regret of the estimate"),
        (
            {"blind": BLIND | {"regret": {"estimate": [2.0]}}},
            "blind has 2 limits and 1 regrets of estimate",
        ),
        ({"schema": 3}, "schema is 3, and this version of hwnas reads 1 and 2"),
        ({"schema": 2, "limits": {"f1": 1.0}}, "goals do not say in which direction f1 is better"),
        ({"status": "running"}, 'status is "running"'),
    ],
)
def test_what_is_damaged_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = tmp_path / "result.json"
    write_json(path, NEW | change)
    with pytest.raises(ValueError, match=rf"result\.json is not the result of a finished search: {message}"):
        read_result(path)
