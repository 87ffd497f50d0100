"""The FBNet space: its layout, its closed forms, its networks."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hwnas.data.tables import FBNET_OPS, fbnet_operations
from hwnas.spaces.blocks import count
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.fbnet.encoding import BLOCKS, OPS, SKIP
from hwnas.spaces.fbnet.network import FBNetNetwork, InvertedResidual, operation
from hwnas.spaces.presets import architecture

IMAGENET = FBNet("imagenet", image_shape=(3, 224, 224), num_classes=1000)


def only(name: str) -> tuple[int, ...]:
    return (OPS.index(name),) * 22


def test_size_text_and_sampling() -> None:
    space = FBNet()
    assert space.size == 9**22
    assert space.alpha_shape == (22, 9)
    rng = np.random.default_rng(0)
    for genotype in space.sample(rng, 20):
        assert space.from_str(space.to_str(genotype)) == genotype
        assert space.check(space.mutate(genotype, rng)) != genotype
    assert space.to_str(only("k5_e1_g2")).split("-") == ["k5_e1_g2"] * 22
    with pytest.raises(ValueError, match="too many to list"):
        space.all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("k3_e1-skip", "has 2 layers, not 22"),
        ("-".join(["k3_e2"] * 22), "unknown operation 'k3_e2'"),
    ],
)
def test_malformed_text(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FBNet().from_str(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "imagnet"}, "variant must be one of cifar100, imagenet, not 'imagnet'"),
        ({"channels": 15}, "channels must be an even whole number of at least 2, not 15"),
        ({"channels": 0}, "channels must be an even whole number of at least 2, not 0"),
        ({"choices": [[0]]}, "choices must be 22 non-empty sets"),
    ],
)
def test_settings_are_checked(settings, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FBNet(**settings)


def test_commands_take_names_and_texts() -> None:
    genotype = IMAGENET.from_str(IMAGENET.presets["fbnet_c"])
    assert architecture(IMAGENET, "fbnet_c") == architecture(IMAGENET, IMAGENET.to_str(genotype)) == genotype
    for name in ("fbnet_d", "fbnet-c"):
        with pytest.raises(ValueError, match=f"arch={name} is no published .* did you mean fbnet_"):
            architecture(IMAGENET, name)


def test_restricted() -> None:
    space = FBNet(channels=8, num_classes=10).restrict([[0, SKIP]] * 22)
    assert (space.size, space.channels, space.num_classes) == (2**22, 8, 10)
    assert all(set(genotype) <= {0, SKIP} for genotype in space.sample(np.random.default_rng(0), 50))
    with pytest.raises(ValueError, match="operation 3 on edge 0"):
        space.check(only("k3_e6"))


def test_distances() -> None:
    space = FBNet()
    a = only("k3_e1")
    b = (*a[:11], *only("skip")[11:])
    assert space.distances([a], [a, b, only("skip")]).tolist() == [[0.0, 1 - 11 / 33, 1.0]]


def test_layout_is_that_of_the_benchmark() -> None:
    """The look-up of HW-NAS-Bench names every operation with its shape."""
    for space, name in ((FBNet(), "cifar100"), (IMAGENET, "ImageNet")):
        for op in range(9):
            stem, *layers, head, _, classifier = fbnet_operations((op,) * 22, name)
            assert f"Cout16_kernel3_stride{space.stem_stride}" in stem
            for layer, text in zip(space.layers, layers, strict=True):
                shape = f"H{layer.height}_W{layer.width}_Cin{layer.in_channels}_Cout{layer.out_channels}"
                assert f"_{shape}_" in text
                assert f"stride{layer.stride}" in text
            assert f"Cout{space.head}_" in head
            assert classifier == f"FC_Cin{space.head}_Cout{space.num_classes}"
    for (kernel, expansion, groups), name in zip(BLOCKS, FBNET_OPS, strict=False):
        assert name == f"exp{expansion}_kernel{kernel}_group{groups}"


CIFAR = [  # (input channels, output channels, input pixels, output pixels) of each stage's first layer
    (16, 16, 32**2, 32**2),
    (16, 24, 32**2, 32**2),
    (24, 32, 32**2, 16**2),
    (32, 64, 16**2, 8**2),
    (64, 112, 8**2, 8**2),
    (112, 184, 8**2, 4**2),
    (184, 352, 4**2, 4**2),
]


def by_hand(kernel: int, expansion: int, groups: int) -> tuple[int, int]:
    """(parameters, multiply-adds) of the CIFAR-100 network with one block everywhere, layer by layer."""
    params = 27 * 16 + 2 * 16 + 352 * 1504 + 2 * 1504 + 1505 * 100  # stem, head, classifier
    flops = 27 * 16 * 32**2 + 352 * 1504 * 4**2 + 1505 * 100
    for stage, (first, out, before, after) in enumerate(CIFAR):
        others = 0 if stage in (0, 6) else 3
        for channels, pixels in [(first, before)] + [(out, after)] * others:
            inner = channels * expansion
            expand, project = channels * inner // groups, inner * out // groups
            params += expand + 2 * inner + kernel**2 * inner + 2 * inner + project + 2 * out
            flops += expand * pixels + kernel**2 * inner * after + project * after
    return params, flops


@pytest.mark.parametrize(
    ("name", "block", "params", "flops"),
    [
        ("k3_e1", (3, 1, 1), 1_170_676, 31_322_340),
        ("k5_e1_g2", (5, 1, 2), 967_220, 24_102_628),
        ("k5_e6", (5, 6, 1), 3_749_652, 160_926_180),
    ],
)
def test_networks_worked_out_by_hand(name: str, block, params: int, flops: int) -> None:
    space = FBNet()
    assert by_hand(*block) == (params, flops)
    closed = space.static_metrics([only(name)])
    assert (closed["params"][0], closed["flops"][0]) == (params, flops)
    assert count(space.network(only(name)), space.image_shape) == (params, flops)


def test_a_network_of_skips_by_hand() -> None:
    """Only the six layers that change the shape are left, as pointwise convolutions."""
    shapes = [(16, 24, 32), (24, 32, 16), (32, 64, 8), (64, 112, 8), (112, 184, 4), (184, 352, 4)]
    params = 27 * 16 + 32 + 352 * 1504 + 2 * 1504 + 1505 * 100 + sum(a * b + 2 * b for a, b, _ in shapes)
    flops = 27 * 16 * 1024 + 352 * 1504 * 16 + 1505 * 100 + sum(a * b * n * n for a, b, n in shapes)
    closed = FBNet().static_metrics([only("skip")])
    assert (closed["params"][0], closed["flops"][0]) == (params, flops)
    assert (params, flops) == (780_660, 11_609_060)


# Not in the released networks: the first convolutions of blocks of expansion 1 (channels, groups, pixels).
WITHOUT = {
    "fbnet_a": [(24, 1, 56**2), (32, 1, 28**2), (64, 2, 14**2), (112, 2, 14**2), (112, 2, 14**2)],
    "fbnet_b": [(16, 1, 112**2), *[(24, 1, 56**2)] * 3, *[(112, 1, 14**2)] * 2, (184, 1, 7**2)],
    "fbnet_c": [(16, 1, 112**2), *[(24, 1, 56**2)] * 2],
}


@pytest.mark.parametrize(
    ("name", "flops_m", "params_m"),
    [("fbnet_a", 244.5, 4.3), ("fbnet_b", 291.1, 4.8), ("fbnet_c", 378.2, 5.6)],
)
def test_published_networks_have_their_published_size(name: str, flops_m: float, params_m: float) -> None:
    """Millions of multiply-adds and parameters of the authors' model zoo (C: 5.5; timm's card: 5.6)."""
    closed = IMAGENET.static_metrics([IMAGENET.from_str(IMAGENET.presets[name])])
    flops, params = closed["flops"][0], closed["params"][0]
    for channels, groups, pixels in WITHOUT[name]:
        flops -= channels**2 // groups * pixels
        params -= channels**2 // groups + 2 * channels
    if name == "fbnet_a":  # the other channels of the head
        flops -= 480 * (352 * 7**2 + 1000)
        params -= 480 * (352 + 2 + 1000)
    assert flops / 1e6 == pytest.approx(flops_m, abs=0.1)
    assert params / 1e6 == pytest.approx(params_m, abs=0.05)


@pytest.mark.parametrize(
    "space",
    [
        FBNet(),
        IMAGENET,
        FBNet(channels=8, image_shape=(1, 8, 8), num_classes=10),
        FBNet(image_shape=(3, 17, 30)),
    ],
    ids=["cifar100", "imagenet", "digits", "odd"],
)
def test_closed_form_is_what_torch_counts(space: FBNet) -> None:
    genotypes = space.sample(np.random.default_rng(1), 4)
    closed = space.static_metrics(genotypes)
    for genotype, params, flops in zip(genotypes, closed["params"], closed["flops"], strict=True):
        assert count(space.network(genotype), space.image_shape) == (params, flops)


def test_a_network_computes_features_and_logits() -> None:
    space = FBNet(num_classes=7)
    network = space.network(space.sample(np.random.default_rng(2), 1)[0])
    x = torch.randn(2, 3, 32, 32)
    taps, logits = network.features(x)
    assert [tuple(tap.shape) for tap in taps] == [(2, 24, 32, 32), (2, 32, 16, 16), (2, 112, 8, 8)]
    assert logits.shape == (2, 7)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_residuals_and_skips() -> None:
    """A residual only where shapes agree; an identity skip has no parameters, the others a convolution."""
    for layer in FBNet().layers:
        block = operation(0, layer)
        assert isinstance(block, InvertedResidual)
        assert block.residual == (layer.stride == 1 and layer.in_channels == layer.out_channels)
        skip = operation(SKIP, layer)
        assert bool(list(skip.parameters())) != layer.identity
        x = torch.randn(2, layer.in_channels, layer.height, layer.width)
        assert skip(x).shape == block(x).shape == (2, *layer.output)


def test_groups_exchange_channels() -> None:
    """With two groups and a shuffle every output depends on every input; without the shuffle on its half."""
    layer = FBNet().layers[2]
    block = operation(OPS.index("k3_e1_g2"), layer).eval()
    for norm in (block.expand[1], block.depthwise[1]):
        torch.nn.init.constant_(norm.bias, 100.0)  # no ReLU is at zero

    def seen() -> int:
        x = torch.randn(1, layer.in_channels, 5, 5, requires_grad=True)
        block(x)[0, 0, 2, 2].backward()
        assert x.grad is not None
        return int((x.grad.abs().sum(dim=(0, 2, 3)) > 0).sum())

    assert seen() == layer.in_channels == 24
    block.shuffle = torch.nn.Identity()
    assert seen() == 12


def test_blocks_add_up_to_the_network() -> None:
    """Multiply-adds of the blocks, counted one by one, sum to those of a network."""
    space = FBNet()
    blocks = space.blocks()
    alone = {name: count(module, shape)[1] for name, (module, shape) in blocks.modules.items()}
    for genotype in space.sample(np.random.default_rng(3), 3):
        used = [blocks.always, *(row[op] for row, op in zip(blocks.edges, genotype, strict=True))]
        total = sum(number * alone[name] for counts in used for name, number in counts.items())
        assert total == space.static_metrics([genotype])["flops"][0]


def test_the_network_is_of_the_space() -> None:
    network = FBNetNetwork(FBNet(channels=8), only("k3_e3"))
    assert network.stem[0].out_channels == 8
    assert FBNet().resized(channels=8, num_cells=1).channels == 8
