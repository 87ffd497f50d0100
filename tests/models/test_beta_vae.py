from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hwnas.data.images import Images
from hwnas.files import write_torch
from hwnas.pruning.beta_vae import (
    BetaVAE,
    BetaVAERecipe,
    BetaVAESettings,
    BetaVAETraining,
    Deployed,
    accuracy,
    codes,
    divergence,
    identity_of,
    load,
    reconstruction_loss,
    train,
)
from hwnas.training.checkpoint import Session

SMALL = BetaVAESettings(
    channels=[4, 8],
    hidden=16,
    latent=3,
    norm=False,
    likelihood="bernoulli",
    noise=True,
    beta=1.0,
    gamma=10.0,
    capacity=None,
    capacity_epochs=2,
)
TRAINING = BetaVAERecipe(epochs=3, batch_size=64, lr=1e-3, weight_decay=0.0, precision="32")


@pytest.fixture(scope="module")
def digits() -> Images:
    return Images(
        "digits", source="digits", image_shape=[1, 8, 8], num_classes=10, valid_fraction=0.2, crop=1
    )


def network(settings: BetaVAESettings = SMALL, shape: tuple[int, ...] = (1, 8, 8)) -> BetaVAE:
    torch.manual_seed(0)
    return settings.network(shape, 10)


def test_kl_of_known_normals() -> None:
    assert divergence(torch.zeros(2, 3), torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
    # (mean^2 + variance - ln variance - 1) / 2
    known = divergence(torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, math.log(4.0)]]))
    assert known[0].tolist() == pytest.approx([2.0, (4 - math.log(4) - 1) / 2])
    p = torch.distributions.Normal(0.3, 0.7)
    there = torch.distributions.kl_divergence(p, torch.distributions.Normal(0.0, 1.0))
    here = divergence(torch.tensor([[0.3]]), torch.tensor([[2 * math.log(0.7)]]))
    assert here.item() == pytest.approx(there.item(), rel=1e-6)


def test_reconstruction_is_summed_over_pixels_and_averaged_over_images() -> None:
    decoded, x = torch.zeros(2, 1, 2, 2), torch.full((2, 1, 2, 2), 0.5)
    assert reconstruction_loss(decoded, x, "bernoulli").item() == pytest.approx(4 * math.log(2))
    assert reconstruction_loss(decoded, x, "gaussian").item() == pytest.approx(4 * 0.25)


def test_the_loss_is_the_weighted_sum() -> None:
    settings = replace(SMALL, beta=4.0, gamma=7.0)
    module = BetaVAETraining(network(settings), TRAINING, steps_per_epoch=5, seed=0)
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    loss = module.training_step((x, y), 0).item()
    total, recon, kl, cross_entropy, _ = module.sums[0].tolist()
    assert loss == total == pytest.approx(recon + 4 * kl + 7 * cross_entropy, rel=1e-6)


def test_capacity_leads_the_kl() -> None:
    settings = replace(SMALL, beta=2.0, gamma=0.0, capacity=10.0, capacity_epochs=2)
    x, y = torch.rand(6, 1, 8, 8), torch.arange(6)
    for first_epoch, capacity in ((0, 0.0), (1, 5.0), (2, 10.0), (9, 10.0)):
        module = BetaVAETraining(
            network(settings), TRAINING, steps_per_epoch=5, seed=0, first_epoch=first_epoch
        )
        loss = module.training_step((x, y), 0).item()
        _, recon, kl, _, _ = module.sums[0].tolist()
        assert loss == pytest.approx(recon + 2 * abs(kl - capacity), rel=1e-5)


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_elbo_rises_while_training(digits: Images, tmp_path: Path, likelihood: str) -> None:
    history = train(
        network(replace(SMALL, likelihood=likelihood)),
        digits.batches("train", batch_size=64, seed=0),
        replace(TRAINING, epochs=5, lr=3e-3),
        Session(tmp_path),
        seed=0,
    )
    negative_elbo = [row["reconstruction"] + row["kl"] for row in history]
    assert negative_elbo[-1] < 0.8 * negative_elbo[0]
    assert negative_elbo == sorted(negative_elbo, reverse=True)
    assert history[-1]["loss"] == pytest.approx(
        negative_elbo[-1] + 10 * history[-1]["cross_entropy"], rel=1e-4
    )


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 9, 11), (3, 5, 6)])
def test_the_decoder_mirrors_the_encoder(shape: tuple[int, ...]) -> None:
    for norm in (False, True):
        net = network(replace(SMALL, norm=norm), shape)
        x = torch.rand(4, *shape)
        mean, log_variance, decoded, logits = net(x)
        assert log_variance is not None
        assert decoded is not None
        assert (mean.shape, log_variance.shape, logits.shape) == ((4, 3), (4, 3), (4, 10))
        assert decoded.shape == x.shape
        pixels = net.eval().pixels(mean)
        assert 0 <= pixels.min() <= pixels.max() <= 1


def test_the_variants_of_the_two_data_sets() -> None:
    from omegaconf import OmegaConf

    from hwnas.build import build, conf_folder

    shapes = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32)}
    maps = {"mnist": (64, 7, 7), "cifar10": (256, 2, 2)}
    for name, shape in shapes.items():
        settings = build(OmegaConf.load(conf_folder() / "model" / f"beta_vae_{name}.yaml"))
        net = settings.network(shape, 10)
        assert net.deployed.map_shape == maps[name]
        assert net(torch.rand(2, *shape))[2].shape == (2, *shape)


def test_what_is_deployed_classifies_the_mean() -> None:
    net = network().eval()
    x = torch.rand(5, 1, 8, 8)
    mean, log_variance, _, logits = net(x)
    assert torch.equal(net.deployed(x), net.deployed.classifier(mean))
    assert not torch.equal(logits, net.deployed(x))  # of a sample
    means, variances = codes(net, x)
    assert torch.equal(means, mean)
    assert torch.equal(variances, log_variance)


def test_controls_have_no_decoder_and_no_noise() -> None:
    bottleneck = network(replace(SMALL, likelihood="none"))
    assert bottleneck.decoder is None
    assert bottleneck.log_variance is not None
    assert bottleneck.settings.kind == "bottleneck"
    classifier = network(replace(SMALL, likelihood="none", noise=False, beta=0.0))
    assert classifier.settings.kind == "classifier"
    x = torch.rand(3, 1, 8, 8)
    mean, log_variance, decoded, logits = classifier(x)
    assert log_variance is decoded is None
    assert torch.equal(logits, classifier.deployed(x))
    with pytest.raises(ValueError, match="without a decoder reconstructs nothing"):
        classifier.pixels(mean)


def test_a_training_goes_on_where_it_stopped(digits: Images, tmp_path: Path) -> None:
    """Weights, optimiser, noise and shuffles are those of a training that was never interrupted."""

    def run(epochs: int, identity: dict[str, object] | None) -> tuple[BetaVAE, list[dict[str, float]]]:
        net = network()
        told: list[str] = []
        history = train(
            net,
            digits.batches("train", batch_size=64, seed=1),
            replace(TRAINING, epochs=epochs),
            Session(tmp_path, identity, announce=told.append),
            seed=1,
        )
        assert told == (["resuming after epoch 2"] if epochs == 3 and identity else [])
        return net, history

    whole, history = run(3, None)
    run(2, {"name": "it"})
    resumed, again = run(3, {"name": "it"})
    assert again == history
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name])
    with pytest.raises(ValueError, match=r"checkpoint\.pt is of another training"):
        train(
            network(),
            digits.batches("train", batch_size=64),
            TRAINING,
            Session(tmp_path, {"name": "another"}),
            seed=1,
        )


def test_mixed_precision_trains(digits: Images, tmp_path: Path) -> None:
    figures = {}
    for precision in ("32", "bf16"):
        net = network(replace(SMALL, beta=0.1, gamma=100.0, latent=8))
        training = replace(TRAINING, precision=precision, epochs=8, lr=1e-2)
        batches = digits.batches("train", batch_size=64)
        figures[precision] = train(net, batches, training, Session(tmp_path), seed=0)[-1]
        x, y = digits.split("test")
        assert accuracy(net.deployed, x, y) > 0.5
    assert figures["32"] != figures["bf16"]
    assert figures["32"]["loss"] == pytest.approx(figures["bf16"]["loss"], rel=0.2)


def test_a_loss_that_is_not_finite_stops(digits: Images, tmp_path: Path) -> None:
    batches = digits.batches("train", batch_size=64)
    with pytest.raises(ValueError, match="the loss became nan in step"):
        train(network(), batches, replace(TRAINING, lr=1e30), Session(tmp_path), seed=0)


def test_identity_tells_trainings_apart(digits: Images) -> None:
    first = identity_of(SMALL, TRAINING, digits, 0, "train")
    assert first == identity_of(replace(SMALL), TRAINING, digits, 0, "train")
    for other in (
        identity_of(replace(SMALL, beta=2.0), TRAINING, digits, 0, "train"),
        identity_of(SMALL, replace(TRAINING, lr=2e-3), digits, 0, "train"),
        identity_of(SMALL, TRAINING, digits, 1, "train"),
    ):
        assert other != first


def test_loading_another_networks_weights(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    net = network()
    write_torch(path, {"network": net.state_dict()})
    other = network()
    with torch.no_grad():
        other.deployed.mean.weight.zero_()
    load(other, path)
    assert torch.equal(other.deployed.mean.weight, net.deployed.mean.weight)
    with pytest.raises(
        ValueError, match=r"its deployed\.hidden\.weight has shape \(16, 32\), the model's \(20, 32\)"
    ):
        load(network(replace(SMALL, hidden=20)), path)
    with pytest.raises(ValueError, match=r"the checkpoint has decoder\.5\.bias, the model has not"):
        load(network(replace(SMALL, norm=True)), path)
    with pytest.raises(ValueError, match=r"the checkpoint has decoder\.\S+, the model has not"):
        load(network(replace(SMALL, likelihood="none")), path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="is damaged or no checkpoint"):
        load(net, path)
    with pytest.raises(ValueError, match="there is no "):
        load(net, tmp_path / "nowhere.pt")
    write_torch(path, {"weights": {}})
    with pytest.raises(ValueError, match="no checkpoint of a Beta-VAE"):
        load(net, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"beta": -1}, "beta must be a number of at least 0, not -1"),
        ({"gamma": "much"}, "gamma must be a number of at least 0, not 'much'"),
        ({"latent": 0}, "latent must be a whole number of at least 1, not 0"),
        ({"hidden": 1.5}, "hidden must be a whole number"),
        (
            {"channels": []},
            r"channels must be a list of at least 1, each a whole number of at least 1, not \[\]",
        ),
        ({"channels": [0]}, r"channels must be a list .*, each a whole number of at least 1, not \[0\]"),
        ({"norm": 1}, "norm must be true or false, not 1"),
        ({"likelihood": "poisson"}, "likelihood must be one of bernoulli, gaussian, none, not 'poisson'"),
        ({"noise": False}, "beta must be 0 without noise: a code that is not sampled has no KL, not 1"),
        ({"gamma": 0, "likelihood": "none"}, "gamma must be above 0 where there is no decoder"),
        ({"capacity": 0}, "capacity must be a number above 0 or null, not 0"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(SMALL, **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number of at least 1, not 0"),
        ({"batch_size": 1}, "batch_size must be a whole number of at least 2, not 1"),
        ({"lr": 0}, "lr must be a number above 0, not 0"),
        ({"weight_decay": -0.1}, "weight_decay must be a number of at least 0, not -0.1"),
        ({"precision": 8}, "precision must be one of 32, bf16, fp16, auto, not 8"),
    ],
)
def test_wrong_training(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TRAINING, **changes)


def test_images_too_small_for_the_convolutions() -> None:
    with pytest.raises(
        ValueError, match=r"has 2 convolutions that halve images of 3x8 to nothing; give fewer"
    ):
        Deployed((1, 3, 8), [4, 8], 16, 3, 10, norm=False)
