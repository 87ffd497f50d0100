"""Devices with measured networks: costs by genotype."""

from __future__ import annotations

import csv
import hashlib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from hwnas.core import Evaluator, FloatArray, Genotype, Goal, SearchSpace, checked, suggestion
from hwnas.data.tables import SIZE, has_order, official_order, read_table
from hwnas.files import find_file
from hwnas.spaces.capabilities import HasNetworks

Cost = Literal["latency_ms", "energy_mj"]
"""Costs of devices; a name ends with the unit."""

UNITS: tuple[str, ...] = get_args(Cost)


class CostTable(Evaluator):
    """Costs by genotype, one row per network.

    Args:
        space: The space of the networks.
        name: Name of the device.
        genotypes: Shape (n, edges), operation indices.
        columns: Values per metric, each (n,); -1 means that the device does not support the network.
        metric: The cost that strategies minimise; the others are reported too.
        source: The file of the costs, for messages.

    A table without some networks of the space can be used for a fit, but `prepare` refuses it.

    Attributes:
        genotypes: As given.
        columns: As given, `inf` for -1.
        source: As given.

    Raises:
        ValueError: No such metric; a network with two rows; a missing or negative value; no supported
            network.
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
        self.exhaustive = True
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
            if (wrong := np.flatnonzero((values < 0) | (np.isfinite(values) & (values > HIGHEST)))).size:
                row = int(wrong[0])
                rule = "not negative" if values[row] < 0 else f"not above {HIGHEST:g}"
                raise ValueError(f"{source}: {each} is {values[row]} in row {row}; costs are {rule}")
            self.columns[each] = values
            digest.update(each.encode() + values.tobytes())
        inside = space.allowed[np.arange(genotypes.shape[1]), genotypes].all(axis=1)
        self._num_known = int(inside.sum())
        for each, values in self.columns.items():
            if inside.any() and np.isinf(values[inside]).all():
                raise ValueError(f"{source}: no network is supported, their {each} is -1 or infinite")
        self._sorted = [values[order] for values in self.columns.values()]
        self.source = source
        self._space = space
        self._version = digest.hexdigest()[:16]

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """The version: a hash of all rows.

        Raises:
            ValueError: The table lacks networks of the space.
        """
        if self._num_known < self._space.size:
            size, name = self._space.size, self._space.name
            raise ValueError(
                f"{self.source} has {self._num_known:,} of the {size if size < 1e9 else float(size):,.7g} "
                f"networks of {name}, and a search needs all; fit a profile to those and search with it: "
                f"hwnas profile fit search_space={name} device.path={self.source} to=mine.json"
            )
        return self._version

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Costs per genotype; `inf` if the device does not support the network.

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


ARCH_KEYS = ("arch", "arch_str", "architecture")
"""Columns that name networks by strings of the space, in any case."""

INDEX_KEYS = ("index", "arch_index")
"""Columns that name networks by their place in NAS-Bench-201's official order, in any case."""

HIGHEST = 1e12
"""Maximum of a cost: thirty years in milliseconds. Larger numbers overflow when costs are multiplied."""


@checked
def table_device(
    space: SearchSpace,
    announce: Callable[[str], None],
    dataset: object = None,
    *,
    path: str | None,
    metric: Cost,
    device: str | None = None,
    benchmark: str | None = None,
) -> CostTable:
    """A user's device, from a file with a row per network and a column per metric.

    The file is a CSV with a header, or an .npz with arrays of equal length; its content decides. Networks are
    named by a column `arch` (strings of the space; also `arch_str` and `architecture`), by `arch_ops` (n,
    edges) in an .npz, or by `index`, their place in the official order of NAS-Bench-201. A table of costs
    alone is read in this order if it has a row for each architecture.

    Args:
        space: The space of the networks.
        announce: Called with a sentence if networks are named only by the order of the rows, or are not those
            of the run.
        dataset: Data set of the run; its images are not read.
        path: The file, absolute or relative to the working folder or the data folder.
        metric: The cost that strategies minimise, "latency_ms" or "energy_mj".
        device: Name of the device in a file of several, with columns `<device>_latency_ms`, ...
        benchmark: "cifar10" if the networks are NAS-Bench-201's for CIFAR-10; None: they are the run's.

    Raises:
        ValueError: No such file, device or metric; no column that names the networks, or two that disagree; a
            row (named) that is repeated, lacks a value, is negative or too large, or names no network.
    """
    if not path:
        raise ValueError("device=table needs device.path=<CSV or npz with a column arch and one per metric>")
    file = find_file(path)
    columns = read_columns(file)
    metrics = costs_of(device, columns, file)
    if device is not None and not metrics:
        known = [name.rpartition("_latency")[0] for name in columns if name.endswith("_latency_ms")]
        raise ValueError(f"{file} has no columns of device {device!r}{suggestion(device, known)}")
    if any(np.size(values) == 0 for values in columns.values()):
        raise ValueError(f"{file} has no rows")
    genotypes = _genotypes(file, columns, metrics, space, announce)
    for name, values in metrics.items():
        if values.shape != (len(genotypes),):
            raise ValueError(f"{file}: {name} has shape {values.shape}, not ({len(genotypes)},)")
    name = f"table-{file.stem}" if device is None else device
    table = CostTable(space, name, genotypes, metrics, metric=metric, source=file)
    if benchmark is not None and benchmark_name(dataset) != benchmark:
        note_networks(table, space, announce)
    return table


def benchmark_name(dataset: object) -> str:
    """Name of a data set in benchmark tables."""
    return str(getattr(dataset, "benchmark", getattr(dataset, "name", "")))


def note_networks(device: Evaluator, space: SearchSpace, announce: Callable[[str], None]) -> None:
    """Note beside a device's answers that its costs are of other networks than the run's.

    Args:
        device: A device with costs of NAS-Bench-201's networks for CIFAR-10.
        space: NAS-Bench-201, with the run's images and classes.
        announce: Called with the note.
    """
    assert isinstance(space, HasNetworks)
    size = "x".join(map(str, space.image_shape))
    device.note = (
        f"costs and limits of {device.name} are those of the CIFAR-10 networks (3x32x32 images, 10 classes, "
        f"16 channels, 5 cells), not of the run's ({size} images, {space.num_classes} classes); to measure "
        "those: hwnas profile export dataset=<yours> to=<folder>"
    )
    announce(device.note)


def costs_of(device: str | None, columns: Mapping[str, np.ndarray], source: Path) -> dict[str, FloatArray]:
    """The columns `<device>_latency_ms`, ... by metric, in any case of letters; None: `latency_ms`, ...

    Raises:
        ValueError: A column has an entry that is no number, or two columns have the same metric.
    """
    prefix = "" if device is None else f"{device}_"
    units = {f"{prefix}{unit}".lower(): unit for unit in UNITS}
    found: dict[str, FloatArray] = {}
    names: dict[str, str] = {}
    for name, values in columns.items():
        if name.lower() not in units:
            continue
        unit = units[name.lower()]
        if unit in found:
            raise ValueError(f"{source} has the columns {names[unit]} and {name}; only one of them can count")
        try:
            found[unit], names[unit] = np.asarray(values, dtype=np.float64), name
        except (ValueError, TypeError) as error:
            raise ValueError(f"{source}: {name} holds something that is no number ({error})") from None
    return found


def _genotypes(
    file: Path,
    columns: Mapping[str, np.ndarray],
    metrics: Mapping[str, FloatArray],
    space: SearchSpace,
    announce: Callable[[str], None],
) -> np.ndarray:
    """The network of each row, shape (n, edges), from all columns that name networks."""
    named, indices = {}, []
    for name, values in columns.items():
        key = name.lower()
        if key == "arch_ops":
            named[name] = _rows(file, values, lambda row: space.check(cast(Genotype, row)))
        elif key in ARCH_KEYS:
            named[name] = _rows(file, values, lambda text: space.from_str(str(text)))
        elif key in INDEX_KEYS and space.name == "nasbench201":
            indices.append(name)
    others = {
        name: values
        for name, values in columns.items()
        if name not in named and name not in indices and not name.lower().endswith(UNITS)
    }
    if not named:
        for name, values in others.items():
            if values.dtype.kind == "U" and values.ndim and _parses(space, str(values[0])):
                named[name] = _rows(file, values, lambda text: space.from_str(str(text)))
    for name in indices:
        if named and not has_order():
            announce(f"{file}: {name} is not compared with {next(iter(named))}: there is no nasbench201.npz")
        else:
            named[name] = official_order()[_indices(file, name, columns[name])]
    if not named:
        return _in_order(file, columns, metrics, others, space, announce)
    (first, genotypes), *rest = named.items()
    for name, same in rest:
        if len(same) != len(genotypes):
            raise ValueError(f"{file}: {first} has {len(genotypes)} rows, {name} {len(same)}")
        differ = np.flatnonzero((same != genotypes).any(axis=1))
        if len(differ):
            row = int(differ[0])
            raise ValueError(
                f"{file}, row {row}: {first} and {name} name different networks, "
                f"{columns[first][row]} and {columns[name][row]}"
            )
    return genotypes


def _in_order(
    file: Path,
    columns: Mapping[str, np.ndarray],
    metrics: Mapping[str, FloatArray],
    others: Mapping[str, np.ndarray],
    space: SearchSpace,
    announce: Callable[[str], None],
) -> np.ndarray:
    """All networks of NAS-Bench-201, for a table that names them only by the order of rows."""
    lengths = {len(values) for values in metrics.values()}
    if lengths != {SIZE} or space.name != "nasbench201":
        names = ", ".join(columns)
        if len(columns) == 1 and re.search(r"[;\t|]", names):
            raise ValueError(f"{file}: columns must be separated by commas; its header is {names!r}")
        if lengths == {SIZE}:
            raise ValueError(
                f"{file} has the {SIZE:,} networks of search_space=nasbench201, not those of {space.name}"
            )
        raise ValueError(f"{file} has no column 'arch' that names the networks; it has {names}")
    if keys := [name for name, values in others.items() if _could_be_key(values)]:
        raise ValueError(
            f"{file}: nothing says what column {keys[0]!r} is, and it could name the networks; call it arch "
            "(strings of the space) or index (places in the official order), or leave it out: a table of "
            f"costs alone, with all {SIZE:,} rows, is read in the official order"
        )
    announce(f"{file} names no networks: its {SIZE:,} rows are read in NAS-Bench-201's official order")
    return official_order()


def _could_be_key(values: np.ndarray) -> bool:
    """Whether a column may name networks instead of describing them."""
    if values.ndim != 1:
        return True
    if values.dtype.kind == "U":
        try:
            values = values.astype(np.float64)
        except ValueError:
            return True
    if values.dtype.kind not in "iuf":
        return True
    start = values[0]
    counted = bool((values == np.arange(len(values)) + start).all()) and start in (0, 1)
    whole = bool((np.isfinite(values) & (values == np.round(values))).all())
    return whole and not counted and not bool((values == start).all())


def _parses(space: SearchSpace, text: str) -> bool:
    try:
        space.from_str(text)
    except ValueError:
        return False
    return True


def _indices(file: Path, name: str, values: np.ndarray) -> np.ndarray:
    """A column of places in the official order."""
    for row, value in enumerate(values.tolist()):
        if not re.fullmatch(r"\d+(\.0*)?", str(value).strip(), flags=re.ASCII) or float(value) >= SIZE:
            raise ValueError(f"{file}, row {row}: {name} {value!r} is not one of 0..{SIZE - 1}")
    return values.astype(np.float64).astype(np.intp)


def _rows(file: Path, values: np.ndarray, parse: Callable[[object], Genotype]) -> np.ndarray:
    """The genotypes of a column, shape (n, edges)."""
    genotypes = []
    for row, value in enumerate(values.tolist()):
        try:
            genotypes.append(parse(value))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{file}, row {row}: {error}") from None
    return np.array(genotypes, dtype=np.intp)


def read_columns(file: Path) -> dict[str, np.ndarray]:
    """The columns of an .npz file, or of a CSV file with a header, as text; the content decides which it is.

    Raises:
        ValueError: Neither of them, no header, a repeated column, or a row of another length (named).
    """
    with file.open("rb") as stream:
        if stream.read(2) == b"PK":
            return read_table(file)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            rows = list(csv.reader(stream))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{file} is neither an .npz file nor text in UTF-8 ({error}); save the table as CSV UTF-8"
        ) from None
    if not rows:
        raise ValueError(f"{file} is empty")
    header, body = [name.strip() for name in rows[0]], [row for row in rows[1:] if row]
    if repeated := [name for name in header if header.count(name) > 1]:
        raise ValueError(f"{file} has the column {repeated[0]!r} twice")
    for number, row in enumerate(body):
        if len(row) != len(header) or "" in (cell.strip() for cell in row):
            raise ValueError(f"{file}, row {number}: {len(header)} values are needed, not {row}")
    return {name: np.array([row[column] for row in body], dtype=str) for column, name in enumerate(header)}


def _codes(genotypes: np.ndarray) -> np.ndarray:
    """A string of bytes per genotype, for sorting and comparing; numbers are too small for large spaces."""
    G = np.ascontiguousarray(genotypes + 1, dtype=np.uint8)  # numpy drops zeros at the end of strings
    return G.view(f"S{G.shape[1]}").ravel()
