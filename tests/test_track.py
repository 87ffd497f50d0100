"""Where figures go besides metrics.csv: Weights & Biases, read back from its own files, and TensorBoard."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hwnas.cli.overrides import logger_arguments
from hwnas.reports.dashboard import workspace
from hwnas.searches.indicators import diversity
from hwnas.spaces.toy import Toy

TOY = ["search", "experiment=toy", "generations=3", "seed=1", "hydra.run.dir=sweep/run"]
FIGURES = {"hypervolume", "best_val_acc", "best_latency_ms", "mean_val_acc", "diversity", "from_store"}


def items(entries: Any) -> dict[str, Any]:
    return {entry.key or "/".join(entry.nested_key): json.loads(entry.value_json) for entry in entries}


def test_a_run_in_weights_and_biases(run_hwnas, wandb_records, tmp_path: Path) -> None:
    run_hwnas(*TOY, "logger=wandb")
    run = tmp_path / "sweep" / "run"
    found = wandb_records(run)
    (about,) = (record.run for record in found if record.HasField("run"))
    assert about.run_id == (run / "run_id").read_text().strip()
    assert (about.run_group, about.job_type, about.project) == ("sweep", "search", "hwnas")
    assert items(about.config.update)["seed"] == 1
    history = [items(record.history.item) for record in found if record.HasField("history")]
    rows = [row for row in history if "hypervolume" in row]
    assert [row["evaluations"] for row in rows] == [20, 40, 60]
    assert all(row.keys() >= FIGURES for row in rows)
    assert any("front/nrows" in row for row in history)
    with (run / "metrics.csv").open() as file:
        assert [float(row["hypervolume"]) for row in csv.DictReader(file)] == [r["hypervolume"] for r in rows]
    artifacts = [record.request.log_artifact.artifact for record in found if record.HasField("request")]
    artifacts += [record.artifact for record in found if record.HasField("artifact")]
    held = {a.type: {entry.path for entry in a.manifest.contents} for a in artifacts if a.type}
    assert held["result"] == {"result.json", "pareto.csv", "report.html"}
    listed = [sys.executable, "-m", "wandb", "sync", "--dry-run"]
    loud = {name: value for name, value in os.environ.items() if name != "WANDB_SILENT"}
    said = subprocess.run(listed, cwd=run, env=loud, capture_output=True, text=True, timeout=60)
    assert about.run_id in said.stdout + said.stderr  # what `wandb sync` would send


def test_a_resumed_run_goes_on_under_its_id(run_hwnas, tmp_path: Path) -> None:
    run_hwnas(*TOY, "logger=wandb")
    run = tmp_path / "sweep" / "run"
    (run / "result.json").unlink()
    archive = run / "archive.jsonl"
    archive.write_text("".join(archive.read_text().splitlines(keepends=True)[:25]))
    run_hwnas("search", "resume=sweep/run")
    folders = [path.name for path in (run / "wandb").glob("offline-run-*")]
    assert len({name.rpartition("-")[2] for name in folders}) == 1


def test_a_run_in_tensorboard(run_hwnas, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run_hwnas(*TOY, "logger=tensorboard")
    run = tmp_path / "sweep" / "run"
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert set(events.Tags()["scalars"]) >= FIGURES
    with (run / "metrics.csv").open() as file:
        told = [float(row["hypervolume"]) for row in csv.DictReader(file)]
    assert [event.value for event in events.Scalars("hypervolume")] == pytest.approx(told, rel=1e-6)
    assert not (run / "wandb").exists()


def test_a_run_in_several_loggers(run_hwnas, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run_hwnas(*TOY, "logger=[wandb,csv,tensorboard]")
    run = tmp_path / "sweep" / "run"
    assert list((run / "tensorboard").iterdir())
    assert list((run / "wandb").glob("offline-run-*"))
    assert (run / "metrics.csv").is_file()
    again = run_hwnas("search", "resume=sweep/run", "logger=[tensorboard,wandb]")
    assert "is finished already" in again.stdout


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("logger=csv", ["logger=csv"]),
        ("logger=csv,wandb", ["logger=csv,wandb"]),
        ("logger=[csv]", ["logger=csv"]),
        ("logger=[tensorboard, csv]", ["logger=tensorboard"]),
        ("logger=[wandb,csv]", ["logger=wandb"]),
        ("logger=[csv,tensorboard,'wandb']", ["logger=wandb", "+logger.tensorboard=true"]),
    ],
)
def test_loggers_in_words(given: str, words: list[str]) -> None:
    assert logger_arguments(["seed=1", given]) == ["seed=1", *words]


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ("logger=[]", "logger=[]: '' is no logger; known: csv, tensorboard, wandb"),
        ("logger=[csv,wandbb]", "'wandbb' is no logger; did you mean wandb?"),
        ("logger=[csv,csv]", "logger=[csv,csv] has csv twice"),
    ],
)
def test_loggers_that_are_refused(given: str, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        logger_arguments([given])


def test_diversity_by_hand() -> None:
    space = Toy(2, 10)
    assert diversity(space, [(1, 1)]) == 0.0
    assert diversity(space, [(1, 1), (1, 1)]) == 0.0
    # distances 1 - c / (4 - c) with c edges in common: 1 - 1/3, 1, 1
    assert diversity(space, [(1, 1), (1, 2), (3, 3)]) == pytest.approx((2 / 3 + 1 + 1) / 3, rel=1e-12)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of wandb-workspaces, when it is imported
def test_the_dashboard_shows_what_runs_log() -> None:
    pytest.importorskip("wandb_workspaces")
    layout = workspace("me/hwnas", ("rmi", "energy_mj"))
    written = layout._to_model().model_dump_json(by_alias=True)
    for name in ("hypervolume", "best_rmi", "best_energy_mj", "mean_rmi", "diversity", "from_store"):
        assert f'"{name}"' in written
    assert "best.metrics.energy_mj" in written
    with pytest.raises(ValueError, match="takes <entity>/<project>, not 'hwnas'"):
        workspace("hwnas", ("rmi", "energy_mj"))


@pytest.mark.slow
def test_a_dashboard_without_weights_and_biases_is_one_line(run_hwnas) -> None:
    pytest.importorskip("wandb_workspaces")
    offline = {"WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_API_KEY": "x" * 40}
    done = run_hwnas("report", "--wandb", "me/hwnas", code=1, env=offline)
    assert "hwnas report: error: Weights & Biases did not take the dashboard of me/hwnas" in done.stderr
    assert "Traceback" not in done.stderr
    assert "give the folder of a run or a sweep" in run_hwnas("report", code=2).stderr
