from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from omegaconf import OmegaConf

from hwnas.build import build, conf_folder
from hwnas.core import Evaluator, Genotype
from hwnas.data.tables import fbnet_operations
from hwnas.devices.benchmark import PROFILES, benchmark_device
from hwnas.devices.profile import Profile, agreement
from hwnas.files import data_folder
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.nasbench201.encoding import OPS
from hwnas.spaces.toy import Toy


def device(name: str, dataset: str = "cifar10", metric: str = "latency_ms") -> Evaluator:
    said: list[str] = []
    built = benchmark_device(
        NasBench201(), SimpleNamespace(name=dataset), said.append, device=name, metric=metric
    )
    built.said = said  # type: ignore[attr-defined]
    return built


def assert_noted(name: str, dataset: str) -> None:
    """On other images the run says whose costs these are, and how to get its own."""
    found = device(name, dataset=dataset)
    assert found.said[-1] == found.note  # type: ignore[attr-defined]
    assert found.note.startswith(
        f"costs and limits of {name} are those of the CIFAR-10 networks (3x32x32 images, "
    )
    assert (
        "not of the run's (3x32x32 images, 10 classes); to measure those: hwnas profile export" in found.note
    )


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
    assert tpu.note == ""
    assert_noted("edgetpu", "npz-mine")
    gpu = device("edgegpu", metric="energy_mj")
    assert list(gpu.metrics) == ["energy_mj", "latency_ms"]
    assert gpu.evaluate([(1,) * 6]) == [{"energy_mj": 30.0, "latency_ms": 3.0}]
    with pytest.raises(
        ValueError, match="has 3 of the 15,625 networks of nasbench201, and a search needs all"
    ):
        gpu.prepare(NasBench201(), [])
    with pytest.raises(ValueError, match=r"device edgegpu has no row for \|avg_pool_3x3~0\|"):
        gpu.evaluate([(4,) * 6])
    with pytest.raises(ValueError, match="no energy_mj of device edgetpu"):
        device("edgetpu", metric="energy_mj")
    with pytest.raises(ValueError, match="has nothing of edgetpu for cifar100"):
        device("edgetpu", dataset="cifar100")


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
    with pytest.raises(ValueError, match=r"no costs of mine: looked for .*; get HW-NAS-Bench-v1_0\.pickle"):
        device("mine")
    with pytest.raises(ValueError, match=r"metric must be one of latency_ms, energy_mj, not 'speed'"):
        device("edgetpu", metric="speed")


def test_the_published_record(table_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Index 0 of HW-NAS-Bench, from its README, where only the CIFAR-10 latencies are there."""
    part = data_folder() / "nasbench201_cifar10_devices.npz"
    if not part.is_file():
        pytest.skip("nasbench201_cifar10_devices.npz is not in the data folder")
    for file in (part, table_path):
        (tmp_path / file.name).symlink_to(file)
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
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
    assert_noted("fpga", "cifar100")
    assert len(fpga.evaluate(space.all())) == 15_625


@pytest.mark.parametrize(("option", "name"), [("gtx1080ti", "1080ti_1"), ("gold6226", "gold_6226")])
def test_devices_of_help_say_whose_costs_they_have(table_path: Path, option: str, name: str) -> None:
    if not (data_folder() / "nasbench201_cifar10_devices.npz").is_file():
        pytest.skip("nasbench201_cifar10_devices.npz is not in the data folder")
    node = OmegaConf.create({"device": OmegaConf.load(conf_folder() / "device" / f"{option}.yaml")}).device
    for dataset, start in [
        ("cifar10", ""),
        ("digits", f"costs and limits of {name} are those of the CIFAR-10"),
    ]:
        said: list[str] = []
        offered = {"space": NasBench201(), "dataset": SimpleNamespace(name=dataset), "announce": said.append}
        found = build(node, Evaluator, **offered)
        assert found.note.startswith(start)
        assert said[1:] == [found.note] * bool(start)  # the first is on the order of rows


def test_all_devices_can_do_without_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    for name, spearman, r2 in [
        ("edgegpu", 0.97, 0.96),
        ("edgetpu", 0.99, 0.98),
        ("raspi4", 0.96, 0.95),
        ("pixel3", 0.96, 0.93),
        ("eyeriss", 0.99, 0.9999),
        ("fpga", 0.99, 0.9999),
    ]:
        predicted = device(name)
        assert predicted.name == name
        number = "7,926" if name == "edgetpu" else "12,625"
        assert f"costs are predicted. On {number} networks" in predicted.said[0]  # type: ignore[attr-defined]
        check = Profile.load(PROFILES / f"{name}.json").check["latency_ms"]
        assert check["spearman"] > spearman
        assert check["r2"] > r2
        assert check["median_error"] < check["mean_error"] < 0.13
        assert len(predicted.errors("latency_ms")) == 200
        assert predicted.note == ""
        assert predicted.evaluate([(3,) * 6])[0]["latency_ms"] > (1 if name == "edgetpu" else 5)
    assert_noted("fpga", "digits")
    for name in ("edgegpu", "eyeriss"):
        assert list(device(name, metric="energy_mj").metrics) == ["energy_mj", "latency_ms"]
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
    names = ("raspi4", "pixel3", "eyeriss", "fpga")  # what the small table has
    measured = {name: [row["latency_ms"] for row in device(name).evaluate(genotypes)] for name in names}
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    for name in names:
        predicted = [row["latency_ms"] for row in device(name).evaluate(genotypes)]
        found = agreement(np.array(predicted), np.array(measured[name]))
        said = Profile.load(PROFILES / f"{name}.json").check["latency_ms"]
        assert found["r2"] == pytest.approx(said["r2"], abs=0.005)
        assert found["spearman"] == pytest.approx(said["spearman"], abs=0.005)


def test_the_profile_of_the_edge_tpu_knows_what_it_does_not_support(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not (data_folder() / "hwnasbench_nasbench201.npz").is_file():
        pytest.skip("hwnasbench_nasbench201.npz is not in the data folder")
    genotypes = NasBench201().all()
    measured = np.array([row["latency_ms"] for row in device("edgetpu").evaluate(genotypes)])
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    predicted = np.array([row["latency_ms"] for row in device("edgetpu").evaluate(genotypes)])
    assert np.array_equal(np.isinf(predicted), np.isinf(measured))
    assert np.isinf(measured).sum() == 4699
    supported = np.isfinite(measured)
    assert agreement(predicted[supported], measured[supported])["spearman"] > 0.99


FBNET_PUBLISHED = {
    "raspi4": (17.618579145142576, None),
    "pixel3": (7.788973100000002, None),
    "eyeriss": (3.9408960000000004, 3.2420080000000002),
    "fpga": (10.739520000000002, 75.17664),
}
"""Latency and energy of the CIFAR-100 network of operations 0, as HW-NAS-Bench's example prints them."""

PIECES = "raspi4", "pixel3", "eyeriss", "fpga"


def on_fbnet(
    name: str, space: FBNet | None = None, metric: str = "latency_ms"
) -> tuple[Evaluator, list[str]]:
    said: list[str] = []
    dataset = SimpleNamespace(name="cifar100")
    return benchmark_device(space or FBNet(), dataset, said.append, device=name, metric=metric), said


@pytest.fixture
def pieces() -> None:
    if not (data_folder() / "fbnet_cifar100_latency_lut.npz").is_file():
        pytest.skip("fbnet_cifar100_latency_lut.npz is not in the data folder")


@pytest.fixture
def published() -> list[dict]:
    path = data_folder() / "hwnasbench_published_examples.json"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in the data folder")
    return [record for record in json.loads(path.read_text()) if record["space"] == "fbnet"]


@pytest.mark.parametrize("name", PIECES)
def test_the_published_record_of_fbnet(pieces: None, name: str) -> None:
    device, _ = on_fbnet(name)
    (answer,) = device.evaluate([(0,) * 22])
    assert answer["latency_ms"] == pytest.approx(FBNET_PUBLISHED[name][0], abs=1e-9)
    if name == "fpga":
        assert answer["energy_mj"] == pytest.approx(FBNET_PUBLISHED[name][1], abs=1e-9)


@pytest.mark.parametrize("name", PIECES)
def test_all_published_records_of_fbnet(pieces: None, published: list[dict], name: str) -> None:
    device, said = on_fbnet(name)
    records = [record for record in published if record["dataset"] == "cifar100"]
    assert len(records) == 3
    answers = device.evaluate([tuple(record["arch"]) for record in records])
    for record, answer in zip(records, answers, strict=True):
        assert answer["latency_ms"] == pytest.approx(record["metrics"][f"{name}_latency"], abs=1e-9)
        if name == "fpga":
            assert answer["energy_mj"] == pytest.approx(record["metrics"]["fpga_energy"], abs=1e-9)
    assert list(device.metrics) == ["latency_ms"] + ["energy_mj"] * (name == "fpga")
    assert said == ["energy of fpga: 7 W times its latency, as in every published record"] * (name == "fpga")


def look_up(folder: Path, unsupported: str = "") -> dict[str, dict[str, float]]:
    """The layout that `hwnas data hwnasbench` writes for FBNet, with random costs; returns them by column."""
    rng = np.random.default_rng(0)
    names = sorted(
        {
            operation
            for network in ("cifar100", "ImageNet")
            for op in range(9)
            for operation in fbnet_operations((op,) * 22, network)
        }
    )
    columns = ("edgegpu_latency_ms", "edgegpu_energy_mj", "raspi4_latency_ms")
    costs = {column: dict(zip(names, rng.random(len(names)), strict=True)) for column in columns}
    if unsupported:
        costs["raspi4_latency_ms"][unsupported] = -1.0
    arrays = {column: np.array(list(costs[column].values())) for column in columns}
    np.savez(
        folder / "hwnasbench_fbnet.npz",
        **{column: np.where(values == -1, np.inf, values) for column, values in arrays.items()},
        **{f"{column}_ops": np.array(names) for column in columns},
    )
    return costs


@pytest.mark.parametrize("variant", ["cifar100", "imagenet"])
def test_costs_are_sums_of_the_look_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variant: str) -> None:
    costs = look_up(tmp_path)
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    shape, classes, name = {
        "cifar100": ((3, 32, 32), 100, "cifar100"),
        "imagenet": ((3, 224, 224), 1000, "ImageNet"),
    }[variant]
    space = FBNet(variant, image_shape=shape, num_classes=classes)
    device, said = on_fbnet("edgegpu", space, metric="energy_mj")
    assert list(device.metrics) == ["energy_mj", "latency_ms"]
    assert said == []
    genotypes = space.sample(np.random.default_rng(1), 20)
    for genotype, answer in zip(genotypes, device.evaluate(genotypes), strict=True):
        operations = fbnet_operations(genotype, name)
        for metric in device.metrics:
            column = costs[f"edgegpu_{metric}"]
            assert answer[metric] == pytest.approx(sum(column[operation] for operation in operations))


def test_an_operation_that_the_device_does_not_support(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = fbnet_operations((3,) * 22, "cifar100")[1]  # the first layer's
    look_up(tmp_path, unsupported=operation)
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    device, _ = on_fbnet("raspi4")
    genotypes: list[Genotype] = [(3,) * 22, (2, *(3,) * 21)]
    first, second = device.evaluate(genotypes)
    assert math.isinf(first["latency_ms"])
    assert math.isfinite(second["latency_ms"])


def test_networks_that_are_not_the_published_ones(pieces: None) -> None:
    _, said = on_fbnet("raspi4", FBNet(channels=8, image_shape=(1, 8, 8), num_classes=10))
    assert said == [
        "costs of raspi4 are those of the published cifar100 networks: 16 channels, 32x32 images, 100 classes"
    ]


def test_fbnet_without_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    how = r"get HW-NAS-Bench-v1_0\.pickle from .*: hwnas data hwnasbench source=<file>"
    with pytest.raises(ValueError, match=rf"no costs of raspi4 on fbnet: looked for .* and .*; {how}"):
        on_fbnet("raspi4")
    with pytest.raises(ValueError, match="HW-NAS-Bench has no costs of edgetpu on fbnet"):
        on_fbnet("edgetpu")
    with pytest.raises(ValueError, match="covers nasbench201 and fbnet, not the toy space"):
        benchmark_device(Toy(), None, print, device="raspi4", metric="latency_ms")
    look_up(tmp_path)
    with pytest.raises(ValueError, match=r"no latency_ms of device pixel3 in .*hwnasbench_fbnet\.npz"):
        on_fbnet("pixel3")
    table = dict(np.load(tmp_path / "hwnasbench_fbnet.npz"))
    table = {key: values[1:] for key, values in table.items()}
    np.savez(tmp_path / "hwnasbench_fbnet.npz", **table)
    with pytest.raises(ValueError, match="raspi4_latency_ms has no AvgP_"):
        on_fbnet("raspi4")


def test_pieces_have_no_edgegpu_and_no_imagenet(pieces: None, tmp_path, monkeypatch) -> None:
    file = data_folder() / "fbnet_cifar100_latency_lut.npz"
    (tmp_path / file.name).write_bytes(file.read_bytes())
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    with pytest.raises(ValueError, match=r"has nothing of edgegpu; get HW-NAS-Bench"):
        on_fbnet("edgegpu")
    with pytest.raises(ValueError, match=r"no energy_mj of device raspi4"):
        on_fbnet("raspi4", metric="energy_mj")
    with pytest.raises(ValueError, match=r"looked for [^ ]*hwnasbench_fbnet\.npz;"):
        on_fbnet("raspi4", FBNet("imagenet", image_shape=(3, 224, 224), num_classes=1000))
    np.savez(tmp_path / file.name, ops=["skip"], raspi4_delta_ms=np.zeros((22, 1)))
    with pytest.raises(ValueError, match="raspi4_allskip_ms is missing"):
        on_fbnet("raspi4")
    np.savez(tmp_path / file.name, ops=["skip"], raspi4_delta_ms=np.zeros((22, 1)), raspi4_allskip_ms=1.0)
    with pytest.raises(ValueError, match=r"ops are .*skip.*, not"):
        on_fbnet("raspi4")
