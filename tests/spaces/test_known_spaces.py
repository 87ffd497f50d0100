"""`search_space=mobile` and `resnet`: closed forms equal counts of torch, published networks are points."""

from __future__ import annotations

import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from torch import nn

from hwnas import compose, search
from hwnas.spaces.blocks import count
from hwnas.spaces.capabilities import drawing
from hwnas.spaces.known import KnownNetworks, MobileSpace, ResNetSpace
from hwnas.spaces.known.spaces import KnownSpace
from hwnas.spaces.presets import architecture, space_of

SPACES = {"mobile": MobileSpace, "resnet": ResNetSpace}


@pytest.fixture(scope="module")
def mobile() -> KnownSpace:
    return MobileSpace(image_shape=(3, 224, 224), num_classes=1000)


@pytest.fixture(scope="module")
def resnet() -> KnownSpace:
    return ResNetSpace(image_shape=(3, 224, 224), num_classes=1000)


@pytest.mark.parametrize("shape", [(1, 28, 28), (4, 45, 70)])
@pytest.mark.parametrize("name", ["mobile", "resnet"])
def test_all_figures_are_those_of_built_networks(name: str, shape: tuple[int, int, int]) -> None:
    """Of 4 networks: multiply-adds, parameters, and number, work and elements of layers of each kind."""
    space = SPACES[name](image_shape=shape, num_classes=7)
    networks = space.sample(np.random.default_rng(1), 4)
    found = {**space.static_metrics(networks), **space.work(networks)}
    for number, genotype in enumerate(networks):
        built = Counter[str]()
        for figures in space.tracer.trace(space.numbers(genotype)).parts.values():
            built.update(figures)
        assert {figure: values[number] for figure, values in found.items() if values[number]} == built


def test_published_networks_are_points(mobile: KnownSpace, resnet: KnownSpace) -> None:
    """With the numbers of parameters that torchvision's pages say, and those of torch for thinner ones."""
    models = torchvision.models
    with torch.device("meta"):
        for space, name, make in (
            (mobile, "mobilenet_v2", models.mobilenet_v2),
            (mobile, "mobilenet_v2_x0.35", lambda: models.mobilenet_v2(width_mult=0.35)),
            (mobile, "mobilenet_v2_x0.75", lambda: models.mobilenet_v2(width_mult=0.75)),
            (resnet, "resnet18", models.resnet18),
            (resnet, "resnet50", models.resnet50),
        ):
            found = space.static_metrics([architecture(space, name)])
            assert (found["params"][0], found["flops"][0]) == count(make(), (3, 224, 224))
    params = resnet.static_metrics([architecture(resnet, name) for name in ("resnet34", "resnet50")])[
        "params"
    ]
    assert params.tolist() == [21_797_672, 25_557_032]
    assert space_of("resnet18_w16") == "resnet"
    assert architecture(mobile, "mobilenet_v2") == tuple(ops[0] for ops in mobile._all)


def test_known_networks_are_points_for_small_images() -> None:
    names = ["mobilenet_v2_x0.5", "resnet14_w24", "resnet34"]
    known = KnownNetworks(names, image_shape=(3, 32, 32), num_classes=10)
    for number, space in enumerate((MobileSpace(), ResNetSpace(), ResNetSpace())):
        expected, found = (
            each.static_metrics([genotype])
            for each, genotype in ((known, (number,)), (space, architecture(space, names[number])))
        )
        assert {key: value.tolist() for key, value in expected.items()} == {
            key: value.tolist() for key, value in found.items()
        }


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """State dicts of torchvision, with random values."""
    folder = tmp_path_factory.mktemp("pretrained")
    found = {name: str(folder / f"{name}.pt") for name in ("v2", "v3", "resnet18", "checkpoint")}
    torch.save(torchvision.models.mobilenet_v2(width_mult=0.5).state_dict(), found["v2"])
    torch.save(torchvision.models.mobilenet_v3_small().state_dict(), found["v3"])
    torch.save(torchvision.models.resnet18().state_dict(), found["resnet18"])
    torch.save({"epoch": 3}, found["checkpoint"])
    return found


def test_published_networks_with_their_weights(files: dict[str, str]) -> None:
    """The logits are torchvision's; a copy in another process has the weights, too."""
    x, models = torch.randn(2, 3, 64, 64), torchvision.models
    for name, preset, theirs, num in (
        # resolutions, activations, strides, depths; two widths of three stages round to the same
        (
            "v2",
            "mobilenet_v2_x0.5",
            models.mobilenet_v2(width_mult=0.5),
            5 * 2**3 * 3**3 * 4 * 2**3,
        ),
        ("resnet18", "resnet18", models.resnet18(), 5 * 3 * 2**3),  # the first stage may be left out
    ):
        theirs.load_state_dict(torch.load(files[name], weights_only=True))
        kind = MobileSpace if name == "v2" else ResNetSpace
        said: list[str] = []
        space = kind(image_shape=(3, 64, 64), num_classes=1000, pretrained=files[name], announce=said.append)
        assert said == [f"{files[name]} has the weights of {preset}; {num:,} networks start with them"]
        assert space.size == num
        for each in (space, pickle.loads(pickle.dumps(space))):
            network = each.network(architecture(each, preset)).eval()
            with torch.no_grad():
                assert torch.allclose(network(x), theirs.eval()(x), atol=1e-5)


def test_spaces_of_pretrained_networks(files: dict[str, str], tmp_path: Path) -> None:
    """For grey images of 32 pixels and two classes all stems are new: one is as good as another."""
    said: list[str] = []
    images = {"image_shape": (1, 32, 32), "num_classes": 2}
    space = ResNetSpace(**images, pretrained=files["resnet18"], announce=said.append)
    shapes = "apart from conv1.weight, fc.weight, fc.bias, whose shapes differ"
    assert said == [f"{files['resnet18']} has the weights of resnet18 {shapes}; 324 networks start with them"]
    # resolutions, stems, one or two blocks per stage, and none in the first or last one
    assert space.size == 324 == 3 * 3 * 3 * 2 * 2 * 3
    assert list(space.presets) == ["resnet10", "resnet14", "resnet18"]
    assert space.name.startswith(f"{ResNetSpace(**images).name}-")
    weights = torch.load(files["resnet18"], weights_only=True)
    for genotype in space.sample(np.random.default_rng(0), 5):
        network = space.network(genotype)
        for name, value in network.state_dict().items():
            assert name in shapes or torch.equal(value, weights[name])
        assert network.fc.weight.shape in ((2, 512), (2, 256))


def test_a_stage_without_blocks_has_no_width() -> None:
    space = ResNetSpace(image_shape=(1, 32, 32), num_classes=2)
    text = space.to_str(architecture(space, "resnet10_w8"))
    thin, wide = (
        text.replace("s4.width=8", f"s4.width={n}").replace("s4.depth=1", "s4.depth=0") for n in (8, 4)
    )
    same = space.live([space.from_str(thin), space.from_str(wide)])
    assert same[0].tolist() == same[1].tolist()
    assert (
        space.static_metrics(same)["params"][0] == space.static_metrics([space.from_str(wide)])["params"][0]
    )


def test_weights_that_are_wrong(files: dict[str, str], tmp_path: Path) -> None:
    for kind, path, message in (
        (
            MobileSpace,
            files["resnet18"],
            r"nearest one, mobilenet_v2\S*, has 262 tensors, of which the file has 0 in",
        ),
        (MobileSpace, files["v3"], "v3.pt is of another network"),
        (ResNetSpace, files["v2"], "v2.pt is of another network: .* of which the file has 0 in this shape"),
        (ResNetSpace, files["checkpoint"], "must be a state dict, .*; its 'epoch' is of type int"),
        (ResNetSpace, str(tmp_path / "none.pt"), "not found"),
    ):
        with pytest.raises(ValueError, match=message):
            kind(image_shape=(3, 64, 64), pretrained=path)


@pytest.mark.parametrize("name", ["mobile", "resnet"])
def test_spaces_for_other_images(name: str) -> None:
    """Grey ones of 24 pixels with two classes: options, text form, pickles, drawing, a gradient."""
    space = SPACES[name](image_shape=(1, 24, 24), num_classes=2)
    assert [space.ops[op] for op in space.choices[0]] == ["24", "18"]
    assert 10 < len(space.ops) <= 36
    (genotype,) = space.sample(np.random.default_rng(3), 1)
    assert space.from_str(space.to_str(genotype)) == genotype
    assert space.neighbours(genotype)
    again = pickle.loads(pickle.dumps(space))
    assert again.network(genotype)(torch.zeros(2, 1, 24, 24)).shape == (2, 2)
    assert again.name == space.name != SPACES[name](image_shape=(1, 32, 32)).name
    assert len(drawing(space).slots) == len(space.choices)
    network = space.network(genotype)
    network(torch.rand(4, 1, 24, 24)).sum().backward()
    assert all(weight.grad is not None for weight in network.parameters())


def test_widths_that_round_to_the_same_one(mobile: KnownSpace) -> None:
    """A quarter of 16, 8 and 24 channels are 8; of 24, 16 and 32 they are 8; half of 24 and 32 are 16."""
    quarter = mobile.presets["mobilenet_v2_x0.25"]
    for stage, widths in (("s1", (16, 8, 24)), ("s2", (24, 16, 32))):
        texts = [quarter.replace(f"{stage}.width={widths[0]}", f"{stage}.width={each}") for each in widths]
        assert {mobile.to_str(mobile.from_str(text)) for text in texts} == {quarter}
    half = mobile.presets["mobilenet_v2_x0.5"]
    for other, expected in (("32", "24"), ("16", "16")):
        found = mobile.to_str(mobile.from_str(half.replace("s2.width=24", f"s2.width={other}")))
        assert found == half.replace("s2.width=24", f"s2.width={expected}")


def test_resolutions() -> None:
    """96 pixels, at 24 for a mean of 4x4 and at 36 for 2x2 and three quarters: what the first layer gets."""
    space = ResNetSpace(image_shape=(3, 96, 96), num_classes=2)
    x = torch.rand(1, 3, 96, 96)
    for resolution in (96, 72, 48, 36, 24):
        text = space.presets["resnet10_w8"].replace("resolution=96", f"resolution={resolution}")
        small = space.network(space.from_str(text)).resize(x)
        assert small.shape == (1, 3, resolution, resolution)
        assert torch.allclose(small.mean(), x.mean(), atol=0.01)
    assert torch.allclose(small[0, 0, 0, 0], x[0, 0, :4, :4].mean())


def test_a_search(tmp_path: Path) -> None:
    words = ("search_space=resnet", "evaluator=zero_cost", "evaluator.num_reference=4", "device=flops")
    few = ("strategy=random", "strategy.population_size=2", "generations=1", "trainer.max_steps=1")
    folder = tmp_path / "run"
    run = search(compose(*words, *few, limits={"flops": "q0.95"}), folder, store=tmp_path, show=False)
    assert run.best is not None
    assert run.space.to_str(run.best.genotype).startswith("resolution=8 width=")
    assert run.result is not None
    assert run.result.network is not None
    weights = torch.load(folder / run.result.network.weights, weights_only=True)
    network: nn.Module = run.space.network(run.best.genotype)
    network.load_state_dict(weights)
