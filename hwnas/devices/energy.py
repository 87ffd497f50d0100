"""Energy counters: Intel RAPL through sysfs, NVIDIA GPUs through NVML. No figure without a counter."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

RAPL_ROOT = Path("/sys/class/powercap")


class Rapl:
    """Energy of all processor packages in mJ, from Intel's running average power limit counters.

    The counters overflow at `max_energy_range_uj`; they must be read at least once between overflows
    (minutes).

    Args:
        root: Folder with one folder per counter, "intel-rapl:0" and so on.

    Raises:
        OSError: A counter cannot be read; on most systems only root can.
    """

    name = "Intel RAPL, packages"

    def __init__(self, root: Path) -> None:
        # "intel-rapl:0" is a package, "intel-rapl:0:1" a part of it that is counted there already.
        self._files = [
            folder / "energy_uj" for folder in sorted(root.glob("intel-rapl:[0-9]*")) if _whole(folder)
        ]
        if not self._files:
            raise FileNotFoundError(f"{root} has no counter of a processor package")
        self._range = [int((file.parent / "max_energy_range_uj").read_text()) for file in self._files]
        self._last = self._raw()
        self._total = 0

    def _raw(self) -> list[int]:
        return [int(file.read_text()) for file in self._files]

    def read(self) -> float:
        """Energy since the object was made, in mJ."""
        now = self._raw()
        for index, (value, before) in enumerate(zip(now, self._last, strict=True)):
            turn = self._range[index] if value < before else 0
            self._total += value - before + turn
        self._last = now
        return self._total / 1e3


def _whole(folder: Path) -> bool:
    try:
        return folder.name.count(":") == 1 and (folder / "name").read_text().startswith("package")
    except OSError:
        return False


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
            return Nvml(0)
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


def energy_per_pass(timer: Callable[[int], float], source: Rapl | Nvml, passes: int) -> float:
    """Energy of a forward pass in mJ, with everything that the counter measures, such as idle power."""
    timer(1)
    before = source.read()
    timer(passes)
    return (source.read() - before) / passes
