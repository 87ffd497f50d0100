"""The devices of HW-NAS-Bench, and any other device that was measured on every network of a space."""

from __future__ import annotations

import csv
import hashlib
import math
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from hwnas.config import data_folder, find_file, suggestion
from hwnas.core import Evaluator, FloatArray, Genotype, Goal, SearchSpace

UNITS = {"latency_ms": "ms", "energy_mj": "mJ"}


class _Costs(Evaluator):
    """Costs by genotype, as arrays."""

    def _keep(
        self,
        space: SearchSpace,
        genotypes: np.ndarray,
        columns: Mapping[str, FloatArray],
        metric: str,
        source: Path,
    ) -> None:
        if metric not in columns:
            raise ValueError(
                f"device {self.name} has no {metric} in {source}{suggestion(metric, list(columns))}"
            )
        names = [metric, *(name for name in columns if name != metric)]
        self.metrics: dict[str, Goal] = {name: "min" for name in names}  # noqa: C420 - the type is narrower
        self._size = len(space.ops)
        codes = _codes(genotypes, self._size)
        order = np.argsort(codes)
        self._codes = codes[order]
        self.exhaustive = len(codes) == space.size
        if len(codes) > 1 and (np.diff(self._codes) == 0).any():
            twice = genotypes[order[int(np.argmin(np.diff(self._codes)))]]
            raise ValueError(f"{source} has two rows for {space.to_str(tuple(twice.tolist()))}")
        self._columns = {}
        digest = hashlib.sha256(genotypes.tobytes())
        for name in self.metrics:
            values = np.asarray(columns[name], dtype=np.float64)
            if np.isnan(values).any():
                row = int(np.flatnonzero(np.isnan(values))[0])
                raise ValueError(f"{source}: {name} is missing in row {row}")
            values = np.where(values == -1, math.inf, values)  # HW-NAS-Bench: not supported by the device
            if (values < 0).any():
                row = int(np.flatnonzero(values < 0)[0])
                raise ValueError(f"{source}: {name} is {values[row]} in row {row}; costs are not negative")
            self._columns[name] = values[order]
            digest.update(name.encode() + values.tobytes())
        self._space = space
        self._version = digest.hexdigest()[:16]

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """The version: a hash of all rows."""
        return self._version

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Costs per genotype; `inf` where the device does not support the network.

        Raises:
            ValueError: The table has no row for a genotype; names it.
        """
        codes = _codes(np.asarray(genotypes), self._size)
        rows = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        missing = np.flatnonzero(self._codes[rows] != codes)
        if len(missing):
            raise ValueError(f"device {self.name} has no row for {self._space.to_str(genotypes[missing[0]])}")
        picked = [column[rows].tolist() for column in self._columns.values()]
        return [dict(zip(self._columns, row, strict=True)) for row in zip(*picked, strict=True)]


class BenchmarkDevice(_Costs):
    """A device of HW-NAS-Bench on NAS-Bench-201 networks (C = 16, N = 5, batch 1).

    Read from `hwnasbench_nasbench201.npz` (`hwnas data hwnasbench` writes it from the official file), else
    from `nasbench201_cifar10_devices.npz`, whose latencies are those of the CIFAR-10 networks.

    Args:
        space: NAS-Bench-201.
        dataset: Its `benchmark` names the table's columns; its images are not read.
        announce: Called with a sentence about where the costs come from.
        device: "edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss" or "fpga".
        metric: The cost that strategies minimise: "latency_ms" or "energy_mj".

    Raises:
        ValueError: No table has the device (says where it was looked for), a metric it does not have, or
            another space.

    Source: Li et al., HW-NAS-Bench, ICLR 2021.
    """

    def __init__(
        self,
        space: SearchSpace,
        dataset: object,
        announce: Callable[[str], None],
        *,
        device: str,
        metric: str,
    ) -> None:
        self.name = device
        if space.name != "nasbench201":
            raise ValueError(f"device={device} covers nasbench201, not the {space.name} space")
        if metric not in UNITS:
            raise ValueError(f"device.metric {metric!r} is not one of {', '.join(UNITS)}")
        name = str(getattr(dataset, "benchmark", getattr(dataset, "name", "")))
        folder = data_folder()
        whole, part = folder / "hwnasbench_nasbench201.npz", folder / "nasbench201_cifar10_devices.npz"
        if whole.is_file():
            arrays = read_columns(whole)
            prefix = f"{'imagenet16_120' if name == 'imagenet16' else name}_{device}_"
            columns = {key.removeprefix(prefix): arrays[key] for key in arrays if key.startswith(prefix)}
            if not columns:
                raise ValueError(
                    f"{whole} has nothing of {device} for {name}; dataset=cifar10 | cifar100 | ..."
                )
            self._keep(space, arrays["arch_ops"], columns, metric, whole)
            return
        if part.is_file():
            arrays = read_columns(part)
            columns = {
                unit: arrays[key] for unit in UNITS for key in arrays if key.lower() == f"{device}_{unit}"
            }
            if columns:
                genotypes = read_columns(find_file("nasbench201.npz"))["arch_ops"]
                self._keep(space, genotypes, columns, metric, part)
                if name != "cifar10":
                    announce(f"costs of {device} are those of the CIFAR-10 networks: {part} has no others")
                return
        raise ValueError(
            f"no costs of {device}: looked for {whole} and {part}; get HW-NAS-Bench-v1_0.pickle from "
            "github.com/GATECH-EIC/HW-NAS-Bench and convert it: hwnas data hwnasbench source=<file>"
        )


class TableDevice(_Costs):
    """A device of one's own, measured on the networks of a space: a column per metric, a row per network.

    A CSV with a header, or an .npz with equally long arrays. Networks are named by a column `arch` (strings
    of the space) or, in an .npz, by `arch_ops` (n, edges). Every other column whose name ends in a unit
    (latency_ms, energy_mj) is a metric.

    Args:
        space: The space of the networks.
        path: The file, absolute or relative to the working folder or the data folder.
        metric: The cost that strategies minimise.

    Raises:
        ValueError: No such file or metric; a row that is twice there, lacks a value, is negative, or names no
            architecture (named).
    """

    def __init__(self, space: SearchSpace, *, path: str | None, metric: str) -> None:
        if not path:
            raise ValueError(
                "device=table needs device.path=<CSV or npz with a column arch and one per metric>"
            )
        file = find_file(path)
        self.name = f"table-{file.stem}"
        columns = read_csv(file) if file.suffix == ".csv" else read_columns(file)
        if "arch_ops" in columns:
            genotypes = np.asarray(columns["arch_ops"], dtype=np.intp)
            for row, genotype in enumerate(genotypes.tolist()):
                _named(file, row, lambda genotype=genotype: space.check(genotype))  # type: ignore[misc]
        elif "arch" in columns:
            rows = []
            for row, text in enumerate(columns["arch"].tolist()):
                rows.append(_named(file, row, lambda text=text: space.from_str(str(text))))  # type: ignore[misc]
            genotypes = np.array(rows, dtype=np.intp).reshape(-1, len(space.choices))
        else:
            raise ValueError(
                f"{file} has no column 'arch' that names the networks; it has {', '.join(columns)}"
            )
        metrics = {}
        for name, values in columns.items():
            if name in UNITS:
                try:
                    metrics[name] = np.asarray(values, dtype=np.float64)
                except ValueError as error:
                    raise ValueError(f"{file}: {name} holds something that is no number ({error})") from None
                if metrics[name].shape != (len(genotypes),):
                    raise ValueError(
                        f"{file}: {name} has shape {metrics[name].shape}, not ({len(genotypes)},)"
                    )
        if len(genotypes) == 0:
            raise ValueError(f"{file} has no rows")
        self._keep(space, genotypes, metrics, metric, file)


def _named(file: Path, row: int, parse: Callable[[], Genotype]) -> Genotype:
    try:
        return parse()
    except ValueError as error:
        raise ValueError(f"{file}, row {row}: {error}") from None


def read_columns(file: Path) -> dict[str, np.ndarray]:
    """All arrays of an .npz file.

    Raises:
        ValueError: Not a readable .npz file.
    """
    try:
        if not zipfile.is_zipfile(file):
            raise zipfile.BadZipFile("not a zip archive")
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError) as error:
        raise ValueError(f"{file} is not a readable .npz file ({error})") from None


def read_csv(file: Path) -> dict[str, np.ndarray]:
    """The columns of a CSV file with a header, as text.

    Raises:
        ValueError: No header, or a row of another length (named).
    """
    with file.open(newline="") as stream:
        rows = list(csv.reader(stream))
    if not rows:
        raise ValueError(f"{file} is empty")
    header, body = [name.strip() for name in rows[0]], [row for row in rows[1:] if row]
    for number, row in enumerate(body):
        if len(row) != len(header) or "" in (cell.strip() for cell in row):
            raise ValueError(f"{file}, row {number}: {len(header)} values are needed, not {row}")
    return {name: np.array([row[column] for row in body]) for column, name in enumerate(header)}


def _codes(genotypes: np.ndarray, num_ops: int) -> np.ndarray:
    """One whole number per genotype."""
    weights = num_ops ** np.arange(genotypes.shape[1], dtype=np.int64)
    return genotypes.astype(np.int64) @ weights
