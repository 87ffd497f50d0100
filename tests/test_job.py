"""A run's folder belongs to one configuration and to one process at a time, for every command."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from hwnas import compose, search
from hwnas.__main__ import main
from hwnas.runs.jobs import Jobs
from hwnas.runs.lock import LOCK, STORED, _remove, in_use, lock_folder
from hwnas.runs.log import writing

TOY = ("experiment=toy", "logger=csv", "generations=2", "strategy.population_size=6")
SMALL = ("search_space.channels=4", "search_space.num_cells=1")
ARCH = "|none~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def hwnas(*arguments: str) -> int:
    """A command as the command line runs it; returns its exit code."""
    try:
        return main(list(arguments))
    except SystemExit as error:
        return int(str(error.code))


def state(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file of a folder but locks, and when it was written."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes())
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != LOCK
    }


@contextlib.contextmanager
def used(folder: Path) -> Iterator[None]:
    """A folder in which somebody is at work."""
    with lock_folder(folder, wait=False):
        yield


@pytest.mark.parametrize(
    "command",
    [
        ("search", *TOY),
        ("train", *SMALL, f"arch='{ARCH}'", "logger=csv"),
        ("prune", "dataset=digits", "logger=csv"),
        ("export", *SMALL, f"arch='{ARCH}'", "format=torch"),
        ("profile", "measure", *SMALL),
    ],
    ids=lambda command: command[0],
)
def test_a_folder_in_use_is_left_alone(command: tuple[str, ...], here: Path, capsys) -> None:
    """Whether it is resumed, or given to another run, or to the same."""
    assert hwnas(*TOY_RUN) == 0
    (here / "run/result.json").unlink()
    with used(here / "run"):
        before = state(here)
        assert hwnas(*command, "hydra.run.dir=run") == 1
        if command[0] == "search":
            assert hwnas("search", "resume=run") == 1
        assert state(here) == before
    said = capsys.readouterr().err.splitlines()
    assert len(said) == (2 if command[0] == "search" else 1)
    assert all(f"{here}/run is in use by process " in line for line in said)
    assert all("; wait for it or stop it first" in line for line in said)


TOY_RUN = ("search", *TOY, "hydra.run.dir=run")


@pytest.mark.parametrize("finished", [True, False])
def test_a_folder_has_one_configuration(finished: bool, here: Path, capsys) -> None:
    assert hwnas(*TOY_RUN) == 0
    if not finished:
        (here / "run/result.json").unlink()
    before = state(here)
    assert hwnas(*TOY_RUN, "strategy=random") == 1
    assert f"{here}/run holds a run with strategy._target_=hwnas.strategies.mo_hdnas." in err(capsys)
    assert hwnas(*TOY_RUN, "seed=4") == 1
    assert err(capsys).endswith("/run holds a run with seed=0, not seed=4; choose another folder\n")
    assert hwnas(*TOY_RUN, "+limits.params=5") == 1
    assert err(capsys).endswith(
        "holds a run with limits.params=None, not limits.params=5; choose another folder\n"
    )
    assert hwnas("train", *SMALL, f"arch='{ARCH}'", "hydra.run.dir=run") == 1
    assert err(capsys).endswith("/run holds a run of `hwnas search`, not of `hwnas train`\n")
    assert state(here) == before
    assert hwnas(*TOY_RUN, "workers=2") == 0  # how it is done, not what
    assert (here / "run/result.json").is_file()


def err(capsys: pytest.CaptureFixture[str]) -> str:
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    return said


def wait_for_a_waiter(folder: Path) -> None:
    """Return when somebody waits for a folder's lock, as Linux lists it."""
    inode, deadline = (folder / STORED / LOCK).stat().st_ino, time.monotonic() + 60
    while time.monotonic() < deadline:
        locks = Path("/proc/locks").read_text().splitlines()
        if any("->" in line and f":{inode} " in line for line in locks):
            return
        time.sleep(0.02)


def test_a_job_of_a_sweep_waits_for_another_process(here: Path, capsys) -> None:
    """The same sweep twice at once: the second gets what the first has found."""
    sweep = ("search", "-m", *TOY, "seed=0,1", "hydra.sweep.dir=sweep")
    assert hwnas(*sweep) == 0
    first = next((here / "sweep").glob("seed=0*"))
    before = state(first)
    (here / "sweep/sweep.json").unlink()
    ended = (first / "job.json").rename(here / "job.json")

    def work() -> None:
        wait_for_a_waiter(first)
        ended.rename(first / "job.json")
        at_work.__exit__(None, None, None)

    at_work = used(first)
    at_work.__enter__()
    assert Jobs.read(here / "sweep").running == {first.name}
    assert not Jobs.read(here / "sweep").unfinished
    thread = threading.Thread(target=work)
    thread.start()
    capsys.readouterr()
    assert hwnas(*sweep) == 0
    thread.join()
    said = capsys.readouterr().out
    assert f"{first} is in use by process " in said
    assert "2 jobs finished" in said
    for name in ("archive.jsonl", "result.json", "report.html"):
        assert state(first)[name] == before[name]


@pytest.mark.parametrize(
    "command",
    [
        ("search", *TOY, "generations=0"),
        ("search", *TOY, "limits.latency=3"),
        ("train", *SMALL),
        ("train", *SMALL, "arch=nonsense"),
        ("prune", "dataset=digits", "logger=csv", "limits.params=-1"),
        ("export", *SMALL, "run=nowhere"),
        ("profile", "show", "dataset=digits"),
    ],
    ids=lambda command: "_".join((command[0], command[-1])),
)
def test_a_refused_command_leaves_no_folder(command: tuple[str, ...], here: Path, capsys) -> None:
    assert hwnas(*command) == 1
    err(capsys)
    assert [path for path in here.rglob("*") if path.is_file()] == []
    assert not list((here / "multirun").glob("runs/*/*"))
    assert hwnas(*command, "hydra.run.dir=.") == 1
    assert here.is_dir()
    assert {path.name for path in here.iterdir()} <= {"multirun"}


def test_a_call_of_python_is_refused_like_a_command(here: Path) -> None:
    with used(here / "run"), pytest.raises(ValueError, match="run is in use by process "):
        search(compose(*TOY), "run", show=False)
    assert [path.name for path in (here / "run").rglob("*")] == [".hydra", "lock"]
    search(compose(*TOY), "run", show=False)


def test_a_folder_that_its_last_owner_removed_is_made_again(here: Path) -> None:
    """Its lock is on a file that is no more: whoever waited for it locks the new one."""
    with used(here / "run"):

        def wait() -> None:
            with lock_folder(here / "run", wait=True):
                assert in_use(here / "run")

        waits = threading.Thread(target=wait)
        waits.start()
        wait_for_a_waiter(here / "run")
        _remove(here / "run", {".hydra"})
    waits.join()
    assert (here / "run/.hydra/lock").is_file()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
@pytest.mark.parametrize("path", ["/dev/full", "missing/a.log"])
def test_a_log_that_cannot_be_written_is_silent(path: str, here: Path, capsys) -> None:
    with writing(Path(path)):
        logging.getLogger("hwnas").info("said")
    assert "Traceback" not in capsys.readouterr().err
