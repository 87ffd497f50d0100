"""Off-the-shelf networks beside the found one, and budgets for search and training together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest

from hwnas import compose, read_run, search
from hwnas.cli.overrides import search_arguments
from hwnas.runs.result import Contender, read_result
from hwnas.searches.baselines import USUAL
from hwnas.searches.finish import advice, contender_in_words, lead_of

SMALL = (
    *("experiment=blind", "search_space.channels=4", "search_space.num_cells=1", "generations=8"),
    *("evaluator.zero_cost.num_cells=1", "evaluator.zero_cost.channels=4", "evaluator.short.num_cells=1"),
    *("evaluator.long.num_cells=1", "evaluator.short.training.max_steps=3", "strategy.networks=[20,4,0]"),
    *("evaluator.long.training.max_steps=4", "workers=1", "trainer.max_steps=40"),
)


def test_lead() -> None:
    """Of eight images three are answered by the first only, one by the other only: 2/8.

    The differences are 1, 1, 1, -1 and four times 0: their variance is 4/8 - 1/16 = 7/16, so that the
    standard error of the mean of eight is sqrt(7/128).
    """
    right = np.array([1, 1, 1, 0, 1, 1, 0, 0.0])
    other = np.array([0, 0, 0, 1, 1, 1, 0, 0.0])
    assert lead_of(right, other) == pytest.approx((0.25, (7 / 128) ** 0.5))


def test_the_one_to_take() -> None:
    """Leads are said of the network to take, from whichever side it is."""
    found = Contender("stem=8", 1e6, 1e4, True, None, val_acc=0.8, test_acc=0.79, seconds=10.0)
    other = replace(found, name="resnet10_w8", val_acc=0.7, test_acc=0.75, lead=-0.04, lead_std=0.01)
    large = Contender("resnet18", 1e9, 1e7, False)
    assert contender_in_words(other) == (
        "resnet10_w8: 1.000 M multiply-adds, test accuracy 75.00% (-4.0 ± 1.0 points) after 10 s"
    )
    assert contender_in_words(large) == "resnet18: 1.000 G multiply-adds: not within the limits"


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search on digits, and one network beside it that is small enough and one that is too large."""
    folder = tmp_path_factory.mktemp("compared")
    words = ("device.rounds=3", "limits.flops=4e6", "baselines=[resnet10_w16,resnet18]")
    search(compose(*SMALL, *words), folder / "run", store=folder / "store", show=False)
    return folder / "run"


def test_what_is_compared(compared: Path) -> None:
    content = json.loads((compared / "result.json").read_text())
    small, large = content["baselines"]
    assert [small["name"], large["name"]] == ["resnet10_w16", "resnet18"]
    assert small["within"]
    assert small["flops"] < 4e6 < large["flops"]
    assert not large["within"]
    assert 0.1 < small["test_acc"] <= 1
    assert large["test_acc"] is None
    assert 0 < small["latency_ms"] < large["latency_ms"]
    assert content["found"]["name"] == content["best"]["arch"]
    taken = small if small["val_acc"] > content["found"]["val_acc"] else content["found"]
    trained = json.loads((compared / "network" / "architecture.json").read_text())
    assert trained["arch"] == taken["name"] == (content["network"]["name"] or content["best"]["arch"])
    assert not (compared / "trials").exists()
    page = (compared / "report.html").read_text()
    assert "Beside networks off the shelf" in page
    assert "over the limits" in page


def test_the_last_line_names_the_network(compared: Path) -> None:
    """It is an off-the-shelf network here: cells of four channels and forty steps lose to it."""
    result = read_result(compared / "result.json")
    found, (small, _) = result.found, result.baselines
    assert found is not None
    assert small.lead is not None
    assert small.val_acc is not None
    assert small.lead == pytest.approx((small.test_acc or 0) - (found.test_acc or 0))
    assert result.network is not None
    assert result.network.name == "resnet10_w16"
    assert (compared / "search.log").read_text().rstrip().splitlines()[-1].endswith(advice(result) or "")
    assert (advice(result) or "").startswith("take resnet10_w16: trained alike for ")


def test_the_network_to_take_is_exported(
    compared: Path, tmp_path: Path, run_hwnas: Callable[..., CompletedProcess[str]]
) -> None:
    """A run of Python has no words, so that its files are made by a command that searches likewise."""
    words = ("device.rounds=3", "limits.flops=4e6", "baselines=[resnet10_w16]", "logger=csv")
    run_hwnas("search", *SMALL, *words, f"store.dir={compared.parent / 'store'}", "hydra.run.dir=run")
    done = run_hwnas("export", "run=run", "format=torch", "check_images=20", "rounds=3")
    assert "exporting resnet10_w16" in done.stdout


def test_a_known_network_of_a_training_is_exported(run_hwnas: Callable[..., CompletedProcess[str]]) -> None:
    """The space of a training has all names, that of a network taken by a search its own alone."""
    words = ("search_space=known", "arch=resnet10_w8", "trainer.max_steps=2", "logger=csv")
    run_hwnas("train", *words, "hydra.run.dir=run")
    done = run_hwnas("export", "run=run", "format=torch", "check_images=20", "rounds=3")
    assert "exporting resnet10_w8" in done.stdout


@pytest.mark.slow  # a budget takes its time
def test_a_budget_is_for_search_and_training(
    compared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was planned and measured is kept: a run that is resumed trains as many steps."""
    monkeypatch.chdir(tmp_path)
    words = ("budget=40s", "device.rounds=3", "trainer.batch_size=32")
    store = compared.parent / "store"  # this machine is measured there
    run = search(compose(*SMALL, *words), "run", store=store, show=False)
    assert run.result is not None
    assert run.result.network is not None
    plan = json.loads(Path("run/finish.json").read_text())
    names = [other.name for other in run.result.baselines]
    assert names == plan["names"]
    assert set(names) <= set(USUAL)
    assert len(names) == 2
    assert all(other.latency_ms is not None and other.latency_ms > 0 for other in run.result.baselines)
    assert set(plan["steps"]) == {"found", "network", *names}
    assert plan["steps"]["network"] != 40  # the budget plans, not the trainer

    shutil.copytree("run", "again")
    for name in ("result.json", "report.html"):
        Path("again", name).unlink()
    shutil.rmtree("again/network")
    search(compose(*SMALL, *words), "again", store=store, show=False)
    again = read_run("again").result
    assert again is not None
    assert again.network is not None
    assert json.loads(Path("again/finish.json").read_text()) == plan
    assert [o.val_acc for o in again.baselines] == [o.val_acc for o in run.result.baselines]
    assert again.network.test_acc == run.result.network.test_acc


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("baselines=[resnet10_w17]",),
            "baselines has no network 'resnet10_w17'; did you mean resnet10_w16",
        ),
        (
            ("baselines=resnet18",),
            "baselines must be auto or a list, .* not 'resnet18'",
        ),
        (("baselines=[resnet18,resnet18]",), "names a network twice"),
        (("baselines=[resnet18]", "trainer=none"), "baselines are trained like the best network"),
    ],
)
def test_what_does_not_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    given = SMALL[:-1] if "trainer=none" in words else SMALL
    with pytest.raises(ValueError, match=message):
        search(compose(*given, "device=flops", *words), "run", show=False)


@pytest.mark.parametrize(
    ("words", "first"),
    [
        (("dataset=folder", "dataset.path=photos"), "experiment=images"),
        (("dataset=mnist", "device=flops", "budget=5min"), "experiment=images"),
        (("dataset=npz", "search_space=mobile"), "experiment=blind"),
        (("dataset=npz", "evaluator.lookup.path=nasbench201.npz"), "experiment=blind"),
        (("dataset=npz", "device=raspi4"), "experiment=blind"),  # it knows cells only
        (("dataset=cifar10",), "experiment=blind"),
        ((), "experiment=blind"),
        (("dataset=folder", "strategy=random"), "dataset=folder"),
    ],
)
def test_own_images_choose_residual_networks(words: tuple[str, ...], first: str) -> None:
    assert search_arguments(list(words))[0] == first
