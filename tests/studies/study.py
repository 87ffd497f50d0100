"""Benchmark cases with their exact answers, and runs on them that cost milliseconds; `make study` prints."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from scipy.stats import kendalltau

from hwnas.build import build, conf_folder
from hwnas.core import Genotype, Limit, Objective, Strategy, Trial
from hwnas.devices.benchmark import benchmark_device
from hwnas.evaluators.table import Table
from hwnas.searches.blind import DECILES, best_within, blind_regret
from hwnas.searches.loop import search
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.store.archive import Archive

NUM_RESAMPLES = 500
OBJECTIVES = (Objective("val_acc", "max"), Objective("latency_ms", "min"))
SPACE = NasBench201(image_shape=(3, 32, 32))


class Case:
    """A data set on a device: quality is the table's validation accuracy; limits are the nine deciles.

    Deciles are those of the networks that the device supports; the others cost `inf` and keep no limit.
    """

    def __init__(self, dataset: str, device: str) -> None:
        self.name, self.dataset = f"{dataset} {device}", dataset
        self.evaluators = [
            Table(
                SPACE,
                path="nasbench201.npz",
                metric="val_acc",
                column=f"{dataset}_valid_200",
                goal="max",
                scale=0.01,
                test_column=None,
            ),
            benchmark_device(
                SPACE,
                SimpleNamespace(name=dataset),
                pytest.fail,  # costs are the table's, of networks for this data set
                device=device,
                metric="latency_ms",
            ),
        ]
        genotypes = SPACE.all()
        quality, cost = (evaluator.evaluate(genotypes) for evaluator in self.evaluators)
        points = 100 * np.array([row["val_acc"] for row in quality])
        latency = np.array([row["latency_ms"] for row in cost])
        self.points = dict(zip(genotypes, points.tolist(), strict=True))
        self.latency = dict(zip(genotypes, latency.tolist(), strict=True))
        self.bounds = np.quantile(latency[np.isfinite(latency)], DECILES)
        self.best = best_within(points, latency, self.bounds)

    def run(
        self,
        strategy: Strategy | str,
        seed: int = 0,
        *,
        generations: int = 100_000,
        num_unique: int | None = None,
        bound: float | None = None,
        watch: Callable[[Any, list[Trial]], None] | None = None,
        **settings: Any,
    ) -> list[Genotype]:
        """The different architectures of a run in the order of their first evaluation.

        A strategy named by its yaml is built with that yaml's settings, `settings` put over them. The run
        ends after `generations`, or as soon as `num_unique` different architectures are known (later ones
        are cut off). `watch` is told the strategy and the trials of every generation.
        """
        if isinstance(strategy, str):
            config = OmegaConf.load(conf_folder() / "strategy" / f"{strategy}.yaml")
            limits = () if bound is None else (Limit("latency_ms", bound),)
            strategy = build(
                OmegaConf.merge(config, settings),
                space=SPACE,
                objectives=OBJECTIVES,
                limits=limits,
                seed=seed,
                device=self.evaluators[1],
            )
        assert isinstance(strategy, Strategy)
        found: dict[Genotype, None] = {}

        def log(generation: int, trials: list[Trial], replayed: bool) -> None:
            found.update(dict.fromkeys(trial.genotype for trial in trials))
            if num_unique is not None and len(found) >= num_unique:
                strategy.done = True
            if watch is not None:
                watch(strategy, trials)

        search(strategy, self.evaluators, Archive(), generations, log)
        assert num_unique is None or len(found) >= num_unique
        return list(found)[:num_unique]

    def regrets(self, genotypes: Sequence[Genotype]) -> np.ndarray:
        """Points of validation accuracy to the best network under each decile limit, shape (9,).

        A search that knows no network under a limit is counted as guessing (the accuracy of chance is at
        most 10 %).
        """
        points = np.array([self.points[genotype] for genotype in genotypes])
        latency = np.array([self.latency[genotype] for genotype in genotypes])
        found = [points[latency <= bound].max(initial=10.0) for bound in self.bounds]
        return self.best - np.array(found)

    def blind_regrets(
        self, genotypes: Sequence[Genotype], estimate: np.ndarray, ties: Literal["mean", "cheapest"] = "mean"
    ) -> np.ndarray:
        """Points of validation accuracy to the best network under each decile limit, shape (9,).

        Of the one with the highest estimate among some networks; estimates have shape (n,).
        """
        points = np.array([self.points[genotype] for genotype in genotypes])
        latency = np.array([self.latency[genotype] for genotype in genotypes])
        return blind_regret(
            points, latency, estimate, self.bounds, self.best, ties=ties, guess=self.points[(0,) * 6]
        )

    def among(self, genotypes: Sequence[Genotype]) -> Case:
        """This case in a space of some networks: its limits and its best networks are theirs."""
        points = np.array([self.points[genotype] for genotype in genotypes])
        latency = np.array([self.latency[genotype] for genotype in genotypes])
        part = copy.copy(self)
        part.bounds = np.quantile(latency[np.isfinite(latency)], DECILES)
        part.best = best_within(points, latency, part.bounds)
        return part


def random_cells(num: int, seed: int) -> list[Genotype]:
    """Different cells with a path from input to output, drawn uniformly."""
    rng = np.random.default_rng(seed)
    found: dict[Genotype, None] = {}
    while len(found) < num:
        (cell,) = SPACE.sample(rng, 1)
        if SPACE.is_connected([cell])[0]:
            found[cell] = None
    return list(found)


def interval(values: Sequence[float], digits: int = 2) -> str:
    """Mean and half the width of its 95 % confidence interval (normal)."""
    half = 1.96 * np.std(values, ddof=1) / len(values) ** 0.5
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


def show(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a markdown table."""
    print(f"\n{title}\n")
    for row in (header, ["---", *["---:"] * (len(header) - 1)], *rows):
        print(f"| {' | '.join(row)} |")


@dataclass(frozen=True)
class Tau:
    """Kendall's tau of a score with the truth over rows, as a function of these.

    Args:
        score: Shape (n,).
        truth: Shape (n,).
        counted: Rows that count, shape (n,), bool.
    """

    score: np.ndarray
    truth: np.ndarray
    counted: np.ndarray

    def __call__(self, rows: np.ndarray) -> float:
        rows = rows[self.counted[rows]]
        return float(kendalltau(self.score[rows], self.truth[rows])[0])


def tau(score: np.ndarray, truth: np.ndarray) -> tuple[Tau, Tau]:
    """Over all rows, and over the better half of them."""
    return Tau(score, truth, np.full(len(truth), True)), Tau(score, truth, truth >= np.median(truth))


def bootstrap(one: Tau, minus: Tau | None = None) -> str:
    """A tau, or the difference of two, with its 95 % interval over resampled rows."""

    def value(rows: np.ndarray) -> float:
        return one(rows) - (0.0 if minus is None else minus(rows))

    rng, n = np.random.default_rng(0), len(one.truth)
    low, high = np.quantile([value(rng.integers(n, size=n)) for _ in range(NUM_RESAMPLES)], [0.025, 0.975])
    return f"{value(np.arange(n)):.3f} [{low:.3f}, {high:.3f}]"


def estimator(store: Path, *settings: str) -> tuple[Any, Any, Any]:
    """Prepared evaluator, images and space, as `hwnas search dataset=cifar10_16x16 <settings>` has them.

    Settings may name another data set.
    """
    named = [] if any(word.startswith("dataset=") for word in settings) else ["dataset=cifar10_16x16"]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("search", [*named, *settings])
    dataset = build(cfg.dataset)
    space = build(cfg.search_space, image_shape=dataset.image_shape, num_classes=dataset.num_classes)
    evaluator = build(
        cfg.evaluator,
        space=space,
        dataset=dataset,
        store_dir=store,
        folder=store,
        announce=print,
        warn=pytest.fail,
    )
    evaluator.prepare(space, [])
    return evaluator, dataset, space
