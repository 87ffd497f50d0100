"""Sweeps as a user runs them: repeated, torn, with failing jobs, on other launchers."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import pytest

from hwnas.sweep import Jobs, once, sweep_arguments, sweep_folder

TOY = ["search", "-m", "experiment=toy", "logger=csv"]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]


def folder_of(arguments: list[str]) -> Path | None:
    return sweep_folder(sweep_arguments("search", arguments))


def test_the_folder_depends_on_what_is_swept_not_on_how() -> None:
    folder = folder_of(["-m", "experiment=toy", "seed=0,1"])
    assert folder is not None
    assert folder.parent == Path("multirun/sweeps")
    assert folder.name.startswith("toy-")
    assert folder_of(["seed=0,1", "--multirun", *JOBLIB, "experiment=toy"]) == folder
    assert folder_of(["-m", "experiment=toy", "seed=0,1,2"]) != folder
    assert folder_of(["-m", "seed=0,1", "hydra.sweep.dir='my sweep'"]) == Path("my sweep")
    assert folder_of(["experiment=toy", "seed=0"]) is None
    assert sweep_arguments("search", ["seed=0"]) == ["seed=0"]


def test_a_finished_job_is_not_run_again_but_a_torn_one_is(tmp_path: Path) -> None:
    calls = []
    for _ in range(3):
        assert once(lambda cfg: calls.append(1) or 0.5, None, tmp_path) == 0.5  # type: ignore[arg-type]
    assert len(calls) == 1
    (tmp_path / "job.json").write_text('{"status": "fini')
    assert once(lambda cfg: calls.append(1) or 0.5, None, tmp_path) == 0.5  # type: ignore[arg-type]
    assert len(calls) == 2


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """When each result was written, and its archive."""
    return {
        job.parent.name: (job.stat().st_mtime_ns, (job.parent / "archive.jsonl").read_bytes())
        for job in folder.glob("*/result.json")
    }


def test_repeating_a_sweep_runs_what_is_missing(run_hwnas, tmp_path: Path) -> None:
    sweep = "hydra.sweep.dir=sweep"
    done = run_hwnas(*TOY, "seed=0,1", sweep)
    assert "sweep sweep: 2 jobs finished" in done.stdout
    before = state(tmp_path / "sweep")
    assert {name.rpartition("-")[0] for name in before} == {"seed=0", "seed=1"}
    more = run_hwnas(*TOY, "seed=0,1,2", sweep, *JOBLIB)
    assert "sweep sweep: 3 jobs finished, 2 of them before" in more.stdout
    after = state(tmp_path / "sweep")
    assert len(after) == 3
    assert {name: after[name] for name in before} == before
    # The same job with another setting is another job.
    run_hwnas(*TOY, "seed=0", "strategy.population_size=6,8", sweep)
    assert len(state(tmp_path / "sweep")) == 5


def test_the_page_of_a_sweep(run_hwnas, tmp_path: Path) -> None:
    """Means over seeds, limits as columns, failed runs, and links that lead somewhere."""
    run_hwnas(
        *TOY,
        "strategy=random,mo_hdnas",
        "limits.latency_ms=5,8,0.001",
        "seed=0,1",
        "generations=6",
        "hydra.sweep.dir=my sweep",
    )
    run_hwnas(*TOY, "generations=-2,-1", "hydra.sweep.dir=my sweep", code=1)
    path = Path(run_hwnas("report", "my sweep").stdout.strip())
    page = (tmp_path / path).read_text()
    results = [json.loads(path.read_text()) for path in (tmp_path / "my sweep").glob("*/result.json")]
    assert len(results) == 12
    assert "12</dd>" in page
    assert "finished runs, 2 failed" in page
    assert "generations must be a whole number of at least 1, not -1" in page
    values = [
        result["best"]["metrics"]["val_acc"]
        for result in results
        if result["strategy"] == "random" and result["limits"] == {"latency_ms": 8.0}
    ]
    assert len(values) == 2
    assert f"{100 * sum(values) / 2:.2f} % ± {50 * abs(values[0] - values[1]):.2g}" in page
    assert page.count(">none<small>") == 4  # nobody keeps 0.001 ms: in the matrix and by setting
    links = re.findall(r'<a href="([^"]+)"', page)
    assert len(links) == 12
    assert all((tmp_path / "my sweep" / unquote(link)).is_file() for link in links)
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_a_sweep_without_a_finished_run_has_no_page(run_hwnas, tmp_path: Path) -> None:
    (tmp_path / "sweep" / "a").mkdir(parents=True)
    (tmp_path / "sweep" / "a" / "archive.jsonl").touch()
    assert "sweep holds no finished search" in run_hwnas("report", "sweep", code=1).stderr


def test_a_failing_job_does_not_stop_the_others(run_hwnas, tmp_path: Path) -> None:
    for launcher in ([], JOBLIB):
        done = run_hwnas(*TOY, "generations=-1,2,0", "hydra.sweep.dir=sweep", *launcher, code=1)
        jobs = Jobs.read(tmp_path / "sweep")
        assert len(jobs.finished) == 1
        assert sorted(jobs.failed.values()) == [
            "generations must be a whole number of at least 1, not -1",
            "generations must be a whole number of at least 1, not 0",
        ]
        assert "1 jobs finished" in done.stdout
        assert "2 failed" in done.stdout
        assert done.stderr.count("failed: generations must be a whole number of at least 1, not 0") == 1
        assert "Traceback" not in done.stderr


def test_a_wrong_setting_of_the_whole_sweep_is_one_line(run_hwnas) -> None:
    """Also where an earlier job of the folder had failed."""
    run_hwnas(*TOY, "generations=-1,-2", "hydra.sweep.dir=sweep", code=1)
    done = run_hwnas(*TOY, "sed=0,1", "hydra.sweep.dir=sweep", code=1)
    assert "unknown setting 'sed'; did you mean seed" in done.stderr


@pytest.mark.parametrize("launcher", [[], JOBLIB], ids=["basic", "joblib"])
def test_a_killed_sweep_goes_on_and_ends_like_one_that_was_not(run_hwnas, tmp_path: Path, launcher) -> None:
    arguments = [*TOY, "seed=0,1,2", "generations=60", *launcher]
    run_hwnas(*arguments, "hydra.sweep.dir=whole", "store.dir=a")
    process = subprocess.Popen(
        [sys.executable, "-m", "hwnas", *arguments, "hydra.sweep.dir=torn", "store.dir=b"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not list((tmp_path / "torn").glob("seed=1*/archive.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert Jobs.read(tmp_path / "torn").finished != Jobs.read(tmp_path / "whole").finished
    run_hwnas(*arguments, "hydra.sweep.dir=torn", "store.dir=b")
    archives = [
        {job.name.partition("-")[0]: (job / "archive.jsonl").read_text() for job in folder.glob("seed=*")}
        for folder in (tmp_path / "whole", tmp_path / "torn")
    ]
    assert len(archives[0]) == 3
    assert archives[0] == archives[1]
    results = [
        sorted(json.dumps(json.loads(r.read_text())["best"]) for r in folder.glob("*/result.json"))
        for folder in (tmp_path / "whole", tmp_path / "torn")
    ]
    assert results[0] == results[1]
