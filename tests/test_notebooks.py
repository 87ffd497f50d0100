"""The notebooks run from top to bottom, and lie in git without what they printed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from hwnas.files import data_folder

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def outputs(notebook: Any) -> Iterator[Any]:
    for cell in notebook.cells:
        yield from cell.get("outputs", [])


def test_there_are_five() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_nothing_that_was_printed_is_in_git(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None


@pytest.mark.parametrize(  # the others, together a minute, among the slow ones
    "path",
    [
        pytest.param(path, marks=[] if path.stem[:2] in ("01", "04") else pytest.mark.slow)
        for path in NOTEBOOKS
    ],
    ids=lambda path: path.stem,
)
def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = read(path)
    text = "".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    missing = [name for name in re.findall(r"`(\w+\.npz)`", text) if not (data_folder() / name).is_file()]
    if missing:
        pytest.skip(f"{' and '.join(missing)} missing; HWNAS_DATA names the folder that has them")
    resources = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, kernel_name="python3", timeout=300, resources=resources).execute()
    complaints = [out.text for out in outputs(notebook) if out.get("name") == "stderr"]
    assert complaints == []
    kinds = {kind for out in outputs(notebook) for kind in out.get("data", {})}
    assert "image/png" in kinds
    html = "".join(out.data["text/html"] for out in outputs(notebook) if "text/html" in out.get("data", {}))
    links = re.findall(r'href="([^"]+)"', html)
    assert links
    for link in links:
        assert (tmp_path / unquote(link)).is_file()
