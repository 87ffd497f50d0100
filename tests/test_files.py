"""Files are written whole or not at all, and errors name them."""

from __future__ import annotations

import math
import os
import platform
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from hwnas import files
from hwnas.files import identity


@contextmanager
def small_files(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes: writing more fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_what_is_written(tmp_path: Path) -> None:
    files.write_text(tmp_path / "new/a.txt", "é\n")
    assert (tmp_path / "new/a.txt").read_bytes() == b"\xc3\xa9\n"
    files.write_json(tmp_path / "a.json", {"a": math.inf, "b": [1.5, None]})
    assert (tmp_path / "a.json").read_text() == '{\n "a": null,\n "b": [\n  1.5,\n  null\n ]\n}\n'
    files.write_csv(tmp_path / "a.csv", [("a", "b"), (1, "x,y")])
    assert (tmp_path / "a.csv").read_bytes() == b'a,b\r\n1,"x,y"\r\n'
    files.write_torch(tmp_path / "a.pt", {"a": torch.tensor([1.0, 2.0])})
    assert torch.load(tmp_path / "a.pt", weights_only=True)["a"].tolist() == [1.0, 2.0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json", "a.pt", "new"]


@pytest.mark.parametrize(
    ("write", "content"),
    [
        (files.write_bytes, b"x" * 5000),
        (files.write_text, "x" * 5000),
        (files.write_json, ["x" * 5000]),
        (files.write_csv, [["x" * 5000]]),
        (files.write_torch, torch.zeros(5000)),
    ],
)
def test_a_full_disk_leaves_the_old_file_and_names_it(tmp_path: Path, write, content: object) -> None:
    path = tmp_path / "a"
    path.write_text("old")
    with small_files(1000), pytest.raises(OSError, match="File too large") as error:
        write(path, content)
    assert error.value.filename == str(path)
    assert [file.name for file in tmp_path.iterdir()] == ["a"]
    assert path.read_text() == "old"


def test_contents_are_synced_before_the_rename_and_the_folder_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{descriptor}") else "file")
        fsync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        done.append("rename")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    files.write_text(tmp_path / "b" / "a", "new")
    first = done.index("file")
    assert set(done[:first]) == {"folder"}  # that the new folder is there
    assert done[first:] == ["file", "rename", "folder"]
    done.clear()
    files.write_text(tmp_path / "b" / "a", "newer")
    assert done == ["file", "rename", "folder"]
    files.remove(tmp_path / "b" / "a")
    assert done[3:] == ["folder"]


KILLED = """
import os, sys
from pathlib import Path
from hwnas.files import replacing
with replacing(Path(sys.argv[1])) as partial:
    partial.write_bytes(b"half")
    os._exit(9)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="elsewhere a process is known by its number")
def test_what_a_killed_process_left_is_deleted_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert done.returncode == 9
    (left,) = tmp_path.iterdir()
    assert left.name.startswith("a.")
    assert left.name.endswith(files.PARTIAL)
    alive = f"b.{identity().replace(':', '-')}-0.partial"  # what another thread of ours is writing
    elsewhere = "c.0123456789ab-1-5-0.partial"  # of another machine or container
    old = "d.0123456789ab-1-5-0.partial"
    foreign = "e.partial"
    for name in (alive, elsewhere, old, foreign):
        (tmp_path / name).write_bytes(b"")
    for name in (old, foreign):
        os.utime(tmp_path / name, (0, 0))
    files.write_bytes(path, b"whole")
    assert {p.name for p in tmp_path.iterdir()} == {"a", alive, elsewhere, foreign}


HOLDER = """
import sys, time
from pathlib import Path
from hwnas.files import only_maker
with only_maker(Path(sys.argv[1]), print):
    print("held", flush=True)
    time.sleep(60)
"""


def test_only_one_process_makes_a_file_and_the_next_one_after_its_death(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "model.pt"
    said: list[str] = []
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"

        def announce(text: str) -> None:
            said.append(text)
            holder.kill()

        with files.only_maker(path, announce):
            assert said == [
                f"waiting for process {holder.pid} on {platform.node()}, which makes {path}",
            ]
            assert path.with_suffix(".lock").read_text() == f"process {os.getpid()} on {platform.node()}\n"


def test_an_open_file_has_one_exclusive_lock_or_many_shared_ones(tmp_path: Path) -> None:
    with (tmp_path / "x").open("w") as one, (tmp_path / "x").open() as two, (tmp_path / "x").open() as three:
        assert files.take_lock(one)
        assert not files.take_lock(two)
        assert not files.take_lock(two, shared=True)
        one.close()
        assert files.take_lock(two, shared=True)
        assert files.take_lock(three, shared=True)
        assert not files.take_lock(three)
