"""The lock of a run's folder, which one process holds at a time."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from hwnas.files import locked, take_lock

STORED = ".hydra"
"""Where a run's folder keeps its configuration, as Hydra would write it, and the lock."""

LOCK = "lock"
"""Locked while a process works in the folder; says which process it is or was."""


def lock_folder(folder: Path, *, wait: bool) -> AbstractContextManager[None]:
    """Hold the lock of a folder, which is created if needed.

    Args:
        folder: A run's folder.
        wait: Whether to wait for another process that holds it; else that is a ValueError.
    """

    def busy(owner: str) -> None:
        if not wait:
            raise ValueError(f"{folder} is in use by {owner}; wait for it or stop it first")
        print(f"{folder} is in use by {owner}; waiting for it", flush=True)

    return locked(folder / STORED / LOCK, busy)


def in_use(folder: Path) -> bool:
    """Whether a process works in a run's folder."""
    try:
        with (folder / STORED / LOCK).open() as file:
            return not take_lock(file, shared=True)
    except OSError:
        return False
