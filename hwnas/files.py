"""Files written whole or not at all, and kept through a power cut once a function here has returned."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

PARTIAL = ".partial"
"""How the names of files end that are being written."""

ABANDONED_SECONDS = 3600.0
"""Age after which a partial file that nobody writes any more is deleted."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A partial file beside `path` for the caller to write; afterwards it takes the place of `path`.

    The partial file is synced before it is renamed and its folder after, so that a power cut leaves the old
    file or the new one. If the caller raises, the partial file is deleted and `path` stays as it was.

    Args:
        path: The file; its folder is created if needed.

    Raises:
        OSError: The file cannot be written, e.g. on a full disk; names `path`.
    """
    partial = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
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


def sync_folder(folder: Path) -> None:
    """Make renames, creations and deletions in `folder` last through a power cut, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, if it is there, so that it stays deleted after a power cut."""
    if path.exists():
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def remove_abandoned(folder: Path) -> None:
    """Delete partial files in `folder` that a process left behind when it was killed."""
    for path in folder.glob(f"*{PARTIAL}"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_SECONDS:
                path.unlink(missing_ok=True)


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
