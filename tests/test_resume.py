"""A run killed at any point and resumed ends like one that was never interrupted."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hwnas.devices.profile import Additive, Profile

TOY = ["experiment=toy", "logger=csv", "generations=6", "strategy.population_size=10", "seed=3"]
REAL = [
    "logger=csv",
    "generations=3",
    "strategy.population_size=6",
    "evaluator=rmi",
    "evaluator.steps=2",
    "evaluator.reference.epochs=1",
    "trainer.epochs=1",
    "search_space.num_cells=1",
    "device.rounds=3",
]

SUPERNET = [
    *("evaluator=supernet", "device=flops", "trainer=none", "logger=csv", "generations=3"),
    *("strategy.population_size=4", "dataset.valid_fraction=0.5", "evaluator.channels=4"),
    *("evaluator.training.batch_size=128", "store.dir=store"),
]
TRAINED_ONCE = [*SUPERNET, "evaluator.warmup_epochs=2"]
TRAINED_ON = [
    *(*SUPERNET, "strategy=regularized_evolution", "strategy.sample_size=2", "evaluator.warmup_epochs=0"),
    *("evaluator.epochs_per_generation=1", "evaluator.training.sampling=population"),
    "evaluator.decoding=soft",
]

BLIND = [
    *("experiment=blind", "device=flops", "trainer=none", "logger=csv", "workers=1", "generations=10"),
    *("strategy.networks=[40,8,6]", "search_space.channels=4", "evaluator.zero_cost.num_cells=1"),
    *("evaluator.short.training.max_steps=3", "evaluator.long.training.max_steps=5", "store.dir=store"),
]

# Runs `hwnas search` in a process that kills itself at the n-th time it reaches a place.
KILLER = """
import os, signal, sys
import hwnas.api
from hwnas.store import archive, evaluations
from hwnas.__main__ import main

place, nth = sys.argv[1], int(sys.argv[2])
count = 0

def die_at(name):
    global count
    if name == place:
        count += 1
        if count == nth:
            os.kill(os.getpid(), signal.SIGKILL)

put, extend = evaluations.EvaluationStore.put, archive.Archive.extend

def dying_put(self, *arguments):
    die_at("before the store")
    put(self, *arguments)
    die_at("after the store")

def dying_extend(self, trials):
    if place == "in the journal" and trials[0].generation == nth:
        whole = b"".join(archive._line(trial) for trial in trials)
        self._file.write(whole[: len(whole) * 2 // 3])
        self._file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    die_at("before the journal")
    extend(self, trials)
    die_at("after the journal")

evaluations.EvaluationStore.put, archive.Archive.extend = dying_put, dying_extend

def before(module, name, label):
    original = getattr(module, name)
    def dying(*arguments, **keywords):
        die_at(label)
        return original(*arguments, **keywords)
    setattr(module, name, dying)

before(hwnas.api, "write_report", "before the report")
before(hwnas.api, "write_front", "before the front")
before(os, "replace", "before a file is put in place")
if place == "in an epoch":
    import torch
    before(torch.optim.SGD, "step", "in an epoch")
if place == "in an evaluation":
    from hwnas.spaces.nasbench201.supernet import NasBench201Supernet
    before(NasBench201Supernet, "compiled", "in an evaluation")
if place == "before the final network":
    import hwnas.training.final
    before(hwnas.training.final, "train_network", "before the final network")
sys.exit(main(["search", *sys.argv[3:]]))
"""


def search(cwd: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "hwnas", "search", *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def killed(cwd: Path, place: str, nth: int, *arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLER, place, str(nth), *arguments],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == -signal.SIGKILL, done.stdout + done.stderr
    assert not (cwd / "run" / "result.json").exists()


def outcome(folder: Path) -> dict[str, object]:
    """What must not depend on interruptions."""
    result = json.loads((folder / "result.json").read_text())
    del result["seconds"]
    if result["network"]:
        result["network"] = {key: result["network"][key] for key in ("test_acc", "epochs")}
    files = ("archive.jsonl", "metrics.csv", "pareto.csv")
    return {"result": result, **{name: (folder / name).read_bytes() for name in files}}


@pytest.fixture(scope="module")
def whole_toy(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    cwd = tmp_path_factory.mktemp("whole")
    search(cwd, *TOY, "hydra.run.dir=run")
    return outcome(cwd / "run")


@pytest.mark.parametrize(
    ("place", "nth"),
    [
        ("before the store", 1),
        ("before the store", 7),
        ("after the store", 1),
        ("after the store", 8),
        ("before the journal", 2),
        ("in the journal", 0),
        ("in the journal", 4),
        ("after the journal", 1),
        ("after the journal", 6),
        ("before the front", 1),
        ("before the report", 1),
        ("before a file is put in place", 4),  # the run's identity
        ("before a file is put in place", 6),  # result.json
    ],
)
def test_a_killed_toy_run_resumes(tmp_path: Path, whole_toy: dict[str, object], place: str, nth: int) -> None:
    killed(tmp_path, place, nth, *TOY, "hydra.run.dir=run")
    search(tmp_path, "resume=run")
    assert outcome(tmp_path / "run") == whole_toy


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_run_killed_while_its_configuration_is_written(
    tmp_path: Path, run_hwnas, whole_toy: dict[str, object], nth: int
) -> None:
    """It counts as not begun: resuming says so, and its command starts it."""
    killed(tmp_path, "before a file is put in place", nth, *TOY, "hydra.run.dir=run")
    said = run_hwnas("search", "resume=run", code=1).stderr
    assert "is missing, so the run had not begun; give its command again" in said
    search(tmp_path, *TOY, "hydra.run.dir=run")
    assert outcome(tmp_path / "run") == whole_toy


def test_a_run_killed_twice_resumes_from_another_folder(tmp_path: Path, whole_toy: dict[str, object]) -> None:
    killed(tmp_path, "after the journal", 2, *TOY, "hydra.run.dir=run")
    killed(tmp_path, "before the journal", 2, "resume=run")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    search(elsewhere, f"resume={tmp_path / 'run'}", "seed=3", "strategy=mo_hdnas")
    assert outcome(tmp_path / "run") == whole_toy
    assert list(elsewhere.iterdir()) == []


@pytest.mark.slow
def test_a_killed_real_run_resumes(tmp_path: Path) -> None:
    """Real networks: the same profile and reference, but evaluations of its own for every run."""
    common = [*REAL, "store.dir=store"]
    search(tmp_path, *common, "store.url=sqlite:///whole.sqlite", "hydra.run.dir=whole")
    expected = outcome(tmp_path / "whole")
    places = ("after the store", "in the journal", "before the final network", "before the report")
    for place in places:
        name = place.replace(" ", "-")
        killed(tmp_path, place, 1, *common, f"store.url=sqlite:///{name}.sqlite", "hydra.run.dir=run")
        said = search(tmp_path, "resume=run")
        assert outcome(tmp_path / "run") == expected, place
        assert ("resuming after epoch 1" in said) == (place == "before the report")  # no final training twice
        assert not (tmp_path / "run" / "network" / "checkpoint.pt").exists()
        (tmp_path / "run").rename(tmp_path / name)


@pytest.mark.slow
def test_a_supernet_in_training_is_killed_again_and_again(tmp_path: Path) -> None:
    """In an evaluation, in an epoch, and between the two moves that put a checkpoint in place."""
    search(tmp_path, *TRAINED_ON, "store.url=sqlite:///whole.sqlite", "hydra.run.dir=whole")
    expected = outcome(tmp_path / "whole")
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert not result["stationary"]
    assert result["best"]["genotype"] in [row["genotype"] for row in result["result"]]

    killed(tmp_path, "in an evaluation", 6, *TRAINED_ON, "hydra.run.dir=run")  # of the second generation
    killed(tmp_path, "in an epoch", 3, "resume=run")  # of the third
    killed(tmp_path, "before a file is put in place", 2, "resume=run")
    checkpoints = tmp_path / "run" / "supernet"
    assert (checkpoints / "checkpoint.previous.pt").is_file()
    assert not (checkpoints / "checkpoint.pt").exists()
    said = search(tmp_path, "resume=run")
    assert outcome(tmp_path / "run") == expected
    assert "supernet after 2 epochs from" in said  # what was trained is not trained again


@pytest.mark.slow
def test_a_killed_warm_up_resumes(tmp_path: Path) -> None:
    killed(tmp_path, "in an epoch", 8, *TRAINED_ONCE, "hydra.run.dir=run")
    search(tmp_path, "resume=run")
    search(tmp_path, *TRAINED_ONCE, "store.dir=other", "hydra.run.dir=whole")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["stationary"]


@pytest.mark.slow
def test_a_killed_cascade_resumes(tmp_path: Path) -> None:
    """After a training of the second batch, and in the journal of the long ones."""
    search(tmp_path, *BLIND, "store.url=sqlite:///whole.sqlite", "hydra.run.dir=whole")
    killed(tmp_path, "after the store", 10, *BLIND, "hydra.run.dir=run")
    killed(tmp_path, "in the journal", 3, "resume=run")
    said = search(tmp_path, "resume=run")
    assert "resuming after 49 evaluations" in said  # a long training was in the journal, and is done again
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert not result["stationary"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "archive.jsonl").read_text().splitlines()]
    assert [row["generation"] for row in rows[40:50]] == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert all({"estimate", "estimate_std", "flops"} <= row["metrics"].keys() for row in rows)
    header = (tmp_path / "run" / "pareto.csv").read_text().splitlines()[0].split(",")
    assert header[:3] == ["arch", "genotype", "estimate"]


def test_finished_runs_are_left_alone(tmp_path: Path, whole_toy: dict[str, object]) -> None:
    search(tmp_path, *TOY, "hydra.run.dir=run")
    before = {
        path: path.stat().st_mtime_ns for path in (tmp_path / "run").glob("*.*") if path.suffix != ".log"
    }
    search(tmp_path, "resume=run")
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_run_of_an_earlier_version_resumes(tmp_path: Path) -> None:
    """Classes had other places then, and some settings did not exist."""
    search(tmp_path, *TOY, "strategy.crowding=all", "hydra.run.dir=run")
    whole = outcome(tmp_path / "run")
    stored, journal = (tmp_path / "run" / name for name in (".hydra/config.yaml", "archive.jsonl"))
    config = stored.read_text()
    for now, before in (
        ("  crowding: all\n", ""),
        ("hwnas.store.workers.Processes", "hwnas.workers.Processes"),
        ("hwnas.training.recipe.Recipe", "hwnas.models.recipe.Recipe"),
    ):
        assert now in config
        config = config.replace(now, before)
    stored.write_text(config)
    journal.write_bytes(b"".join(journal.read_bytes().splitlines(keepends=True)[:25]))
    (tmp_path / "run" / "result.json").unlink()
    search(tmp_path, "resume=run")
    assert outcome(tmp_path / "run") == whole


def test_torn_and_corrupt_journals(tmp_path: Path, run_hwnas, whole_toy: dict[str, object]) -> None:
    killed(tmp_path, "before the report", 1, *TOY, "hydra.run.dir=run")
    journal = tmp_path / "run" / "archive.jsonl"
    with journal.open("ab") as file:
        file.write(b'{"generation": 6, "genoty')
    torn = run_hwnas("search", "resume=run")
    assert "dropped the unfinished last line 61" in torn.stdout
    assert outcome(tmp_path / "run") == whole_toy

    os.remove(tmp_path / "run" / "result.json")
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[7] = b"{half\n"
    journal.write_bytes(b"".join(lines))
    corrupt = run_hwnas("search", "resume=run", code=1)
    assert "corrupt in line 8 of 60" in corrupt.stderr
    assert corrupt.stderr.count("\n") == 1
    assert journal.read_bytes() == b"".join(lines)


def test_damaged_folders_are_refused_in_one_line(tmp_path: Path, run_hwnas) -> None:
    killed(tmp_path, "before the report", 1, *TOY, "hydra.run.dir=run")
    run = (tmp_path / "run").rename(tmp_path / "it's")
    journal, config, whole = run / "archive.jsonl", run / ".hydra" / "config.yaml", run / "run_id"

    def refused(path: Path, text: str, message: str) -> None:
        before = path.read_text() if path.exists() else None
        path.write_text(text)
        done = run_hwnas("search", "resume=it's", code=1)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert path.read_text() == text
        if before is None:
            path.unlink()
        else:
            path.write_text(before)

    lines = journal.read_text().splitlines(keepends=True)
    refused(journal, "".join(lines[10:]), "corrupt in line 1 of 50 (generation 1 after 0: lines are missing)")
    refused(journal, "".join(lines[:10] + lines[30:]), "corrupt in line 11 of 40 (generation 3 after 0")
    nan = lines[3].replace('"val_acc": ', '"val_acc": NaN, "x": ')
    refused(journal, "".join([*lines[:3], nan, *lines[4:]]), "corrupt in line 4 of 60")
    refused(config, "[[[", "config.yaml is not readable YAML")
    refused(config, "{}", "config.yaml is not the configuration of a run")
    refused(whole, "", "run_id is empty")
    refused(run / "result.json", "{}", "result.json is not the result of a finished search")
    refused(run / "result.json", "{", "result.json is not the result of a finished search")
    for argument in ("foo", "~limits.rmi", "--multirun"):
        assert argument in run_hwnas("search", "resume=it's", argument, code=1).stderr
    search(tmp_path, "resume=it's")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=4", "seed=4 contradicts the run in run, which has seed=3"),
        ("strategy=random", "strategy=random contradicts the run in run, which has strategy=mo_hdnas"),
        ("strategy.population_size=12", "which has strategy.population_size=10"),
        ("limits.latency_ms=3", "which has limits.latency_ms=None"),
        ("hydra.run.dir=other", "hydra.run.dir=other cannot be changed"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, run_hwnas, override: str, message: str) -> None:
    killed(tmp_path, "after the journal", 1, *TOY, "hydra.run.dir=run")
    before = (tmp_path / "run" / "archive.jsonl").read_bytes()
    refused = run_hwnas("search", "resume=run", override, code=1)
    assert message in refused.stderr
    assert refused.stderr.count("\n") == 1
    assert (tmp_path / "run" / "archive.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "resume=nowhere is not a folder"),
        (".", "resume=. holds no run: .hydra/hydra.yaml is missing"),
    ],
)
def test_folders_that_are_no_run(run_hwnas, folder: str, message: str) -> None:
    assert message in run_hwnas("search", f"resume={folder}", code=1).stderr


def test_another_answer_of_a_device_is_not_mixed_in(tmp_path: Path, run_hwnas) -> None:
    """What evaluators answer by is kept when a run begins, and compared when it is resumed."""

    def profile(cost: float) -> None:
        """Every operation costs as much as its number says, in a unit."""
        shape = {"channels": 16, "num_cells": 5, "image_shape": [1, 8, 8], "num_classes": 10, "batch_size": 1}
        check = {"latency_ms": {"networks": 5, "r2": 1.0, "spearman": 1.0, "median_error": 0.0}}
        costs = {"latency_ms": Additive(1.0, [[cost * op for op in range(5)]] * 6)}
        Profile(3, "mine", "nasbench201", shape, {}, costs, check).save(tmp_path / "d.json")

    own = [*TOY, "search_space=nasbench201", "dataset=digits", "device=d.json", "trainer=none"]
    profile(1.0)
    search(tmp_path, *own, "store.dir=other", "hydra.run.dir=whole")
    killed(tmp_path, "after the journal", 3, *own, "hydra.run.dir=run")
    before = (tmp_path / "run" / "archive.jsonl").read_bytes()
    versions = json.loads((tmp_path / "run" / "versions.json").read_text())
    profile(2.0)
    refused = run_hwnas("search", "resume=run", code=1).stderr
    assert refused.startswith(
        f"hwnas search: error: device=d does not answer as when the run in {tmp_path}/run began "
        f"(version {versions['mine']}, now "
    )
    assert refused.endswith("have changed; restore them, or start a new run\n")
    assert refused.count("\n") == 1
    assert (tmp_path / "run" / "archive.jsonl").read_bytes() == before
    profile(1.0)
    search(tmp_path, "resume=run")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")


def test_settings_that_name_others_and_the_environment(
    tmp_path: Path, run_hwnas, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run keeps the values that they had when it began; a page is drawn and a run resumed without them."""
    monkeypatch.setenv("EDGES", "9")
    own = [*TOY[:-1], "seed=${generations}", "search_space.num_edges='${oc.decode:${oc.env:EDGES}}'"]
    killed(tmp_path, "after the journal", 3, *own, "hydra.run.dir=run")
    monkeypatch.delenv("EDGES")
    refused = run_hwnas("search", "resume=run", "seed=${strategy.population_size}", code=1).stderr
    assert "seed=${strategy.population_size} contradicts the run in run, which has seed=6;" in refused
    search(tmp_path, "resume=run", "seed=${generations}")
    search(
        tmp_path, *TOY[:-1], "seed=6", "search_space.num_edges=9", "store.dir=other", "hydra.run.dir=whole"
    )
    assert outcome(tmp_path / "run") == outcome(tmp_path / "whole")
    assert run_hwnas("report", "run").stdout
    monkeypatch.setenv("EDGES", "8")
    refused = run_hwnas("search", *own, "hydra.run.dir=run", code=1).stderr
    assert "holds a run with search_space.num_edges=9, not search_space.num_edges=8;" in refused


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (f"seed={2**63}", f"seed must be a whole number of at most {2**63 - 1}, not {2**63}"),
        (f"limits.flops={10**20}", "is not readable YAML (a number of more than 20 digits)"),
    ],
)
def test_numbers_that_are_too_large_are_refused_at_once(
    tmp_path: Path, run_hwnas, setting: str, message: str
) -> None:
    refused = run_hwnas("search", *TOY, setting, "hydra.run.dir=run", code=1).stderr
    assert message in refused
    assert refused.count("\n") == 1
    assert not (tmp_path / "run").exists()
