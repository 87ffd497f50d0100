"""Time ONNX models with nothing but onnxruntime and numpy (Python 3.9 or newer).

`hwnas profile export` puts this file beside models and their `plan.json`. Copy the folder to a board, then

    pip install onnxruntime numpy
    python measure.py                    # writes measurements.json; start it again if it was interrupted
    python measure.py --help             # threads, provider, rounds, whether memory is measured

and take measurements.json back to `hwnas profile import measurements.json to=mine.json`, or, if the folder
has whole networks only, to `hwnas profile adapt measurements.json to=mine.json`. Energy is measured where the
board has a counter: INA3221 sensors (Jetson), or Intel RAPL, which mostly only root may read.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypedDict

import numpy as np

SCHEMA_VERSION = 1
Timer = Callable[[int], float]
"""A function that runs a number of forward passes and returns their time in seconds."""


class Counter(Protocol):
    """A counter of energy."""

    def read(self) -> float:
        """Energy since some time in the past, in mJ."""


Figures = dict[str, list[float]]
"""Milliseconds per forward pass, one figure per round, by model."""


class Settings(TypedDict):
    """How models are timed.

    Attributes:
        provider: What runs them, here onnxruntime's execution provider.
        threads: Processor threads of a model.
        rounds: Timing rounds per model.
        noise: Coefficient of variation above which a model is measured again.
    """

    provider: str
    threads: int
    rounds: int
    noise: float


class _Named(TypedDict):
    name: str
    input: list[int]


class Model(_Named, total=False):
    """A model and the shape of its input: a block, or a network, which has a genotype; the file of either."""

    genotype: list[int]
    file: str


class Plan(TypedDict):
    """What is to be timed: blocks and networks of a space; `fitted` of the networks are fitted to."""

    space: str
    network: dict[str, object]
    fitted: int
    models: list[Model]


class _Measured(TypedDict):
    schema: int
    plan: Plan
    settings: Settings
    origin: dict[str, object]
    complete: bool
    latency_ms: Figures
    passes: dict[str, int]


class Measurements(_Measured, total=False):
    """The content of measurements.json; energy per forward pass in mJ, and peak memory of networks in MB."""

    energy_mj: Figures
    memory_mb: dict[str, float]


ROUND_MS = 5.0
"""Approximate time of a model in a round, in which its pass is repeated, at least once."""

REMEASURED = 2
"""Number of new measurements of a noisy model before it stays marked."""


def variation(figures: list[float]) -> float:
    """Coefficient of variation of timings, from their quartiles: a single outlier does not count."""
    low, middle, high = np.percentile(figures, [25, 50, 75])
    return float((high - low) / 1.349 / middle)


def settled(figures: list[float]) -> float:
    """The lower quartile of timings, because other programs can only make them longer."""
    return float(np.percentile(figures, 25))


def time_rounds(
    timers: dict[str, Timer],
    rounds: int,
    noise: float,
    *,
    save: Callable[[Figures, dict[str, int]], None] | None = None,
    say: Callable[[str], None] | None = None,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
    known: Figures | None = None,
) -> tuple[Figures, dict[str, int]]:
    """Milliseconds per forward pass, `rounds` figures per model, and the number of passes per figure.

    Every round visits every model, so that a drift of the machine's speed affects all alike. Models whose
    coefficient of variation is above `noise` are measured again, and keep the less noisy figures.

    Args:
        timers: Timer per model.
        rounds: Number of figures per model.
        noise: Coefficient of variation above which a model counts as noisy.
        save: Called with all figures and passes after every round.
        say: Called with a sentence about the progress.
        progress: Called with the name of what is counted, the number done, and the number in all.
        known: Figures of an interrupted measurement, which are not taken again.
    """
    figures = {name: list((known or {}).get(name, []))[:rounds] for name in timers}
    passes = {}
    for name, timer in timers.items():
        timer(1)  # warm up
        passes[name] = max(1, round(ROUND_MS / 1e3 / timer(2) * 2))
    for number in range(rounds):
        missing = [name for name in timers if len(figures[name]) <= number]
        for name in missing:
            figures[name].append(_figure(timers[name], passes[name]))
        if missing and save:
            save(figures, passes)
        if missing and say:
            say(f"round {number + 1} of {rounds}, {len(missing)} models")
        progress("rounds", number + 1, rounds)
    for _ in range(REMEASURED):
        noisy = [name for name in timers if variation(figures[name]) > noise]
        if not noisy:
            break
        if say:
            say(f"{len(noisy)} models are noisy and are measured again")
        again: Figures = {name: [] for name in noisy}
        for number in range(rounds):
            for name in noisy:
                again[name].append(_figure(timers[name], passes[name]))
            progress("rounds of what was noisy", number + 1, rounds)
        for name in noisy:
            figures[name] = min(figures[name], again[name], key=variation)
        if save:
            save(figures, passes)
    return figures, passes


def _figure(timer: Timer, passes: int) -> float:
    if passes > 1:
        timer(1)  # bring its weights back into the caches
    return timer(passes) / passes * 1e3


def onnx_timer(path: str, inputs: list[int], provider: str, threads: int) -> Timer:
    """The timer of a model.

    Raises:
        RuntimeError: The provider cannot run the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    image = np.random.RandomState(0).randn(*inputs).astype(np.float32)
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=[provider])
        # A network without a path from its input is exported as a constant without an input.
        feeds = {entry.name: image for entry in session.get_inputs()}
        session.run(None, feeds)
    except Exception as error:  # onnxruntime has no common class for its errors
        raise RuntimeError(str(error).strip().splitlines()[0]) from None

    return repeated(lambda: session.run(None, feeds))


def repeated(run: Callable[[], object]) -> Timer:
    """The timer of a forward pass."""

    def timer(passes: int) -> float:
        start = time.perf_counter()
        for _ in range(passes):
            run()
        return time.perf_counter() - start

    return timer


FELT_MS, FEWEST_PASSES, MOST_PASSES = 1000.0, 20, 200
"""Time of the single passes whose percentiles are told, and bounds on their number."""


def felt(timer: Timer) -> dict[str, float]:
    """Single forward passes of a model that has run before, as a user sees them, one after another.

    Returns:
        "p50_ms" and "p95_ms": half of the passes, and 95 % of them, take at most so long; and their number,
        "passes".
    """
    passes = min(max(FELT_MS / 1e3 / max(timer(1), 1e-6), FEWEST_PASSES), MOST_PASSES)
    half, most = np.percentile([timer(1) * 1e3 for _ in range(int(passes))], [50, 95])
    return {"p50_ms": float(half), "p95_ms": float(most), "passes": int(passes)}


RAPL_ROOT = Path("/sys/class/powercap")
RAILS_ROOT = Path("/sys/class/hwmon")
WHOLE_BOARD = ("VDD_IN", "VIN_SYS_5V0", "POM_5V_IN", "VIN")
"""Names of the rails that feed a whole Jetson."""

SAMPLE_SECONDS = 0.005
ENERGY_MS, ENERGY_ROUNDS = 100.0, 3
"""Milliseconds of forward passes whose energy is measured at once, and how often."""


class Rapl:
    """Energy of all processor packages in mJ, from Intel's running average power limit counters.

    The counters overflow at `max_energy_range_uj`; they must be read at least once between overflows
    (minutes).

    Args:
        root: Folder with one folder per counter, "intel-rapl:0" and so on.

    Raises:
        OSError: A counter cannot be read; on most systems only root can.
    """

    name = "Intel RAPL, packages"

    def __init__(self, root: Path = RAPL_ROOT) -> None:
        # "intel-rapl:0" is a package, "intel-rapl:0:1" a part of it that is counted there already.
        self._files = [
            folder / "energy_uj" for folder in sorted(root.glob("intel-rapl:[0-9]*")) if _whole(folder)
        ]
        if not self._files:
            raise FileNotFoundError(f"{root} has no counter of a processor package")
        self._range = [int((file.parent / "max_energy_range_uj").read_text()) for file in self._files]
        self._last = self._raw()
        self._total = 0

    def _raw(self) -> list[int]:
        return [int(file.read_text()) for file in self._files]

    def read(self) -> float:
        """Energy since the object was made, in mJ."""
        now = self._raw()
        for index, (value, before) in enumerate(zip(now, self._last)):  # noqa: B905 - Python 3.9 has no strict
            turn = self._range[index] if value < before else 0
            self._total += value - before + turn
        self._last = now
        return self._total / 1e3


def _whole(folder: Path) -> bool:
    try:
        return folder.name.count(":") == 1 and (folder / "name").read_text().startswith("package")
    except OSError:
        return False


class Rails:
    """Energy of a board in mJ, from its INA3221 sensors; their power is read often and summed up.

    The rail that feeds the whole board counts, by its label; without one, all rails together do.

    Args:
        root: Folder with one folder per sensor, "hwmon0" and so on.

    Raises:
        OSError: No such sensor, or one that cannot be read.
    """

    name = "INA3221, board"

    def __init__(self, root: Path = RAILS_ROOT) -> None:
        rails = {}
        for folder in sorted(root.glob("hwmon*")):
            if (folder / "name").is_file() and (folder / "name").read_text().strip() == "ina3221":
                for label in sorted(folder.glob("in*_label")):
                    number = label.name[2 : -len("_label")]
                    pair = folder / f"in{number}_input", folder / f"curr{number}_input"
                    if pair[0].is_file() and pair[1].is_file():
                        rails[label.read_text().strip()] = pair
        if not rails:
            raise FileNotFoundError(f"{root} has no INA3221 sensor")
        whole = [label for label in WHOLE_BOARD if label in rails]
        self._files = [rails[whole[0]]] if whole else list(rails.values())
        self._total, self._power, self._at = 0.0, self._watts(), time.perf_counter()
        self._lock = threading.Lock()
        threading.Thread(target=self._sample, daemon=True).start()

    def _watts(self) -> float:
        return (
            sum(float(volts.read_text()) * float(amperes.read_text()) for volts, amperes in self._files) / 1e6
        )

    def _sample(self) -> None:
        while True:
            time.sleep(SAMPLE_SECONDS)
            self.read()

    def read(self) -> float:
        """Energy since the object was made, in mJ."""
        with self._lock:
            power, now = self._watts(), time.perf_counter()
            self._total += 1e3 * (now - self._at) * (power + self._power) / 2
            self._power, self._at = power, now
            return self._total


def energy_per_pass(timer: Timer, source: Counter, passes: int) -> float:
    """Energy of a forward pass in mJ, with everything that the counter measures, such as idle power."""
    timer(1)
    before = source.read()
    timer(passes)
    return (source.read() - before) / passes


def energy_figures(timers: dict[str, Timer], latency: Figures, source: Counter) -> Figures:
    """Energy per forward pass in mJ of all models, `ENERGY_ROUNDS` figures each."""
    figures: Figures = {name: [] for name in timers}
    for _ in range(ENERGY_ROUNDS):
        for name, timer in timers.items():
            passes = math.ceil(ENERGY_MS / float(np.median(latency[name])))
            figures[name].append(energy_per_pass(timer, source, passes))
    return figures


def board_energy(timers: dict[str, Timer], latency: Figures) -> Figures | None:
    """Energy of all models by the first counter that this board has; None without one."""
    for kind in (Rails, Rapl):
        try:
            return energy_figures(timers, latency, kind())
        except OSError:
            continue
    return None


def peak_memory(path: str, inputs: list[int], provider: str, threads: int) -> float:
    """Peak memory in MB of a process that loads the runtime and a model, and runs it.

    It is a process of its own, since the peak of a process never falls.

    Raises:
        ValueError: The process failed; says its last line.
    """
    given = json.dumps([path, inputs, provider, threads])
    done = subprocess.run(
        [sys.executable, os.path.abspath(__file__), "--peak", given], capture_output=True, text=True
    )
    if done.returncode:
        raise ValueError(
            f"memory of {path} was not measured: {(done.stderr.strip() or 'no reason').splitlines()[-1]}"
        )
    return float(done.stdout)


def _print_peak(given: str) -> None:
    """What the process of `peak_memory` does."""
    import resource  # not on Windows

    path, inputs, provider, threads = json.loads(given)
    per_mb = 1e6 if sys.platform == "darwin" else 1e3  # bytes, or kilobytes
    onnx_timer(path, inputs, provider, threads)(2)
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / per_mb)


def check_provider(provider: str) -> None:
    """Raise ValueError, with the available ones, if onnxruntime does not have this execution provider."""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    if provider not in available:
        raise ValueError(
            f"provider {provider} is not available in onnxruntime {onnxruntime.__version__}; "
            f"there are {', '.join(available)}"
        )


def processor() -> str:
    """Name of the processor, and of the board if the system knows it."""
    names = []
    for path, key in (("/proc/cpuinfo", "model name"), ("/proc/device-tree/model", None)):
        try:
            with open(path, errors="replace") as stream:
                text = stream.read()
        except OSError:
            continue
        lines = [line.partition(":")[2] for line in text.splitlines() if key and line.startswith(key)]
        names += [name.strip("\0 \t") for name in (lines[:1] if key else [text])]
    return ", ".join(dict.fromkeys(names)) or platform.processor() or platform.machine()


def clock_mhz() -> int | None:
    """Clock frequency of the first processor in MHz; None if the system does not know it."""
    try:
        with open("/sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq") as stream:
            return round(int(stream.read()) / 1e3)
    except (OSError, ValueError):
        pass
    try:
        with open("/proc/cpuinfo", errors="replace") as stream:
            for line in stream:
                if line.startswith("cpu MHz"):
                    return round(float(line.partition(":")[2]))
    except (OSError, ValueError):
        pass
    return None


def host(threads: int) -> dict[str, object]:
    """This machine: processor, clock, threads, versions, time."""
    return {
        "processor": processor(),
        "clock_mhz": clock_mhz(),
        "cores": os.cpu_count(),
        "threads": threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "numpy": np.__version__,
        "measured": time.strftime("%Y-%m-%d %H:%M:%S"),
    }


def write_json(path: str, content: object) -> None:
    """Write a JSON file whole or not at all."""
    partial = f"{path}.{os.getpid()}.tmp"
    with open(partial, "w") as stream:
        json.dump(content, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(partial, path)


def measure_folder(
    folder: str,
    settings: Settings,
    *,
    say: Callable[[str], None],
    resume: str | None = None,
    energy: Callable[[dict[str, Timer], Figures], Figures | None] | None = None,
    memory: bool = False,
) -> Measurements:
    """Time all models of an exported folder; returns the content of measurements.json.

    Args:
        folder: Has plan.json and the models.
        settings: How they are timed.
        say: Called with a sentence about the progress.
        resume: A file that is written after every round, and read if it is there.
        energy: Returns the energy of all models in mJ, or None.
        memory: Whether the peak memory of whole networks is measured, each in a process of its own.

    Raises:
        ValueError: The provider is missing, cannot run a model (named with its shape), or `resume` is of
            other models.
    """
    import onnxruntime

    check_provider(settings["provider"])
    with open(os.path.join(folder, "plan.json")) as stream:
        plan: Plan = json.load(stream)
    runs_by = {"backend": "onnxruntime", "provider": settings["provider"]}
    content: Measurements = {
        "schema": SCHEMA_VERSION,
        "plan": plan,
        "settings": settings,
        "origin": {**host(settings["threads"]), **runs_by, "onnxruntime": onnxruntime.__version__},
        "complete": False,
        "latency_ms": {},
        "passes": {},
    }
    before = _interrupted(resume, content) if resume and os.path.exists(resume) else content
    if before["complete"]:
        return before
    timers = _loaded(folder, plan, settings, say)

    def save(figures: Figures, passes: dict[str, int]) -> None:
        content["latency_ms"], content["passes"] = figures, passes
        if resume:
            write_json(resume, content)

    known = before["latency_ms"]
    save(*time_rounds(timers, settings["rounds"], settings["noise"], save=save, say=say, known=known))
    measured = energy(timers, content["latency_ms"]) if energy else None
    if measured:
        content["energy_mj"] = measured
    if memory:
        say("peak memory of networks")
        content["memory_mb"] = {
            model["name"]: peak_memory(
                os.path.join(folder, model["file"]), model["input"], settings["provider"], settings["threads"]
            )
            for model in plan["models"]
            if "genotype" in model
        }
    content["complete"] = True
    if resume:
        write_json(resume, content)
    return content


def _interrupted(path: str, content: Measurements) -> Measurements:
    """What an interrupted measurement of the same models has written."""
    try:
        with open(path) as stream:
            before: Measurements = json.load(stream)
        same = before["plan"] == content["plan"] and before["settings"] == content["settings"]
        before["latency_ms"], before["complete"]  # are there
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} is not readable; delete it to start anew") from None
    if not same:
        raise ValueError(f"{path} is of other models or settings; delete it to start anew")
    return before


def _loaded(folder: str, plan: Plan, settings: Settings, say: Callable[[str], None]) -> dict[str, Timer]:
    """The timers of all models."""
    timers: dict[str, Timer] = {}
    provider = settings["provider"]
    for number, model in enumerate(plan["models"]):
        try:
            timers[model["name"]] = onnx_timer(
                os.path.join(folder, model["file"]), model["input"], provider, settings["threads"]
            )
        except RuntimeError as error:
            shape = "x".join(map(str, model["input"]))
            raise ValueError(f"{provider} cannot run {model['name']} with input {shape} ({error})") from None
        if (number + 1) % 20 == 0:
            say(f"{number + 1} of {len(plan['models'])} models loaded")
    return timers


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description="Time the models of this folder on this machine.")
    parser.add_argument("--threads", type=int, default=1, help="processor threads of a model (1)")
    parser.add_argument("--provider", default="CPUExecutionProvider", help="onnxruntime's execution provider")
    parser.add_argument("--rounds", type=int, default=10, help="timing rounds per model (10)")
    parser.add_argument("--noise", type=float, default=0.1, help="variation from which one is measured again")
    parser.add_argument(
        "--memory", choices=("yes", "no"), default="yes", help="peak memory of networks (yes)"
    )
    parser.add_argument("--peak", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        _print_peak(arguments.peak)
        return 0
    folder = os.path.dirname(os.path.abspath(__file__))
    path = os.path.join(folder, "measurements.json")
    try:
        if arguments.threads < 1 or arguments.rounds < 3:
            raise ValueError("--threads must be at least 1, --rounds at least 3")
        content = measure_folder(
            folder,
            {
                "provider": arguments.provider,
                "threads": arguments.threads,
                "rounds": arguments.rounds,
                "noise": arguments.noise,
            },
            say=lambda text: print(text, flush=True),
            resume=path,
            energy=board_energy,
            memory=arguments.memory == "yes",
        )
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    noisy = [name for name, values in content["latency_ms"].items() if variation(values) > arguments.noise]
    print(f"{len(content['latency_ms'])} models, {len(noisy)} of them noisy: {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
