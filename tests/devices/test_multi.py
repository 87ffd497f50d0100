"""Several devices at once."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from hwnas.cli.overrides import device_arguments
from hwnas.core import Evaluator, Genotype, Limit
from hwnas.devices.multi import Multi
from hwnas.devices.table import CostTable
from hwnas.searches.exact import device_limits
from hwnas.searches.problem import parse_limits
from hwnas.spaces.toy import Toy, ToyCost

SPACE = Toy(2, 3)


def table(name: str, latencies: Sequence[float], **others: Sequence[float]) -> CostTable:
    """A device that knows the nine networks of `SPACE`."""
    columns = {"latency_ms": np.array(latencies), **{k: np.array(v) for k, v in others.items()}}
    return CostTable(SPACE, name, np.array(SPACE.all()), columns, metric="latency_ms", source=Path("t.csv"))


def pair(objective: str = "worst") -> Multi:
    """The typical networks of its devices take 5 and 100 ms; b does not support the last one."""
    a = table("a", [1, 2, 3, 4, 5, 6, 7, 8, 9], energy_mj=[3.0] * 9)
    b = table("b", [20, 200, 100, 100, 100, 100, 100, 100, -1])
    return Multi({"a": a, "b": b}, objective=objective)


def test_relative_cost_is_that_of_the_worst_device() -> None:
    device = pair()
    device.prepare(SPACE, [])
    assert device.typical == {"a": 5.0, "b": 100.0}
    answers = device.evaluate(SPACE.all())
    assert [row["relative_cost"] for row in answers[:5]] == [0.2, 2.0, 1.0, 1.0, 1.0]
    assert answers[1] == {
        "relative_cost": 2.0,
        "latency_ms@a": 2.0,
        "energy_mj@a": 3.0,
        "latency_ms@b": 200.0,
    }
    assert list(device.metrics) == list(answers[1])
    assert device.objectives == ("relative_cost",)
    assert pair("all").objectives == ("latency_ms@a", "latency_ms@b")


def test_a_network_that_one_device_does_not_support_is_not_supported() -> None:
    device = pair()
    device.prepare(SPACE, [])
    assert all(math.isinf(value) for value in device.evaluate([SPACE.all()[-1]])[0].values())


def test_the_version_depends_on_every_device() -> None:
    first, second = pair(), pair()
    assert first.prepare(SPACE, []) == second.prepare(SPACE, [])
    other = Multi({"a": table("a", range(1, 10)), "b": table("b", range(2, 11))}, objective="worst")
    assert other.prepare(SPACE, []) != first.prepare(SPACE, [])


class Paid(ToyCost):
    """A device that would have to pay for every network."""

    def __init__(self) -> None:
        super().__init__(SPACE, metric="latency_ms")
        self.exhaustive = False


@pytest.mark.parametrize(
    ("devices", "objective", "message"),
    [
        ({"a": table("a", range(1, 10))}, "worst", "needs at least two devices, not \\['a'\\]"),
        ({"a": pair(), "b": pair()}, "best", "objective must be one of worst, all, not 'best'"),
        ({n: pair() for n in "abcde"}, "all", "takes at most 4 devices, not 5"),
        ({"a": pair(), "b": Paid()}, "worst", "devices.b does not know the costs"),
    ],
)
def test_refused(devices: dict[str, Evaluator], objective: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Multi(devices, objective=objective)


def test_nothing_to_compare_with() -> None:
    idle = Multi({"a": table("a", [0] * 9), "b": table("b", range(1, 10))}, objective="worst")
    with pytest.raises(ValueError, match="device a has no latency_ms above 0"):
        idle.prepare(SPACE, [])


def test_no_network_that_all_support() -> None:
    a, b = table("a", [1, 1, *[-1] * 7]), table("b", [-1, -1, *[1] * 7])
    with pytest.raises(ValueError, match="no network is supported by all of the devices a, b"):
        Multi({"a": a, "b": b}, objective="worst").prepare(SPACE, [])


def test_limits_by_device_and_for_each_device() -> None:
    evaluators = [ToyCost(SPACE, metric="val_acc"), pair()]
    assert parse_limits({"latency_ms": {"a": 5, "b": "q0.5"}}, SPACE, evaluators) == (
        Limit("latency_ms@a", 5.0),
        Limit("latency_ms@b", 100.0),
    )
    assert parse_limits({"latency_ms": "q0.5", "energy_mj": 2}, SPACE, evaluators) == (
        Limit("latency_ms@a", 4.5),  # of the eight networks that both support
        Limit("latency_ms@b", 100.0),
        Limit("energy_mj@a", 2.0),
    )
    with pytest.raises(ValueError, match=r"reports latency_ms@c; did you mean latency_ms@"):
        parse_limits({"latency_ms": {"c": 5}}, SPACE, evaluators)


def test_a_device_without_a_limit_is_given_its_typical_cost() -> None:
    main = {"a": "latency_ms@a", "b": "latency_ms@b"}
    limits = [Limit("latency_ms@a", 3.0), Limit("params", 10.0)]
    assert device_limits(limits, main, {"a": 5.0, "b": 100.0}) == {
        "a": [Limit("latency_ms@a", 3.0), Limit("params", 10.0)],
        "b": [Limit("params", 10.0), Limit("latency_ms@b", 100.0)],
    }


def test_files_and_lists_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("my board.json").touch()
    Path("mine.csv").touch()
    assert device_arguments(["seed=1", "device=raspi4,fpga"]) == ["seed=1", "device=raspi4,fpga"]
    assert device_arguments(["device=my board.json"]) == ["device=profile", "device.path='my board.json'"]
    assert device_arguments(["device=mine.csv"]) == ["device=table", "device.path='mine.csv'"]
    Path("other.CSV").touch()
    sweep = ["device=table", "device.path='mine.csv','other.CSV'"]
    assert device_arguments(["device=mine.csv,other.CSV"]) == sweep
    for mixed in ("device=mine.csv,raspi4", "device=mine.csv,my board.json"):
        with pytest.raises(ValueError, match="files that are all tables or all profiles; start a sweep for"):
            device_arguments([mixed])
    assert device_arguments(["device=[raspi4, 'my board.json']", "seed=1"]) == [
        "device=multi",
        "+device@device.devices.raspi4=raspi4",
        "+device@device.devices.my_board=profile",
        "device.devices.my_board.path='my board.json'",
        "seed=1",
    ]
    for argument, message in {
        "device=[]": "names no device",
        "device=[fpga,fpga]": "has fpga twice",
        "device=[a,b],[c,d]": "a sweep takes one list of devices",
        "device=fgpa.json": r"device=fgpa.json: file .* not found; .*; did you mean fpga\?",
    }.items():
        with pytest.raises(ValueError, match=message):
            device_arguments([argument])


def test_a_search_on_two_devices(run_hwnas, tmp_path: Path) -> None:
    """From the command line to the matrix; resumed, the finished run stays as it is."""
    arguments = [
        "search",
        "experiment=toy",
        "device=[toy,one.csv]",
        "logger=csv",
        "hydra.run.dir=run",
        "limits.latency_ms={one:3}",
        "search_space.num_edges=3",
        "search_space.num_ops=3",
        "generations=4",
    ]
    space = Toy(3, 3)
    rows = [f"{space.to_str(g)},{1 + sum(g)}" for g in space.all()]
    (tmp_path / "one.csv").write_text("\n".join(["arch,latency_ms", *rows]) + "\n")
    run_hwnas(*arguments)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["device"] == "one, toy"
    assert [o["metric"] for o in result["objectives"]] == ["val_acc", "relative_cost"]
    assert result["limits"] == {"latency_ms@one": 3.0}
    assert result["transfer"]["among"] == "all networks"

    quality = {g: row["val_acc"] for g, row in answers(space, "val_acc")}
    latency = {g: row["latency_ms"] for g, row in answers(space, "latency_ms")}
    typical = float(np.median(list(latency.values())))
    within = {
        "toy": [g for g in space.all() if latency[g] <= typical],
        "one": [g for g in space.all() if 1 + sum(g) <= 3],
    }
    best = {name: max(quality[g] for g in allowed) for name, allowed in within.items()}
    for row in result["transfer"]["rows"]:
        genotype = tuple(row["network"]["genotype"])
        if row["device"] is None:
            assert genotype in within["toy"]
            assert genotype in within["one"]
        else:
            assert quality[genotype] == best[row["device"]]
        for name, allowed in within.items():
            if genotype in allowed:
                assert row["regret"][name] == pytest.approx(best[name] - quality[genotype])
                assert row["excess"][name] == 0
            else:
                assert row["regret"][name] is None
                assert row["excess"][name] > 0
    page = (tmp_path / "run" / "report.html").read_text()
    assert "From device to device" in page
    assert "latency on one" in page
    again = run_hwnas("search", "resume=run", "device=[toy,one.csv]")
    assert "finished already" in again.stdout
    other = run_hwnas("search", "resume=run", "device=[toy,flops]", code=1)
    assert "contradicts the run in run" in other.stderr


def answers(space: Toy, metric: str) -> list[tuple[Genotype, dict[str, float]]]:
    """Every network with its metric."""
    return list(zip(space.all(), ToyCost(space, metric=metric).evaluate(space.all()), strict=True))


def test_all_devices_as_objectives_and_a_wrong_name(run_hwnas, tmp_path: Path) -> None:
    rows = [f"{Toy(3, 3).to_str(g)},{1 + sum(g)}" for g in Toy(3, 3).all()]
    (tmp_path / "one.csv").write_text("\n".join(["arch,latency_ms", *rows]) + "\n")
    common = ["search", "experiment=toy", "logger=csv", "generations=3", "hydra.run.dir=run"]
    common += ["search_space.num_edges=3", "search_space.num_ops=3"]
    run_hwnas(*common, "device=[toy,one.csv]", "device.objective=all", "strategy=mo_hdnas")
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert [o["metric"] for o in result["objectives"]] == ["val_acc", "latency_ms@toy", "latency_ms@one"]
    page = (tmp_path / "run" / "report.html").read_text()
    assert "non-dominated in all 3 objectives" in page
    wrong = run_hwnas(*common, "device=[toy,rapsi4]", code=1)
    assert "rapsi4 is not known; did you mean raspi4?" in wrong.stderr
    local = ["strategy=local_search", "hydra.run.dir=other"]
    narrow = run_hwnas(*common, "device=[toy,one.csv]", "device.objective=all", *local, code=1)
    assert "local_search needs one quality and one cost" in narrow.stderr


def test_a_sweep_over_ones_own_devices(run_hwnas, tmp_path: Path) -> None:
    for name, factor in (("slow", 2), ("fast", 1)):
        rows = [f"{Toy(3, 3).to_str(g)},{factor * (1 + sum(g))}" for g in Toy(3, 3).all()]
        (tmp_path / f"{name}.csv").write_text("\n".join(["arch,latency_ms", *rows]) + "\n")
    arguments = ["search", "-m", "experiment=toy", "device=slow.csv,fast.csv", "logger=csv", "generations=2"]
    arguments += ["search_space.num_edges=3", "search_space.num_ops=3", "hydra.sweep.dir=both"]
    run_hwnas(*arguments)
    results = [json.loads(path.read_text()) for path in (tmp_path / "both").glob("*/result.json")]
    assert sorted(result["device"] for result in results) == ["fast", "slow"]
    for result in results:
        (page,) = (p for p in (tmp_path / "both").glob("*/report.html") if result["device"] in p.parent.name)
        assert f"of digits on {result['device']}" in page.read_text() or result["device"] in page.read_text()
