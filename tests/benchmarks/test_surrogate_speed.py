"""Processor time of `strategy=surrogate` per evaluation: in a space that is listed, and in a large one."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import pytest
from omegaconf import OmegaConf

from hwnas.build import build, conf_folder
from hwnas.core import Genotype, Objective, SearchSpace, Trial, trials_of
from hwnas.devices.flops import Flops
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.nasbench201 import NasBench201

OBJECTIVES = (Objective("quality", "max"), Objective("flops", "min"))


def made_up(space: SearchSpace, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
    """A quality that grows with the size, and has a part of every operation and of pairs of them."""
    rng, shape = np.random.default_rng(0), (int(np.prod(space.alpha_shape)), 4)
    weights, shares = rng.normal(size=shape), rng.normal(size=4)
    onehot = space.onehot(genotypes).reshape(len(genotypes), -1)
    value = np.log(space.static_metrics(genotypes)["flops"]) + np.tanh(onehot @ weights / 3) @ shares
    return [{"quality": each} for each in value.tolist()]


@pytest.mark.slow
@pytest.mark.parametrize("space", [NasBench201(), FBNet()], ids=lambda space: space.name)
def test_evaluations_cost_milliseconds(space: SearchSpace) -> None:
    device = Flops(space)
    strategy = build(
        OmegaConf.load(conf_folder() / "strategy" / "surrogate.yaml"),
        space=space,
        objectives=OBJECTIVES,
        limits=(),
        seed=0,
        device=device,
    )
    spent, asked, rows = 0.0, 0, []
    sizes = (100, 1_000) if space.size < 1e6 else (100, 1_000, 10_000)
    for size in sizes:
        before, first = spent, asked
        while asked < size:
            start = time.process_time()
            population = strategy.ask()
            spent += time.process_time() - start
            answers = [made_up(space, population), device.evaluate(population)]
            trials: list[Trial] = trials_of(population, answers, 0)
            start = time.process_time()
            strategy.tell(trials)
            spent += time.process_time() - start
            asked += len(population)
        rows.append(f"{first} to {asked}: {1000 * (spent - before) / (asked - first):.1f} ms")
    print(f"\n{space.name}, processor time per evaluation, from evaluation {'; '.join(rows)}")
    assert spent / asked < 0.05
