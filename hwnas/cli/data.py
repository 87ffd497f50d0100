"""The command `hwnas data`: which tables are there, are they whole, and how official files become tables."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from hwnas.cli.errors import UsageError, plain, plain_settings
from hwnas.core import suggestion
from hwnas.data.splits import INDEX_LISTS, read_index_list
from hwnas.data.tables import SIZE, read_table
from hwnas.files import data_folder, find_file, printable
from hwnas.tables.convert import hwnasbench, nasbench201, write_table
from hwnas.tables.download import SOURCES, by_hand, digest, download, find_source, in_words, sources_of
from hwnas.tables.verify import TABLES

HELP = """\
usage: hwnas data <command> [setting=value ...]

  list                          the tables and data sets that hwnas knows, and which are there
  path                          the data folder (HWNAS_DATA, else the user's cache folder)
  verify [name]                 check one table, or all that are there, against what is known about them
  nasbench201 source=<path>     convert NATS-Bench's "simple" topology archive (NATS-tss-v1_0-3ffb9-simple,
                                .tar or its folder), or NAS-Bench-201-v1_1-096897.pth (takes 9 GB of memory)
                                partial=true: with NaN for architectures that the source lacks
  hwnasbench source=<file>      convert HW-NAS-Bench-v1_0.pickle
  <either> download             fetch the official file beside the tables first; resumes where it stopped
  splits                        check NAS-Bench-201's index lists of images, for dataset.split=benchmark;
                                splits download: fetch those that are missing (0.6 MB)

Without source=, the official file is looked for in the working folder and the data folder. Tables are written
to the data folder, or to=<folder>.
"""


def command(arguments: list[str]) -> int:
    """`hwnas data`: returns the exit code, 0, 1 for what went wrong, or 2 for wrong usage."""
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(HELP, end="")
        return 0 if arguments else 2
    name, rest = arguments[0], arguments[1:]

    def perform() -> None:
        if name not in COMMANDS:
            raise UsageError(f"unknown command {name!r}{suggestion(name, list(COMMANDS))}")
        COMMANDS[name](rest)

    return plain("data", perform)


def _list(arguments: Sequence[str]) -> None:

    plain_settings("data", arguments, ())
    folder = data_folder()
    print(printable(f"{folder}{'' if folder.is_dir() else ' (missing)'}"))
    for name, known in TABLES.items():
        there = (folder / name).is_file()
        size = in_words((folder / name).stat().st_size) if there else "missing"
        print(f"  {name:<32}{size:>9}  {known.holds}; {known.origin}{'' if there else f'; {known.how}'}")
    print("official files, to be converted:")
    for source in SOURCES.values():
        there = (folder / source.name).is_file()
        state = "there" if there else "missing"
        known_by = ", ".join(source.checksums) or "no public checksum"
        size = in_words(source.size)
        print(f"  {source.name:<32}{state:>9}  {size}; {known_by}; {source.origin} ({source.licence})")


def _path(arguments: Sequence[str]) -> None:
    plain_settings("data", arguments, ())
    print(data_folder())


def _verify(arguments: Sequence[str]) -> None:

    if len(arguments) > 1:
        raise UsageError(f"verify takes one table, not {len(arguments)}")
    if arguments:
        name = arguments[0] if arguments[0].endswith(".npz") else f"{arguments[0]}.npz"
        if Path(name).name not in TABLES:
            names = [name.removesuffix(".npz") for name in TABLES]
            raise ValueError(f"{arguments[0]} is no table that is known{suggestion(arguments[0], names)}")
        files = [find_file(name)]
    else:
        folder = data_folder()
        files = [folder / name for name in TABLES if (folder / name).is_file()]
        if not files:
            raise ValueError(f"no tables in {folder}; `hwnas data list` says how to get them")
    wrong = []
    for file in files:
        try:
            table = read_table(file)
            print(f"{file}: good, {TABLES[file.name].check(table)}")
        except ValueError as error:
            wrong.append(str(error) if str(file) in str(error) else f"{file}: {error}")
            continue
        print(f"  sha256 {digest(file, 'sha256')}")
        print(printable(f"  {', '.join(f'{key} {_shape(values)}' for key, values in table.items())}"))
    if wrong:
        raise ValueError("; ".join(wrong))


def _shape(values: np.ndarray) -> str:
    return "x".join(map(str, values.shape)) or "scalar"


def _nasbench201(arguments: Sequence[str]) -> None:

    given = plain_settings("data", arguments, ("source", "to", "partial"), "download")
    partial = given.get("partial", "false").lower()
    if partial not in ("true", "false"):
        raise UsageError(f"partial={given['partial']} is neither true nor false")
    folder = _target(given)
    file = folder / "nasbench201.npz"
    if partial == "true" and file.exists():
        raise ValueError(
            f"{file} is there already; a partial table does not replace it (to=<another folder>)"
        )
    source = _source("nasbench201", given, folder)
    with _progress() as progress:
        table = nasbench201(source, partial=partial == "true", progress=progress)
    _write({file.name: table}, folder, source)


def _hwnasbench(arguments: Sequence[str]) -> None:

    given = plain_settings("data", arguments, ("source", "to"), "download")
    folder = _target(given)
    source = _source("hwnasbench", given, folder)
    _write(hwnasbench(source), folder, source)


def _splits(arguments: Sequence[str]) -> None:

    given = plain_settings("data", arguments, (), "download")
    folder = _target(given) if given else data_folder()
    lacking = []
    for source in sources_of("splits"):
        benchmark = next(name for name, of in INDEX_LISTS.items() if of.file == source.name)
        try:
            find_file(source.name)
        except ValueError:
            if not given:
                lacking.append(source.name)
                continue
            download(source, folder)
        valid, rest = read_index_list(benchmark)
        halves = INDEX_LISTS[benchmark].halves
        num = len(valid) + len(rest)
        print(f"{source.name}: {len(valid):,} of {num:,} {halves} images of {benchmark} validate")
    if lacking:
        raise ValueError(f"{', '.join(lacking)} not in {folder}; fetch now: hwnas data splits download")


def _write(tables: dict[str, dict[str, np.ndarray]], folder: Path, source: Path) -> None:
    """Check all tables, then write them."""
    summaries = {}
    for name, table in tables.items():
        try:
            summaries[name] = TABLES[name].check(table)
        except ValueError as error:
            raise ValueError(f"{source} is not what it should be: {error}") from None
    for name, table in tables.items():
        write_table(folder / name, table)
        print(f"{folder / name}: {summaries[name]}")


def _source(converts: str, given: dict[str, str], folder: Path) -> Path:
    """The official file: the one given, the one that is there, or the one that is fetched now."""
    official = sources_of(converts)[0]
    if "source" in given:
        if "download" in given:
            raise UsageError("download and source= exclude each other")
        if not given["source"]:
            raise UsageError("source= is empty")
        places = [Path(given["source"]).expanduser(), data_folder() / given["source"]]
        there = [place for place in places if place.exists()]
        if there:
            return there[0]
        looked = " and ".join(str(place.absolute()) for place in dict.fromkeys(places))
        raise ValueError(
            f"source={given['source']} not found; looked for {looked}; the official file is {official.name} "
            f"({in_words(official.size)}) from {official.url}"
        )
    found, looked = find_source(converts, folder)
    if found is not None:
        return found
    if "download" in given:
        return download(official, folder, looked=looked)
    raise ValueError(f"{by_hand(official, looked)}, or fetch it now: hwnas data {converts} download")


def _target(given: dict[str, str]) -> Path:
    """The folder for tables; that it can be written is found out before the work is done.

    Raises:
        PermissionError, NotADirectoryError: It cannot.
    """
    folder = Path(given["to"]).expanduser() if given.get("to") else data_folder()
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    if not there.is_dir():
        raise NotADirectoryError(20, os.strerror(20), str(there))
    if not os.access(there, os.W_OK):
        raise PermissionError(13, "tables cannot be written here (to=<another folder>)", str(there))
    return folder


@contextmanager
def _progress() -> Iterator[Callable[[int], None]]:
    """Architectures read so far, on a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    console = Console(stderr=True)
    columns = ("{task.description}", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("architectures", total=SIZE)
        yield lambda count: progress.update(task, completed=count)


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    "list": _list,
    "path": _path,
    "verify": _verify,
    "nasbench201": _nasbench201,
    "hwnasbench": _hwnasbench,
    "splits": _splits,
}
