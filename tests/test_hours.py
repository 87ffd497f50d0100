"""Estimated hours of published experiments."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from hwnas.build import conf_folder
from hwnas.reports.hours import WORK, estimates, in_lines, measured


@pytest.mark.parametrize("name", WORK)
def test_the_work_is_that_of_the_configuration(name: str) -> None:
    command = "train" if name.startswith("train_") else "search"
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose(command, [f"experiment={name}", *(["arch=evnas_a"] if command == "train" else [])])
    work = WORK[name]
    assert config.search_space._target_.split(".")[2] == work.space
    if work.kind == "final":
        assert config.trainer.epochs == work.epochs
        return
    population = config.strategy.population_size
    assert work.networks % config.generations == 0
    if population is not None:
        assert work.networks == config.generations * population
    if work.kind == "supernet":
        stages = len(config.strategy.get("progression") or [None])
        evaluator = config.evaluator
        assert (
            work.epochs
            == stages * evaluator.warmup_epochs + config.generations * evaluator.epochs_per_generation
        )
        assert work.cells == evaluator.num_cells / {"darts": 8, "nasbench201": 5}[work.space]


def test_without_rates_the_published_ones_count(tmp_path: Path) -> None:
    """EvNAS on the DARTS space: 50 x 25,000 / 277 + 2,500 x 6.3 = 20,263 s."""
    assert measured(tmp_path / "gpu.json") == {}
    rows = {name: (hours, source) for name, hours, source in estimates({})}
    assert rows["evnas_darts"][0] == pytest.approx(20_263 / 3600, abs=1e-3)
    assert rows["evnas_nasbench201"] == (20_250 / 3600, "published time")
    assert rows["train_evnas_a_cifar10"] == (None, "not measured")
    assert "evnas_darts                  5.6  rates of the authors' code on an H100" in in_lines({})


def test_measured_rates_count_first(tmp_path: Path) -> None:
    """100 x 25,000 / 5,000 + 1,414 x 25,000 x 4e-6 = 641.4 s; 600 x 50,000 / 3,000 = 10,000 s."""
    path = tmp_path / "gpu.json"
    rates = {
        "nasbench201: training": 5_000.0,
        "nasbench201: evaluation": 4e-6,
        "darts: final training": 3_000.0,
    }
    rows = [{"name": name, "rate": name, "per_second": value} for name, value in rates.items()]
    path.write_text(json.dumps({"sizes": "tiny", "rates": rows}))
    assert measured(path) == {}
    path.write_text(json.dumps({"sizes": "published", "rates": [*rows, {"name": "another", "rate": None}]}))
    assert measured(path) == rates
    hours = {name: hours for name, hours, _ in estimates(rates)}
    assert hours["cmanas_nasbench201"] == pytest.approx(641.4 / 3600)
    assert hours["train_evnas_a_cifar10"] == pytest.approx(10_000 / 3600)


def test_the_documentation_has_the_estimates() -> None:
    page = (Path(__file__).parents[1] / "docs" / "published.md").read_text()
    for name, hours, source in estimates({}):
        assert f"| `{name}` | {'' if hours is None else f'{hours:.1f}'} | {source} |" in page
