"""A run's journal: every trial in order, append-only, one JSON line each."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from hwnas.core import (
    Genotype,
    Trial,
)
from hwnas.files import enter, sync_folder, take_lock, to_json

PLAN = "plan.json"
"""A run's objectives, limits as numbers, and goals of all metrics, in the run's folder from its start."""

_MALFORMED = (
    *(ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError),
)  # whatever a line that is no trial can raise


def metrics_from_json(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Metrics as read from JSON: null is `inf`; names are kept once, not per trial."""
    return {sys.intern(name): math.inf if value is None else float(value) for name, value in metrics.items()}


class Archive:
    """Every trial of a run, in order; kept on disk so that a killed run can be replayed.

    Args:
        path: The journal, one JSON line per trial; None keeps the archive in memory only.

    Attributes:
        trials: All trials, in order.
        notes: What was repaired when the journal was opened, one sentence each.

    Raises:
        ValueError: A line in the middle of the journal is corrupt (named), or another process writes it.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.trials: list[Trial] = []
        self.notes: list[str] = []
        self._starts: list[tuple[int, int]] = []  # per generation its first trial, and where its line starts
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
                what = "what a power cut left, from" if several else "the torn last"
                self.notes.append(f"dropped {what} line {len(self.trials) + 1} of {path}")
                self._file.truncate(end)
            sync_folder(path.parent)  # that the file is there
        except (ValueError, OSError):
            self.close()
            raise

    def recorded(self, generation: int, population: Sequence[Genotype]) -> list[Trial] | None:
        """The trials of a generation if the journal holds all of them; a part of them is dropped.

        Raises:
            ValueError: The journal holds other architectures than `population`.
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
        """Append trials of the last generation or the next, on disk before in memory."""
        offset = 0
        if self._file is not None:
            offset = self._file.seek(0, os.SEEK_END)
            try:
                self._file.write(b"".join(map(_line, trials)))
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:  # a full disk; what was written of the generation is dropped on resuming
                raise OSError(error.errno, error.strerror, self._file.name) from None
        if trials and trials[0].generation == len(self._starts):
            self._starts.append((len(self.trials), offset))
        self.trials.extend(trials)

    def close(self) -> None:
        """Close the journal and release it."""
        if self._file is not None:
            with suppress(OSError):  # of what could not be written, and was said then
                self._file.close()
            self._file = None


def read_archive(path: Path) -> list[Trial]:
    """The whole trials of a journal, without locking or repairing it; a torn last line is left out.

    Raises:
        ValueError: A line in the middle is corrupt (named).
    """
    return _parse(path, path.read_bytes())[0]


def _parse(path: Path, data: bytes) -> tuple[list[Trial], list[tuple[int, int]], int]:
    """Trials, what `Archive._starts` is, and where the last whole line ends."""
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
    """Whether a line and what follows are the last generation, of which a power cut left zeros.

    Args:
        line: What is no trial.
        rest: The lines after it.
        following: The generation after that of the last trial before the line; one before may be unfinished.
    """
    generations = set()
    for other in (line.strip(b"\0"), *rest):  # zeros swallow the line's end before the next trial
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
