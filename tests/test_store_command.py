"""`hwnas store`: look into the store, carry evaluations to another, throw old ones away."""

from __future__ import annotations

import contextlib
import csv
import math
from pathlib import Path

import pytest

from hwnas.cli.store import command
from hwnas.store.evaluations import EvaluationStore, Row

OLD, NEW = ("rmi", "toy", "digits", "old"), ("rmi", "toy", "digits", "new")
TABLE = ("table", "toy", "cifar10", "1")
DAY = 86_400.0


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A store of two versions of one evaluator, and of another with a network that is not supported."""
    url = (
        f"sqlite:///{tmp_path}/a.sqlite" if request.param == "sqlite" else request.getfixturevalue("postgres")
    )
    with contextlib.closing(EvaluationStore(url, "run")) as store:
        store.add([Row(OLD, f"{i},0", {"rmi": i / 3}, "first", 100 * DAY) for i in range(3)])
        store.add([Row(NEW, f"{i},0", {"rmi": i / 7}, "second", 200 * DAY) for i in range(2)])
        store.add([Row(TABLE, "1,1", {"val_acc": 0.1, "latency_ms": math.inf}, "first", 150 * DAY)])
    return url


def everything(url: str) -> list[Row]:
    with contextlib.closing(EvaluationStore(url, "run")) as store:
        return list(store.rows([part.key for part in store.contents()]))


def test_contents(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command([f"store.url={url}"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][:6] == ["rmi", "toy", "digits", "new", "2", "1"]
    assert lines[2][:6] == ["rmi", "toy", "digits", "old", "3", "1"]
    assert lines[3][:6] == ["table", "toy", "cifar10", "1", "1", "1"]
    assert lines[4][1:6] == ["6", "evaluations,", "0", "in", "progress,"]
    with contextlib.closing(EvaluationStore(url, "run")) as store:
        old = store.contents()[1]
        assert (old.runs, old.latest) == (1, 100 * DAY)
        # "0,0" and '{"rmi": 0.0}', then of 1/3 and 2/3: 3 * 3 + 12 + 27 + 27
        assert old.size == 75
    assert command([f"store.url={url}", "evaluator=table"]) == 0
    assert "1 evaluations" in capsys.readouterr().out


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_what_is_exported_and_imported_is_the_same(url: str, tmp_path: Path, ending: str, capsys) -> None:
    file = tmp_path / f"all.{ending}"
    there = f"sqlite:///{tmp_path}/b.sqlite"
    EvaluationStore(there, "run").close()
    assert command(["export", f"to={file}", f"store.url={url}"]) == 0
    assert "6 evaluations" in capsys.readouterr().out
    assert command(["import", f"from={file}", f"store.url={there}"]) == 0
    assert "6 evaluations, 6 of them new" in capsys.readouterr().out
    key = lambda row: (row.key, row.genotype)  # noqa: E731
    assert sorted(everything(there), key=key) == sorted(everything(url), key=key)
    assert command(["import", f"from={file}", f"store.url={there}"]) == 0
    assert "6 evaluations, 0 of them new" in capsys.readouterr().out


def test_a_file_of_a_choice_has_a_column_per_metric(url: str, tmp_path: Path) -> None:
    file = tmp_path / "new.csv"
    assert command(["export", f"to={file}", f"store.url={url}", "dataset=cifar10"]) == 0
    with file.open(newline="") as opened:
        (row,) = csv.DictReader(opened)
    assert row == {
        **dict(zip(("evaluator", "space", "dataset", "version"), TABLE, strict=True)),
        "genotype": "1,1",
        "run": "first",
        "created": "12960000.0",
        "latency_ms": "inf",
        "val_acc": "0.1",
    }


def test_old_versions_go_when_it_is_said_twice(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(["prune", "keep=1", f"store.url={url}"]) == 0
    out = capsys.readouterr().out
    assert "rmi toy digits old: 3 evaluations" in out
    assert "3 evaluations would go; yes=true removes them" in out
    assert len(everything(url)) == 6
    assert command(["prune", "keep=1", "yes=true", f"store.url={url}"]) == 0
    assert "3 evaluations removed" in capsys.readouterr().out
    assert {row.key for row in everything(url)} == {NEW, TABLE}
    assert command(["prune", "older=1", "evaluator=table", "yes=true", f"store.url={url}"]) == 0
    assert {row.key for row in everything(url)} == {NEW}


def test_pruned_space_is_given_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"sqlite:///{tmp_path}/a.sqlite"
    with contextlib.closing(EvaluationStore(url, "run")) as store:
        store.add([Row(OLD, f"{i},0", {"rmi": i / 3}, "first", 0.0) for i in range(5000)])
        before = store.size()
    assert command(["prune", "keep=0", "yes=true", f"store.url={url}"]) == 0
    with contextlib.closing(EvaluationStore(url, "run")) as store:
        assert store.size() < before / 5


HEAD = "evaluator,space,dataset,version,genotype,run,created"


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["shwo"], 2, "unknown action 'shwo'; did you mean show?"),
        (["show", "evalutor=rmi"], 2, "unknown setting 'evalutor=rmi'; did you mean evaluator=?"),
        (["show", "evaluator=rim"], 1, "the store has no evaluator=rim; did you mean rmi?"),
        (["show", "store.dir=nowhere"], 1, "there is no store nowhere/evaluations.sqlite"),
        (["show", "store.url=mysql://x"], 1, "mysql is not one of sqlite, postgresql"),
        (["export"], 2, "to=<file> is missing"),
        (["export", "to=x.txt"], 2, "to=x.txt must end in .csv or .parquet"),
        (["prune"], 2, "prune needs keep=<versions>, older=<days> or version=<one of them>"),
        (["prune", "keep=-1"], 1, "keep must be a number of at least 0, not '-1'"),
        (["prune", "keep=1", "yes=1"], 2, "yes must be true or false, not 1"),
        (["import", "from=none.csv"], 1, "from=none.csv is not a file"),
        (["import", "from=short.csv"], 1, "short.csv has no column created"),
        (["import", "from=wrong.csv"], 1, "wrong.csv line 3 is no evaluation (could not convert string"),
        (["import", "from=wrong.parquet"], 1, "wrong.parquet is not a Parquet file"),
    ],
)
def test_wrong_input_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys, arguments: list[str], code: int, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    url = "sqlite:///a.sqlite"
    with contextlib.closing(EvaluationStore(url, "run")) as store:
        store.add([Row(OLD, "0,0", {"rmi": 0.5}, "first", 0.0)])
    Path("short.csv").write_text("evaluator,space,dataset,version,genotype,run,rmi\n")
    Path("wrong.csv").write_text(f'{HEAD},rmi\na,b,c,d,"1,1",r,0,0.5\na,b,c,d,"1,2",r,0,much\n')
    Path("wrong.parquet").write_text("no")
    given = arguments if any(a.startswith("store.") for a in arguments) else [*arguments, f"store.url={url}"]
    assert command(given) == code
    said = capsys.readouterr().err
    assert why in said
    assert len(said.splitlines()) == 1
    assert len(everything(url)) == 1


def test_the_store_of_the_working_folder(run_hwnas) -> None:
    run_hwnas("search", "experiment=toy", "logger=csv")
    out = run_hwnas("store").stdout
    assert "toy_val_acc" in out
    assert "628 evaluations, 0 in progress" in out
    assert "hwnas store [action]" in run_hwnas("store", "--help").stdout
