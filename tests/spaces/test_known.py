"""Off-the-shelf networks: counts and logits are those of torchvision, for images of any size and channels."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from hwnas.spaces.blocks import count
from hwnas.spaces.known import KnownNetworks, known_names

PUBLISHED = {
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "mobilenet_v2_x0.35": lambda: torchvision.models.mobilenet_v2(width_mult=0.35),
    "mobilenet_v3_small": torchvision.models.mobilenet_v3_small,
    "resnet18": torchvision.models.resnet18,
}


@pytest.fixture(scope="module")
def large() -> KnownNetworks:
    return KnownNetworks(list(PUBLISHED), image_shape=(3, 224, 224), num_classes=1000)


def test_counts_are_those_of_torchvision(large: KnownNetworks) -> None:
    found = large.static_metrics([(index,) for index in range(len(PUBLISHED))])
    with torch.device("meta"):
        expected = [count(make(), (3, 224, 224)) for make in PUBLISHED.values()]
    assert list(zip(found["params"], found["flops"], strict=True)) == expected
    assert expected[0][0] == 3_504_872  # as torchvision's page says
    assert expected[3][0] == 11_689_512


@pytest.mark.parametrize("name", ["mobilenet_v2_x0.35", "mobilenet_v3_small", "resnet18"])
def test_the_weights_of_torchvision_give_the_same_logits(name: str, tmp_path: Path) -> None:
    theirs = PUBLISHED[name]()
    torch.save(theirs.state_dict(), tmp_path / "theirs.pt")
    settings = {"image_shape": (3, 64, 64), "num_classes": 1000, "pretrained": str(tmp_path / "theirs.pt")}
    space = KnownNetworks([name, "resnet10"], **settings)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(space.network((0,)).eval()(x), theirs.eval()(x), atol=1e-5)


def test_small_images() -> None:
    """A ResNet of 8 channels, by hand: 3x3 stems, four stages of one block at 4, 4, 2 and 1 pixels."""
    space = KnownNetworks(["resnet10_w8", "mobilenet_v3_small_x0.25"], image_shape=(1, 4, 4), num_classes=5)
    widths = (8, 8, 16, 32, 64)
    params, flops = 9 * 8 + 16, 9 * 8 * 16
    for stage, (before, after) in enumerate(pairwise(widths)):
        pixels = (16, 4, 1, 1)[stage]
        weights = 9 * before * after + 9 * after * after + before * after * (stage > 0)
        params, flops = params + weights + 2 * after * (2 + (stage > 0)), flops + weights * pixels
    params, flops = params + 5 * 65, flops + 5 * 65
    found = space.static_metrics([(0,)])
    assert (found["params"].tolist(), found["flops"].tolist()) == ([params], [flops])
    for genotype in space.all():
        network, sides = space.network(genotype).eval(), []
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(lambda m, x, y, sides=sides: sides.append(y.shape[-1]))
        assert network(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
        assert set(sides) - {1} == {32, 16, 8, 4}  # 1: squeeze and excitation


def test_all_names_are_networks() -> None:
    space = KnownNetworks(known_names(), image_shape=(4, 16, 16), num_classes=3)
    with torch.device("meta"):
        for name in ("mobilenet_v3_large_x0.5", "resnet14_w24"):
            network = space.network(space.from_str(name))
            assert network(torch.empty(2, 4, 16, 16)).shape == (2, 3)
    assert space.resized(channels=8) is space  # evaluators may ask for smaller networks: there are none
    assert len(space.all()) == len(known_names()) == 3 * 5 + 4 * 6
    assert space.to_str((0,)) == "mobilenet_v2"
    assert KnownNetworks(["resnet18_w64", "mobilenet_v2_x1.0"]).network((0,)).fc.in_features == 512


def test_names_that_are_wrong() -> None:
    for names, message in (
        (["resnet18_w17"], "'resnet18_w17' is no network that is known here; did you mean resnet18_w1"),
        (["vit"], "'vit' is no network that is known here; known: mobilenet_v2, .*, and narrower ones"),
        (["resnet18", "resnet18_w64"], "names must be of different networks, not resnet18, resnet18_w64"),
        ([], "names must be a list of at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            KnownNetworks(names)
    with pytest.raises(ValueError, match=r"'resnet34' is not among these networks; did you mean resnet18\?"):
        KnownNetworks(["resnet18"]).from_str("resnet34")
