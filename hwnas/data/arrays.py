"""Safe reading of foreign .npz files: plain arrays only, of bounded size."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.lib.npyio import NpzFile

from hwnas.files import bounded

MAX_BYTES = 1 << 30
"""Bytes that every file may expand to; a large file may expand to `MAX_RATIO` times its own size."""

MAX_RATIO = 100

SLACK = 1 << 28
"""Bytes of memory that reading may take besides the arrays."""

UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, ValueError, TypeError, LookupError),
    *(EOFError, MemoryError, NotImplementedError, OverflowError, SyntaxError, RecursionError),
)
"""Errors that reading a damaged or hostile file may raise."""


@contextmanager
def arrays_of(file: Path) -> Iterator[NpzFile]:
    """The arrays of an .npz file by name; `files` lists the names. An array is read when it is looked up.

    Raises:
        OSError: The file cannot be opened.
        ValueError, and others of `UNREADABLE`: Not an .npz file, a damaged one, one with objects in it, or
            one that expands to more than it may.
    """
    with file.open("rb") as stream:
        if not zipfile.is_zipfile(stream):
            raise zipfile.BadZipFile("not a zip archive")
        with zipfile.ZipFile(stream) as archive:
            whole = sum(entry.file_size for entry in archive.infolist())
        size = file.stat().st_size
        if whole > max(MAX_BYTES, MAX_RATIO * size):
            raise ValueError(f"it expands to {whole:,} bytes, {whole // max(1, size)} times its size")
        stream.seek(0)
        with bounded(2 * whole + SLACK), np.load(stream, allow_pickle=False) as arrays:
            yield arrays
