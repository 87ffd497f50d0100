"""The evaluation store: answers of evaluators in SQLite or PostgreSQL, for all runs, each computed once."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from hwnas.core import Genotype
from hwnas.files import identity, to_json
from hwnas.store import password
from hwnas.store.archive import metrics_from_json

SCHEMA_VERSION = 2

LEASE_SECONDS = 10.0
"""Age at which a claim without a heartbeat expires; there are four heartbeats in this time."""

PATIENCE = 60.0
"""Seconds for which a call is repeated while the database is locked, restarting or out of reach."""

BATCH = 20_000
"""Rows per transaction of `EvaluationStore.remove`; other writers wait for it, about 0.1 s."""

PAUSE = 0.15
"""Seconds between these transactions; processes that wait for SQLite's lock try every 0.1 s."""

PAGES = 1_000
"""Free pages of 4 kB that one transaction returns to the file system."""

CHUNK = 500
"""Genotypes per statement: databases limit the parameters of a statement."""

OWN_STORE = "evaluations.sqlite"
"""File in a run's folder with its new evaluations, if its store is read-only."""

T = TypeVar("T")

KEY = ("evaluator", "space", "dataset", "version")
"""Columns that, with the genotype, identify an answer."""


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
        evaluations: Number of evaluations.
        runs: Number of runs that added them.
        latest: Time of the last addition, in seconds since 1970.
        size: Bytes of their texts; the database needs more.
    """

    key: Key
    evaluations: int
    runs: int
    latest: float
    size: int


@dataclass(frozen=True)
class Row:
    """One stored evaluation.

    Attributes:
        key: Evaluator, space, data set and version.
        genotype: Operation indices, separated by commas.
        metrics: Value per metric; `inf`: not supported.
        run: Identity of the run that added it.
        created: Time of the addition, in seconds since 1970.
    """

    key: Key
    genotype: str
    metrics: Mapping[str, float]
    run: str
    created: float


_ALONE = {"sqlite": "BEGIN IMMEDIATE", "postgresql": "SELECT pg_advisory_xact_lock(201)"}
"""Statement that lets one process at a time create the tables: runs of a sweep start together."""


class EvaluationStore:
    """Evaluations by key and genotype: SQLite (WAL) for one machine, PostgreSQL for several.

    SQLite is not safe on a network file system; use a server there.

    A process claims an answer before it computes it, and other processes wait for it. While it computes, it
    increments the claim's heartbeat counter. Another process takes over a claim whose counter it saw
    unchanged for `lease` seconds, by its own clock; or at once, if the owner was a process of the same
    machine and container and has ended.

    Args:
        url: SQLAlchemy URL; None keeps the evaluations in memory.
        run: Identity of the run that writes, stored with every row.
        lease: Seconds without a heartbeat after which a claim expires.
        patience: Seconds for which a call is repeated after a temporary error.
        warn: Called with a sentence when a call is going to be repeated.
        source: A read-only store that is asked for answers that this one does not have; closed with this one.

    Attributes:
        shared: Whether other processes can see the store.
        writable: Whether this process may write it.

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
            # Tests connections before use, since the server may have been restarted.
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
        self._transact(self._open, again=_is_starting)

    def _open(self, connection: sql.Connection) -> None:
        """Find the tables, and create what is missing; one process at a time."""
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
        if version == 1 and self.writable:  # has no claims
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
        """Run an action in a transaction and return its result; repeat it after temporary errors.

        Args:
            action: The action. It may run several times, so that a repetition must change nothing.
            write: Whether it writes; a SQLite transaction must declare this at its start to wait for its
                turn.
            alone: Whether to run it outside of a transaction.
            again: Whether an error is temporary; None: a lock, a conflict, or a server out of reach.
            patience: Seconds; None: the store's.

        Raises:
            ValueError: The error is permanent; one line.
        """
        if write and not self.writable:
            raise ValueError(f"store {self.url} cannot be written, only read")
        again, patience = again or _is_temporary, self._patience if patience is None else patience
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
        """The stored answers for the genotypes."""
        names = {_name(genotype): genotype for genotype in genotypes}
        columns = _evaluations.c
        query = sql.select(columns.genotype, columns.metrics).where(
            *_of(_evaluations, key), columns.genotype.in_(_NAMES)
        )

        def look_up(connection: sql.Connection) -> dict[Genotype, dict[str, float]]:
            return {
                names[name]: metrics_from_json(json.loads(metrics))
                for part in _parts(names)
                for name, metrics in connection.execute(query, part)
            }

        found = self._transact(look_up)
        if self._source is not None:
            found = {**self._source.get(key, [g for g in genotypes if g not in found]), **found}
        return found

    def put(self, key: Key, answers: Mapping[Genotype, Mapping[str, float]]) -> None:
        """Store new answers, all or none, and release this process's claims on them; stored answers stay."""
        if not answers:
            return
        now, names = time.time(), [_name(genotype) for genotype in answers]
        rows = [
            _record(Row(key, name, metrics, self.run, now))
            for name, metrics in zip(names, answers.values(), strict=True)
        ]
        ours = _claims.delete().where(
            _claims.c.owner == self.owner, *_of(_claims, key), _claims.c.genotype.in_(_NAMES)
        )

        def keep(connection: sql.Connection) -> None:
            connection.execute(self._insert, rows)
            for part in _parts(names):
                connection.execute(ours, part)

        self._transact(keep, write=True)

    def claim(self, key: Key, genotypes: Sequence[Genotype]) -> list[Genotype]:
        """Claim the genotypes without a claim; returns those that this process holds now, in order."""
        rows = [{**named(key), "genotype": _name(g), "owner": self.owner, "beat": 0} for g in genotypes]

        def take(connection: sql.Connection) -> dict[Genotype, tuple[str, int]]:
            connection.execute(self._claim, rows)
            return self._owners(connection, key, genotypes)

        owners = self._transact(take, write=True)
        return [g for g in genotypes if g in owners and owners[g][0] == self.owner]

    def claims(self, key: Key, genotypes: Sequence[Genotype]) -> dict[Genotype, tuple[str, int]]:
        """Owner and heartbeat of the claims on the genotypes; genotypes without a claim are left out."""
        return self._transact(lambda connection: self._owners(connection, key, genotypes))

    @staticmethod
    def _owners(
        connection: sql.Connection, key: Key, genotypes: Sequence[Genotype]
    ) -> dict[Genotype, tuple[str, int]]:
        names = {_name(genotype): genotype for genotype in genotypes}
        columns = _claims.c
        query = sql.select(columns.genotype, columns.owner, columns.beat).where(
            *_of(_claims, key), columns.genotype.in_(_NAMES)
        )
        return {
            names[name]: (owner, beat)
            for part in _parts(names)
            for name, owner, beat in connection.execute(query, part)
        }

    def take_over(self, key: Key, stale: Mapping[Genotype, tuple[str, int]]) -> None:
        """Delete claims whose owner and heartbeat have not changed since they were read."""
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
        """Delete this process's claims on answers of the key."""
        ours = _claims.delete().where(_claims.c.owner == self.owner, *_of(_claims, key))
        self._transact(lambda connection: connection.execute(ours), write=True)

    @contextmanager
    def heartbeat(self) -> Iterator[None]:
        """Send heartbeats in the background; if they fail, another process may compute the same answers."""
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
        """Number of an evaluator's evaluations that this run added, in all of its sessions."""
        mine = (_evaluations.c.run == self.run, _evaluations.c.evaluator == evaluator)
        return self._number(sql.select(sql.func.count()).where(*mine))

    def contents(self) -> list[Stored]:
        """Summary per key, in the order of the keys."""
        columns, count = _evaluations.c, sql.func.count
        key = [columns[name] for name in KEY]
        text = sql.func.length(columns.genotype) + sql.func.length(columns.metrics)
        figures = (
            count(),
            count(sql.distinct(columns.run)),
            sql.func.max(columns.created),
            sql.func.sum(text),
        )
        query = sql.select(*key, *figures).group_by(*key).order_by(*key)
        rows = self._transact(lambda connection: connection.execute(query).all())
        return [Stored(tuple(row[:4]), row[4], row[5], row[6], int(row[7])) for row in rows]

    def rows(self, keys: Sequence[Key]) -> Iterator[Row]:
        """All evaluations of the keys."""
        columns = _evaluations.c
        for key in keys:
            some = sql.select(columns.genotype, columns.metrics, columns.run, columns.created).where(
                *_of(_evaluations, key), columns.genotype > sql.bindparam("last")
            )
            query = some.order_by(columns.genotype).limit(BATCH)
            last = ""  # comes before every genotype
            while found := self._transact(partial(_rows_after, query, last)):
                for genotype, metrics, run, created in found:
                    yield Row(key, genotype, metrics_from_json(json.loads(metrics)), run, created)
                last = found[-1][0]

    def add(self, rows: Sequence[Row]) -> int:
        """Store evaluations of other stores, all or none; returns how many are new."""
        if not rows:
            return 0
        values = list(map(_record, rows))

        def keep(connection: sql.Connection) -> int:
            done = connection.execute(self._insert, values, execution_options={"preserve_rowcount": True})
            return int(done.rowcount)

        return self._transact(keep, write=True)

    def remove(self, keys: Sequence[Key]) -> None:
        """Remove all evaluations of the keys, in batches, and return their space to the file system."""
        for key in keys:
            some = sql.select(_evaluations.c.genotype).where(*_of(_evaluations, key)).limit(BATCH)
            batch = _evaluations.delete().where(*_of(_evaluations, key), _evaluations.c.genotype.in_(some))
            self._in_turn(partial(self._transact, partial(_num_changed, batch), write=True))
        query = "PRAGMA auto_vacuum"
        if self._engine.dialect.name == "sqlite" and self._transact(
            lambda connection: connection.exec_driver_sql(query).scalar_one()
        ):
            self._in_turn(partial(self._transact, _give_back, alone=True))
        else:  # blocks nobody in PostgreSQL; a SQLite file of an earlier version is rewritten once
            self._transact(lambda connection: connection.exec_driver_sql("VACUUM"), alone=True)

    @staticmethod
    def _in_turn(transact: Callable[[], int]) -> None:
        """Repeat a transaction until it has nothing left to do; other processes can write in between."""
        while transact():
            time.sleep(PAUSE)

    def size(self) -> int:
        """Bytes of the whole database."""
        if self._engine.dialect.name == "postgresql":
            return self._number(sql.text("SELECT pg_database_size(current_database())"))
        return self._number(
            sql.text("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")
        )

    def num_claims(self) -> int:
        """Number of evaluations that are claimed."""
        return self._number(sql.select(sql.func.count()).select_from(_claims))

    def _number(self, query: sql.Executable) -> int:
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


_NAMES: sql.BindParameter[str] = sql.bindparam("names", expanding=True)


def _parts(names: Iterable[str]) -> Iterator[dict[str, list[str]]]:
    """Values of `_NAMES`, `CHUNK` at a time."""
    known = list(names)
    for start in range(0, len(known), CHUNK):
        yield {"names": known[start : start + CHUNK]}


def _record(row: Row) -> dict[str, object]:
    """A row by the names of the table's columns."""
    own = {"genotype": row.genotype, "metrics": to_json(row.metrics), "run": row.run, "created": row.created}
    return {**named(row.key), **own}


def _of(table: sql.Table, key: Key) -> list[sql.ColumnElement[bool]]:
    """Conditions for the rows of a key."""
    return [table.c[name] == value for name, value in named(key).items()]


def _prepare_sqlite(patience: float) -> Callable[[sqlite3.Connection, object], None]:
    """A function that configures a new connection; one wait for a lock takes a tenth of the patience."""

    def prepare(connection: sqlite3.Connection, _: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"PRAGMA busy_timeout={round(100 * patience)}")
        cursor.execute("PRAGMA auto_vacuum=INCREMENTAL")  # of a new file: see `_give_back`
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=NORMAL")
        cursor.close()

    return prepare


def _writable(path: Path) -> bool:
    """Whether a SQLite file and the folder of its journal may be written; true for a file that is missing."""
    effective = os.access in os.supports_effective_ids
    return not path.is_file() or all(
        os.access(there, os.W_OK, effective_ids=effective) for there in (path, path.parent)
    )


def _read_only(path: Path) -> sqlite3.Connection:
    """A connection to a SQLite file that may only be read.

    Even a reader of SQLite creates files beside the database, which is impossible in a read-only folder, or
    would leave files that others cannot write. A database without a journal is therefore opened as immutable,
    anew for every call, so that no call sees a file that changes.
    """
    journal = Path(f"{path}-wal")
    if not journal.is_file() or not journal.stat().st_size:
        return _opened(path, "immutable=1")
    try:
        return _opened(path, "mode=ro")
    except sqlite3.OperationalError as error:
        raise sqlite3.OperationalError(
            f"{error}; reading the evaluations in {journal} needs permission to write its folder"
        ) from None


def _opened(path: Path, how: str) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?{how}", uri=True)
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _rows_after(
    query: sql.Select[str, str, str, float], last: str, connection: sql.Connection
) -> Sequence[tuple[str, str, str, float]]:
    """The next rows of a query that is ordered by genotype, after the genotype `last`."""
    return connection.execute(query, {"last": last}).all()


def _num_changed(statement: sql.Delete, connection: sql.Connection) -> int:
    return int(connection.execute(statement).rowcount)


def _give_back(connection: sql.Connection) -> int:
    """Return some free pages of a SQLite file to the file system; returns the number of those left."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    # `execute` would stop after the first page.
    raw.executescript(f"BEGIN IMMEDIATE; PRAGMA incremental_vacuum({PAGES}); COMMIT")
    return int(connection.exec_driver_sql("PRAGMA freelist_count").scalar_one())


_MAY_WRITE = (
    "SELECT has_table_privilege('evaluations', 'INSERT')"
    " AND NOT current_setting('transaction_read_only')::bool"
)

_SQLITE_TEMPORARY = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_POSTGRES_TEMPORARY = ("08", "40", "53300", "55P03", "57P01", "57P02", "57P03")
"""Prefixes of SQLSTATE: connection, transaction conflict, too many clients, lock, shutdown and start."""


@runtime_checkable
class _SQLiteError(Protocol):
    """An error with SQLite's code; errors of Python's module itself have none."""

    sqlite_errorcode: int


@runtime_checkable
class _ServerError(Protocol):
    """An error of psycopg; `sqlstate` is None if the server did not answer."""

    sqlstate: str | None


def _is_temporary(error: DBAPIError) -> bool:
    """Whether a call may succeed later: after a lock, a conflict, or a server out of reach."""
    if isinstance(error.orig, _SQLiteError):
        return error.orig.sqlite_errorcode & 0xFF in _SQLITE_TEMPORARY
    if isinstance(error.orig, _ServerError) and error.orig.sqlstate is not None:
        return error.orig.sqlstate.startswith(_POSTGRES_TEMPORARY)
    return isinstance(error, OperationalError)  # the server did not answer


def _is_starting(error: DBAPIError) -> bool:
    """As `_is_temporary`, for the first call: a server out of reach may be a wrong address."""
    waiting = ("starting up", "shutting down", "too many clients", "not yet accepting")
    if isinstance(error.orig, _SQLiteError):
        return _is_temporary(error)
    return any(words in str(error.orig) for words in waiting)


def open_for_run(url: str | None, run: str, folder: Path, warn: Callable[[str], None]) -> EvaluationStore:
    """The store of a run; beside a read-only store, new answers go into a file of the run.

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
    if own.is_file():  # of an earlier session, when the store was read-only
        with closing(EvaluationStore(f"sqlite:///{own}", run)) as kept:
            store.add(list(kept.rows([part.key for part in kept.contents()])))
    return store
