"""A budget of time, divided among the rungs of an evaluator by the speed of this machine."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from hwnas.core import Evaluator, Genotype
from hwnas.files import consistent, read_json, shaped, write_json
from hwnas.store.workers import cores

BUDGET = "budget.json"
"""File in a run's folder: the budget, and the seconds per network of every rung when the run began."""

UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
"""Seconds of the units that a budget may have."""

NUM_MEASURED = 32
"""Networks whose evaluation is timed, per rung, at most."""


CROWDED = 1.25
"""Seconds of one of several workers against one that is alone: they share memory and caches."""


def seconds_of(budget: object) -> float:
    """The seconds of a budget, e.g. "90s", "10min", "2h", or a number of seconds.

    Raises:
        ValueError: It is something else, or not above 0.
    """
    found = re.fullmatch(r"(\d*\.?\d+) *(s|min|h)?", str(budget))
    value = float(found[1]) * UNITS[found[2] or "s"] if found and not isinstance(budget, bool) else 0.0
    if not value > 0:
        raise ValueError(f"budget must be a time like 90s, 10min or 2h, not {budget!r}")
    return value


def paces(
    folder: Path,
    budget: float,
    evaluator: Evaluator,
    networks: Sequence[Genotype],
    workers: int,
    announce: Callable[[str], None],
    spent: float = 0.0,
) -> tuple[float, list[float]]:
    """Seconds of the budget that are gone, and seconds per network of every rung with so many workers.

    They are measured once, and then read from the folder: a run that is resumed, on whatever machine, has the
    plan that it began with.

    Args:
        folder: The run's folder.
        budget: In seconds, kept beside them.
        evaluator: With rungs, prepared.
        networks: Networks that the search may ask for, of which some are evaluated.
        workers: Parts of a population that are evaluated at once.
        announce: Called with a sentence when speeds are measured.
        spent: Seconds of the budget that were gone before, if this is the beginning of the run.

    Raises:
        ValueError: The file is corrupt.
    """
    path = folder / BUDGET
    if not path.is_file():
        import torch  # loaded by the rungs already

        start, before = time.perf_counter(), torch.get_num_threads()
        if workers > 1:
            torch.set_num_threads(max(1, cores() // workers))
        try:
            crowded = CROWDED if workers > 1 else 1.0
            each = [
                rung.seconds_each(networks[:NUM_MEASURED]) * crowded / workers for rung in evaluator.rungs
            ]
        finally:
            torch.set_num_threads(before)
        took = time.perf_counter() - start
        measured = {
            "seconds": budget,
            "measuring": spent + took,
            "workers": workers,
            "seconds_per_network": each,
        }
        write_json(path, measured)
        announce(f"speed of this machine measured in {took:.1f} s; the plan is made by it, once for the run")
    content = read_json(path)
    with consistent(path):
        shape = {"seconds": float, "measuring?": float, "workers": int, "seconds_per_network": [float]}
        shaped(content, shape)
        if len(content["seconds_per_network"]) != len(evaluator.rungs):
            raise ValueError(f"seconds_per_network must have {len(evaluator.rungs)} numbers")
    return float(content.get("measuring", 0.0)), [float(one) for one in content["seconds_per_network"]]
