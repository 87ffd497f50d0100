"""What README and docs/ tell to type: commands compose; README's, made small, run in the slow tests."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from hwnas import compose
from hwnas.__main__ import main
from hwnas.build import conf_folder
from hwnas.cli.compare import parse, strategy_words

ROOT = Path(__file__).parents[1]
PROSE = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PROSE[0].read_text()
OWN_TESTS = ("tutorial.md", "modules.md")
"""Pages whose code and commands are run by tests of their own."""

PAGES = [path.read_text() for path in PROSE if path.name not in OWN_TESTS]


def commands(page: str) -> list[list[str]]:
    """The words after `hwnas` of each command in a page's console blocks."""
    console = "".join(re.findall(r"```console\n(.*?)```", page, re.S)).replace("\\\n", " ")
    lines = [line[2:] for line in console.splitlines() if line.startswith("$ hwnas ")]
    return [shlex.split(line, comments=True)[1:] for line in lines]


COMMANDS = [command for page in PAGES for command in commands(page)]
SMALL = {
    "search": (
        *("generations=1", "trainer=none", "logger=csv", "strategy.population_size=10"),
        "hydra.launcher.n_jobs=1",
    ),
    "train": ("trainer.epochs=1", "logger=csv"),
    "prune": (),
    "profile": ("repeats=1",),
    "export": (),
}
BLIND = (
    *("experiment=blind", "strategy.networks=[20,6,0]", "generations=8", "workers=1", "trainer=none"),
    *("logger=csv", "evaluator.short.training.max_steps=2", "evaluator.long.training.max_steps=3"),
)
"""The recommended search, small."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with a finished run, and the files that commands name."""
    folder = tmp_path_factory.mktemp("readme")
    with contextlib.chdir(folder):
        assert main(["search", "experiment=toy", "generations=1", "logger=csv", "hydra.run.dir=run"]) == 0
        assert main(["store", "export", "to=evaluations.csv"]) == 0
    shutil.copy(conf_folder().parent / "hwnas" / "devices" / "profiles" / "fpga.json", folder / "mine.json")
    return folder


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The run's folder, in the working folder."""
    monkeypatch.chdir(folder)
    return "run"


def prepared(arguments: list[str], run: str) -> list[str]:
    """With what stands for a folder replaced."""
    return [re.sub(r"multirun/(runs/search/<run>|sweeps/<sweep>)", run, argument) for argument in arguments]


def test_readme_has_commands() -> None:
    assert len(COMMANDS) >= 20
    assert {command[0] for command in COMMANDS} >= {"search", "train", "export", "profile", "prune", "report"}


@pytest.mark.parametrize("path", PROSE, ids=lambda path: path.name)
def test_links_lead_to_files(path: Path) -> None:
    """As on a forge; `make docs` checks those of the site."""
    links = re.findall(r"\]\((?!https?:)([^)#]+)(?:#[^)]*)?\)", path.read_text())
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.filterwarnings("ignore::UserWarning")  # Hydra's, of how it is started more than once
@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c != ["doctor"]], ids=lambda command: " ".join(command)[:60]
)
def test_every_command_composes(run: str, command: list[str]) -> None:
    """A sweep's first job."""
    name, *arguments = prepared(command, run)
    if name in ("report", "store", "doctor", "data") or arguments == ["resume=run"]:
        assert main([name, *arguments]) == 0
        return
    if name == "compare":
        words = parse(arguments)
        first_of_each = [f"{word}={values[0]}" for word, values in words.search.items()]
        for strategy in words.own.get("strategy", ()):
            compose(*first_of_each, *strategy_words(strategy))
        return
    action = [arguments.pop(0)] if name == "profile" else []
    first = [
        re.sub(r"=(?:range\()?(\w[\w.]*)(,[\w.]+)+\)?$", r"=\1", argument)
        for argument in arguments
        if argument != "-m"
    ]
    assert main([name, *action, *first, "--cfg", "job"]) == 0


def test_my_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first story, on digits as JPEGs; the card's Python has the reported accuracy on them."""
    onnxruntime = pytest.importorskip("onnxruntime")
    monkeypatch.chdir(tmp_path)
    story = README.split("**My images.**")[1].split("**My device.**")[0]
    folder, suffix = re.findall(r"`(\w+)/\w+/\*(\.\w+)`", story)[0]
    for number, (image, label) in enumerate(zip(*load_digits(return_X_y=True), strict=True)):
        if number < 500:
            path = Path(folder, f"digit {label}", f"{number}{suffix}")
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray((image * 255 / 16).astype(np.uint8).reshape(8, 8)).save(path)
    search, export = (shlex.split(line)[1:] for line in re.findall(r"^    (hwnas .*)$", story, re.MULTILINE))
    small = [
        *(*BLIND, "limits.latency_ms=1000", "search_space.channels=4", "search_space.num_cells=1"),
        *("device.rounds=3", "trainer=quick", "trainer.epochs=1", "trainer.max_steps=5"),
    ]
    small.remove("trainer=none")
    search.remove("budget=10min")  # the sizes are those of `BLIND`
    assert main([*search, *small]) == 0
    (run,) = Path("multirun/runs/search").iterdir()
    assert main([word.replace("multirun/runs/search/<run>", str(run)) for word in export]) == 0
    (card,) = run.rglob("card.md")
    assert "8 bits" in card.read_text() or "int8" in card.read_text()

    prepare, *_ = re.findall(r"```python\n(.*?)```", card.read_text(), re.S)
    code: dict[str, Any] = {}
    exec(compile(prepare, "card.md", "exec"), code)
    session = onnxruntime.InferenceSession(card.with_name("network.onnx"))
    names = json.loads(session.get_modelmeta().custom_metadata_map["classes"])
    (cache,) = Path("multirun/store/images").glob("*.json")
    known = json.loads(cache.read_text())
    answers = {
        name: names[int(session.run(["logits"], {"image": code["prepared"](Path(folder, name))})[0].argmax())]
        for name in known["files"][known["train"] :]
    }
    right = [name.startswith(f"{answer}/") for name, answer in answers.items()]
    network = json.loads((run / "result.json").read_text())["network"]
    assert np.mean(right) == pytest.approx(network["test_acc"])


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table_path: Path, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    exec(compile(code, "README.md", "exec"), {})
    assert "val_acc" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [c for c in commands(README) if c[0] in ("search", "train", "export")],
    ids=lambda c: " ".join(c)[:60],
)
def test_every_command_runs(
    run: str, run_hwnas, table_path: Path, tmp_path: Path, command: list[str]
) -> None:
    shutil.copy("mine.json", tmp_path)
    small = [word for word in BLIND if not word.startswith("trainer")]
    run_hwnas("search", *small, "device=flops", "trainer.epochs=1", "hydra.run.dir=small")
    name, *arguments = prepared(command, "small")
    if any("slurm" in argument for argument in arguments):
        pytest.skip("needs SLURM")
    if any(argument.startswith("resume=") for argument in arguments):
        run_hwnas(name, *arguments)
        return
    chosen = any(argument.startswith(("evaluator=", "strategy=", "experiment=")) for argument in arguments)
    small = list(BLIND if name == "search" and not chosen else SMALL[name])
    joblib = any("joblib" in argument for argument in arguments)
    small = [s for s in small if joblib or not s.startswith("hydra.launcher.")]
    if any("population_size" in argument for argument in arguments):
        small = [s for s in small if "population_size" not in s]
    run_hwnas(name, *arguments, *small)
