"""The commands as Python functions do what the commands do."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from hwnas.api import profile, prune, read_run, report, search, train
from hwnas.core import Limit
from hwnas.devices.profile import Profile
from hwnas.spaces.toy import Toy, ToyCost
from hwnas.strategies.random import RandomSearch

TOY = ("experiment=toy", "logger=csv")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class FirstOps(RandomSearch):
    """Random search whose first network has the first operation everywhere."""

    def ask(self) -> list[tuple[int, ...]]:
        return [tuple(ops[0] for ops in self.space.choices), *super().ask()[1:]]


def small_toy(*, edges: int) -> Toy:
    return Toy(edges, 3)


def test_it_is_the_run_of_the_command(run_hwnas, here: Path) -> None:
    words = (*TOY, "generations=3", "seed=4", "limits.latency_ms=5", "strategy.population_size=8")
    run_hwnas("search", *words, "hydra.run.dir=command", "store.dir=one")
    run = search(
        *TOY,
        generations=np.int64(3),
        seed=4,
        limits={"latency_ms": 5},
        strategy={"population_size": 8},
        store={"dir": "two"},
        folder="called",
        show=False,
    )
    command = read_run("command")
    assert (here / "called/archive.jsonl").read_bytes() == (here / "command/archive.jsonl").read_bytes()
    assert run.trials == command.trials
    assert len(run.trials) == 24
    assert run.best == command.best
    assert run.limits == (Limit("latency_ms", 5.0, "min"),)
    assert run.result.best.genotype == run.best.genotype
    assert run.front == command.front
    assert run.page == here / "called/report.html"
    assert run.names == command.names
    run.config.store.dir = "one"
    assert run.config == command.config
    assert "best:" in (here / "called/search.log").read_text()


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    search(*TOY, generations=1, folder="run", show=False)
    assert capsys.readouterr().out == ""
    search(*TOY, generations=1, folder="run")
    assert capsys.readouterr().out.startswith("this run is finished already")


def test_objects_in_place_of_names(here: Path) -> None:
    """A class with settings, a function, and objects; each sets up its group."""
    space = Toy(6, 3)
    run = search(
        *TOY,
        strategy=functools.partial(FirstOps, population_size=5),
        search_space=space,
        device=ToyCost(space, metric="latency_ms"),
        generations=2,
        folder="run",
        show=False,
    )
    assert len(run.trials) == 10
    assert run.trials[0].genotype == run.trials[5].genotype == (0, 0, 0, 0, 0, 0)
    assert run.space.size == 3**6
    assert run.names["strategy"] == "FirstOps"
    assert run.names["device"] == "ToyCost"
    stored = OmegaConf.load(here / "run/.hydra/config.yaml")
    assert stored.strategy == {"_target_": f"{__name__}.FirstOps", "population_size": 5}
    other = search(
        *TOY, search_space=functools.partial(small_toy, edges=4), generations=1, folder="other", show=False
    )
    assert other.space.size == 3**4


def test_objects_are_resumed_with_objects(here: Path) -> None:
    mine = functools.partial(FirstOps, population_size=5)
    whole = search(*TOY, strategy=mine, generations=4, folder="whole", store={"dir": "one"}, show=False)
    search(*TOY, strategy=mine, generations=4, folder="torn", store={"dir": "two"}, show=False)
    archive = here / "torn/archive.jsonl"
    archive.write_bytes(b"".join(archive.read_bytes().splitlines(keepends=True)[:10]))
    (here / "torn/result.json").unlink()
    assert read_run("torn").result is None
    run = search(resume="torn", strategy=mine, show=False)
    assert run.trials == whole.trials
    assert run.result.status == "finished"
    with pytest.raises(ValueError, match=r"torn holds a run with strategy\.population_size=5, not .*=6; "):
        search(resume="torn", strategy=functools.partial(FirstOps, population_size=6), show=False)


def test_a_folder_goes_on_with_the_same_run_only(here: Path) -> None:
    first = search(*TOY, generations=2, folder="run", show=False)
    written = (here / "run/result.json").stat().st_mtime_ns
    assert search(*TOY, generations=2, folder="run", show=False).trials == first.trials
    assert (here / "run/result.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="run holds a run with generations=2, not generations=3; "):
        search(*TOY, generations=3, folder="run", show=False)


def test_a_call_that_was_wrong_leaves_its_folder_usable(here: Path) -> None:
    with pytest.raises(ValueError, match="no evaluator or device of this run reports latency"):
        search(*TOY, generations=1, limits={"latency": 5}, folder="run", show=False)
    run = search(*TOY, generations=1, limits={"latency_ms": 5}, folder="run", show=False)
    assert run.limits == (Limit("latency_ms", 5.0, "min"),)
    (here / "other").mkdir()
    (here / "other/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other holds no run, but other files; choose a new or an empty"):
        search(*TOY, folder="other", show=False)
    assert [path.name for path in (here / "other").iterdir()] == ["notes.txt"]


def test_resume_leaves_the_working_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search(*TOY, generations=2, folder="run", show=False)
    (here / "run/result.json").unlink()
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert search(resume=here / "run", show=False).result.status == "finished"
    assert Path.cwd() == here / "elsewhere"
    assert not list((here / "elsewhere").iterdir())


def test_report_of_runs_that_are_side_by_side(here: Path) -> None:
    for seed in (0, 1):
        search(*TOY, generations=2, seed=seed, folder=f"both/{seed}", show=False)
    pages = report("both", here / "both/1")
    assert pages == [Path("both/report.html"), here / "both/1/report.html"]
    page = pages[0].read_text()
    assert 'href="0/report.html"' in page
    assert 'href="1/report.html"' in page


def test_a_run_in_a_notebook(here: Path) -> None:
    run = search(*TOY, generations=2, folder="a run", search_space=Toy(3, 2), show=False)
    html = run._repr_html_()
    assert '<a href="a%20run/report.html">report</a>' in html
    assert html.count("<path") == 1 + 3  # the arrow's head, and a box per edge
    none = search(*TOY, generations=1, limits={"latency_ms": 1.01}, folder="none", show=False)
    assert none.best is None
    assert "best:" not in none._repr_html_()


@pytest.mark.parametrize(
    ("words", "settings", "message"),
    [
        (["-m", "seed=0,1"], {}, r"'-m' is no setting=value; in place of a sweep call in a loop"),
        ([], {"strategy": "nsga"}, r"strategy=nsga is not known; .*choices: .*mo_hdnas"),
        ([], {"generation": 3}, r"unknown setting 'generation'; did you mean generations"),
        ([], {"seed": {1, 2}}, r"a setting is a number, text, list or mapping, not \{1, 2\}"),
        ([], {"limits": {"latency": 3}}, r"limits\.latency: no evaluator .* did you mean latency_ms"),
        ([], {"strategy": Toy()}, r"strategy must set up a Strategy, not a Toy"),
        (["strategy.population_size=3"], {"strategy": FirstOps}, r"has no effect on the object .* strategy"),
        ([], {"strategy": functools.partial(FirstOps, 3)}, r"a partial sets up a group by keywords only"),
        ([], {"resume": "nowhere"}, r"resume='?nowhere'? is not a folder"),
        (["--config-dir=nowhere"], {}, r"--config-dir=.*nowhere is not a folder"),
    ],
)
def test_wrong_use(words: list[str], settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(*TOY, *words, **settings, show=False)


def test_train(here: Path) -> None:
    outcome = train(
        arch="|none~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|",
        search_space={"channels": 4, "num_cells": 1},
        trainer={"epochs": 1, "max_steps": 2},
        logger="csv",
        show=False,
    )
    assert outcome.folder.parent == here / "multirun/runs/train"
    assert outcome.result == json.loads((outcome.folder / "result.json").read_text())
    assert 0 <= outcome.result["test_acc"] <= 1
    assert (outcome.folder / outcome.result["weights"]).is_file()
    assert outcome.page is None


def test_prune(here: Path) -> None:
    outcome = prune(
        dataset="digits",
        model={"channels": [4, 8], "hidden": 16, "latent": 4},
        training={"epochs": 1, "precision": 32},
        pruning={"sparsities": [0, 0.5], "ramp_epochs": 0.5, "finetune_epochs": 0.5},
        host={"rounds": 2},
        logger="csv",
        folder="run",
        show=False,
    )
    assert [round(row["sparsity"], 2) for row in outcome.result["curve"]] == [0, 0.5]
    assert outcome.result["status"] == "finished"
    assert outcome.page == here / "run/report.html"
    assert outcome.page.is_file()


def test_profile(here: Path) -> None:
    """Made by `fit` from measured networks, and read again by `show`."""
    space = "|none~0|+|none~0|none~1|+|{}~0|none~1|none~2|"
    ops = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    archs = [f"|{a}~0|+|{b}~0|{c}~1|+|{a}~0|{b}~1|{c}~2|" for a in ops for b in ops for c in ops]
    assert space.format("none") == archs[0]
    costs = [1 + arch.count("conv") for arch in archs]
    Path("mine.csv").write_text(
        "arch,latency_ms\n" + "".join(f"{arch},{cost}\n" for arch, cost in zip(archs, costs, strict=True))
    )
    fitted = profile("fit", device={"path": "mine.csv"}, to="mine.json", show=False)
    assert isinstance(fitted, Profile)
    assert profile("show", "mine.json", to="mine.html", show=False) == fitted
    assert Path("mine.html").is_file()
    assert profile("compare", "mine.json", "mine.json", show=False) is None


def test_import_is_light() -> None:
    code = (
        "import hwnas.api, sys; heavy = ('torch', 'matplotlib', 'sklearn', 'wandb', 'hydra'); "
        "assert not [m for m in heavy if m in sys.modules]"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
