"""`hwnas compare`: losses by hand and by a plain search, finished runs, strategies that fail, bad words."""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from hwnas import compare, compose, search
from hwnas.cli.compare import command, parse
from hwnas.cli.errors import UsageError
from hwnas.core import Genotype, Limit, Objective, Strategy, Trial
from hwnas.runs.display import Display
from hwnas.searches.compare import setting
from hwnas.searches.judge import Case, Found, amount, columns, conclude, judge, sentences
from hwnas.searches.problem import RunContext, set_up
from hwnas.spaces.toy import Toy, ToyCost

OBJECTIVES = (Objective("val_acc", "max"), Objective("latency_ms", "min"))
LIMITS = ((Limit("latency_ms", 2.0),), (Limit("latency_ms", 9.0),))
TOY = ("experiment=toy", "search_space.num_edges=5")  # 3,125 architectures


def found(strategy: str, seed: int, *values: tuple[float, float], clock: Sequence[float] = ()) -> Found:
    """A run that evaluates (accuracy, latency) one after another."""
    columns = dict(zip(("val_acc", "latency_ms"), np.array(values).T, strict=True))
    return Found(strategy, seed, columns, clock=np.array(clock) if clock else None)


def test_regret_by_hand() -> None:
    case = Case("it", OBJECTIVES, LIMITS, best=(0.7, 0.9), worst=0.1)
    a = found("a", 0, (0.5, 5.0), (0.6, 1.0), (0.9, math.inf), (0.85, 9.0))
    b = found("b", 0, (0.7, 2.0), (0.2, 1.0))  # ends before
    other = [found("a", 1, (0.7, 1.0)), found("b", 1, (0.1, 1.0))]
    judged = judge(case, [a, b, *other], [1, 2, 4])
    assert judged.strategies == ("a", "b")
    assert judged.case.unit == "points"
    # Within 2 ms: nothing, the worst counts; 60 %. Within 9 ms: 50, 60, 85 %. Not supported is not found.
    assert judged.losses[0, 0] == pytest.approx(np.array([[60.0, 10.0, 10.0], [40.0, 30.0, 5.0]]))
    assert judged.losses[1, 0] == pytest.approx(np.array([[0.0, 0.0, 0.0], [20.0, 20.0, 20.0]]))
    assert judged.known.tolist() == [[4, 1], [2, 1]]
    assert judged.times == ()


def test_a_quality_that_is_not_known_does_not_count() -> None:
    """Of a training that was stopped early."""
    case = Case("it", OBJECTIVES, LIMITS[1:], best=(0.9,), worst=0.1)
    values: list[dict[str, float]] = [{"early": 0.4, "latency_ms": 1.0}, {"val_acc": 0.8, "latency_ms": 1.0}]
    stopped = columns([Trial((place,), metrics, 0) for place, metrics in enumerate(values)])
    runs = [Found(name, seed, stopped) for name in "ab" for seed in range(2)]
    assert judge(case, runs, [1, 2]).losses[0, 0, 0] == pytest.approx([80.0, 10.0])


def test_a_cost_as_quality_and_an_unknown_optimum() -> None:
    """The best that any run knows within the limit counts, and the worst where a run knows none."""
    case = Case("it", (Objective("error", "min"), OBJECTIVES[1]), LIMITS[:1])
    runs = [
        Found(name, seed, {"error": np.array(error), "latency_ms": np.array(latency)})
        for seed in range(2)
        for name, error, latency in (("a", [3.0, 2.0, 1.0], [1.0, 1.0, 5.0]), ("b", [4.0], [3.0]))
    ]
    judged = judge(case, runs, [3])
    assert judged.case.measure == "gap"
    assert judged.losses[:, 0, 0, 0].tolist() == [0.0, 2.0]  # 2 is known within 2 ms, and 4 is the worst


def test_hypervolume_by_hand() -> None:
    """The common front of both runs is (0, 2), (1, 1), (2, 0) in costs: of the box of 2 by 2 it covers 1."""
    case = Case("it", OBJECTIVES, ())
    runs = [
        found("a", 0, (1.0, 0.0), (3.0, 2.0), (2.0, 1.0)),
        found("b", 0, (1.0, 2.0), (2.0, 1.5)),
        found("a", 1, (1.0, 0.0)),
        found("b", 1, (1.0, 0.0)),
    ]
    judged = judge(case, runs, [1, 2, 3])
    assert (judged.case.measure, judged.case.unit) == ("hypervolume", "%")
    assert judged.losses[0, 0, 0] == pytest.approx([100.0, 100.0, 0.0])
    assert judged.losses[1, 0, 0] == pytest.approx([100.0, 50.0, 50.0])  # (1, 1.5) covers 1 by a half


def test_equal_time_by_hand() -> None:
    """The run that takes least for two architectures takes 4 s: after 4 s the others know 1 and 2."""
    case = Case("it", OBJECTIVES, LIMITS[1:], best=(1.0,), worst=0.0)
    runs = [
        found("a", 0, (0.5, 1.0), (0.8, 1.0), clock=(3.0, 5.0)),
        found("b", 0, (0.6, 1.0), (0.9, 1.0), clock=(1.0, 4.0)),
        found("a", 1, (0.5, 1.0), (0.8, 1.0), clock=(1.0, 6.0)),
        found("b", 1, (0.3, 1.0), clock=(5.0,)),  # ended before: does not say how long two take
    ]
    judged = judge(case, runs, [1, 2])
    assert judged.times == (2.0, 4.0)
    assert judged.by_time[0, :, 0] == pytest.approx(np.array([[100.0, 50.0], [50.0, 50.0]]))
    assert judged.by_time[1, :, 0] == pytest.approx(np.array([[40.0, 10.0], [100.0, 100.0]]))


def test_words_of_a_difference() -> None:
    """A loss of 30 against 10 points with each of 12 seeds on two problems: p is 2 / 2^12, times 3 tests."""
    cases = [Case(name, OBJECTIVES, LIMITS[1:], best=(0.9,), worst=0.0) for name in ("x", "y")]
    runs = [found(name, seed, (q, 1.0)) for seed in range(12) for name, q in (("a", 0.6), ("b", 0.8))]
    compared = conclude([judge(case, runs, [1]) for case in cases])
    assert [one.p for one in compared.verdicts] == pytest.approx([3 * 2 / 2**12] * 3)
    assert sentences(compared.overall) == [
        "b beats a after 1 evaluation, mean over the problems, by 20.00 points (p = 0.0015; better with 12 "
        "of 12 seeds)."
    ]
    assert [one.winner for one in compared.verdicts] == ["b"] * 3
    assert compared.notes == ()
    few = conclude([judge(cases[0], [run for run in runs if run.seed < 4], [1])])
    assert sentences(few.overall) == [
        "No difference shown between a and b after 1 evaluation on x (p = 0.12)."
    ]
    assert few.notes == (
        "4 seeds cannot show a difference, however large: 1 test needs 6 seeds; fewer strategies or problems "
        "need fewer",
    )


def test_words_where_ranks_and_means_disagree() -> None:
    """With 11 of 12 seeds `a` loses 1 point less, and with one 30 more: 11 ranks of 6 against one of 12.

    Of the 2^12 choices of signs 1 + 11 + 55 + 1 have a sum of at most 12: p is 2 * 68 / 4096.
    """
    case = Case("x", OBJECTIVES, LIMITS[1:], best=(0.9,), worst=0.0)
    runs = [found("a", seed, (0.8 if seed else 0.4, 1.0)) for seed in range(12)]
    runs += [found("b", seed, (0.79 if seed else 0.7, 1.0)) for seed in range(12)]
    assert sentences(conclude([judge(case, runs, [1])]).overall) == [
        "a beats b after 1 evaluation on x with most seeds, but not on average, where it is behind by 1.58 "
        "points (p = 0.033; better with 11 of 12 seeds)."
    ]


def test_amounts() -> None:
    assert [amount(x, "points") for x in (1.234, 0.0567, 0.00123, 0.0)] == [
        "1.23 points",
        "0.057 points",
        "0.0012 points",
        "0.00 points",
    ]
    assert amount(-2.5e-6, "") == "-2.5e-06"


class Walk(Strategy):
    """A walk of one step at a time, which fails at a step, with one seed."""

    def __init__(self, space: Toy, objectives: tuple[Objective, ...], seed: int, *, fails: int = -1) -> None:
        self.space, self.objectives, self.rng = space, objectives, np.random.default_rng(seed)
        self.fails = fails if seed == 1 else -1
        self.steps = 0

    def ask(self) -> list[Genotype]:
        return self.space.sample(self.rng, 5)

    def tell(self, trials: Sequence[Trial]) -> None:
        self.steps += 1
        if self.steps == self.fails:
            raise KeyError("lost")

    def result(self) -> list[Trial]:
        return []


def losses(folder: Path) -> dict[tuple[str, int], float]:
    """The loss of each run, the mean if there are several limits."""
    with (folder / "runs.csv").open(newline="") as file:
        return {(row["strategy"], int(row["seed"])): float(row["loss"]) for row in csv.DictReader(file)}


def test_as_a_plain_search_finds(tmp_path: Path) -> None:
    """Regrets under the nine deciles of the toy space, computed from a search's archive and all networks."""
    words = (*TOY, "strategy.population_size=20", "generations=10")
    compared = ("strategy=random,local_search", "seeds=2", "seed=3", "evaluations=100", "workers=1")
    done = compare(*words, *compared, folder=tmp_path / "it", show=False)
    assert done.page is not None
    assert "local_search" in done.page.read_text()
    run = search(compose(*words, "strategy=random", seed=4), tmp_path / "run", show=False)
    assert run.result is not None
    assert run.result.truth is not None
    bounds = run.result.deciles["latency_ms"][1:10]
    first = list(dict.fromkeys(trial.genotype for trial in run.trials))[:100]
    known = {trial.genotype: trial.metrics for trial in run.trials}
    front = run.result.truth.front
    quality = run.objectives[0].metric
    regrets = []
    for bound in bounds:
        best = max(q for q, ms in front if ms <= bound)
        own = [known[g][quality] for g in first if known[g]["latency_ms"] <= bound]
        regrets.append(best - max(own))
    factor = 100 if quality.endswith("_acc") else 1
    assert losses(tmp_path / "it")["random", 4] == pytest.approx(factor * np.mean(regrets))


SWEPT = (*TOY, "strategy.population_size=5", "generations=3")


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two strategies with two seeds, without limits, in the folders random0, random1, ..."""
    return swept(tmp_path_factory.mktemp("sweep"))


def swept(folder: Path, *words: str) -> Path:
    for seed in range(2):
        for name in ("random", "local_search"):
            problem = compose(*SWEPT, *words, f"strategy={name}", seed=seed)
            search(problem, folder / f"{name}{seed}", store=folder / "store", show=False)
    return folder


@pytest.mark.parametrize("limits", [(), ("limits.latency_ms=q0.5",)])
def test_finished_runs_are_judged_as_those_in_memory(
    tmp_path: Path, sweep: Path, limits: tuple[str, ...]
) -> None:
    runs = swept(tmp_path / "sweep", *limits) if limits else sweep
    done = compare(str(runs), folder=tmp_path / "a", show=False)
    (case,) = done.result["cases"]  # type: ignore[misc]
    (at,) = case["evaluations"]  # the fewest that any run knows
    assert at <= 15
    compared = ("strategy=local_search,random", "seeds=2", f"evaluations={at}", "workers=1")
    compare(*SWEPT, *limits, *compared, folder=tmp_path / "b", show=False)
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_settings_that_tell_finished_runs_apart(tmp_path: Path, sweep: Path) -> None:
    """Those of a strategy whose runs differ in them; of others the strategy's name says it all."""
    more = []
    for seed in range(2):
        problem = compose(*SWEPT[:-1], "strategy=random", "generations=2", seed=seed)
        more.append(str(tmp_path / f"short{seed}"))
        search(problem, more[-1], store=tmp_path / "store", show=False)
    done = compare(str(sweep), *more, folder=tmp_path / "to", show=False)
    assert {name for name, _ in losses(tmp_path / "to")} == {
        "local_search",
        "random:generations=3",
        "random:generations=2",
    }
    assert done.result["failed"] == []


def test_runs_with_nothing_in_common(tmp_path: Path, sweep: Path) -> None:
    folders = [str(sweep / name) for name in ("random0", "local_search1")]
    with pytest.raises(
        ValueError, match="nothing to compare: no problem was searched by two strategies"
    ) as e:
        compare(*folders, folder=tmp_path / "to", show=False)
    assert "toy, toy: random (seeds 0), local_search (seeds 1)" in str(e.value)
    with pytest.raises(ValueError, match=r"random0 and .*random0 are runs of the same strategy"):
        compare(folders[0], *folders, folder=tmp_path / "to", show=False)


@pytest.mark.slow
def test_processes_find_the_same(tmp_path: Path) -> None:
    words = (*TOY, "strategy=random,local_search", "seeds=6", "evaluations=30", "generations=5")
    for workers in (1, 2):
        compare(*words, f"workers={workers}", folder=tmp_path / str(workers), show=False)
    for name in ("runs.csv", "curves.csv", "tests.csv"):
        assert (tmp_path / "1" / name).read_text() == (tmp_path / "2" / name).read_text()


def test_a_strategy_that_raises_is_named_and_left_out(tmp_path: Path) -> None:
    strategies = {"walk": Walk, "lost": partial(Walk, fails=2)}
    words = (*TOY, "strategy=random", "seeds=3", "evaluations=20", "workers=1")
    done = compare(*words, strategies=strategies, folder=tmp_path / "it", show=False)
    assert done.result["failed"] == [
        {"strategy": "lost", "case": "toy, toy", "seed": 1, "reason": "KeyError: 'lost'"}
    ]
    assert "lost failed on toy, toy with seed 1: KeyError: 'lost'; it is left out" in done.result["notes"]  # type: ignore[operator]
    assert {name for name, _ in losses(tmp_path / "it")} == {"random", "walk"}
    assert 'raise KeyError("lost")' in (tmp_path / "it" / "compare.log").read_text()
    with pytest.raises(ValueError, match=r"fewer than two strategies are left to compare: lost failed on"):
        compare(*words, strategies={"lost": partial(Walk, fails=1)}, folder=tmp_path / "no", show=False)


def test_a_run_that_ends_early_says_so(tmp_path: Path) -> None:
    """Walks of two populations of five, by default; draws of three populations of two."""
    words = (*TOY, "strategy=random:generations=3:population_size=2", "generations=2", "seeds=2", "workers=1")
    done = compare(*words, "evaluations=20", strategies={"walk": Walk}, folder=tmp_path, show=False)
    notes = [note for note in done.result["notes"] if "ended" in note]  # type: ignore[attr-defined]
    assert notes == [
        f"{name} ended before 20 different architectures, on average after {number}; from there on it counts "
        "with what it knew (more generations= let it go on)"
        for name, number in (("random:generations=3:population_size=2", 6), ("walk", 10))
    ]


def test_a_warm_start(tmp_path: Path) -> None:
    """Runs begin with the networks of a list, of which the last is the best of the space."""
    space = Toy(5)
    best = tuple(map(int, ToyCost(space, metric="val_acc").table.argmax(axis=1)))
    names = [space.to_str(genotype) for genotype in (*space.sample(np.random.default_rng(0), 4), best)]
    (tmp_path / "list.csv").write_text("arch\n" + "\n".join(names) + "\n")
    words = (*TOY, f"warm_start={tmp_path / 'list.csv'}", "limits.latency_ms=1000", f"store.dir={tmp_path}")
    done = compare(
        *words, "evaluations=20", "strategy=random,local_search", folder=tmp_path / "to", show=False
    )
    (case,) = done.result["cases"]  # type: ignore[misc]
    for figures in case["strategies"].values():
        assert figures["loss"] == pytest.approx([0.0])
    assert any("which does not count as evaluations" in note for note in done.result["notes"])  # type: ignore[attr-defined]


def test_words(tmp_path: Path) -> None:
    words = parse(
        ["strategy=a:x=[1,2]:y=3,b", "device=[raspi4,fpga]", "+limits.f=q0.1,5", "evaluator.z=[1,2]"]
    )
    assert words.own == {"strategy": ("a:x=[1,2]:y=3", "b")}
    assert words.search == {"device": ("raspi4", "fpga"), "evaluator.z": ("[1,2]",)}
    assert words.limits == {"f": ("q0.1", "5")}
    (job := tmp_path / "strategy=a,seed=1").mkdir()
    words = parse([str(job), "to=a,b"])
    assert (words.folders, words.own) == ((job,), {"to": ("a,b",)})
    for wrong, why in (
        (["-m", "seeds=2"], "unknown flag -m; a word with several values is a sweep already"),
        (["seeds=2", "seeds=3"], "seeds is given twice"),
        (["device=a,b,a"], "device=a,b,a has a twice"),
        (["somewhere", "seeds=3"], "seeds does not go with folders"),
    ):
        with pytest.raises(UsageError, match=why):
            parse(wrong)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("seeds=1", "seeds must be a whole number of at least 2, not 1"),
        ("seeds=two", "seeds must be a whole number of at least 2, not 'two'"),
        ("seed=-1", "seed must be a whole number of at least 0, not -1"),
        ("seeds=3,4", "seeds takes one value, not 3,4"),
        ("evaluations=50,0", "evaluations must be a whole number of at least 1, not 0"),
        ("evaluations=4000", "evaluations=4000 is more than the 3,125 architectures of toy"),
        ("strategy=random", "strategy=random is one strategy; compare at least two"),
        ("strategy=random,locl_search", "strategy=locl_search is not known; did you mean local_search?"),
        ("strategy=random,random:population_size=0", "population_size must be a whole number of at least 1"),
        (
            "limits.latency=3",
            "limits.latency: no evaluator or device of this run reports latency; did you mean",
        ),
        (
            "warm_start=nothing.csv",
            "warm_start=nothing.csv is none of scores, store, a file of architectures",
        ),
        ("nowhere", "nowhere is not a folder"),
    ],
)
def test_bad_words_are_one_line(
    words: str, why: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    own = [f"to={tmp_path / 'to'}", f"store.dir={tmp_path / 'store'}"]
    settings = [] if words == "nowhere" else [*TOY, *own]
    usual = [] if "strategy" in words or words == "nowhere" else ["strategy=random,local_search"]
    assert command([*settings, *usual, words]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert why in line
    assert not (tmp_path / "to").exists()


class Slow(ToyCost):
    """Answers network by network, as a training does."""

    def __init__(self, space: Toy, *, metric: Literal["val_acc"]) -> None:
        super().__init__(space, metric=metric)
        self.exhaustive = False


def test_what_computes_its_answers_is_for_a_sweep(tmp_path: Path) -> None:
    problem = compose(*TOY, "strategy=random", evaluator=partial(Slow, metric="val_acc"))
    task = set_up(problem, RunContext(tmp_path, tmp_path, tmp_path, Display()))
    with pytest.raises(ValueError, match=r"computes its answers; .* hwnas compare multirun/sweeps"):
        setting("it", task, [], tmp_path)
