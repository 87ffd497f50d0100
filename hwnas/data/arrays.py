"""Arrays of .npz files from elsewhere: plain, and no larger than their file says and may."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.files import bounded

MAX_BYTES = 1 << 30
"""What a file may always expand to; beyond, to `MAX_RATIO` times its own size."""

MAX_RATIO = 100
SLACK = 1 << 28
"""Bytes of memory that reading takes besides the arrays."""

UNREADABLE = (
    *(zipfile.BadZipFile, zlib.error, struct.error, ValueError, TypeError, LookupError),
    *(EOFError, MemoryError, NotImplementedError, OverflowError, SyntaxError, RecursionError),
)
"""What reading a file that is damaged or hostile may raise."""


@contextmanager
def arrays_of(file: Path) -> Iterator[Any]:
    """The arrays of an .npz file by name, `.files`, each read when it is asked for; none holds objects.

    Raises:
        OSError: The file cannot be opened.
        ValueError, and others of `UNREADABLE`: Not an .npz file, a damaged one, or one that expands to more
            than it may.
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
