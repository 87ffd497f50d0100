"""Rules that choose the validation images: drawn or ordered ones, and the index lists that papers use.

NAS-Bench-201 publishes index lists. Its CIFAR-10 list halves the training images. Its lists of CIFAR-100 and
ImageNet16-120 halve the *test* images: papers validate on one half and report the accuracy on the other half,
which no strategy may see.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hwnas.core import check_setting
from hwnas.files import find_file, read_json

SPLIT_SEED = 0
"""Seed of all splits. It is not the run's seed, so that runs of all seeds use the same images."""

Split = Literal["seeded", "stratified", "ordered", "benchmark"]


@dataclass(frozen=True)
class IndexList:
    """A published index list.

    Args:
        file: Name of the file, as published.
        valid: Key of the validation images in the file.
        rest: Key of the other half.
        halves: The images that the list halves, "train" or "test".
        size: Number of these images.
        first_labels: Labels of the first images in the official files; empty: not known to us.
    """

    file: str
    valid: str
    rest: str
    halves: str
    size: int
    first_labels: tuple[int, ...]


INDEX_LISTS = {
    "cifar10": IndexList(
        "cifar-split.txt",
        "valid",
        "train",
        "train",
        50_000,
        (6, 9, 9, 4, 1, 1, 2, 7, 8, 3, 4, 7, 7, 2, 9, 9, 9, 3, 2, 6),
    ),
    "cifar100": IndexList(
        "cifar100-test-split.txt",
        "xvalid",
        "xtest",
        "test",
        10_000,
        (49, 33, 72, 51, 71, 92, 15, 14, 23, 0, 71, 75, 81, 69, 40, 43, 92, 97, 70, 53),
    ),
    "imagenet16": IndexList("imagenet-16-120-test-split.txt", "xvalid", "xtest", "test", 6_000, ()),
}
"""Index lists by the benchmark's name of the data set.

Source: configs/nas-benchmark of D-X-Y/AutoDL-Projects.
"""


def check(split: object, benchmark: object) -> str:
    """The name of a split, checked.

    Raises:
        ValueError: No such split, or the benchmark has no index list of these images.
    """
    check_setting("split", Split, split)
    if split == "benchmark" and benchmark not in INDEX_LISTS:
        raise ValueError(
            f"split=benchmark: NAS-Bench-201 splits {', '.join(INDEX_LISTS)} (dataset.benchmark), "
            f"not {benchmark}; take dataset.split=seeded"
        )
    return str(split)


def rows(
    part: str, arrays: Mapping[str, np.ndarray], *, split: str, valid_fraction: float, benchmark: str
) -> tuple[str, np.ndarray | slice]:
    """The images of a part: "train" or "test", and their rows there.

    Args:
        part: "train", "valid", "all" (every training image) or "test".
        arrays: x_train, y_train, x_test, y_test.
        split: A `Split`.
        valid_fraction: Fraction of the training images that validates; "benchmark" does not use it.
        benchmark: The benchmark's name of the data set; only "benchmark" uses it.

    Raises:
        ValueError: For "benchmark": there is no index list, or it belongs to other images.
    """
    everything = slice(None)
    if part == "all":
        return "train", everything
    if split == "benchmark":
        of = INDEX_LISTS[benchmark]
        if part == "valid" or part == of.halves:
            valid, rest = read_index_list(benchmark)
            _check_order(of, arrays[f"y_{of.halves}"])
            return of.halves, valid if part == "valid" else rest
        return part, everything
    if part == "test":
        return "test", everything
    num = len(arrays["x_train"])
    num_valid = max(1, round(valid_fraction * num))
    if split == "ordered":
        return "train", slice(num - num_valid, num) if part == "valid" else slice(num - num_valid)
    if split == "stratified":
        held, rest = stratified(arrays["y_train"], valid_fraction)
        return "train", held if part == "valid" else rest
    order = np.random.default_rng(SPLIT_SEED).permutation(num)
    return "train", order[:num_valid] if part == "valid" else order[num_valid:]


def stratified(labels: np.ndarray, fraction: float, keep: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Rows that are held out, the same fraction of every class, and all other rows; both in random order.

    Args:
        labels: Shape (N,).
        fraction: Fraction of each class that is held out, at least one image.
        keep: Number of images of each class that are not held out, as far as it has them.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(len(labels))
    held = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        rows = order[labels[order] == label]
        held[rows[: max(0, min(len(rows) - keep, max(1, round(fraction * len(rows)))))]] = True
    return order[held[order]], order[~held[order]]


def read_index_list(benchmark: str) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the validation images, and rows of the other half, from the published file.

    Raises:
        ValueError: The file is missing or malformed.
    """
    of = INDEX_LISTS[benchmark]
    try:
        file = find_file(of.file)
    except ValueError as error:
        raise ValueError(f"dataset.split=benchmark: {error}; fetch it: hwnas data splits download") from None
    content = read_json(file)
    found = []
    for key in (of.valid, of.rest):
        try:
            _, numbers = content[key]
            array = np.array([int(number) for number in numbers], dtype=np.int64)
        except (KeyError, TypeError, ValueError):
            raise ValueError(f'{file} must hold {{"{key}": ["int", [...]]}}, as published') from None
        found.append(array)
    if not np.array_equal(np.sort(np.concatenate(found)), np.arange(of.size)):
        raise ValueError(f"{file} does not have each of 0..{of.size - 1} once in {of.valid} or {of.rest}")
    return found[0], found[1]


def _check_order(of: IndexList, labels: np.ndarray) -> None:
    """Raise ValueError if these are not the official images, or not in their order."""
    first = labels[: len(of.first_labels)].tolist()
    if len(labels) != of.size or first != list(of.first_labels):
        why = f"there are {len(labels):,}, not {of.size:,}"
        if len(labels) == of.size:
            why = f"their first labels are {first[:5]}, not {list(of.first_labels[:5])}"
        raise ValueError(
            f"dataset.split=benchmark needs the {of.halves} images in the order of the official files, and "
            f"{why}; take those files, or dataset.split=seeded"
        )


def in_words(split: str, valid_fraction: float, benchmark: str) -> str:
    """The images that validate, and whether figures can be compared with the papers'."""
    if split == "benchmark" and INDEX_LISTS[benchmark].halves == "test":
        half = f"{INDEX_LISTS[benchmark].size // 2:,}"
        return (
            f"validation on {half} of the test images, as in the papers (dataset.split=benchmark); test "
            f"accuracies are of the other {half}, which no search sees; comparable to the papers' figures"
        )
    if split == "benchmark":
        return (
            "validation on half of the training images, by NAS-Bench-201's index list "
            "(dataset.split=benchmark); comparable to the papers' figures"
        )
    how = {"seeded": "a seeded draw", "stratified": "a seeded draw of each class"}.get(split, "the last ones")
    return (
        f"validation on {valid_fraction:.0%} of the training images, {how} (dataset.split={split}); the "
        "search sees no test image"
    )
