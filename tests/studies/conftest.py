from __future__ import annotations

import pytest
from study import Case


@pytest.fixture(scope="session")
def cases() -> list[Case]:
    """Both data sets on the four devices whose tables are public; skips where the data folder lacks them."""
    try:
        return [
            Case(dataset, device)
            for dataset in ("cifar10", "cifar100")
            for device in ("raspi4", "pixel3", "eyeriss", "fpga")
        ]
    except ValueError as error:
        pytest.skip(str(error))
