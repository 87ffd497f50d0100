"""`hwnas prune`: train a Beta-VAE that classifies, prune it, measure what is left."""

from __future__ import annotations

import time
from pathlib import Path

from hwnas.build import read_yaml
from hwnas.cli.job import Job
from hwnas.core import Interrupted
from hwnas.files import (
    write_json,
)
from hwnas.pruning.report import write_study
from hwnas.pruning.run import _leave, _returned, _Run
from hwnas.pruning.study import read_pruned, result_files
from hwnas.runs.display import Display
from hwnas.runs.folder import choices
from hwnas.runs.tracking import Tracker


def main(job: Job) -> float:
    """The command; returns what `_returned` says."""
    cfg, folder = job.cfg, job.folder
    display = Display()
    ignored = ("logger", "resume", "experiment")
    settings = {key: value for key, value in job.settings.items() if key not in ignored}
    stored = folder / "settings.json"
    finished = folder / "result.json"
    if finished.is_file():
        earlier = read_pruned(finished)
        display.say(f"this run is finished already; see {finished}")
        _leave(folder, display, swept=job.swept)
        return _returned(earlier, swept=job.swept)
    run = _Run(cfg, folder, display)
    write_json(stored, settings)
    tracker = Tracker(
        folder,
        cfg.logger,
        job.settings,
        run_id=f"{folder.parent.name}-{folder.name}".replace("_", "-"),
        job="prune",
        warn=display.warn,
    )
    completed = False
    start = time.perf_counter()
    try:
        figures = run.everything(tracker)
        result = {
            "status": "finished",
            "model": choices(folder)["model"],
            "dataset": run.dataset.name,
            "seed": run.seed,
            **figures,
            "settings": settings,
            "seconds": {"total": time.perf_counter() - start, **display.seconds},
        }
        write_json(finished, result)
        completed = True
        _leave(folder, display, swept=job.swept)
    except KeyboardInterrupt:
        raise Interrupted(f"interrupted; resume with: hwnas prune resume={folder}") from None
    finally:
        tracker.finish(failed=not completed)
    return _returned(result, swept=job.swept)


def after_sweep(folder: Path) -> None:
    """Draw the page of a sweep's finished runs, if there are several, and say what it concludes.

    Raises:
        ValueError: What `write_study` raises.
    """
    files = result_files(folder)
    if len(files) > 1:
        logger = read_yaml(files[0].parent / ".hydra" / "config.yaml").logger
        path, study = write_study(folder, logger=logger)
        print(study.conclusion)
        print(f"report: {path}")
