"""A trained network's files: written, checked against torch, timed."""

from __future__ import annotations

import hashlib
import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from omegaconf import DictConfig

from hwnas.devices import board
from hwnas.devices.measure import cpu_timer
from hwnas.devices.memory import BYTES_PER_KB
from hwnas.devices.onnx_models import (
    PACKAGES,
    allocated,
    answers,
    quantise,
    require_onnx,
    traced,
    write_program,
)
from hwnas.devices.runtimes import RUNTIMES
from hwnas.devices.runtimes.litert import LiteRT
from hwnas.devices.runtimes.runtime import Answers
from hwnas.files import remove, write_bytes

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram

    from hwnas.data.folder import ImageFolder
    from hwnas.data.images import Images
    from hwnas.exports.deployed import Deployed


FILES = {"torch": "network.pt2", "onnx": "network.onnx", "tflite": "network.tflite"}
LITERT = LiteRT()
FORMATS = {"torch": "torch", "onnxruntime": "onnx", LITERT.name: "tflite", **dict.fromkeys(RUNTIMES, "onnx")}
"""Which of the files a backend runs."""

BOTH = ("torch", "onnxruntime")
"""Backends of the files, unless the user names others."""

INT8 = "network_int8.onnx"
FIGURES, CARD = "export.json", "card.md"

INPUT, OUTPUT = "image", "logits"
TOLERANCE = 1e-4
"""How far a file's logits may be from torch's: a fraction of the largest logit (of 1 if all are smaller)."""

BATCH = 100
"""Images per forward pass where speed is not measured."""


@dataclass(frozen=True)
class ExportSettings:
    """Which files are written, and how they are checked.

    Args:
        formats: "torch", "onnx", "tflite".
        int8: Whether to write an 8-bit ONNX file too.
        calibration_images: Number of training images that tell the ranges of 8-bit activations.
        check_images: Number of test images, evenly spaced; None: all.
        rounds: Timing rounds per file.
        noise: Coefficient of variation above which a file is timed again, and then marked.
        backends: What runs the files: "torch", "onnxruntime", and those of `RUNTIMES`; empty: torch and
            onnxruntime.
    """

    formats: Sequence[str]
    int8: bool
    calibration_images: int
    check_images: int | None
    rounds: int
    noise: float
    backends: Sequence[str] = ()


@dataclass(frozen=True)
class _File:
    """A written file: what runs it, its answers (logits by images), its timer, and its first milliseconds."""

    path: Path
    runtime: str
    answers: Answers
    timer: board.Timer
    cold: Mapping[str, float]


def export_network(
    module: Deployed,
    dataset: Images | ImageFolder,
    folder: Path,
    settings: ExportSettings,
    *,
    metadata: Mapping[str, str],
    say: Callable[[str], None],
) -> dict[str, object]:
    """Write a network's files, classify test images with each and time each; returns the figures.

    Args:
        module: The network.
        dataset: Its images: training images calibrate, test images check.
        folder: Created if needed; files of an earlier export are replaced.
        settings: Which files, and how they are checked.
        metadata: Kept in every file.
        say: Called with sentences about the progress.

    Returns:
        "images", the number of test images; "test_acc" of the network in torch, in 0..1, and "largest", its
        largest logit; "files", per file its "file", "runtime", "bytes", "sha256", "test_acc", "agreement"
        (fraction of test images that agree), "difference" (largest, from torch's logits), "median_ms"
        and "quartile_ms" (the lower one; batch 1, one thread), the "variation" of these times and whether
        they are "noisy" although they were taken again, "p50_ms" and "p95_ms" of single "passes", "load_ms"
        of the file and "first_ms" of the pass after, and of files in onnxruntime "ram_kb", what it allocates
        for activations, and "sparing_ram_kb", if it frees each tensor at once; null: it does not tell; and
        "torch", such times of the network itself.

    Raises:
        ValueError: No onnx package, or a file that does not compute what torch does.
    """
    import torch

    if "onnx" in settings.formats:
        require_onnx(*PACKAGES)
    folder.mkdir(parents=True, exist_ok=True)
    for name in (*FILES.values(), INT8, FIGURES, CARD):
        remove(folder / name)
    say(f"writing {' and '.join(FILES[name] for name in settings.formats)}")
    image = torch.rand((1, *dataset.image_shape), generator=torch.Generator().manual_seed(0))
    program = traced(module, dataset.image_shape)
    files = [_torch_file(program, folder, image, metadata)] if "torch" in settings.formats else []
    run_by = [backend for backend in settings.backends or BOTH if FORMATS[backend] == "onnx"]
    if "onnx" in settings.formats:
        path = folder / FILES["onnx"]
        write_program(program, path, names=(INPUT, OUTPUT), metadata=metadata)
        files += [_onnx_run(path, image, backend) for backend in run_by]
    if settings.int8:
        say(f"writing {INT8}, calibrated on {settings.calibration_images} training images")
        quantise(folder / FILES["onnx"], folder / INT8, _calibration(dataset, settings.calibration_images))
        files += [_onnx_run(folder / INT8, image, backend) for backend in run_by]

    if "tflite" in settings.formats:
        path = folder / FILES["tflite"]
        LITERT.write(module, dataset.image_shape, path)
        files.append(_run(path, LITERT.version, lambda: LITERT.load(path, LITERT.provider, 1), image))

    say("classifying test images with every file")
    with torch.inference_mode():
        compared, rows = _checked(module, files, dataset, settings.check_images)
    for file, row in zip(files, rows, strict=True):
        if file.path.name != INT8:
            _check_difference(file.path, row["difference"], compared["largest"])
    own, *times = _timed([cpu_timer(module, image), *(file.timer for file in files)], settings, say)
    return {
        **compared,
        "files": [
            {
                "file": file.path.name,
                "runtime": file.runtime,
                "bytes": file.path.stat().st_size,
                "sha256": hashlib.sha256(file.path.read_bytes()).hexdigest(),
                **row,
                **latency,
                **file.cold,
                **_memory(file, image),
            }
            for file, row, latency in zip(files, rows, times, strict=True)
        ],
        "torch": {"runtime": f"torch {torch.__version__}", **own},
    }


def _memory(file: _File, image: Tensor) -> dict[str, float | None]:
    """What onnxruntime allocates for the activations of one image; empty for other runtimes."""
    if file.runtime.split()[0] != "onnxruntime":
        return {}
    int8 = file.path.name == INT8
    usual, sparing = (allocated(file.path, image.shape, sparing=of, int8=int8) for of in (False, True))
    return {
        "ram_kb": None if usual is None else usual.in_all / BYTES_PER_KB,
        "sparing_ram_kb": None if sparing is None else sparing.in_all / BYTES_PER_KB,
    }


def _check_difference(path: Path, difference: float, largest: float) -> None:
    """Raise ValueError if a file's logits are not torch's, whose largest is given."""
    allowed = TOLERANCE * max(1.0, largest)
    if not difference <= allowed:
        raise ValueError(
            f"{path} does not compute what torch does: its logits differ by up to {difference:.2g}, more "
            f"than {allowed:.2g}"
        )


def _torch_file(program: ExportedProgram, folder: Path, image: Tensor, metadata: Mapping[str, str]) -> _File:
    import torch

    path = folder / FILES["torch"]
    content = io.BytesIO()  # torch's own writer ends the process when the disk is full
    torch.export.save(program, content, extra_files={"metadata.json": json.dumps(dict(metadata))})
    write_bytes(path, content.getvalue())

    def load() -> Answers:
        loaded = torch.export.load(path).module()
        return lambda images: loaded(torch.from_numpy(images)).numpy()

    return _run(path, f"torch {torch.__version__}", load, image)


def _onnx_run(path: Path, image: Tensor, backend: str) -> _File:
    if backend in RUNTIMES:
        runtime = RUNTIMES[backend]
        return _run(path, runtime.version, lambda: runtime.load(path, runtime.provider, 1), image)
    import onnxruntime

    return _run(path, f"onnxruntime {onnxruntime.__version__}", lambda: answers(path, threads=1), image)


def _run(path: Path, runtime: str, load: Callable[[], Answers], image: Tensor) -> _File:
    """A file, loaded and run for the first time, by one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            x, start = image.numpy(), time.perf_counter()
            run = load()
            loaded = time.perf_counter()
            run(x)
            first = time.perf_counter()
    finally:
        torch.set_num_threads(threads)
    cold = {"load_ms": 1e3 * (loaded - start), "first_ms": 1e3 * (first - loaded)}
    return _File(path, runtime, run, board.repeated(lambda: run(x)), cold)


def _timed(
    timers: Sequence[board.Timer], settings: ExportSettings, say: Callable[[str], None]
) -> list[dict[str, float]]:
    """The latency of each, in turns, by one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            named = {str(number): timer for number, timer in enumerate(timers)}
            figures, _ = board.time_rounds(named, settings.rounds, settings.noise, say=None)
            single = [board.felt(timer) for timer in timers]
    finally:
        torch.set_num_threads(threads)
    spread = [board.variation(times) for times in figures.values()]
    if noisy := sum(each > settings.noise for each in spread):
        say(
            f"{noisy} of {len(spread)} latencies are noisy, though measured again: they vary by up to "
            f"{max(spread):.0%}; other programs are busy"
        )
    return [
        {
            "median_ms": float(np.median(times)),
            "quartile_ms": board.settled(times),
            "variation": each,
            "noisy": each > settings.noise,
            **passes,
        }
        for times, each, passes in zip(figures.values(), spread, single, strict=True)
    ]


def _calibration(dataset: Images | ImageFolder, num: int) -> Iterator[np.ndarray]:
    """Batches of the first training images, which are in random order."""
    for images, _ in dataset.batches("train", batch_size=BATCH, train=False):
        yield images[:num].numpy()
        num -= len(images)
        if num <= 0:
            return


def _checked(
    module: Deployed, files: Sequence[_File], dataset: Images | ImageFolder, num: int | None
) -> tuple[dict[str, float], list[dict[str, float]]]:
    """Figures of test images classified by torch, and of those classified by each file."""
    import torch

    total = len(dataset.batches("test", batch_size=1, train=False))
    chosen = np.unique(np.linspace(0, total - 1, min(num or total, total)).round().astype(int))
    own_right, right, same = 0, [0] * len(files), [0] * len(files)
    difference = [0.0] * len(files)
    largest, start = 0.0, 0
    for images, labels in dataset.batches("test", batch_size=BATCH, train=False):
        rows = chosen[(start <= chosen) & (chosen < start + len(images))] - start
        start += len(images)
        if not len(rows):
            continue
        x, y = images[torch.from_numpy(rows)].contiguous(), labels.numpy()[rows]
        logits = module(x).numpy()
        classes = logits.argmax(1)
        own_right += int((classes == y).sum())
        largest = max(largest, float(np.abs(logits).max()))
        for number, file in enumerate(files):
            found = file.answers(x.numpy())
            right[number] += int((found.argmax(1) == y).sum())
            same[number] += int((found.argmax(1) == classes).sum())
            difference[number] = max(difference[number], float(np.abs(found - logits).max()))
    n = len(chosen)
    own = {"images": n, "test_acc": own_right / n, "largest": largest}
    return own, [
        {"test_acc": right[k] / n, "agreement": same[k] / n, "difference": difference[k]}
        for k in range(len(files))
    ]


TRAINED_SHAPE = {
    "arch": str,
    "genotype": [int],
    "mean": [float],
    "std": [float],
    "epochs?": int,
    "seed?": int,
    "test_acc?": float,
    "balanced_test_acc?": float,
}
"""Shape of the architecture.json of a trained network, for `files.shaped`."""


def metadata_of(what: Mapping[str, Any]) -> dict[str, str]:
    """Metadata that every file contains."""
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
