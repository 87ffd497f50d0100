"""This machine as the device."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hwnas.core import Evaluator, Genotype, SearchSpace
from hwnas.devices.board import processor
from hwnas.devices.measure import Settings, measure, require_blocks
from hwnas.devices.profile import SCHEMA_VERSION, Profile, network_shape

NUM_CHECK, NOISE = 20, 0.1
"""Networks that are measured whole for the fit and for its check; when a figure is measured again."""


class Host(Evaluator):
    """`latency_ms` of the space's networks on this machine, from a profile measured once.

    The profile is kept in the store, per machine and network shape; later runs read it, which makes their
    latencies equal. Delete the file to measure anew.

    Args:
        space: A space with networks.
        store_dir: Folder of the store.
        announce: Called with a sentence when a profile was measured or read.
        batch_size: Images per forward pass.
        threads: Processor threads of the measured network.
        rounds: Timing rounds per operation; the median counts.

    Raises:
        ValueError: A size below 1, or a space without networks.
    """

    def __init__(
        self,
        space: SearchSpace,
        store_dir: Path,
        announce: Callable[[str], None],
        *,
        batch_size: int,
        threads: int,
        rounds: int,
    ) -> None:
        require_blocks(space)
        self.name = "host"
        self.exhaustive = True
        self.metrics = {"latency_ms": "min"}
        self.settings = Settings.checked(
            "device.",
            backend="torch",
            provider="cpu",
            threads=threads,
            batch_size=batch_size,
            rounds=rounds,
            networks=None,
            check=NUM_CHECK,
            noise=NOISE,
            seed=0,
        )
        self.profile: Profile | None = None
        self._space = space
        self._store_dir = store_dir
        self._announce = announce
        self._version = ""

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """Read or measure the profile; the version is its hash."""
        if self.profile is None:
            path = self.path()
            if path.is_file():
                self.profile = Profile.load(path)
                verb = "from"
            else:
                self.profile = measure(self._space, self.settings, device="host", say=lambda text: None)
                self.profile.save(path)
                verb = "measured, kept in"
            self._announce(f"host profile {verb} {path}. {self.profile.summary()}")
            self._version = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        return self._version

    def path(self) -> Path:
        """Where the profile of this machine and these networks is kept."""
        import torch

        settings = self.settings
        key: list[Any] = [SCHEMA_VERSION, self._space.name, network_shape(self._space, settings.batch_size)]
        key += [settings.threads, settings.rounds, processor(), torch.__version__]
        digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:12]
        return self._store_dir / "profiles" / f"host-{self._space.name}-{digest}.json"

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Predicted latency per genotype."""
        assert self.profile is not None, "prepare comes first"
        predicted = self.profile.predict(self._space, "latency_ms", genotypes)
        return [{"latency_ms": value} for value in predicted.tolist()]
