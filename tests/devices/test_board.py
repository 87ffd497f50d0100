"""A board from the first export to a search, and its counters."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import spearmanr
from simulated_board import MS_PER_CONVOLUTION, MS_PER_KILOWEIGHT

from hwnas.core import FloatArray
from hwnas.devices import board
from hwnas.devices.profile import Profile
from hwnas.spaces.nasbench201 import NasBench201

SPACE = NasBench201(4, 1, image_shape=(1, 8, 8))
SMALL = ("search_space.channels=4", "search_space.num_cells=1", "dataset=digits")


def run_board(folder: Path, *arguments: str) -> str:
    """Run the script of a folder on the simulated board."""
    shutil.copy(Path(__file__).with_name("simulated_board.py"), folder / "onnxruntime.py")
    done = subprocess.run(
        [sys.executable, folder / "measure.py", "--rounds", "3", "--noise", "1", *arguments],
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def true_ms(genotypes: np.ndarray) -> FloatArray:
    """What the simulated board takes for used convolutions, by hand: cells of 4, 8 and 16 channels."""
    used = SPACE.used(genotypes)
    weights = 4 * 4 + 8 * 8 + 16 * 16
    by_op = {2: weights, 3: 9 * weights}
    counts = {op: (used == op).sum(axis=1) for op in by_op}
    parts = [n * (3 * MS_PER_CONVOLUTION + MS_PER_KILOWEIGHT * by_op[op] / 1e3) for op, n in counts.items()]
    return np.sum(parts, axis=0)


@pytest.mark.slow
def test_a_board_from_export_to_search(run_hwnas, tmp_path: Path) -> None:
    pytest.importorskip("onnx")
    run_hwnas("profile", "export", "archs=10", "to=first", "seed=4", *SMALL)
    assert len(list((tmp_path / "first").glob("*.onnx"))) == 10
    assert "10 models, 0 of them noisy" in run_board(tmp_path / "first", "--memory", "no")
    done = run_hwnas("profile", "adapt", "first/measurements.json", "to=mine.json", "next=3")
    assert "the device runs" in done.stdout
    run_hwnas("profile", "export", "archs=mine.next.csv", "to=second", *SMALL)
    run_board(tmp_path / "second")
    content = json.loads((tmp_path / "second" / "measurements.json").read_text())
    assert len(content["memory_mb"]) == 3
    assert all(10 < megabytes < 1000 for megabytes in content["memory_mb"].values())
    done = run_hwnas(
        "profile", "adapt", "first/measurements.json", "second/measurements.json", "to=mine.json"
    )
    assert "peak memory of these networks on the device: " in done.stdout
    profile = Profile.load(tmp_path / "mine.json")
    assert profile.networks is not None
    assert len(profile.networks.archs) == 13
    assert profile.network["channels"] == 4

    cells = np.array(SPACE.sample(np.random.default_rng(0), 300))
    cells = cells[SPACE.is_connected(cells)]
    predicted = profile.predict(SPACE, "latency_ms", cells)
    assert spearmanr(predicted, true_ms(cells)).statistic > 0.9
    offsets = predicted - true_ms(cells)  # the stem and what lies between stages are in all networks
    assert np.median(np.abs(offsets - np.median(offsets))) < 0.2 * np.std(true_ms(cells))

    run_hwnas(
        *("search", "device=mine.json", "evaluator=toy", "trainer=none", "generations=2", "dataset=digits"),
        *("limits.latency_ms=q0.4", "logger=csv", "hydra.run.dir=run", *SMALL[:2]),
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["best"]["metrics"]["latency_ms"] <= result["limits"]["latency_ms"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("export", "archs=some.csv", "to=x"), "some.csv is corrupt: it has no column 'arch'"),
        (("export", "archs=0", "to=x"), "archs must be a whole number of at least 1, not 0"),
        (("export", "archs=cells.csv", "to=x"), "'nonsense' has 1 nodes, not 3"),
        (
            ("adapt", "old.json"),
            "old.json holds no measurements (schema version 0, this hwnas reads 1; export",
        ),
        (("adapt", "unfinished.json"), "the measurement is unfinished; start its script again"),
        (("import", "networks.json"), "hwnas profile adapt <measurements.json> takes them"),
        (("adapt", "networks.json"), "3 measured networks are too few to adapt to; 10 are needed"),
        (("adapt", "networks.json", "networks.json"), "6 networks of which 3 are there twice"),
    ],
)
def test_wrong_files_get_one_line(
    run_hwnas, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    shape = {"channels": 4, "num_cells": 1, "image_shape": [1, 8, 8], "num_classes": 10, "batch_size": 1}
    cells = [(3, 3, 3, 3, 3, 3), (1, 3, 3, 3, 3, 3), (2, 3, 3, 3, 3, 3)]
    models = [
        {"name": f"network {i}", "input": [1, 1, 8, 8], "genotype": list(cell)}
        for i, cell in enumerate(cells)
    ]
    content = {
        "schema": 1,
        "plan": {"space": "nasbench201", "network": shape, "fitted": 0, "models": models},
        "settings": {"noise": 0.1},
        "origin": {"backend": "onnxruntime"},
        "complete": True,
        "latency_ms": {model["name"]: [1.0, 2.0 + i] for i, model in enumerate(models)},
        "passes": {},
    }
    for name, changes in {"networks": {}, "old": {"schema": 0}, "unfinished": {"complete": False}}.items():
        (tmp_path / f"{name}.json").write_text(json.dumps({**content, **changes}))
    (tmp_path / "some.csv").write_text("cell\nx\n")
    (tmp_path / "cells.csv").write_text("arch\nnonsense\n")
    done = run_hwnas("profile", *arguments, code=1)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def sensor(root: Path, number: int, rails: dict[str, tuple[int, int]], name: str = "ina3221") -> None:
    folder = root / f"hwmon{number}"
    folder.mkdir()
    (folder / "name").write_text(f"{name}\n")
    for channel, (label, (millivolts, milliamperes)) in enumerate(rails.items(), start=1):
        (folder / f"in{channel}_label").write_text(f"{label}\n")
        (folder / f"in{channel}_input").write_text(f"{millivolts}\n")
        (folder / f"curr{channel}_input").write_text(f"{milliamperes}\n")


@pytest.mark.parametrize(
    ("rails", "watts"),
    [
        ({"VDD_CPU": (5000, 400), "VDD_IN": (19000, 500)}, 9.5),  # feeds the others
        ({"VDD_CPU": (5000, 400), "VDD_GPU": (5000, 200)}, 3.0),
    ],
)
def test_energy_of_a_jetson_is_its_power_over_time(
    tmp_path: Path, rails: dict[str, tuple[int, int]], watts: float
) -> None:
    sensor(tmp_path, 0, {"temp": (1, 1)}, name="thermal")
    sensor(tmp_path, 1, rails)
    source = board.Rails(tmp_path)
    start, before = time.perf_counter(), source.read()
    time.sleep(0.05)
    energy, seconds = source.read() - before, time.perf_counter() - start
    assert energy == pytest.approx(1e3 * watts * seconds, rel=0.1)


def test_a_board_without_sensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="has no INA3221 sensor"):
        board.Rails(tmp_path)
    monkeypatch.setattr(board.Rails.__init__, "__defaults__", (tmp_path,))
    monkeypatch.setattr(board.Rapl.__init__, "__defaults__", (tmp_path,))
    assert board.board_energy({}, {}) is None
    sensor(tmp_path, 0, {"VDD_IN": (5000, 1000)})
    figures = board.board_energy({"x": lambda passes: 0.0}, {"x": [50.0]})
    assert figures is not None
    assert len(figures["x"]) == 3
