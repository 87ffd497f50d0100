"""From a configuration, a class or a function to objects: located, checked and called."""

from __future__ import annotations

import functools
import importlib
import inspect
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hwnas.core import suggestion
from hwnas.files import plain_yaml

MOVED = {
    "hwnas.models.beta_vae.Training": "hwnas.pruning.beta_vae.BetaVAERecipe",
    "hwnas.pruning.beta_vae.Training": "hwnas.pruning.beta_vae.BetaVAERecipe",
    "hwnas.models.beta_vae.": "hwnas.pruning.beta_vae.",
    "hwnas.models.recipe.": "hwnas.training.recipe.",
    "hwnas.workers.": "hwnas.store.workers.",
}
"""Beginnings of class names in configurations of earlier versions, and their names now; the first counts."""

LACKED: dict[str, dict[str, object]] = {
    "hwnas.devices.host.Host": {"backend": "torch"},
    "hwnas.evaluators.rmi.RMI": {"images": "train"},
    "hwnas.evaluators.supernet.Supernet": {"scores": None},
    "hwnas.store.workers.Ray": {"gpus": 0},
    "hwnas.strategies.mo_hdnas.MOHDNAS": {"crowding": "all"},
    "hwnas.strategies.nevonas.NEvoNAS": {"crowding": "all"},
}
"""Settings that earlier versions did not have, and what they did: for runs that they began."""

Made = TypeVar("Made")
"""What `build` is asked to make."""

_RESOLVER = re.compile(r"\$\{\s*([^\s:{}$]+)\s*:")


def read_yaml(path: Path) -> Any:
    """A configuration, as a node of OmegaConf whose interpolations are not resolved.

    Raises:
        ValueError: As `plain_yaml`, or no configuration; names the file.
    """
    try:
        return OmegaConf.create(moved(plain_yaml(path)))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path} is no configuration ({str(error).splitlines()[0]})") from None


def read_config(path: Path) -> DictConfig:
    """The configuration of a run whose values are only read.

    Its interpolations may name its other values, and nothing else: those that ask the environment, or
    anything besides, are missing values.

    Raises:
        ValueError: As `read_yaml`, or it is no mapping.
    """
    values = moved(plain_yaml(path))
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not the configuration of a run")
    try:
        return OmegaConf.create({str(key): _own(value) for key, value in values.items()})
    except OmegaConfBaseException as error:
        raise ValueError(f"{path} is no configuration ({str(error).splitlines()[0]})") from None


def moved(value: Any) -> Any:
    """A stored configuration in today's terms."""
    if isinstance(value, list):
        return [moved(inner) for inner in value]
    if not isinstance(value, dict):
        return value
    value = {key: moved(inner) for key, inner in value.items()}
    target = value.get("_target_")
    for before, now in MOVED.items() if isinstance(target, str) else ():
        if target.startswith(before):
            value["_target_"] = now + target.removeprefix(before)
            break
    return {**LACKED.get(str(target), {}), **value}


def _own(value: object) -> object:
    if isinstance(value, dict):
        return {key: _own(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_own(inner) for inner in value]
    asks = isinstance(value, str) and any(name != "oc.select" for name in _RESOLVER.findall(value))
    return MISSING if asks else value


ALLOW_VARIABLE = "HWNAS_ALLOW_TARGETS"
ALLOWED = tuple(filter(None, os.environ.get(ALLOW_VARIABLE, "").split(",")))
"""Modules whose classes the user lets a `_target_` name, from the environment in which the process began: no
configuration can allow itself anything."""


def conf_folder() -> Path:
    """The packaged configuration: inside the installed package, or beside it in a checkout."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "conf"


@overload
def build(given: object, /, **offered: object) -> Any: ...


@overload
def build(given: object, kind: type[Made], group: str = "", /, **offered: object) -> Made: ...


def build(given: object, kind: type = object, group: str = "", /, **offered: object) -> object:
    """Make an object of a configuration's node, a class, a function or a partial.

    Of the offered objects a class gets those that its constructor names and the node does not set; so do
    the classes of nodes inside the node, at any depth. A configuration may come from anywhere: a `_target_`
    names a class or function that `conf/` names in the same group, or one of a module that the environment
    variable HWNAS_ALLOW_TARGETS named when the process began (separated by commas). What it makes is checked
    before it is called.

    Args:
        given: A choice of a config group, what makes an object, or the object itself, which is returned.
        kind: What it must be.
        group: The config group, for errors; that of a configuration is where it stands.
        offered: Objects of the run.

    Raises:
        ValueError: A target outside the allow-list, that does not exist or is of another kind, or a key it
            does not take.
    """
    if isinstance(given, DictConfig):
        try:
            settings = OmegaConf.to_container(given, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            raise ValueError(" ".join(str(error).split())) from None
        group = str(given._get_full_key("")) or group
        built = _create(settings, offered, group, kind)
    elif isinstance(given, functools.partial):
        if given.args:
            raise ValueError(f"{group}: a partial takes settings by keyword only")
        built = _call(given.func, given.keywords, offered, group, kind)
    elif isinstance(given, type) or inspect.isroutine(given):
        built = _call(given, {}, offered, group, kind)
    elif given is None or isinstance(given, str | int | float | Mapping | Sequence):
        raise ValueError(f"{group or 'a choice of a config group'} must set up {_a(kind)}, not {given!r}")
    else:
        built = given
    if not isinstance(built, kind):
        raise _wrong_kind(group, kind, type(built))
    return built


def _wrong_kind(path: str, kind: type, found: type) -> ValueError:
    return ValueError(f"{path} must set up {_a(kind)}, not {_a(found)}")


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"


def _inner(value: object, offered: Mapping[str, object], path: str) -> object:
    """A setting, with all nodes inside it created."""
    if not isinstance(value, dict):
        return value
    if "_target_" in value:
        return _create(value, offered, path, object)
    return {key: _inner(item, offered, f"{path}.{key}") for key, item in value.items()}


def _create(node: Any, offered: Mapping[str, object], path: str, kind: type) -> object:
    settings = dict(node)
    if "_target_" not in settings:
        raise ValueError(f"{path} has no _target_, the class that it sets up")
    name = settings.pop("_target_")
    target = locate(name, path.partition(".")[0])
    if _made_by(target) is None:
        raise ValueError(f"{path}: {name} must be a class, or a function that says which class it returns")
    return _call(target, settings, offered, path, kind)


def _call(
    target: Callable[..., object],
    settings: Mapping[str, object],
    offered: Mapping[str, object],
    path: str,
    kind: type,
) -> object:
    """What a class or function makes of settings, and of the offered objects that it names."""
    made, name = _made_by(target), name_of(target)
    if made is not None and not issubclass(made, kind):
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
    except ValueError as error:  # a class says what is wrong with its setting, not where that stands
        own = re.match(r"\w+", str(error))
        if own and own[0] in known and (own[0] in settings or own[0] not in offered):
            raise ValueError(f"{path}.{error}") from error
        raise


def name_of(target: Callable[..., object]) -> str:
    """The dotted name of a class or function."""
    return f"{target.__module__}.{target.__qualname__}"


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


def locate(name: object, group: str) -> Callable[..., object]:
    """The class or function of a dotted name.

    Args:
        name: What a `_target_` says.
        group: The config group that it stands in; empty: any.

    Raises:
        ValueError: Outside the allow-list, or it does not exist.
    """
    if not isinstance(name, str):
        raise ValueError(f"_target_ must be the dotted name of a class, not {name!r}")
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
    made = isinstance(target, type) or inspect.isroutine(target)
    if not made or not _within(target.__module__, ALLOWED):
        raise ValueError(f"_target_ {name!r} is no class of the allowed packages ({', '.join(ALLOWED)})")
    return target


def _imported(name: str) -> Callable[..., object]:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"_target_ {name!r} does not exist ({error})") from None


def _made_by(target: Callable[..., object]) -> type | None:
    """The class whose object a target makes; None if it is a function that does not say."""
    if isinstance(target, type):
        return target
    target = inspect.unwrap(target)
    if not inspect.isfunction(target):
        return None
    returned = target.__annotations__.get("return")
    if isinstance(returned, str):
        returned = target.__globals__.get(returned)
    return returned if isinstance(returned, type) else None


def _within(module: str, packages: Sequence[str]) -> bool:
    return any(module == package or module.startswith(package + ".") for package in packages)
