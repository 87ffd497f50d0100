"""A problem that Python stated, kept in its run's folder to be compared when the run is resumed."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import numbers
from collections.abc import Mapping, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from hwnas.build import moved, name_of
from hwnas.core import settings_of
from hwnas.files import consistent, read_json, shaped, write_json
from hwnas.runs.folder import PROBLEM, check_same
from hwnas.searches.problem import GROUPS, Problem
from hwnas.store import password

SCHEMA = 1
"""Version of problem.json."""

Plain = None | bool | int | float | str | Sequence["Plain"] | Mapping[str, "Plain"]
"""A value of JSON."""

OF_THE_RUN = ("space", "dataset", "folder", "kept", "store_dir", "announce", "warn")
"""Arguments of constructors that are objects of the run, and no settings."""


def described(problem: Problem, names: Mapping[str, str]) -> dict[str, Plain]:
    """A problem as JSON: a node per part, as a configuration would have it.

    Of an object without recorded settings it has the class only (see `hwnas.core.checked`).

    Args:
        problem: What is searched.
        names: What pages call its parts, by config group.
    """
    added: dict[str, Plain] = {"robust": problem.robust, "budget": problem.budget}
    if problem.memory_bits != Problem.memory_bits:
        added["memory_bits"] = problem.memory_bits
    for name in ("warm_start", "replay"):
        part = vars(problem)[name]
        added[name] = None if part is None else _settings(vars(part))
    return {
        "schema": SCHEMA,
        "names": dict(names),
        **{group: _node(vars(problem)[part]) for part, group in GROUPS.items()},
        "limits": _plain(problem.limits),
        "confidence": problem.confidence,
        **{name: value for name, value in added.items() if value is not None},
        "generations": problem.generations,
        "seed": problem.seed,
    }


def keep(folder: Path, content: Mapping[str, Plain]) -> None:
    """Write what a run in a folder is of, or see that the run that is there is of the same.

    Raises:
        ValueError: It is another run, or its file is corrupt.
    """
    path = folder / PROBLEM
    if path.is_file():
        known = read_json(path)
        with consistent(path):
            shaped(known, {"schema": int})
        check_same(folder, content, moved(known))
    else:
        write_json(path, content)


def _node(given: object) -> Plain:
    """A part of a problem, as a node of a configuration."""
    if isinstance(given, functools.partial):
        return {"_target_": name_of(given.func), **_settings(given.keywords)}
    if isinstance(given, type) or inspect.isroutine(given):
        return {"_target_": name_of(given)}
    if isinstance(given, DictConfig):  # interpolations stay: they may ask for what is secret
        return _plain(password.hidden(OmegaConf.to_container(given)))
    if isinstance(given, Mapping):
        return _plain(given)
    if dataclasses.is_dataclass(given):
        own = {field.name: vars(given)[field.name] for field in dataclasses.fields(given)}
        return {"_target_": name_of(type(given)), **_settings(own)}
    return {"_target_": name_of(type(given)), **_settings(settings_of(given))}


def _settings(given: Mapping[str, object]) -> dict[str, Plain]:
    """Arguments of a constructor without the objects of the run, which other parts describe."""
    return {
        name: _plain(value) for name, value in given.items() if name not in OF_THE_RUN and not callable(value)
    }


def _plain(value: object) -> Plain:
    """A value as JSON holds it."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [_plain(inner) for inner in value]
    return _node(value)
