"""Evaluations shared by all runs, in SQLite or PostgreSQL, each paid for once."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar, runtime_checkable

import sqlalchemy as sql
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError

from hwnas.core import (
    Genotype,
)
from hwnas.files import identity, to_json
from hwnas.store import password
from hwnas.store.archive import metrics_from_json

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

T = TypeVar("T")

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
        rows = self._transact(lambda connection: connection.execute(ordered).all())
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


def _prepare_sqlite(patience: float) -> Callable[[sqlite3.Connection, object], None]:
    """What makes a new connection ready; it waits for locks for a tenth of the patience at a time."""

    def prepare(connection: sqlite3.Connection, _: object) -> None:
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


def _rows_after(
    query: sql.Select[str, str, str, float], last: str, connection: sql.Connection
) -> Sequence[tuple[str, str, str, float]]:
    """The next rows of a query that is ordered by genotype, after the genotype `last`."""
    return connection.execute(query, {"last": last}).all()


def _num_changed(statement: sql.Delete, connection: sql.Connection) -> int:
    return int(connection.execute(statement).rowcount)


def _give_back(connection: sql.Connection) -> int:
    """Give some free pages of a SQLite file back to the file system; how many are left."""
    raw = connection.connection.driver_connection
    assert isinstance(raw, sqlite3.Connection)
    # `execute` would stop after the first page.
    raw.executescript(f"BEGIN IMMEDIATE; PRAGMA incremental_vacuum({PAGES}); COMMIT")
    return int(connection.exec_driver_sql("PRAGMA freelist_count").scalar_one())


_MAY_WRITE = (
    "SELECT has_table_privilege('evaluations', 'INSERT')"
    " AND NOT current_setting('transaction_read_only')::bool"
)

_SQLITE_PASSES = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL}
_POSTGRES_PASSES = ("08", "40", "53300", "55P03", "57P01", "57P02", "57P03")
"""Beginnings of SQLSTATE: connections, conflicts of transactions, too many clients, locks, shutting down."""


@runtime_checkable
class _SQLiteError(Protocol):
    """An error of SQLite itself; those of Python's module have no code."""

    sqlite_errorcode: int


@runtime_checkable
class _ServerError(Protocol):
    """An error of psycopg; None if it is not the server's answer."""

    sqlstate: str | None


def _passes(error: DBAPIError) -> bool:
    """Whether what failed may work a little later: a lock, a conflict, a server out of reach."""
    if isinstance(error.orig, _SQLiteError):
        return error.orig.sqlite_errorcode & 0xFF in _SQLITE_PASSES
    if isinstance(error.orig, _ServerError) and error.orig.sqlstate is not None:
        return error.orig.sqlstate.startswith(_POSTGRES_PASSES)
    return isinstance(error, OperationalError)  # the server did not answer


def _comes_up(error: DBAPIError) -> bool:
    """As `_passes` for the first call, which may be given a wrong address."""
    waiting = ("starting up", "shutting down", "too many clients", "not yet accepting")
    if isinstance(error.orig, _SQLiteError):
        return _passes(error)
    return any(words in str(error.orig) for words in waiting)


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
