"""SIGKILL at random moments: sweeps, workers and writers of a store end like those that nothing happened to.

`pytest -m slow tests/test_kills.py -s` kills two hundred times.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hwnas.store.evaluations import EvaluationStore, Row

SPAWN = multiprocessing.get_context("spawn")
KEY = ("killed", "toy", "none", "1")

SWEEP = ["-m", "experiment=toy", "logger=csv", "seed=0,1", "generations=150"]
JOBLIB = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "hydra.sweep.dir=out"]
SEARCH = [
    *("evaluator=train", "evaluator.training.epochs=1", "evaluator.training.max_steps=3", "device=flops"),
    *("search_space.channels=4", "search_space.num_cells=1", "generations=4", "strategy.population_size=6"),
    *("trainer=none", "logger=csv", "hydra.run.dir=out/run"),
]
COMMANDS = {"sweep": [*SWEEP, *JOBLIB], "workers": [*SEARCH, "workers=2"]}
"""What is killed; it starts again with the same command, or as a run that is resumed."""


def command(folder: Path, kind: str) -> list[str]:
    again = kind == "workers" and (folder / "out" / "run" / ".hydra" / "config.yaml").is_file()
    arguments = ["resume=out/run"] if again else COMMANDS[kind]
    return [sys.executable, "-m", "hwnas", "search", *arguments]


def start(folder: Path, kind: str) -> subprocess.Popen[bytes]:
    quiet = subprocess.DEVNULL
    return subprocess.Popen(
        command(folder, kind), cwd=folder, stdout=quiet, stderr=quiet, start_new_session=True
    )


def members(group: int) -> list[int]:
    """The processes of a group, as Linux lists them."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def answers(folder: Path) -> dict[str, tuple[str, str]]:
    """Archive, and best network and front, of every run below a folder."""
    found = {}
    for result in sorted((folder / "out").glob("*/result.json")):
        best = json.loads(result.read_text())["best"]
        archive = (result.parent / "archive.jsonl").read_text()
        found[result.parent.name.partition("-")[0]] = archive, json.dumps(best)
    return found


def is_sound(folder: Path) -> None:
    for database in (folder / "multirun" / "store").glob("*.sqlite"):
        with contextlib.closing(sqlite3.connect(database)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def torture(folder: Path, kind: str, kills: int, seed: int, minutes: float) -> int:
    """Kill a command again and again, and compare with one that was not; how many kills there were.

    Half of the kills hit all its processes at once, the others one of them. When it has come to its end all
    the same, its results are compared, and it starts anew in an empty folder.
    """
    rng = random.Random(seed)
    whole = folder / "whole"
    whole.mkdir()
    begin = time.monotonic()
    process = start(whole, kind)
    assert process.wait(300) == 0
    duration = time.monotonic() - begin
    expected = answers(whole)
    assert expected
    done = round_ = 0
    while done < kills and time.monotonic() - begin < 60 * minutes:
        torn = folder / f"torn{round_}"
        torn.mkdir()
        round_ += 1
        while True:
            process = start(torn, kind)
            try:
                ended = process.wait(rng.uniform(0.1, 0.9 * duration) if done < kills else 300)
            except subprocess.TimeoutExpired:
                ended = None
            if ended == 0:
                break
            if ended is None:
                running = members(process.pid)
                if rng.random() < 0.5 and running:
                    os.kill(rng.choice(running), signal.SIGKILL)
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(rng.uniform(0.1, 5.0))
                    if process.poll() == 0:  # a worker was replaced
                        done += 1
                        break
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                done += 1
                is_sound(torn)
        assert answers(torn) == expected, f"{kind}, seed {seed}, after {done} kills"
        is_sound(torn)
        with contextlib.closing(
            EvaluationStore(f"sqlite:///{torn}/multirun/store/evaluations.sqlite", "x")
        ) as s:
            assert s.num_claims() == 0
    return done


def write(url: str, number: int) -> None:
    """Keep evaluations of one's own, in populations, for as long as one lives."""
    store = EvaluationStore(url, f"writer{number}")
    for start in range(0, 1_000_000, 20):
        population = [(number, start + i) for i in range(20)]
        store.claim(KEY, population)
        store.put(KEY, {genotype: {"rmi": genotype[1] / 7} for genotype in population})


def torture_writers(folder: Path, kills: int, seed: int) -> None:
    """Kill writers of one store; what is there is whole, and others can go on."""
    rng = random.Random(seed)
    url = f"sqlite:///{folder}/evaluations.sqlite"
    EvaluationStore(url, "first").close()
    writers = {number: SPAWN.Process(target=write, args=(url, number), daemon=True) for number in range(3)}
    for writer in writers.values():
        writer.start()
    time.sleep(2.0)
    for number in range(3, 3 + kills):
        time.sleep(rng.uniform(0.05, 0.4))
        victim = rng.choice(list(writers))
        writers.pop(victim).kill()
        writers[number] = SPAWN.Process(target=write, args=(url, number), daemon=True)
        writers[number].start()
    time.sleep(2.0)
    for writer in writers.values():
        writer.kill()
        writer.join()
    with contextlib.closing(EvaluationStore(url, "last")) as store:
        rows: list[Row] = list(store.rows([KEY]))
        num: dict[str, int] = {}
        for row in rows:
            assert row.metrics == {"rmi": int(row.genotype.split(",")[1]) / 7}
            num[row.run] = num.get(row.run, 0) + 1
        assert rows
        assert all(count % 20 == 0 for count in num.values())  # all of a population or none
        assert store.claim(KEY, [(99, 0)]) == [(99, 0)]
    with contextlib.closing(sqlite3.connect(folder / "evaluations.sqlite")) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize(("kind", "how"), [("sweep", signal.SIGKILL), ("workers", signal.SIGTERM)])
def test_processes_end_with_their_parent(
    kind: str, how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same command at once is not in their way, and cleans up what they have left."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    process = start(tmp_path, kind)
    archives, deadline = 2 if kind == "sweep" else 1, time.monotonic() + 200
    while time.monotonic() < deadline:
        if sum(a.stat().st_size > 0 for a in tmp_path.glob("out/*/archive.jsonl")) == archives:
            break
        time.sleep(0.05)
    assert len(members(process.pid)) > 2
    process.send_signal(how)
    assert process.wait(60) == -how
    deadline = time.monotonic() + 60
    while members(process.pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert members(process.pid) == []
    assert any((tmp_path / "tmp").glob("hwnas-*"))
    assert not list(Path("/dev/shm").glob(f"joblib_memmapping_folder_{process.pid}_*"))
    assert start(tmp_path, kind).wait(300) == 0
    assert not any((tmp_path / "tmp").glob("hwnas-*"))
    assert len(list(tmp_path.glob("out/*/result.json"))) == archives


def test_a_few_kills(tmp_path: Path) -> None:
    assert torture(tmp_path, "sweep", kills=2, seed=0, minutes=3) == 2


def test_a_few_killed_writers(tmp_path: Path) -> None:
    torture_writers(tmp_path, kills=4, seed=0)


@pytest.mark.slow
def test_two_hundred_kills(tmp_path: Path) -> None:
    (tmp_path / "writers").mkdir()
    torture_writers(tmp_path / "writers", kills=60, seed=1)
    done = {}
    for kind, kills in (("sweep", 100), ("workers", 40)):
        (tmp_path / kind).mkdir()
        done[kind] = torture(tmp_path / kind, kind, kills, seed=1, minutes=15)
    print(f"\nkilled: 60 writers, {done}")
    assert done == {"sweep": 100, "workers": 40}
