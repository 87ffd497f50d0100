"""Energy counters: Intel RAPL (`board.py`) and NVIDIA GPUs through NVML. No figure without a counter."""

from __future__ import annotations

import os
from pathlib import Path

from hwnas.devices.board import RAPL_ROOT, Rapl, energy_per_pass

__all__ = ["Meter", "Nvml", "Rapl", "counter", "energy_per_pass"]


class Nvml:
    """Energy of an NVIDIA GPU in mJ since its driver was loaded (Volta or newer).

    Args:
        index: Number of the GPU.

    Raises:
        OSError: No pynvml (extra `energy`), no driver, or a GPU without the counter.
    """

    name = "NVML, whole GPU"

    def __init__(self, index: int) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)
        except ImportError as error:
            raise OSError(str(error)) from None
        except pynvml.NVMLError as error:
            raise OSError(str(error)) from None
        self._read = lambda: pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)

    def read(self) -> float:
        """The counter, in mJ."""
        return float(self._read())


def counter(provider: str, root: Path = RAPL_ROOT) -> Rapl | Nvml | None:
    """The energy counter of a backend's processor or GPU; None if none can be read.

    Args:
        provider: "cpu", "cuda", or one of onnxruntime's execution providers.
        root: Where Linux shows RAPL's counters.
    """
    try:
        if provider.lower().startswith(("cuda", "tensorrt")):
            # NVML counts all GPUs, CUDA visible ones only, of which the first one computes.
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0]
            return Nvml(int(visible) if visible.isdigit() else 0)
        return Rapl(root) if provider in ("cpu", "CPUExecutionProvider") else None
    except (OSError, ValueError):
        return None


MILLIJOULES_PER_KWH = 3.6e9


class Meter:
    """Energy of the machine as far as counters measure it: processor packages, and the first NVIDIA GPU.

    Other processes count, too. It must be read every few minutes, before RAPL's counters overflow.

    Args:
        root: Where Linux shows RAPL's counters.
    """

    def __init__(self, root: Path = RAPL_ROOT) -> None:
        found = [(source, source.read()) for kind in ("cpu", "cuda") if (source := counter(kind, root))]
        self._sources = found

    def read(self) -> float | None:
        """Energy since the object was made, in kWh; None without a counter."""
        if not self._sources:
            return None
        return sum(source.read() - before for source, before in self._sources) / MILLIJOULES_PER_KWH
