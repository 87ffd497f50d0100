"""The public functions: a search from Python, and the commands by their words."""

from __future__ import annotations

import ast
import functools
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import hwnas
from hwnas import Problem, compose, profile, prune, read_run, report, search, train
from hwnas.__main__ import main
from hwnas.core import Limit
from hwnas.data.images import NoImages
from hwnas.devices.profile import Profile
from hwnas.spaces.toy import Toy, ToyCost
from hwnas.strategies.random import RandomSearch

TOY = ("experiment=toy",)


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


def unfinished(folder: Path, trials: int) -> None:
    """Leave of a finished run what one has that was killed after some trials."""
    archive = folder / "archive.jsonl"
    archive.write_bytes(b"".join(archive.read_bytes().splitlines(keepends=True)[:trials]))
    (folder / "result.json").unlink()


def test_every_public_name_is_there() -> None:
    for name in hwnas.__all__:
        assert getattr(hwnas, name) is not None
    (checked,) = (n for n in ast.parse(Path(hwnas.__file__).read_text()).body if isinstance(n, ast.If))
    named = {line.module: {name.name for name in line.names} for line in checked.body}
    assert named == {module: set(names) for module, names in hwnas._PUBLIC.items()}
    with pytest.raises(ImportError, match="Searcher"):
        from hwnas import Searcher  # noqa: F401


def test_it_is_the_run_of_the_command(run_hwnas, here: Path) -> None:
    words = (*TOY, "generations=3", "seed=4", "limits.latency_ms=5", "strategy.population_size=8")
    run_hwnas("search", *words, "hydra.run.dir=command", "store.dir=one", "logger=csv")
    run = search(compose(*words), "called", store="two", show=False)
    command = read_run("command")
    assert (here / "called/archive.jsonl").read_bytes() == (here / "command/archive.jsonl").read_bytes()
    assert run.trials == command.trials
    assert len(run.trials) == 24
    assert run.best == command.best
    assert run.limits == (Limit("latency_ms", 5.0, "min"),)
    assert run.result.best.genotype == run.best.genotype
    assert run.front == command.front
    assert run.page == here / "called/report.html"
    for group in ("search_space", "dataset", "evaluator", "device", "strategy", "experiment"):
        assert run.names[group] == command.names[group]
    for key in ("search_space", "strategy", "seed", "generations"):
        assert run.config[key] == command.config[key]
    assert "best:" in (here / "called/search.log").read_text()
    assert read_run("called").trials == run.trials


def test_without_any_words(here: Path) -> None:
    """No Hydra, no configuration: a problem of objects alone."""
    space = Toy(4, 3)
    problem = Problem(
        space=space,
        dataset=NoImages("none"),
        evaluator=ToyCost(space, metric="val_acc"),
        device=functools.partial(ToyCost, metric="latency_ms"),
        strategy=functools.partial(RandomSearch, population_size=6),
        limits={"latency_ms": "q0.5"},
        generations=3,
        seed=np.int64(1),
    )
    run = search(problem, "run", show=False)
    assert len(run.trials) == 18
    assert run.names == {
        "search_space": "toy",
        "dataset": "none",
        "evaluator": "toy_val_acc",
        "device": "toy_latency_ms",
        "strategy": "RandomSearch",
    }
    stored = json.loads((here / "run/problem.json").read_text())
    assert stored["search_space"] == {"_target_": "hwnas.spaces.toy.Toy", "num_edges": 4, "num_ops": 3}
    assert stored["device"] == {"_target_": "hwnas.spaces.toy.ToyCost", "metric": "latency_ms"}
    assert not (here / "run/.hydra/config.yaml").exists()
    assert "Begun from Python, with seed 1" in run.page.read_text()
    code = (
        "import sys; from hwnas import Problem, search; from hwnas.spaces.toy import Toy;"
        "assert 'hydra' not in sys.modules and 'torch' not in sys.modules"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_show(capsys: pytest.CaptureFixture[str]) -> None:
    search(compose(*TOY, generations=1), "run", show=False)
    assert capsys.readouterr().out == ""
    search(compose(*TOY, generations=1), "run")
    assert capsys.readouterr().out.startswith("this run is finished already")


def test_objects_in_place_of_names(here: Path) -> None:
    """A class with settings, a function, and objects; each sets up its part."""
    space = Toy(6, 3)
    problem = compose(
        *TOY,
        strategy=functools.partial(FirstOps, population_size=5),
        space=space,
        device=ToyCost(space, metric="latency_ms"),
        generations=2,
    )
    run = search(problem, "run", show=False)
    assert len(run.trials) == 10
    assert run.trials[0].genotype == run.trials[5].genotype == (0, 0, 0, 0, 0, 0)
    assert run.space.size == 3**6
    assert run.names["strategy"] == "FirstOps"
    assert "experiment" not in run.names
    stored = json.loads((here / "run/problem.json").read_text())
    assert stored["strategy"] == {"_target_": f"{__name__}.FirstOps", "population_size": 5}
    made = compose(*TOY, space=functools.partial(small_toy, edges=4), generations=1)
    other = search(made, "other", show=False)
    assert other.space.size == 3**4


def test_a_run_is_resumed_with_the_same_objects(here: Path) -> None:
    problem = compose(*TOY, strategy=functools.partial(FirstOps, population_size=5), generations=4)
    whole = search(problem, "whole", store="one", show=False)
    search(problem, "killed", store="two", show=False)
    unfinished(here / "killed", 10)
    assert read_run("killed").result is None
    changed = replace(problem, strategy=functools.partial(FirstOps, population_size=6))
    with pytest.raises(ValueError, match=r"holds a run with strategy\.population_size=5, not .*=6; "):
        search(changed, "killed", show=False)
    with pytest.raises(ValueError, match=r"killed holds a run with seed=0, not seed=1; "):
        search(replace(problem, seed=1), "killed", show=False)
    run = search(problem, "killed", show=False)
    assert run.trials == whole.trials
    assert run.result.status == "finished"


def test_python_and_the_command_line_do_not_mix_folders(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["search", *TOY, "generations=1", "logger=csv", "hydra.run.dir=command"]) == 0
    with pytest.raises(
        ValueError, match=r"command holds a run of the command line; resume it: hwnas search "
    ):
        search(compose(*TOY, generations=1), "command", show=False)
    search(compose(*TOY, generations=1), "python", show=False)
    capsys.readouterr()
    assert main(["search", "resume=python"]) == 1
    assert (
        "resume=python was begun from Python; hwnas.search(problem, folder) resumes it there"
        in capsys.readouterr().err
    )
    assert main(["report", "python"]) == 0


def test_a_folder_holds_one_run(here: Path) -> None:
    problem = compose(*TOY, generations=2)
    first = search(problem, "run", show=False)
    written = (here / "run/result.json").stat().st_mtime_ns
    assert search(problem, "run", show=False).trials == first.trials
    assert (here / "run/result.json").stat().st_mtime_ns == written
    with pytest.raises(ValueError, match="run holds a run with generations=2, not generations=3; "):
        search(replace(problem, generations=3), "run", show=False)
    (here / "run/problem.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"problem\.json is corrupt"):
        search(problem, "run", show=False)
    assert "problem.json is corrupt" in (here / "run/search.log").read_text()


def test_a_call_that_was_wrong_leaves_its_folder_usable(here: Path) -> None:
    problem = compose(*TOY, generations=1)
    with pytest.raises(ValueError, match="no evaluator or device of this run reports latency"):
        search(replace(problem, limits={"latency": 5}), "run", show=False)
    assert not (here / "run").exists()
    with pytest.raises(ValueError, match=r"no network of toy keeps limits\.latency_ms=0\.001"):
        search(replace(problem, limits={"latency_ms": 0.001}), "run", show=False)
    assert not (here / "run").exists()
    run = search(replace(problem, limits={"latency_ms": 5}), "run", show=False)
    assert run.limits == (Limit("latency_ms", 5.0, "min"),)
    (here / "other").mkdir()
    (here / "other/notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="other holds no run, but other files; choose a new or an empty"):
        search(problem, "other", show=False)
    assert [path.name for path in (here / "other").iterdir()] == ["notes.txt"]


def test_report_of_runs_that_are_side_by_side(here: Path) -> None:
    for seed in (0, 1):
        for size in (4, 8):
            words = (*TOY, "generations=2", f"strategy.population_size={size}")
            search(compose(*words, seed=seed), f"both/{size}-{seed}", show=False)
    pages = report("both", here / "both/4-1")
    assert pages == [Path("both/report.html"), here / "both/4-1/report.html"]
    page = pages[0].read_text()
    assert 'href="4-0/report.html"' in page
    assert 'href="8-1/report.html"' in page
    assert "strategy.population_size" in page


def test_settings_that_come_with_a_choice_are_no_difference(here: Path) -> None:
    for strategy in ("random", "local_search"):
        words = (*TOY, "generations=1", f"strategy={strategy}", "strategy.population_size=4")
        search(compose(*words), f"both/{strategy}", show=False)
    (page,) = report("both")
    assert "Runs that differ in <b>strategy</b>.</p>" in page.read_text()


def test_a_run_in_a_notebook(here: Path) -> None:
    run = search(compose(*TOY, generations=2, space=Toy(3, 2)), "a run", show=False)
    html = run._repr_html_()
    assert '<a href="a%20run/report.html">report</a>' in html
    assert html.count("<path") == 1 + 3  # the arrow's head, and a box per edge
    none = search(compose(*TOY, generations=1, limits={"latency_ms": 1.01}), "none", show=False)
    assert none.best is None
    assert "best:" not in none._repr_html_()


@pytest.mark.parametrize(
    ("words", "parts", "message"),
    [
        (["-m", "seed=0,1"], {}, r"'-m' is no setting=value; in place of a sweep call in a loop"),
        (["strategy=nsga"], {}, r"strategy=nsga is not known; .*choices: .*mo_hdnas"),
        (["generation=3"], {}, r"unknown setting 'generation'; did you mean generations"),
        ([], {"generation": 3}, r"a problem has no generation; it has space, dataset"),
        ([], {"seed": {1, 2}}, r"seed must be a whole number of at least 0, not \{1, 2\}"),
        ([], {"generations": 0}, r"generations must be a whole number of at least 1, not 0"),
        ([], {"limits": {"latency": 3}}, r"limits\.latency: no evaluator .* did you mean latency_ms"),
        ([], {"strategy": Toy()}, r"strategy must set up a Strategy, not a Toy"),
        ([], {"strategy": "random"}, r"strategy must set up a Strategy, not 'random'"),
        ([], {"limits": [3]}, r"limits takes metrics, e\.g\. limits\.latency_ms=5, not limits=\[3\]"),
        (["strategy=random"], {"strategy": FirstOps}, r"strategy=random has no effect on the object"),
        (["strategy.population_size=3"], {"strategy": FirstOps}, r"has no effect on the object .* strategy"),
        ([], {"strategy": functools.partial(FirstOps, 3)}, r"strategy: a partial takes settings by keyword"),
        (["resume=nowhere"], {}, r"resume='?nowhere'? is not a folder"),
        (["--config-dir=nowhere"], {}, r"--config-dir=.*nowhere is not a folder"),
    ],
)
def test_wrong_use(words: list[str], parts: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search(compose(*TOY, *words, **parts), show=False)


def test_train(here: Path) -> None:
    outcome = train(
        "arch=|none~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|",
        *("search_space.channels=4", "search_space.num_cells=1"),
        *("trainer.epochs=1", "trainer.max_steps=2", "logger=csv"),
        show=False,
    )
    assert outcome.folder.parent == here / "multirun/runs/train"
    assert outcome.result == json.loads((outcome.folder / "result.json").read_text())
    assert 0 <= outcome.result["test_acc"] <= 1
    assert (outcome.folder / outcome.result["weights"]).is_file()
    assert outcome.page is None


def test_prune(here: Path) -> None:
    outcome = prune(
        *("dataset=digits", "model.channels=[4,8]", "model.hidden=16", "model.latent=4"),
        *("training.epochs=1", "training.precision=32"),
        *("pruning.sparsities=[0,0.5]", "pruning.ramp_epochs=0.5", "pruning.finetune_epochs=0.5"),
        *("host.rounds=2", "logger=csv"),
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
    fitted = profile("fit", "device.path=mine.csv", "to=mine.json", show=False)
    assert isinstance(fitted, Profile)
    assert profile("show", "mine.json", "to=mine.html", show=False) == fitted
    assert Path("mine.html").is_file()
    assert profile("compare", "mine.json", "mine.json", show=False) is None


def test_resume_leaves_the_working_folder(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("arch=|none~0|+|none~0|none~1|+|nor_conv_1x1~0|none~1|none~2|", "search_space.num_cells=1")
    quick = ("search_space.channels=4", "trainer.epochs=1", "trainer.max_steps=1", "logger=csv")
    train(*words, *quick, folder="run", show=False)
    (here / "elsewhere").mkdir()
    monkeypatch.chdir(here / "elsewhere")
    assert "test_acc" in train(f"resume={here / 'run'}", show=False).result
    assert Path.cwd() == here / "elsewhere"
    assert not list((here / "elsewhere").iterdir())


def test_import_is_light() -> None:
    code = (
        "import hwnas.api, sys; heavy = ('torch', 'matplotlib', 'sklearn', 'wandb', 'hydra'); "
        "assert not [m for m in heavy if m in sys.modules]"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
