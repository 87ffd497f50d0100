"""Ways in which a supernet is computed: each equals the plain one, and each can be chosen."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwnas.data.images import Batches, Images
from hwnas.spaces.darts import Darts
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.training import shared_weights
from hwnas.training.accelerator import EXECUTIONS, accelerator, execution, within_memory
from hwnas.training.recipe import SupernetRecipe
from hwnas.training.shared_weights import Judges, SharedWeights, mixing_weights
from hwnas.training.static_step import StaticStep

SHAPE = (1, 8, 8)
SPACES = [NasBench201(2, 1, image_shape=SHAPE), Darts(2, 3, image_shape=SHAPE)]
BY_NAME = pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
CPU = torch.device("cpu")
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def digits() -> Images:
    return Images(
        "digits",
        source="digits",
        image_shape=[1, 8, 8],
        num_classes=10,
        crop=1,
        cutout=2,
        valid_fraction=0.95,
    )


def shared(space: NasBench201 | Darts, digits: Images, **recipe: object) -> SharedWeights:
    given = {"sampling": "random_alpha", "batch_size": 32, "lr": 0.1, **recipe}
    return SharedWeights(
        space, digits, SupernetRecipe(**given), num_epochs=2,
        affine=False, track_running_stats=True, decoding="soft", seed=0,
    )  # fmt: skip


def test_the_table_and_what_is_chosen_instead() -> None:
    assert execution(CPU) == EXECUTIONS["cpu"]
    chosen = execution(torch.device("cuda"), graphs=False, autocast="auto")
    assert chosen == replace(EXECUTIONS["cuda"], graphs=False)
    plain = execution(torch.device("cuda"), way="plain", channels_last=False)
    assert not plain.graphs
    assert execution(torch.device("mps"), way="stacked").channels_last
    with pytest.raises(ValueError, match=r"^channels_last=false needs execution=plain, not stacked$"):
        execution(CPU, channels_last=False)
    with pytest.raises(ValueError, match=r"^graphs=true needs execution=stacked, not plain$"):
        execution(CPU, way="plain", graphs=True)


def test_the_accelerator_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """float64 is computed elsewhere than on mps, which lacks it."""
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setenv("HWNAS_ACCELERATOR", "mps")
    assert accelerator().type == "mps"
    assert accelerator(float64=True).type == "cpu"
    monkeypatch.setenv("HWNAS_ACCELERATOR", "cpu")
    assert accelerator().type == "cpu"
    monkeypatch.setenv("HWNAS_ACCELERATOR", "tpu")
    with pytest.raises(
        ValueError, match=r"^HWNAS_ACCELERATOR=tpu is no device; it can be auto, cpu, cuda, mps$"
    ):
        accelerator()
    monkeypatch.setenv("HWNAS_ACCELERATOR", "cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"torch finds no such device here; there is cpu, mps$"):
        accelerator()


@BY_NAME
@pytest.mark.parametrize("affine", [False, True])
def test_weights_on_the_device_give_the_step_of_numbers(space: NasBench201 | Darts, affine: bool) -> None:
    """In float64, loss and gradients; also where some operations do not run."""
    torch.manual_seed(0)
    network = space.supernet(affine=affine and space.name == "nasbench201", track_running_stats=True).double()
    x, y = torch.randn(6, *SHAPE, dtype=torch.float64), torch.arange(6)
    weights = np.random.default_rng(0).random(space.alpha_shape)
    weights[[0, 1, 2], [1, 2, 3]] = 0.0
    found = []
    for numbers in (None, torch.tensor(weights)):
        other = copy.deepcopy(network).train()
        loss = F.cross_entropy(other(x, weights, numbers), y)
        loss.backward()
        gradients = [p.grad for p in other.parameters() if p.grad is not None]
        found.append([loss.detach(), *gradients, *other.buffers()])
    assert len(found[0]) == len(found[1])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@BY_NAME
@pytest.mark.parametrize("decoding", ["soft", "hard"])
def test_the_plain_way_can_be_chosen(space: NasBench201 | Darts, decoding: str) -> None:
    """Its evaluations leave buffers alone and equal the others, in float64."""
    torch.manual_seed(0)
    network = space.supernet(affine=False, track_running_stats=True).double()
    x = torch.randn(6, *SHAPE, dtype=torch.float64)
    weights = mixing_weights(space, space.sample(np.random.default_rng(0), 1), decoding)[0]
    network.train()
    network(x, weights)
    network.eval()
    before = copy.deepcopy(network.state_dict())
    for batch_statistics in (False, True):
        network.plainly = False
        ours = network.compiled(weights, batch_statistics=batch_statistics)(x)
        network.plainly = True
        plain = network.compiled(weights, batch_statistics=batch_statistics)(x)
        torch.testing.assert_close(plain, ours, rtol=1e-9, atol=1e-11)
    assert not network.training
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


@BY_NAME
def test_an_epoch_of_each_execution_is_that_of_the_plain_one(
    space: NasBench201 | Darts, digits: Images
) -> None:
    """Loss of some steps; recorded ones use the memory of the recording, without a GPU, too."""
    plain = shared(space, digits, execution="plain", channels_last=False)
    wanted = plain.train_epoch(0)
    judges = Judges(num=100, batch_size=50, transform_seed=None)
    genotypes = space.sample(np.random.default_rng(0), 1)
    for settings, tolerance in (({}, 1e-3), ({"graphs": True}, 1e-3), ({"autocast": True}, 0.1)):
        weights = shared(space, digits, **settings)
        weights.execution = replace(weights.execution, autocast=weights.recipe.autocast is True)
        assert weights.train_epoch(0)["loss"] == pytest.approx(wanted["loss"], rel=tolerance), settings
        assert (weights._static is not None) == ("graphs" in settings)
        found = weights.accuracies(genotypes, judges, batch_statistics=True, decoding="soft")
        assert all(0 <= accuracy <= 1 for accuracy in found)


def test_a_recorded_step_after_a_load_is_an_ordinary_one(digits: Images) -> None:
    """Momenta, statistics and gradients are those of steps that were not recorded."""
    found = []
    for graphs in (False, True):
        weights = shared(SPACES[0], digits, graphs=graphs)
        weights.train_epoch(0)
        state = weights.state()
        weights.train_epoch(1)
        weights.load(state)
        weights.train_epoch(1)
        found.append(weights.state())
    for name, tensor in found[0]["weights"].items():
        torch.testing.assert_close(found[1]["weights"][name], tensor, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU records it")
def test_a_step_that_cannot_be_recorded_is_computed_as_usual(
    digits: Images, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here because there is no GPU; nothing of the attempt remains."""
    on_gpu = partial(_recorded_on_a_gpu, StaticStep)
    monkeypatch.setattr(shared_weights, "StaticStep", on_gpu)
    usual, other = shared(SPACES[0], digits), shared(SPACES[0], digits, graphs=True)
    assert other.train_epoch(0) == usual.train_epoch(0)
    assert other.not_recorded
    assert "\n" not in other.not_recorded
    for name, tensor in usual.state()["weights"].items():
        assert torch.equal(other.state()["weights"][name], tensor), name


def _recorded_on_a_gpu(
    kind: type[StaticStep], work: object, module: object, inputs: object, _: object
) -> object:
    return kind(work, module, inputs, torch.device("cuda"))  # type: ignore[arg-type]


def test_batches_are_augmented_where_they_are_needed(digits: Images) -> None:
    """Resident or not, with the same draws; on a device without content they have only shapes."""
    usual = list(digits.batches("train", batch_size=30, seed=3))
    for resident in (True, False):
        batches = digits.batches("train", batch_size=30, seed=3)
        batches.to(CPU, resident=resident)
        for (x, y), (wanted_x, wanted_y) in zip(batches, usual, strict=True):
            assert torch.equal(x, wanted_x)
            assert torch.equal(y, wanted_y)
        assert isinstance(batches, Batches)
        batches.to(torch.device("meta"), resident=resident)
        assert batches.x.device.type == ("meta" if resident else "cpu")
        assert {x.device.type for x, _ in batches} == {"meta"}


def test_a_lack_of_memory_is_one_line() -> None:
    line = r"^evaluator=rmi ran out of memory; a smaller evaluator.group_size \(64\) needs less$"
    with pytest.raises(ValueError, match=line), within_memory("evaluator=rmi", "evaluator.group_size (64)"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee documentation")
    with pytest.raises(RuntimeError, match="another"), within_memory("evaluator=rmi", "batch"):
        raise RuntimeError("another")
