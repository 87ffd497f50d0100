"""Runtimes besides torch and onnxruntime; each is tested where its package is installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from hwnas.data.images import Images
from hwnas.devices.measure import Settings, measure, time_networks
from hwnas.devices.runtimes import RUNTIMES
from hwnas.exports.deployed import Deployed
from hwnas.exports.network import LITERT, TOLERANCE, ExportSettings, export_network
from hwnas.spaces.nasbench201 import NasBench201

ARCH = "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|nor_conv_1x1~0|avg_pool_3x3~1|nor_conv_3x3~2|"
SPACE = NasBench201(4, 1, image_shape=(1, 8, 8))

THERE = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            importlib.util.find_spec(runtime.package) is None, reason=f"{runtime.package} is not installed"
        ),
    )
    for name, runtime in RUNTIMES.items()
]


def digits() -> Images:
    return Images("digits", source="digits", image_shape=[1, 8, 8], num_classes=10, crop=1)  # type: ignore[arg-type]


def settings(backend: str, **others: object) -> Settings:
    given = {"provider": None, "threads": 1, "batch_size": 1, "rounds": 3, "networks": 20, "check": 5}
    return Settings.of(backend=backend, **{**given, "noise": 1e9, "seed": 0, **others})  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", THERE)
def test_it_computes_what_torch_does(backend: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, dataset = Deployed(SPACE.network(SPACE.from_str(ARCH)), *digits().normalisation()), digits()
    told = export_network(
        module, dataset, tmp_path, ExportSettings(["onnx"], False, 1, 20, 3, 1e9, ["onnxruntime", backend]),
        metadata={}, say=lambda text: None,
    )  # fmt: skip
    first, second = told["files"]  # type: ignore[misc]
    assert first["runtime"].startswith("onnxruntime")
    assert second["runtime"] == RUNTIMES[backend].version
    assert second["difference"] <= TOLERANCE * max(1.0, told["largest"])  # type: ignore[call-overload]
    assert second["agreement"] == 1
    assert second["median_ms"] > 0


@pytest.mark.parametrize("backend", THERE)
def test_a_profile_is_measured(backend: str) -> None:
    space = NasBench201(4, 1, image_shape=(1, 8, 8), num_classes=3, choices=[(0, 3)] * 6)
    profile = measure(space, settings(backend), device="here", say=lambda text: None)
    assert (profile.origin["backend"], profile.origin["threads"]) == (backend, 1)
    assert profile.origin[backend] in RUNTIMES[backend].version
    assert profile.live
    small, large = profile.predict(space, "latency_ms", [(0, 0, 0, 0, 0, 0), (3, 3, 3, 3, 3, 3)])
    assert 0 < small < large


@pytest.mark.parametrize("backend", THERE)
def test_more_work_takes_longer(backend: str) -> None:
    networks = [NasBench201(c, 1).network((3,) * 6) for c in (4, 32)]
    small, large = time_networks(networks, (3, 32, 32), settings(backend))
    assert 0 < small < large


@pytest.mark.parametrize(
    "name", [name for name in RUNTIMES if importlib.util.find_spec(RUNTIMES[name].package) is None]
)
def test_a_missing_package_is_named(name: str) -> None:
    with pytest.raises(
        ValueError, match=rf"backend={name} needs the extra {name}: pip install 'hwnas\[{name}\]'"
    ):
        measure(SPACE, settings(name), device="here", say=lambda text: None)


@pytest.mark.parametrize("backend", THERE)
def test_a_provider_that_is_not_there_is_named(backend: str) -> None:
    with pytest.raises(ValueError, match="provider TPU9 is not available in"):
        time_networks(
            [SPACE.network(SPACE.from_str(ARCH))], SPACE.image_shape, settings(backend, provider="TPU9")
        )


def test_answers_of_a_batch_are_kept(tmp_path: Path) -> None:
    """A runtime may write its next answers into the same memory."""
    pytest.importorskip("openvino")
    module = Deployed(SPACE.network(SPACE.from_str(ARCH)), *digits().normalisation())
    export_network(
        module,
        digits(),
        tmp_path,
        ExportSettings(["onnx"], False, 1, 1, 3, 1e9),
        metadata={},
        say=lambda text: None,
    )
    run = RUNTIMES["openvino"].load(tmp_path / "network.onnx", "CPU", 1)
    first = run(np.zeros((1, *SPACE.image_shape), np.float32))
    kept = first.copy()
    run(np.ones((1, *SPACE.image_shape), np.float32))
    assert np.array_equal(first, kept)


def test_litert_computes_what_torch_does(tmp_path: Path) -> None:
    if importlib.util.find_spec("litert_torch") is None:
        with pytest.raises(ValueError, match="backend=litert needs the extra litert"):
            LITERT.write(SPACE.network(SPACE.from_str(ARCH)), SPACE.image_shape, tmp_path / "x.tflite")
        return
    torch.manual_seed(0)
    module = Deployed(SPACE.network(SPACE.from_str(ARCH)), *digits().normalisation())
    told = export_network(
        module, digits(), tmp_path, ExportSettings(["tflite"], False, 1, 20, 3, 1e9, ["litert"]),
        metadata={}, say=lambda text: None,
    )  # fmt: skip
    (row,) = told["files"]  # type: ignore[misc]
    assert (row["file"], row["runtime"], row["agreement"]) == ("network.tflite", LITERT.version, 1)
    assert row["difference"] <= TOLERANCE * max(1.0, told["largest"])  # type: ignore[call-overload]
