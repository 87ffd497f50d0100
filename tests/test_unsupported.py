"""Networks that a device does not support never win, however good a strategy believes them to be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hwnas import compose, search
from hwnas.core import Evaluator, Genotype, SearchSpace
from hwnas.devices.benchmark import source_profiles


class Tempting(Evaluator):
    """Quality that is highest for what the EdgeTPU does not support."""

    name = "tempting"
    metrics = {"val_acc": "max"}  # noqa: RUF012

    def __init__(self, space: SearchSpace) -> None:
        self._space, self._profile = space, source_profiles(space, ["edgetpu"])["edgetpu"]

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        return "1"

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        refused = np.isinf(self._profile.predict(self._space, "latency_ms", genotypes))
        quality = 0.5 * refused + 0.01 * np.array(genotypes).mean(axis=1)
        return [{"val_acc": value} for value in quality.tolist()]


@pytest.mark.parametrize("limit", [None, "q0.9"])
@pytest.mark.parametrize("strategy", ["mo_hdnas", "hw_evrsnas"])
def test_what_the_edgetpu_does_not_support_never_wins(
    strategy: str, limit: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """30 % of all networks; the profile in the package knows them without any table."""
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    words = [f"strategy={strategy}", "device=edgetpu", "dataset=cifar10", "generations=8", "trainer=none"]
    words += [f"limits.latency_ms={limit or 'null'}"]
    found = search(compose(*words, evaluator=Tempting), tmp_path / "run", show=False)
    assert any(math.isinf(trial.metrics["latency_ms"]) for trial in found.trials)
    assert found.result is not None
    assert found.result.best is not None
    for trial in (found.result.best, *found.result.result):
        assert math.isfinite(trial.metrics["latency_ms"])
        assert trial.metrics["val_acc"] < 0.5
