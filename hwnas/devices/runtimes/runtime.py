"""A runtime: what runs the file of a network, and how fast."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.devices.board import Timer, repeated

Answers = Callable[[np.ndarray], np.ndarray]
"""Outputs of a network for a batch of inputs."""


class Runtime(ABC):
    """A runtime of ONNX files, which comes as an optional package.

    Attributes:
        name: The word of `backend=`, and the extra that installs it.
        package: The package that must be there.
        provider: What it runs networks on, unless the user says otherwise.
    """

    name: str
    package: str
    provider: str

    def load_package(self, module: str | None = None) -> Any:
        """The runtime's package, or another module that it needs.

        Raises:
            ValueError: It is not installed.
        """
        try:
            return importlib.import_module(module or self.package)
        except ImportError:
            raise ValueError(
                f"backend={self.name} needs the extra {self.name}: pip install 'hwnas[{self.name}]'"
            ) from None

    @property
    def version(self) -> str:
        """Name and version of the package."""
        self.load_package()
        return f"{self.name} {metadata.version(self.package)}"

    @abstractmethod
    def load(self, path: Path, provider: str, threads: int) -> Answers:
        """A file's network, ready to run.

        Args:
            path: The file.
            provider: What runs it.
            threads: Processor threads.

        Raises:
            ValueError: The provider is not there.
            RuntimeError: It cannot run the network.
        """

    def timer(self, path: Path, inputs: Sequence[int], provider: str, threads: int) -> Timer:
        """The timer of a file's network.

        Args:
            path: As for `load`.
            inputs: Shape of its input, with the batch.
            provider: As for `load`.
            threads: As for `load`.

        Raises:
            ValueError: As for `load`.
            RuntimeError: As for `load`.
        """
        image = np.random.RandomState(0).randn(*inputs).astype(np.float32)
        run = self.load(path, provider, threads)
        run(image)
        return repeated(lambda: run(image))
