"""Shared weights of a user's module: a sliced network is the stand-alone one with the same weights."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from hwnas import ModuleSpace, Trial, choice, compose, depth, kernel, optional, search, width
from hwnas.core import Genotype
from hwnas.data.images import Images
from hwnas.spaces.module import supernet as supernets
from hwnas.spaces.module.supernet import ModuleSupernet
from hwnas.training.recipe import SupernetRecipe
from hwnas.training.shared_weights import Judges, SharedWeights, inherit

PAGE = (Path(__file__).parents[2] / "docs" / "modules.md").read_text()


@pytest.fixture(autouse=True)
def _own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def ushaped() -> ModuleSpace:
    """The module of docs/modules.md."""
    code = re.search(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert code
    own: dict[str, type[nn.Module]] = {"__name__": __name__}  # type: ignore[dict-item]
    exec(code[1], own)
    return ModuleSpace(own["UShaped"], image_shape=(1, 8, 8))


def supernet(space: ModuleSpace, track: bool = True) -> ModuleSupernet:
    torch.manual_seed(3)
    network = space.supernet(affine=False, track_running_stats=track)
    with torch.no_grad():
        for parameter in network.parameters():  # no two are alike
            parameter += 0.1 * torch.randn(parameter.shape)
    return network.to(memory_format=torch.channels_last)


def images(num: int = 6) -> Tensor:
    x = torch.rand(num, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x.contiguous(memory_format=torch.channels_last)


def cut(whole: Tensor, shape: torch.Size, kernel: bool) -> Tensor:
    """The leading part of a tensor, and the middle of a kernel."""
    for dim, size in enumerate(shape):
        start = (whole.shape[dim] - size) // 2 if kernel and dim > 1 else 0
        whole = torch.narrow_copy(whole, dim, start, size)
    return whole


def alone(space: ModuleSpace, genotype: Genotype, network: ModuleSupernet) -> nn.Module:
    """A network with its own copy of the shared weights."""
    separate = space.network(genotype)
    shared = {**dict(network.weights.items()), **dict(network.statistics.named_buffers())}
    own = {**dict(separate.named_parameters()), **dict(separate.named_buffers())}
    with torch.no_grad():
        for name, tensor in own.items():
            start = name.replace(".", "/") + " "
            (whole,) = [value for key, value in shared.items() if key.startswith(start)]
            tensor.copy_(cut(whole, tensor.shape, kernel=tensor.dim() == 4))
    return separate


def test_sliced_networks_are_stand_alone_ones(ushaped: ModuleSpace) -> None:
    """Under evaluation with either kind of statistics, and in training, which updates the running ones."""
    network, x = supernet(ushaped), images()
    assert network.weights["down/2/large/0/0/weight Inception Conv2d depthwise 4d"].shape == (24, 1, 7, 7)
    assert network.weights["down/2/join/0/weight Inception Conv2d 4d"].shape == (24, 32, 1, 1)
    assert (
        "down/0/attention/gate/0/weight Inception level0/attention=yes Attention Linear 2d" in network.weights
    )
    for genotype in ushaped.sample(np.random.default_rng(0), 8):
        weights = ushaped.onehot([genotype])[0]
        for batch_statistics in (True, False):
            logits = network.compiled(weights, batch_statistics=batch_statistics)(x)
            expected = alone(ushaped, genotype, network).train(batch_statistics)(x)
            assert torch.allclose(logits, expected, rtol=0, atol=1e-6)
        separate = alone(ushaped, genotype, network).train()
        logits, expected = network.train()(x, weights), separate(x)
        assert torch.allclose(logits, expected, rtol=0, atol=1e-6)
        updated = dict(alone(ushaped, genotype, network).named_buffers())
        for name, buffer in separate.named_buffers():
            assert torch.allclose(buffer, updated[name], rtol=0, atol=1e-6), name


def test_gradients_reach_the_slices_and_nothing_else(ushaped: ModuleSpace) -> None:
    network, x = supernet(ushaped).double().train(), images().double()
    for genotype in ushaped.sample(np.random.default_rng(1), 3):
        separate = alone(ushaped, genotype, network).double().train()
        network.zero_grad()
        network(x, ushaped.onehot([genotype])[0]).square().sum().backward()
        separate(x).square().sum().backward()
        used = network.used()
        assert len(used) == len(list(separate.parameters()))
        for name, parameter in separate.named_parameters():
            (key,) = [key for key in network.weights if key.startswith(name.replace(".", "/") + " ")]
            whole = network.weights[key]
            assert whole.grad is not None
            assert parameter.grad is not None
            grad = cut(whole.grad, parameter.shape, kernel=parameter.dim() == 4)
            assert torch.allclose(grad, parameter.grad, rtol=0, atol=1e-6)
            assert whole.grad.count_nonzero() == grad.count_nonzero()
            assert whole[used[whole]].shape == parameter.shape


class Kinds(nn.Module):
    """Options that share a name; a buffer that the constructor fills; dropout; weights at two places."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        c = width("c", [4, 8])
        groups = c if choice("kind", ["plain", "depthwise"]) == "depthwise" else 1
        self.stem = nn.Conv2d(image_shape[0], c, 3, padding=1)
        self.conv = nn.Conv2d(c, c, 3, padding=1, groups=groups)
        squeeze = c // choice("ratio", [1, 2, 4])
        self.branch = choice(
            "branch", {"a": lambda: nn.Conv2d(c, c, 1), "b": lambda: nn.Conv2d(c, c, 3, padding=1)}
        )
        self.gate = nn.Sequential(nn.Linear(c, squeeze), nn.Linear(squeeze, c))
        self.register_buffer("scale", torch.linspace(0, 1, c))
        self.dropout = nn.Dropout(choice("rate", [0.1, 0.2]))
        self.head = nn.Linear(c * 64, num_classes)
        self.again = self.stem

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(self.conv(self.stem(x) + self.again(x)))
        y = y * (self.gate(y.mean((2, 3))) * self.scale)[..., None, None]
        return self.head(self.dropout(y).flatten(1))


@pytest.fixture(scope="module")
def kinds() -> ModuleSpace:
    return ModuleSpace(Kinds, image_shape=(1, 8, 8))


def test_weights_of_different_kinds_are_not_shared(kinds: ModuleSpace) -> None:
    network = supernet(kinds)
    shapes = {key: tuple(weight.shape) for key, weight in network.weights.items() if "bias" not in key}
    assert shapes == {
        "stem/weight Conv2d 4d": (8, 1, 3, 3),
        "conv/weight Conv2d 4d": (8, 8, 3, 3),
        "conv/weight Conv2d depthwise 4d": (8, 1, 3, 3),
        "branch/weight branch=a Conv2d 4d": (8, 8, 1, 1),
        "branch/weight branch=b Conv2d 4d": (8, 8, 3, 3),
        "gate/0/weight Linear 2d": (8, 8),
        "gate/1/weight Linear 2d": (8, 8),
        "head/weight Linear 2d": (10, 8 * 64),
    }
    x = images()
    for genotype in kinds.all():
        separate = kinds.network(genotype).eval()
        separate.load_state_dict(network.sliced(genotype), strict=False)
        logits = network.compiled(kinds.onehot([genotype])[0])(x)
        assert torch.allclose(logits, separate(x), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="runs one architecture at a time: mixing weights must be one-hot"):
        network.compiled(np.full(kinds.alpha_shape, 0.5))


class Pair(nn.Module):
    """A bias only where neither choice has its last option."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        first, second = choice("first", ["a", "b"]), choice("second", ["a", "b"])
        self.head = nn.Linear(64, num_classes, bias=first == second == "a")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x.flatten(1))


def test_weights_of_two_options_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are found by chance, and missed with one line."""
    space = ModuleSpace(Pair, image_shape=(1, 8, 8))
    assert "head/bias Linear 1d" in space.supernet(affine=False, track_running_stats=True).weights
    monkeypatch.setattr(supernets, "NUM_DRAWN", 0)
    network = space.supernet(affine=False, track_running_stats=True)
    message = "head.bias has shape (10,) in first=a second=a, and at most (0,) in the networks that"
    with pytest.raises(ValueError, match=re.escape(message)):
        network.sliced((0, 0))


def digits() -> Images:
    return Images(
        "digits", source="digits", image_shape=[1, 8, 8], num_classes=10, crop=1, valid_fraction=0.3
    )


def shared(space: ModuleSpace, **recipe: object) -> SharedWeights:
    return SharedWeights(
        space,
        digits(),
        SupernetRecipe("single_path", **recipe),  # type: ignore[arg-type]
        num_epochs=4,
        affine=False,
        track_running_stats=True,
        decoding="hard",
        seed=0,
    )


def test_a_step_changes_the_slices_that_it_runs(kinds: ModuleSpace) -> None:
    """With momentum and decay: the second step leaves alone what only the first one ran."""
    weights = shared(kinds, batch_size=64, lr=0.1, weight_decay=0.1)
    small, large = (kinds.from_str(f"c={c} kind=plain ratio=1 branch=a rate=0.1") for c in (4, 8))
    x, y = digits().split("train")
    for genotype in (large, small):
        before = {name: value.clone() for name, value in weights.supernet.named_parameters()}
        weights._lrs, weights._mixtures = [0.1], [kinds.onehot([genotype])[0]]
        weights.supernet.train()
        weights.optimizer.zero_grad()
        weights.training_step((x[:64], y[:64]), 0).backward()
        weights.optimizer.step()
        after = dict(weights.supernet.named_parameters())
    changed = {name.removeprefix("weights."): after[name] != before[name] for name in after}
    assert changed["conv/weight Conv2d 4d"][:4, :4].all()
    assert changed["conv/weight Conv2d 4d"].count_nonzero() == 4 * 4 * 9
    assert changed["head/weight Linear 2d"].count_nonzero() == 10 * 4 * 64
    assert not changed["conv/weight Conv2d depthwise 4d"].any()
    momentum = weights.optimizer.state[after["weights.conv/weight Conv2d 4d"]]["momentum_buffer"]
    assert momentum.count_nonzero() == 8 * 8 * 9


def test_steps_of_one_network_are_those_of_sgd(kinds: ModuleSpace) -> None:
    """Two steps of a network that has slices, in both ways."""
    weights, genotype = shared(kinds), kinds.largest
    separate = kinds.network(genotype).to(memory_format=torch.channels_last)
    separate.load_state_dict(weights.supernet.sliced(genotype), strict=False)
    sgd = torch.optim.SGD(separate.parameters(), lr=0.025, momentum=0.9, weight_decay=3e-4, nesterov=True)
    x, y = images(64), torch.arange(64) % 10
    for seed in range(2):
        for network, optimizer in ((separate.train(), sgd), (weights.supernet.train(), weights.optimizer)):
            torch.manual_seed(seed)  # dropout
            inputs = (x,) if network is separate else (x, kinds.onehot([genotype])[0])
            optimizer.zero_grad()
            F.cross_entropy(network(*inputs), y).backward()
            optimizer.step()
    for name, value in weights.supernet.sliced(genotype).items():
        assert torch.allclose(value, separate.state_dict()[name], rtol=0, atol=1e-6), name


class Small(nn.Module):
    """Two convolutions of any kernel and width, and one to three blocks."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        c = width("c", [4, 8, 12])
        k = kernel("k", [3, 5])
        self.stem = nn.Sequential(nn.Conv2d(1, c, k, 2, k // 2, bias=False), nn.BatchNorm2d(c), nn.ReLU())
        self.blocks = depth(
            "depth", [1, 2], lambda i: nn.Sequential(nn.Conv2d(c, c, 3, padding=1), nn.ReLU())
        )
        self.norm = optional("norm", lambda: nn.BatchNorm2d(c))
        self.head = nn.Linear(c * 16, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.stem(x))).flatten(1))


def test_training_helps_all_networks_and_is_inherited() -> None:
    """And goes on from its state as if it had not stopped."""
    space, judges = ModuleSpace(Small, image_shape=(1, 8, 8)), Judges(None, 128, None)
    genotypes = space.sample(np.random.default_rng(1), 6)
    whole, first = shared(space, batch_size=32, lr=0.1), shared(space, batch_size=32, lr=0.1)

    def accuracies(weights: SharedWeights) -> list[float]:
        return weights.accuracies(genotypes, judges, batch_statistics=True, decoding="hard")

    assert max(accuracies(whole)) < 0.4
    for epoch in range(4):
        whole.train_epoch(epoch)
    assert min(accuracies(whole)) > 0.6
    first.train_epoch(0)
    first.train_epoch(1)
    second = shared(space, batch_size=32, lr=0.1)
    second.load(first.state())
    second.train_epoch(2)
    second.train_epoch(3)
    for name, value in second.supernet.state_dict().items():
        assert torch.equal(value, whole.supernet.state_dict()[name]), name

    part = shared(space.restrict([[ops[0]] for ops in space.choices]))
    assert inherit(part.supernet, whole.supernet) == []
    (genotype,) = part.space.all()
    same = [
        weights.supernet.compiled(space.onehot([genotype])[0], batch_statistics=True)(images())
        for weights in (part, whole)
    ]
    assert torch.equal(*same)


def test_a_search_resumes_to_the_same_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It fails in the third generation, whose population is being trained."""
    words = [
        *("evaluator=supernet", "evaluator.warmup_epochs=0", "evaluator.epochs_per_generation=1", "seed=1"),
        *("evaluator.training.sampling=population", "evaluator.training.batch_size=256", "device=flops"),
        *("strategy=regularized_evolution", "strategy.population_size=3", "strategy.sample_size=2"),
        *("generations=4", "trainer=none"),
    ]

    def run(name: str) -> list[Trial]:
        problem = compose(*words, space=Small)
        return search(problem, tmp_path / name, store=tmp_path / f"{name} store", show=False).trials

    def failing(self: SharedWeights, epoch: int, population: object = ()) -> dict[str, float]:
        if epoch == 2:
            raise RuntimeError("power is gone")
        return train(self, epoch, population)

    expected, train = run("whole"), SharedWeights.train_epoch
    monkeypatch.setattr(SharedWeights, "train_epoch", failing)
    with pytest.raises(RuntimeError, match="power is gone"):
        run("stopped")
    monkeypatch.setattr(SharedWeights, "train_epoch", train)
    assert run("stopped") == expected
    assert len(expected) == 12


def test_mixtures_are_refused(tmp_path: Path) -> None:
    words = ("evaluator=supernet", "evaluator.training.sampling=random_alpha", "trainer=none", "device=flops")
    with pytest.raises(ValueError, match="supernet runs single networks of Small-"):
        search(compose(*words, space=Small), tmp_path, show=False)
