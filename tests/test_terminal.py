"""What a terminal shows: narrow ones too, and no colour where NO_COLOR is set."""

from __future__ import annotations

import re

import pytest

TOY = ("search", "experiment=toy", "logger=csv", "generations=2", "store.url=null")
COLOUR = re.compile(r"\x1b\[(?:\d+;)*(?:3\d|4\d|9\d|10\d)(?:;\d+)*m")


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", text)


@pytest.mark.parametrize(("columns", "bar"), [(30, False), (100, True)])
def test_progress_fits_the_terminal(columns: int, bar: bool, run_hwnas) -> None:
    """Of the progress line only the figures are cut."""
    env = {"FORCE_COLOR": "1", "COLUMNS": str(columns), "TERM": "xterm"}
    said = run_hwnas(*TOY, env=env).stdout
    (line,) = [part for part in re.split(r"[\r\n]+", plain(said)) if " 2/2 " in f" {part}"][-1:]
    assert len(line.rstrip()) <= columns
    assert "2/2" in line
    assert "evaluations" in line
    assert line.startswith("search ━━") == bar
    assert COLOUR.search(said)


def test_no_color(run_hwnas) -> None:
    env = {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "80", "TERM": "xterm"}
    done = run_hwnas(*TOY, "limits.latency_ms=1.01", env=env, code=1)
    assert "warning: no network keeps limits latency_ms=1.01" in plain(done.stdout)
    assert not COLOUR.search(done.stdout + done.stderr)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["dcotor"], 2, "hwnas: error: unknown command 'dcotor'; did you mean doctor"),
        (["serach"], 2, "hwnas: error: unknown command 'serach'; did you mean search?"),
        (["search", "seed"], 1, "hwnas search: error: 'seed' is not setting=value (hwnas search --help)"),
        (["search", "sed=1"], 1, "hwnas search: error: unknown setting 'sed'; did you mean seed"),
        (["search", "--colour"], 2, "unrecognized arguments: --colour"),
        (["report", "nowhere"], 1, "hwnas report: error: nowhere is not a folder"),
    ],
)
def test_exit_codes_and_hints(arguments: list[str], code: int, message: str, run_hwnas) -> None:
    assert message in run_hwnas(*arguments, code=code).stderr


def test_a_sweep_with_choices_of_ones_own_is_found_again(run_hwnas, tmp_path) -> None:
    """The folder after `--config-dir` is no setting; a repeated sweep goes on."""
    (tmp_path / "mine/strategy").mkdir(parents=True)
    (tmp_path / "mine/strategy/few.yaml").write_text(
        "_target_: hwnas.strategies.random.RandomSearch\npopulation_size: 2\n"
    )
    command = [*TOY, "--config-dir", "mine", "-m", "strategy=few", "seed=0,1"]
    assert "2 jobs finished\n" in run_hwnas(*command).stdout
    assert "2 jobs finished, 2 of them before\n" in run_hwnas(*command).stdout
