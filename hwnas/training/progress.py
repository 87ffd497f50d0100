"""How far long work has come: whoever works tells it, whoever shows it listens.

Work is nested: a generation has networks, a training of a network has steps. Only the process that listens is
heard, not those that it starts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int], None]
"""Gets what is counted ("steps"), how many are done, and how many there are."""

_listener: ContextVar[tuple[int, Listener] | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Let `listener` hear the progress of everything that is called inside."""
    token = _listener.set((os.getpid(), listener))
    try:
        yield
    finally:
        _listener.reset(token)


def progress(what: str, done: int, total: int) -> None:
    """Tell that `done` of `total` are done; work inside the next one may tell its own progress."""
    found = _listener.get()
    if found is not None and found[0] == os.getpid():
        found[1](what, done, total)
