"""A board's runtime under onnxruntime's name: tiny, slow and noisy; `milliseconds` is its time.

A test puts this file beside a board's script as `onnxruntime.py`, which the script imports. The board has a
clock of its own, which only its runtime advances: what else the machine does cannot disturb it.
"""

from __future__ import annotations

import random
import time

import onnx

__version__ = "0.1"
MS_PER_CONVOLUTION, MS_PER_KILOWEIGHT, NOISE = 0.5, 0.4, 0.03
_random, _clock = random.Random(0), [0.0]
if __name__ == "onnxruntime":  # on the board
    time.perf_counter = lambda: _clock[0]


def milliseconds(path: str) -> float:
    """The time of a model: a part per convolution, and a part per weight of a convolution."""
    graph = onnx.load(path).graph
    sizes = {tensor.name: onnx.numpy_helper.to_array(tensor).size for tensor in graph.initializer}
    weights = [sizes[node.input[1]] for node in graph.node if node.op_type == "Conv"]
    return sum(MS_PER_CONVOLUTION + MS_PER_KILOWEIGHT * size / 1e3 for size in weights)


class SessionOptions:
    """Settings that it ignores."""


class _Input:
    name = "image"


class InferenceSession:
    """A loaded model, which takes its time and computes nothing."""

    def __init__(self, path: str, options: SessionOptions, providers: list[str]) -> None:
        self._seconds = milliseconds(path) / 1e3

    def get_inputs(self) -> list[_Input]:
        """The only input."""
        return [_Input()]

    def run(self, outputs: None, feeds: dict[str, object]) -> list[object]:
        """A pass."""
        _clock[0] += self._seconds * (1 + _random.gauss(0, NOISE))
        return []


def get_available_providers() -> list[str]:
    """The one that it has."""
    return ["CPUExecutionProvider"]
