"""Successive halving by hand, and of runs: numbers only, but for one short search."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from hwnas import compose, search
from hwnas.build import build, conf_folder
from hwnas.core import Evaluator, Genotype, Limit, Objective, SearchSpace, Trial, best, trials_of
from hwnas.searches.halving import Halving, best_first
from hwnas.searches.loop import search as loop
from hwnas.spaces.toy import Toy
from hwnas.store.archive import Archive
from hwnas.store.evaluations import EvaluationStore
from hwnas.store.workers import Processes, Workers
from hwnas.strategies.random import RandomSearch

SPACE = Toy(2, 10)
OBJECTIVES = (Objective("q_by_rung", "max"), Objective("latency_ms", "min"))
LIMITS = (Limit("latency_ms", 10.0),)


class Known(Evaluator):
    """Answers of a function."""

    def __init__(self, name: str, metric: str, answer: Callable[[Genotype], float]) -> None:
        self.name, self.metrics, self.answer = name, {metric: "max"}, answer
        self.asked: list[Genotype] = []

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        return "1"

    def parts(self, genotypes: Sequence[Genotype]) -> list[Sequence[Genotype]]:
        return [[genotype] for genotype in genotypes]

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        self.asked += genotypes
        (metric,) = self.metrics
        return [{metric: self.answer(genotype)} for genotype in genotypes]


class Ladder(Known):
    """Three rungs."""

    def __init__(self, *answers: Callable[[Genotype], float], eta: int) -> None:
        self.name, self.eta = "ladder", eta
        names = ("q_1", "q_2", "q")
        self.rungs = tuple(
            Known(f"ladder-{name}", name, answer) for name, answer in zip(names, answers, strict=True)
        )
        self.metrics = dict.fromkeys(["q_by_rung", "q", "rung", "q_1", "q_2"], "max")


def halving(
    ladder: Ladder,
    archive: Archive,
    cost: Callable[[Genotype], float],
    limits: Sequence[Limit] = LIMITS,
    workers: Workers | None = None,
    url: str | None = None,
) -> Halving:
    device = Known("device", "latency_ms", cost)
    store = EvaluationStore(url, "run")
    made = Halving(
        ladder, store, "none", workers, costs=[device], archive=archive, objectives=OBJECTIVES, limits=limits
    )
    made.prepare(SPACE, [])
    return made


def by_second(*values: Mapping[int, float]) -> list[Callable[[Genotype], float]]:
    """Answers by the second entry of genotypes."""
    return [lambda genotype, own=own: own[genotype[1]] for own in values]


def test_the_best_of_a_population_and_of_all_at_a_rung_go_on() -> None:
    first = {0: 0.1, 1: 0.2, 2: 0.3, 3: 0.4, 4: 0.5, 5: 0.6, 6: 0.7, 7: 0.8, 8: 0.05, 9: 0.65}
    second = {6: 0.3, 5: 0.9, 4: 0.4, 3: 0.5, 9: 0.8}
    ladder = Ladder(*by_second(first, second, {5: 0.6, 3: 0.7, 9: 0.2}), eta=2)
    archive = Archive()
    evaluator = halving(ladder, archive, lambda genotype: 20.0 if genotype[1] == 7 else 1.0)

    def generation(number: int, *population: Genotype) -> list[dict[str, float]]:
        for rung in ladder.rungs:
            rung.asked.clear()  # type: ignore[attr-defined]
        rows = evaluator.evaluate(population)
        costs = [{"latency_ms": 20.0 if genotype[1] == 7 else 1.0} for genotype in population]
        archive.extend(trials_of(population, [rows, costs], number))
        return rows

    def asked() -> list[list[int]]:
        return [[genotype[1] for genotype in rung.asked] for rung in ladder.rungs]  # type: ignore[attr-defined]

    # 7 is the best, but not within the limit. Repeated networks count once.
    rows = generation(0, *((0, each) for each in range(8)), (0, 5))
    assert asked() == [[0, 1, 2, 3, 4, 5, 6, 7], [3, 4, 5, 6], [3, 5]]
    assert rows[0] == pytest.approx({"q_by_rung": 0.1 / 3, "rung": 1, "q_1": 0.1})
    assert rows[6] == pytest.approx({"q_by_rung": 1.3 / 3, "rung": 2, "q_1": 0.7, "q_2": 0.3})
    assert rows[5] == pytest.approx({"q_by_rung": 2.6 / 3, "rung": 3, "q_1": 0.6, "q_2": 0.9, "q": 0.6})
    assert rows[8] == rows[5]

    # Two of four could go on, but none is among the best six of the twelve that have been at the first rung.
    rows = generation(1, (1, 8), (2, 8), (3, 8), (4, 8))
    assert [row["rung"] for row in rows] == [1, 1, 1, 1]

    # 5, 3 and 6 were at the second rung before, 5 and 3 at the third; 9 is second of 13, and then of 5.
    rows = generation(2, (0, 5), (0, 6), (0, 9), (0, 3))
    assert [row["rung"] for row in rows] == [3, 2, 3, 3]
    assert asked() == [[9], [9], [9]]  # the others are known
    assert rows[2]["q_by_rung"] == pytest.approx(2.2 / 3)


def test_a_population_of_one_is_compared_with_earlier_ones() -> None:
    """With eta=3 one of one, two and three networks goes on, two of six."""
    quality = {0: 0.3, 1: 0.2, 2: 0.4, 3: 0.35, 4: 0.1, 5: 0.38}
    archive = Archive()
    evaluator = halving(Ladder(*by_second(quality, quality, quality), eta=3), archive, lambda genotype: 1.0)
    reached = []
    for number in quality:
        rows = evaluator.evaluate([(0, number)])
        archive.extend(trials_of([(0, number)], [rows, [{"latency_ms": 1.0}]], number))
        reached.append(int(rows[0]["rung"]))
    # The last one is second of six at the first rung, and second of three at the second one.
    assert reached == [3, 1, 3, 1, 1, 2]


def trial(number: int, quality: float, latency: float) -> Trial:
    return Trial((0, number), {"q_by_rung": quality, "latency_ms": latency}, 0)


def test_order() -> None:
    """Ranks of the latencies are 5, 6, 4, 1, 3, 2 of six; bounds on them 1, 1/2, 3/4, 1/4, 7/8, 3/8."""
    known = [(0.8, 8.0), (0.9, 9.0), (0.2, 6.0), (0.1, 1.0), (0.5, 5.0), (0.4, 4.9), (0.99, np.inf)]
    trials = [trial(number, *values) for number, values in enumerate(known)]
    assert best_first(trials, OBJECTIVES, []).tolist() == [1, 4, 5, 3, 0, 2, 6]
    assert best_first(trials, OBJECTIVES, [Limit("latency_ms", 5.0)]).tolist() == [4, 5, 3, 2, 0, 1, 6]
    alike = [trial(number, quality, 1.0) for number, quality in enumerate((0.2, 0.9, 0.5, 0.9))]
    assert best_first(alike, OBJECTIVES, []).tolist() == [1, 3, 2, 0]
    assert best_first(trials[6:], OBJECTIVES, []).tolist() == [0]


def noisy(rung: int) -> Callable[[Genotype], float]:
    return lambda genotype: float(np.random.default_rng([rung, *genotype]).random())


class Killed(KeyboardInterrupt):
    pass


def run(path: Path, *, kill_at: int | None = None, workers: Workers | None = None) -> Path:
    """A search of four generations; it may be killed when a number of networks has been evaluated."""
    done = 0

    def counted(genotype: Genotype) -> float:
        nonlocal done
        done += 1
        if done == kill_at:
            raise Killed
        return noisy(2)(genotype)

    second = noisy(2) if kill_at is None else counted
    cost = lambda genotype: 1.0 + genotype[0]  # noqa: E731
    with closing(Archive(path)) as archive:
        quality = halving(Ladder(noisy(1), second, noisy(3), eta=3), archive, cost, [], workers)
        strategy = RandomSearch(SPACE, OBJECTIVES, 0, population_size=10)
        loop(strategy, [quality, *quality._costs], archive, 4)
    return path


def test_runs_that_are_killed_or_have_workers_find_the_same(tmp_path: Path) -> None:
    """Without a store, so that an archive alone decides."""
    whole = run(tmp_path / "whole.jsonl").read_bytes()
    for number in (1, 5, 8):
        with pytest.raises(Killed):
            run(tmp_path / f"{number}.jsonl", kill_at=number)
        assert (tmp_path / f"{number}.jsonl").read_bytes() != whole
        assert run(tmp_path / f"{number}.jsonl").read_bytes() == whole
    with closing(Processes(2, print, print)) as workers:
        assert run(tmp_path / "workers.jsonl", workers=workers).read_bytes() == whole


def test_one_that_got_further_is_always_better(tmp_path: Path) -> None:
    with closing(Archive(run(tmp_path / "archive.jsonl"))) as archive:
        values: dict[float, list[float]] = {1.0: [], 2.0: [], 3.0: []}
        for one in archive.trials:
            values[one.metrics["rung"]].append(one.metrics["q_by_rung"])
    assert max(values[1.0]) < min(values[2.0])
    assert max(values[2.0]) < min(values[3.0])
    assert len(set(values[3.0])) < len(set(values[2.0])) < len(set(values[1.0]))


YAMLS = sorted(path for path in (conf_folder() / "strategy").glob("*.yaml") if path.stem != "cascade")


@pytest.mark.parametrize("yaml", YAMLS, ids=lambda path: path.stem)
def test_every_strategy(yaml: Path) -> None:
    """Most networks are stopped, and the best one is not; what CMA-ES itself returns may be."""
    device, archive = Known("device", "latency_ms", lambda genotype: 1.0 + genotype[0]), Archive()
    quality = halving(Ladder(noisy(1), noisy(2), noisy(3), eta=3), archive, device.answer, [])
    offered = {"space": Toy(), "objectives": OBJECTIVES, "limits": (), "seed": 0, "generations": 9}
    strategy = build(OmegaConf.load(yaml), **offered, device=device)
    loop(strategy, [quality, device], archive, 3)
    first = {trial.genotype for trial in archive.trials if trial.metrics["rung"] == 1}
    last = {trial.genotype for trial in archive.trials if trial.metrics["rung"] == 3}
    assert 0 < len(last) < len(first)
    answer = best(archive.trials, OBJECTIVES, ())
    assert answer is not None
    assert answer.metrics["rung"] == 3


def test_the_store_keeps_rungs(tmp_path: Path) -> None:
    """Another run with the same networks computes only what got no further in the first one."""
    url = f"sqlite:///{tmp_path / 'store.sqlite'}"
    population = [(0, number) for number in range(9)]
    first, second = (Ladder(noisy(1), noisy(2), noisy(3), eta=eta) for eta in (3, 2))
    rows = halving(first, Archive(), lambda genotype: 1.0, [], url=url).evaluate(population)
    assert [len(rung.asked) for rung in first.rungs] == [9, 3, 1]  # type: ignore[attr-defined]
    more = halving(second, Archive(), lambda genotype: 1.0, [], url=url)
    more.evaluate(population)
    assert [len(rung.asked) for rung in second.rungs] == [0, 1, 1]  # type: ignore[attr-defined]
    again = halving(first, Archive(), lambda genotype: 1.0, [], url=url)
    assert again.evaluate(population) == rows
    assert (more.answering[0].saved, again.answering[0].computed, again.seconds_per_new) == (9, 0, None)


SMALL = (
    *("evaluator=train", "device=flops", "trainer=none", "strategy=random", "strategy.population_size=4"),
    *("generations=1", "search_space.channels=2", "search_space.num_cells=1", "evaluator.num_valid=50"),
    *("evaluator.training.max_steps=6", "evaluator.rungs=[2,4]", "evaluator.eta=2"),
)


def test_a_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = search(compose(*SMALL), "run", store="store", show=False)
    assert found.result is not None
    assert found.result.evaluations.new == 4  # networks, not rungs
    rungs = [int(one.metrics["rung"]) for one in found.trials]
    assert sorted(rungs) == [1, 1, 2, 3]
    assert found.best is not None
    assert found.best.metrics["rung"] == 3
    assert found.result.notes[0].startswith("Trainings stop early: after 2 and 4 of 6 steps the best 1/2")
    assert len(list(Path("store/trainings").glob("*/*/checkpoint.pt"))) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("evaluator.eta=1",), "evaluator.eta must be a whole number of at least 2, not 1"),
        (("strategy=cascade",), "strategy=cascade needs evaluator=cascade"),
        (("budget=1min",), "budget=1min needs evaluator=cascade"),
    ],
)
def test_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [word for word in SMALL if "strategy." not in word]
    with pytest.raises(ValueError, match=message):
        search(compose(*small, *words), "run", show=False)
