"""Commands that are refused: one line that says what is wrong and what would be right, and no folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwnas import compose
from hwnas.__main__ import main

TOY = ("experiment=toy", "logger=csv", "generations=1", "strategy.population_size=4")
DISCONNECTED = "|none~0|+|none~0|none~1|+|none~0|nor_conv_1x1~1|none~2|"
SMALL = ("search_space.channels=4", "search_space.num_cells=1", "trainer.epochs=1", "logger=csv")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line of a command that is refused and has left nothing but what was there."""
    before = sorted(Path.cwd().rglob("*"))
    capsys.readouterr()
    try:
        code = main(list(arguments))
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1, said
    left = [path for path in Path.cwd().rglob("*") if path not in before and path.is_file()]
    assert left == []
    assert not any(path.is_dir() for path in Path.cwd().glob("multirun/runs/*/*"))
    return said.rstrip("\n")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("search resume=", "resume= names no folder; a new run goes without it"),
        ("train run=", "run= names no folder"),
        ("search +foo=1", "unknown setting 'foo' (hwnas search --help)"),
        ("search +generation=1", "unknown setting 'generation'; did you mean generations?"),
        ("search +store.place=1", "unknown setting 'store.place'"),
        ("train +generations=1 arch=evnas_a", "unknown setting 'generations'"),
        (
            "search logger=csv +logger.foo=1",
            "unknown setting 'logger.foo'; did you mean logger.mode or ",
        ),
        ("train logger=wandb +logger.entity=me arch=evnas_a", "unknown setting 'logger.entity'"),
        ("prune logger=csv +logger.Mode=online", "unknown setting 'logger.Mode'; did you mean logger.mode"),
        ("search ~strategy", "hwnas search needs strategy, which the configuration lacks"),
        ("search ~store.url", "hwnas search needs store.url, which the configuration lacks"),
        (
            "search limits=[3]",
            "limits=[3] does not fit: limits has settings of its own, e.g. limits.latency_ms",
        ),
        (
            "search dataset=/path/x",
            "dataset=/path/x is not known; your own images are dataset=folder dataset.path=/path/x; ",
        ),
        ("search dataset=mine.npz", "; your own images are dataset=npz dataset.path=mine.npz; choices: "),
        ("search +seed=3", "+seed: there is a setting seed already; leave out the +"),
        ("search +limits.x='${y}'", "limits.x: Interpolation key 'y' not found"),
        (
            "search search_space=darts evaluator=rmi evaluator.flops_weight=-1",
            "evaluator.flops_weight must be a number of at least 0, not -1",
        ),
        (
            "train search_space=nasbench201 arch=evnas_a",
            "arch=evnas_a is an architecture of search_space=darts, not of nasbench201",
        ),
        (
            "train experiment=toy",
            "experiment=toy is one of hwnas search, not of hwnas train: hwnas search experiment=toy",
        ),
        (
            "search experiment=train_evnas_a_small",
            "is one of hwnas train, not of hwnas search: hwnas train experiment=train_evnas_a_small",
        ),
        ("search experiment=beta_vae_mnist_small", "hwnas prune experiment=beta_vae_mnist_small"),
        (
            "search dataset=npz dataset.path=images",
            "images is a folder; a file is needed here (dataset=folder ",
        ),
        (
            "search dataset=imagenet dataset.path=images",
            "images has no folder train and no val (dataset=folder ",
        ),
        ("search dataset=images", "; your own images are dataset=folder dataset.path=images; choices: "),
        (
            "search dataset=folder",
            "dataset=folder needs dataset.path=<folder with a folder of images per class>",
        ),
        ("search dataset=folder dataset.path=nowhere", "dataset.path=nowhere is not a folder; looked for "),
        (
            "search dataset=folder dataset.path=images",
            "images has no folders; a classifier needs images of at ",
        ),
        ("profile compare a.json b.json to=c.html", "only prints and takes no to=c.html; show draws a page"),
    ],
)
def test_commands_are_refused_in_one_line(command: str, message: str, here: Path, capsys) -> None:
    (here / "images").mkdir()
    for name in ("a.json", "b.json"):
        (here / name).write_text("{}")
    assert message in refused(capsys, *command.split())


def test_a_disconnected_network_is_not_trained(capsys) -> None:
    said = refused(capsys, "train", *SMALL, f"arch='{DISCONNECTED}'")
    assert said.endswith(" has no path from input to output: it answers the same for all images")


def test_a_folder_of_another_command_is_not_resumed(capsys) -> None:
    assert main(["search", *TOY, "hydra.run.dir=run"]) == 0
    said = refused(capsys, "train", "resume=run")
    assert said.endswith("/run holds a run of `hwnas search`, not of `hwnas train`")


def test_settings_of_python_are_checked_too() -> None:
    with pytest.raises(ValueError, match=r"limits=\[3\] does not fit: limits has settings of its own"):
        compose(*TOY, "limits=[3]")
    with pytest.raises(ValueError, match=r"unknown setting 'foo'"):
        compose(*TOY, "+foo=1")


def test_optuna_needs_a_setting_to_vary(here: Path, capsys) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    said = refused(capsys, "search", "-m", *TOY, "hydra/sweeper=optuna", "hydra.sweeper.n_trials=2")
    assert "hydra/sweeper=optuna has no setting to vary, so all trials would be the same" in said


@pytest.mark.parametrize(
    ("settings", "setting", "most"),
    [
        ("evaluator=rmi evaluator.batch_size=49", "evaluator.batch_size=49", 48),
        ("evaluator=rmi", "evaluator.reference.batch_size=64", 48),
        ("evaluator=zero_cost evaluator.batch_size=49", "evaluator.batch_size=49", 48),
        ("evaluator=train", "evaluator.training.batch_size=64", 48),
        ("evaluator=supernet", "evaluator.training.batch_size=64", 48),
        ("evaluator=train evaluator.training.batch_size=48", "trainer.batch_size=64", 60),
    ],
)
def test_the_batch_that_is_too_large_is_named_before_anything_is_done(
    settings: str, setting: str, most: int, here: Path, capsys
) -> None:
    images = np.zeros((60, 8, 8), np.uint8)
    labels = np.arange(60) % 2
    np.savez(here / "mine.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    own = ("dataset=npz", "dataset.path=mine.npz", "device=flops", "logger=csv", *settings.split())
    said = refused(capsys, "search", *own, "search_space.channels=4", "search_space.num_cells=1")
    assert said == (
        f"hwnas search: error: {setting} is more than the {most} training images; it can be at most {most}"
    )


def main_code(*arguments: str) -> int:
    try:
        return main(list(arguments))
    except SystemExit as stop:
        return int(str(stop.code))


def test_a_benchmark_of_other_images_names_those_it_has(table_path: Path, capsys) -> None:
    said = refused(capsys, "search", "evaluator=table", "device=flops", "logger=csv")
    assert "has no accuracies of digits, but of cifar10, cifar100" in said
