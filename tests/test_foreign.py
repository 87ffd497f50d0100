"""A folder, a configuration or a file from elsewhere is data: nothing in it runs, and reading it ends."""

from __future__ import annotations

import base64
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from hwnas import build as building
from hwnas.__main__ import main
from hwnas.build import ALLOW_VARIABLE, build, locate, read_config
from hwnas.cli import composing
from hwnas.cli.overrides import resume_arguments
from hwnas.core import Evaluator, Strategy
from hwnas.files import MAX_YAML_VALUES, parse_json, plain_yaml
from hwnas.runs.folder import working_folder
from hwnas.runs.lock import own_folder

NEUTRAL = {"search_space": {"_target_": "hwnas.spaces.toy.Toy", "num_edges": 4, "num_ops": 5}}


class Touches:
    """Creates a file when its pickle is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of our own."""
    folder = tmp_path_factory.mktemp("own") / "run"
    words = ("experiment=toy", "generations=2", "logger=csv", f"store.dir={folder}/store")
    assert main(["search", *words, f"hydra.run.dir={folder}"]) == 0
    return folder


@pytest.fixture
def foreign(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it that an attacker changes; relative paths are below the temporary folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    return Path(shutil.copytree(finished, tmp_path / "foreign"))


def change(folder: Path, changes: dict[str, Any], file: str = "config.yaml") -> None:
    """Put values into a configuration of a run, by dotted names."""
    content = OmegaConf.load(folder / ".hydra" / file)
    for name, value in changes.items():
        OmegaConf.update(content, name, value, force_add=True)
    OmegaConf.save(content, folder / ".hydra" / file)


def the_error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a command ends with."""
    capsys.readouterr()
    try:
        code: object = main(list(arguments))
    except SystemExit as ended:
        code = ended.code
    assert code == 1
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    return message


@pytest.mark.parametrize(
    "command",
    [("report", "foreign"), ("search", "resume=foreign"), ("train", "run=foreign", "logger=csv")],
    ids=lambda command: command[0],
)
def test_a_pickle_in_a_configuration_is_not_read(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    """`hwnas.store.workers._evaluate` unpickles its second argument, and YAML can hold bytes."""
    payload = base64.b64encode(pickle.dumps(Touches(tmp_path / "ran"))).decode()
    node = (
        "search_space:\n  _target_: hwnas.store.workers._evaluate\n  key: k\n"
        f"  copy: !!binary {payload}\n  index: 0\n  part: []\n"
    )
    content = plain_yaml(foreign / ".hydra" / "config.yaml")
    assert isinstance(content, dict)
    del content["search_space"]
    (foreign / ".hydra" / "config.yaml").write_text(node + yaml.safe_dump(content))
    (foreign / "result.json").unlink() if command[0] == "search" else None
    assert "a value of type 'binary', which is not plain" in the_error(capsys, *command)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("group", "target"),
    [
        ("search_space", "hwnas.store.workers._evaluate"),
        ("strategy", "hwnas.devices.board.write_json"),
        ("strategy", "hwnas.__main__.main"),
        ("dataset", "hwnas.store.workers.Ray"),
        ("dataset", "hwnas.pruning.run.StudyReport"),
        ("evaluator", "hwnas.store.evaluations.EvaluationStore"),
        ("device", "hwnas.build.name_of"),
        ("device", "hwnas.devices.profile.Path"),
        ("cluster", "os.system"),
        ("trainer", "subprocess.run"),
        ("evaluator", ["hwnas.spaces.toy.ToyCost"]),
        ("evaluator", None),
    ],
)
def test_targets_are_the_choices_of_their_group(group: str, target: object) -> None:
    with pytest.raises(ValueError, match="_target_"):
        locate(target, group)


def calls(marker: str) -> None:
    """A function that would do something."""
    Path(marker).touch()


def makes_a_path(marker: str) -> Path:
    """A function that makes something else than an evaluator."""
    Path(marker).touch()
    return Path(marker)


class Other:
    """A class that is no evaluator, and does something when it is set up."""

    def __init__(self, marker: str) -> None:
        Path(marker).touch()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("calls", "must be a class, or a function that says which class it returns"),
        ("makes_a_path", "must set up an Evaluator, not a Path"),
        ("Other", "must set up an Evaluator, not an Other"),
    ],
)
def test_kind_is_checked_before_the_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.setattr(building, "ALLOWED", (__name__,))
    marker = tmp_path / "ran"
    node = OmegaConf.create({"device": {"_target_": f"{__name__}.{name}", "marker": str(marker)}})
    with pytest.raises(ValueError, match=message):
        build(node.device, Evaluator)
    assert not marker.exists()


def test_no_variable_that_is_set_later_allows_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ALLOW_VARIABLE, __name__)
    with pytest.raises(ValueError, match="outside the allowed packages"):
        locate(f"{__name__}.Other", "device")


HYDRA = {
    "job": {"env_set": {"HWNAS_ALLOW_TARGETS": "os"}},
    "callbacks": {"mine": {"_target_": "hwnas.devices.board.write_json", "path": "ran", "content": {}}},
    "launcher": {"_target_": "subprocess.call", "args": "touch ran"},
    "job_logging": {"handlers": {"file": {"()": "pathlib.Path.touch", "self": "ran"}}},
    "hydra_logging": {"version": 1},
    "run": {"dir": "elsewhere"},
    "output_subdir": "../..",
    "sweeper": {"_target_": "os.system", "command": "touch ran"},
}


@pytest.mark.parametrize("key", HYDRA)
@pytest.mark.parametrize("place", ["global", "package", "defaults"])
def test_files_from_elsewhere_have_no_say_in_hydra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key: str, place: str
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    if place == "global":
        text = "# @package _global_\n" + yaml.safe_dump({"hydra": {key: HYDRA[key]}})
    elif place == "package":
        text = "# @package hydra\n" + yaml.safe_dump({key: HYDRA[key]})
    else:
        (folder / "inner.yaml").write_text(yaml.safe_dump({key: HYDRA[key]}))
        text = "defaults: [inner@_global_.hydra]\n"
    (folder / "theirs.yaml").write_text(text)
    words = ("search", "--config-dir", "mine", "experiment=theirs", "logger=csv")
    error = the_error(capsys, *words)
    assert f"sets hydra.{key}" in error
    assert "only the command line does that" in error
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_files_from_elsewhere_may_say_what_a_sweep_varies(tmp_path: Path) -> None:
    composing._check(OmegaConf.create({"hydra": {"sweeper": {"params": {"seed": "1,2"}}}}), "mine.yaml")
    for params in ({"hydra.job.env_set.A": "b"}, {"+hydra/launcher": "x"}):
        with pytest.raises(ValueError, match=r"sets hydra\.sweeper\.params"):
            composing._check(OmegaConf.create({"hydra": {"sweeper": {"params": params}}}), "mine.yaml")


def test_files_from_elsewhere_choose_no_launcher(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "theirs.yaml").write_text(
        "# @package _global_\ndefaults: [{override /hydra/launcher: joblib}]\n"
    )
    words = ("search", "--config-dir", "mine", "experiment=theirs", "logger=csv")
    assert "a file chooses hydra/launcher=joblib" in the_error(capsys, *words)


def test_configurations_outside_their_folder_are_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.yaml").write_text("password: hunter2\n")
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "theirs.yaml").write_text("defaults: [/../secret@dataset.name]\n")
    error = the_error(capsys, "search", "--config-dir", "mine", "experiment=theirs", "logger=csv")
    assert "..=secret is not known" in error
    assert "hunter2" not in error


@pytest.mark.parametrize(
    "added",
    [{"hydra.callbacks.x._target_": "os.abort"}, {"defaults": ["hydra/launcher/x"]}],
    ids=["hydra", "defaults"],
)
def test_a_resumed_configuration_has_no_say_in_hydra(
    foreign: Path, capsys: pytest.CaptureFixture[str], added: dict[str, Any]
) -> None:
    (foreign / "result.json").unlink()
    change(foreign, added)
    assert "is not the configuration of a run" in the_error(capsys, "search", "resume=foreign")


def test_a_resumed_folder_replaces_no_configuration_of_hydra(foreign: Path, tmp_path: Path) -> None:
    """Files beside the configuration, with names of Hydra's own or of ours, are not looked at."""
    (foreign / "result.json").unlink()
    for name in ("hydra/config", "hydra/job_logging/hwnas", "hydra/output/default", "hydra/launcher/basic"):
        path = foreign / ".hydra" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("_target_: pathlib.Path.touch\nself: ran\n")
    assert main(["search", "resume=foreign"]) == 0
    assert (foreign / "result.json").is_file()
    assert not (tmp_path / "ran").exists()


def test_modules_in_the_working_folder_of_a_foreign_run_are_not_imported(
    foreign: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interactive Python looks for modules in the working folder, which a folder of a run names."""
    here = os.getcwd()
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    monkeypatch.delenv("PYTHONSAFEPATH")
    change(foreign, {"hydra.runtime.cwd": str(foreign)}, "hydra.yaml")
    resume_arguments(["resume=foreign"], "search")
    assert os.getcwd() == str(foreign)
    assert sys.path[0] == here
    assert os.environ["PYTHONSAFEPATH"] == "1"


@pytest.mark.parametrize(
    ("name", "folder"),
    [("archive.jsonl", False), (".hydra/lock", False), ("network", True), (".hydra", True)],
)
def test_a_resumed_run_writes_nothing_through_links(
    foreign: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, folder: bool
) -> None:
    (foreign / "result.json").unlink()
    secret = tmp_path / "secret"
    if (link := foreign / name).exists():
        link.rename(secret)
    elif folder:
        secret.mkdir()
    else:
        secret.write_text("mine")
    before = {path: path.read_bytes() for path in [secret, *secret.rglob("*")] if path.is_file()}
    link.symlink_to(secret)
    assert f"{link} is a link that leads out of the run's folder, to {secret}" in the_error(
        capsys, "search", "resume=foreign"
    )
    assert {path: path.read_bytes() for path in [secret, *secret.rglob("*")] if path.is_file()} == before
    assert not (foreign / "result.json").exists()


def test_neither_does_one_from_python(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("mine")
    (folder := tmp_path / "run").mkdir()
    (folder / "archive.jsonl").symlink_to(tmp_path / "secret")
    with (
        pytest.raises(ValueError, match=r"archive\.jsonl is a link that leads out of the run's folder"),
        own_folder(folder, "search.log", ["problem.json"]),
    ):
        pass
    assert not (folder / ".hydra").exists()


def test_a_folder_behind_a_link_and_links_within_it_are_fine(foreign: Path, tmp_path: Path) -> None:
    (foreign / "result.json").unlink()
    (foreign / "metrics.csv").rename(foreign / "figures")
    (foreign / "metrics.csv").symlink_to("figures")
    logs = foreign / "wandb" / "offline-run-1" / "logs"
    logs.mkdir(parents=True)
    (logs / "debug-core.log").symlink_to(tmp_path / "wandb" / "core.log")  # of Weights & Biases' own
    (foreign / "circle").symlink_to("circle")
    (tmp_path / "mine").symlink_to(foreign)
    assert main(["search", "resume=mine"]) == 0
    assert (foreign / "result.json").is_file()


@pytest.mark.parametrize("cwd", [".", "mine", 3, ["/"], "${oc.env:HOME}"])
def test_a_working_folder_is_absolute(foreign: Path, cwd: object) -> None:
    change(foreign, {"hydra.runtime.cwd": cwd}, "hydra.yaml")
    assert working_folder(foreign) is None


def test_a_run_that_is_read_does_not_ask_the_environment(
    foreign: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the page nor an error has what a variable of the reader's says; own values may be named."""
    monkeypatch.setenv("SECRET", "hunter2")
    change(foreign, {"hydra.runtime.choices.strategy": "${oc.env:SECRET}"}, "hydra.yaml")
    change(foreign, {"dataset.name": "${oc.env:SECRET}", "seed": "${generations}"})
    assert main(["report", "foreign"]) == 0
    assert "hunter2" not in (foreign / "report.html").read_text()
    change(foreign, {"search_space.num_ops": "${seed}${oc.decode:${oc.env:SECRET}}"})
    error = the_error(capsys, "report", "foreign")
    assert "num_ops" in error
    assert "hunter2" not in error


def test_resolvers_are_missing_values(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "a: '${ oc.env : HOME}'\nb: ${c}\nc: 3\nd: '${oc.select:c,1}'\ne: ['${now:%Y}']\n"
    )
    found = read_config(tmp_path / "c.yaml")
    assert (found.b, found.d) == (3, 3)
    assert OmegaConf.is_missing(found, "a")
    assert OmegaConf.is_missing(found.e, 0)


def bomb() -> str:
    """Nine levels of nine aliases each: 387 million values in 500 bytes."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 9)]
    return "\n".join(lines)


def merges() -> str:
    """The same by keys that merge mappings."""
    return bomb().replace("[x, x, x, x, x, x, x, x, x]", "{b: 1}").replace("[", "{<<: [").replace("]", "]}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (bomb(), f"more than {MAX_YAML_VALUES:,} values once its aliases are written out"),
        (merges(), "values once its aliases"),
        ("a: &a [*a, *a]", "values once its aliases"),
        ("[" * 60 + "]" * 60, "inside each other"),
        ("[" * 5_000, "too deep"),
        ("a: !!python/object/apply:os.system [ls]", "'python/object/apply:os.system', which is not plain"),
        ("a: !!python/object/apply:pathlib.Path [ls]", "which is not plain"),
        ("a: !!set {b}", "'set', which is not plain"),
        ("a: !!omap [b: 1]", "'omap', which is not plain"),
        ("a: !!binary aGk=", "'binary', which is not plain"),
        ("a: !mine b", "'!mine', which is not plain"),
        ("a: " + "9" * 5000, "a number of more than 20 digits"),
        ("a: 0x" + "f" * 100, "a number of more than 20 digits"),
        ("a: !!int " + "1:" * 50 + "1", "a number of more than 20 digits"),
        ("a: 1\na: 2", "found duplicate key a"),
        ("? [1]\n: 2", "unhashable key"),
        ("a: 1\n---\nb: 2", "but found another document in line 2"),
        ("just words", "a mapping is needed, not str"),
        ("\0", "unacceptable character"),
    ],
)  # fmt: skip
def test_yaml_is_plain_and_bounded(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "theirs.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"theirs\.yaml is not readable YAML") as error:
        plain_yaml(path)
    assert "\n" not in str(error.value)
    assert message in str(error.value)


def test_yaml_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yaml"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(ValueError, match="it has more than 1,048,576 bytes"):
        plain_yaml(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "too deep inside each other"),
        ("[" * 60 + "]" * 60, "more than 40 lists or mappings"),
        ("9" * 400, "a number of 400 digits"),
    ],
)
def test_json_is_bounded(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_an_own_class_needs_its_variable_and_a_strategy_is_one() -> None:
    node = OmegaConf.create({"strategy": {"_target_": "hwnas.spaces.toy.ToyCost", "metric": "val_acc"}})
    with pytest.raises(ValueError, match="is no choice of strategy"):
        build(node.strategy, Strategy)
