"""Lines of commands that are none of Hydra's, on terminals of any width."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

USAGE = "usage: hwnas {command}\n\n{what}\n"


@dataclass(frozen=True)
class Finding:
    """A finding of `doctor`.

    Args:
        state: "ok"; "hint", a first search runs without it; or "error", it does not.
        text: What is, or what is missing.
        mend: The command or setting that mends it; empty if nothing has to be.
    """

    state: Literal["ok", "hint", "error"]
    text: str
    mend: str = ""


def say(text: str, style: str = "", styled: int | None = None) -> None:
    """A line, on several where the terminal is narrow; no word is cut, so that paths can be copied.

    Args:
        text: What to say.
        style: Of its first characters.
        styled: How many; None: all.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False)
    lines = [text]
    if console.is_terminal:
        lines = textwrap.wrap(
            text,
            console.width,
            subsequent_indent=" " * 6,
            break_long_words=False,
            break_on_hyphens=False,
        )
    shown = Text("\n".join(lines))
    shown.stylize(style, 0, styled)
    console.print(shown, soft_wrap=True)


def usage(command: str, arguments: Sequence[str], what: str) -> int:
    """Say how a command without arguments is used; returns the exit code, 0 if that was asked for, else 2."""
    if arguments[0] in ("-h", "--help", "help"):
        print(USAGE.format(command=command, what=what), end="")
        return 0
    print(f"hwnas {command}: error: it takes no arguments, not {arguments[0]!r}", file=sys.stderr)
    return 2
