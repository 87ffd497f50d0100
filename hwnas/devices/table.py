"""Devices that were measured on the networks of a space: costs by genotype."""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from hwnas.config import find_file, suggestion
from hwnas.core import Evaluator, FloatArray, Genotype, Goal, SearchSpace
from hwnas.data.tables import read_table

UNITS = ("latency_ms", "energy_mj")
"""Costs of devices; their names end in the unit."""


def check_metric(metric: str) -> None:
    """Raise ValueError unless `metric` is a cost of devices."""
    if metric not in UNITS:
        raise ValueError(f"device.metric {metric!r} is not one of {', '.join(UNITS)}")


class CostTable(Evaluator):
    """Costs by genotype, one row per network.

    Args:
        space: The space of the networks.
        name: Name of the device.
        genotypes: Shape (n, edges), operation indices.
        columns: Values per metric, each (n,); -1 means that the device does not support the network.
        metric: The cost that strategies minimise; the others are reported too.
        source: The file they came from, for messages.

    Attributes:
        genotypes: As given.
        columns: As given, `inf` for -1.
        source: As given.

    Raises:
        ValueError: No such metric; a network that is twice there; a value that is missing or negative.
    """

    def __init__(
        self,
        space: SearchSpace,
        name: str,
        genotypes: np.ndarray,
        columns: Mapping[str, FloatArray],
        *,
        metric: str,
        source: Path,
    ) -> None:
        self.name = name
        if metric not in columns:
            raise ValueError(
                f"no {metric} of device {self.name} in {source}{suggestion(metric, list(columns))}"
            )
        names = [metric, *(other for other in columns if other != metric)]
        self.metrics: dict[str, Goal] = {each: "min" for each in names}  # noqa: C420 - the type is narrower
        codes = _codes(genotypes)
        order = np.argsort(codes)
        self._codes = codes[order]
        self.exhaustive = len(codes) == space.size
        repeated = np.flatnonzero(self._codes[1:] == self._codes[:-1])
        if len(repeated):
            twice = genotypes[order[repeated[0]]]
            raise ValueError(f"{source} has two rows for {space.to_str(tuple(twice.tolist()))}")
        self.genotypes = genotypes
        self.columns = {}
        digest = hashlib.sha256(genotypes.tobytes())
        for each in names:
            values = np.asarray(columns[each], dtype=np.float64)
            if np.isnan(values).any():
                row = int(np.flatnonzero(np.isnan(values))[0])
                raise ValueError(f"{source}: {each} is missing in row {row}")
            values = np.where(values == -1, math.inf, values)  # HW-NAS-Bench: not supported by the device
            if (values < 0).any():
                row = int(np.flatnonzero(values < 0)[0])
                raise ValueError(f"{source}: {each} is {values[row]} in row {row}; costs are not negative")
            self.columns[each] = values
            digest.update(each.encode() + values.tobytes())
        self._sorted = [values[order] for values in self.columns.values()]
        self.source = source
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
        codes = _codes(np.asarray(genotypes))
        rows = np.searchsorted(self._codes, codes).clip(max=len(self._codes) - 1)
        missing = np.flatnonzero(self._codes[rows] != codes)
        if len(missing):
            raise ValueError(f"device {self.name} has no row for {self._space.to_str(genotypes[missing[0]])}")
        picked = [values[rows].tolist() for values in self._sorted]
        return [dict(zip(self.columns, row, strict=True)) for row in zip(*picked, strict=True)]


def table_device(
    space: SearchSpace, *, path: str | None, metric: str, device: str | None = None
) -> CostTable:
    """A device of one's own, from a file with a row per network and a column per metric.

    A CSV with a header, or an .npz with equally long arrays. Networks are named by a column `arch` (strings
    of the space), by `arch_ops` (n, edges) in an .npz, or by `index`, their place in the official order of
    NAS-Bench-201; without any of these there must be a row for each of its architectures, in that order.

    Args:
        space: The space of the networks.
        path: The file, absolute or relative to the working folder or the data folder.
        metric: The cost that strategies minimise, "latency_ms" or "energy_mj".
        device: For files of several devices, whose columns are then `<device>_latency_ms`, ...

    Raises:
        ValueError: No such file, device or metric; a row that is twice there, lacks a value, is negative, or
            names no architecture (named).
    """
    if not path:
        raise ValueError("device=table needs device.path=<CSV or npz with a column arch and one per metric>")
    check_metric(metric)
    file = find_file(path)
    columns = read_csv(file) if file.suffix == ".csv" else read_table(file)
    metrics = costs_of(device, columns, file)
    if device is not None and not metrics:
        known = [name.rpartition("_latency")[0] for name in columns if name.endswith("_latency_ms")]
        raise ValueError(f"{file} has no columns of device {device!r}{suggestion(device, known)}")
    genotypes = _genotypes(file, columns, space, {len(values) for values in metrics.values()})
    for name, values in metrics.items():
        if values.shape != (len(genotypes),):
            raise ValueError(f"{file}: {name} has shape {values.shape}, not ({len(genotypes)},)")
    if len(genotypes) == 0:
        raise ValueError(f"{file} has no rows")
    name = f"table-{file.stem}" if device is None else device
    return CostTable(space, name, genotypes, metrics, metric=metric, source=file)


def costs_of(device: str | None, columns: Mapping[str, np.ndarray], source: Path) -> dict[str, FloatArray]:
    """The columns `<device>_latency_ms`, ... by metric, in any case of letters; None: `latency_ms`, ...

    Raises:
        ValueError: A column holds something that is no number.
    """
    prefix = "" if device is None else f"{device}_"
    units = {f"{prefix}{unit}".lower(): unit for unit in UNITS}
    found = {}
    for name, values in columns.items():
        if name.lower() in units:
            try:
                found[units[name.lower()]] = np.asarray(values, dtype=np.float64)
            except ValueError as error:
                raise ValueError(f"{source}: {name} holds something that is no number ({error})") from None
    return found


def _genotypes(
    file: Path, columns: Mapping[str, np.ndarray], space: SearchSpace, lengths: set[int]
) -> np.ndarray:
    if "arch_ops" in columns:
        genotypes = np.asarray(columns["arch_ops"], dtype=np.intp)
        for row, genotype in enumerate(genotypes.tolist()):
            _named(file, row, lambda genotype=genotype: space.check(genotype))  # type: ignore[misc]
        return genotypes
    if "arch" in columns:
        rows = []
        for row, text in enumerate(columns["arch"].tolist()):
            rows.append(_named(file, row, lambda text=text: space.from_str(str(text))))  # type: ignore[misc]
        return np.array(rows, dtype=np.intp).reshape(-1, len(space.choices))
    if space.name == "nasbench201" and ("index" in columns or lengths == {space.size}):
        official = read_table(find_file("nasbench201.npz"))["arch_ops"].astype(np.intp)
        if "index" not in columns:
            return official
        for row, value in enumerate(columns["index"].tolist()):
            if not str(value).isdigit() or not 0 <= int(value) < len(official):
                raise ValueError(f"{file}, row {row}: index {value!r} is not one of 0..{len(official) - 1}")
        return official[np.asarray(columns["index"], dtype=np.intp)]
    raise ValueError(f"{file} has no column 'arch' that names the networks; it has {', '.join(columns)}")


def _named(file: Path, row: int, parse: Callable[[], Genotype]) -> Genotype:
    try:
        return parse()
    except ValueError as error:
        raise ValueError(f"{file}, row {row}: {error}") from None


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


def _codes(genotypes: np.ndarray) -> np.ndarray:
    """A string of bytes per genotype, to sort and compare; a number would not hold those of large spaces."""
    G = np.ascontiguousarray(genotypes + 1, dtype=np.uint8)  # numpy drops zeros at the end of strings
    return G.view(f"S{G.shape[1]}").ravel()
