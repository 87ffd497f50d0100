"""The command line, `hwnas <command>`; imports only what the command needs."""

from __future__ import annotations

import difflib
import importlib
import os
import re
import sys

from hwnas import __version__

COMMANDS = {
    "search": "find architectures that are accurate and fit a device",
    "train": "train one architecture from scratch and test it",
    "export": "a trained network as ONNX and torch files, with a model card",
    "prune": "train a Beta-VAE that classifies, prune it, measure what is left",
    "profile": "a device as a file of costs per operation",
    "report": "draw the page of a run again, or one of all runs of a sweep",
    "compare": "which strategy finds more with as many evaluations, with statistics",
    "store": "the evaluations that all runs share: show, export, import, prune",
    "data": "benchmark tables: list, verify, convert from the official files",
    "info": "what is here: versions, machine, data, devices",
    "doctor": "what is missing, and the commands that mend it",
}

PLAIN = ("report", "compare", "store", "data", "info", "doctor")
"""The commands that are none of Hydra's."""

HELP = """\
hwnas finds neural networks that are accurate and fit a device.

usage: hwnas <command> [group=choice | setting=value ...]

{commands}

  hwnas search                                    the default search, minutes on a laptop
  hwnas search strategy=random seed=1             another choice, another value
  hwnas search -m strategy=mo_hdnas,random seed=0,1,2
  hwnas search resume=<folder of a run>           resume where it stopped
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
        print(__version__)
        return 0
    completes = given[0] in ("-sc", "--shell-completion")
    command, rest = ("", []) if completes else (given[0], given[1:])
    if command and command not in COMMANDS:
        near = difflib.get_close_matches(command, COMMANDS, n=3, cutoff=0.5)
        hint = f"; did you mean {' or '.join(near)}?" if near else f"; known: {', '.join(COMMANDS)}"
        print(f"hwnas: error: unknown command {command!r}{hint}", file=sys.stderr)
        return 2
    if command in PLAIN:
        return importlib.import_module(f"hwnas.cli.{command}").command(rest)
    from hwnas.cli.command import prepare_and_run, run  # Hydra: not for --help

    try:
        if completes:
            command = _completed(given)
            return run(command, given) if command else 0
        return prepare_and_run(command, rest)
    except BrokenPipeError:  # the reader of our output, e.g. `| head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _completed(arguments: list[str]) -> str:
    """The command whose words Hydra completes, without it in the line; empty if that is done here."""
    if not any(argument.startswith("query=") for argument in arguments):
        return "search"
    line = os.environ.get("COMP_LINE", "")
    words = line.split()
    if len(words) < 2 or (len(words) == 2 and not line.endswith(" ")):
        start = words[1] if len(words) > 1 else ""
        print(" ".join(command for command in COMMANDS if command.startswith(start)))
        return ""
    command = words[1]
    if command not in COMMANDS or command in PLAIN:
        return ""
    rest = line.split(command, 1)[1]
    if command == "profile":
        rest = re.sub(r"^ +\w+ ", " ", rest)  # the action, which Hydra does not know
    os.environ["COMP_LINE"] = words[0] + rest
    os.environ["COMP_POINT"] = str(len(words[0] + rest))
    return command


if __name__ == "__main__":
    sys.exit(main())
