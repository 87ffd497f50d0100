from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas.data.augmentation import mixed
from hwnas.data.images import Images
from hwnas.spaces.darts import Darts
from hwnas.spaces.darts.encoding import PRESETS
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.training.checkpoint import Session
from hwnas.training.classifier import Classifier, accuracy, fit
from hwnas.training.recipe import CHECKPOINT, Recipe

SPACE = Darts(4, 3, image_shape=(1, 8, 8), num_classes=3, auxiliary=True)
GENOTYPE = SPACE.from_str(PRESETS["evnas_a"])
DARTS = {"schedule": "cosine", "auxiliary_weight": 0.4, "drop_path": 0.3, "nesterov": False, "lr": 0.025}
STRONG = {
    "mixup": 0.3, "cutmix": 1.0, "mix_prob": 0.8, "shift": 0.1, "rotate": 15.0, "scale": 0.1, "colour": 0.3,
    "ema": 0.2, "decay_norms": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Images:
    """40 images of three brightnesses, which anything can learn."""
    rng = np.random.default_rng(0)
    y = rng.integers(3, size=60)
    x = np.clip(rng.random((60, 8, 8)) * 0.3 + y[:, None, None] * 0.3, 0, 1)
    path = tmp_path_factory.mktemp("images") / "bright.npz"
    np.savez(path, x_train=x[:40], y_train=y[:40], x_test=x[40:], y_test=y[40:])
    return Images(
        "x", source="npz", image_shape=None, num_classes=None, path=str(path), crop=1, flip=True, cutout=2
    )


def new(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return SPACE.network(GENOTYPE)


def train(images: Images, folder: Path, recipe: Recipe, **settings: Any) -> Classifier:
    where = {name: settings.pop(name, None) for name in ("network", "part", "seed")}
    session = Session(folder, **{"identity": {"arch": "a"}, **settings})
    network, part, seed = where["network"] or new(), where["part"] or "all", where["seed"] or 5
    return fit(network, images, recipe, session, part=part, seed=seed)


def states(module: Classifier) -> dict[str, Tensor]:
    return dict(module.network.state_dict())


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


class StopError(Exception):
    """Stands for a crash."""


@pytest.mark.parametrize("settings", [{}, STRONG])
def test_a_training_that_stopped_goes_on_to_the_same_weights(
    images: Images, tmp_path: Path, settings: dict[str, Any]
) -> None:
    recipe = Recipe(epochs=4, batch_size=8, **DARTS, **settings)
    whole = train(images, tmp_path / "whole", recipe)
    said: list[str] = []
    for stop_after in (1, 3):  # twice in the same training, in another epoch each time

        def stop(figures: dict[str, float], last: int = stop_after) -> None:
            if figures["epoch"] == last + 1:  # an epoch later: its work is lost
                raise StopError

        with pytest.raises(StopError):
            train(images, tmp_path, recipe, on_epoch=stop, announce=said.append)
    resumed = train(images, tmp_path, recipe, network=new(seed=99), announce=said.append)
    assert said == ["resuming after epoch 1", "resuming after epoch 3"]
    assert same(states(resumed), states(whole))
    assert resumed.history == whole.history
    assert [row["epoch"] for row in whole.history] == [1, 2, 3, 4]
    finished = train(images, tmp_path, recipe)  # nothing is left to do
    assert same(states(finished), states(whole))
    assert finished.history == whole.history


def test_the_seed_matters_and_the_global_generator_does_not(images: Images, tmp_path: Path) -> None:
    recipe = Recipe(epochs=2, batch_size=8, **DARTS)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = train(images, tmp_path / "1", recipe, identity=None)
    assert torch.equal(torch.get_rng_state(), before)
    assert not (tmp_path / "1" / CHECKPOINT).exists()
    torch.manual_seed(2)
    assert same(states(train(images, tmp_path / "2", recipe)), states(first))
    assert not same(states(train(images, tmp_path / "3", recipe, seed=6)), states(first))


def test_one_step_by_hand(images: Images, tmp_path: Path) -> None:
    """The loss has the auxiliary classifier's, both smoothed; gradients are clipped; plain SGD steps."""
    recipe = Recipe(
        epochs=1, batch_size=40, lr=0.5, momentum=0.9, weight_decay=3e-4, nesterov=False, grad_clip=0.1,
        label_smoothing=0.1, schedule="cosine", auxiliary_weight=0.4, channels_last=False,
    )  # fmt: skip
    module = train(images, tmp_path, recipe)
    network = new().train()
    mean, std = images.normalisation()
    (x, y), = images.batches("all", batch_size=40, seed=5)  # fmt: skip
    logits, auxiliary = network((x - mean) / std, True)
    main = F.cross_entropy(logits, y, label_smoothing=0.1)
    (main + 0.4 * F.cross_entropy(auxiliary, y, label_smoothing=0.1)).backward()
    norm = math.sqrt(sum(float(p.grad.square().sum()) for p in network.parameters()))
    assert norm > 0.1
    for (name, p), trained in zip(network.named_parameters(), module.network.parameters(), strict=True):
        expected = p.detach() - 0.5 * (p.grad * 0.1 / norm + 3e-4 * p.detach())
        assert torch.allclose(trained, expected, atol=1e-6), name
    assert module.history == [
        {
            "epoch": 1,
            "loss": pytest.approx(main.item()),
            "train_acc": pytest.approx((logits.argmax(1) == y).float().mean().item()),
            "lr": pytest.approx(0.0),
        }
    ]


def test_two_steps_of_mixed_images_by_hand(images: Images, tmp_path: Path) -> None:
    """Norms and biases do not decay, and the result has averaged weights."""
    recipe = Recipe(
        epochs=2, batch_size=40, lr=0.5, momentum=0.0, weight_decay=0.1, grad_clip=None, schedule="cosine",
        label_smoothing=0.1, mixup=0.3, ema=0.5, decay_norms=False, channels_last=False,
    )  # fmt: skip
    space = Darts(4, 3, image_shape=(1, 8, 8), num_classes=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = space.network(GENOTYPE)
    expected = copy.deepcopy(network).train()
    module = train(images, tmp_path, recipe, network=network)
    mean, std = images.normalisation()
    batches = images.batches("all", batch_size=40, seed=5)
    steps = []
    for step, lr in enumerate((0.5, 0.25)):  # 0.5 (1 + cos(pi step / 2)) / 2
        (x, y), = batches  # fmt: skip
        rng = np.random.default_rng((5, step, 0))
        assert rng.random() < 1  # mixed always, but a number is drawn
        x, others, weight = mixed(x, rng, mixup=0.3, cutmix=0.0)
        soft = torch.zeros(40, 3).scatter_(1, y[:, None], weight)
        soft = soft.scatter_add_(1, y[others][:, None], torch.full((40, 1), 1 - weight))
        loss = -((0.9 * soft + 0.1 / 3) * expected((x - mean) / std).log_softmax(1)).sum(1).mean()
        gradients = torch.autograd.grad(loss, list(expected.parameters()))
        with torch.no_grad():
            for p, gradient in zip(expected.parameters(), gradients, strict=True):
                p -= lr * (gradient + (0.1 * p if p.ndim > 1 else 0.0))
        steps.append({name: value.clone() for name, value in expected.state_dict().items()})
        assert module.history[step]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    # one step is in the average: min(exp(-1 / (0.5 * 2)), (1 + 1) / (10 + 1)) of it stays
    for name, value in module.network.state_dict().items():
        if value.is_floating_point():
            average = steps[0][name] * 2 / 11 + steps[1][name] * 9 / 11
            assert torch.allclose(value, average, atol=1e-5), name


def test_settings_that_are_off_leave_no_trace() -> None:
    """Versions in stores and checkpoints stay those of the time when recipes had no such settings."""
    assert list(Recipe(epochs=1).settings()) == [
        "epochs", "batch_size", "lr", "momentum", "weight_decay", "nesterov", "label_smoothing", "grad_clip",
        "max_steps", "schedule", "auxiliary_weight", "drop_path", "precision", "channels_last", "compile",
        "devices", "strategy",
    ]  # fmt: skip
    assert set(Recipe(epochs=1, **STRONG).settings()) == {*Recipe(epochs=1).settings(), *STRONG}


def test_learning_rates_and_drop_path_of_every_epoch(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probs: list[float] = []
    rates: list[float] = []
    network = new()
    set_drop_path = network.set_drop_path
    network.set_drop_path = lambda prob: (probs.append(prob), set_drop_path(prob))[1]
    step = Classifier.training_step

    def watched(self: Classifier, batch: Any, index: int) -> Tensor:
        rates.append(self.optimizers().param_groups[0]["lr"])
        return step(self, batch, index)

    monkeypatch.setattr(Classifier, "training_step", watched)
    train(images, tmp_path, Recipe(epochs=3, batch_size=20, **DARTS), network=network)
    assert probs == pytest.approx([0.0, 0.1, 0.2])
    # 0.025 (1 + cos(pi e / 3)) / 2, the same for the two steps of an epoch
    assert rates == pytest.approx([0.025, 0.025, 0.01875, 0.01875, 0.00625, 0.00625])


def test_it_learns_and_is_tested(images: Images, tmp_path: Path) -> None:
    module = train(images, tmp_path, Recipe(epochs=10, batch_size=8, lr=0.05, auxiliary_weight=0.4))
    assert module.history[-1]["train_acc"] > 0.9
    assert accuracy(module, images, "test") >= 0.9
    x, y = images.split("test")
    with torch.no_grad():
        right = (module(x).argmax(1) == y).sum().item()
    assert accuracy(module, images, "test") == right / 20
    assert not module.training


@pytest.mark.parametrize("precision", ["bf16", 32])
def test_precisions(images: Images, tmp_path: Path, precision: str | int) -> None:
    recipe = Recipe(epochs=1, batch_size=8, precision=precision, **DARTS)
    module = train(images, tmp_path, recipe)
    assert math.isfinite(module.history[0]["loss"])
    assert all(parameter.dtype == torch.float32 for parameter in module.parameters())


@pytest.mark.parametrize("settings", [{}, STRONG])
def test_two_processes_share_every_pass(images: Images, tmp_path: Path, settings: dict[str, Any]) -> None:
    recipe = Recipe(epochs=2, batch_size=10, devices=2, schedule="cosine", **settings)
    assert len(images.batches("all", batch_size=10, num_shards=2)) == 2
    network = Darts(4, 3, image_shape=(1, 8, 8), num_classes=3).network(GENOTYPE)
    before = {name: weight.clone() for name, weight in network.state_dict().items()}
    module = train(images, tmp_path, recipe, network=network)
    assert [row["epoch"] for row in module.history] == [1, 2]
    assert not any(
        torch.equal(weight, before[name]) for name, weight in states(module).items() if "stem.0" in name
    )
    kept = torch.load(tmp_path / CHECKPOINT)
    assert same(states(module), kept["network"]) is not bool(settings)
    if settings:
        assert same(states(module), {name[7:]: w for name, w in kept["average"].items() if "module." in name})


def test_two_processes_train_a_cell_with_operations_that_nobody_uses(images: Images, tmp_path: Path) -> None:
    """Those keep their weights, as on one device."""
    space = NasBench201(2, 1, image_shape=(1, 8, 8), num_classes=3)
    cell = "|nor_conv_1x1~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|none~1|none~2|"
    network = space.network(space.from_str(cell))
    before = {name: weight.clone() for name, weight in network.named_parameters()}
    module = train(images, tmp_path, Recipe(epochs=1, batch_size=10, devices=2), network=network)
    same = {name for name, weight in module.network.named_parameters() if torch.equal(weight, before[name])}
    assert len(same) == 2 * 3 * 3  # two dead convolutions in each of three cells: weight, and the norm's two
    assert all(".1.weight" in name or ".2.weight" in name or ".2.bias" in name for name in same), same


def test_a_loss_that_is_not_finite_stops_and_keeps_the_checkpoint(images: Images, tmp_path: Path) -> None:
    network = new()

    def spoil(figures: dict[str, float]) -> None:
        if figures["epoch"] == 2:
            with torch.no_grad():
                network.classifier.weight.fill_(math.nan)

    recipe = Recipe(epochs=4, batch_size=8, **DARTS)
    message = (
        r"the loss became nan in step 10 at a learning rate of 0\.0125; try a smaller lr; "
        rf"the last finished epoch is kept in .*{CHECKPOINT}"
    )
    with pytest.raises(ValueError, match=message):
        train(images, tmp_path, recipe, network=network, on_epoch=spoil)
    assert (tmp_path / CHECKPOINT).is_file()


def test_checkpoints_of_something_else_are_refused(images: Images, tmp_path: Path) -> None:
    recipe = Recipe(epochs=1, batch_size=8, **DARTS)
    identity = {"arch": "a", "num_classes": 3}
    train(images, tmp_path, recipe, identity=identity)
    delete = "delete it to train from the start"
    with pytest.raises(ValueError, match=rf"is of another training: its arch is a, not b; {delete}"):
        train(images, tmp_path, recipe, identity={**identity, "arch": "b"})
    with pytest.raises(ValueError, match="its num_classes is 3, not 4"):
        train(images, tmp_path, recipe, identity={**identity, "num_classes": 4})
    with pytest.raises(ValueError, match="its seed is 5, not 6"):
        train(images, tmp_path, recipe, identity=identity, seed=6)
    with pytest.raises(ValueError, match=r"its trainer\.lr is 0\.025, not 0\.05"):
        train(images, tmp_path, Recipe(epochs=1, batch_size=8, **{**DARTS, "lr": 0.05}), identity=identity)
    whole = (tmp_path / CHECKPOINT).read_bytes()
    (tmp_path / CHECKPOINT).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{CHECKPOINT} is damaged or no checkpoint \(\w+\); {delete}"):
        train(images, tmp_path, recipe, identity=identity)


def test_fewer_images_than_a_batch(images: Images, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="batch_size=41 is more than the 40 training images; it can be at most 40"
    ):
        train(images, tmp_path, Recipe(epochs=1, batch_size=41, auxiliary_weight=0.4))


@pytest.mark.slow
def test_compiled_training_is_the_same(images: Images, tmp_path: Path) -> None:
    """A small network of another space: compiling one of DARTS cells takes many minutes on a busy CPU.

    After one step: what rounds differently in float32 grows with every further one.
    """
    space = NasBench201(4, 1, image_shape=(1, 8, 8), num_classes=3)
    modules = []
    for compiled in (False, True):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = space.network((0, 0, 0, 3, 0, 1))
        recipe = Recipe(epochs=1, batch_size=40, channels_last=False, compile=compiled)
        modules.append(train(images, tmp_path / str(compiled), recipe, network=network))
    plain, fast = modules
    assert states(plain).keys() == states(fast).keys()
    assert all(torch.allclose(states(plain)[name], states(fast)[name], atol=1e-4) for name in states(plain))


@pytest.mark.slow
def test_drop_path_of_every_epoch_is_compiled_once() -> None:
    network = new().train()
    x = torch.rand(4, 1, 8, 8)
    torch._dynamo.reset()
    network.compile(backend="eager")
    counted = []
    for epoch in range(4):
        network.set_drop_path(0.1 * epoch)
        network(x, True)
        counted.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
    assert counted[1] > counted[0] >= 1  # without drop-path, and with it
    assert counted[1] == counted[2] == counted[3]
