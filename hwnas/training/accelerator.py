"""The device that computes, and how supernets and images are handled on each kind of device."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

VARIABLE = "HWNAS_ACCELERATOR"
"""Environment variable that names the device: auto, cpu, cuda or mps."""

RESIDENT = 0.25
"""Images lie on a GPU if they fill at most this fraction of its free memory. Our choice, not measured."""

PRECISIONS = {"32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Lightning's name of each precision."""


def accelerator(*, float64: bool = False) -> torch.device:
    """The device that computes: the first GPU that CUDA_VISIBLE_DEVICES leaves visible, or the processor.

    HWNAS_ACCELERATOR=cpu, cuda or mps (Apple's GPUs) chooses it. Its type is part of the versions of
    evaluations and of trained weights.

    Args:
        float64: Whether float64 is needed, which mps lacks: then the processor computes in its place.

    Raises:
        ValueError: HWNAS_ACCELERATOR has another value, or names a device that is not there.
    """
    wanted = os.environ.get(VARIABLE) or "auto"
    there = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if wanted == "auto":
        return torch.device("cuda" if there["cuda"] else "cpu")
    if wanted not in there:
        raise ValueError(f"{VARIABLE}={wanted} is no device; it can be auto, {', '.join(there)}")
    if not there[wanted]:
        usable = ", ".join(name for name, is_there in there.items() if is_there)
        raise ValueError(f"{VARIABLE}={wanted}: torch finds no such device here; there is {usable}")
    return torch.device("cpu" if float64 and wanted == "mps" else wanted)


@dataclass(frozen=True)
class Execution:
    """How a supernet is computed.

    Args:
        way: "stacked": equal operations as one, with gradients by hand, and folded BatchNorm in evaluations
            (`hwnas.spaces.supernet`); "plain": operation by operation.
        channels_last: Whether channels of a pixel lie side by side.
        autocast: Whether training computes in bfloat16 where that is safe.
        graphs: Whether steps that always run the same operations are recorded as a CUDA graph and replayed.
        resident: Whether training images lie on the device; None: if they fit.
    """

    way: Literal["stacked", "plain"]
    channels_last: bool
    autocast: bool
    graphs: bool
    resident: bool | None

    def on_images(self, device: torch.device, images: Tensor) -> bool:
        """Whether images are to lie on a device."""
        return fits(device, images) if self.resident is None else self.resident


EXECUTIONS = {
    "cpu": Execution("stacked", channels_last=True, autocast=False, graphs=False, resident=True),
    "cuda": Execution("stacked", channels_last=True, autocast=True, graphs=True, resident=None),
    "mps": Execution("plain", channels_last=False, autocast=False, graphs=False, resident=True),
}
"""By type of device. Measured on cpu only (docs/measurements.md); `make gpu` compares the ways on cuda."""


def execution(device: torch.device, **chosen: object) -> Execution:
    """How a supernet is computed on a device: what was chosen, and the table's values for "auto".

    Args:
        device: On which it runs.
        chosen: Values by the names of `Execution`.

    Raises:
        ValueError: Values that exclude each other.
    """
    usual = EXECUTIONS.get(device.type, EXECUTIONS["cpu"])
    found = replace(usual, **{name: value for name, value in chosen.items() if value != "auto"})  # type: ignore[arg-type]
    if found.way == "stacked":
        if chosen.get("channels_last") is False:
            raise ValueError("channels_last=false needs execution=plain, not stacked")
        return replace(found, channels_last=True)
    if chosen.get("graphs") is True:
        raise ValueError("graphs=true needs execution=stacked, not plain")
    return replace(found, graphs=False)


def fits(device: torch.device, images: Tensor) -> bool:
    """Whether images fill at most `RESIDENT` of the free memory of a device; without a GPU always."""
    if device.type != "cuda" or images.device == device:
        return True
    return images.nbytes <= RESIDENT * torch.cuda.mem_get_info(device)[0]


def out_of_memory(error: BaseException) -> bool:
    """Whether an error, also one told by another process, is a lack of memory of a GPU or the machine."""
    signs = "OutOfMemoryError|out of memory|allocate memory|enough memory"
    return bool(re.search(signs, f"{type(error).__name__} {error}"))


@contextmanager
def within_memory(who: str, settings: str, doing: str = "") -> Iterator[None]:
    """Turn a lack of memory into one line.

    Args:
        who: Needed it.
        settings: Would need less if they were smaller.
        doing: For what, if not all of it needs the same.

    Raises:
        ValueError: There is not enough memory.
    """
    try:
        yield
    except RuntimeError as error:  # torch's only kind of it on a CPU, and the base of that on a GPU
        if not out_of_memory(error):
            raise
        raise ValueError(f"{who} ran out of memory{doing}; a smaller {settings} needs less") from None


def lightning_precision(precision: str | int) -> str:
    """Lightning's name of a precision of `training.recipe.Recipe`.

    "auto" is "bf16" where the device multiplies in bfloat16 (GPUs from Ampere on, processors with AVX512-BF16
    or AMX), else "32".
    """
    if precision == "auto":
        return PRECISIONS["bf16" if _multiplies_bf16() else "32"]
    return PRECISIONS[str(precision)]


def _multiplies_bf16() -> bool:
    if accelerator().type != "cpu":
        return accelerator().type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    asked = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")  # older versions of torch lack them
    return any(getattr(torch.cpu, name, bool)() for name in asked)
