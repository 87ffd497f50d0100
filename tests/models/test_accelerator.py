"""Trainings on GPUs, as far as a machine without one can tell."""

from __future__ import annotations

import contextlib
import pickle
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from hwnas.data.images import Images, augment
from hwnas.evaluators.rmi import centred_gram, similarities
from hwnas.evaluators.scores import Data, measure
from hwnas.spaces import blocks
from hwnas.spaces.blocks import Population
from hwnas.spaces.darts import Darts
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.training.accelerator import accelerator, lightning_precision
from hwnas.training.checkpoint import InOrder, Session
from hwnas.training.classifier import Classifier, _precision, fit
from hwnas.training.lightning import Devices
from hwnas.training.recipe import Recipe
from hwnas.training.shared_weights import mixing_weights

SHAPE = (1, 8, 8)
SPACE = NasBench201(2, 1, image_shape=SHAPE)
CASES = [
    pytest.param(SPACE, "soft", id="nasbench201-soft"),
    pytest.param(SPACE, "hard", id="nasbench201-hard"),
    pytest.param(Darts(2, 3, image_shape=SHAPE), "hard", id="darts-hard"),
    pytest.param(Darts(2, 3, image_shape=SHAPE), "soft", id="darts-soft"),
]

FORWARD = ("naswot", "swap", "az_expressivity", "az_progressivity")


@pytest.fixture
def no_cached_tensors() -> Iterator[None]:
    """None of others in the test, and none of the test in others."""
    for cached in (blocks._ones, blocks._per_pixel):
        cached.cache_clear()
    yield
    for cached in (blocks._ones, blocks._per_pixel):
        cached.cache_clear()


@pytest.mark.parametrize("there", [True, False])
def test_processes_on_gpus_start_anew_and_others_fork(monkeypatch: pytest.MonkeyPatch, there: bool) -> None:
    """CUDA does not survive a fork."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert accelerator().type == ("cuda" if there else "cpu")
    assert Devices(2).lightning() == ("ddp_spawn" if there else "ddp_fork")
    assert Devices(2, unused=True).lightning().startswith("ddp_spawn_find" if there else "ddp_fork_find")
    assert Devices(2, "ddp_fork").lightning() == "ddp_fork"
    assert Devices(1).lightning() == "auto"


@pytest.mark.parametrize(("instruction", "expected"), [(None, "32-true"), ("avx512_bf16", "bf16-mixed")])
def test_precision_follows_the_processor(
    monkeypatch: pytest.MonkeyPatch, instruction: str | None, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("avx512_bf16", "amx_tile"):
        has = name == instruction
        monkeypatch.setattr(torch.cpu, f"_is_{name}_supported", lambda has=has: has, raising=False)
    assert lightning_precision("auto") == expected
    assert lightning_precision(32) == "32-true"
    assert lightning_precision("fp16") == "16-mixed"


def test_strides_larger_than_the_features_are_trained_in_32_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their gradients are garbage in bfloat16 on processors; 8 pixels are halved to 1, and once more."""
    digits = Images("digits", source="digits", image_shape=[1, 8, 8], num_classes=10, crop=1)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    for halvings, expected in ((3, "bf16-mixed"), (4, "32-true")):
        layers = [torch.nn.Conv2d(1, 1, 3, stride=2, padding=1) for _ in range(halvings)]
        network = torch.nn.Sequential(*layers, torch.nn.Flatten(), torch.nn.Linear(1, 10))
        assert _precision(network, digits, Recipe(epochs=1, precision="auto")) == expected
        assert _precision(network, digits, Recipe(epochs=1, precision="32")) == "32-true"
    with pytest.raises(ValueError, match="precision=bf16 gives this network wrong gradients"):
        _precision(network, digits, Recipe(epochs=1, precision="bf16"))


def test_a_process_that_starts_anew_gets_all_that_it_trains(tmp_path: Path) -> None:
    """Also where the figures of an epoch go to what cannot be sent, e.g. an open file."""
    digits = Images("digits", source="digits", image_shape=[1, 8, 8], num_classes=10, crop=1)
    log = (tmp_path / "log").open("w")
    network = SPACE.network((3,) * 6)
    recipe = Recipe(epochs=1, ema=0.5)
    module = Classifier(
        network, *digits.normalisation(), recipe, 10, on_epoch=lambda figures: print(figures, file=log)
    )
    batches = InOrder(digits.batches("train", batch_size=64, seed=0), module)
    sent, order = pickle.loads(pickle.dumps((module, batches)))
    log.close()
    assert order.module is sent
    for (x, y), (there_x, there_y) in zip(batches, order, strict=True):
        assert torch.equal(x, there_x)
        assert torch.equal(y, there_y)
    for name, tensor in module.state_dict().items():
        assert torch.equal(sent.state_dict()[name], tensor), name
    sent._on_epoch({"loss": 1.0})  # tells nobody


@pytest.mark.parametrize(("space", "decoding"), CASES)
@pytest.mark.usefixtures("no_cached_tensors")
def test_a_supernet_on_a_gpu_needs_nothing_of_the_processor(
    space: NasBench201 | Darts, decoding: str
) -> None:
    """Tensors of a GPU that have no content: an operation of tensors of two devices is an error."""
    weights = mixing_weights(space, space.sample(np.random.default_rng(0), 1), decoding)[0]
    with FakeTensorMode():
        with torch.device("cuda"):
            network = space.supernet(affine=False, track_running_stats=True)
            x = torch.randn(4, *SHAPE)
        with pytest.raises(RuntimeError, match=r"two (different )?devices,? cuda:0"):
            x + torch.randn(4, *SHAPE)
        network.train()
        assert network(x, weights).device.type == "cuda"
        if decoding == "soft":
            numbers = torch.randn(weights.shape, device="cuda")
            assert network(x, weights, numbers).device.type == "cuda"
        network.eval()
        for batch_statistics in (True, False):
            assert network.compiled(weights, batch_statistics=batch_statistics)(x).device.type == "cuda"


@pytest.mark.usefixtures("no_cached_tensors")
def test_scores_on_a_gpu_need_nothing_of_the_processor() -> None:
    """Those without gradients, of two networks together; they end on the processor."""
    genotypes, initial = [(3, 3, 3, 3, 3, 3), (2, 0, 4, 3, 1, 2)], SPACE.initial_weights(0)
    with FakeTensorMode():
        x, noise = torch.randn(16, *SHAPE, device="cuda"), torch.randn(1, *SHAPE, device="cuda")
        y = torch.zeros(16, dtype=torch.long, device="cuda")
        weights = {name: torch.empty(weight.shape, device="cuda") for name, weight in initial.items()}

        def make(change: Callable[[torch.Tensor], torch.Tensor]) -> Population:
            return SPACE.population(genotypes, {name: change(weight) for name, weight in weights.items()})

        found = measure(FORWARD, make, Data([(x, y), (x, y)], noise, seed=0))
        assert {name: (score.device.type, len(score)) for name, score in found.items()} == dict.fromkeys(
            FORWARD, ("cpu", 2)
        )


@pytest.mark.usefixtures("no_cached_tensors")
def test_candidates_on_a_gpu_need_nothing_of_the_processor() -> None:
    """RMI: a step of two networks together, with tensors without content, which whoever reads is an error."""
    genotypes, initial = [(3, 3, 3, 3, 3, 3), (2, 0, 4, 3, 1, 2)], SPACE.initial_weights(0)
    weights = {name: torch.empty(weight.shape, device="meta") for name, weight in initial.items()}
    population = SPACE.population(genotypes, weights)
    optimizer = torch.optim.SGD(population.parameters(), lr=0.1, momentum=0.9)
    taps, logits = population.features(torch.randn(4, *SHAPE, device="meta"))
    grams = [centred_gram(torch.randn(4, 1, 2, 4, 4, device="meta"))[0][0] for _ in taps]
    (logits.sum() - similarities(taps, grams).sum()).backward()
    optimizer.step()
    assert similarities(taps, grams).device.type == "meta"


@pytest.mark.parametrize(("space", "decoding"), CASES)
@pytest.mark.usefixtures("no_cached_tensors")
def test_a_training_step_does_not_wait_for_the_gpu(
    space: NasBench201 | Darts, decoding: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors without content: whoever reads one, e.g. a loss, is an error."""
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())  # knows no such tensors
    weights = mixing_weights(space, space.sample(np.random.default_rng(0), 1), decoding)[0]
    network = space.supernet(affine=False, track_running_stats=True).to("meta").train()
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    x, y = torch.randn(4, *SHAPE, device="meta"), torch.zeros(4, dtype=torch.long, device="meta")
    digits = Images("digits", source="digits", image_shape=[1, 8, 8], num_classes=10, crop=1, cutout=2)
    x = augment(x, digits, torch.Generator().manual_seed(0))
    numbers = torch.randn(weights.shape, device="meta") if decoding == "soft" else None
    loss = F.cross_entropy(network(x, weights, numbers), y)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
    optimizer.step()
    with pytest.raises(RuntimeError, match="meta tensors"):
        loss.item()


@pytest.mark.slow
@pytest.mark.usefixtures("one_thread")
def test_classifiers_of_processes_that_start_anew_have_the_same_weights(tmp_path: Path) -> None:
    digits = Images("digits", source="digits", image_shape=[1, 8, 8], num_classes=10, crop=1)
    found = []
    for strategy in ("ddp_fork", "ddp_spawn"):
        torch.manual_seed(0)
        recipe = Recipe(epochs=2, batch_size=128, lr=0.05, devices=2, strategy=strategy, ema=0.3)
        session = Session(tmp_path / strategy, {"a": 1}, on_epoch=lambda figures: None)
        module = fit(SPACE.network((3,) * 6), digits, recipe, session, part="train", seed=0)
        found.append((module.history, module.network.state_dict()))
    (history, forked), (same, anew) = found
    assert history == same
    for name, tensor in forked.items():
        assert torch.equal(anew[name], tensor), name
