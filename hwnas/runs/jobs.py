"""The jobs of a sweep, by how they ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hwnas.files import read_json
from hwnas.runs.lock import JOB, in_use


def _read(path: Path) -> dict[str, object] | None:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None  # None: the job is unfinished


@dataclass(frozen=True)
class Jobs:
    """The jobs of a sweep's folder, by how they ended.

    Attributes:
        finished: Names of the folders of finished jobs.
        failed: Reason per folder of a failed job.
        unfinished: Folders of jobs that were interrupted.
        running: Folders that a process works in.
    """

    finished: frozenset[str]
    failed: dict[str, str]
    unfinished: frozenset[str]
    running: frozenset[str] = frozenset()

    @staticmethod
    def read(folder: Path) -> Jobs:
        """Read the jobs of a sweep's folder; one that does not exist has no jobs."""
        finished: set[str] = set()
        unfinished: set[str] = set()
        running: set[str] = set()
        errors: dict[str, str] = {}
        for config in sorted(folder.glob("*/.hydra/config.yaml")):
            job = config.parents[1]
            known = _read(job / JOB)
            works = known is None and in_use(job)
            if known is None and not works:  # it may have ended since the first look
                known = _read(job / JOB)
            if works:
                running.add(job.name)
            elif known is None:
                unfinished.add(job.name)
            elif known.get("status") == "finished":
                finished.add(job.name)
            else:
                errors[job.name] = str(known.get("error"))
        return Jobs(frozenset(finished), errors, frozenset(unfinished), frozenset(running))
