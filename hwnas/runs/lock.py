"""The lock of a run's folder, which one process holds at a time."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path

STORED = ".hydra"
"""Where a run's folder keeps its configuration, as Hydra would write it, and the lock."""

LOCK = "lock"
"""Locked while a process works in the folder; says which process it is or was."""


@contextlib.contextmanager
def _locked(folder: Path, *, wait: bool) -> Iterator[None]:
    """Hold the lock of a folder, which is created if needed.

    Args:
        folder: A run's folder.
        wait: Whether to wait for another process that holds it; else that is an error.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks; two processes in a folder are the user's care there
        (folder / STORED).mkdir(parents=True, exist_ok=True)
        yield
        return
    path, said = folder / STORED / LOCK, False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                owner = file.read().strip() or "another process"
                if not wait:
                    raise ValueError(f"{folder} is in use by {owner}; wait for it or stop it first") from None
                if not said:
                    print(f"{folder} is in use by {owner}; waiting for it", flush=True)
                    said = True
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_at(file.fileno(), path):  # its last owner removed the folder
                continue
            file.truncate(0)
            file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
            file.flush()
            yield
            return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def in_use(folder: Path) -> bool:
    """Whether a process works in a run's folder."""
    try:
        import fcntl

        with (folder / STORED / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False
