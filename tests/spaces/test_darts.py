from __future__ import annotations

import itertools
from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from hwnas.build import build, conf_folder
from hwnas.core import Objective, Trial
from hwnas.devices.flops import Flops
from hwnas.spaces.blocks import count
from hwnas.spaces.darts import Darts
from hwnas.spaces.darts.encoding import (
    AVG_POOL,
    DIL_3X3,
    DIL_5X5,
    EDGES,
    MAX_POOL,
    NODES,
    NONE,
    OPS,
    PRESETS,
    SEP_3X3,
    SEP_5X5,
    SKIP,
)
from hwnas.spaces.darts.network import FactorizedReduce, drop_path, operation

ALL_OPS = tuple(range(8))
# One kept input more than needed on no node; the rest of each cell is two 3x3 separable convolutions.
PLAIN = [0] * 28
for _edges in NODES:
    PLAIN[_edges[0]] = PLAIN[_edges[1]] = SEP_3X3
PLAIN_GENOTYPE = tuple(PLAIN)


def alphas_of(*entries: tuple[int, int, float]) -> np.ndarray:
    """One architecture's alphas: zeros but for (edge, operation, alpha)."""
    alphas = np.zeros((1, 28, 8))
    for edge, op, value in entries:
        alphas[0, edge, op] = value
    return alphas


def test_edges_are_in_the_published_order() -> None:
    assert EDGES[:5] == (
        ("normal", 0, 2),
        ("normal", 1, 2),
        ("normal", 0, 3),
        ("normal", 1, 3),
        ("normal", 2, 3),
    )
    assert (EDGES[13], EDGES[14], EDGES[27]) == (("normal", 4, 5), ("reduce", 0, 2), ("reduce", 4, 5))
    assert NODES[:4] == ((0, 1), (2, 3, 4), (5, 6, 7, 8), (9, 10, 11, 12, 13))
    assert NODES[4:] == ((14, 15), (16, 17, 18), (19, 20, 21, 22), (23, 24, 25, 26, 27))
    assert (
        *("none", "max_pool_3x3", "avg_pool_3x3", "skip_connect"),
        *("sep_conv_3x3", "sep_conv_5x5", "dil_conv_3x3", "dil_conv_5x5"),
    ) == OPS


def test_size() -> None:
    # 7 * 7 operations and 1, 3, 6, 10 pairs of inputs per node; two cells
    assert Darts().size == (49**4 * 1 * 3 * 6 * 10) ** 2 == 1_076_746_950_455_072_400
    assert Darts().alpha_shape == (28, 8)


def test_decoding_keeps_the_two_best_edges_by_hand() -> None:
    alphas = alphas_of(
        (0, SKIP, 0.1),
        (1, DIL_5X5, 0.2),  # node 0 has two inputs: both stay
        (2, MAX_POOL, 3.0),
        (3, SEP_5X5, 1.0),
        (4, AVG_POOL, 2.0),  # node 1 keeps edges 2 and 4
        (5, NONE, 9.0),
        (5, SKIP, 1.0),  # `none` is no candidate, but takes the weight: the worst edge of node 2
        (6, SEP_3X3, 0.5),
        (7, DIL_3X3, 0.4),
        (8, SKIP, 0.3),
        (9, MAX_POOL, 1.0),
        (10, MAX_POOL, 1.0),
        (11, MAX_POOL, 1.0),  # node 3: equal edges, the first two count
    )
    alphas[0, 14:] = alphas[0, :14]
    normal = (SKIP, DIL_5X5, MAX_POOL, 0, AVG_POOL, 0, SEP_3X3, DIL_3X3, 0, MAX_POOL, MAX_POOL, 0, 0, 0)
    assert Darts().decode(alphas) == [normal + normal]


def test_decoding_counts_softmax_weights_not_alphas() -> None:
    alphas = alphas_of((2, SKIP, 2.0), (3, SKIP, 1.0), (4, SKIP, 1.1))
    alphas[0, 2, SEP_3X3] = 1.9  # edge 2: e^2 / (e^2 + e^1.9 + 6) = 0.368
    assert Darts().decode(alphas)[0][2:5] == (SKIP, 0, SKIP)  # edge 3: e / (e + 7) = 0.280, edge 4: 0.300
    alphas[0, 2, SEP_5X5:] = 1.99  # edge 2: 7.39 / (7.39 + 6.69 + 3 * 7.32 + 3) = 0.189
    assert Darts().decode(alphas)[0][2:5] == (0, SKIP, SKIP)


def by_the_definition(alphas: np.ndarray) -> tuple[int, ...]:
    """The rule as the papers' code words it, one edge at a time."""
    weights = torch.softmax(torch.from_numpy(alphas), dim=1).tolist()
    genotype = [0] * 28
    for edges in NODES:
        ranked = sorted(edges, key=lambda edge: -max(weights[edge][1:]))
        for edge in ranked[:2]:
            genotype[edge] = max(range(1, 8), key=lambda op: weights[edge][op])
    return tuple(genotype)


@pytest.mark.parametrize("scale", [1.0, 1e-3, 30.0])
def test_decoding_equals_the_definition(scale: float) -> None:
    alphas = scale * np.random.default_rng(0).normal(size=(200, 28, 8))
    assert Darts().decode(alphas) == [by_the_definition(one) for one in alphas]


def test_decoding_is_canonical_and_checked() -> None:
    space = Darts()
    for genotype in space.decode(np.random.default_rng(1).random((100, 28, 8))):
        assert space.check(genotype) == genotype
    with pytest.raises(ValueError, match=r"alphas must have shape \(n, \(28, 8\)\), not \(28, 8\)"):
        space.decode(np.zeros((28, 8)))


def test_onehot_decodes_to_itself_and_leaves_other_edges_empty() -> None:
    space = Darts()
    genotypes = space.sample(np.random.default_rng(2), 300)
    alphas = space.onehot(genotypes)
    assert alphas.shape == (300, 28, 8)
    assert alphas.sum(axis=(1, 2)).tolist() == [16.0] * 300  # 8 per cell
    assert not alphas[:, :, NONE].any()
    assert space.decode(alphas) == genotypes
    # EvNAS: selected operations have the softmax weight e / (e + 7) = 0.27971, unselected edges 1/8
    weights = np.exp(alphas) / np.exp(alphas).sum(axis=2, keepdims=True)
    assert weights[alphas == 1] == pytest.approx(0.27971, abs=5e-6)
    assert weights[~alphas.any(axis=2)] == pytest.approx(0.125, abs=1e-12)


def test_sampling_is_uniform_over_valid_architectures() -> None:
    space = Darts(num_cells=3)
    sampled = space.sample(np.random.default_rng(3), 6000)
    assert all(space.check(genotype) == genotype for genotype in sampled)
    G = np.array(sampled)
    for edges, num_pairs in zip(NODES, (1, 3, 6, 10) * 2, strict=True):
        pairs = Counter(map(tuple, (G[:, edges] != NONE).tolist()))
        assert len(pairs) == num_pairs
        assert np.array(list(pairs.values())) / 6000 == pytest.approx(1 / num_pairs, abs=0.03)
    ops = np.bincount(G[G != NONE], minlength=8) / (16 * 6000)
    assert ops[1:] == pytest.approx(1 / 7, abs=0.005)
    assert sampled == space.sample(np.random.default_rng(3), 6000)


def small() -> Darts:
    """Six architectures: node 1 of the normal cell is open, and one operation of the reduction cell."""
    keep = [[SKIP]] * 2 + [[SKIP], [SKIP, NONE], [MAX_POOL]] + [[NONE]] * 23
    for edges in NODES[2:]:
        for edge in edges[:2]:
            keep[edge] = [SEP_3X3]
    keep[27] = [NONE]
    keep[14] = [DIL_3X3, AVG_POOL]
    return Darts().restrict(keep)


def test_all_lists_every_architecture_once() -> None:
    space = small()
    listed = space.all()
    assert space.size == len(listed) == len(set(listed)) == 6  # 3 pairs of inputs, 2 operations
    assert listed == sorted(listed)
    assert [space.check(genotype) for genotype in listed] == listed
    assert {genotype[2:5] for genotype in listed} == {(3, 3, 0), (3, 0, 1), (0, 3, 1)}
    assert {genotype[14] for genotype in listed} == {AVG_POOL, DIL_3X3}
    assert set(space.sample(np.random.default_rng(0), 200)) == set(listed)
    with pytest.raises(ValueError, match=r"the darts space has 1.08e\+18 architectures, too many to list"):
        Darts().all()


def test_a_restricted_space_decodes_only_what_it_allows() -> None:
    space = small()
    rng = np.random.default_rng(4)
    alphas = rng.normal(size=(300, 28, 8))
    alphas[:, :, DIL_5X5] += 9  # not allowed anywhere
    assert set(space.decode(alphas)) == set(space.all())
    # An edge that keeps `none` and one other decodes to the other, however large the alpha of `none` is.
    alphas = alphas_of((2, SKIP, 0.1), (3, SKIP, 0.2), (4, MAX_POOL, 0.0))
    assert space.decode(alphas)[0][2:5] == (SKIP, SKIP, 0)
    alphas[0, 3, NONE] = 5.0  # takes the weight of edge 3, which falls behind: it is not kept
    assert space.decode(alphas)[0][2:5] == (SKIP, 0, MAX_POOL)


def test_pruned_operations_count_as_alphas_of_zero() -> None:
    """Edge 2 keeps 2 operations, edges 3 and 4 only one: with the zeros all have 8 terms in the softmax."""
    keep: list[list[int]] = [list(ALL_OPS) for _ in range(28)]
    keep[2], keep[3], keep[4] = [SKIP, SEP_3X3], [SKIP], [MAX_POOL]
    space = Darts().restrict(keep)
    alphas = alphas_of((2, SKIP, 0.9), (2, SEP_3X3, 0.1), (3, SKIP, 0.8), (4, MAX_POOL, 0.7))
    # weights 2.4596 / 9.5648 = .2572, 2.2255 / 9.2255 = .2412, 2.0138 / 9.0138 = .2234
    assert space.decode(alphas)[0][2:5] == (SKIP, SKIP, 0)
    # Without the zeros edges 3 and 4 would have the weight 1 and win against e^.9 / (e^.9 + e^.1) = .690.


def test_onehot_of_a_restricted_space_decodes_to_itself() -> None:
    keep = [
        sorted(row) for row in np.random.default_rng(5).permuted(np.tile(ALL_OPS, (28, 1)), axis=1)[:, :2]
    ]
    space = Darts().restrict([[int(op) for op in ops] for ops in keep])
    genotypes = space.sample(np.random.default_rng(6), 100)
    assert space.decode(space.onehot(genotypes)) == genotypes


def test_distances_by_hand() -> None:
    space = Darts()
    a = PLAIN_GENOTYPE
    one = (SKIP, *a[1:])  # another operation: 15 of 16 agree, 1 - 15 / 17
    rewired = list(a)
    rewired[3], rewired[4] = NONE, SEP_3X3  # the same operation from another input: 15 agree
    nothing = tuple(SKIP if op else 0 for op in a)
    distances = space.distances([a], [a, one, tuple(rewired), nothing])
    assert distances[0].tolist() == pytest.approx([0.0, 1 - 15 / 17, 1 - 15 / 17, 1.0])
    assert space.distances([a, one], [nothing]).shape == (2, 1)
    assert space.distances([], [a]).shape == (0, 1)


def test_check_wants_two_inputs_per_node() -> None:
    space = Darts()
    with pytest.raises(ValueError, match="a darts genotype has 28 entries, not 27"):
        space.check(PLAIN_GENOTYPE[1:])
    with pytest.raises(ValueError, match=r"node 0 of the normal cell has 1 inputs in \(0, 4, .*\), not 2"):
        space.check((NONE, *PLAIN_GENOTYPE[1:]))
    with pytest.raises(ValueError, match="node 3 of the reduction cell has 3 inputs"):
        space.check((*PLAIN_GENOTYPE[:-1], SKIP))
    with pytest.raises(ValueError, match="operation 8 on edge 0 of darts is not one of"):
        space.check((8, *PLAIN_GENOTYPE[1:]))
    with pytest.raises(ValueError, match=r"operation 4 on edge 0 of darts is not one of \(3,\)"):
        small().check(PLAIN_GENOTYPE)


def test_mutation_changes_an_operation_or_an_input_with_equal_chance() -> None:
    space = Darts()
    rng = np.random.default_rng(7)
    parent = PLAIN_GENOTYPE
    rewired = Counter()
    for _ in range(4000):
        child = space.mutate(parent, rng)
        assert space.check(child) == child
        changed = [edge for edge in range(28) if child[edge] != parent[edge]]
        assert len(changed) in (1, 2)
        if len(changed) == 2:
            (gone,) = (edge for edge in changed if child[edge] == NONE)
            (came,) = (edge for edge in changed if edge != gone)
            assert child[came] == SEP_3X3
            assert any(gone in edges and came in edges for edges in NODES)
            rewired[gone] += 1
    assert sum(rewired.values()) / 4000 == pytest.approx(0.5, abs=0.03)
    assert not set(rewired) & set(NODES[0] + NODES[4])  # nodes with two possible inputs cannot change them
    assert len(rewired) == 12


def test_mutation_stays_inside_a_restricted_space() -> None:
    space = small()
    reached, rng = {space.all()[0]}, np.random.default_rng(8)
    genotype = space.all()[0]
    for _ in range(300):
        genotype = space.mutate(genotype, rng)
        reached.add(genotype)
    assert reached == set(space.all())
    only = [[op] for op in PLAIN_GENOTYPE]
    assert Darts().restrict(only).mutate(PLAIN_GENOTYPE, rng) == PLAIN_GENOTYPE


@pytest.mark.parametrize("keep", [[[1]] * 27, [[1]] * 27 + [[]], [[1]] * 27 + [[8]], [[1]] * 27 + [[-1]], []])
def test_restrict_refuses(keep: list[list[int]]) -> None:
    with pytest.raises(ValueError, match=r"choices must be 28 non-empty sets of 0\.\.7, not "):
        Darts().restrict(keep)


def test_restrict_refuses_a_node_without_two_inputs() -> None:
    with pytest.raises(ValueError, match="node 0 of the reduction cell fewer than two inputs"):
        Darts().restrict([[1]] * 14 + [[0]] + [[1]] * 13)


def test_restrict_and_resized_keep_the_rest() -> None:
    space = Darts(8, 5, image_shape=(1, 9, 9), num_classes=7, auxiliary=True, stem="imagenet")
    restricted = space.restrict([[1, 4]] * 28)
    assert restricted.choices == ((1, 4),) * 28
    for other in (restricted, restricted.resized(channels=4, num_cells=3)):
        assert (other.image_shape, other.num_classes, other.stem) == ((1, 9, 9), 7, "imagenet")
        assert other.choices == restricted.choices
    assert (restricted.channels, restricted.num_cells, restricted.auxiliary) == (8, 5, True)
    assert not restricted.resized(channels=4, num_cells=3).auxiliary


EVNAS_A = (
    "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_5x5', 2), ('sep_conv_3x3', 1), "
    "('skip_connect', 0), ('skip_connect', 2), ('dil_conv_5x5', 3), ('sep_conv_3x3', 1)], "
    "normal_concat=[2, 3, 4, 5], reduce=[('dil_conv_5x5', 1), ('avg_pool_3x3', 0), ('sep_conv_3x3', 0), "
    "('avg_pool_3x3', 2), ('skip_connect', 1), ('skip_connect', 2), ('skip_connect', 1), "
    "('sep_conv_5x5', 0)], reduce_concat=[2, 3, 4, 5])"
)


def test_the_published_text_of_evnas_a() -> None:
    space = Darts()
    genotype = space.from_str(EVNAS_A)
    normal = (4, 4, 0, 4, 5, 3, 0, 3, 0, 0, 4, 0, 7, 0)
    reduce = (2, 7, 4, 0, 2, 0, 3, 3, 0, 5, 3, 0, 0, 0)
    assert genotype == normal + reduce == space.from_str(space.presets["evnas_a"])
    text = space.to_str(genotype)
    assert text.startswith(
        "Genotype(normal=[('sep_conv_3x3', 0), ('sep_conv_3x3', 1), ('sep_conv_3x3', 1), ('sep"
    )
    assert text.endswith("('skip_connect', 1)], reduce_concat=range(2, 6))")


def test_strings_return_and_the_order_of_inputs_does_not_matter() -> None:
    space = Darts()
    for genotype in space.sample(np.random.default_rng(9), 100):
        assert space.from_str(space.to_str(genotype)) == genotype
        assert space.from_str(f"\n {space.to_str(genotype)} ") == genotype
    swapped = EVNAS_A.replace(
        "('sep_conv_5x5', 2), ('sep_conv_3x3', 1)", "('sep_conv_3x3', 1), ('sep_conv_5x5', 2)"
    )
    assert swapped != EVNAS_A
    assert space.from_str(swapped) == space.from_str(EVNAS_A)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (EVNAS_A, "", "'' is no architecture of the darts space; the form is Genotype"),
        (EVNAS_A, "evnas", "'evnas' is no architecture of the darts space"),
        (EVNAS_A, "__import__('os').getcwd()", "is no architecture of the darts space"),
        (EVNAS_A, "(" * 3000, "is no architecture of the darts space"),
        (EVNAS_A, "[" * 90_000, "is no architecture of the darts space"),
        (EVNAS_A, "\0", "is no architecture of the darts space"),
        ("('skip_connect', 0)", "__import__('os').abort()", "is no architecture of the darts space"),
        ("('skip_connect', 0)", "('skip_connect', 0.0)", "is no architecture of the darts space"),
        ("('skip_connect', 0)", "('skip_connect', True)", "is no architecture of the darts space"),
        ("'sep_conv_3x3', 0", "'sep_conv_7x7', 0", "unknown operation 'sep_conv_7x7' in the normal cell"),
        ("'sep_conv_3x3', 0", "'none', 0", "unknown operation 'none' in the normal cell; known: max_pool"),
        ("'dil_conv_5x5', 3", "'dil_conv_5x5', 5", "node 3 of the normal cell cannot have the input 5"),
        ("'dil_conv_5x5', 3", "'dil_conv_5x5', -1", r"cannot have the input -1, only 0\.\.4"),
        ("'dil_conv_5x5', 1", "'dil_conv_5x5', 0", "node 0 of the reduce cell has the input 0 twice"),
        ("('dil_conv_5x5', 3), ", "", "the normal cell of .* has 7 inputs, not 8"),
        ("normal_concat=[2, 3, 4, 5]", "normal_concat=[2, 3]", r"normal_concat must be range\(2, 6\)"),
        ("normal_concat", "concat", "'concat' is no part of a genotype"),
        ("reduce=", "normal=", "is no architecture of the darts space"),
    ],
)
def test_malformed_text_says_what_is_wrong(old: str, new: str, message: str) -> None:
    text = EVNAS_A.replace(old, new)
    assert text != EVNAS_A
    with pytest.raises(ValueError, match=message):
        Darts().from_str(text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 1}, r"channels must be a whole number of at least 2, not 1"),
        ({"num_cells": 2}, r"num_cells must be a whole number of at least 3, not 2"),
        ({"stem": "x"}, r"stem must be one of auto, cifar, imagenet, not 'x'"),
        ({"auxiliary": 1}, r"auxiliary must be true or false, not 1"),
        ({"choices": 3}, r"choices must be a list, each a list, each a whole number or null, not 3"),
    ],
)
def test_settings_are_checked(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Darts(**settings)


# Millions of parameters in the papers' tables of CIFAR-10 and CIFAR-100 (C=36, 20 cells, no auxiliary head).
# What was found on CIFAR-100 has 100 classes.
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("evnas_a", 3.6),
        ("evnas_b", 3.8),
        ("evnas_c", 3.4),
        ("cmanas_c10a", 3.8),
        ("cmanas_c100a", 3.4),
        ("nevonas_c10a", 3.4),
        ("nevonas_c10b", 2.7),
        ("nevonas_c10c", 3.2),
        ("nevonas_c100a", 3.9),
        ("nevonas_c100b", 2.9),
        ("nevonas_c100c", 2.7),
        ("pevonas_c10a", 3.6),
        ("pevonas_c10b", 3.5),
        ("pevonas_c10c", 3.0),
        ("pevonas_c100a", 3.0),
        ("pevonas_c100b", 3.1),
        ("pevonas_c100c", 3.3),
        ("darts_v2", 3.3),
    ],
)
def test_parameters_are_the_published_ones(name: str, params: float) -> None:
    space = Darts(num_classes=100 if "c100" in name else 10)
    genotype = space.from_str(PRESETS[name])
    with torch.device("meta"):
        counted, _ = count(space.network(genotype), space.image_shape)
    assert round(counted / 1e6, 1) == params
    assert space.static_metrics([genotype])["params"].tolist() == [counted]


# Tables of ImageNet results (C=48, 14 cells, 224x224): millions of parameters and multiply-adds. All of the
# latter are met by convolutions alone; with the classifier EvNAS-B has 600 M.
@pytest.mark.parametrize(
    ("name", "params", "published", "flops"),
    [
        ("evnas_a", 5.1, 570, 570_470_440),
        ("evnas_b", 5.3, 599, 600_133_864),
        ("evnas_c", 4.9, 547, 547_477_288),
        ("cmanas_c10a", 5.3, 589, 589_502_824),
        ("cmanas_c100a", 4.8, 531, 531_972_904),
        ("nevonas_c10a", 4.9, 541, 541_503_208),
        ("nevonas_c100a", 5.4, 598, 598_929_640),
        ("pevonas_c10a", 5.1, 567, 567_864_424),
        ("pevonas_c100a", 4.3, 478, 479_005_864),
    ],
)
def test_imagenet_costs_are_the_published_ones(name: str, params: float, published: int, flops: int) -> None:
    space = Darts(48, 14, image_shape=(3, 224, 224), num_classes=1000)
    genotype = space.from_str(PRESETS[name])
    with torch.device("meta"):
        counted = count(space.network(genotype), space.image_shape)
    metrics = space.static_metrics([genotype])
    assert counted == (metrics["params"][0], metrics["flops"][0])
    assert round(counted[0] / 1e6, 1) == params
    assert counted[1] == flops
    assert round((counted[1] - (768 * 1000 + 1000)) / 1e6) == published


@pytest.mark.parametrize(
    ("channels", "num_cells", "image_shape", "num_classes", "stem"),
    [
        (4, 3, (1, 9, 7), 3, "auto"),
        (5, 4, (2, 28, 28), 10, "auto"),
        (6, 5, (3, 33, 17), 1, "imagenet"),
        (7, 3, (3, 130, 131), 4, "auto"),
    ],
)
def test_closed_form_equals_counted_networks(
    channels: int, num_cells: int, image_shape: tuple[int, int, int], num_classes: int, stem: str
) -> None:
    space = Darts(channels, num_cells, image_shape=image_shape, num_classes=num_classes, stem=stem)
    genotypes = [
        *(tuple(op if kept else 0 for kept in PLAIN_GENOTYPE) for op in range(1, 8)),
        *space.sample(np.random.default_rng(0), 1),
    ]
    with torch.device("meta"):
        counted = [count(space.network(genotype), image_shape) for genotype in genotypes]
    metrics = space.static_metrics(genotypes)
    assert counted == list(zip(metrics["params"].tolist(), metrics["flops"].tolist(), strict=True))
    assert {name: values.shape for name, values in space.static_metrics([]).items()} == {
        "flops": (0,),
        "params": (0,),
    }


@pytest.mark.parametrize(("height", "width"), [(32, 32), (28, 28), (8, 8), (7, 9), (1, 1), (2, 5)])
def test_features_of_the_three_stages(height: int, width: int) -> None:
    space = Darts(4, 8, image_shape=(3, height, width), num_classes=6)  # reductions at cells 2 and 5
    (genotype,) = space.sample(np.random.default_rng(1), 1)
    network = space.network(genotype).eval()
    x = torch.rand(2, 3, height, width)
    with torch.no_grad():
        taps, logits = network.features(x)
        assert torch.equal(network(x), logits)
    half, quarter = (-(-height // 2), -(-width // 2)), (-(-height // 4), -(-width // 4))
    assert [tuple(tap.shape) for tap in taps] == [
        (2, 16, height, width),
        (2, 32, *half),
        (2, 64, *quarter),
    ]
    assert network.taps == (1, 4, 7)
    assert tuple(logits.shape) == (2, 6)


def test_imagenet_stem_and_depth() -> None:
    space = Darts(4, 14, image_shape=(3, 224, 224), num_classes=5)
    assert space.stem == "imagenet"
    assert Darts(image_shape=(3, 32, 200)).stem == "cifar"
    network = space.network(PLAIN_GENOTYPE).eval()
    with torch.no_grad():
        taps, _ = network.features(torch.rand(1, 3, 224, 224))
    assert [tuple(tap.shape[1:]) for tap in taps] == [(16, 28, 28), (32, 14, 14), (64, 7, 7)]
    assert isinstance(network.cells[0].preprocess_0, FactorizedReduce)  # the first stem is twice as large


def test_a_cell_by_hand() -> None:
    """Skips only: every node of the first cell is the sum of its inputs, whatever the weights are."""
    space = Darts(4, 3, image_shape=(3, 6, 6))
    text = str([("skip_connect", 0), ("skip_connect", 1), ("skip_connect", 0), ("skip_connect", 2)])
    cell = text[:-1] + ", ('skip_connect', 2), ('skip_connect', 3), ('skip_connect', 1), ('skip_connect', 4)]"
    network = space.network(space.from_str(f"Genotype(normal={cell}, reduce={cell})")).eval()
    first = network.cells[0]
    x = network.stem(torch.rand(2, 3, 6, 6))
    a, b = first.preprocess_0(x), first.preprocess_1(x)
    nodes = [a + b, a + (a + b), (a + b) + (a + a + b), b + (3 * a + 2 * b)]
    with torch.no_grad():
        assert torch.allclose(first(x, x), torch.cat(nodes, dim=1), atol=1e-6)


def test_operations() -> None:
    x = torch.rand(2, 6, 7, 8)
    for op in range(1, 8):
        for stride, size in ((1, (7, 8)), (2, (4, 4))):
            module = operation(op, 6, stride)
            assert tuple(module(x).shape) == (2, 6, *size)
            norms = [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]
            assert all(norm.affine for norm in norms)
            plain = operation(op, 6, stride, partial(nn.BatchNorm2d, affine=False))
            assert not any(part.affine for part in plain.modules() if isinstance(part, nn.BatchNorm2d))
    kernels = {SEP_3X3: [3, 1, 3, 1], SEP_5X5: [5, 1, 5, 1], DIL_3X3: [3, 1], DIL_5X5: [5, 1]}
    for op, sides in kernels.items():
        convolutions = [part for part in operation(op, 6, 2).modules() if isinstance(part, nn.Conv2d)]
        assert [conv.kernel_size[0] for conv in convolutions] == sides
        assert [conv.stride[0] for conv in convolutions] == [2, *[1] * (len(sides) - 1)]
        assert convolutions[0].dilation[0] == (2 if op in (DIL_3X3, DIL_5X5) else 1)
        assert convolutions[0].groups == 6
    with pytest.raises(ValueError, match="operation 0 has no module"):
        operation(NONE, 6, 1)


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropped = drop_path(torch.ones(4000, 2, 3, 3), torch.tensor(0.75))
    per_image = dropped.flatten(1)
    assert torch.equal(per_image.amin(1), per_image.amax(1))
    values = per_image[:, 0].unique().tolist()
    assert values == pytest.approx([0.0, 4 / 3])
    assert (per_image[:, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.03)


def test_drop_path_only_while_training_and_never_on_identities() -> None:
    space = Darts(4, 3, image_shape=(3, 8, 8))
    network = space.network(PLAIN_GENOTYPE)
    x = torch.rand(4, 3, 8, 8)
    network.set_drop_path(0.5)
    with torch.no_grad():
        torch.manual_seed(0)
        first, second = network(x), network(x)
        assert not torch.equal(first, second)
        network.eval()
        assert torch.equal(network(x), network(x))
        skips = space.network(tuple(SKIP if op else 0 for op in PLAIN_GENOTYPE)).train()
        cell = skips.cells[0]
        inputs = torch.rand(4, 12, 8, 8)
        assert torch.equal(cell(inputs, inputs, torch.tensor(0.1)), cell(inputs, inputs))


@pytest.mark.parametrize(
    ("image_shape", "imagenet"), [((3, 32, 32), False), ((3, 224, 224), True), ((1, 16, 16), False)]
)
def test_auxiliary_classifier(image_shape: tuple[int, int, int], imagenet: bool) -> None:
    space = Darts(4, 3, image_shape=image_shape, num_classes=7, auxiliary=True)
    network = space.network(PLAIN_GENOTYPE)
    logits, auxiliary = network(torch.rand(2, *image_shape), True)
    assert tuple(logits.shape) == tuple(auxiliary.shape) == (2, 7)
    assert network.auxiliary is not None
    # 64 channels at two thirds of the depth: 64 * 128 + 4 * 128 * 768 weights, two norms, 768 * 7 + 7
    norms = 2 * 128 + (0 if imagenet else 2 * 768)
    params = sum(parameter.numel() for parameter in network.auxiliary.parameters())
    assert params == 64 * 128 + 4 * 128 * 768 + norms + 769 * 7
    plain = Darts(4, 3, image_shape=image_shape, num_classes=7)
    assert space.static_metrics([PLAIN_GENOTYPE]) == plain.static_metrics([PLAIN_GENOTYPE])
    assert plain.network(PLAIN_GENOTYPE).auxiliary is None


def test_presets_are_different_and_known() -> None:
    space = Darts()
    genotypes = [space.from_str(text) for text in space.presets.values()]
    assert len(set(genotypes)) == len(genotypes) == 19
    for a, b in itertools.combinations(genotypes, 2):
        assert 0 < space.distances([a], [b])[0, 0] <= 1


@pytest.mark.parametrize(  # cascade, which asks rungs of an evaluator, in test_cascade
    "path",
    sorted(path for path in (conf_folder() / "strategy").glob("*.yaml") if path.stem != "cascade"),
    ids=lambda path: path.stem,
)
@pytest.mark.parametrize("restricted", [False, True])
def test_every_strategy_searches_the_space(path: Path, restricted: bool) -> None:
    """More convolutions under fewer multiply-adds: found by all, by none with an invalid architecture."""
    space = small() if restricted else Darts(4, 3)
    objectives = (Objective("params", "max"), Objective("flops", "min"))
    strategy = build(
        OmegaConf.load(path),
        space=space,
        objectives=objectives,
        limits=(),
        seed=0,
        generations=9,
        device=Flops(space),
    )
    for generation in range(4):
        population = strategy.ask()
        assert [space.check(genotype) for genotype in population] == population
        columns = space.static_metrics(population)
        trials = [
            Trial(genotype, {name: float(values[row]) for name, values in columns.items()}, generation)
            for row, genotype in enumerate(population)
        ]
        strategy.tell(trials)
    assert strategy.result()
    assert all(space.check(trial.genotype) for trial in strategy.result())


def test_neighbours_are_valid_and_symmetric() -> None:
    """From two inputs per node: 16 kept edges with 6 other operations, and every unused input with 7."""
    space = Darts(4, 3)
    (genotype,) = space.sample(np.random.default_rng(0), 1)
    near = space.neighbours(genotype)
    # A node of n inputs has n - 2 unused ones, each in the place of either kept one: 2 * (0 + 2 + 4 + 6) * 7.
    assert len(near) == len(set(near)) == 16 * 6 + 2 * (0 + 2 + 4 + 6) * 7
    assert genotype not in near
    assert [space.check(other) for other in near] == near
    assert all(genotype in space.neighbours(other) for other in near[::20])
