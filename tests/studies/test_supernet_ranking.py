"""How well small supernets rank cells of NAS-Bench-201, beside multiply-adds: printed as tables.

    pytest tests/studies/test_supernet_ranking.py -m slow -s

200 random connected cells, the validation accuracy that a supernet of C = 8, N = 1 on CIFAR-10 averaged to
16x16 gives them, against the benchmark's after 200 epochs. Kendall's tau over all cells and over the better
half. Needs HWNAS_DATA with nasbench201.npz and cifar10_16x16.npz; about half an hour on one core.

`test_ways_to_rank` compares published ways to train supernets that rank, with as many passes of networks over
the images (the ranking loss has two in a step, and half the epochs): the same 500 cells as for other
estimates, 500 validation images, and also the blind regret, the mean of nine limits on six devices. Needs
hwnasbench_nasbench201.npz, too; about 11 minutes on one core:

    pytest tests/studies/test_supernet_ranking.py -m slow -s -k ways
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from study import Case, bootstrap, estimator, random_cells, show, tau

from hwnas.core import Genotype
from hwnas.evaluators.table import by_genotype
from hwnas.files import data_folder
from hwnas.spaces.nasbench201 import NasBench201

pytestmark = pytest.mark.slow

SEED = 77
NUM_CELLS = 200

PUBLISHED = (
    "evaluator.training.sampling=random_alpha",
    "evaluator.decoding=soft",
    "evaluator.eval_mode=running",
)
SINGLE = ("evaluator.training.sampling=single_path", "evaluator.decoding=hard", "evaluator.eval_mode=batch")
ROWS = {
    "random alphas, soft, running statistics (CMANAS), 10 epochs": (*PUBLISHED, "evaluator.warmup_epochs=10"),
    "single path, hard, batch statistics, 10 epochs": (*SINGLE, "evaluator.warmup_epochs=10"),
    "single path, hard, batch statistics, 40 epochs": (*SINGLE, "evaluator.warmup_epochs=40"),
    "the same, lr 0.1": (*SINGLE, "evaluator.warmup_epochs=40", "evaluator.training.lr=0.1"),
}
"""Settings over conf/evaluator/supernet.yaml; of all, 5,000 validation images."""


TEN = (*SINGLE, "evaluator.warmup_epochs=10")
WAYS = {
    "single path": TEN,
    "single path, seed 1": (*TEN, "evaluator.seed=1"),
    "schedule by complexity (CaLR)": (*TEN, "evaluator.training.schedule=complexity"),
    "importance of operations and images (PA&DA)": (*TEN, "evaluator.training.importance=both"),
    "ranking loss by zero-cost scores (RD-NAS)": (
        *SINGLE,
        "evaluator.warmup_epochs=5",
        "evaluator.training.ranking_weight=2",
    ),
}
"""Ways to train a supernet, over conf/evaluator/supernet.yaml."""


@pytest.fixture(scope="module")
def cells() -> list[Genotype]:
    for name in ("nasbench201.npz", "cifar10_16x16.npz"):
        if not (data_folder() / name).is_file():
            pytest.skip(f"{name} is missing; HWNAS_DATA names the folder that has it")
    space = NasBench201()
    sampled = dict.fromkeys(space.sample(np.random.default_rng(SEED), 2 * NUM_CELLS))
    return [cell for cell in sampled if space.is_connected([cell])[0]][:NUM_CELLS]


def test_supernets_rank_cells(cells: list[Genotype], tmp_path: Path) -> None:
    values = by_genotype(NasBench201(), "nasbench201.npz", ["cifar10_valid_200"])["cifar10_valid_200"]
    truth = np.array([values[cell] for cell in cells])
    flops = NasBench201().static_metrics(cells)["flops"]
    rows = [["multiply-adds", "0", *map(bootstrap, tau(flops, truth))]]
    found = {}
    for name, settings in ROWS.items():
        begin = time.process_time()
        evaluator, _, _ = estimator(tmp_path, "evaluator=supernet", "evaluator.num_valid=5000", *settings)
        score = np.array([row["val_acc"] for row in evaluator.evaluate(cells)])
        minutes = (time.process_time() - begin) / 60
        rows.append([name, f"{minutes:.1f}", *map(bootstrap, tau(score, truth))])
        found[name] = score
        print(
            f"{name}: accuracies {score.min():.3f} to {score.max():.3f}, {minutes:.1f} CPU minutes",
            flush=True,
        )
    show(
        f"{NUM_CELLS} cells: Kendall's tau of a supernet's accuracy with the true validation accuracy",
        ["score", "CPU minutes", "all", "better half"],
        rows,
    )
    assert all(score.max() > 0.2 for score in found.values())  # they learned


def test_ways_to_rank(cases: list[Case], tmp_path: Path) -> None:
    if not (data_folder() / "cifar10_16x16.npz").is_file():
        pytest.skip("cifar10_16x16.npz is missing; HWNAS_DATA names the folder that has it")
    cases = [case for case in cases if case.dataset == "cifar10"]
    cells = random_cells(500, 2026)
    truth = np.array([cases[0].points[cell] for cell in cells])

    def figures(name: str, minutes: float, score: np.ndarray) -> list[str]:
        regret = np.mean([case.blind_regrets(cells, score) for case in cases])
        row = [name, f"{minutes:.1f}", *map(bootstrap, tau(score, truth)), f"{regret:.2f}"]
        print("; ".join(row), flush=True)
        return row

    def seconds_of(*settings: str) -> tuple[float, np.ndarray]:
        begin = time.process_time()
        evaluator, _, _ = estimator(tmp_path, *settings)
        found = np.array([row[next(iter(evaluator.metrics))] for row in evaluator.evaluate(cells)])
        return time.process_time() - begin, found

    rows = [figures("perfect knowledge of the 500", 0, truth)]
    rows.append(figures("multiply-adds", 0, NasBench201().static_metrics(cells)["flops"]))
    seconds, score = seconds_of("evaluator=zero_cost")
    rows.append(figures("`zero_cost`, which the ranking loss teaches", seconds / 60, score))
    for name, settings in WAYS.items():
        seconds, score = seconds_of("evaluator=supernet", "evaluator.num_valid=500", *settings)
        assert score.max() > 0.2  # it learned
        rows.append(figures(name, seconds / 60, score))
    show(
        f"{len(cells)} cells: Kendall's tau with the true validation accuracy, and blind regret",
        ["estimate", "CPU minutes", "tau, all", "better half", "blind regret"],
        rows,
    )
