from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hwnas.core import FloatArray
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.nasbench201.encoding import EDGES
from hwnas.spaces.nasbench201.network import Cell, NasBench201Network
from hwnas.spaces.nasbench201.supernet import NasBench201Supernet
from hwnas.training.shared_weights import mixing_weights, mixture

SPACE = NasBench201(3, 2, image_shape=(2, 7, 9), num_classes=5)
PRUNED = SPACE.restrict([(0, 3), (1, 2, 4), (3,), (0, 1, 2, 3, 4), (2, 3), (0,)])
HARD = [(0,) * 6, (1,) * 6, (4,) * 6, (3,) * 6, (0, 3, 3, 0, 2, 3), (3, 0, 1, 0, 0, 0), (2, 0, 0, 1, 0, 0)]


def supernet(space: NasBench201 = SPACE, *, affine: bool = False, track: bool = True) -> NasBench201Supernet:
    """In float64, with weights and buffers that are not those of the start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = space.supernet(affine=affine, track_running_stats=track).double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
            for name, buffer in network.named_buffers():
                if name.endswith("running_mean"):
                    buffer += 0.3 * torch.randn_like(buffer)
                elif name.endswith("running_var"):
                    buffer *= 0.5 + torch.rand_like(buffer)
    return network


def images(num: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(num, *SPACE.image_shape, generator=generator, dtype=torch.float64)


def all_weights(space: NasBench201) -> list[FloatArray]:
    """Soft, decoded and hard ones."""
    rng = np.random.default_rng(0)
    genotypes = space.sample(rng, 4) + (HARD if space is SPACE else [])
    return [
        *mixture(space, rng.random((2, *space.alpha_shape))),
        *mixing_weights(space, genotypes[:2], "soft"),
        *mixing_weights(space, genotypes, "hard"),
    ]


def buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


@pytest.mark.parametrize("track", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("space", [SPACE, PRUNED], ids=["whole", "pruned"])
def test_stacked_training_equals_plain_training(space: NasBench201, affine: bool, track: bool) -> None:
    """Logits, gradients (and which parameters have none) and running statistics."""
    start = supernet(space, affine=affine, track=track).train()
    x, y = images(), torch.arange(6) % 5
    for weights in all_weights(space):
        plain, stacked = copy.deepcopy(start), copy.deepcopy(start)
        expected, logits = plain.plain(x, weights), stacked(x, weights)
        assert torch.allclose(logits, expected, rtol=0, atol=1e-12)
        F.cross_entropy(expected, y).backward()
        F.cross_entropy(logits, y).backward()
        for (name, p), q in zip(plain.named_parameters(), stacked.parameters(), strict=True):
            assert (p.grad is None) == (q.grad is None), name
            assert p.grad is None or torch.allclose(q.grad, p.grad, rtol=0, atol=1e-12), name
        for (name, b), c in zip(plain.named_buffers(), stacked.buffers(), strict=True):
            assert torch.allclose(c, b, rtol=1e-12, atol=1e-12), name


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("affine", "track"), [(True, True), (False, True), (False, False)])
@pytest.mark.parametrize("space", [SPACE, PRUNED], ids=["whole", "pruned"])
def test_compiled_equals_plain_evaluation(
    space: NasBench201, affine: bool, track: bool, training: bool
) -> None:
    network = supernet(space, affine=affine, track=track)
    reference = copy.deepcopy(network).eval()
    network.train(training)
    before, x = buffers(network), images(35)  # more than a chunk
    for weights in all_weights(space):
        with torch.no_grad():
            expected = reference.plain(x, weights)
        assert torch.allclose(network.compiled(weights)(x), expected, rtol=0, atol=1e-12)
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(("affine", "track"), [(True, True), (False, True), (False, False)])
def test_compiled_with_batch_statistics_equals_plain_training(
    affine: bool, track: bool, training: bool
) -> None:
    """The same logits as in training mode, and no buffer is touched."""
    network = supernet(affine=affine, track=track)
    network.train(training)
    before, x = buffers(network), images(35)  # more than a chunk
    for weights in all_weights(SPACE):
        with torch.no_grad():
            expected = copy.deepcopy(network).train().plain(x, weights)
        assert torch.allclose(
            network.compiled(weights, batch_statistics=True)(x), expected, rtol=0, atol=1e-12
        )
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())


def test_single_precision() -> None:
    network, x = supernet().float().eval(), images(40).float()
    for weights in all_weights(SPACE):
        with torch.no_grad():
            expected = network.plain(x, weights)
        difference = (network.compiled(weights)(x) - expected).abs().max()
        assert difference <= 2e-6 * max(1.0, expected.abs().max())


def alone(network: NasBench201Supernet, genotype: tuple[int, ...]) -> NasBench201Network:
    """The stand-alone network of an architecture with the supernet's weights."""
    built = SPACE.network(genotype).double()
    for name in ("stem", "reductions", "last_norm", "classifier"):
        getattr(built, name).load_state_dict(getattr(network, name).state_dict())
    cells = [module for module in built.modules() if isinstance(module, Cell)]
    mixed = [cell for stage in network.stages for cell in stage]
    with torch.no_grad():
        for cell, mixed_cell in zip(cells, mixed, strict=True):
            for edge, module in cell.edges.items():
                if isinstance(module, nn.Sequential):
                    source = EDGES[int(edge)][0]
                    convolutions = mixed_cell.convolution(module[1].kernel_size[0], source)
                    module[1].weight.copy_(convolutions.kernels[edge])
                    module[2].weight.copy_(convolutions.weights[edge])
                    module[2].bias.copy_(convolutions.biases[edge])
                    module[2].running_mean.copy_(convolutions.running_mean[convolutions.rows(int(edge))])
                    module[2].running_var.copy_(convolutions.running_var[convolutions.rows(int(edge))])
    return built


@pytest.mark.parametrize("genotype", [*HARD, *SPACE.sample(np.random.default_rng(3), 6)])
def test_a_hard_choice_is_the_network_of_the_architecture(genotype: tuple[int, ...]) -> None:
    network, x = supernet(affine=True), images()
    (weights,) = mixing_weights(SPACE, [genotype], "hard")
    with torch.no_grad():
        expected = alone(network, genotype).eval()(x)
        assert torch.allclose(network.compiled(weights)(x), expected, rtol=0, atol=1e-12)
        expected = alone(network, genotype).train()(x)
        assert torch.allclose(network.train().plain(x, weights), expected, rtol=0, atol=1e-12)


def test_a_cell_by_hand() -> None:
    """x goes to node 1 with weight 1/2 and from there, pooled, to the output with weight 3; skip adds 2 x."""
    weights = np.zeros((6, 5))
    weights[0, 1], weights[4, 4], weights[3, 1] = 0.5, 3.0, 2.0
    cell = supernet().stages[0][0]
    x = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    x[..., 0, 0] = 4.0  # the mean of the four pixels is 1
    expected = torch.full_like(x, 1.5) + 2 * x
    with torch.no_grad():
        assert torch.equal(cell.plain(x, weights), expected)
        assert torch.equal(cell(x, weights, False), expected)
        assert torch.equal(cell.folded(weights)(x), expected)


def test_an_empty_node_gives_a_constant_under_running_statistics() -> None:
    """Node 1 is empty and its 3x3 convolution leads to the output: (0 - mean) / sqrt(var + eps)."""
    network = supernet()
    cell = network.stages[0][0]
    convolutions = cell.convolution(3, 1)
    rows = convolutions.rows(4)
    weights = np.zeros((6, 5))
    weights[4, 3] = 1.0
    x = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    constant = -convolutions.running_mean[rows] / (convolutions.running_var[rows] + 1e-5).sqrt()
    assert constant.abs().min() > 1e-3
    expected = constant.view(1, 3, 1, 1).expand_as(x)
    with torch.no_grad():
        assert torch.allclose(cell.folded(weights)(x), expected, rtol=0, atol=1e-12)
        assert torch.allclose(cell.eval().plain(x, weights), expected, rtol=0, atol=1e-12)
        assert torch.equal(cell(x, weights, False), torch.zeros_like(x))  # with the batch's statistics


def test_pruned_operations_do_not_exist() -> None:
    names = {name for name, _ in PRUNED.supernet(affine=False, track_running_stats=True).named_parameters()}
    first = {name.removeprefix("stages.0.0.convolutions.") for name in names if "stages.0.0" in name}
    assert first == {
        f"{kernel}x{kernel}_from_{source}.kernels.{edge}"
        for kernel, source, edge in [
            (3, 0, 0),
            (3, 1, 2),
            (3, 0, 3),
            (3, 1, 4),
            (1, 0, 1),
            (1, 0, 3),
            (1, 1, 4),
        ]
    }


@pytest.mark.parametrize("method", ["plain", "forward", "compiled"])
def test_weights_are_checked(method: str) -> None:
    network = PRUNED.supernet(affine=False, track_running_stats=True)
    call = getattr(network, method)
    arguments = () if method == "compiled" else (images().float(),)
    wrong = np.zeros((6, 5))
    wrong[0, 1] = 0.5  # edge 0 allows 0 and 3 only
    for weights in (wrong, np.zeros((5, 5))):
        with pytest.raises(ValueError, match=r"mixing weights must have shape \(6, 5\), 0 where"):
            call(*arguments, weights)


def test_what_leads_nowhere_is_not_trained() -> None:
    network = supernet().train()
    (weights,) = mixing_weights(SPACE, [(3, 2, 0, 1, 0, 0)], "hard")  # nodes 1 and 2 lead nowhere
    before = buffers(network)
    network(images(), weights).sum().backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert not any("from" in name for name in trained)
    assert "stem.0.weight" in trained
    changed = {name for name, b in network.named_buffers() if not torch.equal(b, before[name])}
    assert not any("from" in name for name in changed)


def test_bfloat16_autocast() -> None:
    network, x = supernet().float().train(), images().float()
    for weights in all_weights(SPACE)[:4]:
        expected = copy.deepcopy(network).plain(x, weights)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(x, weights)
        F.cross_entropy(logits.float(), torch.arange(6) % 5).backward()
        assert torch.allclose(logits.float(), expected, rtol=0.1, atol=0.2)
