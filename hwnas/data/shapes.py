"""A small data set with known factors: one white shape on black, in every size, angle and place."""

from __future__ import annotations

import itertools
from typing import Annotated

import numpy as np
from annotated_types import Gt, Lt
from numpy.typing import NDArray

from hwnas.core import checked
from hwnas.data.images import Images
from hwnas.data.splits import SPLIT_SEED

SIDE = 32
FACTORS = {"shape": 3, "scale": 4, "rotation": 8, "x": 8, "y": 8}
"""Number of values per factor, 6,144 images in all; the shapes are ellipse, rectangle and triangle."""

CATEGORICAL = (True, False, False, False, False)


def render(factors_NF: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Images (N, 32, 32) of factors (N, 5), in the order of `FACTORS`.

    No two combinations look alike: ellipse and rectangle are twice as long as wide, and angles span half a
    turn. Edges are smooth over one pixel.
    """
    shape, scale, rotation, x, y = factors_NF.T[:, :, None, None].astype(np.float64)
    size = 5.0 + scale  # half of the longer side, in pixels
    angle = np.pi * rotation / FACTORS["rotation"]
    reach = SIDE / 2 - 9.5
    centre_x = SIDE / 2 + reach * (2 * x / (FACTORS["x"] - 1) - 1)
    centre_y = SIDE / 2 + reach * (2 * y / (FACTORS["y"] - 1) - 1)
    pixels = np.arange(SIDE) + 0.5
    dx, dy = pixels[None, None, :] - centre_x, pixels[None, :, None] - centre_y
    along = np.cos(angle) * dx + np.sin(angle) * dy
    across = -np.sin(angle) * dx + np.cos(angle) * dy
    ellipse = (np.hypot(along, 2 * across) - size) / 1.5
    rectangle = np.maximum(np.abs(along) - 0.9 * size, np.abs(across) - 0.45 * size)
    # The tip is at +size; the base, which joins the two long sides, is at -0.8 size.
    triangle = np.maximum(-along - 0.8 * size, (0.45 * (along - size) + np.abs(across)) / np.hypot(0.45, 1))
    distance = np.choose(shape.astype(int), [ellipse, rectangle, triangle])  # in pixels, about
    return np.rint(255 * np.clip(0.5 - distance, 0, 1)).astype(np.uint8)


def every_factor() -> NDArray[np.int64]:
    """All combinations of factors in a fixed random order, (6144, 5)."""
    combinations = np.array(list(itertools.product(*map(range, FACTORS.values()))), dtype=np.int64)
    return combinations[np.random.default_rng(SPLIT_SEED).permutation(len(combinations))]


class Shapes(Images):
    """The images with their shape as the class; a fifth is the test set.

    Args:
        name: Name of the data set.
        valid_fraction: Fraction of the training images that is held out for validation.

    Attributes:
        categorical: Which factors have no order.
    """

    categorical = CATEGORICAL

    @checked
    def __init__(self, name: str, *, valid_fraction: Annotated[float, Gt(0), Lt(1)]) -> None:
        super().__init__(
            name,
            source="shapes",
            image_shape=[1, SIDE, SIDE],
            num_classes=FACTORS["shape"],
            valid_fraction=valid_fraction,
        )

    def _load(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            factors = every_factor()
            num_test = len(factors) // 5
            parts = {"train": factors[num_test:], "test": factors[:num_test]}
            self._arrays = {f"x_{part}": render(rows)[..., None] for part, rows in parts.items()}
            self._arrays |= {f"y_{part}": rows[:, 0].copy() for part, rows in parts.items()}
        return self._arrays

    def test_factors(self) -> NDArray[np.int64]:
        """Factors of the test images, (N, 5)."""
        factors = every_factor()
        return factors[: len(factors) // 5]
