"""The devices of HW-NAS-Bench on NAS-Bench-201 and FBNet."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from hwnas.core import Evaluator, SearchSpace, checked, suggestion
from hwnas.data.tables import FBNET_OPS, check_layers, fbnet_operations, official_order, read_table
from hwnas.devices.profile import SCHEMA_VERSION, Additive, Profile, ProfileDevice
from hwnas.devices.table import Cost, CostTable, benchmark_name, costs_of, note_networks
from hwnas.files import data_folder, find_file
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.fbnet.encoding import OPS
from hwnas.tables.convert import DATASETS

PROFILES = Path(__file__).parent / "profiles"
"""Profiles that come with the package, fitted by `hwnas profile fit`."""

CONVERSION = (
    "get HW-NAS-Bench-v1_0.pickle from github.com/GATECH-EIC/HW-NAS-Bench and convert it: "
    "hwnas data hwnasbench source=<file>"
)

FBNET = {"cifar100": ("cifar100", (3, 32, 32), 100), "imagenet": ("ImageNet", (3, 224, 224), 1000)}
"""The benchmark's name of each variant of FBNet, its images and classes; all have a stem of 16 channels."""

FPGA_WATTS = 7.0
"""Energy over latency of the FPGA, in all 15 records of HW-NAS-Bench's documentation."""


def source_profiles(space: SearchSpace, names: Sequence[str] | None) -> dict[str, Profile]:
    """Profiles of known devices, from which that of a new one is adapted.

    Args:
        space: The space.
        names: Devices whose profiles come with the package (on FBNet: devices of its table), or files of
            profiles; None: all that are known, which may be none.

    Raises:
        ValueError: An unknown name, a file that is no profile, or a profile of another space.
    """
    if names is None:
        return _known(space)
    found = {}
    for name in names:
        if name.endswith(".json"):
            file = find_file(name)
            found[file.stem] = Profile.load(file)
            found[file.stem].check_space(space, file)
            continue
        known = _known(space)
        if name not in known:
            raise ValueError(
                f"from={name}: no profile of this device on {space.name}{suggestion(name, list(known))}; "
                "a profile of your own is named by its file, mine.json"
            )
        found[name] = known[name]
    return found


def _known(space: SearchSpace) -> dict[str, Profile]:
    """Profiles that come with the package, or those that FBNet's table tells."""
    if isinstance(space, FBNet):
        found = {}
        for name in ("edgegpu", "raspi4", "pixel3", "eyeriss", "fpga"):
            with contextlib.suppress(ValueError):  # no table, or not of this device
                device = look_up_device(space, lambda text: None, device=name, metric="latency_ms")
                found[name] = device.profile
        return found
    profiles = (Profile.load(file) for file in sorted(PROFILES.glob("*.json")))
    return {profile.device: profile for profile in profiles if profile.space == space.name}


@checked
def benchmark_device(
    space: SearchSpace,
    dataset: object,
    announce: Callable[[str], None],
    *,
    device: str,
    metric: Cost,
) -> Evaluator:
    """A device of HW-NAS-Bench on NAS-Bench-201 networks (C = 16, N = 5, batch 1), or on those of FBNet.

    FBNet: see `look_up_device`. NAS-Bench-201: read from `hwnasbench_nasbench201.npz` (written from the
    official file by `hwnas data hwnasbench`), else from `nasbench201_cifar10_devices.npz`, whose latencies
    are those of the CIFAR-10 networks. Without them the costs are predicted by a profile that comes with the
    package, which also knows what the EdgeTPU does not support.

    Args:
        space: NAS-Bench-201 or FBNet.
        dataset: Its `benchmark` names NAS-Bench-201's columns; its images are not read.
        announce: Called with a sentence about where the costs come from.
        device: "edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss" or "fpga".
        metric: The cost that strategies minimise: "latency_ms" or "energy_mj".

    Raises:
        ValueError: No table or profile has the device (says where it was looked for), a metric it does not
            have, or another space.

    Source: Li et al., HW-NAS-Bench, ICLR 2021.
    """
    if isinstance(space, FBNet):
        return look_up_device(space, announce, device=device, metric=metric)
    if space.name != "nasbench201":
        raise ValueError(f"device={device} covers nasbench201 and fbnet, not the {space.name} space")
    name = benchmark_name(dataset)
    found, foreign = _look_up(space, name, announce, device, metric)
    if foreign:
        note_networks(found, space, announce)
    return found


def _look_up(
    space: SearchSpace, name: str, announce: Callable[[str], None], device: str, metric: str
) -> tuple[Evaluator, bool]:
    """A device on NAS-Bench-201, and whether its costs are of the CIFAR-10 networks instead of the run's."""
    folder = data_folder()
    whole, part = folder / "hwnasbench_nasbench201.npz", folder / "nasbench201_cifar10_devices.npz"
    if whole.is_file():
        arrays = read_table(whole)
        columns = costs_of(f"{name}_{device}", arrays, whole)
        foreign = not columns and name not in DATASETS
        if foreign:
            columns = costs_of(f"cifar10_{device}", arrays, whole)
        if not columns:
            raise ValueError(f"{whole} has nothing of {device} for {name}; dataset=cifar10 | cifar100 | ...")
        table = CostTable(space, device, arrays["arch_ops"], columns, metric=metric, source=whole)
        return table, foreign
    if part.is_file():
        arrays = read_table(part)
        columns = costs_of(device, arrays, part)
        if columns:
            table = CostTable(space, device, official_order(), columns, metric=metric, source=part)
            return table, name != "cifar10"
    fitted = PROFILES / f"{device}.json"
    if fitted.is_file():
        profile = Profile.load(fitted)
        announce(f"{whole.name} is not in {folder}: costs are predicted. {profile.summary()}")
        return ProfileDevice(space, profile, fitted, metric=metric), name != "cifar10"
    raise ValueError(f"no costs of {device}: looked for {whole} and {part}; {CONVERSION}")


def look_up_device(
    space: FBNet, announce: Callable[[str], None], *, device: str, metric: str
) -> ProfileDevice:
    """A device of HW-NAS-Bench on FBNet: a cost is the sum of the look-up table's costs per operation.

    Read from `hwnasbench_fbnet.npz` (`hwnas data hwnasbench` writes it from the official file), else, for the
    CIFAR-100 networks, from `fbnet_cifar100_latency_lut.npz`. An operation that the device does not support
    costs `inf`.

    Args:
        space: FBNet. Costs are of the published networks, whatever its width, images and classes.
        announce: Called with a sentence if the space's networks are not the published ones, or if energy is
            computed instead of read.
        device: "edgegpu", "raspi4", "pixel3", "eyeriss" or "fpga".
        metric: The cost that strategies minimise: "latency_ms" or "energy_mj".

    Raises:
        ValueError: No table has the device (says where it was looked for), or a table lacks the metric or an
            operation.

    Source: Li et al., HW-NAS-Bench, ICLR 2021; hw_nas_bench_api.py.
    """
    if device == "edgetpu":
        raise ValueError("HW-NAS-Bench has no costs of edgetpu on fbnet; it has raspi4, fpga, edgegpu, ...")
    name, image_shape, num_classes = FBNET[space.variant]
    folder = data_folder()
    whole, part = folder / "hwnasbench_fbnet.npz", folder / "fbnet_cifar100_latency_lut.npz"
    if whole.is_file():
        source, costs = whole, _sums(read_table(whole), whole, device, name)
    elif part.is_file() and space.variant == "cifar100":
        source, costs = part, _deltas(read_table(part), part, device)
        if "energy_mj" in costs:
            announce(f"energy of {device}: {FPGA_WATTS:g} W times its latency, as in every published record")
    else:
        looked = f"{whole} and {part}" if space.variant == "cifar100" else f"{whole}"
        raise ValueError(f"no costs of {device} on fbnet: looked for {looked}; {CONVERSION}")
    if (space.channels, tuple(space.image_shape), space.num_classes) != (16, image_shape, num_classes):
        announce(
            f"costs of {device} are those of the published {space.variant} networks: 16 channels, "
            f"{image_shape[1]}x{image_shape[2]} images, {num_classes} classes"
        )
    network = {"channels": 16, "image_shape": list(image_shape), "num_classes": num_classes, "batch_size": 1}
    profile = Profile(SCHEMA_VERSION, device, space.name, network, {"table": source.name}, costs, check={})
    return ProfileDevice(space, profile, source, metric=metric)


def _sums(table: dict[str, np.ndarray], source: Path, device: str, name: str) -> dict[str, Additive]:
    """Costs from the benchmark's look-up by the names of operations."""
    networks = [fbnet_operations((op,) * 22, name) for op in range(len(FBNET_OPS))]
    always = [networks[0][0], *networks[0][-3:]]  # stem; head, mean and classifier
    layers = list(zip(*networks, strict=True))[1:-3]
    costs = {}
    for metric, values in costs_of(device, table, source).items():
        look_up = dict(zip(table[f"{device}_{metric}_ops"].tolist(), values.tolist(), strict=True))
        try:
            edges = [[look_up[operation] for operation in layer] for layer in layers]
            costs[metric] = Additive(sum(look_up[operation] for operation in always), edges)
        except KeyError as error:
            raise ValueError(f"{source}: {device}_{metric} has no {error.args[0]}") from None
    return costs


def _deltas(table: dict[str, np.ndarray], source: Path, device: str) -> dict[str, Additive]:
    """Costs as a network of skips plus the additional cost of other operations."""
    try:
        check_layers(table)
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None
    if f"{device}_delta_ms" not in table:
        raise ValueError(f"{source} has nothing of {device}; {CONVERSION}")
    if table["ops"].tolist() != list(OPS):
        raise ValueError(f"{source}: ops are {table['ops'].tolist()}, not {list(OPS)}")
    base, edges = float(table[f"{device}_allskip_ms"]), table[f"{device}_delta_ms"]
    costs = {"latency_ms": Additive(base, edges.tolist())}
    if device == "fpga":
        costs["energy_mj"] = Additive(FPGA_WATTS * base, (FPGA_WATTS * edges).tolist())
    return costs
