"""Compact benchmark tables: how they are read, and the order of their architectures.

Source: Dong et al., NATS-Bench, TPAMI 2021 (topology = NAS-Bench-201, ICLR 2020); Li et al., HW-NAS-Bench,
ICLR 2021.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hwnas.data.arrays import UNREADABLE, arrays_of
from hwnas.files import find_file
from hwnas.spaces.nasbench201.encoding import OPS

SIZE = len(OPS) ** 6
"""Architectures of NAS-Bench-201."""

SEEDS = (777, 888, 999)
"""Training seeds of the 200-epoch runs."""

Table = dict[str, np.ndarray]
"""Arrays by name."""

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
FBNET_LAYERS = (1, 4, 4, 4, 4, 4, 1)
FBNET_CHANNELS = (16, 24, 32, 64, 112, 184, 352)
FBNET_NETWORKS = {
    "cifar100": ((1, 1, 2, 2, 1, 2, 1), 1, 32, 1504, 100),
    "ImageNet": ((1, 2, 2, 2, 1, 2, 1), 2, 224, 1984, 1000),
}
"""Per data set: strides of the stages and of the stem, side of the images, channels of the head, classes."""


def fbnet_operations(genotype: Sequence[int], dataset: str) -> list[str]:
    """Names of an FBNet network's operations in HW-NAS-Bench's look-up table; its cost is their sum.

    Args:
        genotype: 22 operations, 0..8 as in `FBNET_OPS`.
        dataset: "cifar100" or "ImageNet".

    Raises:
        ValueError: Another data set, or not 22 known operations.

    Source: Li et al., HW-NAS-Bench, ICLR 2021; Wu et al., FBNet, CVPR 2019.
    """
    if dataset not in FBNET_NETWORKS:
        raise ValueError(f"dataset {dataset!r} is not one of {', '.join(FBNET_NETWORKS)}")
    if len(genotype) != sum(FBNET_LAYERS) or not set(genotype) <= set(range(len(FBNET_OPS))):
        raise ValueError(f"{list(genotype)} is not {sum(FBNET_LAYERS)} operations 0..{len(FBNET_OPS) - 1}")
    strides, stride, height, head, classes = FBNET_NETWORKS[dataset]
    channels = FBNET_CHANNELS[0]
    names = [f"ConvNorm_H{height}_W{height}_Cin3_Cout{channels}_kernel3_stride{stride}_group1"]
    height //= stride
    operations = iter(genotype)
    for layers, out_channels, stage_stride in zip(FBNET_LAYERS, FBNET_CHANNELS, strides, strict=True):
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


def read_table(file: Path) -> Table:
    """All arrays of an .npz file.

    Raises:
        ValueError: Not a readable .npz file of plain arrays.
        OSError: The file cannot be read.
    """
    try:
        with arrays_of(file) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except UNREADABLE as error:
        raise ValueError(f"{file} is not a readable .npz file ({error})") from None


def has_order() -> bool:
    """Whether the file of `official_order` exists."""
    try:
        return find_file("nasbench201.npz").is_file()
    except ValueError:
        return False


def official_order() -> np.ndarray:
    """All architectures of NAS-Bench-201 in its official order, shape (15625, 6), from its table.

    Raises:
        ValueError: nasbench201.npz is missing, or has another order.
    """
    file = find_file("nasbench201.npz")
    table = read_table(file)
    try:
        genotypes = check_cells(table)
        check_order(genotypes)
    except ValueError as error:
        raise ValueError(f"{file}: {error}; hwnas data verify {file}") from None
    return genotypes.astype(np.intp)


_ORDER = "efc20b8c0d7b04db1ae693c5872f6ab5a8086a466abf23d8e7c6ac7faba8caa0"
"""SHA-256 of the operations of all architectures in the official order, a byte each."""


def check_order(genotypes: np.ndarray) -> None:
    """Raise ValueError unless all architectures are in the official order."""
    if hashlib.sha256(genotypes.astype(np.int8).tobytes()).hexdigest() != _ORDER:
        raise ValueError(
            "its architectures are not in the benchmark's official order, which the column index needs"
        )


def check_cells(table: Table) -> np.ndarray:
    """The architectures of a table of NAS-Bench-201, shape (15625, 6); ValueError unless it has each once."""
    require(table, ("arch_ops", "ops"))
    genotypes = table["arch_ops"]
    if table["ops"].tolist() != list(OPS):
        raise ValueError(f"ops are {table['ops'].tolist()}, not {list(OPS)}")
    if genotypes.shape != (SIZE, 6) or genotypes.dtype.kind not in "iu":
        raise ValueError(f"arch_ops is {genotypes.dtype} {genotypes.shape}, not whole numbers ({SIZE}, 6)")
    if genotypes.min() < 0 or genotypes.max() >= len(OPS) or len(np.unique(genotypes, axis=0)) != SIZE:
        raise ValueError("arch_ops does not hold every architecture once")
    return genotypes


def column_of(table: Table, key: str) -> np.ndarray:
    """A column with one number per architecture; else ValueError."""
    require(table, (key,))
    if table[key].shape != (SIZE,) or table[key].dtype.kind != "f":
        raise ValueError(f"{key} is {table[key].dtype} {table[key].shape}, not {SIZE:,} numbers")
    return table[key]


def require(table: Table, keys: Iterable[str]) -> None:
    """Raise ValueError if an array is missing."""
    for key in keys:
        if key not in table:
            raise ValueError(f"{key} is missing")


def check_layers(table: Table) -> str:
    """Check latencies per layer and operation of FBNet's CIFAR-100 networks; returns a summary.

    Raises:
        ValueError: The latencies are wrong; says how.
    """
    require(table, ("ops",))
    devices = [key.removesuffix("_delta_ms") for key in table if key.endswith("_delta_ms")]
    if not devices:
        raise ValueError("it has no column of costs")
    for device in devices:
        require(table, (f"{device}_allskip_ms",))
        deltas = table[f"{device}_delta_ms"]
        if deltas.shape != (sum(FBNET_LAYERS), len(table["ops"])) or not np.isfinite(deltas).all():
            raise ValueError(f"{device}_delta_ms has shape {deltas.shape}, or holds something not finite")
    return f"{sum(FBNET_LAYERS)} layers, {', '.join(devices)}"
