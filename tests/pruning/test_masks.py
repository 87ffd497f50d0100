from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from hwnas.data.images import Images
from hwnas.pruning.beta_vae import BetaVAE, BetaVAERecipe, BetaVAESettings, Deployed, Steps, train
from hwnas.pruning.masks import (
    Pruning,
    apply,
    make_permanent,
    masks,
    scores,
    zeros,
)
from hwnas.training.checkpoint import Session

CRITERIA = ("l1", "random", "snip", "taylor")
STRUCTURES = ("weights", "filters")
SCOPES = ("global", "layer")
PRUNING = Pruning(
    sparsities=[0.0, 0.5],
    structure="weights",
    criterion="l1",
    scope="global",
    schedule="cubic",
    ramp_epochs=2,
    ramp_updates=4,
    finetune_epochs=1,
    lr=1e-3,
    num_images=100,
)
NUM_WEIGHTS = 4 * 16 + 8 * 4 * 16 + 16 * 32 + 3 * 16 + 10 * 3


def network(norm: bool = False) -> BetaVAE:
    torch.manual_seed(0)
    settings = BetaVAESettings([4, 8], 16, 3, norm, "bernoulli", True, 1.0, 10.0, None, 1)
    return settings.network((1, 8, 8), 10).eval()


def images() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(40, 1, 8, 8, generator=generator), torch.arange(40) % 10


def pruned(net: Deployed, pruning: Pruning, sparsity: float) -> list[str]:
    found, emptied = masks(net, pruning, scores(net, pruning, *images(), seed=0), sparsity)
    apply(net, found)
    return emptied


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("sparsity", [0.0, 0.5, 0.9])
def test_the_sparsity_is_the_share_of_zeros(criterion: str, sparsity: float) -> None:
    net = network().deployed
    with torch.no_grad():  # no layer is so much smaller than another that it would be emptied
        for layer in net.layers().values():
            layer.weight.copy_(torch.randn(layer.weight.shape))
    assert pruned(net, replace(PRUNING, criterion=criterion), sparsity) == []
    make_permanent(net)
    assert zeros(net) == (round(sparsity * NUM_WEIGHTS), NUM_WEIGHTS)
    counted = sum(int((layer.weight == 0).sum()) for layer in net.layers().values())
    assert counted == round(sparsity * NUM_WEIGHTS)


def test_l1_removes_the_smallest_weights() -> None:
    net = network().deployed
    before = torch.cat([layer.weight.detach().abs().flatten() for layer in net.layers().values()])
    pruned(net, PRUNING, 0.5)
    after = torch.cat([layer.weight.detach().abs().flatten() for layer in net.layers().values()])
    assert before[after == 0].max() <= before[after > 0].min()


def test_the_same_share_of_every_layer() -> None:
    net = network().deployed
    pruned(net, replace(PRUNING, scope="layer"), 0.5)
    for layer in net.layers().values():
        assert int((layer.weight == 0).sum()) == layer.weight.numel() // 2


def test_gradient_criteria_are_what_they_are_called() -> None:
    net = network().deployed.double()
    x, y = images()
    x = x.double()
    layers = net.layers()
    for structure in STRUCTURES:
        for criterion in ("snip", "taylor"):
            pruning = replace(PRUNING, criterion=criterion, structure=structure)
            found = scores(net, pruning, x, y, seed=0, batch_size=20)
            gradients = []
            for part in (slice(0, 20), slice(20, 40)):
                loss = F.cross_entropy(net(x[part]), y[part])
                (gradient,) = torch.autograd.grad(loss, [layers["hidden"].weight])
                gradients.append(gradient * layers["hidden"].weight.detach())
            a, b = gradients
            if criterion == "snip":  # of all images together; of a filter the mean over its weights
                expected = ((a + b) / 2).abs()
                expected = expected.mean(1) if structure == "filters" else expected
            elif structure == "weights":
                expected = (a.square() + b.square()) / 2
            else:
                expected = (a.sum(1).square() + b.sum(1).square()) / 2
            assert torch.allclose(found["hidden"], expected, rtol=1e-9, atol=1e-18)
            without = {"mean", "classifier"} if structure == "filters" else set()
            assert set(found) == set(layers) - without


def test_random_depends_on_the_seed_only() -> None:
    net = network().deployed
    pruning = replace(PRUNING, criterion="random")
    first, again, other = (scores(net, pruning, *images(), seed=seed) for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["hidden"], other["hidden"])


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scope", SCOPES)
def test_what_is_pruned_stays_pruned_as_the_sparsity_rises(
    structure: str, criterion: str, scope: str
) -> None:
    net = network(norm=True).deployed
    pruning = replace(PRUNING, structure=structure, criterion=criterion, scope=scope)
    gone: dict[str, torch.Tensor] = {}
    for sparsity in (0.3, 0.6, 0.8):
        pruned(net, pruning, sparsity)
        for name, layer in net.layers().items():
            now = layer.weight == 0
            assert name not in gone or bool(now[gone[name]].all())
            gone[name] = now


def test_filters_are_removed_whole_with_what_the_next_layer_makes_of_them() -> None:
    net = network().deployed
    pruned(net, replace(PRUNING, structure="filters", scope="layer"), 0.5)
    layers = net.layers()
    dead = {name: (layers[name].weight.flatten(1) == 0).all(1) for name in ("conv1", "conv2", "hidden")}
    assert [int(d.sum()) for d in dead.values()] == [2, 4, 8]
    assert bool((layers["conv2"].weight[:, dead["conv1"]] == 0).all())
    assert bool((layers["hidden"].weight.view(16, 8, 4)[:, dead["conv2"]] == 0).all())
    assert bool((layers["mean"].weight[:, dead["hidden"]] == 0).all())
    assert not bool((layers["classifier"].weight == 0).any())
    # The two smallest of four filters by L1 norm
    norms = network().deployed.layers()["conv1"].weight.abs().flatten(1).sum(1)
    assert sorted(norms.argsort()[:2].tolist()) == dead["conv1"].nonzero().flatten().tolist()
    # What is left: 2*16 + 4*2*16 + 8*16 + 3*8 + 30
    assert zeros(net) == (NUM_WEIGHTS - (32 + 128 + 128 + 24 + 30), NUM_WEIGHTS)


@pytest.mark.parametrize("structure", STRUCTURES)
def test_a_layer_keeps_at_least_one(structure: str) -> None:
    net = network().deployed
    with torch.no_grad():  # all of one layer is below everything else
        for name, layer in net.layers().items():
            layer.weight.copy_(torch.randn(layer.weight.shape) * (1e-6 if name == "hidden" else 1))
    emptied = pruned(net, replace(PRUNING, structure=structure), 0.6)
    assert emptied == ["hidden"]
    alive = (net.hidden.weight != 0).flatten(1)
    assert int(alive.any(1).sum()) == 1
    assert structure == "filters" or int(alive.sum()) == 1
    # 0.97 of 30 weights is 29; of 4, 8 and 16 filters it is all.
    everything = {"weights": [], "filters": ["conv1", "conv2", "hidden"]}[structure]
    assert (
        pruned(network().deployed, replace(PRUNING, structure=structure, scope="layer"), 0.97) == everything
    )


def test_cubic_schedule() -> None:
    # s (1 - (1 - t/4)^3) for t = 1..4 and s = 0.8, before steps 0, 5, 10 and 15 of 20; then 10 more steps
    rises, num_steps = PRUNING.plan(0.8, steps_per_epoch=10)
    assert rises == pytest.approx({0: 0.4625, 5: 0.7, 10: 0.7875, 15: 0.8})
    assert num_steps == 30
    assert replace(PRUNING, schedule="one_shot").plan(0.8, 10) == ({0: 0.8}, 10)
    assert replace(PRUNING, ramp_epochs=0.0).plan(0.8, 10) == ({0: 0.8}, 10)
    assert replace(PRUNING, ramp_epochs=0.2).plan(0.8, 10)[0] == pytest.approx({0: 0.7, 1: 0.8})


@pytest.mark.parametrize("structure", STRUCTURES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.5])
def test_masks_stay_zero_through_fine_tuning(tmp_path: Path, structure: str, weight_decay: float) -> None:
    digits = Images("digits", source="digits", image_shape=[1, 8, 8], num_classes=10)
    net = network(norm=True)
    pruning = replace(PRUNING, structure=structure, scope="layer")
    pruned(net.deployed, pruning, 0.5)
    gone = {name: layer.weight == 0 for name, layer in net.deployed.layers().items()}
    before = copy.deepcopy({name: layer.weight for name, layer in net.deployed.layers().items()})
    training = BetaVAERecipe(epochs=1, batch_size=100, lr=1e-2, weight_decay=weight_decay, precision="32")
    raised: list[int] = []

    def before_step(step: int) -> None:
        if step == 5:  # pruned further while the optimiser keeps its state
            pruned(net.deployed, pruning, 0.75)
            net.train()
            raised.append(step)

    train(
        net,
        digits.batches("train", batch_size=100),
        training,
        Session(tmp_path),
        seed=0,
        steps=Steps(before=before_step),
    )
    assert raised == [5]
    make_permanent(net.deployed)
    for name, layer in net.deployed.layers().items():
        assert bool((layer.weight[gone[name]] == 0).all())
        alive = layer.weight != 0
        assert not bool((layer.weight == before[name])[alive].any())  # what is left was trained
        assert structure == "filters" or int(alive.sum()) == layer.weight.numel() - round(
            0.75 * alive.numel()
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"sparsities": [0.5, 1.0]},
            r"sparsities must be a list .*, each a number of at least 0 and below 1, not \[0.5, 1.0\]",
        ),
        ({"sparsities": [-0.1]}, r"sparsities must be .* below 1, not \[-0.1\]"),
        ({"sparsities": []}, "sparsities must be a list of at least 1"),
        ({"sparsities": [0.5, 0.5]}, r"sparsities must rise, not \[0.5, 0.5\]"),
        ({"sparsities": ["half"]}, r"sparsities must be .* below 1, not \['half'\]"),
        ({"structure": "rows"}, "structure must be one of weights, filters, not 'rows'"),
        ({"criterion": "l2"}, "criterion must be one of l1, random, snip, taylor, not 'l2'"),
        ({"scope": "all"}, "scope must be one of global, layer, not 'all'"),
        ({"schedule": "linear"}, "schedule must be one of one_shot, cubic, not 'linear'"),
        ({"ramp_epochs": -1}, "ramp_epochs must be a number of at least 0, not -1"),
        ({"ramp_updates": 0}, "ramp_updates must be a whole number of at least 1, not 0"),
        ({"finetune_epochs": None}, "finetune_epochs must be a number of at least 0, not None"),
        ({"lr": 0}, "lr must be a number above 0, not 0"),
        ({"num_images": 1}, "num_images must be a whole number of at least 2, not 1"),
    ],
)
def test_wrong_pruning(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(PRUNING, **changes)
