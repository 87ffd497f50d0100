"""The page and the files of a comparison of strategies."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from hwnas import __version__
from hwnas.files import write_csv, write_json
from hwnas.reports.charts import Curves, axis, banded
from hwnas.reports.template import write_page
from hwnas.runs.display import Display
from hwnas.runs.units import text
from hwnas.searches.compare import Failed
from hwnas.searches.judge import MEASURES, Comparison, Judged, Verdict, amount, in_time, sentences
from hwnas.searches.statistics import LEVEL, interval, mean_ranks
from hwnas.spaces.drawing import NUM_COLOURS

RESULT = "comparison.json"
"""The comparison's figures."""

SCHEMA = 1
"""Version of `RESULT`."""


MOST_WITH_INTERVALS = 4
"""Problems up to which the terminal shows intervals; the page has them."""


def write_comparison(
    folder: Path,
    compared: Comparison,
    failed: Sequence[Failed],
    *,
    command: str,
    doubts: Sequence[str] = (),
) -> Path:
    """Write report.html, comparison.json, runs.csv, curves.csv and tests.csv; returns the page's path.

    Args:
        folder: Where to; it is made if needed.
        compared: The comparison.
        failed: Runs that failed.
        command: What was asked for.
        doubts: Warnings about the figures.

    Raises:
        ValueError: The folder has a report.html that is not a page of hwnas.
    """
    notes = [*compared.notes, *doubts]
    page = write_page("comparison.html.j2", _page(compared, notes, command), folder / "report.html")
    _write_runs(folder / "runs.csv", compared)
    _write_curves(folder / "curves.csv", compared)
    _write_tests(folder / "tests.csv", compared)
    write_json(folder / RESULT, _content(compared, failed, notes, command))
    return page


def _content(
    compared: Comparison, failed: Sequence[Failed], notes: Sequence[str], command: str
) -> dict[str, object]:
    return {
        "schema": SCHEMA,
        "hwnas": __version__,
        "command": command,
        "cases": [
            {
                "case": one.case.name,
                "objectives": [asdict(objective) for objective in one.case.objectives],
                "measure": one.case.measure,
                "unit": one.case.unit,
                "limits": [{limit.metric: limit.bound for limit in kept} for kept in one.case.limits],
                "seeds": one.seeds,
                "evaluations": one.at,
                "seconds": one.times,
                "strategies": {
                    name: {
                        "loss": _mean(one, place).tolist(),
                        "half_width": interval(one.losses[place].mean(axis=1))[1].tolist(),
                        "loss_by_time": one.by_time[place].mean(axis=(0, 1)).tolist(),
                        "loss_by_limit": one.losses[place, ..., -1].mean(axis=0).tolist(),
                        "rank": float(_ranks(one)[place]),
                        "different": float(one.known[place].mean()),
                        "milliseconds_per_architecture": _known(one.spent[place]),
                    }
                    for place, name in enumerate(one.strategies)
                },
            }
            for one in compared.judged
        ],
        "tests": [_test(one) for one in compared.verdicts],
        "failed": [
            {"strategy": one.strategy, "case": one.case, "seed": one.seed, "reason": one.reason}
            for one in failed
        ],
        "notes": list(notes),
    }


def _test(one: Verdict) -> dict[str, object]:
    return {
        "case": one.case or None,
        "by": one.stage,
        "at": _known(one.at),
        "first": one.first,
        "second": one.second,
        "difference": one.paired.difference,
        "low": one.paired.low,
        "high": one.paired.high,
        "wins": one.paired.wins,
        "losses": one.paired.losses,
        "ties": one.paired.ties,
        "p": one.paired.p,
        "p_corrected": one.p,
        "winner": one.winner,
        "words": one.in_words(),
    }


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _mean(one: Judged, place: int) -> np.ndarray:
    """Mean loss of a strategy at each number of architectures."""
    return one.losses[place].mean(axis=(0, 1))


def _ranks(one: Judged) -> np.ndarray:
    """Mean rank of each strategy in the end."""
    return mean_ranks(one.final("evaluations").mean(axis=2))


def _limit_text(one: Judged, place: int) -> str:
    return " and ".join(text(limit.metric, limit.bound) for limit in one.case.limits[place])


def _write_runs(path: Path, compared: Comparison) -> None:
    """A row per run, number of architectures and limit: its loss; and the mean over several limits."""
    rows: list[list[object]] = [["case", "strategy", "seed", "evaluations", "limit", "loss", "unit"]]
    for one in compared.judged:
        limits = [_limit_text(one, place) for place in range(len(one.case.limits))] or ["front"]
        for place, name in enumerate(one.strategies):
            for seed, losses in zip(one.seeds, one.losses[place].swapaxes(1, 2).tolist(), strict=True):
                for at, of in zip(one.at, losses, strict=True):
                    told = [
                        *zip(limits, of, strict=True),
                        *([("mean", sum(of) / len(of))] if len(of) > 1 else []),
                    ]
                    rows += [
                        [one.case.name, name, seed, at, limit, loss, one.case.unit] for limit, loss in told
                    ]
    write_csv(path, rows)


def _write_curves(path: Path, compared: Comparison) -> None:
    """A row per strategy and number of architectures: mean loss over runs and limits, and its interval."""
    rows: list[list[object]] = [["case", "strategy", "evaluations", "loss", "half_width", "unit"]]
    for one in compared.judged:
        for place, name in enumerate(one.strategies):
            mean, half = interval(one.curves[place].mean(axis=1))
            rows += [
                [one.case.name, name, at, float(m), float(h), one.case.unit]
                for at, m, h in zip(one.drawn, mean, half, strict=True)
            ]
    write_csv(path, rows)


def _write_tests(path: Path, compared: Comparison) -> None:
    """A row per test: pairs over all cases and on each, then under single limits, a family of its own."""
    limits = {one.case.name: one for one in compared.judged}
    first, *_ = tests = [_test(one) for one in (*compared.verdicts, *compared.by_limit)] or [{}]
    rows: list[list[object]] = [["limit", *first]]
    for one, test in zip((*compared.verdicts, *compared.by_limit), tests, strict=False):
        limit = "" if one.limit is None else _limit_text(limits[one.case], one.limit)
        rows.append([limit, *("" if value is None else value for value in test.values())])
    write_csv(path, rows)


@dataclass(frozen=True)
class Row:
    """A strategy in a table: its colour, its figures, and whether each is the lowest of its column."""

    name: str
    colour: int
    figures: list[tuple[str, str, bool]]


@dataclass(frozen=True)
class Table:
    """Losses of strategies, one row each."""

    title: str
    columns: list[str]
    rows: list[Row]


def _page(compared: Comparison, notes: Sequence[str], command: str) -> dict[str, object]:
    judged, names = compared.judged, compared.strategies
    colours = {name: 1 + place % (NUM_COLOURS - 1) for place, name in enumerate(names)}
    runs = sum(one.runs for one in judged)
    times = [one for one in judged if one.times]
    headline = [
        (str(len(names)), "strategies"),
        (str(len(judged)), "problem" + "s" * (len(judged) > 1)),
        (_range([len(one.seeds) for one in judged]), "seeds"),
        (_range([one.at[-1] for one in judged]), "different architectures per run"),
        (f"{runs:,}", "runs"),
    ]
    return {
        "command": command,
        "headline": headline,
        "level": f"{LEVEL:.0%}",
        "measures": list(dict.fromkeys((_loss_name(one), MEASURES[one.case.measure]) for one in judged)),
        "kinds": list(colours.items()),
        "overall": sentences(compared.overall),
        "over_all": len(judged) > 1 and any(not one.case for one in compared.verdicts),
        "final": _final(compared, colours),
        "curves_": [_curves(one, colours) for one in judged],
        "numbers": [_by_number(one, colours) for one in judged],
        "times": [_by_time(one, colours) for one in times],
        "limits": [_by_limit(one, colours) for one in judged if len(one.case.limits) > 1],
        "tests": [
            {
                "case": one.case or "mean over the problems",
                "by": "evaluations" if one.stage == "evaluations" else "time",
                "pair": f"{one.first} - {one.second}",
                "difference": amount(one.paired.difference, one.unit),
                "interval": f"[{amount(one.paired.low, '')}, {amount(one.paired.high, '')}]",
                "score": f"{one.paired.wins} / {one.paired.losses} / {one.paired.ties}",
                "p": f"{one.paired.p:.2g}",
                "corrected": f"{one.p:.2g}",
                "winner": one.winner,
            }
            for one in compared.verdicts
        ],
        "notes": list(notes),
    }


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _loss_name(one: Judged) -> str:
    return {"regret": "regret", "gap": "gap", "hypervolume": "missing hypervolume"}[one.case.measure]


def _rows(
    names: Sequence[str],
    colours: dict[str, int],
    values: np.ndarray,
    halves: np.ndarray | None = None,
) -> list[Row]:
    """Rows of losses (strategies, columns); NaN: the strategy was not run there."""
    lowest = np.nanmin(values, axis=0)
    rows = []
    for place, name in enumerate(names):
        figures = [
            (
                "" if math.isnan(value) else f"{value:.2f}",
                ""
                if halves is None or math.isnan(halves[place, column])
                else f"± {halves[place, column]:.2f}",
                bool(value <= lowest[column]),
            )
            for column, value in enumerate(values[place])
        ]
        rows.append(Row(name, colours[name], figures))
    return rows


def _final(compared: Comparison, colours: dict[str, int]) -> Table:
    """Losses in the end on every case, the mean over the cases, and the mean rank."""
    names, judged = compared.strategies, compared.judged
    values = np.full((len(names), len(judged)), np.nan)
    halves, ranks = values.copy(), values.copy()
    for column, one in enumerate(judged):
        own = [names.index(name) for name in one.strategies]
        mean, half = interval(one.final("evaluations").mean(axis=2).T)
        values[own, column], halves[own, column], ranks[own, column] = mean, half, _ranks(one)
    losses = list(dict.fromkeys(_loss_title(one) for one in judged))
    columns = [
        one.case.name if len(losses) == 1 else f"{one.case.name}: {_loss_title(one)}" for one in judged
    ]
    everywhere = not np.isnan(values).any()
    if everywhere and len(judged) > 1 and len(losses) == 1:
        values = np.column_stack([values, values.mean(axis=1)])
        halves = np.column_stack([halves, np.full(len(names), np.nan)])
        columns.append("mean")
    values = np.column_stack([values, np.nanmean(ranks, axis=1)])
    halves = np.column_stack([halves, np.full(len(names), np.nan)])
    last = _range([one.at[-1] for one in judged])
    title = f"mean {' or '.join(losses)} after {last} different architectures"
    return Table(title, [*columns, "mean rank"], _rows(names, colours, values, halves))


def _by_number(one: Judged, colours: dict[str, int]) -> Table:
    mean, half = interval(one.losses.mean(axis=2).swapaxes(0, 1))
    rows = _rows(one.strategies, colours, mean, half)
    extra = [
        replace(
            row,
            figures=[
                *row.figures,
                (f"{one.known[place].mean():,.0f}", "", False),
                ("" if math.isnan(one.spent[place]) else f"{one.spent[place]:.2g}", "", False),
            ],
        )
        for place, row in enumerate(rows)
    ]
    columns = [*(f"{at:,}" for at in one.at), "known in the end", "ms per architecture"]
    return Table(_titled(one), columns, extra)


def _by_time(one: Judged, colours: dict[str, int]) -> Table:
    mean, half = interval(one.by_time.mean(axis=2).swapaxes(0, 1))
    return Table(_titled(one), [in_time(at) for at in one.times], _rows(one.strategies, colours, mean, half))


def _by_limit(one: Judged, colours: dict[str, int]) -> Table:
    mean, half = interval(one.final("evaluations").swapaxes(0, 1))
    columns = [_limit_text(one, place) for place in range(len(one.case.limits))]
    return Table(_titled(one), columns, _rows(one.strategies, colours, mean, half))


def _titled(one: Judged) -> str:
    return f"{one.case.name}: {_loss_title(one)}"


def _loss_title(one: Judged) -> str:
    return f"{_loss_name(one)} in {one.case.unit}".removesuffix(" in ")


def _curves(one: Judged, colours: dict[str, int]) -> Curves:
    """Mean loss over the number of architectures, with its interval, from the first number that is compared.

    Losses before would flatten the others.
    """
    first = one.at[0] if len(one.at) > 1 else one.at[-1] / 10
    from_here = [place for place, at in enumerate(one.drawn) if at >= first]
    xs = [one.drawn[place] for place in from_here]
    bands = {
        name: interval(one.curves[place].mean(axis=1)[:, from_here])
        for place, name in enumerate(one.strategies)
    }
    x = replace(axis("evaluations", xs), label="different architectures")
    highest = max(float(mean.max()) for mean, _ in bands.values())
    y = replace(axis("loss", [0.0, highest]), label=_loss_title(one))
    series = [
        (name, colours[name], *banded(x, y, xs, mean.tolist(), half.tolist()))
        for name, (mean, half) in bands.items()
    ]
    return Curves(one.case.name, x, y, series)


def say(display: Display, compared: Comparison) -> None:
    """The table of the strategies, what was shown, and the notes, in the terminal."""
    from rich.table import Table as Shown

    colours = dict.fromkeys(compared.strategies, 0)
    final = _final(compared, colours)
    shown = Shown(title=final.title, title_justify="left", box=None)
    shown.add_column("strategy", no_wrap=True)
    for column in final.columns:
        shown.add_column(column, justify="right")
    narrow = len(compared.judged) > MOST_WITH_INTERVALS
    for row in final.rows:
        shown.add_row(
            row.name, *(value if narrow else f"{value} {half}".strip() for value, half, _ in row.figures)
        )
    display.console.print(shown)
    for sentence in sentences(compared.overall):
        display.say(sentence)
    for note in compared.notes:
        display.warn(note)
