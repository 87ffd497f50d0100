"""A search with `dataset=folder`, as a user runs it; README's first story exports its network."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from hwnas.__main__ import main
from hwnas.reports.page import write_report
from hwnas.runs.folder import read_run

COLOURS = {"blue": (60, 60, 200), "green|one": (60, 200, 60), "red": (200, 60, 60)}
SMALL = [
    *("search", "dataset=folder", "dataset.path=photos", "dataset.image_size=8", "device=flops"),
    *("evaluator=zero_cost", "evaluator.image_size=null", "evaluator.num_reference=4", "strategy=random"),
    *("evaluator.channels=2", "evaluator.num_cells=1", "evaluator.batch_size=8", "logger=csv"),
    *("strategy.population_size=2", "generations=1", "search_space.channels=4", "search_space.num_cells=1"),
    *("trainer.epochs=2", "trainer.batch_size=16", "hydra.run.dir=run"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search on JPEGs of noisy colours of several sizes, some turned by EXIF."""
    folder = tmp_path_factory.mktemp("folder")
    rng = np.random.default_rng(0)
    exif = Image.Exif()
    exif[0x0112] = 8
    for (name, colour), num in zip(COLOURS.items(), (10, 20, 30), strict=True):
        (folder / "photos" / name).mkdir(parents=True)
        for number in range(num):
            height, width = rng.integers(10, 24, 2)
            noise = rng.normal(0, 60, (height, width, 3))
            picture = Image.fromarray(np.clip(colour + noise, 0, 255).astype(np.uint8))
            picture.save(folder / "photos" / name / f"{number}.jpg", exif=exif if number % 3 == 0 else b"")
    (folder / "photos" / "red" / "bad.jpg").write_bytes(b"no picture")
    with contextlib.chdir(folder):
        with pytest.raises(SystemExit):  # names the file, as below
            main(SMALL)
        assert not Path("run").exists()
        assert main([*SMALL, "dataset.skip_corrupt=true"]) == 0
    return folder


@pytest.fixture
def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "result.json").read_text())


@pytest.fixture
def figures(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "run" / "network" / "architecture.json").read_text())


def test_result_names_classes_and_says_what_was_left_out(result: dict[str, Any]) -> None:
    assert result["dataset"] == "folder"
    assert result["network"]["classes"] == list(COLOURS)
    assert "a seeded draw of each class" in result["protocol"]
    assert "1 of 61 files cannot be read as images (red/bad.jpg: no image)" in result["doubts"][0]


def test_balanced_accuracy_is_the_mean_over_the_classes(
    result: dict[str, Any], figures: dict[str, Any]
) -> None:
    """Of 10, 20 and 30 images 2, 4 and 6 test; the file that is no image may be one of these."""
    confusion = np.array(figures["answers"]["confusion"])
    assert confusion.sum(axis=1)[:2].tolist() == [2, 4]
    assert confusion.sum(axis=1)[2] in (5, 6)
    assert result["network"]["test_acc"] == np.trace(confusion) / confusion.sum()
    recalls = [confusion[label, label] / confusion[label].sum() for label in range(3)]
    assert result["network"]["balanced_test_acc"] == pytest.approx(sum(recalls) / 3)
    wrong = int(confusion.sum() - np.trace(confusion))
    assert len(figures["answers"]["worst"]) == min(12, wrong)


def test_the_page_shows_classes_and_pictures(folder: Path, figures: dict[str, Any]) -> None:
    page = (folder / "run" / "report.html").read_text()
    assert "What it answers on test images" in page
    assert "<th>green|one</th>" in page
    assert page.count('<img src="data:image/png;base64,') == len(figures["answers"]["worst"])
    assert "a seeded draw of each class" in page


def test_a_page_drawn_again_knows_the_sizes(folder: Path, result: dict[str, Any]) -> None:
    """The configuration does not: the files do."""
    space = read_run(folder / "run").space
    assert (space.image_shape, space.num_classes) == ((3, 8, 8), 3)  # type: ignore[attr-defined]
    assert (result["image_shape"], result["num_classes"]) == ([3, 8, 8], 3)


def test_foreign_answers_are_checked(folder: Path, figures: dict[str, Any]) -> None:
    """A picture from elsewhere is not asked for, a name is text, and what does not fit is refused."""
    path = folder / "run" / "network" / "architecture.json"
    before = path.read_text()
    worst = {
        "label": 0,
        "answer": 1,
        "probability": 0.5,
        "file": "<script>",
        "picture": "https://x.org/y.png",
    }
    try:
        path.write_text(json.dumps({**figures, "answers": {**figures["answers"], "worst": [worst]}}))
        page = write_report(folder / "run").read_text()
        assert "x.org" not in page
        assert "&lt;script&gt;" in page
        for answers in (
            {"confusion": [[1]], "worst": []},
            {"confusion": None, "worst": [{**worst, "label": 9}]},
        ):
            path.write_text(json.dumps({**figures, "answers": answers}))
            with pytest.raises(ValueError, match=r"architecture\.json is corrupt"):
                write_report(folder / "run")
    finally:
        path.write_text(before)
