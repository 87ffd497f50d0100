"""Searches that begin with what is known of networks."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from hwnas import LocalSearch, NoImages, Problem, RandomSearch, Run, WarmStart, compose, search
from hwnas.core import Hints
from hwnas.runs.result import WarmSource
from hwnas.spaces.toy import Toy, ToyCost
from hwnas.strategies.cascade import Cascade

SPACE = Toy(6, 3)


def stated(*sources: str, **parts: Any) -> Problem:
    """A small problem that begins with sources."""
    given = {
        "space": SPACE,
        "dataset": NoImages("none"),
        "evaluator": ToyCost(SPACE, metric="val_acc"),
        "device": ToyCost(SPACE, metric="latency_ms"),
        "strategy": partial(LocalSearch, population_size=10, num_candidates=1),
        "generations": 3,
        "warm_start": WarmStart(sources) if sources else None,
    }
    return Problem(**{**given, **parts})


def searched(problem: Problem, folder: Path) -> Run:
    return search(problem, folder, store=folder.parent / "store", show=False)


def test_the_best_of_several_sources_under_bounds_on_the_cost() -> None:
    """By hand: `one` knows a, b, c by ln 1, ln 2/3, ln 1/3; `two` knows b by ln 1, c and d by ln 2/3."""
    a, b, c, d = (0,), (1,), (2,), (3,)
    one, two = {a: 3.0, b: 2.0, c: 1.0}, {b: 9.0, c: 4.0, d: 4.0}
    both = Hints({"one": one, "two": two}, {})
    assert both.best(1) == [a]  # -.27, the mean of `two`; b has -.41, d -.50 - .41, c -1.10 - .41
    assert both.best(9) == [a, b, d, c]
    costly = Hints({"one": one, "two": two}, {a: 4.0, b: 3.0, c: 1.0, d: 2.0})
    assert costly.best(4) == [c, d, b, a]
    assert Hints({"one": one}, {c: 1.0, b: 2.0}).best(2) == [c, b]  # a does not keep the limits
    assert Hints({}, {}).best(3) == []


def test_a_list_of_networks_comes_first_and_a_resumed_run_begins_the_same(tmp_path: Path) -> None:
    listed = tmp_path / "mine.txt"
    listed.write_text("abcabc\n\ncccccc\n")
    run = searched(stated(str(listed)), tmp_path / "run")
    first = [SPACE.to_str(trial.genotype) for trial in run.trials[:10]]
    assert {"abcabc", "cccccc"} <= set(first)
    assert run.result is not None
    warm = run.result.warm_start
    assert warm is not None
    assert (warm.sources, warm.scored) == ((WarmSource(str(listed), 2),), 0)
    assert f"began with what is known of 2 networks by {listed}" in run.page.read_text()
    assert json.loads((run.folder / "result.json").read_text())["warm_start"]["sources"][0]["networks"] == 2

    (run.folder / "result.json").unlink()
    listed.write_text("bbbbbb\n")  # the run keeps what it began with
    whole = (run.folder / "archive.jsonl").read_bytes()
    (run.folder / "archive.jsonl").write_bytes(whole[: len(whole) // 2])
    searched(stated(str(listed)), tmp_path / "run")
    assert (run.folder / "archive.jsonl").read_bytes() == whole

    other = searched(stated(), tmp_path / "other")
    assert other.result is not None
    assert other.result.warm_start is None
    assert first != [SPACE.to_str(trial.genotype) for trial in other.trials[:10]]


def test_runs_tables_and_the_store_are_sources(tmp_path: Path) -> None:
    before = searched(stated(strategy=partial(RandomSearch, population_size=40)), tmp_path / "before")
    best = max(before.trials, key=lambda trial: trial.metrics["val_acc"]).genotype
    sources = [str(before.folder), str(before.folder / "pareto.csv"), "store"]
    for number, source in enumerate(sources):
        run = searched(stated(source, generations=1), tmp_path / f"run{number}")
        assert best in {trial.genotype for trial in run.trials}, source
    assert run.result is not None
    assert run.result.warm_start is not None
    (known,) = run.result.warm_start.sources
    assert known.name.startswith("toy_val_acc of none, version")
    assert known.networks >= len({trial.genotype for trial in before.trials})


def test_scores_are_computed_once_and_counted(tmp_path: Path) -> None:
    words = ("dataset=digits", "evaluator=zero_cost", "evaluator.num_reference=8", "device=flops")
    words += (
        "strategy=surrogate",
        "generations=1",
        "trainer=none",
        "warm_start=scores",
        "warm_start_scored=8",
    )
    first, second = (
        search(compose(*words), tmp_path / name, store=tmp_path / "store", show=False) for name in "ab"
    )
    for run, scored in ((first, 8), (second, 0)):
        assert run.result is not None
        warm = run.result.warm_start
        assert warm is not None
        assert warm.sources == (WarmSource("score_jacov", 8), WarmSource("score_params", 8))
        assert warm.scored == scored
        assert warm.seconds > 0
        assert run.result.evaluations.asked == 5
    assert first.trials == second.trials
    kept = json.loads((first.folder / "warm_start.json").read_text())["sources"]["score_params"]
    assert {tuple(genotype) for genotype, _ in kept} >= {trial.genotype for trial in first.trials}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nothing", "warm_start=nothing is none of scores, store, a file of architectures and the folder of"),
        ("store", "the store holds no qualities of 5 or more networks of the space toy"),
        ("{folder}/wrong.txt", "network 2 of .*wrong.txt: unknown operation 'x'"),
        ("{folder}/wrong.csv", "wrong.csv has no column arch"),
        ("{folder}/empty.txt", "empty.txt holds no network"),
        ("scores", "the toy space has no networks to score"),
        ("", "warm_start must name scores, store, a file of architectures or the folder of a run"),
    ],
)
def test_what_is_no_source_is_one_line(source: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "wrong.txt").write_text("abcabc\nabcabx\n")
    (tmp_path / "wrong.csv").write_text("name\nabcabc\n")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=message):
        searched(stated(warm_start=WarmStart([source.format(folder=tmp_path)])), tmp_path / "run")


def test_a_strategy_without_hints_says_so() -> None:
    with pytest.raises(ValueError, match="warm_start must be null: Cascade does not begin with known netw"):
        Cascade.hint(object.__new__(Cascade), Hints({}, {}))
