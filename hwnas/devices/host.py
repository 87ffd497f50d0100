"""This machine as the device."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
from annotated_types import Ge

from hwnas.core import Count, Evaluator, FloatArray, Genotype, SearchSpace, checked
from hwnas.devices.board import processor
from hwnas.devices.measure import Backend, Settings, measure, require_blocks, time_networks
from hwnas.devices.onnx_models import require_onnx
from hwnas.devices.profile import SCHEMA_VERSION, Profile, network_shape
from hwnas.devices.runtimes import RUNTIMES
from hwnas.files import only_maker, write_bytes

if TYPE_CHECKING:
    from torch import nn

NUM_CHECK, NOISE = 20, 0.1
"""Whole networks for the fit and for its check; variation above which a figure is measured again."""


class Host(Evaluator):
    """`latency_ms` of the space's networks on this machine, from a profile measured once.

    The profile is kept in the store, per machine and network shape, and later runs read it, so that all have
    the same latencies. If operations are noisy, a later run measures the profile again when the machine is
    quieter; delete the file to measure at once. A run keeps a copy, and so do the runs of a sweep, also when
    they are resumed on another machine: no run mixes two profiles.

    Args:
        space: A space with networks.
        store_dir: Folder of the store.
        kept: Folder of the run's or the sweep's copy.
        announce: Called with a sentence when a profile was measured or read.
        batch_size: Images per forward pass.
        threads: Processor threads of the measured network.
        rounds: Timing rounds per operation; the median counts.
        backend: Runtime of the networks: "torch", or one of exported networks: "onnxruntime", "openvino".

    Raises:
        ValueError: A size below 1, an unknown backend, or a space without networks.
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        store_dir: Path,
        kept: Path,
        announce: Callable[[str], None],
        *,
        batch_size: Count,
        threads: Count,
        rounds: Annotated[int, Ge(3)],
        backend: Backend = "torch",
    ) -> None:
        self._space = require_blocks(space)
        self.name = "host"
        self.exhaustive = True
        self.metrics = {"latency_ms": "min"}
        self.settings = Settings.of(
            backend=backend,
            provider=None,
            threads=threads,
            batch_size=batch_size,
            rounds=rounds,
            networks=None,
            check=NUM_CHECK,
            noise=NOISE,
            seed=0,
        )
        self.profile: Profile | None = None
        self._store_dir = store_dir
        self._kept = kept
        self._announce = announce
        self._version = ""

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """Read or measure the profile; the version is its hash."""
        if self.profile is None:
            copy, path = self.copy(), self.path()
            verb, source = "from", copy
            with only_maker(copy, self._announce), only_maker(path, self._announce):
                if not copy.is_file():
                    source = path
                    if not path.is_file() or self._quieter_than(Profile.load(path)):
                        verb = "measured again, kept in" if path.is_file() else "measured, kept in"
                        self._measure().save(path)
                    Profile.load(path)
                    write_bytes(copy, path.read_bytes())
            self.profile = Profile.load(copy)
            said = f"host profile {verb} {source}. {self.profile.summary()}"
            if self.profile.origin.get("processor", processor()) != processor():
                said += f"; it was measured on another machine ({self.profile.origin['processor']})"
            elif self.profile.num_noisy:
                said += f"; to measure again for new runs when this machine is quiet, delete {path}"
            self._announce(said)
            self._version = hashlib.sha256(copy.read_bytes()).hexdigest()[:16]
        return self._version

    def _measure(self) -> Profile:
        """Measure, and note the number of other computing processes."""
        before = _load()
        profile = measure(self._space, self.settings, device="host", say=lambda text: None)
        load = max(before, _load() - self.settings.threads)
        return dataclasses.replace(profile, origin={**profile.origin, "load": load})

    @staticmethod
    def _quieter_than(profile: Profile) -> bool:
        """Whether a profile is noisy, and at most half as many processes compute now as at its measurement.

        Every repetition thus has half the load of the last one, so that a machine that is always noisy stops.
        """
        then = profile.origin.get("load", 1.0)
        assert isinstance(then, int | float)
        return profile.num_noisy > 0 and _load() < then / 2

    def path(self) -> Path:
        """Path of the profile of this machine and these networks."""
        import torch

        if self.settings.backend == "onnxruntime":
            require_onnx("onnx", "onnxruntime")
            versions = [torch.__version__, metadata.version("onnxruntime")]
        elif self.settings.backend in RUNTIMES:
            versions = [torch.__version__, RUNTIMES[self.settings.backend].version]
        else:
            versions = [torch.__version__]
        digest = _digest([SCHEMA_VERSION, *self._networks(), processor(), *versions])
        return self._store_dir / "profiles" / f"host-{self._space.name}-{digest}.json"

    def copy(self) -> Path:
        """Path of the run's copy."""
        return self._kept / f"host-{self._space.name}-{_digest(self._networks())}.json"

    def _networks(self) -> list[object]:
        """The networks and settings of the measurement."""
        settings = self.settings
        shape = network_shape(self._space, settings.batch_size)
        # Profiles by torch were kept without naming it.
        by = [] if settings.backend == "torch" else [settings.backend]
        return [self._space.name, shape, settings.threads, settings.rounds, *by]

    def errors(self, metric: str) -> FloatArray:
        """As for the profile."""
        return np.empty(0) if self.profile is None else self.profile.errors(metric)

    def timed(self, networks: Sequence[nn.Module]) -> list[float]:
        """Milliseconds that networks take on this machine, by the settings of the profile."""
        return time_networks(networks, self._space.image_shape, self.settings)

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Predicted latency per genotype."""
        assert self.profile is not None, "prepare comes first"
        predicted = self.profile.predict(self._space, "latency_ms", genotypes)
        return [{"latency_ms": value} for value in predicted.tolist()]


def _digest(key: Sequence[object]) -> str:
    return hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]


def _load() -> float:
    """Number of computing processes on this machine, as the mean of a minute; 0 if it is unknown."""
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return 0.0
