"""A training step that always computes the same, recorded once as a CUDA graph and replayed.

A GPU that gets thousands of small kernels waits for Python to launch them; a replayed graph launches them
all at once. It reads and writes the memory of the recording: inputs are copied there, gradients lie there.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

WARM_UP = 3
"""Steps before the recording, so that cuDNN has chosen its kernels and cached tensors are there."""

Work = Callable[..., tuple[Tensor, ...]]
"""Inputs to results, of which the first is the loss."""


class StaticStep:
    """Forward and backward pass of a module, with inputs, results and gradients in memory of their own.

    Its weights must stay where they are in memory. Where there is no GPU each call computes the step anew.

    Args:
        work: Computes the results by the module; the same operations for all inputs of these shapes.
        module: Whose gradients are computed; its buffers are as before after the recording.
        inputs: Of a step; only their shapes, types and memory formats matter.
        device: Where all lies.

    Raises:
        RuntimeError: The step cannot be recorded.
    """

    def __init__(self, work: Work, module: nn.Module, inputs: Sequence[Tensor], device: torch.device) -> None:
        self._work, self._module = work, module
        self._inputs = [given.clone() for given in inputs]
        self._results: tuple[Tensor, ...] = ()
        self._parameters = list(module.parameters())
        buffers = [buffer.clone() for buffer in module.buffers()]
        try:
            self._replay = self._recorded() if device.type == "cuda" else self._step
            if device.type != "cuda":
                self._step()
        finally:
            for buffer, before in zip(module.buffers(), buffers, strict=True):
                buffer.copy_(before)
        self._gradients = [parameter.grad for parameter in self._parameters]

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Results of a step, valid until the next one; gradients are those of this step alone."""
        for mine, given in zip(self._inputs, inputs, strict=True):
            mine.copy_(given, non_blocking=True)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            parameter.grad = gradient
        self._replay()
        return self._results

    def _step(self) -> None:
        self._module.zero_grad(set_to_none=True)  # gradients get their memory where the step is recorded
        loss, *others = self._work(*self._inputs)
        loss.backward()
        self._results = (loss.detach(), *(other.detach() for other in others))

    def _recorded(self) -> Callable[[], None]:
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                self._step()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            self._step()
        return graph.replay
