"""OpenVINO, Intel's runtime, which reads ONNX files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hwnas.devices.runtimes.runtime import Answers, Runtime


class OpenVINO(Runtime):
    """OpenVINO on a processor, or on another of its devices (`provider=GPU`), for one image after another.

    It computes in the precision of the file, without OpenVINO's own change to bfloat16.
    """

    name = package = "openvino"
    provider = "CPU"

    def load(self, path: Path, provider: str, threads: int) -> Answers:
        """A network, compiled for a device of OpenVINO."""
        core = self.load_package().Core()
        if provider not in core.available_devices:
            raise ValueError(
                f"provider {provider} is not available in {self.version}; there are "
                f"{', '.join(core.available_devices)}"
            )
        how = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        own = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 0 if threads == 1 else 1}
        own = own if provider == "CPU" else {}  # 0 streams: in the thread that asks, which waits for no other
        try:
            network = core.compile_model(core.read_model(path), provider, {**how, **own})
        except RuntimeError as error:
            raise RuntimeError(str(error).strip().splitlines()[-1]) from None
        # A network without a path from its input is exported as a constant without an input.
        taken, request = len(network.inputs), network.create_infer_request()

        def answers(images: np.ndarray) -> np.ndarray:
            found: np.ndarray = request.infer([images] * taken, share_inputs=True)[0]
            return found.copy()

        return answers
