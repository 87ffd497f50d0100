"""A run's folder belongs to one run, and to one process at a time."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from omegaconf.errors import OmegaConfBaseException

from hwnas.files import locked, take_lock

STORED = ".hydra"
"""Where a run's folder keeps its configuration, as Hydra would write it, and the lock."""

LOCK = "lock"
"""Locked while a process works in the folder; says which process it is or was."""

JOB = "job.json"
"""File in a job's folder: whether the job finished, and its result; or failed, and the reason."""

OF_WANDB = "wandb/*/logs/debug-core.log"
"""A link of Weights & Biases' own, to its cache; each session writes another."""


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


@contextlib.contextmanager
def own_folder(folder: Path, log: str, begun: Sequence[str], *, wait: bool = False) -> Iterator[bool]:
    """Hold the lock of a folder, which is created if needed; yields whether there is no run in it yet.

    A run that is refused (ValueError, OSError) before it has written anything leaves no folder.

    Args:
        folder: A run's folder.
        log: Name of the run's log file.
        begun: Files that are there once a run has begun, relative to the folder.
        wait: Whether to wait for another process that holds it; else that is a ValueError.

    Raises:
        ValueError: The folder is in use, holds other files, or a link that leads out of it.
    """
    _check_links(folder)
    with lock_folder(folder, wait=wait):
        others = _names(folder) - {STORED, log, JOB}
        new = not all((folder / name).is_file() for name in begun)
        try:
            if new and others:
                raise ValueError(f"{folder} holds no run, but other files; choose a new or an empty folder")
            yield new
        except (ValueError, OSError, OmegaConfBaseException):
            ours = {STORED, log, *(Path(name).parts[0] for name in begun)}
            if new and _names(folder) <= others | ours:
                _remove(folder, ours)
            raise


def _check_links(folder: Path) -> None:
    """Raise ValueError if a link in a run's folder leads out of it: whoever resumes there would write there.

    The folder itself may lie behind a link.
    """
    inside = folder.resolve()
    for place, folders, files in os.walk(folder):
        for path in (Path(place, name) for name in (*folders, *files)):
            if not path.is_symlink() or path.relative_to(folder).match(OF_WANDB):
                continue
            try:
                leads = path.resolve()
            except (OSError, RuntimeError):  # in a circle
                continue
            if not leads.is_relative_to(inside):
                raise ValueError(
                    f"{path} is a link that leads out of the run's folder, to {leads}; a run writes only in "
                    "its own folder, so put there what belongs there"
                )


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _remove(folder: Path, names: set[str]) -> None:
    """Remove what a refused command has written, and its folder if nothing else is in it."""
    shutil.rmtree(folder / STORED)
    for name in names - {STORED}:
        (folder / name).unlink(missing_ok=True)
    if not _names(folder) and folder.resolve() != Path.cwd():
        folder.rmdir()


def in_use(folder: Path) -> bool:
    """Whether a process works in a run's folder."""
    try:
        with (folder / STORED / LOCK).open() as file:
            return not take_lock(file, shared=True)
    except OSError:
        return False
