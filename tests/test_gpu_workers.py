"""Workers on a machine with two GPUs, by name only: nothing is computed there."""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from hwnas.core import Evaluator, Genotype, SearchSpace
from hwnas.store.workers import Processes, Ray, gpus

PARTS = [[(0, 0)], [(0, 1)], [(0, 2)]]


def quiet(sentence: str) -> None:
    pass


class Seeing(Evaluator):
    """Notes the GPU that its process may use, and waits until all workers have a part."""

    name = "seeing"
    metrics = {"rmi": "max"}  # noqa: RUF012

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder, self.workers = folder, workers

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        return "1"

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        (self.folder / f"{os.environ['CUDA_VISIBLE_DEVICES']}-{os.getpid()}").touch()
        deadline = time.monotonic() + 20
        while len(list(self.folder.iterdir())) < self.workers and time.monotonic() < deadline:
            time.sleep(0.02)
        return [{"rmi": 0.0} for _ in genotypes]


def seen(folder: Path) -> list[str]:
    return sorted(path.name.partition("-")[0] for path in folder.iterdir())


def test_every_process_has_one_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three workers share two GPUs, as named by the variable that CUDA reads."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert gpus() == ["5", "7"]
    with contextlib.closing(Processes(3, quiet, quiet)) as workers:
        assert len(list(workers.map(Seeing(tmp_path, 3), PARTS))) == 3
    assert seen(tmp_path) in (["5", "5", "7"], ["5", "7", "7"])
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5,7"
    for nothing in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)
        assert gpus() == []


@pytest.mark.slow
def test_every_task_of_ray_has_its_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray counts GPUs as it is told; a cluster with too few is an error."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(ray, "init", functools.partial(ray.init, num_gpus=2))
    with contextlib.closing(Ray(2, quiet, quiet, address=None, gpus=1)) as workers:
        assert len(list(workers.map(Seeing(tmp_path, 2), PARTS))) == 3
    assert set(seen(tmp_path)) == {"0", "1"}
    with pytest.raises(ValueError, match=r"^cluster.gpus=3 for each worker is more than .* has: 2"):
        Ray(2, quiet, quiet, address=None, gpus=3)
