"""Where `make gpu` runs, and what it writes: build/gpu.json and a table."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch

from hwnas.data.images import Images
from hwnas.reports.hours import in_lines, measured
from hwnas.training.accelerator import accelerator as found_accelerator

RESULTS = Path(__file__).parents[2] / "build" / "gpu.json"


@dataclass
class Rates:
    """Measured rates, beside those of a plain implementation in the same run.

    Args:
        device: That computes.
    """

    device: torch.device
    rows: list[dict[str, object]] = field(default_factory=list)

    def seconds(self, work: Callable[[], object]) -> float:
        """Seconds that work takes, with all that it gives the GPU to do."""
        self._wait()
        start = time.perf_counter()
        work()
        self._wait()
        return time.perf_counter() - start

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def add(
        self,
        name: str,
        unit: str,
        ours: float,
        plain: float | None,
        *,
        rate: str = "",
        per_second: float = 0.0,
    ) -> None:
        """Note a rate; None where there is no plain implementation.

        Args:
            name: What is measured.
            unit: Of it.
            ours: By this package.
            plain: By a plain implementation.
            rate: Its name in `hwnas.reports.hours`, if hours of experiments are estimated by it.
            per_second: Its value there.
        """
        row: dict[str, object] = {"name": name, "unit": unit, "ours": ours, "plain": plain}
        self.rows.append({**row, "rate": rate, "per_second": per_second} if rate else row)

    def content(self) -> dict[str, object]:
        """What the file has."""
        cuda = self.device.type == "cuda"
        return {
            "device": torch.cuda.get_device_name() if cuda else platform.processor() or platform.machine(),
            "num_gpus": torch.cuda.device_count(),
            "torch": torch.__version__,
            "cuda": torch.version.cuda if cuda else None,
            "threads": torch.get_num_threads(),
            "sizes": "published" if cuda else "tiny",
            "peak_memory_GB": torch.cuda.max_memory_allocated() / 1e9 if cuda else None,
            "rates": self.rows,
        }


def table(rows: list[dict[str, object]]) -> str:
    """Rates as lines of a table."""

    def number(value: object) -> str:
        return "" if value is None else f"{value:.4g}"

    lines = [("", "ours", "plain", "unit")]
    lines += [(str(row["name"]), number(row["ours"]), number(row["plain"]), str(row["unit"])) for row in rows]
    width = max(len(line[0]) for line in lines)
    return "\n".join(f"{a:<{width}}  {b:>10}  {c:>10}  {d}" for a, b, c, d in lines)


@pytest.fixture(scope="session")
def accelerator() -> torch.device:
    """A GPU, or the processor."""
    return found_accelerator()


@pytest.fixture(scope="session")
def rates(accelerator: torch.device) -> Iterator[Rates]:
    """Collects rates, and writes them when all tests are over."""
    found = Rates(accelerator)
    yield found
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found.content(), indent=1) + "\n")
    if accelerator.type != "cuda":
        print("\nThere is no GPU here: everything ran on the processor, at sizes that say nothing of speed.")
    print(f"\n{table(found.rows)}\n\n{in_lines(measured(RESULTS))}\n\nwritten to {RESULTS}")


@pytest.fixture(scope="session")
def images(accelerator: torch.device, tmp_path_factory: pytest.TempPathFactory) -> Images:
    """Images of ten brightnesses, half of them for validation: 10,000 of 32x32, or 80 of 8x8."""
    num, side = (10_000, 32) if accelerator.type == "cuda" else (80, 8)
    rng = np.random.default_rng(0)
    y = np.arange(num + num // 5) % 10
    x = rng.integers(0, 75, (len(y), side, side, 3)) + 20 * y[:, None, None, None]
    path = tmp_path_factory.mktemp("images") / "bright.npz"
    arrays = {"x_train": x[:num], "y_train": y[:num], "x_test": x[num:], "y_test": y[num:]}
    np.savez(path, **{name: a.astype(np.uint8 if name[0] == "x" else np.int64) for name, a in arrays.items()})
    return Images(
        "bright",
        source="npz",
        image_shape=None,
        num_classes=None,
        path=str(path),
        valid_fraction=0.5,
        crop=4 if side == 32 else 1,
        flip=True,
        cutout=16 if side == 32 else 2,
    )
