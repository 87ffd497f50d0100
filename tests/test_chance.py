"""A reference, a search or a final network that hardly does better than a guess is said, also on the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from hwnas import compose, search, train
from hwnas.core import Evaluator, Genotype, SearchSpace, is_near_chance

ARCH = "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|nor_conv_1x1~0|none~1|nor_conv_3x3~2|"
SMALL = ("search_space.channels=2", "search_space.num_cells=1", "logger=csv")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


class Constant(Evaluator):
    """Answers the same validation accuracy for all networks."""

    name = "constant"
    metrics = {"val_acc": "max"}  # noqa: RUF012

    def __init__(self, *, val_acc: float, stationary: bool = True) -> None:
        self._val_acc, self._stationary = val_acc, stationary

    @property
    def stationary(self) -> bool:
        return self._stationary

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        return str(self._val_acc)

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        return [{"val_acc": self._val_acc} for _ in genotypes]


def test_how_near_is_near() -> None:
    """1.5 times chance for many classes, a tenth of the rest above it for few."""
    assert [is_near_chance(accuracy, 0.1) for accuracy in (0.05, 0.14, 0.16)] == [True, True, False]
    assert [is_near_chance(accuracy, 0.25) for accuracy in (0.208, 0.32, 0.33)] == [True, True, False]
    assert [is_near_chance(accuracy, 0.5) for accuracy in (0.54, 0.56)] == [True, False]
    assert not is_near_chance(1.0, 1.0)


def test_a_reference_and_a_final_network_that_guess(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On digits, whose most frequent class is a tenth; one step of a tiny rate teaches nothing."""
    problem = compose(
        *SMALL,
        *("device=flops", "strategy=random", "generations=1", "strategy.population_size=3"),
        *("evaluator=rmi", "evaluator.channels=2", "evaluator.steps=1"),
        *(f"evaluator.reference.{word}" for word in ("epochs=1", "max_steps=1", "lr=1e-9")),
        *("trainer.epochs=1", "trainer.max_steps=1", "trainer.lr=1e-9"),
    )
    run = search(problem, "run")
    said = capsys.readouterr().out
    page = (here / "run/report.html").read_text(encoding="utf-8")
    for doubt in ("the reference answers ", "the trained network answers "):
        assert f"warning: {doubt}" in said
        assert doubt[1:] in page
    assert len(run.result.doubts) == 2
    assert page.count('<div class="card warn">') == 2
    assert "longer (evaluator.reference.epochs=1, .max_steps=1)" in run.result.doubts[0]
    assert "longer (trainer.epochs=1, .max_steps=1)" in run.result.doubts[1]


@pytest.mark.parametrize(
    ("val_acc", "stationary", "doubts"),
    [
        (0.12, True, ["no network of generation 1 answers more than 12.0% of the validation images right"]),
        (0.12, False, ["no network of generation 2 answers more than 12.0% of the validation images right"]),
        (0.5, True, []),
    ],
)
def test_a_search_among_networks_that_guess(val_acc: float, stationary: bool, doubts: list[str]) -> None:
    """As those of a supernet; one that populations train is judged at the end only."""

    def guessing() -> Constant:
        return Constant(val_acc=val_acc, stationary=stationary)

    problem = compose(
        *("search_space=toy", "dataset=digits", "device=toy", "trainer=none"),
        *("generations=2", "strategy.population_size=4"),
        evaluator=guessing,
    )
    run = search(problem, show=False)
    assert [doubt.partition(", a guess 10.0%")[0] for doubt in run.result.doubts] == doubts


def test_fbnet_on_small_images_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Strides 1 1 2 2 1 2 1: of 8 pixels one is left for what follows the first layer of the sixth stage."""
    arch = "-".join(["skip"] * 22)
    train(
        *("search_space=fbnet", "search_space.channels=2", "logger=csv"),
        *("trainer.epochs=1", "trainer.max_steps=1", f"arch={arch}"),
    )
    said = capsys.readouterr().out
    assert "of these, 8x8 pixels, a single pixel reaches the last 4 of its 22 layers" in said


def test_the_answer_of_a_search_without_a_path_is_not_trained() -> None:
    """Only cells without operations keep so low a limit."""
    none = "[[0],[0],[0],[0],[0],[0]]"
    problem = compose(
        *SMALL,
        f"+search_space.choices={none}",
        *("device=flops", "strategy=random", "generations=1", "strategy.population_size=2"),
        *("evaluator=rmi", "evaluator.reference.epochs=0", "evaluator.steps=0", "evaluator.channels=2"),
    )
    run = search(problem, show=False)
    assert run.result.network is None
    assert any("no path from input to output" in doubt for doubt in run.result.doubts)
