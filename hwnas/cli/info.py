"""`hwnas info`: what is here; and what `hwnas doctor` looks at once the packages are there."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from hwnas import __version__
from hwnas.build import ALLOW_VARIABLE, build, conf_folder, read_yaml
from hwnas.cli.console import Finding, say, usage
from hwnas.cli.errors import plain
from hwnas.devices.board import processor
from hwnas.devices.table import CostTable
from hwnas.files import data_folder, printable
from hwnas.store.workers import cores
from hwnas.tables.download import in_words
from hwnas.tables.verify import TABLES as KNOWN

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


def command(arguments: Sequence[str]) -> int:
    """`hwnas info`: versions, machine, data, devices, store; returns the exit code, 0, 1 or 2."""
    if arguments:
        return usage("info", arguments, "What is here: versions, machine, data, devices, store.")
    return plain("info", _say_all)


def _say_all() -> None:
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


def checks() -> list[Finding]:
    """Findings of `hwnas doctor` besides packages."""
    found = [*_imports(), *folders(Path.cwd(), os.environ), *_tables(), *_settings(os.environ)]
    return [Finding(each.state, printable(each.text), printable(each.mend)) for each in found]


def devices() -> Iterator[tuple[str, str]]:
    """Name of each shipped device, and whether it can be used now or what it needs, on nasbench201."""
    from types import SimpleNamespace

    own = {
        "host": "usable, measured on first use",
        "flops": "usable, a formula",
        "memory": "usable, a formula",
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

    for name, (without, mend) in TABLES.items():
        if (data_folder() / name).is_file():
            yield Finding("ok", f"{name} is there")
        else:
            yield Finding("hint", f"{name} is missing: {without}", mend)


def _settings(environment: Mapping[str, str]) -> Iterator[Finding]:

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

    yield "processor", processor()
    yield "cores", str(cores())
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
    say(title, "bold")
    width = max(len(name) for name, _ in rows)
    for name, value in rows:
        say(printable(f"  {name:<{width}}  {value}"))
