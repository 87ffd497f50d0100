"""Every yaml composes, names a class that exists, and sets exactly what that class takes."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hwnas.config import conf_folder, locate

CONF = conf_folder()
CHOICES = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name not in ("experiment", "hydra"))
OFFERED = {
    "space",
    "objectives",
    "limits",
    "seed",
    "dataset",
    "store_dir",
    "announce",
    "folder",
    "image_shape",
    "num_classes",
}


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_keys_are_the_constructors(path: Path) -> None:
    node = OmegaConf.to_container(OmegaConf.load(path))
    if path.parent.name == "logger":
        assert "wandb" in node
        return
    target = locate(node.pop("_target_"))
    parameters = inspect.signature(target).parameters
    assert set(node) <= set(parameters)
    needed = {name for name, p in parameters.items() if p.default is inspect.Parameter.empty}
    assert needed <= set(node) | OFFERED


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_compose_and_say_their_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith("# hwnas search ")
    assert f"experiment={path.stem}" in lines[1]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("search", [f"experiment={path.stem}"])
    for group in ("search_space", "strategy", "evaluator", "device", "dataset", "trainer"):
        assert locate(config[group]._target_)


@pytest.mark.parametrize("command", ["search", "train"])
def test_commands_compose(command: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose(command).seed == 0
