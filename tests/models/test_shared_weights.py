from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import nn

from hwnas.data.images import Images
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.training.recipe import SupernetRecipe
from hwnas.training.shared_weights import (
    Judges,
    SharedWeights,
    complexities,
    inherit,
    mixing_weights,
    mixture,
)

SPACE = NasBench201(2, 1, image_shape=(1, 8, 8))
POPULATION = [(3, 1, 2, 0, 4, 3), (1,) * 6, (2, 3, 0, 1, 1, 1)]


def digits(**settings: Any) -> Images:
    settings = {"crop": 1, "valid_fraction": 0.5, **settings}
    return Images("digits", source="digits", image_shape=[1, 8, 8], num_classes=10, **settings)


def shared(
    space: NasBench201 = SPACE,
    seed: int = 0,
    num_epochs: int = 4,
    crop: int = 1,
    cutout: int = 0,
    **recipe: Any,
) -> SharedWeights:
    return SharedWeights(
        space,
        digits(crop=crop, cutout=cutout),
        SupernetRecipe(**{"sampling": "random_alpha", "batch_size": 256, **recipe}),
        num_epochs=num_epochs,
        affine=False,
        track_running_stats=True,
        decoding="soft",
        seed=seed,
        scored=lambda: SCORED,
    )


def test_decoded_weights_by_hand() -> None:
    """e / (e + K - 1) for the chosen of K operations, 1 / (e + K - 1) for each other."""
    (weights,) = mixing_weights(SPACE, [(0, 1, 2, 3, 4, 0)], "soft")
    expected = np.full((6, 5), 0.14885)
    expected[range(6), [0, 1, 2, 3, 4, 0]] = 0.40461
    assert weights == pytest.approx(expected, abs=5e-6)
    assert mixing_weights(SPACE, [(0, 1, 2, 3, 4, 0)], "hard")[0].sum() == 6


def test_decoded_weights_of_fewer_operations() -> None:
    pruned = SPACE.restrict([(0, 1, 3), (2, 4), (4,), *[(0, 1, 2, 3, 4)] * 3])
    (weights,) = mixing_weights(pruned, [(3, 2, 4, 0, 0, 0)], "soft")
    assert weights[0] == pytest.approx([0.21194, 0.21194, 0, 0.57612, 0], abs=5e-6)
    assert weights[1] == pytest.approx([0, 0, 0.73106, 0, 0.26894], abs=5e-6)
    assert weights[2].tolist() == [0, 0, 0, 0, 1]


def test_mixtures_are_softmaxes_over_what_is_allowed() -> None:
    pruned = SPACE.restrict([(0, 1), (1, 2, 3), *[(0, 1, 2, 3, 4)] * 4])
    alphas = np.full((2, 6, 5), 1e4)  # no overflow, and pruned operations do not count
    alphas[:, :, 0] -= np.log(3)
    weights = mixture(pruned, alphas)
    assert weights.sum(axis=2) == pytest.approx(np.ones((2, 6)))
    assert weights[0, 0] == pytest.approx([0.25, 0.75, 0, 0, 0])
    assert weights[1, 1] == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0])


@pytest.mark.parametrize(
    ("epoch", "lr"), [(0, 0.025), (10, 0.0227082), (25, 0.013), (40, 0.0032918), (50, 0.001), (70, 0.001)]
)
def test_the_cosine(epoch: int, lr: float) -> None:
    assert SupernetRecipe("single_path").lr_at(epoch, 50) == pytest.approx(lr, abs=1e-7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"sampling": "all"},
            "sampling must be one of random_alpha, population, population_alpha, single_path, not 'all'",
        ),
        ({"lr": 0}, "lr must be a number above 0, not 0"),
        ({"lr_min": 0.1}, r"lr_min must be at most lr \(0.025\), not 0.1"),
        ({"batch_size": 1}, "batch_size must be a whole number of at least 2, not 1"),
        ({"alpha_scale": -1}, "alpha_scale must be a number above 0"),
        ({"nesterov": 1}, "nesterov must be true or false, not 1"),
        ({"grad_clip": 0}, "grad_clip must be a number above 0"),
        ({"power": 0.5}, "power must be a number of at least 1, not 0.5"),
        (
            {"schedule": "complexity", "sampling": "random_alpha"},
            "schedule=complexity needs sampling=single_path: .* not one of sampling=random_alpha",
        ),
        (
            {"importance": "both", "sampling": "population"},
            "importance=both needs sampling=single_path, not sampling=population",
        ),
        ({"importance": "images", "devices": 2}, "importance=images needs devices=1, not 2"),
        (
            {"ranking_weight": 2, "sampling": "random_alpha"},
            "ranking_weight=2 needs sampling=single_path, not random_alpha",
        ),
        ({"ranking_weight": 2, "importance": "images"}, "ranking_weight=2 needs importance=none, not images"),
        ({"ranking_weight": 0.5, "devices": 2}, "ranking_weight=0.5 needs devices=1, not 2"),
    ],
)
def test_recipes_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SupernetRecipe(**{"sampling": "single_path", **settings})


@pytest.mark.parametrize(
    ("complexity", "lr"),
    # Half-way: 1/2 to the power of 3, 1/3 and 5/3, of 0.09 above 0.01.
    [(0.0, 0.02125), (1.0, 0.0814331), (0.5, 0.0383482)],
)
def test_the_schedule_of_a_complexity(complexity: float, lr: float) -> None:
    recipe = SupernetRecipe("single_path", lr=0.1, lr_min=0.01, schedule="complexity", power=3)
    assert recipe.lr_at(2, 4, complexity) == pytest.approx(lr, abs=1e-7)
    assert recipe.lr_at(0, 4, complexity) == pytest.approx(0.1)
    assert recipe.lr_at(5, 4, complexity) == 0.01


def test_complexities_by_hand() -> None:
    """1296 parameters without convolutions, 112 more per 1x1 and 784 per 3x3."""
    cells = [(0, 1, 4, 0, 1, 1), (2,) * 6, (3,) * 6]
    expected = [0, np.log(1968 / 1296) / np.log(6000 / 1296), 1]
    assert complexities(SPACE, cells) == pytest.approx(expected)
    pruned = SPACE.restrict([(2,), *[(1, 3)] * 5])  # 1408 to 5328
    expected = [0, np.log(2192 / 1408) / np.log(5328 / 1408)]
    assert complexities(pruned, [(2, 1, 1, 1, 1, 1), (2, 3, 1, 1, 1, 1)]) == pytest.approx(expected)
    assert complexities(SPACE.restrict([(3,)] * 6), [(3,) * 6]).tolist() == [0.0]


def test_each_step_has_the_learning_rate_of_its_architecture() -> None:
    weights = shared(sampling="single_path", schedule="complexity")
    rates: list[float] = []
    weights.optimizer.register_step_pre_hook(lambda sgd, *_: rates.append(sgd.param_groups[0]["lr"]))
    figures = weights.train_epoch(2)
    paths = SPACE.sample(np.random.default_rng([0, 2]), 2)
    kappas = [3 - 8 / 3 * complexity for complexity in complexities(SPACE, paths)]
    assert kappas[0] != kappas[1]
    assert rates == pytest.approx([0.001 + 0.024 * 0.5**kappa for kappa in kappas])
    assert figures["lr"] == rates[-1]


def test_operations_are_drawn_by_their_probabilities() -> None:
    pruned = SPACE.restrict([(0, 1), (3,), *[(0, 1, 2, 3, 4)] * 4])
    weights = shared(pruned, sampling="single_path", importance="operations", batch_size=2)
    assert weights._importance is not None
    weights._importance.operations = np.array([0.0, 0.2, 0.3, 0.5, 0.0])
    paths = np.array(weights._paths(1))
    assert paths.shape == (359, 6)
    assert set(paths[:, 0]) == {1}
    assert set(paths[:, 1]) == {3}
    counts = np.bincount(paths[:, 2:].ravel(), minlength=5) / (4 * 359)
    assert counts == pytest.approx([0, 0.2, 0.3, 0.5, 0], abs=0.05)
    assert weights._paths(1) == weights._paths(1) != weights._paths(2)


def test_importance_by_hand() -> None:
    """After an epoch of one step: half uniform, half in proportion to norms of gradients."""
    weights = doubled(shared(seed=5, crop=0, batch_size=512, grad_clip=None, **IMPORTANCE))
    net = copy.deepcopy(weights.supernet)
    (path,) = weights._paths(2)
    weights.train_epoch(2)
    x, y = weights._batches.x, weights._batches.y
    rows = weights._batches.rows
    assert rows is not None
    logits = net.plain((x[rows] - weights._mean) / weights._std, mixing_weights(SPACE, [path], "hard")[0])
    F.cross_entropy(logits, y[rows]).backward()
    norms = np.zeros(5)
    for name, parameter in net.named_parameters():
        if parameter.grad is not None and ".kernels." in name:
            op = {"1x1": 2, "3x3": 3}[name.split("_from")[0].rpartition(".")[2]]
            norms[op] += parameter.grad.norm().item() / path.count(op)
    assert (norms > 0).sum() == 2
    assert weights._importance is not None
    expected = 0.1 + 0.5 * norms / norms.sum()
    assert weights._importance.operations == pytest.approx(expected, rel=1e-6)  # kept in float32
    images = np.zeros(719)
    wrong = logits.detach().softmax(1)
    wrong[range(512), y[rows]] -= 1
    images[rows] = wrong.square().sum(1).sqrt()
    expected = 0.5 / 719 + 0.5 * images / images.sum()
    assert weights._importance.images == pytest.approx(expected, rel=1e-6)


def test_the_weight_of_the_ranking_loss_by_hand() -> None:
    recipe = SupernetRecipe("single_path", ranking_weight=2)
    weights = [recipe.ranking_weight_at(epoch, 16) for epoch in (0, 5, 10, 16, 20)]
    assert weights == pytest.approx(
        [0, 2**0.5, 2, 1.1755705, 1.1755705]
    )  # sines of 0, 45, 90 and 144 degrees


def test_pairs_that_are_compared() -> None:
    weights = shared(batch_size=2, **RANKING)
    pairs = weights._pairs(1)
    assert pairs.shape == (359, 2)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    assert np.bincount(pairs.ravel()) / 718 == pytest.approx([0.25] * 4, abs=0.05)
    assert np.array_equal(pairs, shared(batch_size=2, **RANKING)._pairs(1))
    assert not np.array_equal(pairs, weights._pairs(2))
    assert weights._paths(1)[:2] == [SCORED[0][row] for row in pairs[0]]


def test_the_ranking_loss_by_hand() -> None:
    """Loss and gradient of every step: a better first one, a better second one, and equal scores."""
    weights = doubled(shared(crop=0, batch_size=16, **RANKING))
    genotypes, scores = SCORED
    weights._start(2, ())
    seen, weighed = set(), set()
    for step, (x, y) in enumerate(weights._batches):
        rows = sorted(weights._pairs(2)[step], key=lambda row: -scores[row])  # the better one first
        losses, grads = [], []
        for row in rows:
            net = copy.deepcopy(weights.supernet)
            mix = mixing_weights(SPACE, [genotypes[row]], "hard")[0]
            loss = F.cross_entropy(net.plain((x - weights._mean) / weights._std, mix), y)
            losses.append(loss.item())
            grads.append(torch.autograd.grad(loss, list(net.parameters()), materialize_grads=True))
        slope = 0.0
        if scores[rows[0]] > scores[rows[1]] and losses[0] - losses[1] + 0.1 > 0:
            slope = 2 * np.sin(0.4 * np.pi)
        found = weights.training_step((x, y), step)
        expected = sum(losses) + slope * (losses[0] - losses[1] + 0.1)
        assert found.item() == pytest.approx(expected, rel=1e-9)
        assert weights._figures[-1][0].item() == pytest.approx(sum(losses) / 2, rel=1e-9)
        ours = torch.autograd.grad(found, list(weights.supernet.parameters()), materialize_grads=True)
        for mine, better, worse in zip(ours, *grads, strict=True):
            assert torch.allclose(mine, (1 + slope) * better + (1 - slope) * worse, rtol=0, atol=1e-9)
        seen.add(weights._better[step])
        weighed.add(slope > 0)
    assert seen == {-1.0, 0.0, 1.0}
    assert weighed == {True, False}


def test_the_population_is_trained_in_turn() -> None:
    weights = list(shared(sampling="population", batch_size=100)._sampled(0, POPULATION))
    decoded = mixing_weights(SPACE, POPULATION, "soft")
    assert len(weights) == 7  # of 719 images
    assert all(np.array_equal(row, decoded[step % 3]) for step, row in enumerate(weights))


def test_random_alphas_and_single_paths() -> None:
    first, again, other = (np.stack(list(shared(batch_size=16)._sampled(epoch, ()))) for epoch in (0, 0, 1))
    assert first.shape == (44, 6, 5)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert first.min() > 1 / (1 + 4 * np.e)
    assert first.max() < np.e / (np.e + 4)
    assert first.std() > 0.03
    nearly = np.stack(list(shared(batch_size=16, alpha_scale=1e-3)._sampled(0, ())))
    assert nearly == pytest.approx(np.full((44, 6, 5), 0.2), abs=3e-4)
    assert nearly.std() > 0
    pruned = SPACE.restrict([(0, 1), (3,), *[(0, 1, 2, 3, 4)] * 4])
    paths = np.stack(list(shared(pruned, batch_size=16, sampling="single_path")._sampled(0, ())))
    assert set(np.unique(paths)) == {0.0, 1.0}
    assert (paths.sum(axis=2) == 1).all()
    assert paths[:, 0].mean(axis=0) == pytest.approx([0.5, 0.5, 0, 0, 0], abs=0.25)
    assert paths[:, 1].mean(axis=0).tolist() == [0, 0, 0, 1, 0]


def test_a_smaller_supernet_inherits() -> None:
    """All parameters of kept operations, so that these compute the same; running statistics start anew."""
    pruned = SPACE.restrict([(0, 3), (1, 2, 4), (3,), (2, 3), (1, 3, 4), (0, 1)])
    large = doubled(shared())
    large.train_epoch(0)
    small = doubled(shared(pruned, seed=1))
    assert inherit(small.supernet, large.supernet) == []
    x = torch.rand(5, 1, 8, 8, dtype=torch.float64)
    for weights in mixture(pruned, np.random.default_rng(0).random((3, 6, 5))):
        for batch_statistics in (True, False):
            a, b = (
                net.supernet.compiled(weights, batch_statistics=batch_statistics)(x) for net in (large, small)
            )
            assert torch.allclose(a, b, rtol=0, atol=1e-12) == batch_statistics
    fresh = pruned.supernet(affine=False, track_running_stats=True)
    assert all(
        torch.equal(buffer, other)
        for buffer, other in zip(small.supernet.buffers(), fresh.buffers(), strict=True)
    )
    assert set(inherit(large.supernet, small.supernet)) == {
        name
        for name, _ in large.supernet.named_parameters()
        if name not in dict(small.supernet.named_parameters())
    }


COMPLEXITY = {"sampling": "single_path", "schedule": "complexity"}
IMPORTANCE = {"sampling": "single_path", "importance": "both"}
RANKING = {"sampling": "single_path", "ranking_weight": 2.0, "ranking_margin": 0.1}
SCORED = [(3,) * 6, (1, 2, 1, 3, 1, 2), (2,) * 6, (4, 1, 4, 1, 4, 3)], np.array([1.0, 3.0, 2.0, 2.0])


@pytest.mark.parametrize(
    "recipe",
    [
        *({"sampling": name} for name in ("random_alpha", "population", "single_path")),
        COMPLEXITY,
        IMPORTANCE,
        RANKING,
    ],
    ids=lambda recipe: "-".join(map(str, recipe.values())),
)
def test_an_epoch_depends_on_nothing_but_its_number_and_the_state(recipe: dict[str, Any]) -> None:
    whole = shared(**recipe)
    figures = [whole.train_epoch(epoch, POPULATION) for epoch in range(2)]
    state = copy.deepcopy(whole.state())
    figures.append(whole.train_epoch(2, POPULATION))
    if recipe is not COMPLEXITY:
        assert [f["lr"] for f in figures] == pytest.approx([0.025, 0.0214853, 0.013], abs=1e-7)

    torch.manual_seed(99)
    resumed = shared(**recipe)
    resumed.load(state)
    assert resumed.train_epoch(2, POPULATION) == figures[2]
    for name, tensor in whole.supernet.state_dict().items():
        assert torch.equal(resumed.supernet.state_dict()[name], tensor), name
    other = shared(seed=1, **recipe)
    other.load(state)
    assert other.train_epoch(2, POPULATION)["loss"] != figures[2]["loss"]


def test_training_learns() -> None:
    space = NasBench201(4, 1, image_shape=(1, 8, 8))
    weights = shared(space, sampling="population", batch_size=32, lr=0.1)
    judge = {"judges": Judges(300, 100, None), "decoding": "soft"}
    population = [(3,) * 6]
    before = weights.accuracies(population, batch_statistics=True, **judge)
    losses = [weights.train_epoch(epoch, population)["loss"] for epoch in range(4)]
    assert losses[-1] < losses[0]
    (after,) = weights.accuracies(population, batch_statistics=True, **judge)
    assert after > max(0.4, before[0])


def test_accuracies_do_not_depend_on_the_company() -> None:
    weights = doubled(shared())
    weights.train_epoch(0)
    before = {name: tensor.clone() for name, tensor in weights.supernet.state_dict().items()}
    for decoding in ("soft", "hard"):
        for batch_statistics in (True, False):
            judge = {
                "judges": Judges(None, 256, 3),
                "batch_statistics": batch_statistics,
                "decoding": decoding,
            }
            together = weights.accuracies(POPULATION, **judge)
            assert together == [weights.accuracies([g], **judge)[0] for g in POPULATION]
    assert all(torch.equal(before[name], t) for name, t in weights.supernet.state_dict().items())
    plain = weights.supernet.eval()
    x, y = digits().split("valid")
    (row,) = mixing_weights(SPACE, POPULATION[:1], "soft")
    with torch.no_grad():
        logits = plain.plain((x - weights._mean) / weights._std, row)
    expected = (logits.argmax(1) == y).double().mean().item()
    judge |= {"decoding": "soft", "judges": Judges(None, 256, None)}
    assert weights.accuracies(POPULATION[:1], **judge) == pytest.approx([expected], rel=1e-9)


def test_what_is_cut_out_is_0_in_training_and_where_validation_images_are_augmented() -> None:
    weights = shared(cutout=20, crop=0)
    assert all((weights._normalised(x) == 0).double().mean() > 0.5 for x, _ in weights._batches)
    ((x, _),) = weights._validation(Judges(None, 1000, 1))
    assert (x == 0).double().mean() > 0.5
    ((x, _),) = weights._validation(Judges(None, 1000, None))
    assert (x != 0).all()


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(
        ValueError, match=r"loss became (nan|inf) in step \d of epoch 1 at a learning rate of 1e\+30"
    ):
        shared(lr=1e30, grad_clip=None).train_epoch(0)


def test_too_few_images() -> None:
    with pytest.raises(ValueError, match="batch_size=720 is more than the 719 training"):
        shared(batch_size=720)


def test_a_lightning_trainer_ends_with_the_same_weights(tmp_path: Path) -> None:
    ours, theirs = shared(num_epochs=2), shared(num_epochs=2)
    for epoch in range(2):
        ours.train_epoch(epoch)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about loaders and of its own dependencies
        trainer = pl.Trainer(
            max_epochs=2,
            gradient_clip_val=ours.recipe.grad_clip,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=tmp_path,
        )
        trainer.fit(theirs)
    expected = ours.supernet.state_dict()
    for name, tensor in theirs.supernet.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def doubled(weights: SharedWeights) -> SharedWeights:
    """In float64: rounding of float32 grows from 1e-7 to 1e-1 in fifteen steps, elsewhere on every processor.

    A pixel within rounding of a ReLU's corner is on or off, and BatchNorm divides channels of next to no
    variance by sqrt(eps).
    """
    weights.double()
    weights._mean, weights._std = weights._mean.double(), weights._std.double()
    weights._batches.x = weights._batches.x.double()
    return weights


def by_hand(
    ours: SharedWeights, epochs: range, momenta: dict[str, torch.Tensor], population: Any = ()
) -> nn.Module:
    """Plain training on two devices: each has every other image of a shuffle; `momenta` are updated."""
    recipe = ours.recipe
    x, y = ours._batches.x, ours._batches.y
    mean, std = ours._mean, ours._std
    net = copy.deepcopy(ours.supernet).train()
    for epoch in epochs:
        lr = recipe.lr_at(epoch, 4)
        order = torch.randperm(719, generator=torch.Generator().manual_seed(epoch))
        for step, mix in enumerate(ours._sampled(epoch, population)):
            second = copy.deepcopy(net)
            for rank, device in enumerate((net, second)):
                rows = order[rank::2][step * 64 : (step + 1) * 64]
                device.zero_grad()
                F.cross_entropy(device.plain((x[rows] - mean) / std, mix), y[rows]).backward()
            grads = {
                name: (p.grad + q.grad) / 2
                for (name, p), q in zip(net.named_parameters(), second.parameters(), strict=True)
                if p.grad is not None
            }
            norm = torch.cat([grad.flatten() for grad in grads.values()]).norm()
            with torch.no_grad():
                for name, p in net.named_parameters():
                    if name in grads:
                        grad = grads[name] * min(1, 1 / (norm + 1e-6)) + 3e-4 * p
                        momenta[name] = 0.9 * momenta[name] + grad if name in momenta else grad
                        p -= lr * (grad + 0.9 * momenta[name])
    return net


@pytest.mark.parametrize("sampling", ["random_alpha", "single_path", "population"])
def test_two_devices_average_their_gradients(sampling: str) -> None:
    ours = doubled(shared(crop=0, sampling=sampling, batch_size=64, devices=2, grad_clip=1.0, lr=0.1))
    population = POPULATION if sampling == "population" else ()
    momenta: dict[str, torch.Tensor] = {}
    named = dict(ours.supernet.named_parameters())
    start = {name: p.detach().clone() for name, p in named.items()}
    for epochs in (range(1), range(1, 3)):
        expected = by_hand(ours, epochs, momenta, population)
        figures = ours.train_epochs(epochs[0], len(epochs), population)
        for name, tensor in expected.state_dict().items():
            assert torch.allclose(ours.supernet.state_dict()[name], tensor, rtol=0, atol=1e-12), name
        stored = ours.state()["momenta"]
        found = {name: stored[index] for index, name in enumerate(named) if index in stored}
        assert found.keys() == momenta.keys()
        assert all(torch.allclose(found[name], momenta[name], rtol=0, atol=1e-12) for name in found)
        unused = [name for name in named if name not in momenta]
        assert all(torch.equal(named[name], start[name]) for name in unused)
        if epochs[0] == 0:
            assert bool(unused) == (sampling == "single_path")
    assert figures["lr"] == pytest.approx(0.0505)
