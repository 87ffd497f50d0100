from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from hwnas.config import data_folder


@pytest.fixture(scope="session")
def table_path() -> Path:
    path = data_folder() / "nasbench201.npz"
    if not path.is_file():
        pytest.skip(f"the benchmark table {path} is missing; HWNAS_DATA names the folder that has it")
    return path


@pytest.fixture(scope="session")
def table(table_path: Path) -> dict[str, np.ndarray]:
    with np.load(table_path) as arrays:
        return {
            key: arrays[key]
            for key in arrays.files
            if key in ("arch_str", "arch_ops", "ops", "cifar10_test_200")
            or key.endswith(("_params_M", "_flops_M"))
        }
