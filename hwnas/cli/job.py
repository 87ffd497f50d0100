"""A command in its folder, which belongs to one configuration and to one process at a time.

The command line, Python and the jobs of sweeps run commands by `run`. Hydra itself writes nothing into the
folder (`hydra.output_subdir=null`), because it would do so before anything is checked.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hwnas import build
from hwnas.cli.errors import explain
from hwnas.cli.overrides import check_settings
from hwnas.cli.sweep import HOW, failed, once
from hwnas.files import write_text
from hwnas.runs.folder import check_command, check_links
from hwnas.runs.jobs import JOB
from hwnas.runs.lock import STORED, lock_folder

HYDRA, CONFIG = "hydra.yaml", "config.yaml"
"""What Hydra knows of the configuration (choices, where the run was started), and the configuration."""

MAY_CHANGE = ("resume", *HOW)
"""Settings that may be others when a run is resumed."""

RESOLVED = ("search_space", "dataset", "trainer", "seed", "generations")
"""Settings whose `${...}` are replaced by their values when a run begins, because pages and other commands
read them, in another environment. The others stay as they are: they may ask for what is secret."""


def run(main: Callable[[DictConfig], Any], cfg: DictConfig, command: str, arguments: Sequence[str]) -> Any:
    """Run a command in the folder that Hydra's configuration names; returns what it returns.

    The folder gets the configuration, or has the same one: then the command resumes there. What goes wrong
    is in the log. A command that is refused before it has written anything leaves no folder; a job of a
    sweep keeps its folder, which says why it failed.

    Args:
        main: The command.
        cfg: Its configuration, without Hydra's.
        command: Its name.
        arguments: What the user gave, for errors.

    Raises:
        ValueError: The folder is in use, holds a run of another configuration, or a link that leads out of
            it.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    folder, swept = Path(hydra.runtime.output_dir), hydra.mode == RunMode.MULTIRUN
    log = folder / f"{command}.log"
    settle = getattr(importlib.import_module(f"hwnas.cli.{command}"), "settle", None)
    check_links(folder)
    with lock_folder(folder, wait=swept):
        others = _names(folder) - {STORED, log.name, JOB}
        new = not all((folder / STORED / name).is_file() for name in (HYDRA, CONFIG))
        try:
            if new:
                check_settings(cfg, command)
            if settle is not None:
                settle(cfg, list(hydra.overrides.task))
            _resolve(cfg)
            if new and others:
                raise ValueError(f"{folder} holds no run, but other files; choose a new or an empty folder")
            if new:
                _keep(folder / STORED, cfg)
            else:
                _compare(folder, cfg, command)
            with _log(log):
                try:
                    return once(main, cfg, folder) if swept else main(cfg)
                except (Exception, KeyboardInterrupt) as error:
                    reason = explain(error, command, arguments)
                    logging.getLogger("hwnas").error(reason, exc_info=error)
                    if swept and isinstance(error, Exception):  # the others go on, the end says which failed
                        with contextlib.suppress(OSError):  # of a full disk, as the error itself may be
                            failed(folder, reason)
                    raise
        except (ValueError, OSError, OmegaConfBaseException):
            if new and _names(folder) <= others | {STORED, log.name}:
                _remove(folder, log)
            raise


def _resolve(cfg: DictConfig) -> None:
    """Replace the interpolations of `RESOLVED` by their values."""
    for key in RESOLVED:
        if key in cfg:
            value = cfg[key]
            if OmegaConf.is_config(value):
                OmegaConf.resolve(value)
            else:
                cfg[key] = value


def _keep(stored: Path, cfg: DictConfig) -> None:
    """Write a configuration and what Hydra knows of it; one that is interrupted counts as not begun.

    Raises:
        ValueError: It holds what cannot be read again.
    """
    from hydra.core.hydra_config import HydraConfig

    hydra: Any = HydraConfig.instance().cfg
    write_text(stored / "overrides.yaml", OmegaConf.to_yaml(hydra.hydra.overrides.task))
    write_text(stored / HYDRA, OmegaConf.to_yaml(hydra))
    write_text(stored / CONFIG, OmegaConf.to_yaml(cfg))
    build.read_yaml(stored / CONFIG)


def _compare(folder: Path, cfg: DictConfig, command: str) -> None:
    """Raise ValueError unless a folder's configuration is this one; names the first difference."""
    check_command(folder, command)
    ours, theirs = _flat(cfg), _flat(build.read_yaml(folder / STORED / CONFIG))
    for key in [*ours, *theirs]:
        if ours.get(key) != theirs.get(key):
            has = f"{key}={theirs[key]}" if key in theirs else f"no {key}"
            wanted = f"{key}={ours[key]}" if key in ours else f"no {key}"
            raise ValueError(f"{folder} holds a run with {has}, not {wanted}; choose another folder")


def _flat(cfg: Any) -> dict[str, Any]:
    """The settings of a configuration by dotted name, but for those that may change."""
    settings = OmegaConf.to_container(cfg)
    assert isinstance(settings, dict)
    found: dict[str, Any] = {}

    def add(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                add(f"{prefix}.{key}", inner)
        else:
            found[prefix] = value

    for key, value in settings.items():
        if key not in MAY_CHANGE:
            add(str(key), value)
    return found


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _remove(folder: Path, log: Path) -> None:
    """Remove what a refused command has written, and its folder if nothing else is in it."""
    shutil.rmtree(folder / STORED)
    log.unlink(missing_ok=True)
    if not _names(folder) and folder.resolve() != Path.cwd():
        folder.rmdir()


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
def _log(path: Path) -> Iterator[None]:
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
