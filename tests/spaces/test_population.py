from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwnas.spaces.blocks import BoxMean, box_mean
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.nasbench201.network import NasBench201Network, NasBench201Population, initial_weights

SPACE = NasBench201(4, 2, image_shape=(2, 7, 9), num_classes=5)
GENOTYPES = [(0,) * 6, (1,) * 6, (4,) * 6, (3,) * 6, *SPACE.sample(np.random.default_rng(0), 16)]


def plain_networks(weights: dict[str, torch.Tensor]) -> list[NasBench201Network]:
    networks = [SPACE.network(genotype).to(weights["stem"].dtype) for genotype in GENOTYPES]
    for network in networks:
        network.load(weights)
    return networks


def batch(dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(6, *SPACE.image_shape, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(SPACE.num_classes, (6,), generator=generator)


def assert_equal(population: NasBench201Population, networks: list[NasBench201Network], tol: float) -> None:
    x, _ = batch()
    with torch.no_grad():
        taps, logits = population.features(x)
        for k, network in enumerate(networks):
            own_taps, own_logits = network.features(x)
            assert torch.allclose(logits[k], own_logits, rtol=0, atol=tol)
            for tap, own_tap in zip(taps, own_taps, strict=True):
                assert torch.allclose(tap[:, k], own_tap, rtol=0, atol=tol)


def test_forward_equals_separate_networks() -> None:
    weights = initial_weights(SPACE, 3, dtype=torch.float64)
    population, networks = SPACE.population(GENOTYPES, weights), plain_networks(weights)
    taps, logits = population.features(batch()[0])
    assert [tuple(tap.shape) for tap in taps] == [(6, 20, 4, 7, 9), (6, 20, 8, 4, 5), (6, 20, 16, 2, 3)]
    assert tuple(logits.shape) == (20, 6, 5)
    assert torch.equal(population(batch()[0]), logits)
    assert_equal(population, networks, 1e-10)


def test_training_equals_separate_training() -> None:
    weights = initial_weights(SPACE, 3, dtype=torch.float64)
    before = copy.deepcopy(weights)
    population, networks = SPACE.population(GENOTYPES, weights), plain_networks(weights)
    x, y = batch()
    settings = {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}
    optimizer = torch.optim.SGD(population.parameters(), **settings)
    for _ in range(5):
        logits = population(x)
        loss = F.cross_entropy(logits.flatten(0, 1), y.repeat(len(GENOTYPES)), reduction="sum") / len(x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    initial = [network(x).detach() for network in networks]
    for network in networks:
        optimizer = torch.optim.SGD(network.parameters(), **settings)
        for _ in range(5):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    assert_equal(population, networks, 1e-9)
    assert all(
        (network(x) - start).abs().max() > 1e-3 for network, start in zip(networks, initial, strict=True)
    )
    assert all(torch.equal(weights[name], before[name]) for name in weights)  # the population trains copies


@pytest.mark.parametrize("genotypes", [[(0,) * 6], [(3,) * 6], [(1, 0, 2, 4, 3, 0)], [(2,) * 6] * 3])
def test_small_populations(genotypes: list[tuple[int, ...]]) -> None:
    weights = initial_weights(SPACE, 0, dtype=torch.float64)
    x, _ = batch()
    logits = SPACE.population(genotypes, weights)(x)
    for k, genotype in enumerate(genotypes):
        network = SPACE.network(genotype).double()
        network.load(weights)
        assert torch.allclose(logits[k], network(x), rtol=0, atol=1e-10)


def test_members_do_not_mix() -> None:
    weights = initial_weights(SPACE, 0, dtype=torch.float64)
    x, _ = batch()
    logits = SPACE.population(GENOTYPES[4:8], weights)(x)
    changed = SPACE.population([GENOTYPES[4], (3,) * 6, *GENOTYPES[6:8]], weights)(x)
    assert torch.allclose(changed[[0, 2, 3]], logits[[0, 2, 3]], rtol=0, atol=1e-12)
    assert not torch.allclose(changed[1], logits[1], rtol=0, atol=1e-3)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (2, 2), (5, 7), (1, 4), (3, 1)])
def test_box_mean_equals_the_pool(height: int, width: int) -> None:
    x = torch.rand(2, 3, height, width, dtype=torch.float64, requires_grad=True)
    expected = F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)
    assert torch.allclose(box_mean(x), expected, rtol=0, atol=1e-14)
    assert torch.equal(BoxMean()(x), expected)
    upstream = torch.rand_like(expected)
    (grad,) = torch.autograd.grad(box_mean(x), x, upstream)
    (expected_grad,) = torch.autograd.grad(expected, x, upstream)
    assert torch.allclose(grad, expected_grad, rtol=0, atol=1e-14)
    assert torch.autograd.gradcheck(box_mean, (x,))
    last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    assert torch.allclose(box_mean(last), expected, rtol=0, atol=1e-14)
    (grad,) = torch.autograd.grad(
        box_mean(last), last, upstream.contiguous(memory_format=torch.channels_last)
    )
    assert torch.allclose(grad, expected_grad, rtol=0, atol=1e-14)


def test_box_mean_by_hand() -> None:
    x = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    assert box_mean(x[None])[0].tolist() == [[3.0, 3.5, 4.0], [3.0, 3.5, 4.0]]
    assert x.tolist() == [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]  # the input stays


def test_initial_weights_are_seeded() -> None:
    first, again, other = (initial_weights(SPACE, seed) for seed in (5, 5, 6))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    double = initial_weights(SPACE, 5, dtype=torch.float64)
    assert all(tensor.dtype == torch.float32 for tensor in first.values())
    assert all(torch.equal(first[name], double[name].float()) for name in first)


def test_initial_weights_shapes_and_bounds() -> None:
    weights = initial_weights(SPACE, 0)
    assert {name: tuple(w.shape) for name, w in weights.items() if "cell" not in name} == {
        "stem": (4, 2, 3, 3),
        "reduction0.a": (8, 4, 3, 3),
        "reduction0.b": (8, 8, 3, 3),
        "reduction0.skip": (8, 4, 1, 1),
        "reduction1.a": (16, 8, 3, 3),
        "reduction1.b": (16, 16, 3, 3),
        "reduction1.skip": (16, 8, 1, 1),
        "classifier.weight": (5, 16),
        "classifier.bias": (5,),
    }
    channels = [4, 4, 8, 8, 16, 16]  # two cells per stage
    for cell, c in enumerate(channels):
        assert tuple(weights[f"cell{cell}.3x3"].shape) == (6, c, c, 3, 3)
        assert tuple(weights[f"cell{cell}.1x1"].shape) == (6, c, c, 1, 1)
    # torch's default: uniform in +-1 / sqrt(fan_in)
    assert 0.95 / 12 < weights["cell4.3x3"].abs().max() <= 1 / 12  # 16 * 9 inputs
    assert 0.95 / 4 < weights["cell4.1x1"].abs().max() <= 1 / 4


def test_initial_weights_leave_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    initial_weights(SPACE, 9)
    assert torch.equal(torch.rand(3), expected)
