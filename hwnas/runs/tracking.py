"""Logging of a run's figures: to metrics.csv always, to Weights & Biases and TensorBoard on request."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from hwnas.files import append
from hwnas.store import password

if TYPE_CHECKING:
    import wandb
    from torch.utils.tensorboard import SummaryWriter


class Tracker:
    """Writes figures per step to metrics.csv and, on request, to Weights & Biases and TensorBoard.

    Weights & Biases never stops a run: its first error becomes a warning, and the run continues without it.
    `finish` must be called; otherwise the next job of this process would log to the same W&B run.

    Args:
        folder: The run's folder.
        settings: The config group `logger`: "wandb", with "project" and "mode"; "tensorboard".
        config: The whole configuration, for W&B.
        run_id: W&B's run id; a resumed run has the same.
        job: Name of the command.
        warn: Called with a sentence when W&B fails.

    Raises:
        ValueError: An unknown mode, a project that is no text, or TensorBoard is not installed.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, object],
        config: Mapping[str, object],
        *,
        run_id: str,
        job: str,
        warn: Callable[[str], None],
    ) -> None:
        self._path = folder / "metrics.csv"
        self._columns: list[str] | None = None
        self._warn = warn
        self._run: wandb.Run | None = None
        self._board: SummaryWriter | None = None
        if not isinstance(settings, Mapping) or not isinstance(settings.get("wandb"), bool):
            raise ValueError(
                f"logger must be csv, wandb or tensorboard, with wandb: true or false, not {settings}"
            )
        if settings.get("tensorboard"):
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise ValueError(
                    "logger=tensorboard needs TensorBoard; pip install 'hwnas[tensorboard]'"
                ) from None
            self._board = SummaryWriter(str(folder / "tensorboard"))
        if settings["wandb"]:
            self._run = self._started(folder, settings, config, run_id, job)

    def _started(
        self,
        folder: Path,
        settings: Mapping[str, object],
        config: Mapping[str, object],
        run_id: str,
        job: str,
    ) -> wandb.Run | None:
        """The W&B run, offline if W&B is out of reach; None if it does not work at all."""
        mode, project = settings.get("mode"), settings.get("project")
        if mode not in ("online", "offline"):
            raise ValueError(f"logger.mode {mode!r} is not one of online, offline")
        if project is not None and not isinstance(project, str):
            raise ValueError(f"logger.project must be a text, not {project!r}")
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb

        start = partial(
            wandb.init,
            project=project,
            dir=str(folder),
            config={key: password.hidden(value) for key, value in config.items()},
            id=run_id,
            resume="allow",
            job_type=job,
            group=folder.parent.name,
            name=folder.name,
            settings=wandb.Settings(silent=True, console="off", init_timeout=20),
        )
        try:
            return start(mode=mode)
        except Exception as error:  # wandb raises errors of many kinds; none may stop a search
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            self._warn(
                f"Weights & Biases is unreachable ({first}); logging offline, send it later: wandb sync"
            )
        try:
            wandb.teardown()
            return start(mode="offline")
        except Exception as error:
            self._warn(
                f"Weights & Biases does not work offline either ({error}); metrics.csv has the figures"
            )
            return None

    def log(
        self,
        step: int,
        values: Mapping[str, float | None],
        *,
        replayed: bool = False,
        session: Mapping[str, float] | None = None,
    ) -> None:
        """Log the figures of one step.

        Args:
            step: Number of the step, from 0.
            values: Figures by name, None for unknown ones; the names of the first step become the columns.
            replayed: Whether an earlier session of the run has sent the figures.
            session: Figures of this session alone; they are sent, but not written to metrics.csv.
        """
        first = self._columns is None
        if self._columns is None:
            self._columns = ["step", *values]
        row = [values.get(name) for name in self._columns[1:]]
        try:
            with self._path.open("w" if first else "a", newline="") as file:
                writer = csv.writer(file)
                if first:
                    writer.writerow(self._columns)
                writer.writerow([step, *("" if value is None else value for value in row)])
        except OSError as error:  # a full disk
            raise OSError(error.errno, error.strerror, str(self._path)) from None
        known = {name: value for name, value in {**values, **(session or {})}.items() if value is not None}
        if not replayed:
            self._send(lambda run: run.log(known, step=step))
            if self._board is not None:
                for name, value in known.items():
                    self._board.add_scalar(name, value, step)

    def summary(self, values: Mapping[str, object]) -> None:
        """Log figures of the whole run; syncs metrics.csv, so that it survives a power cut."""
        if self._columns is not None:
            append(self._path, b"")
        self._send(lambda run: run.summary.update(dict(values)))

    def front(self, columns: Sequence[str], rows: Sequence[Sequence[object]], x: str, y: str) -> None:
        """Log a front as a W&B table and a scatter plot.

        Args:
            columns: Names of the columns.
            rows: One row per network.
            x: Column of the horizontal axis.
            y: Column of the vertical axis.
        """

        def send(run: wandb.Run) -> None:
            import wandb

            table = wandb.Table(columns=list(columns), data=[list(row) for row in rows])
            run.log({"front": table, "front_plot": wandb.plot.scatter(table, x, y, title=f"{y} against {x}")})

        self._send(send)

    def pictures(self, paths: Mapping[str, Path]) -> None:
        """Log pictures by name."""

        def send(run: wandb.Run) -> None:
            import wandb

            run.log({name: wandb.Image(str(path)) for name, path in paths.items()})

        if paths:
            self._send(send)

    def artifact(self, kind: str, paths: Sequence[Path]) -> None:
        """Log files of the run as a W&B artifact, `<kind>-<run id>`.

        Args:
            kind: Kind of the artifact, e.g. "result".
            paths: The files; missing ones are left out.
        """

        def send(run: wandb.Run) -> None:
            import wandb

            artifact = wandb.Artifact(f"{kind}-{run.id}", type=kind)
            for path in paths:
                if path.is_file():
                    artifact.add_file(str(path), name=path.name)
            run.log_artifact(artifact)

        self._send(send)

    def finish(self, *, failed: bool = False) -> None:
        """Close the W&B run and TensorBoard's file."""
        if self._board is not None:
            self._board.close()
            self._board = None
        self._send(lambda run: run.finish(exit_code=int(failed)))
        self._run = None

    def _send(self, action: Callable[[wandb.Run], None]) -> None:
        if self._run is None:
            return
        try:
            action(self._run)
        except Exception as error:  # as above
            self._warn(f"Weights & Biases stopped ({error}); the run continues, metrics.csv has the figures")
            self._run = None
