"""Measuring devices: blocks, networks, boards."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hwnas.devices import board, measure
from hwnas.devices.energy import Rapl
from hwnas.devices.measure import Settings, export, in_network, profile_of, read_measurements
from hwnas.devices.profile import Profile
from hwnas.spaces.blocks import Blocks, count
from hwnas.spaces.darts import Darts
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy

TINY = NasBench201(4, 1, image_shape=(1, 8, 8))
SPACES = [
    TINY,
    Darts(4, 3, image_shape=(3, 8, 8)),
    Darts(4, 3, image_shape=(3, 64, 64), stem="imagenet"),
    FBNet(variant="cifar100", channels=4, image_shape=(3, 32, 32), num_classes=10),
]


def settings(**changes: Any) -> Settings:
    given = {"backend": "torch", "provider": None, "threads": 1, "batch_size": 1, "rounds": 3}
    given |= {"networks": 20, "check": 5, "noise": 10.0, "seed": 0}
    return Settings.of(**{**given, **changes})


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_blocks_are_exactly_the_convolutions_of_a_network(space: Any) -> None:
    blocks: Blocks = space.blocks()
    macs = {name: count(module, shape)[1] for name, (module, shape) in blocks.modules.items()}
    genotypes = space.sample(np.random.default_rng(0), 5)
    for genotype, flops in zip(genotypes, space.static_metrics(genotypes)["flops"].tolist(), strict=True):
        parts = [blocks.always, *(blocks.edges[edge][op] for edge, op in enumerate(genotype))]
        assert sum(number * macs[name] for part in parts for name, number in part.items()) == flops


def test_additions_of_nasbench201_are_one_less_than_the_inputs_of_a_node() -> None:
    blocks = NasBench201(16, 5).blocks()

    def additions(genotype: tuple[int, ...]) -> int:
        parts = [blocks.always, *(blocks.edges[edge][op] for edge, op in enumerate(genotype))]
        return sum(part.get("add@stage2", 0) for part in parts)

    assert additions((3, 3, 3, 3, 3, 3)) == 15  # 0 + 1 + 2 in each of five cells
    assert additions((3, 1, 0, 0, 0, 4)) == 0
    assert additions((3, 1, 2, 0, 3, 4)) == 10


def test_what_a_compiler_leaves_of_a_cell() -> None:
    live = NasBench201().live(
        [(3, 3, 3, 0, 0, 3), (0, 2, 3, 4, 2, 0), (0, 3, 3, 3, 0, 2), (1, 0, 0, 0, 0, 3)]
    )
    assert live.tolist() == [
        [3, 3, 3, 0, 0, 3],
        [0, 0, 0, 4, 1, 0],  # nothing reaches node 1: its edge is a constant; node 2 leads nowhere
        [0, 3, 1, 3, 0, 2],
        [0, 0, 0, 0, 0, 1],
    ]
    assert Toy(3, 3).live([(1, 2, 0)]).tolist() == [[1, 2, 0]]


def test_the_model_of_networks_finds_factors_of_kinds() -> None:
    """Made-up costs: convolutions take twice their time alone in a network, pools half, 3 ms for all."""
    space = NasBench201()
    blocks = space.blocks()
    alone = np.linspace(1.0, 2.0, len(blocks.modules))
    factor = [2.0 if "conv" in n else 0.5 if "pool" in n else 1.0 for n in blocks.modules]
    true = dict(zip(blocks.modules, alone * factor, strict=True))
    G = np.array(space.sample(np.random.default_rng(0), 200))

    def cost(genotype: list[int]) -> float:
        parts = [blocks.always, *(blocks.edges[edge][op] for edge, op in enumerate(genotype))]
        return 30.0 + sum(number * true[name] for part in parts for name, number in part.items())

    y = np.array([cost(genotype) for genotype in G.tolist()])
    weights, additive = in_network(space, blocks, alone, G[:60], y[:60])
    assert len(weights) == len(blocks.modules)
    errors = np.abs(additive(G[60:]) / y[60:] - 1)
    assert np.quantile(errors, 0.9) < 0.01


def test_timings_are_interleaved_and_noisy_ones_are_taken_again() -> None:
    visits: list[str] = []

    def timer(name: str, seconds: list[float]) -> board.Timer:
        def run(passes: int) -> float:
            visits.append(name)
            return passes * (seconds.pop(0) if len(seconds) > 1 else seconds[0])

        return run

    # Two warm-ups, then noisy figures, then quiet ones.
    noisy = [0.01, 0.01, 0.01, 0.05, 0.09, 0.02]
    timers = {"a": timer("a", [0.01]), "b": timer("b", noisy)}
    figures, passes = board.time_rounds(timers, 3, 0.1)
    assert passes == {"a": 1, "b": 1}
    assert visits[4:10] == ["a", "b"] * 3
    assert visits[10:] == ["b"] * 3
    assert figures["a"] == pytest.approx([10.0] * 3)
    assert figures["b"] == pytest.approx([20.0] * 3)


def test_a_figure_that_stays_noisy_is_marked() -> None:
    content = measured_content(TINY)
    name = "nor_conv_3x3@stage1"
    content["settings"]["noise"] = 0.1
    content["latency_ms"] = {key: [1.0, 1.0, 1.0] for key in content["latency_ms"]}
    content["latency_ms"] |= {f"network {i}": [5.0 + i] * 3 for i in range(25)}
    content["latency_ms"][name] = [1.0, 2.0, 3.0]
    profile = profile_of(TINY, content, device="x")
    assert [key for key, row in profile.operations.items() if row["noisy"]] == [name]
    assert profile.operations[name]["median_ms"] == 2.0
    assert profile.operations[name]["iqr_ms"] == 1.0
    assert "1 of 16 operations are noisy" in profile.summary()


def measured_content(space: Any, **changes: Any) -> dict[str, Any]:
    return measure._measure_torch(space, settings(**changes), lambda text: None)


@pytest.mark.parametrize("space", SPACES, ids=lambda space: space.name)
def test_every_space_is_measured_by_torch(space: Any, tmp_path: Path) -> None:
    profile = measure.measure(space, settings(), device="host", say=lambda text: None)
    assert set(profile.operations) == set(space.blocks().modules)
    assert all(row["median_ms"] > 0 for row in profile.operations.values())
    assert profile.networks is not None
    assert (profile.networks.fitted, len(profile.networks.archs)) == (20, 25)
    assert profile.origin["processor"]
    assert "energy_mj" not in profile.costs or profile.costs["energy_mj"].base > 0
    profile.save(tmp_path / "profile.json")
    assert Profile.load(tmp_path / "profile.json") == profile


@pytest.mark.parametrize(
    "space",
    [pytest.param(each, marks=[pytest.mark.slow] * (each.name.startswith("fbnet"))) for each in SPACES],
    ids=lambda space: space.name,
)
def test_every_space_is_measured_by_onnxruntime(space: Any) -> None:
    pytest.importorskip("onnxruntime")
    said: list[str] = []
    profile = measure.measure(space, settings(backend="onnxruntime"), device="host", say=said.append)
    assert set(profile.operations) == set(space.blocks().modules)
    assert profile.live
    assert profile.origin["provider"] == "CPUExecutionProvider"
    assert any("round 3 of 3, " in text for text in said)  # noisy ones come after it


def test_energy_is_measured_where_there_is_a_counter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "intel-rapl:0"
    folder.mkdir()
    for name, value in (("name", "package-0"), ("energy_uj", "0"), ("max_energy_range_uj", str(10**12))):
        (folder / name).write_text(value)

    rng = np.random.default_rng(0)

    class Ticking(Rapl):  # the files of a machine that takes some energy between two readings
        def read(self) -> float:
            used = int((folder / "energy_uj").read_text()) + int(rng.integers(5000, 9000))
            (folder / "energy_uj").write_text(str(used))
            return super().read()

    monkeypatch.setattr(measure, "counter", lambda provider: Ticking(tmp_path))
    monkeypatch.setattr(board, "ENERGY_MS", 0.01)
    profile = measure.measure(TINY, settings(), device="x", say=lambda text: None)
    assert list(profile.costs) == ["latency_ms", "energy_mj"]
    assert profile.operations["stem"]["median_mj"] > 0
    assert profile.networks is not None
    assert len(profile.networks.measured["energy_mj"]) == 25


class Broken(NasBench201):
    """Networks with a convolution that takes more channels than it gets."""

    def blocks(self) -> Blocks:
        blocks = super().blocks()
        wrong = {**blocks.modules, "nor_conv_3x3@stage1": (nn.Conv2d(9, 4, 3), (4, 8, 8))}
        return Blocks(wrong, blocks.always, blocks.edges, blocks.pairs)


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_block_that_cannot_run_is_named_with_its_shape(backend: str) -> None:
    if backend == "onnxruntime":
        pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=r"nor_conv_3x3@stage1 with input 1x4x8x8 .*\("):
        measure.measure(
            Broken(4, 1, image_shape=(1, 8, 8)), settings(backend=backend), device="x", say=lambda text: None
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"backend": "torsh"}, "backend must be one of torch, onnxruntime, openvino, not 'torsh'"),
        ({"provider": "tpu"}, "provider=tpu is none of torch: cpu, cuda"),
        ({"rounds": 2}, "rounds must be a whole number of at least 3, not 2"),
        ({"networks": 5}, "networks must be a whole number of at least 20 or null, not 5"),
        ({"noise": -1}, "noise must be"),
    ],
)
def test_wrong_settings(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_a_provider_that_is_not_there() -> None:
    pytest.importorskip("onnxruntime")
    there = settings(backend="onnxruntime", provider="VulkanExecutionProvider")
    with pytest.raises(ValueError, match=r"VulkanExecutionProvider is not available .*CPUExecutionProvider"):
        measure.measure(TINY, there, device="x", say=lambda text: None)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="provider=cuda is not available"):
            measure.measure(TINY, settings(provider="cuda"), device="x", say=lambda text: None)
    with pytest.raises(ValueError, match="which the toy space does not list"):
        measure.measure(Toy(), settings(), device="x", say=lambda text: None)


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    return measured_content(TINY)


def test_measurements_of_other_networks_are_refused(content: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="do not fit search_space=nasbench201"):
        profile_of(NasBench201(8, 1, image_shape=(1, 8, 8)), content, device="x")
    with pytest.raises(ValueError, match="do not fit search_space=darts"):
        profile_of(Darts(4, 3, image_shape=(1, 8, 8)), content, device="x")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"schema": 7}, "schema version 7, this hwnas reads 1; export the script again"),
        ({"complete": False}, "the measurement is unfinished; start its script again"),
        ({"latency_ms": {"stem": [0.0]}}, r"latency_ms of stem is 0\.0; it must be above 0"),
        ({"latency_ms": {"stem": [1.0, -2.0]}}, r"latency_ms of stem is -2\.0; it must be above 0"),
    ],
)
def test_damaged_measurements(
    content: dict[str, Any], damage: dict[str, Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "measurements.json"
    latency = {**content["latency_ms"], **damage.get("latency_ms", {})}
    path.write_text(json.dumps({**content, **damage, "latency_ms": latency}))
    with pytest.raises(ValueError, match=message):
        read_measurements(path)
    path.write_text(json.dumps(content)[:-100])
    with pytest.raises(ValueError, match=r"measurements\.json holds no measurements"):
        read_measurements(path)


def test_the_script_is_for_python_3_8() -> None:
    tree = ast.parse(Path(board.__file__).read_text(), feature_version=(3, 8))
    imports = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names])
    }
    assert imports - set(sys.stdlib_module_names) == {"numpy", "onnxruntime"}


@pytest.mark.slow
def test_a_board_with_nothing_but_onnxruntime_and_numpy(tmp_path: Path) -> None:
    """Export, run the script in a bare environment, kill it once on the way, import."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    folder = tmp_path / "board"
    number = export(TINY, settings(), folder)
    assert number == 16 + 25
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2e6
    venv.create(tmp_path / "bare", with_pip=True)
    python = tmp_path / "bare" / "bin" / "python"
    clean = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    installed = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "onnxruntime", "numpy"],
        env=clean,
        capture_output=True,
        text=True,
    )
    if installed.returncode:
        pytest.skip(f"no package index: {installed.stderr.strip().splitlines()[-1]}")
    without = subprocess.run([python, "-c", "import torch"], env=clean, capture_output=True)
    assert without.returncode != 0
    command = [python, folder / "measure.py", "--rounds", "40", "--noise", "10"]
    interrupted = subprocess.Popen(command, env=clean, stdout=subprocess.PIPE, text=True)
    assert interrupted.stdout is not None
    for line in interrupted.stdout:
        if line.startswith("round 3 of 40"):
            interrupted.kill()
            break
    interrupted.wait()
    interrupted.stdout.close()
    path = folder / "measurements.json"
    with pytest.raises(ValueError, match="the measurement is unfinished"):
        read_measurements(path)
    before = json.loads(path.read_text())["latency_ms"]["stem"]
    assert 3 <= len(before) < 40
    other = subprocess.run([*command, "--threads", "2"], env=clean, capture_output=True, text=True)
    assert other.returncode == 1
    assert "is of other models or settings; delete it to start anew" in other.stderr
    done = subprocess.run(command, env=clean, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "round 3 of 40" not in done.stdout
    content = read_measurements(path)
    assert content["latency_ms"]["stem"][: len(before)] == before
    assert len(content["latency_ms"]["stem"]) == 40
    profile = profile_of(TINY, content, device="board")
    assert profile.origin["onnxruntime"]
    assert set(profile.operations) == set(TINY.blocks().modules)


def test_single_passes() -> None:
    """Every fourth pass takes five times as long: more than 5 % of them, and less than half."""
    numbers = iter(range(10_000))
    told = board.felt(lambda passes: 0.05 if next(numbers) % 4 == 0 else 0.01)
    assert told == pytest.approx({"p50_ms": 10.0, "p95_ms": 50.0, "passes": 20})  # 1 s / 50 ms


@pytest.mark.parametrize("backend", ["torch", "onnxruntime"])
def test_a_profile_says_how_a_typical_network_feels(backend: str) -> None:
    if backend == "onnxruntime":
        pytest.importorskip("onnxruntime")
    space = NasBench201(4, 1, image_shape=(1, 8, 8), choices=[(0, 3)] * 6)
    profile = measure.measure(space, settings(backend=backend), device="here", say=lambda text: None)
    typical: Any = profile.origin
    assert space.from_str(typical["typical_network"]) in space.all()
    assert 0 < typical["p50_ms"] <= typical["p95_ms"]
    assert typical["load_and_first_ms"] > 0
