"""Evaluations per second through one store: eight processes at once, on SQLite and on PostgreSQL."""

from __future__ import annotations

import contextlib
import multiprocessing
import time
from pathlib import Path
from typing import Any

import pytest

from hwnas.spaces.toy import Toy, ToyCost
from hwnas.store.cache import CachedEvaluator
from hwnas.store.evaluations import EvaluationStore

SPAWN = multiprocessing.get_context("spawn")
PROCESSES, POPULATION = 8, 50


def asked(number: int, index: int) -> tuple[int, ...]:
    """What a process asks for: its own, and by turns what its neighbour asks for at the same time."""
    digits = (index // 2 // 1000, index // 2 // 100 % 10, index // 2 // 10 % 10, index // 2 % 10)
    return ((number + index % 2) % PROCESSES, *digits)


def look_up(url: str, number: int, num: int, claims: bool, ready: Any, go: Any) -> None:
    """Evaluate `num` architectures, half of them also a neighbour's."""
    space = Toy(5, 10)
    store = EvaluationStore(url, f"run{number}")
    inner = ToyCost(space, metric="val_acc")
    inner.exhaustive = not claims
    evaluator = CachedEvaluator(inner, store, "none")
    evaluator.prepare(space, [])
    ready.release()
    go.wait(60)
    for start in range(0, num, POPULATION):
        answers = evaluator.evaluate([asked(number, start + i) for i in range(POPULATION)])
        assert all(0 <= answer["val_acc"] <= 1 for answer in answers)
    store.close()


def rate(url: str, num: int, claims: bool) -> float:
    """Evaluations per second of all processes together; checks that none is lost or there twice."""
    ready, go = SPAWN.Semaphore(0), SPAWN.Event()
    EvaluationStore(url, "first").close()
    processes = [
        SPAWN.Process(target=look_up, args=(url, number, num, claims, ready, go))
        for number in range(PROCESSES)
    ]
    for process in processes:
        process.start()
    for _ in processes:
        assert ready.acquire(timeout=60)
    begin = time.perf_counter()
    go.set()
    for process in processes:
        process.join()
    seconds = time.perf_counter() - begin
    assert [process.exitcode for process in processes] == [0] * PROCESSES
    wanted = {asked(number, i) for number in range(PROCESSES) for i in range(num)}
    with contextlib.closing(EvaluationStore(url, "looking")) as store:
        rows = [row.genotype for row in store.rows([part.key for part in store.contents()])]
        assert store.num_claims() == 0
    assert len(rows) == len(set(rows)) == len(wanted)
    return PROCESSES * num / seconds


@pytest.mark.parametrize("claims", [False, True], ids=["look-ups", "claimed"])
@pytest.mark.parametrize("server", ["sqlite", "postgresql"])
def test_eight_processes_on_one_store(
    request: pytest.FixtureRequest, tmp_path: Path, server: str, claims: bool
) -> None:
    url = f"sqlite:///{tmp_path}/s.sqlite" if server == "sqlite" else request.getfixturevalue("postgres")
    measuring = request.config.getoption("benchmark_enable")
    told = rate(url, 5000 if measuring else 500, claims)
    if measuring:
        print(f"\n{server}, {'claimed' if claims else 'look-ups'}: {told:,.0f} evaluations/s")
