"""A trained network's files: written, checked against torch, timed."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from hwnas.devices import board
from hwnas.devices.measure import cpu_timer
from hwnas.devices.onnx_models import quantise, require_onnx, write_program
from hwnas.files import remove, write_bytes

if TYPE_CHECKING:
    from hwnas.exports.deployed import Deployed


FILES = {"torch": "network.pt2", "onnx": "network.onnx"}
INT8 = "network_int8.onnx"
FIGURES, CARD = "export.json", "card.md"

PACKAGES = ("onnx", "onnxscript", "onnxruntime")
INPUT, OUTPUT = "image", "logits"
TOLERANCE = 1e-4
"""How far a file's logits may be from torch's: a fraction of the largest logit (of 1 if all are smaller)."""

BATCH = 100
"""Images per forward pass where speed is not measured."""


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
        (fraction of test images that agree), "difference" (largest, from torch's logits), "median_ms"
        and "quartile_ms" (the lower one; batch 1, one thread); and "torch", such times of the network itself.

    Raises:
        ValueError: No onnx package, or a file that does not compute what torch does.
    """
    import torch

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


TRAINED_SHAPE = {
    "arch": str,
    "genotype": [int],
    "mean": [float],
    "std": [float],
    "epochs?": int,
    "seed?": int,
    "test_acc?": float,
}
"""What the architecture.json of a trained network holds, as `files.shaped` reads it."""


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


def target(cfg: DictConfig, own: Path) -> Path:
    """The folder that the files are written to.

    Args:
        cfg: The command's configuration.
        own: The command's own folder.
    """
    if cfg.to:
        return Path(cfg.to).expanduser()
    return own if cfg.run is None else Path(str(cfg.run)).expanduser() / "export"
