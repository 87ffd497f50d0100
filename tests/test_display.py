"""What a run shows while it works, with a clock of our own."""

from __future__ import annotations

import os
import re
import types
from collections.abc import Iterator

import pytest

import hwnas.runs.display
from hwnas.runs.display import Display, duration
from hwnas.training.progress import listening, progress


class Clock:
    """Stands still until it is told otherwise."""

    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(hwnas.runs.display, "time", types.SimpleNamespace(perf_counter=clock.perf_counter))
    return clock


def work(clock: Clock, what: str, total: int, seconds: float) -> Iterator[int]:
    """Something long, which tells how far it is."""
    for number in range(total):
        clock.now += seconds
        yield number
        progress(what, number + 1, total)


def test_a_phase_without_a_terminal_says_how_far_it_is(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    """A step takes 4 s: a line for the third, 12 s after the start, and for every third after it."""
    display = Display()
    with display.phase("quality", "preparing rmi"):
        assert all(number < 10 for number in work(clock, "steps", 10, 4.0))
    assert capsys.readouterr().out.splitlines() == [
        "preparing rmi: steps 3/10, about 28 s left",
        "preparing rmi: steps 6/10, about 16 s left",
        "preparing rmi: steps 9/10, about 4 s left",
    ]
    assert display.seconds == {"quality": 40.0}


def test_short_phases_are_silent(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    display = Display()
    with display.phase("quality", "preparing rmi"):
        assert len(list(work(clock, "steps", 900, 0.01))) == 900
    assert capsys.readouterr().out == ""


def test_inside_a_generation(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    """Two generations of two networks of 5 steps of 4 s; the first one also trains what they share."""
    display = Display()
    with display.generations(2):
        for _ in work(clock, "epochs", 2, 12.0):
            pass
        for generation in range(2):
            for _ in work(clock, "networks", 2, 0.0):
                for _ in work(clock, "steps", 5, 4.0):
                    pass
            display.generation(generation, {"evaluations": f"{2 * generation + 2}"}, replayed=False)
    first, second = (line.splitlines() for line in capsys.readouterr().out.split("generation 1/2  "))
    assert first == [
        "generation 0/2, epochs 1/2",
        "generation 0/2, epochs 2/2",
        "generation 0/2, steps 3/5, about 8 s left in generation 1",  # that there are two is not known yet
        "generation 0/2, networks 1/2, steps 1/5, about 16 s left in generation 1",
        "generation 0/2, networks 1/2, steps 4/5, about 4 s left in generation 1",
    ]
    assert second == [
        "evaluations 2",
        "generation 1/2, steps 3/5, about 8 s left",
        "generation 1/2, networks 1/2, steps 1/5, about 16 s left",
        "generation 1/2, networks 1/2, steps 4/5, about 4 s left",
        "generation 2/2  evaluations 4",
    ]


def test_replayed_generations_say_nothing_of_the_time_left(
    clock: Clock, capsys: pytest.CaptureFixture
) -> None:
    display = Display()
    with display.generations(40):
        for generation in range(24):
            clock.now += 40.0 if generation >= 20 else 0.001
            display.generation(generation, {"evaluations": str(generation)}, replayed=generation < 20)
    assert capsys.readouterr().out.splitlines() == [
        "generation 21/40  evaluations 20",
        "generation 22/40  evaluations 21, about 12 min left",
        "generation 23/40  evaluations 22, about 11 min left",
        "generation 24/40  evaluations 23, about 11 min left",
    ]


def test_fast_generations_are_at_most_ten_lines(clock: Clock, capsys: pytest.CaptureFixture) -> None:
    display = Display()
    with display.generations(1000):
        for generation in range(1000):
            clock.now += 0.001
            display.generation(generation, {"evaluations": str(generation + 1)}, replayed=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 10
    assert lines[-1] == "generation 1000/1000  evaluations 1000"


def test_a_line_that_moves_in_a_terminal(
    clock: Clock, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"FORCE_COLOR": "1", "TERM": "xterm", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    display = Display()
    with display.generations(4):
        display.generation(0, {"evaluations": "10"}, replayed=False)
        clock.now += 3.0
        progress("networks", 5, 10)
        assert display._bar is not None
        display._bar.refresh()
    shown = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capsys.readouterr().out)
    assert re.search(r"search ━+\S* +━* *1/4 15 s left networks 5/10  evaluations 10", shown), shown
    assert " 1/4 " in shown


def test_other_processes_are_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[tuple[str, int, int]] = []
    with listening(lambda *said: heard.append(said)):
        progress("steps", 1, 2)
        monkeypatch.setattr(os, "getpid", lambda: 1)  # as after a fork
        progress("steps", 2, 2)
    monkeypatch.undo()
    progress("steps", 2, 2)
    assert heard == [("steps", 1, 2)]


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (3600, "60 min"), (12600, "3.5 h")]
)
def test_durations(seconds: float, words: str) -> None:
    assert duration(seconds) == words
