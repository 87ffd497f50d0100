"""Files that somebody else may have written, read as plain data: nothing in them runs, and reading them ends.

A run's folder, a profile or a configuration may come from anywhere. What is read here consists of mappings,
lists, text, numbers, true, false and null; it is of bounded size and depth, with all aliases written out.
"""

from __future__ import annotations

import json
import math
import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Real
from pathlib import Path
from typing import Any

import yaml
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader  # numbers as Hydra reads them, and no key twice
from omegaconf.errors import OmegaConfBaseException

MAX_DEPTH = 40
"""Lists and mappings inside each other."""

MAX_YAML_BYTES = 1 << 20
MAX_YAML_VALUES = 100_000
"""Values of a YAML file once all that its aliases repeat is written out."""

MAX_JSON_BYTES = 1 << 28
MAX_DIGITS = 20
"""Digits of a whole number; none that we write has more than 19."""

_RESOLVER = re.compile(r"\$\{\s*([^\s:{}$]+)\s*:")
_PLAIN = {
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge")
}


def plain_yaml(path: Path) -> dict[Any, Any] | list[Any]:
    """What a YAML file holds.

    Raises:
        ValueError: Missing, not YAML, not made of plain values, too large or too deep; names the file.
    """
    try:
        if path.stat().st_size > MAX_YAML_BYTES:
            raise ValueError(f"it has more than {MAX_YAML_BYTES:,} bytes")
        return _yaml(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} is missing") from None
    except RecursionError:
        raise ValueError(f"{path} is not readable YAML (too deep)") from None
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f" in line {error.problem_mark.line + 1}"
        raise ValueError(f"{path} is not readable YAML ({error.problem}{where})") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{path} is not readable YAML ({str(error).splitlines()[0]})") from None


def read_yaml(path: Path) -> Any:
    """A configuration, as a node of OmegaConf whose interpolations are not resolved.

    Raises:
        ValueError: As `plain_yaml`, or no configuration; names the file.
    """
    try:
        return OmegaConf.create(plain_yaml(path))
    except OmegaConfBaseException as error:
        raise ValueError(f"{path} is no configuration ({str(error).splitlines()[0]})") from None


def read_config(path: Path) -> DictConfig:
    """The configuration of a run whose values are only read.

    Its interpolations may name its other values, and nothing else: those that ask the environment, or
    anything besides, are missing values.

    Raises:
        ValueError: As `read_yaml`, or it is no mapping.
    """
    values = plain_yaml(path)
    if not isinstance(values, dict):
        raise ValueError(f"{path} is not the configuration of a run")
    try:
        return OmegaConf.create({str(key): _own(value) for key, value in values.items()})
    except OmegaConfBaseException as error:
        raise ValueError(f"{path} is no configuration ({str(error).splitlines()[0]})") from None


def _own(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _own(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_own(inner) for inner in value]
    asks = isinstance(value, str) and any(name != "oc.select" for name in _RESOLVER.findall(value))
    return MISSING if asks else value


def _yaml(text: str) -> dict[Any, Any] | list[Any]:
    loader = get_yaml_loader()(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return {}
        _count(node, {}, 0)
        value = loader.construct_document(node)
    finally:
        loader.dispose()
    if not isinstance(value, dict | list):
        raise ValueError(f"a mapping is needed, not {type(value).__name__}")
    _check_depth(value)
    return value


def _count(node: yaml.Node, known: dict[int, int], depth: int) -> int:
    """How many values a node has, with those of aliases counted wherever they stand.

    Raises:
        ValueError: Too many, too deep, a node inside itself, or a value that is not plain.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"more than {MAX_DEPTH} lists or mappings inside each other")
    if node.tag not in _PLAIN:
        raise ValueError(
            f"a value of type {node.tag.removeprefix('tag:yaml.org,2002:')!r}, which is not plain"
        )
    if isinstance(node, yaml.ScalarNode):
        if node.tag.endswith(":int") and len(node.value) > MAX_DIGITS:
            raise ValueError(f"a number of more than {MAX_DIGITS} digits")
        return 1
    if id(node) not in known:
        known[id(node)] = MAX_YAML_VALUES + 1  # too many, should it be met inside itself
        inner = node.value
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_count(part, known, depth + 1) for part in inner)
    if known[id(node)] > MAX_YAML_VALUES:
        raise ValueError(f"more than {MAX_YAML_VALUES:,} values once its aliases are written out")
    return known[id(node)]


def read_json(path: Path, otherwise: str = "is corrupt") -> Any:
    """What a JSON file holds.

    Args:
        path: The file.
        otherwise: What is said of a file that cannot be read.

    Raises:
        ValueError: Not JSON, too large or too deep, or a number of too many digits; names the file.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it has more than {MAX_JSON_BYTES:,} bytes")
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} {otherwise} ({error})") from None


def parse_json(text: str | bytes) -> Any:
    """What JSON text holds; NaN and infinity are read, which `shaped` refuses.

    Raises:
        ValueError: Not JSON, too deep, or a number of too many digits.
    """
    try:
        value = json.loads(text, parse_int=_whole)
    except RecursionError:
        raise ValueError("lists or mappings too deep inside each other") from None
    _check_depth(value)
    return value


def _whole(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [
            inner
            for item in level
            if isinstance(item, dict | list)
            for inner in (item.values() if isinstance(item, dict) else item)
        ]
        if not level:
            return
    raise ValueError(f"more than {MAX_DEPTH} lists or mappings inside each other")


def shaped(value: Any, shape: Any, place: str = "") -> None:
    """Check what JSON holds against the shape that it should have.

    Args:
        value: What was read.
        shape: `str`, `int`, `bool`, or `float` (any finite number, `Real` NaN too); `object` is anything;
            a text or None is that value; a tuple, one of several shapes; `[shape]`, a list of any length;
            `{name: shape}`, a mapping that has these names (those that end in "?" may be missing) and may
            have others, whose shape is that of the name `str`, if there is one.
        place: Where the value stands, for messages.

    Raises:
        ValueError: Another shape; says where, and what is there.
    """
    if isinstance(shape, tuple):
        if value is not None and len(rest := [one for one in shape if one is not None]) == 1:
            shaped(value, rest[0], place)
        elif not any(_has_shape(value, one) for one in shape):
            raise _misshapen(value, " or ".join(map(_spoken, shape)), place)
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            raise _misshapen(value, _spoken(shape), place)
        known = {name.removesuffix("?"): name for name in shape if name is not str}
        for name, key in known.items():
            if not key.endswith("?") and name not in value:
                raise ValueError(f"{place or 'it'} has no {name}")
        for name, inner in value.items():
            key = known.get(name, str)
            shaped(inner, shape.get(key, object), f"{place}.{name}" if place else str(name))
    elif isinstance(shape, list):
        if not isinstance(value, list):
            raise _misshapen(value, _spoken(shape), place)
        for number, inner in enumerate(value):
            shaped(inner, shape[0], f"{place}[{number}]")
    elif not _is_of(value, shape):
        raise _misshapen(value, _spoken(shape), place)


def _has_shape(value: Any, shape: Any) -> bool:
    try:
        shaped(value, shape)
    except ValueError:
        return False
    return True


def _is_of(value: Any, kind: type | str | None) -> bool:
    if kind is None or isinstance(kind, str):
        return value == kind
    if kind is object:
        return True
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


_KINDS = {
    str: "text",
    int: "a whole number",
    float: "a number",
    Real: "a number",
    bool: "true or false",
    None: "null",
}


def _spoken(shape: Any) -> str:
    if isinstance(shape, dict | list):
        return "a mapping" if isinstance(shape, dict) else "a list"
    return _KINDS.get(shape, str(shape))


def _misshapen(value: Any, wanted: str, place: str) -> ValueError:
    shown = json.dumps(value, default=str)
    return ValueError(f"{place or 'it'} is {shown if len(shown) <= 60 else shown[:57] + '...'}, not {wanted}")


def printable(text: str) -> str:
    """Text for a terminal: characters that would steer it, or hide what is there, are written as escapes."""
    return "".join(map(_escaped, text)) if not text.isprintable() else text


def _escaped(character: str) -> str:
    harmless = character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return character if harmless else ascii(character)[1:-1]


@contextmanager
def bounded(num_bytes: int) -> Iterator[None]:
    """Let this process take at most so many bytes more inside; then there is a MemoryError.

    Systems that know no such limit (Windows, macOS) have none.
    """
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = pages * resource.getpagesize() + num_bytes
    known = [limit for limit in (soft, hard) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min([most, *known]), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


@contextmanager
def consistent(path: Path) -> Iterator[None]:
    """Turn what contradictions in foreign data may raise where it is used into one ValueError.

    Args:
        path: The file or folder that it comes from, for the message.
    """
    try:
        yield
    except (ValueError, OSError, MemoryError) as error:
        if str(path) in str(error) or not isinstance(error, ValueError):
            raise
        raise ValueError(f"{path} is corrupt: {error}") from None
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RecursionError, TypeError) as error:
        why = " ".join(str(error).split())
        raise ValueError(f"{path} contradicts itself ({type(error).__name__}: {why})") from error
