"""What papers publish, beside what runs got: on pages, in docs/published.md, and at the end of a training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_report import CHOICES, CONFIG, TRIALS, make_run, page

from hwnas.build import conf_folder
from hwnas.reports.published import ARCHITECTURES, EXPERIMENTS, PAPERS, of_architecture
from hwnas.spaces.darts.encoding import PRESETS

DOCS = Path(__file__).parents[1] / "docs" / "published.md"


def run_of(folder: Path, dataset: dict[str, Any], chosen: dict[str, str], **settings: Any) -> Path:
    """The folder of a run of an experiment: test accuracy 0.9374, costs 1 to 6."""
    config = CONFIG.replace("dataset: {}", f"dataset: {json.dumps(dataset)}") + "evaluator: {images: all}\n"
    result = [{"arch": "x", "genotype": [2, 2, 2, 0], "metrics": {"test_acc": 0.9374}}]
    run = make_run(folder, config=config, result=result, **settings)
    choices = {"hydra": {"runtime": {"choices": {**CHOICES, **chosen}}}}
    (run / ".hydra" / "hydra.yaml").write_text(json.dumps(choices))
    return run


def beside_the_paper(folder: Path) -> str:
    text = page(folder).text
    return text.split("Beside the paper")[1].split("Over the search")[0] if "Beside the paper" in text else ""


def test_a_page_sets_the_published_accuracy_beside_the_run_s(tmp_path: Path) -> None:
    run = run_of(
        tmp_path / "run",
        {"name": "cifar10"},
        {"experiment": "cmanas_h12_cifar10"},
        overrides=["experiment=cmanas_h12_cifar10", "seed=7", "generations=3"],
    )
    text = beside_the_paper(run)
    assert "Neural Architecture Search Using Covariance Matrix Adaptation Evolution Strategy" in text
    assert "94.06 ± 0.34 % 93.74 %" in text
    assert (
        "the table here has the mean. This is one run, with seed 7. This run changes settings of the "
        "experiment:" in text
    )
    assert "generations=3." in text


def test_a_page_sets_the_published_diversity_beside_the_run_s(tmp_path: Path) -> None:
    """Costs 1 and 4 ms: each is 3 ms from the other, so that chi of both is 9 ms²."""
    trials = [*TRIALS[:4], (2, [1, 1, 0, 0], 0.8, 1.0), (2, [0, 1, 0, 0], 0.7, 4.0)]
    chosen = {"experiment": "mo_hdnas_table_fpga", "device": "fpga"}
    run = run_of(tmp_path / "run", {"name": "cifar10"}, chosen, trials=trials)
    assert "cost diversity of the last generation, ms² 178 (Fig. 6, three objectives" in beside_the_paper(run)
    assert beside_the_paper(run).split("generation 100)")[1].split()[0] == "9"


def test_the_figure_of_hw_evrsnas_is_that_of_the_limit(tmp_path: Path) -> None:
    chosen = {"experiment": "hw_evrsnas_table_fpga", "device": "fpga"}
    known = run_of(tmp_path / "a", {"name": "cifar100"}, chosen, limits={"latency_ms": 4.0})
    assert "within 4 ms on the FPGA about 71.6 %" in beside_the_paper(known)
    unknown = run_of(tmp_path / "b", {"name": "cifar100"}, chosen, limits={"latency_ms": 4.2})
    assert not beside_the_paper(unknown)


def test_no_figure_is_set_beside_other_runs(tmp_path: Path) -> None:
    assert not beside_the_paper(make_run(tmp_path / "none"))
    other = run_of(tmp_path / "other", {"name": "digits"}, {"experiment": "cmanas_small"})
    assert not beside_the_paper(other)  # nothing is published of these images


def test_a_page_says_which_images_validated(tmp_path: Path) -> None:
    cifar100 = {"name": "cifar100", "split": "benchmark", "valid_fraction": 0.5}
    text = page(run_of(tmp_path / "a", cifar100, {"evaluator": "rmi"})).text
    assert (
        "Images: validation on 5,000 of the test images, as in the papers (dataset.split=benchmark)" in text
    )
    assert "test accuracies are of the other 5,000, which no search sees" in text
    assert "reference and batch are of all training images." in text
    digits = {"name": "digits", "split": "seeded", "valid_fraction": 0.2}
    text = page(run_of(tmp_path / "b", digits, {"evaluator": "supernet"})).text
    assert "Images: validation on 20% of the training images, a seeded draw (dataset.split=seeded)" in text
    assert (
        "Images: " not in page(run_of(tmp_path / "c", cifar100, {"evaluator": "table"})).text
    )  # looks at none
    assert (
        "Images: " not in page(run_of(tmp_path / "d", {"name": "x"}, {"evaluator": "rmi"})).text
    )  # an old run


def test_a_page_says_how_many_networks_the_last_population_has(tmp_path: Path) -> None:
    text = page(make_run(tmp_path / "run", population={"size": 20, "different": 17})).text
    assert "different networks in the last population 17 of 20" in text


def test_every_name_is_one_of_ours() -> None:
    ours = {path.stem for path in (conf_folder() / "experiment").glob("*.yaml")}
    assert set(EXPERIMENTS) <= ours
    assert {of.method for of in EXPERIMENTS.values()} == set(PAPERS)
    assert set(ARCHITECTURES) == set(PRESETS) - {"darts_v1", "darts_v2"}


def test_published_accuracies_of_architectures() -> None:
    """Errors of 2.47 % and 16.37 % in EvNAS' table."""
    assert of_architecture("evnas_a", "cifar10").startswith(
        "published for evnas_a: 97.53 ± 0.06 %, with trainer="
    )
    assert ARCHITECTURES["evnas_a"]["cifar100"] == "83.63"
    assert of_architecture("evnas_a", "digits") == of_architecture("|none~0|", "cifar10") == ""


@pytest.mark.parametrize("method", PAPERS)
def test_the_docs_have_each_paper_and_its_figures(method: str) -> None:
    text = DOCS.read_text(encoding="utf-8")
    assert f"[{PAPERS[method].title}]({PAPERS[method].url})" in text
    for name, of in EXPERIMENTS.items():
        if of.method == method and not name.endswith(("_small", "_table")):
            for value in of.test_acc.values():
                assert value in text, (name, value)
