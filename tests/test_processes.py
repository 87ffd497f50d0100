"""Dead processes of this place are known as such; others never are."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from hwnas import files as processes

NO_PID = 2**22 + 1
"""Above the largest number that Linux gives to a process."""


def test_a_dead_process_is_gone_and_a_living_one_is_not() -> None:
    process = processes.identity()
    place, pid, started = process.split(":")
    assert int(pid) == os.getpid()
    assert not processes.gone(process)
    assert processes.gone(f"{place}:{NO_PID}:5")
    assert processes.gone(f"{place}:{NO_PID}:")
    if started:
        assert processes.gone(f"{place}:{pid}:{int(started) + 1}")  # another process had this number before


def test_of_other_places_nobody_can_tell() -> None:
    place, _, _ = processes.identity().split(":")
    assert not processes.gone(f"0123456789ab:{NO_PID}:5")
    for nonsense in ("", "x", f"{place}:x:5", f"{place}::", "a:b:c:d", f"{place}:{10**30}:"):
        assert not processes.gone(nonsense)


def test_a_container_of_the_same_machine_is_another_place() -> None:
    there = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c"]
    code = "from hwnas.files import identity; print(identity())"
    if shutil.which("unshare") is None or subprocess.run([*there, ""], capture_output=True).returncode:
        pytest.skip("only root can make a PID namespace")
    done = subprocess.run([*there, code], capture_output=True, text=True, check=True)
    place, pid, _ = done.stdout.split(":")
    assert pid == "1"
    assert place != processes.identity().split(":")[0]
    assert not processes.gone(done.stdout.strip())  # although our process 1 is another one
