"""Running a command under Hydra, and what follows a sweep."""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import cast

import yaml
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hwnas.build import conf_folder
from hwnas.cli import composing
from hwnas.cli.errors import _say, explain
from hwnas.cli.job import Job
from hwnas.cli.job import run as run_in_folder
from hwnas.cli.overrides import prepared
from hwnas.cli.sweep import complete, is_complete, summarise, sweep_folder
from hwnas.files import end_with, identity, temporary_folder
from hwnas.runs.jobs import Jobs


def prepare_and_run(command: str, given: Sequence[str]) -> int:
    """Run a command with the words that the user gave; returns the exit code."""
    try:
        arguments = prepared(command, given)
    except (ValueError, OSError) as error:
        print(f"hwnas {command}: error: {explain(error, command)}", file=sys.stderr)
        return 1
    return run(command, arguments)


def module_of(command: str) -> ModuleType:
    """The module of a command, loaded once a job begins: some need torch, composing does not."""
    return importlib.import_module(f"hwnas.cli.{command}")


def run(command: str, arguments: list[str]) -> int:
    """Run a command, or the completion of its words, under Hydra; returns the exit code.

    Errors of the user (ValueError, OSError, Hydra's own) end in one line on stderr and exit code 1; the
    environment variable HYDRA_FULL_ERROR=1 shows the traceback instead.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    composing.install()
    folder = sweep_folder(arguments)
    before = None if folder is None else Jobs.read(folder)
    if folder and before and is_complete(folder, command, arguments, before):
        return summarise(folder, before)
    given = os.environ.get("HYDRA_FULL_ERROR")
    full = given == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to us
    expected = (
        *(ValueError, OSError, MemoryError, OverflowError, KeyboardInterrupt),
        *(HydraException, OmegaConfBaseException, yaml.YAMLError),
    )

    parent = identity()

    def job(cfg: DictConfig) -> object:
        end_with(parent)
        this = Job(command, cfg, cast(DictConfig, HydraConfig.get()))
        try:
            returned = run_in_folder(module_of(command).main, this, arguments)
            values = returned if isinstance(returned, list) else [returned]
            if not this.swept and {math.inf, -math.inf} & set(values):
                raise SystemExit(1)  # the worst there can be: nothing was found, which is said already
            return returned
        except (Exception, KeyboardInterrupt) as error:
            if full or this.swept or not isinstance(error, expected):
                raise
            _say(error, command, arguments)
            raise SystemExit(1) from None

    argv = sys.argv
    sys.argv = [f"hwnas {command}", *arguments]
    code, ended = 0, False
    try:
        with contextlib.nullcontext() if folder is None else _files_of_joblib():
            hydra.main(config_path=str(conf_folder()), config_name=command, version_base="1.3")(job)()
        ended = True
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        # Whatever a job of a sweep raised is in its log, and launchers raise errors of all kinds.
        if full or not (folder is not None or isinstance(error, expected)):
            raise
        reason = explain(error, command, arguments)
        if folder is None or reason not in Jobs.read(folder).failed.values():  # those are said below
            _say(error, command, arguments)
        code = 1
    finally:
        sys.argv = argv
        if given is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = given
        if folder is not None and before is not None and folder.is_dir():
            code = max(code, summarise(folder, before))
            if ended:
                code = max(code, _after_sweep(folder, command, arguments, whole=code == 0))
    return code


def _after_sweep(folder: Path, command: str, arguments: Sequence[str], *, whole: bool) -> int:
    """Let a command draw the page of a sweep's runs, if it has one; returns the exit code.

    If no job failed (`whole`), the sweep's folder then keeps that the command came to its end.
    """
    draw: Callable[[Path], None] | None = vars(module_of(command)).get("after_sweep")
    try:
        if draw is not None:
            draw(folder)
        if whole:
            complete(folder, command, arguments)
    except (ValueError, OSError) as error:
        _say(error, command, arguments)
        return 1
    return 0


@contextlib.contextmanager
def _files_of_joblib() -> Iterator[None]:
    """Have joblib keep its files, which else stay in shared memory, where the next process finds them."""
    given = os.environ.get("JOBLIB_TEMP_FOLDER")
    with temporary_folder() as folder:
        os.environ.setdefault("JOBLIB_TEMP_FOLDER", folder)
        try:
            yield
        finally:
            if given is None:
                del os.environ["JOBLIB_TEMP_FOLDER"]
