from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hwnas.cli.data import command
from hwnas.data import splits
from hwnas.data.images import Images
from hwnas.tables.download import SOURCES, sources_of

CIFAR10 = [6, 9, 9, 4, 1, 1, 2, 7, 8, 3, 4, 7, 7, 2, 9, 9, 9, 3, 2, 6]
CIFAR100 = [49, 33, 72, 51, 71, 92, 15, 14, 23, 0, 71, 75, 81, 69, 40, 43, 92, 97, 70, 53]

Make = Callable[..., Images]


def index_list(folder: Path, benchmark: str, **changes: list[int]) -> None:
    """A list in the published form: even rows validate, odd ones do not."""
    of = splits.INDEX_LISTS[benchmark]
    lists = {of.valid: list(range(0, of.size, 2)), of.rest: list(range(1, of.size, 2)), **changes}
    content = {key: ["int", [str(row) for row in rows]] for key, rows in lists.items()}
    (folder / of.file).write_text(json.dumps(content))


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Images of one pixel whose colours are their rows' bytes; those of training images have bit 7 set."""
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def make(
        benchmark: str,
        num_train: int,
        num_test: int,
        first: dict[str, list[int]],
        classes: int,
        **settings: Any,
    ) -> Images:
        arrays = {}
        for part, num in (("train", num_train), ("test", num_test)):
            row = np.arange(num)
            colours = np.stack([128 * (part == "train") + (row >> 16), row >> 8 & 255, row & 255], axis=-1)
            arrays[f"x_{part}"] = colours.astype(np.uint8).reshape(num, 1, 1, 3)
            labels = row % classes
            known = first.get(part, [])
            labels[: len(known)] = known
            arrays[f"y_{part}"] = labels
        np.savez(tmp_path / "images.npz", **arrays)
        return Images(
            "mine",
            source="npz",
            path="images.npz",
            image_shape=None,
            num_classes=None,
            benchmark=benchmark,
            **{"split": "benchmark", **settings},
        )

    return make


def rows(images: Images, part: str) -> tuple[str, list[int]]:
    """Of which of the two arrays a part is, and its rows."""
    x, y = images.split(part)
    pixels = (x[:, :, 0, 0] * 255).round().int()
    (of,) = set((pixels[:, 0] >> 7).tolist())
    found = ((pixels[:, 0] & 127) * 65536 + pixels[:, 1] * 256 + pixels[:, 2]).tolist()
    whole = images._load()["y_train" if of else "y_test"]
    assert y.tolist() == whole[found].tolist()
    return ("train" if of else "test"), found


def test_cifar10_halves_the_training_images_by_the_published_list(images: Make, tmp_path: Path) -> None:
    index_list(tmp_path, "cifar10")
    ours = images("cifar10", 50_000, 10_000, {"train": CIFAR10}, 10)
    assert rows(ours, "valid") == ("train", list(range(0, 50_000, 2)))
    assert rows(ours, "train") == ("train", list(range(1, 50_000, 2)))
    assert rows(ours, "all") == ("train", list(range(50_000)))
    assert rows(ours, "test") == ("test", list(range(10_000)))
    assert not ours.validates_on_test_images


@pytest.mark.parametrize(
    ("name", "num_test", "first", "classes"),
    [("cifar100", 10_000, {"test": CIFAR100}, 100), ("imagenet16", 6_000, {}, 120)],
)
def test_where_papers_validate_on_test_images_the_others_test(
    images: Make, tmp_path: Path, name: str, num_test: int, first: dict[str, list[int]], classes: int
) -> None:
    """All training images train, half of the test images validates, and no image of it is a test image."""
    index_list(tmp_path, name)
    ours = images(name, 500, num_test, first, classes)
    assert rows(ours, "valid") == ("test", list(range(0, num_test, 2)))
    assert rows(ours, "test") == ("test", list(range(1, num_test, 2)))
    assert rows(ours, "train") == rows(ours, "all") == ("train", list(range(500)))
    assert ours.validates_on_test_images
    half = "5,000" if name == "cifar100" else "3,000"
    assert f"validation on {half} of the test images" in ours.protocol


def test_ordered_validates_on_the_last_training_images(images: Make) -> None:
    """As EvNAS' code does on the DARTS space."""
    ours = images("mine", 10, 4, {}, 2, split="ordered", valid_fraction=0.3)
    assert rows(ours, "train") == ("train", [0, 1, 2, 3, 4, 5, 6])
    assert rows(ours, "valid") == ("train", [7, 8, 9])
    assert rows(ours, "test") == ("test", [0, 1, 2, 3])


def test_rules_have_other_identities_and_the_usual_one_that_of_before(images: Make) -> None:
    usual = images("cifar10", 10, 4, {}, 2, split="seeded")
    print_ = usual.fingerprint()
    assert usual.identity() == [print_, 0.2, 0, False, 0]
    others = [images("cifar10", 10, 4, {}, 2, split=split) for split in ("ordered", "benchmark")]
    assert [of.identity()[-1] for of in others] == ["ordered", "benchmark"]


@pytest.mark.parametrize(
    ("first", "size", "problem"),
    [
        ([3, 1, 2, 0, 0], 50_000, r"their first labels are \[3, 1, 2, 0, 0\], not \[6, 9, 9, 4, 1\]"),
        (CIFAR10, 10_000, "there are 10,000, not 50,000"),
    ],
)
def test_other_images_than_the_official_ones_are_refused(
    images: Make, tmp_path: Path, first: list[int], size: int, problem: str
) -> None:
    """A file that was shuffled, or holds some of the images, would be split otherwise."""
    index_list(tmp_path, "cifar10")
    ours = images("cifar10", size, 10, {"train": first}, 10)
    with pytest.raises(ValueError, match=problem):
        ours.split("train")
    assert len(ours.split("test")[0]) == 10  # the list says nothing of them


def test_a_list_that_is_missing_or_wrong_is_refused(images: Make, tmp_path: Path) -> None:
    ours = images("imagenet16", 10, 6_000, {}, 10)
    with pytest.raises(ValueError, match=r"120-test-split.txt' not found.*: hwnas data splits download"):
        ours.split("valid")
    index_list(tmp_path, "imagenet16", xtest=[0, 2])
    with pytest.raises(ValueError, match=r"does not have each of 0..5999 once in xvalid or xtest"):
        ours.split("test")
    (tmp_path / "imagenet-16-120-test-split.txt").write_text('{"xvalid": [1, 2]}')
    with pytest.raises(ValueError, match=r'must hold \{"xvalid": \["int", \[...\]\]\}'):
        ours.split("test")


def test_a_rule_that_is_unknown_or_has_no_list_is_refused() -> None:
    def make(split: Any) -> Images:
        return Images("digits", source="digits", image_shape=[1, 8, 8], num_classes=10, split=split)

    with pytest.raises(
        ValueError, match=r"split must be one of seeded, stratified, ordered, benchmark, not 'random'"
    ):
        make("random")
    problem = r"NAS-Bench-201 splits cifar10, cifar100, imagenet16 \(dataset.benchmark\), not digits"
    with pytest.raises(ValueError, match=problem):
        make("benchmark")


def test_words_say_what_is_comparable() -> None:
    assert splits.in_words("seeded", 0.5, "cifar10") == (
        "validation on 50% of the training images, a seeded draw (dataset.split=seeded); the search sees no "
        "test image"
    )
    assert splits.in_words("benchmark", 0.5, "cifar10").endswith("comparable to the papers' figures")


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves index lists of the published form, with sizes of their own."""
    import dataclasses

    published = tmp_path / "published"
    published.mkdir()
    for benchmark in splits.INDEX_LISTS:
        index_list(published, benchmark)

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, directory=str(published))

        def log_message(self, *args: Any) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as of:
        threading.Thread(target=of.serve_forever, daemon=True).start()
        for source in sources_of("splits"):
            size = (published / source.name).stat().st_size
            url = f"http://127.0.0.1:{of.server_port}/{source.name}"
            monkeypatch.setitem(SOURCES, source.name, dataclasses.replace(source, url=url, size=size))
        yield ""
        of.shutdown()


def test_the_lists_are_fetched_and_checked_by_one_command(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "data"
    monkeypatch.setenv("HWNAS_DATA", str(data))
    monkeypatch.chdir(tmp_path)
    assert command(["splits"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert f"imagenet-16-120-test-split.txt not in {data}; fetch now: hwnas data splits download" in error
    assert command(["splits", "download"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "cifar-split.txt: 25,000 of 50,000 train images of cifar10 validate",
        "cifar100-test-split.txt: 5,000 of 10,000 test images of cifar100 validate",
        "imagenet-16-120-test-split.txt: 3,000 of 6,000 test images of imagenet16 validate",
    ]
    assert sorted(path.name for path in data.iterdir()) == sorted(s.name for s in sources_of("splits"))


def test_a_search_that_validates_on_test_images_says_so(run_hwnas: Callable[..., Any]) -> None:
    words = ("search", "experiment=toy", "dataset=cifar100", "generations=1", "logger=csv")
    said = run_hwnas(*words, "dataset.split=benchmark", "hydra.run.dir=benchmark")
    warning = "warning: validation on 5,000 of the test images, as in the papers"
    assert warning in " ".join((said.stdout + said.stderr).split())
    clean = run_hwnas(*words, "hydra.run.dir=clean")
    assert "test images" not in clean.stdout + clean.stderr


def test_stratified_holds_out_the_same_fraction_of_every_class() -> None:
    """Of 10, 5 and 1 images of a class 4, 2 and 0 validate: the only image of a class trains."""
    labels = np.array([0] * 10 + [1] * 5 + [2])
    held, rest = splits.stratified(labels, 0.4)
    assert np.bincount(labels[held], minlength=3).tolist() == [4, 2, 0]
    assert sorted([*held, *rest]) == list(range(16))
    assert held.tolist() != sorted(held)
    assert np.array_equal(splits.stratified(labels, 0.4)[0], held)
    held, _ = splits.stratified(labels, 0.9, keep=2)
    assert np.bincount(labels[held], minlength=3).tolist() == [8, 3, 0]
