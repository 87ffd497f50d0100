"""Checks of compact tables: their layout, and figures that the benchmarks publish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hwnas.data.tables import (
    FBNET_LAYERS,
    FBNET_NETWORKS,
    SIZE,
    Table,
    check_cells,
    check_layers,
    check_order,
    column_of,
    fbnet_operations,
    require,
)
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.tables.convert import DATASETS, DEVICES, METRICS, checked_costs


def check_nasbench201(table: Table) -> str:
    """Check a table of NAS-Bench-201; returns a summary.

    Raises:
        ValueError: The table is wrong; says how.
    """
    genotypes = check_cells(table)
    connected = NasBench201().is_connected(genotypes)
    names = table["arch_str"].tolist() if "arch_str" in table else []
    if names != [NasBench201().to_str(tuple(row)) for row in genotypes.tolist()]:
        raise ValueError("arch_str and arch_ops are not the same architectures")
    check_order(genotypes)
    columns = ("valid_200", "test_200", "valid_12", "test_12", "train_seconds_200", "params_M", "flops_M")
    known: set[int] = set()
    prefixes = ["cifar10", "cifar100", *(["imagenet16"] if "imagenet16_test_200" in table else [])]
    for prefix in prefixes:
        for column in columns:
            values = column_of(table, f"{prefix}_{column}")
            rows = np.isfinite(values)
            known.add(int(rows.sum()))
            # A validation accuracy may be a difference of means, so that it can exceed 100.
            high = 101 if column.startswith(("valid", "test")) else np.inf
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
    for column, published in _BEST.items():
        if column in table and abs(float(table[column].max()) - published) > 0.005:
            raise ValueError(f"the best {column} is {table[column].max():.2f}, not {published}")
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
    """Check the costs of NAS-Bench-201 networks, one of them against its published costs; returns a summary.

    Raises:
        ValueError: The costs are wrong; says how.
    """
    genotypes = check_cells(table)
    for dataset in DATASETS:
        for column in METRICS.values():
            checked_costs(column_of(table, f"{dataset}_{column}"), f"{dataset}_{column}")
    cell = int(np.flatnonzero((genotypes == _PUBLISHED_CELL).all(axis=1))[0])
    for column, published in _PUBLISHED.items():
        _equal(f"cifar10_{column} of cell {cell}", float(table[f"cifar10_{column}"][cell]), published)
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
"""Costs of `_PUBLISHED_CELL`'s CIFAR-10 network, from HW-NAS-Bench's README."""

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
"""Costs of the network of operations 0 on CIFAR-100 and ImageNet, from HW-NAS-Bench's example."""


def check_fbnet(table: Table) -> str:
    """Check the costs of FBNet's operations, two networks against their published costs; returns a summary.

    Raises:
        ValueError: The costs are wrong; says how.
    """
    for column, published in _PUBLISHED_FBNET.items():
        require(table, (column, f"{column}_ops"))
        costs, names = checked_costs(table[column], column), table[f"{column}_ops"].tolist()
        look_up = dict(zip(names, costs.tolist(), strict=False))
        if len(names) != len(costs) or len(look_up) != len(names):
            raise ValueError(f"{column}_ops does not name each cost once")
        for dataset, cost in zip(FBNET_NETWORKS, published, strict=True):
            operations = fbnet_operations([0] * sum(FBNET_LAYERS), dataset)
            missing = [operation for operation in operations if operation not in look_up]
            if missing:
                raise ValueError(f"{column} has no {missing[0]}")
            found = sum(look_up[operation] for operation in operations)
            _equal(f"{column} of the {dataset} network of operations 0", found, cost)
    return f"{len(look_up):,} operations, {len(_PUBLISHED_FBNET)} metrics"


def _equal(name: str, found: float, published: float) -> None:
    if not abs(found - published) <= 1e-8 * published:
        raise ValueError(f"{name} is {found}, not {published}")


def check_devices(table: Table) -> str:
    """Check latencies of NAS-Bench-201 networks on CIFAR-10; returns a summary.

    Raises:
        ValueError: The latencies are wrong; says how.
    """
    columns = [key for key, values in table.items() if values.dtype.kind == "f"]
    if not columns:
        raise ValueError("it has no column of costs")
    for key in columns:
        checked_costs(column_of(table, key), key)
    return f"{SIZE:,} architectures, {len(columns)} columns"


def check_images(table: Table) -> str:
    """Check a data set of images; returns a summary.

    Raises:
        ValueError: The images or labels are wrong; says how.
    """
    require(table, ("x_train", "y_train", "x_test", "y_test"))
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
        holds: Its content, in words.
        check: Raises ValueError if the file is wrong, else returns a summary.
        how: How to get the file.
        origin: Its publisher and licence.
    """

    holds: str
    check: Callable[[Table], str]
    how: str
    origin: str


_NATS = "D-X-Y/NATS-Bench (MIT)"
_HW_NAS_BENCH = "GATECH-EIC/HW-NAS-Bench (MIT)"
_CIFAR = "Krizhevsky 2009"
_TORCHVISION = "torchvision downloads the data set on first use; this file replaces the download"

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
        "not needed: hwnasbench_nasbench201.npz has more",
        f"{_HW_NAS_BENCH}, HELP (MIT)",
    ),
    "fbnet_cifar100_latency_lut.npz": Known(
        "latencies of FBNet's layers on CIFAR-100",
        check_layers,
        "not needed: hwnasbench_fbnet.npz has more",
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
