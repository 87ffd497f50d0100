"""Files: written as a whole or not at all, safe in a power cut, and read as plain data of bounded size."""

from __future__ import annotations

import csv
import errno
import functools
import hashlib
import io
import itertools
import json
import math
import multiprocessing
import os
import platform
import re
import shutil
import sys
import tempfile
import threading
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from numbers import Real
from pathlib import Path
from typing import IO, Any

import yaml
from omegaconf._utils import get_yaml_loader  # numbers as Hydra reads them, and no key twice

PARTIAL = ".partial"
"""Ending of the names of files that are being written; before it, the name identifies the process."""

ABANDONED_SECONDS = 86_400.0
"""Age after which a partial file of another machine is deleted, though its process may be alive."""

_WRITER = re.compile(r".*\.([0-9a-f]{12})-(\d+)-(\d*)-\d+\.partial")
_OWNER = re.compile(r"hwnas-([0-9a-f]{12})-(\d+)-(\d*)-\w+")
_numbers = itertools.count()
_entered: set[Path] = set()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A partial file beside `path` for the caller to write; afterwards it takes the place of `path`.

    The partial file is synced before it is renamed, and its folder after that, so that a power cut leaves the
    old file or the new one. If the caller raises, the partial file is deleted, and `path` stays unchanged. A
    partial file of a killed process is deleted by the next process that writes into the folder.

    Args:
        path: The file; its folder is created if needed.

    Raises:
        OSError: The file cannot be written, e.g. on a full disk; names `path`.
    """
    process = identity().replace(":", "-")
    partial = path.with_name(f"{path.name[:150]}.{process}-{next(_numbers)}{PARTIAL}")
    try:
        enter(path.parent)
        yield partial
        with partial.open("r+b") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
        sync_folder(path.parent)
    except OSError as error:
        if error.filename in (None, str(partial), partial):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def take_lock(file: IO[str] | IO[bytes], *, wait: bool = False, shared: bool = False) -> bool:
    """Lock an open file for this process, until the file is closed or the process ends.

    Args:
        file: An open file.
        wait: Whether to wait for another process that has the lock.
        shared: Whether other processes can hold the lock, too, if theirs are shared.

    Returns:
        False if another process has the lock. Always True on Windows, which has no such locks: there the user
        must avoid two writers.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


@contextmanager
def locked(path: Path, busy: Callable[[str], None]) -> Iterator[None]:
    """Hold the lock of a file, which names the process that holds it or held it last.

    Args:
        path: The file, created if needed with its folder.
        busy: Called with the name of another owner; if it does not raise, this process waits for the owner.
    """
    announced = False
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        if sys.platform == "win32":  # has no locks, and would not let the owner delete the open file
            yield
            return
        with path.open("a+") as file:
            if not take_lock(file):
                file.seek(0)
                if not announced:
                    busy(file.read().strip() or "another process")
                announced = True
                take_lock(file, wait=True)
            if not _is_at(file.fileno(), path):  # its last owner removed it
                continue
            file.truncate(0)
            with suppress(OSError):  # the disk is full: a lock all the same
                os.write(file.fileno(), f"process {os.getpid()} on {platform.node()}\n".encode())
            yield
            return


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one at a path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def only_maker(path: Path, announce: Callable[[str], None]) -> AbstractContextManager[None]:
    """Let one process at a time make a file that several need; the others wait, and find it afterwards.

    Args:
        path: The file. A lock beside it is held.
        announce: Called with a sentence when another process has to be waited for.
    """
    enter(path.parent)
    return locked(
        path.with_suffix(".lock"), lambda owner: announce(f"waiting for {owner}, which makes {path}")
    )


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for files of this process alone; also deletes such folders of dead processes."""
    for path in Path(tempfile.gettempdir()).glob("hwnas-*"):
        owner = _OWNER.fullmatch(path.name)
        if owner and gone(":".join(owner.groups())):
            shutil.rmtree(path, ignore_errors=True)
    return tempfile.TemporaryDirectory(prefix=f"hwnas-{identity().replace(':', '-')}-")


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file; after a power cut or on a full disk, only a beginning of it may be there."""
    new = not path.is_file()
    try:
        with path.open("ab") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    if new:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames, creations and deletions in `folder` survive a power cut, if the system can."""
    if os.name == "nt":  # opens no folders
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # file systems that cannot sync folders
            raise OSError(error.errno, error.strerror, str(folder)) from None
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Delete a file, if it exists, so that it stays deleted after a power cut."""
    if path.exists():
        path.unlink(missing_ok=True)
        sync_folder(path.parent)


def enter(folder: Path) -> None:
    """Create a folder that survives a power cut, and delete partial files in it; once per process.

    Raises:
        OSError: It cannot be created; names the folder.
    """
    folder = folder.absolute()
    if folder in _entered and folder.is_dir():
        return
    folder.mkdir(parents=True, exist_ok=True)
    for parent in folder.parents:  # whoever created them may not have synced them
        if not os.access(parent, os.R_OK | os.W_OK):
            break
        sync_folder(parent)
    for path in folder.glob(f"*{PARTIAL}"):
        writer = _WRITER.fullmatch(path.name)
        with suppress(OSError):
            if writer and (
                gone(":".join(writer.groups())) or time.time() - path.stat().st_mtime > ABANDONED_SECONDS
            ):
                path.unlink()
    _entered.add(folder)


def write_bytes(path: Path, content: bytes) -> None:
    """Write bytes; see `replacing`."""
    with replacing(path) as partial:
        partial.write_bytes(content)


def write_text(path: Path, content: str) -> None:
    """Write text as UTF-8; see `replacing`."""
    write_bytes(path, content.encode())


def to_json(value: object) -> str:
    """Strict JSON in one line; `inf` (not supported) becomes null, NaN is refused."""
    return json.dumps(_finite(value), allow_nan=False)


def write_json(path: Path, value: object) -> None:
    """Write strict JSON, as `to_json` but on several lines; see `replacing`."""
    write_text(path, json.dumps(_finite(value), allow_nan=False, indent=1) + "\n")


def _finite(value: object) -> object:
    if isinstance(value, float) and math.isinf(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def write_csv(path: Path, rows: Iterable[Sequence[object]]) -> None:
    """Write rows as CSV, the first one with the names of the columns; see `replacing`."""
    with replacing(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(rows)


def write_torch(path: Path, content: object) -> None:
    """Write by `torch.save`; see `replacing`.

    The content is serialised in memory first, because torch's own writer ends the process on a full disk.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    with replacing(path) as partial, partial.open("wb") as file:
        file.write(buffer.getbuffer())


def read_torch(path: Path, *names: str, advice: str = "") -> dict[str, Any]:
    """The content of a file of tensors and plain types, as of `write_torch`, on the CPU; runs no code.

    Args:
        path: The file.
        names: What it must hold.
        advice: What to do about a damaged file, e.g. "; delete it".

    Raises:
        ValueError: Missing, damaged, or without one of the names.
    """
    import torch

    try:
        content = dict(torch.load(path, map_location="cpu", weights_only=True))
    except FileNotFoundError:
        raise ValueError(f"there is no {path}") from None
    except Exception as error:  # torch.load raises many kinds for a damaged file
        raise ValueError(f"{path} is damaged or no checkpoint ({type(error).__name__}){advice}") from None
    if missing := [name for name in names if name not in content]:
        raise ValueError(f"{path} is damaged or no checkpoint (no {missing[0]}){advice}")
    return content


def identity() -> str:
    """Identity of this process, `<place>:<pid>:<start>`.

    The place is the machine since its start, and the PID namespace: containers of one machine are different
    places, because process numbers of one mean nothing in another.
    """
    return _identity(os.getpid())


@functools.cache
def _identity(pid: int) -> str:
    return f"{_place()}:{pid}:{_started(pid)}"


def gone(process: str) -> bool:
    """Whether a process with an `identity` was one of this place and has ended.

    False for processes of other machines and containers, which cannot be checked.
    """
    place, _, rest = process.partition(":")
    number, _, started = rest.partition(":")
    if place != _place() or not number.isdigit():
        return False
    if started:
        return _started(int(number)) != started
    if sys.platform == "win32":  # has no signal 0
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OverflowError, PermissionError):
        return False
    return False


@functools.cache
def end_with(parent: str) -> None:
    """End this process soon after its parent, given by its `identity`.

    Processes of a pool would outlive a killed parent, and disturb the same command when it is repeated.
    Processes that were started by others, such as a cluster, are not ended.
    """
    pid = int(parent.split(":")[1])
    direct = os.getppid() == pid
    if not direct and not multiprocessing.current_process().name.startswith("Loky"):
        return

    def watch() -> None:
        while not (gone(parent) or (direct and os.getppid() != pid)):
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@functools.cache
def _place() -> str:
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        machine, namespace = platform.node(), ""
    return hashlib.sha256(f"{machine} {namespace}".encode()).hexdigest()[:12]


def _started(pid: int) -> str:
    """Start of a process in ticks of the machine; empty if it is dead or unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]  # Z: dead, but its parent has not waited for it
    except (OSError, IndexError):
        return ""


MAX_DEPTH = 40
"""Maximum depth of lists and mappings inside each other."""

MAX_YAML_BYTES = 1 << 20
MAX_YAML_VALUES = 100_000
"""Maximum number of values in a YAML file, with aliases written out."""

MAX_JSON_BYTES = 1 << 28
MAX_DIGITS = 20
"""Maximum digits of a whole number; numbers that we write have at most 19."""
_PLAIN = {
    f"tag:yaml.org,2002:{kind}" for kind in ("map", "seq", "str", "int", "float", "bool", "null", "merge")
}


def plain_yaml(path: Path) -> dict[Any, Any] | list[Any]:
    """The content of a YAML file.

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
    """Number of values of a node; those of an alias count at each of its places.

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
        known[id(node)] = MAX_YAML_VALUES + 1  # too many, in case it contains itself
        inner = node.value
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        known[id(node)] = 1 + sum(_count(part, known, depth + 1) for part in inner)
    if known[id(node)] > MAX_YAML_VALUES:
        raise ValueError(f"more than {MAX_YAML_VALUES:,} values once its aliases are written out")
    return known[id(node)]


def read_json(path: Path, otherwise: str = "is corrupt") -> Any:
    """The content of a JSON file.

    Args:
        path: The file.
        otherwise: Words for the message on a file that cannot be read.

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
    """The content of JSON text; NaN and infinity are read, but `shaped` refuses them.

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


def _check_depth(value: object) -> None:
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


def shaped(value: object, shape: object, place: str = "") -> None:
    """Check the content of JSON against a shape.

    Args:
        value: The content.
        shape: `str`, `int`, `bool`, or `float` (any finite number, `Real` NaN too); `object` is anything;
            a text or None is that value; a tuple, one of several shapes; `[shape]`, a list of any length;
            `{name: shape}`, a mapping that has these names (those that end in "?" may be missing) and may
            have others, whose shape is that of the name `str`, if there is one.
        place: Place of the value, for messages.

    Raises:
        ValueError: The content has another shape; says where, and how.
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


def _has_shape(value: object, shape: object) -> bool:
    try:
        shaped(value, shape)
    except ValueError:
        return False
    return True


def _is_of(value: object, kind: Any) -> bool:
    if kind is None or isinstance(kind, str):
        return value == kind
    if kind is object:
        return True
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int | float) and math.isfinite(value)
    return isinstance(value, kind)


_KINDS: dict[object, str] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    Real: "a number",
    bool: "true or false",
    None: "null",
}


def _spoken(shape: object) -> str:
    if isinstance(shape, dict | list):
        return "a mapping" if isinstance(shape, dict) else "a list"
    return _KINDS.get(shape, str(shape))


def _misshapen(value: object, wanted: str, place: str) -> ValueError:
    shown = json.dumps(value, default=str)
    return ValueError(f"{place or 'it'} is {shown if len(shown) <= 60 else shown[:57] + '...'}, not {wanted}")


def printable(text: str) -> str:
    """Text for a terminal: characters that control it or hide text are written as escapes."""
    return "".join(map(_escaped, text)) if not text.isprintable() else text


def _escaped(character: str) -> str:
    harmless = character in "\n\t" or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")
    return character if harmless else ascii(character)[1:-1]


@contextmanager
def bounded(num_bytes: int) -> Iterator[None]:
    """Limit the additional memory of this process; more is a MemoryError.

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
    """Turn errors from contradictions in foreign data into one ValueError.

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


def data_folder() -> Path:
    """Folder of tables and images: HWNAS_DATA, or the user's cache folder."""
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
