"""What early stopping saves, and what it costs in quality: tables for docs/measurements.md.

    pytest tests/studies/test_rungs.py -m slow -s

First on trainings, then on a benchmark's.

Cells are trained to the end through all rungs, networks of C=8 and N=1 on CIFAR-10 at 8x8; then populations
are drawn from them, of which successive halving trains as much as it would. Lost points are those of
validation accuracy of whole trainings: best network of the population within a limit minus the answer, mean
over nine limits, the deciles of the latency over the cells. Needs HWNAS_DATA with nasbench201.npz,
hwnasbench_nasbench201.npz and cifar10_16x16.npz; about 15 CPU minutes.

Then whole searches in equal time on NAS-Bench-201: rungs are its trainings of 12 and of 200 epochs, which
have schedules of their own, so that whoever goes on starts anew and costs 212.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf
from scipy.stats import kendalltau
from study import SPACE, Case, estimator, interval, random_cells, show

from hwnas.build import build, conf_folder
from hwnas.core import Evaluator, Genotype, Limit, Objective, SearchSpace, Trial
from hwnas.evaluators.table import Table
from hwnas.searches.halving import Halving
from hwnas.searches.loop import search
from hwnas.store.archive import Archive
from hwnas.store.evaluations import EvaluationStore

pytestmark = pytest.mark.slow

SEED = 2029  # of cells and populations; no setting was chosen on them
NUM_CELLS, POPULATION, NUM_DRAWN = 45, 18, 100
STEPS = (100, 300, 900)
SETTINGS = (
    "evaluator=train",
    "evaluator.channels=8",
    "evaluator.num_cells=1",
    "evaluator.image_size=8",
    "evaluator.num_valid=5000",
    "evaluator.augment=flip",
    "evaluator.training.epochs=100",
    f"evaluator.training.max_steps={STEPS[-1]}",
    "evaluator.training.lr=0.1",
)


class Known(Evaluator):
    """Answers that are known; with rungs, if there is a list of them."""

    def __init__(self, name: str, answers: dict[Genotype, float], rungs: Sequence[Evaluator] = ()) -> None:
        self.name, self.answers, self.rungs = name, answers, tuple(rungs)
        self.metrics = {name: "max"}
        if rungs:
            self.eta = 3
            self.metrics = dict.fromkeys(
                ["by_rung", name, "rung", *(rung.name for rung in rungs[:-1])], "max"
            )

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        return "1"

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        return [{self.name: self.answers[genotype]} for genotype in genotypes]


def with_rungs(
    figures: Sequence[dict[Genotype, float]],
    latency: dict[Genotype, float],
    limits: Sequence[Limit] = (),
    archive: Archive | None = None,
) -> list[Evaluator]:
    """A quality of several rungs with known answers, and a device."""
    rungs = [Known(f"acc{number}", found) for number, found in enumerate(figures)]
    device = Known("latency_ms", latency)
    halving = Halving(
        Known(rungs[-1].name, {}, rungs),
        EvaluationStore(None, "study"),
        "cifar10",
        None,
        costs=[device],
        archive=archive or Archive(),
        objectives=[Objective("by_rung", "max"), Objective("latency_ms", "min")],
        limits=limits,
    )
    halving.prepare(SPACE, [])
    return [halving, device]


def trained(
    figures: Sequence[dict[Genotype, float]],
    latency: dict[Genotype, float],
    population: list[Genotype],
    limits: list[Limit],
) -> list[int]:
    """The rung that each network of a population gets to, from 1."""
    return [int(row["rung"]) for row in with_rungs(figures, latency, limits)[0].evaluate(population)]


def all_trained(
    cells: list[Genotype], folder: Path
) -> tuple[list[dict[Genotype, float]], list[float], float]:
    """Accuracies at every rung, CPU seconds of every rung, and of a training without rungs."""
    train, _, _ = estimator(folder, *SETTINGS, f"evaluator.rungs=[{STEPS[0]},{STEPS[1]}]")
    at_once, _, _ = estimator(folder, *SETTINGS)
    figures: list[dict[Genotype, float]] = []
    seconds = []
    for rung in train.rungs:
        rung.prepare(SPACE, cells)
        start = time.process_time()
        figures.append({cell: next(iter(rung.evaluate([cell])[0].values())) for cell in cells})
        seconds.append((time.process_time() - start) / len(cells))
    start = time.process_time()
    whole = at_once.evaluate(cells[:9])
    alone = (time.process_time() - start) / 9
    assert [row["val_acc"] for row in whole] == [figures[-1][cell] for cell in cells[:9]]
    return figures, seconds, alone


class Draws:
    """Populations drawn from cells, and what is lost of them.

    Args:
        figures: Accuracies at every rung.
        latency: Of every cell.
        cells: All of them.
    """

    def __init__(
        self, figures: list[dict[Genotype, float]], latency: dict[Genotype, float], cells: list[Genotype]
    ) -> None:
        self.figures, self.latency = figures, latency
        self.bounds = [float(bound) for bound in np.quantile(list(latency.values()), np.arange(1, 10) / 10)]
        rng = np.random.default_rng(SEED)
        drawn = [rng.permutation(len(cells))[:POPULATION] for _ in range(NUM_DRAWN)]
        self.populations = [[cells[row] for row in rows] for rows in drawn]

    def within(self, cells: Sequence[Genotype], bound: float) -> list[Genotype]:
        return [cell for cell in cells if self.latency[cell] <= bound]

    def lost(self, population: list[Genotype], bound: float, rungs: Sequence[int]) -> float:
        """Points between the best network within a bound and the answer there.

        That is the one that got furthest, and of these the best; of those that were not trained (rung 0) any.
        """
        there = [(c, r) for c, r in zip(population, rungs, strict=True) if self.latency[c] <= bound]
        answer, _ = max(there, key=lambda one: (one[1], self.figures[one[1] - 1][one[0]] if one[1] else 0.0))
        return 100 * (max(self.figures[-1][cell] for cell, _ in there) - self.figures[-1][answer])

    def all_lost(self, rungs: Callable[[list[Genotype], float], Sequence[int]]) -> list[float]:
        """For every population and bound that one of it keeps, by the rungs that networks get to."""
        return [
            self.lost(population, bound, rungs(population, bound))
            for population in self.populations
            for bound in self.bounds
            if any(self.latency[cell] <= bound for cell in population)
        ]


def report(
    figures: list[dict[Genotype, float]],
    seconds: list[float],
    alone: float,
    cells: list[Genotype],
    case: Case,
) -> dict[str, tuple[float, float]]:
    """Print the tables; returns part of the time and points lost by name."""
    draws = Draws(figures, {cell: case.latency[cell] for cell in cells}, cells)
    rows, means = [], {}

    def cost(rungs: Sequence[int]) -> float:
        return sum(second * sum(rung > number for rung in rungs) for number, second in enumerate(seconds))

    def add(name: str, spent: float, losses: Sequence[float]) -> None:
        part, same = spent / (POPULATION * alone), np.mean(np.array(losses) < 1e-9)
        means[name] = part, float(np.mean(losses))
        rows.append([name, f"{spent:.0f}", f"{part:.0%}", f"{np.mean(losses):.2f}", f"{same:.0%}"])

    add("whole trainings", POPULATION * alone, [0.0])
    for name, limited in (("rungs, one run for all limits", False), ("rungs, a run per limit", True)):
        times = []

        def halved(
            population: list[Genotype], bound: float, limited: bool = limited, times: list[float] = times
        ) -> list[int]:
            limits = [Limit("latency_ms", bound)] if limited else []
            rungs = trained(figures, draws.latency, population, limits)
            times.append(cost(rungs))
            return rungs

        losses = draws.all_lost(halved)
        add(name, float(np.mean(times)), losses)
    fewer, last = round(float(np.mean(times)) / alone), len(STEPS)  # populations are in random order
    losses = draws.all_lost(lambda population, bound: [last * (n < fewer) for n in range(POPULATION)])
    add(f"{fewer} whole trainings", fewer * alone, losses)
    for number, steps in enumerate(STEPS[:-1], start=1):
        losses = draws.all_lost(lambda population, bound, number=number: [number] * POPULATION)
        add(f"all stop at {steps} of {STEPS[-1]} steps", POPULATION * sum(seconds[:number]), losses)
    title = f"populations of {POPULATION} of {len(cells)} cells; a whole training {alone:.1f} CPU s, rungs "
    title += ", ".join(f"{second:.1f}" for second in seconds)
    show(title, ["", "CPU s", "of whole trainings", "points lost", "nothing lost"], rows)
    final, truth = [figures[-1][cell] for cell in cells], [case.points[cell] for cell in cells]
    ranks = []
    for steps, found in zip(STEPS, figures, strict=True):
        values = [found[cell] for cell in cells]
        ranks.append([str(steps), *(f"{kendalltau(values, other)[0]:.2f}" for other in (final, truth))])
    show("Kendall's tau", ["steps", f"with {STEPS[-1]} steps", "with the true accuracy"], ranks)
    return means


def test_early_stopping(cases: list[Case], tmp_path: Path) -> None:
    case = next(case for case in cases if case.name == "cifar10 raspi4")
    cells = random_cells(NUM_CELLS, SEED)
    means = report(*all_trained(cells, tmp_path), cells, case)
    part, lost = means["rungs, a run per limit"]
    fewer = next(lost for name, (_, lost) in means.items() if name.endswith(" whole trainings"))
    assert part < 0.5
    assert lost < fewer


SEEDS = range(1000, 1010)  # no setting was chosen on them
EPOCHS = (12, 200)
WHOLE = 100
"""Whole trainings that a search has time for."""

STRATEGIES: dict[str, dict[str, object]] = {
    "random": {},
    "mo_hdnas": {"diversity": "none"},
    "regularized_evolution": {},
    "local_search": {},
}


def in_time(case: Case, early: dict[Genotype, float], strategy: str, seed: int) -> list[Genotype]:
    """Networks that a search with rungs has trained to the end, in the time of `WHOLE` trainings."""
    archive = Archive()
    whole = {genotype: points / 100 for genotype, points in case.points.items()}
    evaluators = with_rungs([early, whole], case.latency, archive=archive)
    config = OmegaConf.load(conf_folder() / "strategy" / f"{strategy}.yaml")
    built = build(
        OmegaConf.merge(config, STRATEGIES[strategy]),
        space=SPACE,
        objectives=(Objective("by_rung", "max"), Objective("latency_ms", "min")),
        limits=(),
        seed=seed,
        generations=1000,
        device=case.evaluators[1],
    )
    rung: dict[Genotype, int] = {}
    spent: list[Genotype] = []

    def log(generation: int, trials: list[Trial], replayed: bool) -> None:
        nonlocal spent
        rung.update({t.genotype: int(t.metrics["rung"]) for t in trials})
        done = [genotype for genotype, number in rung.items() if number == len(EPOCHS)]
        if EPOCHS[0] * len(rung) + EPOCHS[1] * len(done) > EPOCHS[1] * WHOLE:
            built.done = True
        else:
            spent = done

    search(built, evaluators, archive, 100_000, log)
    assert built.done
    return spent


def test_searches_in_equal_time(cases: list[Case]) -> None:
    chosen = [case for case in cases if case.name.split()[1] in ("raspi4", "fpga")]
    everything = SPACE.all()
    rows, means = [], {}
    for strategy, settings in STRATEGIES.items():
        plain, early = [], []
        for case in chosen:
            table = Table(
                SPACE,
                path="nasbench201.npz",
                metric="val_acc",
                column=f"{case.dataset}_valid_12",
                goal="max",
                scale=0.01,
                test_column=None,
            )
            answers = table.evaluate(everything)
            first = {g: row["val_acc"] for g, row in zip(everything, answers, strict=True)}
            runs = [case.run(strategy, seed, num_unique=WHOLE, **settings) for seed in SEEDS]
            plain.append([case.regrets(run).mean() for run in runs])
            early.append([case.regrets(in_time(case, first, strategy, seed)).mean() for seed in SEEDS])
        for name, found in ((strategy, plain), (f"{strategy}, rungs", early)):
            means[name] = float(np.mean(found))
            rows.append([name, *map(interval, found), f"{means[name]:.2f}"])
    show(
        f"regret after the time of {WHOLE} trainings of 200 epochs, one run for all limits",
        ["", *(case.name for case in chosen), "mean"],
        rows,
    )
    assert means["random, rungs"] < means["random"]
