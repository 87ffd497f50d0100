"""From Hydra's configuration to objects: building, paths, and one clear line for whatever is wrong."""

from __future__ import annotations

import contextlib
import difflib
import functools
import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hwnas import password, processes, sweep
from hwnas.files import temporary_folder
from hwnas.foreign import plain_yaml, printable, read_yaml

ALLOW_VARIABLE = "HWNAS_ALLOW_TARGETS"
ALLOWED = tuple(filter(None, os.environ.get(ALLOW_VARIABLE, "").split(",")))
"""Modules whose classes the user lets a `_target_` name, from the environment in which the process began: no
configuration can allow itself anything."""

MEMBER = "device@device.devices."  # the config group of one of several devices, before its name
PLUGINS = ("joblib", "submitit", "ray", "optuna")
"""Extras that bring launchers and sweepers of Hydra, whose names begin like theirs."""

RESUMED = "resumed"
"""Name under which Hydra knows the configuration of a run that is resumed."""

RUN_GROUPS = ("search_space", "dataset")  # what `hwnas train run=` takes from the run


def conf_folder() -> Path:
    """The packaged configuration: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "conf"


def build(node: DictConfig, kind: type | None = None, /, **offered: Any) -> Any:
    """Create what a node's `_target_` names, with the node's keys and the offered objects as arguments.

    Of the offered objects a class gets those that its constructor names and the node does not set; so do
    the classes of nodes inside the node, at any depth. A configuration may come from anywhere: a `_target_`
    names a class or function that `conf/` names in the same group, one of a module that the environment
    variable HWNAS_ALLOW_TARGETS named when the process began (separated by commas), or one given to `trust`.
    What it makes is checked before it is called.

    Args:
        node: A choice of a config group.
        kind: What it must be; None: anything.
        offered: Objects of the run.

    Raises:
        ValueError: A target outside the allow-list, that does not exist or is of another kind, or a key it
            does not take.
    """
    if not isinstance(node, DictConfig):
        raise ValueError(f"a choice of a config group is needed where the configuration has {node!r}")
    try:
        settings = OmegaConf.to_container(node, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        raise ValueError(" ".join(str(error).split())) from None
    path = str(node._get_full_key(""))
    built = _create(settings, offered, path, kind)
    if kind is not None and not isinstance(built, kind):
        raise _wrong_kind(path, kind, type(built))
    return built


def _wrong_kind(path: str, kind: type, found: type) -> ValueError:
    return ValueError(f"{path} must set up {_a(kind)}, not {_a(found)}")


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def _inner(value: Any, offered: Mapping[str, Any], path: str) -> Any:
    """A setting, with all nodes inside it created."""
    if not isinstance(value, dict):
        return value
    if "_target_" in value:
        return _create(value, offered, path, None)
    return {key: _inner(item, offered, f"{path}.{key}") for key, item in value.items()}


def _create(settings: Any, offered: Mapping[str, Any], path: str, kind: type | None) -> Any:
    settings = dict(settings)
    if "_target_" not in settings:
        raise ValueError(f"{path} has no _target_, the class that it sets up")
    name = settings.pop("_target_")
    target = locate(name, path.partition(".")[0])
    made = _made_by(target)
    if made is None and name not in _TRUSTED:
        raise ValueError(f"{path}: {name} must be a class, or a function that says which class it returns")
    if kind is not None and made is not None and not issubclass(made, kind):
        raise _wrong_kind(path, kind, made)
    known = inspect.signature(target).parameters
    unknown = [key for key in settings if key not in known]
    if unknown:
        raise ValueError(f"{name} has no setting {unknown[0]!r}{suggestion(str(unknown[0]), list(known))}")
    settings = {key: _inner(value, offered, f"{path}.{key}") for key, value in settings.items()}
    arguments = {key: value for key, value in offered.items() if key in known}
    try:
        return target(**{**arguments, **settings})
    except (TypeError, AttributeError, ArithmeticError) as error:  # almost always a setting of the wrong type
        shown = ", ".join(f"{key}={value!r}" for key, value in settings.items())
        raise ValueError(f"{path}: {str(error).splitlines()[0]} (settings: {shown})") from error
    except ValueError as error:
        if str(error).split(" ", 1)[0] in settings:  # the class does not know where its settings stand
            raise ValueError(f"{path}.{error}") from error
        raise


_TRUSTED: dict[str, Any] = {}


def trust(name: str, target: Callable[..., Any]) -> None:
    """Let `_target_: name` set up `target` in this process, which its caller has in hand already."""
    _TRUSTED[name] = target


@functools.cache
def shipped() -> dict[str, set[str]]:
    """The groups of `conf/` that name a class or function, by its dotted name."""
    found: dict[str, set[str]] = {}
    for path in conf_folder().glob("*/*.yaml"):
        for name in re.findall(r"^ *_target_: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE):
            found.setdefault(name, set()).add(path.parent.name)
    for path in conf_folder().glob("*.yaml"):  # a command's own nodes are groups of one choice
        for group, name in re.findall(
            r"^(\w+):\n  _target_: (\S+)", path.read_text(encoding="utf-8"), re.MULTILINE
        ):
            found.setdefault(name, set()).add(group)
    return found


def locate(name: object, group: str) -> Any:
    """The class or function of a dotted name.

    Args:
        name: What a `_target_` says.
        group: The config group that it stands in; empty: any.

    Raises:
        ValueError: Outside the allow-list, or it does not exist.
    """
    if not isinstance(name, str):
        raise ValueError(f"_target_ must be the dotted name of a class, not {name!r}")
    if name in _TRUSTED:
        return _TRUSTED[name]
    groups = shipped().get(name, set())
    if groups and (group in groups or not group):
        return _imported(name)
    module = name.rpartition(".")[0]
    if not _within(module, ALLOWED):
        own = [target for target, where in shipped().items() if group in where]
        if _within(module, ["hwnas"]):
            raise ValueError(f"_target_ {name!r} is no choice of {group or 'conf/'}{suggestion(name, own)}")
        raise ValueError(
            f"_target_ {name!r} is outside the allowed packages ({', '.join(['hwnas', *ALLOWED])}); "
            f"if you trust it, set {ALLOW_VARIABLE}={name.partition('.')[0]}"
        )
    target = _imported(name)
    if not callable(target) or not _within(getattr(target, "__module__", ""), ALLOWED):
        raise ValueError(f"_target_ {name!r} is no class of the allowed packages ({', '.join(ALLOWED)})")
    return target


def _imported(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"_target_ {name!r} does not exist ({error})") from None


def _made_by(target: Any) -> type | None:
    """The class whose object a target makes; None if it is a function that does not say."""
    if isinstance(target, type):
        return target
    returned = getattr(target, "__annotations__", {}).get("return")
    if isinstance(returned, str):
        returned = getattr(target, "__globals__", {}).get(returned)
    return returned if isinstance(returned, type) else None


def _within(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)


def suggestion(word: str, known: Sequence[str]) -> str:
    """A hint that follows an unknown word: the nearest known ones, or all if they are few; may be empty."""
    near = list(dict.fromkeys(difflib.get_close_matches(word, known, n=3, cutoff=0.5)))
    if near:
        return f"; did you mean {' or '.join(near)}?"
    return f"; known: {', '.join(known)}" if 0 < len(known) <= 12 else ""


def data_folder() -> Path:
    """Where tables and images lie: HWNAS_DATA, else the user's cache folder."""
    given = os.environ.get("HWNAS_DATA")
    if given:
        return Path(given).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "hwnas"


def find_file(path: str) -> Path:
    """A file given by an absolute path, or relative to the working folder or the data folder.

    Raises:
        ValueError: It is in neither place; says where it was looked for.
    """
    if not isinstance(path, str):
        raise ValueError(f"a file's path is needed, not {path!r}")
    places = [Path(path).expanduser(), data_folder() / path]
    for place in places:
        if place.is_file():
            return place
    if folder := next((place for place in places if place.is_dir()), None):
        raise ValueError(f"{folder} is a folder; a file is needed here")
    looked = " and ".join(str(place.absolute()) for place in dict.fromkeys(places))
    raise ValueError(f"file {path!r} not found; looked for {looked} (HWNAS_DATA names the data folder)")


def explain(error: BaseException, config_name: str, arguments: Sequence[str] = ()) -> str:
    """One line that says what is wrong with what the user wrote, from any error of ours or Hydra's.

    Args:
        error: What was raised.
        config_name: The command.
        arguments: What the user gave it, to suggest settings of the groups that were chosen.
    """
    return printable(password.without(_explained(error, config_name, arguments)))


def _explained(error: BaseException, config_name: str, arguments: Sequence[str]) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if isinstance(error, KeyboardInterrupt):
        return str(error) or "interrupted"
    if isinstance(error, MemoryError):
        return f"out of memory ({error}); a smaller population, network or batch needs less"
    if "Config group override must be a string" in str(error):
        null = [a for a in arguments if a.endswith("=null")]
        return f"{' '.join(null) or 'a config group'} is no choice: a config group needs one of its options"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file'}: {error.strerror}"
    if isinstance(error, OmegaConfBaseException) and getattr(error, "full_key", None):
        return f"{error.full_key}: {lines[0]}"
    if incomplete := re.search(r"Error parsing override '(.*)'\s+missing EQUAL", str(error)):
        return f"{incomplete[1]!r} is not setting=value (hwnas {config_name} --help)"
    missing = getattr(error, "missing_cfg_file", None)
    if missing is not None and "/" in str(missing):
        group, option = str(missing).split("/", 1)
        if group == "hydra":
            group, option = str(missing).rsplit("/", 1)
        options = list(getattr(error, "options", None) or [])
        near = suggestion(option, options).partition("; known")[0]
        if group == "dataset" and ("/" in option or Path(option).suffix):
            near = f"; your own images are dataset=npz dataset.path={option}"
        plugin = option.partition("_")[0]
        if group.startswith("hydra/") and plugin in PLUGINS:
            near = f": it needs pip install 'hwnas[{plugin}]'"
        return f"{group}={option} is not known{near}; choices: {', '.join(options)}"
    if merged := re.search(r"Error merging override ((\S+?)=.*)", str(error)):
        below = [
            setting for setting in _settings(config_name, arguments) if setting.startswith(merged[2] + ".")
        ]
        return f"{merged[1]} does not fit: {merged[2]} has settings of its own, e.g. {', '.join(below[:3])}"
    if present := re.search(r"Could not append to config\. An item is already at '([^']+)'", str(error)):
        return f"+{present[1]}: there is a setting {present[1]} already; leave out the +"
    key = re.search(r"Could not override '([^']+)'|Could not append to config\. .*'([^']+)'", str(error))
    if key is None:
        key = re.search(r"No match in the defaults list\.", str(error)) and re.search(
            r"override '([^']+)'|'([^']+)'", str(error)
        )
    if key is not None:
        name = key[1] or key[2]
        others = [setting for setting in _settings(config_name, arguments) if setting != name]
        return f"unknown setting {name!r}{suggestion(name, others)} (hwnas {config_name} --help)"
    return " ".join(lines) or type(error).__name__


def _settings(config_name: str, arguments: Sequence[str]) -> list[str]:
    """All dotted keys of a command's configuration with the chosen groups, and the groups."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException

    from hwnas import composing

    composing.install()
    GlobalHydra.instance().clear()
    groups = [
        a for a in arguments if re.fullmatch(r"\w+=\w+", a) and (conf_folder() / a.split("=")[0]).is_dir()
    ]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        try:
            config = compose(config_name, groups)
        except HydraException:
            config = compose(config_name)
    return [*_keys(config), *(path.name for path in conf_folder().iterdir() if path.is_dir())]


def _keys(node: Any, prefix: str = "") -> Iterator[str]:
    if isinstance(node, DictConfig):
        for key in map(str, node):
            yield prefix + key
            yield from _keys(node._get_node(key), f"{prefix}{key}.")


def run(main: Callable[[DictConfig], Any], config_name: str, arguments: list[str]) -> int:
    """Run a command under Hydra; returns the exit code.

    Errors of the user (ValueError, OSError, Hydra's own) end in one line on stderr and exit code 1; the
    environment variable HYDRA_FULL_ERROR=1 shows the traceback instead.
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException
    from hydra.types import RunMode

    from hwnas import composing

    composing.install()
    folder = sweep.sweep_folder(arguments)
    before = None if folder is None else sweep.Jobs.read(folder)
    if folder and before and sweep.is_complete(folder, config_name, arguments, before):
        return sweep.summarise(folder, before)
    given = os.environ.get("HYDRA_FULL_ERROR")
    full = given == "1"
    os.environ["HYDRA_FULL_ERROR"] = "1"  # let errors through to us
    expected = (
        *(ValueError, OSError, MemoryError, OverflowError, KeyboardInterrupt),
        *(HydraException, OmegaConfBaseException, yaml.YAMLError),
    )

    parent = processes.identity()

    def job(cfg: DictConfig) -> Any:
        from hwnas.job import run as run_in_folder

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
        if folder is None or reason not in sweep.Jobs.read(folder).failed.values():  # those are said below
            _say(error, config_name, arguments)
        code = 1
    finally:
        sys.argv = argv
        if given is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = given
        if folder is not None and before is not None and folder.is_dir():
            code = max(code, sweep.summarise(folder, before))
            if ended:
                code = max(code, _after_sweep(main, folder, config_name, arguments, whole=code == 0))
    return code


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
            sweep.complete(folder, config_name, arguments)
    except (ValueError, OSError) as error:
        _say(error, config_name, arguments)
        return 1
    return 0


def _say(error: BaseException, config_name: str, arguments: Sequence[str]) -> None:
    print(f"hwnas {config_name}: error: {explain(error, config_name, arguments)}", file=sys.stderr)


def choices(folder: Path) -> dict[str, str]:
    """Which option was chosen in each config group of the run in `folder`.

    Several devices are one text, and a device that is read from a file has the file's name.
    """
    names = _choices(folder)
    members = [group.removeprefix(MEMBER) for group in names if group.startswith(MEMBER)]
    if members:
        names["device"] = ", ".join(members)
    elif names.get("device") in FILES.values():
        device = OmegaConf.select(read_yaml(folder / ".hydra" / "config.yaml"), "device") or {}
        if own := device.get("device") or device.get("path"):
            names["device"] = Path(str(own)).stem
    return {group: option for group, option in names.items() if "/" not in group and "@" not in group}


def _choices(folder: Path) -> dict[str, str]:
    """All that Hydra remembers of the choices of a run, with groups in other packages."""
    chosen = hydra_says(folder, "runtime", "choices")
    if not isinstance(chosen, dict):
        raise ValueError(f"{folder / '.hydra' / 'hydra.yaml'} is corrupt: hydra.runtime.choices are missing")
    return {str(group): str(option) for group, option in chosen.items()}


def hydra_says(folder: Path, *keys: str) -> Any:
    """A value of Hydra's node in a run's folder, as it is written; None if there is none."""
    found: Any = plain_yaml(folder / ".hydra" / "hydra.yaml")
    for key in ("hydra", *keys):
        found = found.get(key) if isinstance(found, dict) else None
    return found


def sweep_or_run(folder: Path) -> Path:
    """The folder of the sweep that the run in `folder` is a job of; of the run, if it is none."""
    return folder.parent if hydra_says(folder, "mode") == "MULTIRUN" else folder


def check_command(folder: Path, command: str) -> None:
    """Raise ValueError if the run in `folder` is one of another command."""
    stored = OmegaConf.to_container(read_yaml(folder / ".hydra" / "hydra.yaml"))
    try:
        name = stored["hydra"]["job"]["name"]  # type: ignore[call-overload, index]
    except (KeyError, TypeError):
        return  # a run's folder that was put together by hand
    if name != command and name in ("search", "train", "prune", "export", "profile"):
        raise ValueError(f"{folder} holds a run of `hwnas {name}`, not of `hwnas {command}`")


def working_folder(folder: Path) -> Path | None:
    """Where the run in `folder` was started, for its relative paths; None if that is gone."""
    cwd = hydra_says(folder, "runtime", "cwd")
    given = isinstance(cwd, str) and Path(cwd).is_absolute() and Path(cwd).is_dir()
    return Path(cwd) if given else None


def check_settings(cfg: DictConfig, command: str) -> None:
    """Raise ValueError if a configuration has settings that the command does not read, or lacks some.

    Hydra adds what `+name=value` or a file of one's own says. Nodes that set up a class are checked by
    `build`, a search's limits by the search.
    """
    known = dict(plain_yaml(conf_folder() / f"{command}.yaml"))
    names = [name for entry in known.pop("defaults") if isinstance(entry, dict) for name in entry]
    known |= {name: {"_target_": ""} for name in names if "/" not in name and name != "experiment"}
    del known["hydra"]
    if command == "search":
        known["limits"] = {"_target_": ""}

    def check(node: Any, known: Mapping[str, Any], prefix: str) -> None:
        for name in map(str, node):
            if name not in known:
                others = [prefix + other for other in known]
                raise ValueError(
                    f"unknown setting {prefix + name!r}{suggestion(prefix + name, others)} "
                    f"(hwnas {command} --help)"
                )
        for name, value in known.items():
            if name not in node:
                raise ValueError(f"hwnas {command} needs {prefix}{name}, which the configuration lacks")
            inner = node._get_node(name)
            if isinstance(value, dict) and "_target_" not in value and isinstance(inner, DictConfig):
                check(inner, value, f"{prefix}{name}.")

    check(cfg, known, "")


def check_experiment(command: str, arguments: Sequence[str]) -> None:
    """Raise ValueError if an experiment of `conf/` is one of another command, which its line 2 says."""
    for argument in arguments:
        group, _, names = argument.partition("=")
        for name in names.split(",") if group == "experiment" else ():
            path = conf_folder() / "experiment" / f"{name}.yaml"
            own = re.search(r"^# hwnas (\w+)", path.read_text(), re.MULTILINE) if path.is_file() else None
            if own and own[1] != command:
                raise ValueError(
                    f"experiment={name} is one of hwnas {own[1]}, not of hwnas {command}: "
                    f"hwnas {own[1]} experiment={name}"
                )


def resume_arguments(arguments: list[str], command: str) -> list[str]:
    """Hydra's arguments for going on with `resume=<folder>`: the folder's own configuration.

    Other overrides may only repeat what the folder's configuration says, or say how many workers it has.

    Raises:
        ValueError: The folder is missing or no run of the command, or an override contradicts it.
    """
    from hydra.core.config_store import ConfigStore
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    wanted = [argument for argument in arguments if argument.startswith("resume=")]
    path = _unquoted(wanted[-1].removeprefix("resume="))
    if path == "null":
        return arguments
    if not path:
        raise ValueError("resume= names no folder; a new run goes without it")
    folder = Path(path).expanduser().absolute()
    stored = folder / ".hydra" / "config.yaml"
    if not folder.is_dir():
        raise ValueError(f"resume={path} is not a folder")
    for name in ("hydra.yaml", "config.yaml"):
        if not (folder / ".hydra" / name).is_file():
            begun = folder / ".hydra"
            why = ", so the run had not begun; give its command again" * begun.is_dir()
            raise ValueError(f"resume={path} holds no run: .hydra/{name} is missing{why}")
    config = read_yaml(stored)
    if not isinstance(config, DictConfig) or "resume" not in config or {"hydra", "defaults"} & set(config):
        raise ValueError(f"{stored} is not the configuration of a run")
    check_command(folder, command)
    chosen = _choices(folder)
    others = device_arguments([a for a in arguments if not a.startswith("resume=")])
    for argument in others:
        if "=" not in argument or argument.startswith(("-", "~")):
            raise ValueError(f"resume={path} takes nothing but settings that the run has, not {argument}")
    try:
        overrides = OverridesParser.create().parse_overrides(others)
    except HydraException as error:
        raise ValueError(str(error).splitlines()[0]) from None
    how = [str(override.input_line) for override in overrides if override.key_or_group == "workers"]
    for override in overrides:
        name, value = str(override.key_or_group), override.value()
        if name == "workers":
            continue
        if override.package is not None:
            name += f"@{override.package}"
        if name.startswith("hydra."):
            raise ValueError(f"{override.input_line} cannot be changed when resuming {path}")
        before = chosen.get(name, OmegaConf.select(config, name))
        if isinstance(before, DictConfig):
            before = OmegaConf.to_container(before)
        if isinstance(value, str) and "${" in value:
            value = _resolved(config, name, value)
        if before != value and str(before) != str(value):
            raise ValueError(
                f"{override.input_line} contradicts the run in {path}, which has {name}={before}; "
                "leave it out, or start a new run"
            )
    cwd = working_folder(folder)
    if cwd is not None:
        _work_in(cwd)
    elif "store" in config and not Path(str(OmegaConf.select(config, "store.dir"))).is_absolute():
        print("warning: the run's working folder is gone; its store is looked for here", file=sys.stderr)
    run_dir = quoted(str(folder))
    # The folder is none of those where Hydra looks for configurations: it could replace those of Hydra's own.
    ConfigStore.instance().store(RESUMED, OmegaConf.to_container(config))
    return [
        f"--config-name={RESUMED}",
        "hydra/job_logging=hwnas",
        "hydra.output_subdir=null",  # job.py keeps the configuration
        f"hydra.run.dir={run_dir}",
        f"resume={run_dir}",
        *how,
    ]


def _resolved(config: DictConfig, name: str, text: str) -> Any:
    """What a text with interpolations is as the setting `name`; itself where they name nothing."""
    changed = OmegaConf.create(OmegaConf.to_container(config))
    try:
        OmegaConf.update(changed, name, text)
        return OmegaConf.select(changed, name)
    except OmegaConfBaseException:
        return text


def _work_in(folder: Path) -> None:
    """Change to the working folder of a run, where its relative paths mean what they meant.

    The folder may be anybody's: neither this process nor those that it starts import modules from it.
    """
    sys.path[:] = [path or os.getcwd() for path in sys.path]
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    os.chdir(folder)


def device_arguments(arguments: Sequence[str]) -> list[str]:
    """Hydra's arguments for what else may follow `device=`: files, and lists of names and files.

    `device=mine.json` is a profile and `device=mine.csv` a table of networks, `device=a.csv,b.csv` a sweep
    over several of a kind; `device=[raspi4,mine.json]` is
    the device `multi` with a member for each. A member's settings are below `device.devices.<name>`.

    Raises:
        ValueError: A name that is neither shipped nor a file, a device that is listed twice, or an empty
            list.
    """
    prepared = []
    for argument in arguments:
        value = _unquoted(argument.removeprefix("device="))
        if not argument.startswith("device="):
            prepared.append(argument)
        elif value.startswith("[") and value.endswith("]") and "[" not in value[1:]:
            prepared += _members([_unquoted(part.strip()) for part in value[1:-1].split(",")])
        elif "[" in value:
            raise ValueError(f"{argument}: a sweep takes one list of devices; start a sweep for each list")
        elif any(map(_is_file, several := [_unquoted(part.strip()) for part in value.split(",")])):
            files = [_device_file(part) for part in several if _is_file(part)]
            if len(files) < len(several) or len({option for option, _ in files}) > 1:
                raise ValueError(
                    f"{argument}: a sweep takes names of devices, or files that are all tables or all "
                    "profiles; start a sweep for each kind"
                )
            prepared += [f"device={files[0][0]}", f"device.path={','.join(path for _, path in files)}"]
        else:
            prepared.append(argument)
    return prepared


FILES = {".json": "profile", ".csv": "table", ".txt": "table", ".npz": "table"}
"""The device that reads a file, by the file's ending in any case of letters."""


def _is_file(device: str) -> bool:
    return Path(device).suffix.lower() in FILES


def _device_file(path: str) -> tuple[str, str]:
    """The device that reads a file, and the file's path in Hydra's grammar."""
    try:
        find_file(path)
    except ValueError as error:
        known = sorted(option.stem for option in (conf_folder() / "device").glob("*.yaml"))
        raise ValueError(f"device={path}: {error}{suggestion(Path(path).stem, known)}") from None
    return FILES[Path(path).suffix.lower()], quoted(path)


def _members(devices: Sequence[str]) -> list[str]:
    """Hydra's arguments for a list of devices, each a choice of the group or a file."""
    if devices in ([], [""]):
        raise ValueError("device=[] names no device")
    added, settings = ["device=multi"], []
    names: list[str] = []
    for device in devices:
        if _is_file(device):
            option, path = _device_file(device)
            name = re.sub(r"\W", "_", Path(device).stem)
            settings.append(f"device.devices.{name}.path={path}")
        else:
            name = option = device
        if name in names:
            raise ValueError(f"device=[{','.join(devices)}] has {name} twice")
        names.append(name)
        added.append(f"+{MEMBER}{name}={option}")
    return [*added, *settings]


def train_arguments(arguments: list[str]) -> list[str]:
    """Hydra's arguments of `hwnas train` and `export`: architectures quoted; `run=` chooses groups.

    The name of a published architecture chooses its search space, unless one is given.

    Raises:
        ValueError: `run=` names no run.
    """
    prepared = [
        f"arch={quoted(argument.removeprefix('arch='))}"
        if argument.startswith("arch=") and argument[5:6] not in ("'", '"') and argument != "arch=null"
        else argument
        for argument in arguments
    ]
    runs = [argument.removeprefix("run=") for argument in prepared if argument.startswith("run=")]
    given = {argument.partition("=")[0] for argument in prepared}
    if runs and not _unquoted(runs[-1]):
        raise ValueError("run= names no folder")
    if not runs or _unquoted(runs[-1]) == "null":
        names = [_unquoted(a.removeprefix("arch=")) for a in prepared if a.startswith("arch=")]
        space = (
            space_of(names[-1]) if names and not given & {"search_space", "experiment", "resume"} else None
        )
        return prepared if space is None else [f"search_space={space}", *prepared]
    folder = Path(_unquoted(runs[-1])).expanduser()
    if not (folder / ".hydra" / "config.yaml").is_file():
        raise ValueError(f"run={runs[-1]} is not the folder of a run")
    known = [
        f"{group}={option}"
        for group, option in choices(folder).items()
        if group in RUN_GROUPS and group not in given and (conf_folder() / group / f"{option}.yaml").is_file()
    ]
    return [*known, *prepared]


def space_of(name: str) -> str | None:
    """The search space that has a published architecture of this name."""
    from hwnas.spaces import darts, fbnet

    presets = {"darts": darts.PRESETS, "fbnet": fbnet.PRESETS}
    return next((space for space, known in presets.items() if name in known), None)


def take_from_run(cfg: DictConfig, folder: Path, overrides: Sequence[str]) -> None:
    """Put the space and the data set of the run in `folder` into `cfg`, as they were composed there.

    A group for which another option was given stays; single settings that were given win.

    Args:
        cfg: The configuration of `hwnas train`.
        folder: The run's folder.
        overrides: Those of this command.
    """
    stored = read_yaml(folder / ".hydra" / "config.yaml")
    cwd = working_folder(folder)
    for group in RUN_GROUPS:
        options = [o.partition("=")[2] for o in overrides if o.startswith(f"{group}=")]
        if options and options[-1] != choices(folder).get(group):
            continue
        tree = OmegaConf.create(OmegaConf.to_container(stored[group]))
        path = OmegaConf.select(tree, "path")
        if path and cwd is not None and (cwd / str(path)).is_file():
            tree.path = str(cwd / str(path))
        for override in overrides:
            name = override.partition("=")[0].lstrip("+")
            if name.startswith(f"{group}."):
                OmegaConf.update(tree, name.removeprefix(f"{group}."), OmegaConf.select(cfg, name))
        cfg[group] = tree


class UsageError(ValueError):
    """A command that is written wrong."""


def plain(command: str, action: Callable[[], None]) -> int:
    """Run a command that is none of Hydra's; returns the exit code: 0, 1 for what went wrong, 2 for usage."""
    try:
        action()
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of our output, e.g. `| head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (ValueError, OSError, MemoryError, KeyboardInterrupt) as error:
        why = "not enough memory" if isinstance(error, MemoryError) else explain(error, "search")
        print(f"hwnas {command}: error: {why}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


def plain_settings(
    command: str, arguments: Sequence[str], known: Sequence[str], *words: str
) -> dict[str, str]:
    """The `name=value` arguments of such a command, and single words, which have no value.

    Raises:
        UsageError: An argument of another form, unknown, or given twice.
    """
    given: dict[str, str] = {}
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name not in (known if equals else words):
            kinds = [f"{setting}=" for setting in known] + list(words)
            raise UsageError(
                f"unknown setting {argument!r}{suggestion(name, kinds)} (hwnas {command} --help)"
            )
        if name in given:
            raise UsageError(f"{name} is given twice")
        given[name] = _unquoted(value)
    return given


def quoted(text: str) -> str:
    """Text as one value in Hydra's grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
