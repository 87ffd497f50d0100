from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hwnas.spaces.blocks import count
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.nasbench201.encoding import AVG_POOL, CONV_1X1, CONV_3X3, NONE, OPS, SKIP

ALL = list(itertools.product(range(5), repeat=6))


@pytest.mark.parametrize("num_classes", [10, 100])
def test_static_metrics_equal_the_published_closed_form_for_all_cells(num_classes: int) -> None:
    space = NasBench201(num_classes=num_classes)
    G = np.array(ALL)
    n3, n1 = (G == 3).sum(axis=1), (G == 2).sum(axis=1)
    metrics = space.static_metrics(ALL)
    K = num_classes
    assert metrics["params"].tolist() == (73306 - 650 + 65 * K + 243040 * n3 + 28000 * n1).tolist()
    assert metrics["flops"].tolist() == (7_782_400 + 35_389_440 * n3 + 3_932_160 * n1 + 65 * K).tolist()


def test_static_metrics_are_sums_over_edges() -> None:
    space = NasBench201()
    sums, metrics = space.static_sums(), space.static_metrics(ALL[::97])
    for name, values in metrics.items():
        assert [sums[name](genotype) for genotype in ALL[::97]] == values.tolist()


@pytest.mark.parametrize(
    ("num_classes", "num_sampled"),
    [
        (10, 15),
        (100, 3),
        pytest.param(10, 200, marks=pytest.mark.slow),
        pytest.param(100, 40, marks=pytest.mark.slow),
    ],
)
def test_real_networks_count_what_the_closed_form_says(num_classes: int, num_sampled: int) -> None:
    space = NasBench201(num_classes=num_classes)
    genotypes = [(NONE,) * 6, (CONV_3X3,) * 6, *space.sample(np.random.default_rng(num_classes), num_sampled)]
    with torch.device("meta"):
        counted = [count(space.network(genotype), space.image_shape) for genotype in genotypes]
    metrics = space.static_metrics(genotypes)
    assert counted == list(zip(metrics["params"].tolist(), metrics["flops"].tolist(), strict=True))


@pytest.mark.parametrize(
    ("channels", "num_cells", "image_shape", "num_classes"),
    [
        (16, 2, (1, 28, 28), 10),
        (8, 1, (3, 7, 9), 3),
        (5, 2, (1, 1, 1), 2),
        (4, 3, (2, 15, 33), 1),
        (12, 1, (3, 224, 2), 1000),
    ],
)
def test_closed_form_for_other_networks(
    channels: int, num_cells: int, image_shape: tuple[int, int, int], num_classes: int
) -> None:
    space = NasBench201(channels, num_cells, image_shape=image_shape, num_classes=num_classes)
    genotypes = [(op,) * 6 for op in range(5)] + space.sample(np.random.default_rng(0), 3)
    with torch.device("meta"):
        counted = [count(space.network(genotype), image_shape) for genotype in genotypes]
    metrics = space.static_metrics(genotypes)
    assert counted == list(zip(metrics["params"].tolist(), metrics["flops"].tolist(), strict=True))


def test_static_metrics_of_nothing() -> None:
    assert {name: values.shape for name, values in NasBench201().static_metrics([]).items()} == {
        "flops": (0,),
        "params": (0,),
    }


def test_strings() -> None:
    space = NasBench201()
    text = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    assert space.from_str(text) == (4, 2, 1, 2, 1, 1)
    assert space.to_str((4, 2, 1, 2, 1, 1)) == text
    assert space.from_str(f"  {text}\n") == (4, 2, 1, 2, 1, 1)
    assert space.to_str((NONE, SKIP, CONV_1X1, CONV_3X3, AVG_POOL, NONE)) == (
        "|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|"
    )


def test_all_strings_return() -> None:
    space = NasBench201()
    texts = [space.to_str(genotype) for genotype in ALL]
    assert len(set(texts)) == 15_625 == space.size
    assert [space.from_str(text) for text in texts] == ALL


GOOD = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has 1 nodes, not 3; the form is .*nor_conv_3x3~0"),
        ("|none~0|+|none~0|none~1|", "has 2 nodes, not 3"),
        (GOOD + "+|none~0|none~1|none~2|none~3|", "has 4 nodes, not 3"),
        ("|none~0|none~1|+|none~0|none~1|+|none~0|none~1|none~2|", "node 1 of .* has 2 inputs, not 1"),
        ("|none~0|+|none~0|+|none~0|none~1|none~2|", "node 2 of .* has 1 inputs, not 2"),
        ("|none~0|+|none~1|none~0|+|none~0|none~1|none~2|", "'none~1' should be <operation>~0"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|none~3|", "'none~3' should be <operation>~2"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|none|", "'none' should be <operation>~2"),
        ("|none~0|+|none~0||+|none~0|none~1|none~2|", "node 2 of .* has 1 inputs, not 2"),
        (
            "|none~0|+|none~0|none~1|+|none~0|conv~1|none~2|",
            "unknown operation 'conv' in .*; known: none, skip",
        ),
        ("||+||+||", "should be <operation>~0|inputs"),
    ],
)
def test_malformed_strings_say_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NasBench201().from_str(text)


def test_from_str_respects_the_choices() -> None:
    space = NasBench201().restrict([[1, 2, 3, 4]] * 6)
    with pytest.raises(ValueError, match="operation 0 on edge 0 of nasbench201 is not one of"):
        space.from_str(GOOD)


def test_strings_and_costs_are_those_of_the_table(table: dict[str, np.ndarray]) -> None:
    space = NasBench201()
    genotypes = [space.from_str(text) for text in table["arch_str"].tolist()]
    assert genotypes == [tuple(row) for row in table["arch_ops"].tolist()]
    assert [space.to_str(genotype) for genotype in genotypes] == table["arch_str"].tolist()
    assert tuple(table["ops"].tolist()) == OPS
    for dataset, num_classes in (("cifar10", 10), ("cifar100", 100)):
        metrics = NasBench201(num_classes=num_classes).static_metrics(genotypes)
        assert metrics["params"] == pytest.approx(table[f"{dataset}_params_M"] * 1e6, rel=1e-12)
        assert metrics["flops"] == pytest.approx(table[f"{dataset}_flops_M"] * 1e6, rel=1e-12)


def test_disconnected_cells_are_those_that_guess(table: dict[str, np.ndarray]) -> None:
    connected = NasBench201().is_connected(table["arch_ops"])
    assert (~connected).sum() == 341
    assert np.array_equal(connected, table["cifar10_test_200"] != 10.00)


def test_connected() -> None:
    genotypes = [
        (0, 0, 0, 0, 0, 0),
        (0, 0, 0, 1, 0, 0),  # 0 -> 3
        (1, 0, 0, 0, 1, 0),  # 0 -> 1 -> 3
        (1, 0, 1, 0, 0, 1),  # 0 -> 1 -> 2 -> 3
        (0, 3, 0, 0, 0, 4),  # 0 -> 2 -> 3
        (1, 1, 1, 0, 0, 0),  # nothing enters 3
        (0, 0, 1, 0, 1, 1),  # nothing leaves 0
        (1, 0, 0, 0, 0, 1),
    ]
    assert NasBench201().is_connected(genotypes).tolist() == [
        False,
        True,
        True,
        True,
        True,
        False,
        False,
        False,
    ]


def test_restrict() -> None:
    space = NasBench201(8, 2, image_shape=(1, 9, 9), num_classes=7)
    small = space.restrict([[3], [4, 1], [0, 1, 2, 3, 4], [1], [1], [2, 2]])
    assert small.choices == ((3,), (1, 4), (0, 1, 2, 3, 4), (1,), (1,), (2,))
    assert (small.size, small.channels, small.num_cells) == (10, 8, 2)
    assert (small.image_shape, small.num_classes) == ((1, 9, 9), 7)
    assert space.size == 15_625
    assert set(small.sample(np.random.default_rng(0), 200)) == {
        (3, a, b, 1, 1, 2) for a in (1, 4) for b in range(5)
    }
    assert small.resized(channels=4, num_cells=1).choices == small.choices
    with pytest.raises(ValueError, match="operation 3 on edge 5"):
        small.network((3, 1, 0, 1, 1, 3))


def test_a_restricted_space_decodes_only_what_it_allows() -> None:
    small = NasBench201().restrict([[3], [4, 1], [0, 1, 2, 3, 4], [1], [1], [2, 2]])
    alphas = np.zeros((2, 6, 5))
    alphas[:, :, NONE] = 9.0  # allowed on the third edge only
    alphas[0, 1] = [9.0, 0.2, 8.0, 7.0, 0.1]
    alphas[1, 1] = [9.0, -0.2, 8.0, 7.0, -0.1]
    assert small.decode(alphas) == [(3, 1, 0, 1, 1, 2), (3, 4, 0, 1, 1, 2)]
    for genotype in small.all():
        assert small.decode(small.onehot([genotype])) == [genotype]
    rng = np.random.default_rng(0)
    assert all(small.check(child) for child in (small.mutate((3, 1, 0, 1, 1, 2), rng) for _ in range(50)))


@pytest.mark.parametrize("keep", [[[0]] * 5, [[0]] * 5 + [[]], [[0]] * 5 + [[5]], [[0]] * 5 + [[-1]], []])
def test_restrict_refuses(keep: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"choices must be 6 non-empty sets of 0\.\.4, not "):
        NasBench201().restrict(keep)


@pytest.mark.parametrize(("channels", "num_cells", "name"), [(0, 5, "channels"), (16, 0, "num_cells")])
def test_sizes_are_checked(channels: int, num_cells: int, name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be a whole number of at least 1, not 0"):
        NasBench201(channels, num_cells)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (8, 8), (7, 9), (1, 1), (2, 5)])
def test_shapes_of_features(height: int, width: int) -> None:
    space = NasBench201(4, 1, image_shape=(3, height, width), num_classes=6)
    network = space.network((3, 2, 4, 1, 3, 4)).eval()
    with torch.no_grad():
        taps, logits = network.features(torch.rand(2, 3, height, width))
    half, quarter = (-(-height // 2), -(-width // 2)), (-(-height // 4), -(-width // 4))
    assert [tuple(tap.shape) for tap in taps] == [(2, 4, height, width), (2, 8, *half), (2, 16, *quarter)]
    assert tuple(logits.shape) == (2, 6)
    assert (taps[2] >= 0).all()  # after the last ReLU


@pytest.mark.parametrize("genotype", [(0,) * 6, (1,) * 6, (0, 3, 3, 0, 3, 0), (3, 3, 3, 0, 0, 0)])
def test_networks_without_much_inside_give_finite_logits(genotype: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    network = NasBench201(4, 2, image_shape=(1, 8, 8)).network(genotype)
    x = torch.rand(3, 1, 8, 8)
    for mode in (True, False):
        logits = network.train(mode)(x)
        assert torch.isfinite(logits).all()
        logits.sum().backward()
    if genotype == (0,) * 6:
        assert torch.equal(logits, network.classifier.bias.expand(3, 10))


def test_cell_by_hand() -> None:
    # nodes: x; skip x; x + x = 2x (skips of 0 and 1); skip of 0 and skip of 2: 3x
    space = NasBench201(2, 1, image_shape=(1, 4, 4))
    cell = space.network((1, 1, 1, 1, 0, 1)).stages[0][0]
    x = torch.rand(1, 2, 4, 4)
    assert torch.equal(cell(x), 3 * x)
    # pool of a constant is the constant, also at the border: x + x
    cell = space.network((0, 0, 0, 4, 4, 1)).stages[0][0]
    assert torch.allclose(cell(torch.ones(1, 2, 4, 4)), torch.ones(1, 2, 4, 4))


def test_blocks_add_up_to_the_closed_form() -> None:
    space = NasBench201(8, 2, image_shape=(3, 9, 7), num_classes=5)
    blocks = space.blocks()
    costs = {name: np.array(count(module, shape)) for name, (module, shape) in blocks.modules.items()}
    for genotype in space.sample(np.random.default_rng(3), 20):
        total = sum(n * costs[name] for name, n in blocks.always.items())
        for edge, op in enumerate(genotype):
            total = total + sum(n * costs[name] for name, n in blocks.edges[edge][op].items())
        metrics = space.static_metrics([genotype])
        assert total.tolist() == [metrics["params"][0], metrics["flops"][0]]
