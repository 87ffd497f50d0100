"""Memory that networks need on a device: activations in RAM, weights in flash.

**The schedule.** A network answers one image at a time. Its operations run one after another, in the order of
its code: a cell's edges in the order of the genotype, each added to its node at once. What does not lead to
the answer is left out, as compilers do, and an operation without weights that does the same with the same
tensor as one before it (the ReLU or the pool of two edges that leave a node) is not done again. A network
whose answer is a constant only holds the image.

**Which tensors are alive.** An operation's output is a tensor of its own. A tensor is alive from the
operation that makes it (the image: from the beginning) to the last that reads it. So while an operation
runs, its inputs, its output, and all tensors that later ones read are alive. In particular:

- BatchNorm is part of the convolution before it, or in place;
- a function of one tensor, number by number (ReLU, sigmoid), is in place if nobody reads its input later,
  and has an output of its own otherwise;
- a sum or product of two tensors has an output of its own, and so has a concatenation;
- a skip, a flattening and dropout are their input; a slice, a transposition and padding are copies.

`ram_kb` is the largest sum over the alive tensors. What kernels need besides, such as the columns of a
convolution as a matrix product, depends on the runtime and does not count.

`flash_kb` has the parameters of what runs; what a runtime needs for its own code does not count.

Both are in units of 1,024 bytes, of 4 bytes per number (float32) or of 1 byte (int8, biases too).
`docs/measurements.md` compares them with what onnxruntime allocates.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Literal

import numpy as np

from hwnas.core import Evaluator, FloatArray, Genotype, Goal, Largest, SearchSpace, Sum, checked
from hwnas.spaces.capabilities import HasNetworks, fingerprint

Bits = Literal[8, 32]
"""Bits of a number: int8 or float32."""

METRICS = frozenset(("ram_kb", "flash_kb"))
BYTES_PER_KB = 1024
NUM_SAMPLED = 8
"""Networks that tell versions apart."""


class Memory(Evaluator):
    """`ram_kb` and `flash_kb` of the space's networks, by the schedule above.

    Args:
        space: A space that builds networks and counts their parameters.
        metric: The one that strategies minimise.
        bits: Bits of an activation and of a weight.

    Raises:
        ValueError: An unknown metric, other bits, or a space without networks.
    """

    @checked
    def __init__(self, space: SearchSpace, *, metric: Literal["ram_kb", "flash_kb"], bits: Bits) -> None:
        if not isinstance(space, HasNetworks) or "params" not in space.static_metrics([]):
            raise ValueError(
                f"device=memory: the {space.name} space has no networks, or does not say how many parameters "
                "they have; a space of your own says it by the method static_metrics"
            )
        self.name = "memory"
        self.exhaustive = True
        self.metrics: dict[str, Goal] = dict.fromkeys(sorted(METRICS, key=lambda name: name != metric), "min")
        self._space, self._bits = space, bits
        self._unit = bits / 8 / BYTES_PER_KB

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """The version: a hash of the bits and of some networks' memory."""
        some = self._space.sample(np.random.default_rng(0), NUM_SAMPLED)
        content = [self._bits, fingerprint(self._space), self._space.most_alive(some).tolist()]
        return hashlib.sha256(str(content).encode()).hexdigest()[:16]

    def separable(self, metric: str) -> Sum | None:
        """`flash_kb` as a sum where the space's parameters are one, and all operations of a network run."""
        total = self._space.static_sums().get("params")
        if metric != "flash_kb" or total is None or type(self._space).live is not SearchSpace.live:
            return None
        return Sum(total.base * self._unit, total.added * self._unit)

    def largest(self, metric: str) -> Largest | None:
        """`ram_kb` as the largest value of operations, where the space's networks are chains."""
        alive = self._space.largest_alive()
        if metric != "ram_kb" or alive is None:
            return None
        return Largest(alive.base * self._unit, alive.values * self._unit)

    def of(self, space: HasNetworks) -> Memory:
        """The same for the networks of another space."""
        return Memory(space, metric="ram_kb", bits=self._bits)

    def costs(self, genotypes: Sequence[Genotype]) -> dict[str, FloatArray]:
        """`ram_kb` and `flash_kb` of networks, each (n,)."""
        runs = [tuple(row) for row in self._space.live(genotypes).tolist()]
        return {
            "ram_kb": self._space.most_alive(genotypes) * self._unit,
            "flash_kb": self._space.static_metrics(runs)["params"] * self._unit,
        }

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """`ram_kb` and `flash_kb` per genotype."""
        columns = self.costs(genotypes)
        rows = zip(*(columns[name].tolist() for name in self.metrics), strict=True)
        return [dict(zip(self.metrics, row, strict=True)) for row in rows]
