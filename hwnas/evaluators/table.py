"""Any metric by genotype from a benchmark table."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from hwnas.config import find_file, suggestion
from hwnas.core import Evaluator, FloatArray, Genotype, Goal, SearchSpace, positive


class Table(Evaluator):
    """Looks metrics up in an .npz that holds one row per architecture.

    Beside its columns (n,) the file has `arch_ops` (n, edges), operation indices, and `ops`, their names.

    Args:
        space: The space that the table covers.
        path: The .npz, absolute or relative to the working folder or the data folder.
        metric: Name of the metric, e.g. "val_acc".
        column: Its column in the file.
        goal: "max" or "min".
        scale: Factor from the column to the metric's unit, e.g. 0.01 from percent.
        test_column: Column of the test accuracy, in the same unit; only reports show it. None: there is none.

    Raises:
        ValueError: No such file or column, not an .npz, or a table of another space.
    """

    def __init__(
        self,
        space: SearchSpace,
        *,
        path: str,
        metric: str,
        column: str,
        goal: Goal,
        scale: float,
        test_column: str | None,
    ) -> None:
        if not isinstance(metric, str):
            raise ValueError(f"evaluator.metric must be a name, not {metric!r}")
        if goal not in ("max", "min"):
            raise ValueError(f"evaluator.goal {goal!r} is not one of max, min")
        positive("evaluator.scale", scale)
        self.name = "table"
        self.metrics = {metric: goal}
        self._metric = metric
        file = find_file(path)
        try:
            if not zipfile.is_zipfile(file):
                raise zipfile.BadZipFile("not a zip archive")
            with np.load(file, allow_pickle=False) as arrays:
                columns = [c for c in (column, test_column) if c is not None]
                for key in ("arch_ops", "ops", *columns):
                    if key not in arrays.files:
                        raise ValueError(f"{file} has no column {key!r}{suggestion(key, arrays.files)}")
                genotypes, ops = arrays["arch_ops"], tuple(arrays["ops"].tolist())
                values = {c: _numbers(file, c, arrays) for c in columns}
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
            raise ValueError(f"{file} is not a readable .npz file ({error})") from None
        if ops != space.ops or genotypes.ndim != 2 or genotypes.shape[1] != len(space.choices):
            raise ValueError(
                f"{file} is a table of another space: operations {', '.join(map(str, ops))} on "
                f"{genotypes.shape[-1]} edges, not those of {space.name}"
            )
        if genotypes.size and not 0 <= genotypes.min() <= genotypes.max() < len(ops):
            raise ValueError(f"arch_ops of {file} has operations outside 0..{len(ops) - 1}")
        for name, array in values.items():
            if array.shape != (len(genotypes),):
                raise ValueError(
                    f"column {name!r} of {file} has shape {array.shape}, not ({len(genotypes)},)"
                )
        self._shape = (len(space.ops),) * len(space.choices)
        self._values = np.full(self._shape, np.nan)
        self._test = np.full(self._shape, np.nan)
        cells = tuple(genotypes.T.astype(np.intp))
        self._values[cells] = values[column] * scale
        if test_column is not None:
            self._test[cells] = values[test_column] * scale
        self.exhaustive = not np.isnan(self._values).any()
        self._has_test = test_column is not None
        digest = hashlib.sha256(values[column].tobytes() + genotypes.tobytes())
        digest.update(f"{metric} {scale!r}".encode())
        self._version = f"{column}-{digest.hexdigest()[:12]}"

    def prepare(self, space: SearchSpace, population: Sequence[Genotype]) -> str:
        """The version: the column and a hash of its values, the metric's name and the scale."""
        return self._version

    def evaluate(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """The metric per genotype; NaN (an error) where the table has none."""
        return [{self._metric: float(v)} for v in self._values[tuple(np.asarray(genotypes).T)]]

    def report(self, genotypes: Sequence[Genotype]) -> list[dict[str, float]]:
        """`test_acc` per genotype, where the table knows it."""
        if not self._has_test:
            return [{} for _ in genotypes]
        return [{"test_acc": float(v)} for v in self._test[tuple(np.asarray(genotypes).T)]]


def _numbers(file: Path, column: str, arrays: Mapping[str, np.ndarray]) -> FloatArray:
    try:
        return np.asarray(arrays[column], dtype=np.float64)
    except ValueError:
        raise ValueError(f"column {column!r} of {file} does not hold numbers") from None
