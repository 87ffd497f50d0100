"""Resuming a long search: processor time and memory in proportion to its evaluations, not to their square."""

from __future__ import annotations

import contextlib
import resource
import time
from pathlib import Path

import pytest

from hwnas.core import Objective
from hwnas.search import search
from hwnas.spaces.toy import Toy, ToyCost
from hwnas.store import Archive, CachedEvaluator, EvaluationStore, Hypervolume
from hwnas.strategies.random import RandomSearch

OBJECTIVES = (Objective("val_acc", "max"), Objective("latency_ms", "min"))
POPULATION = 20


def seconds(path: Path, num: int) -> float:
    """Processor seconds to search `num` networks, or to go through them again if the journal has them."""
    space = Toy(16, 5)
    start = time.process_time()
    with contextlib.closing(EvaluationStore(None, "run")) as store:
        evaluators = [CachedEvaluator(ToyCost(space, metric=o.metric), store, "none") for o in OBJECTIVES]
        strategy = RandomSearch(space, OBJECTIVES, 0, population_size=POPULATION)
        hypervolume, volumes, archive = Hypervolume(OBJECTIVES), list[float](), Archive(path)
        with contextlib.closing(archive):
            search(
                strategy,
                evaluators,
                archive,
                num // POPULATION,
                lambda generation, trials, replayed: volumes.append(hypervolume.add(trials)),
            )
        assert len(archive.trials) == num
    return time.process_time() - start


@pytest.mark.slow
def test_resuming_takes_in_proportion(tmp_path: Path) -> None:
    resumed = []
    for num in (2_000, 20_000):
        path = tmp_path / f"{num}.jsonl"
        seconds(path, num)
        before = path.read_bytes()
        resumed.append(seconds(path, num))
        assert path.read_bytes() == before
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"\n20,000 evaluations resume in {resumed[1]:.1f} s of processor time; {peak:.2f} GB at most")
    print(f"ten times as many evaluations take {resumed[1] / resumed[0]:.1f} times as long to resume")
    assert resumed[1] < 20 * resumed[0]  # 100 if a generation was sought among all
