"""Training-free scores against a plain second implementation, on tiny networks."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hwnas.core import Genotype, SearchSpace, log_rank_sum
from hwnas.data.images import Images
from hwnas.evaluators.scores import kaiming
from hwnas.evaluators.table import Lookup
from hwnas.evaluators.zero_cost import WORST, ZeroCost, quantiles
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.nasbench201.network import initial_weights
from hwnas.spaces.toy import Toy

IMAGES = {"image_shape": (1, 8, 8), "num_classes": 10}
SPACE = NasBench201(4, 1, **IMAGES)
CELLS = [(3, 3, 3, 3, 3, 3), (1, 1, 1, 1, 1, 1), (2, 0, 4, 3, 1, 2), (2, 3, 0, 4, 0, 0), (4,) * 6]
CELLS += [g for g in SPACE.sample(np.random.default_rng(1), 9) if SPACE.is_connected([g])[0]]
NOWHERE = (0, 0, 0, 0, 3, 3)


def digits(**changes: Any) -> Images:
    return Images("digits", **{"source": "digits", "image_shape": [1, 8, 8], "num_classes": 10, **changes})


def create(
    folder: Path,
    scores: list[str],
    *,
    space: SearchSpace = SPACE,
    said: list[str] | None = None,
    dataset: Any = None,
    **changes: Any,
) -> ZeroCost:
    settings: dict[str, Any] = {
        "channels": 4,
        "num_cells": 1,
        "image_size": 5,
        "batch_size": 6,
        "seed": 3,
        "group_size": 8,
        "num_reference": 0,
        "lookup": Lookup(space, path=None, val_column=None, test_column=None, scale=1.0),
    }
    say = (lambda text: None) if said is None else said.append
    return ZeroCost(space, dataset or digits(), folder, say, scores=scores, **{**settings, **changes})


def prepared(folder: Path, scores: list[str], **changes: Any) -> ZeroCost:
    """An evaluator in float64."""
    evaluator = create(folder, scores, **changes)
    evaluator._dtype = torch.float64
    evaluator.prepare(SPACE, [])
    return evaluator


def plain_network(genotype: Genotype, change: Callable[[Tensor], Tensor] = lambda w: w) -> nn.Module:
    """The network of the live operations with the evaluator's weights, one by itself."""
    (live,) = SPACE.live([genotype]).tolist()
    weights = kaiming(initial_weights(SPACE, 3, dtype=torch.float64), 3, torch.float64)
    network = SPACE.network(tuple(live)).double()
    network.load({name: change(weight) for name, weight in weights.items()})
    return network


def plain_jacov(genotype: Genotype, x: Tensor) -> float:
    x = x.clone().requires_grad_()
    plain_network(genotype)(x).sum().backward()
    v = np.linalg.eigvalsh(np.corrcoef(x.grad.flatten(1).numpy()))
    return float(-(np.log(v + 1e-5) + 1 / (v + 1e-5)).sum())


def plain_naswot(genotype: Genotype, x: Tensor) -> float:
    network, codes = plain_network(genotype), []
    network.last_norm.register_forward_hook(lambda m, i, out: codes.append((out > 0).flatten(1)))
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda m, i, out: codes.append((i[0] > 0).flatten(1)))
    network(x)
    code = torch.cat(codes, dim=1).double()
    return float(np.log(abs(np.linalg.det((code @ code.T + (1 - code) @ (1 - code).T).numpy()))))


def plain_synflow(genotype: Genotype, x: Tensor) -> float:
    network = plain_network(genotype, torch.abs)
    for module in [*network.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    network(torch.ones_like(x[:1])).sum().backward()
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    found = sum((m.weight * m.weight.grad).abs().sum() for m in layers if m.weight.grad is not None)
    return math.log(found.item())


PLAIN: dict[str, Callable[[Genotype, Tensor], float]] = {
    "jacov": plain_jacov,
    "naswot": plain_naswot,
    "synflow": plain_synflow,
    "params": lambda genotype, x: sum(p.numel() for p in SPACE.network(genotype).parameters()),
}


@pytest.mark.parametrize("group_size", [1, 8])
def test_scores_equal_plain_ones(tmp_path: Path, group_size: int) -> None:
    evaluator = prepared(tmp_path, list(PLAIN), group_size=group_size)
    assert evaluator.metrics == dict.fromkeys([f"score_{name}" for name in PLAIN], "max")
    x = evaluator._data.x.double()
    assert x.shape == (6, 1, 5, 5)
    for genotype, row in zip(CELLS, evaluator.evaluate(CELLS), strict=True):
        plain = {f"score_{name}": score(genotype, x) for name, score in PLAIN.items()}
        assert row == pytest.approx(plain, rel=1e-9, abs=1e-9), genotype


def test_a_network_without_a_path_is_the_worst(tmp_path: Path) -> None:
    evaluator = create(tmp_path, ["jacov", "naswot", "params"], num_reference=10)
    evaluator.prepare(SPACE, [])
    row, other = evaluator.evaluate([NOWHERE, CELLS[0]])
    lowest = math.log(1 / 20)
    assert row == {
        "zero_cost": pytest.approx(3 * lowest),
        "score_jacov": WORST,
        "score_naswot": WORST,
        "score_params": 0.0,
    }
    assert other["zero_cost"] > row["zero_cost"]


def test_quantiles_by_hand() -> None:
    """Of 1, 2, 2, 5: (i - 1/2) / 4, the two equal ones share 1/2; above 5 in steps of 5 - 2."""
    found = quantiles(np.array([1.0, 2.0, 2.0, 5.0]), np.array([-9.0, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 11.0]))
    expected = [0.125, 0.125, 0.3125, 0.5, 0.625, 0.875, 1 - 0.125 / 2, 1 - 0.125 / 3]
    assert found.tolist() == pytest.approx(expected)


def test_ranks_of_a_population_by_hand() -> None:
    raw = np.array([[1.0, 5.0], [3.0, 5.0], [2.0, 9.0]])
    expected = [math.log(1 / 3 * 1.5 / 3), math.log(1.5 / 3), math.log(2 / 3)]
    assert log_rank_sum(raw).tolist() == pytest.approx(expected)


def test_the_combination_is_the_same_in_every_company_and_run(tmp_path: Path) -> None:
    said: list[str] = []
    one, two = (create(tmp_path, ["jacov", "params"], num_reference=12, said=said) for _ in range(2))
    versions = {evaluator.prepare(SPACE, []) for evaluator in (one, two)}
    assert len(versions) == len(said) == 1  # the second reads what the first has kept
    assert "12 reference networks" in said[0]
    together = one.evaluate(CELLS)
    assert list(together[0]) == ["zero_cost", "score_jacov", "score_params"]
    for cell, row in zip(CELLS, together, strict=True):
        assert two.evaluate([cell])[0] == pytest.approx(row, rel=1e-3)  # float32
    rows = sorted(together, key=lambda row: row["score_params"])
    found = [quantiles(one._reference["params"], np.array([row["score_params"]]))[0] for row in rows]
    assert found == sorted(found)
    other = create(tmp_path, ["jacov", "params"], num_reference=12, seed=4)
    assert other.prepare(SPACE, []) not in versions


def test_a_score_that_is_not_a_number_is_named(tmp_path: Path) -> None:
    evaluator = prepared(tmp_path, ["params", "jacov"])
    evaluator._weights["cell1.3x3"][0] = math.nan
    with pytest.raises(ValueError, match=r"^jacov of \|nor_conv_3x3~0\|\+.* is nan, not a number$"):
        evaluator.evaluate(CELLS[1:2] + CELLS[:1])


def test_equal_images_are_worst_and_no_error(tmp_path: Path) -> None:
    evaluator = prepared(tmp_path, ["jacov", "naswot", "synflow"])
    evaluator._data.x.zero_()
    (row,) = evaluator.evaluate(CELLS[:1])
    assert row["score_naswot"] == WORST
    assert row["score_jacov"] < -1e5
    assert math.isfinite(row["score_synflow"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": Toy(4, 3)}, "evaluator=zero_cost: the toy space has no networks to score"),
        ({"scores": ["jacob"]}, "scores: 'jacob' is unknown; did you mean jacov?"),
        ({"scores": []}, "scores must be a list of at least 1, each text, not"),
        ({"batch_size": 2000}, "batch_size=2000 is more than the 1,150 training images"),
        ({"dataset": "none"}, "evaluator=zero_cost needs images; choose a dataset"),
        ({"lookup": None}, "lookup must be true accuracies of a benchmark, not None"),
    ],
)
def test_bad_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message.replace('?', '[?]')}"):
        create(tmp_path, **{"scores": ["jacov"], **changes})
