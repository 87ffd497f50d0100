"""Sweeps as a user runs them: repeated, torn, with failing jobs, on other launchers."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hwnas.build import conf_folder
from hwnas.cli.sweep import COMPLETE, is_complete, once, sweep_arguments, sweep_folder
from hwnas.runs.jobs import Jobs

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
        assert once(lambda: calls.append(1) or 0.5, tmp_path) == 0.5  # type: ignore[arg-type]
    assert len(calls) == 1
    (tmp_path / "job.json").write_text('{"status": "fini')
    assert once(lambda: calls.append(1) or 0.5, tmp_path) == 0.5  # type: ignore[arg-type]
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


def test_a_sweep_that_came_to_its_end_is_known_without_composing_its_jobs(run_hwnas, tmp_path: Path) -> None:
    given = [*TOY, "seed=0,1", "generations=2", "hydra.sweep.dir=sweep"]
    folder, arguments = tmp_path / "sweep", sweep_arguments("search", given[1:])
    run_hwnas(*given)
    assert is_complete(folder, "search", arguments, Jobs.read(folder))
    assert is_complete(folder, "search", [*arguments, *JOBLIB], Jobs.read(folder))
    assert not is_complete(folder, "train", arguments, Jobs.read(folder))
    assert not is_complete(folder, "search", [*arguments, "hydra/sweeper=optuna"], Jobs.read(folder))
    assert not is_complete(folder, "search", [*arguments, "workers=1,2"], Jobs.read(folder))
    assert not is_complete(folder, "search", [*arguments, "+generations=3"], Jobs.read(folder))
    before = state(folder)
    assert "2 jobs finished, 2 of them before" in run_hwnas(*given).stdout
    shutil.rmtree(next(folder.glob("seed=0*")))
    assert not is_complete(folder, "search", arguments, Jobs.read(folder))
    assert "2 jobs finished, 1 of them before" in run_hwnas(*given).stdout
    assert state(folder).keys() == before.keys()
    (folder / COMPLETE).write_text("{torn")
    assert "2 jobs finished, 2 of them before" in run_hwnas(*given).stdout


def test_the_page_of_a_sweep(run_hwnas, tmp_path: Path) -> None:
    """Means over seeds, limits as columns, failed runs, and links that lead somewhere."""
    run_hwnas(
        *TOY,
        "strategy=random,mo_hdnas",
        "limits.latency_ms=5,8,1.01",
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
    assert page.count(">none<small>") == 4  # the network within 1.01 ms is not found
    links = re.findall(r'<a href="([^"]+)"', page)
    assert len(links) == 12
    assert all((tmp_path / "my sweep" / unquote(link)).is_file() for link in links)
    assert not re.search(r'(src|href)="(https?:)?//', page)


def test_a_sweep_without_a_finished_run_has_no_page(run_hwnas, tmp_path: Path) -> None:
    (tmp_path / "sweep" / "a").mkdir(parents=True)
    (tmp_path / "sweep" / "a" / "archive.jsonl").touch()
    assert "sweep holds no finished search" in run_hwnas("report", "sweep", code=1).stderr


def test_the_same_sweep_twice_at_once_ends_right_for_both(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hwnas", *TOY, "seed=0,1", "generations=20", "hydra.sweep.dir=sweep"]
    both = [
        subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    for process in both:
        out, err = process.communicate(timeout=200)
        assert process.returncode == 0, out + err
        assert err == ""
        assert "2 jobs finished" in out
    found = list((tmp_path / "sweep").glob("*/archive.jsonl"))
    assert [len(archive.read_text().splitlines()) for archive in found] == [400, 400]


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


@pytest.mark.parametrize("launcher", ["submitit_local", "ray"])
def test_on_another_launcher(run_hwnas, tmp_path: Path, launcher: str) -> None:
    """One job fails, two end; once more, and they are left alone."""
    pytest.importorskip(launcher.partition("_")[0])
    arguments = [*TOY, "generations=-1,2,3", "hydra.sweep.dir=sweep", f"hydra/launcher={launcher}"]
    if launcher == "ray":
        arguments.append("+hydra.launcher.ray.init.num_cpus=2")
    done = run_hwnas(*arguments, code=1)
    assert "2 jobs finished; 1 failed" in done.stdout
    assert "failed: generations must be a whole number of at least 1, not -1" in done.stderr
    before = state(tmp_path / "sweep")
    assert len(before) == 2
    done = run_hwnas(*arguments, code=1)
    assert "2 jobs finished, 2 of them before; 1 failed" in done.stdout
    assert state(tmp_path / "sweep") == before


def test_a_sweep_that_did_not_begin_is_not_complete(run_hwnas) -> None:
    """Also where its error is shown whole, and the folder has no failed job."""
    arguments = [*TOY, "seed=0,1", "generations=2", "hydra.sweep.dir=sweep"]
    run_hwnas(*arguments, "hydra/launcher=submitit_slurm", env={"HYDRA_FULL_ERROR": "1"}, code=1)
    assert "2 jobs finished" in run_hwnas(*arguments).stdout


def test_slurm_is_asked_for_and_not_there(run_hwnas) -> None:
    pytest.importorskip("submitit")
    launcher = ["hydra/launcher=submitit_slurm", "hydra.launcher.partition=gpu"]
    assert "partition: gpu" in run_hwnas("search", *TOY[2:], *launcher, "--cfg", "hydra").stdout
    if shutil.which("srun") is None:
        done = run_hwnas(*TOY, "seed=0,1", *launcher, code=1)
        assert done.stderr == (
            'hwnas search: error: Could not detect "srun", are you indeed on a slurm cluster?\n'
        )


@pytest.mark.parametrize(
    ("preset", "gpus", "cores", "memory"), [("slurm_gpu", 1, 8, "32GB"), ("slurm_8gpu", 8, 64, "256GB")]
)
def test_slurm_presets_ask_for_gpus(preset: str, gpus: int, cores: int, memory: str, tmp_path: Path) -> None:
    """The head of the script that sbatch would get."""
    pytest.importorskip("submitit")
    from submitit.slurm.slurm import SlurmExecutor, _make_sbatch_string

    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        words = [f"hydra/launcher={preset}", "hydra.launcher.partition=gpu"]
        config = compose("search", words, return_hydra_config=True)
    node = dict(config.hydra.launcher)
    assert node.pop("_target_").endswith(".SlurmLauncher")
    assert node.pop("max_num_timeout") == 20
    del node["submitit_folder"], node["name"], node["additional_parameters"]
    names = SlurmExecutor._equivalence_dict()
    values = {names.get(key, key): value for key, value in node.items() if value is not None}
    values["mem"] = f"{values['mem']}GB"
    script = _make_sbatch_string("python", tmp_path, map_count=3, **values).splitlines()
    for flag in (
        f"gpus-per-node={gpus}", f"cpus-per-task={cores}", f"mem={memory}", "nodes=1", "ntasks-per-node=1",
        "time=1440", "partition=gpu", "array=0-2%3",
    ):  # fmt: skip
        assert f"#SBATCH --{flag}" in script


OPTUNA = ["hydra/sweeper=optuna", "hydra.sweeper.n_jobs=1", "hydra.sweeper.sampler.seed=1"]


def test_optuna_maximises_what_a_search_returns(run_hwnas, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    own = [*OPTUNA, "hydra.sweeper.n_trials=6", "hydra.sweeper.direction=maximize", "hydra.sweep.dir=sweep"]
    run_hwnas(*TOY, *own, "strategy.population_size=choice(4,40)")
    best = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml")
    assert best.best_params == {"strategy.population_size": 40}
    (result,) = (tmp_path / "sweep").glob("strategy.population_size=40-*/result.json")
    assert best.best_value == json.loads(result.read_text())["best"]["metrics"]["val_acc"]


def test_optuna_with_two_objectives_and_a_limit_that_none_keeps(run_hwnas, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    own = [*OPTUNA, "hydra.sweeper.n_trials=4", "hydra.sweeper.direction=[maximize,minimize]"]
    arguments = [*TOY, *own, "returns=[val_acc,latency_ms]", "limits.latency_ms=choice(0.1,3)"]
    done = run_hwnas(*arguments, "hydra.sweep.dir=sweep")
    assert "2 jobs finished" in done.stdout
    (solution, *_) = OmegaConf.load(tmp_path / "sweep" / "optimization_results.yaml").solutions
    assert solution.params == {"limits.latency_ms": 3}
    assert solution["values"][1] <= 3
    jobs = {json.loads(job.read_text())["returned"][1] for job in (tmp_path / "sweep").glob("*/job.json")}
    assert math.inf in jobs  # the worst there can be


def test_returns_must_be_a_metric_of_the_run(run_hwnas) -> None:
    done = run_hwnas("search", "experiment=toy", "logger=csv", "returns=val_ac", code=1)
    assert "returns=val_ac: this run has no such metric; did you mean val_acc?" in done.stderr


def test_how_a_job_is_run_does_not_make_it_another(run_hwnas, tmp_path: Path) -> None:
    run_hwnas(*TOY, "seed=0,1", "generations=2")
    done = run_hwnas(*TOY, "seed=0,1", "generations=2", "workers=2")
    assert "2 jobs finished, 2 of them before" in done.stdout


def test_a_wrong_setting_of_the_whole_sweep_is_one_line(run_hwnas) -> None:
    """Also where an earlier job of the folder had failed."""
    run_hwnas(*TOY, "generations=-1,-2", "hydra.sweep.dir=sweep", code=1)
    done = run_hwnas(*TOY, "sed=0,1", "hydra.sweep.dir=sweep", code=1)
    assert "unknown setting 'sed'; did you mean seed" in done.stderr


@pytest.mark.parametrize(
    "launcher", [pytest.param([], marks=pytest.mark.slow), JOBLIB], ids=["basic", "joblib"]
)
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
