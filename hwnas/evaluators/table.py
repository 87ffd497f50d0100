"""Metrics by genotype from a benchmark's table, as a quality or beside an estimate in reports."""

from __future__ import annotations

import hashlib
import math
import re
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from hwnas.core import (
    DEVIATION,
    Count,
    Evaluator,
    FloatArray,
    Genotype,
    Goal,
    Positive,
    SearchSpace,
    checked,
    suggestion,
)
from hwnas.data.tables import SEEDS
from hwnas.files import find_file

FULL_EPOCHS = 200
"""Epochs of the benchmark's full trainings."""

TRUE_ACCURACY = "table_val_acc"
"""The validation accuracy of a benchmark's table, beside an estimate."""


class Table(Evaluator):
    """Look-up of metrics in an .npz with one row per architecture.

    The file has columns (n,), `arch_ops` (n, edges) with operation indices, and `ops` with their names.

    Args:
        space: The space that the table covers.
        path: The .npz, absolute or relative to the working folder or the data folder.
        metric: Name of the metric, e.g. "val_acc".
        column: Its column in the file.
        goal: "max" or "min".
        scale: Factor from the column to the metric's unit, e.g. 0.01 from percent.
        test_column: Column of the test accuracy, in the same unit; only reports show it. None: there is none.
        epochs: Epochs of the column's trainings.
        training_seed: 777, 888 or 999: the accuracy of one training. None: the mean over all.
        deviation: Whether to report `<metric>_std`, too: the standard error of the metric as an estimate of
            the mean over all trainings that there could be, by `standard_error` of column `<column>_seeds`.
        seconds_column: Column with the seconds of a training of 200 epochs, for the virtual clock. There is
            no clock if it is None or missing in the file.

    Raises:
        ValueError: No such file or column, not an .npz, a table of another space, or a training seed that
            some architectures lack; no accuracies of single trainings for `deviation`.

    Source: Dong & Yang, NAS-Bench-201, ICLR 2020 (epochs and training seeds).
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        *,
        path: str,
        metric: str,
        column: str,
        goal: Goal,
        scale: Positive,
        test_column: str | None,
        epochs: Count = FULL_EPOCHS,
        training_seed: Literal[777, 888, 999] | None = None,
        deviation: bool = False,
        seconds_column: str | None = None,
    ) -> None:
        self.name = "table"
        self.metrics = {metric: goal}
        self.reported = {} if test_column is None else {"test_acc": "max"}
        self._metric = metric
        self._epochs = epochs
        single = f"{column}_seeds"
        if training_seed is not None:
            column = single
        arrays = by_genotype(
            space,
            path,
            [c for c in (column, test_column, single if deviation else None) if c is not None],
            optional=[] if seconds_column is None else [seconds_column],
        )
        self._values = arrays[column] * scale
        if training_seed is not None:
            self._values = self._values[..., SEEDS.index(training_seed)]
            missing = int(np.isnan(self._values).sum())
            if missing:
                raise ValueError(
                    f"training_seed={training_seed} was not run for {missing:,} of "
                    f"{self._values.size:,} architectures; take another, or null for the mean"
                )
            column = f"{column}-{training_seed}"
        self._deviation: FloatArray | None = None
        if deviation:
            self.metrics[metric + DEVIATION] = "min"
            self._deviation = scale * standard_error(arrays[single], alone=training_seed is not None)
        self._test = None if test_column is None else arrays[test_column] * scale
        self._seconds = None if seconds_column is None else arrays.get(seconds_column)
        self.exhaustive = True
        self._missing = int(np.isnan(self._values[np.ix_(*space.choices)]).sum())
        self._source = f"{find_file(path)}: {column}"
        digest = hashlib.sha256(self._values.tobytes())
        digest.update(metric.encode())
        if self._deviation is not None:
            digest.update(self._deviation.tobytes())
        self._version = f"{column}-{digest.hexdigest()[:12]}"

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """The version: the column and a hash of its values, the metric's name and the scale.

        Raises:
            ValueError: The table lacks networks of the space.
        """
        if self._missing:
            raise ValueError(
                f"{self._source} is missing for {self._missing:,} of the {space.size:,} networks of "
                f"{space.name}, and a search needs all"
            )
        return self._version

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """The metric per genotype; NaN, an error, if the table has none."""
        at = tuple(np.asarray(genotypes).T)
        rows = [{self._metric: float(v)} for v in self._values[at]]
        if self._deviation is not None:
            for row, error in zip(rows, self._deviation[at].tolist(), strict=True):
                row[self._metric + DEVIATION] = error
        return rows

    def report(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """`test_acc` per genotype, if the table has it."""
        if self._test is None:
            return [{} for _ in genotypes]
        return [{"test_acc": float(v)} for v in self._test[tuple(np.asarray(genotypes).T)]]

    def seconds(self, genotypes: Sequence[Genotype]) -> float | None:
        """Training time of the genotypes in the benchmark; shorter trainings count in proportion."""
        if self._seconds is None:
            return None
        if not genotypes:
            return 0.0
        taken = np.nansum(self._seconds[tuple(np.asarray(genotypes).T)])
        return float(taken) * self._epochs / FULL_EPOCHS


def standard_error(values: FloatArray, *, alone: bool) -> FloatArray:
    """Standard errors of means of a few values each, shape (...).

    The variance of two or three values is often almost 0 by luck. So it counts half, and the common variance
    the other half: the median of all, each divided by the median that it has by chance if the true one is 1.
    Of a single value only the common one is known. On the accuracies of NAS-Bench-201 (CIFAR-10), 65 % of
    third trainings are within one standard error of the difference from the mean of two others, and 90 %
    within two (by the variances of two trainings alone 53 % and 72 %).

    Args:
        values: Values of single trainings, shape (..., trainings); NaN: there was none.
        alone: Whether the error is that of a single value.
    """
    from scipy.special import gammaincinv  # for what few ask for

    known = np.isfinite(values)
    num = known.sum(axis=-1)
    mean = np.where(known, values, 0.0).sum(axis=-1) / np.maximum(num, 1)
    squares = np.where(known, values - mean[..., None], 0.0) ** 2
    own = squares.sum(axis=-1) / np.maximum(num - 1, 1)
    typical = np.array([1.0, 1.0, *(2 * gammaincinv(n / 2, 0.5) / n for n in range(1, values.shape[-1]))])
    common = float(np.median((own / typical[num])[num > 1])) if (num > 1).any() else 0.0
    variance = np.where(num > 1, (own + common) / 2, common)
    return np.sqrt(variance / (1 if alone else np.maximum(num, 1)))


class Lookup:
    """Accuracies from a benchmark's table, for the reports of evaluators that estimate quality.

    Args:
        space: The space that the table covers.
        path: The .npz, as for `Table`; None: no table.
        val_column: Column of the validation accuracy, reported as `table_val_acc`; None: there is none.
        test_column: Column of the test accuracy, reported as `test_acc`; None: there is none.
        scale: Factor from the columns to 0..1, e.g. 0.01 from percent.
        early_column: Column of the validation accuracy after 12 epochs, another estimate to compare with;
            None, or missing in the file: there is none.

    Attributes:
        goals: Goal per known metric.

    Raises:
        ValueError: As for `Table`.
    """

    @checked
    def __init__(
        self,
        space: SearchSpace,
        *,
        path: str | None,
        val_column: str | None,
        test_column: str | None,
        scale: Positive,
        early_column: str | None = None,
    ) -> None:
        named = {TRUE_ACCURACY: val_column, "test_acc": test_column}
        columns = {metric: column for metric, column in named.items() if column is not None and path}
        early = [] if early_column is None else [early_column]
        arrays = by_genotype(space, path, list(columns.values()), early) if path and columns else {}
        self._values = {metric: arrays[column] * scale for metric, column in columns.items()}
        self._early = arrays[early_column] * scale if early_column in arrays else None
        self.goals: dict[str, Goal] = dict.fromkeys(columns, "max")

    def report(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """The known ones of `table_val_acc` and `test_acc` per genotype, for `Evaluator.report`."""
        at = tuple(np.asarray(genotypes, dtype=np.intp).T)
        columns = {metric: values[at].tolist() for metric, values in self._values.items()}
        return [
            {metric: column[row] for metric, column in columns.items() if not math.isnan(column[row])}
            for row in range(len(genotypes))
        ]

    def early(self, genotypes: Sequence[Genotype]) -> FloatArray | None:
        """Validation accuracy after 12 epochs in 0..1, shape (n,); NaN: unknown. None without the column."""
        return None if self._early is None else self._early[tuple(np.asarray(genotypes).T)]


class LooksUp(Evaluator):
    """An estimator of quality that reports a benchmark's accuracies beside its estimates.

    Attributes:
        lookup: Accuracies of a benchmark's table, for reports.
    """

    lookup: Lookup

    def look_up(self, lookup: object) -> None:
        """Take the table.

        Raises:
            ValueError: It is none.
        """
        if not isinstance(lookup, Lookup):
            raise ValueError(f"lookup must be true accuracies of a benchmark, not {lookup!r}")
        self.lookup, self.reported = lookup, lookup.goals

    def report(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """Accuracies per genotype from the benchmark's table, if there is one."""
        return self.lookup.report(genotypes)


def by_genotype(
    space: SearchSpace, path: str, columns: Sequence[str], optional: Sequence[str] = ()
) -> dict[str, FloatArray]:
    """Columns of a benchmark's table as arrays of shape (ops,) * edges; NaN for architectures without a row.

    Columns whose names end in `_seeds` have one more dimension: a value per training seed.

    Args:
        space: The space that the table covers.
        path: The .npz, absolute or relative to the working folder or the data folder.
        columns: Names of the columns.
        optional: Columns that the file may lack.

    Raises:
        ValueError: No such file or column, not an .npz, or a table of another space.
    """
    try:
        file = find_file(path)
    except ValueError as error:
        raise ValueError(f"{error}; hwnas data list says how to get benchmark tables") from None
    try:
        if not zipfile.is_zipfile(file):
            raise zipfile.BadZipFile("not a zip archive")
        with np.load(file, allow_pickle=False) as arrays:
            for key in ("arch_ops", "ops", *columns):
                if key not in arrays.files:
                    ending = re.search(r"_(valid|test)_\d+(_seeds)?$", key)
                    if ending and (known := [c for c in arrays.files if c.endswith(ending[0])]):
                        sets = ", ".join(name.removesuffix(ending[0]) for name in known)
                        raise ValueError(
                            f"{file} has no accuracies of {key.removesuffix(ending[0])}, but of {sets}; "
                            "choose the dataset= of one of them"
                        )
                    raise ValueError(f"{file} has no column {key!r}{suggestion(key, arrays.files)}")
            genotypes, ops = arrays["arch_ops"], tuple(arrays["ops"].tolist())
            there = [c for c in optional if c in arrays.files]
            values = {c: _numbers(file, c, arrays) for c in [*columns, *there]}
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ValueError(f"{file} is not a readable .npz file ({error})") from None
    if ops != space.ops or genotypes.ndim != 2 or genotypes.shape[1] != len(space.choices):
        raise ValueError(
            f"{file} is a table of another space: operations {', '.join(map(str, ops))} on "
            f"{genotypes.shape[-1]} edges, not those of {space.name}"
        )
    if genotypes.size and not 0 <= genotypes.min() <= genotypes.max() < len(ops):
        raise ValueError(f"arch_ops of {file} has operations outside 0..{len(ops) - 1}")
    placed = {}
    for column, array in values.items():
        shape = (len(genotypes), len(SEEDS)) if column.endswith("_seeds") else (len(genotypes),)
        if array.shape != shape:
            raise ValueError(f"column {column!r} of {file} has shape {array.shape}, not {shape}")
        placed[column] = np.full((len(space.ops),) * len(space.choices) + shape[1:], np.nan)
        placed[column][tuple(genotypes.T.astype(np.intp))] = array
    return placed


def _numbers(file: Path, column: str, arrays: Mapping[str, np.ndarray]) -> FloatArray:
    try:
        return np.asarray(arrays[column], dtype=np.float64)
    except ValueError:
        raise ValueError(f"column {column!r} of {file} does not hold numbers") from None
