"""Safe reading of foreign pickle files.

A pickle names functions that Python calls while it reads the file, so that a foreign one can run any code.
This reader admits only plain containers, numbers, text, and numpy scalars and arrays of these. It builds them
itself, and refuses a file that names anything else. It does not need torch: tensors are read as None.
"""

from __future__ import annotations

import bz2
import io
import pickle
import re
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import IO, NoReturn

import numpy as np

from hwnas.files import bounded

MAX_BYTES = 1 << 30
"""Bytes that a compressed file may expand to."""

MEMORY, MEMORY_PER_BYTE = 1 << 28, 32
"""Bytes of memory that reading a pickle may take, and additional ones per byte of the pickle. A normal pickle
takes less; a few bytes of a hostile one can demand gigabytes."""

TORCH_MAGIC = 0x1950A86A20F9469CFC6C
"""First number in a file that torch before 1.6 saved."""


class _ForeignClassError(ValueError):
    pass


class _Name:
    """A function that a pickle may call; it cannot set attributes of it."""

    __slots__ = ("_call",)
    _call: Callable[..., object]

    def __init__(self, call: Callable[..., object]) -> None:
        object.__setattr__(self, "_call", call)

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"attribute {name!r} of a function")


class _DType:
    """Takes the place of numpy.dtype until the byte order is known."""

    __slots__ = ("real",)

    def __init__(self, code: object, align: object = False, copy: object = True) -> None:
        if not isinstance(code, str) or re.fullmatch(r"[<>=|]?([biufcSU]\d+|O8?)", code) is None:
            raise _ForeignClassError(f"numpy values of type {code!r}")
        self.real = np.dtype(code)

    def __setstate__(self, state: tuple[object, ...]) -> None:
        if state[1] in ("<", ">"):
            self.real = self.real.newbyteorder(state[1])


class _Array(np.ndarray):
    """An array whose state is checked before numpy gets it; its objects are built by this reader."""

    def __setstate__(self, state: tuple[object, ...]) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _DType) or not isinstance(shape, tuple):
            raise ValueError("an array without a type or shape")
        count = 1
        for length in shape:
            if type(length) is not int or length < 0:
                raise ValueError(f"an array of shape {shape}")
            count *= length
        if dtype.real.hasobject:
            if type(data) is not list or len(data) != count:
                raise ValueError("an array of objects without them")
        elif type(data) is not bytes or len(data) != count * dtype.real.itemsize:
            raise ValueError("an array without its bytes")
        super().__setstate__((1, shape, dtype.real, bool(fortran), data))  # type: ignore[arg-type]


def _reconstruct(_class: object, _shape: object, _code: object) -> _Array:
    return _Array((0,), dtype=np.int8)


def _scalar(dtype: _DType, data: object) -> object:
    return _numbers(data, dtype)[0]


def _frombuffer(data: object, dtype: _DType, shape: tuple[int, ...], order: str) -> np.ndarray:
    return _numbers(data, dtype).reshape(shape, order="F" if order == "F" else "C")


def _numbers(data: object, dtype: object) -> np.ndarray:
    if not isinstance(data, bytes | bytearray) or not isinstance(dtype, _DType):
        raise ValueError("a numpy value without its bytes or type")
    if not data:
        return np.empty(0, dtype=dtype.real)
    return np.frombuffer(bytes(data), dtype=dtype.real)  # numpy refuses objects here


def _encode(text: str, encoding: str) -> bytes:
    """Bytes in pickles of protocol 2 and below."""
    if encoding != "latin1":
        raise ValueError(f"bytes encoded as {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Empty bytes in pickles of protocol 2 and below."""
    return b""


def _refuse(*_arguments: object) -> NoReturn:
    raise ValueError("a class where a value is expected")


def _nothing(*_arguments: object) -> None:
    return None


def _admitted() -> dict[tuple[str, str], _Name]:
    calls: dict[tuple[str, str], Callable[..., object]] = {
        ("collections", "OrderedDict"): OrderedDict,
        ("numpy", "dtype"): _DType,
        ("numpy", "ndarray"): _refuse,  # only named, as an argument of _reconstruct
        ("_codecs", "encode"): _encode,
    }
    for core in ("numpy.core", "numpy._core"):  # before and since numpy 2
        calls[f"{core}.multiarray", "scalar"] = _scalar
        calls[f"{core}.multiarray", "_reconstruct"] = _reconstruct
        calls[f"{core}.numeric", "_frombuffer"] = _frombuffer
    for builtins in ("builtins", "__builtin__"):
        calls[builtins, "bytes"] = _no_bytes
        for container in (dict, frozenset, list, set, tuple):
            calls[builtins, container.__name__] = container
    return {name: _Name(call) for name, call in calls.items()}


def _admitted_by_torch() -> dict[tuple[str, str], _Name]:
    kinds = ("Double", "Float", "Half", "BFloat16", "Long", "Int", "Short", "Char", "Byte", "Bool")
    named = {("torch", f"{kind}Storage"): _Name(_refuse) for kind in kinds}
    functions = ("_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_parameter")
    return _admitted() | named | {("torch._utils", name): _Name(_nothing) for name in functions}


class _Unpickler(pickle.Unpickler):
    ADMITTED: Mapping[tuple[str, str], _Name] = _admitted()

    def find_class(self, module_name: str, global_name: str) -> _Name:
        found = self.ADMITTED.get((module_name, global_name))
        if found is None:
            raise _ForeignClassError(f"{module_name}.{global_name}")
        return found


class _TorchUnpickler(_Unpickler):
    ADMITTED = _admitted_by_torch()

    def persistent_load(self, pid: object) -> None:
        """None for the numbers of a tensor, which are not needed here."""


def loads(content: bytes, name: str) -> object:
    """The content of a pickle of plain containers, numbers, text, and numpy values.

    Args:
        content: The pickle, or a pickle compressed with bzip2.
        name: The file's name, for messages.

    Raises:
        ValueError: Truncated or corrupt, or it names a class or function that is not admitted; says which.
            Such a function is never called.

    Source: "Restricting Globals", Python documentation of pickle.
    """
    with _explained(name):
        if content.startswith(b"BZh"):
            with bz2.open(io.BytesIO(content)) as stream:
                content = stream.read(MAX_BYTES + 1)
            if len(content) > MAX_BYTES:
                raise ValueError(f"it expands to more than {MAX_BYTES:,} bytes")
        with _bounded(len(content)):
            return _Unpickler(io.BytesIO(content)).load()


def read_pickle(file: Path) -> object:
    """The content of a foreign pickle file; see `loads`.

    Raises:
        ValueError: As `loads`.
        OSError: The file cannot be read.
    """
    return loads(file.read_bytes(), str(file))


def read_torch(file: Path) -> object:
    """The content of a file of `torch.save`; tensors are None.

    Args:
        file: In the zip format, or in the format before torch 1.6.

    Raises:
        ValueError: As `loads`, or the file has neither format.
        OSError: The file cannot be read.
    """
    size = file.stat().st_size
    with file.open("rb") as stream, _explained(str(file), "file saved by torch"), _bounded(size):
        if zipfile.is_zipfile(stream):
            with zipfile.ZipFile(stream) as archive:
                entries = [entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")]
                if len(entries) != 1 or entries[0].compress_type != zipfile.ZIP_STORED:
                    raise ValueError("it has no data.pkl")
                with archive.open(entries[0]) as pickled:
                    return _load_torch(pickled)
        stream.seek(0)
        if _load_torch(stream) != TORCH_MAGIC:
            raise ValueError("it has neither of torch's formats")
        _load_torch(stream)  # version of the format
        _load_torch(stream)  # sizes of numbers on the machine that wrote it
        return _load_torch(stream)


def _bounded(size: int) -> AbstractContextManager[None]:
    return bounded(MEMORY + MEMORY_PER_BYTE * size)


def _load_torch(stream: IO[bytes]) -> object:
    return _TorchUnpickler(stream).load()


@contextmanager
def _explained(name: str, kind: str = "pickle") -> Iterator[None]:
    """Turn all errors that an unpickler may raise into one ValueError."""
    try:
        yield
    except _ForeignClassError as error:
        raise ValueError(f"{name} holds {error}, which is not read from a foreign pickle") from None
    except (
        *(ArithmeticError, AssertionError, AttributeError, EOFError, ImportError, LookupError, MemoryError),
        *(OSError, RuntimeError, TypeError, ValueError),
        *(pickle.UnpicklingError, struct.error, zipfile.BadZipFile),
    ) as error:
        why = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, MemoryError):
            why = "it takes more memory than a file of its size may"
        raise ValueError(f"{name} is not a readable {kind} ({why})") from None
