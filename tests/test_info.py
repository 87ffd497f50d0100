"""`hwnas info` and `hwnas doctor`."""

from __future__ import annotations

import os
import re
from importlib import metadata
from pathlib import Path

import pytest

from hwnas.cli import doctor, info


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path / "data"))
    return tmp_path


def as_row(name: str, value: str) -> str:
    return rf"(?m)^  {re.escape(name)} +{re.escape(value)}$"


def test_info_says_what_is_here(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    (here / "data").mkdir()
    (here / "data/mnist.npz").write_bytes(b"x" * 12_000)
    (here / info.STORE).mkdir(parents=True)
    (here / info.STORE / "evaluations.sqlite").write_bytes(b"x" * 1_500_000)
    assert info.command([]) == 0
    said = capsys.readouterr().out
    for name, value in {
        "torch": metadata.version("torch"),
        "folder": str(here / "data"),
        "mnist.npz": "12.0 kB",
        "cifar10.npz": "missing",
        "raspi4": "usable, predicted by a profile",
        "edgetpu": "usable, predicted by a profile",
        "gold6226": "nasbench201_cifar10_devices.npz is missing",
        "multirun/store": "1.5 MB",
    }.items():
        assert re.search(as_row(name, value), said), name


def test_devices_from_tables(table_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not (table_path.parent / "nasbench201_cifar10_devices.npz").is_file():
        pytest.skip("the table of devices is missing")
    monkeypatch.setenv("HWNAS_DATA", str(table_path.parent))
    assert dict(info.devices())["gold6226"] == "usable, from nasbench201_cifar10_devices.npz"


@pytest.mark.skipif(os.getuid() == 0, reason="nothing is read-only to root")
def test_a_read_only_folder_is_an_error(here: Path) -> None:
    here.chmod(0o500)
    states = [finding.state for finding in info.folders(here, {})]
    here.chmod(0o700)
    assert states[0] == "error"


def test_folders(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = list(info.folders(here, {"HWNAS_DATA": str(here / "data")}))
    assert [(f.state, f.mend) for f in found] == [("ok", ""), ("hint", f"mkdir -p {here / 'data'}")]
    (here / "data").mkdir()
    assert [f.state for f in info.folders(here, {})] == ["ok", "ok"]
    (here / "multirun").write_text("a file, not a folder")
    assert next(info.folders(here, {})).state == "error"
    monkeypatch.delenv("HWNAS_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "cache"))
    assert list(info.folders(here, {}))[1].mend == "export HWNAS_DATA=<folder>"


def test_a_package_that_is_missing_or_old(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = metadata.version

    def version(name: str) -> str:
        if name == "onnx":
            raise metadata.PackageNotFoundError(name)
        return "2.0.1" if name == "torch" else installed(name)

    monkeypatch.setattr(metadata, "version", version)
    found = {finding.text: finding for finding in doctor.packages()}
    assert found["needed: torch 2.0.1 is not >=2.4"].state == "error"
    onnx = next(f for f in found.values() if f.text.startswith("extra onnx: onnx is not installed"))
    assert (onnx.state, onnx.mend) == ("hint", "pip install 'hwnas[onnx]'")


def test_doctor_as_a_command(run_hwnas, here: Path) -> None:
    done = run_hwnas("doctor")
    assert done.stdout.endswith("ready: hwnas search\n")
    assert (
        "hint  nasbench201.npz is missing: evaluator=table has no accuracies of nasbench201\n" in done.stdout
    )
    assert "\n      hwnas data nasbench201 download\n" in done.stdout
    (here / "multirun").write_text("a file, not a folder")
    colours = {"FORCE_COLOR": "1", "COLUMNS": "60", "TERM": "xterm"}
    assert "\x1b[1;31merror\x1b[0m" in run_hwnas("doctor", code=1, env=colours).stdout
    done = run_hwnas("doctor", code=1, env={**colours, "NO_COLOR": "1"})
    assert "\x1b[1merror\x1b[0m" in done.stdout
    assert done.stdout.endswith("to mend before a search can run: 1\n")


@pytest.mark.parametrize("command", ["info", "doctor"])
def test_usage(command: str, run_hwnas) -> None:
    assert run_hwnas(command, "--help").stdout.startswith(f"usage: hwnas {command}\n")
    assert run_hwnas(command, "tables", code=2).stderr == (
        f"hwnas {command}: error: it takes no arguments, not 'tables'\n"
    )


def test_narrow_terminals(run_hwnas) -> None:
    """40 columns hold everything but words that are longer, which are not cut."""
    said = run_hwnas("info", env={"FORCE_COLOR": "1", "COLUMNS": "40", "TERM": "xterm"}).stdout
    plain = re.sub(r"\x1b\[[\d;]*m", "", said).splitlines()
    assert len(plain) > 30
    assert all(len(line) <= 40 or " " not in line.strip() for line in plain)
