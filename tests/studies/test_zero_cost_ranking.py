"""How well training-free scores rank cells of NAS-Bench-201: the figures in docs/measurements.md, as tables.

    pytest tests/studies/test_zero_cost_ranking.py -m slow -s

The 500 random connected cells of `test_rmi_ranking.py`, narrow networks (C = 8, N = 1) on 32 images of
CIFAR-10 averaged to 8x8, against the benchmark's validation accuracy on CIFAR-10 after 200 epochs. Kendall's
tau over all cells and over the better half, with 95 % bootstrap intervals over cells. Needs HWNAS_DATA with
nasbench201.npz and cifar10_16x16.npz; about 2 CPU minutes on a busy server.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from study import bootstrap, estimator, random_cells, tau

from hwnas.core import FloatArray, Genotype, log_rank_sum
from hwnas.evaluators.table import by_genotype
from hwnas.evaluators.zero_cost import NAMES, ZeroCost
from hwnas.files import data_folder
from hwnas.spaces.nasbench201 import NasBench201

pytestmark = pytest.mark.slow

NUM_ALONE = 50
"""Cells that are also timed one after another."""

COMBINED = (
    ("jacov", "params"),
    ("jacov", "naswot", "params"),
    ("jacov", "meco", "params"),
    ("jacov", "zico", "params"),
    ("jacov", "synflow"),
    ("jacov", "synflow", "params"),
    ("naswot", "params"),
    ("meco", "params"),
    ("az_expressivity", "az_progressivity", "az_trainability", "az_complexity"),
)


def create(store: Path, *scores: str, num_reference: int = 0) -> ZeroCost:
    """The evaluator with default settings but for these."""
    settings = f"evaluator.scores=[{','.join(scores)}]", f"evaluator.num_reference={num_reference}"
    evaluator, _, _ = estimator(store, "evaluator=zero_cost", *settings)
    assert isinstance(evaluator, ZeroCost)
    return evaluator


def milliseconds(evaluator: ZeroCost, cells: list[Genotype]) -> float:
    """CPU time per network."""
    evaluator.evaluate(cells[: evaluator.group_size])
    start = time.process_time()
    evaluator.evaluate(cells)
    return 1e3 * (time.process_time() - start) / len(cells)


def test_scores_rank_cells(table_path: Path, tmp_path: Path) -> None:
    if not (data_folder() / "cifar10_16x16.npz").is_file():
        pytest.skip("cifar10_16x16.npz is missing; HWNAS_DATA names the folder that has it")
    cells = random_cells(500, 2026)  # as in test_rmi_ranking.py
    table = by_genotype(NasBench201(), str(table_path), ["cifar10_valid_200"])["cifar10_valid_200"]
    truth = np.array([table[cell] for cell in cells])
    scores: dict[str, FloatArray] = {}
    print("\n| score | CPU ms per network, together | one after another | tau, all | tau, better half |")
    print("|---|---|---|---|---|")
    for name in NAMES:
        evaluator = create(tmp_path, name)
        together = milliseconds(evaluator, cells)
        scores[name] = np.array([row[f"score_{name}"] for row in evaluator.evaluate(cells)])
        evaluator.group_size = 1
        alone = milliseconds(evaluator, cells[:NUM_ALONE])
        figures = " | ".join(map(bootstrap, tau(scores[name], truth)))
        print(f"| {name} | {together:.2f} | {alone:.2f} | {figures} |")

    print("\n| sum of log-ranks | tau, all | tau, better half | minus params, all |\n|---|---|---|---|")
    params, _ = tau(scores["params"], truth)
    found = {}
    for names in COMBINED:
        combined = log_rank_sum(np.stack([scores[name] for name in names], axis=1))
        found[names], half = tau(combined, truth)
        figures = [bootstrap(found[names]), bootstrap(half), bootstrap(found[names], params)]
        print(f"| {' + '.join(names)} | {' | '.join(figures)} |")

    evaluator = create(tmp_path, "jacov", "params", num_reference=256)
    stationary = np.array([row["zero_cost"] for row in evaluator.evaluate(cells)])
    figures = [bootstrap(one) for one in tau(stationary, truth)]
    print(f"| jacov + params, quantiles of 256 reference networks | {' | '.join(figures)} | |")

    everything = np.arange(len(cells))
    ranks, fixed = found["jacov", "params"](everything), tau(stationary, truth)[0](everything)
    assert ranks > params(everything)
    assert fixed == pytest.approx(ranks, abs=0.02)
