"""The speed figures in docs/measurements.md, each against a plain way of doing the same in the same run.

`make bench` prints them; as ordinary tests they run once and check that both ways agree.
"""

from __future__ import annotations

import time
import timeit
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hwnas import compose
from hwnas.build import build, conf_folder
from hwnas.core import Evaluator, Genotype, Goal, Objective, SearchSpace
from hwnas.devices.benchmark import benchmark_device
from hwnas.devices.profile import Additive
from hwnas.evaluators.rmi import RMI
from hwnas.evaluators.table import Table
from hwnas.files import data_folder
from hwnas.searches.loop import search
from hwnas.spaces.fbnet import FBNet
from hwnas.spaces.known import KnownNetworks
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.nasbench201.network import initial_weights
from hwnas.store.archive import Archive
from hwnas.store.cache import CachedEvaluator
from hwnas.store.evaluations import EvaluationStore
from hwnas.training.accelerator import PRECISIONS, lightning_precision
from hwnas.training.checkpoint import Session
from hwnas.training.classifier import fit
from hwnas.training.recipe import Recipe

pytestmark = pytest.mark.benchmark


def one_after_another(rmi: RMI, genotypes: Sequence[Genotype], dtype: torch.dtype) -> list[float]:
    """The plain way: one network, one optimiser, CKA as it is written in the paper."""
    space = rmi._candidates
    weights = initial_weights(space, rmi.seed, dtype=dtype)
    x, y, targets = (
        rmi._batches[0].x.to(dtype),
        rmi._batches[0].y,
        [gram.to(dtype) for gram in rmi._batches[0].grams],
    )

    def similarity(taps: Sequence[torch.Tensor]) -> torch.Tensor:
        total = torch.zeros((), dtype=dtype)
        for tap, target in zip(taps, targets, strict=True):
            flat = tap.flatten(1)
            gram = flat @ flat.T
            H = torch.eye(len(gram), dtype=dtype) - 1 / len(gram)
            gram = H @ gram @ H
            if gram.norm() > flat.square().sum() * torch.finfo(dtype).eps ** 0.75:
                total = total + (gram * target).sum() / (gram.norm() * target.norm())
        return total

    scores = []
    for genotype in genotypes:
        network = space.network(genotype).to(dtype)
        network.load(weights)
        optimizer = torch.optim.SGD(
            network.parameters(), lr=rmi.lr, momentum=rmi.momentum, weight_decay=rmi.weight_decay
        )
        for _ in range(rmi.steps):
            taps, logits = network.features(x)
            loss = (1 - rmi.beta) * F.cross_entropy(logits, y) - rmi.beta * similarity(taps)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            scores.append(similarity(network.features(x)[0]).item())
    return scores


@pytest.fixture(scope="module")
def rmi(tmp_path_factory: pytest.TempPathFactory) -> RMI:
    """The default evaluator on digits; its reference is trained for one epoch only."""
    from omegaconf import OmegaConf

    config = OmegaConf.create(
        {
            "dataset": OmegaConf.load(conf_folder() / "dataset" / "digits.yaml"),
            "evaluator": OmegaConf.load(conf_folder() / "evaluator" / "rmi.yaml"),
        }
    )
    config.evaluator.reference.epochs = 1
    dataset = build(config.dataset)
    evaluator = build(
        config.evaluator,
        space=NasBench201(image_shape=dataset.image_shape),
        dataset=dataset,
        store_dir=tmp_path_factory.mktemp("store"),
        announce=lambda text: None,
        warn=pytest.fail,
    )
    assert isinstance(evaluator.reference, Recipe)
    evaluator.prepare(evaluator._candidates, [])
    return evaluator


@pytest.mark.slow
def test_a_population_scores_like_its_networks_alone(rmi: RMI) -> None:
    """Equal to 1e-9 in float64, cells without a path and without convolutions included."""
    genotypes = [(0,) * 6, (1,) * 6, (4,) * 6, (3,) * 6, (0, 0, 3, 0, 2, 3)]
    genotypes += NasBench201().sample(np.random.default_rng(1), 15)
    together = rmi.train_and_score(
        genotypes, initial_weights(rmi._candidates, rmi.seed, dtype=torch.float64), rmi._batches[0]
    )
    assert together == pytest.approx(one_after_another(rmi, genotypes, torch.float64), abs=1e-9)
    assert together[0] == 0.0
    assert all(0 <= score <= 3 for score in together)


def test_population_against_one_network_after_another(rmi: RMI, benchmark) -> None:  # type: ignore[no-untyped-def]
    """The default's shape: 8x8 images, C = 8, N = 1, 20 networks, 20 steps."""
    genotypes = NasBench201().sample(np.random.default_rng(0), 20)
    weights = initial_weights(rmi._candidates, rmi.seed)
    together = benchmark.pedantic(
        rmi.train_and_score, (genotypes, weights, rmi._batches[0]), rounds=5, warmup_rounds=1
    )
    if benchmark.enabled:
        start = time.perf_counter()
        alone = one_after_another(rmi, genotypes, torch.float32)
        seconds = time.perf_counter() - start
        print(
            f"\nsimilarity of 20 networks: {seconds / benchmark.stats.stats.median:.2f} times faster together"
        )
        assert together == pytest.approx(alone, abs=0.1)


def plain_jacov(
    space: NasBench201, genotype: Genotype, weights: dict[str, torch.Tensor], x: torch.Tensor
) -> float:
    """The plain way: one network, its gradient, its correlations."""
    network = space.network(genotype)
    network.load(weights)
    x = x.clone().requires_grad_()
    network(x).sum().backward()
    assert x.grad is not None
    v = np.linalg.eigvalsh(np.corrcoef(x.grad.flatten(1).double().numpy())) + 1e-5
    return float(-(np.log(v) + 1 / v).sum())


def test_zero_cost_against_one_network_after_another(tmp_path: Path, benchmark) -> None:  # type: ignore[no-untyped-def]
    """The default's shape: 8x8 images, C = 8, N = 1, batch 32, 64 networks without repetitions."""
    from omegaconf import OmegaConf

    config = OmegaConf.create(
        {
            "dataset": OmegaConf.load(conf_folder() / "dataset" / "digits.yaml"),
            "evaluator": OmegaConf.load(conf_folder() / "evaluator" / "zero_cost.yaml"),
        }
    )
    config.evaluator.num_reference = 0
    dataset = build(config.dataset)
    space = NasBench201(image_shape=dataset.image_shape)
    evaluator = build(
        config.evaluator, space=space, dataset=dataset, store_dir=tmp_path, announce=pytest.fail
    )
    evaluator.prepare(space, [])
    drawn = space.sample(np.random.default_rng(0), 100)
    whole = np.array(drawn)[space.is_connected(drawn)]
    cells = list(dict.fromkeys(map(tuple, space.live(whole).tolist())))[:64]
    rows = benchmark.pedantic(evaluator.evaluate, (cells,), rounds=5, warmup_rounds=1)
    (x, _), *_ = evaluator._data.batches
    start = time.perf_counter()
    alone = [plain_jacov(evaluator._networks, cell, evaluator._weights, x) for cell in cells]
    seconds = time.perf_counter() - start
    assert [row["score_jacov"] for row in rows] == pytest.approx(
        alone, rel=0.1
    )  # float32: eigenvalues that are 0 up to rounding
    if benchmark.enabled:
        print(
            f"\nscores of 64 networks: {seconds / benchmark.stats.stats.median:.2f} times faster together, "
            f"{1e3 * benchmark.stats.stats.median / 64:.1f} ms per network"
        )


class Arithmetic(Evaluator):
    """Two cheap metrics, so that what is left is the loop."""

    def __init__(self, metric: str, goal: Goal, seed: int) -> None:
        self.name = metric
        self.metrics = {metric: goal}
        self._metric = metric
        self._table = np.random.default_rng(seed).random((6, 5))

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        return "1"

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        values = self._table[np.arange(6), np.asarray(genotypes)].sum(axis=1)
        return [{self._metric: float(value)} for value in values]


def run(strategy: str, generations: int, population_size: int, folder: Path) -> int:
    from omegaconf import OmegaConf

    space = NasBench201()
    plain = [Arithmetic("val_acc", "max", 1), Arithmetic("latency_ms", "min", 2)]
    config = OmegaConf.load(conf_folder() / "strategy" / f"{strategy}.yaml")
    config.population_size = population_size
    objectives = (Objective("val_acc", "max"), Objective("latency_ms", "min"))
    built = build(config, space=space, objectives=objectives, limits=(), seed=0)
    store = EvaluationStore(f"sqlite:///{folder / 'store.sqlite'}", "run")
    archive = Archive(folder / "archive.jsonl")
    search(built, [CachedEvaluator(evaluator, store, "none") for evaluator in plain], archive, generations)
    archive.close()
    store.close()
    return len(archive.trials)


def folders(tmp_path: Path) -> Callable[[], tuple[tuple[Path], dict[str, object]]]:
    """A fresh folder for every round: nothing is in the store yet."""
    count = iter(range(1000))

    def fresh() -> tuple[tuple[Path], dict[str, object]]:
        folder = tmp_path / str(next(count))
        folder.mkdir()
        return (folder,), {}

    return fresh


def test_loop_overhead(tmp_path: Path, benchmark) -> None:  # type: ignore[no-untyped-def]
    """Random search, so that strategy, store and journal are all there is; population 100."""
    asked = benchmark.pedantic(
        lambda folder: run("random", 20, 100, folder), setup=folders(tmp_path), rounds=5
    )
    assert asked == 2000
    if benchmark.enabled:
        print(f"\nloop overhead: {benchmark.stats.stats.median / asked * 1e3:.3f} ms per evaluation")


def test_mo_hdnas_on_a_table(tmp_path: Path, benchmark) -> None:  # type: ignore[no-untyped-def]
    """20 x 100 evaluations, the published budget."""
    asked = benchmark.pedantic(
        lambda folder: run("mo_hdnas", 100, 20, folder), setup=folders(tmp_path), rounds=3
    )
    assert asked == 2000
    if benchmark.enabled:
        print(f"\nmo_hdnas, 20 x 100 on a table: {benchmark.stats.stats.median:.2f} s")


def the_table_and_four_devices() -> tuple[Table, list[Evaluator]]:
    space = NasBench201()
    table = Table(
        space,
        path="nasbench201.npz",
        metric="val_acc",
        column="cifar10_valid_200",
        goal="max",
        scale=0.01,
        test_column="cifar10_test_200",
    )
    dataset = SimpleNamespace(name="cifar10")
    devices = [
        benchmark_device(space, dataset, print, device=device, metric="latency_ms")
        for device in ("raspi4", "pixel3", "eyeriss", "fpga")
    ]
    return table, devices


def test_metrics_of_a_whole_space(table_path: Path, benchmark) -> None:  # type: ignore[no-untyped-def]
    """Reading accuracies and four devices, and answering all of them for 15,625 architectures."""
    genotypes = NasBench201().all()

    def answered() -> list[list[dict[str, float]]]:
        table, devices = the_table_and_four_devices()
        return [evaluator.evaluate(genotypes) for evaluator in (table, *devices)]

    answers = benchmark.pedantic(answered, rounds=5)
    assert [len(rows) for rows in answers] == [15_625] * 5
    tracemalloc.start()
    kept = the_table_and_four_devices()
    megabytes = tracemalloc.get_traced_memory()[0] / 1e6
    tracemalloc.stop()
    assert megabytes < 50, kept
    if benchmark.enabled:
        print(f"\n15,625 architectures: {benchmark.stats.stats.median:.2f} s, {megabytes:.1f} MB")


def test_a_look_up_of_ten_thousand(table_path: Path, benchmark) -> None:  # type: ignore[no-untyped-def]
    """The table against a dictionary by genotype, the plain way."""
    table, _ = the_table_and_four_devices()
    genotypes = NasBench201().sample(np.random.default_rng(0), 10_000)
    plain = {
        g: row["val_acc"]
        for g, row in zip(NasBench201().all(), table.evaluate(NasBench201().all()), strict=True)
    }
    answers = benchmark(table.evaluate, genotypes)
    assert answers == [{"val_acc": plain[genotype]} for genotype in genotypes]
    if benchmark.enabled:
        start = time.perf_counter()
        for _ in range(20):
            [{"val_acc": plain[genotype]} for genotype in genotypes]
        alone = (time.perf_counter() - start) / 20
        median = benchmark.stats.stats.median
        print(f"\n10,000 look-ups: {1e3 * median:.1f} ms, {median / alone:.2f} times a dictionary's")


def test_costs_of_a_hundred_thousand_fbnet_networks(benchmark) -> None:  # type: ignore[no-untyped-def]
    """A look-up device against a dictionary's entry per layer and network, the plain way."""
    if not (data_folder() / "fbnet_cifar100_latency_lut.npz").is_file():
        pytest.skip("fbnet_cifar100_latency_lut.npz is not in the data folder")
    space = FBNet()
    device = benchmark_device(space, None, print, device="raspi4", metric="latency_ms")
    genotypes = space.sample(np.random.default_rng(0), 100_000)
    total = device.separable("latency_ms")
    assert total is not None
    look_up = {(edge, op): float(total.added[edge, op]) for edge in range(22) for op in range(9)}

    def plain() -> list[float]:
        return [total.base + sum(look_up[place] for place in enumerate(g)) for g in genotypes]

    answers = benchmark.pedantic(device.evaluate, (genotypes,), rounds=5)
    start = time.perf_counter()
    expected = plain()
    alone = time.perf_counter() - start
    assert [row["latency_ms"] for row in answers] == pytest.approx(expected)
    if benchmark.enabled:
        median = benchmark.stats.stats.median
        print(f"\n100,000 networks: {median:.3f} s, {alone / median:.1f} times as fast as a dictionary")


def test_a_profile_of_a_hundred_thousand_fbnet_networks(benchmark) -> None:  # type: ignore[no-untyped-def]
    """A profile's costs of 100,000 genotypes, against looking operations up one by one."""
    space = FBNet(variant="cifar100", channels=16, image_shape=(3, 32, 32), num_classes=100)
    rng = np.random.default_rng(0)
    cost = Additive(1.0, rng.random(space.alpha_shape).tolist(), {"0,1": rng.random((9, 9)).tolist()})
    G = np.array(space.sample(rng, 100_000))
    predicted = benchmark(lambda: cost(G))
    few = G[:2000].tolist()

    def one_by_one() -> list[float]:
        return [
            cost.base + sum(cost.edges[e][op] for e, op in enumerate(g)) + cost.pairs["0,1"][g[0]][g[1]]
            for g in few
        ]

    assert predicted[:2000] == pytest.approx(one_by_one(), rel=1e-12)
    if benchmark.enabled:
        own, plain = benchmark.stats.stats.min, 50 * min(timeit.repeat(one_by_one, number=1))
        print(f"\n100,000 fbnet networks: {own:.3f} s, {plain / own:.0f} times faster than one by one")
        assert own < plain / 3


@pytest.mark.parametrize("name", ["resnet10_w8", "resnet10_w32"])
def test_training_steps_in_bfloat16(name: str, tmp_path: Path, benchmark) -> None:  # type: ignore[no-untyped-def]
    """Steps on 64 images of 32x32 pixels, where the processor multiplies in bfloat16, against 32 bits."""
    if lightning_precision("auto") != PRECISIONS["bf16"]:
        pytest.skip("this device does not multiply in bfloat16")
    rng = np.random.default_rng(0)
    arrays = {"x_train": (256, 32, 32, 3), "x_test": (64, 32, 32, 3)}
    images = {key: rng.integers(0, 256, shape, dtype=np.uint8) for key, shape in arrays.items()}
    labels = {f"y_{part}": np.arange(len(images[f"x_{part}"])) % 10 for part in ("train", "test")}
    np.savez(tmp_path / "noise.npz", **images, **labels)
    config = compose("dataset=npz", f"dataset.path={tmp_path / 'noise.npz'}")
    dataset = build(config.dataset)
    space = KnownNetworks([name], image_shape=(3, 32, 32), num_classes=10)

    def steps(precision: str) -> list[float]:
        torch.manual_seed(0)
        recipe = Recipe(epochs=2, batch_size=64, lr=0.01, precision=precision)  # type: ignore[arg-type]
        module = fit(space.network((0,)), dataset, recipe, Session(tmp_path), part="all", seed=0)
        return [row["loss"] for row in module.history]

    losses = benchmark.pedantic(steps, ("bf16",), rounds=5, warmup_rounds=1)
    assert losses == pytest.approx(steps("32"), rel=0.02)
    if benchmark.enabled:
        plain = min(timeit.repeat(lambda: steps("32"), number=1, repeat=5))
        print(
            f"\n{name}: steps in bfloat16 {plain / benchmark.stats.stats.min:.2f} times as fast as in 32 bits"
        )
