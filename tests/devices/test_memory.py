"""Figures by hand, and against the liveness of the tensors of real networks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

from hwnas import optional, width
from hwnas.core import Genotype, Limit, Objective
from hwnas.devices.memory import Memory
from hwnas.devices.onnx_models import Allocated, allocated, write_models
from hwnas.searches.exact import check_possible, exact_optimum, yardsticks
from hwnas.spaces.capabilities import HasNetworks
from hwnas.spaces.darts import Darts
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.fbnet.encoding import OPS, SKIP
from hwnas.spaces.known.spaces import MobileSpace, ResNetSpace
from hwnas.spaces.liveness import most_alive
from hwnas.spaces.module import ModuleSpace
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy, ToyCost

IMAGE = (3, 8, 8)


class Tiny(nn.Module):
    """Two convolutions, of which the second may be added to the first."""

    def __init__(self, image_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        channels = width("channels", [4, 8])
        self.first = nn.Conv2d(image_shape[0], channels, 3, padding=1)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.added = optional("residual", lambda: nn.ReLU(inplace=True))
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = self.second(x)
        if isinstance(self.added, nn.ReLU):
            y += x
            y = self.added(y)
        return self.head(y.mean((2, 3)))


@pytest.fixture(scope="module")
def tiny() -> ModuleSpace:
    return ModuleSpace(Tiny, image_shape=IMAGE)


def darts_text(normal: str, reduce: str) -> str:
    cells = [
        [(op, int(source)) for op, source in (p.split("-") for p in of.split())] for of in (normal, reduce)
    ]
    return (
        f"Genotype(normal={cells[0]}, normal_concat=range(2, 6), reduce={cells[1]}, "
        "reduce_concat=range(2, 6))"
    )


@pytest.mark.parametrize(
    ("text", "by_hand"),
    [
        # A skip is its input: the first reduction counts, where the input (256) waits beside its pooled
        # convolution (128) and the first convolution of the other branch (128).
        ("|none~0|+|none~0|none~1|+|skip_connect~0|none~1|none~2|", 256 + 128 + 128),
        # x, its pool, and their sum
        ("|avg_pool_3x3~0|+|none~0|none~1|+|skip_connect~0|skip_connect~1|none~2|", 3 * 256),
        # At the sum of node 2: positive x for edge 0-3, positive node 1 for edge 1-3, two outputs, their sum
        (
            "|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|",
            5 * 256,
        ),
        # The convolution 0-2 leads nowhere, and x is pooled once for two edges: less than a reduction needs
        (
            "|avg_pool_3x3~0|+|nor_conv_3x3~0|none~1|+|avg_pool_3x3~0|skip_connect~1|none~2|",
            256 + 128 + 128,
        ),
        # No path: the network is a constant.
        ("|nor_conv_3x3~0|+|none~0|none~1|+|none~0|none~1|nor_conv_3x3~2|", 3 * 64),
    ],
)
def test_nasbench201_by_hand(text: str, by_hand: int) -> None:
    """A tensor of the first stage has 4 * 64 = 256 numbers."""
    space = NasBench201(4, 1, image_shape=IMAGE)
    assert space.most_alive([space.from_str(text)]) == [by_hand]


def test_fbnet_by_hand() -> None:
    """The stem has 2 channels of 64 pixels; layers 1 to 4 have 4 of them."""
    space = FBNet(channels=2, image_shape=IMAGE)
    skips = [SKIP] * 22
    wide, shuffled = [OPS.index("k3_e6"), *skips[1:]], [*skips[:2], OPS.index("k3_e1_g2"), *skips[3:]]
    assert space.most_alive([tuple(skips), tuple(wide), tuple(shuffled)]).tolist() == [
        128 + 256,  # the convolution of a skip from 2 to 4 channels
        128 + 768 + 768,  # x, which is added later, and the depthwise convolution of 6 times its size
        256 + 256 + 256,  # x, six channels and the same ones shuffled
    ]


@pytest.mark.parametrize(
    ("normal", "reduce", "by_hand"),
    [
        # The third cell takes rows but the first of its first input: that and a copy of 7/8, the second input
        # at half the size, and a quarter of the first convolution's outputs. All nodes are one sum.
        ("max_pool_3x3-0 max_pool_3x3-1 " * 4, "max_pool_3x3-0 max_pool_3x3-1 " * 4, 4 + 3.5 + 2 + 0.5),
        # The concatenation of the first cell: the stem for the next cell, four nodes, and their copy
        ("sep_conv_3x3-0 sep_conv_3x3-1 " * 4, "max_pool_3x3-0 max_pool_3x3-1 " * 4, 3 + 4 + 4),
        # A skip of stride 2 in the second cell, at its second input: the cell before, both inputs, the first
        # edge, half of the skip's outputs, all rows but one (1.75), and of these all columns but one
        (
            "max_pool_3x3-0 max_pool_3x3-1 " * 4,
            "skip_connect-0 skip_connect-1 " + "sep_conv_3x3-0 sep_conv_3x3-1 " * 3,
            4 + 2 + 2 + 0.5 + 0.25 + 1.75 + 1.75 * 7 / 8,
        ),
    ],
)
def test_darts_by_hand(normal: str, reduce: str, by_hand: float) -> None:
    """In units of a node of the first cell: 2 channels of 64 pixels. The stem has 3, a cell's output 4."""
    space = Darts(2, 3, image_shape=IMAGE)
    assert space.most_alive([space.from_str(darts_text(normal, reduce))]) == [128 * by_hand]


def test_modules_by_hand(tiny: ModuleSpace) -> None:
    """A tensor of 4 channels has 256 numbers; a sum that overwrites in code has an output of its own."""
    texts = ("channels=4 residual=no", "channels=4 residual=yes", "channels=8 residual=yes")
    networks = [tiny.from_str(text) for text in texts]
    assert tiny.most_alive(networks).tolist() == [2 * 256, 3 * 256, 3 * 512]


SPACES: dict[str, Callable[[], HasNetworks]] = {
    "nasbench201": lambda: NasBench201(4, 1, image_shape=(3, 9, 12)),
    "darts": lambda: Darts(3, 4, image_shape=(1, 13, 16)),
    "darts-imagenet": lambda: Darts(8, 3, image_shape=(3, 32, 40), stem="imagenet"),
    "fbnet": lambda: FBNet(channels=6, image_shape=(3, 15, 20)),
    "fbnet-imagenet": lambda: FBNet("imagenet", image_shape=(3, 64, 64)),
    "mobile": lambda: MobileSpace(image_shape=(3, 37, 32)),
    "resnet": lambda: ResNetSpace(image_shape=(1, 28, 28)),
}
"""Odd sides, and channels below 8, too, where convolutions of stride 2 copy pixels first."""


def compared(space: HasNetworks, number: int) -> None:
    networks = space.sample(np.random.default_rng(7), number)
    plain = [most_alive(space.network(genotype), space.image_shape) for genotype in networks]
    assert space.most_alive(networks).tolist() == plain


@pytest.mark.parametrize("name", SPACES)
def test_closed_forms_are_those_of_the_real_networks(name: str) -> None:
    compared(SPACES[name](), 2)


@pytest.mark.slow
@pytest.mark.parametrize("name", SPACES)
def test_fifty_closed_forms_are_those_of_the_real_networks(name: str) -> None:
    compared(SPACES[name](), 50)


def test_modules_are_traced_as_they_run(tiny: ModuleSpace) -> None:
    compared(tiny, 4)


def onnxruntime_bytes(space: HasNetworks, genotype: Genotype, folder: Path, *, sparing: bool) -> Allocated:
    """What onnxruntime allocates for a network; the folder is empty."""
    shape = (1, *space.image_shape)
    write_models({"network": (space.network(genotype), shape, "network.onnx")}, folder)
    found = allocated(folder / "network.onnx", shape, sparing=sparing)
    assert found is not None
    return found


@pytest.mark.parametrize("space", [NasBench201(4, 1), Darts(8, 3), FBNet(channels=8)], ids=lambda s: s.name)
def test_onnxruntime_allocates_as_much(space: HasNetworks, tmp_path: Path) -> None:
    """The image is not onnxruntime's own; it counts in none of these networks' peaks."""
    pytest.importorskip("onnxruntime")
    (network,) = space.sample(np.random.default_rng(3), 1)
    found = onnxruntime_bytes(space, network, tmp_path, sparing=True)
    assert found.tensors == 4 * space.most_alive([network])[0]
    assert found.in_all >= found.tensors


ONE_SIZE = {"nasbench201": NasBench201(16, 1), "darts": Darts(8, 3), "fbnet": FBNet()}
SIZES: dict[str, Callable[[int, int], HasNetworks]] = {
    "nasbench201": lambda channels, side: NasBench201(channels, 1, image_shape=(3, side, side)),
    "darts": lambda channels, side: Darts(channels, 3, image_shape=(3, side, side)),
    "fbnet": lambda channels, side: FBNet(channels=channels, image_shape=(3, side, side)),
    "mobile": lambda channels, side: MobileSpace(image_shape=(3, side, side)),
    "resnet": lambda channels, side: ResNetSpace(image_shape=(3, side, side)),
}
"""Spaces by width, where they have one, and side of the images."""


def of_one_size(name: str) -> list[tuple[HasNetworks, Genotype]]:
    """Fifty random networks that are no constants."""
    space = ONE_SIZE[name]
    drawn = space.sample(np.random.default_rng(11), 60)
    return [(space, network) for network in drawn if space.is_connected([network])[0]][:50]


def of_many_sizes(name: str) -> list[tuple[HasNetworks, Genotype]]:
    """Fifty random networks that are no constants, each of a random width for images of a random side."""
    rng, found = np.random.default_rng(11), list[tuple[HasNetworks, Genotype]]()
    while len(found) < 50:
        space = SIZES[name](int(rng.choice([4, 8, 12, 16, 24, 32])), int(rng.choice([16, 24, 32, 48])))
        (network,) = space.sample(rng, 1)
        if space.is_connected([network])[0]:
            found.append((space, network))
    return found


def compared_with_onnxruntime(
    networks: Sequence[tuple[HasNetworks, Genotype]], folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Ratios to `ram_kb` and Spearman's rank correlations with it.

    Of tensors freed once they are read, the same with all else, tensors by default, and the same with all
    else: (4, networks) and (4,).
    """
    counted = 4 * np.array([space.most_alive([network])[0] for space, network in networks])
    rows = []
    for space, network in networks:
        plain, usual = (onnxruntime_bytes(space, network, folder, sparing=of) for of in (True, False))
        rows.append([plain.tensors, plain.in_all, usual.tensors, usual.in_all])
    columns = np.array(rows).T
    return columns / counted, np.array([spearmanr(counted, column).statistic for column in columns])


@pytest.mark.slow
@pytest.mark.parametrize("name", ONE_SIZE)
def test_fifty_networks_of_one_size_in_onnxruntime(name: str, tmp_path: Path) -> None:
    """The figures of docs/measurements.md."""
    pytest.importorskip("onnxruntime")
    ratios, rank = compared_with_onnxruntime(of_one_size(name), tmp_path)
    print(name, rank.round(3), np.quantile(ratios, [0, 0.5, 1], axis=1).round(2).tolist())
    assert (ratios[0] == 1).all()


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
def test_fifty_networks_of_many_sizes_in_onnxruntime(name: str, tmp_path: Path) -> None:
    """The figures of docs/measurements.md."""
    pytest.importorskip("onnxruntime")
    ratios, rank = compared_with_onnxruntime(of_many_sizes(name), tmp_path)
    print(name, rank.round(3), np.quantile(ratios, [0, 0.5, 1], axis=1).round(2).tolist())
    assert rank[0] > 0.9


def test_units_bits_and_weights() -> None:
    """Five edges of one 3x3 convolution that leads nowhere are no part of the file."""
    space = NasBench201(4, 1, image_shape=IMAGE)
    cell = space.from_str("|none~0|+|nor_conv_3x3~0|none~1|+|skip_connect~0|none~1|none~2|")
    # Stem 108 + 8, reductions 4*8*9 + 8*8*9 + 32 + 32 and 8*16*9 + 16*16*9 + 128 + 64, norm 32, head 170
    params = 108 + 8 + 288 + 576 + 64 + 1152 + 2304 + 192 + 32 + 170
    for bits in (8, 32):
        memory = Memory(space, metric="flash_kb", bits=bits)
        assert list(memory.metrics) == ["flash_kb", "ram_kb"]
        assert memory.evaluate([cell]) == [
            {"flash_kb": params * bits / 8 / 1024, "ram_kb": 512 * bits / 8 / 1024}
        ]
    with pytest.raises(ValueError, match="bits must be one of 8, 32, not 16"):
        Memory(space, metric="ram_kb", bits=16)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="the toy space has no networks"):
        Memory(Toy(), metric="ram_kb", bits=8)


def test_a_limit_below_the_smallest_network_says_what_that_needs(tiny: ModuleSpace) -> None:
    messages = {}
    for space in (NasBench201(), FBNet(), Darts(4, 3), tiny):
        memory = Memory(space, metric="ram_kb", bits=8)
        with pytest.raises(ValueError, match="no network of") as error:
            check_possible(space, [memory], [Limit("ram_kb", 0.1)], "")
        lowest = float(str(error.value).partition("the lowest ram_kb is ")[2].split()[0])
        drawn = [row["ram_kb"] for row in memory.evaluate(space.sample(np.random.default_rng(0), 100))]
        check_possible(space, [memory], [Limit("ram_kb", 1.01 * lowest)], "")
        assert lowest <= 1.001 * min(drawn)
        messages[space.name.partition("-")[0]] = lowest
    # A network without a path holds the image; a chain of FBNet the input and the output of its convolution
    # from 16 to 24 channels; the module two tensors of 4 channels.
    assert messages["nasbench201"] == 3
    assert messages["fbnet"] == (16 + 24) * 32 * 32 / 1024
    assert messages["Tiny"] == 2 * 256 / 1024


def test_exact_answers_within_memory() -> None:
    """A limit on a peak forbids operations; what is left of FBNet is a knapsack as before."""
    space = FBNet()
    evaluators = [ToyCost(space, metric="val_acc"), Memory(space, metric="ram_kb", bits=32)]
    objectives = (Objective("val_acc", "max"), Objective("flash_kb", "min"))
    found = yardsticks(space, evaluators, objectives, [Limit("ram_kb", 700)])
    values = evaluators[1].largest("ram_kb").values
    quality = np.where(values <= 700, evaluators[0].table, -np.inf)
    assert found["best"] == tuple(quality.argmax(axis=1).tolist())
    assert evaluators[1].evaluate([found["best"]])[0]["ram_kb"] <= 700
    both = yardsticks(space, evaluators, objectives, [Limit("ram_kb", 700), Limit("flash_kb", 5000)])
    metrics = evaluators[1].evaluate([both["best"]])[0]
    assert metrics["ram_kb"] <= 700
    assert metrics["flash_kb"] <= 5000 * (1 + 1e-9)


def test_exact_front_of_a_listed_space() -> None:
    space = NasBench201(4, 1, image_shape=IMAGE, choices=[(0, 1, 3)] * 6)
    evaluators = [ToyCost(space, metric="val_acc"), Memory(space, metric="ram_kb", bits=8)]
    objectives = (Objective("val_acc", "max"), Objective("ram_kb", "min"))
    optimum = exact_optimum(space, evaluators, objectives, [Limit("ram_kb", 0.75)])
    assert optimum is not None
    assert optimum.best is not None
    assert optimum.best.metrics["ram_kb"] <= 0.75
    assert [trial.metrics["ram_kb"] for trial in optimum.front] == sorted(
        {trial.metrics["ram_kb"] for trial in optimum.front}
    )
