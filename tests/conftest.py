from __future__ import annotations

import glob
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from preloaded import Preloaded

from hwnas.files import data_folder

# Tiny networks on a busy machine: threads that wait for each other make the suite twenty times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that run commands take longest: first, so that processes end together."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


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
def one_thread() -> Iterator[None]:
    """For tests that fork: OpenMP waits forever for the threads that a forked process' parent had."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def preloaded() -> Iterator[Preloaded]:
    """A process that commands are forked from."""
    process = Preloaded()
    yield process
    process.close()


@pytest.fixture
def run_hwnas(tmp_path: Path, preloaded: Preloaded) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs the command in an empty folder, as a user does; checks the exit code.

    With an environment of its own it is a new process, since some variables count when a process begins.
    """

    def run(*arguments: str, code: int = 0, env: dict[str, str] | None = None, cwd: Path = tmp_path):
        if env:
            words = [sys.executable, "-m", "hwnas", *arguments]
            new = {**os.environ, **env}
            done = subprocess.run(words, cwd=cwd, env=new, capture_output=True, text=True, timeout=300)
        else:
            done = preloaded.run(arguments, cwd, timeout=300)
        assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def wandb_records() -> Callable[[Path], list[Any]]:
    """Reads what an offline W&B run has kept: protocol buffers of wandb's, in a log of blocks of 32 KiB."""
    from wandb.proto import wandb_internal_pb2

    def read(run: Path) -> list[Any]:
        (path,) = (run / "wandb").glob("offline-run-*/run-*.wandb")
        data = path.read_bytes()
        assert data[:4] == b":W&B"
        records, offset, whole = [], 7, b""
        while offset + 7 <= len(data):
            if 32768 - offset % 32768 < 7:  # the rest of a block is too short for a header
                offset += 32768 - offset % 32768
                continue
            _, length, kind = struct.unpack("<IHB", data[offset : offset + 7])
            whole += data[offset + 7 : offset + 7 + length]
            offset += 7 + length
            if kind in (1, 4):  # whole, or the last fragment
                records.append(wandb_internal_pb2.Record.FromString(whole))
                whole = b""
        return records

    return read


@pytest.fixture(scope="session")
def postgres_process() -> Iterator[tuple[str, Callable[[], None]]]:
    """A PostgreSQL server of our own, in a temporary folder on a free port: its URL, and what restarts it."""
    found = [*map(Path, sorted(glob.glob("/usr/lib/postgresql/*/bin/pg_ctl"))), shutil.which("pg_ctl")]
    binary = next((Path(path) for path in reversed(found) if path), None)
    if binary is None:
        pytest.skip("PostgreSQL is not installed: no pg_ctl")
    # The server refuses to run as root.
    user: dict[str, Any] = {"user": "postgres"} if os.getuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="pg"))  # a socket's path must be short
    if user:
        shutil.chown(folder, "postgres")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    def call(*command: str) -> None:
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, timeout=60, **user)

    call(str(binary.with_name("initdb")), "-D", f"{folder}/data", "-U", "hwnas", "-A", "trust")
    options = f"-p {port} -k {folder} -h 127.0.0.1 -c fsync=off"
    control = [str(binary), "-D", f"{folder}/data", "-l", f"{folder}/log", "-w"]
    call(*control, "-o", options, "start")
    url = f"postgresql+psycopg://hwnas@127.0.0.1:{port}"
    yield url, lambda: call(*control, "-o", options, "-m", "immediate", "restart")
    call(*control, "-m", "immediate", "stop")
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def postgres_server(postgres_process: tuple[str, Callable[[], None]]) -> str:
    """The server's URL, without a database."""
    return postgres_process[0]


@pytest.fixture
def postgres(postgres_server: str) -> str:
    """The URL of an empty database."""
    import sqlalchemy

    name = f"test_{uuid.uuid4().hex[:12]}"
    engine = sqlalchemy.create_engine(f"{postgres_server}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    engine.dispose()
    return f"{postgres_server}/{name}"
