"""The devices of HW-NAS-Bench on NAS-Bench-201."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from hwnas.config import data_folder, find_file
from hwnas.core import Evaluator, SearchSpace
from hwnas.data.tables import read_table
from hwnas.devices.profile import Profile, ProfileDevice
from hwnas.devices.table import CostTable, check_metric, costs_of

PROFILES = Path(__file__).parent / "profiles"
"""Profiles that come with the package, fitted by `hwnas profile fit`."""


def benchmark_device(
    space: SearchSpace,
    dataset: object,
    announce: Callable[[str], None],
    *,
    device: str,
    metric: str,
) -> Evaluator:
    """A device of HW-NAS-Bench on NAS-Bench-201 networks (C = 16, N = 5, batch 1).

    Read from `hwnasbench_nasbench201.npz` (`hwnas data hwnasbench` writes it from the official file), else
    from `nasbench201_cifar10_devices.npz`, whose latencies are those of the CIFAR-10 networks. Without them
    the costs of four of the six devices are predicted by a profile that comes with the package.

    Args:
        space: NAS-Bench-201.
        dataset: Its `benchmark` names the table's columns; its images are not read.
        announce: Called with a sentence about where the costs come from.
        device: "edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss" or "fpga".
        metric: The cost that strategies minimise: "latency_ms" or "energy_mj".

    Raises:
        ValueError: No table or profile has the device (says where it was looked for), a metric it does not
            have, or another space.

    Source: Li et al., HW-NAS-Bench, ICLR 2021.
    """
    if space.name != "nasbench201":
        raise ValueError(f"device={device} covers nasbench201, not the {space.name} space")
    check_metric(metric)
    name = str(getattr(dataset, "benchmark", getattr(dataset, "name", "")))
    folder = data_folder()
    whole, part = folder / "hwnasbench_nasbench201.npz", folder / "nasbench201_cifar10_devices.npz"
    if whole.is_file():
        arrays = read_table(whole)
        columns = costs_of(f"{name}_{device}", arrays, whole)
        if not columns:
            raise ValueError(f"{whole} has nothing of {device} for {name}; dataset=cifar10 | cifar100 | ...")
        return CostTable(space, device, arrays["arch_ops"], columns, metric=metric, source=whole)
    if part.is_file():
        arrays = read_table(part)
        columns = costs_of(device, arrays, part)
        if columns:
            genotypes = read_table(find_file("nasbench201.npz"))["arch_ops"]
            if name != "cifar10":
                announce(f"costs of {device} are those of the CIFAR-10 networks: {part} has no others")
            return CostTable(space, device, genotypes, columns, metric=metric, source=part)
    fitted = PROFILES / f"{device}.json"
    if fitted.is_file():
        profile = Profile.load(fitted)
        other = "" if name == "cifar10" else " of the CIFAR-10 networks"
        announce(f"{whole.name} is not in {folder}: costs{other} are predicted. {profile.summary()}")
        return ProfileDevice(space, profile, fitted, metric=metric)
    raise ValueError(
        f"no costs of {device}: looked for {whole} and {part}; get HW-NAS-Bench-v1_0.pickle from "
        "github.com/GATECH-EIC/HW-NAS-Bench and convert it: hwnas data hwnasbench source=<file>"
    )
