"""`hwnas train`: train one architecture from scratch and test it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from hwnas.build import build
from hwnas.cli.job import Job, space_and_images
from hwnas.core import Interrupted, Seed, check_setting
from hwnas.data.folder import ImageFolder
from hwnas.data.images import Images, check_batch
from hwnas.files import read_json, shaped, write_json
from hwnas.reports.published import of_architecture
from hwnas.runs.display import Display
from hwnas.runs.folder import choices, take_from_run
from hwnas.runs.result import Trained, read_result
from hwnas.runs.tracking import Tracker
from hwnas.searches.outcome import tested_in_words
from hwnas.spaces.capabilities import HasNetworks
from hwnas.spaces.presets import architecture
from hwnas.training.checkpoint import Session
from hwnas.training.final import train_network
from hwnas.training.recipe import Recipe, forget_checkpoint
from hwnas.training.teacher import teacher_in


def settle(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Put what `run=` stands for into the configuration: a resumed training must not depend on that folder.

    Args:
        cfg: Of `hwnas train`; changed in place.
        overrides: Those of the command.

    Raises:
        ValueError: Both or none of `arch` and `run`, or no finished search in `run`.
    """
    if (cfg.arch is None) == (cfg.run is None):
        raise ValueError("give one of arch='<architecture>' and run=<folder of a search>")
    if cfg.run is not None:
        run = Path(str(cfg.run)).expanduser()
        take_from_run(cfg, run, overrides)
        cfg.arch, cfg.run = best_of(run), None


def main(job: Job) -> float:
    """The command; returns the test accuracy in 0..1."""
    cfg, folder = job.cfg, job.folder
    display = Display()
    finished = folder / "result.json"
    if finished.is_file():
        display.say(f"this run is finished already; see {finished}")
        forget_checkpoint(folder / "network")
        shaped(result := read_json(finished), {"test_acc": float})
        return float(result["test_acc"])
    seed = check_setting("seed", Seed, cfg.seed)
    space, dataset = space_and_images(cfg, display)
    if isinstance(dataset, Images) and dataset.validates_on_test_images:
        display.warn(dataset.protocol)
    if not isinstance(space, HasNetworks):
        raise ValueError(f"the {space.name} space has no networks to train")
    if space.note:
        display.doubt(space.note)
    recipe = build(cfg.trainer, Recipe)
    if not recipe.epochs:
        raise ValueError("trainer.epochs must be at least 1 to train")
    recipe.check(auxiliary=space.auxiliary, drop_path=space.drop_path, teacher=True)
    if recipe.teacher is not None:
        teacher_in(recipe.teacher, space.image_shape, space.num_classes)
    if not isinstance(dataset, Images | ImageFolder):
        raise ValueError(f"dataset={dataset.name} has no images to train on; choose another")
    check_batch("trainer.batch_size", recipe.batch_size, dataset.size("all"), recipe.devices)
    text = str(cfg.arch)
    genotype = architecture(space, text)
    if not space.is_connected([genotype])[0]:
        raise ValueError(f"arch={text} has no path from input to output: it answers the same for all images")

    tracker = Tracker(
        folder,
        cfg.logger,
        job.settings,
        run_id=folder.name.replace("_", "-"),
        job="train",
        warn=display.warn,
    )
    completed = False
    try:
        display.say(f"training {space.to_str(genotype)} on {choices(folder)['dataset']}, seed {seed}")
        with display.phase("training", "training"):
            network = train_network(
                space,
                genotype,
                dataset,
                recipe,
                Session(folder / "network", announce=display.say, warn=display.doubt),
                seed=seed,
            )
        with (folder / "network" / "curves.csv").open() as file:
            for row in csv.DictReader(file):
                tracker.log(int(row["epoch"]) - 1, {key: float(value) for key, value in row.items()})
        tracker.summary(network)
        write_json(finished, {"status": "finished", "arch": text, **network})
        forget_checkpoint(folder / "network")
        completed = True
        display.say(f"{tested_in_words(Trained(**network))} after {network['seconds']:.0f} s")
        if known := of_architecture(text, dataset.benchmark if isinstance(dataset, Images) else dataset.name):
            display.say(known)
        display.say(f"weights: {folder / network['weights']}")
        display.say(f"next: hwnas export run={folder}")
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; resume with: hwnas train resume={folder}") from None
    finally:
        tracker.finish(failed=not completed)
    return float(network["test_acc"])


def best_of(folder: Path) -> str:
    """The text of the best feasible architecture of a finished search.

    Raises:
        ValueError: No finished search there, or it found none.
    """
    path = folder / "result.json"
    if not path.is_file():
        hint = (
            f"; it is unfinished: hwnas search resume={folder}"
            if (folder / "archive.jsonl").is_file()
            else ""
        )
        raise ValueError(f"run={folder} has no result.json{hint}")
    best = read_result(path).best
    if best is None:
        raise ValueError(f"the search in {folder} found no network that keeps its limits")
    return best.arch
