"""The parts of the run page that explain it: their numbers by hand, and what choices on the page do."""

from __future__ import annotations

import json

import numpy as np
import pytest
from test_report import CHROMIUM, NASBENCH, TRIALS, Page, in_browser, make_run, page

from hwnas.reports.page import write_report
from hwnas.reports.sections import signed, template
from hwnas.spaces.darts import Darts
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy, ToyCost

ROW = [0.0, 0.25, 1.5, 3.0, None]
SUMS = {"latency_ms": {"base": 1.5, "added": [ROW] * 4}}


@pytest.mark.parametrize(
    ("metric", "value", "largest", "expected"),
    [
        ("val_acc", 0.0312, None, "+3.12 points"),
        ("val_acc", -0.000312, 0.0312, "−0.03 points"),
        ("val_acc", -0.00002, 0.0312, "0.00 points"),
        ("latency_ms", -12.345, None, "−12.3 ms"),
        ("flops", 5.629e6, None, "+5.63 M"),
        ("latency_ms", 0.0, None, "0 ms"),
    ],
)
def test_differences(metric, value, largest, expected):
    assert signed(metric, value, largest) == expected


def test_texts_of_architectures_come_from_a_template():
    rng = np.random.default_rng(0)
    assert template(Toy(3, 4), Toy(3, 4).sample(rng, 9)) == ["", "", "", ""]
    parts = template(NasBench201(), NasBench201().sample(rng, 99))
    assert parts == ["|", "~0|+|", "~0|", "~1|+|", "~0|", "~1|", "~2|"]
    assert template(FBNet(), FBNet().sample(rng, 99)) == ["", *["-"] * 21, ""]
    assert template(Darts(), Darts().sample(rng, 9)) is None


def test_the_page_has_the_numbers_that_its_script_needs(tmp_path):
    data = page(make_run(tmp_path / "run", limits={"latency_ms": 4.0})).data
    assert data["known"] == [2, 4, 4]  # after each generation
    assert (data["repeats"], data["starts"]) == ([1], [0, 0, 0, 1])  # bbaa again, in the last
    quality, cost = data["metrics"]
    assert (quality["key"], quality["goal"], quality["bound"]) == ("val_acc", "max", None)
    assert (cost["key"], cost["goal"], cost["bound"]) == ("latency_ms", "min", 4)
    assert (quality["values"], cost["values"]) == ([0.5, 0.8, 0.9, 0.4], [1, 2, 6, 5])
    assert (data["front"], data["best"], data["pool"]) == ([0, 1, 2], 1, None)
    # ccca has one letter in common with aaaa and with bbaa, dddd none
    assert data["near"] == [None, None, [1, 1], [1, 1]]


def test_the_knee_and_its_neighbours(tmp_path):
    text = page(make_run(tmp_path / "run")).text
    cheaper, dearer = text.split("the next cheaper one")[1].split("the next more expensive one")
    assert "validation accuracy −30.0 points latency −1.00 ms decision 1: b → a decision 2: b → a" in cheaper
    assert "validation accuracy +10.0 points latency +4.00 ms decision 1: b → c" in dearer


def test_the_knee_is_a_network_that_works(tmp_path):
    """One cell without a path costs and knows nothing; beside it all others look alike."""
    cells = [
        (0, [0, 0, 0, 0, 0, 0], 0.1, 0.0),
        (0, [1, 1, 1, 1, 1, 1], 0.6, 2.0),
        (0, [2, 2, 2, 2, 2, 2], 0.9, 4.0),
        (0, [3, 3, 3, 3, 3, 3], 0.91, 20.0),
    ]
    text = page(make_run(tmp_path / "run", cells, config=NASBENCH)).text
    cheaper, dearer = text.split("the next cheaper one")[1].split("the next more expensive one")
    assert "latency −2.00 ms" in cheaper
    assert "latency +16.0 ms" in dearer


def test_the_lineage_of_the_best(tmp_path):
    """From ccca back to bbaa, which is as near as aaaa and came later."""
    text = page(make_run(tmp_path / "run")).text
    steps = text.split("Where the best network may come from")[1]
    assert "Inferred, because runs do not record parents." in steps
    first, second = steps.split("generation 0")[1].split("generation 1")[:2]
    assert "80.00 %, 2.000 ms" in first
    assert "90.00 %, 6.000 ms decision 1: b → c decision 2: b → c decision 3: a → c" in second


def test_a_network_of_the_first_generation_has_no_lineage(tmp_path):
    assert "may come from" not in page(make_run(tmp_path / "run", TRIALS[:2])).text


def test_operations_over_time(tmp_path):
    drawn = page(make_run(tmp_path / "run"))
    assert "decision 1: first a 50%, last b 100%, front a 33%" in drawn.text
    assert "decision 4: first a 100%, last a 100%, front a 100%" in drawn.text
    areas = [attrs["d"] for attrs in drawn.classes("area") if attrs.get("d")]
    assert areas[0] == "M0 50L50 100L100 100L100 100L50 100L0 100z"  # a: one of two, none, none


def test_best_so_far_and_regret(tmp_path):
    assert "best validation accuracy so far 90.00 %" in page(make_run(tmp_path / "run")).text
    limited = page(make_run(tmp_path / "limited", limits={"latency_ms": 4.0})).text
    assert "best validation accuracy so far 80.00 %" in limited
    best = {"arch": "aaaa", "genotype": [0] * 4, "metrics": {"val_acc": 0.95, "latency_ms": 4.0}}
    truth = {"best": best, "regret": {}, "hypervolume_ratio": [0.5] * 3, "igd_plus": [0.1] * 3, "front": []}
    assert "regret of validation accuracy 5.000 %" in page(make_run(tmp_path / "known", truth=truth)).text


def test_exact_effects(tmp_path):
    added = [[0.1, -0.05, -0.05, 0.0, None], *[[0.0] * 5] * 3]
    effects = {"val_acc": {"mean": 0.5, "added": added, "r2": 0.25, "num": 625}}
    drawn = page(make_run(tmp_path / "run", effects=effects))
    assert "Exact, over all 625 networks, whose mean is 50.00 %" in drawn.text
    assert "the sum of these effects explains 25% of the variance" in drawn.text
    assert "Most important: decision 1 (a range of 15.0 points, best a)" in drawn.text
    cells = [attrs for tag, attrs in drawn.tags if tag == "td" and "--e" in (attrs.get("style") or "")]
    assert cells[0] == {"class": "better", "style": "--e:60%"}
    assert cells[4] == {"class": "worse", "style": "--e:30%"}  # the second row: b on decision 1
    assert "–" in drawn.text


def test_effects_are_fitted_where_nobody_knows_them(tmp_path):
    """The quality is a sum: 10 points for every b, of six decisions."""
    genotypes = [[(row >> edge) & 1 for edge in range(4)] for row in range(16)] * 2
    trials = [(0, g, 0.1 + 0.1 * sum(g), 1.0) for g in genotypes[:16]]
    trials += [(1, [2, *g[1:]], 0.1 + 0.1 * sum(g[1:]), 1.0) for g in genotypes[:8]]
    text = page(make_run(tmp_path / "run", trials)).text
    assert (
        "Fitted: a ridge regression on the 20 networks of this run, with a cross-validated R² of 1.00" in text
    )
    assert "Effects of operations" not in page(make_run(tmp_path / "few")).text  # four networks tell nothing


def test_what_the_best_network_spends(tmp_path):
    """1.5 ms and ccca: three times 1.5 ms, and nothing."""
    text = page(make_run(tmp_path / "run", sums=SUMS)).text.split("Costs of the best network")[1]
    assert "latency 6.000 ms" in text
    assert "everything else 1.500 ms 25.0 %" in text
    assert "decision 1 c 1.500 ms 25.0 % 0.000 ms to 3.000 ms" in text
    assert "decision 4 a 0.000 ms 0.0 % 0.000 ms to 3.000 ms" in text
    assert "Costs of the best network" not in page(make_run(tmp_path / "without")).text


def test_the_estimate_against_the_truth(tmp_path):
    """Of six pairs of networks, bbaa and ccca are in the wrong order."""
    reports = {"test_acc": [0.4, 0.8, 0.7, 0.35]}
    drawn = page(make_run(tmp_path / "run", reports=reports))
    assert "Validation accuracy against the benchmark" in drawn.text
    assert "test accuracy τ 0.67" in drawn.text
    assert "4 networks" in drawn.text
    assert drawn.data["metrics"][2]["values"] == [0.4, 0.8, 0.7, 0.35]
    partly = page(make_run(tmp_path / "partly", reports={"test_acc": [0.4, None, 0.7, 0.35]}))
    assert partly.data["metrics"][2]["rows"] == [0, 2, 3]


def test_deciles_of_the_device(tmp_path):
    """A tenth at 1, 1.5, ... 6 ms: the median, 3.5 ms, is in the middle of the axis."""
    drawn = page(make_run(tmp_path / "run", deciles={"latency_ms": [1 + i / 2 for i in range(11)]}))
    assert [attrs["x"] for attrs in drawn.classes("tenth")][1] == "50.0%"
    assert len(drawn.classes("decile")) == 9
    assert "q0.5" in drawn.text
    assert not page(make_run(tmp_path / "unknown")).classes("decile")


def test_the_ledger(tmp_path):
    text = page(make_run(tmp_path / "run")).text
    assert "asked for 5 different networks 4 repeats within the run 1 new, computed by this run 4" in text
    assert "time of the search per evaluation 1.2e+04 ms" in text


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({"reports": {"test_acc": [0.4, 0.8]}}, "reports has 2 values of test_acc for 4 networks"),
        ({"sums": {"latency_ms": {"base": 1.0, "added": [[0.0] * 5]}}}, r"shape \(1, 5\), not \(4, 5\)"),
    ],
)
def test_tables_of_another_run_are_refused(tmp_path, extra, message):
    with pytest.raises(ValueError, match=rf"run is corrupt: .*{message}"):
        write_report(make_run(tmp_path / "run", **extra))


def test_a_run_tells_what_its_page_needs(run_hwnas, tmp_path):
    """The toy problem is a sum, so everything about it is known; drawing it again needs the folder alone."""
    run_hwnas("search", "experiment=toy", "generations=3", "logger=csv", "hydra.run.dir=run")
    folder = tmp_path / "run"
    result = json.loads((folder / "result.json").read_text())
    space = Toy()
    cost = ToyCost(space, metric="latency_ms")
    assert result["sums"]["latency_ms"] == {"base": 1.0, "added": cost.table.tolist()}
    effects = result["effects"]["latency_ms"]
    np.testing.assert_allclose(effects["added"], cost.table - cost.table.mean(axis=1, keepdims=True))
    assert (effects["r2"], effects["num"]) == (1.0, 5**16)
    sample = space.sample(np.random.default_rng(0), 20_000)
    median = np.median([row["latency_ms"] for row in cost.evaluate(sample)])
    assert result["deciles"]["latency_ms"][5] == pytest.approx(median)
    assert result["reports"] == {}
    first = Page(folder / "report.html")
    assert "Exact, over all 1.5 x 10^11 networks" in first.text
    run_hwnas("report", "run")
    assert Page(folder / "report.html").data == first.data


browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")


@browser
def test_choices_in_the_page(tmp_path):
    path = write_report(make_run(tmp_path / "run"))
    script = """
      const rows = () => frontDots().map(dot => arch(+dot.dataset.row));
      const status = () => words(element("status"));
      seen.push(rows(), status());
      const limit = document.querySelector("[data-bound='1']");
      set(limit, "5.5", "input");
      seen.push(rows(), status(), words(document.querySelector("#marks")));
      set(element("up"), "1", "change");  // latency upwards too: only the cheapest is not beaten
      seen.push(rows(), words(element("ylabel")), element("number").textContent);
      element("controls").reset();
      setTimeout(() => {
        seen.push(rows(), words(element("ylabel")), limit.value);
        document.title = JSON.stringify(seen);
      }, 50);
    """
    start, said, kept, limited, mark, cheapest, label, number, again, old, bound = in_browser(
        path, script, tmp_path
    )
    assert start == again == ["aaaa", "bbaa", "ccca"]
    assert said == "4 networks, 3 on the front; best: validation accuracy 90.00 %, latency 6.000 ms."
    assert kept == ["aaaa", "bbaa"]
    assert "2 on the front of those within the limits; best: validation accuracy 80.00 %" in limited
    assert mark == "limit 5.500 ms"
    assert (cheapest, label, number) == (["aaaa"], "latency (ms)", "1")
    assert (old, bound) == ("validation accuracy (%)", "")


@browser
def test_the_population_by_generation(tmp_path):
    path = write_report(make_run(tmp_path / "run"))
    script = """
      const slider = element("generation");
      seen.push(slider.value, words(element("when")), element("population").getAttribute("d"));
      set(slider, "0", "input");
      seen.push(words(element("when")), frontDots().length, drawn.length);
      seen.push(element("population").getAttribute("d").match(/M/g).length);
      set(slider, "2", "input");
      seen.push(slider.getAttribute("aria-valuetext"), frontDots().length);
    """
    value, whole, nothing, first, num_front, num_drawn, num_marked, last, all_of_front = in_browser(
        path, script, tmp_path
    )
    assert (value, whole, nothing) == ("3", "the whole search", "")
    assert first == "generation 0: 2 evaluated, mean validation accuracy 65.00 %, mean latency 1.500 ms"
    assert (num_front, num_drawn, num_marked) == (2, 2, 2)
    assert last == "generation 2: 1 evaluated, mean validation accuracy 80.00 %, mean latency 2.000 ms"
    assert all_of_front == 3


@browser
def test_the_nearest_earlier_network_in_the_page(tmp_path):
    path = write_report(make_run(tmp_path / "run"))
    script = """
      seen.push(words(pinned.querySelector(".near span")));
      pinned.querySelector(".near button").click();
      seen.push(words(pinned.querySelector(".arch")), words(pinned.querySelector(".near span")));
      seen.push(pinned.querySelector(".near button").hidden);
      document.querySelector("#table tbody tr button").click();
      seen.push(words(pinned.querySelector(".arch")));
    """
    near, earlier, first, hidden, chosen = in_browser(path, script, tmp_path)
    assert near == (
        "nearest earlier network: of generation 0, 3 of 4 decisions differ "
        "(decision 1: b → c, decision 2: b → c, decision 3: a → c); 1 other is equally near."
    )
    assert (earlier, first, hidden) == ("bbaa", "of the first generation.", True)
    assert chosen == "aaaa"


@browser
def test_a_phone_and_names(tmp_path):
    """No sideways scroll at 390 pixels; everything that can be used has a name."""
    trials = [(g, [g % 5, 1, g // 5, 0, 1, 2], 0.5 + g / 100, 1.0 + g) for g in range(25)]
    extra = {
        "sums": {"latency_ms": {"base": 1.0, "added": [[0.0, 1.0, 2.0, 3.0, 4.0]] * 6}},
        "reports": {"test_acc": [0.5 + g / 90 for g in range(25)]},
    }
    path = write_report(
        make_run(tmp_path / "run", trials, config=NASBENCH, limits={"latency_ms": 9}, **extra)
    )
    script = """
      const frame = document.createElement("iframe");
      const page = document.documentElement.cloneNode(true);
      [...page.querySelectorAll("script")].at(-1).remove();  // this one
      frame.style = "width: 390px; height: 800px";
      frame.srcdoc = page.outerHTML;
      document.body.replaceChildren(frame);
      frame.onload = () => {
        const inside = frame.contentDocument;
        seen.push(inside.documentElement.clientWidth, inside.documentElement.scrollWidth);
        const named = item => item.labels?.length || item.textContent.trim() || item.ariaLabel;
        seen.push([...inside.querySelectorAll("button, select, input, [role=button], [role=img]")]
          .filter(item => !named(item) && !item.closest("[aria-hidden]")).map(item => item.outerHTML));
        seen.push(inside.querySelectorAll("section").length);
        document.title = JSON.stringify(seen);
      };
    """
    width, scrolled, nameless, sections = in_browser(path, script, tmp_path)
    assert width <= 390
    assert scrolled <= width
    assert nameless == []
    assert sections == 11


def test_an_older_folder_is_drawn_without_what_it_lacks(tmp_path):
    drawn = Page(write_report(make_run(tmp_path / "run")))
    assert "The front" in drawn.text
    assert not any(
        word in drawn.text for word in ("Exact, over", "against the benchmark", "Costs of the best network")
    )
