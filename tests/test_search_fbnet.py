"""`hwnas search search_space=fbnet` as a user runs it, tiny: both evaluators, the page, the final network."""

from __future__ import annotations

import json

import pytest

TINY = (
    "search_space=fbnet",
    "search_space.channels=4",
    "dataset=digits",
    "device=flops",
    "strategy=random",
    "strategy.population_size=3",
    "hydra.run.dir=run",
)
QUALITY = {
    "rmi": ("evaluator.channels=4", "evaluator.steps=1", "evaluator.reference.epochs=0"),
    "train": ("evaluator.training.epochs=1", "evaluator.training.max_steps=2"),
}


@pytest.mark.parametrize(
    ("evaluator", "metric"), [("rmi", "rmi"), pytest.param("train", "val_acc", marks=pytest.mark.slow)]
)
def test_a_search_ends_with_a_page_and_a_network(run_hwnas, tmp_path, evaluator: str, metric: str) -> None:
    choice = (f"evaluator={evaluator}", *QUALITY[evaluator])
    done = run_hwnas("search", *TINY, *choice, "generations=2", "trainer.epochs=1", "trainer.max_steps=2")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert set(result["best"]["metrics"]) >= {metric, "flops"}
    assert result["best"]["arch"].count("-") == 21
    assert 0 <= result["network"]["test_acc"] <= 1
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert page.count('<g class="slot c') + page.count('<g class="slot ghost"') >= 22
    if evaluator == "rmi":
        return
    assert "s per network" in done.stdout
    again = run_hwnas("search", *TINY[:-1], *choice, "generations=2", "trainer=none", "hydra.run.dir=again")
    assert "from store 6" in again.stdout
    first, second = (
        [json.loads(line)["metrics"] for line in (tmp_path / run / "archive.jsonl").read_text().splitlines()]
        for run in ("run", "again")
    )
    assert first == second


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("evaluator=rmi", "evaluator.channels=7"),
            "evaluator.channels must be an even whole number of at least 2",
        ),
        (("evaluator=train", "evaluator.training.epochs=0"), "evaluator.training.epochs must be at least 1"),
        (("evaluator=train", "evaluator.training.lr=-1"), "lr must be a number above 0, not -1"),
        (
            ("evaluator=rmi", "search_space=darts", "evaluator.num_cells=1"),
            "evaluator.num_cells must be a whole number of at least 3",
        ),
        (("evaluator=train", "search_space=toy"), "the toy space has no networks to train"),
    ],
)
def test_bad_input_is_one_line(run_hwnas, overrides: tuple[str, ...], message: str) -> None:
    own = [setting for setting in TINY if not setting.startswith("search_space")]
    space = [] if any(text.startswith("search_space") for text in overrides) else ["search_space=fbnet"]
    done = run_hwnas("search", *own, *space, *overrides, code=1)
    assert message in done.stderr + done.stdout
    assert "Traceback" not in done.stderr + done.stdout
