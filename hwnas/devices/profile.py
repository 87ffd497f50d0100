"""Device profiles: what each operation costs, measured once, added up for any architecture."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.core import FloatArray, Genotype

if TYPE_CHECKING:
    from torch import nn

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Profile:
    """Latency of a space's networks as a sum over edges.

    Attributes:
        schema: Version of this file format.
        space: Name of the search space.
        network: Shape of the profiled networks: width, depth, image, classes, batch.
        host: Processor, threads, versions, and when it was measured.
        operations: Per block "median_ms", "iqr_ms" (interquartile range) and "rounds", measured alone.
        base_ms: Latency that every network has.
        edges_ms: `edges_ms[edge][op]`, latency that an operation adds on an edge.
        scale: Factor from the sum of blocks measured alone to whole networks, already in the figures above.
        offset_ms: Constant of the same fit, already in `base_ms`.
        check: Predicted against measured latency on whole networks that the fit has not seen:
            "networks", "spearman", "median_error" (relative).
    """

    schema: int
    space: str
    network: dict[str, Any]
    host: dict[str, Any]
    operations: dict[str, dict[str, float]]
    base_ms: float
    edges_ms: list[list[float]]
    scale: float
    offset_ms: float
    check: dict[str, float]

    def latency_ms(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Predicted latency per genotype in milliseconds, shape (n,)."""
        G = np.asarray(genotypes, dtype=np.intp)
        return np.asarray(self.edges_ms)[np.arange(G.shape[1]), G].sum(axis=1) + self.base_ms

    def save(self, path: Path) -> None:
        """Write the profile as JSON, whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")
        os.replace(partial, path)

    @staticmethod
    def load(path: Path) -> Profile:
        """Read a profile.

        Raises:
            ValueError: Not a profile, or of another schema version.
        """
        try:
            profile = Profile(**json.loads(path.read_text()))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path} is not a device profile ({error}); delete it to measure anew") from None
        if profile.schema != SCHEMA_VERSION:
            raise ValueError(
                f"profile {path} has schema version {profile.schema}, this hwnas needs {SCHEMA_VERSION}; "
                "delete it to measure anew"
            )
        return profile


def time_modules(
    modules: Sequence[tuple[nn.Module, Sequence[int]]], *, batch_size: int, rounds: int, round_ms: float
) -> FloatArray:
    """Milliseconds per forward pass, shape (modules, rounds), after a warm-up.

    Every round visits every module, so that a drift of the machine's speed meets all of them alike.

    Args:
        modules: Modules and their input shapes without the batch; run in evaluation and inference mode.
        batch_size: Images per pass.
        rounds: Number of figures per module.
        round_ms: In a round, a module's pass is repeated until about this long, at least twice.
    """
    import torch

    figures = np.empty((len(modules), rounds))
    with torch.inference_mode():
        passes = []
        for module, shape in modules:
            module.eval()
            x = torch.randn(batch_size, *shape, generator=torch.Generator().manual_seed(0))
            module(x)
            start = time.perf_counter()
            for _ in range(3):
                module(x)
            once = (time.perf_counter() - start) / 3
            passes.append((module, x, max(2, round(round_ms / 1e3 / once))))
        for index in range(rounds):
            for row, (module, x, repeats) in enumerate(passes):
                module(x)  # bring its weights back into the caches
                start = time.perf_counter()
                for _ in range(repeats):
                    module(x)
                figures[row, index] = (time.perf_counter() - start) / repeats
    return figures * 1e3


def measure(
    space: Any, *, batch_size: int, threads: int, rounds: int, num_networks: int = 24, seed: int = 0
) -> Profile:
    """Profile a space's networks on this machine with torch on the CPU.

    Every block is timed alone; half of `num_networks` random whole networks then fit one factor and one
    constant (in a network an operation meets colder caches), the other half tell the error that is left.

    Args:
        space: A space with `blocks()` and networks.
        batch_size: Images per forward pass.
        threads: Processor threads.
        rounds: Timing rounds per block; the median counts.
        num_networks: Whole networks to measure.
        seed: Seed of their choice.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        genotypes = space.sample(np.random.default_rng(seed), num_networks)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            blocks = space.blocks()
            networks = [(space.network(genotype), space.image_shape) for genotype in genotypes]
        figures = time_modules(
            [*blocks.modules.values(), *networks], batch_size=batch_size, rounds=rounds, round_ms=5
        )
    finally:
        torch.set_num_threads(before)
    low, middle, high = np.percentile(figures, [25, 50, 75], axis=1)
    operations = {
        name: {"median_ms": float(middle[row]), "iqr_ms": float(high[row] - low[row]), "rounds": rounds}
        for row, name in enumerate(blocks.modules)
    }
    measured = middle[len(operations) :]

    def cost(counts: Any) -> float:
        return sum(number * operations[name]["median_ms"] for name, number in counts.items())

    base = cost(blocks.always)
    edges = np.array([[cost(counts) for counts in ops] for ops in blocks.edges])
    G = np.array(genotypes)
    summed = edges[np.arange(G.shape[1]), G].sum(axis=1) + base
    fit, test = slice(0, None, 2), slice(1, None, 2)
    scale, offset = np.polyfit(summed[fit], measured[fit], 1, w=1 / measured[fit])  # relative errors
    predicted = scale * summed[test] + offset
    ranks = [values.argsort().argsort() for values in (predicted, measured[test])]
    return Profile(
        schema=SCHEMA_VERSION,
        space=space.name,
        network=network_shape(space, batch_size),
        host=host(threads),
        operations=operations,
        base_ms=float(scale * base + offset),
        edges_ms=(scale * edges).tolist(),
        scale=float(scale),
        offset_ms=float(offset),
        check={
            "networks": len(measured[test]),
            "spearman": float(np.corrcoef(*ranks)[0, 1]),
            "median_error": float(np.median(np.abs(predicted / measured[test] - 1))),
        },
    )


def network_shape(space: Any, batch_size: int) -> dict[str, Any]:
    """What the latency of a space's networks depends on, besides the architecture and the machine."""
    return {
        "channels": space.channels,
        "num_cells": space.num_cells,
        "image_shape": list(space.image_shape),
        "num_classes": space.num_classes,
        "batch_size": batch_size,
    }


def host(threads: int) -> dict[str, Any]:
    """This machine: processor, threads, versions, time."""
    import torch

    return {
        "processor": processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "measured": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def processor() -> str:
    """The processor's name."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
