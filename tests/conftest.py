from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from hwnas.config import data_folder

# Tiny networks on a busy machine: threads that wait for each other make the suite twenty times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")


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


@pytest.fixture
def run_hwnas(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command in an empty folder, as a user does; checks the exit code."""

    def run(*arguments: str, code: int = 0, env: dict[str, str] | None = None, cwd: Path = tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "hwnas", *arguments],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run
