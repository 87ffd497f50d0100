"""Running a command under Hydra, and what follows a sweep."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hwnas import files as processes
from hwnas.build import _files_of_joblib, conf_folder
from hwnas.cli.errors import _say, explain
from hwnas.cli.sweep import complete, is_complete, summarise, sweep_folder
from hwnas.runs.jobs import Jobs


def run(main: Callable[[DictConfig], Any], config_name: str, arguments: list[str]) -> int:
    """Run a command under Hydra; returns the exit code.

    Errors of the user (ValueError, OSError, Hydra's own) end in one line on stderr and exit code 1; the
    environment variable HYDRA_FULL_ERROR=1 shows the traceback instead.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode

    from hwnas.cli import composing

    composing.install()
    folder = sweep_folder(arguments)
    before = None if folder is None else Jobs.read(folder)
    if folder and before and is_complete(folder, config_name, arguments, before):
        return summarise(folder, before)
    given = os.environ.get("HYDRA_FULL_ERROR")
    full = given == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to us
    expected = (
        *(ValueError, OSError, MemoryError, OverflowError, KeyboardInterrupt),
        *(HydraException, OmegaConfBaseException, yaml.YAMLError),
    )

    parent = processes.identity()

    def job(cfg: DictConfig) -> Any:
        from hwnas.cli.job import run as run_in_folder

        processes.end_with(parent)
        try:
            returned = run_in_folder(main, cfg, config_name, arguments)
            values = returned if isinstance(returned, list) else [returned]
            if HydraConfig.get().mode == RunMode.RUN and {math.inf, -math.inf} & set(values):
                raise SystemExit(1)  # the worst there can be: nothing was found, which is said already
            return returned
        except (Exception, KeyboardInterrupt) as error:
            swept = HydraConfig.get().mode == RunMode.MULTIRUN
            if full or swept or not isinstance(error, expected):
                raise
            _say(error, config_name, arguments)
            raise SystemExit(1) from None

    argv = sys.argv
    sys.argv = [f"hwnas {config_name}", *arguments]
    code, ended = 0, False
    try:
        with contextlib.nullcontext() if folder is None else _files_of_joblib():
            hydra.main(config_path=str(conf_folder()), config_name=config_name, version_base="1.3")(job)()
        ended = True
    except BrokenPipeError:
        raise
    except (Exception, KeyboardInterrupt) as error:
        # Whatever a job of a sweep raised is in its log, and launchers raise errors of all kinds.
        if full or not (folder is not None or isinstance(error, expected)):
            raise
        reason = explain(error, config_name, arguments)
        if folder is None or reason not in Jobs.read(folder).failed.values():  # those are said below
            _say(error, config_name, arguments)
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
                code = max(code, _after_sweep(main, folder, config_name, arguments, whole=code == 0))
    return code


def _after_sweep(
    main: Callable[[DictConfig], Any],
    folder: Path,
    config_name: str,
    arguments: Sequence[str],
    *,
    whole: bool,
) -> int:
    """Let a command draw the page of a sweep's runs, if it has one; returns the exit code.

    If no job failed (`whole`), the sweep's folder then keeps that the command came to its end.
    """
    draw: Callable[[Path], None] | None = getattr(sys.modules[main.__module__], "after_sweep", None)
    try:
        if draw is not None:
            draw(folder)
        if whole:
            complete(folder, config_name, arguments)
    except (ValueError, OSError) as error:
        _say(error, config_name, arguments)
        return 1
    return 0
