"""Imports point down and not in circles, and nothing heavy is loaded before it is needed."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "hwnas"

ROOMS = (
    "__init__",
    "core",
    "files",
    "build",
    "strategies",
    "spaces",
    "data",
    "tables",
    "training",
    "evaluators",
    "devices",
    "store",
    "runs",
    "searches",
    "reports",
    "exports",
    "pruning",
    "api",
    "cli",
    "__main__",
)
"""From the ground up: a room imports rooms before it and its own files only."""

FEW_OWN_IMPORTS_INSIDE_FUNCTIONS = 13
"""Each has its reason beside it: torch, or Hydra, for whoever does not need it."""


def nodes(path: Path) -> list[ast.ImportFrom | ast.Import]:
    tree = ast.parse(path.read_text())
    return [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom | ast.Import)]


def imports(path: Path) -> set[str]:
    names: set[str] = set()
    for node in nodes(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


FILES = sorted(PACKAGE.rglob("*.py"))
MODULES = {module(path): path for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = room(path)
    if here == "__init__":  # names the public face for type checkers, and imports nothing before it is used
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] == "hwnas" and len(parts) > 1 and parts[1] in ROOMS and parts[1] != here:
            assert ROOMS.index(parts[1]) < ROOMS.index(here), f"{here} imports {name}"


def test_every_room_has_its_place() -> None:
    assert {room(path) for path in FILES} == set(ROOMS)


def test_no_circles() -> None:
    """Also not by imports inside functions, or for types only."""
    needs = {name: {n for n in imports(path) if n in MODULES and n != name} for name, path in MODULES.items()}
    for name in needs:  # a package's own file may collect what lies in the package
        needs[name] -= {parent for parent in needs if name.startswith(f"{parent}.")}
    while needs:
        ready = {name for name, others in needs.items() if not others & needs.keys()}
        assert ready, f"circles among {sorted(needs)}"
        needs = {name: others for name, others in needs.items() if name not in ready}


def test_own_imports_stand_at_the_top() -> None:
    inside = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}"
        for path in FILES
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("hwnas")
    ]
    assert len(inside) <= FEW_OWN_IMPORTS_INSIDE_FUNCTIONS, inside


@pytest.mark.parametrize("path", sorted((PACKAGE / "strategies").glob("*.py")), ids=lambda p: p.name)
def test_strategies_know_numbers_only(path: Path) -> None:
    outside = {name.split(".")[0] for name in imports(path)} - set(sys.stdlib_module_names)
    assert outside <= {"numpy", "scipy", "sklearn", "pymoo", "cma", "annotated_types", "hwnas"}


@pytest.mark.parametrize("path", sorted((PACKAGE / "spaces").rglob("encoding.py")), ids=str)
def test_encodings_know_no_torch(path: Path) -> None:
    assert not {"torch", "torchvision"} & {name.split(".")[0] for name in imports(path)}


@pytest.mark.parametrize(
    "code",
    [
        "from hwnas.__main__ import main; main(['--help'])",
        "from hwnas.__main__ import main; main(['search', '--cfg', 'job'])",
        "import hwnas.cli.search, hwnas.spaces.nasbench201, hwnas.spaces.darts, hwnas.spaces.fbnet",
    ],
)
def test_nothing_heavy_at_import(code: str) -> None:
    heavy = "('torch', 'torchvision', 'pytorch_lightning', 'wandb', 'sklearn', 'matplotlib', 'pydantic')"
    check = f"{code}\nimport sys\nassert not [m for m in {heavy} if m in sys.modules]"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
