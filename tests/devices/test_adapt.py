from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from hwnas.core import FloatArray
from hwnas.data.tables import read_table
from hwnas.devices import adapt as adapting
from hwnas.devices.adapt import Adapted, adapt
from hwnas.devices.benchmark import source_profiles
from hwnas.devices.profile import SCHEMA_VERSION, Additive, Compiled, Doubt, Draw, Profile, ProfileDevice
from hwnas.files import data_folder
from hwnas.spaces.darts import Darts
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.nasbench201 import NasBench201

SPACE = NasBench201()
CELLS = np.array(list(dict.fromkeys(SPACE.sample(np.random.default_rng(3), 500))))
"""Different random cells."""


def adapted(y: FloatArray, sources: dict[str, Profile] | None = None, **changes: Any) -> Adapted:
    settings: dict[str, Any] = {"device": "x", "seed": 0, "network": {}, "origin": {}, **changes}
    genotypes = settings.pop("genotypes", CELLS[: len(y)])
    return adapt(settings.pop("space", SPACE), genotypes, {"latency_ms": y}, sources or {}, **settings)


def profile_of(edges: np.ndarray) -> Profile:
    check = {"latency_ms": {"networks": 1, "r2": 1.0, "spearman": 1.0, "median_error": 0.0}}
    cost = Additive(1.0, edges.tolist())
    return Profile(SCHEMA_VERSION, "other", "nasbench201", {}, {}, {"latency_ms": cost}, check)


def test_what_is_used_of_a_cell() -> None:
    cells = [
        (3, 3, 3, 0, 0, 3),  # nothing leaves node 1 to the output but over node 2
        (3, 3, 3, 3, 3, 0),  # node 2 is not used: edges 0>2 and 1>2 are not either
        (0, 3, 3, 0, 0, 3),  # node 1 is a constant, which is used all the same
        (3, 3, 3, 3, 0, 0),  # only 0>3 is used
    ]
    expected = [(3, 3, 3, 0, 0, 3), (3, 0, 0, 3, 3, 0), (0, 3, 3, 0, 0, 3), (0, 0, 0, 3, 0, 0)]
    assert list(map(tuple, SPACE.used(cells).tolist())) == expected
    assert FBNet().used([(1,) * 22]).tolist() == [[1] * 22]


def test_ten_networks_are_enough_to_count_operations() -> None:
    cost = 1.0 + 2.0 * (CELLS == 3).sum(axis=1) + 0.5 * (CELLS == 2).sum(axis=1)
    found = adapted(cost[:10])
    assert found.profile.predict(SPACE, "latency_ms", CELLS) == pytest.approx(cost, rel=0.03)
    assert found.profile.check["latency_ms"]["networks"] == 10
    assert found.doubt("latency_ms")[0] < 0.02


def test_a_source_tells_what_ten_networks_do_not() -> None:
    edges = np.random.default_rng(0).random((6, 5))
    cost = 2.0 + 3.0 * edges[np.arange(6), CELLS].sum(axis=1)
    alone, helped = adapted(cost[:10]), adapted(cost[:10], {"other": profile_of(edges)})
    errors = [np.abs(a.profile.predict(SPACE, "latency_ms", CELLS) / cost - 1) for a in (alone, helped)]
    assert np.median(errors[0]) > 0.05
    assert np.median(errors[1]) < 0.01
    assert helped.sources["latency_ms"]["other"] > 0.9
    assert "latency_ms is most like that of other 100%" in "\n".join(helped.lines())


def test_what_the_device_runs_is_found_and_kept_in_the_file(tmp_path: Path) -> None:
    used, connected = SPACE.used(CELLS), SPACE.is_connected(CELLS)
    cost = np.where(connected, 4.0 + 2.0 * (used == 3).sum(axis=1) + (used == 2).sum(axis=1), 0.5)
    found = adapted(cost[:40])
    assert list(found.forms["latency_ms"]) == ["used"]
    kept = found.profile.costs["latency_ms"]
    assert isinstance(kept, Compiled)
    predicted = found.profile.predict(SPACE, "latency_ms", CELLS)
    assert predicted[connected] == pytest.approx(cost[connected], rel=0.05)
    assert (predicted[~connected] < 4).all()
    found.profile.save(tmp_path / "x.json")
    read = Profile.load(tmp_path / "x.json")
    assert read == found.profile
    device = ProfileDevice(SPACE, read, tmp_path / "x.json", metric="latency_ms")
    assert device.separable("latency_ms") is None
    rows = device.evaluate([tuple(row) for row in CELLS.tolist()])
    assert [row["latency_ms"] for row in rows] == predicted.tolist()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"some": {"base": 1.0, "edges": [[0.0] * 5] * 6}}, "parts of a cost are all, used, live, not some"),
        ({"used": {"base": 1.0, "edges": [[0.0] * 5] * 5}}, r"edges of other shapes than \(6, 5\)"),
        ({"used": {"base": 1e13, "edges": [[0.0] * 5] * 6}}, "above 1e.12"),
        ({"used": {"base": 1.0}}, "no edges"),
    ],
)
def test_damaged_parts_are_refused(tmp_path: Path, parts: dict[str, Any], message: str) -> None:
    profile = profile_of(np.zeros((6, 5)))
    cost = Compiled(1.0, [[0.0] * 5] * 6, parts={"used": Additive(1.0, [[0.0] * 5] * 6)})
    replace(profile, costs={"latency_ms": cost}).save(tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text()
    content = json.loads(text)
    content["costs"]["latency_ms"]["parts"] = parts
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        Profile.load(tmp_path / "x.json")


def test_intervals_are_kept_in_the_file(tmp_path: Path) -> None:
    """Draws of 1 ms a convolution and of 3, and 1 ms of noise: a standard deviation by hand."""
    once, thrice = ([[0.0, 0.0, 0.0, each, 0.0]] * 6 for each in (1.0, 3.0))
    doubt = Doubt(1.0, [Draw(4.0, once), Draw(4.0, thrice, form="used")])
    profile = replace(profile_of(np.zeros((6, 5))), doubts={"latency_ms": doubt})
    profile.save(tmp_path / "x.json")
    read = Profile.load(tmp_path / "x.json")
    assert read == profile
    # Four convolutions, of which two are used: draws of 4 + 4 and of 4 + 3 * 2, 1 ms from their mean
    cell = SPACE.from_str("|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|none~0|nor_conv_3x3~1|none~2|")
    mean = float(read.predict(SPACE, "latency_ms", [cell])[0])
    device = ProfileDevice(SPACE, read, tmp_path / "x.json", metric="latency_ms")
    for found in (read.interval(SPACE, "latency_ms", [cell]), device.interval("latency_ms", [cell])):
        assert found is not None
        assert found[1][0] - mean == pytest.approx(1.645 * (1 + 1) ** 0.5)
        assert found[0][0] >= 0
    assert profile_of(np.zeros((6, 5))).interval(SPACE, "latency_ms", [cell]) is None


@pytest.mark.parametrize(
    ("noise", "draws", "changes", "message"),
    [
        (-1.0, 2, {}, "at least 0"),
        (1.0, 1, {}, "two draws"),
        (1.0, 2, {"edges": [[0.0] * 5] * 5}, "another shape"),
        (1.0, 2, {"form": "x"}, "form='x'"),
        (1.0, 2, {"base": 1e13}, "above 1e.12"),
    ],
)
def test_damaged_doubts_are_refused(
    tmp_path: Path, noise: float, draws: int, changes: dict[str, Any], message: str
) -> None:
    draw = {"form": "all", "base": 1.0, "edges": [[0.0] * 5] * 6, **changes}
    doubts = {"latency_ms": {"noise": noise, "draws": [draw] * draws}}
    content = {**profile_of(np.zeros((6, 5))).content(), "doubts": doubts}
    (tmp_path / "x.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        Profile.load(tmp_path / "x.json")


def a_posterior(y: FloatArray) -> adapting._Posterior:
    features = [adapting._Features(SPACE, [], "all", CELLS, with_pairs=False)]
    return adapting._Posterior(SPACE, features, [], CELLS[: len(y)], y)


def test_a_model_is_ridge_regression_with_a_prior() -> None:
    y = np.random.default_rng(1).random(12) + 1
    posterior = a_posterior(y)
    posterior.models = [model := replace(posterior.models[0], weight=1.0)]
    X = np.column_stack([np.ones(12), model.X])
    prior = np.concatenate([[adapting.CONSTANT], model.prior])
    keep = prior > 0
    precision = X[:, keep].T @ X[:, keep] / model.noise + np.diag(1 / prior[keep])
    expected = np.zeros(len(prior))
    expected[keep] = np.linalg.solve(precision, X[:, keep].T @ model.z / model.noise)
    by_hand = expected[0] + (model.features(CELLS) @ expected[1:])
    cost = posterior.cost().of(SPACE, CELLS)
    assert cost == pytest.approx(np.maximum(y.mean() + y.std() * by_hand, y.min() / 2), abs=1e-4)
    rng = np.random.default_rng(2)
    drawn = np.array([np.concatenate([[c], w])[keep] for c, w in (model.draw(rng) for _ in range(3000))])
    covariance = np.linalg.inv(precision)
    error = np.sqrt(np.diag(covariance) / 3000)
    assert (np.abs(drawn.mean(axis=0) - expected[keep]) < 5 * error + 1e-9).all()
    assert drawn.var(axis=0) == pytest.approx(np.diag(covariance), rel=0.2)


def test_models_are_weighted_by_their_evidence() -> None:
    """Evidence is the normal density of the measurements, times the prior."""
    y = np.random.default_rng(1).random(12) + 1
    first, second = (models := a_posterior(y).models)[0], models[-1]

    def log_density(model: adapting._Model) -> float:
        K = adapting.CONSTANT + (model.X * model.prior) @ model.X.T + model.noise * np.eye(12)
        return -0.5 * (model.z @ np.linalg.solve(K, model.z) + np.linalg.slogdet(K)[1])

    ratio = np.log(first.weight / second.weight)
    assert ratio == pytest.approx(log_density(first) - log_density(second), abs=1e-6)
    assert sum(model.weight for model in models) == pytest.approx(1)


def test_the_next_measurement_helps_most() -> None:
    cost = 5.0 + np.random.default_rng(4).random((6, 5))[np.arange(6), CELLS].sum(axis=1)
    found = adapted(cost[:12])
    (first, second), covariance = found._chosen("latency_ms", CELLS[12:60], 2)
    posterior = found._posteriors["latency_ms"]
    C, noise = np.cov(posterior.draws(CELLS[12:60], 0).T, bias=True), posterior.noise**2

    def left(rows: list[int]) -> float:
        K = C[np.ix_(rows, rows)] + noise * np.eye(len(rows))
        return float(np.trace(C - C[:, rows] @ np.linalg.solve(K, C[rows])))

    assert first == min(range(48), key=lambda row: left([row]))
    assert second == min(set(range(48)) - {first}, key=lambda row: left([first, row]))
    assert np.trace(covariance) == pytest.approx(left([first, second]))
    asked = found.next("latency_ms", 5)
    assert len(set(asked)) == 5
    assert not {tuple(row) for row in CELLS[:12].tolist()} & set(asked)
    assert found.doubt("latency_ms", 5)[0] < found.doubt("latency_ms")[0]


def test_it_says_when_it_is_enough() -> None:
    rng = np.random.default_rng(5)
    cost = 5.0 + 2.0 * (CELLS == 3).sum(axis=1) + 0.5 * (CELLS == 4).sum(axis=1)
    noisy = cost * rng.normal(1, 0.05, size=len(cost))
    assert "more networks would lower the doubt" in adapted(noisy[:10]).advice("latency_ms", 5)
    assert "this is enough" in adapted(noisy[:60]).advice("latency_ms", 5)


def ten(changes: dict[int, float]) -> FloatArray:
    y = np.arange(10.0) + 1
    for row, value in changes.items():
        y[row] = value
    return y


@pytest.mark.parametrize(
    ("y", "changes", "message"),
    [
        (ten({})[:9], {}, "9 measured networks are too few to adapt to; 10 are needed"),
        (ten({})[:9], {"genotypes": CELLS[[0, *range(8)]]}, "9 networks of which 1 are there twice"),
        (np.arange(301.0) + 1, {}, "301 measured networks are more than the 300 that adapt takes"),
        (ten({2: -1.0}), {}, r"latency_ms of row 2 \(\|.*\) is not measured above 0; leave out"),
        (ten({2: np.inf}), {}, "is not measured above 0"),
        (ten({2: np.nan}), {}, "is not measured above 0"),
        (np.full(10, 3.0), {}, "all networks have the same latency_ms, 3; there is nothing to adapt to"),
        (ten({}), {"space": FBNet(), "genotypes": np.eye(10, 22, dtype=int),
                   "sources": {"o": profile_of(np.zeros((6, 5)))}},
         "source o is a profile of the nasbench201 space, not of fbnet"),
    ],
)  # fmt: skip
def test_refused(y: FloatArray, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        adapted(y, changes.pop("sources", None), **changes)


def test_nine_equal_measurements_and_another() -> None:
    found = adapted(ten(dict.fromkeys(range(1, 10), 2.0)))
    assert np.isfinite(found.profile.predict(SPACE, "latency_ms", CELLS)).all()


def test_sources_by_name_and_by_file(tmp_path: Path) -> None:
    shipped = source_profiles(SPACE, None)
    assert set(shipped) >= {"edgegpu", "raspi4", "edgetpu", "pixel3", "eyeriss", "fpga", "gtx1080ti"}
    shipped["pixel3"].save(tmp_path / "mine.json")
    found = source_profiles(SPACE, ["fpga", str(tmp_path / "mine.json")])
    assert list(found) == ["fpga", "mine"]
    assert found["mine"] == shipped["pixel3"]
    assert source_profiles(Darts(), None) == {}
    with pytest.raises(ValueError, match="from=pixel: no profile of this device on nasbench201; did you mea"):
        source_profiles(SPACE, ["pixel"])
    with pytest.raises(ValueError, match="is a profile of the nasbench201 space, not of darts"):
        source_profiles(Darts(), [str(tmp_path / "mine.json")])


@pytest.mark.parametrize(("device", "least"), [("raspi4", 0.93), ("edgegpu", 0.84), ("edgetpu", 0.93)])
def test_ten_networks_of_real_devices(device: str, least: float) -> None:
    """Means over five draws; docs/measurements.md has all devices."""
    file = data_folder() / "hwnasbench_nasbench201.npz"
    if not file.is_file():
        pytest.skip("hwnasbench_nasbench201.npz is not in the data folder")
    table = read_table(file)
    y, G = table[f"cifar10_{device}_latency_ms"], table["arch_ops"].astype(np.intp)
    sources = {name: profile for name, profile in source_profiles(SPACE, None).items() if name != device}
    known = adapting._sources(SPACE, sources, "latency_ms", CELLS, adapting.FORMS)
    features = [adapting._Features(SPACE, known, form, CELLS, False) for form in adapting.FORMS]
    found = []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(np.flatnonzero(y >= 0))
        rows, rest = order[:10], order[10:2010]
        cost = adapting._Posterior(SPACE, features, known, G[rows], y[rows]).cost()
        found.append(spearmanr(cost.of(SPACE, G[rest]), y[rest]).statistic)
    assert np.mean(found) > least


def test_fbnet_from_the_devices_of_its_table() -> None:
    if not (data_folder() / "fbnet_cifar100_latency_lut.npz").is_file():
        pytest.skip("fbnet_cifar100_latency_lut.npz is not in the data folder")
    space = FBNet()
    sources = source_profiles(space, None)
    target = sources.pop("pixel3")
    G = np.array(space.sample(np.random.default_rng(0), 1010))
    y = target.predict(space, "latency_ms", G)
    found = adapted(y[:10], sources, space=space, genotypes=G[:10])
    predicted = found.profile.predict(space, "latency_ms", G[10:])
    assert spearmanr(predicted, y[10:]).statistic > 0.95
    assert "what the device runs" not in found.lines()
    low, high = found.interval("latency_ms", G[10:])
    assert 0.8 < ((low <= y[10:]) & (y[10:] <= high)).mean() <= 1


def test_darts_without_any_other_device() -> None:
    space = Darts()
    G = np.array(space.sample(np.random.default_rng(0), 110))
    y = 5 + space.static_metrics([tuple(row) for row in G.tolist()])["flops"] / 1e6
    found = adapted(y[:10], space=space, genotypes=G[:10])
    assert spearmanr(found.profile.predict(space, "latency_ms", G[10:]), y[10:]).statistic > 0.95
