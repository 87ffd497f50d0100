"""Files that are damaged on purpose: every command that reads them ends in one line, whatever they hold."""

from __future__ import annotations

import copy
import csv
import io
import json
import os
import random
import struct
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_report import make_run

from hwnas.__main__ import main
from hwnas.api import read_run
from hwnas.cli import doctor, info
from hwnas.core import Limit
from hwnas.data.images import NoImages, read_npz
from hwnas.data.tables import read_table
from hwnas.devices.measure import read_measurements
from hwnas.devices.profile import Profile
from hwnas.devices.table import read_columns
from hwnas.files import consistent, printable, shaped
from hwnas.pruning.study import Arm
from hwnas.reports.profile import page, table
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.store.evaluations import EvaluationStore

CONTROL = "\x1b[31m\x07<script>[red]"
DEEP: Any = "x"
for _ in range(60):
    DEEP = [DEEP]
VALUES = (
    *(None, [], {}, "", "x", CONTROL, True, 0, -1, 10**19, 1e308, float("nan"), float("inf")),
    *([1], ["a", "b"], [[1e308]], {"a": 1}, {"a": {"b": [{}]}}, DEEP),
)
NETWORK = {"arch": "2-0-0-0", "genotype": [2, 0, 0, 0], "metrics": {"val_acc": 0.8, "latency_ms": 2.0}}
EXTRA = {
    "result": [NETWORK],
    "best": NETWORK,
    "hypervolume": [0.1, 0.2, 0.3],
    "stationary": True,
    "truth": {
        "best": NETWORK,
        "best_test_acc": 0.8,
        "regret": {"val_acc": 0.1},
        "hypervolume_ratio": [0.1, 0.2, 0.3],
        "igd_plus": [None, 0.2, 0.1],
        "front": [[0.8, 2.0], [0.9, 4.0]],
    },
    "transfer": {
        "limits": {"a": {"latency_ms": 3.0}},
        "main": {"a": "latency_ms"},
        "among": "all networks",
        "rows": [{"device": "a", "network": NETWORK, "regret": {"a": 0.0}, "excess": {"a": None}}],
    },
    "yardsticks": {"cheapest": NETWORK},
    "looked_up": {"test_acc": {"value": 0.8, "regret": 0.1, "by_flops": None}},
    "blind_regret": 1.0,
    "blind": {
        "cost": "latency_ms",
        "limits": [1.0, 2.0],
        "regret": {"estimate": [2.0, 0.0], "random": [9.0, 4.0]},
        "tau": {"all": 0.5, "better_half": None},
        "networks": 4,
        "seconds_per_new": 0.1,
    },
    "effects": {"val_acc": {"mean": 0.5, "added": [[0.0, None, 0.1, 0.2, 0.3]] * 4, "r2": 0.5, "num": 9}},
    "sums": {"latency_ms": {"base": 1.0, "added": [[0.0, 1.0, 2.0, 3.0, 4.0]] * 4}},
    "deciles": {"latency_ms": [float(tenth) for tenth in range(11)]},
    "reports": {"test_acc": [0.4, None, 0.7, 0.35]},
    "virtual_seconds": 3600.0,
    "energy_kwh": 0.1,
}


def places(content: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All places in JSON; of a list the first two."""
    yield place
    inner = (
        content.items()
        if isinstance(content, dict)
        else enumerate(content[:2] if isinstance(content, list) else ())
    )
    for key, value in inner:
        yield from places(value, (*place, key))


def damaged(content: Any, num: int) -> Iterator[str]:
    """JSON in which something else stands at a place, or nothing; as many cases of all as asked for."""
    cases = [(place, value) for place in places(content) for value in (*VALUES, ...)]
    for place, value in random.Random(0).sample(cases, min(num, len(cases))):
        if not place:
            yield json.dumps(None if value is ... else value)
            continue
        changed = copy.deepcopy(content)
        node = changed
        for key in place[:-1]:
            node = node[key]
        if value is ...:
            del node[place[-1]]
        else:
            node[place[-1]] = value
        yield json.dumps(changed)


def refusal(action: Any, *arguments: Any) -> str:
    """What an action that may succeed says if it does not."""
    try:
        action(*arguments)
    except ValueError as error:
        return str(error)
    return ""


def check_command(capsys: pytest.CaptureFixture[str], *words: str) -> int:
    """Run a command that may succeed, or end in one line; neither steers the terminal."""
    capsys.readouterr()
    code = main(list(words))
    out, err = capsys.readouterr()
    assert code in (0, 1)
    assert err.count("\n") == code
    assert all(character.isprintable() or character == "\n" for character in out + err)
    return code


@pytest.mark.parametrize("name", ["result.json", "plan.json", "archive.jsonl"])
def test_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    folder = make_run(tmp_path / "run", finished=name == "result.json", **EXTRA)
    assert check_command(capsys, "report", str(folder)) == 0
    path = folder / name
    first, *rest = path.read_text().splitlines() if name == "archive.jsonl" else [path.read_text()]
    refused = 0
    for text in damaged(json.loads(first), 40):
        path.write_text("\n".join([text, *rest, ""]))
        refused += check_command(capsys, "report", str(folder))
    assert refused > 10


PROFILE = {
    "schema": 3,
    "device": "d",
    "space": "nasbench201",
    "network": {"batch_size": 1},
    "origin": {"backend": "torch"},
    "costs": {
        "latency_ms": {
            "base": 1.0,
            "edges": [[0.0, 0.1, 0.2, 0.3, 0.4]] * 6,
            "pairs": {"0,1": [[0.0] * 5] * 5},
            "floor": 0.5,
        }
    },
    "check": {"latency_ms": {"networks": 9, "r2": 0.9, "spearman": 0.9, "median_error": 0.1}},
    "operations": {"a@b": {"median_ms": 1.0, "iqr_ms": 0.1, "rounds": 3, "network_ms": 0.5, "noisy": True}},
    "live": True,
    "networks": {
        "archs": ["a", "b"],
        "fitted": 1,
        "measured": {"latency_ms": [1.0, 2.0]},
        "predicted": {"latency_ms": [1.0, 2.0]},
    },
}
SPACE = NasBench201()


def use(path: Path) -> None:
    """All that is done with a profile."""
    with consistent(path):
        show(Profile.load(path), path)


def show(profile: Profile, path: Path) -> None:
    profile.check_space(SPACE, path)
    genotypes = SPACE.sample(np.random.default_rng(0), 5)
    for metric in profile.costs:
        assert np.isfinite(profile.predict(SPACE, metric, genotypes)).all()
        profile.errors(metric)
    table(profile, SPACE), page(profile, SPACE), profile.summary()


def test_profiles(tmp_path: Path) -> None:
    path, refused = tmp_path / "p.json", 0
    path.write_text(json.dumps(PROFILE))
    use(path)
    for text in damaged(PROFILE, 200):
        path.write_text(text)
        said = refusal(use, path)
        assert not said or str(path) in said
        assert "\n" not in said
        refused += said != ""
    assert 100 < refused < 200


MEASURED = {
    "schema": 1,
    "plan": {
        "space": "nasbench201",
        "network": {"batch_size": 1},
        "fitted": 1,
        "models": [{"name": "a", "input": [1, 3]}],
    },
    "settings": {"noise": 0.1},
    "origin": {"backend": "onnxruntime", "processor": "x"},
    "complete": True,
    "latency_ms": {"a": [1.0, 2.0, 3.0]},
    "passes": {"a": 1},
}


def test_measurements(tmp_path: Path) -> None:
    path, refused = tmp_path / "m.json", 0
    path.write_text(json.dumps(MEASURED))
    assert read_measurements(path) == MEASURED
    for text in damaged(MEASURED, 300):
        path.write_text(text)
        said = refusal(read_measurements, path)
        assert not said or said.startswith(f"{path} holds no measurements (")
        refused += said != ""
    assert refused > 100


def npz(**arrays: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def lying(shape: str, data: bytes = b"") -> bytes:
    """An .npz whose array says a shape that its data has not."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("x_train.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + data)
    return buffer.getvalue()


GOOD = npz(x_train=np.zeros((4, 2, 2), np.uint8), arch=np.array(["a"] * 4))
TABLES = {
    "empty": b"",
    "nothing in it": npz(),
    "cut": GOOD[: len(GOOD) // 2],
    "objects": npz(x_train=np.array([{}], dtype=object), arch=np.array([None], dtype=object)),
    "too large": lying("(1000000000000,)"),
    "overflows": lying("(9223372036854775807, 9223372036854775807)"),
    "negative": lying("(-1,)"),
    "no shape": lying("'x'"),
    "deep": lying("(" * 300 + ")" * 300),
    "no array": lying("(1,), 'x': __import__('os')"),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables(tmp_path: Path, name: str) -> None:
    path = tmp_path / "theirs.npz"
    path.write_bytes(TABLES[name])
    for read in (read_table, read_npz, read_columns):
        said = refusal(read, path)
        assert str(path) in said or name == "nothing in it"
        assert "\n" not in said


def test_an_array_that_expands_a_thousand_times_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x_train.npy", bytes(1 << 20))
    content = path.read_bytes()
    path.write_bytes(content.replace(struct.pack("<I", 1 << 20), struct.pack("<I", 3 << 30)))  # it says 3 GiB
    for read in (read_table, read_npz):
        with pytest.raises(ValueError, match=r"bomb\.npz is not a readable .npz file \(it expands to 3,221,"):
            read(path)


BOMBS = {
    "an entry of the memo, 9 bytes": b"\x80\x02Nr\xff\xff\xff\x0f.",
    "copies of a list": b"\x80\x02c__builtin__\nlist\nq\x00]("
    + b"N" * 100_000
    + b"eq\x01"
    + b"h\x00h\x01\x85R" * 10_000
    + b".",
    "empty sets": b"\x80\x04(" + b"\x8f" * 3_000_000 + b"l.",
}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not bound a process's memory")
@pytest.mark.parametrize("name", BOMBS)
def test_pickles_that_ask_for_gigabytes_are_refused(tmp_path: Path, name: str) -> None:
    """The process takes less than a gigabyte: 4.2 GB for 9 bytes, and 8 GB for 160 KB before."""
    (tmp_path / "bomb.pickle").write_bytes(BOMBS[name])
    code = (
        "import sys; from pathlib import Path; from hwnas.tables.pickles import read_pickle\n"
        "try: read_pickle(Path(sys.argv[1]))\n"
        "except ValueError as error: print(error)\n"
        # Not `ru_maxrss`, which begins with that of the process that started this one.
        "print(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "bomb.pickle")],
        capture_output=True,
        text=True,
        check=True,
    )
    message, kilobytes = done.stdout.splitlines()
    assert message.endswith("is not a readable pickle (it takes more memory than a file of its size may)")
    assert int(kilobytes) < 1_000_000


def test_the_store_says_names_as_they_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Neither control characters nor what rich takes for markup changes what is shown."""
    url = f"sqlite:///{tmp_path}/evaluations.sqlite"
    store = EvaluationStore(url, "run")
    store.put(("[red]e[/]", "\x1b[2Js", "[/nothing]", "1\r2"), {(0, 1): {"val_acc": 0.5}})
    store.close()
    assert check_command(capsys, "store", f"store.url={url}") == 0
    main(["store", f"store.url={url}"])
    out = capsys.readouterr().out
    for name in ("[red]e[/]", "\\x1b[2Js", "[/nothing]", "1\\r2"):
        assert name in out
    assert check_command(capsys, "store", "prune", "keep=0", f"store.url={url}") == 0


@pytest.mark.parametrize(
    "row", ["e,s,d,v,x,r,1,0.5", "e,s,d,v,0,r,nan?,0.5", "e,s,d,v,0,r,1,nan", "e,s", "e,s,d,v,0,r,1,0.5,7"]
)
def test_files_of_evaluations(tmp_path: Path, capsys: pytest.CaptureFixture[str], row: str) -> None:
    EvaluationStore(url := f"sqlite:///{tmp_path}/e.sqlite", "run").close()
    path = tmp_path / "theirs.csv"
    path.write_text(f"evaluator,space,dataset,version,genotype,run,created,val_acc\n{row}\n")
    assert check_command(capsys, "store", "import", f"from={path}", f"store.url={url}") == 1


ODD_WORDS = (
    *(
        "",
        "null",
        "~",
        "~nobody/x",
        ".",
        "/dev/null",
        "x\n y",
        "\x1b[31m",
        "{a: 1}",
        "[a,b]",
        "${x}",
        "'",
        "=",
        "*",
    ),
    *(
        "\udcff",
        "日本",
        "a b",
        "a,b",
        "--",
        "-x",
        "1e400",
        "a" * 5000,
        "folder",
        "link",
        "circle",
        "empty.csv",
    ),
    *("binary.json", "deep.json", "null.json", "utf16.csv", "pipe"),
)


@pytest.fixture
def odd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder, which is the data folder, too, with files that no command expects."""
    for name, content in (
        *(("empty.csv", b""), ("binary.json", bytes(range(256))), ("deep.json", b"[" * 50_000)),
        *(("null.json", b"null"), ("utf16.csv", "arch,latency_ms\n".encode("utf16"))),
    ):
        (tmp_path / name).write_bytes(content)
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    return tmp_path


def ends_in_one_line(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """A command ends with 1 and one line, with 2 for usage, or it succeeds; none steers the terminal."""
    capsys.readouterr()
    try:
        code: object = main(list(words))
    except SystemExit as stop:
        code = stop.code
    out, err = capsys.readouterr()
    assert code in (0, 1, 2), words
    assert code == 2 or err.count("\n") == code, words
    assert all(character.isprintable() or character == "\n" for character in out + err), words


@pytest.mark.parametrize(
    ("command", "num"),
    [
        ("search resume={}", 10),
        ("train resume={}", 4),
        ("prune resume={}", 4),
        ("profile compare {} binary.json", 6),
        ("profile import {}", 6),
        ("profile fit device=table device.path={}", 6),
        ("profile {}", 6),
        ("data {}", 20),
        ("data nasbench201 source={}", 20),
        ("data hwnasbench source={} to=folder", 20),
        ("data verify {}", 20),
        ("report {}", 20),
        ("report folder {}", 20),
        ("store {}", 20),
        ("store import from={}", 20),
        ("store export to={}", 20),
        ("store prune keep={}", 20),
        ("store store.url={}", 20),
    ],
)
def test_odd_words(odd: Path, capsys: pytest.CaptureFixture[str], command: str, num: int) -> None:
    """What is put in place of a file, a folder or a number; another sample of them for each command."""
    words = [
        word for word in ODD_WORDS if not (word == "null" and "resume" in command)
    ]  # that begins a search
    for word in random.Random(command).sample(words, num):
        ends_in_one_line(capsys, *(each.replace("{}", word) for each in command.split()))
        os.chdir(odd)


@pytest.mark.parametrize("folder", ["\udcff", "\x1b[31m", "a" * 5000, "circle", "empty.csv", "~nobody/x"])
def test_odd_data_folders(
    odd: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: str
) -> None:
    monkeypatch.setenv("HWNAS_DATA", folder)
    monkeypatch.setattr(info, "_imports", list)  # whether torch loads takes seconds
    for words in (["info"], ["data", "list"], ["data", "verify"], ["data", "splits"]):
        ends_in_one_line(capsys, *words)
    monkeypatch.setattr(doctor, "packages", list)
    code = main(["doctor"])
    said, err = capsys.readouterr()
    assert (err, said.isascii()) == ("", True)
    assert code == (len(folder) > 255)
    assert all(character.isprintable() or character == "\n" for character in said)


def test_damaged_tables_to_fit(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, genotypes = random.Random(0), SPACE.sample(np.random.default_rng(0), 12)
    rows = [[SPACE.to_str(g), f"{1 + sum(g)}.5", str(2 + i % 2)] for i, g in enumerate(genotypes)]
    cells = (
        "",
        "nan",
        "inf",
        "-1",
        "1e308",
        "1e999",
        "x",
        "\0",
        CONTROL,
        '"',
        "١",
        "1_0",
        rows[0][0],
        "a" * 200_000,
    )
    for _ in range(8):
        table = [["arch", "latency_ms", "energy_mj"], *map(list, rows)]
        row = rng.choice(table)
        change = rng.randrange(4)
        if change < 2:
            row[rng.randrange(3)] = rng.choice(cells)
        elif change == 2:
            table.append(list(row))
        else:
            del row[rng.randrange(3) :]
        (odd / "t.csv").write_text("\n".join(map(",".join, table)) + "\n")
        ends_in_one_line(capsys, "profile", "fit", "device=t.csv", "to=o.json")


def test_damaged_files_of_evaluations(odd: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng, url = random.Random(0), f"store.url=sqlite:///{odd}/e.sqlite"
    EvaluationStore(url.removeprefix("store.url="), "run").close()
    header, good = "evaluator,space,dataset,version,genotype,run,created,val_acc", 'e,s,d,v,"0,1",r,1.5,0.5'
    cells = (
        "",
        "nan",
        "inf",
        "1e999",
        "\0",
        CONTROL,
        '"',
        '"1,1"',
        '"9999999999999999999999,1"',
        "a" * 200_000,
    )
    for _ in range(60):
        lines = [header.split(","), *(next(csv.reader([good])) for _ in range(3))]
        line = rng.choice(lines)
        line[rng.randrange(8)] = rng.choice([*cells, *lines[0]])
        if rng.random() < 0.2:
            del line[rng.randrange(8) :]
        quoted = [
            [f'"{cell}"' if "," in cell and '"' not in cell else cell for cell in each] for each in lines
        ]
        (odd / "e.csv").write_text("\n".join(map(",".join, quoted)) + "\n")
        ends_in_one_line(capsys, "store", "import", "from=e.csv", url)
        ends_in_one_line(capsys, "store", url)


@pytest.mark.parametrize("content", ["3", "[]", '{"toy_val_acc": 1}', "null", ""])
def test_versions_of_a_run(odd: Path, capsys: pytest.CaptureFixture[str], content: str) -> None:
    toy = ("search", "experiment=toy", "generations=1", "strategy.population_size=4", "logger=csv")
    assert main([*toy, "hydra.run.dir=run"]) == 0
    (odd / "run" / "result.json").unlink()
    (odd / "run" / "versions.json").write_text(content)
    ends_in_one_line(capsys, "search", "resume=run")
    assert not (odd / "run" / "result.json").exists()


@pytest.mark.parametrize("name", ["a/../../x", "a\\x", "a\nb", "\x1b[1m", "", None, 3])
def test_names_of_data_sets_are_names_of_files(name: Any) -> None:
    with pytest.raises(ValueError, match=r"^name must be (a word|text)"):
        NoImages(name)
    assert NoImages("cifar10 (mine)").name == "cifar10 (mine)"


def test_a_study_shows_no_file_outside_its_runs(tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_text("hunter2")
    (folder := tmp_path / "run").mkdir()
    (folder / "own.png").write_text("a picture")
    (folder / "notes.txt").write_text("no picture")
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    names = ["own.png", "notes.txt", "link.png", "../secret.png", str(tmp_path / "secret.png"), "gone.png"]
    assert Arm(folder, {"pictures": names}).pictures == [folder / "own.png"]


def test_goals_are_those_of_the_folder(tmp_path: Path) -> None:
    """A metric called f1 is better where it is larger if the run says so; old folders say nothing."""
    said = make_run(tmp_path / "new", limits={"f1": 0.5}, goals={"f1": "max"})
    old = make_run(tmp_path / "old", limits={"f1": 0.5})
    for folder, goal in ((said, "max"), (old, "min")):
        lines = [json.loads(line) for line in (folder / "archive.jsonl").read_text().splitlines()]
        for line in lines:
            line["metrics"]["f1"] = 0.5
        (folder / "archive.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        run = read_run(folder)
        assert run.limits == (Limit("f1", 0.5, goal),)
        assert (run.plan.goal("f1"), run.plan.goal("val_acc")) == (goal, "max")
        assert (run.plan.goal("table_val_acc"), run.plan.goal("flops")) == ("max", "min")  # by their names


def test_printable() -> None:
    assert printable("größer\n\tals β 0.5") == "größer\n\tals β 0.5"
    assert printable("a\x1b[31mb\u202ec\x7f\r") == "a\\x1b[31mb\\u202ec\\x7f\\r"


@pytest.mark.parametrize(
    ("value", "shape", "message"),
    [
        ({"a": [1, "x"]}, {"a": [int]}, r'a\[1\] is "x", not a whole number'),
        ({"a": {"b": None}}, {"a": {str: float}}, r"a\.b is null, not a number"),
        ({}, {"a?": int, "b": int}, "it has no b"),
        ({"a": True}, {"a": int}, "a is true, not a whole number"),
        ({"a": float("nan")}, {"a": (float, None)}, "a is NaN, not a number"),
        ("up", ("max", "min"), 'it is "up", not max or min'),
        ([], {"a": int}, r"it is \[\], not a mapping"),
    ],
)
def test_shapes(value: Any, shape: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shaped(value, shape)


def test_shapes_that_fit() -> None:
    shaped({"a": None, "c": 1, "d": 2.5}, {"a": (float, None), "b?": str, str: float})
    shaped({"goal": "max", "x": [1]}, {"goal": ("max", "min")})
