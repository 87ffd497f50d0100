"""Smaller images inside of a network, so that their resolution is a decision like others."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

FRACTIONS = (1, 3 / 4, 1 / 2, 3 / 8, 1 / 4)
"""Of the images' side."""

SMALLEST_SIDE = 16
"""Of images that were made smaller."""


def sides(side: int) -> list[int]:
    """Resolutions for images of a side, the full one first."""
    return list(dict.fromkeys([side, *(s for f in FRACTIONS if (s := int(f * side)) >= SMALLEST_SIDE)]))


class Resize(nn.Module):
    """Images of a smaller height and width, in the same proportion.

    The mean over whole blocks of pixels comes first, and what is left is interpolated, so that no pixel is
    skipped.

    Args:
        side: The images' smaller side, in pixels.
        resolution: The same side afterwards.
    """

    def __init__(self, side: int, resolution: int) -> None:
        super().__init__()
        self.block = side // resolution
        self.rest = resolution * self.block / side

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to (B, C, H * resolution / side, W * resolution / side), rounded down."""
        if self.block > 1:
            x = F.avg_pool2d(x, self.block)
        return F.interpolate(x, scale_factor=self.rest, mode="bilinear") if self.rest < 1 else x
