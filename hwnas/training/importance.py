"""Probabilities of operations and images that grow with their gradients, for the training of a supernet.

Source: PA&DA, CVPR 2023 (the authors' code).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from hwnas.core import FloatArray


class Importance:
    """Probabilities by which the next epoch draws operations and images.

    During an epoch it sees norms of gradients. Several norms of one operation, or of one image, are merged
    one after the other, each into the mean of itself and what came before, so that late ones count most.

    Args:
        num_operations: Number of operations.
        num_images: Number of training images.

    Attributes:
        operations: Probabilities of the operations, shape (operations,); uniform before the first epoch ends.
        images: Probabilities of the images, shape (images,); None before the first epoch ends, which shows
            every image once.
    """

    def __init__(self, num_operations: int, num_images: int) -> None:
        self.operations: FloatArray = np.full(num_operations, 1 / num_operations)
        self.images: FloatArray | None = None
        self._operation_norms, self._image_norms = np.zeros(num_operations), np.zeros(num_images)

    def see_operations(self, norms: FloatArray) -> None:
        """Merge the norms of a step, shape (operations,); 0 where an operation was not run.

        A first norm of an epoch is halved, as in the authors' code, which merges it with 0.
        """
        merged = (self._operation_norms + norms) / 2
        self._operation_norms = np.where(norms == 0, self._operation_norms, merged)

    def see_images(self, rows: Sequence[int], norms: Sequence[float]) -> None:
        """Merge the norms of a batch, of the images at `rows`."""
        known = self._image_norms
        for row, norm in zip(rows, norms, strict=True):
            known[row] = (known[row] + norm) / 2 if known[row] else norm

    def end(self, mix: float) -> None:
        """Set the probabilities of the next epoch, and forget the norms of this one.

        Args:
            mix: In 0..1; 0: uniform, 1: in proportion to the norms, 0 for what was not seen.
        """
        self.operations = mixed(self._operation_norms, mix)
        self.images = mixed(self._image_norms, mix)
        self._operation_norms[:] = 0
        self._image_norms[:] = 0

    def state(self) -> dict[str, Tensor]:
        """The probabilities, for a checkpoint between two epochs."""
        known = {"operations": self.operations, "images": self.images}
        return {name: torch.tensor(values) for name, values in known.items() if values is not None}

    def load(self, state: dict[str, Tensor]) -> None:
        """Continue with the probabilities of a checkpoint."""
        self.operations = state["operations"].numpy()
        self.images = state["images"].numpy() if "images" in state else None


def mixed(norms: FloatArray, mix: float) -> FloatArray:
    """Probabilities, `mix` times those in proportion to the norms, the rest uniform; shape (n,)."""
    total = norms.sum()
    return mix * norms / total + (1 - mix) / len(norms) if total > 0 else np.full(len(norms), 1 / len(norms))
