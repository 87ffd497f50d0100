from __future__ import annotations

from pathlib import Path

import pytest

from hwnas.devices.energy import Rapl, counter, energy_per_pass


def package(root: Path, number: str, name: str, energy: int, turn: int = 1000) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(name + "\n")
    (folder / "energy_uj").write_text(f"{energy}\n")
    (folder / "max_energy_range_uj").write_text(f"{turn}\n")
    return folder / "energy_uj"


def test_packages_are_added_and_their_parts_are_not(tmp_path: Path) -> None:
    first = package(tmp_path, "0", "package-0", 100)
    second = package(tmp_path, "1", "package-1", 200)
    part = package(tmp_path, "0:0", "core", 50)
    source = Rapl(tmp_path)
    assert source.read() == 0.0
    first.write_text("400\n")
    second.write_text("300\n")
    part.write_text("900\n")
    assert source.read() == pytest.approx(0.4, rel=1e-15)  # 300 + 100 microjoules, in mJ


def test_a_counter_that_starts_over_goes_on(tmp_path: Path) -> None:
    file = package(tmp_path, "0", "package-0", 900, turn=1000)
    source = Rapl(tmp_path)
    file.write_text("100\n")
    assert source.read() == pytest.approx(0.2, rel=1e-15)  # 1000 - 900 + 100 microjoules
    file.write_text("50\n")
    assert source.read() == pytest.approx(1.15, rel=1e-15)


def test_energy_of_a_pass_is_the_difference_over_a_loop(tmp_path: Path) -> None:
    file = package(tmp_path, "0", "package-0", 0, turn=10**9)
    source = Rapl(tmp_path)

    def timer(passes: int) -> float:
        file.write_text(f"{int(file.read_text()) + 7000 * passes}\n")
        return 0.0

    assert energy_per_pass(timer, source, 12) == pytest.approx(7.0, rel=1e-12)


def test_what_has_no_counter_has_no_energy(tmp_path: Path) -> None:
    assert counter("cpu", tmp_path) is None
    package(tmp_path, "0", "psys", 5)
    assert counter("cpu", tmp_path) is None
    package(tmp_path, "1", "package-0", 5)
    assert isinstance(counter("CPUExecutionProvider", tmp_path), Rapl)
    assert counter("CoreMLExecutionProvider", tmp_path) is None
