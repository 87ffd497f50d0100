"""The page of a run: one HTML file that shows the run's folder and needs no other file."""

from __future__ import annotations

import csv
import io
import itertools
import math
import shlex
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from platform import python_version
from urllib.parse import quote

import numpy as np
from omegaconf import OmegaConf

from hwnas.core import DEVIATION, Genotype, Limit, SearchSpace, Trial, closest, costs, unique
from hwnas.data import splits
from hwnas.files import consistent, read_json
from hwnas.reports import answers, sections
from hwnas.reports import sweep as sweep_report
from hwnas.reports.baselines import baselines
from hwnas.reports.charts import LineChart, dots, line_chart
from hwnas.reports.published import EXPERIMENTS, PAPERS, Paper
from hwnas.reports.template import write_page
from hwnas.reports.view import NUM_SHADES, Point, View
from hwnas.runs.folder import Run, config_file, read_run
from hwnas.runs.result import Result
from hwnas.runs.units import SUFFIXES, count, difference, duration, listed, quantity, text
from hwnas.searches.exact import YARDSTICKS, regret_in_words
from hwnas.searches.indicators import Hypervolume
from hwnas.searches.outcome import remarks, virtual_clock
from hwnas.spaces.capabilities import HasNetworks
from hwnas.spaces.drawing import NODE_RADIUS
from hwnas.store import password
from hwnas.strategies.evolution import cost_diversity

PHASES = {
    "quality": "preparing the quality estimate",
    "device": "preparing the device",
    "search": "searching",
    "final network": "training the final network",
    "report": "drawing this page",
}


def write_report(folder: Path, result: Result | None = None, space: SearchSpace | None = None) -> Path:
    """Draw the page of a run; returns the path of its report.html.

    Args:
        folder: The run's folder.
        result: The run's result; None reads result.json, without which the run is unfinished.
        space: The search space; None sets it up as the folder says.

    Raises:
        ValueError: There is no run in the folder, or one of its files is corrupt; says which.
    """
    with consistent(folder) if result is None else nullcontext():
        values = page(read_run(folder, result, space))
        return write_page("report.html.j2", values, folder / "report.html")


def write_sweep_report(folder: Path) -> Path:
    """Draw the page of a sweep; returns the path of its report.html.

    Args:
        folder: The sweep's folder, with a folder per run.

    Raises:
        ValueError: No search has finished in it yet, or a file is corrupt; says which.
    """
    with consistent(folder):
        return write_page("sweep.html.j2", sweep_report.page(folder), folder / "report.html")


def page(run: Run) -> dict[str, object]:
    """The values of the template, which only arranges them."""
    view = View(run)
    return {
        "run": run,
        "view": view,
        "front": [point for point in view.points if point.front],
        "names": [*(quantity(name).name for name in view.metrics), "generation"],
        "drawn": len(view.networks) if len(view.networks) < len(view.supported) else None,
        "unsupported": len(unique(run.trials)) - len(view.supported),
        "objectives": [quantity(objective.metric) for objective in run.objectives],
        "goals": [("high" if objective.goal == "max" else "low") for objective in run.objectives],
        "node_radius": NODE_RADIUS,
        "num_shades": NUM_SHADES,
        "max_figures": sections.MAX_FIGURES,
        "count": count,
        "last_generation": max(trial.generation for trial in run.trials),
        "limits": [_phrase(limit) for limit in run.limits],
        "remarks": remarks(run.result) if run.result else [],
        "clock": virtual_clock(run.result) if run.result else "",
        "command": None if run.overrides is None else shlex.join(["hwnas", "search", *run.overrides]),
        "yaml": password.without(config_file(run.folder).read_text(encoding="utf-8")),
        **{name: section(view) for name, section in SECTIONS.items()},
    }


def _protocol(view: View) -> str:
    """A sentence on the images that validate; empty if the run uses none, or knows no split."""
    run = view.run
    if run.result is not None and run.result.protocol is not None:
        return f"Images: {run.result.protocol}."
    split, fraction, benchmark = _images(run)
    if run.names["evaluator"] in ("table", "toy") or split is None:
        return ""
    whole = OmegaConf.select(run.config, "evaluator.images") == "all"
    rest = "; reference and batch are of all training images" if whole else ""
    return f"Images: {splits.in_words(splits.check(split, benchmark), fraction, benchmark)}{rest}."


def _images(run: Run) -> tuple[str | None, float, str]:
    """The rule of the split, None if there is none; its fraction; the benchmark's name of the images."""
    keys = ("split", "valid_fraction", "benchmark", "name")
    split, fraction, benchmark, name = (OmegaConf.select(run.config, f"dataset.{key}") for key in keys)
    held_out = float(fraction) if isinstance(fraction, float | int) else 0.0
    return None if split is None else str(split), held_out, str(benchmark or name)


@dataclass(frozen=True)
class BesideThePaper:
    """Rows of (figure, published, this run), and the differences from the paper in words."""

    method: str
    paper: Paper
    rows: list[tuple[str, str, str]]
    differs: str


def _published(view: View) -> BesideThePaper | None:
    """Published figures of the run's experiment beside the run's own; None if there are none."""
    run = view.run
    of = EXPERIMENTS.get(run.names.get("experiment", ""))
    if of is None or run.result is None:
        return None
    trained, (_, _, benchmark) = _trained(view), _images(run)
    case = (run.names["device"], benchmark)
    rows: list[tuple[str, str, str]] = []
    if benchmark in of.test_acc:
        rows.append(
            (f"test accuracy, {of.of}", f"{of.test_acc[benchmark]} %", _test_accuracy(run.result, trained))
        )
    bounds = [limit.bound for limit in run.limits if limit.metric == "latency_ms"]
    if case == ("fpga", "cifar100") and bounds and bounds[0] in of.fpga:
        named = f"test accuracy within {bounds[0]:g} ms on the FPGA"
        rows.append((named, of.fpga[bounds[0]], _test_accuracy(run.result, trained)))
    if case == ("fpga", "cifar10") and of.diversity:
        last = [trial for trial in run.trials if trial.generation == run.trials[-1].generation]
        known = costs(last, run.objectives)[:, 1]
        value = float(cost_diversity(known[np.isfinite(known)]).mean())
        rows.append(("cost diversity of the last generation, ms²", of.diversity, f"{value:.0f}"))
    if not rows:
        return None
    given = [o for o in run.overrides or [] if not o.startswith(("experiment=", "logger=", "hydra", "seed="))]
    differs = [of.differs] if of.differs else []
    differs.append(f"This is one run, with seed {run.config.seed}.")
    if given:
        differs.append(f"This run changes settings of the experiment: {' '.join(given)}.")
    return BesideThePaper(of.method, PAPERS[of.method], rows, " ".join(differs))


def _test_accuracy(result: Result, trained: FinalNetwork | None) -> str:
    """Test accuracy of the network that the strategy returns, or of the best one if it returns several."""
    network = result.result[0] if len(result.result) == 1 else result.best
    value = trained.test_acc if trained else network.metrics.get("test_acc") if network else None
    return "not known: it was not trained from scratch" if value is None else text("test_acc", value)


def _phrase(limit: Limit) -> str:
    sign = "≤" if limit.goal == "min" else "≥"
    return f"{quantity(limit.metric).name} {sign} {text(limit.metric, limit.bound, exact=True)}"


def _closest(view: View) -> str:
    run = view.run
    near = closest(run.trials, run.limits)
    if near is None:
        return ""
    arch = run.space.to_str(near.genotype)
    return f"The closest is {arch}: {listed(near.metrics)}. Raise a limit, or search for more generations."


def _clouds(view: View) -> list[tuple[str, str]]:
    """(style, path) of the dots of all networks that have no mark of their own."""
    groups: dict[str, list[tuple[float, float]]] = {}
    places = view.plot.places if view.plot else []
    for trial, style, at in zip(view.networks, view.shades, places, strict=True):
        if trial.genotype not in view.marked:
            groups.setdefault(style, []).append(at)
    return [(style, dots(groups[style])) for style in sorted(groups)]


def _sureness(view: View) -> str:
    """Sentences on the bars of the plot and on what `robust` does; empty without standard errors."""
    run = view.run
    names = [quantity(o.metric).name for o in run.objectives if o.metric + DEVIATION in view.metrics]
    if not names:
        return ""
    said = f"Bars are ± one standard error of {' and '.join(names)}."
    if (robust := run.plan.robust) is not None:
        errors = f"{robust:g} standard error{'s' * (robust != 1)}"
        said += (
            f" The front has the networks that none beats by {errors} of the difference, and the best is the "
            f"one of the highest {names[0]} less {errors}."
        )
    return said


def _generations(view: View) -> list[LineChart]:
    """Line charts: hypervolume and best so far over evaluations, the population over generations."""
    run, groups = view.run, view.generations
    hypervolume = Hypervolume(run.objectives)
    curve = run.result.hypervolume if run.result else None
    curve = curve or tuple(hypervolume.add(group) for group in groups)
    counts = list(itertools.accumulate(map(len, groups)))
    charts = [line_chart("hypervolume", "hypervolume", "evaluations", counts, curve)]
    if (exact := run.truth) is not None:
        for key, name, values in (
            ("hypervolume_ratio", "fraction of the true hypervolume", exact.hypervolume_ratio),
            ("igd_plus", "distance to the true front", exact.igd_plus),
        ):
            if any(map(math.isfinite, values)):
                charts.append(line_chart(name, key, "evaluations", counts, values))
    title, reached = sections.best_so_far(run, groups)
    if any(map(math.isfinite, reached)):
        charts.append(line_chart(title, run.objectives[0].metric, "evaluations", counts, reached))
    for objective in run.objectives:
        known = [[v for t in group if math.isfinite(v := t.metrics[objective.metric])] for group in groups]
        means = [sum(values) / len(values) if values else math.inf for values in known]
        if any(map(math.isfinite, means)):
            generations = [group[0].generation for group in groups]
            name = f"mean {quantity(objective.metric).name}"
            charts.append(line_chart(name, objective.metric, "generation", generations, means))
    diversity = _diversity(run, groups)
    return charts if diversity is None else [*charts, diversity]


def _diversity(run: Run, groups: Sequence[Sequence[Trial]]) -> LineChart | None:
    """The mean cost diversity of each population, in squared units of the cost.

    None if the cost has no unit, or if no network is supported. Source: chibar of MO-HDNAS, eq. 4.
    """
    stem, _, unit = run.objectives[1].metric.rpartition("_")
    if unit not in SUFFIXES:
        return None
    means = []
    for group in groups:
        cost = costs(group, run.objectives)[:, 1]
        known = cost[np.isfinite(cost)]
        means.append(float(cost_diversity(known).mean()) if len(known) else math.inf)
    if not any(map(math.isfinite, means)):
        return None
    metric = f"{stem}_diversity_{unit}2"
    generations = [group[0].generation for group in groups]
    return line_chart(quantity(metric).name, metric, "generation", generations, means)


def _optimum(view: View) -> str:
    """A sentence on the distance of the answer from the best network in the space; empty if it is unknown."""
    run, exact = view.run, view.run.truth
    if exact is None:
        return _looked_up(run)
    sentence = f"The dashed line is the true front, of {len(exact.front)} networks"
    sentence += f"; this search covers {exact.hypervolume_ratio[-1]:.1%} of its hypervolume"
    if exact.best is not None and exact.regret:
        sentence += f". {regret_in_words(exact.regret, ' within the limits' if run.limits else '')}"
    return sentence + "."


def _yardsticks(view: View) -> list[tuple[str, str, str]]:
    """(title, figures, architecture) of networks that are known exactly because costs are sums."""
    known = view.run.result.yardsticks if view.run.result else None
    return [(YARDSTICKS[name], listed(of.metrics), of.arch) for name, of in (known or {}).items()]


@dataclass(frozen=True)
class TransferTable:
    """Each device's best network on every device, written out.

    Attributes:
        rows: (device, quality, architecture, (cost, verdict, style) per device).
        limits: (device, its limits in words).
        among: The networks that were compared, in words.
        quality: Name of the quality.
    """

    rows: list[tuple[str, str, str, list[tuple[str, str, str]]]]
    limits: list[tuple[str, str]]
    among: str
    quality: str


def _transfer(view: View) -> TransferTable | None:
    """The best network of each device on every device; None for a run on one device."""
    run = view.run
    transfer = run.result.transfer if run.result else None
    if transfer is None:
        return None
    quality = run.objectives[0].metric
    rows = []
    for row in transfer.rows:
        network = row.network
        cells: list[tuple[str, str, str]] = []
        for device, metric in transfer.main.items():
            if network is None:
                cells.append(("", "", "none"))
                continue
            value, excess, regret = network.metrics[metric], row.excess[device], row.regret[device]
            if excess > 0:
                verdict = "not supported" if math.isinf(excess) else f"{excess:.0%} beyond the limit"
                cells.append((text(metric, value), verdict, "over"))
            elif regret is not None:
                own = regret == 0
                verdict = "the best there" if own else f"− {difference(quality, regret)}"
                cells.append((text(metric, value), verdict, "own" * own))
        title = "all of them" if row.device is None else row.device
        reached = "" if network is None else text(quality, network.metrics[quality])
        rows.append(
            (title, reached, "no network keeps the limits" if network is None else network.arch, cells)
        )
    limits = [
        (
            device,
            ", ".join(_phrase(Limit(metric, bound, run.plan.goal(metric))) for metric, bound in own.items()),
        )
        for device, own in transfer.limits.items()
    ]
    return TransferTable(rows, limits, transfer.among, quantity(quality).name)


def _looked_up(run: Run) -> str:
    """A sentence on the true quality of the answer, from a benchmark's table; empty without one."""
    figures = run.result.looked_up if run.result else None
    if not figures:
        return ""
    within = " within the limits" if run.limits else ""
    parts = [
        f"{text(name, one.value)} of {quantity(name).name}, where the best network in the space{within} "
        f"has {text(name, one.value + one.regret)}"
        + (
            f" and the one with the most multiply-adds {text(name, one.by_flops)}"
            if one.by_flops is not None
            else ""
        )
        for name, one in figures.items()
    ]
    return f"Looked up in a benchmark's table, which the search did not use: the best has {'; '.join(parts)}."


def _cells(view: View) -> list[tuple[str, Point]]:
    """(title, point) of the best network, the knee, and the cheapest on the front; each network once."""
    titles: dict[Genotype, list[str]] = {}
    if view.best is not None:
        titles.setdefault(view.best.genotype, []).append("best feasible" if view.run.limits else "best")
    if view.knee is not None:
        titles.setdefault(view.knee.genotype, []).append("knee of the front")
        titles.setdefault(view.front[0].genotype, []).append("cheapest on the front")
    by_genotype = {point.genotype: point for point in view.points}
    return [(", ".join(words), by_genotype[genotype]) for genotype, words in titles.items()]


def _csv(view: View) -> str:
    """The front as a data URI."""
    buffer = io.StringIO()
    writer = csv.writer(buffer)
    writer.writerow(["arch", "genotype", *view.metrics])
    for point in view.points:
        if point.front:
            genotype = " ".join(map(str, point.genotype))
            writer.writerow([point.arch, genotype, *(point.metrics.get(name, "") for name in view.metrics)])
    return "data:text/csv;charset=utf-8," + quote(buffer.getvalue())


@dataclass(frozen=True)
class FinalNetwork:
    """The network that was trained from scratch, with (name, value) of its figures and learning curves."""

    arch: str
    test_acc: float
    facts: list[tuple[str, str]]
    weights: Path
    charts: list[LineChart]
    name: str | None


def _trained(view: View) -> FinalNetwork | None:
    """The final network; None if none was trained."""
    folder = view.run.folder
    described, curves = folder / "network" / "architecture.json", folder / "network" / "curves.csv"
    if not (described.is_file() and curves.is_file()):
        return None
    figures = read_json(described)
    with curves.open(newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        epochs = [float(row["epoch"]) for row in rows]
        charts = [
            line_chart(f"training {name}", key, "epoch", epochs, [float(row[key]) for row in rows])
            for name, key in (("loss", "loss"), ("accuracy", "train_acc"))
        ]
        facts = [
            (quantity(name).name, text(name, figures[name]))
            for name in ("test_acc", "balanced_test_acc", "params", "flops")
            if name in figures
        ]
        return FinalNetwork(
            figures["arch"],
            float(figures["test_acc"]),
            facts=[*facts, ("epochs", str(figures["epochs"]))],
            weights=folder / "network" / "weights.pt",
            charts=charts,
            name=None if (found := view.run.result) is None or found.network is None else found.network.name,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'network'} is corrupt: {error}") from None


def _headline(view: View) -> list[tuple[str, str]]:
    """(number, caption) pairs for the top of the page."""
    run, answer, trained = view.run, view.best, _trained(view)
    row: list[tuple[str, str]] = []
    if answer is None:
        row.append(("none", "keeps the limits" if run.limits else "is supported by the device"))
    else:
        for objective in run.objectives:
            name, value = quantity(objective.metric).name, answer.metrics[objective.metric]
            error = answer.metrics.get(objective.metric + DEVIATION)
            number = text(objective.metric, value)
            if error is not None:
                how = quantity(objective.metric, value)
                number = f"{value * how.factor:#.4g} ± {error * how.factor:#.2g} {how.unit}".rstrip()
                name += " and standard error"
            row.append((number, f"{name} of the best"))
        tested = view.answer.metrics.get("test_acc") if view.answer else None
        test_acc = trained.test_acc if trained else tested
        if test_acc is not None:
            row.append((text("test_acc", test_acc), "test accuracy" + ", trained" * (trained is not None)))
    row.append((f"{len(run.trials):,}", f"evaluations, {len(unique(run.trials)):,} different networks"))
    if run.result:
        row.append((f"{run.result.evaluations.new:,}", "of them new, the others repeated or already stored"))
        row.append((duration(run.result.seconds["total"]), "in all"))
    return row


def _phases(view: View) -> list[tuple[str, str, float]]:
    """(phase, seconds, percent of the whole) in order; the last entry is all the remaining time."""
    seconds = view.run.result.seconds if view.run.result else {}
    phases = [
        (PHASES.get(name, name), spent)
        for name, spent in seconds.items()
        if name != "total" and spent >= 0.05
    ]
    whole = max(seconds.get("total", 0.0), sum(spent for _, spent in phases)) or 1.0
    phases.append(("start, and everything else", whole - sum(spent for _, spent in phases)))
    return [(name, f"{spent:.1f} s", round(100 * spent / whole, 2)) for name, spent in phases]


def _evaluations(view: View) -> list[tuple[str, str, float]]:
    """(origin, number, percent of the whole) of the evaluations; empty for an unfinished run."""
    if view.run.result is None:
        return []
    counts = view.run.result.evaluations
    parts = [("new", counts.new), ("repeated or already stored", counts.cached)]
    return [(name, f"{number:,}", round(100 * number / counts.asked, 2)) for name, number in parts]


def _ledger(view: View) -> list[tuple[str, str]]:
    """(name, number) of counts of evaluations; empty for an unfinished run."""
    run = view.run
    if not run.result:
        return []
    counts, num = run.result.evaluations, len(unique(run.trials))
    seconds, virtual = run.result.seconds.get("search"), run.result.virtual_seconds
    rows = [
        ("asked for", f"{counts.asked:,}"),
        ("different networks", f"{num:,}"),
        ("repeats within the run", f"{counts.asked - num:,}"),
        ("new, computed by this run", f"{counts.new:,}"),
        ("repeated or already stored", f"{counts.cached:,}"),
    ]
    if (last := run.result.population) is not None:
        rows.append(("different networks in the last population", f"{last.different} of {last.size}"))
    if seconds is not None:
        rows.append(("time of the search per evaluation", f"{1000 * seconds / counts.asked:.3g} ms"))
    if virtual is not None:
        rows.append(("training time that the benchmark saved", f"{virtual / 3600:,.1f} GPU hours"))
    return rows


def _next(view: View) -> str | None:
    """The next command for this run; None if nothing is left to do."""
    run = view.run
    if not run.result:
        if run.overrides is None:  # begun from Python
            return None
        return shlex.join(["hwnas", "search", f"resume={run.folder}"])
    if view.best is not None and isinstance(run.space, HasNetworks):
        return shlex.join(["hwnas", "train" if _trained(view) is None else "export", f"run={run.folder}"])
    return None


def _versions(view: View) -> dict[str, str]:
    """Versions of the software that draws the page, and of each evaluator's answers."""
    known = view.run.result.versions if view.run.result else {}
    own = {"hwnas": _version("hwnas"), "torch": _version("torch"), "python": python_version()}
    return {**own, **known}


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


SECTIONS: dict[str, Callable[[View], object]] = {
    "protocol": _protocol,
    "headline": _headline,
    "closest": _closest,
    "optimum": _optimum,
    "controls": sections.controls,
    "deciles": sections.decile_lines,
    "clouds": _clouds,
    "sureness": _sureness,
    "bars": sections.bars,
    "published": _published,
    "curves": _generations,
    "cells": _cells,
    "gaps": sections.knee_gaps,
    "csv": _csv,
    "effects": sections.effects,
    "over_time": sections.over_time,
    "lineage": sections.lineage,
    "breakdown": sections.breakdown,
    "proxies": sections.proxies,
    "blind_regret": sections.blind_regret,
    "yardsticks": _yardsticks,
    "transfer": _transfer,
    "baselines": baselines,
    "trained": _trained,
    "answers": answers.on_test_images,
    "phases": _phases,
    "evaluations": _evaluations,
    "ledger": _ledger,
    "next": _next,
    "versions": _versions,
    "data": sections.data,
}
"""Sections by their names in the template, in the order of the page."""
