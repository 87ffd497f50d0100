"""Faults at every call that changes files: a kill, a power cut, a full disk; and then the command again.

A run is recorded once, in a process of its own. Before each of its calls that rename, sync, delete, truncate,
create or open for writing, the folder is kept as a kill would leave it, and as a power cut would: without
names and contents that were not synced, or with the names but with files that are short, or zeros. Each of
these states is put back and the command given again: it must end as if nothing had happened. Then each call
fails in turn, by itself or on a full disk, with the same end.

The store syncs by itself (SQLite): after a power cut its file is whole, or is not there.
`pytest -m slow tests/test_faults.py -s` tries every state; by default a sample of them is tried.
"""

from __future__ import annotations

import contextlib
import csv
import errno
import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hwnas.__main__ import main
from hwnas.cli import command

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(sys.platform != "linux", reason="files are followed through /proc"),
]

TOY = ["search", "experiment=toy", "logger=csv", "generations=2", "strategy.population_size=4"]
DIGITS = ["dataset=digits", "logger=csv"]
NETWORK = [
    *("search_space=nasbench201", "search_space.channels=4", "search_space.num_cells=1"),
    *("trainer.epochs=2", "trainer.max_steps=2", "trainer.batch_size=400"),
]
COMMANDS = {
    "search": [*TOY, "hydra.run.dir=it"],
    "search, with a final training": [
        *("search", *DIGITS, *NETWORK, "evaluator=train", "evaluator.training.epochs=1", "device=flops"),
        *("evaluator.training.max_steps=1", "generations=1", "strategy.population_size=2"),
        "hydra.run.dir=it",
    ],
    "train": [
        *("train", *DIGITS, *NETWORK, "hydra.run.dir=it"),
        "arch=|nor_conv_3x3~0|+|skip_connect~0|none~1|+|nor_conv_1x1~0|skip_connect~1|none~2|",
    ],
    "prune": [
        *("prune", *DIGITS, "model.channels=[4]", "model.hidden=8", "model.latent=2", "training.epochs=1"),
        *("training.batch_size=400", "training.precision=32", "pruning.sparsities=[0,0.5]", "host.rounds=2"),
        *("pruning.ramp_epochs=0.5", "pruning.finetune_epochs=0.5", "pruning.num_images=100"),
        "hydra.run.dir=it",
    ],
    "sweep": [*TOY, "-m", "seed=0,1", "hydra.sweep.dir=it"],
}

PAGE = os.sysconf("SC_PAGE_SIZE")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
Tree = dict[str, bytes | None]
"""Files by their path, with their contents, and folders, with None."""


def watch(root: Path, before: Callable[[str, Path], None], synced: Callable[[int], None]) -> None:
    """From now on, tell of this process's calls that change what is below `root`, but for SQLite's.

    Args:
        root: A folder.
        before: Called before each with its kind and the file; may raise.
        synced: Called after each fsync with the descriptor.
    """
    busy, fsync = False, os.fsync

    def tell(kind: str, path: str | os.PathLike[str], folder: int = -1) -> None:
        nonlocal busy
        if busy:
            return
        start = os.readlink(f"/proc/self/fd/{folder}") if folder >= 0 else os.getcwd()
        file = Path(os.path.normpath(Path(start, path)))
        if root in file.parents or file == root:
            busy = True
            try:
                before(kind, file)
            finally:
                busy = False

    def hook(event: str, given: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(given[0], str | os.PathLike) and given[2] & WRITES:
            tell("open", given[0])
        elif event == "os.rename":
            tell("rename", given[1], given[3])
        elif event in ("os.remove", "os.rmdir"):
            tell("delete", given[0], given[1])
        elif event == "os.mkdir":
            tell("create", given[0], given[2])
        elif event == "os.truncate":
            tell(
                "truncate",
                os.readlink(f"/proc/self/fd/{given[0]}") if given[0].__class__ is int else given[0],
            )

    def told_fsync(file: Any) -> None:
        descriptor = file if isinstance(file, int) else file.fileno()
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        tell("sync", path)
        fsync(descriptor)
        if path.is_relative_to(root):
            synced(descriptor)

    os.fsync = told_fsync
    sys.addaudithook(hook)


@dataclass
class Disk:
    """What of a folder is on the disk for certain.

    Attributes:
        root: The folder.
        contents: Of files, by inode, when they were synced last.
        names: Of folders, by inode, when they were synced last: inode per name.
        states: What was kept: the calls before which the folder could be left like that, and how.
    """

    root: Path
    contents: dict[int, bytes] = field(default_factory=dict)
    names: dict[int, dict[str, int]] = field(default_factory=dict)
    states: dict[bytes, tuple[str, Tree]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    _held: set[int] = field(default_factory=set)

    def synced(self, descriptor: int) -> None:
        """A file or a folder has been synced."""
        self._hold(f"/proc/self/fd/{descriptor}")
        status, path = os.fstat(descriptor), Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path.is_dir():
            for entry in path.iterdir():
                self._hold(entry)
            self.names[status.st_ino] = {entry.name: entry.stat().st_ino for entry in path.iterdir()}
        else:
            self.contents[status.st_ino] = path.read_bytes()

    def _hold(self, path: str | Path) -> None:
        """Keep an inode's number from being given to another file."""
        if (inode := os.stat(path).st_ino) not in self._held:
            os.open(path, os.O_RDONLY)
            self._held.add(inode)

    def keep(self, kind: str, path: Path) -> None:
        """Keep the states that a kill or a power cut before a call could leave."""
        call = f"{kind} {path.relative_to(self.root.parent)}"
        self.calls.append(call)
        now = {str(p.relative_to(self.root)): p for p in sorted(self.root.rglob("*"))}
        kill: Tree = {name: None if p.is_dir() else p.read_bytes() for name, p in now.items()}
        store: Tree = {name: content for name, content in kill.items() if is_store(name)}
        lost: Tree = {}
        self._certain(self.root.stat().st_ino, "", lost)
        short, zeros = dict(kill), dict(kill)
        for name, p in now.items():
            content = kill[name]
            if content is not None:
                certain = self.contents.get(p.stat().st_ino, b"")
                short[name] = start = certain if content.startswith(certain) else b""
                zeros[name] = start + bytes(len(content) - len(start))
        cuts = {"unsynced names and contents lost": lost, "unsynced contents lost": short, "zeros": zeros}
        self._add(f"killed before {call}", kill)
        for index, (what, tree) in enumerate(cuts.items()):
            files = {name: content for name, content in tree.items() if not is_store(name)}
            if (len(self.calls) + index) % 2:
                files |= {str(folder): None for name in store for folder in Path(name).parents} | store
                files.pop(".", None)
            self._add(f"power cut before {call}, {what}", files)

    def _add(self, what: str, tree: Tree) -> None:
        self.states.setdefault(hashlib.sha256(repr(sorted(tree.items())).encode()).digest(), (what, tree))

    def _certain(self, folder: int, prefix: str, tree: Tree) -> None:
        for name, inode in self.names.get(folder, {}).items():
            path = prefix + name
            if inode in self.names or (not self.contents.get(inode) and self._was_folder(inode)):
                tree[path] = None
                self._certain(inode, path + "/", tree)
            else:
                tree[path] = self.contents.get(inode, b"")

    def _was_folder(self, inode: int) -> bool:
        return any(p.is_dir() and p.stat().st_ino == inode for p in self.root.rglob("*"))


def is_store(name: str) -> bool:
    return ".sqlite" in name


def put(root: Path, tree: Tree) -> None:
    """Make a folder's contents a tree."""
    root.mkdir(exist_ok=True)
    for path in root.iterdir():  # the folder itself is the one in which commands are given
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for name, content in sorted(tree.items()):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            (root / name).mkdir(exist_ok=True)
        else:
            (root / name).write_bytes(content)


Attempt = Callable[[], Callable[[], None] | None]
"""Called in the process of a command before it begins; returns what is called when it has ended."""

Attempts = Generator[Attempt, tuple[int, str], None]
"""What is tried, one after the other; is sent the exit code, or -signal, and what was said on stderr."""


def attempt(arguments: list[str], attempts: Attempts, root: Path, *, resume: bool = False) -> None:
    """Give a command in `root`, again and again, each time in a process of its own.

    The processes begin when the configuration of the first job is composed, which saves most of the time.

    Args:
        arguments: The command.
        attempts: What is tried.
        root: The working folder.
        resume: Whether it is given as `resume=`; then the processes begin right after the start.
    """
    module, name = command, ("prepare_and_run" if resume else "run_in_folder")
    begin, parent, said = getattr(module, name), os.getpid(), root.parent / "said"
    put(root, {})  # what a finished sweep has left would be the answer
    at_end: Callable[[], None] | None = None

    def run(*given: Any) -> Any:
        nonlocal at_end
        if os.getpid() != parent:  # another job of a sweep
            return begin(*given)
        try:
            prepare = next(attempts)
            while True:
                if (child := fork()) == 0:
                    redirect(said)
                    at_end = prepare()
                    return begin(given[0], ["resume=it"]) if resume else begin(*given)
                code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
                prepare = attempts.send((code, said.read_text()))
        except StopIteration:
            return 0

    code: Any = 99
    setattr(module, name, run)
    try:
        with contextlib.chdir(root):
            code = main(arguments)
    except SystemExit as stop:
        code = stop.code
    except BaseException:
        if os.getpid() == parent:
            raise
        traceback.print_exc()
    finally:
        setattr(module, name, begin)
        if os.getpid() != parent:
            if at_end is not None:
                at_end()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)


def fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # forking with threads; ours do nothing
        return os.fork()


def redirect(said: Path) -> None:
    """Let this process say nothing on stdout, and what it says on stderr to a file."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    sys.stdout, sys.stderr = open(1, "w", closefd=False), open(2, "w", closefd=False)  # noqa: SIM115


VOLATILE = ("seconds", "energy_kwh", "cached", "latency_ms", "unpruned_latency_ms")
"""What is measured, or depends on the store."""

UNTOLD = (".hydra", "run_id", "search.log", "train.log", "prune.log", "multirun.yaml")
"""Files that name paths and times."""


def lasting(value: Any) -> Any:
    """JSON without what is measured."""
    if isinstance(value, dict):
        return {key: lasting(item) for key, item in value.items() if key not in VOLATILE}
    return [lasting(item) for item in value] if isinstance(value, list) else value


def outcome(root: Path) -> dict[str, str]:
    """What a command has left, file by file, without times and what is drawn by lot."""
    found = {}
    for path in sorted((root / "it").rglob("*")):
        relative = path.relative_to(root)
        if path.is_dir() or set(UNTOLD) & set(relative.parts):
            continue
        if path.name == "report.html":
            told = str(path.read_text().rstrip().endswith("</html>"))
        elif path.suffix == ".json":
            told = json.dumps(lasting(json.loads(path.read_text())))
        elif path.suffix == ".csv":
            with path.open() as file:
                told = json.dumps(lasting(list(csv.DictReader(file))))
        else:
            told = hashlib.sha256(path.read_bytes()).hexdigest()
        found[str(relative)] = told
    return found


def recorded(root: Path, kept: Path) -> Attempts:
    """Let nothing happen, and write to `kept` what could have happened."""

    def prepare() -> Callable[[], None]:
        disk = Disk(root)
        watch(root, disk.keep, disk.synced)

        def end() -> None:
            disk.keep("end", root)
            kept.write_bytes(pickle.dumps(disk))

        return end

    code, said = yield prepare
    assert code == 0, said


def restored(root: Path, states: Sequence[tuple[str, Tree]], tried: Tried) -> Attempts:
    """Put each state back and go on."""
    for what, tree in states:
        put(root, tree)
        tried.check(what, *(yield lambda: None))


def refused(root: Path, calls: Sequence[tuple[int, str]], tried: Tried, *, full: bool) -> Attempts:
    """Let each call fail: it alone, or on a full disk all that write after it, too; then go on."""
    for number, call in calls:
        what = f"{'full disk' if full else 'error'} at {call}"
        put(root, {})

        def prepare(left: int = number) -> None:
            def before(kind: str, path: Path) -> None:
                nonlocal left
                left -= 1
                if left == 0 or (full and left < 0 and kind not in ("delete", "rename", "truncate")):
                    code = errno.ENOSPC if full else errno.EIO
                    raise OSError(code, os.strerror(code), str(path))

            watch(root, before, lambda descriptor: None)

        code, said = yield prepare
        if code != 0:
            tried.refusal(what, code, said)
        elif lost := {name for name, told in tried.expected.items() if outcome(root).get(name) != told}:
            tried.problems.append(
                f"{what}: exit code 0, but {lost} differ"
            )  # what is too many, is deleted next
        tried.check(f"after {what}", *(yield lambda: None))


def filled(root: Path, pages: Sequence[int], tried: Tried) -> Attempts:
    """Run on real disks that are full after so many pages; then make them larger and go on."""
    disk = root / "it"

    def mount(options: str) -> None:
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(disk)], check=True)

    for num in pages:
        what = f"a disk of {num} pages"
        put(root, {"it": None})
        mount(f"size={num * PAGE}")
        try:
            code, said = yield lambda: None
            if code != 0:
                tried.refusal(what, code, said)
            mount("remount,size=50m")
            tried.check(f"after {what}", *(yield lambda: None))
        finally:
            subprocess.run(["umount", str(disk)], check=True)


@dataclass
class Tried:
    """What was tried, and what went wrong."""

    root: Path
    command: str
    expected: dict[str, str]
    num: int = 0
    problems: list[str] = field(default_factory=list)

    def check(self, what: str, code: int, said: str) -> None:
        """A command must have ended as if nothing had happened."""
        self.num += 1
        if code != 0:
            self.problems.append(f"{what}: exit code {code}: {said}")
        elif differs := compare(self.expected, outcome(self.root)):
            self.problems.append(f"{what}: {differs}")

    def refusal(self, what: str, code: int, said: str) -> None:
        """A command must have said in one line what is wrong; a sweep has one for each job, too."""
        of_a_sweep = ("Error executing job with overrides: ", "  seed=")
        lines = [
            line for line in said.splitlines() if line and not line.startswith(("warning: ", *of_a_sweep))
        ]
        if (
            code != 1
            or len(lines) > 1
            or any(not x.startswith(f"hwnas {self.command}: error: ") for x in lines)
        ):
            self.problems.append(f"{what}: exit code {code}: {said}")


def torture(folder: Path, name: str, sample: int | None) -> None:
    """Leave a command in all states that a fault could leave it in, and give it again; the number of faults.

    Args:
        folder: Empty.
        name: Of the command.
        sample: How many states, and how many calls on a full disk, are tried; None: all, and calls that
            fail by themselves and small disks for every command.
    """
    whole, root, kept = (folder / n for n in ("whole", "root", "kept"))
    arguments = COMMANDS[name]
    whole.mkdir()
    with contextlib.chdir(whole):
        assert main(arguments) == 0
    tried = Tried(root, arguments[0], outcome(whole))
    assert tried.expected
    attempt(arguments, recorded(root, kept), root)
    assert compare(tried.expected, outcome(root)) == ""
    disk: Disk = pickle.loads(kept.read_bytes())
    states, calls = list(disk.states.values()), list(enumerate(disk.calls[:-1], start=1))
    begun = [
        state for state in states if {"it/.hydra/hydra.yaml", "it/.hydra/config.yaml"} <= state[1].keys()
    ]

    def some(items: list[Any]) -> list[Any]:
        return items if sample is None else random.Random(name).sample(items, min(sample, len(items)))

    attempt(arguments, restored(root, some(states), tried), root)
    if sample is None:
        attempt(arguments, refused(root, calls, tried, full=False), root)
    attempt(arguments, refused(root, some(calls), tried, full=True), root)
    if os.geteuid() == 0 and (sample is None or name == "search"):  # may mount
        num_pages = sum(
            -(-path.stat().st_size // PAGE) for path in (whole / "it").rglob("*") if path.is_file()
        )
        attempt(arguments, filled(root, some(list(range(3, num_pages))), tried), root)
    if name != "sweep":
        attempt(arguments, restored(root, begun[-1:] if sample else begun[::4], tried), root, resume=True)
    print(
        f"\n{name}: {len(calls)} calls, {len(states)} states; {tried.num} tried, "
        f"{len(tried.problems)} problems"
    )
    print("\n".join(tried.problems))
    assert tried.num > 0
    assert not tried.problems


def compare(expected: dict[str, str], found: dict[str, str]) -> str:
    """What differs, in words; empty if nothing does."""
    return "; ".join(
        f"{name} {'lacks' if name not in found else 'is new' if name not in expected else 'differs'}"
        for name in sorted(expected.keys() | found.keys())
        if expected.get(name) != found.get(name)
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_some_faults(tmp_path: Path, name: str) -> None:
    torture(tmp_path, name, sample=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_fault(tmp_path: Path, name: str) -> None:
    torture(tmp_path, name, sample=None)
