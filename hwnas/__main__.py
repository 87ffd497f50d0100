"""The command line, `hwnas <command>`; imports only what the command needs."""

from __future__ import annotations

import importlib
import os
import re
import sys

COMMANDS = {
    "search": "find architectures that are accurate and fit a device",
    "train": "train one architecture from scratch and test it",
    "export": "a trained network as ONNX and torch files, with a model card",
    "prune": "train a Beta-VAE that classifies, prune it, measure what is left",
    "profile": "a device as a file of costs per operation",
    "report": "draw the page of a run again, or one of all runs of a sweep",
    "store": "the evaluations that all runs share: show, export, import, prune",
    "data": "benchmark tables: list, verify, convert from the official files",
    "info": "what is here: versions, machine, data, devices",
    "doctor": "what is missing, and the commands that mend it",
}

HELP = """\
hwnas finds neural networks that are accurate and fit a device.

usage: hwnas <command> [group=choice | setting=value ...]

{commands}

  hwnas search                                    the default search, minutes on a laptop
  hwnas search strategy=random seed=1             another choice, another value
  hwnas search -m strategy=mo_hdnas,random seed=0,1,2
  hwnas search resume=<folder of a run>           go on where it stopped
  hwnas <command> --help                          its groups and settings
  eval "$(hwnas -sc install=bash)"                completion in this shell (also zsh, fish)
"""


def main(arguments: list[str] | None = None) -> int:
    """Run a command; returns the exit code: 0, 1 for what went wrong, 2 for wrong usage."""
    try:
        return _dispatch(arguments)
    except KeyboardInterrupt:
        print("hwnas: error: interrupted", file=sys.stderr)
        return 1


def _dispatch(arguments: list[str] | None) -> int:
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not given or given[0] in ("-h", "--help", "help"):
        commands = "\n".join(f"  {name:<9}{text}" for name, text in COMMANDS.items())
        print(HELP.format(commands=commands))
        return 0 if given else 2
    if given[0] == "--version":
        from hwnas import __version__

        print(__version__)
        return 0
    if given[0] in ("-sc", "--shell-completion"):
        return _complete(given)
    command, rest = given[0], given[1:]
    if command not in COMMANDS:
        from hwnas.core import suggestion

        print(
            f"hwnas: error: unknown command {command!r}{suggestion(command, list(COMMANDS))}", file=sys.stderr
        )
        return 2
    if command == "report":
        from hwnas.cli.report import command as report

        return report(rest)
    if command == "data":
        from hwnas.cli.data import command as data

        return data(rest)
    if command == "store":
        from hwnas.cli.store import command as store

        return store(rest)
    if command in ("info", "doctor"):
        from hwnas.cli import info

        return getattr(info, command)(rest)
    try:
        return _run(command, rest)
    except BrokenPipeError:  # the reader of our output, e.g. `| head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _run(command: str, arguments: list[str]) -> int:
    from hwnas.api import prepared
    from hwnas.cli.command import run
    from hwnas.cli.errors import explain

    try:
        arguments = prepared(command, arguments)
    except (ValueError, OSError) as error:
        print(f"hwnas {command}: error: {explain(error, command)}", file=sys.stderr)
        return 1
    main = importlib.import_module(f"hwnas.{command}").main
    return run(main, command, arguments)


def _complete(arguments: list[str]) -> int:
    """Shell completion: Hydra's for one command, without the command in the line; else our commands."""
    from hwnas.cli.command import run

    if any(argument.startswith("query=") for argument in arguments):
        line = os.environ.get("COMP_LINE", "")
        words = line.split()
        if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
            start = words[1] if len(words) > 1 else ""
            print(" ".join(command for command in COMMANDS if command.startswith(start)))
            return 0
        command = words[1]
        if command not in COMMANDS or command in ("report", "data", "store", "info", "doctor"):
            return 0
        rest = line.split(command, 1)[1]
        if command == "profile":
            rest = re.sub(r"^ +\w+ ", " ", rest)  # the action, which Hydra does not know
        os.environ["COMP_LINE"] = words[0] + rest
        os.environ["COMP_POINT"] = str(len(words[0] + rest))
        return run(lambda cfg: None, command, arguments)
    return run(lambda cfg: None, "search", arguments)


if __name__ == "__main__":
    sys.exit(main())
