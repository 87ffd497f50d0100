"""Imports point down, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hwnas"

# Lower rooms never import higher ones; what shares a number may import each other.
ROOMS = {
    "core": 0,
    "files": 0,
    "processes": 0,
    "foreign": 0,
    "password": 0,
    "progress": 0,
    "analysis": 1,
    "knapsack": 1,
    "workers": 1,
    "config": 1,
    "composing": 1,
    "sweep": 1,
    "job": 1,
    "store": 1,
    "strategies": 1,
    "drawing": 1,
    "pages": 1,
    "spaces": 1,
    "truth": 1,
    "data": 2,
    "models": 3,
    "evaluators": 4,
    "devices": 4,
    "display": 4,
    "track": 4,
    "dashboard": 4,
    "run_folder": 4,
    "report_sections": 4,
    "sweep_report": 4,
    "pruning": 5,
    "report": 5,
    "train": 5,
    "export": 6,
    "export_card": 6,
    "profile": 6,
    "profile_page": 6,
    "store_command": 6,
    "prune": 6,
    "task": 6,
    "conclusion": 6,
    "search": 6,
    "api": 7,
    "info": 7,
    "__main__": 7,
    "__init__": 0,
}


def imports(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names if node.module == "hwnas"}
    return names


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = room(path)
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "hwnas" and len(parts) > 1 and parts[1] in ROOMS:
            assert ROOMS[parts[1]] <= ROOMS[here], f"{here} imports {name}"


@pytest.mark.parametrize("path", sorted((PACKAGE / "strategies").glob("*.py")), ids=lambda p: p.name)
def test_strategies_know_numbers_only(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert outside <= {"numpy", "pymoo", "cma", "hwnas"}


@pytest.mark.parametrize(
    "code",
    [
        "from hwnas.__main__ import main; main(['--help'])",
        "from hwnas.__main__ import main; main(['search', '--cfg', 'job'])",
        "import hwnas.core, hwnas.store.evaluations, hwnas.build, hwnas.cli.search, hwnas.spaces.nasbench201.encoding, hwnas.reports.page",
    ],
)
def test_nothing_heavy_at_import(code: str) -> None:
    heavy = "('torch', 'torchvision', 'pytorch_lightning', 'wandb', 'sklearn', 'matplotlib')"
    check = f"{code}\nimport sys\nassert not [m for m in {heavy} if m in sys.modules]"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
