"""Words of the command line that Hydra does not know: resumed runs, lists of devices or loggers, files."""

from __future__ import annotations

import itertools
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NoReturn

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hwnas.build import conf_folder, read_yaml
from hwnas.cli import sweep
from hwnas.core import suggestion
from hwnas.files import find_file, plain_yaml, read_json
from hwnas.runs.folder import (
    CONFIG,
    FILES,
    HYDRA,
    MEMBER,
    PROBLEM,
    REPLAY_GROUPS,
    RUN_GROUPS,
    _choices,
    check_command,
    choices,
    run_folders,
    working_folder,
)
from hwnas.runs.lock import STORED
from hwnas.spaces.module.source import trust
from hwnas.spaces.presets import space_of
from hwnas.store import password

RESUMED = "resumed"
"""Name under which Hydra knows the configuration of a run that is resumed."""


def resume_arguments(arguments: Sequence[str], command: str) -> list[str]:
    """Hydra's arguments for `resume=<folder>`: the folder's own configuration.

    Other overrides may only repeat what the folder's configuration says, or say how many workers it has.

    Raises:
        ValueError: The folder is missing or no run of the command, or an override contradicts it.
    """
    from hydra.core.config_store import ConfigStore

    wanted = [argument for argument in arguments if argument.startswith("resume=")]
    path = _unquoted(wanted[-1].removeprefix("resume="))
    if path == "null":
        return list(arguments)
    if not path:
        raise ValueError("resume= names no folder; a new run goes without it")
    folder = Path(path).expanduser().absolute()
    config = _configuration(folder, path, command)
    others = [argument for argument in arguments if not argument.startswith("resume=")]
    how = _check_repeated(others, config, _choices(folder), path)
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


def _configuration(folder: Path, path: str, command: str) -> DictConfig:
    """The configuration of the run that `resume=<path>` names.

    Raises:
        ValueError: There is none, or it is one of another command, or one that Python began.
    """
    stored = folder / CONFIG
    if not folder.is_dir():
        raise ValueError(f"resume={path} is not a folder")
    if (folder / PROBLEM).is_file():
        raise ValueError(
            f"resume={path} was begun from Python; hwnas.search(problem, folder) resumes it there"
        )
    for name in (HYDRA, CONFIG):
        if not (folder / name).is_file():
            why = ", so the run had not begun; give its command again" * (folder / STORED).is_dir()
            raise ValueError(f"resume={path} holds no run: {name} is missing{why}")
    config = read_yaml(stored)
    if not isinstance(config, DictConfig) or "resume" not in config or {"hydra", "defaults"} & set(config):
        raise ValueError(f"{stored} is not the configuration of a run")
    check_command(folder, command)
    return config


def _check_repeated(
    arguments: Sequence[str], config: DictConfig, chosen: Mapping[str, str], path: str
) -> list[str]:
    """Raise ValueError if a setting is another than the run's; returns those that may be.

    Args:
        arguments: What was given beside `resume=`.
        config: The run's configuration.
        chosen: Its choices.
        path: The run, for messages.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    others = _short_forms(arguments)
    for argument in others:
        if "=" not in argument or argument.startswith(("-", "~")):
            raise ValueError(f"resume={path} takes nothing but settings that the run has, not {argument}")
    try:
        overrides = OverridesParser.create().parse_overrides(others)
    except HydraException as error:
        raise ValueError(str(error).splitlines()[0]) from None
    for override in overrides:
        name = str(override.key_or_group)
        value: object = override.value()
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
    return [str(override.input_line) for override in overrides if override.key_or_group == "workers"]


def _work_in(folder: Path) -> None:
    """Change to the working folder of a run, where its relative paths mean what they meant.

    The folder may be anybody's: neither this process nor those that it starts import modules from it.
    """
    sys.path[:] = [path or os.getcwd() for path in sys.path]
    os.environ.setdefault("PYTHONSAFEPATH", "1")
    os.chdir(folder)


LOGGERS = ("csv", "tensorboard", "wandb")
"""Choices of `logger`, of which all write metrics.csv."""


def _short_forms(arguments: Sequence[str]) -> list[str]:
    """Hydra's arguments for the words that stand for several: devices and loggers."""
    return logger_arguments(device_arguments(arguments))


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


def logger_arguments(arguments: Sequence[str]) -> list[str]:
    """Hydra's arguments with `logger=[a,b]` replaced: one of the list is chosen and adds what the others do.

    Raises:
        ValueError: An empty list, a name that is no logger, or one that is listed twice.
    """
    prepared = []
    for argument in arguments:
        value = _unquoted(argument.removeprefix("logger="))
        if not argument.startswith("logger=") or "[" not in value:
            prepared.append(argument)
            continue
        names = [_unquoted(part.strip()) for part in value.removeprefix("[").removesuffix("]").split(",")]
        for name in names:
            if name not in LOGGERS:
                raise ValueError(f"{argument}: {name!r} is no logger{suggestion(name, LOGGERS)}")
            if names.count(name) > 1:
                raise ValueError(f"{argument} has {name} twice")
        chosen = max(names, key=LOGGERS.index)
        prepared.append(f"logger={chosen}")
        if chosen == "wandb" and "tensorboard" in names:
            prepared.append("+logger.tensorboard=true")
    return prepared


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


RECOMMENDED, FOR_IMAGES = "experiment=blind", "experiment=images"
"""The search of those who choose no evaluator, strategy or experiment; and that of their own images."""

OWN_IMAGES = ("folder", "npz", "mnist", "fashion_mnist", "shapes")
"""Data sets that are no benchmark's."""

MEASURES = ("host", "flops")
"""Devices that know the costs of networks of every space."""


def replay_arguments(arguments: list[str]) -> list[str]:
    """Hydra's arguments for `replay=<folder>`: with the choices of the run that is replayed.

    Nothing is trained in the end, unless a word says so. `replay=[a,b]` names several folders, `replay=a,b` a
    sweep over them.

    Raises:
        ValueError: A folder that holds no run, or one of a choice that has no word.
    """
    words = [argument for argument in arguments if argument.startswith("replay=")]
    value = _unquoted(words[-1].removeprefix("replay=")) if words else "null"
    if value == "null":
        return arguments
    listed = value.startswith("[") and value.endswith("]")
    folders = [value] if Path(value).expanduser().exists() else value.strip("[]").split(",")
    folders = [_unquoted(folder.strip()) for folder in folders]
    if not all(folders):
        raise ValueError("replay= names no folder")
    given = {argument.partition("=")[0] for argument in arguments}
    added = [] if {"trainer", "experiment"} & given else ["trainer=none"]
    paths = [Path(folder).expanduser() for folder in folders]
    try:
        runs = [run for path in paths if not path.is_file() for run in run_folders(path)]
        chosen = _choices(runs[0]) if runs else {}
    except ValueError as error:
        raise ValueError(f"replay={value}: {error}") from None
    for group in REPLAY_GROUPS if runs else ():
        if group in given:
            continue
        option = chosen.get(group, "")
        if not re.fullmatch(r"\w+", option) or not (conf_folder() / group / f"{option}.yaml").is_file():
            raise ValueError(
                f"replay={value}: its {group}, {option or 'unknown'}, is no choice of {group}=; Python "
                "replays it: a Problem of the same parts with replay=Replay([folder])"
            )
        added.append(f"{group}={option}")
        if group == "device":
            added += [f"+{name}={member}" for name, member in chosen.items() if name.startswith(MEMBER)]
    names = ",".join(map(quoted, folders))
    word = f"replay=[{names}]" if listed else f"replay={names}"
    return [*added, *(word if argument in words else argument for argument in arguments)]


def search_arguments(arguments: list[str]) -> list[str]:
    """Hydra's arguments of `hwnas search`: with `RECOMMENDED`, if no word chooses how to search.

    Images that no benchmark knows are searched with `FOR_IMAGES`, unless words choose a space, a device that
    does not know its networks, or a table to look accuracies up.
    """
    chooses = re.compile(r"(evaluator|strategy|experiment|resume)=|--config-name")
    if any(map(chooses.match, arguments)):
        return arguments
    words = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
    own = words.get("dataset") in OWN_IMAGES and words.get("device", "host") in MEASURES
    chosen = own and not {"search_space", "evaluator.lookup.path"} & words.keys()
    return [FOR_IMAGES if chosen else RECOMMENDED, *arguments]


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
    if not any((folder / name).is_file() for name in (CONFIG, PROBLEM)):
        raise ValueError(f"run={runs[-1]} is not the folder of a run")
    known = [
        f"{group}={option}"
        for group, option in choices(folder).items()
        if group in RUN_GROUPS and group not in given and (conf_folder() / group / f"{option}.yaml").is_file()
    ]
    return [*known, *prepared]


def quoted(text: str) -> str:
    """Text as one value in Hydra's grammar."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _unquoted(text: str) -> str:
    return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text


def prepared(command: str, arguments: Sequence[str]) -> list[str]:
    """Hydra's arguments for those of a command, which also knows `resume=`, lists of devices and files.

    Raises:
        ValueError: What they name does not exist or does not fit.
    """
    joined: list[str] = []
    for argument in arguments:  # one word, so that what does not start with a dash is a setting
        if joined and joined[-1] in ("--config-dir", "-cd"):
            joined[-1] = f"--config-dir={argument}"
        else:
            joined.append(argument)
    arguments = password.taken(joined)
    for argument in arguments:  # a file that the user names here may run, now and when its runs are read
        name, _, value = argument.lstrip("+").partition("=")
        for path in value.split(",") if name == "search_space.path" else ():
            trust(_unquoted(path.strip()))
    if any(argument.startswith("hydra.output_subdir=") for argument in arguments):
        raise ValueError("hydra.output_subdir cannot be changed: a run's configuration is in .hydra")
    if any(argument.startswith("--experimental-rerun") for argument in arguments):
        raise ValueError(
            "--experimental-rerun reads a pickle, which may run anything; resume=<folder> resumes a run"
        )
    if any(argument.startswith("resume=") for argument in arguments):
        arguments = resume_arguments(arguments, command)
    check_experiment(command, arguments)
    arguments = _short_forms(arguments)
    if command == "search":
        arguments = search_arguments(replay_arguments(list(arguments)))
    if command in ("train", "export"):
        arguments = train_arguments(arguments)
    if command == "profile":
        arguments = profile_arguments(arguments)
    # Hydra wants settings in one row, flags before or after them.
    first = [a for a in arguments if a in sweep.FLAGS or a.startswith("--config-dir=")]
    arguments = [*first, *(a for a in arguments if a not in first)]
    return sweep.sweep_arguments(command, arguments)


PROFILE_FILES = {"show": ("path",), "compare": ("a", "b"), "import": ("path",), "adapt": ("path",)}
"""Settings that name files which exist; an action that has them also takes the files alone."""


SIZES = ("channels", "num_cells", "stem", "variant")
"""Settings of spaces that the size of networks depends on; `network_shape` keeps them."""


def profile_arguments(given: list[str]) -> list[str]:
    """Hydra's arguments for `hwnas profile <action> [file ...]`; the files tell the search space.

    Raises:
        ValueError: A file that is missing or holds no JSON.
    """
    if not given or not re.fullmatch(r"\w+", given[0]):
        return given
    action, rest = given[0], given[1:]
    names = list(PROFILE_FILES.get(action, ()))
    if action == "adapt":  # takes several
        words = itertools.takewhile(lambda word: not word.startswith("-"), rest)
        alone_too = [word for word in words if "=" not in word]
        if len(alone_too) > 1:
            rest = [argument for argument in rest if argument not in alone_too]
            rest.insert(0, f"path=[{','.join(map(quoted, alone_too))}]")
            names = []
    prepared = [f"action={action}"]
    for argument in rest:
        alone = names and "=" not in argument and not argument.startswith("-")
        prepared.append(f"{names.pop(0)}={quoted(argument)}" if alone else argument)
    settings = dict(argument.split("=", 1) for argument in prepared if "=" in argument)
    file = next(
        (settings[name].strip("'\"") for name in PROFILE_FILES.get(action, ()) if name in settings), None
    )
    if action == "adapt" and file:
        first = file.strip("[]").split(",")[0].strip("'\"")
        file = first if first.endswith(".json") and Path(first).is_file() else None  # tables tell nothing
    if file:
        known = _networks_of(find_file(file))
        prepared += [f"{name}={value}" for name, value in known.items() if name not in settings]
    if action in ("fit", "adapt") and "dataset" not in settings:
        prepared.insert(1, "dataset=cifar10")  # the networks that most tables are of
    return prepared


def _networks_of(file: Path) -> dict[str, str]:
    """The space of a profile or of measurements and the size of its networks, if the file tells them."""
    try:
        content = read_json(file)
        content = content.get("plan", content)
        if not re.fullmatch(r"\w+", content["space"]):
            return {}
        sizes = {name: content["network"][name] for name in SIZES if name in content["network"]}
        plain = {name: value for name, value in sizes.items() if re.fullmatch(r"\w+", str(value))}
        return {
            "search_space": content["space"],
            **{f"search_space.{name}": str(v) for name, v in plain.items()},
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # what is wrong is said where the file is read


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
    of_logger = {key for path in (conf_folder() / "logger").glob("*.yaml") for key in plain_yaml(path)}

    def refuse(name: str, others: Sequence[str]) -> NoReturn:
        raise ValueError(f"unknown setting {name!r}{suggestion(name, others)} (hwnas {command} --help)")

    def check(node: DictConfig, known: Mapping[str, object], prefix: str) -> None:
        for name in map(str, node):
            if name not in known:
                refuse(prefix + name, [prefix + other for other in known])
        for name, value in known.items():
            if name not in node:
                raise ValueError(f"hwnas {command} needs {prefix}{name}, which the configuration lacks")
            inner = node._get_node(name)
            if isinstance(value, dict) and "_target_" not in value and isinstance(inner, DictConfig):
                check(inner, value, f"{prefix}{name}.")

    check(cfg, known, "")
    logger = cfg.get("logger")
    for name in map(str, logger if isinstance(logger, DictConfig) else ()):
        if name not in of_logger:
            refuse(f"logger.{name}", [f"logger.{key}" for key in sorted(of_logger)])


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


def _resolved(config: DictConfig, name: str, text: str) -> object:
    """The value of a text with interpolations as the setting `name`; the text where they name nothing."""
    changed = OmegaConf.create(OmegaConf.to_container(config))
    try:
        OmegaConf.update(changed, name, text)
        return OmegaConf.select(changed, name)
    except OmegaConfBaseException:
        return text
