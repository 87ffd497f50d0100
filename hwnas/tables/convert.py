"""Conversion of official benchmark files to compact .npz tables."""

from __future__ import annotations

import re
import tarfile
import zlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeGuard

import numpy as np

from hwnas.data.tables import SEEDS, SIZE, Table
from hwnas.files import replacing
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.nasbench201.encoding import OPS
from hwnas.tables.pickles import loads, read_pickle, read_torch

DATASETS = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet16": "ImageNet16-120"}
"""HW-NAS-Bench's names of the data sets, by ours."""

DEVICES = ("edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss", "fpga")
UNITS = {"latency": "latency_ms", "energy": "energy_mj"}
WITH_ENERGY = ("edgegpu", "eyeriss", "fpga")
METRICS = {
    f"{device}_{quantity}": f"{device}_{unit}"
    for quantity, unit in UNITS.items()
    for device in DEVICES
    if quantity == "latency" or device in WITH_ENERGY
}
"""Our columns, by HW-NAS-Bench's names of the metrics."""


def nasbench201(
    source: Path, *, partial: bool = False, progress: Callable[[int], None] | None = None
) -> Table:
    """The compact table of NAS-Bench-201 from the official files.

    Columns have shape (15625,), in the official order. Accuracies are in percent, of the last epoch, means
    over the training seeds. `cifar10_valid_` is of networks trained on a half of 25k images. `valid_200` of
    the other data sets is 2 * valtest - test: the accuracy on the other half of the held-out set. Columns of
    single seeds, `_seeds`, have shape (15625, 3), with NaN for seeds that were not run. Columns of
    ImageNet16-120 begin with `imagenet16_`; they are missing if the source has no such trainings.

    Args:
        source: NATS-Bench's "simple" topology archive, as .tar or unpacked; or NAS-Bench-201's .pth, which
            needs about 9 GB of memory.
        partial: Whether architectures may be missing; their rows are NaN, with 0 seeds.
        progress: Called with the number of architectures read so far.

    Raises:
        ValueError: The source is incomplete, unreadable, or has another layout; names the file or entry.
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


Records = tuple[str, list[str], Container[int], Callable[[int], tuple[object, str]]]
"""Place of the names, names of all architectures, indices of those present, and a function that reads one
architecture and returns its content and place."""


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

                def read(name: str) -> object:
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

        def entry(index: int) -> tuple[object, str]:
            here = f"{source}: ['arch2infos'][{index}]"
            return {"12": _get(infos[index], "less", here), "200": _get(infos[index], "full", here)}, here

        yield f"{source}: meta_archs", names, infos, entry
    else:
        raise ValueError(
            f'{source} is none of NATS-Bench\'s "simple" topology archive (.tar, or its folder) and '
            "NAS-Bench-201's .pth"
        )


def _simple(files: Iterable[str], read: Callable[[str], object], where: str) -> Records:
    """The records of NATS-Bench's "simple" archive: a file for the names and one per architecture."""
    meta = "meta.pickle.pbz2"
    if meta not in files:
        raise ValueError(f'{where} has no {meta}; source is the NATS-Bench "simple" topology archive')
    names = _texts(_get(read(meta), "meta_archs", f"{where}: {meta}"), "meta_archs", f"{where}: {meta}")
    of = {int(name[:6]): name for name in files if re.fullmatch(r"\d{6}\.pickle\.pbz2", name, flags=re.ASCII)}
    return f"{where}: meta_archs", names, of, lambda index: (read(of[index]), f"{where}: {of[index]}")


def _row(content: object, source: str, index: int, name: str) -> dict[str, float | list[float]]:
    """One architecture's row."""
    row: dict[str, float | list[float]] = {}
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


def _size(runs: Mapping[object, object], dataset: str, prefix: str, where: str) -> dict[str, float]:
    return {
        f"{prefix}_params_M": _mean(_per_seed(runs, dataset, ("params",), where)),
        f"{prefix}_flops_M": _mean(_per_seed(runs, dataset, ("flop",), where)),
    }


def _is_of(key: object, dataset: str) -> TypeGuard[tuple[str, object]]:
    """Whether a training's key, (data set, seed), is of this data set."""
    return isinstance(key, tuple) and len(key) == 2 and key[0] == dataset


def _per_seed(
    runs: Mapping[object, object], dataset: str, path: Sequence[str], where: str
) -> dict[int, float]:
    """A number of every training on a data set, by seed; numbers per epoch are added."""
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
            value = sum(checked_costs(list(value.values()), here).tolist())
        found[key[1]] = _number(value, here, high=100 if path[0] == "eval_acc1es" else np.inf)
    if not found:
        raise ValueError(f"{where} has no training on {dataset}")
    return dict(sorted(found.items()))


def _mean(per_seed: Mapping[int, float]) -> float:
    values = list(per_seed.values())
    return values[0] if len(set(values)) == 1 else float(np.mean(values))


def hwnasbench(file: Path) -> dict[str, Table]:
    """The compact tables of HW-NAS-Bench from its official pickle, by file name.

    `hwnasbench_nasbench201.npz` has arch_ops and a column `{dataset}_{device}_latency_ms` or `_energy_mj` per
    metric; inf where the device does not support the network (the benchmark writes -1).
    `hwnasbench_fbnet.npz` has, per metric, the names of all operations `{device}_latency_ms_ops` (n,) and
    their costs `{device}_latency_ms` (n,); `fbnet_operations` names the operations of a network. Units are ms
    and mJ.

    Args:
        file: HW-NAS-Bench-v1_0.pickle.

    Raises:
        ValueError: Unreadable, or with another layout; says what is missing or wrong.

    Source: Li et al., HW-NAS-Bench, ICLR 2021; hw_nas_bench_api.py.
    """
    content, where = read_pickle(file), str(file)
    cells, blocks = (_get(content, space, where) for space in ("nasbench201", "fbnet"))
    return {
        "hwnasbench_nasbench201.npz": _cells(cells, f"{where}: ['nasbench201']"),
        "hwnasbench_fbnet.npz": _blocks(blocks, f"{where}: ['fbnet']"),
    }


def _cells(content: object, where: str) -> Table:
    """Costs of NAS-Bench-201's networks."""
    table: Table = {}
    names: list[str] = []
    for dataset, official in DATASETS.items():
        here = f"{where}[{official!r}]"
        part = _get(content, official, where)
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
            values = checked_costs(_get(part, metric, here), f"{here}[{metric!r}]")
            if len(values) != SIZE:
                raise ValueError(f"{here}[{metric!r}] has {len(values):,} values, not {SIZE:,}")
            table[f"{dataset}_{column}"] = values
    return table


def _blocks(content: object, where: str) -> Table:
    """Costs of FBNet's operations."""
    table: Table = {}
    for metric, column in METRICS.items():
        if metric.startswith("edgetpu"):  # not measured on FBNet's operations
            continue
        here, part = f"{where}[{metric!r}]", _get(content, metric, where)
        if not isinstance(part, Mapping) or not part:
            raise ValueError(f"{here} is no dictionary of costs per operation")
        table[f"{column}_ops"] = np.array(_texts(list(part), "keys", here))
        table[column] = checked_costs(list(part.values()), here)
    return table


def _get(content: object, key: str, where: str) -> object:
    if not isinstance(content, Mapping):
        raise ValueError(f"{where} is no dictionary with {key!r}")
    if key not in content:
        raise ValueError(f"{where} has no {key!r}")
    return content[key]


def _number(value: object, where: str, high: float = np.inf) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | np.number) or not 0 <= value <= high:
        raise ValueError(
            f"{where} is {value!r}, not a number from 0{'' if high == np.inf else f' to {high}'}"
        )
    return float(value)


def _texts(values: object, key: str, where: str) -> list[str]:
    texts = list(values) if isinstance(values, list | tuple | np.ndarray) else [None]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: {key} has an entry that is no text")
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


def checked_costs(values: object, where: str) -> np.ndarray:
    """Costs as a vector, with inf for -1 (not supported); ValueError for anything but costs."""
    try:
        costs = np.array(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{where} has an entry that is no number") from None
    if costs.ndim > 1 and costs.size == len(costs):
        costs = costs.reshape(-1)
    if costs.ndim != 1:
        raise ValueError(f"{where} has shape {costs.shape}, not one number per entry")
    wrong = np.flatnonzero(~((costs >= 0) | (costs == -1)))
    if len(wrong):
        raise ValueError(
            f"{where} is {costs[wrong[0]]} in entry {wrong[0]}; costs are not negative (-1: not supported)"
        )
    return np.where(costs == -1, np.inf, costs)


def write_table(file: Path, table: Table) -> None:
    """Write an .npz file, whole or not at all."""
    with replacing(file) as partial, partial.open("wb") as stream:
        np.savez_compressed(stream, **table)  # type: ignore[arg-type]
