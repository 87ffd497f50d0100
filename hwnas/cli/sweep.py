"""Sweeps that survive: a job's folder is named by its configuration, and finished jobs are not run again.

The same command finds the sweep's folder again, resumes unfinished jobs, runs new and failed ones, and leaves
finished ones alone.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from hwnas import __version__
from hwnas.build import conf_folder
from hwnas.files import printable, write_text
from hwnas.runs.jobs import Jobs, _read
from hwnas.runs.lock import JOB

COMPLETE = "sweep.json"
"""Says in a sweep's folder which commands came to their end, and the jobs that it had then."""

FLAGS = ("-m", "--multirun")
HOW = ("workers", "cluster")
"""Settings of how a run is done, not of what it finds."""

LAUNCH = ("hydra/launcher=", "hydra.launcher.", "hydra.verbose=")
"""Settings of who runs the jobs."""

OPTIONAL = (*LAUNCH, "workers=", "cluster=", "cluster.")
"""How a sweep is run, not what: with others it resumes in the same folder."""

OTHER_JOBS = ("-", "hydra/sweeper=", "hydra.sweeper.", "hydra.searchpath=")
"""Arguments that let something else than the shipped configuration say which jobs there are."""

MOST_CHARACTERS = 100


def job_name(*, _root_: DictConfig) -> str:
    """The folder of a job in its sweep: the overrides that make it different, and a hash of all it is.

    Args:
        _root_: The composed configuration, with Hydra's node.
    """
    config = OmegaConf.to_container(_root_, resolve=False)
    assert isinstance(config, dict)
    hydra = config.pop("hydra")
    for name in HOW:
        config.pop(name, None)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode()).hexdigest()[:8]
    fixed = hydra["job"]["config"]["override_dirname"]["exclude_keys"]
    swept = [text for text in hydra["overrides"]["task"] if text.partition("=")[0].lstrip("+") not in fixed]
    words = re.sub(r"[^\w.=,+-]", "_", ",".join(swept))[:MOST_CHARACTERS]
    return f"{words}-{digest}" if words else digest


OmegaConf.register_new_resolver("hwnas.job", job_name, replace=True)


def sweep_arguments(command: str, arguments: Sequence[str]) -> list[str]:
    """Hydra's arguments for a sweep, with a folder that depends on what is swept; others as they are.

    Args:
        command: The command, e.g. "search".
        arguments: As the user gave them. `hydra.sweep.dir=` chooses another folder.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if not any(flag in arguments for flag in FLAGS):
        return list(arguments)
    overrides = [argument for argument in arguments if not argument.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(overrides)
    except HydraException:
        return list(arguments)  # Hydra says it better
    fixed = [override.key_or_group for override in parsed if not override.is_sweep_override()]
    added = [f"hydra.job.config.override_dirname.exclude_keys=[{','.join(map(_quoted, fixed))}]"]
    if not any(argument.startswith("hydra.sweep.dir=") for argument in overrides):
        what = sorted(text for text in arguments if not text.startswith(OPTIONAL) and text not in FLAGS)
        digest = hashlib.sha256(json.dumps([command, what]).encode()).hexdigest()[:8]
        names = [text.partition("=")[2] for text in overrides if text.startswith("experiment=")]
        name = re.sub(r"\W+", "_", names[-1]) if names else command
        added.append(f"hydra.sweep.dir='multirun/sweeps/{name}-{digest}'")
    return [*arguments, *added]


def _quoted(key: str) -> str:
    return "'" + key.replace("'", "\\'") + "'"


def once(run: Callable[[], object], folder: Path) -> object:
    """Run a job of a sweep unless it finished before; returns what it returned.

    Args:
        run: Runs it.
        folder: The job's folder, which keeps how it ended.
    """
    path = folder / JOB
    known = _read(path)
    if known is not None and known.get("status") == "finished":
        return known.get("returned")
    path.unlink(missing_ok=True)
    returned = run()
    write_text(path, json.dumps({"status": "finished", "returned": returned}) + "\n")
    return returned


def failed(folder: Path, reason: str) -> None:
    """Keep in a job's folder why it failed."""
    write_text(folder / JOB, json.dumps({"status": "failed", "error": reason}) + "\n")


def is_complete(folder: Path, command: str, arguments: Sequence[str], jobs: Jobs) -> bool:
    """Whether a sweep's command came to its end before and there is nothing to do, without composing jobs.

    Args:
        folder: The sweep's folder.
        command: The command, e.g. "search".
        arguments: Hydra's.
        jobs: Those of the folder.
    """
    known = (_read(folder / COMPLETE) or {}).get(_fingerprint(command, arguments))
    return isinstance(known, list) and len(known) > 0 and jobs.finished.issuperset(known)


def complete(folder: Path, command: str, arguments: Sequence[str]) -> None:
    """Keep that a sweep's command came to its end; for when all jobs of its folder are finished."""
    fingerprint = _fingerprint(command, arguments)
    if fingerprint:
        jobs = sorted(Jobs.read(folder).finished)
        known = _read(folder / COMPLETE) or {}
        write_text(folder / COMPLETE, json.dumps({**known, fingerprint: jobs}) + "\n")


def _fingerprint(command: str, arguments: Sequence[str]) -> str:
    """Hash of what says which jobs a sweep has; empty where that is more than arguments and `conf/`."""
    what = sorted(text for text in arguments if not text.startswith(LAUNCH) and text not in FLAGS)
    if any(text.lstrip("+").startswith(OTHER_JOBS) for text in what):
        return ""
    digest = hashlib.sha256(json.dumps([__version__, command, what]).encode())
    for path in sorted(conf_folder().rglob("*.yaml")):
        digest.update(path.relative_to(conf_folder()).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def sweep_folder(arguments: Sequence[str]) -> Path | None:
    """The folder of the sweep that prepared arguments describe; None if they describe none."""
    if not any(flag in arguments for flag in FLAGS):
        return None
    given = [text.partition("=")[2] for text in arguments if text.startswith("hydra.sweep.dir=")]
    return Path(given[-1].strip("'\"")) if given else None


def summarise(folder: Path, before: Jobs) -> int:
    """Say how a sweep ended, and which jobs failed and why; returns the exit code.

    Args:
        folder: The sweep's folder.
        before: Its jobs when the command began.
    """
    jobs = Jobs.read(folder)
    known = len(jobs.finished & before.finished)
    parts = [f"{len(jobs.finished)} jobs finished" + f", {known} of them before" * (known > 0)]
    others = {
        "failed": jobs.failed,
        "unfinished": jobs.unfinished,
        "running in another process": jobs.running,
    }
    parts += [f"{len(names)} {how}" for how, names in others.items() if names]
    print(f"sweep {folder}: {'; '.join(parts)}")
    for name, reason in jobs.failed.items():
        print(printable(f"  {name} failed: {reason}"), file=sys.stderr)
    if any(folder.glob("*/archive.jsonl")):
        print(f"next: hwnas report {shlex.quote(str(folder))}")
    for name in sorted(jobs.unfinished):
        print(f"  {name} is unfinished; the same command resumes it", file=sys.stderr)
    return int(bool(jobs.failed or jobs.unfinished))
