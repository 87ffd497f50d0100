"""Training an architecture from scratch, testing it, and the files that it leaves."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Protocol, TypedDict

from hwnas.core import Genotype, is_near_chance
from hwnas.data.images import DataSet
from hwnas.files import write_csv, write_json, write_text, write_torch
from hwnas.spaces.capabilities import HasNetworks, Named, identity
from hwnas.training import classifier
from hwnas.training.answered import answered, described
from hwnas.training.checkpoint import Session
from hwnas.training.classifier import fit
from hwnas.training.recipe import Recipe


class NamedData(Named, classifier.TrainingData, Protocol):
    """Images with a name."""


class Figures(TypedDict):
    """The result of a training.

    Test accuracy and its mean over the classes in 0..1, names of the classes, epochs, file of weights, and
    seconds.
    """

    test_acc: float
    balanced_test_acc: float
    classes: tuple[str, ...] | None
    epochs: int
    weights: str
    seconds: float


def train_network(
    space: HasNetworks, genotype: Genotype, dataset: NamedData, recipe: Recipe, session: Session, *, seed: int
) -> Figures:
    """Train an architecture on all training images and test it; writes the folder, returns the figures.

    The folder gets weights.pt (a state dict), architecture.json (what to build them into, the figures, and
    answers on test images), curves.csv and curves.svg (figures per epoch). Until `forget_checkpoint`, it
    holds a checkpoint too; a training that was interrupted resumes from it, and ends like one that was not.

    Args:
        space: The space, with the width and depth to train.
        genotype: The architecture.
        dataset: Images; the only place where test images are used.
        recipe: How to train.
        session: Its folder, created if needed, and whom it tells: it warns where the network is no better
            than a guess.
        seed: Seed of initialisation, shuffling and augmentation.

    Raises:
        ValueError: What `training.classifier.fit` raises.
    """
    import torch

    folder, start = session.folder, time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    what = identity(space, genotype, dataset)
    session = replace(session, identity=what, on_epoch=partial(_say_epoch, recipe.epochs, session.announce))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = space.network(genotype)
        module = fit(network, dataset, recipe, session, part="all", seed=seed)
    found = answered(module, dataset, "test")
    test_acc, balanced = found.accuracy, found.balanced_accuracy
    names = dataset.classes if isinstance(dataset, DataSet) else None
    classes = None if names is None else tuple(names)
    if is_near_chance(test_acc, found.chance):
        session.warn(
            f"the trained network answers {test_acc:.1%} of the test images right, a guess "
            f"{found.chance:.1%}; train it longer (trainer.epochs={recipe.epochs}, "
            f".max_steps={recipe.max_steps}), with another trainer.lr ({recipe.lr:g}), or look at the labels"
        )
    figures = {
        **what,
        **{name: float(values[0]) for name, values in space.static_metrics([genotype]).items()},
        "mean": module.mean.flatten().tolist(),
        "std": module.std.flatten().tolist(),
        "epochs": recipe.epochs,
        "seed": seed,
        "test_acc": test_acc,
        "balanced_test_acc": balanced,
        "classes": classes,
        "answers": described(found, dataset, "test"),
    }
    write_torch(folder / "weights.pt", network.state_dict())
    write_json(folder / "architecture.json", figures)
    columns = ("epoch", "loss", "train_acc", "lr")
    write_csv(folder / "curves.csv", [columns, *([row[name] for name in columns] for row in module.history)])
    write_text(folder / "curves.svg", curves_svg(module.history, test_acc))
    return {
        "test_acc": test_acc,
        "balanced_test_acc": balanced,
        "classes": classes,
        "epochs": recipe.epochs,
        "weights": f"{folder.name}/weights.pt",
        "seconds": time.perf_counter() - start,
    }


def _say_epoch(epochs: int, say: Callable[[str], None], figures: Mapping[str, float]) -> None:
    """Say the figures of an epoch, of about twenty among many."""
    epoch = int(figures["epoch"])
    if epoch % max(1, epochs // min(20, max(5, epochs // 10))) == 0:
        say(
            f"  epoch {epoch}/{epochs}  loss {figures['loss']:.3f}  "
            f"training accuracy {figures['train_acc']:.2%}"
        )


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

    def y(fraction: float) -> float:
        return round(top + height * (1 - fraction), 1)

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
