"""`hwnas profile` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from hwnas.build import conf_folder
from hwnas.devices import board
from hwnas.devices.measure import Settings, plan_of
from hwnas.runs.units import text
from hwnas.spaces.nasbench201 import NasBench201


def write_csv(path: Path, num: int = 150) -> None:
    """Networks whose latency is 1 ms and 2 ms for every 3x3 convolution."""
    space = NasBench201()
    cells = sorted(set(space.sample(np.random.default_rng(0), num)))
    rows = [f"{space.to_str(cell)},{1 + 2 * sum(op == 3 for op in cell)}" for cell in cells]
    path.write_text("\n".join(["arch,latency_ms", *rows]) + "\n")


def test_fit_and_use(run_hwnas, tmp_path: Path) -> None:
    write_csv(tmp_path / "mine.csv")
    done = run_hwnas("profile", "fit", "device.path=mine.csv", "to=mine.json")
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


def test_adapt_to_ten_networks_and_search(run_hwnas, tmp_path: Path) -> None:
    write_csv(tmp_path / "mine.csv")
    lines = (tmp_path / "mine.csv").read_text().splitlines()
    ten = lines[8::14][:10]
    (tmp_path / "ten.csv").write_text("\n".join([lines[0], *ten]) + "\n")
    done = run_hwnas("profile", "adapt", "ten.csv", "from=[pixel3,gtx1080ti]", "to=mine.json", "next=3")
    assert "adapted to 10 measured networks" in done.stdout
    assert "3 more networks would lower the doubt about latency_ms from" in done.stdout
    profile = json.loads((tmp_path / "mine.json").read_text())
    assert (profile["device"], profile["origin"]["adapted_from"]) == ("ten", "pixel3, gtx1080ti")
    header, *rows = (tmp_path / "mine.next.csv").read_text().splitlines()
    assert header == "arch,predicted_ms,low_ms,high_ms"
    measured = {line.rpartition(",")[0] for line in ten}
    assert len(rows) == len({row.split(",")[0] for row in rows} - measured) == 3
    for row in rows:
        arch, expected, low, high = row.split(",")
        assert float(low) - 0.1 <= 1 + 2 * arch.count("nor_conv_3x3") <= float(high) + 0.1
        assert float(low) < float(expected) < float(high)
    assert "in→1" in run_hwnas("profile", "show", "mine.json").stdout
    run_hwnas("profile", "compare", "mine.json", "mine.json")
    said = run_hwnas(
        *("search", "device=mine.json", "evaluator=toy", "trainer=none", "generations=2"),
        *("limits.latency_ms=q0.5", "logger=csv", "hydra.run.dir=run", "dataset=none"),
    ).stdout
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    low, high = result["intervals"]["latency_ms"]
    assert low < result["best"]["metrics"]["latency_ms"] < high
    assert f"latency_ms is between {low:.4g} and {high:.4g} with a probability of 90 %" in said
    assert f"in 32 bits the network needs {text('ram_kb', result['memory']['ram_kb'])} of RAM" in said
    for line in (tmp_path / "run" / "archive.jsonl").read_text().splitlines():
        trial = json.loads(line)
        expected = 1 + 2 * sum(op == 3 for op in trial["genotype"])
        assert trial["metrics"]["latency_ms"] == pytest.approx(expected, rel=0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["adapt"], "hwnas profile adapt needs path=<file>"),
        (["adapt", "nowhere.csv"], "file 'nowhere.csv' not found"),
        (["adapt", "few.csv"], "9 measured networks are too few to adapt to; 10 are needed"),
        (["adapt", "same.csv"], "all networks have the same latency_ms, 2; there is nothing to adapt to"),
        (["adapt", "twice.csv"], "has two rows for |"),
        (["adapt", "unknown.csv"], "conv_9x9"),
        (["adapt", "negative.csv"], "latency_ms is -3.0 in row 4; costs are not negative"),
        (["adapt", "unsupported.csv"], "latency_ms of row 4 (|"),
        (
            ["adapt", "mine.csv", "from=[pixel]"],
            "from=pixel: no profile of this device on nasbench201; did y",
        ),
        (
            ["adapt", "mine.csv", "from=pixel3"],
            "from must be a list of devices and files, [pixel3,mine.json]",
        ),
        (["adapt", "mine.csv", "next=0"], "next must be a whole number of at least 1, not 0"),
        (["fot", "device.path=mine.csv"], "action=fot is not known; did you mean fit?"),
        (["fit", "device.path=mine.csv", "to=3"], "to must be a file, not 3"),
        (
            ["fit", "device.path=few.csv"],
            "9 supported networks are too few to fit a profile to; 10 are needed",
        ),
        (["fit", "device.path=mine.csv", "fraction=0.2"], "unknown setting 'fraction'"),
        (["fit", "device=flops"], "device=flops has no table of measured networks to fit to"),
        (["measrue"], "action=measrue is not known; did you mean measure or compare?"),
        (["show"], "hwnas profile show needs path=<file>"),
        (["compare", "mine.csv"], "hwnas profile compare needs b=<file>"),
        (["import"], "hwnas profile import needs path=<file>"),
        (["export"], "hwnas profile export needs to=<folder>"),
        (["show", "mine.csv"], "mine.csv is not a device profile"),
        (["import", "mine.csv"], "mine.csv holds no measurements"),
        (["show", "nowhere.json"], "file 'nowhere.json' not found"),
        (["measure", "backend=tflite"], "backend must be one of torch, onnxruntime, openvino, not 'tflite'"),
        (["measure", "search_space=toy"], "which the toy space does not list"),
        (["fit"], "device=table needs device.path="),
        (["fit", "device.path=same.csv"], "all networks have the same latency_ms; there is nothing to fit"),
    ],
)
def test_wrong_input_gets_one_line(run_hwnas, tmp_path: Path, arguments: list[str], message: str) -> None:
    write_csv(tmp_path / "mine.csv")
    lines = (tmp_path / "mine.csv").read_text().splitlines()
    same = [lines[0], *(line.rpartition(",")[0] + ",2" for line in lines[1:])]
    (tmp_path / "same.csv").write_text("\n".join(same) + "\n")
    (tmp_path / "few.csv").write_text("\n".join(lines[:10]) + "\n")
    some = lines[:12]
    for name, changed in {
        "twice": [*some, lines[3]],
        "unknown": [*some[:5], some[5].replace("none", "conv_9x9"), *some[6:]],
        "negative": [*some[:5], some[5].rpartition(",")[0] + ",-3", *some[6:]],
        "unsupported": [*some[:5], some[5].rpartition(",")[0] + ",-1", *some[6:]],
    }.items():
        (tmp_path / f"{name}.csv").write_text("\n".join(changed) + "\n")
    done = run_hwnas("profile", *arguments, code=1)
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


SMALL = ("search_space.channels=4", "search_space.num_cells=1", "dataset=digits")


@pytest.mark.slow
def test_measure_show_and_compare(run_hwnas, tmp_path: Path) -> None:
    quick = (*SMALL, "rounds=3", "networks=20", "check=5", "noise=10")
    done = run_hwnas("profile", "measure", *quick, "name=box", "to=a.json")
    assert "On 5 networks that the profile of box was not fitted to" in done.stdout
    run_hwnas("profile", "measure", *quick, "seed=1", "to=b.json")
    shown = run_hwnas("profile", "show", "a.json", "to=a.html").stdout
    assert "nor_conv_3x3@stage1" in shown
    page = (tmp_path / "a.html").read_text()
    assert "box on nasbench201" in page
    assert page.count('class="unseen"') == 5 + 1  # the networks of the check, and the key
    assert page.count('class="seen"') == 20 + 1
    assert "http" not in page.replace("http://www.w3.org", "")  # nothing is loaded
    compared = run_hwnas("profile", "compare", "a.json", "b.json").stdout
    assert "a: box, b: host" in compared
    assert "latency_ms of 1,000 random networks: Spearman" in compared
    assert "cheaper on a than expected" in compared
    written = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "cut.json").write_text((tmp_path / "a.json").read_text()[:-200])
    assert "cut.json is not a device profile" in run_hwnas("profile", "show", "cut.json", code=1).stderr
    other = run_hwnas("profile", "show", "a.json", "search_space=darts", code=1).stderr
    assert "a.json is a profile of the nasbench201 space, not of darts" in other
    assert written["schema"] == 3


def test_import_takes_space_and_images_from_the_plan(run_hwnas, tmp_path: Path) -> None:
    """No dataset= and no search_space. settings have to be repeated."""
    space = NasBench201(4, 1, image_shape=(1, 12, 8), num_classes=3)
    given = {"threads": 1, "batch_size": 1, "rounds": 3, "networks": 20, "check": 5, "noise": 0.1, "seed": 0}
    plan, _ = plan_of(space, Settings.of(backend="torch", provider=None, **given))
    names = [model["name"] for model in plan["models"]]
    content = {
        "schema": board.SCHEMA_VERSION,
        "plan": plan,
        "settings": {"provider": "cpu", "threads": 1, "rounds": 3, "noise": 0.1},
        "origin": {"backend": "torch", "processor": "a board"},
        "complete": True,
        "latency_ms": {name: [1.0 + number % 7] * 3 for number, name in enumerate(names)},
        "passes": dict.fromkeys(names, 1),
    }
    (tmp_path / "measurements.json").write_text(json.dumps(content))
    run_hwnas("profile", "import", "measurements.json", "to=board.json")
    profile = json.loads((tmp_path / "board.json").read_text())
    assert profile["device"] == "a board"
    assert (profile["network"]["image_shape"], profile["network"]["num_classes"]) == ([1, 12, 8], 3)
    assert (profile["network"]["channels"], profile["network"]["num_cells"]) == (4, 1)


def test_measure_and_search_are_of_the_same_images_by_default() -> None:
    for name in ("profile", "search"):
        defaults = OmegaConf.load(conf_folder() / f"{name}.yaml").defaults
        assert {"dataset": "digits"} in defaults


def test_a_profile_against_itself_agrees(run_hwnas, tmp_path: Path) -> None:
    write_csv(tmp_path / "mine.csv")
    run_hwnas("profile", "fit", "device.path=mine.csv", "to=mine.json")
    done = run_hwnas("profile", "compare", "mine.json", "mine.json")
    assert "Spearman 1.000, typically 1.00 times as much on b" in done.stdout
    shown = run_hwnas("profile", "show", "mine.json", "to=mine.html").stdout
    assert "in→1" in shown  # as on the page of a run
    assert "<td>in→1</td>" in (tmp_path / "mine.html").read_text()


def test_help_names_every_action(run_hwnas) -> None:
    done = run_hwnas("profile", "--help")
    for action in ("measure", "fit", "adapt", "show", "compare", "export", "import"):
        assert f"hwnas profile {action} " in done.stdout


def test_settings_complete_after_the_action(run_hwnas) -> None:
    line = "hwnas profile fit roun"
    done = run_hwnas("-sc", "query=bash", env={"COMP_LINE": line, "COMP_POINT": str(len(line))})
    assert "rounds=" in done.stdout
