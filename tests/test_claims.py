"""One evaluation store for many processes: nobody pays for what another is paying for."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from hwnas.core import Evaluator, Genotype, SearchSpace
from hwnas.spaces.toy import Toy
from hwnas.store.cache import CachedEvaluator
from hwnas.store.evaluations import EvaluationStore

KEY = ("slow", "toy", "none", "1")
SPACE = Toy(2, 10)
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/evaluations.sqlite"
    return request.getfixturevalue("postgres")


@pytest.fixture
def opened() -> Iterator[Callable[..., EvaluationStore]]:
    """Opens stores and closes them."""
    with contextlib.ExitStack() as stack:

        def open_store(url: str, run: str = "looking", **settings: float) -> EvaluationStore:
            return stack.enter_context(contextlib.closing(EvaluationStore(url, run, **settings)))

        yield open_store


class Slow(Evaluator):
    """Takes its time, and writes down what it was asked."""

    name = "slow"
    metrics = {"rmi": "max"}  # noqa: RUF012

    def __init__(self, log: Path, seconds: float = 0.0) -> None:
        self.log = log
        self.seconds = seconds

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        return "1"

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        with self.log.open("a") as file:
            file.writelines(f"{genotype}\n" for genotype in genotypes)
        time.sleep(self.seconds * len(genotypes))
        if (10, 10) in genotypes:
            raise RuntimeError("out of memory")
        return [{"rmi": sum(genotype) / 7} for genotype in genotypes]


def cached(store: EvaluationStore, log: Path, seconds: float = 0.0) -> CachedEvaluator:
    evaluator = CachedEvaluator(Slow(log, seconds), store, "none")
    evaluator.prepare(SPACE, [])
    return evaluator


def work(url: str, log: Path, seconds: float, lease: float, start: int) -> None:
    """Evaluate ten populations that overlap with everybody's, in an order of one's own."""
    store = EvaluationStore(url, f"run{start}", lease=lease)
    evaluator = cached(store, log, seconds)
    for number in range(10):
        first = (start + number) % 10
        population = [(first, op) for op in range(10)]
        answers = evaluator.evaluate(population)
        assert answers == [{"rmi": (first + op) / 7} for op in range(10)]
    store.close()


def test_processes_at_once_pay_for_everything_once(url: str, tmp_path: Path) -> None:
    log = tmp_path / "log"
    processes = [SPAWN.Process(target=work, args=(url, log, 0.002, 10.0, start)) for start in (0, 0, 5, 7)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    lines = log.read_text().splitlines()
    assert len(lines) == len(set(lines)) == 100


def stuck(url: str, log: Path) -> None:
    cached(EvaluationStore(url, "stuck"), log, seconds=60).evaluate([(1, 1), (2, 2)])


def wait_for(log: Path) -> None:
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)


def test_claims_of_a_killed_process_of_this_machine_end_at_once(url: str, tmp_path: Path, opened) -> None:
    log = tmp_path / "log"
    process = SPAWN.Process(target=stuck, args=(url, log))
    process.start()
    wait_for(log)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    store = opened(url)
    assert set(store.claims(KEY, [(1, 1), (2, 2), (3, 3)])) == {(1, 1), (2, 2)}
    begin = time.monotonic()
    evaluator = cached(opened(url, lease=100.0), log)
    assert evaluator.evaluate([(1, 1), (3, 3)]) == [{"rmi": 2 / 7}, {"rmi": 6 / 7}]
    assert time.monotonic() - begin < 50  # did not wait for the lease
    assert evaluator.evaluate([(2, 2)]) == [{"rmi": 4 / 7}]
    assert store.claims(KEY, [(1, 1), (2, 2), (3, 3)]) == {}


def test_claims_of_another_machine_are_waited_for_until_they_are_not_renewed(
    url: str, tmp_path: Path, opened
) -> None:
    log = tmp_path / "log"
    there = opened(url, lease=0.4)
    there.owner = "another machine:1:1:abc"
    assert there.claim(KEY, [(1, 1)]) == [(1, 1)]
    assert opened(url).claim(KEY, [(1, 1), (2, 2)]) == [(2, 2)]
    opened(url).take_over(KEY, {(2, 2): ("somebody", 0)})  # not as it was seen: stays
    evaluator = cached(opened(url, lease=0.4), log)
    with there.heartbeat():
        process = SPAWN.Process(target=work_on, args=(url, log, (1, 1)))
        process.start()
        process.join(4)
        assert process.is_alive()  # waits for as long as there is a heart
        assert not log.exists()
    assert evaluator.evaluate([(1, 1)]) == [{"rmi": 2 / 7}]
    process.join(60)
    assert process.exitcode == 0
    assert log.read_text() == "(1, 1)\n"


def work_on(url: str, log: Path, genotype: Genotype) -> None:
    store = EvaluationStore(url, "other", lease=0.4)
    cached(store, log).evaluate([genotype])
    store.close()


def test_a_failed_evaluation_gives_its_claims_back(url: str, tmp_path: Path, opened) -> None:
    evaluator = cached(opened(url), tmp_path / "log")
    with pytest.raises(RuntimeError, match="out of memory"):
        evaluator.evaluate([(10, 10), (1, 1)])
    assert opened(url).claims(KEY, [(10, 10), (1, 1)]) == {}
    assert evaluator.evaluate([(1, 1)]) == [{"rmi": 2 / 7}]


def test_a_store_without_claims_is_brought_up_to_date(tmp_path: Path, opened) -> None:
    url = f"sqlite:///{tmp_path}/old.sqlite"
    store = opened(url)
    store.put(KEY, {(1, 1): {"rmi": 0.5}})
    store.close()
    with contextlib.closing(sqlite3.connect(tmp_path / "old.sqlite")) as connection, connection:
        connection.execute("DROP TABLE claims")
        connection.execute("UPDATE hwnas_schema SET version = 1")
    store = opened(url)
    assert store.get(KEY, [(1, 1)]) == {(1, 1): {"rmi": 0.5}}
    assert store.claim(KEY, [(1, 1)]) == [(1, 1)]


def test_a_whole_search_on_postgresql(run_hwnas, postgres: str, tmp_path: Path) -> None:
    """Two working folders and one server, as two machines have it: the second pays for nothing."""
    arguments = ["search", "experiment=toy", "logger=csv", f"store.url={postgres}", "hydra.run.dir=run"]
    outputs = []
    for name in "ab":
        (tmp_path / name).mkdir()
        outputs.append(run_hwnas(*arguments, cwd=tmp_path / name).stdout)
    archives = [(tmp_path / name / "run" / "archive.jsonl").read_bytes() for name in "ab"]
    assert archives[0] == archives[1]
    assert "400 evaluations (0 new, 400 repeated or already stored)" in outputs[1]
