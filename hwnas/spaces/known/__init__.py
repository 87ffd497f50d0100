"""Off-the-shelf networks by name, as a search space of one choice."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
from annotated_types import Len

from hwnas.core import Count, FloatArray, Genotype, checked, checked_choices, suggestion
from hwnas.spaces.capabilities import HasNetworks
from hwnas.spaces.known.names import known, known_names

if TYPE_CHECKING:
    from torch import nn

__all__ = ["KnownNetworks", "known_names"]


class KnownNetworks(HasNetworks):
    """Off-the-shelf networks: a genotype is the number of one among `names`, and its text form the name.

    Widths follow the name: "mobilenet_v3_small_x0.5" has half the channels of torchvision's network,
    "resnet18_w16" begins with 16 channels instead of 64. `known_names` lists them all. For small images they
    give up less of the resolution, as is usual on CIFAR (`networks.build`).

    Args:
        names: The networks.
        image_shape: (channels, height, width) of the images.
        num_classes: Number of classes.
        choices: Networks still allowed, as one list of their numbers; None allows all.

    Raises:
        ValueError: An unknown name, or one that is given twice; says which are near.
    """

    @checked
    def __init__(
        self,
        names: Annotated[Sequence[str], Len(1)],
        *,
        image_shape: tuple[int, int, int] = (3, 32, 32),
        num_classes: Count = 10,
        choices: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self._known = tuple(map(known, names))
        if len(set(self._known)) < len(names):
            raise ValueError(f"names must be of different networks, not {', '.join(names)}")
        self.ops = tuple(names)
        self.name = f"known-{hashlib.sha256(' '.join(names).encode()).hexdigest()[:8]}"
        self.image_shape, self.num_classes = image_shape, num_classes
        self.choices = checked_choices(choices, 1, len(names))
        self._counts: dict[int, tuple[int, int]] = {}

    def restrict(self, keep: Sequence[Sequence[int]]) -> Self:
        """The sub-space with only the networks `keep[0]`."""
        return type(self)(self.ops, image_shape=self.image_shape, num_classes=self.num_classes, choices=keep)

    def to_str(self, genotype: Genotype) -> str:
        """The network's name."""
        return self.ops[genotype[0]]

    def from_str(self, text: str) -> Genotype:
        """The genotype of a name.

        Raises:
            ValueError: A name that is not among those of the space.
        """
        if text not in self.ops:
            raise ValueError(f"{text!r} is not among these networks{suggestion(text, self.ops)}")
        return self.check((self.ops.index(text),))

    def network(self, genotype: Genotype) -> nn.Module:
        """The network, randomly initialised by torch's generator."""
        (number,) = self.check(genotype)
        return _networks().build(self._known[number], self.image_shape, self.num_classes)

    def static_metrics(self, genotypes: Sequence[Genotype]) -> dict[str, FloatArray]:
        """`flops` (multiply-adds) and `params` per genotype, shape (n,), as `blocks.count` counts them."""
        for number in {number for (number,) in genotypes} - self._counts.keys():
            self._counts[number] = _networks().counted(
                self._known[number], self.image_shape, self.num_classes
            )
        figures = np.array([self._counts[number] for (number,) in genotypes], dtype=float).reshape(-1, 2)
        return {"flops": figures[:, 1], "params": figures[:, 0]}


def _networks() -> ModuleType:
    # torch is loaded once networks are built: names need none.
    from hwnas.spaces.known import networks

    return networks
