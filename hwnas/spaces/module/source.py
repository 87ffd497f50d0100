"""The user's file that has the module: found, allowed, and run once.

A file that a command names is the user's own, and runs. A run's folder names one too, and may come from
anywhere: such a file runs only if this user has named a file of the same content before.
"""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import os
import sys
import traceback
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hwnas.core import suggestion
from hwnas.files import append, find_file

if TYPE_CHECKING:
    from torch import nn

GIVEN = ("image_shape", "num_classes")
"""Arguments that a module's constructor gets, if it names them."""

_trusted: set[str] = set()


def _memory() -> Path:
    """Where digests of files are kept that this user has named."""
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "hwnas" / "modules"


def trust(path: str) -> None:
    """Remember that the user named a file; a path that leads to none is left for `load` to complain of."""
    with contextlib.suppress(ValueError, OSError):
        digest = _digest(_file(path)[0].read_bytes())
        known = _is_trusted(digest)
        _trusted.add(digest)
        if not known:
            _memory().parent.mkdir(parents=True, exist_ok=True)
            append(_memory(), f"{digest}\n".encode())


def _is_trusted(digest: str) -> bool:
    if digest in _trusted:
        return True
    with contextlib.suppress(OSError):
        return digest in _memory().read_text().split()
    return False


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _file(path: str) -> tuple[Path, str]:
    """The file and the class that a path names.

    Raises:
        ValueError: It names no class, or there is no such file.
    """
    file, _, name = path.rpartition(":")
    if not file or not name.isidentifier():
        raise ValueError(f"path must be <file.py>:<class>, e.g. mine.py:Net, not {path!r}")
    return find_file(file).absolute(), name


def load(path: str, *, allowed: bool = False) -> type[nn.Module]:
    """The class that a path names, from its file, which is run if this process has not done so.

    Args:
        path: "<file.py>:<class>"; the file is absolute, or relative to the working folder or the data folder.
        allowed: Whether the file is known to be the user's.

    Raises:
        ValueError: No such file or class, a file that fails, or one that the user has never named.
    """
    file, name = _file(path)
    content = file.read_bytes()
    digest = _digest(content)
    if not allowed and not _is_trusted(digest):
        raise ValueError(
            f"path: {file} is code that would be run, and you have never named it; if you trust it, say so "
            f"in a command: search_space.path={path}"
        )
    return check(_run(file, content, f"{file.stem}_{digest[:12]}"), name, file)


def is_network(given: object) -> bool:
    """Whether something is a class of `nn.Module`; torch is not loaded for it."""
    bases = given.__mro__ if isinstance(given, type) else ()
    return any((base.__module__, base.__name__) == ("torch.nn.modules.module", "Module") for base in bases)


def named(module: object) -> dict[str, Any]:
    """Settings of a `ModuleSpace` for a class, with its path where other processes may run its file."""
    file, name = None, getattr(module, "__qualname__", ".")
    with contextlib.suppress(TypeError, OSError):
        file = inspect.getsourcefile(module)  # type: ignore[arg-type]
    if file is None or not name.isidentifier() or getattr(module, "__module__", "") == "__main__":
        return {"module": module}
    trust(f"{file}:{name}")
    return {"module": module, "path": f"{file}:{name}"}


def _run(file: Path, content: bytes, name: str) -> ModuleType:
    """The module of a file."""
    if name in sys.modules:
        return sys.modules[name]
    module = ModuleType(name)
    module.__file__ = str(file)
    sys.modules[name] = module
    try:
        exec(compile(content, str(file), "exec"), vars(module))  # the user's own code, as a command names it
    except BaseException as error:
        del sys.modules[name]
        if not isinstance(error, Exception):
            raise
        lines = [
            frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)
        ]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else 1)
        why = f"{type(error).__name__}: {getattr(error, 'msg', None) or error}"
        raise ValueError(f"path: {file} cannot be run: {why} (line {line})") from error
    return module


def check(module: ModuleType, name: str, file: Path) -> type[nn.Module]:
    """The class of a name in a file."""
    from torch import nn  # not before a file is read

    classes = {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module.__name__
    }
    found = getattr(module, name, None)
    if found is None:
        raise ValueError(f"path: {file} has no class {name!r}{suggestion(name, list(classes))}")
    return checked_class(found)


def checked_class(given: object) -> type[nn.Module]:
    """A class of networks, checked.

    Raises:
        ValueError: It is no `nn.Module`, or its constructor needs what nobody gives it.
    """
    from torch import nn  # not before a file is read

    if not isinstance(given, type) or not issubclass(given, nn.Module):
        raise ValueError(f"search_space=module needs a class of nn.Module, not {given!r}")
    for name, parameter in list(inspect.signature(given).parameters.items()):
        needed = parameter.default is parameter.empty and parameter.kind not in (
            parameter.VAR_POSITIONAL,
            parameter.VAR_KEYWORD,
        )
        if needed and name not in GIVEN:
            raise ValueError(
                f"{given.__name__}.__init__ needs {name!r}, which nobody gives it; it gets "
                f"{' and '.join(GIVEN)} if it names them, other arguments need defaults"
            )
    return given
