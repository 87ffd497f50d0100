"""Progress of a run in the terminal: a moving line, or plain lines at intervals if there is no terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

from hwnas.files import printable
from hwnas.training.progress import listening

logger = logging.getLogger("hwnas")

WIDE = 80
"""Columns of a terminal from which on a progress bar fits beside the figures."""

SECONDS_BETWEEN_LINES = 10.0
"""Longest silence of a run without a terminal whose work reports progress."""

SECONDS_BETWEEN_UPDATES = 0.1
"""Shortest time between two changes of a progress line."""

GENERATION = "generation"


@dataclass
class _Level:
    """Something that is counted, e.g. steps of a training.

    Attributes:
        name: Name of what is counted.
        done: Number done.
        total: Number in all.
        began: Start of the clock for the time per unit, and the fraction that was done before.
    """

    name: str
    done: int
    total: int
    began: tuple[float, float]


class Display:
    """Progress in the terminal, and the time of each phase.

    All messages also go to the run's log file.

    Attributes:
        seconds: Wall-clock seconds per phase so far.
        doubts: Warnings about the validity of the run's figures, for its page.
    """

    def __init__(self) -> None:
        # rich's progress needs ipywidgets in a notebook; plain lines do not.
        self.console = Console(highlight=False, markup=False, force_jupyter=False)
        if not self.console.is_terminal:
            self.console.width = 160  # of a log; rich assumes a narrow terminal
        self.seconds: dict[str, float] = {}
        self.doubts: list[str] = []
        self._bar: Progress | None = None
        self._levels: list[_Level] = []  # from the outermost to the innermost
        self._doing = self._figures = ""
        self._is_first = True  # whether all generations so far are of the archive
        self._printed = self._updated = 0.0

    @contextmanager
    def phase(self, name: str, doing: str) -> Iterator[None]:
        """Time a phase, and show its name and progress while it lasts."""
        start = time.perf_counter()
        try:
            with self._shown(doing):
                yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def say(self, text: str) -> None:
        """Print a line."""
        logger.info(text)
        self._print(text)

    def warn(self, text: str) -> None:
        """Print a warning."""
        logger.warning(text)
        self._print(f"warning: {text}", "yellow")

    def doubt(self, text: str) -> None:
        """Print a warning about the validity of the run's figures; its page repeats it."""
        if text not in self.doubts:
            self.doubts.append(text)
        self.warn(text)

    @contextmanager
    def generations(self, total: int) -> Iterator[None]:
        """Show progress over the generations and inside them."""
        start = time.perf_counter()
        try:
            with self._shown("search", _Level(GENERATION, 0, total, (start, 0.0))):
                yield
        finally:
            self.seconds["search"] = time.perf_counter() - start

    def generation(self, number: int, figures: Mapping[str, str], replayed: bool) -> None:
        """Show a finished generation.

        Args:
            number: Number of the generation, from 0.
            figures: Figures to show, by name.
            replayed: Whether the generation was read from the archive.
        """
        level = self._levels[0]
        del self._levels[1:]
        level.done = number + 1
        # The clock starts after these: the archive is faster, and one-time work makes the first one slower.
        if replayed or self._is_first:
            level.began = (time.perf_counter(), level.done / level.total)
        self._is_first = self._is_first and replayed
        self._figures = "  ".join(f"{name} {value}" for name, value in figures.items())
        if self._bar is not None:
            self._update()
        elif not replayed and (level.done % max(1, level.total // 10) in (0, level.total) or self._is_due()):
            self._print(f"generation {level.done}/{level.total}  {self._figures}{self._left(', about ')}")

    @contextmanager
    def _shown(self, doing: str, *levels: _Level) -> Iterator[None]:
        """Show `doing` and its progress."""
        self._doing, self._figures, self._levels = doing, "", list(levels)
        self._printed = self._updated = time.perf_counter()
        self._is_first = True
        if self.console.is_terminal:
            wide = self.console.width >= WIDE
            self._bar = Progress(
                *([TextColumn("{task.description}", markup=False), BarColumn(bar_width=20)] if wide else []),
                TextColumn("{task.fields[count]}", style="progress.download", markup=False),
                *([TextColumn("{task.fields[left]}", style="cyan", markup=False)] if wide else []),
                # takes the rest of the line, so that only figures are cut
                TextColumn(
                    "{task.fields[figures]}", markup=False, table_column=Column(ratio=1, no_wrap=True)
                ),
                console=self.console,
                expand=True,
                refresh_per_second=4,
                transient=not levels,
            )
            self._bar.add_task(doing, total=None, count="", left="", figures="" if wide else doing)
            if levels:
                self._update()
            self._bar.start()
        try:
            with listening(self._listen):
                yield
        finally:
            if self._bar is not None:
                self._bar.stop()
                self._bar = None
            self._levels = []

    def _listen(self, name: str, done: int, total: int) -> None:
        """Take in progress, and show it unless the last change was too recent."""
        depth = next((i for i, level in enumerate(self._levels) if level.name == name), len(self._levels))
        is_new = depth == len(self._levels)
        began = (time.perf_counter(), done / max(1, total)) if is_new else self._levels[depth].began
        self._levels[depth:] = [_Level(name, done, total, began)]
        if self._bar is not None:
            if is_new or time.perf_counter() - self._updated >= SECONDS_BETWEEN_UPDATES:
                self._update()
        elif self._is_due():
            first = "" if self._levels[0].name == GENERATION else f"{self._doing}: "
            self._print(f"{first}{', '.join(self._counts())}{self._left(', about ')}")
        if done >= total:
            del self._levels[depth:]

    def _counts(self) -> list[str]:
        return [f"{level.name} {level.done}/{level.total}" for level in self._levels]

    def _fraction(self, depth: int = 0) -> float:
        """The fraction of a level that is done; inner levels are parts of its current unit."""
        fraction = 0.0
        for level in reversed(self._levels[depth:]):
            fraction = (level.done + fraction) / max(1, level.total)
        return min(1.0, fraction)

    def _left(self, before: str = "") -> str:
        """`before` and the time left in words; empty until it can be estimated."""
        if not self._levels:
            return ""
        outer = self._levels[0]
        inside = outer.name == GENERATION and self._is_first and len(self._levels) > 1
        start, known = self._levels[inside].began
        done, elapsed = self._fraction(inside), time.perf_counter() - start
        if not known < done < 1.0 or elapsed < 1.0:
            return ""
        left = duration(elapsed * (1.0 - done) / (done - known))
        return f"{before}{left} left" + (f" in generation {outer.done + 1}" if inside else "")

    def _is_due(self) -> bool:
        return time.perf_counter() - self._printed >= SECONDS_BETWEEN_LINES

    def _print(self, text: str, style: str | None = None) -> None:
        self._printed = time.perf_counter()
        self.console.print(printable(text), soft_wrap=True, style=style)

    def _update(self) -> None:
        """Show the levels on the progress line."""
        assert self._bar is not None
        self._updated = time.perf_counter()
        counts = self._counts() or [""]
        if self._levels and self._levels[0].name == GENERATION:
            counts[0] = f"{self._levels[0].done}/{self._levels[0].total}"
        self._bar.update(
            self._bar.task_ids[0],
            total=1.0 if self._levels else None,
            completed=self._fraction(),
            count=counts[0],
            left=self._left(),
            figures="  ".join(part for part in (", ".join(counts[1:]), self._figures) if part),
        )


def duration(seconds: float) -> str:
    """An estimated time in words: "40 s", "12 min", "3.5 h"."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
