"""NAS-Bench-201: cells of four nodes, six edges, five operations; 15,625 architectures."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING

from hwnas.core import FloatArray, Genotype
from hwnas.spaces.capabilities import (
    Drawable,
    HasCosts,
    HasDepth,
    HasPublished,
    HasSimilarity,
    HasSupernet,
)
from hwnas.spaces.drawing import Drawing
from hwnas.spaces.nasbench201 import memory
from hwnas.spaces.nasbench201.drawing import cell
from hwnas.spaces.nasbench201.encoding import NasBench201Encoding
from hwnas.spaces.nasbench201.published import expected

if TYPE_CHECKING:
    from torch import Tensor

    from hwnas.spaces.blocks import Blocks
    from hwnas.spaces.nasbench201.network import NasBench201Network, NasBench201Population
    from hwnas.spaces.nasbench201.supernet import NasBench201Supernet


class NasBench201(
    NasBench201Encoding, HasSimilarity, HasSupernet, HasCosts, HasDepth, HasPublished, Drawable
):
    """The NAS-Bench-201 cell: `NasBench201Encoding`, with networks, populations, a supernet and a picture."""

    made_for = 32  # CIFAR's

    def network(self, genotype: Genotype) -> NasBench201Network:
        """The network of one architecture, randomly initialised by torch's generator."""
        return _networks().NasBench201Network(self, self.check(genotype))

    def most_alive(self, genotypes: Sequence[Genotype]) -> FloatArray:
        """Most numbers of one image that networks hold at once, shape (n,), in closed form."""
        return memory.most_alive(self, genotypes)

    def initial_weights(self, seed: int) -> dict[str, Tensor]:
        """Weights of all operations on all edges of all cells, drawn with a seed, for `population`."""
        return _networks().initial_weights(self, seed)

    def population(self, genotypes: Sequence[Genotype], weights: dict[str, Tensor]) -> NasBench201Population:
        """The networks of K architectures as one module that batches equal operations."""
        return _networks().NasBench201Population(self, genotypes, weights)

    def supernet(self, *, affine: bool, track_running_stats: bool) -> NasBench201Supernet:
        """Every architecture of the space in one network, randomly initialised by torch's generator."""
        # torch is loaded once a supernet is built: encodings and tables need none.
        from hwnas.spaces.nasbench201 import supernet

        return supernet.NasBench201Supernet(self, affine=affine, track_running_stats=track_running_stats)

    def blocks(self) -> Blocks:
        """Each operation at each stage, and how networks add them up."""
        return _networks().measurable_blocks(self)

    def expected(self, genotypes: Sequence[Genotype], apart_from: str) -> FloatArray:
        """What the benchmark's accuracies on other images say of networks, (n,), by `published`."""
        return expected(self.live(genotypes), {apart_from})

    def drawing(self) -> Drawing:
        """The graph of the cell."""
        return cell()


def _networks() -> ModuleType:
    # torch is loaded once networks are built: encodings and tables need none.
    from hwnas.spaces.nasbench201 import network

    return network
