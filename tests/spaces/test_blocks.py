"""Building blocks against torch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from hwnas.spaces.blocks import StridedPointwise


@pytest.mark.parametrize("channels", [1, 3, 4, 6, 7, 8, 12])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_strided_pointwise_is_the_convolution(channels: int, layout: torch.memory_format) -> None:
    """Against gradients in float64, which oneDNN does not compute."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(64, channels, 9, 8, generator=generator).contiguous(memory_format=layout)
    block = StridedPointwise(channels, 8, 2)
    for _ in range(10):  # memory that is written over is not noticed at once
        block.zero_grad()
        out = block(x)
        out.sum().backward()
    weight = block.weight.detach().double().requires_grad_()
    expected = F.conv2d(x.double(), weight, stride=2)
    expected.sum().backward()
    torch.testing.assert_close(out, expected.float())
    torch.testing.assert_close(block.weight.grad, weight.grad.float())
