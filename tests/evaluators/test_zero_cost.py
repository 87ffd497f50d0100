"""Training-free scores against a plain second implementation, on tiny networks."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.core import Genotype, SearchSpace, log_rank_sum
from hwnas.data.images import Images
from hwnas.evaluators.scores import Data, kaiming
from hwnas.evaluators.table import Lookup
from hwnas.evaluators.zero_cost import NAMES, WORST, ZeroCost, quantiles
from hwnas.spaces.blocks import count
from hwnas.spaces.capabilities import HasNetworks
from hwnas.spaces.darts import Darts
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.fbnet.encoding import SKIP
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.nasbench201.encoding import CONV_1X1, CONV_3X3, EDGES, NONE
from hwnas.spaces.nasbench201.network import initial_weights
from hwnas.spaces.toy import Toy
from hwnas.store.cache import CachedEvaluator
from hwnas.store.evaluations import EvaluationStore

IMAGES = {"image_shape": (1, 8, 8), "num_classes": 10}
SPACE = NasBench201(4, 1, **IMAGES)
CELLS = [(3, 3, 3, 3, 3, 3), (1, 1, 1, 1, 1, 1), (2, 0, 4, 3, 1, 2), (2, 3, 0, 4, 0, 0), (4,) * 6]
CELLS += [g for g in SPACE.sample(np.random.default_rng(1), 5) if SPACE.is_connected([g])[0]]
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


def images(data: Data) -> Tensor:
    """The images of the first batch, a copy in float64."""
    return data.batches[0][0].double().clone()


def live(genotype: Genotype) -> Genotype:
    return tuple(SPACE.live([genotype])[0].tolist())


def plain_network(genotype: Genotype, change: Callable[[Tensor], Tensor] = lambda w: w) -> nn.Module:
    """The network of the live operations with the evaluator's weights, one by itself."""
    weights = kaiming(initial_weights(SPACE, 3, dtype=torch.float64), 3, torch.float64)
    network = SPACE.network(live(genotype)).double()
    network.load({name: change(weight) for name, weight in weights.items()})
    return network


def plain_jacov(genotype: Genotype, data: Data) -> float:
    x = images(data).requires_grad_()
    plain_network(genotype)(x).sum().backward()
    v = np.linalg.eigvalsh(np.corrcoef(x.grad.flatten(1).numpy()))
    return float(-(np.log(v + 1e-5) + 1 / (v + 1e-5)).sum())


def codes(genotype: Genotype, data: Data) -> Tensor:
    """Signs of all ReLU inputs, (B, units)."""
    network, found = plain_network(genotype), []
    network.last_norm.register_forward_hook(lambda m, i, out: found.append((out > 0).flatten(1)))
    for module in network.modules():
        if isinstance(module, nn.ReLU):
            module.register_forward_hook(lambda m, i, out: found.append((i[0] > 0).flatten(1)))
    network(images(data))
    return torch.cat(found, dim=1)


def plain_naswot(genotype: Genotype, data: Data) -> float:
    code = codes(genotype, data).double()
    return float(np.log(abs(np.linalg.det((code @ code.T + (1 - code) @ (1 - code).T).numpy()))))


def plain_swap(genotype: Genotype, data: Data) -> float:
    code = codes(genotype, data)
    return float(np.mean([len(set(map(tuple, code[draw > 0].T.tolist()))) for draw in data.draws()]))


def plain_zico(genotype: Genotype, data: Data) -> float:
    gradients = []
    for x, y in data.batches:
        network = plain_network(genotype)
        F.cross_entropy(network(x.double()), y).backward()
        layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
        gradients.append([layer.weight.grad.flatten().numpy() for layer in layers])
    total = 0.0
    for a, b in zip(*gradients, strict=True):
        different = a != b
        mean, std = (abs(a) + abs(b)) / 2, abs(a - b) / 2
        total += math.log((mean[different] / std[different]).sum())
    return total


def plain_cells(genotype: Genotype, data: Data) -> list[Tensor]:
    network, found = plain_network(genotype), []
    cells = [network.stem, *(cell for stage in network.stages for cell in stage), *network.reductions]
    for module in cells:
        module.register_forward_hook(lambda m, i, out: found.append(out))
    network(images(data))
    return found


def entropies(genotype: Genotype, data: Data) -> list[float]:
    found = []
    for cell in plain_cells(genotype, data):
        v = np.linalg.eigvalsh(np.cov(cell.detach().transpose(0, 1).flatten(1).numpy()))
        p = v[v > 1e-12 * v.max()] / v.sum()
        found.append(float(-(p * np.log(p)).sum()))
    return found


def plain_trainability(genotype: Genotype, data: Data) -> float:
    cells, parts = plain_cells(genotype, data), []
    for number in range(len(cells) - 1):
        before, after = cells[number : number + 2]
        g_out = data.signs(number, after.shape).double()
        (g_in,) = torch.autograd.grad(after, before, g_out, retain_graph=True)
        B, _, H, W = after.shape
        side = -(-before.shape[2] // H)
        E = 0.0
        for image, row, column in itertools.product(range(B), range(H), range(W)):
            square = np.zeros((before.shape[1], side, side))
            own = g_in[image, :, row * side : (row + 1) * side, column * side : (column + 1) * side].numpy()
            square[:, : own.shape[1], : own.shape[2]] = own
            E = E + np.outer(square, g_out[image, :, row, column].numpy())
        s = np.linalg.norm(E / (B * H * W), 2)
        parts.append(2 - s - 1 / s)
    return float(np.mean(parts))


def plain_meco(genotype: Genotype, data: Data) -> float:
    network, found = plain_network(genotype), []
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda m, i, out: found.append(out[0].flatten(1).detach().numpy()))
    network(data.noise.double())
    assert data.noise.shape == (1, 1, 64, 64)
    return float(sum(np.linalg.eigvalsh(np.corrcoef(channels))[0] for channels in found))


def plain_synflow(genotype: Genotype, data: Data) -> float:
    network = plain_network(genotype, torch.abs)
    for module in [*network.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                setattr(module, name, nn.Identity())
    network(torch.ones_like(images(data)[:1])).sum().backward()
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    found = sum((m.weight * m.weight.grad).abs().sum() for m in layers if m.weight.grad is not None)
    return math.log(found.item())


def plain_depth(genotype: Genotype, data: Data) -> float:
    def most(node: int) -> float:
        """Most convolutions on a path from the input to a node."""
        paths = [
            most(source) + (op in (CONV_1X1, CONV_3X3))
            for (source, target), op in zip(EDGES, genotype, strict=True)
            if target == node and op != NONE
        ]
        return 0 if node == 0 else max(paths, default=-math.inf)

    return most(3)


PLAIN: dict[str, Callable[[Genotype, Data], float]] = {
    "jacov": plain_jacov,
    "naswot": plain_naswot,
    "swap": plain_swap,
    "synflow": plain_synflow,
    "zico": plain_zico,
    "az_expressivity": lambda genotype, data: sum(entropies(genotype, data)),
    "az_progressivity": lambda genotype, data: min(np.diff(entropies(genotype, data))),
    "az_trainability": plain_trainability,
    "az_complexity": lambda genotype, data: count(SPACE.network(live(genotype)), SPACE.image_shape)[1],
    "meco": plain_meco,
    "params": lambda genotype, data: sum(p.numel() for p in SPACE.network(live(genotype)).parameters()),
    "flops": lambda genotype, data: count(SPACE.network(live(genotype)), SPACE.image_shape)[1],
    "depth": plain_depth,
}


def test_scores_equal_plain_ones(tmp_path: Path) -> None:
    """Of groups of networks, and of one after another."""
    evaluator = prepared(tmp_path, list(PLAIN), batch_size=18)
    assert evaluator.metrics == dict.fromkeys([f"score_{name}" for name in PLAIN], "max")
    assert set(PLAIN) == set(NAMES)
    assert [x.shape for x, _ in evaluator._data.batches] == [(18, 1, 5, 5)] * 2
    together = evaluator.evaluate(CELLS)
    evaluator.group_size = 1
    for genotype, row, alone in zip(CELLS, together, evaluator.evaluate(CELLS), strict=True):
        plain = {f"score_{name}": score(genotype, evaluator._data) for name, score in PLAIN.items()}
        assert row == pytest.approx(plain, rel=1e-9, abs=1e-9), genotype
        assert alone == pytest.approx(plain, rel=1e-9, abs=1e-9), genotype


class Perceptrons(HasNetworks):
    """One hidden layer of 4 or 24 units, with ReLU or tanh."""

    name, ops, choices = "perceptrons", ("4", "24", "tanh"), ((0, 1, 2),)
    image_shape, num_classes = (1, 8, 8), 10

    def network(self, genotype: Genotype) -> nn.Module:
        units = (4, 24, 4)[genotype[0]]
        activation = nn.Tanh() if genotype[0] == 2 else nn.ReLU()
        return nn.Sequential(nn.Flatten(), nn.Linear(64, units), activation, nn.Linear(units, 10))

    restrict = to_str = from_str = lambda self, *arguments: str(arguments)


OWN = {"channels": None, "num_cells": None, "image_size": None}


def test_networks_of_a_space_of_ones_own(tmp_path: Path) -> None:
    scores = ["jacov", "naswot", "synflow", "params", "flops", "depth"]
    evaluator = create(tmp_path, scores, space=Perceptrons(), batch_size=3, **OWN)
    evaluator._dtype = torch.float64
    evaluator.prepare(Perceptrons(), [])
    (row,) = evaluator.evaluate([(1,)])
    names = [f"{layer}.{part}" for layer in (1, 3) for part in ("weight", "bias")]
    shapes = [(24, 64), (24,), (10, 24), (10,)]
    weights = kaiming(
        {name: torch.ones(shape) for name, shape in zip(names, shapes, strict=True)}, 3, torch.float64
    )
    one, two = weights["1.weight"], weights["3.weight"]
    x = images(evaluator._data).flatten(1)
    positive = (x @ one.T > 0).double()
    J = torch.einsum("cu,bu,ui->bi", two, positive, one)
    v = np.linalg.eigvalsh(np.corrcoef(J.numpy()))
    K = positive @ positive.T + (1 - positive) @ (1 - positive).T
    expected = {
        "score_jacov": -(np.log(v + 1e-5) + 1 / (v + 1e-5)).sum(),
        "score_naswot": np.log(np.linalg.det(K.numpy())),
        "score_synflow": math.log(2 * (two.abs() @ one.abs()).sum()),  # both layers hold all paths
        "score_params": 65 * 24 + 25 * 10,
        "score_flops": 65 * 24 + 25 * 10,
        "score_depth": 0,
    }
    assert row == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (["naswot"], "NASWOT and SWAP are about ReLUs, and the networks have none"),
        (["az_expressivity"], "AZ-NAS compares cells, and the networks have fewer than two"),
    ],
)
def test_networks_that_have_no_such_score(tmp_path: Path, scores: list[str], message: str) -> None:
    evaluator = create(tmp_path, scores, space=Perceptrons(), **OWN)
    evaluator.prepare(Perceptrons(), [])
    with pytest.raises(ValueError, match=message):
        evaluator.evaluate([(2,)])


@pytest.mark.parametrize(
    "space", [Darts(4, 3, **IMAGES), FBNet(channels=4, **IMAGES)], ids=["darts", "fbnet"]
)
def test_networks_of_other_spaces(tmp_path: Path, space: Any) -> None:
    """All scores; jacov and depth against the plain network."""
    evaluator = create(tmp_path, list(NAMES), space=space, num_cells="fewest", image_size=8)
    evaluator._dtype = torch.float64
    evaluator.prepare(space, [])
    cells = space.sample(np.random.default_rng(0), 2)
    rows = evaluator.evaluate(cells)
    assert all(math.isfinite(value) for row in rows for value in row.values())
    for cell, row in zip(cells, rows, strict=True):
        network = space.network(cell).double()
        network.load(kaiming(space.initial_weights(3), 3, torch.float64))
        x = images(evaluator._data).requires_grad_()
        network(x).sum().backward()
        v = np.linalg.eigvalsh(np.corrcoef(x.grad.flatten(1).numpy()))
        assert row["score_jacov"] == pytest.approx(-(np.log(v + 1e-5) + 1 / (v + 1e-5)).sum(), rel=1e-6)
        if space.name == "fbnet":  # stem and head, three per block, one per skip that changes the shape
            convs = [
                3 if op != SKIP else 0 if layer.identity else 1
                for op, layer in zip(cell, space.layers, strict=True)
            ]
            assert row["score_depth"] == 2 + sum(convs)


def test_answers_are_stored(tmp_path: Path) -> None:
    store = EvaluationStore(f"sqlite:///{tmp_path / 'store.sqlite'}", "run")
    first, second = (
        CachedEvaluator(create(tmp_path, ["synflow"], num_reference=5), store, "digits") for _ in range(2)
    )
    answers = []
    for evaluator in (first, second):
        evaluator.prepare(SPACE, [])
        answers.append(evaluator.evaluate([*CELLS, NOWHERE]))
    assert answers[0] == answers[1]
    assert (first.saved, second.saved) == (0, len(CELLS) + 1)
    store.close()


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
    evaluator._data.batches[0][0].zero_()
    (row,) = evaluator.evaluate(CELLS[:1])
    assert row["score_naswot"] == WORST
    assert row["score_jacov"] < -1e5
    assert math.isfinite(row["score_synflow"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": Toy(4, 3)}, "evaluator=zero_cost: the toy space has no networks to score"),
        ({"scores": ["jacob"]}, "scores: 'jacob' is unknown; did you mean jacov?"),
        ({"scores": ["qqqq"]}, "scores: 'qqqq' is unknown; known: jacov, naswot, swap, "),
        ({"scores": []}, "scores must be a list of at least 1, each text, not"),
        ({"batch_size": 2000}, "batch_size=2000 is more than the 1,150 training images"),
        (
            {"batch_size": 600, "scores": ["zico"]},
            "batch_size=600: zico needs two batches of the training images; it can be at most 575",
        ),
        ({"space": Perceptrons()}, "image_size must be null: networks of the perceptrons space take images"),
        (
            {"space": Perceptrons(), "image_size": None},
            "channels must be null: perceptrons has one size only",
        ),
        ({"dataset": "none"}, "evaluator=zero_cost needs images; choose a dataset"),
        ({"lookup": None}, "lookup must be true accuracies of a benchmark, not None"),
    ],
)
def test_bad_settings(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message.replace('?', '[?]')}"):
        create(tmp_path, **{"scores": ["jacov"], **changes})
