"""Files written whole or not at all, and kept through a power cut once a function here has returned."""

from __future__ import annotations

import csv
import errno
import io
import itertools
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hwnas.processes import gone, identity

PARTIAL = ".partial"
"""How the names of files end that are being written; before it stands which process writes."""

ABANDONED_SECONDS = 86_400.0
"""Age after which a partial file is deleted whose process may be alive on another machine."""

_WRITER = re.compile(r".*\.([0-9a-f]{12})-(\d+)-(\d*)-\d+\.partial")
_OWNER = re.compile(r"hwnas-([0-9a-f]{12})-(\d+)-(\d*)-\w+")
_numbers = itertools.count()
_entered: set[Path] = set()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A partial file beside `path` for the caller to write; afterwards it takes the place of `path`.

    The partial file is synced before it is renamed and its folder after, so that a power cut leaves the old
    file or the new one. If the caller raises, the partial file is deleted and `path` stays as it was. What a
    killed process left behind is deleted by the next one that writes into the folder.

    Args:
        path: The file; its folder is created if needed.

    Raises:
        OSError: The file cannot be written, e.g. on a full disk; names `path`.
    """
    process = identity().replace(":", "-")
    partial = path.with_name(f"{path.name[:150]}.{process}-{next(_numbers)}{PARTIAL}")
    try:
        enter(path.parent)
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.filename in (None, str(partial), partial):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


@contextmanager
def only_maker(path: Path, announce: Callable[[str], None]) -> Iterator[None]:
    """Let one process at a time make a file that several need; the others wait, and find it afterwards.

    Args:
        path: The file. A lock beside it is held, which the system takes back from a process that ends.
        announce: Called with a sentence when another process has to be waited for.
    """
    try:
        import fcntl
    except ImportError:  # Windows: processes that start together may make the same file twice
        yield
        return
    enter(path.parent)
    with path.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            announce(f"waiting for another process that makes {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for files of this process alone; first deletes those of processes that have died."""
    for path in Path(tempfile.gettempdir()).glob("hwnas-*"):
        owner = _OWNER.fullmatch(path.name)
        if owner and gone(":".join(owner.groups())):
            shutil.rmtree(path, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"hwnas-{identity().replace(':', '-')}-")


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file; what a power cut or a full disk leaves of it is its beginning."""
    new = not path.is_file()
    try:
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    if new:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames, creations and deletions in `folder` last through a power cut, where the system can."""
    if os.name == "nt":  # opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that know no syncing of folders
            raise OSError(error.errno, error.strerror, str(folder)) from None
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, if it is there, so that it stays deleted after a power cut."""
    if path.exists():
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def enter(folder: Path) -> None:
    """Before this process's first file in a folder: create it so that it lasts, and clean it.

    Raises:
        OSError: It cannot be created; names the folder.
    """
    folder = folder.absolute()
    if folder in _entered and folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for parent in folder.parents:  # whoever created them may not have synced them
        if not os.access(parent, os.R_OK | os.W_OK):
            break
        sync_folder(parent)
    for path in folder.glob(f"*{PARTIAL}"):
        writer = _WRITER.fullmatch(path.name)
        with suppress(OSError):
            if writer and (
                gone(":".join(writer.groups())) or time.time() - path.stat().st_mtime > ABANDONED_SECONDS
            ):
                path.unlink()
    _entered.add(folder)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write text as UTF-8; see `replacing`."""
    write_bytes(path, content.encode())


def to_json(value: Any) -> str:
    """Strict JSON in one line; `inf` (not supported) becomes null, NaN is refused."""
    return json.dumps(_finite(value), allow_nan=False)


def write_json(path: Path, value: Any) -> None:
    """Write strict JSON, as `to_json` but on several lines; see `replacing`."""
    write_text(path, json.dumps(_finite(value), allow_nan=False, indent=1) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV, the first one with the names of the columns; see `replacing`."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def write_torch(path: Path, content: object) -> None:
    """Write what `torch.save` takes; see `replacing`.

    It is serialised in memory first: torch's own writer ends the process when the disk is full.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(buffer.getbuffer())
