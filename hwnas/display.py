"""What a run shows in the terminal: phases, progress, and plain lines where there is no terminal."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

logger = logging.getLogger("hwnas")

WIDE = 80
"""Columns of a terminal that has room for a progress bar beside the figures."""


class Display:
    """Progress on the terminal, and the seconds that each phase took.

    Everything said also goes to the run's log file.

    Attributes:
        seconds: Wall-clock seconds per phase so far.
    """

    def __init__(self) -> None:
        # In a notebook rich's progress needs ipywidgets; plain lines do without.
        self.console = Console(highlight=False, force_jupyter=False)
        if not self.console.is_terminal:
            self.console.width = 160  # logs are not as narrow as the terminal that is not there
        self.seconds: dict[str, float] = {}
        self._progress: Progress | None = None

    @contextmanager
    def phase(self, name: str, doing: str) -> Iterator[None]:
        """Time a phase and show what it is doing while it lasts."""
        start = time.perf_counter()
        status = self.console.status(doing) if self.console.is_terminal else None
        if status:
            status.start()
        try:
            yield
        finally:
            if status:
                status.stop()
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def say(self, text: str) -> None:
        """One line, also to the log."""
        logger.info(text)
        self.console.print(text, markup=False, soft_wrap=True)

    def warn(self, text: str) -> None:
        """One line that stands out, also to the log."""
        logger.warning(text)
        self.console.print(f"warning: {text}", markup=False, soft_wrap=True, style="yellow")

    @contextmanager
    def generations(self, total: int) -> Iterator[None]:
        """A progress bar over the generations; between its updates nothing is printed by others."""
        start = time.perf_counter()
        if self.console.is_terminal:
            wide = [TextColumn("search"), BarColumn(bar_width=20)], [TimeRemainingColumn()]
            before, after = wide if self.console.width >= WIDE else ([], [])
            self._progress = Progress(
                *before,
                MofNCompleteColumn(),
                *after,
                # what is left of the line, so that only the figures are cut
                TextColumn("{task.fields[figures]}", table_column=Column(ratio=1, no_wrap=True)),
                console=self.console,
                expand=True,
            )
            self._task = self._progress.add_task("search", total=total, figures="")
            self._progress.start()
        self._total = total
        try:
            yield
        finally:
            if self._progress is not None:
                self._progress.stop()
                self._progress = None
            self.seconds["search"] = time.perf_counter() - start
        self._start = start

    def generation(self, number: int, figures: Mapping[str, float], replayed: bool) -> None:
        """Show a finished generation.

        Args:
            number: From 0.
            figures: What to show, by name.
            replayed: Whether it was read from the archive.
        """
        text = "  ".join(f"{name} {value:g}" for name, value in figures.items())
        if self._progress is not None:
            self._progress.update(self._task, completed=number + 1, figures=text)
        elif not replayed and (number + 1) % max(1, self._total // 20) in (0, self._total):
            self.console.print(f"generation {number + 1}/{self._total}  {text}", markup=False, soft_wrap=True)
