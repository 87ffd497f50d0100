"""`hwnas export`: a trained network as ONNX and torch files, with a model card."""

from __future__ import annotations

import hashlib
import io
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from hwnas import password
from hwnas.config import (
    build,
    hydra_says,
    read_yaml,
    suggestion,
    sweep_or_run,
    take_from_run,
    working_folder,
)
from hwnas.core import Genotype, SearchSpace, whole_number
from hwnas.devices import board
from hwnas.devices.profile import Profile, network_shape
from hwnas.display import Display
from hwnas.export_card import card
from hwnas.files import remove, write_bytes, write_json, write_text
from hwnas.foreign import plain_yaml, read_json, shaped
from hwnas.train import architecture, identity

if TYPE_CHECKING:
    from hwnas.models.deployed import Deployed

FILES = {"torch": "network.pt2", "onnx": "network.onnx"}
INT8 = "network_int8.onnx"
FIGURES, CARD = "export.json", "card.md"

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "image", "logits"
TOLERANCE = 1e-4
"""How far a file's logits may be from torch's, as a share of the largest logit (of 1 if all are smaller)."""

BATCH = 100
"""Images per forward pass where speed is not measured."""

HOST, PROFILE = "hwnas.devices.host.Host", "hwnas.devices.profile.profile_device"


def export_network(
    module: Deployed,
    dataset: Any,
    folder: Path,
    *,
    formats: Sequence[str],
    int8: bool,
    calibration_images: int,
    check_images: int | None,
    rounds: int,
    metadata: Mapping[str, str],
    say: Callable[[str], None],
) -> dict[str, Any]:
    """Write a network's files, classify test images with each and time each; returns the figures.

    Args:
        module: The network.
        dataset: Its images: training images calibrate, test images check.
        folder: Created if needed; files of an earlier export are replaced.
        formats: "torch", "onnx".
        int8: Whether to write an 8-bit ONNX file too.
        calibration_images: Number of training images that tell the ranges of 8-bit activations.
        check_images: Number of test images, evenly spaced; None: all.
        rounds: Timing rounds per file.
        metadata: Kept in every file.
        say: Called with sentences about the progress.

    Returns:
        "images", the number of test images; "test_acc" of the network in torch, in 0..1, and "largest", its
        largest logit; "files", per file its "file", "runtime", "bytes", "sha256", "test_acc", "agreement"
        (share of test images with torch's answer), "difference" (largest, from torch's logits), "median_ms"
        and "quartile_ms" (the lower one; batch 1, one thread); and "torch", such times of the network itself.

    Raises:
        ValueError: No onnx package, or a file that does not compute what torch does.
    """
    import torch

    from hwnas.devices.measure import cpu_timer
    from hwnas.devices.onnx_models import quantise, require_onnx, write_program

    if "onnx" in formats:
        require_onnx(*PACKAGES)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*FILES.values(), INT8, FIGURES, CARD):
        remove(folder / name)
    shape = (1, *dataset.image_shape)
    runs: dict[str, Callable[[np.ndarray], np.ndarray]] = {}
    timers: dict[str, board.Timer] = {}
    runtimes: dict[str, str] = {}
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0))

    say(f"writing {' and '.join(FILES[name] for name in formats)}")
    # Two images: a batch of one would be taken for a constant.
    example, batch = torch.zeros(2, *shape[1:]), torch.export.Dim("batch", min=1)
    program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},))
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # has the paths of this machine's files
    if "torch" in formats:
        path = folder / FILES["torch"]
        content = io.BytesIO()  # torch's own writer ends the process when the disk is full
        torch.export.save(program, content, extra_files={"metadata.json": json.dumps(dict(metadata))})
        write_bytes(path, content.getvalue())
        loaded = torch.export.load(path).module()
        runs[path.name] = lambda images: loaded(torch.from_numpy(images)).numpy()
        timers[path.name] = cpu_timer(loaded, image)
        runtimes[path.name] = f"torch {torch.__version__}"
    if "onnx" in formats:
        import onnxruntime

        path = folder / FILES["onnx"]
        write_program(program, path, names=(INPUT, OUTPUT), metadata=metadata)
        names = [path.name]
        if int8:
            say(f"writing {INT8}, calibrated on {calibration_images} training images")
            quantise(path, folder / INT8, _calibration(dataset, calibration_images))
            names.append(INT8)
        for name in names:
            runs[name] = _session(folder / name)
            timers[name] = board.onnx_timer(str(folder / name), list(shape), "CPUExecutionProvider", 1)
            runtimes[name] = f"onnxruntime {onnxruntime.__version__}"

    say("classifying test images with every file")
    with torch.inference_mode():
        figures = _checked(module, runs, dataset, check_images)
    rows, allowed = figures["files"], TOLERANCE * max(1.0, figures["largest"])
    for name in FILES.values():
        if name in rows and not rows[name]["difference"] <= allowed:
            raise ValueError(
                f"{folder / name} does not compute what torch does: its logits differ by up to "
                f"{rows[name]['difference']:.2g}, more than {allowed:.2g}"
            )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            times, _ = board.time_rounds({**timers, "": cpu_timer(module, image)}, rounds, noise=np.inf)
    finally:
        torch.set_num_threads(threads)
    return {
        **figures,
        "files": [
            {
                "file": name,
                "runtime": runtimes[name],
                "bytes": (folder / name).stat().st_size,
                "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
                **rows[name],
                **_latency(times[name]),
            }
            for name in runs
        ],
        "torch": {"runtime": f"torch {torch.__version__}", **_latency(times[""])},
    }


def _latency(figures: list[float]) -> dict[str, float]:
    return {"median_ms": float(np.median(figures)), "quartile_ms": board.settled(figures)}


def _session(path: Path) -> Callable[[np.ndarray], np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def _calibration(dataset: Any, num: int) -> Iterator[np.ndarray]:
    """Batches of the first training images, which are in random order."""
    for images, _ in dataset.batches("train", batch_size=BATCH, train=False):
        yield images[:num].numpy()
        num -= len(images)
        if num <= 0:
            return


def _checked(
    module: Deployed, runs: Mapping[str, Callable[[np.ndarray], np.ndarray]], dataset: Any, num: int | None
) -> dict[str, Any]:
    """Test images classified by torch and by every file."""
    import torch

    total = len(dataset.batches("test", batch_size=1, train=False))
    chosen = np.unique(np.linspace(0, total - 1, min(num or total, total)).round().astype(int))
    right = dict.fromkeys(["", *runs], 0)
    same, difference = dict.fromkeys(runs, 0), dict.fromkeys(runs, 0.0)
    largest, start = 0.0, 0
    for images, labels in dataset.batches("test", batch_size=BATCH, train=False):
        rows = chosen[(start <= chosen) & (chosen < start + len(images))] - start
        start += len(images)
        if not len(rows):
            continue
        x, y = images[torch.from_numpy(rows)].contiguous(), labels.numpy()[rows]
        logits = module(x).numpy()
        answers = logits.argmax(1)
        right[""] += int((answers == y).sum())
        largest = max(largest, float(np.abs(logits).max()))
        for name, classify in runs.items():
            found = classify(x.numpy())
            right[name] += int((found.argmax(1) == y).sum())
            same[name] += int((found.argmax(1) == answers).sum())
            difference[name] = max(difference[name], float(np.abs(found - logits).max()))
    return {
        "images": len(chosen),
        "test_acc": right[""] / len(chosen),
        "largest": largest,
        "files": {
            name: {
                "test_acc": right[name] / len(chosen),
                "agreement": same[name] / len(chosen),
                "difference": difference[name],
            }
            for name in runs
        },
    }


def predicted(
    space: SearchSpace,
    genotype: Genotype,
    devices: Sequence[DictConfig],
    store_dir: Path,
    kept: Path,
    warn: Callable[[str], None],
) -> dict[str, Any] | None:
    """What a profile of this machine predicts for a network, at batch 1 and one thread.

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


TRAINED_SHAPE = {
    "arch": str,
    "genotype": [int],
    "mean": [float],
    "std": [float],
    "epochs?": int,
    "seed?": int,
    "test_acc?": float,
}
"""What the architecture.json of a trained network holds, as `foreign.shaped` reads it."""


def trained(folder: Path) -> dict[str, Any]:
    """The architecture.json of the network that a search or a training in `folder` has trained.

    Raises:
        ValueError: There is none, or it is damaged.
    """
    path = folder / "network" / "architecture.json"
    if not path.is_file() or not path.with_name("weights.pt").is_file():
        job = hydra_says(folder, "job", "name")
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


def target(cfg: DictConfig, own: Path) -> Path:
    """The folder that the files are written to.

    Args:
        cfg: The command's configuration.
        own: The command's own folder.
    """
    if cfg.to:
        return Path(cfg.to).expanduser()
    return own if cfg.run is None else Path(str(cfg.run)).expanduser() / "export"


def main(cfg: DictConfig) -> None:
    """The command.

    Raises:
        ValueError: Settings that do not fit, no trained network, or what `export_network` raises.
    """
    from hydra.core.hydra_config import HydraConfig

    from hwnas.devices.onnx_models import require_onnx

    display = Display()
    overrides = list(HydraConfig.get().overrides.task)
    formats, int8 = _formats(cfg.format, cfg.int8)
    if "onnx" in formats:
        require_onnx(*PACKAGES)
    for name, what in (("to", "folder"), ("weights", "file")):
        if cfg[name] is not None and not isinstance(cfg[name], str):
            raise ValueError(f"{name} must be a {what}, not {cfg[name]!r}")
    settings: dict[str, Any] = {
        "calibration_images": whole_number("calibration_images", cfg.calibration_images),
        "check_images": None if cfg.check_images is None else whole_number("check_images", cfg.check_images),
        "rounds": whole_number("rounds", cfg.rounds, least=3),
    }
    if (cfg.arch is None) == (cfg.run is None):
        raise ValueError("give one of run=<folder of a search or a training> and arch='<architecture>'")
    if cfg.run is not None and cfg.weights is not None:
        raise ValueError("weights goes with arch; run has weights of its own")
    run = None if cfg.run is None else Path(str(cfg.run)).expanduser()
    folder = target(cfg, Path(HydraConfig.get().runtime.output_dir))
    if folder.is_file():
        raise ValueError(f"to={folder} is a file; a folder is needed")
    facts = {} if run is None else trained(run)
    if run is not None:
        take_from_run(cfg, run, overrides)
    dataset = build(cfg.dataset)
    space: Any = build(
        cfg.search_space, SearchSpace, image_shape=dataset.image_shape, num_classes=dataset.num_classes
    )
    if not hasattr(space, "network"):
        raise ValueError(f"the {space.name} space has no networks to export")
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
        module,
        dataset,
        folder,
        formats=formats,
        int8=int8,
        metadata=_metadata(network),
        say=display.say,
        **settings,
    )
    content = {
        **network,
        **figures,
        "input": INPUT,
        "output": OUTPUT,
        "calibration_images": settings["calibration_images"] if int8 else None,
        "machine": board.host(1),
        "predicted": predicted(space, genotype, *_devices(run, cfg, overrides, folder), display.warn),
        "made_by": None if run is None else _command_of(run),
        "exported_by": _command("export", overrides),
    }
    write_json(folder / FIGURES, content)
    write_text(folder / CARD, card(content))
    _show(content, display)
    display.say(f"card: {folder / CARD}")
    extra = "" if int8 or "onnx" not in formats else "; int8=true adds a file in 8 bits"
    display.say(f"next: {folder / CARD} tells how to load the files{extra}")


def _network(
    space: Any, genotype: Genotype, dataset: Any, facts: Mapping[str, Any], weights: Path | None, seed: Any
) -> Deployed:
    """The network with its weights, or random ones, and the normalisation that it was trained with."""
    import torch

    from hwnas.devices.measure import draw_weights
    from hwnas.models.deployed import Deployed

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(whole_number("seed", seed, least=0))
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
    space: Any,
    genotype: Genotype,
    dataset: Any,
    facts: Mapping[str, Any],
    module: Deployed,
    weights: Path | None,
) -> dict[str, Any]:
    """What the network is, for the card and the files."""
    from hwnas import __version__

    presets = {space.from_str(text): name for name, text in space.presets.items()}
    return {
        **identity(space, genotype, dataset),
        "preset": presets.get(genotype),
        **{name: float(values[0]) for name, values in space.static_metrics([genotype]).items()},
        "mean": module.mean.flatten().tolist(),
        "std": module.std.flatten().tolist(),
        "weights": "random" if weights is None else str(weights),
        **{name: facts[name] for name in ("epochs", "seed") if name in facts},
        "reported_test_acc": facts.get("test_acc"),
        "classes": list(getattr(dataset, "classes", [])) or None,
        "hwnas": __version__,
    }


def _formats(given: Any, int8: Any) -> tuple[list[str], bool]:
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
    run: Path | None, cfg: DictConfig, overrides: Sequence[str], folder: Path
) -> tuple[list[DictConfig], Path, Path]:
    """Devices that may predict, first those of the run, the folder of its store, and of copies from there.

    Settings given win; `folder` is the export's, for one without a run.
    """
    devices, store_dir = _members(cfg.device), Path(str(cfg.store.dir)).expanduser()
    if run is None:
        return devices, store_dir, folder
    stored, cwd = read_yaml(run / ".hydra" / "config.yaml"), working_folder(run)
    if "device" in stored and not any(override.startswith("device") for override in overrides):
        nodes = _members(stored.device)
        for node in nodes:
            path = node.get("path")
            if path and cwd is not None and (cwd / str(path)).is_file():
                node.path = str(cwd / str(path))
        devices = [*nodes, *devices]
    if "store" in stored and not any(override.startswith("store.dir=") for override in overrides):
        store_dir = (cwd or Path()) / Path(str(stored.store.dir)).expanduser()
    return devices, store_dir, sweep_or_run(run) / ".hydra"


def _members(device: DictConfig) -> list[DictConfig]:
    """The devices of `multi`, or the one."""
    return list(device.devices.values()) if "devices" in device else [device]


def _command_of(run: Path) -> str:
    """The command of a run."""
    job = hydra_says(run, "job", "name")
    return _command(str(job), password.hidden(plain_yaml(run / ".hydra" / "overrides.yaml")))


def _command(job: str, overrides: Sequence[str]) -> str:
    """A command as one would type it: an architecture is quoted for the shell, not for Hydra too."""
    words = list(map(str, overrides))
    for number, word in enumerate(words):
        if word.startswith("arch='"):
            words[number] = "arch=" + word[6:-1].replace("\\'", "'")
    return shlex.join(["hwnas", job, *words])


def _metadata(what: Mapping[str, Any]) -> dict[str, str]:
    """What every file says about itself."""
    shape = "x".join(map(str, what["image_shape"]))
    texts = {
        "input": f"{INPUT}: float32, batch x {shape} (channels x height x width), 0..1",
        "output": f"{OUTPUT}: float32, batch x {what['num_classes']}; the largest is the answer",
        "normalisation": f"inside: mean {what['mean']}, std {what['std']}",
        "architecture": what["arch"],
        **{name: str(what[name]) for name in ("search_space", "dataset", "hwnas")},
        "weights": "random" if what["weights"] == "random" else "trained",
    }
    return texts if what["classes"] is None else {**texts, "classes": json.dumps(what["classes"])}


def _show(content: Mapping[str, Any], display: Display) -> None:
    from rich.table import Table

    table = Table(box=None)
    for title in ("file", "size", "test accuracy", "same answers", "largest difference", "latency"):
        table.add_column(title, justify="left" if title == "file" else "right", no_wrap=True)
    for row in content["files"]:
        table.add_row(
            row["file"],
            f"{row['bytes'] / 1e6:.2f} MB",
            f"{row['test_acc']:.2%}",
            f"{row['agreement']:.2%}",
            f"{row['difference']:.1e}",
            f"{row['median_ms']:.3f} ms",
        )
    display.console.print(table)
    known = content["predicted"]
    if known is not None:
        display.say(
            f"predicted for this machine: {known['latency_ms']:.3f} ms "
            f"(profile of {known['device']}, {known['backend']})"
        )
