from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwnas.devices.table import CostTable, table_device
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.nasbench201 import NasBench201

CELL = "|none~0|+|none~0|none~1|+|{}~0|none~1|none~2|"


def test_a_csv_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(f"arch,latency_ms\n{CELL.format('skip_connect')},2.5\n{CELL.format('none')},0.5\n")
    mine = table_device(NasBench201(), path=str(path), metric="latency_ms")
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
        (f"arch,latency_ms\n{CELL.format('noon')},3\n", "row 0: unknown operation 'noon'"),
        (f"arch,latency_ms\n{CELL.format('none')},3\n{CELL.format('none')},4\n", "has two rows for"),
    ],
)
def test_a_bad_csv(tmp_path: Path, body: str, message: str) -> None:
    path = tmp_path / "mine.csv"
    path.write_text(body)
    with pytest.raises(ValueError, match=message):
        table_device(NasBench201(), path=str(path), metric="latency_ms")


def test_a_bad_npz(tmp_path: Path) -> None:
    path = tmp_path / "mine.npz"
    path.write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(ValueError, match=r"is not a readable \.npz file"):
        table_device(NasBench201(), path=str(path), metric="latency_ms")
    with pytest.raises(ValueError, match=r"device=table needs device\.path"):
        table_device(NasBench201(), path=None, metric="latency_ms")
    np.savez(path, arch_ops=np.zeros((1, 4), dtype=np.int8), latency_ms=[1.0])
    with pytest.raises(ValueError, match="row 0: a nasbench201 genotype has 6 entries, not 4"):
        table_device(NasBench201(), path=str(path), metric="latency_ms")


def test_a_file_of_several_devices(tmp_path: Path) -> None:
    path = tmp_path / "many.npz"
    np.savez(path, arch_ops=np.zeros((1, 6), dtype=np.int8), tx2_latency_ms=[1.0], tx2_energy_mJ=[7.0])
    device = table_device(NasBench201(), path=str(path), device="tx2", metric="energy_mj")
    assert device.name == "tx2"
    assert device.evaluate([(0,) * 6]) == [{"latency_ms": 1.0, "energy_mj": 7.0}]
    with pytest.raises(ValueError, match="has no columns of device 'tx3'; did you mean tx2"):
        table_device(NasBench201(), path=str(path), device="tx3", metric="latency_ms")
    with pytest.raises(ValueError, match=r"device\.metric 'speed' is not one of latency_ms, energy_mj"):
        table_device(NasBench201(), path=str(path), metric="speed")


def test_networks_by_their_official_index(
    table_path: Path, table: dict[str, np.ndarray], tmp_path: Path
) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("index,latency_ms\n11,2.5\n284,0.5\n")
    mine = table_device(NasBench201(), path=str(path), metric="latency_ms")
    genotypes = [tuple(table["arch_ops"][index].tolist()) for index in (284, 11)]
    assert mine.evaluate(genotypes) == [{"latency_ms": 0.5}, {"latency_ms": 2.5}]
    for index in ("15625", "-1", "a"):
        path.write_text(f"index,latency_ms\n{index},2.5\n")
        with pytest.raises(ValueError, match=rf"row 0: index '{index}' is not one of 0\.\.15624"):
            table_device(NasBench201(), path=str(path), metric="latency_ms")
    whole = tmp_path / "whole.npz"
    np.savez(whole, latency_ms=np.arange(15625.0))
    ordered = table_device(NasBench201(), path=str(whole), metric="latency_ms")
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
    assert not device.exhaustive
    with pytest.raises(ValueError, match="device mine has no row for"):
        device.evaluate([(8,) * 22])
