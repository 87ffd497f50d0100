"""The commands as Python functions: `from hwnas.api import search`.

    run = search("experiment=toy", strategy="random", generations=5, limits={"latency_ms": 5})
    print(run.best, run.front, run.page)

Words are those of the command line; keywords are the same settings with values of Python.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import io
import json
import numbers
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from hwnas import build
from hwnas.build import conf_folder, trust
from hwnas.cli.errors import explain
from hwnas.cli.job import run as run_in_folder
from hwnas.cli.overrides import prepared, quoted
from hwnas.cli.report import write_page_of
from hwnas.devices.profile import Profile
from hwnas.exports.network import FIGURES, target
from hwnas.files import find_file
from hwnas.runs.folder import Run
from hwnas.runs.folder import read_run as read

__all__ = ["Outcome", "export", "profile", "prune", "read_run", "report", "search", "train"]

WORDS = ("null", "true", "false", "nan", "inf")
"""Text that Hydra reads as something else unless it is quoted."""


@dataclass(frozen=True)
class Outcome:
    """What `train`, `prune` and `export` leave.

    Attributes:
        folder: The run's folder, of `export` the folder with the files; absolute.
        result: Contents of its result.json, of `export` its export.json.
        page: Its report.html; None where the command draws none.
    """

    folder: Path
    result: Mapping[str, Any]
    page: Path | None


def search(*words: str, folder: str | Path | None = None, show: bool = True, **settings: Any) -> Run:
    """`hwnas search`: search, train the answer, write the run's folder.

    A group takes a name, or a class, a function or `functools.partial` of one that sets it up (of the run's
    objects it gets those that its parameters name), or an object; `device` also a list. A mapping has
    several settings: `limits={"latency_ms": 5}`, `strategy={"population_size": 50}`.

    Args:
        words: As on the command line, e.g. "experiment=toy"; no flags.
        folder: Of the run; a new one below multirun/ by default. One that holds the same run is resumed.
        show: Whether to print what the command prints; the run's log file has it either way.
        settings: Groups and settings by name.

    Returns:
        The run: `trials`, `front`, `best`, `page` (path of the report), `folder`, `result`, `space`.

    Raises:
        ValueError: What the command would say in one line.
    """
    return read_run(_call("search", words, folder, show, settings))


def train(*words: str, folder: str | Path | None = None, show: bool = True, **settings: Any) -> Outcome:
    """`hwnas train`: train one architecture (`arch=`, or `run=` a search's folder) and test it.

    The arguments and errors are those of `search`.
    """
    return _outcome(_call("train", words, folder, show, settings))


def prune(*words: str, folder: str | Path | None = None, show: bool = True, **settings: Any) -> Outcome:
    """`hwnas prune`: train a Beta-VAE that classifies, prune it, measure what is left.

    The arguments and errors are those of `search`.
    """
    return _outcome(_call("prune", words, folder, show, settings))


def export(*words: str, folder: str | Path | None = None, show: bool = True, **settings: Any) -> Outcome:
    """`hwnas export`: a trained network as ONNX and torch files, with a model card.

    Args:
        words: As for `search`.
        folder: Of the log and the configuration, and of the files if neither `to=` nor `run=` is given.
        show: As for `search`.
        settings: As for `search`.

    Raises:
        ValueError: What the command would say in one line.
    """
    written = _call("export", words, folder, show, settings)
    files = target(build.read_yaml(written / ".hydra" / "config.yaml"), written).absolute()
    return Outcome(files, json.loads((files / FIGURES).read_text()), None)


def profile(
    action: str, *words: str, folder: str | Path | None = None, show: bool = True, **settings: Any
) -> Profile | None:
    """`hwnas profile <action>`; returns the profile that the action made or showed, if it is one.

    Args:
        action: measure, fit, show, compare, export or import.
        words: As on the command line: files of the action, then settings.
        folder: As for `search`; profiles are written to `to=`, else here.
        show: As for `search`.
        settings: As for `search`.

    Raises:
        ValueError: What the command would say in one line.
    """
    written = _call("profile", (action, *words), folder, show, settings)
    chosen = build.read_yaml(written / ".hydra" / "config.yaml")
    if action == "show":
        return Profile.load(find_file(chosen.path))
    if action in ("measure", "fit", "import"):
        return Profile.load(Path(chosen.to or written / "profile.json").expanduser())
    return None


def report(*folders: str | Path) -> list[Path]:
    """`hwnas report`: draw the pages of runs, sweeps and studies again; returns their paths.

    Args:
        folders: Folders of runs or sweeps. Runs side by side in one folder are a sweep.

    Raises:
        ValueError: A folder that holds neither, or a file that is corrupt.
    """
    return [write_page_of(Path(folder).expanduser())[0] for folder in folders]


def read_run(folder: str | Path) -> Run:
    """The search in a folder, finished or not.

    Raises:
        ValueError: There is none, or one of its files is corrupt.
    """
    return read(Path(folder).expanduser())


def _outcome(folder: Path) -> Outcome:
    page, result = folder / "report.html", json.loads((folder / "result.json").read_text())
    return Outcome(folder, result, page if page.is_file() else None)


def _call(
    command: str, words: Sequence[str], folder: str | Path | None, show: bool, settings: Mapping[str, Any]
) -> Path:
    """Run a command; returns the folder of the run."""
    from hydra.errors import HydraException

    for word in words:
        if not isinstance(word, str) or (word.startswith("-") and not word.startswith("--config-dir=")):
            raise ValueError(f"{word!r} is no setting=value; in place of a sweep call in a loop")
    objects = {name: value for name, value in settings.items() if _is_object(name, value)}
    given = [*words, *_words({name: value for name, value in settings.items() if name not in objects})]
    for name in objects:
        if idle := [word for word in given if re.match(rf"\+*{name}[.=]", word)]:
            raise ValueError(f"{idle[0]} has no effect on the object that is given as {name}")
    with contextlib.chdir(Path.cwd()):  # a run that is resumed has paths relative to where it was started
        try:
            cfg = _composed(command, given, folder)
        except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
            raise ValueError(explain(error, command, given)) from error
        with open_dict(cfg):
            for name, value in objects.items():
                cfg[name], cfg.hydra.runtime.choices[name] = _node(value)
        return _run(command, cfg, given, show)


def _composed(command: str, given: Sequence[str], folder: str | Path | None) -> DictConfig:
    """The configuration that words describe, with Hydra's own node, as `hwnas <command>` composes it."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.types import RunMode

    from hwnas.cli import composing  # Hydra

    composing.install()
    arguments = prepared(command, given)
    flags = dict(argument.split("=", 1) for argument in arguments if argument.startswith("--"))
    overrides = [argument for argument in arguments if not argument.startswith("--")]
    if "--config-dir" in flags:
        more = Path(flags["--config-dir"]).expanduser().absolute()
        if not more.is_dir():
            raise ValueError(f"--config-dir={more} is not a folder")
        overrides.append(f"hydra.searchpath=[{quoted(f'file://{more}')}]")
    if folder is not None:
        overrides.append(f"hydra.run.dir={quoted(str(Path(folder).expanduser()))}")
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            cfg = compose(flags.get("--config-name", command), overrides, return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = outer
    OmegaConf.set_readonly(cfg.hydra, False)
    with open_dict(cfg.hydra):
        cfg.hydra.mode = RunMode.RUN
        cfg.hydra.runtime.output_dir = str(Path(cfg.hydra.run.dir).absolute())
    return cfg


def _run(command: str, cfg: DictConfig, given: Sequence[str], show: bool) -> Path:
    """Run a command in its folder; returns the folder."""
    task = copy.deepcopy(cfg)
    with open_dict(task):
        del task["hydra"]
    main = importlib.import_module(f"hwnas.cli.{command}").main
    silence = contextlib.nullcontext() if show else contextlib.redirect_stdout(io.StringIO())
    try:
        with silence, _hydra_config(cfg):
            run_in_folder(main, task, command, given)
    except (OSError, OmegaConfBaseException) as error:
        raise ValueError(explain(error, command)) from error
    return Path(cfg.hydra.runtime.output_dir)


@contextlib.contextmanager
def _hydra_config(cfg: DictConfig) -> Iterator[None]:
    """Hydra's own configuration while a command runs, which asks it for its folder."""
    from hydra.core.hydra_config import HydraConfig

    state = HydraConfig.instance()
    before = state.cfg
    state.set_config(cfg)
    try:
        yield
    finally:
        state.cfg = before


def _is_object(name: str, value: Any) -> bool:
    """Whether a group is given something that sets it up, not a name, a list of names or settings."""
    if isinstance(value, str | Path | Sequence | Mapping) or value is None:
        return False
    return (conf_folder() / name).is_dir()


def _node(value: Any) -> tuple[dict[str, Any], str]:
    """A config node that sets up a class, a function, a partial of one, or an object; and what to call it."""
    settings: Mapping[str, Any] = {}
    if isinstance(value, functools.partial):
        if value.args:
            raise ValueError("a partial sets up a group by keywords only")
        value, settings = value.func, value.keywords
    if isinstance(value, type) or hasattr(value, "__qualname__"):
        name, target = f"{value.__module__}.{value.__qualname__}", value
    else:
        name = f"{type(value).__module__}.{type(value).__qualname__}()"
        target = _returning(value)
    trust(name, target)
    return {"_target_": name, **settings}, name.rpartition(".")[2].removesuffix("()")


def _returning(value: Any) -> Callable[[], Any]:
    return lambda: value


def _words(settings: Mapping[str, Any]) -> list[str]:
    """Settings as words of the command line."""
    words = []
    for name, value in settings.items():
        if isinstance(value, Mapping):
            add = "++" if name == "limits" else ""  # of any metric; the run checks that somebody reports it
            words += [f"{add}{name}.{key}={_text(inner)}" for key, inner in value.items()]
        else:
            words.append(f"{name}={_text(value)}")
    return words


def _text(value: Any) -> str:
    """A value in Hydra's grammar.

    Raises:
        ValueError: A value that no setting has.
    """
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, numbers.Real):
        return str(value)
    if isinstance(value, str | Path):
        text = str(value)
        bare = re.fullmatch(r"[A-Za-z_]\w*", text) and text.lower() not in WORDS
        return text if bare else quoted(text)
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_text(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, Sequence):
        return "[" + ",".join(map(_text, value)) + "]"
    raise ValueError(f"a setting is a number, text, list or mapping, not {value!r}")
