"""The section of a run's page on the found network beside off-the-shelf ones."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.reports.view import View
from hwnas.runs.result import Contender
from hwnas.runs.units import text
from hwnas.searches.finish import advice


@dataclass(frozen=True)
class Row:
    """A network that was compared, written out; `taken`: the one that was trained to the end."""

    name: str
    figures: list[str]
    taken: bool


@dataclass(frozen=True)
class Baselines:
    """The networks, the sentence on which one to take, and how they were compared."""

    rows: list[Row]
    advice: str
    how: str


def baselines(view: View) -> Baselines | None:
    """The networks that were compared; None if none were."""
    result = view.run.result
    if result is None or result.found is None:
        return None
    advised = advice(result) or ""
    taken = None if result.network is None else result.network.name
    rows = [
        Row("the found network", _figures(result.found), taken is None),
        *(Row(other.name, _figures(other), taken == other.name) for other in result.baselines),
    ]
    foreseen = ", with what the rest of the training is expected to bring"
    return Baselines(
        rows,
        advised[:1].upper() + advised[1:] + ".",
        "All were trained by one recipe for the same time, on the same images; validation images chose"
        f"{'' if result.found.foreseen is None else foreseen}, test images did not.",
    )


def _figures(of: Contender) -> list[str]:
    lead = "" if of.lead is None else f"{100 * of.lead:+.1f} ± {100 * (of.lead_std or 0.0):.1f} points"
    return [
        "not measured" if of.latency_ms is None else text("latency_ms", of.latency_ms),
        text("flops", of.flops),
        text("params", of.params),
        "over the limits" if not of.within else "" if of.val_acc is None else text("val_acc", of.val_acc),
        "" if of.test_acc is None else text("test_acc", of.test_acc),
        lead,
        "" if of.test_acc is None else f"{of.seconds:.0f} s",
    ]
