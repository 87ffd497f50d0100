from __future__ import annotations

import dataclasses
import itertools
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.devices import host as host_module
from hwnas.devices import profile as profile_module
from hwnas.devices.flops import Flops
from hwnas.devices.host import Host
from hwnas.devices.measure import Settings, measure
from hwnas.devices.profile import Additive, Profile, ProfileDevice, profile_device
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy

SPAWN = multiprocessing.get_context("spawn")
TINY = NasBench201(4, 1, image_shape=(1, 8, 8))

PROFILE = Profile(
    schema=3,
    device="abacus",
    space="toy",
    network={"channels": 4, "image_shape": [1, 8, 8]},
    origin={"processor": "abacus", "threads": 1},
    costs={"latency_ms": Additive(1.0, [[0.0, 0.25, 0.1], [0.0, 0.5, 1 / 3]])},
    check={"latency_ms": {"networks": 12, "r2": 0.9, "spearman": 0.97, "median_error": 0.04}},
    operations={"a@stage1": {"median_ms": 0.1, "iqr_ms": 0.01, "rounds": 3}},
)


def test_costs_by_hand() -> None:
    latency = PROFILE.costs["latency_ms"]([(0, 0), (1, 0), (0, 1), (1, 1), (2, 1)])
    assert latency == pytest.approx([1.0, 1.25, 1.5, 1.75, 1.6], rel=1e-15)
    assert latency.shape == (5,)
    paired = Additive(1.0, [[0.0, 2.0], [0.0, 4.0]], {"0,1": [[0.0, 0.0], [0.0, -8.0]]}, floor=0.5)
    assert paired([(0, 0), (1, 0), (0, 1), (1, 1)]).tolist() == [1.0, 3.0, 5.0, 0.5]  # 7 - 8 is below


def test_profile_returns_from_its_file_bit_for_bit(tmp_path: Path) -> None:
    path = tmp_path / "new" / "profile.json"
    PROFILE.save(path)
    assert Profile.load(path) == PROFILE
    assert [p.name for p in path.parent.iterdir()] == ["profile.json"]  # no partial file stays
    PROFILE.save(path)
    assert Profile.load(path).costs["latency_ms"]([(2, 2)]) == PROFILE.costs["latency_ms"]([(2, 2)])


def test_another_schema_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    dataclasses.replace(PROFILE, schema=99).save(path)
    with pytest.raises(
        ValueError,
        match=r"profile\.json is not a device profile \(schema version 99, this hwnas reads 2 and 3\)",
    ):
        Profile.load(path)


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2]", "null", "{}", '{"schema": 2, "space": "toy"}', "\x00\x00"]
)
def test_damaged_profiles_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "profile.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"profile\.json is not a device profile \("):
        Profile.load(path)


def test_a_cut_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    PROFILE.save(path)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(ValueError, match="is not a device profile"):
        Profile.load(path)


def tiny_settings(**changes: Any) -> Settings:
    given = {"backend": "torch", "provider": None, "threads": 1, "batch_size": 1, "rounds": 7}
    given |= {"networks": 30, "check": 12, "noise": 0.1, "seed": 0}
    return Settings.of(**{**given, **changes})


@pytest.fixture(scope="module")
def measured() -> Profile:
    for _ in range(3):  # other work on the machine may disturb one measurement, not all of them
        profile = measure(TINY, tiny_settings(), device="host", say=lambda text: None)
        check = profile.check["latency_ms"]
        if check["spearman"] > 0.8 and check["median_error"] < 0.2:
            return profile
    if os.getloadavg()[0] > 1.5 * (os.cpu_count() or 1):
        pytest.skip(f"the machine is too busy to time networks: load {os.getloadavg()[0]:.1f}")
    return profile


def test_measured_figures_are_positive(measured: Profile) -> None:
    blocks = TINY.blocks()
    assert set(measured.operations) == set(blocks.modules)
    assert all(
        o["median_ms"] > 0 and o["iqr_ms"] >= 0 and o["rounds"] == 7 for o in measured.operations.values()
    )
    edges = np.array(measured.costs["latency_ms"].edges)
    assert edges.shape == (6, 5)
    assert (edges[:, 0] == 0).all()  # `none` costs nothing
    latency = measured.costs["latency_ms"](TINY.sample(np.random.default_rng(0), 100))
    assert (latency > 0).all()
    assert measured.network == {
        "channels": 4,
        "num_cells": 1,
        "image_shape": [1, 8, 8],
        "num_classes": 10,
        "batch_size": 1,
    }
    assert json.loads(json.dumps(dataclasses.asdict(measured))) == dataclasses.asdict(measured)


def test_more_convolutions_cost_more(measured: Profile) -> None:
    latency = measured.costs["latency_ms"]([(3,) * num + (0,) * (6 - num) for num in range(0, 7, 2)])
    assert (np.diff(latency) > 0).all()
    assert latency[-1] > 1.5 * latency[0]


def test_prediction_ranks_whole_networks(measured: Profile) -> None:
    check = measured.check["latency_ms"]
    assert check["networks"] == 12
    assert check["spearman"] > 0.8  # 0.95 and more on a quiet machine
    assert check["median_error"] < 0.2


def test_measuring_leaves_torch_as_it_was() -> None:
    threads = torch.get_num_threads()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    torch.set_num_threads(2)
    try:
        space = NasBench201(2, 1, image_shape=(1, 4, 4))
        settings = tiny_settings(rounds=3, networks=20, check=5, noise=10.0)
        measure(space, settings, device="host", say=lambda text: None)
        assert torch.get_num_threads() == 2
        assert torch.equal(torch.rand(2), expected)
    finally:
        torch.set_num_threads(threads)


def test_shipped_profiles_and_those_of_schema_2_are_read(tmp_path: Path) -> None:
    paths = sorted((Path(profile_module.__file__).parent / "profiles").glob("*.json"))
    names = ("edgegpu", "edgetpu", "eyeriss", "fpga", "gold6226", "gtx1080ti", "pixel3", "raspi4")
    assert tuple(path.stem for path in paths) == names
    for path in paths:
        content = json.loads(path.read_text())
        assert Profile.load(path).schema == content["schema"] == 3
        older = tmp_path / path.name
        older.write_text(json.dumps({**content, "schema": 2}))
        assert Profile.load(older) == Profile.load(path)


def test_versions_of_shipped_profiles_stay() -> None:
    """They are part of the keys of stored evaluations."""
    space = NasBench201()
    for name, version in {"fpga": "7346fd558cb20e8c", "raspi4": "769cfe75c32f925a"}.items():
        path = Path(profile_module.__file__).parent / "profiles" / f"{name}.json"
        device = ProfileDevice(space, Profile.load(path), path, metric="latency_ms")
        assert device.prepare(space, []) == version


@pytest.mark.parametrize("unsupported", [[[[0]] * 5], [[[0]] * 5 + [[5]]], [[[-1]] * 6]])
def test_networks_that_are_none_are_not_unsupported(tmp_path: Path, unsupported: Any) -> None:
    shipped = Path(profile_module.__file__).parent / "profiles" / "edgetpu.json"
    content = {**json.loads(shipped.read_text()), "unsupported": unsupported}
    (tmp_path / "x.json").write_text(json.dumps(content))
    profile = Profile.load(tmp_path / "x.json")
    with pytest.raises(ValueError, match="is not supported, which is no network"):
        profile.check_space(NasBench201(), tmp_path / "x.json")


def test_figures_that_are_no_times_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    for wrong in (0.0, -1.5):
        dataclasses.replace(PROFILE, operations={"a@stage1": {"median_ms": wrong}}).save(path)
        with pytest.raises(ValueError, match=f"median_ms of a@stage1 is {wrong}; it must be above 0"):
            Profile.load(path)


RUNS = itertools.count()


def host(store: Path, said: list[str], space: Any = TINY, **settings: Any) -> Host:
    """The host of a run of its own, unless `run` names one."""
    kept = store / settings.pop("run", f"run{next(RUNS)}")
    return Host(space, store, kept, said.append, **{"batch_size": 1, "threads": 1, "rounds": 3, **settings})


def test_host_measures_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genotypes = TINY.sample(np.random.default_rng(0), 20)
    said: list[str] = []
    first = host(tmp_path, said)
    version = first.prepare(TINY, genotypes)
    latencies = first.evaluate(genotypes)
    assert [list(row) for row in latencies] == [["latency_ms"]] * 20
    assert first.prepare(TINY, genotypes) == version
    assert len(said) == 1
    assert "measured, kept in" in said[0]
    content = first.path().read_bytes()

    def measure_again(*_: Any, **__: Any) -> None:
        raise AssertionError("measured a second time")

    monkeypatch.setattr(host_module, "measure", measure_again)
    second = host(tmp_path, said)
    assert second.prepare(TINY, genotypes) == version
    assert [row["latency_ms"].hex() for row in second.evaluate(genotypes)] == [
        row["latency_ms"].hex() for row in latencies
    ]
    assert second.path().read_bytes() == content
    assert len(said) == 2
    assert f"host profile from {second.path()}" in said[1]


def test_host_reads_what_lies_there_and_its_version_is_the_content(tmp_path: Path) -> None:
    said: list[str] = []
    versions = []
    for base in (1.0, 2.0):
        device = host(tmp_path, said)
        cost = Additive(base, [[0.0, 0.5, 1.0, 2.0, 4.0]] * 6)
        dataclasses.replace(PROFILE, costs={"latency_ms": cost}).save(device.path())
        versions.append(device.prepare(TINY, []))
        assert device.evaluate([(0,) * 6, (1, 2, 3, 4, 0, 0)]) == [
            {"latency_ms": base},
            {"latency_ms": base + 7.5},
        ]
    assert versions[0] != versions[1]
    assert "On 12 networks" in said[0]
    assert "R2 0.9000, Spearman 0.970, median error 4.0%" in said[0]


def start(store: Path, run: str, said: Any) -> None:
    device = host(store, [], run=run)
    said.put((device.prepare(TINY, []), device.path().read_bytes(), device.copy().read_bytes()))


def test_runs_that_start_together_measure_once(tmp_path: Path) -> None:
    """On an empty store: all get the profile of the one that was first."""
    said = SPAWN.Queue()
    processes = [SPAWN.Process(target=start, args=(tmp_path, f"run{n}", said)) for n in range(3)]
    for process in processes:
        process.start()
    answers = [said.get(timeout=120) for _ in processes]
    for process in processes:
        process.join(60)
    assert len(set(answers)) == 1
    _, in_store, in_run = answers[0]
    assert in_store == in_run


def test_a_run_keeps_the_profile_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever becomes of the store, and on another machine."""
    said: list[str] = []
    first = host(tmp_path, said, run="first")
    monkeypatch.setattr(host_module, "processor", lambda: "this")
    path = first.path()
    dataclasses.replace(PROFILE, origin={"processor": "this"}).save(path)
    version = first.prepare(TINY, [])
    dataclasses.replace(PROFILE, device="changed").save(path)
    assert host(tmp_path, said, run="first").prepare(TINY, []) == version
    path.unlink()
    assert host(tmp_path, said, run="first").prepare(TINY, []) == version
    monkeypatch.setattr(host_module, "processor", lambda: "that")
    assert host(tmp_path, said, run="first").prepare(TINY, []) == version
    assert not path.exists()
    assert said[-1].endswith("; it was measured on another machine (this)")
    assert "another machine" not in "".join(said[:-1])


NOISY = {"a": {"noisy": True}, "b": {"noisy": False}}


@pytest.mark.parametrize(
    ("operations", "before", "now", "again"),
    [
        (NOISY, 4.0, 1.9, True),
        (NOISY, 4.0, 2.0, False),  # not quiet enough for a difference
        (NOISY, None, 0.4, True),  # by a version that did not write the load down
        (NOISY, 0.0, 0.0, False),  # noisy in itself: not for ever
        ({"a": {"noisy": False}}, 4.0, 0.0, False),
    ],
)
def test_a_noisy_profile_is_measured_again_when_it_is_quieter(
    operations: dict[str, Any],
    before: float | None,
    now: float,
    again: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """For runs that begin then; those before keep theirs. The message says how it can be done at once."""
    said: list[str] = []
    monkeypatch.setattr(host_module, "measure", lambda *_, **__: PROFILE)
    monkeypatch.setattr("os.getloadavg", lambda: (4.0, 0.0, 0.0))
    path = host(tmp_path, []).path()
    origin = {} if before is None else {"load": before}
    noisy = dataclasses.replace(PROFILE, operations=operations, origin=origin)
    noisy.save(path)
    old = host(tmp_path, said, run="old").prepare(TINY, [])
    assert ("1 of 2 operations are noisy" in said[0]) == (operations is NOISY)
    assert (f"when this machine is quiet, delete {path}" in said[0]) == (operations is NOISY)
    monkeypatch.setattr("os.getloadavg", lambda: (now, 0.0, 0.0))
    new = host(tmp_path, said, run="new").prepare(TINY, [])
    assert (new != old) == again
    assert said[1].startswith(f"host profile {'measured again, kept in' if again else 'from'} {path}. ")
    if again:
        assert Profile.load(path) == dataclasses.replace(PROFILE, origin={**PROFILE.origin, "load": now})
    assert host(tmp_path, said, run="old").prepare(TINY, []) == old


def test_host_keeps_one_profile_per_network_shape_and_setting(tmp_path: Path) -> None:
    paths = {
        host(tmp_path, [], space, **settings).path()
        for space, settings in [
            (TINY, {}),
            (TINY, {"batch_size": 2}),
            (TINY, {"threads": 2}),
            (TINY, {"rounds": 4}),
            (NasBench201(8, 1, image_shape=(1, 8, 8)), {}),
            (NasBench201(4, 2, image_shape=(1, 8, 8)), {}),
            (NasBench201(4, 1, image_shape=(1, 8, 9)), {}),
            (NasBench201(4, 1, image_shape=(1, 8, 8), num_classes=11), {}),
        ]
    }
    assert len(paths) == 8
    assert host(tmp_path, [], TINY.restrict([[3]] * 6)).path() in paths  # the same networks, fewer of them


def test_host_by_the_runtime_that_ships(tmp_path: Path) -> None:
    """Exported networks run by ONNX Runtime: a profile of its own, beside the one by torch."""
    pytest.importorskip("onnxruntime")
    said: list[str] = []
    device = host(tmp_path, said, backend="onnxruntime")
    assert device.path() != host(tmp_path, [], backend="torch").path() == host(tmp_path, []).path()
    assert len(device.errors("latency_ms")) == 0
    device.prepare(TINY, [])
    assert device.profile is not None
    assert device.profile.origin["backend"] == "onnxruntime"
    assert device.profile.origin["provider"] == "CPUExecutionProvider"
    assert len(device.errors("latency_ms")) == 20
    assert "measured, kept in" in said[0]


def test_host_refuses(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="devices are measured by blocks of networks, which the toy space"):
        host(tmp_path, [], Toy())
    with pytest.raises(ValueError, match=r"rounds must be a whole number of at least 3, not 2"):
        host(tmp_path, [], rounds=2)
    with pytest.raises(
        ValueError, match="backend must be one of torch, onnxruntime, openvino, not 'tensorrt'"
    ):
        host(tmp_path, [], backend="tensorrt")
    with pytest.raises(ValueError, match=r"threads must be a whole number of at least 1, not 0"):
        host(tmp_path, [], threads=0)
    device = host(tmp_path, [])
    device.path().parent.mkdir(parents=True)
    device.path().write_text("{")
    with pytest.raises(ValueError, match="is not a device profile"):
        device.prepare(TINY, [])


def test_flops_and_params_of_the_benchmark() -> None:
    device = Flops(NasBench201())
    device.prepare(device._space, [])
    assert device.evaluate([(0,) * 6, (3,) * 6, (2, 1, 4, 0, 0, 3)]) == [
        {"flops": 7_783_050.0, "params": 73_306.0},
        {"flops": 220_119_690.0, "params": 1_531_546.0},
        {"flops": 47_104_650.0, "params": 344_346.0},
    ]
    assert list(device.metrics.items()) == [("flops", "min"), ("params", "min")]
    assert list(Flops(NasBench201(), metric="params").metrics) == ["params", "flops"]  # the main one first


def test_version_of_flops_tells_networks_apart() -> None:
    spaces = [
        NasBench201(),
        NasBench201(channels=8),
        NasBench201(num_cells=1),
        NasBench201(num_classes=100),
        NasBench201(image_shape=(1, 32, 32)),
        NasBench201(image_shape=(3, 31, 32)),
    ]
    versions = [Flops(space).prepare(space, []) for space in spaces]
    assert len(set(versions)) == len(spaces)
    assert Flops(NasBench201()).prepare(NasBench201(), []) == versions[0]


def test_flops_refuses() -> None:
    with pytest.raises(ValueError, match="device=flops: the toy space does not say what its networks cost"):
        Flops(Toy())
    with pytest.raises(ValueError, match=r"metric must be one of flops, params, not 'latency_ms'"):
        Flops(NasBench201(), metric="latency_ms")


def test_a_device_by_its_profile(tmp_path: Path) -> None:
    space = NasBench201()
    path = tmp_path / "mine.json"
    cost = Additive(1.0, [[0.0, 0.5, 1.0, 2.0, 4.0]] * 6)
    mine = dataclasses.replace(PROFILE, space="nasbench201", costs={"latency_ms": cost})
    mine.save(path)
    said: list[str] = []
    device = profile_device(space, said.append, path=str(path), metric="latency_ms")
    assert (device.name, device.exhaustive, device.metrics) == ("abacus", True, {"latency_ms": "min"})
    assert device.evaluate([(0,) * 6, (1, 2, 3, 4, 0, 0)]) == [{"latency_ms": 1.0}, {"latency_ms": 8.5}]
    assert "profile of abacus" in said[0]
    assert "warning: the profile's networks are not those of the run" in said[1]
    slower = dataclasses.replace(mine, costs={"latency_ms": dataclasses.replace(cost, base=2.0)})
    assert ProfileDevice(space, slower, path, metric="latency_ms").prepare(space, []) != device.prepare(
        space, []
    )


@pytest.mark.parametrize(
    ("changes", "metric", "message"),
    [
        ({}, "latency_ms", "is a profile of the toy space, not of nasbench201"),
        (
            {"space": "nasbench201"},
            "energy_mj",
            "no energy_mj of device abacus in .*did you mean latency_ms",
        ),
        ({"space": "nasbench201"}, "latency_ms", r"has costs of shape \(2, 3\), not \(6, 5\) as nasbench201"),
        (
            {"costs": {"latency_ms": Additive(float("nan"), [[0.0]])}},
            "latency_ms",
            r"costs\.latency_ms\.base is NaN, not a number",
        ),
    ],
)
def test_profiles_that_do_not_fit(tmp_path: Path, changes: dict[str, Any], metric: str, message: str) -> None:
    path = tmp_path / "mine.json"
    dataclasses.replace(PROFILE, **changes).save(path)
    with pytest.raises(ValueError, match=message):
        profile_device(NasBench201(), print, path=str(path), metric=metric)


def test_a_profile_device_needs_a_path() -> None:
    with pytest.raises(ValueError, match=r"device=profile needs device\.path="):
        profile_device(NasBench201(), print, path=None, metric="latency_ms")
