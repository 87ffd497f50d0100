"""Files that somebody else may have written, read as plain data: nothing in them runs, and reading them ends.

A run's folder, a profile or a configuration may come from anywhere. What is read here consists of mappings,
lists, text, numbers, true, false and null; it is of bounded size and depth, with all aliases written out.
"""

from __future__ import annotations

import json
import re
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


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Raises:
        ValueError: Not JSON, too large or too deep, or a number of too many digits; names the file.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"it has more than {MAX_JSON_BYTES:,} bytes")
        return parse_json(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is corrupt: {error}") from None


def parse_json(text: str | bytes) -> Any:
    """What JSON text holds.

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
