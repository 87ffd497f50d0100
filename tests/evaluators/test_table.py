from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_dir

from hwnas.build import build, conf_folder
from hwnas.core import Genotype
from hwnas.evaluators.table import Lookup, Table
from hwnas.spaces.nasbench201 import NasBench201
from hwnas.spaces.toy import Toy
from hwnas.store.cache import CachedEvaluator
from hwnas.store.evaluations import EvaluationStore

SPACE = Toy(2, 3)
ALL = list(itertools.product(range(3), repeat=2))
ARRAYS = {
    "arch_ops": np.array(ALL, dtype=np.int8),
    "ops": np.array(["a", "b", "c"]),
    "digits_valid": np.arange(9) * 10.0,
    "digits_test": np.arange(9) * 10.0 + 1,
    "latency": np.arange(9) + 0.5,
    "seeds": np.zeros((9, 3)),
}


def write(folder: Path, drop: str = "", **changes: np.ndarray) -> Path:
    path = folder / "table.npz"
    np.savez(path, **{key: array for key, array in {**ARRAYS, **changes}.items() if key != drop})
    return path


def create(path: Path | str, space: Any = SPACE, **settings: Any) -> Table:
    defaults = {
        "metric": "val_acc",
        "column": "digits_valid",
        "goal": "max",
        "scale": 0.01,
        "test_column": None,
    }
    return Table(space, path=str(path), **{**defaults, **settings})


def answers(table: Table, genotypes: list[Genotype]) -> list[dict[str, float]]:
    table.prepare(SPACE, genotypes)
    return table.evaluate(genotypes)


def test_values_are_looked_up_and_scaled(tmp_path: Path) -> None:
    table = create(write(tmp_path))
    assert table.metrics == {"val_acc": "max"}
    assert answers(table, [(0, 0), (1, 0), (2, 2), (1, 0)]) == [
        {"val_acc": 0.0},
        {"val_acc": 0.3},
        {"val_acc": 0.8},
        {"val_acc": 0.3},
    ]
    table = create(write(tmp_path), metric="latency_ms", column="latency", goal="min", scale=2.0)
    assert table.metrics == {"latency_ms": "min"}
    assert answers(table, [(0, 2)]) == [{"latency_ms": 5.0}]


def test_the_order_of_rows_does_not_matter(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(9)
    shuffled = {key: ARRAYS[key][order] for key in ("arch_ops", "digits_valid", "digits_test")}
    assert answers(create(write(tmp_path, **shuffled)), ALL) == answers(create(write(tmp_path)), ALL)


def test_test_accuracy_only_shows_in_the_report(tmp_path: Path) -> None:
    table = create(write(tmp_path), test_column="digits_test")
    assert answers(table, [(1, 2)]) == [{"val_acc": 0.5}]
    assert list(table.metrics) == ["val_acc"]
    assert table.report([(1, 2), (0, 0)]) == [{"test_acc": 0.51}, {"test_acc": 0.01}]
    assert create(write(tmp_path)).report([(1, 2), (0, 0)]) == [{}, {}]


def test_version_tells_apart_whatever_changes_the_answers(tmp_path: Path) -> None:
    def version(settings: dict[str, Any] | None = None, **changes: np.ndarray) -> str:
        return create(write(tmp_path, **changes), **(settings or {})).prepare(SPACE, ALL)

    other_value = ARRAYS["digits_valid"].copy()
    other_value[3] += 1e-9
    versions = [
        version(),
        version({"column": "digits_test"}),
        version({"scale": 1.0}),
        version({"metric": "accuracy"}),
        version(digits_valid=other_value),
        version(arch_ops=ARRAYS["arch_ops"][::-1]),
    ]
    assert len(set(versions)) == len(versions)
    assert version() == versions[0]
    assert version({"test_column": "digits_test"}) == versions[0]  # reports are not stored


def test_another_scale_is_not_answered_from_the_store(tmp_path: Path) -> None:
    store = EvaluationStore(None, "run")
    for scale, expected in ((0.01, 0.8), (1.0, 80.0)):
        evaluator = CachedEvaluator(create(write(tmp_path), scale=scale), store, "digits")
        evaluator.prepare(SPACE, [(2, 2)])
        assert evaluator.evaluate([(2, 2)]) == [{"val_acc": expected}]
    store.close()


def test_missing_column_comes_with_a_suggestion(tmp_path: Path) -> None:
    path = write(tmp_path)
    with pytest.raises(ValueError, match=r"has no column 'digit_valid'; did you mean digits_valid"):
        create(path, column="digit_valid")
    with pytest.raises(ValueError, match=r"has no column 'digits_tests'; did you mean digits_test"):
        create(path, test_column="digits_tests")
    with pytest.raises(ValueError, match=r"has no column 'zzz'; known: arch_ops, ops, digits_valid"):
        create(path, column="zzz")
    with pytest.raises(ValueError, match=r"has no column 'arch_ops'"):
        create(write(tmp_path, drop="arch_ops"))


def test_column_of_another_shape(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"column 'seeds' of .* has shape \(9, 3\), not \(9,\)"):
        create(write(tmp_path), column="seeds")


def test_column_of_text(tmp_path: Path) -> None:
    path = write(tmp_path, arch_str=np.array(["x"] * 9))
    with pytest.raises(ValueError, match=r"column 'arch_str' of .*table\.npz .*numbers"):
        create(path, column="arch_str")


@pytest.mark.parametrize("space", [Toy(3, 3), Toy(2, 4), NasBench201()])
def test_table_of_another_space(tmp_path: Path, space: Any) -> None:
    message = f"is a table of another space: operations a, b, c on 2 edges, not those of {space.name}"
    with pytest.raises(ValueError, match=message):
        create(write(tmp_path), space)


def test_missing_file_names_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path / "data"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"file 'lost\.npz' not found; looked for ") as error:
        create("lost.npz")
    assert str(tmp_path / "lost.npz") in str(error.value)
    assert str(tmp_path / "data" / "lost.npz") in str(error.value)
    assert str(error.value).endswith("hwnas data list says how to get benchmark tables")


def test_file_in_the_data_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_DATA", str(write(tmp_path).parent))
    assert answers(create("table.npz"), [(0, 1)]) == [{"val_acc": 0.1}]


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "npy", "damaged"])
def test_what_is_no_npz_is_refused(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    elif kind == "damaged":
        np.savez_compressed(path, **ARRAYS)
        content = bytearray(path.read_bytes())
        content[60:90] = bytes(30)
        path.write_bytes(content)
    else:
        path.write_text("" if kind == "empty" else "arch,val_acc\n")
    with pytest.raises(ValueError, match=r"table\.npz is not a readable \.npz file"):
        create(path)


def test_a_table_without_some_values_is_refused_before_the_search(tmp_path: Path) -> None:
    partial = {key: ARRAYS[key][:4] for key in ("arch_ops", "digits_valid")}
    table = create(write(tmp_path, **partial))
    store = EvaluationStore(None, "run")
    evaluator = CachedEvaluator(table, store, "digits")
    with pytest.raises(ValueError, match=r"table\.npz: digits_valid is missing for 5 of the 9 networks of"):
        evaluator.prepare(SPACE, ALL)
    store.close()
    first = Toy(2, 3, choices=[[0], [0, 1, 2]])  # three networks, which it knows
    assert create(write(tmp_path, **partial), first).prepare(first, [])
    values = ARRAYS["digits_valid"].copy()
    values[4] = np.nan
    with pytest.raises(ValueError, match="digits_valid is missing for 1 of the 9 networks of toy"):
        create(write(tmp_path, digits_valid=values)).prepare(SPACE, [])


def benchmark(table_path: Path, dataset: str, epochs: int = 200) -> Table:
    return create(
        table_path,
        NasBench201(),
        column=f"{dataset}_valid_{epochs}",
        test_column=f"{dataset}_test_{epochs}",
    )


@pytest.mark.parametrize(
    ("dataset", "valid", "test"), [("cifar10", 0.9161, 0.9437), ("cifar100", 0.7349, 0.7351)]
)
def test_best_of_the_benchmark(table_path: Path, dataset: str, valid: float, test: float) -> None:
    table = benchmark(table_path, dataset)
    genotypes = list(itertools.product(range(5), repeat=6))
    assert max(row["val_acc"] for row in answers(table, genotypes)) == pytest.approx(valid, abs=5e-5)
    assert max(row["test_acc"] for row in table.report(genotypes)) == pytest.approx(test, abs=5e-5)


def test_benchmark_values_of_the_empty_cell(table_path: Path) -> None:
    table = benchmark(table_path, "cifar10")
    assert answers(table, [(0,) * 6])[0]["val_acc"] == pytest.approx(0.10, abs=0.005)
    assert table.report([(0,) * 6]) == [{"test_acc": pytest.approx(0.10)}]


def lookup(path: Path | str | None, **settings: Any) -> Lookup:
    defaults = {"val_column": "digits_valid", "test_column": "digits_test", "scale": 0.01}
    return Lookup(SPACE, path=path if path is None else str(path), **{**defaults, **settings})


def test_lookup_tells_what_the_table_knows(tmp_path: Path) -> None:
    path = write(tmp_path)
    assert lookup(path).report([(1, 2), (0, 0)]) == [
        {"table_val_acc": 0.5, "test_acc": 0.51},
        {"table_val_acc": 0.0, "test_acc": 0.01},
    ]
    assert lookup(path, val_column=None).report([(1, 2)]) == [{"test_acc": 0.51}]
    assert lookup(path, val_column=None, test_column=None).report([(1, 2)]) == [{}]
    assert lookup(None).report([(1, 2), (0, 0)]) == [{}, {}]
    assert lookup(path).report([]) == []
    values = ARRAYS["digits_test"].copy()
    values[5] = np.nan
    assert lookup(write(tmp_path, digits_test=values)).report([(1, 2)]) == [{"table_val_acc": 0.5}]


def test_lookup_of_early_accuracies_which_a_table_may_lack(tmp_path: Path) -> None:
    early = np.arange(9) * 10.0
    early[5] = np.nan
    path = write(tmp_path, digits_early=early)
    known = lookup(path, early_column="digits_early").early([(0, 1), (2, 2), (1, 2)])
    np.testing.assert_allclose(known, [0.1, 0.8, np.nan])
    assert "digits_early" not in lookup(path, early_column="digits_early").report([(0, 1)])[0]
    assert lookup(path, early_column="lost").early([(0, 1)]) is None
    assert lookup(path).early([(0, 1)]) is None
    assert lookup(None, early_column="lost").early([(0, 1)]) is None


def test_lookup_in_a_table_that_has_not_the_columns(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no column 'zzz'"):
        lookup(write(tmp_path), test_column="zzz")
    with pytest.raises(ValueError, match=r"scale must be a number above 0, not 0"):
        lookup(None, scale=0)


def test_twelve_epochs_cost_a_fraction_of_the_seconds(tmp_path: Path) -> None:
    path = write(tmp_path, seconds=np.arange(9) * 100.0)
    assert create(path).seconds([(0, 1)]) is None
    assert create(path, seconds_column="lost").seconds([(0, 1)]) is None
    full = create(path, seconds_column="seconds")
    assert full.seconds([]) == 0.0
    assert full.seconds([(0, 1), (0, 2), (2, 2)]) == 1100.0
    assert create(path, seconds_column="seconds", epochs=12).seconds([(0, 1), (2, 2)]) == 900.0 * 12 / 200


def test_one_training_seed(tmp_path: Path) -> None:
    seeds = np.arange(27.0).reshape(9, 3)
    seeds[4, 2] = np.nan
    path = write(tmp_path, digits_valid_seeds=seeds)
    one = create(path, training_seed=888)
    assert answers(one, [(0, 0), (1, 1)]) == [{"val_acc": 0.01}, {"val_acc": 0.13}]
    assert one.prepare(SPACE, []) != create(path, training_seed=777).prepare(SPACE, [])
    with pytest.raises(ValueError, match=r"training_seed=999 was not run for 1 of 9 architectures"):
        create(path, training_seed=999)
    with pytest.raises(ValueError, match=r"training_seed must be one of 777, 888, 999 or null, not 1"):
        create(path, training_seed=1)
    with pytest.raises(ValueError, match="has no column 'digits_valid_seeds'"):
        create(write(tmp_path), training_seed=777)


def test_columns_of_imagenet16_are_taken_when_they_are_there(
    tmp_path: Path, table_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with np.load(table_path) as arrays:
        columns = {key: arrays[key] for key in ("arch_ops", "ops")}
        columns |= {f"imagenet16_{key}": arrays[f"cifar100_{key}"] / 2 for key in ("valid_200", "test_200")}
    np.savez(tmp_path / "nasbench201.npz", **columns)
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        config = compose(
            "search", ["dataset=imagenet16_120", "evaluator=table", "evaluator.seconds_column=null"]
        )
    dataset = build(config.dataset)
    assert (dataset.name, dataset.num_classes) == ("imagenet16_120", 120)  # and no image was read
    table = build(config.evaluator, space=NasBench201())
    best = max(answers(table, NasBench201().all()), key=lambda row: row["val_acc"])
    assert best["val_acc"] == pytest.approx(0.7349 / 2, abs=5e-5)
