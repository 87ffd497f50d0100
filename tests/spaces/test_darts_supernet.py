from __future__ import annotations

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hwnas.core import FloatArray
from hwnas.spaces.blocks import box_max
from hwnas.spaces.darts import Darts
from hwnas.spaces.darts import supernet as darts_supernet
from hwnas.spaces.darts.encoding import (
    AVG_POOL,
    CELL_EDGES,
    DIL_3X3,
    DIL_5X5,
    EDGES,
    MAX_POOL,
    NONE,
    OPS,
    SEP_3X3,
    SEP_5X5,
    SKIP,
)
from hwnas.spaces.darts.supernet import DartsSupernet, quarters, whole
from hwnas.training.shared_weights import inherit, mixing_weights, mixture

EVEN = Darts(2, 3, image_shape=(3, 8, 8), num_classes=5)
ODD = Darts(3, 4, image_shape=(2, 7, 9), num_classes=5)
KEEP = [(NONE, SKIP), (SEP_5X5,), (DIL_3X3, MAX_POOL), (AVG_POOL, SKIP, SEP_3X3), (NONE, DIL_5X5)]
PRUNED = EVEN.restrict([KEEP[edge % 5] for edge in range(28)])
SPACES = pytest.mark.parametrize("space", [EVEN, ODD, PRUNED], ids=["even", "odd", "pruned"])
TRACK = pytest.mark.parametrize("track", [True, False])


def supernet(space: Darts, *, track: bool = True) -> DartsSupernet:
    """In float64, with weights and buffers that are not those of the start."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = space.supernet(affine=False, track_running_stats=track).double()
        with torch.no_grad():
            for parameter in network.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
            for name, buffer in network.named_buffers():
                if name.endswith("running_mean"):
                    buffer += 0.3 * torch.randn_like(buffer)
                elif name.endswith("running_var"):
                    buffer *= 0.5 + torch.rand_like(buffer)
    return network


def images(space: Darts, num: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(num, *space.image_shape, generator=generator, dtype=torch.float64)


def all_weights(space: Darts) -> list[FloatArray]:
    """Soft, decoded and hard ones."""
    rng = np.random.default_rng(0)
    genotypes = space.sample(rng, 2)
    return [
        *mixture(space, rng.random((1, *space.alpha_shape))),
        *mixing_weights(space, genotypes[:1], "soft"),
        *mixing_weights(space, genotypes, "hard"),
    ]


def buffers(network: nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in network.named_buffers()}


def test_mixing_weights_are_the_published_ones() -> None:
    """EvNAS: e / (e + 7) and 1 / (e + 7) on kept edges, 1 / 8 elsewhere; pEvoNAS' spaces alike."""
    genotype = EVEN.sample(np.random.default_rng(0), 1)[0]
    weights = mixing_weights(EVEN, [genotype], "soft")[0]
    for edge, op in enumerate(genotype):
        expected = [0.125] * 8 if op == NONE else [0.27971 if k == op else 0.10290 for k in range(8)]
        assert weights[edge].tolist() == pytest.approx(expected, abs=5e-6)
    hard = mixing_weights(EVEN, [genotype], "hard")[0]
    assert hard[:14].sum() == hard[14:].sum() == 8
    assert all(hard[edge].sum() == (op != NONE) for edge, op in enumerate(genotype))

    pair = EVEN.restrict([(SKIP, SEP_3X3)] * 28)
    weights = mixing_weights(pair, [tuple(SKIP if op else 0 for op in genotype)], "soft")[0]
    assert weights[:, [SKIP, SEP_3X3]].sum(axis=1) == pytest.approx(np.ones(28))
    assert weights[:, SKIP].max() == pytest.approx(0.73106, abs=5e-6)


def test_all_operations_run_when_soft_and_eight_per_cell_when_hard() -> None:
    network = supernet(EVEN).eval()
    ran: list[str] = []
    for name, module in network.named_modules():
        parts = name.split(".")
        if len(parts) == 5 and parts[2] == "edges":
            module.register_forward_hook(lambda *_, name=name: ran.append(name))
    soft, hard = (
        mixing_weights(EVEN, EVEN.sample(np.random.default_rng(0), 1), d)[0] for d in ("soft", "hard")
    )
    network.plain(images(EVEN), soft)
    assert len(ran) == 3 * 14 * 7
    assert len(set(ran)) == len(ran)
    ran.clear()
    network.plain(images(EVEN), hard)
    chosen = [f".edges.{edge % 14}.{OPS[op]}" for edge, op in zip(*np.nonzero(hard), strict=True)]
    assert sorted(name[name.index(".edges") :] for name in ran) == sorted(chosen[:8] + 2 * chosen[8:])


def test_where_cells_reduce() -> None:
    for num_cells, reductions in ((8, [2, 5]), (20, [6, 13]), (3, [1, 2])):
        network = Darts(2, num_cells, image_shape=(3, 8, 8)).supernet(affine=False, track_running_stats=True)
        assert [index for index, cell in enumerate(network.cells) if cell.reduction] == reductions
    assert network.stem[0].weight.shape == (6, 3, 3, 3)  # 3 C channels
    assert network.classifier.in_features == 4 * 2 * 4


def test_norms_are_as_published() -> None:
    for track in (True, False):
        network = EVEN.supernet(affine=False, track_running_stats=track)
        norms = {name: m for name, m in network.named_modules() if isinstance(m, nn.BatchNorm2d)}
        assert norms.pop("stem.1").affine
        assert not any(norm.affine for norm in norms.values())
        assert all((norm.running_mean is not None) == track for norm in norms.values())
        # Per cell: two inputs; on every edge two pools, 2 x 2 separable and 2 dilated convolutions; in the
        # reduction cells also eight edges of stride 2 with FactorizedReduce
        assert len(norms) == 3 * (2 + 14 * 8) + 2 * 8


@pytest.mark.parametrize("space", [EVEN, ODD], ids=["even", "odd"])
def test_a_hard_choice_is_the_final_network(space: Darts) -> None:
    """Without pools, which BatchNorm follows in a supernet only."""
    network = supernet(space).train()
    allowed = space.restrict([(SKIP, SEP_3X3, SEP_5X5, DIL_3X3, DIL_5X5)] * len(EDGES))
    for genotype in allowed.sample(np.random.default_rng(1), 3):
        final = space.network(genotype).double().train()
        final.stem.load_state_dict(network.stem.state_dict())
        final.classifier.load_state_dict(network.classifier.state_dict())
        for mine, cell in zip(network.cells, final.cells, strict=True):
            ops = genotype[14:] if mine.reduction else genotype[:14]
            kept = [mine.edges[edge][OPS[op]] for edge, op in enumerate(ops) if op != NONE]
            assert cell.wiring == tuple(CELL_EDGES[edge] for edge, op in enumerate(ops) if op != NONE)
            for source, target in (
                (mine.preprocess_0, cell.preprocess_0),
                (mine.preprocess_1, cell.preprocess_1),
                (nn.ModuleList(kept), cell.edges),
            ):
                missing, unexpected = target.load_state_dict(source.state_dict(), strict=False)
                assert not unexpected
                assert all(name.endswith(("weight", "bias")) for name in missing)  # BatchNorm's: 1 and 0
        with torch.no_grad():
            expected = final(images(space))
            weights = mixing_weights(space, [genotype], "hard")[0]
            logits = copy.deepcopy(network).plain(images(space), weights)
        assert torch.allclose(logits, expected, rtol=0, atol=1e-12)


@TRACK
@SPACES
def test_stacked_training_equals_plain_training(space: Darts, track: bool) -> None:
    """Logits, gradients (and which parameters have none) and running statistics."""
    start = supernet(space, track=track).train()
    x, y = images(space), torch.arange(5)
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


@TRACK
@SPACES
def test_compiled_equals_plain_evaluation(space: Darts, track: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    network = supernet(space, track=track)
    reference = copy.deepcopy(network).eval()
    before, x = buffers(network), images(space)
    monkeypatch.setattr(darts_supernet, "IN_CACHE", 500)  # chunks of one and of several images
    for weights in all_weights(space):
        with torch.no_grad():
            expected = reference.plain(x, weights)
        assert torch.allclose(network.compiled(weights)(x), expected, rtol=0, atol=1e-12)
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())


@TRACK
@SPACES
def test_compiled_with_batch_statistics_equals_plain_training(space: Darts, track: bool) -> None:
    """The same logits as in training mode, and no buffer is touched."""
    network = supernet(space, track=track).eval()
    before, x = buffers(network), images(space)
    for weights in all_weights(space):
        with torch.no_grad():
            expected = copy.deepcopy(network).train().plain(x, weights)
        logits = network.compiled(weights, batch_statistics=True)(x)
        assert torch.allclose(logits, expected, rtol=0, atol=1e-12)
        assert not logits.requires_grad
    assert all(torch.equal(before[name], buffer) for name, buffer in network.named_buffers())


def test_no_operation_at_all_gives_the_classifiers_bias() -> None:
    network = supernet(EVEN)
    for logits in (
        network.train()(images(EVEN), np.zeros((28, 8))),
        network.compiled(np.zeros((28, 8)))(images(EVEN)),
        network.eval().plain(images(EVEN), np.zeros((28, 8))),
    ):
        assert torch.allclose(logits, network.classifier.bias.expand(5, -1), rtol=0, atol=1e-12)


def test_single_precision() -> None:
    network, x = supernet(EVEN).float().eval(), images(EVEN, 20).float()
    for weights in all_weights(EVEN):
        with torch.no_grad():
            expected = network.plain(x, weights)
        assert (network.compiled(weights)(x) - expected).abs().max() <= 1e-6 * max(1.0, expected.abs().max())


def test_autocast_does_not_change_a_training_step() -> None:
    network, x = supernet(EVEN).float().train(), images(EVEN).float()
    weights = all_weights(EVEN)[0]
    expected = copy.deepcopy(network)(x, weights)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network(x, weights), expected)


def test_weights_are_checked() -> None:
    network = supernet(PRUNED)
    for weights in (np.zeros((28, 7)), np.full((28, 8), 0.125)):
        with pytest.raises(ValueError, match=r"mixing weights must have shape \(28, 8\), 0 where"):
            network.plain(images(PRUNED), weights)
        with pytest.raises(ValueError, match="mixing weights must have shape"):
            network.compiled(weights)


def test_settings_are_checked() -> None:
    with pytest.raises(ValueError, match="affine must be false for search_space=darts"):
        EVEN.supernet(affine=True, track_running_stats=True)
    with pytest.raises(ValueError, match=r"needs search_space\.stem=cifar, not 'imagenet'"):
        Darts(image_shape=(3, 224, 224)).supernet(affine=False, track_running_stats=True)


def test_a_smaller_supernet_inherits_weights() -> None:
    """PEvoNAS: 8, 5, then 2 operations per edge; kept operations answer as before, buffers are fresh."""
    rng = np.random.default_rng(0)
    space, former = EVEN, supernet(EVEN)
    for size in (5, 2):
        alphas = rng.random(space.alpha_shape)
        keep = [
            sorted(ops, key=lambda op, row=row: -row[op])[:size]
            for ops, row in zip(space.choices, alphas, strict=True)
        ]
        space = space.restrict(keep)
        fresh = space.supernet(affine=False, track_running_stats=True).double()
        start = buffers(fresh)
        assert inherit(fresh, former) == []
        assert all(torch.equal(start[name], buffer) for name, buffer in fresh.named_buffers())
        for mine, theirs in zip(fresh.cells, former.cells, strict=True):
            x = torch.rand(4, 2 * (mine.channels // 2), 6, 6, dtype=torch.float64)
            for edge, theirs_edge in zip(mine.edges, theirs.edges, strict=True):
                for name, operation in edge.items():
                    expected = copy.deepcopy(theirs_edge[name]).train()(x)
                    assert torch.equal(copy.deepcopy(operation).train()(x), expected)
        # What both can mix comes out alike, from the stem to the classifier, with batch statistics.
        weights = mixture(space, rng.random(space.alpha_shape))
        x = images(EVEN)
        expected = former.compiled(weights, batch_statistics=True)(x)
        assert torch.allclose(fresh.compiled(weights, batch_statistics=True)(x), expected, rtol=0, atol=1e-12)
        former = fresh


@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (2, 3, 5, 7), (1, 4, 1, 2)])
def test_pixels_by_parity_and_back(shape: tuple[int, ...]) -> None:
    x = torch.rand(shape)
    y = quarters(x)
    assert torch.equal(whole(y, *shape[2:]), x)
    assert torch.equal(y[: shape[0]], x[:, :, ::2, ::2])


@pytest.mark.parametrize("shape", [(2, 3, 6, 8), (1, 2, 1, 5), (1, 1, 2, 2)])
def test_box_max(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    assert torch.equal(box_max(x), F.max_pool2d(x, 3, 1, 1))


MEMORY = """
import resource, torch, numpy as np
import torch.nn.functional as F
from hwnas.training.shared_weights import mixing_weights
from hwnas.spaces.darts import Darts
torch.set_num_threads(1)
space = Darts(16, 8)
network = space.supernet(affine=False, track_running_stats=True).train()
weights = mixing_weights(space, space.sample(np.random.default_rng(0), 1), "soft")[0]
for _ in range(2):
    F.cross_entropy(network(torch.randn(64, 3, 32, 32), weights), torch.arange(64) % 10).backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6)
"""


@pytest.mark.slow
def test_memory_of_a_training_step() -> None:
    """Published size, batch 64: less than 6 GB."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True)
    print(f"\npeak memory of training steps: {float(done.stdout):.2f} GB")
    assert float(done.stdout) < 6
