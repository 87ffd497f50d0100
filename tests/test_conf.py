"""Every yaml composes, names a class that exists, and sets exactly what that class takes."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from hwnas.build import build, conf_folder, locate
from hwnas.spaces.presets import architecture

CONF = conf_folder()
CHOICES = sorted(path for path in CONF.glob("*/*.yaml") if path.parent.name not in ("experiment", "hydra"))
GROUPS = {
    "search": ("search_space", "strategy", "evaluator", "device", "dataset", "trainer", "cluster"),
    "train": ("search_space", "dataset", "trainer"),
    "prune": ("model", "dataset", "training", "pruning"),
}
OFFERED = {
    "evaluator",
    "device",
    "space",
    "objectives",
    "limits",
    "seed",
    "generations",
    "dataset",
    "store_dir",
    "announce",
    "warn",
    "folder",
    "kept",
    "image_shape",
    "num_classes",
    "workers",
}


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_keys_are_the_constructors(path: Path) -> None:
    node = OmegaConf.to_container(OmegaConf.load(path))
    if path.parent.name == "logger":
        assert "wandb" in node
        return
    target = locate(node.pop("_target_"), path.parent.name)
    parameters = inspect.signature(target).parameters
    assert set(node) <= set(parameters)
    needed = {name for name, p in parameters.items() if p.default is inspect.Parameter.empty}
    assert needed <= set(node) | OFFERED


@pytest.mark.parametrize("path", sorted((CONF / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_experiments_compose_and_say_their_command(path: Path) -> None:
    lines = path.read_text().splitlines()
    assert lines[0] == "# @package _global_"
    command = lines[1].split()[2]
    assert command in GROUPS
    assert lines[1].startswith(f"# hwnas {command} ")
    assert f"experiment={path.stem}" in lines[1]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, [f"experiment={path.stem}"])
    for group in GROUPS[command]:
        assert locate(config[group]._target_, group)


def test_experiments_of_final_training_fit_together() -> None:
    for name in ("cifar10", "cifar100", "imagenet", "small"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            config = compose("train", [f"experiment=train_evnas_a_{name}"])
        shape = (3, 224, 224) if name == "imagenet" else (3, 32, 32)
        space = build(config.search_space, image_shape=shape, num_classes=10)
        build(config.trainer).check(auxiliary=space.auxiliary, drop_path=space.drop_path)
        assert space.check(architecture(space, config.arch))
        # Theirs: C=36 and 20 cells, on ImageNet C=48 and 14 cells; ours for minutes
        assert (space.channels, space.num_cells) == {"imagenet": (48, 14), "small": (8, 5)}.get(
            name, (36, 20)
        )


CUTOUT = {  # in the authors' code: 16 pixels on the DARTS space, but for NEvoNAS; none on NAS-Bench-201
    **{f"{method}_darts": 16 for method in ("cmanas", "evnas", "pevonas")},
    "nevonas_darts": 0,
    **{f"{method}_nasbench201": 0 for method in ("cmanas", "evnas", "nevonas", "pada", "pevonas")},
    **{f"{method}_small": 0 for method in ("cmanas", "evnas", "nevonas", "pada", "pevonas")},
    "train_evnas_a_cifar10": 16,
    "train_evnas_a_cifar100": 16,
}


@pytest.mark.parametrize("name", CUTOUT)
def test_experiments_cut_what_the_papers_cut(name: str) -> None:
    command = "train" if name.startswith("train") else "search"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, [f"experiment={name}"])
    cutout = config.dataset.cutout if command == "train" else config.evaluator.cutout
    assert cutout == CUTOUT[name]
    assert (config.dataset.crop, config.dataset.flip) == ((2, True) if "small" in name else (4, True))


def test_every_search_with_a_supernet_says_what_it_cuts() -> None:
    for path in (CONF / "experiment").glob("*.yaml"):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            command = path.read_text().splitlines()[1].split()[2]
            config = compose(command, [f"experiment={path.stem}"])
        if command == "search" and "supernet" in config.evaluator._target_:
            assert path.stem in CUTOUT


SPLIT = {  # in the authors' code: index lists of NAS-Bench-201, but for EvNAS on the DARTS space
    **{f"{method}_nasbench201": "benchmark" for method in ("cmanas", "evnas", "nevonas", "pada", "pevonas")},
    **{f"{method}_darts": "benchmark" for method in ("cmanas", "nevonas", "pevonas")},
    "evnas_darts": "ordered",
}


@pytest.mark.parametrize("name", CUTOUT)
def test_experiments_of_supernets_validate_on_what_the_papers_do(name: str) -> None:
    command = "train" if name.startswith("train") else "search"
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(command, [f"experiment={name}"])
    assert config.dataset.split == SPLIT.get(name, "seeded")


@pytest.mark.parametrize(
    ("name", "images"), [("mo_hdnas", "all"), ("hw_evrsnas", "all"), ("mo_hdnas_small", "train")]
)
def test_published_references_see_all_training_images(name: str, images: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose("search", [f"experiment={name}"]).evaluator.images == images


@pytest.mark.parametrize("command", ["search", "train", "prune"])
def test_commands_compose(command: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        assert compose(command).seed == 0


@pytest.mark.parametrize("dataset", ["cifar10", "cifar100"])
def test_the_benchmark_of_twelve_epochs_charges_twelve(dataset: str) -> None:
    """Also on other images of the benchmark, whose name is not that of its columns."""
    for option, column in ((dataset, dataset), ("imagenet16_120", "imagenet16")):
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("search", [f"experiment=cmanas_h12_{dataset}", f"dataset={option}"])
        assert (cfg.evaluator.epochs, cfg.evaluator.column) == (12, f"{column}_valid_12")


ABLATIONS = re.findall(
    r"`hwnas (search .*?)`", (Path(__file__).parents[1] / "docs" / "faithful.md").read_text(encoding="utf-8")
)


@pytest.mark.parametrize("command", ABLATIONS)
def test_published_ablations_are_settings_of_experiments(command: str) -> None:
    """Each command of docs/faithful.md composes, and changes what it sets."""
    name, experiment, *changes = command.split()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        plain, changed = compose(name, [experiment]), compose(name, [experiment, *changes])
    assert locate(changed.strategy._target_, "strategy")
    assert OmegaConf.to_container(plain, resolve=False) != OmegaConf.to_container(changed, resolve=False)


def test_all_published_ablations_have_a_command() -> None:
    assert len(ABLATIONS) == 11
