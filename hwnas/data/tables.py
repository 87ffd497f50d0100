"""Benchmark tables: from the official files to compact .npz files, and checks of these.

Source: Dong et al., NATS-Bench, TPAMI 2021 (topology = NAS-Bench-201, ICLR 2020); Li et al., HW-NAS-Bench,
ICLR 2021.
"""

from __future__ import annotations

import hashlib
import re
import tarfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hwnas.config import find_file
from hwnas.data.arrays import UNREADABLE, arrays_of
from hwnas.data.pickles import loads, read_pickle, read_torch
from hwnas.files import replacing
from hwnas.spaces.nasbench201 import OPS, NasBench201

SIZE = len(OPS) ** 6
"""Architectures of NAS-Bench-201."""

SEEDS = (777, 888, 999)
"""Training seeds of the 200-epoch runs."""

DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet16": "ImageNet16-120"}
"""Our names of HW-NAS-Bench's data sets, and its own."""

DEVICES = ("edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss", "fpga")
UNITS = {"latency": "latency_ms", "energy": "energy_mj"}
WITH_ENERGY = ("edgegpu", "eyeriss", "fpga")
METRICS = {
    f"{device}_{quantity}": f"{device}_{unit}"
    for quantity, unit in UNITS.items()
    for device in DEVICES
    if quantity == "latency" or device in WITH_ENERGY
}
"""HW-NAS-Bench's metrics and our columns."""

Table = dict[str, np.ndarray]


def nasbench201(
    source: Path, *, partial: bool = False, progress: Callable[[int], None] | None = None
) -> Table:
    """The compact table of NAS-Bench-201 from the official files.

    Accuracies in percent, of the last epoch, means over the training seeds that were run. `cifar10_valid_` is
    of networks trained on a 25k half; `valid_200` of the other data sets is 2 * valtest - test, the held-out
    set's other half. Columns are (15625,), in the official order; `_seeds` (15625, 3), NaN where not run.
    ImageNet16-120's begin with `imagenet16_` and are there if the source has them.

    Args:
        source: NATS-Bench's "simple" topology archive, as .tar or unpacked; or NAS-Bench-201's .pth, which is
            read as a whole (about 9 GB of memory).
        partial: Whether architectures may be missing; their rows are then NaN, with 0 seeds.
        progress: Called with the number of architectures read so far.

    Raises:
        ValueError: The source is incomplete, unreadable, or not of this layout; says which file or entry, and
            what it lacks.
        OSError: A file cannot be read.

    Source: Dong et al., NATS-Bench, TPAMI 2021; its api_utils.py names the data sets and splits.
    """
    with _records(source) as (where, names, indices, record):
        genotypes = _genotypes(names, where)
        present = [index for index in range(SIZE) if index in indices]
        if len(present) < SIZE and not partial:
            missing = next(index for index in range(SIZE) if index not in indices)
            raise ValueError(
                f"{source} has {len(present):,} of {SIZE:,} architectures (the first that is missing: "
                f"{missing}); partial=true writes NaN for the others"
            )
        if not present:
            raise ValueError(f"{source} has none of the {SIZE:,} architectures")
        table: Table = {
            "arch_str": np.array(names),
            "arch_ops": genotypes,
            "ops": np.array(OPS),
            "n_seeds_200": np.zeros(SIZE, dtype=np.int8),
        }
        for count, index in enumerate(present, start=1):
            for key, value in _row(*record(index), index, names[index]).items():
                if key not in table:
                    shape, dtype = ((SIZE, 3), np.float32) if key.endswith("_seeds") else (SIZE, np.float64)
                    table[key] = np.full(shape, np.nan, dtype=dtype)
                table[key][index] = value
            if progress is not None:
                progress(count)
    return table


Records = tuple[str, list[str], Container[int], Callable[[int], tuple[Mapping[str, Any], str]]]
"""Where the architectures are named, their names, which are there, and how to read one with its place."""


@contextmanager
def _records(source: Path) -> Iterator[Records]:
    if source.is_dir():
        files = {file.name: file for file in source.iterdir() if file.is_file()}
        yield _simple(files, lambda name: read_pickle(files[name]), str(source))
    elif not source.exists():
        raise ValueError(f"source={source} does not exist")
    elif tarfile.is_tarfile(source):
        try:
            with tarfile.open(source) as archive:
                members = {Path(member.name).name: member for member in archive if member.isfile()}

                def read(name: str) -> Any:
                    stream = archive.extractfile(members[name])
                    assert stream is not None  # it is a file
                    return loads(stream.read(), f"{source}: {name}")

                yield _simple(members, read, str(source))
        except (tarfile.TarError, EOFError, zlib.error) as error:
            raise ValueError(f"{source} is not a readable archive ({error})") from None
    elif source.suffix == ".pth":
        content = read_torch(source)
        names = _texts(_get(content, "meta_archs", str(source)), "meta_archs", str(source))
        infos = _get(content, "arch2infos", str(source))
        if not isinstance(infos, Mapping):
            raise ValueError(f"{source}: ['arch2infos'] is no dictionary")

        def entry(index: int) -> tuple[Mapping[str, Any], str]:
            here = f"{source}: ['arch2infos'][{index}]"
            return {"12": _get(infos[index], "less", here), "200": _get(infos[index], "full", here)}, here

        yield f"{source}: meta_archs", names, infos, entry
    else:
        raise ValueError(
            f'{source} is none of NATS-Bench\'s "simple" topology archive (.tar, or its folder) and '
            "NAS-Bench-201's .pth"
        )


def _simple(files: Iterable[str], read: Callable[[str], Any], where: str) -> Records:
    """The records of NATS-Bench's "simple" archive: a file for the names and one per architecture."""
    meta = "meta.pickle.pbz2"
    if meta not in files:
        raise ValueError(f'{where} has no {meta}; source is the NATS-Bench "simple" topology archive')
    names = _texts(_get(read(meta), "meta_archs", f"{where}: {meta}"), "meta_archs", f"{where}: {meta}")
    of = {int(name[:6]): name for name in files if re.fullmatch(r"\d{6}\.pickle\.pbz2", name, flags=re.ASCII)}
    return f"{where}: meta_archs", names, of, lambda index: (read(of[index]), f"{where}: {of[index]}")


def _row(content: Any, source: str, index: int, name: str) -> dict[str, Any]:
    """One architecture's row."""
    row: dict[str, Any] = {}
    for epochs in (12, 200):
        where = f"{source}: [{str(epochs)!r}]"
        part = _get(content, str(epochs), source)
        if _get(part, "arch_index", where) != index or _get(part, "arch_str", where) != name:
            raise ValueError(f"{where} is not architecture {index}, {name}")
        runs = _get(part, "all_results", where)
        where += "['all_results']"
        if not isinstance(runs, Mapping):
            raise ValueError(f"{where} is no dictionary")
        valid = _per_seed(runs, "cifar10-valid", ("eval_acc1es", f"x-valid@{epochs - 1}"), where)
        test = _per_seed(runs, "cifar10", ("eval_acc1es", f"ori-test@{epochs - 1}"), where)
        row[f"cifar10_valid_{epochs}"], row[f"cifar10_test_{epochs}"] = _mean(valid), _mean(test)
        if epochs == 200:
            row["n_seeds_200"] = sum(seed in valid for seed in SEEDS)
            row["cifar10_valid_200_seeds"] = [valid.get(seed, np.nan) for seed in SEEDS]
            seconds = _per_seed(runs, "cifar10-valid", ("train_times",), where)
            row["cifar10_train_seconds_200"] = _mean(seconds)
            row |= _size(runs, "cifar10", "cifar10", where)
        for dataset, prefix in (("cifar100", "cifar100"), ("ImageNet16-120", "imagenet16")):
            if dataset != "cifar100" and not any(_is_of(key, dataset) for key in runs):
                continue
            test = _per_seed(runs, dataset, ("eval_acc1es", f"x-test@{epochs - 1}"), where)
            row[f"{prefix}_test_{epochs}"] = _mean(test)
            if epochs == 12:
                valid = _per_seed(runs, dataset, ("eval_acc1es", "x-valid@11"), where)
                row[f"{prefix}_valid_12"] = _mean(valid)
                continue
            both = _per_seed(runs, dataset, ("eval_acc1es", "ori-test@199"), where)
            row[f"{prefix}_valtest_200"] = _mean(both)
            row[f"{prefix}_valtest_200_seeds"] = [both.get(seed, np.nan) for seed in SEEDS]
            row[f"{prefix}_valid_200"] = 2 * _mean(both) - _mean(test)
            row[f"{prefix}_train_seconds_200"] = _mean(_per_seed(runs, dataset, ("train_times",), where))
            row |= _size(runs, dataset, prefix, where)
    return row


def _size(runs: Mapping[Any, Any], dataset: str, prefix: str, where: str) -> dict[str, float]:
    return {
        f"{prefix}_params_M": _mean(_per_seed(runs, dataset, ("params",), where)),
        f"{prefix}_flops_M": _mean(_per_seed(runs, dataset, ("flop",), where)),
    }


def _is_of(key: object, dataset: str) -> bool:
    """Whether a training's key, (data set, seed), is of this data set."""
    return isinstance(key, tuple) and len(key) == 2 and key[0] == dataset


def _per_seed(runs: Mapping[Any, Any], dataset: str, path: Sequence[str], where: str) -> dict[int, float]:
    """A number of each training on a data set, by seed; of numbers per epoch their sum."""
    found = {}
    for key, run in runs.items():
        if not _is_of(key, dataset):
            continue
        if not isinstance(key[1], int):
            raise ValueError(f"{where}: {key} names no seed")
        value, here = run, f"{where}[{key}]"
        for name in path:
            value, here = _get(value, name, here), f"{here}[{name!r}]"
        if path[-1] == "train_times":
            if not isinstance(value, Mapping) or not value:
                raise ValueError(f"{here} is no dictionary of seconds per epoch")
            value = sum(_costs(list(value.values()), here).tolist())
        found[key[1]] = _number(value, here, high=100 if path[0] == "eval_acc1es" else np.inf)
    if not found:
        raise ValueError(f"{where} has no training on {dataset}")
    return dict(sorted(found.items()))


def _mean(per_seed: Mapping[int, float]) -> float:
    values = list(per_seed.values())
    return values[0] if len(set(values)) == 1 else float(np.mean(values))


def hwnasbench(file: Path) -> dict[str, Table]:
    """The compact tables of HW-NAS-Bench from its official pickle, by file name.

    `hwnasbench_nasbench201.npz`: arch_ops and a column `{dataset}_{device}_latency_ms` or `_energy_mj` per
    metric; inf where the device does not support the network (the benchmark writes -1).
    `hwnasbench_fbnet.npz`: per metric the names `{device}_latency_ms_ops` of all operations (n,) and their
    costs `{device}_latency_ms` (n,); `fbnet_operations` names those of a network. ms and mJ.

    Args:
        file: HW-NAS-Bench-v1_0.pickle.

    Raises:
        ValueError: Unreadable, or not of the benchmark's layout; says what is missing or wrong.

    Source: Li et al., HW-NAS-Bench, ICLR 2021; hw_nas_bench_api.py.
    """
    content, where = read_pickle(file), str(file)
    cells = _get(content, "nasbench201", where)
    table: Table = {}
    names: list[str] = []
    for dataset, official in DATASETS.items():
        here = f"{where}: ['nasbench201'][{official!r}]"
        part = _get(cells, official, f"{where}: ['nasbench201']")
        configs = _get(part, "config", here)
        if not isinstance(configs, list | tuple | np.ndarray):
            raise ValueError(f"{here}['config'] is no list")
        found = _texts(
            [_get(config, "arch_str", f"{here}['config'][{row}]") for row, config in enumerate(configs)],
            "config",
            here,
        )
        if not names:
            names = found
            table["arch_ops"] = _genotypes(names, f"{here}['config']")
            table["ops"] = np.array(OPS)
        elif found != names:
            raise ValueError(
                f"{here}['config'] lists other architectures than {next(iter(DATASETS.values()))}"
            )
        for metric, column in METRICS.items():
            values = _costs(_get(part, metric, here), f"{here}[{metric!r}]")
            if len(values) != SIZE:
                raise ValueError(f"{here}[{metric!r}] has {len(values):,} values, not {SIZE:,}")
            table[f"{dataset}_{column}"] = values

    blocks = _get(content, "fbnet", where)
    look_up: Table = {}
    for metric, column in METRICS.items():
        if metric.startswith("edgetpu"):  # not measured on FBNet's operations
            continue
        here = f"{where}: ['fbnet'][{metric!r}]"
        part = _get(blocks, metric, f"{where}: ['fbnet']")
        if not isinstance(part, Mapping) or not part:
            raise ValueError(f"{here} is no dictionary of costs per operation")
        look_up[f"{column}_ops"] = np.array(_texts(list(part), "keys", here))
        look_up[column] = _costs(list(part.values()), here)
    return {"hwnasbench_nasbench201.npz": table, "hwnasbench_fbnet.npz": look_up}


FBNET_OPS = (
    "exp1_kernel3_group1",
    "exp1_kernel3_group2",
    "exp3_kernel3_group1",
    "exp6_kernel3_group1",
    "exp1_kernel5_group1",
    "exp1_kernel5_group2",
    "exp3_kernel5_group1",
    "exp6_kernel5_group1",
    "skip",
)
_FBNET_LAYERS = (1, 4, 4, 4, 4, 4, 1)
_FBNET_CHANNELS = (16, 24, 32, 64, 112, 184, 352)
_FBNET_NETWORKS = {
    "cifar100": ((1, 1, 2, 2, 1, 2, 1), 1, 32, 1504, 100),
    "ImageNet": ((1, 2, 2, 2, 1, 2, 1), 2, 224, 1984, 1000),
}
"""Strides of the stages and the stem, size of the images, channels of the head, classes."""


def fbnet_operations(genotype: Sequence[int], dataset: str) -> list[str]:
    """The names in HW-NAS-Bench's look-up of an FBNet network's operations; its cost is their sum.

    Args:
        genotype: 22 operations, 0..8 as in `FBNET_OPS`.
        dataset: "cifar100" or "ImageNet".

    Raises:
        ValueError: Another data set, or not 22 known operations.

    Source: Li et al., HW-NAS-Bench, ICLR 2021; Wu et al., FBNet, CVPR 2019.
    """
    if dataset not in _FBNET_NETWORKS:
        raise ValueError(f"dataset {dataset!r} is not one of {', '.join(_FBNET_NETWORKS)}")
    if len(genotype) != sum(_FBNET_LAYERS) or not set(genotype) <= set(range(len(FBNET_OPS))):
        raise ValueError(f"{list(genotype)} is not {sum(_FBNET_LAYERS)} operations 0..{len(FBNET_OPS) - 1}")
    strides, stride, height, head, classes = _FBNET_NETWORKS[dataset]
    channels = _FBNET_CHANNELS[0]
    names = [f"ConvNorm_H{height}_W{height}_Cin3_Cout{channels}_kernel3_stride{stride}_group1"]
    height //= stride
    operations = iter(genotype)
    for layers, out_channels, stage_stride in zip(_FBNET_LAYERS, _FBNET_CHANNELS, strides, strict=True):
        for layer in range(layers):
            stride = stage_stride if layer == 0 else 1
            operation = FBNET_OPS[next(operations)]
            shape = f"H{height}_W{height}_Cin{channels}_Cout{out_channels}"
            if operation == "skip":
                names.append(f"Skip_{shape}_stride{stride}")
            else:
                expansion, kernel, group = operation.split("_")
                names.append(f"ConvBlock_{shape}_{expansion}_{kernel}_stride{stride}_{group}")
            height, channels = height // stride, out_channels
    return [
        *names,
        f"ConvNorm_H{height}_W{height}_Cin{channels}_Cout{head}_kernel1_stride1_group1",
        f"AvgP_H{height}_W{height}_Cin{head}_Cout{head}_kernel{height}_stride1",
        f"FC_Cin{head}_Cout{classes}",
    ]


def _get(content: Any, key: str, where: str) -> Any:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} is no dictionary with {key!r}")
    if key not in content:
        raise ValueError(f"{where} has no {key!r}")
    return content[key]


def _number(value: Any, where: str, high: float = np.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= high:
        raise ValueError(
            f"{where} is {value!r}, not a number from 0{'' if high == np.inf else f' to {high}'}"
        )
    return float(value)


def _texts(values: Any, key: str, where: str) -> list[str]:
    texts = list(values) if isinstance(values, list | tuple | np.ndarray) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: {key} holds something that is no text")
    return [str(text) for text in texts]


def _genotypes(names: Sequence[str], where: str) -> np.ndarray:
    """(n, 6) int8 of all architectures, each once."""
    if len(names) != SIZE:
        raise ValueError(f"{where} has {len(names):,} architectures, not {SIZE:,}")
    space = NasBench201()
    try:
        genotypes = [space.from_str(name) for name in names]
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    if len(set(genotypes)) != SIZE:
        raise ValueError(f"{where} names an architecture twice")
    return np.array(genotypes, dtype=np.int8)


def _costs(values: Any, where: str) -> np.ndarray:
    try:
        costs = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{where} holds something that is no number") from None
    if costs.ndim > 1 and costs.size == len(costs):
        costs = costs.reshape(-1)
    if costs.ndim != 1:
        raise ValueError(f"{where} has shape {costs.shape}, not one number per entry")
    wrong = np.flatnonzero(~((costs >= 0) | (costs == -1)))
    if len(wrong):
        raise ValueError(
            f"{where} is {costs[wrong[0]]} in entry {wrong[0]}; costs are not negative (-1: none)"
        )
    return np.where(costs == -1, np.inf, costs)


def write_table(file: Path, table: Table) -> None:
    """Write an .npz file, whole or not at all."""
    with replacing(file) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **table)  # type: ignore[arg-type]


def read_table(file: Path) -> Table:
    """All arrays of an .npz file.

    Raises:
        ValueError: Not a readable .npz file, or one with objects in it.
        OSError: The file cannot be read.
    """
    try:
        with arrays_of(file) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except UNREADABLE as error:
        raise ValueError(f"{file} is not a readable .npz file ({error})") from None


def has_order() -> bool:
    """Whether there is a file that `official_order` can read."""
    try:
        return find_file("nasbench201.npz").is_file()
    except ValueError:
        return False


def official_order() -> np.ndarray:
    """All architectures of NAS-Bench-201 in its official order, shape (15625, 6), from its table.

    Raises:
        ValueError: There is no nasbench201.npz, or its architectures are in another order.
    """
    file = find_file("nasbench201.npz")
    table = read_table(file)
    try:
        genotypes = _check_cells(table)
        _check_order(genotypes)
    except ValueError as error:
        raise ValueError(f"{file}: {error}; hwnas data verify {file}") from None
    return genotypes.astype(np.intp)


_ORDER = "efc20b8c0d7b04db1ae693c5872f6ab5a8086a466abf23d8e7c6ac7faba8caa0"
"""SHA-256 of the operations of all architectures in the official order, a byte each."""


def _check_order(genotypes: np.ndarray) -> None:
    if hashlib.sha256(genotypes.astype(np.int8).tobytes()).hexdigest() != _ORDER:
        raise ValueError("its architectures are not in the benchmark's official order, which index refers to")


def check_nasbench201(table: Table) -> str:
    """Check a table of NAS-Bench-201 against its layout and its known truths; returns a summary.

    Raises:
        ValueError: What is wrong with it.
    """
    genotypes = _check_cells(table)
    connected = NasBench201().is_connected(genotypes)
    names = table["arch_str"].tolist() if "arch_str" in table else []
    if names != [NasBench201().to_str(tuple(row)) for row in genotypes.tolist()]:
        raise ValueError("arch_str and arch_ops are not the same architectures")
    _check_order(genotypes)
    columns = ("valid_200", "test_200", "valid_12", "test_12", "train_seconds_200", "params_M", "flops_M")
    known: set[int] = set()
    prefixes = ["cifar10", "cifar100", *(["imagenet16"] if "imagenet16_test_200" in table else [])]
    for prefix in prefixes:
        for column in columns:
            values = _column(table, f"{prefix}_{column}")
            rows = np.isfinite(values)
            known.add(int(rows.sum()))
            high = (
                101 if column.startswith(("valid", "test")) else np.inf
            )  # valid may be a difference of means
            if (~rows & ~np.isnan(values)).any() or ((values[rows] < -1e-9) | (values[rows] > high)).any():
                raise ValueError(f"{prefix}_{column} is out of range")
    if len(known) > 1:
        raise ValueError(
            f"columns cover {' or '.join(map(str, sorted(known)))} architectures, not all the same"
        )
    covered = known.pop()
    summary = f"{covered:,} of {SIZE:,} architectures, {', '.join(prefixes)}"
    if covered < SIZE:
        return summary
    for column, truth in _BEST.items():
        if column in table and abs(float(table[column].max()) - truth) > 0.005:
            raise ValueError(f"the best {column} is {table[column].max():.2f}, not {truth}")
    chance = np.round(table["cifar10_test_200"], 2) == 10
    if (chance != ~connected).any():
        raise ValueError(f"{chance.sum()} cells have 10.00 % on CIFAR-10, not just the 341 without a path")
    best = ", ".join(f"{table[f'{prefix}_test_200'].max():.2f}" for prefix in prefixes)
    return f"{summary}, best test accuracy {best}, 341 without a path at 10.00"


_BEST = {
    "cifar10_valid_200": 91.61,
    "cifar10_test_200": 94.37,
    "cifar100_valid_200": 73.49,
    "cifar100_test_200": 73.51,
    "imagenet16_test_200": 47.31,
}
"""The best accuracies in percent, as published with the benchmark."""


def check_hwnasbench(table: Table) -> str:
    """Check the costs of NAS-Bench-201 networks against their layout and a published record.

    Returns:
        A summary.

    Raises:
        ValueError: What is wrong with them.
    """
    genotypes = _check_cells(table)
    for dataset in DATASETS:
        for column in METRICS.values():
            _costs(_column(table, f"{dataset}_{column}"), f"{dataset}_{column}")
    cell = int(np.flatnonzero((genotypes == _PUBLISHED_CELL).all(axis=1))[0])
    for column, truth in _PUBLISHED.items():
        _equal(f"cifar10_{column} of cell {cell}", float(table[f"cifar10_{column}"][cell]), truth)
    unsupported = [
        f"{dataset}_{device}: {count:,}"
        for dataset in DATASETS
        for device in DEVICES
        if (count := int(np.isinf(table[f"{dataset}_{device}_latency_ms"]).sum()))
    ]
    return f"{SIZE:,} architectures, {len(DATASETS)} data sets, {len(DEVICES)} devices; unsupported " + (
        ", ".join(unsupported) or "none"
    )


_PUBLISHED_CELL = (4, 2, 1, 2, 1, 1)
_PUBLISHED = {
    "edgegpu_latency_ms": 5.807418537139893,
    "edgegpu_energy_mj": 24.226614330768584,
    "raspi4_latency_ms": 10.481976820010459,
    "edgetpu_latency_ms": 0.9571811309997429,
    "pixel3_latency_ms": 3.60585,
    "eyeriss_latency_ms": 3.64562,
    "eyeriss_energy_mj": 0.6872827645,
    "fpga_latency_ms": 2.57296,
    "fpga_energy_mj": 18.01072,
}
"""Costs of the first cell's CIFAR-10 network, printed in HW-NAS-Bench's README."""

_PUBLISHED_FBNET = {
    "edgegpu_latency_ms": (15.804523468017578, 16.431164979934692),
    "edgegpu_energy_mj": (86.98095934380125, 102.71604275841212),
    "raspi4_latency_ms": (17.618579145142576, 57.65650005702628),
    "pixel3_latency_ms": (7.7889731, 27.5423871),
    "eyeriss_latency_ms": (3.940896, 18.127332),
    "eyeriss_energy_mj": (3.242008, 16.945472),
    "fpga_latency_ms": (10.73952, 29.4219),
    "fpga_energy_mj": (75.17664, 205.9533),
}
"""Costs of the network of operations 0 on CIFAR-100 and ImageNet, printed in HW-NAS-Bench's example."""


def check_fbnet(table: Table) -> str:
    """Check the look-up of FBNet's operations against its layout and two published records.

    Returns:
        A summary.

    Raises:
        ValueError: What is wrong with it.
    """
    for column, truths in _PUBLISHED_FBNET.items():
        _require(table, (column, f"{column}_ops"))
        costs, names = _costs(table[column], column), table[f"{column}_ops"].tolist()
        look_up = dict(zip(names, costs.tolist(), strict=False))
        if len(names) != len(costs) or len(look_up) != len(names):
            raise ValueError(f"{column}_ops does not name each cost once")
        for dataset, truth in zip(_FBNET_NETWORKS, truths, strict=True):
            operations = fbnet_operations([0] * sum(_FBNET_LAYERS), dataset)
            missing = [operation for operation in operations if operation not in look_up]
            if missing:
                raise ValueError(f"{column} has no {missing[0]}")
            found = sum(look_up[operation] for operation in operations)
            _equal(f"{column} of the {dataset} network of operations 0", found, truth)
    return f"{len(look_up):,} operations, {len(_PUBLISHED_FBNET)} metrics"


def _equal(what: str, found: float, truth: float) -> None:
    if not abs(found - truth) <= 1e-8 * truth:
        raise ValueError(f"{what} is {found}, not {truth}")


def check_devices(table: Table) -> str:
    """Check latencies of NAS-Bench-201 networks on CIFAR-10; returns a summary.

    Raises:
        ValueError: What is wrong with them.
    """
    columns = [key for key, values in table.items() if values.dtype.kind == "f"]
    if not columns:
        raise ValueError("it has no column of costs")
    for key in columns:
        _costs(_column(table, key), key)
    return f"{SIZE:,} architectures, {len(columns)} columns"


def _check_cells(table: Table) -> np.ndarray:
    _require(table, ("arch_ops", "ops"))
    genotypes = table["arch_ops"]
    if table["ops"].tolist() != list(OPS):
        raise ValueError(f"ops are {table['ops'].tolist()}, not {list(OPS)}")
    if genotypes.shape != (SIZE, 6) or genotypes.dtype.kind not in "iu":
        raise ValueError(f"arch_ops is {genotypes.dtype} {genotypes.shape}, not whole numbers ({SIZE}, 6)")
    if genotypes.min() < 0 or genotypes.max() >= len(OPS) or len(np.unique(genotypes, axis=0)) != SIZE:
        raise ValueError("arch_ops does not hold every architecture once")
    return genotypes


def _column(table: Table, key: str) -> np.ndarray:
    _require(table, (key,))
    if table[key].shape != (SIZE,) or table[key].dtype.kind != "f":
        raise ValueError(f"{key} is {table[key].dtype} {table[key].shape}, not {SIZE:,} numbers")
    return table[key]


def _require(table: Table, keys: Iterable[str]) -> None:
    for key in keys:
        if key not in table:
            raise ValueError(f"{key} is missing")


def check_layers(table: Table) -> str:
    """Check latencies per layer and operation of FBNet's CIFAR-100 networks; returns a summary.

    Raises:
        ValueError: What is wrong with them.
    """
    _require(table, ("ops",))
    devices = [key.removesuffix("_delta_ms") for key in table if key.endswith("_delta_ms")]
    if not devices:
        raise ValueError("it has no column of costs")
    for device in devices:
        _require(table, (f"{device}_allskip_ms",))
        deltas = table[f"{device}_delta_ms"]
        if deltas.shape != (sum(_FBNET_LAYERS), len(table["ops"])) or not np.isfinite(deltas).all():
            raise ValueError(f"{device}_delta_ms has shape {deltas.shape}, or holds something not finite")
    return f"{sum(_FBNET_LAYERS)} layers, {', '.join(devices)}"


def check_images(table: Table) -> str:
    """Check a data set of images; returns a summary.

    Raises:
        ValueError: What is wrong with it.
    """
    _require(table, ("x_train", "y_train", "x_test", "y_test"))
    for part in ("train", "test"):
        x, y = table[f"x_{part}"], table[f"y_{part}"]
        if x.dtype != np.uint8 or x.ndim not in (3, 4) or y.shape != (len(x),) or not len(x):
            raise ValueError(f"x_{part} is {x.dtype} {x.shape} with labels {y.shape}, not uint8 images")
    shape = "x".join(map(str, table["x_train"].shape[1:3]))
    return f"{len(table['x_train']):,} and {len(table['x_test']):,} images of {shape}"


@dataclass(frozen=True)
class Known:
    """A file that the data folder may hold.

    Args:
        holds: What is in it.
        check: Raises ValueError if it is not right, and returns a summary.
        how: How to get it.
        origin: Who published it, and under which licence.
    """

    holds: str
    check: Callable[[Table], str]
    how: str
    origin: str


_NATS = "D-X-Y/NATS-Bench (MIT)"
_HW_NAS_BENCH = "GATECH-EIC/HW-NAS-Bench (MIT)"
_CIFAR = "Krizhevsky 2009"
_TORCHVISION = "torchvision downloads the data set on first use, this file takes its place"

TABLES: dict[str, Known] = {
    "nasbench201.npz": Known(
        "accuracies of NAS-Bench-201", check_nasbench201, "hwnas data nasbench201 source=<official>", _NATS
    ),
    "hwnasbench_nasbench201.npz": Known(
        "costs of NAS-Bench-201 on six devices",
        check_hwnasbench,
        "hwnas data hwnasbench source=<official>",
        _HW_NAS_BENCH,
    ),
    "hwnasbench_fbnet.npz": Known(
        "costs of FBNet's operations on five devices",
        check_fbnet,
        "hwnas data hwnasbench source=<official>",
        _HW_NAS_BENCH,
    ),
    "nasbench201_cifar10_devices.npz": Known(
        "latencies of NAS-Bench-201 on CIFAR-10",
        check_devices,
        "hwnasbench_nasbench201.npz takes its place",
        f"{_HW_NAS_BENCH}, HELP (MIT)",
    ),
    "fbnet_cifar100_latency_lut.npz": Known(
        "latencies of FBNet's layers on CIFAR-100",
        check_layers,
        "hwnasbench_fbnet.npz takes its place",
        _HW_NAS_BENCH,
    ),
    "mnist.npz": Known("60,000 digits", check_images, _TORCHVISION, "LeCun 1998"),
    "fashion_mnist.npz": Known("60,000 clothes", check_images, _TORCHVISION, "Zalando (MIT)"),
    "cifar10.npz": Known("CIFAR-10", check_images, _TORCHVISION, _CIFAR),
    "cifar100.npz": Known("CIFAR-100", check_images, _TORCHVISION, _CIFAR),
    "cifar10_16x16.npz": Known("CIFAR-10 at 16x16", check_images, "optional", _CIFAR),
    "cifar10_small.npz": Known("a fifth of CIFAR-10", check_images, "optional", _CIFAR),
}
"""By file name."""
