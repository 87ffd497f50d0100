"""Standard errors of what is reported, and fronts and answers that take them into account."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from hwnas import NoImages, Problem, RandomSearch, Table, read_run, search
from hwnas.core import (
    FloatArray,
    Genotype,
    Limit,
    Objective,
    SearchSpace,
    Trial,
    best,
    front,
    non_dominated,
    unbeaten,
)
from hwnas.evaluators.table import standard_error
from hwnas.runs.folder import judged_together
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy, ToyCost

OBJECTIVES = (Objective("val_acc", "max"), Objective("latency_ms", "min"))


def trial(name: int, quality: float, error: float, latency: float) -> Trial:
    return Trial((name,), {"val_acc": quality, "val_acc_std": error, "latency_ms": latency}, 0)


def test_a_network_is_beaten_by_a_sure_lead_only() -> None:
    one, other = trial(0, 0.90, 0.03, 5.0), trial(1, 0.86, 0.04, 6.0)  # a lead of 0.04, 0.05 is its error
    sure, cheap = trial(2, 0.80, 0.0, 7.0), trial(3, 0.70, 0.5, 1.0)
    assert front([one, other, sure, cheap], OBJECTIVES) == [cheap, one]
    assert front([one, other, sure, cheap], OBJECTIVES, 0.8) == [cheap, one]  # 0.8 errors are the lead
    assert front([one, other, sure, cheap], OBJECTIVES, 0.81) == [cheap, one, other]
    assert front([one, other, sure, cheap], OBJECTIVES, 3.4) == [cheap, one, other, sure]  # 0.10 < 3.4 x 0.03


def test_the_best_is_not_so_by_luck() -> None:
    lucky, sound, slow = trial(0, 0.95, 0.05, 5.0), trial(1, 0.94, 0.01, 5.0), trial(2, 0.96, 0.0, 9.0)
    limits = [Limit("latency_ms", 6.0)]
    assert best([lucky, sound, slow], OBJECTIVES, limits) == lucky
    assert best([lucky, sound, slow], OBJECTIVES, limits, 0.2) == lucky  # 0.940 and 0.938
    assert best([lucky, sound, slow], OBJECTIVES, limits, 1.0) == sound  # 0.90 and 0.93
    assert best([lucky, sound, slow], OBJECTIVES, [], 1.0) == slow


def test_what_is_judged_together() -> None:
    """All of the last generation, where it has what was found; a robust front is sought among these."""
    first, *last = (
        Trial((name,), {"val_acc": 0.1 * name}, generation) for name, generation in ((1, 0), (2, 1), (3, 1))
    )
    assert judged_together([first, *last], [last[1]]) == last
    assert judged_together([first, *last], [first, last[1]]) == [first, last[1]]


def beaten(F: FloatArray, S: FloatArray, row: int) -> bool:
    leads = F[row] - F  # of the others
    return any(
        all(lead[m] >= np.sqrt(S[other, m] ** 2 + S[row, m] ** 2) for m in range(F.shape[1]))
        for other, lead in enumerate(leads)
        if other != row
    )


@pytest.mark.parametrize("objectives", [2, 3])
def test_fronts_are_those_of_all_pairs(objectives: int) -> None:
    rng = np.random.default_rng(0)
    F, S = rng.random((150, objectives)), 0.1 * rng.random((150, objectives))
    S[:, -1] = 0.0  # a cost is exact
    found = unbeaten(F, S)
    assert found.tolist() == [row for row in range(150) if not beaten(F, S, row)]
    assert set(non_dominated(F)) < set(found)
    assert unbeaten(F, 0 * S).tolist() == non_dominated(F).tolist()
    assert np.lexsort((F[:, -1], F[:, 0] + S[:, 0]))[0] in found  # the robust best is on the front
    F[3, 0] = np.inf
    assert 3 not in unbeaten(F, S)


def test_errors_of_few_trainings() -> None:
    """Own variances 2 and 8 of two trainings; by chance a variance of 1 has the median 0.4549."""
    values = np.array([[1.0, 3.0, np.nan], [2.0, 6.0, np.nan], [4.0, np.nan, np.nan]])
    common = 5 / 0.454936
    expected = [np.sqrt((2 + common) / 4), np.sqrt((8 + common) / 4), np.sqrt(common)]
    assert standard_error(values, alone=False) == pytest.approx(expected, rel=1e-5)
    expected = [np.sqrt((2 + common) / 2), np.sqrt((8 + common) / 2), np.sqrt(common)]
    assert standard_error(values, alone=True) == pytest.approx(expected, rel=1e-5)


def table(path: Path, **settings: object) -> Table:
    given = {"metric": "val_acc", "column": "cifar10_valid_200", "goal": "max", "scale": 0.01}
    return Table(NasBench201(), path=str(path), test_column=None, **{**given, **settings})  # type: ignore[arg-type]


def test_a_table_says_how_sure_it_is(table_path: Path) -> None:
    with np.load(table_path) as arrays:
        seeds = arrays["cifar10_valid_200_seeds"].astype(float)
        ops = [tuple(row) for row in arrays["arch_ops"].tolist()]
    plain, sure = table(table_path), table(table_path, deviation=True)
    assert plain.prepare(NasBench201(), []) == "cifar10_valid_200-6adfe92f1a46"  # as ever
    assert plain.prepare(NasBench201(), []) != sure.prepare(NasBench201(), [])
    for row, without in zip(sure.evaluate(ops[:50]), plain.evaluate(ops[:50]), strict=True):
        assert list(row) == ["val_acc", "val_acc_std"]
        assert row["val_acc"] == without["val_acc"]
    single = table(table_path, deviation=True, training_seed=777)
    assert single.evaluate(ops[:1])[0]["val_acc_std"] > sure.evaluate(ops[:1])[0]["val_acc_std"]
    with pytest.raises(ValueError, match=r"no accuracies of cifar100, but of cifar10"):
        table(table_path, column="cifar100_valid_200", deviation=True)

    whole = seeds[np.isfinite(seeds).all(axis=1)]
    first = whole[:, :2]
    error = standard_error(first, alone=True) * np.sqrt(1.5)  # of a third training less the mean of two
    beyond = np.abs(whole[:, 2] - first.mean(axis=1)) / error
    assert [round(float((beyond < k).mean()), 2) for k in (1, 2)] == [0.65, 0.9]


def test_a_robust_front_has_what_a_training_hides(table_path: Path) -> None:
    """Of fronts by one training each, with a cost, which networks of the front by two others they have."""
    with np.load(table_path) as arrays:
        seeds = arrays["cifar10_valid_200_seeds"].astype(float)
        cost = arrays["cifar10_flops_M"]
    error, rng = standard_error(seeds, alone=True), np.random.default_rng(0)
    known = np.flatnonzero(np.isfinite(seeds).all(axis=1))
    there: dict[float, list[float]] = {0.0: [], 1.0: [], 2.0: []}
    for _ in range(40):
        rows = rng.choice(known, 100, replace=False)
        spread = np.column_stack([error[rows], np.zeros(100)])
        true = set(non_dominated(np.column_stack([-seeds[rows, 1:].mean(axis=1), cost[rows]])))
        noisy = np.column_stack([-seeds[rows, 0], cost[rows]])
        for robust, found in there.items():
            found.append(len(true & set(unbeaten(noisy, robust * spread))) / len(true))
    assert [round(float(np.mean(found)), 2) for found in there.values()] == [0.76, 0.95, 1.0]


class Noisy(ToyCost):
    """The toy's quality, that of networks with operation 0 first with a large error."""

    def __init__(self, space: SearchSpace) -> None:
        super().__init__(space, metric="val_acc")
        self.name, self.metrics = "noisy", {"val_acc": "max", "val_acc_std": "min"}

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        rows = super().evaluate(genotypes)
        return [
            row | {"val_acc_std": 0.2 if g[0] == 0 else 0.01} for row, g in zip(rows, genotypes, strict=True)
        ]


def test_a_run_is_judged_by_it(tmp_path: Path) -> None:
    """The archive is the same; front, answer and page are not."""

    def run(name: str, robust: float | None, evaluator: object = Noisy) -> Path:
        problem = Problem(
            space=Toy(5, 4),
            dataset=NoImages("none"),
            evaluator=evaluator,  # type: ignore[arg-type]
            device=partial(ToyCost, metric="latency_ms"),
            strategy=partial(RandomSearch, population_size=20),
            generations=2,
            robust=robust,
        )
        return search(problem, tmp_path / name, store=tmp_path / "store", show=False).folder

    plain, robust = read_run(run("plain", None)), read_run(run("robust", 1.0))
    assert (plain.folder / "archive.jsonl").read_bytes() == (robust.folder / "archive.jsonl").read_bytes()
    assert {t.genotype for t in plain.front} < {t.genotype for t in robust.front}
    assert plain.result is not None
    assert robust.result is not None
    assert (plain.result.robust, robust.result.robust) == (None, 1.0)
    assert robust.best is not None
    assert robust.result.best is not None
    lower = {t.genotype: t.metrics["val_acc"] - t.metrics["val_acc_std"] for t in robust.trials}
    assert robust.best.genotype == robust.result.best.genotype == max(lower, key=lambda g: lower[g])
    assert len((robust.folder / "pareto.csv").read_text().splitlines()) == 1 + len(robust.front)
    pages = [each.page.read_text() for each in (plain, robust)]
    assert all("Bars are ± one standard error of validation accuracy." in page for page in pages)
    assert [
        page.count('<line class="error"') >= len(each.front)
        for page, each in zip(pages, (plain, robust), strict=True)
    ] == [True, True]
    assert ["less 1 standard error" in page for page in pages] == [False, True]
    with pytest.raises(ValueError, match="robust=1 needs an evaluator that says how sure it is"):
        run("unsure", 1.0, partial(ToyCost, metric="val_acc"))
