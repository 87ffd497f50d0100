"""`hwnas info` and `hwnas doctor`: what is here, and what is missing and how to get it."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

STORE = Path("multirun/store")
PACKAGES = ("torch", "torchvision", "pytorch-lightning", "hydra-core", "numpy", "wandb", "onnxruntime")
TABLES = {
    "nasbench201.npz": (
        "evaluator=table has no accuracies of nasbench201",
        "hwnas data nasbench201 download",
    ),
    "hwnasbench_nasbench201.npz": (
        "costs of nasbench201 on six devices are predicted, partial or absent",
        "hwnas data hwnasbench download",
    ),
    "hwnasbench_fbnet.npz": (
        "costs of fbnet on five devices are partial or absent",
        "hwnas data hwnasbench download",
    ),
}
"""By file: what is not there without it, and the command that gets it."""

USAGE = "usage: hwnas {command}\n\n{what}\n"


@dataclass(frozen=True)
class Finding:
    """What `doctor` found.

    Args:
        state: "ok"; "hint", a first search runs without it; or "error", it does not.
        text: What is, or what is missing.
        mend: The command or setting that mends it; empty if nothing has to be.
    """

    state: Literal["ok", "hint", "error"]
    text: str
    mend: str = ""


def info(arguments: Sequence[str]) -> int:
    """`hwnas info`: versions, machine, data, devices, store; returns the exit code, 0 or 2."""
    if arguments:
        return _usage("info", arguments, "What is here: versions, machine, data, devices, store.")
    from hwnas import __version__
    from hwnas.files import data_folder
    from hwnas.tables.download import in_words
    from hwnas.tables.verify import TABLES as KNOWN

    _print("hwnas", [("version", __version__), ("python", platform.python_version()), *_versions()])
    _print("machine", list(_machine()))
    folder = data_folder()
    files = [folder / name for name in KNOWN]
    sizes = [in_words(file.stat().st_size) if file.is_file() else "missing" for file in files]
    named = [(file.name, size) for file, size in zip(files, sizes, strict=True)]
    _print("data", [("folder", f"{folder}{'' if folder.is_dir() else ' (missing)'}"), *named])
    _print("devices", list(devices()))
    size = sum(file.stat().st_size for file in STORE.rglob("*") if file.is_file())
    _print("store", [(str(STORE), in_words(size) if STORE.is_dir() else "none yet in this folder")])
    return 0


def doctor(arguments: Sequence[str]) -> int:
    """`hwnas doctor`: what is missing and what mends it; returns 0 if a first search can run, else 1."""
    if arguments:
        return _usage(
            "doctor", arguments, "What is missing, and what mends it; exit code 1: no search can run."
        )
    findings = list(packages())
    if not any(finding.state == "error" for finding in findings):
        findings += [*_imports(), *folders(Path.cwd(), os.environ), *_tables(), *_settings(os.environ)]
    colours = {"ok": "green", "hint": "yellow", "error": "bold red"}
    for finding in findings:
        _say(f"{finding.state:<5} {finding.text}", colours[finding.state], len(finding.state))
        if finding.mend:
            _say(f"      {finding.mend}", "bold")
    wrong = sum(finding.state == "error" for finding in findings)
    _say(f"to mend before a search can run: {wrong}" if wrong else "ready: hwnas search")
    return int(wrong > 0)


def devices() -> Iterator[tuple[str, str]]:
    """Name of each shipped device, and whether it can be used now or what it needs, on nasbench201."""
    from types import SimpleNamespace

    from hwnas.build import build, conf_folder, read_yaml
    from hwnas.devices.table import CostTable

    own = {
        "host": "usable, measured on first use",
        "flops": "usable, a formula",
        "toy": "usable, for search_space=toy",
        "multi": "device=[a,b]",
        "profile": "device=mine.json",
        "table": "device=mine.csv",
    }
    yield from own.items()
    space = build(
        read_yaml(conf_folder() / "search_space" / "nasbench201.yaml"),
        image_shape=(3, 32, 32),
        num_classes=10,
    )
    for path in sorted((conf_folder() / "device").glob("*.yaml")):
        if path.stem in own:
            continue
        node = read_yaml(path)
        offered = {"space": space, "dataset": SimpleNamespace(name="cifar10"), "announce": lambda text: None}
        try:
            device = build(node, **offered)
        except ValueError:
            missing, mend = node.get("path"), TABLES["hwnasbench_nasbench201.npz"][1]
            yield path.stem, f"{missing} is missing" if missing else f"its table is missing: {mend}"
        else:
            table = isinstance(device, CostTable)
            yield path.stem, f"usable, {f'from {device.source.name}' if table else 'predicted by a profile'}"


def packages() -> Iterator[Finding]:
    """Whether the packages that hwnas needs are installed and new enough, and its extras."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(text) for text in metadata.requires("hwnas") or []]
    except metadata.PackageNotFoundError:
        yield Finding("hint", "hwnas runs from a folder, it is not installed", "pip install -e .")
        return
    extras = metadata.metadata("hwnas").get_all("Provides-Extra") or []
    needed = [r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    lacking = [text for text in map(_lacking, needed) if text]
    if lacking:
        yield Finding("error", f"needed: {', '.join(lacking)}", "pip install --upgrade hwnas")
    else:
        yield Finding("ok", f"{len(needed)} packages, among them torch {metadata.version('torch')}")
    for extra in extras:
        own = [r for r in required if r not in needed and r.marker and r.marker.evaluate({"extra": extra})]
        if extra != "dev" and (lacking := [text for text in map(_lacking, own) if text]):
            yield Finding("hint", f"extra {extra}: {', '.join(lacking)}", f"pip install 'hwnas[{extra}]'")


def _lacking(requirement: Any) -> str:
    """What is wrong with an installed package; empty if nothing is."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} {version} is not {requirement.specifier}"


def _imports() -> Iterator[Finding]:
    """Whether torch and torchvision load, which two that do not fit together do not."""
    code = "import torch, torchvision; torch.zeros(1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    if done.returncode:
        why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        mend = "pip install --force-reinstall torch torchvision"
        yield Finding("error", f"torch does not load: {why}", mend)


def folders(folder: Path, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Whether runs can be written and data be found.

    Args:
        folder: The working folder.
        environment: Variables by name.
    """
    from hwnas.files import data_folder

    place = next(p for p in (folder / STORE, *(folder / STORE).parents) if p.exists())
    if place.is_dir() and os.access(place, os.W_OK | os.X_OK):
        yield Finding("ok", f"runs go to {folder / 'multirun'}")
    else:
        yield Finding(
            "error",
            f"runs go to {folder / 'multirun'}, and {place} cannot be written to",
            "cd <a folder of yours>",
        )
    data = data_folder()
    if data.is_dir():
        yield Finding("ok", f"data folder {data}")
    elif "HWNAS_DATA" in environment:
        yield Finding("hint", f"HWNAS_DATA names no folder: {data}", f"mkdir -p {data}")
    else:
        yield Finding("hint", f"HWNAS_DATA is not set, and {data} is missing", "export HWNAS_DATA=<folder>")


def _tables() -> Iterator[Finding]:
    from hwnas.files import data_folder

    for name, (without, mend) in TABLES.items():
        if (data_folder() / name).is_file():
            yield Finding("ok", f"{name} is there")
        else:
            yield Finding("hint", f"{name} is missing: {without}", mend)


def _settings(environment: Mapping[str, str]) -> Iterator[Finding]:
    from hwnas.build import ALLOW_VARIABLE

    yield Finding("ok", "Weights & Biases logs offline, without an account; logger=csv leaves it out")
    if environment.get("WANDB_MODE"):
        yield Finding(
            "hint",
            f"WANDB_MODE={environment['WANDB_MODE']} has no effect: logger.mode is offline unless you set it",
            "hwnas search logger.mode=online",
        )
    if environment.get(ALLOW_VARIABLE):
        yield Finding("ok", f"configuration may run code of {environment[ALLOW_VARIABLE]} ({ALLOW_VARIABLE})")


def _versions() -> Iterator[tuple[str, str]]:
    for name in PACKAGES:
        try:
            yield name, metadata.version(name)
        except metadata.PackageNotFoundError:
            yield name, "not installed"


def _machine() -> Iterator[tuple[str, str]]:
    from hwnas.devices.board import processor

    yield "processor", processor()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    yield "cores", str(cores)
    yield "GPU", _gpu()


def _gpu() -> str:
    """Names of the GPUs that torch can use; torch is only asked where there may be some."""
    if shutil.which("nvidia-smi") is None:
        return "none"
    code = (
        "import torch; c = torch.cuda; "
        "print(', '.join(c.get_device_name(i) for i in range(c.device_count())) if c.is_available() else '')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    return done.stdout.strip() or "none that torch can use"


def _print(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """A section of names and values."""
    _say(title, "bold")
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        _say(f"  {name:<{width}}  {value}")


def _say(text: str, style: str = "", styled: int | None = None) -> None:
    """A line, on several where the terminal is narrow; no word is cut, so that paths can be copied.

    Args:
        text: What to say.
        style: Of its first characters.
        styled: How many; None: all.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    lines = [text]
    if console.is_terminal:
        lines = textwrap.wrap(
            text,
            console.width,
            subsequent_indent=" " * 6,
            break_long_words=False,
            break_on_hyphens=False,
        )
    shown = Text("\n".join(lines))
    shown.stylize(style, 0, styled)
    console.print(shown, soft_wrap=True)


def _usage(command: str, arguments: Sequence[str], what: str) -> int:
    if arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(command=command, what=what), end="")
        return 0
    print(f"hwnas {command}: error: it takes no arguments, not {arguments[0]!r}", file=sys.stderr)
    return 2
