"""docs/tutorial.md works as it stands: its files are written, its commands and its Python are run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import yaml

from hwnas import ModuleSpace, compose, search
from hwnas.files import data_folder
from hwnas.strategies.random import RandomSearch

TUTORIAL = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()
FILES = dict(re.findall(r"`(mine/[\w/.]+)`:\n\n```\w+\n(.*?)```", TUTORIAL, re.DOTALL))
BLOCKS = re.findall(r"(?:^|\n)([^\n]*)\n\n```(bash|python)\n(.*?)```", TUTORIAL, re.DOTALL)
SCRIPTS = [code for before, kind, code in BLOCKS if kind == "python" and not before.startswith("`mine/")]
SHELL = "".join(code for _, kind, code in BLOCKS if kind == "bash").replace("\\\n", "")
COMMANDS = [line for line in SHELL.splitlines() if line.startswith("hwnas ")]
EXPORTS = dict(re.findall(r"^export (\w+)=(\S+)$", SHELL, re.MULTILINE))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files, in which commands share a store."""
    folder = tmp_path_factory.mktemp("tutorial")
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content)
    return folder


def run(folder: Path, *command: str) -> str:
    path = os.pathsep.join([str(Path(__file__).parents[1]), str(folder / EXPORTS["PYTHONPATH"])])
    env = {**os.environ, **EXPORTS, "PYTHONPATH": path, "XDG_STATE_HOME": str(folder / "state")}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_what_the_tutorial_has() -> None:
    assert len(FILES) == 5
    for name, content in FILES.items():
        lines = content.splitlines()
        assert len(lines) < (60 if name.endswith(".py") else 6), name
        assert name.endswith(".py") or yaml.safe_load(content)["_target_"]
        assert Path(name).name in TUTORIAL.split("Two variables")[0]
    assert len(COMMANDS) == 7
    assert len(SCRIPTS) == 2
    assert set(EXPORTS) == {"PYTHONPATH", "HWNAS_ALLOW_TARGETS"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[:70])
def test_commands(command: str, folder: Path) -> None:
    if "evaluator=table" in command and not (data_folder() / "nasbench201.npz").is_file():
        pytest.skip("nasbench201.npz is missing; HWNAS_DATA names the folder that has it")
    said = run(folder, "-m", "hwnas", *command.split()[1:], "logger=csv")
    if " -m " in command:
        assert "6 jobs finished" in said
    elif " compare " in command:
        assert "local_search beats random after 150 evaluations on toy, toy by" in said
        assert said.count("No difference shown") == 1
    else:
        result = read_folder(said)
        assert result["status"] == "finished"
        assert result["best"]


def read_folder(said: str) -> dict:
    page = re.search(r"^report: (.*)report\.html$", said, re.MULTILINE)
    assert page, said
    return json.loads((Path(page[1]) / "result.json").read_text())


def test_annealing_beats_random_search_on_the_toy_space(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing in it depends on anything but the seed."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder / "mine"))
    from annealing import Annealing

    limits = {"latency_ms": 5}
    walks = partial(Annealing, walkers=10, temperature=0.1)
    draws = partial(RandomSearch, population_size=10)
    first, again, drawn = (
        search(compose("experiment=toy", strategy=one, generations=40, limits=limits), show=False)
        for one in (walks, walks, draws)
    )
    assert first.trials == again.trials
    assert len(first.trials) == len(drawn.trials) == 400
    assert first.best.metrics["val_acc"] > drawn.best.metrics["val_acc"]
    assert first.result.result[0].genotype == first.best.genotype


@pytest.mark.parametrize("number", range(len(SCRIPTS)))
def test_python(number: int, folder: Path) -> None:
    (folder / "script.py").write_text(SCRIPTS[number])
    page = run(folder, "script.py").splitlines()[-1]
    assert (folder / page).is_file()


def test_the_space(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(folder / "mine"))
    from perceptron import Perceptron

    space = ModuleSpace(Perceptron, image_shape=(1, 8, 8))
    genotype = space.from_str("layers=2 layer0=16 layer1=8")
    assert space.size == 5 * 4**4
    assert space.to_str(genotype) == "layers=2 layer0=16 layer1=8"
    metrics = space.static_metrics([genotype])
    assert metrics["params"].tolist() == [65 * 16 + 17 * 8 + 9 * 10]
    assert metrics["flops"].tolist() == [65 * 16 + 17 * 8 + 9 * 10]
