from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from hwnas.config import data_folder
from hwnas.core import Evaluator
from hwnas.devices.benchmark import PROFILES, benchmark_device
from hwnas.devices.profile import Profile, agreement
from hwnas.spaces.nasbench201 import OPS, NasBench201


def device(name: str, dataset: str = "cifar10", metric: str = "latency_ms") -> Evaluator:
    said: list[str] = []
    built = benchmark_device(
        NasBench201(), SimpleNamespace(name=dataset), said.append, device=name, metric=metric
    )
    built.said = said  # type: ignore[attr-defined]
    return built


def compact(folder: Path) -> None:
    """The layout that `hwnas data hwnasbench` writes, three networks long."""
    np.savez(
        folder / "hwnasbench_nasbench201.npz",
        arch_ops=np.array([[0] * 6, [1] * 6, [3] * 6], dtype=np.int8),
        ops=np.array(OPS),
        cifar10_edgetpu_latency_ms=[0.5, -1.0, 1.5],
        cifar10_edgegpu_latency_ms=[2.0, 3.0, 4.0],
        cifar10_edgegpu_energy_mj=[20.0, 30.0, 40.0],
    )


def test_the_compact_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compact(tmp_path)
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    tpu = device("edgetpu")
    assert tpu.metrics == {"latency_ms": "min"}
    answers = tpu.evaluate([(3,) * 6, (1,) * 6])
    assert answers == [{"latency_ms": 1.5}, {"latency_ms": math.inf}]  # -1: not supported, never fast
    gpu = device("edgegpu", metric="energy_mj")
    assert list(gpu.metrics) == ["energy_mj", "latency_ms"]
    assert gpu.evaluate([(1,) * 6]) == [{"energy_mj": 30.0, "latency_ms": 3.0}]
    assert gpu.prepare(NasBench201(), []) != tpu.prepare(NasBench201(), [])
    with pytest.raises(ValueError, match=r"device edgegpu has no row for \|avg_pool_3x3~0\|"):
        gpu.evaluate([(4,) * 6])
    with pytest.raises(ValueError, match="no energy_mj of device edgetpu"):
        device("edgetpu", metric="energy_mj")
    with pytest.raises(ValueError, match="has nothing of edgetpu for digits"):
        device("edgetpu", dataset="digits")


def test_columns_are_those_of_the_benchmarks_own_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(
        tmp_path / "hwnasbench_nasbench201.npz",
        arch_ops=np.array([[0] * 6], dtype=np.int8),
        ops=np.array(OPS),
        cifar10_fpga_latency_ms=[2.0],
        imagenet16_fpga_latency_ms=[3.0],
    )
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    for name, benchmark, cost in (
        ("cifar10_16x16", "cifar10", 2.0),
        ("npz-imagenet16_120", "imagenet16", 3.0),
    ):
        images = SimpleNamespace(name=name, benchmark=benchmark)
        fpga = benchmark_device(NasBench201(), images, pytest.fail, device="fpga", metric="latency_ms")
        assert fpga.evaluate([(0,) * 6]) == [{"latency_ms": cost}]


def test_without_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"no costs of edgetpu: looked for .*; get HW-NAS-Bench-v1_0\.pickle"
    ):
        device("edgetpu")
    with pytest.raises(ValueError, match=r"device\.metric 'speed' is not one of latency_ms, energy_mj"):
        device("edgetpu", metric="speed")


def test_the_published_record(table_path: Path) -> None:
    """Index 0 of HW-NAS-Bench, from its README."""
    if not (data_folder() / "nasbench201_cifar10_devices.npz").is_file():
        pytest.skip("nasbench201_cifar10_devices.npz is not in the data folder")
    space = NasBench201()
    cell = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|nor_conv_1x1~0|skip_connect~1|skip_connect~2|"
    for name, latency in [("raspi4", 10.481976820010459), ("pixel3", 3.60585), ("eyeriss", 3.64562)]:
        assert device(name).evaluate([space.from_str(cell)])[0]["latency_ms"] == pytest.approx(
            latency, abs=1e-9
        )
    fpga = device("fpga", dataset="cifar100")
    assert fpga.evaluate([space.from_str(cell)]) == [
        {"latency_ms": pytest.approx(2.57296, abs=1e-9), "energy_mj": pytest.approx(18.01072, abs=1e-9)}
    ]
    assert "those of the CIFAR-10 networks" in fpga.said[0]  # type: ignore[attr-defined]
    assert len(fpga.evaluate(space.all())) == 15_625


def test_four_devices_can_do_without_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    for name, spearman, r2 in [
        ("raspi4", 0.96, 0.95),
        ("pixel3", 0.96, 0.93),
        ("eyeriss", 0.99, 0.9999),
        ("fpga", 0.99, 0.9999),
    ]:
        predicted = device(name)
        assert predicted.name == name
        assert "costs are predicted. On 12,500 networks" in predicted.said[0]  # type: ignore[attr-defined]
        check = Profile.load(PROFILES / f"{name}.json").check["latency_ms"]
        assert check["spearman"] > spearman
        assert check["r2"] > r2
        assert predicted.evaluate([(3,) * 6])[0]["latency_ms"] > 5
    assert "of the CIFAR-10 networks" in device("fpga", dataset="digits").said[0]  # type: ignore[attr-defined]
    assert list(device("fpga", metric="energy_mj").metrics) == ["energy_mj", "latency_ms"]
    with pytest.raises(ValueError, match="no energy_mj of device raspi4"):
        device("raspi4", metric="energy_mj")


def test_shipped_profiles_predict_the_table(
    table_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the profiles say of themselves holds on the table that they were fitted to a fifth of."""
    if not (data_folder() / "nasbench201_cifar10_devices.npz").is_file():
        pytest.skip("nasbench201_cifar10_devices.npz is not in the data folder")
    genotypes = NasBench201().all()
    names = ("raspi4", "pixel3", "eyeriss", "fpga")
    measured = {name: [row["latency_ms"] for row in device(name).evaluate(genotypes)] for name in names}
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    for name in names:
        predicted = [row["latency_ms"] for row in device(name).evaluate(genotypes)]
        found = agreement(np.array(predicted), np.array(measured[name]))
        said = Profile.load(PROFILES / f"{name}.json").check["latency_ms"]
        assert found["r2"] == pytest.approx(said["r2"], abs=0.005)
        assert found["spearman"] == pytest.approx(said["spearman"], abs=0.005)
