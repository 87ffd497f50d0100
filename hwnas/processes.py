"""Which process something belongs to: what a dead one has left is told from what a living one needs."""

from __future__ import annotations

import functools
import hashlib
import multiprocessing
import os
import platform
import sys
import threading
import time
from pathlib import Path


def identity() -> str:
    """This process, as `<place>:<pid>:<start>`.

    The place is the machine since it was started, and the PID namespace: containers of one machine are
    different places, because the numbers of one's processes mean nothing in another.
    """
    return _identity(os.getpid())


@functools.cache
def _identity(pid: int) -> str:
    return f"{_place()}:{pid}:{_started(pid)}"


def gone(process: str) -> bool:
    """Whether a process, as `identity` named it, was one of this place and is no more.

    False where nobody can tell: of other machines and containers.
    """
    place, _, rest = process.partition(":")
    number, _, started = rest.partition(":")
    if place != _place() or not number.isdigit():
        return False
    if started:
        return _started(int(number)) != started
    if sys.platform == "win32":  # signal 0 is none there
        return False
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return True
    except (OverflowError, PermissionError):
        return False
    return False


@functools.cache
def end_with(parent: str) -> None:
    """End this process soon after the one that started it, `parent` as its `identity` named it.

    A pool's processes would go on alone after a parent that was killed, and be in the way of the same command
    when it is given again. Processes that others have started, as those of a cluster do, are left alone.
    """
    pid = int(parent.split(":")[1])
    direct = os.getppid() == pid
    if not direct and not multiprocessing.current_process().name.startswith("Loky"):
        return

    def watch() -> None:
        while not (gone(parent) or (direct and os.getppid() != pid)):
            time.sleep(0.2)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()


@functools.cache
def _place() -> str:
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        machine, namespace = platform.node(), ""
    return hashlib.sha256(f"{machine} {namespace}".encode()).hexdigest()[:12]


def _started(pid: int) -> str:
    """When a process was started, in ticks of the machine; empty if it is dead or nobody can tell."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return "" if fields[0] == "Z" else fields[19]  # Z: dead, but its parent has not waited for it
    except (OSError, IndexError):
        return ""
