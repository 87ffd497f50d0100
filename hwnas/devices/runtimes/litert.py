"""LiteRT, the runtime of phones and small boards (before: TensorFlow Lite), which reads files of its own."""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hwnas.devices.runtimes.runtime import Answers, Runtime
from hwnas.files import write_bytes

if TYPE_CHECKING:
    from torch import nn


class LiteRT(Runtime):
    """LiteRT on a processor. Its files take one image at a time."""

    name, package = "litert", "ai_edge_litert"
    provider = "CPU"

    def write(self, module: nn.Module, image_shape: Sequence[int], path: Path) -> None:
        """Write a module as a file, which takes some seconds.

        Args:
            module: In evaluation mode; images (B, C, H, W) in, one tensor out.
            image_shape: (C, H, W).
            path: The file.

        Raises:
            ValueError: A module that has no such form, or the packages are not installed.
        """
        import torch

        converter: Any = self.load_package("litert_torch")
        noise = io.StringIO()  # of the converter, line by line
        try:
            with (
                warnings.catch_warnings(),
                contextlib.redirect_stdout(noise),
                contextlib.redirect_stderr(noise),
            ):
                warnings.simplefilter("ignore")
                converted = converter.convert(module.eval(), (torch.zeros(1, *image_shape),))
                written: bytes = converted.model_content()
        except Exception as error:  # the converter has no common class for its errors
            line = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ValueError(f"the network has no form for LiteRT ({line})") from None
        write_bytes(path, written)

    def load(self, path: Path, provider: str, threads: int) -> Answers:
        """A network, ready to run on the processor."""
        interpreter: Any = self.load_package("ai_edge_litert.interpreter")
        try:
            network = interpreter.Interpreter(str(path), num_threads=threads)
            network.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise RuntimeError(str(error).strip().splitlines()[-1]) from None
        taken, given = (of[0]["index"] for of in (network.get_input_details(), network.get_output_details()))

        def answers(images: np.ndarray) -> np.ndarray:
            found = []
            for image in images:
                network.set_tensor(taken, image[None])
                network.invoke()
                found.append(network.get_tensor(given))
            return np.concatenate(found)

        return answers
