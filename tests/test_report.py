"""The run page, drawn from small folders written by hand."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from hwnas.cli.report import command
from hwnas.core import Limit, Objective
from hwnas.reports import sweep
from hwnas.reports import view as report_view
from hwnas.reports.charts import axis, from_top, scatter
from hwnas.reports.page import write_report, write_sweep_report
from hwnas.runs.result import read_result
from hwnas.runs.units import quantity, text
from hwnas.spaces.capabilities import drawing
from hwnas.spaces.darts import Darts
from hwnas.spaces.drawing import picture
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy

CONFIG = """\
seed: 7
generations: 3
limits: {}
search_space:
  _target_: hwnas.spaces.toy.Toy
  num_edges: 4
  num_ops: 5
dataset: {}
"""
NASBENCH = CONFIG.replace("toy.Toy\n  num_edges: 4\n  num_ops: 5", "nasbench201.NasBench201\n  num_cells: 1")
CHOICES = {
    "strategy": "mo_hdnas",
    "search_space": "toy",
    "dataset": "none",
    "evaluator": "toy",
    "device": "toy",
}

# (generation, genotype, quality, cost); the front is aaaa, bbaa, ccca
TRIALS: list[tuple[int, list[int], float | None, float | None]] = [
    (0, [0, 0, 0, 0], 0.50, 1.0),
    (0, [1, 1, 0, 0], 0.80, 2.0),
    (1, [2, 2, 2, 0], 0.90, 6.0),
    (1, [3, 3, 3, 3], 0.40, 5.0),
    (2, [1, 1, 0, 0], 0.80, 2.0),
]


def make_run(
    folder: Path,
    trials: Sequence[tuple[int, list[int], float | None, float | None]] = TRIALS,
    *,
    finished: bool = True,
    limits: dict[str, float] | None = None,
    config: str = CONFIG,
    overrides: Sequence[str] = ("experiment=toy", "seed=7"),
    **extra: Any,
) -> Path:
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "config.yaml").write_text(config)
    (folder / ".hydra" / "hydra.yaml").write_text(json.dumps({"hydra": {"runtime": {"choices": CHOICES}}}))
    (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(list(overrides)))
    with (folder / "archive.jsonl").open("w") as file:
        for generation, genotype, quality, cost in trials:
            metrics = {"val_acc": quality, "latency_ms": cost}
            record = {"generation": generation, "genotype": genotype, "metrics": metrics}
            file.write(json.dumps(record) + "\n")
    plan = {
        "objectives": [{"metric": "val_acc", "goal": "max"}, {"metric": "latency_ms", "goal": "min"}],
        "limits": limits or {},
    }
    (folder / "plan.json").write_text(json.dumps(plan))
    if finished:
        result = {
            "status": "finished",
            **CHOICES,
            "seed": 7,
            **plan,
            "generations": 3,
            "evaluations": {"asked": 5, "unique": 4, "cached": 1},
            "seconds": {"total": 120.0, "quality": 30.0, "search": 60.0},
            "result": [],
            "best": None,
            "network": None,
            "hypervolume": None,
            "versions": {"toy_val_acc": "1-4x5"},
            **extra,
        }
        (folder / "result.json").write_text(json.dumps(result))
    return folder


class Page(HTMLParser):
    """What a test asks of a page: tags with their attributes, and the text that a reader sees."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.source = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._words: list[str] = []
        self.feed(self.source)
        self.text = " ".join("".join(self._words).split())
        data = re.search(r'<script type="application/json" id="data">(.*?)</script>', self.source, re.DOTALL)
        self.data = json.loads(data[1]) if data else None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._words.append(" ")

    def handle_data(self, data: str) -> None:
        if not self.tags or self.tags[-1][0] not in ("script", "style"):
            self._words.append(data)

    def classes(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for _, attrs in self.tags if name in (attrs.get("class") or "").split()]


def page(folder: Path) -> Page:
    return Page(write_report(folder))


def dots(drawn: Page) -> list[dict[str, str | None]]:
    """The dots of the plot that stand out, without those of the legend."""
    return [attrs for attrs in drawn.classes("dot") if (attrs.get("cx") or "").endswith("%")]


def cloud(drawn: Page) -> list[tuple[str, list[tuple[float, float]]]]:
    """(style, places) of the other dots of the plot."""
    paths = [attrs for attrs in drawn.classes("dots") if attrs.get("d") not in (None, "M6 6h0")]
    return [
        (
            str(attrs["class"]),
            [(float(x), float(y)) for x, y in re.findall(r"M(\S+) (\S+)h0", str(attrs["d"]))],
        )
        for attrs in paths
    ]


def test_a_finished_run_shows_its_best_network_and_its_front(tmp_path):
    drawn = page(make_run(tmp_path / "run"))
    assert "mo_hdnas on toy" in drawn.text
    assert "seed 7, 3 of 3 generations, finished" in drawn.text
    assert "90.00 %" in drawn.text
    assert "6.000 ms" in drawn.text
    assert "evaluations, 4 different networks 5" in drawn.text
    assert "2.0 min" in drawn.text
    assert "The line joins the 3 non-dominated networks, the front." in drawn.text
    labels = [attrs["aria-label"] for attrs in dots(drawn) if "front" in attrs["class"]]
    assert labels == [
        "on the front: aaaa; validation accuracy 50.00 %, latency 1.000 ms; generation 0",
        "on the front: bbaa; validation accuracy 80.00 %, latency 2.000 ms; generation 0",
        "best network: ccca; validation accuracy 90.00 %, latency 6.000 ms; generation 1",
    ]
    assert [attrs.get("tabindex") for attrs in dots(drawn)] == ["0", "0", "0"]
    assert cloud(drawn) == [("dots g7", [(77.2, 95.4)])]  # dddd: 5 of 0.75..6.25 ms, 40 of 37.5..92.5 %
    assert "hwnas search experiment=toy seed=7" in drawn.text
    assert "toy_val_acc 1-4x5" in drawn.text


def test_values_of_different_weights_are_not_compared(tmp_path):
    """The best value of the run is an old one; the strategy returned two others."""
    returned = [
        {
            "arch": "dddd",
            "genotype": [3, 3, 3, 3],
            "metrics": {"val_acc": 0.4, "latency_ms": 5.0, "test_acc": 0.3},
        },
        {
            "arch": "bbaa",
            "genotype": [1, 1, 0, 0],
            "metrics": {"val_acc": 0.8, "latency_ms": 2.0, "test_acc": 0.7},
        },
    ]
    drawn = page(make_run(tmp_path / "run", stationary=False, result=returned))
    assert "The line joins the 1 non-dominated network, the front." in drawn.text
    labels = [attrs["aria-label"] for attrs in dots(drawn) if "front" in attrs["class"]]
    assert len(labels) == 1
    assert labels[0].startswith("best network: bbaa; validation accuracy 80.00 %, latency 2.000 ms")
    assert "was judged with different weights" in drawn.text
    assert "was judged with different weights" not in page(make_run(tmp_path / "other")).text


def test_the_given_result_counts_and_the_file_is_not_needed(tmp_path):
    folder = make_run(tmp_path / "run")
    result = replace(read_result(folder / "result.json"), seconds={"total": 7.0})
    (folder / "result.json").unlink()
    assert write_report(folder, result) == folder / "report.html"
    drawn = Page(folder / "report.html")
    assert "finished" in drawn.text
    assert "unfinished" not in drawn.text
    assert "7.0 s in all." in drawn.text
    names = sorted(path.name for path in folder.iterdir())
    assert names == [".hydra", "archive.jsonl", "plan.json", "report.html"]


def test_the_same_folder_gives_the_same_bytes(tmp_path):
    folder = make_run(tmp_path / "run")
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first


def test_nothing_is_loaded_from_elsewhere(tmp_path):
    drawn = page(make_run(tmp_path / "run"))
    links = [value for _, attrs in drawn.tags for key in ("src", "href", "data") if (value := attrs.get(key))]
    assert links == ["data:,", *(link for link in links if link.startswith("data:text/csv"))]
    assert "http://" not in drawn.source
    assert "https://" not in drawn.source
    assert "@import" not in drawn.source
    assert set(re.findall(r"url\(([^)]*)\)", drawn.source)) <= {"#hatch", *(f"#arrow{i}" for i in range(8))}


def test_text_of_the_folder_cannot_become_markup(tmp_path):
    evil = "</script><img src=x onerror=alert(1)>"
    folder = make_run(
        tmp_path / "run",
        overrides=[f"name={evil}"],
        config=CONFIG + f"note: '{evil}'\n",
        versions={evil: evil},
    )
    (folder / "network").mkdir()
    figures = {"arch": evil, "test_acc": 0.5, "epochs": 1, "params": 10}
    (folder / "network" / "architecture.json").write_text(json.dumps(figures))
    (folder / "network" / "curves.csv").write_text("epoch,loss,train_acc,lr\n1,0.5,0.9,0.1\n")
    drawn = page(folder)
    assert not any(tag == "img" for tag, _ in drawn.tags)
    assert not any("onerror" in attrs for _, attrs in drawn.tags)
    assert [tag for tag, _ in drawn.tags].count("script") == 3
    assert drawn.text.count(evil) == 5  # the command, the configuration, both sides of versions, the network
    assert "'name=" + evil + "'" in drawn.text  # quoted for the shell


def test_names_of_metrics_cannot_become_markup(tmp_path):
    folder = make_run(tmp_path / "run")
    archive = folder / "archive.jsonl"
    archive.write_text(archive.read_text().replace('"metrics": {', '"metrics": {"</script><b>": 1, '))
    drawn = page(folder)
    assert "</script><b>" not in drawn.source
    assert "</script><b>" in drawn.text


def test_an_unfinished_run_says_so_and_how_to_go_on(tmp_path):
    folder = make_run(tmp_path / "my run", finished=False)
    with (folder / "archive.jsonl").open("a") as file:
        file.write('{"generation": 2, "geno')  # killed while writing
    drawn = page(folder)
    assert "This run is unfinished" in drawn.text
    assert f"hwnas search 'resume={folder}'" in drawn.text
    assert "Where the time went" not in drawn.text
    assert "The line joins the 3 non-dominated networks, the front." in drawn.text
    # The first generation spans 0.5..0.8 by 1..2 ms with (0.5, 2) as the reference: nothing is dominated yet,
    # nor later by (0.9, 6), which costs more than the reference.
    assert "hypervolume 0.000" in drawn.text


def test_an_unfinished_run_knows_its_limits(tmp_path):
    folder = make_run(tmp_path / "run", finished=False, limits={"latency_ms": 3.0})
    drawn = page(folder)
    assert "within latency ≤ 3 ms" in drawn.text
    assert "best feasible network: bbaa" in drawn.source


def test_what_is_known_exactly_is_listed(tmp_path):
    cheapest = {"arch": "aaaa", "genotype": [0, 0, 0, 0], "metrics": {"val_acc": 0.5, "latency_ms": 1.0}}
    drawn = page(make_run(tmp_path / "run", yardsticks={"cheapest": cheapest}))
    assert "the network of the lowest cost validation accuracy 50.00 %, latency 1.000 ms aaaa" in drawn.text
    assert "Known exactly" not in page(make_run(tmp_path / "other")).text


def test_limits_are_drawn_and_marked(tmp_path):
    folder = make_run(tmp_path / "run", limits={"latency_ms": 4.0, "val_acc": 0.6})
    drawn = page(folder)
    assert "within latency ≤ 4 ms and validation accuracy ≥ 60 %" in drawn.text
    assert "limit 4 ms" in drawn.text
    assert "limit 60 %" in drawn.text
    assert len(drawn.classes("limit")) == 2
    assert len(drawn.classes("shaded")) == 2
    styles = {attrs["aria-label"].split(";")[0]: attrs["class"].split() for attrs in dots(drawn)}
    assert list(styles) == [
        "on the front, beyond the limits: aaaa",
        "best feasible network: bbaa",
        "on the front, beyond the limits: ccca",
    ]
    assert ["out" in style for style in styles.values()] == [True, False, True]
    assert drawn.text.count("✓ kept") == 1
    assert drawn.text.count("✗ beyond") == 2


def test_the_shaded_sides_are_those_that_limits_exclude():
    objectives = (Objective("val_acc", "max"), Objective("latency_ms", "min"))
    limits = (Limit("latency_ms", 3.0), Limit("val_acc", 0.5, "max"), Limit("params", 10.0))
    points = [{"val_acc": 0.0, "latency_ms": 1.0}, {"val_acc": 1.0, "latency_ms": 5.0}]
    plot = scatter(objectives, limits, points, [points[1]])
    assert plot.shaded == [(50.0, 0.0, 50.0, 100.0), (0.0, 52.38, 100.0, 47.62)]
    assert plot.lines == [(True, 50.0, "limit 3 ms"), (False, 52.38, "limit 50 %")]


def test_nothing_feasible(tmp_path):
    drawn = page(make_run(tmp_path / "run", limits={"latency_ms": 0.5}))
    assert "No network keeps the limits. The closest is aaaa: " in drawn.text
    assert "validation accuracy 50.00 %, latency 1.000 ms." in drawn.text
    assert "none" in drawn.text
    assert "keeps the limits" in drawn.text
    assert "hwnas train" not in drawn.text
    assert not any("best" in attrs["class"].split() for attrs in dots(drawn))


def test_unsupported_networks_are_counted_not_drawn(tmp_path):
    drawn = page(make_run(tmp_path / "run", [*TRIALS, (2, [4, 4, 4, 4], 0.99, None)]))
    assert "1 network is not supported by the device and not drawn." in drawn.text
    assert drawn.data["genotypes"] == "0000110022203333"
    assert len(dots(drawn)) == 3


def test_no_network_is_supported(tmp_path):
    drawn = page(make_run(tmp_path / "run", [(0, [0, 0, 0, 0], 0.5, None), (0, [1, 0, 0, 0], 0.6, None)]))
    assert "None of the 2 networks is supported by the device" in drawn.text
    assert drawn.data is None
    assert dots(drawn) == []


def test_one_network_is_enough(tmp_path):
    drawn = page(make_run(tmp_path / "run", TRIALS[:1], finished=False))
    assert "Best, knee of the front, cheapest on the front".lower() in drawn.text.lower()
    assert len(dots(drawn)) == 1


def test_the_table_brings_its_test_accuracy(tmp_path):
    best = {
        "arch": "ccca",
        "genotype": [2, 2, 2, 0],
        "metrics": {"val_acc": 0.9, "latency_ms": 6.0, "test_acc": 0.87},
    }
    drawn = page(make_run(tmp_path / "run", best=best, result=[best]))
    assert "test accuracy 87.00 %" in drawn.text


def test_the_final_network(tmp_path):
    folder = make_run(tmp_path / "run", config=NASBENCH, trials=[(0, [3, 1, 0, 2, 4, 3], 0.9, 2.0)])
    assert f"hwnas train run={folder}" in page(folder).text
    (folder / "network").mkdir()
    figures = {"arch": "|...|", "test_acc": 0.9721, "params": 643098.0, "flops": 5629578.0, "epochs": 2}
    (folder / "network" / "architecture.json").write_text(json.dumps(figures))
    (folder / "network" / "curves.csv").write_text(
        "epoch,loss,train_acc,lr\n1,2.0,0.5,0.1\n2,0.25,0.95,0.0\n"
    )
    drawn = page(folder)
    for shown in ("97.21 %", "643.1 k", "5.630 M", "training loss 0.2500", "training accuracy 95.00 %"):
        assert shown in drawn.text
    assert str(folder / "network" / "weights.pt") in drawn.text
    assert "hwnas train" not in drawn.text
    assert f"hwnas export run={folder}" in drawn.text


def test_cells_of_nasbench201(tmp_path):
    drawn = page(make_run(tmp_path / "run", config=NASBENCH, trials=[(0, [3, 1, 0, 2, 4, 3], 0.9, 2.0)]))
    looks = [attrs["class"] for attrs in drawn.classes("slot")][:6]
    assert looks == [f"slot {look}" for look in ("c1", "c0", "ghost", "c2", "c3", "c1")]
    assert drawn.data["ops"] == [["ghost", ""], ["c0", "skip"], ["c2", "1×1"], ["c1", "3×3"], ["c3", "pool"]]
    assert drawn.data["genotypes"] == "310243"
    assert drawn.data["slots"] == ["in→1", "in→2", "1→2", "in→out", "1→out", "2→out"]
    assert drawn.data["parts"] == ["|", "~0|+|", "~0|", "~1|+|", "~0|", "~1|", "~2|"]


def test_edges_leave_one_circle_and_end_before_the_other():
    shape = drawing(NasBench201())
    assert len(shape.slots) == 6
    assert shape.slots[1].path == "M36.0 92.0Q122.0 92.0 206.0 92.0"  # in at x = 22, node 2 at x = 222


def test_fbnet_is_drawn_by_stages():
    """A column per stage: layers 1 and 2 are neighbours, layers 2 to 5 lie below each other."""
    shape = drawing(FBNet())
    assert (shape.width, shape.height, len(shape.slots)) == (350, 96, 22)
    assert [(slot.x, slot.y) for slot in shape.slots[:3]] == [(24.0, 11.0), (74.0, 11.0), (74.0, 35.0)]
    assert (shape.slots[-1].x, shape.slots[-1].y) == (324.0, 11.0)
    assert [label for _, label in shape.ops] == [
        *("3×3 e1", "3×3 g2", "3×3 e3", "3×3 e6", "5×5 e1", "5×5 g2", "5×5 e3", "5×5 e6", "skip")
    ]
    assert shape.ops[8][0] == "ghost"


def test_darts_is_drawn_as_two_cells():
    """Nodes in a row, 61 apart; edges that are not kept leave no trace in a picture."""
    space = Darts()
    shape = drawing(space)
    assert [slot.name for slot in shape.slots][13:15] == ["normal 4→5", "reduce 0→2"]
    assert [text for *_, text in shape.captions] == ["normal", "reduce"]
    assert [name for *_, name in shape.nodes] == ["0", "1", "2", "3", "4", "5"] * 2
    assert {(slot.x, slot.y) for slot in shape.slots} == {
        *((22 + 61, y) for y in (61, 219)),  # 0→2, above node 1
        *((22 + 61 * 1.5, y) for y in (46, 92, 204, 250)),  # 0→3 above, 1→2 between the circles
        *((22 + 61 * 2, y) for y in (31, 123, 189, 281)),  # 0→4 above, 1→3 below
        *((22 + 61 * 2.5, y) for y in (16, 92, 138, 174, 250, 296)),  # 0→5, 2→3, 1→4
        *((22 + 61 * 3, y) for y in (61, 153, 219, 311)),  # 2→4 above, 1→5 below
        *((22 + 61 * 3.5, y) for y in (46, 92, 204, 250)),  # 2→5, 3→4
        *((22 + 61 * 4, y) for y in (123, 281)),  # 3→5
        *((22 + 61 * 4.5, y) for y in (92, 250)),  # 4→5
    }
    assert all(0 <= slot.x <= shape.width and 0 <= slot.y <= shape.height for slot in shape.slots)
    drawn = picture(drawing(space), space.from_str(space.presets["evnas_a"]))
    assert drawn.count("marker-end") == 16
    assert drawn.count(">sep3<") == 5


def test_strips_wrap():
    shape = drawing(Toy(20, 5))
    assert (shape.width, shape.height) == (352, 44)
    assert (shape.slots[16].x, shape.slots[16].y) == (11.0, 33.0)
    assert shape.ops[0] == ("c0", "a")


def test_far_outliers_do_not_squeeze_the_plot(tmp_path):
    trials = [(0, [i % 5, i // 5 % 5, i // 25, 0], 0.90 + 0.001 * i, 1.0 + 0.1 * i) for i in range(60)]
    trials.append((0, [4, 4, 4, 4], 0.0, 3.0))
    drawn = page(make_run(tmp_path / "run", trials))
    assert "1 far outlier lies beyond the axes and is drawn at the edge." in drawn.text
    assert [y for _, places in cloud(drawn) for _, y in places if y == 100] == [100.0]


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("val_acc", 0.9342, "93.42 %"),
        ("latency_ms", 5.93, "5.930 ms"),
        ("energy_mj", 1234.5, "1,234 mJ"),
        ("flops", 5_629_578.0, "5.630 M"),
        ("params", 643_098.0, "643.1 k"),
        ("rmi", 2.9276, "2.928"),
        ("latency_ms", float("inf"), "not supported"),
    ],
)
def test_values_have_units(metric, value, expected):
    assert text(metric, value) == expected


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("latency_ms", "latency (ms)"),
        ("energy_mj", "energy (mJ)"),
        ("rmi", "representation similarity (rmi, 0..3)"),
        ("val_acc", "validation accuracy (%)"),
        ("flops", "multiply-adds (M)"),
        ("peak_memory", "peak memory"),
    ],
)
def test_axes_are_labelled_with_units(metric, expected):
    assert quantity(metric, 3e7).label == expected


def test_ticks_are_round():
    assert [label for _, label in axis("latency_ms", [0.5, 7.9]).ticks] == ["2", "4", "6", "8"]
    assert [label for _, label in axis("val_acc", [0.905, 0.94]).ticks] == ["91", "92", "93", "94"]
    assert axis("generation", [0, 19]).ticks[:2] == ((0.0, "0"), (26.32, "5"))
    assert [label for _, label in axis("generation", [0]).ticks] == ["0", "1"]
    log = axis("latency_ms", [0.2, 90.0], allow_log=True)
    assert log.log
    assert [label for _, label in log.ticks] == ["0.2", "0.5", "1", "2", "5", "10", "20", "50", "100"]
    assert log.at(log.low) == 0.0
    assert log.at(log.high) == 100.0


def test_the_command_prints_paths(tmp_path, capsys):
    folders = [make_run(tmp_path / name) for name in ("a", "b")]
    assert command([str(folder) for folder in folders]) == 0
    assert capsys.readouterr().out.splitlines() == [str(folder / "report.html") for folder in folders]


def test_errors_are_one_line(tmp_path, capsys):
    def error(folder: Path) -> str:
        assert command([str(folder)]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.startswith("hwnas report: error: ")
        return err

    assert error(tmp_path / "missing").endswith("missing is not a folder\n")
    assert "holds no search: archive.jsonl is missing" in error(tmp_path)

    corrupt = make_run(tmp_path / "corrupt")
    (corrupt / "archive.jsonl").write_text("{}\n" + (corrupt / "archive.jsonl").read_text())
    assert "archive.jsonl is corrupt in line 1 of 6" in error(corrupt)
    assert not (corrupt / "report.html").exists()

    empty = make_run(tmp_path / "empty", [])
    assert "holds no evaluated network yet" in error(empty)

    foreign = make_run(tmp_path / "foreign", [(0, [9, 0, 0, 0], 0.5, 1.0)])
    assert "operation 9 on edge 0 of toy is not one of" in error(foreign)

    broken = make_run(tmp_path / "broken")
    (broken / "result.json").write_text('{"status": ')
    assert "result.json is not the result of a finished search (" in error(broken)
    (broken / "result.json").write_text('{"status": "finished"}')
    assert "result.json is not the result of a finished search: it has no objectives" in error(broken)

    unparsable = make_run(tmp_path / "unparsable", config="seed: [1\n")
    assert ".hydra/config.yaml is not readable YAML" in error(unparsable)

    outside = make_run(tmp_path / "outside", config=CONFIG.replace("hwnas.spaces.toy.Toy", "os.system"))
    assert "outside the allowed packages" in error(outside)


def test_wrong_usage(capsys):
    assert command([]) == 2
    assert "usage: hwnas report" in capsys.readouterr().err
    assert command(["--help"]) == 0


def test_nothing_heavy_is_imported(tmp_path):
    folder = make_run(tmp_path / "run")
    code = (
        "import sys; from hwnas.cli.report import command; code = command(sys.argv[1:]);"
        "print([m for m in ('torch', 'wandb', 'pytorch_lightning', 'hydra') if m in sys.modules]);"
        "sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def in_browser(path: Path, script: str, tmp_path: Path, width: int = 1280) -> Any:
    """What the list `seen` holds after the script has run in a copy of the page; no errors, no messages."""
    probe = f"""<script>
      const press = (name, at = document.activeElement) => at.dispatchEvent(
        new KeyboardEvent("keydown", {{key: name, bubbles: true, cancelable: true}}));
      const words = element => element.textContent.replace(/\\s+/g, " ").trim();
      const set = (element, value, event) => {{
        element.value = value;
        element.dispatchEvent(new Event(event, {{bubbles: true}}));
      }};
      const frontDots = () => [...document.querySelectorAll("#dots .dot")];
      const seen = [];
      {script}
      document.title = JSON.stringify(seen);
    </script></body>"""
    copy = tmp_path / "copy.html"
    copy.write_text(path.read_text(encoding="utf-8").replace("</body>", probe), encoding="utf-8")
    done = subprocess.run(
        [
            str(CHROMIUM),
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
            *("--enable-logging=stderr", "--v=0", f"--window-size={width},900", "--virtual-time-budget=2000"),
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            copy.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert "CONSOLE" not in done.stderr, done.stderr
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None, done.stderr
    return json.loads(html.unescape(title[1]))


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
def test_in_a_browser(tmp_path):
    path = write_report(make_run(tmp_path / "run", limits={"latency_ms": 4.0}))
    script = """
      const box = document.querySelector("#dots .best").getBoundingClientRect();
      const at = {clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true};
      plot.dispatchEvent(new PointerEvent("pointermove", {...at, pointerType: "mouse"}));
      seen.push(tip.hidden, words(tip));
      const {left, right, top: above, bottom} = tip.getBoundingClientRect();
      seen.push(left >= 0 && right <= innerWidth && above >= 0 && bottom <= innerHeight);
      plot.dispatchEvent(new PointerEvent("pointerleave", {pointerType: "mouse"}));
      seen.push(tip.hidden);
      document.querySelector(".dot.front").focus();
      press("ArrowRight"); press("ArrowRight"); press("Enter");
      seen.push(words(pinned));
      document.querySelectorAll("#table thead th")[1].click();
      document.querySelectorAll("#table thead th")[1].click();
      seen.push([...document.querySelectorAll("#table tbody tr")].map(row => row.cells[1].textContent));
      seen.push(document.documentElement.scrollWidth <= innerWidth);
    """
    hidden, tip, on_screen, gone, pinned, column, fits = in_browser(path, script, tmp_path)
    assert (hidden, gone, on_screen, fits) == (False, True, True, True)
    assert all(word in tip for word in ("best feasible network", "80.00 %", "bbaa"))
    assert all(word in pinned for word in ("on the front, beyond the limits", "ccca"))
    assert column == ["90.00 %", "80.00 %", "50.00 %"]


def test_the_true_front_and_the_regret(tmp_path):
    truth = {
        "best": {"arch": "aaaa", "genotype": [0, 0, 0, 0], "metrics": {"val_acc": 0.9, "latency_ms": 4.0}},
        "best_test_acc": None,
        "regret": {"val_acc": 0.125},
        "hypervolume_ratio": [0.5, 0.6, 0.75],  # after each of the three generations
        "igd_plus": [None, 0.5, 0.25],
        "front": [[0.6, 2.0], [0.9, 4.0]],
    }
    known = page(make_run(tmp_path / "known", truth=truth))
    assert "the true front, of 2 networks; this search covers 75.0% of its hypervolume" in known.text
    assert "is ahead by 12.50 points of validation accuracy" in known.text
    assert next(attrs["d"] for attrs in known.classes("truth") if "d" in attrs).startswith("M")
    unknown = page(make_run(tmp_path / "unknown", truth=None))
    assert not unknown.classes("truth")


def test_what_was_looked_up(tmp_path):
    figures = {"test_acc": {"value": 0.93, "regret": 0.0125, "by_flops": 0.9}}
    limited = page(make_run(tmp_path / "limited", looked_up=figures, truth=None, limits={"latency_ms": 3.0}))
    assert (
        "the best has 93.00 % of test accuracy, where the best network in the space within the limits "
        "has 94.25 % and the one with the most multiply-adds 90.00 %."
    ) in limited.text
    assert "Looked up" not in page(make_run(tmp_path / "unknown", truth=None)).text


BLIND = {
    "cost": "latency_ms",
    "limits": [1.0, 2.0],
    "regret": {"estimate": [0.5, 1.0], "early": [0.125, 0.125], "random": [9.0, 4.0]},
    "tau": {"all": 0.5, "better_half": 0.25, "top_tenth": None},
    "networks": 1234,
    "seconds_per_new": 0.125,
}


def test_blind_regret_beside_simpler_choices(tmp_path):
    shown = page(make_run(tmp_path / "run", blind_regret=0.75, blind=BLIND, limits={"latency_ms": 3.0})).text
    assert "this run's estimate 0.75 0.50 1.00 12 epochs of full training 0.12 0.12 0.12" in shown
    assert "a random network 6.50 9.00 4.00" in shown
    assert "q0.1 1.000 ms q0.2 2.000 ms" in shown
    assert (
        "of the run's 1,234 networks: over all of them 0.50, over their better half 0.25, over their top"
        in shown
    )
    assert "The evaluator took 0.12 s per new network; the run took 2.0 min in all." in shown
    assert "It searched under latency ≤ 3 ms; for other limits" in shown
    without = page(make_run(tmp_path / "free", blind={**BLIND, "seconds_per_new": None})).text
    assert "top tenth unknown. The run took 2.0 min in all." in without
    assert "It searched under" not in without
    assert "Blind regret" not in page(make_run(tmp_path / "unknown")).text


def test_blind_regret_of_a_sweep(tmp_path):
    """Seeds with 1, 2 and 3 points: Student's t for two degrees of freedom is 4.303, over 3^(1/2)."""
    for seed, points in enumerate((1.0, 2.0, 3.0)):
        seen = {**BLIND, "regret": {**BLIND["regret"], "estimate": [points, points]}}
        settings = ("experiment=toy", "evaluator=rmi", f"seed={seed}")
        make_run(tmp_path / f"rmi-{seed}", overrides=settings, blind=seen, hypervolume=[0.1, 0.2, 0.3])
    alone = {**BLIND, "seconds_per_new": None, "tau": {"all": None}}
    make_run(
        tmp_path / "train-0",
        overrides=("experiment=toy", "evaluator=train", "seed=0"),
        blind=alone,
        hypervolume=[0.1],
    )
    make_run(
        tmp_path / "table-0", overrides=("experiment=toy", "evaluator=table", "seed=0"), hypervolume=[0.1]
    )
    for path in tmp_path.iterdir():
        (path / "pareto.csv").write_text("arch,genotype,val_acc,latency_ms\naaaa,0 0 0 0,0.5,1.0\n")
    found = sweep.page(tmp_path)["blind"]
    assert found.choices == ["12 epochs of full training", "a random network"]
    assert found.rows == [
        (("rmi",), 3, "2.00 ± 2.48", ["0.12", "6.50"], "0.50", "0.12"),
        (("train",), 1, "0.75", ["0.12", "6.50"], "", ""),
    ]
    assert "2.00 ± 2.48" in write_sweep_report(tmp_path).read_text()
    shutil.rmtree(tmp_path / "train-0")
    for path in tmp_path.glob("rmi-*"):
        shutil.rmtree(path)
    assert sweep.page(tmp_path)["blind"] is None


def test_blind_regret_against_seconds_of_budgets(tmp_path):
    for budget, points, seconds in (("1min", 3.0, 70.0), ("10min", 1.0, 600.0)):
        for seed in (0, 1):
            make_run(
                tmp_path / f"{budget}-{seed}",
                overrides=("experiment=toy", f"budget={budget}", f"seed={seed}"),
                blind={**BLIND, "regret": {**BLIND["regret"], "estimate": [points, points]}},
                hypervolume=[0.1],
                seconds={"total": seconds},
            )
    for path in tmp_path.iterdir():
        (path / "pareto.csv").write_text("arch,genotype,val_acc,latency_ms\naaaa,0 0 0 0,0.5,1.0\n")
    found = sweep.page(tmp_path)["blind_curves"]
    assert [name for name, *_ in found.series[1:]] == ["12 epochs of full training"]
    (_, _, path, _), (_, _, level, band) = found.series
    heights = [float(point.split()[1]) for point in path.removeprefix("M").split("L")]
    assert heights == [from_top(found.y.at(3.0)), from_top(found.y.at(1.0))]
    assert (level, band) == (f"M0 {from_top(found.y.at(0.125))}H100", "")
    assert "12 epochs of full training" in write_sweep_report(tmp_path).read_text()
    for seed in (0, 1):
        shutil.rmtree(tmp_path / f"10min-{seed}")
    assert sweep.page(tmp_path)["blind_curves"] is None


def test_networks_of_the_front_show_what_only_reports_know(tmp_path):
    folder = make_run(tmp_path / "run")
    (folder / "pareto.csv").write_text(
        "arch,genotype,val_acc,latency_ms,test_acc\naaaa,0 0 0 0,0.5,1.0,0.4375\nbbaa,1 1 0 0,0.8,2.0,\n"
    )
    assert "43.75 %" in page(folder).text
    (folder / "pareto.csv").write_text("arch,genotype,test_acc\naaaa,0 0 0 0,much\n")
    with pytest.raises(ValueError, match=r"pareto\.csv is corrupt"):
        write_report(folder)


def test_cost_diversity_per_generation(tmp_path):
    """Latencies 1 and 2: each is 1 ms² from the other; 6 and 5 too; one alone has none."""
    folder = make_run(
        tmp_path / "run", [*TRIALS[:4], (2, [1, 1, 0, 0], 0.8, 2.0), (3, [0, 1, 0, 0], 0.7, 4.0)]
    )
    with (folder / "archive.jsonl").open("a") as file:  # 4, 7 and an unsupported one: 9 ms² each
        for genotype, cost in (([0, 2, 0, 0], 7.0), ([0, 3, 0, 0], None)):
            metrics = {"val_acc": 0.7, "latency_ms": cost}
            file.write(json.dumps({"generation": 3, "genotype": genotype, "metrics": metrics}) + "\n")
    shown = page(folder)
    assert "latency diversity 9.000 ms²" in shown.text
    assert "latency diversity by generation, 9.000 ms² in the end" in shown.source


def test_no_cost_diversity_where_nothing_is_supported(tmp_path):
    unsupported = [(g, genotype, quality, None) for g, genotype, quality, _ in TRIALS]
    assert "latency diversity" not in page(make_run(tmp_path / "run", unsupported)).text


def test_of_many_networks_some_are_drawn_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report_view, "MAX_DRAWN", 10)
    rows = [(i // 5, [i // 25, i // 5 % 5, i % 5, 0], 0.1 + i / 1000, 1.0 + i) for i in range(99)]
    rows += [(20, [0, 0, i, 0], 0.1 + i / 1000, 1.0 + i) for i in range(5)] * 5  # asked for again
    rows[50] = (10, rows[50][1], 0.9, 1.0)  # alone on the front, but for what is better
    run = make_run(tmp_path / "run", rows, finished=False)
    page = Page(write_report(run))
    # Of 99 networks the rows 0, 10, 21, 32, 43, 54, 65, 76, 87, 98, and row 50 of the front.
    assert "Of 99 networks 11 are drawn: the front, and others evenly spread over the search" in page.text
    assert page.data["genotypes"][:12] == "000002000410"
    assert page.data["known"][-1] == len(page.data["metrics"][0]["values"]) == 11
    assert max(page.data["metrics"][0]["values"]) == 0.9
    assert len(page.data["front"]) == 1
    assert 0 < len(page.data["repeats"]) <= 10
    assert page.data["starts"][-1] == len(page.data["repeats"])
    monkeypatch.setattr(report_view, "MAX_DRAWN", 99)
    page = Page(write_report(run))
    assert "are drawn: the front" not in page.text
    assert page.data["known"][-1] == 99
    assert len(page.data["repeats"]) == 25
