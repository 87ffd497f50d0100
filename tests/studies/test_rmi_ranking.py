"""How well similarity ranks cells of NAS-Bench-201: the figures in docs/measurements.md, printed as tables.

    pytest tests/studies/test_rmi_ranking.py -m slow -s

500 random connected cells, similarity of narrow networks (C = 8, N = 1) on CIFAR-10 averaged to 16x16,
against the benchmark's validation accuracy on CIFAR-10 after 200 epochs. Kendall's tau over all cells and
over the better half, with 95 % bootstrap intervals over cells; and blind regret on six devices, of the cell
of the highest score under each decile limit. Needs HWNAS_DATA with nasbench201.npz, cifar10_16x16.npz and
hwnasbench_nasbench201.npz; about 10 CPU minutes for each size of images on a busy server.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import kendalltau
from study import Case, bootstrap, estimator, random_cells, show, tau

from hwnas.core import FloatArray, Genotype
from hwnas.evaluators.rmi import RMI, listed, quantiles, rmi_flops
from hwnas.evaluators.table import by_genotype
from hwnas.files import data_folder
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.training.checkpoint import Session
from hwnas.training.classifier import accuracy
from hwnas.training.reference import reference_model

pytestmark = pytest.mark.slow

SEED = 2026  # of the cells; settings were chosen on cells of other seeds
NUM_CELLS = 500
REFERENCE = ["evaluator.reference.epochs=20", "evaluator.reference.max_steps=4000"]
FLOPS_WEIGHT = 1.5


@pytest.fixture(scope="module")
def cells() -> list[Genotype]:
    return random_cells(NUM_CELLS, SEED)


@pytest.fixture(scope="module")
def truth(cells: list[Genotype]) -> FloatArray:
    for name in ("nasbench201.npz", "cifar10_16x16.npz"):
        if not (data_folder() / name).is_file():
            pytest.skip(f"{name} is missing; HWNAS_DATA names the folder that has it")
    values = by_genotype(NasBench201(), "nasbench201.npz", ["cifar10_valid_200"])["cifar10_valid_200"]
    return np.array([values[cell] for cell in cells])


def create(store: Path, *settings: str) -> tuple[RMI, Any]:
    """The evaluator and its images, as `hwnas search dataset=cifar10_16x16 <settings>` makes them."""
    rmi, dataset, _ = estimator(store, "evaluator=rmi", *REFERENCE, *settings)
    return rmi, dataset


SMALLER = ("dataset.image_shape=[3,8,8]", "dataset.crop=1")
ROWS = {
    "16x16": {
        "20 steps": (),
        "20 steps, untrained reference": ("evaluator.reference.epochs=0",),
    },
    "8x8": {
        "20 steps": SMALLER,
        "20 steps, untrained reference": (*SMALLER, "evaluator.reference.epochs=0"),
        "20 steps, easiest images": (*SMALLER, "evaluator.batch_choice=easiest"),
        "20 steps, 2 repeats": (*SMALLER, "evaluator.repeats=2"),
        "50 steps": (*SMALLER, "evaluator.steps=50"),
    },
}


@pytest.mark.parametrize("size", ROWS)
def test_similarity_ranks_cells(
    cells: list[Genotype], truth: FloatArray, cases: list[Case], tmp_path: Path, size: str
) -> None:
    start = time.process_time()
    space = NasBench201()
    flops = space.static_metrics(cells)["flops"]
    assert kendalltau(flops, space.static_metrics(cells)["params"])[0] == pytest.approx(1.0)
    shares = quantiles(np.sort(space.static_metrics(listed(space))["flops"]), flops)
    scores = {"multiply-adds, as parameters": flops}
    seconds = {"multiply-adds, as parameters": 0.0}
    for name, settings in ROWS[size].items():
        rmi, dataset = create(tmp_path, *settings)
        if len(scores) == 1:
            session = Session(tmp_path, announce=print, warn=print)
            model = reference_model(dataset, rmi.reference, session, seed=0)
            minutes = (time.process_time() - start) / 60
            print(
                f"\n{size}: test accuracy of the reference {accuracy(model, dataset, 'test'):.1%}, "
                f"{minutes:.1f} CPU minutes"
            )
        begin = time.process_time()
        plain = np.array([row["rmi"] for row in rmi.evaluate(cells)])
        spent = (time.process_time() - begin) / len(cells)
        scores |= {f"rmi, {name}": plain, f"rmi_flops, {name}": rmi_flops(plain, FLOPS_WEIGHT, shares)}
        seconds |= {f"rmi, {name}": spent, f"rmi_flops, {name}": spent}

    print(f"\n| {size}, {NUM_CELLS} cells | CPU s per network | tau, all | tau, better half |")
    print("|---|---|---|---|")
    for name, score in scores.items():
        print(f"| {name} | {seconds[name]:.3f} | {' | '.join(map(bootstrap, tau(score, truth)))} |")

    own = [case for case in cases if case.dataset == "cifar10"]
    show(
        f"{size}: blind regret in points, mean of nine limits; perfect: the best of the {NUM_CELLS} cells",
        ["score", *(case.name for case in own)],
        [
            [name, *(f"{case.blind_regrets(cells, score).mean():.2f}" for case in own)]
            for name, score in {**scores, "perfect": truth}.items()
        ],
    )

    first, *others = ROWS[size]
    pairs = [("rmi, " + first, "multiply-adds, as parameters")]
    pairs += [(f"rmi_flops, {first}", other) for other in ("multiply-adds, as parameters", f"rmi, {first}")]
    pairs += [(f"{kind}, {name}", f"{kind}, {first}") for name in others for kind in ("rmi", "rmi_flops")]
    print(f"\n| {size}, difference of tau on the same cells | all | better half |\n|---|---|---|")
    for one, other in pairs:
        both = zip(tau(scores[one], truth), tau(scores[other], truth), strict=True)
        differences = [bootstrap(a, b) for a, b in both]
        print(f"| ({one}) - ({other}) | {' | '.join(differences)} |")
    print(f"\n{(time.process_time() - start) / 60:.1f} CPU minutes in all")

    everything = np.arange(NUM_CELLS)
    ours, plain, counted = (
        [statistic(everything) for statistic in tau(scores[name], truth)]
        for name in (f"rmi_flops, {first}", f"rmi, {first}", "multiply-adds, as parameters")
    )
    assert 0.3 < plain[0] < ours[0]
    assert counted[0] < ours[0]
    assert max(plain[1], counted[1]) < ours[1]
