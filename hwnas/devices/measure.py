"""Measurement of a device: every block of a space alone, some whole networks, and their difference."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import numpy as np
from annotated_types import Ge

from hwnas.core import Count, FloatArray, Genotype, Positive, SearchSpace, Seed, checked
from hwnas.devices import board
from hwnas.devices.energy import counter
from hwnas.devices.onnx_models import write_models
from hwnas.devices.profile import (
    SCHEMA_VERSION,
    Additive,
    Layered,
    Operation,
    Profile,
    checked_on,
    network_shape,
)
from hwnas.devices.runtimes import RUNTIMES
from hwnas.files import read_json, shaped, temporary_folder, write_text
from hwnas.spaces.capabilities import HasCosts
from hwnas.training.progress import progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from hwnas.spaces.blocks import Blocks

Backend = Literal["torch", "onnxruntime", "openvino"]
TORCH_PROVIDERS = ("cpu", "cuda")
LEAVES_OUT = ("onnxruntime", *RUNTIMES)
"""Backends that remove operations with unused output."""

PROVIDERS = {
    "torch": "cpu",
    "onnxruntime": "CPUExecutionProvider",
    **{name: runtime.provider for name, runtime in RUNTIMES.items()},
}
"""What a backend runs networks on, unless the user says otherwise."""

FEWEST = 20
"""Networks that a fit needs."""


@checked
@dataclass(frozen=True)
class Settings:
    """Settings of a measurement.

    Attributes:
        backend: "torch", "onnxruntime", or one of `RUNTIMES`.
        provider: "cpu" or "cuda" of torch, an execution provider of onnxruntime, or a device of OpenVINO.
        threads: Processor threads of a network.
        batch_size: Images per forward pass.
        rounds: Timing rounds per block and network; the median counts.
        networks: Random whole networks for the fit; None: the number that the space asks for.
        check: Further networks that test the predictions.
        noise: Coefficient of variation above which a figure is measured again, then marked.
        seed: Seed of the random networks.
    """

    backend: Backend
    provider: str
    threads: Count
    batch_size: Count
    rounds: Annotated[int, Ge(3)]
    networks: Annotated[int, Ge(FEWEST)] | None
    check: Annotated[int, Ge(5)]
    noise: Positive
    seed: Seed

    @property
    def timing(self) -> board.Settings:
        """What a board's script needs of them."""
        return {
            "provider": self.provider,
            "threads": self.threads,
            "rounds": self.rounds,
            "noise": self.noise,
        }

    @staticmethod
    def of(*, backend: Backend, provider: str | None, **others: Any) -> Settings:
        """Settings of a user, whose provider may be None, the backend's first.

        Raises:
            ValueError: An unknown backend or provider of torch, or a number that is too small.
        """
        provider = PROVIDERS.get(backend, "") if provider is None else provider
        if backend == "torch" and provider not in TORCH_PROVIDERS:
            raise ValueError(f"provider={provider} is none of torch: {', '.join(TORCH_PROVIDERS)}")
        return Settings(backend=backend, provider=provider, **others)


def measure(space: SearchSpace, settings: Settings, *, device: str, say: Callable[[str], None]) -> Profile:
    """Profile a space's networks on this machine.

    Every block is timed alone, in rounds that also time random whole networks. The difference between a
    network and the sum of its blocks (fusion, colder caches, the framework's overhead) is fitted to some of
    the networks; the others measure the remaining error. Energy is measured if there is a counter.

    Args:
        space: A space with `blocks()` and networks.
        settings: Settings of the measurement.
        device: Name of the device, kept in the profile.
        say: Called with sentences about the progress.

    Raises:
        ValueError: A space without blocks, a missing backend or provider, or a block that it cannot run
            (named with its shape).
    """
    start = time.perf_counter()
    space = require_blocks(space)
    measures = {"torch": _measure_torch, "onnxruntime": _measure_onnx}
    content = measures.get(settings.backend, _measure_runtime)(space, settings, say)
    content["origin"].update(_typical(space, settings, content))
    content["origin"]["seconds"] = round(time.perf_counter() - start, 1)
    return profile_of(space, content, device=device)


def _typical(space: HasCosts, settings: Settings, content: board.Measurements) -> dict[str, object]:
    """How the network of the median latency feels: its first pass, and percentiles of single ones.

    Returns:
        "typical_network" as text, "load_and_first_ms" (of torch the first pass alone), and what `board.felt`
        returns.
    """
    import torch

    networks = [model for model in content["plan"]["models"] if "genotype" in model]
    networks.sort(key=lambda model: board.settled(content["latency_ms"][model["name"]]))
    model = networks[len(networks) // 2]
    genotype, shape = tuple(model["genotype"]), model["input"]
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with temporary_folder() as folder, torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            network = space.network(genotype)
            draw_weights(network)
            if settings.backend != "torch":
                write_models({"network": (network, shape, "network.onnx")}, Path(folder))
            with torch.inference_mode():
                start = time.perf_counter()
                if settings.backend == "torch":
                    timer = _torch_timer("a network", network, shape, settings.provider == "cuda")
                else:
                    timer = file_timer(Path(folder) / "network.onnx", shape, settings)
                first = 1e3 * (time.perf_counter() - start)
                times = {"load_and_first_ms": first, **board.felt(timer)}
    finally:
        torch.set_num_threads(before)
    rounded = {name: round(value, 4) for name, value in times.items()}
    return {"typical_network": space.to_str(genotype), **rounded}


def require_blocks(space: SearchSpace) -> HasCosts:
    """The space, if its networks are described by blocks.

    Raises:
        ValueError: They are not.
    """
    if not isinstance(space, HasCosts):
        raise ValueError(
            f"devices are measured by blocks of networks, which the {space.name} space does not list; "
            "nasbench201, darts, fbnet, resnet, mobile and module do"
        )
    return space


def plan_of(
    space: HasCosts, settings: Settings, archs: Sequence[Genotype] | None = None
) -> tuple[board.Plan, dict[str, nn.Module]]:
    """The plan of a measurement as JSON, and the modules by name: operations and random networks, or `archs`.

    The weights are drawn so that activations neither vanish nor overflow: numbers too small for the usual
    format would slow processors down.
    """
    import torch

    batch_size = settings.batch_size
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        single: Mapping[str, tuple[nn.Module, Sequence[int]]] = {}
        if archs is None:
            blocks: Blocks = space.blocks()
            single = blocks.modules
            fitted = blocks.num_networks if settings.networks is None else settings.networks
            genotypes = distinct_sample(space, fitted + settings.check, settings.seed)
        else:
            fitted, genotypes = 0, list(archs)
        modules = {name: module for name, (module, _) in single.items()}
        modules.update({f"network {i}": space.network(genotype) for i, genotype in enumerate(genotypes)})
        for module in modules.values():
            draw_weights(module)
    models: list[board.Model] = [
        {"name": name, "input": [batch_size, *shape]} for name, (_, shape) in single.items()
    ]
    models += [
        {"name": f"network {i}", "input": [batch_size, *space.image_shape], "genotype": list(genotype)}
        for i, genotype in enumerate(genotypes)
    ]
    plan: board.Plan = {
        "space": space.name,
        "network": network_shape(space, batch_size),
        "fitted": fitted,
        "models": models,
    }
    return plan, modules


def distinct_sample(space: HasCosts, num: int, seed: int) -> list[Genotype]:
    """`num` different random architectures; fewer if a small space has no more."""
    rng = np.random.default_rng(seed)
    found: dict[Genotype, None] = {}
    for _ in range(20):
        found.update(dict.fromkeys(space.sample(rng, num)))
        if len(found) >= num:
            break
    return list(found)[:num]


def draw_weights(module: nn.Module) -> None:
    """Draw weights of convolutions and linear layers so that activations neither vanish nor overflow."""
    import torch

    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() >= 2:
                parameter.normal_(std=parameter[0].numel() ** -0.5)


def _measure_torch(space: HasCosts, settings: Settings, say: Callable[[str], None]) -> board.Measurements:
    """Measure by torch, in the form of a board's script."""
    import torch

    cuda = settings.provider == "cuda"
    if cuda and not torch.cuda.is_available():
        raise ValueError("provider=cuda is not available to torch on this machine; there is cpu")
    before = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        plan, modules = plan_of(space, settings)
        with torch.inference_mode():
            timers = {
                model["name"]: _torch_timer(model["name"], modules[model["name"]], model["input"], cuda)
                for model in plan["models"]
            }
            latency, passes = board.time_rounds(
                timers,
                settings.rounds,
                settings.noise,
                say=say,
                progress=progress,
            )
            energy = _energy(timers, latency, settings.provider, say)
    finally:
        torch.set_num_threads(before)
    by = {"torch": torch.__version__, **({"gpu": torch.cuda.get_device_name()} if cuda else {})}
    return _measurements(plan, settings, by, latency, passes, energy)


def _measurements(
    plan: board.Plan,
    settings: Settings,
    by: Mapping[str, str],
    latency: board.Figures,
    passes: dict[str, int],
    energy: board.Figures | None,
) -> board.Measurements:
    """What was measured here, in the form of a board's script; `by` has versions."""
    runs_by = {"backend": settings.backend, "provider": settings.provider}
    content: board.Measurements = {
        "schema": board.SCHEMA_VERSION,
        "plan": plan,
        "settings": settings.timing,
        "origin": {**board.host(settings.threads), **runs_by, **by},
        "complete": True,
        "latency_ms": latency,
        "passes": passes,
    }
    return content if energy is None else {**content, "energy_mj": energy}


def time_modules(
    modules: Sequence[tuple[nn.Module, Sequence[int]]], *, threads: int, rounds: int
) -> list[float]:
    """Median milliseconds of a forward pass of each module, in evaluation mode, on this machine's CPU.

    Every round visits every module, so that a drift of the machine's speed affects all alike.

    Args:
        modules: Modules and the shapes of their inputs, with the batch.
        threads: Processor threads.
        rounds: Figures per module.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            timers = {
                str(number): _torch_timer(str(number), module, shape, cuda=False)
                for number, (module, shape) in enumerate(modules)
            }
            figures, _ = board.time_rounds(timers, rounds, noise=math.inf)
    finally:
        torch.set_num_threads(before)
    return [float(np.median(figures[name])) for name in timers]


def time_networks(
    networks: Sequence[nn.Module], image_shape: Sequence[int], settings: Settings
) -> list[float]:
    """Median milliseconds of a forward pass of each network on this machine, all in turns.

    Args:
        networks: Whole networks; their weights have no effect, and are changed.
        image_shape: (channels, height, width).
        settings: Backend, threads, batch size and rounds; providers of the CPU only.
    """
    shape = [settings.batch_size, *image_shape]
    for network in networks:
        draw_weights(network)
    if settings.backend == "torch":
        modules = [(network, shape) for network in networks]
        return time_modules(modules, threads=settings.threads, rounds=settings.rounds)
    with temporary_folder() as folder:
        models = {str(i): (network, shape, f"{i}.onnx") for i, network in enumerate(networks)}
        write_models(models, Path(folder))
        timers = {
            name: file_timer(Path(folder, file), shape, settings) for name, (_, shape, file) in models.items()
        }
        figures, _ = board.time_rounds(timers, settings.rounds, noise=math.inf)
    return [float(np.median(figures[name])) for name in models]


def file_timer(path: Path, inputs: Sequence[int], settings: Settings) -> board.Timer:
    """The timer of an ONNX file.

    Args:
        path: The file.
        inputs: Shape of its input, with the batch.
        settings: Backend other than torch, provider and threads.

    Raises:
        ValueError: A backend or a provider that is not there.
        RuntimeError: It cannot run the network.
    """
    if settings.backend == "onnxruntime":
        return board.onnx_timer(str(path), list(inputs), settings.provider, settings.threads)
    return RUNTIMES[settings.backend].timer(path, inputs, settings.provider, settings.threads)


def _torch_timer(name: str, module: nn.Module, shape: Sequence[int], cuda: bool) -> board.Timer:
    import torch

    target = torch.device("cuda" if cuda else "cpu")
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(target)
    module = module.eval().to(target)
    try:
        module(x)
    except RuntimeError as error:
        size = "x".join(map(str, shape))
        raise ValueError(
            f"torch cannot run {name} with input {size} ({str(error).splitlines()[0]})"
        ) from None
    return _cuda_timer(module, x) if cuda else cpu_timer(module, x)


def cpu_timer(module: Callable[[Tensor], object], x: Tensor) -> board.Timer:
    """The timer of a module on this machine's CPU."""

    def timer(passes: int) -> float:
        start = time.perf_counter()
        for _ in range(passes):
            module(x)
        return time.perf_counter() - start

    return timer


def _cuda_timer(module: nn.Module, x: Tensor) -> board.Timer:
    import torch

    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def timer(passes: int) -> float:
        torch.cuda.synchronize()
        start.record()
        for _ in range(passes):
            module(x)
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    return timer


def _energy(
    timers: Mapping[str, board.Timer], latency: board.Figures, provider: str, say: Callable[[str], None]
) -> board.Figures | None:
    """Energy per pass in mJ, a figure per round, or None without a counter."""
    source = counter(provider)
    if source is None:
        return None
    say(f"energy by {source.name}")
    return board.energy_figures(dict(timers), latency, source)


def _measure_onnx(space: HasCosts, settings: Settings, say: Callable[[str], None]) -> board.Measurements:
    try:
        board.check_provider(settings.provider)
    except ImportError:
        raise ValueError("backend=onnxruntime needs the extra onnx: pip install 'hwnas[onnx]'") from None
    with temporary_folder() as folder:
        export(space, settings, Path(folder))
        say("models written")
        return board.measure_folder(
            folder,
            settings.timing,
            say=say,
            energy=lambda timers, latency: _energy(timers, latency, settings.provider, say),
        )


def _measure_runtime(space: HasCosts, settings: Settings, say: Callable[[str], None]) -> board.Measurements:
    """Measure by one of `RUNTIMES`, in the form of a board's script."""
    version = RUNTIMES[settings.backend].version
    with temporary_folder() as folder:
        export(space, settings, Path(folder))
        say("models written")
        plan: board.Plan = read_json(Path(folder) / "plan.json")
        timers = {}
        for model in plan["models"]:
            try:
                timers[model["name"]] = file_timer(Path(folder, model["file"]), model["input"], settings)
            except RuntimeError as error:
                size = "x".join(map(str, model["input"]))
                raise ValueError(
                    f"{settings.backend} cannot run {model['name']} with input {size} ({error})"
                ) from None
        latency, passes = board.time_rounds(
            timers, settings.rounds, settings.noise, say=say, progress=progress
        )
        energy = _energy(timers, latency, settings.provider, say)
    return _measurements(plan, settings, {settings.backend: version.split()[-1]}, latency, passes, energy)


def export(
    space: SearchSpace, settings: Settings, folder: Path, archs: Sequence[Genotype] | None = None
) -> int:
    """Write blocks and networks as ONNX files, and the script that times them; returns their number.

    Args:
        space: A space with `blocks()` and networks.
        settings: Which networks, and the batch; the script asks for the others.
        folder: Written into; made if it is not there.
        archs: Write these networks and nothing else.

    Raises:
        ValueError: A space without blocks, no onnx package, or a module without an ONNX form.
    """
    space = require_blocks(space)
    folder.mkdir(parents=True, exist_ok=True)
    plan, modules = plan_of(space, settings, archs)
    for number, model in enumerate(plan["models"]):
        model["file"] = f"{number:03d}.onnx"
    write_models(
        {model["name"]: (modules[model["name"]], model["input"], model["file"]) for model in plan["models"]},
        folder,
    )
    board.write_json(str(folder / "plan.json"), plan)
    write_text(folder / "measure.py", Path(board.__file__).read_text())
    return len(plan["models"])


MEASURED_SHAPE = {
    "plan": {
        "space": str,
        "network": {"batch_size?": int},
        "fitted": int,
        "models": [{"name": str, "input": [int], "genotype?": [int]}],
    },
    "settings": {"noise": float},
    "origin": {"backend": str, "processor?": (str, None)},
    "complete": bool,
    "latency_ms": {str: [Real]},
    "energy_mj?": {str: [Real]},
    "memory_mb?": {str: Real},
    "passes": {str: int},
}
"""Shape of a board's measurements.json, for `files.shaped`."""


def read_measurements(path: Path) -> board.Measurements:
    """The measurements of a board's script.

    Raises:
        ValueError: Cut off, of another schema, unfinished, or with times that are not above 0.
    """
    content = read_json(path, "holds no measurements")
    try:
        if not isinstance(content, dict) or "plan" not in content:
            raise ValueError("it has no plan")
        if content.get("schema") != board.SCHEMA_VERSION:
            raise ValueError(
                f"schema version {content.get('schema')}, this hwnas reads {board.SCHEMA_VERSION}; export "
                "the script again"
            )
        shaped(content, MEASURED_SHAPE)
        measured = cast(board.Measurements, content)
        names = [model["name"] for model in content["plan"]["models"]]
        missing = [name for name in names if not content["latency_ms"].get(name)]
        if missing or not content["complete"]:
            raise ValueError("the measurement is unfinished; start its script again")
        for metric in METRICS:
            for name, figures in measured.get(metric, {}).items():
                wrong = [value for value in figures if not (math.isfinite(value) and value > 0)]
                if wrong:
                    raise ValueError(f"{metric} of {name} is {wrong[0]}; it must be above 0")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"{path} holds no measurements ({error})") from None
    return measured


def _check_networks(space: HasCosts, plan: board.Plan) -> None:
    """Raise ValueError unless a plan is of the space's networks."""
    shape = network_shape(space, plan["network"].get("batch_size", 1))
    if plan["space"] != space.name or plan["network"] != shape:
        raise ValueError(
            f"measurements of {plan['space']} networks {plan['network']} do not fit "
            f"search_space={space.name} with {shape}"
        )


def networks_of(
    space: SearchSpace, content: board.Measurements
) -> tuple[np.ndarray, dict[str, FloatArray], str | None]:
    """The measured networks of a board, (n, edges), costs per metric, (n,), and what it runs, if known.

    Raises:
        ValueError: Measurements of another space or other networks.
    """
    _check_networks(require_blocks(space), content["plan"])
    networks = [model for model in content["plan"]["models"] if "genotype" in model]
    G = np.array([space.check(model["genotype"]) for model in networks], dtype=np.intp)
    columns: dict[str, FloatArray] = {
        metric: np.array([board.settled(content[metric][model["name"]]) for model in networks])
        for metric in METRICS
        if metric in content
    }
    return G, columns, "live" if content["origin"]["backend"] in LEAVES_OUT else None


def profile_of(space: SearchSpace, content: board.Measurements, *, device: str) -> Profile:
    """The profile of measurements.

    Args:
        space: The space that they are of.
        content: Measurements of a board's script, or of `measure` in the same form.
        device: Name of the device.

    Raises:
        ValueError: Measurements of another space or other networks.
    """
    import torch

    space = require_blocks(space)
    plan = content["plan"]
    _check_networks(space, plan)
    with torch.random.fork_rng(devices=[]):
        blocks: Blocks = space.blocks()
    inputs = {model["name"]: model["input"] for model in plan["models"] if "genotype" not in model}
    if not inputs and blocks.modules:
        raise ValueError(
            "measurements of whole networks only; hwnas profile adapt <measurements.json> takes them"
        )
    if set(inputs) != set(blocks.modules):
        raise ValueError(f"measurements of other blocks than those of this version's {space.name} space")
    networks = [model for model in plan["models"] if "genotype" in model]
    G = np.array([space.check(model["genotype"]) for model in networks])
    live = content["origin"]["backend"] in LEAVES_OUT
    fitted = int(plan["fitted"])
    costs: dict[str, Additive] = {}
    operations: dict[str, Operation] = {name: {"input": inputs[name]} for name in blocks.modules}
    measured: dict[str, list[float]] = {}
    for metric in METRICS:
        if metric not in content:
            continue
        least = {name: board.settled(figures) for name, figures in content[metric].items()}
        y = np.array([least[model["name"]] for model in networks])
        rows = np.flatnonzero(space.is_connected(G))[:fitted] if live else np.arange(fitted)
        rows = rows[rows < fitted]
        if len(rows) < FEWEST // 2:
            raise ValueError(f"{len(rows)} networks are too few to fit; set networks to more")
        alone = np.array([least[name] for name in blocks.modules])
        seen = space.live(G[rows]) if live else G[rows]
        if space.work(seen[:1]):
            weights, costs[metric] = np.empty(0), by_work(space, seen, y[rows])
        else:
            weights, costs[metric] = in_network(space, blocks, alone, seen, y[rows])
        if live and not space.is_connected(G).all():
            nothing = float(np.median(y[~space.is_connected(G)]))
            costs[metric] = dataclasses.replace(costs[metric], floor=nothing)
        measured[metric] = y.tolist()
        unit = metric.rpartition("_")[2]
        for name, weight in zip(blocks.modules, weights.tolist(), strict=True):
            low, middle, high = np.percentile(content[metric][name], [25, 50, 75])
            figures = (float(middle), float(high - low), weight)
            names = (f"{figure}_{unit}" for figure in ("median", "iqr", "network"))
            operations[name].update(cast(Operation, dict(zip(names, figures, strict=True))))
    for name, row in operations.items():
        spread = board.variation(content["latency_ms"][name])
        row["rounds"], row["passes"] = len(content["latency_ms"][name]), content["passes"][name]
        row["variation"], row["noisy"] = spread, spread > content["settings"]["noise"]
    profile = Profile(
        schema=SCHEMA_VERSION,
        device=device,
        space=space.name,
        network=plan["network"],
        origin={**content["origin"], "noise": content["settings"]["noise"]},
        costs=costs,
        check={},
        operations=operations,
        live=live,
    )
    return checked_on(profile, space, G, measured, fitted)


METRICS: tuple[Literal["latency_ms"], Literal["energy_mj"]] = ("latency_ms", "energy_mj")
"""What a device may be measured for."""

PENALTIES = (1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0, np.inf)
"""Ridge penalties on deviations of blocks that a fit tries; infinite: one factor for all."""


PAIR_SCALE = 0.1
"""Prior size of a pair's cost as a fraction of a network, if a block may double."""


def in_network(
    space: HasCosts, blocks: Blocks, alone: FloatArray, G: np.ndarray, y: FloatArray
) -> tuple[FloatArray, Additive]:
    """Cost of each block inside a network, shape (blocks,), and the predicted cost of networks.

    A block costs its time alone times a factor, by least squares of relative errors: one factor and one
    constant for all, plus deviations per kind of block, per occurrence of a kind, per block, and per pair of
    operations on edges that meet. Five-fold cross-validation chooses the ridge penalty on the deviations,
    which may exclude them.

    Args:
        space: The space.
        blocks: Number of occurrences of each block.
        alone: Cost of each block measured alone, shape (blocks,).
        G: Networks, shape (n, edges).
        y: Their measured cost, shape (n,).
    """
    names, num_ops = list(blocks.modules), len(space.ops)
    kinds = [name.partition("@")[0] for name in names]
    member = np.array([[kind == other for other in dict.fromkeys(kinds)] for kind in kinds], dtype=float)
    typical = member * ((alone @ member) / member.sum(axis=0))
    # Columns of `parts` are what one unit of each coefficient adds to each block.
    parts = np.concatenate([alone[:, None], alone[:, None] * member, typical, np.diag(alone)], axis=1)
    always = np.array([blocks.always.get(name, 0) for name in names])
    edges = np.array([[[counts.get(name, 0) for name in names] for counts in ops] for ops in blocks.edges])
    counts = always + edges[np.arange(G.shape[1]), G].sum(axis=1)
    together = [_together(pairs, G, num_ops) for pairs in blocks.pairs.values()]
    features = np.concatenate(
        [np.full((len(y), 1), y.mean()), counts @ parts, *(PAIR_SCALE * y.mean() * t for t in together)],
        axis=1,
    )
    features /= y[:, None]

    def solve(rows: np.ndarray, penalty: float) -> FloatArray:
        width = features.shape[1] if np.isfinite(penalty) else 2
        A, ridge = features[rows, :width], np.full(width, 1e-9)
        ridge[2:] = penalty
        solved = np.zeros(features.shape[1])
        solved[:width] = np.linalg.solve(A.T @ A + np.diag(ridge) * len(rows), A.sum(axis=0))
        return solved

    penalty = cross_validated(lambda rows, p: features @ solve(rows, p), np.ones(len(y)), PENALTIES)
    solved = solve(np.arange(len(y)), penalty)
    weights = parts @ solved[1 : 1 + parts.shape[1]]
    added: dict[str, FloatArray] = {}
    for number, pairs in enumerate(blocks.pairs.values()):
        values = PAIR_SCALE * y.mean() * solved[1 + parts.shape[1] :].reshape(-1, num_ops, num_ops)[number]
        for a, b in pairs if values.any() else ():
            added[f"{a},{b}"] = added.get(f"{a},{b}", 0) + values
    cost = Additive(
        float(solved[0] * y.mean() + always @ weights),
        (edges @ weights).tolist(),
        {pair: values.tolist() for pair, values in added.items()},
        floor=float(y.min()) / 2,
    )
    return weights, cost


def by_work(space: HasCosts, G: np.ndarray, y: FloatArray) -> Layered:
    """The predicted cost of networks by the work of their layers: a cost per unit of each amount, at least 0.

    Least squares of relative errors, with a constant.

    Args:
        space: The space.
        G: Networks, shape (n, edges).
        y: Their measured cost, shape (n,).
    """
    from scipy.optimize import nnls  # a tenth of a second

    amounts = space.work(G)
    X = np.column_stack([np.ones(len(y)), *amounts.values()])
    scale = X.max(axis=0)
    scale[scale == 0] = 1.0
    units = nnls(X / scale / y[:, None], np.ones(len(y)))[0] / scale
    cost = X @ units
    edges = np.zeros(space.alpha_shape)  # what options add on average, for pages
    for edge, ops in enumerate(space.choices):
        for op in ops:
            chosen = G[:, edge] == op
            edges[edge, op] = cost[chosen].mean() - cost.mean() if chosen.any() else 0.0
    found = {name: float(unit) for name, unit in zip(amounts, units[1:], strict=True) if unit}
    return Layered(float(units[0]), edges.tolist(), floor=float(y.min()) / 2, work=found)


def cross_validated(
    predict: Callable[[np.ndarray, float], FloatArray], y: FloatArray, penalties: Sequence[float]
) -> float:
    """The largest of increasing penalties whose cross-validated error (five folds) is near the least.

    Args:
        predict: Function of the rows of the fit and a penalty; returns predictions for all rows.
        y: Values to predict, shape (n,).
        penalties: Penalties to choose from.
    """
    rows = np.arange(len(y))
    errors = np.zeros(len(penalties))
    for test in (rows[k::5] for k in range(5)):
        rest = np.setdiff1d(rows, test)
        errors += [float(((predict(rest, penalty) - y)[test] ** 2).sum()) for penalty in penalties]
    good = np.flatnonzero(errors <= 1.01 * errors.min() + 1e-8 * ((y - y.mean()) ** 2).sum())
    return penalties[good[-1]]


def _together(pairs: Sequence[tuple[int, int]], G: np.ndarray, num_ops: int) -> FloatArray:
    """Number of times that each pair of operations meets on pairs of edges, shape (n, ops * ops)."""
    counts = np.zeros((len(G), num_ops, num_ops))
    for a, b in pairs:
        counts[np.arange(len(G)), G[:, a], G[:, b]] += 1
    return counts.reshape(len(G), -1)
