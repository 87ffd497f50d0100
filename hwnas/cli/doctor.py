"""`hwnas doctor`: what is missing, and the commands that mend it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib import metadata
from typing import Any

from hwnas.cli.console import Finding, say, usage


def command(arguments: Sequence[str]) -> int:
    """`hwnas doctor`: what is missing and what mends it; returns 0 if a first search can run, else 1."""
    if arguments:
        return usage(
            "doctor", arguments, "What is missing, and what mends it; exit code 1: no search can run."
        )
    findings = list(packages())
    if not any(finding.state == "error" for finding in findings):
        from hwnas.cli.info import checks  # needs the packages that are found to be there

        try:
            findings += checks()
        except OSError as error:  # a folder that cannot even be looked at
            findings.append(
                Finding(
                    "error", f"{error.filename!a}: {error.strerror}", "export HWNAS_DATA=<a folder of yours>"
                )
            )
    colours = {"ok": "green", "hint": "yellow", "error": "bold red"}
    for finding in findings:
        say(f"{finding.state:<5} {finding.text}", colours[finding.state], len(finding.state))
        if finding.mend:
            say(f"      {finding.mend}", "bold")
    wrong = sum(finding.state == "error" for finding in findings)
    say(f"to mend before a search can run: {wrong}" if wrong else "ready: hwnas search")
    return int(wrong > 0)


def packages() -> Iterator[Finding]:
    """Whether the packages that hwnas needs are installed and new enough, and its extras."""
    from packaging.requirements import Requirement

    try:
        required = [Requirement(text) for text in metadata.requires("hwnas") or []]
    except metadata.PackageNotFoundError:
        yield Finding("hint", "hwnas runs from a folder, it is not installed", "pip install -e .")
        return
    extras = metadata.metadata("hwnas").get_all("Provides-Extra") or []
    needed = [r for r in required if r.marker is None or r.marker.evaluate({"extra": ""})]
    lacking = [text for text in map(_lacking, needed) if text]
    if lacking:
        yield Finding("error", f"needed: {', '.join(lacking)}", "pip install --upgrade hwnas")
    else:
        yield Finding("ok", f"{len(needed)} packages, among them torch {metadata.version('torch')}")
    for extra in extras:
        own = [r for r in required if r not in needed and r.marker and r.marker.evaluate({"extra": extra})]
        if extra != "dev" and (lacking := [text for text in map(_lacking, own) if text]):
            yield Finding("hint", f"extra {extra}: {', '.join(lacking)}", f"pip install 'hwnas[{extra}]'")


def _lacking(requirement: Any) -> str:
    """The fault of an installed package; empty if it has none."""
    try:
        version = metadata.version(requirement.name)
    except metadata.PackageNotFoundError:
        return f"{requirement.name} is not installed"
    if requirement.specifier.contains(version, prereleases=True):
        return ""
    return f"{requirement.name} {version} is not {requirement.specifier}"
