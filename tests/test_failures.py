"""What goes wrong outside: full disks, folders that cannot be written, stores that go away, clocks that jump.

Each ends in one clear line, or goes unnoticed; and what was reported done is there afterwards.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hwnas.spaces.toy import Toy, ToyCost
from hwnas.store.cache import CachedEvaluator
from hwnas.store.evaluations import EvaluationStore

TOY = ["search", "experiment=toy", "logger=csv", "generations=100"]
Mount = Callable[[str], None]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[tuple[Path, Mount]]:
    """A file system in memory of its own, and what mounts it again with other options."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
        return (
            shutil.which("mount") is not None and not subprocess.run(command, capture_output=True).returncode
        )

    if not mount("size=300k"):
        pytest.skip("only root can mount a file system that is small or read-only")
    yield folder, lambda options: mount(f"remount,{options}")
    subprocess.run(["umount", str(folder)], check=True)


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    (line,) = [line for line in done.stderr.splitlines() if line.strip()]
    assert line.startswith("hwnas search: error: ")
    return line


@pytest.fixture
def whole(run_hwnas, tmp_path: Path) -> bytes:
    """The archive of a run that nothing happened to."""
    run_hwnas(*TOY, "hydra.run.dir=whole", "store.dir=whole_store")
    return (tmp_path / "whole" / "archive.jsonl").read_bytes()


def test_a_full_disk_under_the_run(run_hwnas, disk: tuple[Path, Mount], whole: bytes) -> None:
    folder, mount = disk
    done = run_hwnas(*TOY, "hydra.run.dir=disk/run", "store.dir=store", code=1)
    assert re.search(r"disk/run/(archive.jsonl|metrics.csv): No space left on device$", one_line(done))
    kept = (folder / "run" / "archive.jsonl").read_bytes()
    assert whole.startswith(kept[: kept.rindex(b"\n") + 1])
    mount("size=50m")
    run_hwnas("search", "resume=disk/run")
    assert (folder / "run" / "archive.jsonl").read_bytes() == whole


def test_a_full_disk_under_the_store(
    run_hwnas, disk: tuple[Path, Mount], whole: bytes, tmp_path: Path
) -> None:
    _, mount = disk
    done = run_hwnas(*TOY, "hydra.run.dir=run", "store.dir=disk", code=1)
    assert "store sqlite:///disk/evaluations.sqlite: database or disk is full" in one_line(done)
    mount("size=50m")
    run_hwnas("search", "resume=run")
    assert (tmp_path / "run" / "archive.jsonl").read_bytes() == whole


def test_a_folder_that_cannot_be_written(run_hwnas, tmp_path: Path, disk: tuple[Path, Mount]) -> None:
    _, mount = disk
    run_hwnas(*TOY, "generations=1", "hydra.run.dir=run", "store.dir=disk")
    mount("ro")
    done = run_hwnas(*TOY, "hydra.run.dir=disk/run", "store.dir=store", code=1)
    assert "disk/run: Read-only file system" in one_line(done)
    done = run_hwnas(*TOY, "hydra.run.dir=other", "store.dir=disk")
    assert (
        "store sqlite:///disk/evaluations.sqlite can only be read: its answers are used, new" in done.stdout
    )
    assert (tmp_path / "other" / "evaluations.sqlite").is_file()


def started(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """A search that is at work: its archive grows."""
    process = subprocess.Popen(
        [sys.executable, "-m", "hwnas", *TOY, *arguments, "hydra.run.dir=run"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    archive, deadline = tmp_path / "run" / "archive.jsonl", time.monotonic() + 60
    while not (archive.is_file() and archive.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.005)
    return process


def ended_well_or_in_one_line(process: subprocess.Popen[str]) -> None:
    _, err = process.communicate(timeout=120)
    assert process.returncode == 0 or (process.returncode == 1 and len(err.splitlines()) == 1), err


def test_a_store_that_is_deleted_under_a_run(run_hwnas, whole: bytes, tmp_path: Path) -> None:
    process = started(tmp_path, "store.dir=store")
    shutil.rmtree(tmp_path / "store")
    ended_well_or_in_one_line(process)
    run_hwnas("search", "resume=run")
    assert (tmp_path / "run" / "archive.jsonl").read_bytes() == whole


def test_a_server_that_is_restarted_under_a_run(
    run_hwnas, whole: bytes, tmp_path: Path, postgres: str, postgres_process
) -> None:
    process = started(tmp_path, f"store.url={postgres}")
    postgres_process[1]()
    ended_well_or_in_one_line(process)
    run_hwnas("search", "resume=run")
    assert (tmp_path / "run" / "archive.jsonl").read_bytes() == whole


def test_a_connection_that_was_idle_during_a_restart_is_made_anew(postgres: str, postgres_process) -> None:
    key = ("toy", "toy", "none", "1")
    with contextlib.closing(EvaluationStore(postgres, "run")) as store:
        store.put(key, {(0,): {"rmi": 1.0}})
        postgres_process[1]()
        assert store.get(key, [(0,)]) == {(0,): {"rmi": 1.0}}


@pytest.mark.parametrize("jump", [-1e6, 1e6], ids=["back", "ahead"])
def test_a_clock_that_jumps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    """Claims of others are waited for as long as they are renewed, whatever the time of day."""
    space = Toy(2, 10)
    now = time.time
    with (
        contextlib.closing(EvaluationStore(f"sqlite:///{tmp_path}/s.sqlite", "there", lease=0.5)) as there,
        contextlib.closing(EvaluationStore(f"sqlite:///{tmp_path}/s.sqlite", "here", lease=0.5)) as here,
    ):
        there.owner = "another machine:1:1:abc"
        evaluator = CachedEvaluator(ToyCost(space, metric="val_acc"), here, "none")
        evaluator.inner.exhaustive = False
        version = evaluator.prepare(space, [])
        key = (evaluator.name, "toy", "none", version)
        assert there.claim(key, [(1, 1)]) == [(1, 1)]
        monkeypatch.setattr(time, "time", lambda: now() + jump)
        begin = time.monotonic()
        (answer,) = evaluator.evaluate([(1, 1)])  # taken over once it was not renewed for the lease
        assert time.monotonic() - begin >= 0.5
        assert here.get(key, [(1, 1)]) == {(1, 1): answer}
        assert here.num_claims() == 0
