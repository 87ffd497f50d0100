"""Supernets against their plain execution in the same run, on one core.

`make bench` prints the ratios at the published sizes (C = 16, 32x32 images; N = 5, or 8 DARTS cells); as
ordinary tests these run once on tiny ones and check that both ways agree.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hwnas import ModuleSpace, width
from hwnas.core import FloatArray
from hwnas.spaces.darts import Darts
from hwnas.spaces.known import MobileSpace
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.training.shared_weights import mixing_weights

pytestmark = pytest.mark.benchmark
ROUNDS = 3
CASES = {
    "nasbench201": (NasBench201(16, 5), NasBench201(2, 1, image_shape=(3, 8, 8)), 250, 64),
    "darts": (Darts(16, 8), Darts(2, 3, image_shape=(3, 8, 8)), 125, 16),
}
"""Space of the published size and a small one, images of an evaluation and of a training step: the plain one
of DARTS cells would need 10 GB for the papers' 64."""
NUM_HARD = 6
"""Architectures that hard choices are averaged over."""


@pytest.fixture(autouse=True)
def one_core() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Bench:
    """A supernet, images and architectures; small unless benchmarks are enabled.

    Args:
        enabled: Whether they are.
        case: Of `CASES`.
        training: Whether to take the images of a training step.
        track: Whether cells keep running statistics.
    """

    def __init__(self, enabled: bool, case: str, *, training: bool = False, track: bool = True) -> None:
        large, small, *batch_sizes = CASES[case]
        space: Any = large if enabled else small
        batch_size = batch_sizes[training]
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.network = space.supernet(affine=False, track_running_stats=track)
            self.x = torch.randn(batch_size if enabled else 8, *space.image_shape)
        self.y = torch.arange(len(self.x)) % 10
        genotypes = space.sample(np.random.default_rng(0), NUM_HARD)
        self.soft = [mixing_weights(space, genotypes, "soft")[0]]
        self.hard = list(mixing_weights(space, genotypes, "hard"))
        self.enabled = enabled

    def plain(self, weights: FloatArray) -> torch.Tensor:
        with torch.no_grad():
            return self.network.plain(self.x, weights)

    def compiled(self, weights: FloatArray, *, batch_statistics: bool = False) -> torch.Tensor:
        return self.network.compiled(weights, batch_statistics=batch_statistics)(self.x)

    def step(self, forward: Callable[..., torch.Tensor], weights: FloatArray) -> torch.Tensor:
        self.network.zero_grad()
        loss = F.cross_entropy(forward(self.x, weights), self.y)
        loss.backward()
        return loss.detach()

    def ratios(
        self,
        name: str,
        reference: Callable[[FloatArray], torch.Tensor],
        ways: dict[str, tuple[Callable[[FloatArray], torch.Tensor], Sequence[FloatArray]]],
    ) -> None:
        """Print how much faster each way is than the reference with soft weights; rounds take turns."""
        if not self.enabled:
            return
        seconds: dict[str, list[float]] = {key: [] for key in (name, *ways)}
        for _ in range(ROUNDS):
            for key, (run, many) in {name: (reference, self.soft), **ways}.items():
                start = time.process_time()
                for weights in many:
                    run(weights)
                seconds[key].append((time.process_time() - start) / len(many))
        whole = statistics.median(seconds[name])
        print(f"\n{name}: {1000 * whole:.0f} ms for {len(self.x)} images")
        for key in ways:
            print(f"  {key}: {whole / statistics.median(seconds[key]):.2f} times faster")


def agree(a: torch.Tensor, b: torch.Tensor) -> None:
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", CASES)
def test_evaluation(benchmark, case: str) -> None:  # type: ignore[no-untyped-def]
    """Under running statistics."""
    bench = Bench(benchmark.enabled, case)
    bench.network.eval()
    for weights in (*bench.soft, *bench.hard):
        agree(bench.compiled(weights), bench.plain(weights))
    bench.ratios(
        f"{case}: plain soft evaluation",
        bench.plain,
        {
            "plain hard": (bench.plain, bench.hard),
            "compiled soft": (bench.compiled, bench.soft),
            "compiled hard": (bench.compiled, bench.hard),
        },
    )
    benchmark.pedantic(bench.compiled, (bench.hard[0],), rounds=1)


@pytest.mark.parametrize("case", CASES)
def test_evaluation_with_batch_statistics(benchmark, case: str) -> None:  # type: ignore[no-untyped-def]
    bench = Bench(benchmark.enabled, case, track=False)
    bench.network.train()  # the plain way's batch statistics

    def compiled(weights: FloatArray) -> torch.Tensor:
        return bench.compiled(weights, batch_statistics=True)

    for weights in (*bench.soft, *bench.hard):
        agree(compiled(weights), bench.plain(weights))
    bench.ratios(
        f"{case}: plain soft evaluation with batch statistics",
        bench.plain,
        {
            "plain hard": (bench.plain, bench.hard),
            "compiled soft": (compiled, bench.soft),
            "compiled hard": (compiled, bench.hard),
        },
    )
    benchmark.pedantic(compiled, (bench.hard[0],), rounds=1)


@pytest.mark.parametrize("case", CASES)
def test_training_step(benchmark, case: str) -> None:  # type: ignore[no-untyped-def]
    """Forward and backward of one batch."""
    bench = Bench(benchmark.enabled, case, training=True)
    network = bench.network.train()

    def plain(weights: FloatArray) -> torch.Tensor:
        return bench.step(network.plain, weights)

    def stacked(weights: FloatArray) -> torch.Tensor:
        return bench.step(network, weights)

    for weights in (*bench.soft, *bench.hard):
        agree(stacked(weights), plain(weights))
    bench.ratios(
        f"{case}: plain soft training step",
        plain,
        {
            "plain single path": (plain, bench.hard),
            "stacked soft": (stacked, bench.soft),
            "stacked single path": (stacked, bench.hard),
        },
    )
    benchmark.pedantic(stacked, (bench.hard[0],), rounds=1)


class Tiny(nn.Module):
    """One convolution of either width."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        channels = width("channels", [4, 8])
        self.stem, self.head = nn.Conv2d(3, channels, 3), nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.stem(x).relu().mean((2, 3)))


def test_step_of_a_sliced_network(benchmark) -> None:  # type: ignore[no-untyped-def]
    """A training step of networks of `search_space=mobile`, built and sliced for it, and of each alone."""
    space = MobileSpace() if benchmark.enabled else ModuleSpace(Tiny, image_shape=(3, 8, 8))
    torch.manual_seed(0)
    network, x = space.supernet(affine=False, track_running_stats=True).train(), torch.randn(64, 3, 32, 32)
    y, seconds = torch.arange(len(x)) % 10, []
    genotypes = space.sample(np.random.default_rng(0), NUM_HARD if benchmark.enabled else 2)

    def step(forward: Callable[[], torch.Tensor]) -> float:
        start = time.process_time()
        torch.manual_seed(1)  # dropout
        losses.append(F.cross_entropy(forward(), y))
        losses[-1].backward()
        return time.process_time() - start

    for genotype in genotypes:
        losses: list[torch.Tensor] = []
        alone = space.network(genotype).train()
        alone.load_state_dict(network.sliced(genotype))
        network._skeletons.clear()
        weights = space.onehot([genotype])[0]
        step(partial(alone, x))
        seconds.append((step(partial(network, x, weights)), step(partial(alone, x))))
        agree(losses[0], losses[1])
    if benchmark.enabled:
        sliced, separate = np.sum(seconds, axis=0) / len(seconds)
        print(f"\nmobile: {1000 * sliced:.0f} ms sliced, {1000 * separate:.0f} ms alone")
    benchmark.pedantic(network, (x, weights), rounds=1)
