"""Everything that computes on a GPU, right there: `make gpu`. Without one it runs on the processor, tiny."""

from __future__ import annotations

import copy
import importlib.util
import math
import multiprocessing
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import Rates

from hwnas.data.images import Images
from hwnas.devices.energy import counter
from hwnas.devices.measure import Settings, measure
from hwnas.evaluators.rmi import RMI
from hwnas.evaluators.table import Lookup
from hwnas.evaluators.train import Train
from hwnas.evaluators.zero_cost import NAMES, ZeroCost
from hwnas.pruning import beta_vae
from hwnas.spaces.darts import Darts
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.presets import architecture
from hwnas.training.checkpoint import Session
from hwnas.training.classifier import Classifier, accuracy, fit
from hwnas.training.final import train_network
from hwnas.training.recipe import CHECKPOINT, Recipe, SupernetRecipe
from hwnas.training.reference import reference_model
from hwnas.training.shared_weights import Judges, SharedWeights, mixing_weights, repeatable

pytestmark = pytest.mark.gpu
SPAWN = multiprocessing.get_context("spawn")
CELLS = [(3, 3, 3, 3, 3, 3), (2, 0, 4, 3, 1, 2)]


def cell_space(images: Images, case: str = "nasbench201") -> NasBench201 | Darts:
    shape: dict[str, Any] = {"image_shape": images.image_shape, "num_classes": 10}
    large = images.image_shape[1] == 32
    if case == "darts":
        return Darts(16, 8, **shape) if large else Darts(2, 3, **shape)
    return NasBench201(16, 5, **shape) if large else NasBench201(2, 1, **shape)


def batch_size(images: Images) -> int:
    return min(64, images.size("train") // 4)


def lookup(space: Any) -> Lookup:
    return Lookup(space, path=None, val_column=None, test_column=None, scale=1.0)


def shared(images: Images, case: str, **recipe: Any) -> SharedWeights:
    given = {"sampling": "single_path", "batch_size": batch_size(images), "lr": 0.05, **recipe}
    return SharedWeights(
        cell_space(images, case), images, SupernetRecipe(**given), num_epochs=3,
        affine=False, track_running_stats=True, decoding="hard", seed=0,
    )  # fmt: skip


def brief(images: Images, **settings: Any) -> Recipe:
    return Recipe(**{"epochs": 2, "batch_size": batch_size(images), "lr": 0.05, **settings})


def final(images: Images, case: str) -> torch.nn.Module:
    """A network as it is trained in the end."""
    if case == "nasbench201":
        return cell_space(images).network(CELLS[0])
    shape: dict[str, Any] = {"image_shape": images.image_shape, "num_classes": 10}
    space = Darts(36, 20, **shape) if images.image_shape[1] == 32 else Darts(2, 3, **shape)
    return space.network(architecture(space, "evnas_a"))


def train_classifier(
    images: Images, folder: Path, recipe: Recipe, network: torch.nn.Module | None = None, **session: Any
) -> Classifier:
    torch.manual_seed(0)
    network = final(images, "nasbench201") if network is None else network
    return fit(network, images, recipe, Session(folder, **session), part="train", seed=0)


@pytest.mark.parametrize("case", ["nasbench201", "darts"])
@pytest.mark.parametrize("decoding", ["soft", "hard"])
def test_a_supernet_computes_the_plain_way(
    images: Images, accelerator: torch.device, case: str, decoding: str
) -> None:
    """Its outputs, gradients and evaluation are those of every operation by itself, in float32."""
    space = cell_space(images, case)
    torch.manual_seed(0)
    network = space.supernet(affine=False, track_running_stats=True).to(accelerator)
    x, y = images.split("train")
    x, y = x[: batch_size(images)].to(accelerator), y[: batch_size(images)].to(accelerator)
    weights = mixing_weights(space, space.sample(np.random.default_rng(0), 1), decoding)[0]
    gradients = []
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        network.train()
        for forward in (network.plain, network):
            network.zero_grad()
            loss = F.cross_entropy(forward(x, weights), y)
            loss.backward()
            gradients.append(
                [loss.detach(), *(p.grad.clone() for p in network.parameters() if p.grad is not None)]
            )
        for plain, ours in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, plain, rtol=1e-2, atol=1e-3)
        network.eval()
        with torch.no_grad():
            plain = network.plain(x, weights)
        ours = network.compiled(weights, batch_statistics=False)(x)
        torch.testing.assert_close(ours, plain, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("case", ["nasbench201", "darts"])
@pytest.mark.parametrize("sampling", ["random_alpha", "single_path"])
def test_a_supernet_learns(images: Images, accelerator: torch.device, case: str, sampling: str) -> None:
    """With bfloat16 on a GPU; its state is that of another object that goes on."""
    weights = shared(images, case, sampling=sampling, autocast=True)
    assert weights.device.type == accelerator.type
    with repeatable():
        figures = [weights.train_epoch(epoch) for epoch in range(2)]
        assert all(math.isfinite(row["loss"]) for row in figures)
        resumed = shared(images, case, sampling=sampling, autocast=True)
        resumed.load(weights.state())
        again, there = resumed.train_epoch(2), weights.train_epoch(2)
    assert again["loss"] == pytest.approx(there["loss"], rel=1e-3)
    judges = Judges(num=None, batch_size=100, transform_seed=None)
    genotypes = weights.space.sample(np.random.default_rng(0), 2)
    for decoding in ("soft", "hard"):
        found = weights.accuracies(genotypes, judges, batch_statistics=True, decoding=decoding)
        assert all(0 <= value <= 1 for value in found)


def test_rmi(images: Images, accelerator: torch.device, tmp_path: Path) -> None:
    """A group's scores are those of its networks one by one."""
    space = cell_space(images)
    rmi = make_rmi(images, tmp_path, space, group_size=2)
    assert rmi._device.type == accelerator.type
    together = rmi.evaluate(CELLS)
    alone = [rmi.evaluate([genotype])[0] for genotype in CELLS]
    for a, b in zip(together, alone, strict=True):
        assert 0 < a["rmi"] <= 3
        assert a["rmi"] == pytest.approx(b["rmi"], abs=0.05)


def make_rmi(images: Images, folder: Path, space: Any, **settings: Any) -> RMI:
    given: dict[str, Any] = {
        "channels": 2, "num_cells": 1, "batch_size": 8, "batch_choice": "random", "steps": 2, "lr": 0.1,
        "momentum": 0.9, "weight_decay": 5e-4, "beta": 0.8, "flops_weight": 0, "repeats": 1, "seed": 0,
        "group_size": 64, "reference": Recipe(epochs=0), "lookup": lookup(space),
    }  # fmt: skip
    rmi = RMI(space, images, folder, lambda text: None, lambda text: None, **{**given, **settings})
    rmi.prepare(space, [])
    return rmi


@pytest.mark.parametrize("case", ["nasbench201", "darts", "fbnet"])
def test_zero_cost(images: Images, accelerator: torch.device, tmp_path: Path, case: str) -> None:
    """All scores, of networks together and of each by itself, which are the same to six digits."""
    space: Any = cell_space(images, case)
    if case == "fbnet":
        space = FBNet(channels=4, image_shape=images.image_shape, num_classes=10)
    genotypes = space.sample(np.random.default_rng(1), 8)
    genotypes = [g for g, whole in zip(genotypes, space.is_connected(genotypes), strict=True) if whole][:2]
    scores = [name for name in NAMES if case != "fbnet" or name in ("jacov", "synflow", "zico", "params")]
    zero_cost = make_zero_cost(images, tmp_path, space, scores=scores)
    assert zero_cost._device.type == accelerator.type
    together = zero_cost.evaluate(genotypes)
    for genotype, row in zip(genotypes, together, strict=True):
        assert zero_cost.evaluate([genotype])[0] == pytest.approx(row, rel=1e-2, abs=1e-2)


def make_zero_cost(images: Images, folder: Path, space: Any, **settings: Any) -> ZeroCost:
    given: dict[str, Any] = {
        "channels": 4, "num_cells": "fewest", "image_size": None, "batch_size": 8, "seed": 0,
        "group_size": 32, "num_reference": 0, "lookup": lookup(space), "scores": ["jacov", "params"],
    }  # fmt: skip
    zero_cost = ZeroCost(space, images, folder, lambda text: None, **{**given, **settings})
    zero_cost.prepare(space, [])
    return zero_cost


def test_train_with_rungs(images: Images, accelerator: torch.device, tmp_path: Path) -> None:
    """A training that stops resumes with its losses, of which some were on the GPU before."""
    space = cell_space(images)
    train = Train(
        space, images, tmp_path, lambda text: None, lambda text: None,
        channels=None, num_cells=None, training=brief(images, epochs=3), seed=0, rungs=[2, 6], eta=2,
        lookup=lookup(space),
    )  # fmt: skip
    genotypes = space.sample(np.random.default_rng(0), 2)
    for rung in train.rungs:
        rung.prepare(space, genotypes)
        assert all(0 <= value <= 1 for row in rung.evaluate(genotypes) for value in row.values())


def precisions(accelerator: torch.device) -> Sequence[str]:
    return ("32", "bf16", "fp16") if accelerator.type == "cuda" else ("32", "bf16")


def test_final_training(images: Images, accelerator: torch.device, tmp_path: Path) -> None:
    """In each precision, with augmentation, averaged weights, drop-path and an auxiliary classifier."""
    large = images.image_shape[1] == 32
    space = Darts(16 if large else 4, 3, image_shape=images.image_shape, num_classes=10, auxiliary=True)
    (genotype,) = space.sample(np.random.default_rng(0), 1)
    for precision in precisions(accelerator):
        recipe = brief(
            images, precision=precision, auxiliary_weight=0.4, drop_path=0.2, mixup=0.2, cutmix=1.0, ema=0.2,
            shift=0.1, rotate=10.0, colour=0.2,
        )  # fmt: skip
        said: list[str] = []
        session = Session(tmp_path / precision, {"precision": precision}, warn=said.append)
        figures = train_network(space, genotype, images, recipe, session, seed=0)
        assert 0 <= figures["test_acc"] <= 1
        assert (tmp_path / precision / "architecture.json").is_file()


def test_reference(images: Images, accelerator: torch.device, tmp_path: Path) -> None:
    module = reference_model(images, brief(images, max_steps=4), Session(tmp_path), seed=0)
    assert {p.device.type for p in module.parameters()} == {"cpu"}
    again = reference_model(images, brief(images, max_steps=4), Session(tmp_path), seed=0)
    assert accuracy(again, images, "valid") == accuracy(module, images, "valid")


def test_beta_vae(images: Images, accelerator: torch.device, tmp_path: Path) -> None:
    settings = beta_vae.BetaVAESettings(
        channels=[4, 8], hidden=16, latent=3, norm=True, likelihood="bernoulli", noise=True, beta=1.0,
        gamma=10.0, capacity=None, capacity_epochs=2,
    )  # fmt: skip
    for precision in precisions(accelerator):
        torch.manual_seed(0)
        recipe = beta_vae.BetaVAERecipe(
            epochs=6, batch_size=batch_size(images), lr=3e-3, weight_decay=0.0, precision=precision
        )
        batches = images.batches("train", batch_size=recipe.batch_size, seed=0)
        network = settings.network(images.image_shape, 10)
        history = beta_vae.train(network, batches, recipe, Session(tmp_path), seed=0)
        assert history[-1]["loss"] < history[0]["loss"]


def test_a_profile_and_its_energy(images: Images, accelerator: torch.device) -> None:
    """By CUDA events, and with NVML's counter if its package is there."""
    provider = accelerator.type
    space = NasBench201(4, 1, image_shape=images.image_shape, num_classes=10)
    settings = Settings.of(
        backend="torch", provider=provider, threads=1, batch_size=8, rounds=3, networks=20, check=5,
        noise=10.0, seed=0,
    )  # fmt: skip
    profile = measure(space, settings, device="here", say=lambda text: None)
    assert profile.predict(space, "latency_ms", CELLS[:1])[0] > 0
    source = counter("cuda")
    if accelerator.type != "cuda" or importlib.util.find_spec("pynvml") is None:
        assert source is None
        return
    assert source is not None
    before, x = source.read(), torch.randn(4096, 4096, device=accelerator)
    while source.read() <= before:  # the counter moves every 20 to 100 ms
        x = torch.tanh(x @ x)


def test_several_devices(images: Images, accelerator: torch.device, tmp_path: Path) -> None:
    """All GPUs there are, at least one, or two processes; a classifier and a supernet by DDP."""
    cuda = accelerator.type == "cuda"
    num, strategy = (torch.cuda.device_count(), "ddp_spawn") if cuda else (2, "ddp_fork")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        size = batch_size(images) // 2
        recipe = brief(images, devices=num, strategy=strategy, batch_size=size)
        module = train_classifier(images, tmp_path, recipe, identity={"a": 1})
        assert [row["epoch"] for row in module.history] == [1, 2]
        weights = shared(images, "nasbench201", devices=num, strategy=strategy, batch_size=size)
        figures = weights.train_epochs(0, 2)
        assert math.isfinite(figures["loss"])
    finally:
        torch.set_num_threads(threads)


def train_until_killed(images: Images, folder: Path) -> None:
    """Train, and kill this process in the third epoch."""

    def kill(figures: dict[str, float]) -> None:
        if figures["epoch"] == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    train_classifier(images, folder, brief(images, epochs=4), identity={"a": 1}, on_epoch=kill)


def test_a_training_resumes_after_a_kill(images: Images, accelerator: torch.device, tmp_path: Path) -> None:
    whole = train_classifier(images, tmp_path / "whole", brief(images, epochs=4), identity={"a": 1})
    process = SPAWN.Process(target=train_until_killed, args=(copy.copy(images), tmp_path / "killed"))
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "killed" / CHECKPOINT).is_file()
    said: list[str] = []
    resumed = train_classifier(
        images, tmp_path / "killed", brief(images, epochs=4), identity={"a": 1}, announce=said.append
    )
    assert said == ["resuming after epoch 2"]
    for mine, theirs in zip(resumed.history, whole.history, strict=True):
        assert mine == pytest.approx(theirs, rel=0.2 if accelerator.type == "cuda" else 1e-5)


class TestRates:
    """Beside a plain implementation in the same run."""

    @pytest.mark.parametrize("case", ["nasbench201", "darts"])
    @pytest.mark.parametrize("sampling", ["random_alpha", "single_path"])
    def test_supernet(self, images: Images, rates: Rates, case: str, sampling: str) -> None:
        """Training, and evaluation of architectures; the plain way computes each operation by itself."""
        weights, ours = self._trained(images, rates, case, sampling=sampling)
        with repeatable():
            plain = self._plain_training(weights, rates)
        soft = sampling == "random_alpha"
        name = f"{case}: supernet training, {sampling}"
        rates.add(name, "images/s", ours, plain)
        others: list[dict[str, Any]] = [{"autocast": False}, {"execution": "plain"}]
        for chosen in [{"graphs": not weights.execution.graphs}, *others] if soft else others[1:]:
            _, other = self._trained(images, rates, case, sampling=sampling, **chosen)
            (setting,) = (f"{key}={str(value).lower()}" for key, value in chosen.items())
            rate = f"{case}: training" if setting == "autocast=false" else ""  # as published
            rates.add(f"{name}, {setting}", "images/s", other, plain, rate=rate, per_second=other)
        decoding = "hard" if sampling == "single_path" else "soft"
        judges = Judges(num=None, batch_size=min(1000, images.size("valid")), transform_seed=None)
        genotypes = weights.space.sample(np.random.default_rng(0), 4)

        def evaluate() -> None:
            weights.accuracies(genotypes, judges, batch_statistics=False, decoding=decoding)

        def evaluate_plainly() -> None:
            with torch.no_grad():
                for mixture in mixing_weights(weights.space, genotypes[:1], decoding):
                    for x, _ in weights._validation(judges):
                        weights.supernet.plain(x, mixture)

        evaluate()
        name = f"{case}: evaluation of an architecture, {decoding}, {images.size('valid')} images"
        ours = rates.seconds(evaluate) / len(genotypes)
        rate = f"{case}: evaluation" if soft else ""
        per_image = ours / images.size("valid")
        rates.add(name, "s", ours, rates.seconds(evaluate_plainly), rate=rate, per_second=per_image)

    def _trained(self, images: Images, rates: Rates, case: str, **recipe: Any) -> tuple[SharedWeights, float]:
        """Shared weights after two epochs, and images per second in the second one."""
        weights = shared(images, case, **recipe)
        with repeatable():
            weights.train_epoch(0)
            seconds = rates.seconds(lambda: weights.train_epoch(1))
        assert not weights.not_recorded, f"no CUDA graph: {weights.not_recorded}"
        return weights, len(weights._batches) * weights.recipe.batch_size / seconds

    def _plain_training(self, weights: SharedWeights, rates: Rates) -> float:
        """Images per second of some steps."""
        weights._start(2, ())
        batches = [batch for batch, _ in zip(weights._batches, range(4), strict=False)]
        optimizer = torch.optim.SGD(weights.supernet.parameters(), lr=0.01, momentum=0.9)

        def steps(chosen: slice) -> None:
            for (x, y), mixture in zip(batches[chosen], weights._mixtures[chosen], strict=True):
                loss = F.cross_entropy(weights.supernet.plain(weights._normalised(x), mixture), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

        steps(slice(1))
        rest = slice(1, len(batches))
        return sum(len(y) for _, y in batches[rest]) / rates.seconds(lambda: steps(rest))

    @pytest.mark.parametrize("kind", ["rmi", "zero_cost"])
    def test_scores(self, images: Images, rates: Rates, tmp_path: Path, kind: str) -> None:
        """Of candidates in groups; the plain way takes them one by one."""
        space = cell_space(images)
        large = images.image_shape[1] == 32
        if kind == "rmi":
            large_size = {"channels": 16, "num_cells": 5, "batch_size": 32, "steps": 150}  # published
            evaluator: Any = make_rmi(images, tmp_path, space, **(large_size if large else {}))
        else:
            evaluator = make_zero_cost(images, tmp_path, space, **({"batch_size": 32} if large else {}))
        genotypes = space.sample(
            np.random.default_rng(0), {"rmi": 64, "zero_cost": 1000}[kind] if large else 8
        )
        few = genotypes[:4]
        evaluator.evaluate(few[:2])
        ours = 60 * len(genotypes) / rates.seconds(lambda: evaluator.evaluate(genotypes))
        plain = rates.seconds(lambda: [evaluator.evaluate([genotype]) for genotype in few])
        rate = "nasbench201: rmi" if kind == "rmi" else ""
        name = f"nasbench201: {kind}"
        rates.add(name, "candidates/min", ours, 60 * len(few) / plain, rate=rate, per_second=ours / 60)

    @pytest.mark.parametrize("case", ["nasbench201", "darts"])
    def test_final_training(
        self, images: Images, accelerator: torch.device, rates: Rates, tmp_path: Path, case: str
    ) -> None:
        """The plain way is a loop of torch over images that are on the device already, without a Trainer.

        Of DARTS' space EvNAS-A, in the size of the papers.
        """
        size, epochs = batch_size(images), 3
        for precision in precisions(accelerator) if case == "nasbench201" else ("bf16",):
            seconds = [
                rates.seconds(
                    lambda num=num, precision=precision: train_classifier(
                        images,
                        tmp_path,
                        brief(images, epochs=num, precision=precision),
                        network=final(images, case),
                    )
                )
                for num in (1, 1, epochs)  # the first one warms up
            ]
            steps = images.size("train") // size
            ours = (epochs - 1) * steps * size / max(seconds[2] - seconds[1], 1e-9)
            plain = self._plain_images_per_second(images, accelerator, rates, precision, final(images, case))
            rate = f"{case}: final training" if case == "darts" else ""
            name = f"{case}: final training, {precision}"
            rates.add(name, "images/s", ours, plain, rate=rate, per_second=ours)

    def _plain_images_per_second(
        self, images: Images, device: torch.device, rates: Rates, precision: str, network: torch.nn.Module
    ) -> float:
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16}
        network = network.to(device, memory_format=torch.channels_last).train()
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")
        x, y = (tensor.to(device) for tensor in images.split("train"))
        size = batch_size(images)

        def train() -> None:
            for part, labels in zip(x.split(size), y.split(size), strict=True):
                with torch.autocast(device.type, kinds.get(precision), enabled=precision in kinds):
                    logits = network(part.contiguous(memory_format=torch.channels_last))
                loss = F.cross_entropy(logits.float(), labels)
                optimizer.zero_grad()
                scaler.scale(loss).backward()
                scaler.step(optimizer)
                scaler.update()

        train()
        return len(x) / rates.seconds(train)
