from __future__ import annotations

import copy
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_masks import CRITERIA, PRUNING, SCOPES, images, network, pruned

from hwnas.pruning.beta_vae import Deployed
from hwnas.pruning.masks import make_permanent, zeros
from hwnas.pruning.surgery import costs, export_onnx, latency_ms, smaller


def trained_statistics(net: Deployed) -> None:
    """Batch statistics and affine weights like a trained network's, so that a wrong channel shows."""
    for norm in net.norms:
        for values in norm.state_dict().values():
            if values.dim():
                values.copy_(torch.rand(values.shape) + 0.5)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("scope", SCOPES)
def test_a_smaller_network_answers_like_the_masked_one(norm: bool, criterion: str, scope: str) -> None:
    net = network(norm).deployed
    trained_statistics(net)
    x, _ = images()
    for sparsity in (0.3, 0.7):
        masked = copy.deepcopy(net)
        pruned(masked, replace(PRUNING, structure="filters", criterion=criterion, scope=scope), sparsity)
        with torch.no_grad():
            expected = masked(x)
        make_permanent(masked)
        small = smaller(masked)
        with torch.no_grad():
            assert torch.allclose(small(x), expected, atol=1e-5, rtol=0)
            if criterion in ("l1", "random"):  # the others know what the answers do not depend on
                assert not torch.allclose(net(x), expected, atol=1e-3)
        num_zeros, num_weights = zeros(masked)
        assert zeros(small) == (0, num_weights - num_zeros)  # what is left is what the masks left
        assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())


def test_a_filter_that_is_still_used_is_not_removed() -> None:
    net = network().deployed
    with torch.no_grad():
        net.convs[0].weight[1] = 0  # its bias goes on to the next layer
    with pytest.raises(ValueError, match="layer conv2 still uses what a removed filter of the layer before"):
        smaller(net)


def test_costs_by_hand() -> None:
    net = network().deployed
    weights = {"conv1": 64, "conv2": 512, "hidden": 512, "mean": 48, "classifier": 30}
    biases = 4 + 8 + 16 + 3 + 10
    found = costs(net)
    assert found["params"] == sum(weights.values()) + biases
    assert found["flops"] == 64 * 16 + 512 * 4 + 512 + 48 + 30  # maps of 4x4 and 2x2
    assert found["bytes"] == 4 * found["params"]
    with torch.no_grad():
        net.convs[0].weight[0] = 0
        net.hidden.weight[:] = 0
    now = costs(net)
    assert now["params"] == found["params"] - 16 - 512
    assert now["flops"] == found["flops"] - 16 * 16 - 512
    assert now["bytes"] == found["bytes"]  # zeros are stored
    assert now["bytes_compressed"] < found["bytes_compressed"] - 1500  # but packed
    raw = b"".join(value.numpy().tobytes() for value in net.state_dict().values())
    assert now["bytes_compressed"] == len(zlib.compress(raw, 6))


def test_flops_are_those_that_torch_counts() -> None:
    from torch.utils.flop_counter import FlopCounterMode

    for shape in ((1, 28, 28), (3, 9, 11)):
        torch.manual_seed(0)
        net = Deployed(shape, [4, 8], 16, 3, 10, norm=True).eval()
        with FlopCounterMode(display=False) as counter:
            net(torch.rand(1, *shape))
        assert costs(net)["flops"] == counter.get_total_flops() / 2


def test_latency_falls_with_removed_filters() -> None:
    torch.manual_seed(0)
    net = Deployed((1, 28, 28), [32, 64], 256, 10, 10, norm=False)
    pruned_net = copy.deepcopy(net)
    pruning = replace(PRUNING, structure="filters", scope="layer")
    from hwnas.pruning.masks import apply, masks, scores

    x = torch.rand(10, 1, 28, 28)
    found, _ = masks(pruned_net, pruning, scores(pruned_net, pruning, x, torch.arange(10), seed=0), 0.9)
    apply(pruned_net, found)
    make_permanent(pruned_net)
    threads = torch.get_num_threads()
    dense, small = latency_ms([net, smaller(pruned_net)], batch_size=16, threads=1, rounds=5)
    assert 0 < small < dense
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("norm", [False, True])
def test_onnx_answers_like_torch(tmp_path: Path, norm: bool) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = network(norm).deployed
    trained_statistics(net)
    pruned(net, replace(PRUNING, structure="filters", scope="layer"), 0.5)
    make_permanent(net)
    small = smaller(net)
    x, _ = images()
    path = tmp_path / "pruned.onnx"
    assert export_onnx(small, path, x) < 1e-4
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for number in (1, 7):  # another number of images than it was exported with
        (logits,) = session.run(None, {"images": x[:number].numpy()})
        with torch.no_grad():
            assert torch.allclose(torch.from_numpy(logits), small(x[:number]), atol=1e-4, rtol=0)
    assert path.stat().st_size < 60_000
