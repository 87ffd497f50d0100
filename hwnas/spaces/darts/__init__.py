"""The DARTS space: a normal and a reduction cell of four nodes, two inputs per node, seven operations."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from hwnas.core import FloatArray, Genotype
from hwnas.spaces.capabilities import Drawable, HasCosts, HasSimilarity, HasSupernet
from hwnas.spaces.darts import memory
from hwnas.spaces.darts.drawing import cells
from hwnas.spaces.darts.encoding import DartsEncoding
from hwnas.spaces.drawing import Drawing

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.spaces.blocks import Blocks, SeparateNetworks
    from hwnas.spaces.darts.network import DartsNetwork
    from hwnas.spaces.darts.supernet import DartsSupernet


class Darts(DartsEncoding, HasSimilarity, HasSupernet, HasCosts, Drawable):
    """The DARTS cells: `DartsEncoding`, with networks, populations, a supernet and a picture."""

    made_for = 32  # CIFAR's; those of at least 128 get the stem for ImageNet

    def network(self, genotype: Genotype) -> DartsNetwork:
        """The final network of one architecture, randomly initialised by torch's generator."""
        return _networks().DartsNetwork(self, self.check(genotype))

    def most_alive(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Most numbers of one image that networks hold at once, shape (n,), in closed form."""
        return memory.most_alive(self, genotypes)

    def initial_weights(self, seed: int) -> dict[str, Tensor]:
        """Weights of all operations on all edges of all cells, drawn with a seed, for `population`."""
        return _networks().initial_weights(self, seed)

    def population(self, genotypes: Sequence[Genotype], weights: dict[str, Tensor]) -> SeparateNetworks:
        """The networks of K architectures as one module, run one after another."""
        return _networks().SeparateNetworks(map(self.network, genotypes), weights)

    def supernet(self, *, affine: bool, track_running_stats: bool) -> DartsSupernet:
        """Every architecture of the space in one network, randomly initialised by torch's generator.

        Args:
            affine: Whether BatchNorm in the cells has a weight and a bias: it must not.
            track_running_stats: Whether BatchNorm in the cells keeps running statistics.

        Raises:
            ValueError: BatchNorm with weights, or the stem for large images.
        """
        # torch is loaded once a supernet is built: encodings and tables need none.
        from hwnas.spaces.darts import supernet

        if affine:
            raise ValueError("affine must be false for search_space=darts, as in all papers")
        return supernet.DartsSupernet(self, track_running_stats=track_running_stats)

    def blocks(self) -> Blocks:
        """Each operation at each place, and how networks add them up."""
        return _networks().measurable_blocks(self)

    def drawing(self) -> Drawing:
        """The two cells."""
        return cells()


def _networks() -> ModuleType:
    # torch is loaded once networks are built: encodings and tables need none.
    from hwnas.spaces.darts import network

    return network
