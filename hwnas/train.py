"""`hwnas train`: train one architecture from scratch and test it."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hwnas.config import build, choices, take_from_run
from hwnas.core import Genotype, Interrupted, whole_number
from hwnas.display import Display
from hwnas.store import read_result


def train_network(
    space: Any, genotype: Genotype, dataset: Any, recipe: Any, *, seed: int, folder: Path, display: Display
) -> dict[str, Any]:
    """Train an architecture on all training images and test it; writes the folder, returns the figures.

    The folder gets weights.pt (a state dict), architecture.json (what to build them into, and the figures)
    and curves.csv (figures per epoch).

    Args:
        space: The space, with the width and depth to train.
        genotype: The architecture.
        dataset: Images; the only place where test images are used.
        recipe: How to train.
        seed: Seed of initialisation, shuffling and augmentation.
        folder: Created if needed.
        display: Where progress is shown.
    """
    import torch

    from hwnas.models.classifier import accuracy, fit

    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    def on_epoch(figures: dict[str, float]) -> None:
        epoch = int(figures["epoch"])
        if epoch % max(1, recipe.epochs // 5) == 0:
            display.say(
                f"  epoch {epoch}/{recipe.epochs}  loss {figures['loss']:.3f}  "
                f"training accuracy {figures['train_acc']:.2%}"
            )

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = space.network(genotype)
        module = fit(network, dataset, recipe, part="all", seed=seed, folder=folder, on_epoch=on_epoch)
    test_acc = accuracy(module, dataset, "test")
    figures = {
        "arch": space.to_str(genotype),
        "genotype": list(genotype),
        "search_space": space.name,
        "dataset": dataset.name,
        **{name: float(values[0]) for name, values in space.static_metrics([genotype]).items()},
        "channels": space.channels,
        "num_cells": space.num_cells,
        "image_shape": list(space.image_shape),
        "num_classes": space.num_classes,
        "mean": module.mean.flatten().tolist(),
        "std": module.std.flatten().tolist(),
        "epochs": recipe.epochs,
        "seed": seed,
        "test_acc": test_acc,
    }
    torch.save(network.state_dict(), folder / "weights.pt")
    (folder / "architecture.json").write_text(json.dumps(figures, indent=1) + "\n")
    with (folder / "curves.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["epoch", "loss", "train_acc", "lr"])
        writer.writeheader()
        writer.writerows(module.history)
    return {
        "test_acc": test_acc,
        "epochs": recipe.epochs,
        "weights": f"{folder.name}/weights.pt",
        "seconds": time.perf_counter() - start,
    }


def main(cfg: DictConfig) -> float:
    """The command; returns the test accuracy in 0..1."""
    from hydra.core.hydra_config import HydraConfig

    from hwnas.track import Tracker

    folder = Path(HydraConfig.get().runtime.output_dir)
    display = Display()
    seed = whole_number("seed", cfg.seed, least=0)
    if (cfg.arch is None) == (cfg.run is None):
        raise ValueError("give one of arch='<architecture>' and run=<folder of a search>")
    if cfg.run is not None:
        take_from_run(cfg, Path(str(cfg.run)).expanduser(), HydraConfig.get().overrides.task)
    dataset = build(cfg.dataset)
    space = build(cfg.search_space, image_shape=dataset.image_shape, num_classes=dataset.num_classes)
    if not hasattr(space, "network"):
        raise ValueError(f"the {space.name} space has no networks to train")
    recipe = build(cfg.trainer)
    if not recipe.epochs:
        raise ValueError("trainer.epochs must be at least 1 to train")
    text = str(cfg.arch) if cfg.arch is not None else best_of(Path(cfg.run).expanduser())
    genotype = space.from_str(text)

    config = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(config, dict)
    tracker = Tracker(
        folder,
        cfg.logger,
        {str(key): value for key, value in config.items()},
        run_id=folder.name.replace("_", "-"),
        job="train",
        warn=display.warn,
    )
    completed = False
    try:
        display.say(f"training {space.to_str(genotype)} on {choices(folder)['dataset']}, seed {seed}")
        with display.phase("training", "training"):
            network = train_network(
                space, genotype, dataset, recipe, seed=seed, folder=folder / "network", display=display
            )
        with (folder / "network" / "curves.csv").open() as file:
            for row in csv.DictReader(file):
                tracker.log(int(row["epoch"]) - 1, {key: float(value) for key, value in row.items()})
        tracker.summary(network)
        (folder / "result.json").write_text(
            json.dumps({"status": "finished", "arch": text, **network}, indent=1)
        )
        completed = True
        display.say(f"test accuracy {network['test_acc']:.2%} after {network['seconds']:.0f} s")
        display.say(f"weights: {folder / network['weights']}")
    except KeyboardInterrupt:
        raise Interrupted("interrupted; run the same command again to start over") from None
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
    best = read_result(path)["best"]
    if not best:
        raise ValueError(f"the search in {folder} found no network that keeps its limits")
    return str(best["arch"])
