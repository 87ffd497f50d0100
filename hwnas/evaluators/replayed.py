"""An evaluator whose answers are those that earlier runs got, for a search over their networks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence

from hwnas.core import Evaluator, FloatArray, Genotype, SearchSpace


class Replayed(Evaluator):
    """The answers of an evaluator in earlier runs; it answers itself for other networks, or nobody does.

    Args:
        inner: The evaluator.
        space: The space that it was made for.
        held: Its answers by network.
        alone: Whether other networks are refused; then the evaluator prepares nothing.
        exhaustive: Whether all answers count as known before they are asked for.
        version: Of the answers; None: unknown.
        metric: The one that is optimised; None: as the evaluator says.

    Attributes:
        held: The answers by network.
        digest: A hash of them.
    """

    def __init__(
        self,
        inner: Evaluator,
        space: SearchSpace,
        held: Mapping[Genotype, Mapping[str, float]],
        *,
        alone: bool,
        exhaustive: bool,
        version: str | None = None,
        metric: str | None = None,
    ) -> None:
        self.name, self.note = inner.name, inner.note
        self.metrics, self.reported = inner.metrics, inner.reported
        self.exhaustive = exhaustive
        self.held = {genotype: dict(row) for genotype, row in held.items()}
        self._inner, self._space, self._alone, self._version = inner, space, alone, version
        self._objectives = inner.objectives if metric is None else (metric,)
        content = [[list(genotype), *sorted(row.items())] for genotype, row in sorted(self.held.items())]
        self.digest = hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]

    @property
    def objectives(self) -> tuple[str, ...]:
        """The metric that was chosen, or those of the evaluator."""
        return self._objectives

    def see(self, alphas: FloatArray | None) -> None:
        """Pass alphas on to the evaluator."""
        self._inner.see(alphas)

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """The version of the held answers, which must be the evaluator's if it answers, too.

        Raises:
            ValueError: It is another: its answers cannot be compared with those that are there.
        """
        if self._alone:
            return self._version or f"replay-{self.digest}"
        version = self._inner.prepare(self._space, population)
        if self._version is not None and self._version != version:
            raise ValueError(
                f"{self.name} does not answer as it did in what is replayed (version {self._version}, now "
                f"{version}), so that it cannot evaluate what is missing; replay_missing=refuse does without"
            )
        return version

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """The held answers, and the evaluator's own for other networks.

        Raises:
            ValueError: Others are refused; names the first of them.
        """
        missing = [genotype for genotype in dict.fromkeys(genotypes) if genotype not in self.held]
        if missing and self._alone:
            raise ValueError(f"no answer of {self.name} is held for {self._space.to_str(missing[0])}")
        new = dict(zip(missing, self._inner.evaluate(missing), strict=True)) if missing else {}
        return [dict(self.held[g]) if g in self.held else new[g] for g in genotypes]

    def parts(self, genotypes: Sequence[Genotype]) -> list[Sequence[Genotype]]:
        """As the evaluator divides them."""
        return self._inner.parts(genotypes)

    def for_workers(self, genotypes: Sequence[Genotype]) -> list[Sequence[Genotype]]:
        """As the evaluator divides them."""
        return self._inner.for_workers(genotypes)

    def report(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """What the evaluator reports."""
        return self._inner.report(genotypes)

    def errors(self, metric: str) -> FloatArray:
        """As for the evaluator."""
        return self._inner.errors(metric)

    def interval(self, metric: str, genotypes: Sequence[Genotype]) -> tuple[FloatArray, FloatArray] | None:
        """As for the evaluator."""
        return self._inner.interval(metric, genotypes)

    def seconds(self, genotypes: Sequence[Genotype]) -> float | None:
        """As for the evaluator."""
        return self._inner.seconds(genotypes)
