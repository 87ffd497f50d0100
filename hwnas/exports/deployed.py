"""A trained network as it is handed on: images in, logits out, nothing of the training left.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from hwnas.files import read_torch


class Deployed(nn.Module):
    """Normalises images and classifies them, in evaluation mode and without an auxiliary classifier.

    Args:
        network: (B, C, H, W) to logits (B, classes); an auxiliary classifier is taken out of it.
        mean: Mean per channel, shape (C, 1, 1).
        std: Standard deviation per channel, shape (C, 1, 1).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, mean: Tensor, std: Tensor) -> None:
        super().__init__()
        if "auxiliary" in dict(network.named_children()):
            network.auxiliary = None  # type: ignore[assignment]
        self.network = network
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)
        self.eval().requires_grad_(False)

    def load(self, path: Path) -> None:
        """Read the network's weights; those of an auxiliary classifier are left out.

        Raises:
            ValueError: Not a file of weights, or of another network.
        """
        stored = read_torch(path)
        weights = {name: value for name, value in stored.items() if not str(name).startswith("auxiliary.")}
        try:
            self.network.load_state_dict(weights)
        except (RuntimeError, AttributeError) as error:
            reason = str(error).strip().splitlines()[-1].strip()
            raise ValueError(f"weights {path} are not of this network: {reason[:200]}") from None

    def forward(self, image: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W) in 0..1."""
        return self.network((image - self.mean) / self.std)
