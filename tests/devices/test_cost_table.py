from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.core import Genotype
from hwnas.devices.table import CostTable, table_device
from hwnas.searches.exact import quantile
from hwnas.spaces.darts import Darts
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy

CELL = "|none~0|+|none~0|none~1|+|{}~0|none~1|none~2|"


def test_a_csv_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(f"arch,latency_ms\n{CELL.format('skip_connect')},2.5\n{CELL.format('none')},0.5\n")
    mine = table_device(NasBench201(), print, path=str(path), metric="latency_ms")
    assert mine.name == "table-mine"
    assert mine.evaluate([(0,) * 6, (0, 0, 0, 1, 0, 0)]) == [{"latency_ms": 0.5}, {"latency_ms": 2.5}]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "is empty"),
        ("arch,latency_ms\n", "has no rows"),
        ("name,latency_ms\nx,1\n", "has no column 'arch'"),
        (f"arch,speed\n{CELL.format('none')},1\n", "no latency_ms of device"),
        (f"arch,latency_ms\n{CELL.format('none')},\n", "row 0: 2 values are needed"),
        (f"arch,latency_ms\n{CELL.format('none')},fast\n", "latency_ms holds something that is no number"),
        (f"arch,latency_ms\n{CELL.format('none')},nan\n", "latency_ms is missing in row 0"),
        (f"arch,latency_ms\n{CELL.format('none')},-3\n", r"latency_ms is -3\.0 in row 0"),
        (
            f"arch,latency_ms\n{CELL.format('none')},1e308\n",
            r"latency_ms is 1e\+308 in row 0; .* not above 1e\+12",
        ),
        (
            f"arch,latency_ms,Latency_ms\n{CELL.format('none')},3,4\n",
            "the columns latency_ms and Latency_ms;",
        ),
        (f"arch,latency_ms,latency_ms\n{CELL.format('none')},3,4\n", "has the column 'latency_ms' twice"),
        (f"arch;latency_ms\n{CELL.format('none')};3\n", "columns must be separated by commas"),
        (f"arch,latency_ms\n{CELL.format('noon')},3\n", "row 0: unknown operation 'noon'"),
        (f"arch,latency_ms\n{CELL.format('none')},3\n{CELL.format('none')},4\n", "has two rows for"),
    ],
)
def test_a_bad_csv(tmp_path: Path, body: str, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(body)
    with pytest.raises(ValueError, match=message):
        table_device(NasBench201(), print, path=str(path), metric="latency_ms")


def test_a_bad_npz(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match=r"is not a readable \.npz file"):
        table_device(NasBench201(), print, path=str(path), metric="latency_ms")
    with pytest.raises(ValueError, match=r"device=table needs device\.path"):
        table_device(NasBench201(), print, path=None, metric="latency_ms")
    np.savez(path, arch_ops=np.zeros((1, 4), dtype=np.int8), latency_ms=[1.0])
    with pytest.raises(ValueError, match="row 0: a nasbench201 genotype has 6 entries, not 4"):
        table_device(NasBench201(), print, path=str(path), metric="latency_ms")


def test_a_file_of_several_devices(tmp_path: Path) -> None:
    path = tmp_path / "many.npz"
    np.savez(path, arch_ops=np.zeros((1, 6), dtype=np.int8), tx2_latency_ms=[1.0], tx2_energy_mJ=[7.0])
    device = table_device(NasBench201(), print, path=str(path), device="tx2", metric="energy_mj")
    assert device.name == "tx2"
    assert device.evaluate([(0,) * 6]) == [{"latency_ms": 1.0, "energy_mj": 7.0}]
    with pytest.raises(ValueError, match="has no columns of device 'tx3'; did you mean tx2"):
        table_device(NasBench201(), print, path=str(path), device="tx3", metric="latency_ms")
    with pytest.raises(ValueError, match=r"metric must be one of latency_ms, energy_mj, not 'speed'"):
        table_device(NasBench201(), print, path=str(path), metric="speed")


def test_networks_by_their_official_index(
    table_path: Path, table: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("index,latency_ms\n11,2.5\n284,0.5\n")
    mine = table_device(NasBench201(), print, path=str(path), metric="latency_ms")
    genotypes = [tuple(table["arch_ops"][index].tolist()) for index in (284, 11)]
    assert mine.evaluate(genotypes) == [{"latency_ms": 0.5}, {"latency_ms": 2.5}]
    for index in ("15625", "-1", "a"):
        path.write_text(f"index,latency_ms\n{index},2.5\n")
        with pytest.raises(ValueError, match=rf"row 0: index '{index}' is not one of 0\.\.15624"):
            table_device(NasBench201(), print, path=str(path), metric="latency_ms")
    whole = tmp_path / "whole.npz"
    np.savez(whole, latency_ms=np.arange(15625.0))
    ordered = table_device(NasBench201(), print, path=str(whole), metric="latency_ms")
    assert ordered.evaluate(genotypes) == [{"latency_ms": 284.0}, {"latency_ms": 11.0}]


def test_networks_of_a_large_space_are_told_apart(tmp_path: Path) -> None:
    """9^22 networks do not fit 64-bit numbers; operations 0 at the end are no exception."""
    space = FBNet()
    genotypes = np.array([*space.sample(np.random.default_rng(0), 500), (1, *[0] * 21), (0,) * 22])
    latency = np.arange(502.0)
    device = CostTable(
        space, "mine", genotypes, {"latency_ms": latency}, metric="latency_ms", source=tmp_path
    )
    answers = device.evaluate([tuple(row) for row in genotypes.tolist()])
    assert [row["latency_ms"] for row in answers] == latency.tolist()
    with pytest.raises(ValueError, match=r"has 502 of the 9.847709e\+20 networks of fbnet, and a search"):
        device.prepare(space, [])
    with pytest.raises(ValueError, match="device mine has no row for"):
        device.evaluate([(8,) * 22])


def small(rows: list[tuple[Genotype, float]], space: Toy | None = None) -> CostTable:
    genotypes, latency = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    return CostTable(
        space or Toy(2, 2),
        "mine",
        genotypes,
        {"latency_ms": latency},
        metric="latency_ms",
        source=Path("a.csv"),
    )


def test_a_table_that_lacks_networks_is_refused_before_the_search() -> None:
    whole = [((0, 0), 1.0), ((0, 1), 2.0), ((1, 0), 3.0), ((1, 1), 4.0)]
    device = small(whole[:3])
    said = r"a\.csv has 3 of the 4 networks of toy, .* hwnas profile fit search_space=toy device\.path=a\.csv"
    with pytest.raises(ValueError, match=said):
        device.prepare(Toy(2, 2), [])
    with pytest.raises(ValueError, match="has 3 of the 4 networks"):  # not: it cannot tell quantiles
        quantile(Toy(2, 2), device, "latency_ms", 0.5)
    assert small(whole).prepare(Toy(2, 2), [])
    part = Toy(2, 2, choices=[[0], [0, 1]])  # two networks, whose rows are there
    assert small(whole[:3], part).prepare(part, [])


def test_a_device_that_supports_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a\.csv: no network is supported, their latency_ms is -1"):
        small([((0, 0), -1.0), ((1, 1), -1.0)])
    # What is supported is no network of this space.
    with pytest.raises(ValueError, match=r"a\.csv: no network is supported"):
        small([((0, 0), -1.0), ((1, 1), 2.0)], Toy(2, 2, choices=[[0], [0, 1]]))


def as_csv(path: Path, columns: dict[str, Any], encoding: str = "utf-8") -> str:
    rows = zip(*columns.values(), strict=True)
    text = "\n".join([",".join(columns), *(",".join(map(str, row)) for row in rows)])
    path.write_text(text, encoding=encoding)
    return str(path)


@pytest.mark.parametrize("key", ["arch", "Arch", "arch_str", "ARCH_STR", "architecture", "cell"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_whole_table_in_another_order_is_read_by_its_key(
    table: dict[str, np.ndarray], tmp_path: Path, key: str, encoding: str
) -> None:
    order = np.arange(15625)[::-1]
    columns = {key: table["arch_str"][order], "latency_ms": order / 1000}
    path = as_csv(tmp_path / "mine.csv", columns, encoding)
    device = table_device(NasBench201(), refuse_to_say, path=path, metric="latency_ms")
    cells = [tuple(table["arch_ops"][index].tolist()) for index in (0, 11, 15624)]
    assert device.evaluate(cells) == [{"latency_ms": 0.0}, {"latency_ms": 0.011}, {"latency_ms": 15.624}]


def refuse_to_say(text: str) -> None:
    raise AssertionError(text)


@pytest.mark.parametrize(
    "key", ["id", "Unnamed: 0", "name", "genotype", "rank"], ids=lambda key: key.replace(" ", "")
)
def test_a_whole_table_is_not_read_in_order_if_a_column_could_be_its_key(
    table: dict[str, np.ndarray], tmp_path: Path, key: str
) -> None:
    order = np.arange(15625)[::-1]
    names = [f"cell {index}" for index in order] if key in ("name", "genotype") else order
    path = as_csv(tmp_path / "mine.csv", {key: names, "latency_ms": order / 1000})
    with pytest.raises(
        ValueError, match=f"nothing says what column '{key}' is, and it could name the networks"
    ):
        table_device(NasBench201(), print, path=path, metric="latency_ms")
    np.savez(tmp_path / "mine.npz", other=table["arch_ops"][order], latency_ms=order / 1000)
    with pytest.raises(ValueError, match="nothing says what column 'other' is"):
        table_device(NasBench201(), print, path=str(tmp_path / "mine.npz"), metric="latency_ms")


def test_a_whole_table_of_costs_alone_is_read_in_order_and_says_so(
    table: dict[str, np.ndarray], tmp_path: Path
) -> None:
    order = np.arange(15625)
    path = as_csv(tmp_path / "mine.csv", {"": order, "latency_ms": order / 1000, "energy_mj": order / 10})
    said: list[str] = []
    device = table_device(NasBench201(), said.append, path=path, metric="latency_ms")
    assert said == [f"{path} names no networks: its 15,625 rows are read in NAS-Bench-201's official order"]
    assert device.evaluate([tuple(table["arch_ops"][284].tolist())]) == [
        {"latency_ms": 0.284, "energy_mj": 28.4}
    ]
    with pytest.raises(
        ValueError, match=r"has the 15,625 networks of search_space=nasbench201, not those of darts"
    ):
        table_device(Darts(), print, path=path, metric="latency_ms")


def test_keys_that_disagree_are_an_error(table: dict[str, np.ndarray], tmp_path: Path) -> None:
    columns = {"arch": table["arch_str"][[4, 7]], "index": [4, 8], "latency_ms": [1.0, 2.0]}
    path = as_csv(tmp_path / "mine.csv", columns)
    with pytest.raises(ValueError, match=r"row 1: arch and index name different networks, .* and 8"):
        table_device(NasBench201(), print, path=path, metric="latency_ms")
    path = as_csv(tmp_path / "mine.csv", {**columns, "index": [4, 7]})
    device = table_device(NasBench201(), print, path=path, metric="latency_ms")
    assert device.evaluate([tuple(table["arch_ops"][7].tolist())]) == [{"latency_ms": 2.0}]


def test_the_index_needs_the_official_order(
    table: dict[str, np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = as_csv(tmp_path / "mine.csv", {"index": [4, 7], "latency_ms": [1.0, 2.0]})
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    np.savez(tmp_path / "nasbench201.npz", arch_ops=table["arch_ops"][::-1], ops=table["ops"])
    with pytest.raises(ValueError, match=r"nasbench201\.npz: its architectures are not in .* official order"):
        table_device(NasBench201(), print, path=path, metric="latency_ms")
    (tmp_path / "nasbench201.npz").unlink()
    with pytest.raises(ValueError, match=r"file 'nasbench201\.npz' not found"):
        table_device(NasBench201(), print, path=path, metric="latency_ms")
    said: list[str] = []
    path = as_csv(
        tmp_path / "mine.csv", {"arch": table["arch_str"][:2], "index": [0, 1], "latency_ms": [1, 2]}
    )
    table_device(NasBench201(), said.append, path=path, metric="latency_ms")
    assert said == [f"{path}: index is not compared with arch: there is no nasbench201.npz"]


def test_the_content_tells_the_kind_of_a_file(tmp_path: Path) -> None:
    columns = {"arch": [CELL.format("none")], "latency_ms": [1.5]}
    for name in ("mine.CSV", "mine.txt", "mine.npz", "mine"):
        path = as_csv(tmp_path / name, columns)
        device = table_device(NasBench201(), print, path=path, metric="latency_ms")
        assert device.evaluate([(0,) * 6]) == [{"latency_ms": 1.5}]
    path = as_csv(tmp_path / "mine.csv", columns, "utf-16")
    with pytest.raises(ValueError, match=r"mine\.csv is neither an \.npz file nor text in UTF-8"):
        table_device(NasBench201(), print, path=path, metric="latency_ms")
