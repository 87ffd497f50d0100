"""What a search remembers: its own archive (append-only JSONL), and evaluations shared by all runs (SQL)."""

from __future__ import annotations

import json
import math
import os
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from hwnas import password
from hwnas.core import (
    Evaluator,
    FloatArray,
    Genotype,
    Objective,
    SearchSpace,
    Trial,
    checked_answers,
    costs,
    non_dominated,
    unique,
)
from hwnas.files import enter, sync_folder, to_json
from hwnas.foreign import read_json, shaped
from hwnas.processes import gone, identity
from hwnas.progress import progress
from hwnas.workers import Workers

SCHEMA_VERSION = 2

LEASE_SECONDS = 10.0
"""A claim that has not been renewed for so long is anybody's; it is renewed four times as often."""

PATIENCE = 60.0
"""A call of a database that is locked, was restarted or is out of reach is repeated for so many seconds."""

BATCH = 20_000
"""Rows that one transaction of `EvaluationStore.remove` takes; others wait for it, a tenth of a second."""

PAUSE = 0.15
"""Seconds between these transactions: those who wait for SQLite's lock look every 0.1 s."""

PAGES = 1_000
"""Free pages of 4 kB that one transaction gives back."""

OWN_STORE = "evaluations.sqlite"
"""New evaluations of a run whose store cannot be written, in the run's folder."""

PLAN = "plan.json"
"""A run's objectives, limits as numbers, and goals of all metrics, in the run's folder from its start."""

T = TypeVar("T")

_NETWORK = {"arch": str, "genotype": [int], "metrics": {str: (float, None)}}
_TABLE = [[(float, None)]]
_NUMBERS = {str: (float, None)}
_GOAL = ("max", "min")
PLAN_SHAPE = {
    "objectives": [{"metric": str, "goal": _GOAL}],
    "limits": {str: float},
    "goals?": {str: _GOAL},
}
"""What plan.json holds, and result.json repeats, as `foreign.shaped` reads it; older ones have no goals."""

RESULT_SHAPE = {
    **PLAN_SHAPE,
    **{f"{group}?": str for group in ("strategy", "search_space", "dataset", "evaluator", "device")},
    "evaluations": {"asked": int, "unique": int, "cached": int},
    "seconds": {"total": float, str: float},
    "best": (_NETWORK, None),
    "result": [_NETWORK],
    "virtual_seconds?": (float, None),
    "energy_kwh?": (float, None),
    "hypervolume?": ([float], None),
    "stationary?": bool,
    "truth?": (
        {
            "best": (_NETWORK, None),
            "regret": _NUMBERS,
            "hypervolume_ratio": [float],
            "igd_plus": [(float, None)],
            "front": [[float]],
        },
        None,
    ),
    "transfer?": (
        {
            "limits": {str: {str: float}},
            "main": {str: str},
            "among": str,
            "rows": [
                {
                    "device": (str, None),
                    "network": (_NETWORK, None),
                    "regret": _NUMBERS,
                    "excess": _NUMBERS,
                }
            ],
        },
        None,
    ),
    "yardsticks?": ({str: _NETWORK}, None),
    "looked_up?": ({str: {"value": float, "regret": float, "by_flops?": (float, None)}}, None),
    "effects?": {str: {"mean": (float, None), "added": _TABLE, "r2": (float, None), "num": int}},
    "sums?": {str: {"base": float, "added": _TABLE}},
    "deciles?": {str: [(float, None)]},
    "reports?": {str: [(float, None)]},
    "versions?": {str: str},
    "population?": {"different": int, "size": int},
}
"""What the result.json of a finished search holds; older ones lack some of what ends in "?"."""

ANSWER_SHAPE = {
    "status": "finished",
    "objectives": PLAN_SHAPE["objectives"],
    "goals?": PLAN_SHAPE["goals?"],
    "best": ({"arch": str, "metrics?": _NUMBERS}, None),
}
"""What other commands need of it."""

_MALFORMED = (
    *(ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError),
)  # whatever a line that is no trial can raise


def metrics_from_json(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Metrics as read from JSON: null is `inf`; names are kept once, not per trial."""
    return {sys.intern(name): math.inf if value is None else float(value) for name, value in metrics.items()}


class Archive:
    """Every trial of a run, in order; kept on disk so that a killed run can be replayed.

    Args:
        path: The journal, one JSON line per trial; None keeps the archive in memory only.

    Attributes:
        trials: All trials, in order.
        notes: What was repaired when the journal was opened, one sentence each.

    Raises:
        ValueError: A line in the middle of the journal is corrupt (named), or another process writes it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.trials: list[Trial] = []
        self.notes: list[str] = []
        self._starts: list[tuple[int, int]] = []  # per generation its first trial, and where its line starts
        self._file = None
        if path is None:
            return
        enter(path.parent)
        self._file = path.open("a+b")
        _lock(self._file, path)
        self._file.seek(0)
        data = self._file.read()
        try:
            self.trials, self._starts, end = _parse(path, data)
            if end < len(data):
                several = b"\n" in data[end:-1]
                what = "what a power cut left, from" if several else "the torn last"
                self.notes.append(f"dropped {what} line {len(self.trials) + 1} of {path}")
                self._file.truncate(end)
            sync_folder(path.parent)  # that the file is there
        except (ValueError, OSError):
            self.close()
            raise

    def recorded(self, generation: int, population: Sequence[Genotype]) -> list[Trial] | None:
        """The trials of a generation if the journal holds all of them; a part of them is dropped.

        Raises:
            ValueError: The journal holds other architectures than `population`.
        """
        if generation >= len(self._starts):
            return None
        first, offset = self._starts[generation]
        end = self._starts[generation + 1][0] if generation + 1 < len(self._starts) else len(self.trials)
        trials = self.trials[first:end]
        if [trial.genotype for trial in trials] != list(population[: len(trials)]):
            raise ValueError(
                f"generation {generation} of the archive holds other architectures than the strategy asks "
                "for: it was written with other settings or by another version"
            )
        if len(trials) < len(population):
            if self._file is not None:
                self._file.truncate(offset)
            del self.trials[first:], self._starts[generation:]
            return None
        return trials

    def extend(self, trials: Sequence[Trial]) -> None:
        """Append trials of the last generation or the next, on disk before in memory."""
        offset = 0
        if self._file is not None:
            offset = self._file.seek(0, os.SEEK_END)
            try:
                self._file.write(b"".join(map(_line, trials)))
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:  # a full disk; what was written of the generation is dropped on resuming
                raise OSError(error.errno, error.strerror, self._file.name) from None
        if trials and trials[0].generation == len(self._starts):
            self._starts.append((len(self.trials), offset))
        self.trials.extend(trials)

    def close(self) -> None:
        """Close the journal and release it."""
        if self._file is not None:
            with suppress(OSError):  # of what could not be written, and was said then
                self._file.close()
            self._file = None


def read_archive(path: Path) -> list[Trial]:
    """The whole trials of a journal, without locking or repairing it; a torn last line is left out.

    Raises:
        ValueError: A line in the middle is corrupt (named).
    """
    return _parse(path, path.read_bytes())[0]


def _parse(path: Path, data: bytes) -> tuple[list[Trial], list[tuple[int, int]], int]:
    """Trials, what `Archive._starts` is, and where the last whole line ends."""
    trials: list[Trial] = []
    starts: list[tuple[int, int]] = []
    end = 0
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("no line end")
            trial = _trial(line)
            if trial.generation not in {max(len(starts) - 1, 0), len(starts)}:
                raise ValueError(
                    f"generation {trial.generation} after {max(len(starts) - 1, 0)}: lines are missing"
                )
        except _MALFORMED as error:
            if number < len(lines) and not _unsynced(line, lines[number:], len(starts)):
                raise ValueError(
                    f"{path} is corrupt in line {number} of {len(lines)} ({error}); "
                    "restore it from a copy, or start a new run"
                ) from None
            break
        if trial.generation == len(starts):
            starts.append((len(trials), end))
        trials.append(trial)
        end += len(line)
    return trials, starts, end


def _unsynced(line: bytes, rest: Sequence[bytes], following: int) -> bool:
    """Whether a line and what follows are the last generation, of which a power cut left zeros.

    Args:
        line: What is no trial.
        rest: The lines after it.
        following: The generation after that of the last trial before the line; one before may be unfinished.
    """
    generations = set()
    for other in (line.strip(b"\0"), *rest):  # zeros swallow the line's end before the next trial
        with suppress(*_MALFORMED):
            generations.add(_trial(other).generation)
    return b"\0" in line and len(generations) <= 1 and generations <= {following - 1, following}


def _line(trial: Trial) -> bytes:
    record = {"generation": trial.generation, "genotype": trial.genotype, "metrics": dict(trial.metrics)}
    return (to_json(record) + "\n").encode()


def _trial(line: bytes) -> Trial:
    record = json.loads(line)
    genotype = tuple(int(op) for op in record["genotype"])
    metrics = metrics_from_json(record["metrics"])
    if not metrics or any(math.isnan(value) for value in metrics.values()):
        raise ValueError("metrics must be numbers or null, at least one")
    return Trial(genotype, metrics, int(record["generation"]))


def read_result(path: Path) -> dict[str, Any]:
    """A run's result.json.

    Raises:
        ValueError: Not the result of a finished run; names the file.
    """
    result = read_json(path, "is not the result of a finished search")
    try:
        shaped(result, ANSWER_SHAPE)
    except ValueError as error:
        raise ValueError(f"{path} is not the result of a finished search ({error})") from None
    return dict(result)


def _lock(file: Any, path: Path) -> None:
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks; two writers are the user's care there
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        file.close()
        raise ValueError(f"another process is writing {path}; wait for it or stop it first") from None


class Hypervolume:
    """Hypervolume of the trials so far, in units of the box that the first generation spans.

    The reference point is the worst value of every objective in the first generation, so that a curve never
    falls and a resumed run continues it. Unsupported trials are left out.

    Args:
        objectives: What spans the space; minimised after `core.costs`.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.objectives = objectives
        self._front: list[Trial] = []
        self._worst: FloatArray | None = None  # of the first generation, per objective
        self._span: FloatArray = np.ones(len(objectives))

    def forget(self) -> None:
        """Start anew, in the same units: what was told before cannot be compared with what comes."""
        self._front = []

    def add(self, trials: Sequence[Trial]) -> float:
        """The hypervolume once `trials` belong to it; 0 while no supported trial was seen."""
        from pymoo.indicators.hv import HV

        candidates = unique([*self._front, *trials])
        F = costs(candidates, self.objectives)
        rows = non_dominated(F)
        self._front = [candidates[row] for row in rows]
        finite = F[np.isfinite(F).all(axis=1)]
        if len(finite) == 0:
            return 0.0
        if self._worst is None:
            self._worst = finite.max(axis=0)
            span = self._worst - finite.min(axis=0)
            self._span = np.where(span > 0, span, 1.0)
        return float(HV(ref_point=np.zeros(len(self.objectives)))((F[rows] - self._worst) / self._span))

    @property
    def front(self) -> list[Trial]:
        """The non-dominated trials so far."""
        return self._front


KEY = ("evaluator", "space", "dataset", "version")
"""What an answer belongs to besides its genotype."""


def _key_columns() -> list[sql.Column[str]]:
    return [sql.Column(name, sql.String, primary_key=True) for name in (*KEY, "genotype")]


_metadata = sql.MetaData()
_evaluations = sql.Table(
    "evaluations",
    _metadata,
    *_key_columns(),
    sql.Column("metrics", sql.String, nullable=False),
    sql.Column("run", sql.String, nullable=False, index=True),
    sql.Column("created", sql.Float, nullable=False),
    sqlite_with_rowid=False,
)
_claims = sql.Table(
    "claims",
    _metadata,
    *_key_columns(),
    sql.Column("owner", sql.String, nullable=False, index=True),
    sql.Column("beat", sql.Integer, nullable=False),
    sqlite_with_rowid=False,
)
_schema = sql.Table("hwnas_schema", _metadata, sql.Column("version", sql.Integer, nullable=False))

Key = tuple[str, str, str, str]
"""Values of `KEY`, in order."""


@dataclass(frozen=True)
class Stored:
    """The evaluations of one key.

    Attributes:
        key: Evaluator, space, data set and version.
        evaluations: How many there are.
        runs: How many runs have added some.
        latest: When the last was added, in seconds since 1970.
        size: Bytes of their texts; what the database needs for them is more.
    """

    key: Key
    evaluations: int
    runs: int
    latest: float
    size: int


@dataclass(frozen=True)
class Row:
    """One evaluation as it is kept.

    Attributes:
        key: Evaluator, space, data set and version.
        genotype: Operation indices, separated by commas.
        metrics: Value per metric; `inf` is not supported.
        run: Identity of the run that added it.
        created: When, in seconds since 1970.
    """

    key: Key
    genotype: str
    metrics: Mapping[str, float]
    run: str
    created: float


_ALONE = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(201)"}
"""Lets one process at a time look for the tables and create them: runs of a sweep start together."""


class EvaluationStore:
    """Evaluations by key and genotype, shared by runs: SQLite (WAL) on one machine, any SQL server by URL.

    SQLite on a network file system is not safe; use a server there.

    Who is about to pay for an answer claims it, so that others wait instead of paying too. A claim counts the
    beats of its owner's heart and compares no clocks: it is taken over once it was seen unchanged for
    `lease` seconds, or at once when its owner was a process of this machine and container that is gone.

    Args:
        url: SQLAlchemy URL; None keeps the evaluations in memory.
        run: Identity of the run that writes, kept with every row.
        lease: Seconds after which a claim that is not renewed is taken over.
        patience: Seconds for which a call that failed for what may pass is repeated.
        warn: Called with a sentence when a call is going to be repeated.
        source: A store that only answers; what it has is not in this one. It is closed with this one.

    Attributes:
        shared: Whether other processes can see it.
        writable: Whether it may be written; false for a file or folder that may only be read.

    Raises:
        ValueError: Not a database, another schema version, out of reach, or an unknown kind of URL.
    """

    def __init__(
        self,
        url: str | None,
        run: str,
        *,
        lease: float = LEASE_SECONDS,
        patience: float = PATIENCE,
        warn: Callable[[str], None] = lambda sentence: None,
        source: EvaluationStore | None = None,
    ) -> None:
        url = password.found(url or "sqlite://")
        self.url = password.without(url)
        self.run = run
        self.lease = lease
        self.owner = f"{identity()}:{uuid.uuid4().hex[:8]}"
        self.writable = True
        self._patience, self._warn, self._source = patience, warn, source
        try:
            parsed = sql.make_url(url)
            if parsed.get_backend_name() not in _ALONE:
                raise ArgumentError(f"{parsed.get_backend_name()} is not one of {', '.join(_ALONE)}")
            # A server may have been restarted since we last asked.
            self._engine = sql.create_engine(parsed, pool_pre_ping=True)
        except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
            raise ValueError(
                f"store.url {self.url!r} cannot be used ({error}); "
                "use sqlite:///<file> or postgresql+psycopg://user@host/database"
            ) from None
        self.shared = parsed.get_backend_name() != "sqlite" or bool(parsed.database)
        insert = postgresql.insert if parsed.get_backend_name() == "postgresql" else sqlite.insert
        if parsed.get_backend_name() == "sqlite":
            path = Path(parsed.database).expanduser() if parsed.database else None
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
                self.writable = _writable(path)
            if path is not None and not self.writable:
                create = lambda: _read_only(path)  # noqa: E731
                self._engine = sql.create_engine("sqlite://", creator=create, poolclass=sql.NullPool)
            else:
                sql.event.listen(self._engine, "connect", _prepare_sqlite(patience))
        self._insert = insert(_evaluations).on_conflict_do_nothing()
        self._claim = insert(_claims).on_conflict_do_nothing()
        self._transact(self._open, again=_comes_up)

    def _open(self, connection: sql.Connection) -> None:
        """Look for the tables, create or complete them; one process at a time."""
        backend = self._engine.dialect.name
        if self.writable:
            connection.exec_driver_sql(_ALONE[backend])
        tables = sql.inspect(connection).get_table_names()
        if backend == "postgresql" and _schema.name in tables:
            self.writable = bool(connection.exec_driver_sql(_MAY_WRITE).scalar())
        if not tables and self.writable:
            _metadata.create_all(connection)
            connection.execute(_schema.insert().values(version=SCHEMA_VERSION))
        elif _schema.name not in tables:
            raise ValueError(f"store {self.url} is a database, but not an evaluation store of hwnas")
        version = connection.execute(sql.select(_schema.c.version)).scalar()
        if version == 1 and self.writable:  # had no claims
            _metadata.create_all(connection)
            connection.execute(_schema.update().values(version=SCHEMA_VERSION))
            version = SCHEMA_VERSION
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"store {self.url} has schema version {version}, this hwnas needs {SCHEMA_VERSION}; "
                "give another store.url or move the old store away"
            )

    def _transact(
        self,
        action: Callable[[sql.Connection], T],
        *,
        write: bool = False,
        alone: bool = False,
        again: Callable[[DBAPIError], bool] | None = None,
        patience: float | None = None,
    ) -> T:
        """What an action answers in a transaction of its own; repeated while it fails for what passes.

        Args:
            action: What to do; may be done again after it has been done.
            write: Whether it writes; SQLite's transactions must say so at their start to wait for their turn.
            alone: Outside of a transaction.
            again: Whether an error may pass; None: a lock, a conflict, or a server out of reach.
            patience: Seconds; None: the store's.

        Raises:
            ValueError: It failed for good; one line.
        """
        if write and not self.writable:
            raise ValueError(f"store {self.url} cannot be written, only read")
        again, patience = again or _passes, self._patience if patience is None else patience
        engine = self._engine.execution_options(isolation_level="AUTOCOMMIT") if alone else self._engine
        start, pause, said = time.monotonic(), 0.05, False
        while True:
            try:
                with engine.begin() as connection:
                    if write and self._engine.dialect.name == "sqlite":
                        connection.exec_driver_sql("BEGIN IMMEDIATE")
                    return action(connection)
            except DBAPIError as error:
                why = str(error.orig).strip().splitlines()[0]
                if "no password supplied" in why:
                    why += "; give store.url= with its password, or PGPASSWORD, or ~/.pgpass"
                spent = time.monotonic() - start
                if not again(error):
                    raise ValueError(f"store {self.url}: {why}") from None
                if spent + pause > patience:
                    raise ValueError(f"store {self.url}: {why}; tried again for {spent:.0f} s") from None
                if not said and spent > 1 and patience:
                    self._warn(f"store {self.url}: {why}; trying again for {patience:.0f} s")
                    said = True
            time.sleep(pause)
            pause = min(2 * pause, 0.5)

    def get(self, key: Key, genotypes: Sequence[Genotype]) -> dict[Genotype, dict[str, float]]:
        """The known answers among the genotypes."""
        names = {_name(genotype): genotype for genotype in genotypes}
        columns = _evaluations.c
        query = sql.select(columns.genotype, columns.metrics).where(
            *_of(_evaluations, key), columns.genotype.in_(sql.bindparam("names", expanding=True))
        )
        found: dict[Genotype, dict[str, float]] = {}
        asked = list(names)

        def look_up(connection: sql.Connection) -> None:
            for start in range(0, len(asked), 500):
                for name, metrics in connection.execute(query, {"names": asked[start : start + 500]}):
                    found[names[name]] = metrics_from_json(json.loads(metrics))

        self._transact(look_up)
        if self._source is not None:
            found = {**self._source.get(key, [g for g in genotypes if g not in found]), **found}
        return found

    def put(self, key: Key, answers: Mapping[Genotype, Mapping[str, float]]) -> None:
        """Keep new answers, all or none; one that is already there stays as it is. Our claims on them end."""
        now = time.time()
        rows = [
            {
                **named(key),
                "genotype": _name(genotype),
                "metrics": to_json(metrics),
                "run": self.run,
                "created": now,
            }
            for genotype, metrics in answers.items()
        ]
        ours = _claims.delete().where(
            _claims.c.owner == self.owner,
            *_of(_claims, key),
            _claims.c.genotype.in_(sql.bindparam("names", expanding=True)),
        )

        def keep(connection: sql.Connection) -> None:
            connection.execute(self._insert, rows)
            names = [row["genotype"] for row in rows]
            for start in range(0, len(names), 500):
                connection.execute(ours, {"names": names[start : start + 500]})

        if rows:
            self._transact(keep, write=True)

    def claim(self, key: Key, genotypes: Sequence[Genotype]) -> list[Genotype]:
        """Claim what nobody has claimed; those of the genotypes that are now ours, in order."""
        rows = [{**named(key), "genotype": _name(g), "owner": self.owner, "beat": 0} for g in genotypes]

        def take(connection: sql.Connection) -> dict[Genotype, tuple[str, int]]:
            connection.execute(self._claim, rows)
            return self._owners(connection, key, genotypes)

        owners = self._transact(take, write=True)
        return [g for g in genotypes if g in owners and owners[g][0] == self.owner]

    def claims(self, key: Key, genotypes: Sequence[Genotype]) -> dict[Genotype, tuple[str, int]]:
        """Owner and beat of the claims on the genotypes; those that nobody claims are left out."""
        return self._transact(lambda connection: self._owners(connection, key, genotypes))

    @staticmethod
    def _owners(
        connection: sql.Connection, key: Key, genotypes: Sequence[Genotype]
    ) -> dict[Genotype, tuple[str, int]]:
        names = {_name(genotype): genotype for genotype in genotypes}
        columns = _claims.c
        query = sql.select(columns.genotype, columns.owner, columns.beat).where(
            *_of(_claims, key), columns.genotype.in_(sql.bindparam("names", expanding=True))
        )
        found, asked = {}, list(names)
        for start in range(0, len(asked), 500):
            for name, owner, beat in connection.execute(query, {"names": asked[start : start + 500]}):
                found[names[name]] = owner, beat
        return found

    def take_over(self, key: Key, stale: Mapping[Genotype, tuple[str, int]]) -> None:
        """Drop claims that still are as they were seen (owner and beat)."""
        columns = _claims.c

        def drop(connection: sql.Connection) -> None:
            for genotype, (owner, beat) in stale.items():
                connection.execute(
                    _claims.delete().where(
                        *_of(_claims, key),
                        columns.genotype == _name(genotype),
                        columns.owner == owner,
                        columns.beat == beat,
                    )
                )

        self._transact(drop, write=True)

    def release(self, key: Key) -> None:
        """Give up all of our claims on answers of the key."""
        ours = _claims.delete().where(_claims.c.owner == self.owner, *_of(_claims, key))
        self._transact(lambda connection: connection.execute(ours), write=True)

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Renews our claims in the background; if that fails, others may pay for the same, no more."""
        stop = threading.Event()

        def beat() -> None:
            ours = _claims.update().where(_claims.c.owner == self.owner).values(beat=_claims.c.beat + 1)
            while not stop.wait(self.lease / 4):
                with suppress(ValueError):
                    self._transact(lambda connection: connection.execute(ours), write=True, patience=0.0)

        thread = threading.Thread(target=beat, name="claims", daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def paid(self, evaluator: str) -> int:
        """How many evaluations of an evaluator this run has added, over all its sessions."""
        query = sql.select(sql.func.count()).where(
            _evaluations.c.run == self.run, _evaluations.c.evaluator == evaluator
        )
        return self._transact(lambda connection: int(connection.execute(query).scalar_one()))

    def contents(self) -> list[Stored]:
        """What is kept, per key, in the keys' order."""
        columns = _evaluations.c
        key = [columns[name] for name in KEY]
        text = sql.func.length(columns.genotype) + sql.func.length(columns.metrics)
        query = sql.select(
            *key,
            sql.func.count(),
            sql.func.count(sql.distinct(columns.run)),
            sql.func.max(columns.created),
            sql.func.sum(text),
        )
        ordered = query.group_by(*key).order_by(*key)
        rows = self._all(ordered)
        return [Stored(tuple(row[:4]), row[4], row[5], row[6], int(row[7])) for row in rows]

    def rows(self, keys: Sequence[Key]) -> Iterator[Row]:
        """All evaluations of the keys."""
        columns = _evaluations.c
        for key in keys:
            query = sql.select(columns.genotype, columns.metrics, columns.run, columns.created).where(
                *_of(_evaluations, key)
            )
            query = query.order_by(columns.genotype).limit(BATCH)
            found = self._all(query)
            while found:
                for genotype, metrics, run, created in found:
                    yield Row(key, genotype, metrics_from_json(json.loads(metrics)), run, created)
                found = self._all(query.where(columns.genotype > found[-1].genotype))

    def _all(self, query: sql.Select[Any]) -> Sequence[Any]:
        return self._transact(lambda connection: connection.execute(query).all())

    def add(self, rows: Sequence[Row]) -> int:
        """Keep evaluations made elsewhere, all or none; how many were not there yet."""
        if not rows:
            return 0
        values = [
            {**named(row.key), "genotype": row.genotype, "metrics": to_json(row.metrics)}
            | {"run": row.run, "created": row.created}
            for row in rows
        ]

        def keep(connection: sql.Connection) -> int:
            done = connection.execute(self._insert, values, execution_options={"preserve_rowcount": True})
            return int(done.rowcount)

        return self._transact(keep, write=True)

    def remove(self, keys: Sequence[Key]) -> None:
        """Remove all evaluations of the keys, in batches; and give the space back to the file system."""
        for key in keys:
            some = sql.select(_evaluations.c.genotype).where(*_of(_evaluations, key)).limit(BATCH)
            batch = _evaluations.delete().where(*_of(_evaluations, key), _evaluations.c.genotype.in_(some))
            self._in_turn(partial(self._transact, partial(_num_changed, batch), write=True))
        query = "PRAGMA auto_vacuum"
        if self._engine.dialect.name == "sqlite" and self._transact(
            lambda connection: connection.exec_driver_sql(query).scalar_one()
        ):
            self._in_turn(partial(self._transact, _give_back, alone=True))
        else:  # PostgreSQL's blocks nobody; a SQLite file of an earlier version is written anew, once
            self._transact(lambda connection: connection.exec_driver_sql("VACUUM"), alone=True)

    @staticmethod
    def _in_turn(transact: Callable[[], int]) -> None:
        """Repeat a transaction until nothing is left to do, and let others write in between."""
        while transact():
            time.sleep(PAUSE)

    def size(self) -> int:
        """Bytes of the whole database."""
        if self._engine.dialect.name == "postgresql":
            query = "SELECT pg_database_size(current_database())"
        else:
            query = "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()"
        return self._transact(lambda connection: int(connection.exec_driver_sql(query).scalar_one()))

    def num_claims(self) -> int:
        """How many evaluations are claimed."""
        query = sql.select(sql.func.count()).select_from(_claims)
        return self._transact(lambda connection: int(connection.execute(query).scalar_one()))

    def close(self) -> None:
        """Release the connections."""
        self._engine.dispose()
        if self._source is not None:
            self._source.close()


def _name(genotype: Genotype) -> str:
    return ",".join(map(str, genotype))


def named(key: Key) -> dict[str, str]:
    """A key's values by their names in `KEY`."""
    return dict(zip(KEY, key, strict=True))


def _of(table: sql.Table, key: Key) -> list[sql.ColumnElement[bool]]:
    """What picks the rows of a key."""
    return [table.c[name] == value for name, value in named(key).items()]


def _prepare_sqlite(patience: float) -> Callable[[Any, Any], None]:
    """What makes a new connection ready; it waits for locks for a tenth of the patience at a time."""

    def prepare(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={round(100 * patience)}")
        cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file: see `_give_back`
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    return prepare


def _writable(path: Path) -> bool:
    """Whether a SQLite file, and the folder of its journal, may be written; true for one to be made."""
    effective = os.access in os.supports_effective_ids
    return not path.is_file() or all(
        os.access(there, os.W_OK, effective_ids=effective) for there in (path, path.parent)
    )


def _read_only(path: Path) -> sqlite3.Connection:
    """A connection to a SQLite file that may only be read.

    SQLite makes files beside it, even for reading, which it cannot do there, or which nobody could write
    later. So a file that nobody has open is read as it lies; every call opens it anew, so that nothing is
    read across a change.
    """
    journal = Path(f"{path}-wal")
    if not journal.is_file() or not journal.stat().st_size:
        return _opened(path, "immutable=1")
    try:
        return _opened(path, "mode=ro")
    except sqlite3.OperationalError as error:
        raise sqlite3.OperationalError(
            f"{error}; {journal} has evaluations that can only be read where its folder may be written"
        ) from None


def _opened(path: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _num_changed(statement: sql.Delete, connection: sql.Connection) -> int:
    return int(connection.execute(statement).rowcount)


def _give_back(connection: sql.Connection) -> int:
    """Give some free pages of a SQLite file back to the file system; how many are left."""
    raw: Any = connection.connection.driver_connection  # of the calls only this one goes on after a page
    raw.executescript(f"BEGIN IMMEDIATE; PRAGMA incremental_vacuum({PAGES}); COMMIT")
    return int(connection.exec_driver_sql("PRAGMA freelist_count").scalar_one())


_MAY_WRITE = (
    "SELECT has_table_privilege('evaluations', 'INSERT')"
    " AND NOT current_setting('transaction_read_only')::bool"
)

_SQLITE_PASSES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_POSTGRES_PASSES = ("08", "40", "53300", "55P03", "57P01", "57P02", "57P03")
"""Beginnings of SQLSTATE: connections, conflicts of transactions, too many clients, locks, shutting down."""


def _passes(error: DBAPIError) -> bool:
    """Whether what failed may work a little later: a lock, a conflict, a server out of reach."""
    if (code := getattr(error.orig, "sqlite_errorcode", None)) is not None:
        return code & 0xFF in _SQLITE_PASSES
    state = getattr(error.orig, "sqlstate", None)
    if state is None:  # no answer of the server
        return isinstance(error, OperationalError)
    return str(state).startswith(_POSTGRES_PASSES)


def _comes_up(error: DBAPIError) -> bool:
    """As `_passes` for the first call, which may be given a wrong address."""
    waiting = ("starting up", "shutting down", "too many clients", "not yet accepting")
    if getattr(error.orig, "sqlite_errorcode", None) is None:
        return any(words in str(error.orig) for words in waiting)
    return _passes(error)


def open_for_run(url: str | None, run: str, folder: Path, warn: Callable[[str], None]) -> EvaluationStore:
    """The store of a run; one that may only be read answers, and a file of the run takes what is new.

    Args:
        url: As for `EvaluationStore`.
        run: As for `EvaluationStore`.
        folder: The run's folder.
        warn: Called with a sentence.
    """
    store = EvaluationStore(url, run, warn=warn)
    own = folder / OWN_STORE
    if not store.writable:
        warn(f"store {store.url} can only be read: its answers are used, new ones are kept in {own}")
        return EvaluationStore(f"sqlite:///{own}", run, warn=warn, source=store)
    if own.is_file():  # from a session that could only read the store
        with closing(EvaluationStore(f"sqlite:///{own}", run)) as kept:
            store.add(list(kept.rows([part.key for part in kept.contents()])))
    return store


class CachedEvaluator(Evaluator):
    """An evaluator that never pays twice: answers come from the store where it has them.

    New answers of one of a population's parts are stored in one transaction, so that a resumed run evaluates
    an interrupted part in the same group again.

    Args:
        inner: The evaluator that pays.
        store: Where answers are kept.
        dataset: Name of the data set, part of the key.
        workers: Evaluate parts at once; None: one after another, here.
    """

    def __init__(
        self, inner: Evaluator, store: EvaluationStore, dataset: str, workers: Workers | None = None
    ) -> None:
        self.inner = inner
        self.name = inner.name
        self.metrics = inner.metrics
        self.version = ""
        self.saved = 0
        self._store = store
        self._dataset = dataset
        self._workers = workers
        self._key: Key | None = None
        self._known: dict[Genotype, dict[str, float]] = {}

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """Prepare the inner evaluator; answers of another version are forgotten (the store keeps them)."""
        version: Any = self.inner.prepare(space, population)
        if not isinstance(version, str):
            raise ValueError(
                f"{type(self.inner).__name__}.prepare() returned {version!r}; it must return a text: "
                "the version of its answers"
            )
        self.version = version
        key = (self.name, space.name, self._dataset, self.version)
        if key != self._key:
            self._key = key
            self._known = {}
        return self.version

    def see(self, alphas: FloatArray | None) -> None:
        """For the inner evaluator."""
        self.inner.see(alphas)

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Metrics per genotype, in order.

        Raises:
            ValueError: The inner evaluator answered what `checked_answers` refuses.
        """
        assert self._key is not None, "prepare comes first"
        new = [genotype for genotype in dict.fromkeys(genotypes) if genotype not in self._known]
        if new:
            self._known.update(self._store.get(self._key, new))
        missing = [genotype for genotype in new if genotype not in self._known]
        num_paid = len(missing) and self._pay(missing)
        self.saved += len(genotypes) - num_paid
        return [self._known[genotype] for genotype in genotypes]

    def _pay(self, missing: list[Genotype]) -> int:
        """Get the missing answers, waiting for those that others are about to give; how many were paid."""
        assert self._key is not None
        if self.inner.exhaustive or not self._store.shared:  # free, or nobody to wait for
            self._evaluate(missing)
            return len(missing)
        seen: dict[Genotype, tuple[tuple[str, int], float]] = {}  # claims of others, and since when
        num_paid, pause = 0, 0.02
        while missing:
            ours = self._store.claim(self._key, missing)
            if ours:
                try:
                    self._known.update(self._store.get(self._key, ours))  # paid for since we looked
                    wanted = [genotype for genotype in ours if genotype not in self._known]
                    if wanted:
                        with self._store.heartbeat():
                            self._evaluate(wanted)
                        num_paid += len(wanted)
                finally:
                    self._store.release(self._key)
            self._known.update(self._store.get(self._key, missing))
            missing = [genotype for genotype in missing if genotype not in self._known]
            if missing:
                claims, now = self._store.claims(self._key, missing), time.monotonic()
                seen = {
                    genotype: seen[genotype]
                    if genotype in seen and seen[genotype][0] == claim
                    else (claim, now)
                    for genotype, claim in claims.items()
                }
                stale = {
                    genotype: claim
                    for genotype, (claim, since) in seen.items()
                    if now - since > self._store.lease or gone(claim[0].rpartition(":")[0])
                }
                self._store.take_over(self._key, stale)
                if not stale and len(claims) == len(missing):
                    time.sleep(pause)
                    pause = min(2 * pause, self._store.lease / 4)
        return num_paid

    def _evaluate(self, genotypes: list[Genotype]) -> None:
        """Pay for answers and keep them, all or none of a part."""
        assert self._key is not None
        divide = self.inner.parts if self._workers is None else self.inner.for_workers
        parts = divide(genotypes)
        if self._workers is None or len(parts) == 1:
            done: Iterable[tuple[Sequence[Genotype], list[dict[str, float]]]] = (
                (part, self.inner.evaluate(part)) for part in parts
            )
        else:
            done = self._workers.map(self.inner, parts)
        answered = 0
        for part, rows in done:
            answered += len(part)
            if len(parts) > 1:
                progress("networks", answered, len(genotypes))
            answers = checked_answers(self.inner, part, rows)
            self._store.put(self._key, dict(zip(part, answers, strict=True)))
        self._known.update(self._store.get(self._key, genotypes))  # another run may have been first

    @property
    def stationary(self) -> bool:
        """That of the inner evaluator."""
        return self.inner.stationary

    def report(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Report-only metrics of the inner evaluator."""
        return self.inner.report(genotypes)

    def seconds(self, genotypes: Sequence[Genotype]) -> float | None:
        """The inner evaluator's virtual clock."""
        return self.inner.seconds(genotypes)
