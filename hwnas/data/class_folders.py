"""A folder of your own images, a folder per class: read once, squared, kept in a memory-mapped cache.

Shapes: N images, C channels, S side.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import statistics
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, Literal, Unpack

import numpy as np
from annotated_types import Ge, Gt, Lt

from hwnas.build import locate
from hwnas.core import Count, WholeNumber, checked
from hwnas.data import splits
from hwnas.data.decoding import SUFFIXES, UnreadableError, each, size_and_grey, square
from hwnas.data.images import Images, MappedBatches, Passing, checked_classes
from hwnas.files import data_folder, printable, read_json, replacing, shaped, write_json

if TYPE_CHECKING:
    from torch import Tensor

PARTS = {
    "train": ("train", "training"),
    "valid": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of the folders of a split, in small letters."""

VERBS = {"train": "train", "valid": "validate", "test": "test"}

SIDES = (8, 12, 16, 20, 24, 28, 32, 48, 64, 96, 128, 160, 192, 224)
"""Sides that image_size=auto chooses among."""

SAMPLE = 500
"""Images that image_size=auto and channels=auto look at."""

RUNS = "multirun"
"""The folder that commands write into, where they are started: no class."""

MAX_FILES = 1_000_000
NAMED = 3
"""Files that a message names."""

SECONDS = 10.0
"""Time between two sentences on how many files are read."""

CACHE_VERSION = 1
FACTS = {
    "files": [str],
    "labels": [int],
    "shape": [int],
    **dict.fromkeys(PARTS, int),
    "repeated": int,
    "left_out": [[str]],
}
"""Shape of a cache's description, for `files.shaped`.

Files and labels of its images, the images' shape, how many are of each part, how many test images are also
training images, and files that are no images, with the reason.
"""

Facts = dict[str, Any]
"""A cache's description."""

Files = dict[str, list[tuple[str, int]]]
"""Per part "train", "valid" and "test" the images: file, relative to the folder, and label."""


class ClassFolders(Images):
    """Image files in a folder per class, with or without folders train, val and test around them.

    Without splits, a fraction of each class is the test set. With train/ and test/ the test set is theirs.
    With val/ too, it validates; val/ without test/ is the test set, as for ImageNet. Names of the folders
    are the names of the classes; their labels follow the alphabet.

    Files are decoded once, turned as EXIF says, put on white where transparent, and their centre square is
    scaled to `image_size`. The result lies in the store, and is read from there by memory-mapping until a
    file's name, size or time of change differs.

    Args:
        name: Name of the data set, part of the store's key; "folder" stands for the folder's name.
        path: The folder: absolute, or relative to the working folder or the data folder.
        image_size: Side of the square that networks see, in pixels; "auto": that of the images for which the
            space's networks were made, or the median image's shorter side; larger images than `auto_pixels`
            allows are scaled down.
        auto_pixels: Pixels per channel that all images may have together, for image_size="auto".
        channels: 1 (grey), 3, or "auto": 1 if all images that are looked at are grey.
        skip_corrupt: Whether files that are no readable images are left out; else they are an error.
        test_fraction: Fraction of each class that is the test set, where the folder has none.
        valid_fraction: Fraction of the training images that is held out for validation, where the folder
            does not say which.
        split: How these are drawn: "stratified", the same fraction of each class, or "seeded", of all images.
        crop: Padding of the random crop, in pixels; 0: no crop; "auto": a sixteenth of the side.
        flip: Whether to flip images left to right at random.
        cutout: Side of a square at a random place that gets the mean colour, in pixels; 0: none.
        search_space: Dotted name of the class of the space, for image_size="auto"; None: unknown.
        store_dir: Folder of the cache; None: none, the images stay in memory.
        announce: Called with sentences about what is read.
        warn: Called with a sentence on files that are left out.

    Raises:
        ValueError: A setting out of range; no such folder, or one that holds no images of at least two
            classes; too few images of a class; when the images are read, files that are no images.
    """

    @checked
    def __init__(
        self,
        name: str,
        *,
        path: str | None,
        image_size: Annotated[int, Ge(SIDES[0])] | Literal["auto"],
        auto_pixels: Count,
        channels: Literal[1, 3, "auto"],
        skip_corrupt: bool,
        test_fraction: Annotated[float, Gt(0), Lt(1)],
        valid_fraction: Annotated[float, Gt(0), Lt(1)],
        split: Literal["stratified", "seeded"],
        crop: WholeNumber | Literal["auto"],
        flip: bool,
        cutout: WholeNumber,
        search_space: str | None = None,
        store_dir: Path | None = None,
        announce: Callable[[str], None] = lambda text: None,
        warn: Callable[[str], None] = lambda text: None,
    ) -> None:
        if not path:
            raise ValueError("dataset=folder needs dataset.path=<folder with a folder of images per class>")
        self.folder, self._given = _place(path), f"dataset.path={path}"
        self._roots = _roots(self.folder, self._given)
        self._names, self._files, other = _listing(self.folder, self._roots, self._given)
        self._own_valid = "valid" in self._files
        self._draw_test(test_fraction)
        self._check_counts()
        self._skip, self._store_dir, self._announce, self._warn = skip_corrupt, store_dir, announce, warn
        self._sources: dict[str, list[str]] = {}
        self._valid = 0  # readable images of the folder's own validation set
        headers = self._headers()
        sides = [min(width, height) for width, height, _ in headers]
        side, reason = image_size, ""
        if image_size == "auto":
            num = sum(map(len, self._files.values()))
            side, reason = _auto_side(sides, num, auto_pixels, _made_for(search_space))
        if channels == "auto":
            channels = 1 if all(grey for _, _, grey in headers) else 3
        self.side = int(side)
        super().__init__(
            name if name != "folder" else f"folder-{self.folder.resolve().name}",
            source="folder",
            image_shape=[channels, self.side, self.side],
            num_classes=len(self._names),
            path=path,
            valid_fraction=valid_fraction,
            split=split,
            crop=self.side // 16 if crop == "auto" else crop,
            flip=flip,
            cutout=cutout,
        )
        announce(self._described(sides, reason))
        if other:
            announce(f"left out, because no image by its name ({', '.join(SUFFIXES)}): {_some(other)}")

    def __getstate__(self) -> dict[str, object]:
        """The state without images, and without whom to tell: a copy in another process reads the cache."""
        return {**super().__getstate__(), "_announce": _nobody, "_warn": _nobody}

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes' folders, sorted."""
        return self._names

    @property
    def protocol(self) -> str:
        """The images that validate, in words."""
        if self._own_valid:
            return (
                "validation on the images of the folder's own validation set; the search sees no test image"
            )
        return super().protocol

    @property
    def preparation(self) -> dict[str, object]:
        """How a file becomes an image of this data set, for the model card, as JSON."""
        return {"side": self.side, "mode": "L" if self.image_shape[0] == 1 else "RGB"}

    def file_names(self, part: str) -> Sequence[str]:
        """Files of a part's images, relative to the folder."""
        where, rows = self._rows(part)
        return [printable(name) for name in np.array(self._sources[where], dtype=object)[rows]]

    def fingerprint(self) -> str:
        """A hash of all images and labels, and of which of them the folder has for validation."""
        whole = super().fingerprint()
        return f"{whole}-{self._valid}" if self._own_valid else whole

    def batches(self, part: str, **passing: Unpack[Passing]) -> MappedBatches:
        """Passes over a part of the images, which are read as they are needed; see `split` and `Passing`."""
        (where, rows), arrays = self._rows(part), self._load()
        return MappedBatches((arrays[f"x_{where}"], arrays[f"y_{where}"]), rows, self, **passing)

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel over the training images, each (C, 1, 1)."""
        import torch

        if self._normalisation is None:
            x, (_, rows) = self._load()["x_train"], self._rows("train")
            counts = np.zeros((x.shape[3], 256))
            for some in np.array_split(np.arange(len(x))[rows], 1 + x.size // (1 << 26)):
                for channel, pixels in enumerate(np.moveaxis(x[some], 3, 0)):
                    counts[channel] += np.bincount(pixels.ravel(), minlength=256)
            values, num = np.arange(256) / 255, counts[0].sum()
            mean = counts @ values / num
            square_sums = (counts * (values - mean[:, None]) ** 2).sum(axis=1)
            std = np.sqrt(square_sums / (num - 1)).clip(1e-6)
            self._normalisation = (
                torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1),
                torch.tensor(std, dtype=torch.float32).view(-1, 1, 1),
            )
        return self._normalisation

    def _rows(self, part: str) -> tuple[str, np.ndarray | slice]:
        if not self._own_valid or part in ("all", "test"):
            return super()._rows(part)
        # The folder's own validation images are the last ones; random order, as of a draw.
        num = len(self._load()["y_train"])
        first = num - self._valid
        rows = np.arange(first) if part == "train" else np.arange(first, num)
        return "train", np.random.default_rng(splits.SPLIT_SEED).permutation(rows)

    def _draw_test(self, fraction: float) -> None:
        """Take the test images from the training images, if the folder has none."""
        if "test" in self._files:
            return
        files = self._files["train"]
        labels = np.array([label for _, label in files])
        test, _ = splits.stratified(labels, fraction, keep=2)
        drawn = set(test.tolist())
        self._files["test"] = [file for row, file in enumerate(files) if row in drawn]
        self._files["train"] = [file for row, file in enumerate(files) if row not in drawn]

    def _check_counts(self, left_out: Collection[str] = ()) -> None:
        """Raise ValueError if a class lacks images in a part: two that train, of which one is held out.

        Args:
            left_out: Files that do not count.
        """
        for part, files in self._files.items():
            needed = 2 if part == "train" and not self._own_valid else 1
            labels = [label for name, label in files if name not in left_out]
            counts = np.bincount(np.array(labels, dtype=np.int64), minlength=len(self._names))
            if (few := int(counts.min())) < needed:
                raise ValueError(
                    f"{self._given}: class {self._names[int(counts.argmin())]} has {few} readable images "
                    f"to {VERBS[part]} on, and needs at least {needed}; add images, or remove the class"
                )

    def _headers(self) -> list[tuple[int, int, bool]]:
        """Width, height and greyness of the images that are looked at, evenly spread.

        Raises:
            ValueError: None of them can be read.
        """
        files = [name for part in self._files.values() for name, _ in part]
        step = -(-len(files) // SAMPLE)
        looked_at = [self.folder / name for name in sorted(files)[::step]]
        found = list(each(looked_at, size_and_grey))
        headers = [header for header in found if not isinstance(header, UnreadableError)]
        if not headers:
            raise ValueError(f"{self._given}: no file is a readable image, e.g. {looked_at[0]} ({found[0]})")
        return headers

    def _described(self, sides: Sequence[int], reason: str) -> str:
        """What the folder holds, in a line."""
        counts = np.bincount([label for files in self._files.values() for _, label in files])
        few, many = int(counts.min()), int(counts.max())
        each_class = f"{few:,} each" if few == many else f"{few:,} to {many:,} each"
        parts = ", ".join(self._part_described(part) for part in PARTS if part in self._files)
        C, S, _ = self.image_shape
        text = (
            f"{self.name}: {counts.sum():,} images of {len(counts)} classes, {each_class} ({parts}); shorter "
            f"sides of {min(sides)} to {max(sides)} pixels become {S}x{S}, {C} channel{'s' * (C > 1)}{reason}"
        )
        if many > 2 * few:
            text += "; classes are unequal, so look at the balanced accuracy beside the accuracy"
        return text

    def _part_described(self, part: str) -> str:
        """How many images a part has, and where they come from, e.g. "6 drawn to test"."""
        drawn, root = "" if part in self._roots else "drawn ", self._roots.get(part, self.folder)
        own = "" if root == self.folder else f" in {root.name}/"
        return f"{len(self._files[part]):,}{own} {drawn}to {VERBS[part]}"

    def _load(self) -> dict[str, np.ndarray]:
        if self._arrays is None:
            files = [file for part in PARTS for file in self._files.get(part, [])]
            path = None if self._store_dir is None else self._store_dir / "images" / f"{self._key(files)}.bin"
            known = None if path is None else _cached(path)
            if path is not None and known is None and not _writable(path.parent):
                path = None
            pixels, facts = self._read(files, path) if known is None else known
            self._check_readable(facts["left_out"], len(files))
            self._valid, num = facts["valid"], facts["train"] + facts["valid"]
            self._sources = {"train": facts["files"][:num], "test": facts["files"][num:]}
            labels = np.array(facts["labels"], dtype=np.int64)
            self._arrays = {
                "x_train": pixels[:num],
                "y_train": labels[:num],
                "x_test": pixels[num:],
                "y_test": labels[num:],
            }
            if repeated := facts["repeated"]:
                self._warn(
                    f"{repeated:,} of the {len(pixels) - num:,} test images are training images, too, pixel "
                    "by pixel: the test accuracy says less of new images"
                )
        return self._arrays

    def _key(self, files: Sequence[tuple[str, int]]) -> str:
        """A hash of the names, sizes and times of all files, and of what they become."""
        stats = [(self.folder / name).stat() for name, _ in files]
        content = [
            CACHE_VERSION,
            str(self.folder.resolve()),  # archives give the files of different folders the same times
            self.image_shape,
            {part: len(listed) for part, listed in self._files.items()},
            [(*file, stat.st_size, stat.st_mtime_ns) for file, stat in zip(files, stats, strict=True)],
        ]
        return hashlib.blake2b(json.dumps(content).encode(), digest_size=12).hexdigest()

    def _read(self, files: Sequence[tuple[str, int]], path: Path | None) -> tuple[np.ndarray, Facts]:
        """Images (N, S, S, C) of all readable files, and their description; kept in `path`, if given."""
        self._announce(
            f"reading {len(files):,} image files" + (f", once; kept in {path.parent}" if path else "")
        )
        if path is None:
            memory = io.BytesIO()
            facts = self._decode(files, memory)
            return np.frombuffer(memory.getbuffer(), np.uint8).reshape(facts["shape"]), facts
        with replacing(path) as partial, partial.open("wb") as stream:
            facts = self._decode(files, stream)
        write_json(path.with_suffix(".json"), facts)  # last: it makes the cache whole
        return _mapped(path, facts), facts

    def _decode(self, files: Sequence[tuple[str, int]], stream: IO[bytes]) -> Facts:
        """Write the pixels of all readable files to a stream; returns their description."""
        C, S, _ = self.image_shape
        part_of = {name: part for part, listed in self._files.items() for name, _ in listed}
        counts, kept, left_out = dict.fromkeys(PARTS, 0), [], []
        seen, repeated, said = set(), 0, time.monotonic()
        found = each([self.folder / name for name, _ in files], lambda file: square(file, S, grey=C == 1))
        for number, (file, image) in enumerate(zip(files, found, strict=True), 1):
            if isinstance(image, UnreadableError):
                left_out.append([file[0], str(image)])
                continue
            pixels, part = image.tobytes(), part_of[file[0]]
            stream.write(pixels)
            kept.append(file)
            counts[part] += 1
            if part != "test":
                seen.add(hash(pixels))
            elif hash(pixels) in seen:
                repeated += 1
            if time.monotonic() > said + SECONDS:
                said = time.monotonic()
                self._announce(f"  {number:,} of {len(files):,} image files")
        return {
            "files": [name for name, _ in kept],
            "labels": [label for _, label in kept],
            "shape": [len(kept), S, S, C],
            **counts,
            "repeated": repeated,
            "left_out": left_out,
        }

    def _check_readable(self, left_out: Sequence[Sequence[str]], num: int) -> None:
        """Raise ValueError if files are no readable images and may not be left out, or too few are left."""
        if not left_out:
            return
        named = "; ".join(f"{printable(name)}: {printable(why)}" for name, why in left_out[:NAMED])
        text = (
            f"{self._given}: {len(left_out):,} of {num:,} files cannot be read as images ({named}"
            f"{'; ...' if len(left_out) > NAMED else ''})"
        )
        if not self._skip:
            raise ValueError(f"{text}; repair or remove them, or leave them out: dataset.skip_corrupt=true")
        self._check_counts({name for name, _ in left_out})
        self._warn(f"{text}; they are left out")


def _nobody(text: str) -> None:
    """Tell nobody."""


def _cached(path: Path) -> tuple[np.ndarray, Facts] | None:
    """What a cache holds; None if it is not whole."""
    try:
        facts = read_json(path.with_suffix(".json"))
        shaped(facts, FACTS)
        return _mapped(path, facts), facts
    except (OSError, ValueError):
        return None


def _mapped(path: Path, facts: Facts) -> np.ndarray:
    """The pixels of a cache; changes would stay in memory."""
    if facts["shape"][0] == 0:  # nothing can be mapped
        return np.empty(facts["shape"], np.uint8)
    if path.stat().st_size != np.prod(facts["shape"]):
        raise ValueError(f"{path} is not whole")
    return np.memmap(path, np.uint8, mode="c", shape=tuple(facts["shape"]))


def _writable(folder: Path) -> bool:
    """Whether files can be written into a folder, which may have to be made."""
    while not folder.exists():
        folder = folder.parent
    return os.access(folder, os.W_OK)


def _made_for(search_space: str | None) -> int | None:
    """The side of the images that the networks of a space's class were made for; None: any, or unknown."""
    return None if search_space is None else getattr(locate(search_space, "search_space"), "made_for", None)


def _auto_side(sides: Sequence[int], num: int, auto_pixels: int, made_for: int | None) -> tuple[int, str]:
    """A side for the images, and why.

    Args:
        sides: Shorter sides of images that were looked at, in pixels.
        num: Number of images.
        auto_pixels: Pixels per channel that all images may have together; 32x32 is always allowed.
        made_for: Side that the space's networks were made for; None: any.
    """
    median = int(statistics.median(sides))
    fitting = [side for side in SIDES if side <= max(median, SIDES[0])]
    allowed = [side for side in fitting if made_for is None or side <= made_for]
    cheap = [side for side in allowed if side <= 32 or num * side**2 <= auto_pixels]
    side = cheap[-1]
    if side < allowed[-1]:
        why = f"{num:,} larger images are more than dataset.auto_pixels={auto_pixels:,}"
    elif side == made_for:
        why = "for images of this size the space's networks were made"
    else:
        why = f"the median shorter side is {median} pixels"
    return side, f" (dataset.image_size=auto: {why})"


def _place(path: str) -> Path:
    """The folder of a data set.

    Raises:
        ValueError: It does not exist, or is a file.
    """
    places = [Path(path).expanduser(), data_folder() / path]
    for place in places:
        if place.is_dir():
            return place.absolute()
        if place.is_file():
            raise ValueError(
                f"dataset.path={path} is a file; a folder with a folder of images per class is needed "
                "(dataset=npz reads a file of arrays)"
            )
    looked = " and ".join(str(place.absolute()) for place in dict.fromkeys(places))
    raise ValueError(f"dataset.path={path} is not a folder; looked for {looked}")


def _listing(folder: Path, roots: Mapping[str, Path], given: str) -> tuple[list[str], Files, list[str]]:
    """Names of the classes, images per part that the folder has, and other files, relative to the folder.

    Raises:
        ValueError: Another layout; begins with `given`.
    """
    names = _folders(roots["train"])
    for root in roots.values():
        if odd := sorted(set(_folders(root)) ^ set(names)):
            raise ValueError(
                f"{given}: {roots['train'].name}/ and {root.name}/ must have the same classes; only one of "
                f"them has {', '.join(odd[:NAMED])}"
            )
    if len(names) < 2:
        has = f"one class, {names[0]}" if names else "no folders"
        deeper = [name for name in names if len(_folders(roots["train"] / name)) > 1]
        hint = f"; did you mean {given}/{deeper[0]}?" if deeper and roots["train"] == folder else ""
        raise ValueError(
            f"{given}: {roots['train']} has {has}; a classifier needs images of at least two classes, each "
            f"in a folder{hint}"
        )
    checked_classes(names, given)
    files: Files = {}
    other: list[str] = []
    for part, root in roots.items():
        files[part] = []
        for label, name in enumerate(names):
            found = sorted(file.relative_to(folder).as_posix() for file in _walk(root / name))
            images = [file for file in found if file.lower().endswith(SUFFIXES)]
            other += [file for file in found if not file.lower().endswith(SUFFIXES)]
            if not images:
                raise ValueError(
                    f"{given}: {root / name} has no images ({', '.join(SUFFIXES)}); add some, or remove the "
                    "folder"
                )
            files[part] += [(file, label) for file in images]
            if sum(map(len, files.values())) + len(other) > MAX_FILES:
                raise ValueError(
                    f"{given} has more than {MAX_FILES:,} files; dataset=imagenet reads such sets"
                )
    return names, files, other


def _roots(folder: Path, given: str) -> dict[str, Path]:
    """Folders of the parts, "train" always; the folder itself where its folders are classes.

    A folder train, val or test is a part if it has folders itself; else it may be the class of trains.
    """
    inside = _folders(folder)
    parts: dict[str, list[str]] = {}
    for name in inside:
        part = next((part for part, names in PARTS.items() if name.lower() in names), None)
        if part is not None and _folders(folder / name):
            parts.setdefault(part, []).append(name)
    named = [name for names in parts.values() for name in names]
    if "train" in parts:
        if others := [name for name in inside if name not in named]:
            raise ValueError(
                f"{given} has {others[0]}/ beside {parts['train'][0]}/, which has classes in it; beside it "
                "there may be val/ and test/ with folders of the same classes"
            )
        if double := [names for names in parts.values() if len(names) > 1]:
            raise ValueError(f"{given} has both {' and '.join(double[0])}; one of them is needed")
        if "test" not in parts and "valid" in parts:
            parts["test"] = parts.pop("valid")  # as for ImageNet: reports alone see these
        return {part: folder / names[0] for part, names in parts.items()}
    if inside and len(named) == len(inside):
        raise ValueError(f"{given} has {' and '.join(named)} but no train/")
    known = [name for names in PARTS.values() for name in names]
    if inside and all(name.lower() in known for name in inside):
        raise ValueError(
            f"{given}: {inside[0]}/ has no folders; the images of each class need a folder in it"
        )
    return {"train": folder}


def _folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted, without hidden ones and that of runs."""
    return sorted(
        name
        for name in os.listdir(folder)
        if not name.startswith((".", "__")) and name != RUNS and (folder / name).is_dir()
    )


def _walk(root: Path) -> Iterator[Path]:
    """The files below a folder, without hidden ones; each folder once, also where links lead in circles."""
    seen, waiting = set(), [root]
    while waiting:
        folder = waiting.pop()
        stat = folder.stat()
        if (stat.st_dev, stat.st_ino) in seen:
            continue
        seen.add((stat.st_dev, stat.st_ino))
        for name in os.listdir(folder):
            path = folder / name
            if name.startswith("."):
                continue
            if path.is_dir():
                waiting.append(path)
            elif path.is_file():
                yield path


def _some(names: Sequence[str]) -> str:
    """A few names, and how many there are."""
    more = len(names) - NAMED
    return ", ".join(map(printable, names[:NAMED])) + (f" and {more:,} more" if more > 0 else "")
