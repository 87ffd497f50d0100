from __future__ import annotations

import itertools
import json
import math
import multiprocessing
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hwnas.core import Evaluator, Genotype, Objective, SearchSpace, Trial
from hwnas.files import to_json
from hwnas.spaces.toy import Toy
from hwnas.store import Archive, CachedEvaluator, EvaluationStore, Hypervolume, read_archive

ACC, LATENCY = Objective("val_acc", "max"), Objective("latency_ms", "min")
KEY = ("rmi", "toy", "digits", "v1")


def trial(*genotype: int, generation: int = 0, acc: float = 0.5, ms: float = 1.0) -> Trial:
    return Trial(genotype, {"val_acc": acc, "latency_ms": ms}, generation)


def generation(index: int) -> list[Trial]:
    return [trial(index, k, generation=index, acc=0.1 * k, ms=1 / (k + 3)) for k in range(3)]


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    path = tmp_path / "archive.jsonl"
    archive = Archive(path)
    archive.extend(generation(0))
    archive.extend(generation(1))
    archive.close()
    return path


def test_archive_lines(tmp_path: Path) -> None:
    archive = Archive(tmp_path / "archive.jsonl")
    archive.extend([trial(2, 1, acc=0.25, ms=math.inf)])
    archive.close()
    assert (tmp_path / "archive.jsonl").read_text() == (
        '{"generation": 0, "genotype": [2, 1], "metrics": {"val_acc": 0.25, "latency_ms": null}}\n'
    )
    archive = Archive(tmp_path / "archive.jsonl")
    archive.close()
    assert archive.trials == [trial(2, 1, acc=0.25, ms=math.inf)]


def test_archive_is_replayed(journal: Path) -> None:
    archive = Archive(journal)
    assert archive.trials == generation(0) + generation(1) == read_archive(journal)
    assert archive.notes == []
    assert archive.recorded(0, [(0, 0), (0, 1), (0, 2)]) == generation(0)
    assert archive.recorded(1, [(1, 0), (1, 1), (1, 2)]) == generation(1)
    assert archive.recorded(2, [(2, 0)]) is None
    archive.close()


def test_archive_in_memory() -> None:
    archive = Archive()
    archive.extend(generation(0))
    assert archive.recorded(0, [t.genotype for t in generation(0)]) == generation(0)
    assert archive.recorded(0, [(0, k) for k in range(4)]) is None  # a part only: dropped
    assert archive.trials == []
    archive.close()


@pytest.mark.parametrize(
    "fragment",
    [
        b'{"generation": 2, "genot',
        b'{"generation": 2, "genotype": [2, 0], "metrics": {"val_acc": 1.0}}',  # whole, but no line end
        b'{"generation": 2, "genot\n',
        b"\x00\x00\x00\x00",
        b"\xff\xfe\n",
    ],
)
def test_torn_last_line_is_dropped(journal: Path, fragment: bytes) -> None:
    whole = journal.read_bytes()
    journal.write_bytes(whole + fragment)
    archive = Archive(journal)
    assert archive.notes == [f"dropped the torn last line 7 of {journal}"]
    assert archive.trials == generation(0) + generation(1)
    assert journal.read_bytes() == whole
    archive.extend(generation(2))
    archive.close()
    assert read_archive(journal) == generation(0) + generation(1) + generation(2)


@pytest.mark.parametrize("keep", [0, 1, 30, 82])
def test_a_cut_anywhere_in_the_last_line_loses_only_that_line(journal: Path, keep: int) -> None:
    *lines, last = journal.read_bytes().splitlines(keepends=True)
    assert keep < len(last)
    journal.write_bytes(b"".join(lines) + last[:keep])
    archive = Archive(journal)
    archive.close()
    assert archive.trials == (generation(0) + generation(1))[:-1]
    assert len(archive.notes) == (keep > 0)


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "",
        "5",
        "null",
        '{"generation": 0, "genotype": [0, 1]}',
        '{"generation": 0, "genotype": ["x"], "metrics": {}}',
        '{"generation": 0, "genotype": [0, 1], "metrics": [1.0]}',
        '{"generation": 0, "genotype": [0, 1], "metrics": {"val_acc": {}}}',
    ],
)
def test_corrupt_middle_line_is_named_and_nothing_is_changed(journal: Path, line: str) -> None:
    lines = journal.read_text().splitlines()
    lines[2] = line
    journal.write_text("\n".join(lines) + "\n")
    before = journal.read_bytes()
    for _ in range(2):  # the second time shows that the first one let go of the lock
        with pytest.raises(ValueError, match="is corrupt in line 3 of 6"):
            Archive(journal)
    with pytest.raises(ValueError, match="is corrupt in line 3 of 6"):
        read_archive(journal)
    assert journal.read_bytes() == before


@pytest.mark.parametrize(("start", "end", "kept"), [(3, 4, 3), (4, 5, 4), (3, 6, 3), (4, 6, 4)])
def test_zeros_in_the_last_generation_are_what_a_power_cut_left(
    journal: Path, start: int, end: int, kept: int
) -> None:
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    zeros = b"\0" * len(b"".join(lines[start:end]))
    journal.write_bytes(b"".join(lines[:start]) + zeros + b"".join(lines[end:]))
    archive = Archive(journal)
    assert len(archive.trials) == kept
    assert len(archive.notes) == 1
    assert archive.recorded(0, [t.genotype for t in generation(0)]) == generation(0)
    assert archive.recorded(1, [t.genotype for t in generation(1)]) is None
    archive.extend(generation(1))
    archive.close()
    assert journal.read_bytes() == whole


def test_zeros_before_the_last_generation_are_corruption(journal: Path) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b"\0" * len(lines[1]) + b"".join(lines[2:]))
    with pytest.raises(ValueError, match="is corrupt in line 2 of 5"):
        Archive(journal)


@pytest.mark.parametrize("keep", [1, 2])
def test_partial_generation_is_dropped_and_extended_to_the_same_bytes(journal: Path, keep: int) -> None:
    whole = journal.read_bytes()
    lines = whole.splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[: 3 + keep]))
    archive = Archive(journal)
    assert archive.recorded(0, [t.genotype for t in generation(0)]) == generation(0)
    assert archive.recorded(1, [t.genotype for t in generation(1)]) is None
    assert journal.read_bytes() == b"".join(lines[:3])
    archive.extend(generation(1))
    archive.close()
    assert archive.trials == generation(0) + generation(1)
    assert journal.read_bytes() == whole


def test_partial_generations_may_be_dropped_again_and_again(journal: Path) -> None:
    whole = journal.read_bytes()
    archive = Archive(journal)
    for _ in range(3):
        archive.extend(generation(2)[:1])
        assert archive.recorded(2, [t.genotype for t in generation(2)]) is None
        assert journal.read_bytes() == whole
    archive.extend(generation(2))
    archive.extend(generation(3)[:2])
    assert archive.recorded(3, [t.genotype for t in generation(3)]) is None
    archive.close()
    assert read_archive(journal) == generation(0) + generation(1) + generation(2) == archive.trials


def test_torn_line_and_partial_generation_together(journal: Path) -> None:
    whole = journal.read_bytes()
    journal.write_bytes(whole[:-20])
    archive = Archive(journal)
    assert archive.recorded(1, [t.genotype for t in generation(1)]) is None
    archive.extend(generation(1))
    archive.close()
    assert journal.read_bytes() == whole


@pytest.mark.parametrize("population", [[(0, 0), (0, 1), (9, 9)], [(0, 1), (0, 0), (0, 2)], [(0, 0), (0, 1)]])
def test_other_population_is_refused(journal: Path, population: list[Genotype]) -> None:
    archive = Archive(journal)
    with pytest.raises(ValueError, match="generation 0 of the archive holds other architectures"):
        archive.recorded(0, population)
    archive.close()
    assert len(read_archive(journal)) == 6


def test_two_writers_are_refused(journal: Path) -> None:
    archive = Archive(journal)
    with pytest.raises(ValueError, match="another process is writing"):
        Archive(journal)
    assert len(read_archive(journal)) == 6  # reading needs no lock
    archive.close()
    Archive(journal).close()


def test_nan_never_reaches_the_journal(journal: Path) -> None:
    before = journal.read_bytes()
    archive = Archive(journal)
    with pytest.raises(ValueError, match="JSON"):
        archive.extend([trial(2, 0, generation=2), trial(2, 1, acc=math.nan, generation=2)])
    archive.close()
    assert journal.read_bytes() == before


def test_to_json_nested() -> None:
    assert to_json({"a": [math.inf, (1, 2.5)], "b": None}) == '{"a": [null, [1, 2.5]], "b": null}'


# --- the store -----------------------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'store' / 'evaluations.sqlite'}"


def test_floats_return_bit_for_bit(url: str) -> None:
    values = [0.1, 1 / 3, 2**-1074, 1.7976931348623157e308, math.pi * 1e-10, 0.0, -0.0, 1e16 + 2, math.inf]
    answers = {(k,): {"rmi": value, "extra": -1.5} for k, value in enumerate(values)}
    store = EvaluationStore(url, "run")
    store.put(KEY, answers)
    store.close()
    store = EvaluationStore(url, "other")
    found = store.get(KEY, [(k,) for k in range(20)])
    store.close()
    assert {g: {m: v.hex() for m, v in row.items()} for g, row in found.items()} == {
        g: {m: v.hex() for m, v in row.items()} for g, row in answers.items()
    }


def test_first_writer_wins_and_pays(url: str) -> None:
    first, second = EvaluationStore(url, "first"), EvaluationStore(url, "second")
    first.put(KEY, {(0,): {"rmi": 1.0}})
    second.put(KEY, {(0,): {"rmi": 2.0}, (1,): {"rmi": 3.0}})
    assert first.get(KEY, [(0,), (1,)]) == {(0,): {"rmi": 1.0}, (1,): {"rmi": 3.0}}
    assert (first.paid("rmi"), second.paid("rmi"), first.paid("host")) == (1, 1, 0)
    first.close()
    second.close()


def test_every_part_of_the_key_separates() -> None:
    store = EvaluationStore(None, "run")
    keys = [
        KEY,
        ("host", *KEY[1:]),
        ("rmi", "darts", *KEY[2:]),
        ("rmi", "toy", "mnist", "v1"),
        (*KEY[:3], "v2"),
    ]
    for number, key in enumerate(keys):
        store.put(key, {(1, 2): {"rmi": float(number)}})
    assert [store.get(key, [(1, 2)])[1, 2]["rmi"] for key in keys] == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert store.get(KEY, [(12,), (1, 2, 0), (2, 1)]) == {}
    store.close()


def test_many_genotypes_at_once() -> None:
    store = EvaluationStore(None, "run")
    answers = {(k // 100, k % 100): {"rmi": float(k)} for k in range(2345)}
    store.put(KEY, answers)
    store.put(KEY, {})
    assert store.get(KEY, [*answers, (99, 99)]) == answers
    assert store.get(KEY, []) == {}
    assert store.paid("rmi") == 2345
    store.close()


def test_not_a_database(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("these are my notes, " * 100)
    with pytest.raises(ValueError, match=r"notes\.txt: file is not a database"):
        EvaluationStore(f"sqlite:///{path}", "run")
    assert path.read_text() == "these are my notes, " * 100


def test_a_database_of_somebody_else(tmp_path: Path) -> None:
    path = tmp_path / "photos.sqlite"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE photos (name TEXT)")
    connection.commit()
    connection.close()
    with pytest.raises(ValueError, match="is a database, but not an evaluation store of hwnas"):
        EvaluationStore(f"sqlite:///{path}", "run")
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("photos",)]
    connection.close()


def test_another_schema_version(tmp_path: Path) -> None:
    path = tmp_path / "old.sqlite"
    EvaluationStore(f"sqlite:///{path}", "run").close()
    connection = sqlite3.connect(path)
    connection.execute("UPDATE hwnas_schema SET version = 99")
    connection.commit()
    connection.close()
    with pytest.raises(ValueError, match="has schema version 99, this hwnas needs 2"):
        EvaluationStore(f"sqlite:///{path}", "run")


def test_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(0o555)
    if os.access(folder, os.W_OK):
        pytest.skip("this user may write everywhere")
    with pytest.raises(ValueError, match="unable to open database file"):
        EvaluationStore(f"sqlite:///{folder / 'evaluations.sqlite'}", "run")


def test_a_folder_is_not_a_database(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unable to open database file"):
        EvaluationStore(f"sqlite:///{tmp_path}", "run")


@pytest.mark.parametrize(
    "bad", ["evaluations.sqlite", "nonsense://host/db", "sqlite+nonsense:///x", "mysql://host/db"]
)
def test_bad_url_shows_the_form(bad: str) -> None:
    with pytest.raises(ValueError, match=r"store\.url .* cannot be used .*use sqlite:///<file>") as error:
        EvaluationStore(bad, "run")
    assert bad in str(error.value)


def write(url: str, worker: int, barrier: object, num: int) -> None:
    for attempt in range(15):  # stores that do not exist yet: all create them at the same moment
        barrier.wait()  # type: ignore[attr-defined]
        EvaluationStore(f"{url}-{attempt}", "run").close()
    store = EvaluationStore(url, f"run{worker}")
    for start in range(0, num, 50):
        rows = range(start, start + 50)
        store.put(KEY, {(worker, k): {"rmi": float(k)} for k in rows})
        store.put(KEY, {(77, k): {"rmi": float(1000 * worker + k)} for k in rows})
    store.close()


def test_processes_write_at_once_and_nothing_is_lost(url: str) -> None:
    workers, num = 4, 500
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(workers, timeout=30)  # one that fails must not leave the others waiting
    processes = [context.Process(target=write, args=(url, w, barrier, num)) for w in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * workers

    store = EvaluationStore(url, "reader")
    own = {(w, k): {"rmi": float(k)} for w in range(workers) for k in range(num)}
    assert store.get(KEY, list(own)) == own
    shared = store.get(KEY, [(77, k) for k in range(num)])
    assert len(shared) == num
    for start in range(0, num, 50):  # one transaction each: one of the writers won all of its rows
        winners = {(shared[77, k]["rmi"] - k) / 1000 for k in range(start, start + 50)}
        assert len(winners) == 1
        assert winners <= {0.0, 1.0, 2.0, 3.0}
    store.close()
    connection = sqlite3.connect(url.removeprefix("sqlite:///"))
    assert connection.execute("SELECT version FROM hwnas_schema").fetchall() == [(2,)]
    counts = dict(connection.execute("SELECT run, count(*) FROM evaluations GROUP BY run").fetchall())
    connection.close()
    assert sum(counts.values()) == (workers + 1) * num
    assert min(counts.values()) >= num


# --- the cached evaluator ------------------------------------------------------------------------------


class Counting(Evaluator):
    """Answers the sum of the genotype; remembers what it was asked."""

    name = "counting"
    metrics = {"rmi": "max"}  # noqa: RUF012

    def __init__(self, version: str = "1") -> None:
        self.version = version
        self.asked: list[list[Genotype]] = []

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        return self.version

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        self.asked.append(list(genotypes))
        if (9, 9) in genotypes:
            raise RuntimeError("out of memory")
        return [{"rmi": math.nan if g == (8, 8) else sum(g) / 7} for g in genotypes]

    def report(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        return [{"test_acc": float(g[0])} for g in genotypes]


SPACE = Toy(2, 10)


@pytest.fixture
def store() -> EvaluationStore:
    return EvaluationStore(None, "run")


def answer(evaluator: CachedEvaluator, population: list[Genotype]) -> list[dict[str, float]]:
    evaluator.prepare(SPACE, population)
    return evaluator.evaluate(population)


def test_each_genotype_is_paid_once(store: EvaluationStore) -> None:
    inner = Counting()
    evaluator = CachedEvaluator(inner, store, "digits")
    population = [(1, 1), (2, 2), (1, 1), (1, 1)]
    assert answer(evaluator, population) == [{"rmi": 2 / 7}, {"rmi": 4 / 7}, {"rmi": 2 / 7}, {"rmi": 2 / 7}]
    assert inner.asked == [[(1, 1), (2, 2)]]
    assert answer(evaluator, [(3, 3), (2, 2)]) == [{"rmi": 6 / 7}, {"rmi": 4 / 7}]
    assert inner.asked == [[(1, 1), (2, 2)], [(3, 3)]]
    assert evaluator.saved == 3
    assert store.paid("counting") == 3
    assert answer(evaluator, []) == []
    assert evaluator.report([(4, 1)]) == [{"test_acc": 4.0}]
    store.close()


def test_second_evaluator_over_the_same_store_pays_nothing(store: EvaluationStore) -> None:
    answer(CachedEvaluator(Counting(), store, "digits"), [(1, 1), (2, 2)])
    inner = Counting()
    evaluator = CachedEvaluator(inner, store, "digits")
    assert answer(evaluator, [(2, 2), (1, 1)]) == [{"rmi": 4 / 7}, {"rmi": 2 / 7}]
    assert (inner.asked, evaluator.saved) == ([], 2)
    store.close()


def test_another_version_or_dataset_pays_again(store: EvaluationStore) -> None:
    inner = Counting()
    evaluator = CachedEvaluator(inner, store, "digits")
    for version in ("1", "2", "1"):
        inner.version = version
        answer(evaluator, [(1, 1)])
        assert evaluator.version == version
    assert len(inner.asked) == 2
    answer(CachedEvaluator(inner, store, "mnist"), [(1, 1)])
    assert len(inner.asked) == 3
    store.close()


def test_nan_names_the_genotype_and_nothing_is_stored(store: EvaluationStore) -> None:
    evaluator = CachedEvaluator(Counting(), store, "digits")
    with pytest.raises(
        ValueError, match=r"^Counting\.evaluate\(\) returned rmi=nan for \[8, 8\]; a metric is"
    ):
        answer(evaluator, [(1, 1), (8, 8)])
    assert store.paid("counting") == 0
    store.close()


def test_failing_evaluator_stores_nothing_of_the_population(store: EvaluationStore) -> None:
    inner = Counting()
    evaluator = CachedEvaluator(inner, store, "digits")
    answer(evaluator, [(0, 1)])
    with pytest.raises(RuntimeError, match="out of memory"):
        answer(evaluator, [(0, 1), (1, 1), (9, 9)])
    assert store.paid("counting") == 1
    answer(evaluator, [(1, 1)])  # the group is paid anew
    assert inner.asked[-1] == [(1, 1)]
    store.close()


def test_a_population_is_stored_in_one_transaction(url: str, tmp_path: Path) -> None:
    store = EvaluationStore(url, "run")
    answer(CachedEvaluator(Counting(), store, "digits"), [(k, 0) for k in range(6)])
    with pytest.raises(ValueError, match="JSON"):
        store.put(KEY, {(0,): {"rmi": 1.0}, (1,): {"rmi": math.nan}})
    assert store.get(KEY, [(0,)]) == {}
    store.close()
    connection = sqlite3.connect(tmp_path / "store" / "evaluations.sqlite")
    rows = connection.execute("SELECT count(*), count(DISTINCT created) FROM evaluations").fetchall()
    connection.close()
    assert rows == [(6, 1)]  # one time stamp per transaction


# --- hypervolume ---------------------------------------------------------------------------------------


def test_hypervolume_by_hand() -> None:
    # Costs (-acc, ms): (-0.2, 1), (-0.6, 5), (-0.4, 2); reference (-0.2, 5), box 0.4 x 4 = 1.6.
    # Above the reference only (-0.4, 2) spans an area: 0.2 * 3 = 0.6, share 0.375.
    hypervolume = Hypervolume([ACC, LATENCY])
    trials = [trial(0, acc=0.2, ms=1.0), trial(1, acc=0.6, ms=5.0), trial(2, acc=0.4, ms=2.0)]
    assert hypervolume.add(trials) == pytest.approx(0.375)
    # (-0.6, 3): adds 0.4 * 2 - 0.2 * 2 = 0.4 -> 1.0 / 1.6
    assert hypervolume.add([trial(3, acc=0.6, ms=3.0)]) == pytest.approx(0.625)
    # beyond the first box: (-1.0, 3) spans 0.8 * 2 = 1.6, with 0.2 * 1 of (-0.4, 2): 1.8 / 1.6
    assert hypervolume.add([trial(4, acc=1.0, ms=3.0)]) == pytest.approx(1.125)
    # worse than the reference in one objective: nothing
    assert hypervolume.add([trial(5, acc=0.1, ms=0.5)]) == pytest.approx(1.125)
    assert sorted(t.genotype for t in hypervolume.front) == [(0,), (2,), (4,), (5,)]


def test_hypervolume_ignores_unsupported() -> None:
    hypervolume = Hypervolume([ACC, LATENCY])
    assert hypervolume.add([trial(0, acc=0.9, ms=math.inf)]) == 0.0
    trials = [trial(1, acc=0.2, ms=1.0), trial(2, acc=0.6, ms=5.0), trial(3, acc=0.4, ms=2.0)]
    assert hypervolume.add([*trials, trial(4, acc=1.0, ms=math.inf)]) == pytest.approx(0.375)
    assert hypervolume.add([trial(5, acc=1.0, ms=math.inf)]) == pytest.approx(0.375)


def test_hypervolume_of_one_point_and_of_nothing() -> None:
    hypervolume = Hypervolume([ACC, LATENCY])
    assert hypervolume.add([]) == 0.0
    assert hypervolume.add([trial(0, acc=0.5, ms=2.0)]) == 0.0
    assert hypervolume.add([trial(1, acc=0.75, ms=1.5)]) == pytest.approx(0.25 * 0.5)  # spans of 0 count as 1


def test_hypervolume_starts_anew_in_the_same_units() -> None:
    hypervolume = Hypervolume([ACC, LATENCY])
    trials = [trial(0, acc=0.2, ms=1.0), trial(1, acc=0.6, ms=5.0), trial(2, acc=0.4, ms=2.0)]
    hypervolume.add(trials)
    hypervolume.forget()
    assert hypervolume.front == []
    assert hypervolume.add([trial(3, acc=0.6, ms=3.0)]) == pytest.approx(0.4 * 2 / 1.6)


def test_hypervolume_never_falls() -> None:
    rng = np.random.default_rng(0)
    hypervolume = Hypervolume([ACC, LATENCY])
    curve = [
        hypervolume.add([trial(g, k, acc=rng.random(), ms=rng.random()) for k in range(4)]) for g in range(40)
    ]
    assert all(b >= a for a, b in itertools.pairwise(curve))
    assert curve[-1] > curve[0]


def test_store_rows_are_readable_json(url: str, tmp_path: Path) -> None:
    store = EvaluationStore(url, "run-7")
    store.put(KEY, {(3, 12): {"rmi": 2.5, "latency_ms": math.inf}})
    store.close()
    connection = sqlite3.connect(tmp_path / "store" / "evaluations.sqlite")
    row = connection.execute(
        "SELECT evaluator, space, dataset, version, genotype, metrics, run FROM evaluations"
    ).fetchone()
    connection.close()
    assert row[:5] == (*KEY, "3,12")
    assert json.loads(row[5]) == {"rmi": 2.5, "latency_ms": None}
    assert row[6] == "run-7"
