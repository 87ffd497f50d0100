"""`hwnas train`: train one architecture from scratch and test it."""

from __future__ import annotations

import csv
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hwnas.config import build, choices, space_of, suggestion, take_from_run
from hwnas.core import Genotype, Interrupted, SearchSpace, is_near_chance, whole_number
from hwnas.data.images import Images
from hwnas.display import Display
from hwnas.files import remove, write_csv, write_json, write_text, write_torch
from hwnas.foreign import read_json, shaped
from hwnas.models.recipe import CHECKPOINT
from hwnas.published import of_architecture
from hwnas.store import read_result

SIZES = ("channels", "num_cells", "variant")
"""Settings of spaces that a network is rebuilt from; spaces have some of them."""


def train_network(
    space: Any, genotype: Genotype, dataset: Any, recipe: Any, *, seed: int, folder: Path, display: Display
) -> dict[str, Any]:
    """Train an architecture on all training images and test it; writes the folder, returns the figures.

    The folder gets weights.pt (a state dict), architecture.json (what to build them into, and the figures),
    curves.csv and curves.svg (figures per epoch). Until `forget_checkpoint`, it holds a checkpoint too; a
    training that was interrupted goes on from it, and ends like one that was not.

    Args:
        space: The space, with the width and depth to train.
        genotype: The architecture.
        dataset: Images; the only place where test images are used.
        recipe: How to train.
        seed: Seed of initialisation, shuffling and augmentation.
        folder: Created if needed.
        display: Where progress is shown.

    Raises:
        ValueError: What `models.classifier.fit` raises.
    """
    import torch

    from hwnas.models.classifier import accuracy_and_chance, fit

    folder.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()

    def on_epoch(figures: dict[str, float]) -> None:
        epoch = int(figures["epoch"])
        if epoch % max(1, recipe.epochs // min(20, max(5, recipe.epochs // 10))) == 0:
            display.say(
                f"  epoch {epoch}/{recipe.epochs}  loss {figures['loss']:.3f}  "
                f"training accuracy {figures['train_acc']:.2%}"
            )

    what = identity(space, genotype, dataset)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = space.network(genotype)
        module = fit(
            network,
            dataset,
            recipe,
            part="all",
            seed=seed,
            folder=folder,
            identity=what,
            on_epoch=on_epoch,
            announce=display.say,
        )
    test_acc, chance = accuracy_and_chance(module, dataset, "test")
    if is_near_chance(test_acc, chance):
        display.doubt(
            f"the trained network answers {test_acc:.1%} of the test images right, a guess {chance:.1%}; "
            f"train it longer (trainer.epochs={recipe.epochs}, .max_steps={recipe.max_steps}), with another "
            f"trainer.lr ({recipe.lr:g}), or look at the labels"
        )
    figures = {
        **what,
        **{name: float(values[0]) for name, values in space.static_metrics([genotype]).items()},
        "mean": module.mean.flatten().tolist(),
        "std": module.std.flatten().tolist(),
        "epochs": recipe.epochs,
        "seed": seed,
        "test_acc": test_acc,
    }
    write_torch(folder / "weights.pt", network.state_dict())
    write_json(folder / "architecture.json", figures)
    columns = ("epoch", "loss", "train_acc", "lr")
    write_csv(folder / "curves.csv", [columns, *([row[name] for name in columns] for row in module.history)])
    write_text(folder / "curves.svg", curves_svg(module.history, test_acc))
    return {
        "test_acc": test_acc,
        "epochs": recipe.epochs,
        "weights": f"{folder.name}/weights.pt",
        "seconds": time.perf_counter() - start,
    }


def forget_checkpoint(folder: Path) -> None:
    """Delete the checkpoint of a network whose figures are written down."""
    remove(folder / CHECKPOINT)


def identity(space: Any, genotype: Genotype, dataset: Any) -> dict[str, Any]:
    """What a trained network is, and is rebuilt from, JSON-able; the first part of architecture.json."""
    return {
        "arch": space.to_str(genotype),
        "genotype": list(genotype),
        "search_space": space.name,
        "dataset": dataset.name,
        **{name: getattr(space, name) for name in SIZES if hasattr(space, name)},
        "image_shape": list(space.image_shape),
        "num_classes": space.num_classes,
    }


def curves_svg(history: Sequence[Mapping[str, float]], test_acc: float) -> str:
    """Learning curves as an SVG picture: training accuracy and loss per epoch, and the final test accuracy.

    Args:
        history: Per epoch "epoch", "loss" and "train_acc".
        test_acc: In 0..1, drawn as a point at the last epoch.
    """
    left, top, width, height = 56.0, 16.0, 520.0, 220.0
    last = max(2, len(history))
    most = max(row["loss"] for row in history)

    def x(epoch: float) -> float:
        return round(left + width * (epoch - 1) / (last - 1), 1)

    def y(share: float) -> float:
        return round(top + height * (1 - share), 1)

    def line(colour: str, shares: Sequence[float]) -> str:
        points = " ".join(f"{x(number)},{y(share)}" for number, share in enumerate(shares, start=1))
        return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'

    parts = [
        f'<line x1="{left}" x2="{left + width}" y1="{y(share)}" y2="{y(share)}" stroke="#ddd"/>'
        f'<text x="{left - 6}" y="{y(share) + 4}" text-anchor="end">{share:.0%}</text>'
        f'<text x="{left + width + 6}" y="{y(share) + 4}">{share * most:.2f}</text>'
        for share in (0.0, 0.25, 0.5, 0.75, 1.0)
    ]
    parts += [
        line("#d55e00", [row["loss"] / most if most else 0.0 for row in history]),
        line("#0072b2", [row["train_acc"] for row in history]),
        f'<circle cx="{x(len(history))}" cy="{y(test_acc)}" r="4" fill="#009e73"/>',
        f'<text x="{left}" y="{top + height + 18}">1</text>',
        f'<text x="{x(len(history))}" y="{top + height + 18}" text-anchor="end">epoch {len(history)}</text>',
    ]
    legend = (("#0072b2", "training accuracy"), ("#d55e00", "loss"), ("#009e73", f"test {test_acc:.2%}"))
    parts += [
        f'<text x="{left + 170 * number}" y="{top + height + 40}" fill="{colour}">{label}</text>'
        for number, (colour, label) in enumerate(legend)
    ]
    size = f'width="{left + width + 60:.0f}" height="{top + height + 52:.0f}"'
    style = 'font-family="sans-serif" font-size="12"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>' + "".join(parts) + "</svg>\n"


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


def main(cfg: DictConfig) -> float:
    """The command; returns the test accuracy in 0..1."""
    from hydra.core.hydra_config import HydraConfig

    from hwnas.track import Tracker

    folder = Path(HydraConfig.get().runtime.output_dir)
    display = Display()
    finished = folder / "result.json"
    if finished.is_file():
        display.say(f"this run is finished already; see {finished}")
        forget_checkpoint(folder / "network")
        shaped(result := read_json(finished), {"test_acc": float})
        return float(result["test_acc"])
    seed = whole_number("seed", cfg.seed, least=0)
    dataset = build(cfg.dataset)
    if isinstance(dataset, Images) and dataset.validates_on_test_images:
        display.warn(dataset.protocol)
    space = build(
        cfg.search_space, SearchSpace, image_shape=dataset.image_shape, num_classes=dataset.num_classes
    )
    if not hasattr(space, "network"):
        raise ValueError(f"the {space.name} space has no networks to train")
    if space.note:
        display.doubt(space.note)
    recipe = build(cfg.trainer)
    if not recipe.epochs:
        raise ValueError("trainer.epochs must be at least 1 to train")
    check_recipe(space, recipe)
    text = str(cfg.arch)
    genotype = architecture(space, text)
    if not space.is_connected([genotype])[0]:
        raise ValueError(f"arch={text} has no path from input to output: it answers the same for all images")

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
        write_json(finished, {"status": "finished", "arch": text, **network})
        forget_checkpoint(folder / "network")
        completed = True
        display.say(f"test accuracy {network['test_acc']:.2%} after {network['seconds']:.0f} s")
        if known := of_architecture(text, getattr(dataset, "benchmark", dataset.name)):
            display.say(known)
        display.say(f"weights: {folder / network['weights']}")
        display.say(f"next: hwnas export run={folder}")
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; go on: hwnas train resume={folder}") from None
    finally:
        tracker.finish(failed=not completed)
    return float(network["test_acc"])


def check_recipe(space: Any, recipe: Any) -> None:
    """Raise ValueError if the space's networks lack what the recipe needs."""
    recipe.check(auxiliary=getattr(space, "auxiliary", False), drop_path=getattr(space, "drop_path", False))


def architecture(space: SearchSpace, text: str) -> Genotype:
    """The architecture of a preset's name or of a text in the space's form.

    Raises:
        ValueError: An unknown name, or malformed text.
    """
    if text in space.presets:
        return space.from_str(space.presets[text])
    if (other := space_of(text)) is not None:
        raise ValueError(f"arch={text} is an architecture of search_space={other}, not of {space.name}")
    if space.presets and re.fullmatch(r"\w+(-\w+)?", text):  # texts of 22 blocks have more dashes
        hint = suggestion(text, list(space.presets)) or f"; known: {', '.join(space.presets)}"
        raise ValueError(f"arch={text} is no published architecture of the {space.name} space{hint}")
    return space.from_str(text)


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
