"""The DARTS supernet against its plain execution in the same run, on one core.

`make bench` prints the ratios at the papers' size (C = 16, 8 cells, 32x32 images); as ordinary tests these
run once on a tiny one and check that both ways agree.
"""

from __future__ import annotations

import pytest
import torch
from test_supernet_speed import Bench, agree, one_core

from hwnas.core import FloatArray
from hwnas.spaces.darts import Darts

__all__ = ["one_core"]  # a fixture of every test here, too
pytestmark = pytest.mark.benchmark
SPACES = (Darts(16, 8), Darts(2, 3, image_shape=(3, 8, 8)))
TRAINED = 16
"""Images of a training step: the plain one needs 10 GB for the papers' 64."""


def test_evaluation(benchmark) -> None:  # type: ignore[no-untyped-def]
    """Under running statistics."""
    bench = Bench(benchmark.enabled, 125, spaces=SPACES)
    bench.network.eval()
    for weights in (*bench.soft, *bench.hard):
        agree(bench.compiled(weights), bench.plain(weights))
    bench.ratios(
        "plain soft evaluation, darts",
        bench.plain,
        {
            "plain hard": (bench.plain, bench.hard),
            "compiled soft": (bench.compiled, bench.soft),
            "compiled hard": (bench.compiled, bench.hard),
        },
    )
    benchmark.pedantic(bench.compiled, (bench.hard[0],), rounds=1)


def test_evaluation_with_batch_statistics(benchmark) -> None:  # type: ignore[no-untyped-def]
    bench = Bench(benchmark.enabled, 125, track=False, spaces=SPACES)
    bench.network.train()  # the plain way's batch statistics

    def compiled(weights: FloatArray) -> torch.Tensor:
        return bench.compiled(weights, batch_statistics=True)

    for weights in (*bench.soft, *bench.hard):
        agree(compiled(weights), bench.plain(weights))
    bench.ratios(
        "plain soft evaluation with batch statistics, darts",
        bench.plain,
        {
            "plain hard": (bench.plain, bench.hard),
            "compiled soft": (compiled, bench.soft),
            "compiled hard": (compiled, bench.hard),
        },
    )
    benchmark.pedantic(compiled, (bench.hard[0],), rounds=1)


def test_training_step(benchmark) -> None:  # type: ignore[no-untyped-def]
    """Forward and backward of one batch."""
    bench = Bench(benchmark.enabled, TRAINED, spaces=SPACES)
    network = bench.network.train()

    def plain(weights: FloatArray) -> torch.Tensor:
        return bench.step(network.plain, weights)

    def stacked(weights: FloatArray) -> torch.Tensor:
        return bench.step(network, weights)

    for weights in (*bench.soft, *bench.hard):
        agree(stacked(weights), plain(weights))
    bench.ratios(
        "plain soft training step, darts",
        plain,
        {
            "plain single path": (plain, bench.hard),
            "stacked soft": (stacked, bench.soft),
            "stacked single path": (stacked, bench.hard),
        },
    )
    benchmark.pedantic(stacked, (bench.hard[0],), rounds=1)
