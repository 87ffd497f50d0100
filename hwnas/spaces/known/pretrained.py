"""Weights of torchvision's networks from a file, for networks that have tensors of the same shapes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from hwnas.files import find_file, read_torch
from hwnas.spaces.known.mobile import MobileNet

ENOUGH = 0.5
"""Fraction of a network's tensors that must fit for a file to count as that network's weights."""

OF_MOBILENET = "features.17.conv.0.0.weight"
"""A name that only torchvision's MobileNetV2 has, whose blocks are called otherwise here."""


class Pretrained:
    """Weights that networks start with, as far as they have tensors of the same names and shapes.

    Args:
        path: File of a state dict of torchvision, relative to the working folder or the data folder.
        networks: Builds the networks that it may be of, by name.

    Attributes:
        digest: Hash of the file.
        name: The network that the file has the weights of.
        drawn: Names of the tensors of this network that do not fit here, e.g. those of another number of
            classes.

    Raises:
        ValueError: A file that is missing, is no state dict, or is of none of the networks.
    """

    def __init__(self, path: str, networks: Mapping[str, Callable[[], nn.Module]]) -> None:
        self._path = find_file(path).absolute()
        self.digest = hashlib.sha256(self._path.read_bytes()).hexdigest()[:8]
        self._weights: dict[str, Tensor] | None = None
        with torch.device("meta"):
            shapes = {name: _tensors(build()) for name, build in networks.items()}
        missing = {name: self._missing(own) for name, own in shapes.items()}
        self.name = max(shapes, key=lambda name: (len(shapes[name]) - len(missing[name]), -len(shapes[name])))
        self.drawn, num = missing[self.name], len(shapes[self.name])
        if len(self.drawn) > (1 - ENOUGH) * num:
            raise ValueError(
                f"pretrained: {self._path} is of another network: the nearest one, {self.name}, has {num} "
                f"tensors, of which the file has {num - len(self.drawn)} in this shape"
            )

    def __str__(self) -> str:
        """Which network the file has the weights of, and what of it does not fit here."""
        rest = f" apart from {', '.join(self.drawn)}, whose shapes differ" if self.drawn else ""
        return f"{self._path} has the weights of {self.name}{rest}"

    def __getstate__(self) -> dict[str, Any]:
        """All but the weights, which another process reads again."""
        return {**vars(self), "_weights": None}

    @property
    def weights(self) -> dict[str, Tensor]:
        """The tensors of the file by their name; of torchvision's MobileNetV2 by that in `MobileNet`.

        Raises:
            ValueError: No such file, or something else than a state dict.
        """
        if self._weights is None:
            content = read_torch(self._path)
            for name, value in content.items():
                if not isinstance(value, Tensor):
                    raise ValueError(
                        f"pretrained: {self._path} must be a state dict, as torch.save(network.state_dict(), "
                        f"file) writes it; its {name!r} is of type {type(value).__name__}"
                    )
            if OF_MOBILENET in content:
                with torch.device("meta"):  # both have the same tensors in the same order
                    theirs, ours = torchvision.models.mobilenet_v2().state_dict(), MobileNet().state_dict()
                names = dict(zip(theirs, ours, strict=True))
                content = {names.get(name, name): value for name, value in content.items()}
            self._weights = content
        return self._weights

    def start(self, network: nn.Module) -> nn.Module:
        """A network with the weights that fit; the others stay as they were drawn."""
        own = _tensors(network)
        missing = self._missing(own)
        fitting = {name: self.weights[name] for name in own if name not in missing}
        network.load_state_dict(fitting, strict=False)
        return network

    def covers(self, network: nn.Module) -> bool:
        """Whether a network has no tensors that do not fit, besides `drawn`."""
        return set(self._missing(_tensors(network))) <= set(self.drawn)

    def _missing(self, own: Mapping[str, Tensor]) -> list[str]:
        """Names of a network's tensors that the file does not have, or in another shape."""
        return [
            name
            for name, value in own.items()
            if name not in self.weights or self.weights[name].shape != value.shape
        ]


def _tensors(network: nn.Module) -> dict[str, Tensor]:
    """Parameters and statistics of a network, without counters."""
    return {name: value for name, value in network.state_dict().items() if value.dim()}
