from __future__ import annotations

from pathlib import Path

import pytest
from study import Case


@pytest.fixture(scope="session")
def cases(table_path: Path) -> list[Case]:
    """Both data sets on the four devices whose tables are public; skips where the data folder lacks them."""
    names = ("hwnasbench_nasbench201.npz", "nasbench201_cifar10_devices.npz")
    if not any((table_path.parent / name).is_file() for name in names):
        pytest.skip(f"neither {' nor '.join(names)} is in {table_path.parent}")
    return [
        Case(dataset, device)
        for dataset in ("cifar10", "cifar100")
        for device in ("raspi4", "pixel3", "eyeriss", "fpga")
    ]
