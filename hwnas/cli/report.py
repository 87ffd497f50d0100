"""`hwnas report`: draw pages again."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from hwnas.cli.errors import explain
from hwnas.files import consistent, printable
from hwnas.pruning.report import write_study
from hwnas.pruning.study import result_files
from hwnas.reports import dashboard
from hwnas.reports.page import write_report, write_sweep_report
from hwnas.runs.result import read_plan
from hwnas.store.archive import PLAN


def write_page_of(folder: Path) -> tuple[Path, str]:
    """Draw the page of a run, of a sweep's runs or of a pruning study; its path, and a study's conclusion.

    Raises:
        ValueError: There is none of them in the folder, or a file is corrupt; says which.
    """
    sweep = not (folder / "archive.jsonl").is_file() and any(folder.glob("*/archive.jsonl"))
    if pruned := result_files(folder):
        if any(folder.rglob("archive.jsonl")):
            raise ValueError(
                f"{folder} holds searches and pruning runs ({pruned[0].parent}); give a folder of one kind"
            )
        path, study = write_study(folder)
        return path, study.conclusion
    return write_sweep_report(folder) if sweep else write_report(folder), ""


def command(arguments: list[str]) -> int:
    """`hwnas report`: draw pages again and print their paths; returns the exit code, 0, 1 or 2."""
    parser = argparse.ArgumentParser(
        prog="hwnas report", description="Draw the page of a run, of a sweep's runs, or of a pruning study."
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="folder", help="folder of a run, a sweep, or several sweeps"
    )
    parser.add_argument(
        "--wandb",
        metavar="entity/project",
        help="make a dashboard of a Weights & Biases project, for the objectives of the first folder",
    )
    try:
        given = parser.parse_args(arguments)
        if not given.folders and given.wandb is None:
            parser.error("give the folder of a run or a sweep")
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        for folder in map(Path.expanduser, given.folders):
            path, conclusion = write_page_of(folder)
            if conclusion:
                print(printable(conclusion))
            print(printable(str(path)))
        if given.wandb is not None:
            print(dashboard.create(given.wandb, _objectives(given.folders)))
    except (ValueError, OSError) as error:
        print(f"hwnas report: error: {explain(error, 'search')}", file=sys.stderr)
        return 1
    return 0


def _objectives(folders: Sequence[Path]) -> tuple[str, str]:
    """The first two objectives of the first run there; without one, the usual ones."""
    plans = (path for folder in folders for path in (folder / PLAN, *sorted(folder.glob(f"*/{PLAN}"))))
    path = next((path for path in plans if path.is_file()), None)
    if path is None:
        return "val_acc", "latency_ms"
    with consistent(path):
        quality, cost, *_ = (objective.metric for objective in read_plan(path).objectives)
    return quality, cost
