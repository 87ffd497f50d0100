"""A process that has loaded what commands need, and forks for each: most of a short command is loading.

`python -m hwnas` itself is run by test_resume.py, test_sweep.py and test_failures.py.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path

MODULES = (
    *(
        "torch",
        "torchvision",
        "pytorch_lightning",
        "hydra.main",
        "sklearn.ensemble",
        "scipy.stats",
        "sqlalchemy",
    ),
    *("sklearn.gaussian_process", "sklearn.linear_model", "pymoo.indicators.hv", "cma"),
    *(f"hwnas.cli.{name}" for name in ("search", "train", "export", "prune", "profile", "report", "store")),
    *(f"hwnas.evaluators.{name}" for name in ("cascade", "rmi", "supernet", "table", "train", "zero_cost")),
    *("hwnas.api", "hwnas.__main__"),
)
"""Loaded before the first command; what is not is loaded by the commands."""


class Preloaded:
    """The process, from outside."""

    def __init__(self) -> None:
        here = str(Path(__file__).parent)
        code = f"import sys; sys.path.insert(0, {here!r}); import preloaded; preloaded.serve()"
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True)

    def run(self, arguments: Sequence[str], cwd: Path, timeout: float) -> subprocess.CompletedProcess[str]:
        """Run `hwnas` with arguments in a folder.

        Raises:
            subprocess.TimeoutExpired: It took longer, and was killed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with tempfile.TemporaryDirectory(prefix="hwnas-tests-") as name:
            out, err = (Path(name) / stream for stream in ("stdout", "stderr"))
            order = {"arguments": list(arguments), "cwd": str(cwd), "env": dict(os.environ)}
            print(
                json.dumps({**order, "out": str(out), "err": str(err)}), file=self._process.stdin, flush=True
            )
            pid = int(self._process.stdout.readline())
            killer = threading.Timer(timeout, os.kill, (pid, signal.SIGKILL))
            killer.start()
            code = int(self._process.stdout.readline())
            killer.cancel()
            output, errors = out.read_text(), err.read_text()
        if code == -signal.SIGKILL:
            raise subprocess.TimeoutExpired(list(arguments), timeout, output, errors)
        return subprocess.CompletedProcess(list(arguments), code, output, errors)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def serve() -> None:
    """Fork for every line of the input; write the process and its exit code, a line each."""
    sys.path.pop(0)
    for module in MODULES:
        importlib.import_module(module)
    for line in sys.stdin:
        order = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _run(**order)
        print(pid, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _run(arguments: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    """Be `python -m hwnas`; does not return."""
    for number, path, how in ((0, os.devnull, "r"), (1, out, "w"), (2, err, "w")):
        with open(path, how) as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    given = [path for path in env.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:] = list(dict.fromkeys([cwd, *given, *(path for path in sys.path if path)]))
    sys.argv = ["hwnas", *arguments]
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - for the whole process
    code: object = 1
    try:
        code = importlib.import_module("hwnas.__main__").main()
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(BaseException):
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))
