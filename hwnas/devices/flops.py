"""Cost without a device: multiply-adds and parameters in closed form."""

from __future__ import annotations

from collections.abc import Sequence

from hwnas.core import Evaluator, Genotype, SearchSpace, Sum, checked
from hwnas.spaces.capabilities import examples, fingerprint


class Flops(Evaluator):
    """`flops` (multiply-adds) and `params` of the space's networks.

    Args:
        space: A space with closed forms.
        metric: The metric that strategies minimise: "flops" or "params".

    Raises:
        ValueError: An unknown metric, or a space whose networks have no closed form.
    """

    @checked
    def __init__(self, space: SearchSpace, *, metric: str = "flops") -> None:
        names = list(space.static_metrics(examples(space)))
        if not names:
            raise ValueError(
                f"device=flops: the {space.name} space does not say what its networks cost; a space of your "
                "own says it by the method static_metrics"
            )
        if metric not in names:
            raise ValueError(f"metric must be one of {', '.join(names)}, not {metric!r}")
        self.name = "flops"
        self.exhaustive = True
        self.metrics = dict.fromkeys(sorted(names, key=lambda name: name != metric), "min")
        self._space = space

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """The version: a hash of the costs of all operations, which identifies the networks."""
        return fingerprint(self._space)

    def separable(self, metric: str) -> Sum | None:
        """The metric as a sum, if the space's closed form is one."""
        return self._space.static_sums().get(metric)

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Multiply-adds and parameters per genotype."""
        columns = self._space.static_metrics(genotypes)
        return [
            dict(zip(columns, row, strict=True))
            for row in zip(*(values.tolist() for values in columns.values()), strict=True)
        ]
