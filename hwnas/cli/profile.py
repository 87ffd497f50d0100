"""`hwnas profile`: a device as a file of costs per operation."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, ListConfig

from hwnas.build import build
from hwnas.cli.job import Job, images
from hwnas.cli.overrides import PROFILE_FILES
from hwnas.core import Count, Evaluator, FloatArray, Genotype, SearchSpace, Seed, check_setting, suggestion
from hwnas.data.images import DataSet
from hwnas.devices.adapt import adapt
from hwnas.devices.benchmark import source_profiles
from hwnas.devices.fitting import fit
from hwnas.devices.measure import Settings, export, measure, networks_of, profile_of, read_measurements
from hwnas.devices.profile import Profile, network_shape
from hwnas.devices.table import CostTable, read_columns, table_device
from hwnas.files import consistent, find_file, read_json, write_text
from hwnas.reports.profile import comparison, page, table
from hwnas.reports.template import write_page
from hwnas.runs.display import Display

ACTIONS = ("measure", "fit", "adapt", "show", "compare", "export", "import")


def _images_of(cfg: DictConfig) -> tuple[list[int], int] | None:
    """Shape and classes of the images that measurements are of, if they tell."""
    try:
        path = cfg.path if isinstance(cfg.path, str) else cfg.path[0]
        network = read_json(find_file(path))["plan"]["network"]
        shape = [check_setting("image_shape", Count, size) for size in network["image_shape"]]
        return (
            (shape, check_setting("num_classes", Count, network["num_classes"])) if len(shape) == 3 else None
        )
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def main(job: Job) -> None:
    """The command: what the action asks for.

    Raises:
        ValueError: An unknown action, a file that is missing or wrong, or settings that do not fit.
    """
    cfg, display = job.cfg, Display()
    if cfg.action not in ACTIONS:
        raise ValueError(f"action={cfg.action} is not known{suggestion(str(cfg.action), ACTIONS)}")
    for name in ("to", "path", "a", "b"):
        several = name == "path" and cfg.action == "adapt" and isinstance(cfg[name], ListConfig) and cfg[name]
        if cfg[name] is not None and not isinstance(cfg[name], str) and not several:
            raise ValueError(f"{name} must be a file, not {cfg[name]!r}")
    for name in ("to",) if cfg.action == "export" else PROFILE_FILES.get(cfg.action, ()):
        if cfg[name] is None:
            what = "folder" if cfg.action == "export" else "file"
            raise ValueError(f"hwnas profile {cfg.action} needs {name}=<{what}>")
    if cfg.action == "compare" and cfg.to is not None:
        raise ValueError(f"hwnas profile compare only prints and takes no to={cfg.to}; show draws a page")
    if cfg["from"] is not None and not isinstance(cfg["from"], ListConfig):
        raise ValueError(f"from must be a list of devices and files, [pixel3,mine.json], not {cfg['from']!r}")
    dataset = images(cfg, display)
    known = _images_of(cfg) if cfg.action in ("import", "adapt") else None
    image_shape, num_classes = known or (dataset.image_shape, dataset.num_classes)
    space: SearchSpace = build(
        cfg.search_space, SearchSpace, image_shape=tuple(image_shape), num_classes=num_classes
    )
    action = {
        "measure": _measure,
        "fit": _fit,
        "adapt": _adapt,
        "show": _show,
        "compare": _compare,
        "export": _export,
        "import": _import,
    }[cfg.action]
    action(job, space, dataset, display)


def _target(job: Job, name: str) -> Path:
    """Where a result is written: `to`, or in the run's folder."""
    return Path(job.cfg.to or job.folder / name).expanduser()


def _keep(job: Job, profile: Profile, display: Display) -> None:
    path = _target(job, "profile.json")
    profile.save(path)
    display.say(profile.summary())
    display.say(f"profile: {path}")
    display.say(f"next: hwnas search device=profile device.path={path}; hwnas profile show {path}")


def _settings(cfg: DictConfig) -> Settings:
    names = (
        *("backend", "provider", "threads", "batch_size"),
        *("rounds", "networks", "check", "noise", "seed"),
    )
    return Settings.of(**{name: cfg[name] for name in names})


def _measure(job: Job, space: SearchSpace, dataset: DataSet, display: Display) -> None:
    cfg = job.cfg
    settings = _settings(cfg)
    profile = measure(space, settings, device=cfg.name or "host", say=display.say)
    typical: Any = profile.origin
    first = "the first pass" if settings.backend == "torch" else "loading and the first pass"
    display.say(
        f"a typical network, batch {settings.batch_size}, threads {settings.threads}, {settings.backend}: "
        f"half of {typical['passes']} passes within {typical['p50_ms']:.3f} ms, 95 % within "
        f"{typical['p95_ms']:.3f} ms; {first} {typical['load_and_first_ms']:.3f} ms "
        f"({typical['typical_network']})"
    )
    _keep(job, profile, display)


def _export(job: Job, space: SearchSpace, dataset: DataSet, display: Display) -> None:
    cfg = job.cfg
    folder = Path(cfg.to).expanduser()
    archs = None if cfg.archs is None else _archs(cfg, space)
    number = export(space, _settings(cfg), folder, archs)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    display.say(f"{number} models and measure.py, {size:.1f} MB: {folder}")
    display.say(
        "next: copy the folder to the board; there: pip install onnxruntime numpy; python measure.py; "
        f"then here: hwnas profile {'import' if archs is None else 'adapt'} measurements.json to=mine.json"
    )


def _archs(cfg: DictConfig, space: SearchSpace) -> list[Genotype]:
    """The networks that `archs` asks for: those of a file, or a number of random ones that compute something.

    Raises:
        ValueError: Neither, or a network that is not of the space.
    """
    if isinstance(cfg.archs, str):
        file = find_file(cfg.archs)
        with consistent(file):
            columns = read_columns(file)
            if "arch" not in columns:
                raise ValueError(
                    f"it has no column 'arch' that names the networks; it has {', '.join(columns)}"
                )
            return list(dict.fromkeys(space.from_str(str(text)) for text in columns["arch"]))
    number = check_setting("archs", Count, cfg.archs)
    sampled = space.sample(np.random.default_rng(check_setting("seed", Seed, cfg.seed)), 3 * number + 20)
    useful = [each for each, path in zip(sampled, space.is_connected(sampled), strict=True) if path]
    return list(dict.fromkeys(useful))[:number]


def _import(job: Job, space: SearchSpace, dataset: DataSet, display: Display) -> None:
    cfg = job.cfg
    path = find_file(cfg.path)
    content = read_measurements(path)
    name = str(cfg.name or content["origin"].get("processor") or path.stem)
    with consistent(path):
        profile = profile_of(space, content, device=name)
    _keep(job, profile, display)


def _fit(job: Job, space: SearchSpace, dataset: DataSet, display: Display) -> None:
    cfg = job.cfg
    device = build(cfg.device, Evaluator, space=space, dataset=dataset, announce=display.say)
    if not isinstance(device, CostTable):
        raise ValueError(f"device={job.choices['device']} has no table of measured networks to fit to")
    profile = fit(
        space,
        device.genotypes,
        device.columns,
        device=cfg.name or device.name,
        seed=check_setting("seed", Seed, cfg.seed),
        network=network_shape(space, 1),
        origin={"table": device.source.name, "dataset": dataset.name, "fitted": time.strftime("%Y-%m-%d")},
    )
    _keep(job, profile, display)


@dataclass(frozen=True)
class _Measured:
    """Measured networks of a file: genotypes (n, edges), costs (n,), and what a board's script says of it."""

    genotypes: np.ndarray
    columns: Mapping[str, FloatArray]
    name: str | None = None
    runs: str | None = None
    memory: Sequence[float] = ()


def _measured(file: Path, space: SearchSpace, dataset: DataSet, display: Display) -> _Measured:
    if file.suffix != ".json":
        table = table_device(space, display.say, dataset, path=str(file), metric="latency_ms")
        return _Measured(table.genotypes, table.columns)
    content = read_measurements(file)
    with consistent(file):
        genotypes, columns, runs = networks_of(space, content)
    name = content["origin"].get("processor")
    memory = list(content.get("memory_mb", {}).values())
    return _Measured(genotypes, columns, None if name is None else str(name), runs, memory)


def _adapt(job: Job, space: SearchSpace, dataset: DataSet, display: Display) -> None:
    cfg = job.cfg
    paths = [cfg.path] if isinstance(cfg.path, str) else list(cfg.path)
    parts = [_measured(find_file(str(path)), space, dataset, display) for path in paths]
    columns = {
        metric: np.concatenate([part.columns[metric] for part in parts])
        for metric in parts[0].columns
        if all(metric in part.columns for part in parts)
    }
    runs = {part.runs for part in parts}
    files = [Path(path) for path in paths]
    adapted = adapt(
        space,
        np.concatenate([part.genotypes for part in parts]),
        columns,
        source_profiles(space, cfg["from"] if cfg["from"] is None else [str(name) for name in cfg["from"]]),
        device=str(cfg.name or parts[0].name or files[0].stem),
        seed=check_setting("seed", Seed, cfg.seed),
        network=network_shape(space, 1),
        origin={
            "table": ", ".join(file.name for file in files),
            "dataset": dataset.name,
            "adapted": time.strftime("%Y-%m-%d"),
        },
        runs=runs.pop() if len(runs) == 1 else None,
    )
    for part in parts:
        if part.memory:
            display.say(
                f"peak memory of these networks on the device: {min(part.memory):.1f} to "
                f"{max(part.memory):.1f} MB"
            )
    asked = adapted.next("latency_ms", check_setting("next", Count, cfg.next))
    for line in [*adapted.lines(), adapted.advice("latency_ms", len(asked))]:
        display.say(line)
    expected = adapted.profile.predict(space, "latency_ms", asked)
    low, high = adapted.interval("latency_ms", asked)
    rows = ["arch,predicted_ms,low_ms,high_ms"]
    for genotype, *figures in zip(asked, expected, low, high, strict=True):
        rows.append(",".join([space.to_str(genotype), *(f"{figure:.4g}" for figure in figures)]))
        display.say(f"  {rows[-1]}")
    path = _target(job, "profile.json").with_suffix(".next.csv")
    write_text(path, "\n".join(rows) + "\n")
    display.say(f"to measure next, best first, with 90 % intervals: {path}")
    _keep(job, adapted.profile, display)


def _show(job: Job, space: SearchSpace, dataset: DataSet, display: Display) -> None:
    cfg = job.cfg
    profile = _read(cfg.path, space)
    with consistent(find_file(cfg.path)):
        lines, values = table(profile, space), page(profile, space)
    for line in lines:
        display.say(line)
    path = write_page("profile.html.j2", values, _target(job, "profile.html"))
    display.say(profile.summary())
    display.say(f"page: {path}")


def _compare(job: Job, space: SearchSpace, dataset: DataSet, display: Display) -> None:
    cfg = job.cfg
    a, b = _read(cfg.a, space), _read(cfg.b, space)
    with consistent(find_file(cfg.b)):
        lines = comparison(a, b, space, seed=check_setting("seed", Seed, cfg.seed))
    for line in lines:
        display.say(line)


def _read(path: str, space: SearchSpace) -> Profile:
    file = find_file(path)
    profile = Profile.load(file)
    profile.check_space(space, file)
    return profile
