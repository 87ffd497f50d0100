"""One clear line for whatever is wrong with what the user wrote."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from hwnas.build import conf_folder
from hwnas.cli.overrides import _unquoted
from hwnas.core import suggestion
from hwnas.files import printable
from hwnas.store import password

PLUGINS = ("joblib", "submitit", "ray", "optuna")
"""Extras that bring launchers and sweepers of Hydra, whose names begin like theirs."""


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
    if type(error).__name__ == "OutOfMemoryError":  # torch's, of a GPU
        return f"{lines[0].partition('. ')[0]}; a smaller batch, network, population or group needs less"
    if "Config group override must be a string" in str(error):
        null = [a for a in arguments if a.endswith("=null")]
        return f"{' '.join(null) or 'a config group'} is no choice: a config group needs one of its options"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename or 'file'}: {error.strerror}"
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        return f"{error.full_key}: {lines[0]}"
    if incomplete := re.search(r"Error parsing override '(.*)'\s+missing EQUAL", str(error)):
        return f"{incomplete[1]!r} is not setting=value (hwnas {config_name} --help)"
    missing = vars(error).get("missing_cfg_file")  # of Hydra's MissingConfigException
    if missing is not None and "/" in str(missing):
        group, option = str(missing).split("/", 1)
        if group == "hydra":
            group, option = str(missing).rsplit("/", 1)
        options = list(vars(error)["options"] or [])
        near = suggestion(option, options).partition("; known")[0]
        if group == "dataset" and ("/" in option or Path(option).suffix or Path(option).is_dir()):
            kind = "folder" if Path(option).is_dir() or not Path(option).suffix else "npz"
            near = f"; your own images are dataset={kind} dataset.path={option}"
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

    from hwnas.cli import composing

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


def _keys(node: object, prefix: str = "") -> Iterator[str]:
    if isinstance(node, DictConfig):
        for key in map(str, node):
            yield prefix + key
            yield from _keys(node._get_node(key), f"{prefix}{key}.")


def _say(error: BaseException, config_name: str, arguments: Sequence[str]) -> None:
    print(f"hwnas {config_name}: error: {explain(error, config_name, arguments)}", file=sys.stderr)


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
