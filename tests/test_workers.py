"""A population evaluated by several processes: the same answers, also when one of them dies."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from hwnas.core import Evaluator, Genotype, SearchSpace
from hwnas.spaces.toy import Toy
from hwnas.store.cache import CachedEvaluator
from hwnas.store.evaluations import EvaluationStore
from hwnas.store.workers import Processes, Ray, Workers

POPULATION = [(a, b) for a in range(2) for b in range(3)]
ANSWERS = [{"rmi": float(a + 10 * b)} for a, b in POPULATION]


def quiet(sentence: str) -> None:
    pass


class Deadly(Evaluator):
    """Kills the process that evaluates (1, 1), as often as it is told."""

    name = "deadly"
    metrics = {"rmi": "max"}  # noqa: RUF012

    def __init__(self, folder: Path, deaths: int, warn: Callable[[str], None] = quiet) -> None:
        self.folder, self.deaths, self._warn = folder, deaths, warn

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        return "1"

    def parts(self, genotypes: Sequence[Genotype]) -> list[Sequence[Genotype]]:
        return [[genotype] for genotype in genotypes]

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        died = len(list(self.folder.glob("died*")))
        if (1, 1) in genotypes and died < self.deaths:
            (self.folder / f"died{died}").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if (9, 9) in genotypes:
            raise ValueError("evaluator.steps is too large")
        (self.folder / f"by{os.getpid()}").touch()
        self._warn("it is hot")
        time.sleep(0.05)  # long enough for the other worker to get some
        return [{"rmi": float(a + 10 * b)} for a, b in genotypes]


@pytest.fixture(scope="module", params=["processes", "ray"])
def kind(request: pytest.FixtureRequest) -> Iterator[tuple[Workers, list[str]]]:
    said: list[str] = []
    if request.param == "processes":
        made: Workers = Processes(2, said.append, said.append)
    else:
        pytest.importorskip("ray")
        made = Ray(2, said.append, said.append, address=None, gpus=0)
    with contextlib.closing(made):
        yield made, said


@pytest.fixture
def workers(kind: tuple[Workers, list[str]]) -> Workers:
    kind[0]._heard.clear()
    kind[1].clear()
    return kind[0]


@pytest.fixture
def said(kind: tuple[Workers, list[str]]) -> list[str]:
    return kind[1]


def cached(folder: Path, deaths: int, workers: Workers | None, warn: Callable[[str], None] = quiet):
    store = EvaluationStore(f"sqlite:///{folder}/store.sqlite", "run")
    evaluator = CachedEvaluator(Deadly(folder, deaths, warn), store, "none", workers)
    evaluator.prepare(Toy(2, 10), [])
    return evaluator, store


def test_answers_are_those_of_one_process_and_come_from_several(
    workers: Workers, said: list[str], tmp_path: Path
) -> None:
    evaluator, store = cached(tmp_path, 0, workers, workers._say["warn"])
    with contextlib.closing(store):
        assert evaluator.evaluate(POPULATION) == ANSWERS
    assert len(list(tmp_path.glob("by*"))) == 2
    assert not (tmp_path / f"by{os.getpid()}").exists()
    assert said == ["it is hot"]  # by six copies


def test_a_worker_that_dies_is_replaced(workers: Workers, said: list[str], tmp_path: Path) -> None:
    evaluator, store = cached(tmp_path, 2, workers)
    with contextlib.closing(store):
        assert evaluator.evaluate(POPULATION) == ANSWERS
    assert len(list(tmp_path.glob("died*"))) == 2
    assert len(said) == 2
    assert all(sentence.startswith("a worker died; ") for sentence in said)


def test_one_that_dies_again_and_again_is_named_and_the_rest_is_kept(
    workers: Workers, tmp_path: Path
) -> None:
    evaluator, store = cached(tmp_path, 99, workers)
    with contextlib.closing(store):
        with pytest.raises(ValueError, match=r"evaluates \[1, 1\] by deadly died 3 times"):
            evaluator.evaluate(POPULATION)
        key = ("deadly", "toy", "none", "1")
        assert {(0, 0), (0, 1), (0, 2), (1, 0)} <= set(store.get(key, POPULATION))
        assert store.claims(key, POPULATION) == {}


def test_what_an_evaluator_raises_is_raised(workers: Workers, tmp_path: Path) -> None:
    evaluator, store = cached(tmp_path, 0, workers)
    with contextlib.closing(store), pytest.raises(ValueError, match=r"^evaluator.steps is too large$"):
        evaluator.evaluate([(0, 0), (9, 9)])


def test_an_evaluator_that_cannot_be_copied_is_one_line(tmp_path: Path) -> None:
    with contextlib.closing(Processes(2, quiet, quiet)) as workers:
        evaluator, store = cached(tmp_path, 0, workers)
        evaluator.inner.file = (tmp_path / "open").open("w")  # type: ignore[attr-defined]
        with contextlib.closing(store), pytest.raises(ValueError, match="deadly cannot be sent to workers"):
            evaluator.evaluate(POPULATION)
        evaluator.inner.file.close()  # type: ignore[attr-defined]


TRAIN = (  # noqa: SIM905
    "search evaluator=train evaluator.training.epochs=1 search_space.channels=4 search_space.num_cells=1 "
    "device=flops generations=2 strategy.population_size=4 trainer=none logger=csv"
).split()
RMI = (  # noqa: SIM905
    "search evaluator=rmi evaluator.steps=2 evaluator.group_size=2 evaluator.reference.epochs=0 "
    "device=flops generations=2 strategy.population_size=4 trainer=none logger=csv"
).split()
SUPERNET = (  # noqa: SIM905
    "search strategy=evnas strategy.tournament_size=2 evaluator=supernet evaluator.warmup_epochs=0 "
    "evaluator.epochs_per_generation=1 evaluator.training.sampling=population evaluator.channels=4 "
    "device=flops generations=2 strategy.population_size=12 trainer=none logger=csv"
).split()


@pytest.mark.parametrize(
    "arguments",
    [TRAIN, *(pytest.param(words, marks=pytest.mark.slow) for words in (RMI, SUPERNET))],
    ids=["train", "rmi", "supernet"],
)
def test_whole_searches_are_the_same(run_hwnas, tmp_path: Path, arguments: list[str]) -> None:
    for num in (1, 2):
        done = run_hwnas(*arguments, f"workers={num}", f"hydra.run.dir=run{num}", f"store.dir=store{num}")
        assert "Lightning" not in done.stderr
    archives = [(tmp_path / f"run{num}" / "archive.jsonl").read_bytes() for num in (1, 2)]
    assert archives[0] == archives[1]


def test_wrong_settings_are_one_line(run_hwnas) -> None:
    toy = ["search", "experiment=toy", "logger=csv"]
    done = run_hwnas(*toy, "workers=0", code=1)
    assert "workers must be a whole number of at least 1, not 0" in done.stderr
    done = run_hwnas(*toy, "workers=2", "cluster=ray", "cluster.address='127.0.0.1:1'", code=1)
    assert "cluster.address=127.0.0.1:1 is no Ray cluster that answers" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "cluster=rai is not known; did you mean ray" in run_hwnas(*toy, "cluster=rai", code=1).stderr


def test_a_resumed_run_may_have_other_workers(run_hwnas) -> None:
    toy = ["search", "experiment=toy", "logger=csv", "hydra.run.dir=run"]
    run_hwnas(*toy)
    assert "finished already" in run_hwnas("search", "resume=run", "workers=2").stdout
