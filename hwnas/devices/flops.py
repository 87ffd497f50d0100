"""Cost without a device: multiply-adds and parameters in closed form."""

from __future__ import annotations

from collections.abc import Sequence

from hwnas.core import Evaluator, Genotype, SearchSpace


class Flops(Evaluator):
    """`flops` (multiply-adds) and `params` of the space's networks.

    Args:
        space: A space with closed forms.
        metric: The one that strategies minimise: "flops" or "params".

    Raises:
        ValueError: An unknown metric, or a space whose networks have no closed form.
    """

    def __init__(self, space: SearchSpace, *, metric: str = "flops") -> None:
        names = list(space.static_metrics(space_example(space)))
        if not names:
            raise ValueError(f"device=flops: the {space.name} space has no networks to count")
        if metric not in names:
            raise ValueError(f"device.metric {metric!r} is not one of {', '.join(names)}")
        self.name = "flops"
        self.metrics = dict.fromkeys(sorted(names, key=lambda name: name != metric), "min")
        self._space = space

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """The version: what the space's networks cost at one fixed architecture tells them apart."""
        values = self._space.static_metrics(space_example(self._space))
        return "-".join(f"{value[0]:.0f}" for value in values.values())

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Multiply-adds and parameters per genotype."""
        columns = self._space.static_metrics(genotypes)
        return [
            dict(zip(columns, row, strict=True))
            for row in zip(*(values.tolist() for values in columns.values()), strict=True)
        ]


def space_example(space: SearchSpace) -> list[Genotype]:
    """One architecture: the last allowed operation on every edge."""
    return [tuple(ops[-1] for ops in space.choices)]
