"""The FBNet space: 22 layers, each one of eight inverted residual blocks or a skip."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from hwnas.core import FloatArray, Genotype, Largest
from hwnas.spaces.capabilities import Drawable, HasCosts, HasSimilarity
from hwnas.spaces.drawing import Drawing
from hwnas.spaces.fbnet import memory
from hwnas.spaces.fbnet.drawing import stages
from hwnas.spaces.fbnet.encoding import FBNetEncoding

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.spaces.blocks import Blocks, SeparateNetworks
    from hwnas.spaces.fbnet.network import FBNetNetwork


class FBNet(FBNetEncoding, HasSimilarity, HasCosts, Drawable):
    """The FBNet space: `FBNetEncoding`, with networks, populations and a picture."""

    def network(self, genotype: Genotype) -> FBNetNetwork:
        """The network of one architecture, randomly initialised by torch's generator."""
        return _networks().FBNetNetwork(self, self.check(genotype))

    def most_alive(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Most numbers of one image that networks hold at once, shape (n,), in closed form."""
        return memory.most_alive(self, genotypes)

    def largest_alive(self) -> Largest:
        """`most_alive` as the largest value of stem, head and operations."""
        return memory.alive_in_layers(self)

    def initial_weights(self, seed: int) -> dict[str, Tensor]:
        """Weights of all operations in all layers, drawn with a seed, for `population`."""
        return _networks().initial_weights(self, seed)

    def population(self, genotypes: Sequence[Genotype], weights: dict[str, Tensor]) -> SeparateNetworks:
        """The networks of K architectures as one module, run one after another."""
        return _networks().SeparateNetworks(map(self.network, genotypes), weights)

    def blocks(self) -> Blocks:
        """Each operation at each place, and how networks add them up."""
        return _networks().measurable_blocks(self)

    def drawing(self) -> Drawing:
        """The stages, side by side."""
        return stages()


def _networks() -> ModuleType:
    # torch is loaded once networks are built: encodings and tables need none.
    from hwnas.spaces.fbnet import network

    return network
