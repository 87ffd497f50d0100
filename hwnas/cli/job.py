"""A command in its folder, which belongs to one configuration and to one process at a time.

The command line, Python and the jobs of sweeps run commands by `run`. Hydra itself writes nothing into the
folder (`hydra.output_subdir=null`), because it would do so before anything is checked.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from hwnas import build
from hwnas.cli.errors import explain
from hwnas.cli.overrides import check_settings
from hwnas.cli.sweep import HOW, failed, once
from hwnas.core import SearchSpace
from hwnas.data.images import DataSet
from hwnas.files import write_text
from hwnas.runs.display import Display
from hwnas.runs.folder import CONFIG, HYDRA, STORE, check_command, check_same
from hwnas.runs.lock import STORED, own_folder
from hwnas.runs.log import writing

MAY_CHANGE = ("resume", *HOW)
"""Settings that may be others when a run is resumed."""

RESOLVED = ("search_space", "dataset", "trainer", "seed", "generations")
"""Settings whose `${...}` are replaced by their values when a run begins, because pages and other commands
read them, in another environment. The others stay as they are: they may ask for what is secret."""


@dataclass(frozen=True)
class Job:
    """A run of a command.

    Attributes:
        command: Its name.
        cfg: Its configuration, without Hydra's node.
        hydra: Hydra's node.
    """

    command: str
    cfg: DictConfig
    hydra: DictConfig

    @property
    def folder(self) -> Path:
        """The run's folder, absolute."""
        return Path(self.hydra.runtime.output_dir)

    @property
    def settings(self) -> dict[str, object]:
        """The configuration with all values resolved."""
        settings = OmegaConf.to_container(self.cfg, resolve=True)
        assert isinstance(settings, dict)
        return {str(key): value for key, value in settings.items()}

    @property
    def swept(self) -> bool:
        """Whether it is a job of a sweep."""
        return "MULTIRUN" in str(self.hydra.mode)

    @property
    def words(self) -> list[str]:
        """Settings that the user gave, with their `${...}` as they are."""
        words = OmegaConf.to_container(self.hydra.overrides.task, resolve=False)
        assert isinstance(words, list)
        return list(map(str, words))

    @property
    def choices(self) -> Mapping[str, str]:
        """Chosen option per config group."""
        return dict(self.hydra.runtime.choices)


def images(cfg: DictConfig, display: Display) -> DataSet:
    """The data set that a configuration names; what it is and lacks is said to the display."""
    store_dir = Path(str(OmegaConf.select(cfg, "store.dir", default=STORE))).expanduser()
    told = {"announce": display.say, "warn": display.doubt}
    return build.build(cfg.dataset, DataSet, "dataset", store_dir=store_dir, **told)


def space_and_images(cfg: DictConfig, display: Display) -> tuple[SearchSpace, DataSet]:
    """The search space that a configuration names, for the images of its data set, and the data set."""
    dataset = images(cfg, display)
    shape = {"image_shape": dataset.image_shape, "num_classes": dataset.num_classes}
    return build.build(cfg.search_space, SearchSpace, **shape), dataset


def run(main: Callable[[Job], object], job: Job, arguments: Sequence[str]) -> object:
    """Run a command in its folder; returns what it returns.

    The folder gets the configuration, or has the same one: then the command resumes there. What goes wrong
    is in the log. A command that is refused before it has written anything leaves no folder; a job of a
    sweep keeps its folder, which says why it failed.

    Args:
        main: The command.
        job: Its run.
        arguments: What the user gave, for errors.

    Raises:
        ValueError: The folder is in use, holds a run of another configuration, or a link that leads out of
            it.
    """
    command, cfg, folder, swept = job.command, job.cfg, job.folder, job.swept
    log = f"{command}.log"
    settle = vars(importlib.import_module(f"hwnas.cli.{command}")).get("settle")
    with own_folder(folder, log, (HYDRA, CONFIG), wait=swept) as new:
        if new:
            check_settings(cfg, command)
        if settle is not None:
            settle(cfg, job.words)
        resolve(cfg)
        if new:
            _keep(folder, job)
        else:
            check_command(folder, command)
            check_same(folder, _settings(cfg), _settings(build.read_yaml(folder / CONFIG)))
        with writing(folder / log):
            try:
                return once(lambda: main(job), folder) if swept else main(job)
            except (Exception, KeyboardInterrupt) as error:
                reason = explain(error, command, arguments)
                logging.getLogger("hwnas").error(reason, exc_info=error)
                if swept and isinstance(error, Exception):  # the others go on, the end says which failed
                    with contextlib.suppress(OSError):  # of a full disk, as the error itself may be
                        failed(folder, reason)
                raise


def resolve(cfg: DictConfig) -> None:
    """Replace the interpolations of `RESOLVED` by their values."""
    for key in RESOLVED:
        if key in cfg:
            value = cfg[key]
            if OmegaConf.is_config(value):
                OmegaConf.resolve(value)
            else:
                cfg[key] = value


def _keep(folder: Path, job: Job) -> None:
    """Write a configuration and what Hydra knows of it; one that is interrupted counts as not begun.

    Raises:
        ValueError: It holds what cannot be read again.
    """
    write_text(folder / STORED / "overrides.yaml", OmegaConf.to_yaml(job.hydra.overrides.task))
    write_text(folder / HYDRA, OmegaConf.to_yaml(OmegaConf.create({"hydra": job.hydra})))
    write_text(folder / CONFIG, OmegaConf.to_yaml(job.cfg))
    build.read_yaml(folder / CONFIG)


def _settings(cfg: DictConfig) -> dict[str, object]:
    """A configuration without what may change when a run is resumed."""
    settings = OmegaConf.to_container(cfg)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items() if key not in MAY_CHANGE}
