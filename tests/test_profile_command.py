"""`hwnas profile` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hwnas.spaces.nasbench201 import NasBench201


def write_csv(path: Path, num: int = 150) -> None:
    """Networks whose latency is 1 ms and 2 ms for every 3x3 convolution."""
    space = NasBench201()
    cells = sorted(set(space.sample(np.random.default_rng(0), num)))
    rows = [f"{space.to_str(cell)},{1 + 2 * sum(op == 3 for op in cell)}" for cell in cells]
    path.write_text("\n".join(["arch,latency_ms", *rows]) + "\n")


def test_fit_and_use(run_hwnas, tmp_path: Path) -> None:
    write_csv(tmp_path / "mine.csv")
    done = run_hwnas("profile", "fit", "device.path=mine.csv", "fraction=0.5", "to=mine.json")
    assert "next: hwnas search device=profile device.path=mine.json" in done.stdout
    profile = json.loads((tmp_path / "mine.json").read_text())
    assert (profile["device"], profile["space"]) == ("table-mine", "nasbench201")
    assert profile["check"]["latency_ms"]["r2"] > 0.999
    done = run_hwnas(
        *("search", "device=profile", "device.path=mine.json", "evaluator=toy", "trainer=none"),
        *("generations=2", "logger=csv", "hydra.run.dir=run"),
    )
    assert "profile of table-mine was not fitted to" in done.stdout
    for line in (tmp_path / "run" / "archive.jsonl").read_text().splitlines():
        trial = json.loads(line)
        expected = 1 + 2 * sum(op == 3 for op in trial["genotype"])
        assert trial["metrics"]["latency_ms"] == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fot", "device.path=mine.csv"], "action=fot is not known; did you mean fit?"),
        (["fit", "device.path=mine.csv", "to=3"], "to must be a file, not 3"),
        (["fit", "device.path=mine.csv", "fraction=2"], "fraction must be a number in 0..1, not 2"),
        (["fit", "device.path=mine.csv", "fraction=0.01"], "20 of each are needed"),
        (["fit", "device=flops"], "device=flops has no table of measured networks to fit to"),
        (["fit"], "device=table needs device.path="),
        (["fit", "device.path=same.csv"], "all networks have the same latency_ms; there is nothing to fit"),
    ],
)
def test_wrong_input_gets_one_line(run_hwnas, tmp_path: Path, arguments: list[str], message: str) -> None:
    write_csv(tmp_path / "mine.csv")
    lines = (tmp_path / "mine.csv").read_text().splitlines()
    same = [lines[0], *(line.rpartition(",")[0] + ",2" for line in lines[1:])]
    (tmp_path / "same.csv").write_text("\n".join(same) + "\n")
    done = run_hwnas("profile", *arguments, code=1)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_settings_complete_after_the_action(run_hwnas) -> None:
    line = "hwnas profile fit frac"
    done = run_hwnas("-sc", "query=bash", env={"COMP_LINE": line, "COMP_POINT": str(len(line))})
    assert "fraction=" in done.stdout
