"""The command `hwnas store`: the evaluations that all runs share."""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from hwnas.cli.errors import UsageError, plain, plain_settings
from hwnas.core import suggestion
from hwnas.files import printable, replacing
from hwnas.store.archive import metrics_from_json
from hwnas.store.evaluations import KEY, EvaluationStore, Row, Stored, named
from hwnas.tables.download import in_words

HELP = """\
usage: hwnas store [action] [setting=value ...]

  show                     evaluations per evaluator, space, data set and version (the default)
  export to=<file>         write them to a .csv, or a .parquet (extra parquet)
  import from=<file>       add what such a file has and the store lacks
  prune keep=<n>           remove all but the n latest versions of each evaluator, space and data set,
        older=<days>       or what no run has added to for so long; says what it would remove
        yes=true           and does it

evaluator=, space=, dataset= and version= choose among them. The store is store.url=, or the file
evaluations.sqlite in store.dir=; without them that of the working folder, multirun/store.
"""

COLUMNS = (*KEY, "genotype", "run", "created")
"""Columns of a file besides those of the metrics."""

BATCH = 20_000


def command(arguments: list[str]) -> int:
    """`hwnas store`: returns the exit code, 0, 1 for what went wrong, or 2 for wrong usage."""
    if {"-h", "--help", "help"} & set(arguments):
        print(HELP, end="")
        return 0
    rest = list(arguments)
    action = "show" if not rest or "=" in rest[0] else rest.pop(0)

    def perform() -> None:
        if action not in ACTIONS:
            raise UsageError(f"unknown action {action!r}{suggestion(action, list(ACTIONS))}")
        own, run = ACTIONS[action]
        settings = plain_settings("store", rest, (*own, *KEY, "store.url", "store.dir"))
        with closing(_open(settings)) as store:
            run(store, settings)

    return plain("store", perform)


def _open(settings: Mapping[str, str]) -> EvaluationStore:
    url = settings.get("store.url")
    if url is None:
        url = f"sqlite:///{settings.get('store.dir', 'multirun/store')}/evaluations.sqlite"
    path = Path(url.removeprefix("sqlite:///")).expanduser()
    if url.startswith("sqlite:") and not path.is_file():
        raise ValueError(f"there is no store {path}; store.dir= or store.url= names another one")
    return EvaluationStore(url, "hwnas-store")


def _chosen(store: EvaluationStore, settings: Mapping[str, str]) -> list[Stored]:
    """The selection that settings make of the store's contents.

    Raises:
        ValueError: Nothing; says which values there are.
    """
    contents = store.contents()
    for name in KEY:
        if name in settings:
            values = sorted({named(part.key)[name] for part in contents})
            contents = [part for part in contents if named(part.key)[name] == settings[name]]
            if not contents:
                raise ValueError(
                    f"the store has no {name}={settings[name]}{suggestion(settings[name], values)}"
                )
    return contents


def show(store: EvaluationStore, settings: Mapping[str, str]) -> None:
    """Print the contents as a table."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, title_justify="left")
    for name in (*KEY, "evaluations", "runs", "latest", "size"):
        table.add_column(name, justify="right" if name in ("evaluations", "runs", "size") else "left")
    contents = _chosen(store, settings)
    for part in contents:
        day = time.strftime("%Y-%m-%d", time.localtime(part.latest))
        table.add_row(
            *map(printable, part.key), f"{part.evaluations:,}", f"{part.runs:,}", day, in_words(part.size)
        )
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 160
    console.print(table)
    total = sum(part.evaluations for part in contents)
    console.print(
        f"{store.url}: {total:,} evaluations, {store.num_claims():,} in progress, "
        f"{in_words(store.size())} in all",
        soft_wrap=True,
    )


def export(store: EvaluationStore, settings: Mapping[str, str]) -> None:
    """Write the chosen evaluations to a file."""
    path = _file(settings, "to")
    keys = [part.key for part in _chosen(store, settings)]
    names = sorted({name for row in store.rows(keys) for name in row.metrics})
    clash = set(names) & set(COLUMNS)
    if clash:
        raise ValueError(f"a metric is called {clash.pop()}, as a column of the file")
    with replacing(path) as partial:
        num = FORMATS[path.suffix][0](partial, names, store.rows(keys))
    print(f"{path}: {num:,} evaluations, {in_words(path.stat().st_size)}")


def import_(store: EvaluationStore, settings: Mapping[str, str]) -> None:
    """Add the evaluations of a file."""
    path = _file(settings, "from")
    if not path.is_file():
        raise ValueError(f"from={path} is not a file")
    num = added = 0
    batch: list[Row] = []

    def add() -> None:
        nonlocal num, added
        added += store.add(batch)
        num += len(batch)
        batch.clear()

    for row in FORMATS[path.suffix][1](path):
        if all(named(row.key)[name] == settings.get(name, named(row.key)[name]) for name in KEY):
            batch.append(row)
        if len(batch) == BATCH:
            add()
    add()
    print(f"{path}: {num:,} evaluations, {added:,} of them new in {store.url}")


def prune(store: EvaluationStore, settings: Mapping[str, str]) -> None:
    """Remove old versions, or say which."""
    contents = _chosen(store, settings)
    if not {"keep", "older", "version"} & set(settings):
        raise UsageError("prune needs keep=<versions>, older=<days> or version=<one of them>")
    old = contents
    if "keep" in settings:
        keep = int(_number(settings, "keep"))
        groups: dict[tuple[str, ...], list[Stored]] = {}
        for part in sorted(contents, key=lambda part: -part.latest):
            groups.setdefault(part.key[:3], []).append(part)
        old = [part for group in groups.values() for part in group[keep:]]
    if "older" in settings:
        limit = time.time() - 86_400 * _number(settings, "older")
        old = [part for part in old if part.latest < limit]
    for part in old:
        print(f"  {printable(' '.join(part.key))}: {part.evaluations:,} evaluations")
    total = sum(part.evaluations for part in old)
    if settings.get("yes", "false") not in ("true", "false"):
        raise UsageError(f"yes must be true or false, not {settings['yes']}")
    if settings.get("yes") != "true":
        print(f"{total:,} evaluations would go; yes=true removes them")
        return
    before = store.size()
    store.remove([part.key for part in old])
    print(f"{total:,} evaluations removed, {in_words(max(0, before - store.size()))} freed")


def _number(settings: Mapping[str, str], name: str) -> float:
    try:
        value = float(settings[name])
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf or (name == "keep" and value % 1):
        raise ValueError(f"{name} must be a number of at least 0, not {settings[name]!r}")
    return value


def _file(settings: Mapping[str, str], name: str) -> Path:
    if name not in settings:
        raise UsageError(f"{name}=<file> is missing")
    path = Path(settings[name]).expanduser()
    if path.suffix not in FORMATS:
        raise UsageError(f"{name}={path} must end in {' or '.join(FORMATS)}")
    return path


def _write_csv(path: Path, names: Sequence[str], rows: Iterable[Row]) -> int:
    num = 0
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*COLUMNS, *names])
        for row in rows:
            num += 1
            metrics = [repr(row.metrics[name]) if name in row.metrics else "" for name in names]
            writer.writerow([*row.key, row.genotype, row.run, repr(row.created), *metrics])
    return num


def _read_csv(path: Path) -> Iterator[Row]:
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        try:
            _check_columns(path, reader.fieldnames or ())
            for record in reader:
                yield _row(f"{path} line {reader.line_num}", record)
        except csv.Error as error:
            raise ValueError(f"{path} line {reader.line_num + 1} is not CSV ({error})") from None


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ValueError("Parquet files need pyarrow; pip install 'hwnas[parquet]', or use .csv") from None
    return pyarrow


def _write_parquet(path: Path, names: Sequence[str], rows: Iterable[Row]) -> int:
    arrow = _pyarrow()
    types = {name: arrow.float64() for name in ("created", *names)}
    schema = arrow.schema([(name, types.get(name, arrow.string())) for name in (*COLUMNS, *names)])
    num = 0
    batch: list[dict[str, Any]] = []
    with arrow.parquet.ParquetWriter(path, schema) as writer:
        for row in rows:
            num += 1
            own = {"genotype": row.genotype, "run": row.run, "created": row.created}
            batch.append({**named(row.key), **own, **row.metrics})
            if len(batch) == BATCH:
                writer.write_table(arrow.Table.from_pylist(batch, schema))
                batch = []
        writer.write_table(arrow.Table.from_pylist(batch, schema))
    return num


def _read_parquet(path: Path) -> Iterator[Row]:
    arrow = _pyarrow()
    try:
        file = arrow.parquet.ParquetFile(path)
    except arrow.lib.ArrowInvalid as error:
        raise ValueError(f"{path} is not a Parquet file ({error})") from None
    _check_columns(path, file.schema_arrow.names)
    records = (record for batch in file.iter_batches(BATCH) for record in batch.to_pylist())
    for number, record in enumerate(records, start=1):
        yield _row(f"{path} row {number}", record)


FORMATS: dict[str, tuple[Callable[..., int], Callable[[Path], Iterator[Row]]]] = {
    ".csv": (_write_csv, _read_csv),
    ".parquet": (_write_parquet, _read_parquet),
}


def _check_columns(path: Path, names: Sequence[str]) -> None:
    missing = [name for name in COLUMNS if name not in names]
    if missing:
        raise ValueError(f"{path} has no column {missing[0]}; it must have {', '.join(COLUMNS)} and metrics")


def _row(where: str, record: Mapping[str, Any]) -> Row:
    """An evaluation of a file's line, where `inf` or what JSON calls null is not supported."""
    try:
        [int(op) for op in record["genotype"].split(",")]
        metrics = {
            name: float(value)
            for name, value in record.items()
            if name not in COLUMNS and value is not None and value != ""
        }
        created = float(record["created"])
        if not metrics or any(map(math.isnan, metrics.values())):
            raise ValueError("metrics must be numbers, at least one")
        key = (record["evaluator"], record["space"], record["dataset"], record["version"])
        if not all(isinstance(value, str) for value in (*key, record["run"])):
            raise ValueError(f"{', '.join(KEY)} and run must be texts")
    except (ValueError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"{where} is no evaluation ({error})") from None
    return Row(key, record["genotype"], metrics_from_json(metrics), str(record["run"]), created)


ACTIONS: dict[str, tuple[tuple[str, ...], Callable[[EvaluationStore, Mapping[str, str]], None]]] = {
    "show": ((), show),
    "export": (("to",), export),
    "import": (("from",), import_),
    "prune": (("keep", "older", "yes"), prune),
}
