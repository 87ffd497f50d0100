from __future__ import annotations

from pathlib import Path

import pytest
from study import Case

DEVICES = ("edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss", "fpga")


@pytest.fixture(scope="session")
def cases(table_path: Path) -> list[Case]:
    """Both data sets on the six devices, with costs of their own networks; skips without the table."""
    name = "hwnasbench_nasbench201.npz"
    if not (table_path.parent / name).is_file():
        pytest.skip(f"{name} is not in {table_path.parent}")
    return [Case(dataset, device) for dataset in ("cifar10", "cifar100") for device in DEVICES]
