"""The jobs of a sweep, by how they ended."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hwnas.files import read_json
from hwnas.runs.lock import in_use

JOB = "job.json"
"""Says in a job's folder whether it finished, and what it returned, or failed, and why."""


def _read(path: Path) -> dict[str, object] | None:
    try:
        content = read_json(path)
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None  # None: a job that never ended, and can go on


@dataclass(frozen=True)
class Jobs:
    """The jobs of a sweep's folder, by how they ended.

    Attributes:
        finished: Names of their folders.
        failed: Name of the folder, and why.
        torn: Those that are unfinished.
        running: Those that a process works on.
    """

    finished: frozenset[str]
    failed: dict[str, str]
    torn: frozenset[str]
    running: frozenset[str] = frozenset()

    @staticmethod
    def read(folder: Path) -> Jobs:
        """Look through a sweep's folder; one that does not exist has no jobs."""
        finished: set[str] = set()
        torn: set[str] = set()
        running: set[str] = set()
        errors: dict[str, str] = {}
        for config in sorted(folder.glob("*/.hydra/config.yaml")):
            job = config.parents[1]
            known = _read(job / JOB)
            works = known is None and in_use(job)
            if known is None and not works:  # it may have ended just now
                known = _read(job / JOB)
            if works:
                running.add(job.name)
            elif known is None:
                torn.add(job.name)
            elif known.get("status") == "finished":
                finished.add(job.name)
            else:
                errors[job.name] = str(known.get("error"))
        return Jobs(frozenset(finished), errors, frozenset(torn), frozenset(running))
