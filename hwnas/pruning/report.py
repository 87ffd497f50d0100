"""A study's page: curves, controls, proxies, pictures and the conclusion, from the runs' folders."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hwnas.files import consistent, replacing, to_json, write_csv, write_text
from hwnas.pruning.study import Comparison, Family, Group, Study, entanglement, read_study
from hwnas.reports.template import write_page
from hwnas.runs.tracking import Tracker
from hwnas.runs.units import text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROXIES = {
    "active_units": "active units",
    "kl": "KL, nats",
    "total_correlation": "total correlation, nats",
    "mean_correlation": "mean absolute correlation",
    "mig": "MIG",
    "sap": "SAP",
    "dci_disentanglement": "DCI disentanglement",
    "dci_completeness": "DCI completeness",
    "dci_informativeness": "DCI informativeness",
}


Colour = str | tuple[float, float, float, float]
"""A name, or red, green, blue and opacity in 0..1."""


def write_study(folder: Path, *, logger: Mapping[str, object] | None = None) -> tuple[Path, Study]:
    """Write the page of all finished pruning runs below a folder, with study.csv, study.json and figures.

    Args:
        folder: A run's, a sweep's, or one that holds several sweeps.
        logger: The `logger` config group, to send figures and conclusion to Weights & Biases; None: nowhere.

    Returns:
        The path of report.html, and the study.

    Raises:
        ValueError: What `read_study` raises.
    """
    with consistent(folder):
        return _write_study(folder, read_study(folder), logger)


def _write_study(folder: Path, study: Study, logger: Mapping[str, object] | None) -> tuple[Path, Study]:
    figures: list[dict[str, str]] = []
    pictures: dict[str, Path] = {}
    for number, family in enumerate(study.families):
        drawn = {"overview": overview(family) if len(family.groups()) > 1 else single(family)}
        if len(family.betas) > 1:
            drawn["proxies"] = proxies(family)
        figures.append({})
        for name, figure in drawn.items():
            for axis in figure.axes:
                axis.title.set_fontsize(9)
            stem = f"{name}_{number}" if len(study.families) > 1 else name
            pictures[stem] = folder / f"{stem}.png"
            with replacing(pictures[stem]) as partial:
                figure.savefig(partial, format="png", dpi=90)
            figures[-1][name] = _svg(figure)
    _write_csv(folder / "study.csv", study)
    write_text(
        folder / "study.json",
        to_json(
            [
                {"name": family.name, "dataset": family.dataset, **asdict(told)}
                for family, told in zip(study.families, study.conclusions, strict=True)
            ]
        )
        + "\n",
    )
    families = [
        {
            "title": family.name,
            "single": len(family.groups()) == 1,
            "dataset": family.dataset,
            "verdict": told.verdict,
            "words": told.words,
            "figures": drawn,
            "sparsities": [f"{sparsity:.0%}" for sparsity in family.sparsities],
            "rows": [row(group) for group in family.groups()],
            "comparisons": [spoken(one) for one in (*told.comparisons, *told.controls)],
            "costs": [costs(group) for group in family.groups()],
            "pictures": [_pictures(group) for group in family.betas.values()],
        }
        for family, told, drawn in zip(study.families, study.conclusions, figures, strict=True)
    ]
    runs = sum(len(group.arms) for family in study.families for group in family.groups())
    values = {"families": families, "runs": runs, "folder": str(folder)}
    path = write_page("study.html.j2", values, folder / "report.html")
    if logger is not None:
        _track(folder, study, pictures, logger)
    return path, study


def _track(folder: Path, study: Study, pictures: Mapping[str, Path], logger: Mapping[str, object]) -> None:
    """The study as a run of Weights & Biases: figures, pictures of every beta, conclusion."""
    tracker = Tracker(
        folder, logger, {"study": str(folder)}, run_id=f"study-{folder.name}", job="study", warn=print
    )
    try:
        shown = dict(pictures)
        for family in study.families:
            for group in family.betas.values():
                for path in group.first.pictures:
                    shown[f"{path.stem}_{group.first.label}"] = path
        tracker.pictures(shown)
        tracker.summary({"conclusion": study.conclusion})
    finally:
        tracker.finish()


def row(group: Group) -> dict[str, object]:
    """A line of the table: the group's accuracies in percent, mean and standard deviation over seeds."""
    return {
        "label": group.first.label,
        "seeds": len(group.arms),
        "trained": _mean(100 * group.trained("test_acc")),
        "accuracies": [_mean(100 * column) for column in group.curve("test_acc").T],
        "retained": _mean(100 * group.retained(), 2),
        "area": _mean(100 * group.area(), 2),
        "at": _mean(100 * group.at_1_percent()),
    }


def costs(group: Group) -> dict[str, object]:
    """A line of the table of costs at every sparsity, means over seeds, of the group's first."""
    table = {
        name: group.curve(name).mean(axis=0) for name in ("params", "flops", "bytes", "bytes_compressed")
    }
    latency = np.median(group.curve("latency_ms") / group.curve("unpruned_latency_ms"), axis=0)
    return {
        "label": group.first.label,
        "cells": [
            {
                "params": text("params", params),
                "flops": text("flops", flops),
                "bytes": f"{size / 1e3:.0f} kB",
                "packed": f"{packed / 1e3:.0f} kB",
                "latency": f"{ratio:.2f}",
            }
            for params, flops, size, packed, ratio in zip(*table.values(), latency, strict=True)
        ],
    }


def spoken(one: Comparison) -> dict[str, str]:
    """A comparison as a line of the table, in points."""
    return {
        "name": one.name,
        "difference": f"{100 * one.difference:+.2f}",
        "interval": f"[{100 * one.low:+.2f}, {100 * one.high:+.2f}]",
        "p": f"{one.p:.2g}",
        "seeds": str(one.num),
    }


def _mean(values: np.ndarray, digits: int = 1) -> str:
    if len(values) == 1:
        return f"{values[0]:.{digits}f}"
    return f"{values.mean():.{digits}f} ± {values.std(ddof=1):.{digits}f}"


def _pictures(group: Group) -> dict[str, str]:
    found = {"label": f"{group.first.label}, seed {group.first.seed}"}
    for path in group.first.pictures:
        found[path.stem] = base64.b64encode(path.read_bytes()).decode()
    return found


def overview(family: Family) -> Figure:
    """Four plots: curves with bands, accuracy at sparsities, retained area and sparsity at 1 % by beta."""
    figure, axes = _figure(2, 2)
    curves, at, area, lost = axes.flat
    colours = _colours(len(family.betas))
    x = np.arange(len(family.sparsities))
    for colour, group in zip(colours, family.betas.values(), strict=True):
        _band(curves, x, 100 * group.curve("test_acc"), colour, group.first.label)
    for (label, controls), style in zip(
        {"no decoder": family.bottlenecks, "classifier": family.classifiers}.items(), (":", "--"), strict=True
    ):
        for number, group in enumerate(controls.values()):
            values = 100 * group.curve("test_acc").mean(axis=0)
            curves.plot(x, values, style, color="0.45", lw=1, label=None if number else label)
    curves.set_xticks(x, [f"{100 * sparsity:g}" for sparsity in family.sparsities])
    curves.set(
        xlabel="sparsity, %", ylabel="test accuracy, %", title="Pruned networks (band: standard deviation)"
    )
    curves.legend(fontsize=7, ncols=2)

    betas = list((family.betas or family.bottlenecks or family.classifiers).values())
    places = np.arange(len(betas))
    for colour, index in zip(_colours(len(x)), x, strict=True):
        values = [100 * group.curve("test_acc")[:, index] for group in betas]
        _points(at, places, values, colour, f"{100 * family.sparsities[index]:g} %")
    at.set(ylabel="test accuracy, %", title="Accuracy at each sparsity")
    at.legend(fontsize=7, title="sparsity", title_fontsize=7)
    kind = betas[0].first.kind
    _points(area, places, [100 * group.retained() for group in betas], "#0067a5", kind)
    _points(lost, places, [100 * group.at_1_percent() for group in betas], "#0067a5", kind)
    where = {beta: place for place, beta in enumerate(family.betas)}
    without = [(where[beta], group) for beta, group in family.bottlenecks.items() if beta in where]
    if without:
        xs = np.array([place for place, _ in without])
        _points(area, xs, [100 * group.retained() for _, group in without], "#b9540a", "no decoder")
        _points(lost, xs, [100 * group.at_1_percent() for _, group in without], "#b9540a", "no decoder")
    for number, (decay, group) in enumerate(family.classifiers.items()):
        look = ("--", ":", "-.")[number % 3]
        for axis, values in ((area, group.retained()), (lost, group.at_1_percent())):
            level, label = 100 * float(values.mean()), f"classifier, weight decay {decay:g}"
            axis.axhline(level, color="0.45", ls=look, lw=1, label=label)
    area.set(ylabel="retained area, %", title="Accuracy retained, mean over ln(weights left)")
    lost.set(ylabel="sparsity, %", title="Sparsity at a loss of 1 point")
    area.legend(fontsize=7)
    for axis in (at, area, lost):
        _beta_axis(axis, betas)
    return figure


def single(family: Family) -> Figure:
    """Two plots of the only network of a family: accuracies, and what is left of its costs, by sparsity."""
    (group,) = family.groups()
    figure, axes = _figure(1, 2)
    accuracy, cost = axes.flat
    x = np.arange(len(family.sparsities))
    for name, label, colour in (
        ("test_acc", "test, fine-tuned", "#0067a5"),
        ("val_acc", "validation, fine-tuned", "#7a9a01"),
        ("one_shot_test_acc", "test, pruned at once", "#b9540a"),
    ):
        _band(accuracy, x, 100 * group.curve(name), colour, label)
    trained = 100 * float(group.trained("test_acc").mean())
    accuracy.axhline(trained, color="0.45", ls="--", lw=1, label="test, before pruning")
    accuracy.set(ylabel="accuracy, %", title="What pruning costs")
    for name, label, colour in (
        ("params", "parameters", "#0067a5"),
        ("flops", "multiply-adds", "#b9540a"),
        ("bytes_compressed", "size, packed", "#7a9a01"),
    ):
        values = group.curve(name)
        _band(cost, x, 100 * values / values[:, :1], colour, label)
    _band(cost, x, 100 * group.curve("latency_ms") / group.curve("unpruned_latency_ms"), "0.45", "latency")
    cost.set(ylabel="% of the least sparse network", title="What it saves", ylim=(0, None))
    for axis in (accuracy, cost):
        axis.set_xticks(x, [f"{100 * sparsity:g}" for sparsity in family.sparsities])
        axis.set_xlabel("sparsity, %")
        axis.legend(fontsize=7)
    return figure


def proxies(family: Family) -> Figure:
    """Figures of the trained networks' codes against beta, and area against entanglement."""
    groups = list(family.betas.values())
    known = [name for name in PROXIES if name in groups[0].first.result["trained"]]
    columns = 5 if len(known) > 4 else len(known) + 1
    figure, axes = _figure(-(-(len(known) + 1) // columns), columns)
    flat = axes.flat
    for axis, name in zip(flat, known, strict=False):
        _points(axis, np.arange(len(groups)), [group.trained(name) for group in groups], "#0067a5", None)
        if name == "kl" and max(group.trained(name).max() for group in groups) > 100:
            axis.set_yscale("symlog", linthresh=1)
        axis.set(title=PROXIES[name])
        _beta_axis(axis, groups)
    told, name = entanglement(family)
    last = flat[len(known)]
    for x, group, colour in zip(told, groups, _colours(len(groups)), strict=True):
        last.errorbar(
            x, 100 * group.retained().mean(), 100 * _deviation(group.retained()), fmt="o", color=colour, ms=4
        )
        last.annotate(
            group.first.label,
            (x, 100 * group.retained().mean()),
            fontsize=7,
            xytext=(3, 3),
            textcoords="offset points",
        )
    last.set(xlabel=name, ylabel="retained area, %", title="Easier to prune?")
    last.xaxis.label.set_size(7)
    for axis in flat[len(known) + 1 :]:
        axis.set_visible(False)
    return figure


def _figure(rows: int, columns: int) -> tuple[Figure, np.ndarray]:
    from matplotlib.figure import Figure as NewFigure

    figure = NewFigure(
        figsize=(10 if columns == 2 else 2.6 * columns, 3.4 * rows if columns == 2 else 2.6 * rows)
    )
    axes = figure.subplots(rows, columns, squeeze=False)
    figure.set_layout_engine("constrained")
    for axis in axes.flat:
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    return figure, axes


def _colours(num: int) -> list[Colour]:
    from matplotlib import colormaps

    return [colormaps["viridis"](0.92 * i / max(1, num - 1)) for i in range(num)]


def _deviation(values: np.ndarray) -> float:
    return float(values.std(ddof=1)) if len(values) > 1 else 0.0


def _band(axis: Axes, x: np.ndarray, values: np.ndarray, colour: Colour, label: str) -> None:
    mean = values.mean(axis=0)
    reach = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros_like(mean)
    axis.plot(x, mean, "o-", color=colour, ms=3, lw=1.4, label=label)
    axis.fill_between(x, mean - reach, mean + reach, color=colour, alpha=0.15, lw=0)


def _points(
    axis: Axes, x: np.ndarray, values: Sequence[np.ndarray], colour: Colour, label: str | None
) -> None:
    means, reach = [one.mean() for one in values], [_deviation(one) for one in values]
    axis.errorbar(x, means, reach, fmt="o-", ms=3, lw=1.2, capsize=2, color=colour, label=label)


def _beta_axis(axis: Axes, groups: Sequence[Group]) -> None:
    betas = groups[0].first.kind != "classifier"
    names = [f"{group.first.beta if betas else group.first.weight_decay:g}" for group in groups]
    axis.set_xticks(range(len(groups)), names)
    axis.set_xlabel("β" if betas else "weight decay", fontsize=8)


def _svg(figure: Figure) -> str:
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context({"svg.hashsalt": "hwnas", "svg.fonttype": "none"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    drawn = buffer.getvalue()
    return drawn[drawn.index("<svg") :]


def _write_csv(path: Path, study: Study) -> None:
    """Every row of every curve, with what it is of."""
    first = study.families[0].groups()[0].first.result["curve"][0]
    names = [key for key, value in first.items() if isinstance(value, int | float)]
    rows: list[list[object]] = [["family", "kind", "beta", "weight_decay", "seed", *names]]
    for family in study.families:
        for group in family.groups():
            for seed, arm in sorted(group.arms.items()):
                of = [family.name, arm.kind, arm.beta, arm.weight_decay, seed]
                rows += ([*of, *(values[name] for name in names)] for values in arm.result["curve"])
    write_csv(path, rows)
