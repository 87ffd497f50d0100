"""`hwnas export`: a trained network as ONNX and torch files, with a model card."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge
from omegaconf import DictConfig

from hwnas import __version__
from hwnas.build import build, read_yaml
from hwnas.cli.job import Job, space_and_images
from hwnas.core import Count, Genotype, Positive, SearchSpace, Seed, check_setting, suggestion
from hwnas.data.class_folders import ClassFolders
from hwnas.data.folder import ImageFolder
from hwnas.data.images import Images
from hwnas.devices import board
from hwnas.devices.measure import draw_weights
from hwnas.devices.memory import Bits, Memory
from hwnas.devices.onnx_models import PACKAGES, require_onnx
from hwnas.devices.profile import Profile, network_shape
from hwnas.devices.runtimes import RUNTIMES
from hwnas.exports.card import card
from hwnas.exports.deployed import Deployed
from hwnas.exports.network import (
    CARD,
    FIGURES,
    FILES,
    FORMATS,
    INPUT,
    LITERT,
    OUTPUT,
    TRAINED_SHAPE,
    ExportSettings,
    export_network,
    metadata_of,
    target,
)
from hwnas.files import read_json, shaped, write_json, write_text
from hwnas.runs.display import Display
from hwnas.runs.folder import config_file, hydra_says, overrides, sweep_or_run, take_from_run, working_folder
from hwnas.runs.lock import STORED
from hwnas.spaces.capabilities import HasNetworks, identity
from hwnas.spaces.known import KnownNetworks, known_names
from hwnas.spaces.presets import architecture

MEMORY_BITS: tuple[Bits, ...] = (32, 8)
HOST, PROFILE = "hwnas.devices.host.Host", "hwnas.devices.profile.profile_device"


def predicted(
    space: SearchSpace,
    genotype: Genotype,
    devices: Sequence[DictConfig],
    store_dir: Path,
    kept: Path,
    warn: Callable[[str], None],
) -> dict[str, object] | None:
    """The prediction of a profile of this machine for a network, at batch 1 and one thread.

    Args:
        space: The space, with the width and depth of the network.
        genotype: The architecture.
        devices: Choices of the group `device`; the first that is a profile of this machine counts. Nothing
            is measured: the profile of `host` counts if the run has it, or else the store.
        store_dir: Folder of the store.
        kept: Folder of what the run, or its sweep, began with.
        warn: Called with a sentence where a profile cannot be read.

    Returns:
        "latency_ms", the "device", the "backend" that was profiled, and the profile's own "median_error", a
        share; None without such a profile.
    """
    shape = network_shape(space, 1)
    for node in devices:
        try:
            if node.get("_target_") == HOST:
                host = build(node, space=space, store_dir=store_dir, kept=kept, announce=warn)
                path = host.copy() if host.copy().is_file() else host.path()
                if not path.is_file():
                    continue
                profile = Profile.load(path)
            elif node.get("_target_") == PROFILE:
                profile = build(node, space=space, announce=lambda text: None).profile
            else:
                continue
        except ValueError as error:
            warn(f"no prediction of latency by {node.get('_target_')}: {error}")
            continue
        origin = profile.origin
        here = origin.get("processor") == board.processor() and origin.get("threads") == 1
        if here and profile.network == shape and "latency_ms" in profile.costs:
            return {
                "latency_ms": float(profile.predict(space, "latency_ms", [genotype])[0]),
                "device": profile.device,
                "backend": str(origin.get("backend")),
                "median_error": profile.check["latency_ms"]["median_error"],
            }
    return None


def trained(folder: Path) -> dict[str, Any]:
    """The architecture.json of the network that a search or a training in `folder` has trained.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    path = folder / "network" / "architecture.json"
    if not path.is_file() or not path.with_name("weights.pt").is_file():
        job = hydra_says(folder, "job", "name") or "search"
        if job not in ("search", "train"):
            raise ValueError(f"run={folder} is a folder of hwnas {job}, not of a search or a training")
        hint = f"train one: hwnas train run={folder}"
        if not (folder / "result.json").is_file():
            hint = f"it is unfinished: hwnas {job} resume={folder}"
        raise ValueError(f"run={folder} has no trained network; {hint}")
    facts = read_json(path, "is damaged")
    try:
        shaped(facts, TRAINED_SHAPE)
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error})") from None
    return {**facts, "genotype": tuple(facts["genotype"])}


def main(job: Job) -> None:
    """The command.

    Raises:
        ValueError: Settings that do not fit, no trained network, or what `export_network` raises.
    """
    cfg, words, display = job.cfg, job.words, Display()
    backends = _backends(cfg.backend)
    formats, int8 = _formats(_needed(backends, cfg.format), cfg.int8)
    if "onnx" in formats:
        require_onnx(*PACKAGES)
    for name, what in (("to", "folder"), ("weights", "file")):
        if cfg[name] is not None and not isinstance(cfg[name], str):
            raise ValueError(f"{name} must be a {what}, not {cfg[name]!r}")
    settings = ExportSettings(
        formats,
        int8,
        calibration_images=check_setting("calibration_images", Count, cfg.calibration_images),
        check_images=check_setting("check_images", Count | None, cfg.check_images),
        rounds=check_setting("rounds", Annotated[int, Ge(3)], cfg.rounds),
        noise=check_setting("noise", Positive, cfg.noise),
        backends=backends,
    )
    if (cfg.arch is None) == (cfg.run is None):
        raise ValueError("give one of run=<folder of a search or a training> and arch='<architecture>'")
    if cfg.run is not None and cfg.weights is not None:
        raise ValueError("weights goes with arch; run has weights of its own")
    run = None if cfg.run is None else Path(str(cfg.run)).expanduser()
    folder = target(cfg, job.folder)
    if folder.is_file():
        raise ValueError(f"to={folder} is a file; a folder is needed")
    facts = {} if run is None else trained(run)
    if run is not None:
        take_from_run(cfg, run, words)
    space, dataset = space_and_images(cfg, display)
    if not isinstance(space, HasNetworks):
        raise ValueError(f"the {space.name} space has no networks to export")
    if not isinstance(dataset, Images | ImageFolder):
        raise ValueError(f"dataset={dataset.name} has no images to export a network for; choose another")
    if facts.get("search_space") != space.name and facts.get("arch") in known_names():
        # It did better than the best network of the search.
        space = KnownNetworks(
            [facts["arch"]], image_shape=dataset.image_shape, num_classes=dataset.num_classes
        )
    if facts and facts.get("search_space") != space.name:
        raise ValueError(f"run={run} trained a network of {facts.get('search_space')}, not of {space.name}")
    genotype = space.check(facts["genotype"]) if facts else architecture(space, str(cfg.arch))
    for name, value in identity(space, genotype, dataset).items():
        if facts and name not in ("arch", "genotype") and facts.get(name) != value:
            raise ValueError(f"run={run} trained a network with {name}={facts.get(name)}, not {value}")
    weights = Path(cfg.weights).expanduser() if cfg.weights else run and run / "network" / "weights.pt"
    module = _network(space, genotype, dataset, facts, weights, cfg.seed)
    if weights is None:
        display.warn("the weights are random: the files have the network's size and speed, not its accuracy")
    network = _described(space, genotype, dataset, facts, module, weights)
    display.say(f"exporting {network['arch']} to {folder}")
    figures = export_network(
        module, dataset, folder, settings, metadata=metadata_of(network), say=display.say
    )
    content = {
        **network,
        **figures,
        "input": INPUT,
        "output": OUTPUT,
        "calibration_images": settings.calibration_images if int8 else None,
        "machine": board.host(1),
        "predicted": predicted(space, genotype, *_devices(run, cfg, words, folder), display.warn),
        "made_by": None if run is None else _command_of(run),
        "exported_by": _command("export", words),
    }
    write_json(folder / FIGURES, content)
    write_text(folder / CARD, card(content))
    _show(content, display)
    display.say(f"card: {folder / CARD}")
    extra = "" if int8 or "onnx" not in formats else "; int8=true adds a file in 8 bits"
    display.say(f"next: {folder / CARD} tells how to load the files{extra}")


def _network(
    space: HasNetworks,
    genotype: Genotype,
    dataset: Images | ImageFolder,
    facts: Mapping[str, Any],
    weights: Path | None,
    seed: object,
) -> Deployed:
    """The network with its weights, or random ones, and the normalisation that it was trained with."""
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(check_setting("seed", Seed, seed))
        network = space.network(genotype)
        draw_weights(network)
    if facts:
        mean, std = (torch.tensor(facts[name]).view(-1, 1, 1) for name in ("mean", "std"))
    else:
        mean, std = dataset.normalisation()
    module = Deployed(network, mean, std)
    if weights is not None:
        module.load(weights)
    return module


def _described(
    space: HasNetworks,
    genotype: Genotype,
    dataset: Images | ImageFolder,
    facts: Mapping[str, Any],
    module: Deployed,
    weights: Path | None,
) -> dict[str, object]:
    """Description of the network, for the card and the files."""
    presets = {space.from_str(text): name for name, text in space.presets.items()}
    counts = {name: float(values[0]) for name, values in space.static_metrics([genotype]).items()}
    memory = {
        str(bits): Memory(space, metric="ram_kb", bits=bits).evaluate([genotype])[0]
        for bits in MEMORY_BITS
        if "params" in counts
    }
    return {
        **identity(space, genotype, dataset),
        "preset": presets.get(genotype),
        **counts,
        **({"memory": memory} if memory else {}),
        "mean": module.mean.flatten().tolist(),
        "std": module.std.flatten().tolist(),
        "weights": "random" if weights is None else str(weights),
        **{name: facts[name] for name in ("epochs", "seed") if name in facts},
        "reported_test_acc": facts.get("test_acc"),
        "reported_balanced_test_acc": facts.get("balanced_test_acc"),
        "classes": None if dataset.classes is None else list(dataset.classes),
        "preparation": dataset.preparation if isinstance(dataset, ClassFolders) else None,
        "hwnas": __version__,
    }


def _backends(given: str | Sequence[str] | None) -> list[str]:
    """The runtimes that are asked for; empty: those of the formats."""
    backends = [given] if isinstance(given, str) else list(given or [])
    for name in backends:
        if name not in FORMATS:
            raise ValueError(f"backend={name} is not known{suggestion(str(name), list(FORMATS))}")
        if name in RUNTIMES:
            RUNTIMES[name].load_package()
        if name == LITERT.name:
            LITERT.load_package("litert_torch")
    return list(dict.fromkeys(backends))


def _needed(backends: Sequence[str], formats: str | Sequence[str] | None) -> str | Sequence[str] | None:
    """The formats that backends run; without backends the given ones."""
    return list(dict.fromkeys(FORMATS[name] for name in backends)) if backends else formats


def _formats(given: str | Sequence[str] | None, int8: object) -> tuple[list[str], bool]:
    """The formats, and whether to write 8 bits; checked."""
    formats = [given] if isinstance(given, str) else list(given or [])
    for name in formats:
        if name not in FILES:
            raise ValueError(f"format={name} is not known{suggestion(str(name), list(FILES))}")
    if not formats:
        raise ValueError(f"format={given} names no format; known: {', '.join(FILES)}")
    if not isinstance(int8, bool):
        raise ValueError(f"int8 must be true or false, not {int8!r}")
    if int8 and "onnx" not in formats:
        raise ValueError(f"int8=true is an ONNX file; format={','.join(formats)} leaves them out")
    return formats, int8


def _devices(
    run: Path | None, cfg: DictConfig, words: Sequence[str], folder: Path
) -> tuple[list[DictConfig], Path, Path]:
    """Devices that may predict, first those of the run, the folder of its store, and of copies from there.

    Settings given win; `folder` is the export's, for one without a run.
    """
    devices, store_dir = _members(cfg.device), Path(str(cfg.store.dir)).expanduser()
    if run is None:
        return devices, store_dir, folder
    stored, cwd = read_yaml(config_file(run)), working_folder(run)
    if "device" in stored and not any(word.startswith("device") for word in words):
        nodes = _members(stored.device)
        for node in nodes:
            path = node.get("path")
            if path and cwd is not None and (cwd / str(path)).is_file():
                node.path = str(cwd / str(path))
        devices = [*nodes, *devices]
    if "store" in stored and not any(word.startswith("store.dir=") for word in words):
        store_dir = (cwd or Path()) / Path(str(stored.store.dir)).expanduser()
    return devices, store_dir, sweep_or_run(run) / STORED


def _members(device: DictConfig) -> list[DictConfig]:
    """The devices of `multi`, or the one."""
    return list(device.devices.values()) if "devices" in device else [device]


def _command_of(run: Path) -> str:
    """The command of a run."""
    job = hydra_says(run, "job", "name")
    return "a search from Python" if job is None else _command(str(job), overrides(run))


def _command(job: str, words: Sequence[str]) -> str:
    """A command as one would type it: an architecture is quoted for the shell, not for Hydra too."""
    words = list(map(str, words))
    for number, word in enumerate(words):
        if word.startswith("arch='"):
            words[number] = "arch=" + word[6:-1].replace("\\'", "'")
    return shlex.join(["hwnas", job, *words])


def _show(content: Mapping[str, Any], display: Display) -> None:
    from rich.table import Table

    table = Table(box=None)
    for title in ("file", "size", "test accuracy", "same answers", "largest difference", "latency"):
        table.add_column(title, justify="left" if title == "file" else "right", no_wrap=True)
    for row in content["files"]:
        backend = row["runtime"].split()[0]
        table.add_row(
            f"{row['file']} in {backend}" if backend in RUNTIMES else row["file"],
            f"{row['bytes'] / 1e6:.2f} MB",
            f"{row['test_acc']:.2%}",
            f"{row['agreement']:.2%}",
            f"{row['difference']:.1e}",
            f"{row['median_ms']:.3f} ms",
        )
    display.console.print(table)
    for row in content["files"]:
        display.say(
            f"{row['file']}, one image, one thread, {row['runtime']}: half of {row['passes']} passes within "
            f"{row['p50_ms']:.3f} ms, 95 % within {row['p95_ms']:.3f} ms; loading {row['load_ms']:.0f} ms, "
            f"first pass {row['first_ms']:.3f} ms"
        )
    known = content["predicted"]
    if known is not None:
        display.say(
            f"predicted for this machine: {known['latency_ms']:.3f} ms "
            f"(profile of {known['device']}, {known['backend']})"
        )
