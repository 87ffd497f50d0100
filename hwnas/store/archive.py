"""A run's archive: all trials in order, in an append-only file with one JSON line per trial."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hwnas.core import Genotype, Trial
from hwnas.files import enter, sync_folder, take_lock, to_json

PLAN = "plan.json"
"""File in a run's folder, written at its start: objectives, limits as numbers, and goals of all metrics."""

_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError)
"""Errors that reading a line that is no trial may raise."""


def metrics_from_json(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Metrics as read from JSON, with `inf` for null; all trials use the same strings as names."""
    return {sys.intern(name): math.inf if value is None else float(value) for name, value in metrics.items()}


class Archive:
    """All trials of a run, in order; on disk, so that a killed run can be replayed.

    Args:
        path: The archive's file; None keeps the archive in memory only.

    Attributes:
        trials: All trials, in order.
        notes: A sentence for each repair that was made when the file was opened.

    Raises:
        ValueError: A line in the middle of the file is corrupt (named), or another process writes the file.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.trials: list[Trial] = []
        self.notes: list[str] = []
        self._starts: list[
            tuple[int, int]
        ] = []  # per generation: index of its first trial, offset of its line
        self._file = None
        if path is None:
            return
        enter(path.parent)
        self._file = path.open("a+b")
        if not take_lock(self._file):
            self.close()
            raise ValueError(f"another process is writing {path}; wait for it or stop it first")
        self._file.seek(0)
        data = self._file.read()
        try:
            self.trials, self._starts, end = _parse(path, data)
            if end < len(data):
                several = b"\n" in data[end:-1]
                dropped = "the rest after a power cut, from" if several else "the unfinished last"
                self.notes.append(f"dropped {dropped} line {len(self.trials) + 1} of {path}")
                self._file.truncate(end)
            sync_folder(path.parent)  # so that a new file survives a power cut
        except (ValueError, OSError):
            self.close()
            raise

    def recorded(self, generation: int, population: Sequence[Genotype]) -> list[Trial] | None:
        """The trials of a generation; None if the archive does not hold all of them, and a part is dropped.

        Raises:
            ValueError: The archive holds other architectures than `population`.
        """
        if generation >= len(self._starts):
            return None
        first, offset = self._starts[generation]
        end = self._starts[generation + 1][0] if generation + 1 < len(self._starts) else len(self.trials)
        trials = self.trials[first:end]
        if [trial.genotype for trial in trials] != list(population[: len(trials)]):
            raise ValueError(
                f"generation {generation} of the archive holds other architectures than the strategy asks "
                "for: it was written with other settings or by another version"
            )
        if len(trials) < len(population):
            if self._file is not None:
                self._file.truncate(offset)
            del self.trials[first:], self._starts[generation:]
            return None
        return trials

    def extend(self, trials: Sequence[Trial]) -> None:
        """Append trials of the last generation or of the next one, first on disk, then in memory."""
        offset = 0
        if self._file is not None:
            offset = self._file.seek(0, os.SEEK_END)
            try:
                self._file.write(b"".join(map(_line, trials)))
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:  # e.g. a full disk; a resumed run drops an unfinished generation
                raise OSError(error.errno, error.strerror, self._file.name) from None
        if trials and trials[0].generation == len(self._starts):
            self._starts.append((len(self.trials), offset))
        self.trials.extend(trials)

    def close(self) -> None:
        """Close the file and release its lock."""
        if self._file is not None:
            with suppress(OSError):  # `extend` has reported it
                self._file.close()
            self._file = None


def read_archive(path: Path) -> list[Trial]:
    """The trials of an archive's file, without locking or repairing it; an unfinished last line is left out.

    Raises:
        ValueError: A line in the middle is corrupt (named).
    """
    return _parse(path, path.read_bytes())[0]


def _parse(path: Path, data: bytes) -> tuple[list[Trial], list[tuple[int, int]], int]:
    """Trials, `Archive._starts`, and the offset of the end of the last complete line."""
    trials: list[Trial] = []
    starts: list[tuple[int, int]] = []
    end = 0
    lines = data.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            if not line.endswith(b"\n"):
                raise ValueError("no line end")
            trial = _trial(line)
            if trial.generation not in {max(len(starts) - 1, 0), len(starts)}:
                raise ValueError(
                    f"generation {trial.generation} after {max(len(starts) - 1, 0)}: lines are missing"
                )
        except _MALFORMED as error:
            if number < len(lines) and not _unsynced(line, lines[number:], len(starts)):
                raise ValueError(
                    f"{path} is corrupt in line {number} of {len(lines)} ({error}); "
                    "restore it from a copy, or start a new run"
                ) from None
            break
        if trial.generation == len(starts):
            starts.append((len(trials), end))
        trials.append(trial)
        end += len(line)
    return trials, starts, end


def _unsynced(line: bytes, rest: Sequence[bytes], following: int) -> bool:
    """Whether a line and the rest of the file are of the last generation and a power cut left zeros there.

    Args:
        line: A line that is no trial.
        rest: The lines after it.
        following: The generation that comes next after the trials before the line.
    """
    generations = set()
    for other in (
        line.strip(b"\0"),
        *rest,
    ):  # a line end may be zeros, too, and a trial may follow in the line
        with suppress(*_MALFORMED):
            generations.add(_trial(other).generation)
    return b"\0" in line and len(generations) <= 1 and generations <= {following - 1, following}


def _line(trial: Trial) -> bytes:
    record = {"generation": trial.generation, "genotype": trial.genotype, "metrics": dict(trial.metrics)}
    return (to_json(record) + "\n").encode()


def _trial(line: bytes) -> Trial:
    record = json.loads(line)
    genotype = tuple(int(op) for op in record["genotype"])
    metrics = metrics_from_json(record["metrics"])
    if not metrics or any(math.isnan(value) for value in metrics.values()):
        raise ValueError("metrics must be numbers or null, at least one")
    return Trial(genotype, metrics, int(record["generation"]))
