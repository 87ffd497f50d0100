"""`hwnas search` as a user runs it."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from hwnas.core import FloatArray, Genotype, Limit, Objective, SearchSpace
from hwnas.evaluators.table import Table
from hwnas.searches.loop import search
from hwnas.searches.problem import parse_limits, with_margins
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy, ToyCost
from hwnas.store.archive import Archive
from hwnas.strategies.random import RandomSearch

TOY = ["experiment=toy", "logger=csv", "hydra.run.dir=run"]
SMALL = [
    "hydra.run.dir=run",
    "generations=2",
    "strategy.population_size=4",
    "evaluator=rmi",
    "evaluator.steps=1",
    "evaluator.reference.epochs=1",
    "trainer.epochs=1",
    "search_space.num_cells=1",
    "device.rounds=3",
]


def test_parse_limits() -> None:
    space = Toy()
    evaluators = [ToyCost(space, metric="val_acc"), ToyCost(space, metric="latency_ms")]
    parsed = parse_limits({"latency_ms": 5, "val_acc": None}, space, evaluators)
    assert parsed == (Limit("latency_ms", 5.0, "min"),)
    assert parse_limits({"val_acc": 0.9}, space, evaluators) == (Limit("val_acc", 0.9, "max"),)
    with pytest.raises(ValueError, match=r"limits\.energy_mj: no evaluator .* reports energy_mj"):
        parse_limits({"energy_mj": 5}, space, evaluators)
    with pytest.raises(
        ValueError, match=r"limits\.latency_ms must be a number above 0, or a quantile like q0\.3, not 'q'"
    ):
        parse_limits({"latency_ms": "q"}, space, evaluators)


class Predicted(ToyCost):
    """Costs of which ten networks, 0 to 9 % above the prediction, were measured."""

    def errors(self, metric: str) -> FloatArray:
        return 1 + np.arange(10) / 100


def test_a_margin_for_limits_on_predicted_costs() -> None:
    """Of ten errors the tenth, ceil(11 * 0.9), is kept with 90 %; the sixth, ceil(11 * 0.5), with 50 %."""
    said: list[str] = []
    evaluators = [ToyCost(Toy(), metric="val_acc"), Predicted(Toy(), metric="latency_ms")]
    limits = (Limit("latency_ms", 2.18), Limit("val_acc", 0.5, "max"))
    for confidence, bound, added in ((0.9, 2.0, 0.09), (0.5, 2.18 / 1.05, 0.05)):
        lowered, margins = with_margins(limits, Toy(), evaluators, confidence, said.append)
        assert lowered[0].bound == pytest.approx(bound)
        assert lowered[1] == limits[1]
        assert margins == pytest.approx({"latency_ms": added})
    assert with_margins(limits, Toy(), evaluators, None, said.append) == (limits, {})
    assert said == []
    exact = [evaluators[0], ToyCost(Toy(), metric="latency_ms")]
    assert with_margins(limits, Toy(), exact, 0.95, said.append) == (limits, {})
    assert said == ["confidence=0.95 has no effect: no limit is on a cost that a profile predicts"]
    for wrong in (0, 1, 95, "0.95"):
        with pytest.raises(ValueError, match="confidence must be"):
            with_margins(limits, Toy(), evaluators, wrong, said.append)


def test_the_risk_stands_beside_the_answer(run_hwnas, tmp_path: Path, table_path: Path) -> None:
    """The shipped profile of raspi4 is some 7 to 13 % off; a margin lowers the risk that it announces."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / table_path.name).symlink_to(table_path)
    risks = []
    for name, more in (("plain", []), ("safe", ["confidence=0.95"])):
        done = run_hwnas(
            *(
                "search",
                "evaluator=table",
                "dataset=cifar10",
                "device=raspi4",
                "strategy=random",
                "logger=csv",
            ),
            *("generations=5", "limits.latency_ms=20", f"hydra.run.dir={name}", *more),
            env={"HWNAS_DATA": str(tmp_path / "data")},
        )
        result = json.loads((tmp_path / name / "result.json").read_text())
        risk = result["risk"]["latency_ms"]
        assert risk["networks"] == 200
        assert risk["limit"] == pytest.approx(20)
        said = f"the real one exceeds 20 with a probability of {risk['probability']:.0%}"
        assert said in done.stdout
        assert said in (tmp_path / name / "report.html").read_text()
        risks.append(risk["probability"])
        assert ("confidence=0.95 keeps a margin" in done.stdout) == (risk["probability"] > 0.05)
    assert risks[1] < risks[0]
    assert result["limits"]["latency_ms"] == pytest.approx(20 / 1.323, rel=0.001)
    assert "limits.latency_ms=20 less a margin of 32.3% for the errors of predictions is 15.11" in done.stdout


def test_limits_by_quantile() -> None:
    """Over the whole space where it can be listed, over a sample otherwise."""
    small = Toy(3, 4)
    cost = ToyCost(small, metric="latency_ms")
    values = [row["latency_ms"] for row in cost.evaluate(small.all())]
    (limit,) = parse_limits({"latency_ms": "q0.3"}, small, [cost])
    assert limit.bound == np.quantile(values, 0.3)
    large = Toy()
    cost = ToyCost(large, metric="latency_ms")
    (limit,) = parse_limits({"latency_ms": "q.5"}, large, [cost])
    assert limit.bound == pytest.approx(cost.table.mean(axis=1).sum() + 1, rel=0.02)
    for share in ("q1.5", "q-1"):
        with pytest.raises(ValueError, match=r"limits\.latency_ms: the quantile must be in 0\.\.1"):
            parse_limits({"latency_ms": share}, large, [cost])


def test_the_folder_of_a_run(tmp_path: Path, run_hwnas) -> None:
    done = run_hwnas("search", *TOY, "generations=4", "limits.latency_ms=5")
    run = tmp_path / "run"
    result = json.loads((run / "result.json").read_text())
    lines = [json.loads(line) for line in (run / "archive.jsonl").read_text().splitlines()]

    assert len(lines) == 80
    assert [line["generation"] for line in lines] == [g for g in range(4) for _ in range(20)]
    assert set(lines[0]) == {"generation", "genotype", "metrics"}
    assert set(lines[0]["metrics"]) == {"val_acc", "latency_ms"}
    unique = {tuple(line["genotype"]) for line in lines}
    assert result["status"] == "finished"
    names = {k: result[k] for k in ("strategy", "search_space", "dataset", "evaluator", "device")}
    assert names == {
        "strategy": "mo_hdnas",
        "search_space": "toy",
        "dataset": "none",
        "evaluator": "toy",
        "device": "toy",
    }
    assert (result["seed"], result["generations"], result["limits"]) == (0, 4, {"latency_ms": 5.0})
    assert result["evaluations"] == {"asked": 80, "unique": len(unique), "cached": 80 - len(unique)}
    assert {"total", "search"} <= set(result["seconds"])
    assert result["objectives"] == [
        {"metric": "val_acc", "goal": "max"},
        {"metric": "latency_ms", "goal": "min"},
    ]
    assert len(result["hypervolume"]) == 4
    assert result["hypervolume"] == sorted(result["hypervolume"])

    feasible = [line for line in lines if line["metrics"]["latency_ms"] <= 5]
    best = max(feasible, key=lambda line: line["metrics"]["val_acc"])
    assert result["best"]["metrics"] == best["metrics"]
    assert result["best"]["arch"] == Toy().to_str(tuple(best["genotype"]))
    for found in result["result"]:
        assert tuple(found["genotype"]) in unique

    with (run / "pareto.csv").open() as file:
        front = list(csv.DictReader(file))
    points = np.array([[float(row["val_acc"]), float(row["latency_ms"])] for row in front])
    assert (np.diff(points[:, 1]) > 0).all()
    assert (np.diff(points[:, 0]) > 0).all()
    with (run / "metrics.csv").open() as file:
        assert [row["step"] for row in csv.DictReader(file)] == ["0", "1", "2", "3"]
    assert result["best"]["arch"] in (run / "report.html").read_text()
    assert f"best: {result['best']['arch']}" in done.stdout
    assert "report: " in done.stdout


class History(ToyCost):
    """Remembers whom it was prepared for, and how often it was asked."""

    def __init__(self, space: Toy) -> None:
        super().__init__(space, metric="val_acc")
        self.prepared: list[list[Genotype]] = []
        self.asked = 0

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        self.prepared.append(list(population))
        return super().prepare(space, population)

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        self.asked += 1
        return super().evaluate(genotypes)


def test_evaluators_hear_of_every_population_in_order(tmp_path: Path) -> None:
    """Also of replayed ones, which nobody evaluates again."""
    space = Toy(4, 3)
    objectives = (Objective("val_acc", "max"), Objective("latency_ms", "min"))
    heard = []
    for generations in (3, 5):
        history, archive = History(space), Archive(tmp_path / "archive.jsonl")
        strategy = RandomSearch(space, objectives, seed=0, population_size=4)
        search(strategy, [history, ToyCost(space, metric="latency_ms")], archive, generations)
        archive.close()
        heard.append(history)
    assert len(heard[1].prepared) == 5
    assert heard[1].prepared[:3] == heard[0].prepared
    assert (heard[0].asked, heard[1].asked) == (3, 2)


def test_the_same_seed_gives_the_same_archive(tmp_path: Path, run_hwnas) -> None:
    for name, url in [("a", "sqlite:///a.sqlite"), ("b", "sqlite:///b.sqlite"), ("c", "sqlite:///a.sqlite")]:
        run_hwnas("search", *TOY[:2], f"hydra.run.dir={name}", f"store.url={url}", "generations=3", "seed=1")
    archives = [(tmp_path / name / "archive.jsonl").read_bytes() for name in "abc"]
    assert archives[0] == archives[1] == archives[2]
    again = json.loads((tmp_path / "c" / "result.json").read_text())
    assert again["evaluations"]["cached"] == again["evaluations"]["asked"] == 60


def test_every_strategy_composes_and_runs(run_hwnas, tmp_path: Path) -> None:
    run_hwnas(
        "search",
        "-m",
        "strategy=random,regularized_evolution,mo_hdnas",
        "experiment=toy",
        "logger=csv",
        "generations=2",
        "hydra.sweep.dir=sweep",
    )
    results = [json.loads(path.read_text()) for path in (tmp_path / "sweep").glob("*/result.json")]
    assert {result["strategy"] for result in results} == {"random", "regularized_evolution", "mo_hdnas"}


def test_a_sweep_over_devices_and_quantiles_in_parallel(
    run_hwnas, tmp_path: Path, table_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes write one store at once; every job has a folder of its own.

    CIFAR-100 has the costs of its own networks; unsupported ones are in no quantile and no answer.
    """
    costs = table_path.with_name("hwnasbench_nasbench201.npz")
    if not costs.is_file():
        pytest.skip(f"{costs.name} is not in the data folder")
    monkeypatch.setenv("HWNAS_DATA", str(table_path.parent.absolute()))
    run_hwnas(
        *("search", "-m", "experiment=table_devices", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"),
        *("dataset=cifar100", "device=edgetpu,pixel3", "limits.latency_ms=q0.2,q0.8", "generations=3"),
        "hydra.sweep.dir=sweep",
    )
    results = [json.loads(path.read_text()) for path in sorted((tmp_path / "sweep").glob("*/result.json"))]
    assert [result["device"] for result in results] == ["edgetpu", "edgetpu", "pixel3", "pixel3"]
    with np.load(costs) as arrays:
        edgetpu, pixel3 = (arrays[f"cifar100_{name}_latency_ms"] for name in ("edgetpu", "pixel3"))
    assert (edgetpu == -1).sum() == 4699
    quantiles = [np.quantile(column, [0.2, 0.8]) for column in (edgetpu[edgetpu > 0], pixel3)]
    assert [result["limits"]["latency_ms"] for result in results] == pytest.approx(np.concatenate(quantiles))
    for result in results:
        assert result["best"]["metrics"]["latency_ms"] > 0
        assert result["best"]["metrics"]["latency_ms"] <= result["limits"]["latency_ms"]
        assert result["truth"]["regret"]["val_acc"] >= 0
        assert result["virtual_seconds"] > 0
        assert "test_acc" in result["best"]["metrics"]


def test_nobody_keeps_the_limit(run_hwnas, tmp_path: Path) -> None:
    """The cheapest network takes 1 ms, and four random ones more than 1.01 ms."""
    done = run_hwnas("search", *TOY, "generations=2", "limits.latency_ms=1.01", code=1)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    lines = [json.loads(line) for line in (tmp_path / "run" / "archive.jsonl").read_text().splitlines()]
    closest = min(lines, key=lambda line: line["metrics"]["latency_ms"])
    assert result["best"] is None
    assert f"the closest is {Toy().to_str(tuple(closest['genotype']))}" in done.stdout
    assert "raise a limit, or search longer (generations=)" in done.stdout
    assert done.stderr == ""


def test_a_limit_that_no_network_can_keep_is_refused(run_hwnas, tmp_path: Path) -> None:
    done = run_hwnas("search", *TOY, "limits.latency_ms=0.5", code=1)
    said = "hwnas search: error: no network of toy keeps limits.latency_ms=0.5: the lowest latency_ms is 1 ("
    assert done.stderr.startswith(said)
    assert done.stderr.endswith("; try limits.latency_ms=1\n")
    assert not (tmp_path / "run").exists()


def test_a_table_gives_its_quality_and_hides_the_test_accuracy(run_hwnas, tmp_path: Path) -> None:
    """The strategy's quality is val_acc without another word; test accuracy is only in the result."""
    genotypes = np.indices((5,) * 6).reshape(6, -1).T.astype(np.int8)
    valid = genotypes.sum(axis=1) * 3.0
    ops = np.array(["none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"])
    np.savez(
        tmp_path / "nasbench201.npz",
        arch_ops=genotypes,
        ops=ops,
        cifar10_valid_200=valid,
        cifar10_test_200=valid + 1,
    )
    run_hwnas(
        "search", "evaluator=table", "dataset=cifar10", "device=flops", "logger=csv", "hydra.run.dir=run"
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["objectives"] == [{"metric": "val_acc", "goal": "max"}, {"metric": "flops", "goal": "min"}]
    metrics = result["best"]["metrics"]
    assert metrics["test_acc"] == pytest.approx(metrics["val_acc"] + 0.01)
    assert result["network"] is None
    assert "test_acc" not in (tmp_path / "run" / "archive.jsonl").read_text()
    assert "test_acc" not in (tmp_path / "run" / "metrics.csv").read_text()


def test_truth_of_a_benchmark_beside_an_estimate(run_hwnas, tmp_path: Path) -> None:
    """The small experiment, made smaller: similarity is searched, accuracies are only reported."""
    space = NasBench201()
    genotypes = np.array(space.all(), dtype=np.int8)
    valid = 10 + (genotypes @ [1, 2, 3, 4, 5, 6]) * 0.5
    np.savez(
        tmp_path / "nasbench201.npz",
        arch_ops=genotypes,
        ops=np.array(space.ops),
        cifar10_valid_200=valid,
        cifar10_test_200=valid + 1,
        cifar10_valid_12=-valid,  # an estimate that is always wrong
    )
    rng = np.random.default_rng(0)
    images = {
        f"{what}_{part}": rng.integers(256, size=(40, 8, 8, 3), dtype=np.uint8)
        if what == "x"
        else np.arange(40) % 10
        for part in ("train", "test")
        for what in ("x", "y")
    }
    np.savez(tmp_path / "cifar10_16x16.npz", **images)
    done = run_hwnas(
        *("search", "experiment=mo_hdnas_small", "trainer=quick", "device=flops", "generations=2"),
        *("dataset.image_shape=[3,4,4]", "strategy.population_size=4", "logger=csv", "hydra.run.dir=run"),
        *("evaluator.reference.epochs=0", "evaluator.steps=1", "evaluator.channels=2"),
        *("evaluator.batch_size=8", "limits.latency_ms=null", "limits.flops=q0.5"),
        env={"HWNAS_DATA": str(tmp_path)},
    )
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    best = result["best"]
    true = 10 + 0.5 * np.dot(best["genotype"], [1, 2, 3, 4, 5, 6])
    assert best["metrics"]["table_val_acc"] == pytest.approx(true / 100)
    assert best["metrics"]["test_acc"] == pytest.approx((true + 1) / 100)
    assert result["network"] is None
    assert "_acc" not in (tmp_path / "run" / "archive.jsonl").read_text()
    # Six average pools (operation 4) cost no multiply-adds, and 4 is the highest index.
    highest = (10 + 0.5 * 4 * 21 + 1) / 100
    assert result["looked_up"]["test_acc"]["regret"] == pytest.approx(highest - (true + 1) / 100)
    assert "Looked up in a benchmark" in (tmp_path / "run" / "report.html").read_text()

    # Blind regret, by a plain second implementation over the nine deciles of the multiply-adds.
    accuracy = {genotype: 10 + 0.5 * np.dot(genotype, [1, 2, 3, 4, 5, 6]) for genotype in space.all()}
    flops = dict(zip(space.all(), space.static_metrics(space.all())["flops"], strict=True))
    archive = map(json.loads, (tmp_path / "run" / "archive.jsonl").read_text().splitlines())
    asked = {tuple(row["genotype"]): row["metrics"]["rmi"] for row in archive if "genotype" in row}
    regrets: dict[str, list[float]] = {"estimate": [], "early": [], "random": []}
    for limit in np.quantile(list(flops.values()), np.arange(1, 10) / 10):
        within = [accuracy[genotype] for genotype in accuracy if flops[genotype] <= limit]
        own = sorted((-asked[g], flops[g], accuracy[g]) for g in asked if flops[g] <= limit)
        regrets["estimate"].append(max(within) - (own[0][2] if own else 10.0))
        regrets["early"].append(max(within) - min(within))
        regrets["random"].append(max(within) - np.mean(within))
    blind = result["blind"]
    assert (blind["cost"], blind["networks"]) == ("flops", len(asked))
    assert result["blind_regret"] == pytest.approx(np.mean(regrets["estimate"]))
    for name, by_limit in regrets.items():
        assert blind["regret"][name] == pytest.approx(by_limit), name
    assert 0 < blind["seconds_per_new"] * blind["networks"] < result["seconds"]["total"]
    said = f"looked up: blind regret {result['blind_regret']:.2f} points, mean of nine limits on flops ("
    assert said in done.stdout


def test_real_networks_and_weights_and_biases(run_hwnas, wandb_records, tmp_path: Path) -> None:
    """The default run, made small: real images, real training, this machine, W&B offline; twice."""
    done = run_hwnas("search", *SMALL, "store.dir=store")
    run = tmp_path / "run"
    assert done.stdout.splitlines()[-1] == f"next: hwnas export run={run}"
    result = json.loads((run / "result.json").read_text())
    metrics = result["best"]["metrics"]
    assert list(metrics) == ["rmi", "latency_ms", "flops", "params"]
    assert 0 < metrics["rmi"] <= 3
    assert metrics["latency_ms"] > 0
    network = json.loads((run / "network" / "architecture.json").read_text())
    assert network["arch"] == result["best"]["arch"]
    assert network["params"] == metrics["params"]
    assert 0 <= network["test_acc"] == result["network"]["test_acc"] <= 1

    history = [record.history.item for record in wandb_records(run) if record.history.item]
    logged = [{i.key or "/".join(i.nested_key): json.loads(i.value_json) for i in items} for items in history]
    assert [row["evaluations"] for row in logged if "evaluations" in row] == [4, 8]
    assert [row["hypervolume"] for row in logged if "hypervolume" in row] == result["hypervolume"]
    with (run / "pareto.csv").open() as file:
        assert (
            logged[-1]["front_plot_table/nrows"]
            == logged[-1]["front/nrows"]
            == len(list(csv.DictReader(file)))
        )

    run_hwnas("search", *SMALL[1:], "hydra.run.dir=second", "store.dir=store", "logger=csv")
    second = json.loads((tmp_path / "second" / "result.json").read_text())
    assert second["evaluations"]["cached"] == second["evaluations"]["asked"] == 8
    assert (run / "archive.jsonl").read_bytes() == (tmp_path / "second" / "archive.jsonl").read_bytes()
    assert second["network"]["test_acc"] == result["network"]["test_acc"]
    assert len(list((tmp_path / "store" / "profiles").glob("*.json"))) == 1
    assert len(list((tmp_path / "store" / "references").glob("*.pt"))) == 1

    trained = run_hwnas("train", "run=run", "trainer.epochs=1", "logger=csv", "hydra.run.dir=trained")
    assert "test accuracy" in trained.stdout
    again = json.loads((tmp_path / "trained" / "network" / "architecture.json").read_text())
    assert again == network


def test_the_answer_is_in_the_table_of_a_long_front(run_hwnas) -> None:
    """A dozen of the front's networks, evenly spread, and the answer, which is none of these here."""
    lines = run_hwnas("search", "experiment=toy", "logger=csv", "limits.latency_ms=q0.4").stdout.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("front: ")) + 2
    end = next(i for i, line in enumerate(lines) if line.startswith("best: "))
    marked = [line.split() for line in lines[start:end] if "<- best" in line]
    assert [words[2] for words in marked] == [lines[end].removeprefix("best: ")]
    assert end - start == 13


def test_images_of_ones_own(run_hwnas, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (120, 8, 8, 3), dtype=np.uint8)
    y = np.arange(120) % 3
    np.savez(tmp_path / "mine.npz", x_train=x[:90], y_train=y[:90], x_test=x[90:], y_test=y[90:])
    run_hwnas(
        "search",
        *SMALL,
        "logger=csv",
        "dataset=npz",
        "dataset.path=data/mine.npz",
        "trainer.batch_size=16",
        code=1,
    )
    (tmp_path / "data").mkdir()
    (tmp_path / "mine.npz").rename(tmp_path / "data" / "mine.npz")
    run_hwnas(
        "search",
        *SMALL,
        "logger=csv",
        "dataset=npz",
        "dataset.path=mine.npz",
        "trainer.batch_size=16",
        env={"HWNAS_DATA": str(tmp_path / "data")},
    )
    network = json.loads((tmp_path / "run" / "network" / "architecture.json").read_text())
    assert (network["num_classes"], network["image_shape"]) == (3, [3, 8, 8])


BAD = [
    (
        ["strategy=mo_hdna"],
        "strategy=mo_hdna is not known; did you mean mo_hdnas?; choices: cascade, cmanas, evnas, hw_evrsnas",
    ),
    (
        ["strategy.populaton_size=4"],
        "unknown setting 'strategy.populaton_size'; did you mean strategy.population_size",
    ),
    (["limits.latency=4"], "unknown setting 'limits.latency'; did you mean limits.latency_ms"),
    (["stratgy=random"], "unknown setting 'stratgy'; did you mean strategy"),
    (["+strategy.bar=4"], "has no setting 'bar'"),
    (["strategy.population_size=0"], "strategy.population_size must be an even whole number of at least 2"),
    (["strategy.population_size=5"], "strategy.population_size must be an even whole number of at least 2"),
    (
        ["strategy.population_size=many"],
        "strategy.population_size must be an even whole number of at least 2, not 'many'",
    ),
    (["strategy.diversity=some"], "strategy.diversity must be one of population, merged, none, not 'some'"),
    (["generations=0"], "generations must be a whole number of at least 1, not 0"),
    (["seed=-1"], "seed must be a whole number of at least 0, not -1"),
    (
        ["strategy=evnas", "strategy.num_elites=99"],
        "strategy.num_elites 99 is larger than the population of 50",
    ),
    (["strategy=cmanas", "generations=1"], "error: generations must be at least 2 for CMANAS"),
    (["limits.energy_mj=4"], "limits.energy_mj: no evaluator or device of this run reports energy_mj"),
    (
        ["limits.latency_ms=fast"],
        "limits.latency_ms must be a number above 0, or a quantile like q0.3, not 'fast'",
    ),
    (
        ["evaluator._target_=hwnas.training.recipe.Recipe", "~evaluator.metric", "+evaluator.epochs=1"],
        "evaluator must set up an Evaluator, not a Recipe",
    ),
    (["strategy._target_=os.system"], "_target_ 'os.system' is outside the allowed packages (hwnas)"),
    (["strategy._target_=hwnas.build.Path"], "_target_ 'hwnas.build.Path' is no choice of strategy"),
    (["strategy._target_=hwnas.nothing.Here"], "_target_ 'hwnas.nothing.Here' is no choice of strategy"),
    (["store.url=sqlite:///no.sqlite"], "store sqlite:///no.sqlite: file is not a database"),
    (["store.url=what"], "store.url 'what' cannot be used"),
    (["dataset=npz"], "dataset=npz needs dataset.path"),
    (["evaluator=table"], "file 'nasbench201.npz' not found; looked for"),
    (["device=host"], "devices are measured by blocks of networks, which the toy space does not list"),
    (["evaluator=rmi"], "evaluator=rmi trains whole populations, which the toy space does not build"),
    (
        ["search_space=darts", "dataset=digits", "trainer=darts"],
        "trainer.auxiliary_weight=0.4 needs a network with an auxiliary classifier",
    ),
    (["strategy.mutation_prob=x"], "strategy.mutation_prob must be a number in 0..1, not 'x'"),
    (["strategy.population_size=1000000000"], "out of memory"),
    (["evaluator.metric=latency_ms"], "evaluator and device are both toy_latency_ms"),
    (["evaluator.metric=[1]"], "evaluator.metric must be one of val_acc, latency_ms, not [1]"),
    (["store=null"], "store.dir must be a folder"),
    (["store.dir=null"], "store.dir must be a folder"),
    (["limits=3"], "limits takes metrics, e.g. limits.latency_ms=5, not limits=3"),
    (["device=null"], "device=null is no choice"),
    (["logger.wandb=maybe"], "logger must be csv, wandb or tensorboard"),
    (["search_space.num_edges=[2]"], "search_space.num_edges must be a whole number"),
    (["dataset.name=null"], "dataset.name must be text, not None"),
    (
        ["dataset=digits", "dataset.valid_fraction=[1]"],
        "dataset.valid_fraction must be a number above 0 and below 1",
    ),
    (
        ["dataset=digits", "dataset.image_shape=3"],
        "dataset.image_shape must be a list of 3, each a whole number",
    ),
    (["dataset=npz", "dataset.path=3"], "dataset.path must be text or null, not 3"),
    (["trainer=quick", "trainer.lr=abc"], "trainer.lr must be a number above 0, not 'abc'"),
    (
        ["trainer=quick", "trainer.momentum=high"],
        "trainer.momentum must be a number of at least 0 and below 1, not 'high'",
    ),
    (["evaluator=rmi", "evaluator.reference.lr=abc"], "evaluator.reference.lr must be a number above 0"),
    (
        ["evaluator=rmi", "dataset=digits", "search_space=nasbench201", "evaluator.reference=null"],
        "evaluator.reference must be a recipe of training, not None",
    ),
    (
        ["search_space=nasbench201", "+search_space.choices=3"],
        "search_space.choices must be a list, each a list",
    ),
    (["generations=["], "no viable alternative at input '['"),
]


@pytest.mark.parametrize(("override", "message"), BAD, ids=[bad[0][0] for bad in BAD])
def test_bad_input_is_one_clear_line(run_hwnas, tmp_path: Path, override: list[str], message: str) -> None:
    (tmp_path / "no.sqlite").write_text("not a database, but long enough to look at")
    done = run_hwnas("search", *TOY, *override, code=1, env={"HWNAS_DATA": str(tmp_path)})
    assert message in done.stderr
    assert done.stderr.startswith("hwnas search: error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stdout + done.stderr
    assert not (tmp_path / "run" / "result.json").exists()


def test_goal_of_a_table(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"goal must be one of max, min, not 'foo'"):
        Table(Toy(), path="t.npz", metric="val_acc", column="c", goal="foo", scale=1.0, test_column=None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"scale must be a number above 0, not 'abc'"):
        Table(Toy(), path="t.npz", metric="val_acc", column="c", goal="max", scale="abc", test_column=None)  # type: ignore[arg-type]


def test_yaml_of_ones_own_that_is_broken(run_hwnas, tmp_path: Path) -> None:
    (tmp_path / "conf" / "strategy").mkdir(parents=True)
    (tmp_path / "conf" / "strategy" / "broken.yaml").write_text("a: [")
    (tmp_path / "conf" / "strategy" / "bare.yaml").write_text("population_size: 4\n")
    for name, message in [("broken", "expected"), ("bare", "strategy has no _target_")]:
        done = run_hwnas("search", "--config-dir", "conf", *TOY, f"strategy={name}", code=1)
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_suggestions_are_of_the_chosen_groups(run_hwnas) -> None:
    done = run_hwnas("search", "evaluator=table", "dataset=cifar10", "evaluator.colum=x", code=1)
    assert "did you mean evaluator.column" in done.stderr
    wrong = run_hwnas("search", "evaluator=table", "dataset=cifar10", "evaluator.steps=3", code=1)
    assert "did you mean evaluator.steps" not in wrong.stderr


def test_a_population_that_cannot_vary_is_filled_up(run_hwnas, tmp_path: Path) -> None:
    run_hwnas("search", *TOY, "strategy.crossover_prob=0", "strategy.mutation_prob=0", "generations=3")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["evaluations"]["asked"] == 60


def test_ctrl_c_stops_a_sweep_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "hwnas",
            "search",
            "-m",
            "experiment=toy",
            "logger=csv",
            "seed=0,1",
            "generations=100000",
            "hydra.sweep.dir=sweep",
        ],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A shell's background jobs ignore SIGINT, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        journals = list((tmp_path / "sweep").glob("seed=0-*/archive.jsonl"))
        if journals and journals[0].stat().st_size:
            break
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert f"interrupted; nothing is lost, resume with: hwnas search resume={journals[0].parent}" in errors
    assert "Traceback" not in errors
    assert not list((tmp_path / "sweep").glob("seed=1-*"))


@pytest.mark.slow
def test_training_takes_the_space_and_images_as_the_run_had_them(run_hwnas, tmp_path: Path) -> None:
    """Also where they came from an experiment, and where a path was relative to another folder."""
    x = np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8)
    y = np.arange(120) % 3
    np.savez(tmp_path / "mine.npz", x_train=x[:90], y_train=y[:90], x_test=x[90:], y_test=y[90:])
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /dataset: npz\n"
        "dataset: {path: mine.npz, crop: 1}\nsearch_space: {channels: 4, num_cells: 1}\n"
    )
    run_hwnas(
        "search", "--config-dir", "conf", "experiment=mine", "strategy=random", "strategy.population_size=2",
        "generations=1", "device=flops", "evaluator=rmi", "evaluator.steps=1", "evaluator.reference.epochs=0",
        "logger=csv",
        "evaluator.batch_size=16", "trainer=none", "hydra.run.dir=run",
    )  # fmt: skip
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    common = ["train", "run=../run", "trainer.epochs=1", "trainer.batch_size=16", "logger=csv"]
    run_hwnas(*common, "hydra.run.dir=trained", cwd=elsewhere)
    network = json.loads((elsewhere / "trained" / "network" / "architecture.json").read_text())
    assert (network["channels"], network["num_cells"]) == (4, 1)
    assert (network["dataset"], network["num_classes"]) == ("npz-mine", 3)
    run_hwnas(*common, "dataset=digits", "search_space.channels=2", "hydra.run.dir=other", cwd=elsewhere)
    network = json.loads((elsewhere / "other" / "network" / "architecture.json").read_text())
    assert (network["channels"], network["num_cells"], network["dataset"]) == (2, 1, "digits")


def test_usage(run_hwnas) -> None:
    assert "did you mean search?" in run_hwnas("serch", code=2).stderr
    assert "usage: hwnas" in run_hwnas(code=2).stdout
    assert "usage: hwnas" in run_hwnas("--help").stdout
    assert "networks" in run_hwnas("search", "--help").stdout
    assert OmegaConf.create(run_hwnas("search", "--cfg", "job").stdout).generations == 20
    assert "cascade" in run_hwnas("search", "--info", "defaults-tree").stdout


def test_a_read_only_folder(run_hwnas) -> None:
    done = run_hwnas("search", *TOY[:2], "hydra.run.dir=/proc/nowhere", code=1)
    assert done.stderr == "hwnas search: error: /proc/nowhere: No such file or directory\n"


@pytest.mark.slow
def test_an_unreachable_weights_and_biases_does_not_stop_a_run(run_hwnas, tmp_path: Path) -> None:
    environment = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9", "HOME": str(tmp_path)}
    done = run_hwnas(
        "search",
        "experiment=toy",
        "logger.mode=online",
        "hydra.run.dir=run",
        "generations=2",
        env=environment,
    )
    assert "Weights & Biases is unreachable" in done.stdout
    assert json.loads((tmp_path / "run" / "result.json").read_text())["status"] == "finished"


def test_a_strategy_of_ones_own(run_hwnas, tmp_path: Path) -> None:
    """A class outside the package, a yaml in a folder of one's own."""
    (tmp_path / "mine.py").write_text(
        "from hwnas.core import Strategy\n"
        "class Same(Strategy):\n"
        "    def __init__(self, space, objectives, *, num):\n"
        "        self.space, self.objectives, self.num, self.told = space, objectives, num, []\n"
        "    def ask(self):\n"
        "        return [tuple(ops[0] for ops in self.space.choices)] * self.num\n"
        "    def tell(self, trials):\n"
        "        self.told = list(trials)\n"
        "    def result(self):\n"
        "        return self.told[:1]\n"
    )
    (tmp_path / "conf" / "strategy").mkdir(parents=True)
    (tmp_path / "conf" / "strategy" / "same.yaml").write_text("_target_: mine.Same\nnum: 3\n")
    arguments = ["search", "--config-dir", "conf", *TOY, "strategy=same", "generations=2"]
    refused = run_hwnas(*arguments, code=1)
    assert "set HWNAS_ALLOW_TARGETS=mine" in refused.stderr
    run_hwnas(*arguments, env={"HWNAS_ALLOW_TARGETS": "mine", "PYTHONPATH": str(tmp_path)})
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["evaluations"] == {"asked": 6, "unique": 1, "cached": 5}
    assert result["population"] == {"size": 3, "different": 1}
    assert result["strategy"] == "same"


def test_the_toy_optimum_is_known() -> None:
    """Long enough, the search finds it; here only that the quality's best is 1 exactly."""
    cost = ToyCost(Toy(), metric="val_acc")
    best = tuple(cost.table.argmax(axis=1).tolist())
    assert cost.evaluate([best])[0]["val_acc"] == pytest.approx(1.0)
