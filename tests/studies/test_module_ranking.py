"""How well shared weights rank networks of the module of docs/modules.md on digits: printed as a table.

    pytest tests/studies/test_module_ranking.py -m slow -s

16 random networks: validation accuracy with the shared weights after a training of the supernet, against that
of each network trained alone for six epochs, once. About three minutes on one core.
"""

from __future__ import annotations

import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from study import bootstrap, show, tau
from torch import nn

from hwnas import ModuleSpace
from hwnas.data.images import Images
from hwnas.training.recipe import SupernetRecipe
from hwnas.training.shared_weights import Judges, SharedWeights

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).parents[2] / "docs" / "modules.md").read_text()
SETTINGS = ((20, 0.025), (20, 0.1), (60, 0.1))
"""Epochs and learning rate; the first ones are those of conf/evaluator/supernet.yaml."""
EPOCHS, BATCH = 6, 64
"""Of networks alone."""


def alone(network: nn.Module, dataset: Images) -> float:
    """Validation accuracy of a network after a training of its own."""
    mean, std = dataset.normalisation()
    (x, y), (x_valid, y_valid) = (dataset.split(name) for name in ("train", "valid"))
    x, x_valid, steps = (x - mean) / std, (x_valid - mean) / std, len(x) // BATCH
    sgd = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(sgd, 0.1, total_steps=EPOCHS * steps)
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x))[: steps * BATCH].split(BATCH):
            sgd.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            sgd.step()
            schedule.step()
    network.eval()
    with torch.no_grad():
        return (network(x_valid).argmax(1) == y_valid).float().mean().item()


def test_shared_weights_rank_networks() -> None:
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code
    own: dict[str, type[nn.Module]] = {"__name__": __name__}  # type: ignore[dict-item]
    exec(code[1], own)
    space = ModuleSpace(own["UShaped"], image_shape=(1, 8, 8))
    dataset = Images(
        "digits", source="digits", image_shape=[1, 8, 8], num_classes=10, crop=1, valid_fraction=0.3
    )
    networks = space.sample(np.random.default_rng(5), 16)
    start, accuracies = time.process_time(), []
    for genotype in networks:
        torch.manual_seed(0)
        accuracies.append(alone(space.network(genotype), dataset))
    truth, flops = np.array(accuracies), space.static_metrics(networks)["flops"]
    seconds = (time.process_time() - start) / len(networks)
    rows = [["multiply-adds", "0", "", bootstrap(tau(flops, truth)[0])]]
    rows.append([f"alone, {EPOCHS} epochs", f"{seconds:.1f} each", f"{truth.mean():.3f}", ""])
    for epochs, lr in SETTINGS:
        start = time.process_time()
        weights = SharedWeights(
            space,
            dataset,
            SupernetRecipe("single_path", lr=lr),
            num_epochs=epochs,
            affine=False,
            track_running_stats=True,
            decoding="hard",
            seed=0,
        )
        for epoch in range(epochs):
            weights.train_epoch(epoch)
        judged = weights.accuracies(
            networks, Judges(None, 1024, None), batch_statistics=True, decoding="hard"
        )
        seconds = time.process_time() - start
        row = [f"{seconds:.0f}", f"{np.mean(judged):.3f}", bootstrap(tau(np.array(judged), truth)[0])]
        rows.append([f"shared, {epochs} epochs, lr {lr}", *row])
    show("digits, 16 networks", ["estimate", "CPU s", "mean accuracy", "tau"], rows)
    assert float(np.mean(judged)) > 0.8
