from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import math
import multiprocessing
import os
import shutil
import sqlite3
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import sqlalchemy as sql

from hwnas.cli.store import command
from hwnas.core import Evaluator, Genotype, Objective, SearchSpace, Trial
from hwnas.files import to_json
from hwnas.searches.indicators import Hypervolume
from hwnas.spaces.toy import Toy
from hwnas.store import evaluations as store_module
from hwnas.store.archive import Archive, read_archive
from hwnas.store.cache import CachedEvaluator
from hwnas.store.evaluations import EvaluationStore, Row, open_for_run

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
    assert archive.notes == [f"dropped the unfinished last line 7 of {journal}"]
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


@pytest.fixture
def ordinary() -> Iterator[Path]:
    """A folder of an ordinary user, whom permissions hold back; tests may run as root."""
    for module in ("rich.console", "rich.table", "colorsys"):  # Python itself may be root's
        importlib.import_module(module)
    folder = Path(tempfile.mkdtemp(prefix="store"))
    if os.geteuid() == 0:
        os.chown(folder, 65534, -1)
        os.seteuid(65534)
    yield folder
    os.seteuid(os.getuid())
    folder.chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.parametrize("closed", ["folder", "file", "both"])
def test_what_may_only_be_read_is_read(ordinary: Path, closed: str, capsys) -> None:
    path = ordinary / "evaluations.sqlite"
    with contextlib.closing(EvaluationStore(f"sqlite:///{path}", "first")) as store:
        store.put(KEY, {(0,): {"rmi": 1.0}})
    before = path.read_bytes()
    path.chmod(0o644 if closed == "folder" else 0o444)
    ordinary.chmod(0o755 if closed == "file" else 0o555)
    with contextlib.closing(EvaluationStore(f"sqlite:///{path}", "second")) as store:
        assert not store.writable
        assert store.get(KEY, [(0,), (1,)]) == {(0,): {"rmi": 1.0}}
        assert [(part.key, part.evaluations) for part in store.contents()] == [(KEY, 1)]
        with pytest.raises(ValueError, match=r"evaluations\.sqlite cannot be written, only read$"):
            store.put(KEY, {(1,): {"rmi": 2.0}})
    assert command(["show", f"store.dir={ordinary}"]) == 0
    assert "1 evaluations, 0 in progress" in capsys.readouterr().out
    assert command(["prune", "keep=0", "yes=true", f"store.dir={ordinary}"]) == 1
    assert "cannot be written, only read" in capsys.readouterr().err
    assert path.read_bytes() == before


def test_a_store_that_others_write_is_read_where_it_may_not_be_written(ordinary: Path) -> None:
    path = ordinary / "evaluations.sqlite"
    with contextlib.closing(EvaluationStore(f"sqlite:///{path}", "writer")) as writer:
        ordinary.chmod(0o555)
        with contextlib.closing(EvaluationStore(f"sqlite:///{path}", "reader")) as reader:
            assert not reader.writable
            for k in range(3):
                writer.put(KEY, {(k,): {"rmi": float(k)}})
                assert reader.get(KEY, [(k,)]) == {(k,): {"rmi": float(k)}}
        ordinary.chmod(0o755)


def test_a_run_reads_what_it_may_not_write_and_keeps_what_is_new(ordinary: Path) -> None:
    path, folder = ordinary / "evaluations.sqlite", ordinary / "run"
    folder.mkdir()
    url, warned = f"sqlite:///{path}", []
    with contextlib.closing(EvaluationStore(url, "first")) as store:
        answer(CachedEvaluator(Counting(), store, "digits"), [(1, 1)])
    path.chmod(0o444)
    inner = Counting()
    for _ in range(2):  # the second session finds what the first has paid for
        with contextlib.closing(open_for_run(url, "second", folder, warned.append)) as store:
            told = answer(CachedEvaluator(inner, store, "digits"), [(1, 1), (2, 2)])
            assert told == [{"rmi": 2 / 7}, {"rmi": 4 / 7}]
            assert store.paid("counting") == 1
    assert inner.asked == [[(2, 2)]]
    kept = folder / "evaluations.sqlite"
    said = f"store {url} can only be read: its answers are used, new ones are kept in {kept}"
    assert warned == [said, said]
    path.chmod(0o644)
    with contextlib.closing(open_for_run(url, "second", folder, warned.append)) as store:
        assert (len(warned), store.paid("counting")) == (2, 1)
        assert [part.evaluations for part in store.contents()] == [2]


def test_a_locked_store_is_tried_again_and_given_up_in_one_line(url: str) -> None:
    warned: list[str] = []
    store = EvaluationStore(url, "run", patience=4.0, warn=warned.append)
    lock = sqlite3.connect(url.removeprefix("sqlite:///"), check_same_thread=False, isolation_level=None)
    lock.execute("BEGIN IMMEDIATE")
    free = threading.Timer(1.5, lambda: lock.execute("ROLLBACK"))  # one attempt waits for 0.4 s
    free.start()
    store.put(KEY, {(0,): {"rmi": 1.0}})
    free.join()
    assert store.get(KEY, [(0,)]) == {(0,): {"rmi": 1.0}}
    assert warned == [f"store {url}: database is locked; trying again for 4 s"]
    store.close()
    store = EvaluationStore(url, "run", patience=0.2)
    lock.execute("BEGIN IMMEDIATE")
    with pytest.raises(ValueError, match=r"evaluations\.sqlite: database is locked; tried again for 0 s$"):
        store.put(KEY, {(1,): {"rmi": 1.0}})
    lock.close()
    store.close()


def test_a_server_that_is_restarted_or_ends_a_connection_is_asked_again(
    postgres: str, postgres_process: tuple[str, Callable[[], None]]
) -> None:
    warned: list[str] = []
    with contextlib.closing(EvaluationStore(postgres, "run", warn=warned.append)) as store:
        ends = iter([True, False])

        def ended_once(connection: sql.Connection) -> int:
            if next(ends):
                connection.exec_driver_sql("SELECT pg_terminate_backend(pg_backend_pid())")
            return 7

        assert store._transact(ended_once) == 7
        restart = threading.Thread(target=postgres_process[1])
        restart.start()
        for k in range(20):
            store.put(KEY, {(k,): {"rmi": float(k)}})
            time.sleep(0.05)
        restart.join()
        assert len(store.get(KEY, [(k,) for k in range(20)])) == store.paid("rmi") == 20


def test_transactions_that_conflict_are_repeated(postgres: str) -> None:
    with contextlib.closing(EvaluationStore(postgres, "run")) as store:
        store.put(KEY, {(0,): {"rmi": 1.0}})
        tries = []

        def serial(connection: sql.Connection) -> None:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            connection.exec_driver_sql("SELECT run FROM evaluations").all()
            if not tries:
                with other.begin() as between:
                    between.exec_driver_sql("UPDATE evaluations SET run = 'other'")
            tries.append(1)
            connection.exec_driver_sql("UPDATE evaluations SET created = 0")

        other = sql.create_engine(postgres)
        store._transact(serial)
        other.dispose()
        assert len(tries) == 2
        with pytest.raises(ValueError, match=r'^store .*: relation "nothing" does not exist'):
            store._transact(lambda connection: connection.exec_driver_sql("SELECT * FROM nothing"))


def test_a_wrong_address_is_one_line_at_once(postgres: str) -> None:
    start = time.monotonic()
    with pytest.raises(ValueError, match=r'^store postgresql.*"nowhere" does not exist') as error:
        EvaluationStore(postgres.rpartition("/")[0] + "/nowhere", "run")
    assert "\n" not in str(error.value)
    assert time.monotonic() - start < 10


def test_a_role_that_may_only_read_reads(postgres: str) -> None:
    engine = sql.create_engine(postgres, isolation_level="AUTOCOMMIT")
    with contextlib.closing(EvaluationStore(postgres, "run")) as store:
        assert store.writable
        store.put(KEY, {(0,): {"rmi": 1.0}})
    role = f"reader_{uuid.uuid4().hex[:8]}"
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role} LOGIN")
        connection.exec_driver_sql(f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}")
    engine.dispose()
    with contextlib.closing(EvaluationStore(postgres.replace("hwnas@", f"{role}@"), "run")) as store:
        assert not store.writable
        assert store.get(KEY, [(0,)]) == {(0,): {"rmi": 1.0}}


@pytest.mark.parametrize("auto_vacuum", [True, False])
def test_writers_get_their_turn_between_the_batches_of_a_prune(
    url: str, auto_vacuum: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BATCH", 100)
    path = Path(url.removeprefix("sqlite:///"))
    with contextlib.closing(EvaluationStore(url, "run")) as store:
        old, new = KEY, (*KEY[:3], "new")
        store.add([Row(old, f"{i:05d}" + ",1" * 200, {"rmi": float(i)}, "run", 0.0) for i in range(400)])
        if not auto_vacuum:  # as earlier versions made them
            store.close()
            connection = sqlite3.connect(path, isolation_level=None)
            connection.execute("PRAGMA journal_mode=DELETE")
            connection.execute("PRAGMA auto_vacuum=NONE")
            connection.execute("VACUUM")
            connection.close()
        held: list[int] = []
        turns = threading.Event()

        def write() -> None:
            with contextlib.closing(EvaluationStore(url, "writer")) as other:
                while not turns.wait(0.02):
                    other.put(new, {(len(held),): {"rmi": 0.0}})
                    held.append(sum(part.evaluations for part in other.contents() if part.key == old))

        writer = threading.Thread(target=write)
        writer.start()
        while not held:
            time.sleep(0.01)
        before = store.size()
        store.remove([old])
        turns.set()
        writer.join()
        assert {400, 300, 200, 100, 0} & set(held) >= {300, 200, 100}  # it wrote between the batches
        assert [part.key for part in store.contents()] == [new]
        assert store.size() < before / 3
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA auto_vacuum").fetchall() == [(2,)]
    assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    connection.close()


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
    assert (evaluator.saved, evaluator.computed) == (3, 3)
    assert evaluator.seconds_per_new == evaluator.spent / 3 > 0
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
    assert (evaluator.computed, evaluator.seconds_per_new) == (0, None)
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
