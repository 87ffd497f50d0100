"""Commands as Python functions, by the words of the command line: `from hwnas import compose, train`."""

from __future__ import annotations

import contextlib
import copy
import importlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import yaml
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from hwnas.build import conf_folder, read_yaml
from hwnas.cli.errors import explain
from hwnas.cli.job import Job, resolve, run
from hwnas.cli.overrides import check_settings, prepared, quoted
from hwnas.cli.report import write_page_of
from hwnas.cli.search import problem_of, settle
from hwnas.devices.profile import Profile
from hwnas.exports.network import FIGURES, target
from hwnas.files import find_file, read_json
from hwnas.runs.folder import CONFIG, choices_in
from hwnas.searches.problem import GROUPS, Problem


@dataclass(frozen=True)
class Outcome:
    """The outcome of `train`, `prune` and `export`.

    Attributes:
        folder: The run's folder, of `export` the folder with the files; absolute.
        result: Contents of its result.json, of `export` its export.json.
        page: Its report.html; None where the command draws none.
    """

    folder: Path
    result: Mapping[str, object]
    page: Path | None


def compose(*words: str, **parts: object) -> Problem:
    """The problem that words of `hwnas search` state.

    Args:
        words: As on the command line, e.g. "experiment=toy"; no flags. The store, workers and loggers are
            arguments of `search`.
        parts: Parts of the problem that take the place of what words choose, e.g. `strategy=MyStrategy`.

    Raises:
        ValueError: What the command would say in one line.
    """
    named = any(word.startswith(("evaluator=", "strategy=", "experiment=")) for word in words)
    own = parts.keys() & {"evaluator", "strategy"} and not named  # which the recommended search has not
    cfg, hydra = _composed("search", ("strategy=mo_hdnas", *words) if own else words, None)
    check_settings(cfg, "search")
    settle(cfg, list(hydra.overrides.task))
    resolve(cfg)
    chosen = choices_in(hydra.runtime.choices, cfg.device)
    names = {group: chosen[group] for group in (*GROUPS.values(), "experiment") if group in chosen}
    known = [field.name for field in fields(Problem)]
    for part in parts:
        if part not in known:
            raise ValueError(f"a problem has no {part}; it has {', '.join(known)}")
        group = GROUPS.get(part, part)
        if vain := [word for word in words if word.lstrip("+").startswith((f"{group}.", f"{group}="))]:
            raise ValueError(f"{vain[0]} has no effect on the object that is given as {part}")
        for name in (group, "experiment"):  # what is published is of its own parts
            names.pop(name, None)
    return replace(problem_of(cfg, names), **parts)  # type: ignore[arg-type]


def train(*words: str, folder: str | Path | None = None, show: bool = True) -> Outcome:
    """`hwnas train`: train one architecture (`arch=`, or `run=` a search's folder) and test it.

    Args:
        words: As on the command line, e.g. "trainer.epochs=5"; no flags.
        folder: Of the run; a new one below multirun/ by default. One that holds the same run is resumed.
        show: Whether to print what the command prints; the run's log file has it either way.

    Raises:
        ValueError: What the command would say in one line.
    """
    return _outcome(_call("train", words, folder, show))


def prune(*words: str, folder: str | Path | None = None, show: bool = True) -> Outcome:
    """`hwnas prune`: train a Beta-VAE that classifies, prune it, measure what is left.

    The arguments and errors are those of `train`.
    """
    return _outcome(_call("prune", words, folder, show))


def export(*words: str, folder: str | Path | None = None, show: bool = True) -> Outcome:
    """`hwnas export`: a trained network as ONNX and torch files, with a model card.

    Args:
        words: As for `train`.
        folder: Of the log and the configuration, and of the files if neither `to=` nor `run=` is given.
        show: As for `train`.

    Raises:
        ValueError: What the command would say in one line.
    """
    written = _call("export", words, folder, show)
    files = target(read_yaml(written / CONFIG), written).absolute()
    return Outcome(files, read_json(files / FIGURES), None)


def profile(action: str, *words: str, folder: str | Path | None = None, show: bool = True) -> Profile | None:
    """`hwnas profile <action>`; returns the profile that the action made or showed, if it is one.

    Args:
        action: measure, fit, adapt, show, compare, export or import.
        words: As on the command line: files of the action, then settings.
        folder: As for `train`; profiles are written to `to=`, else here.
        show: As for `train`.

    Raises:
        ValueError: What the command would say in one line.
    """
    written = _call("profile", (action, *words), folder, show)
    chosen = read_yaml(written / CONFIG)
    if action == "show":
        return Profile.load(find_file(chosen.path))
    if action in ("measure", "fit", "adapt", "import"):
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


def _outcome(folder: Path) -> Outcome:
    page = folder / "report.html"
    return Outcome(folder, read_json(folder / "result.json"), page if page.is_file() else None)


def _call(command: str, words: Sequence[str], folder: str | Path | None, show: bool) -> Path:
    """Run a command; returns the folder of the run."""
    silence = contextlib.nullcontext() if show else contextlib.redirect_stdout(io.StringIO())
    with contextlib.chdir(Path.cwd()), silence:  # a run that is resumed works where it was started
        job = Job(command, *_composed(command, words, folder))
        try:
            run(importlib.import_module(f"hwnas.cli.{command}").main, job, words)
        except (OSError, OmegaConfBaseException) as error:
            raise ValueError(explain(error, command)) from error
    return job.folder


def _composed(command: str, words: Sequence[str], folder: str | Path | None) -> tuple[DictConfig, DictConfig]:
    """The configuration that words describe, as `hwnas <command>` composes it, and Hydra's node.

    Raises:
        ValueError: What the command would say in one line.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from hydra.types import RunMode

    from hwnas.cli import composing  # Hydra

    for word in words:
        if not isinstance(word, str) or (word.startswith("-") and not word.startswith("--config-dir=")):
            raise ValueError(f"{word!r} is no setting=value; in place of a sweep call in a loop")
    composing.install()
    outer = GlobalHydra.instance().hydra
    GlobalHydra.instance().clear()
    try:
        arguments = prepared(command, words)
        flags = dict(argument.split("=", 1) for argument in arguments if argument.startswith("--"))
        overrides = [argument for argument in arguments if not argument.startswith("--")]
        if "--config-dir" in flags:
            more = Path(flags["--config-dir"]).expanduser().absolute()
            if not more.is_dir():
                raise ValueError(f"--config-dir={more} is not a folder")
            overrides.append(f"hydra.searchpath=[{quoted(f'file://{more}')}]")
        if folder is not None:
            overrides.append(f"hydra.run.dir={quoted(str(Path(folder).expanduser()))}")
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            cfg = hydra_compose(flags.get("--config-name", command), overrides, return_hydra_config=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(explain(error, command, words)) from error
    finally:
        GlobalHydra.instance().hydra = outer
    OmegaConf.set_readonly(cfg.hydra, False)
    with open_dict(cfg.hydra):
        cfg.hydra.mode = RunMode.RUN
        cfg.hydra.runtime.output_dir = str(Path(cfg.hydra.run.dir).absolute())
    task = copy.deepcopy(cfg)
    with open_dict(task):
        del task["hydra"]
    return task, cfg.hydra
