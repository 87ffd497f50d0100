"""Networks of DARTS and FBNet one after another: their weights are a draw per operation, they do not mix."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwnas.spaces.blocks import SeparateNetworks
from hwnas.spaces.darts import Darts
from hwnas.spaces.darts import network as darts_networks
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.fbnet import network as fbnet_networks
from hwnas.spaces.fbnet.encoding import SKIP

IMAGES = {"image_shape": (2, 16, 16), "num_classes": 5}
SPACES = {
    "darts": (Darts(4, 5, **IMAGES), darts_networks.initial_weights, [(16, 16), (32, 8), (64, 4)]),
    "fbnet": (FBNet(channels=4, **IMAGES), fbnet_networks.initial_weights, [(6, 16), (8, 8), (28, 4)]),
}


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(12, 2, 16, 16, generator=generator, dtype=torch.float64), torch.arange(12) % 5


@pytest.mark.parametrize("name", SPACES)
def test_training_equals_separate_training(name: str) -> None:
    space, initial_weights, shapes = SPACES[name]
    genotypes = space.sample(np.random.default_rng(0), 2)
    weights = initial_weights(space, 3, dtype=torch.float64)
    population = space.population(genotypes, weights)
    assert isinstance(population, SeparateNetworks)
    x, y = batch()
    taps, logits = population.features(x)
    assert [tuple(tap.shape) for tap in taps] == [(12, 2, c, size, size) for c, size in shapes]
    assert tuple(logits.shape) == (2, 12, 5)
    optimizer = torch.optim.SGD(population.parameters(), lr=0.01, momentum=0.9)
    for _ in range(2):
        taps, logits = population.features(x)
        optimizer.zero_grad()
        (F.cross_entropy(logits.flatten(0, 1), y.repeat(2), reduction="sum") / len(x)).backward()
        optimizer.step()
    taps, logits = population.features(x)
    for k, genotype in enumerate(genotypes):
        network = space.network(genotype).double()
        network.load(weights)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        before = network.features(x)[1].detach()
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(network.features(x)[1], y).backward()
            optimizer.step()
        own_taps, own_logits = network.features(x)
        assert (own_logits - before).abs().max() > 1e-3
        # Rounding of float64 grows twentyfold per step, from 1e-13: 4e-9 on some processors.
        assert torch.allclose(logits[k], own_logits, rtol=0, atol=1e-6)
        assert all(torch.allclose(a[:, k], b, rtol=0, atol=1e-6) for a, b in zip(taps, own_taps, strict=True))


@pytest.mark.parametrize("name", SPACES)
def test_weights_are_seeded_and_leave_the_global_generator_alone(name: str) -> None:
    space, initial_weights, _ = SPACES[name]
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, again, other = (space.initial_weights(seed) for seed in (5, 5, 6))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first if first[key].dim() > 1)
    double = initial_weights(space, 5, dtype=torch.float64)
    assert all(torch.equal(first[key], double[key].float()) for key in first)


def test_a_shared_operation_starts_alike_whatever_the_others_are() -> None:
    space = FBNet(channels=4, **IMAGES)
    weights = space.initial_weights(0)
    a, b = space.population([(3,) * 22, (SKIP,) * 21 + (3,)], weights).networks
    assert torch.equal(a.layers[21].expand[0].weight, b.layers[21].expand[0].weight)
    assert torch.equal(a.layers[21].expand[0].weight, weights["layers.21.k3_e6.expand.0.weight"])
    assert not torch.equal(a.layers[20].expand[0].weight, a.layers[19].expand[0].weight)


def test_weights_of_a_darts_operation_lie_under_its_edge() -> None:
    space = Darts(4, 5, **IMAGES)
    weights = space.initial_weights(0)
    (genotype,) = space.sample(np.random.default_rng(0), 1)
    network = space.population([genotype], weights).networks[0]
    assert {index for index in range(5) if f"cells.{index}.0.skip_connect.conv_1.weight" in weights} == {1, 3}
    for index, cell in enumerate(network.cells):
        own = genotype[14:] if index in (1, 3) else genotype[:14]
        assert [edge for edge, _ in cell.kept] == [edge for edge, op in enumerate(own) if op]
        for (edge, op), module in zip(cell.kept, cell.edges, strict=True):
            for name, parameter in module.named_parameters():
                key = f"cells.{index}.{edge}.{darts_networks.OPS[op]}.{name}"
                assert torch.equal(parameter, weights[key])


def test_candidates_have_sizes_that_the_space_can_build() -> None:
    with pytest.raises(ValueError, match=r"num_cells must be .* at least 3, not 1"):
        Darts().resized(channels=8, num_cells=1)
    with pytest.raises(ValueError, match=r"channels must be an even whole number of at least 2, not 7"):
        FBNet().resized(channels=7, num_cells=1)
