"""A run's log file."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path


class _Log(logging.FileHandler):
    """A file of what is said, which is silent when it cannot be written: the terminal has it, too."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record; the file may have to be created."""
        with contextlib.suppress(OSError):
            super().emit(record)

    def close(self) -> None:
        """Close the file; what could not be written before cannot be now."""
        with contextlib.suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Say nothing, where logging prints a traceback."""


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Write what is said to a file."""
    ours, handler = logging.getLogger("hwnas"), _Log(path, delay=True)
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    level = ours.level
    logging.root.addHandler(handler)  # where Lightning finds one it does not write to the terminal
    ours.setLevel(logging.INFO)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)
        ours.setLevel(level)
        handler.close()
