"""Workers, which evaluate parts of a population at once: processes of this machine, or of a Ray cluster."""

from __future__ import annotations

import hashlib
import io
import itertools
import logging
import os
import pickle
import socket
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import IO

from hwnas.core import Count, Evaluator, Genotype, NotNegative, checked
from hwnas.files import end_with, identity, take_lock, temporary_folder

MAX_WORKER_DEATHS = 3
"""Deaths of a worker after which its part is an error; the last attempt evaluates the part alone."""

Part = Sequence[Genotype]
Answers = list[dict[str, float]]
Done = tuple[int, Answers, list[tuple[str, str]]]
"""Number of a part, its answers, and messages of the evaluator: ("announce" or "warn", sentence)."""


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; none while torch is not loaded."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is None:
        torch = sys.modules.get("torch")
        return [] if torch is None else [str(number) for number in range(torch.cuda.device_count())]
    return [name for name in named.split(",") if name not in ("", "-1")]


class Workers(ABC):
    """Evaluate parts of a population at once, with the answers of one process with as many threads.

    A worker that dies is replaced, and its part is evaluated again.

    Args:
        workers: Number of parts evaluated at once.
        announce: Called with announcements of evaluators in workers.
        warn: Called with their warnings, and when a worker has died.

    Raises:
        ValueError: Not a whole number of at least 1.
    """

    @checked
    def __init__(self, workers: Count, announce: Callable[[str], None], warn: Callable[[str], None]) -> None:
        self.num = workers
        self._say = {"announce": announce, "warn": warn}
        self._heard: set[str] = set()

    def map(self, evaluator: Evaluator, parts: Sequence[Part]) -> Iterator[tuple[Part, Answers]]:
        """The parts and their answers, in the order in which they finish.

        Args:
            evaluator: Prepared for the population; every worker gets a copy.
            parts: Each is evaluated in one call.

        Raises:
            ValueError: The evaluator cannot be copied, or the workers of a part died `MAX_WORKER_DEATHS`
                times.
        """
        try:
            copy = packed(evaluator, self._say)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise ValueError(
                f"evaluator {evaluator.name} cannot be sent to workers ({error}); use workers=1"
            ) from None
        waiting = dict(enumerate(parts))
        for deaths in range(MAX_WORKER_DEATHS):
            last = deaths == MAX_WORKER_DEATHS - 1
            for group in [{index: part} for index, part in waiting.items()] if last else [dict(waiting)]:
                for index, answers, said in self._run(copy, group):
                    self._pass_on(said)
                    yield waiting.pop(index), answers
                if last and not waiting.keys().isdisjoint(group):
                    named = " ".join(str(list(genotype)) for part in group.values() for genotype in part)
                    raise ValueError(
                        f"the worker that evaluates {named} by {evaluator.name} died {deaths + 1} times "
                        "(out of memory?); fewer workers, smaller networks or a smaller batch need less"
                    )
            if not waiting:
                return
            self._say["warn"](f"a worker died; {len(waiting)} of {len(parts)} parts are evaluated again")

    def _pass_on(self, said: Sequence[tuple[str, str]]) -> None:
        """Repeat messages of a copy of an evaluator: each warning once, and only the first announcement."""
        for how, sentence in said:
            message = sentence if how == "warn" else how
            if message not in self._heard:
                self._heard.add(message)
                self._say[how](sentence)

    @abstractmethod
    def _run(self, copy: bytes, parts: Mapping[int, Part]) -> Iterator[Done]:
        """Evaluate parts, in any order; ends early when a worker dies."""

    @abstractmethod
    def close(self) -> None:
        """Stop the workers."""


class Processes(Workers):
    """Processes of this machine, by joblib, which divide cores and GPUs evenly; arguments of `Workers`."""

    def __init__(self, workers: int, announce: Callable[[str], None], warn: Callable[[str], None]) -> None:
        super().__init__(workers, announce, warn)
        self._folder = temporary_folder()
        given = os.environ.get("OMP_NUM_THREADS", "")
        self._threads = int(given) if given.isdigit() else max(1, cores() // self.num)

    def _run(self, copy: bytes, parts: Mapping[int, Part]) -> Iterator[Done]:
        from joblib import Parallel, delayed, parallel_config

        path = Path(self._folder.name) / hashlib.sha256(copy).hexdigest()[:16]
        path.write_bytes(copy)
        with parallel_config(backend="loky", inner_max_num_threads=self._threads):
            pool = Parallel(
                self.num,
                return_as="generator_unordered",
                batch_size=1,
                pre_dispatch="all",
                temp_folder=self._folder.name,
            )
        me = identity()
        try:
            places = [path.with_name(f"gpu-{name}") for name in gpus()]
            yield from pool(
                delayed(_evaluate_file)(me, places, path, index, part) for index, part in parts.items()
            )
        except BrokenProcessPool:
            return
        finally:
            path.unlink(missing_ok=True)  # that of a supernet is large, and every population has its own

    def close(self) -> None:
        """Stop the processes."""
        from joblib.externals.loky import get_reusable_executor

        get_reusable_executor(max_workers=self.num).shutdown(wait=True, kill_workers=True)
        self._folder.cleanup()


class Ray(Workers):
    """Tasks on a Ray cluster, whose machines need the same hwnas and data.

    The arguments are those of `Workers`, and:

    Args:
        address: Address of a cluster, e.g. "auto" or "ray://head:10001"; None starts one on this machine.
        gpus: GPUs of each worker, the only ones that it sees; a fraction: workers share one.

    Raises:
        ValueError: Ray is not installed, the cluster is not reachable, or it has too few GPUs for a worker.
    """

    @checked
    def __init__(
        self,
        workers: int,
        announce: Callable[[str], None],
        warn: Callable[[str], None],
        *,
        address: str | None,
        gpus: NotNegative,
    ) -> None:
        super().__init__(workers, announce, warn)
        self._gpus = gpus
        try:
            import ray
        except ImportError:
            raise ValueError("cluster=ray needs Ray; pip install 'hwnas[ray]'") from None
        self._ray = ray
        self._references: list[object] = []  # of the evaluator, then of the parts in work
        own: dict[str, object] = {
            "num_cpus": self.num,
            "include_dashboard": False,
            # Lets tasks find the user's modules.
            "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
        }
        try:
            host, _, port = (address or "").rpartition("://")[2].rpartition(":")
            if port.isdigit():  # a check, because Ray would try for minutes and then abort the process
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address=address, logging_level="ERROR", log_to_driver=False, **({} if address else own))
        except (OSError, ValueError, RuntimeError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"cluster.address={address} is no Ray cluster that answers ({reason})") from None
        if (there := ray.cluster_resources().get("GPU", 0)) < gpus:
            self.close()
            raise ValueError(f"cluster.gpus={gpus:g} for each worker is more than the cluster has: {there:g}")

    def _run(self, copy: bytes, parts: Mapping[int, Part]) -> Iterator[Done]:
        ray = self._ray
        task = ray.remote(max_retries=0, num_gpus=self._gpus)(_evaluate)
        key, waiting = hashlib.sha256(copy).hexdigest(), list(parts.items())
        self._references[:] = [ray.put(copy)]
        while waiting or len(self._references) > 1:
            while waiting and len(self._references) <= self.num:
                self._references.append(task.remote(key, self._references[0], *waiting.pop(0)))
            finished = self._references.index(ray.wait(self._references[1:])[0][0])
            try:
                yield ray.get(self._references.pop(finished))
            except ray.exceptions.RayTaskError as error:  # raised by the evaluator
                raise error.cause from None
            except ray.exceptions.RayError:  # the worker, or its machine, is gone
                continue

    def close(self) -> None:
        """Cancel the parts in work, and stop the cluster if this process started it."""
        self._references.clear()
        self._ray.shutdown()


def packed(content: object, say: Mapping[str, Callable[[str], None]]) -> bytes:
    """A prepared evaluator, or what has some, as bytes; functions of `say` are replaced by their names."""
    from joblib.externals import cloudpickle  # also takes classes of notebooks

    class Pickler(cloudpickle.Pickler):
        def persistent_id(self, obj: object) -> str | None:
            return next((how for how, function in say.items() if callable(obj) and obj == function), None)

    file = io.BytesIO()
    Pickler(file).dump(content)
    return file.getvalue()


class Unpickler(pickle.Unpickler):
    """Reads `packed` evaluators; functions of `say` become ones that collect messages in `said`."""

    def __init__(self, copy: bytes, said: list[tuple[str, str]]) -> None:
        super().__init__(io.BytesIO(copy))
        self._said = said

    def persistent_load(self, pid: str) -> Callable[[str], None]:
        """The function of a name."""
        return lambda sentence: self._said.append((pid, sentence))


_latest: tuple[str, Evaluator, list[tuple[str, str]]] | None = None
"""The last evaluator of this worker: its key, the evaluator, and its new messages."""


def _evaluate(key: str, copy: bytes, index: int, part: Part) -> Done:
    """Evaluate a part; runs in a worker."""
    global _latest
    if _latest is None or _latest[0] != key:
        logging.disable(logging.INFO)  # of libraries; messages of evaluators are collected
        said: list[tuple[str, str]] = []
        _latest = key, Unpickler(copy, said).load(), said
    _, evaluator, said = _latest
    answers = evaluator.evaluate(part)
    spoken = list(said)
    said.clear()
    return index, answers, spoken


_place: IO[str] | None = None
"""File of the GPU that this worker has, locked as long as it lives."""


def _take_gpu(places: Sequence[Path]) -> None:
    """Let this worker see one GPU only, one that the fewest others have; before anything uses CUDA.

    Args:
        places: Files named gpu-<GPU>, the same for all workers, whose locks tell which GPUs are taken (not on
            Windows, where all workers have the first one); none: there is no GPU.
    """
    global _place
    for turn in itertools.count() if places and _place is None else ():
        for place in places:
            file = place.with_name(f"{place.name}.{turn}").open("w")
            if take_lock(file):
                _place = file
                os.environ["CUDA_VISIBLE_DEVICES"] = place.name.removeprefix("gpu-")
                return
            file.close()


def _evaluate_file(parent: str, places: Sequence[Path], path: Path, index: int, part: Part) -> Done:
    """Evaluate a part by the evaluator in a file; runs in a worker of this machine."""
    end_with(parent)
    _take_gpu(places)
    known = _latest is not None and _latest[0] == path.name
    return _evaluate(path.name, b"" if known else path.read_bytes(), index, part)
