"""Image data sets that fit into memory: seeded splits, and augmentation of whole batches.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Required, TypedDict, Unpack

import numpy as np
from annotated_types import Gt, Len, Lt

from hwnas.core import Count, WholeNumber, checked, seed_of
from hwnas.data import splits
from hwnas.data.arrays import UNREADABLE, arrays_of
from hwnas.files import data_folder, find_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PATIENCE_SECONDS = 10.0
"""Time that a download waits for a server that does not answer."""

KEYS = ("x_train", "y_train", "x_test", "y_test")
"""Arrays of an .npz file of images."""


def word(name: str) -> str:
    """The name of a data set, checked: it becomes part of file names."""
    if not name.isprintable() or not name or {"/", "\\"} & set(name):
        raise ValueError(f"name must be a word without / and \\, not {name!r}")
    return name


class DataSet(ABC):
    """A data set: images and classes that networks are built for.

    Attributes:
        name: Part of the store's key.
    """

    name: str

    @property
    @abstractmethod
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (channels, height, width)."""

    @property
    @abstractmethod
    def num_classes(self) -> int:
        """Number of classes."""

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes, in the order of their labels; None: they have numbers only."""
        return None

    def file_names(self, part: str) -> Sequence[str] | None:
        """Names of the files of a part's images, in order; None: they are not files of their own."""
        return None


class NoImages(DataSet):
    """Takes the place of a data set where no network is built (the toy space).

    Args:
        name: Part of the store's key.
    """

    image_shape = (1, 1, 1)
    num_classes = 1

    @checked
    def __init__(self, name: str) -> None:
        self.name = word(name)


class Images(DataSet):
    """An image classification data set; its images are read on first use.

    Args:
        name: Name of the data set, part of the store's key; "npz" stands for the file's name.
        source: "digits" (scikit-learn), "npz", or a class of torchvision.datasets, e.g. "CIFAR10".
        image_shape: (channels, height, width); None reads it from the file.
        num_classes: Number of classes; None counts them in the file.
        path: File for source "npz": absolute, or relative to the working folder or the data folder. For other
            sources, a file of the data folder that is read, if it exists, instead of downloading.
        valid_fraction: Fraction of the training images that is held out for validation; split "benchmark"
            does not use it.
        split: Which images validate. "seeded": a seeded draw of the training images; "stratified": one of
            each class; "ordered": the last of them; "benchmark": NAS-Bench-201's index lists. For CIFAR-100
            and ImageNet16-120 these halve the test images: one half validates, and the other is "test".
        crop: Padding of the random crop, in pixels; 0: no crop.
        flip: Whether to flip images left to right at random.
        cutout: Side of a square at a random place that gets the mean colour, in pixels; 0: none.
        benchmark: Name of the data set in the columns of benchmark tables; None: `name`.
        shrink: Whether larger images, by a whole factor, are averaged over squares down to `image_shape`.

    Raises:
        ValueError: A setting out of range; when the images are read, a file that is missing or malformed.
    """

    @checked
    def __init__(
        self,
        name: str,
        *,
        source: str,
        image_shape: Annotated[Sequence[Count], Len(3, 3)] | None,
        num_classes: Count | None,
        path: str | None = None,
        valid_fraction: Annotated[float, Gt(0), Lt(1)] = 0.2,
        split: splits.Split = "seeded",
        crop: WholeNumber = 0,
        flip: bool = False,
        cutout: WholeNumber = 0,
        benchmark: str | None = None,
        shrink: bool = False,
    ) -> None:
        self.name = word(name)
        self.benchmark = self.name if benchmark is None else benchmark
        self.source = source
        self.path = path
        self.valid_fraction = valid_fraction
        self.split_rule = splits.check(split, self.benchmark)
        self.crop, self.flip, self.shrink, self.cutout = crop, flip, shrink, cutout
        self._shape = image_shape
        self._num_classes = num_classes
        self._classes: Sequence[str] | None = None
        self._arrays: dict[str, np.ndarray] | None = None
        self._normalisation: tuple[Tensor, Tensor] | None = None
        if source == "npz":
            if not path:
                raise ValueError(
                    "dataset=npz needs dataset.path=<file with x_train, y_train, x_test, y_test>"
                )
            if Path(path).is_dir():
                raise ValueError(
                    f"dataset.path={path} is a folder; a file is needed here (dataset=folder takes a folder)"
                )
            if name == "npz":  # another name is the user's choice
                self.name = f"npz-{Path(path).stem}"

    def __getstate__(self) -> dict[str, object]:
        """The state without images: a copy in another process reads them itself."""
        return {**self.__dict__, "_arrays": None, "_normalisation": None}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        if self._shape is None:
            height, width, channels = self._load()["x_train"].shape[1:]
            self._shape = [channels, height, width]
        channels, height, width = self._shape
        return channels, height, width

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        if self._num_classes is None:
            self._num_classes = int(self._load()["y_train"].max()) + 1
        return self._num_classes

    @property
    def classes(self) -> Sequence[str] | None:
        """Names of the classes: the array `class_names` of an .npz file, if it has one."""
        if self.source == "npz":
            self._load()
        return self._classes

    def _load(self) -> dict[str, np.ndarray]:
        """x_train, y_train, x_test, y_test: uint8 (N, H, W, C) and int64 (N,)."""
        if self._arrays is None:
            if self.source == "digits":
                arrays = _digits()
            elif self.path and (self.source == "npz" or (data_folder() / self.path).is_file()):
                arrays = read_npz(find_file(self.path))
            else:
                arrays = _torchvision(self.source)
            if self.shrink and self._shape is not None:
                arrays = {key: _shrunk(a, self._shape) if a.ndim == 4 else a for key, a in arrays.items()}
            height, width, channels = arrays["x_train"].shape[1:]
            for setting, given, found in (
                ("image_shape", self._shape, [channels, height, width]),
                ("num_classes", self._num_classes, int(arrays["y_train"].max()) + 1),
            ):
                if given is not None and list(np.atleast_1d(given)) != list(np.atleast_1d(found)):
                    raise ValueError(
                        f"dataset.{setting} of {self.name} is {given}, but its images have {found}"
                    )
            if self.source == "npz" and self.path:
                self._classes = class_names(find_file(self.path), int(arrays["y_train"].max()) + 1)
            self._arrays = arrays
        return self._arrays

    @property
    def augmentation(self) -> dict[str, object]:
        """Random changes of training images, as JSON."""
        # Squares were filled with black at first, and identities of that time have no word for it.
        fill = {"cutout_fill": "mean"} if self.cutout else {}
        return {"crop": self.crop, "flip": self.flip, "cutout": self.cutout, **fill}

    def identity(self) -> list[object]:
        """All that trained weights depend on, as JSON: images, labels, split, augmentation."""
        rule = [] if self.split_rule == "seeded" else [self.split_rule]  # the first rule is not named
        return [self.fingerprint(), self.valid_fraction, *self.augmentation.values(), *rule]

    @property
    def protocol(self) -> str:
        """The images that validate, in words."""
        return splits.in_words(self.split_rule, self.valid_fraction, self.benchmark)

    @property
    def validates_on_test_images(self) -> bool:
        """Whether half of the test images validate, as in the papers; "test" is then the other half."""
        return self.split_rule == "benchmark" and splits.INDEX_LISTS[self.benchmark].halves == "test"

    def fingerprint(self) -> str:
        """A hash of all images and labels."""
        digest = hashlib.blake2b(digest_size=8)
        for key, array in sorted(self._load().items()):
            digest.update(key.encode() + str(array.shape).encode())
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    def split(self, part: str) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) in 0..1, float32, and labels (N,), int64.

        Args:
            part: "train" or "valid", by the rule of the split; "all", every training image; or "test", which
                only final training and reports may use. No image is in both "valid" and "test".
        """
        import torch

        arrays = self._load()
        where, rows = self._rows(part)
        return as_floats(arrays[f"x_{where}"][rows]), torch.from_numpy(arrays[f"y_{where}"][rows])

    def size(self, part: str) -> int:
        """Number of images of a part."""
        where, rows = self._rows(part)
        return len(self._load()[f"y_{where}"][rows])

    def _rows(self, part: str) -> tuple[str, np.ndarray | slice]:
        """The images of a part: "train" or "test", and their rows there."""
        return splits.rows(
            part,
            self._load(),
            split=self.split_rule,
            valid_fraction=self.valid_fraction,
            benchmark=self.benchmark,
        )

    def batches(self, part: str, **passing: Unpack[Passing]) -> Batches | MappedBatches:
        """Passes over a part of the images; see `split` and `Passing`."""
        return Batches(self.split(part), self, **passing)

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel over the training images, each (C, 1, 1)."""
        if self._normalisation is None:
            x, _ = self.split("train")
            std = x.std(dim=(0, 2, 3)).clamp_min(1e-6)
            self._normalisation = x.mean(dim=(0, 2, 3)).view(-1, 1, 1), std.view(-1, 1, 1)
        return self._normalisation


AUTO_SIDES = (16, 64)
"""Smallest and largest side of images that are averaged to half their side; a choice of this project."""


def smaller_side(image_size: int | Literal["auto"] | None, image_shape: Sequence[int]) -> int | None:
    """Side that images are averaged to, in pixels; None: as they are.

    Args:
        image_size: The side; "auto": half of the images' own, within `AUTO_SIDES`.
        image_shape: (channels, height, width) of the images.
    """
    if image_size != "auto":
        return image_size
    own, (least, most) = min(image_shape[1:]), AUTO_SIDES
    side = max(least, min(most, own // 2))
    return side if side < own else None


class SmallerImages:
    """The images of a data set averaged to fewer pixels, and a part of its validation images.

    Short trainings see them; they stay in memory as they are needed.

    Args:
        dataset: The images.
        image_size: Height and width, in pixels; None, or not below the data set's: as they are.
        num_valid: Validation images, the first ones of the split; None, or more than there are: all.
        augment: The random changes of training images: the data set's ("dataset"), or of these only its
            flips ("flip"), from which a short training learns more.
    """

    def __init__(
        self,
        dataset: Images,
        image_size: int | None,
        num_valid: int | None,
        augment: Literal["dataset", "flip"] = "dataset",
    ) -> None:
        self.dataset, self.num_valid = dataset, num_valid
        height, width = dataset.image_shape[1:]
        smaller = image_size is not None and image_size < min(height, width)
        self.image_size = image_size if smaller else None
        factor = image_size / height if smaller and image_size is not None else 1.0
        moved = factor if augment == "dataset" else 0.0
        self.crop, self.cutout = round(dataset.crop * moved), round(dataset.cutout * moved)
        self.flip = dataset.flip
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}

    def __getstate__(self) -> dict[str, object]:
        """The state without images: a copy in another process reads them itself."""
        return {**self.__dict__, "_parts": {}}

    @property
    def whole(self) -> bool:
        """Whether the images are those of the data set, and all of them."""
        return self.image_size is None and self.num_valid is None

    @property
    def augmentation(self) -> dict[str, object]:
        """Random changes of training images, as JSON; those of the data set in proportion."""
        return {"crop": self.crop, "flip": self.flip, "cutout": self.cutout}

    def split(self, part: str) -> tuple[Tensor, Tensor]:
        """Images (N, C, H, W) in 0..1 and labels (N,); see `Images.split`."""
        if part not in self._parts:
            import torch.nn.functional as F

            x, y = self.dataset.split(part)
            if part == "valid" and self.num_valid is not None:
                x, y = x[: self.num_valid], y[: self.num_valid]
            if self.image_size is not None:
                x = F.interpolate(x, (self.image_size, self.image_size), mode="area")
            self._parts[part] = x, y
        return self._parts[part]

    def batches(self, part: str, **passing: Unpack[Passing]) -> Batches:
        """Passes over a part of the images; see `Passing`."""
        return Batches(self.split(part), self, **passing)

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation per channel of the data set, each (C, 1, 1)."""
        return self.dataset.normalisation()


def check_images(user: str, dataset: object) -> None:
    """See that a data set has images in memory.

    Args:
        user: Who needs them, e.g. "evaluator=train".
        dataset: What was chosen.

    Raises:
        ValueError: It has none.
    """
    if not isinstance(dataset, Images):
        raise ValueError(f"{user} needs images; choose a dataset that is held in memory, e.g. folder")


def check_batch(setting: str, batch_size: int, num_images: int, devices: int = 1) -> None:
    """Raise ValueError if the training images do not fill one batch of each device.

    Args:
        setting: Name of the setting, for the message.
        batch_size: Images per batch and device.
        num_images: Number of training images.
        devices: Number of devices that divide the images among them.
    """
    if num_images < batch_size * devices:
        each = f" on each of {devices} devices" if devices > 1 else ""
        raise ValueError(
            f"{setting}={batch_size}{each} is more than the {num_images:,} training images; it can be at "
            f"most {num_images // devices}"
        )


class Passing(TypedDict, total=False):
    """Settings of passes over images.

    Attributes:
        batch_size: Images per batch; a last incomplete batch is left out while training.
        seed: Seed of shuffles and augmentation; 0 by default.
        train: Whether to shuffle and augment, the default; if not, a pass goes over all images in order.
        num_shards: Number of processes that divide a pass among them, by rank; 1 by default.
    """

    batch_size: Required[int]
    seed: int
    train: bool
    num_shards: int


class Passes:
    """Passes over images in batches, each with a shuffle of its own: the base of `Batches` and `FileBatches`.

    Args:
        num_images: Number of images.
        batch_size: As for `Passing`; so are the others.

    Attributes:
        epoch: Number of the next pass; its shuffle and augmentation depend on it.
        weights: Probabilities of the images, shape (N,), by which training passes draw as many with
            replacement; None: each once.
        rows: Images of the latest training pass, in order.

    Raises:
        ValueError: While training, fewer images than one batch per process.
    """

    def __init__(
        self, num_images: int, *, batch_size: int, seed: int = 0, train: bool = True, num_shards: int = 1
    ) -> None:
        if train:
            check_batch("batch_size", batch_size, num_images, num_shards)
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.train, self.num_shards = train, num_shards
        self.epoch = 0
        self.weights: Tensor | None = None
        self.rows: Tensor | None = None
        self._device: torch.device | None = None

    def to(self, device: torch.device, *, resident: bool) -> None:
        """Give training batches on a device, where those in memory are augmented, too.

        Args:
            device: The device.
            resident: Whether images in memory all go there, or each batch when it is needed.
        """
        self._device = device

    def _sent(self, *tensors: Tensor) -> Iterator[Tensor]:
        """A batch on the device, by way of pinned memory, from which a GPU copies while it computes."""
        for tensor in tensors:
            if self._device is None or tensor.device == self._device:
                yield tensor
            else:
                pinned = tensor.pin_memory() if self._device.type == "cuda" else tensor
                yield pinned.to(self._device, non_blocking=True)

    def __len__(self) -> int:
        """Batches per pass."""
        if self.train:
            return self.num_images // (self.batch_size * self.num_shards)
        return -(-self.num_images // self.batch_size)

    def _shuffle(self) -> tuple[Tensor, torch.Generator]:
        """Rows of this process in the next training pass, in order, and a generator for augmentation."""
        import torch
        import torch.distributed as dist

        generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        self.epoch += 1
        if self.weights is None:
            order = torch.randperm(self.num_images, generator=generator)
        else:
            order = torch.multinomial(self.weights, self.num_images, replacement=True, generator=generator)
        if self.num_shards > 1:
            order = order[(dist.get_rank() if dist.is_initialized() else 0) :: self.num_shards]
            generator.manual_seed(seed_of(int(order[0]), self.seed))
        self.rows = order[: len(self) * self.batch_size]
        return self.rows, generator


class Batches(Passes):
    """Augmented batches of images that lie in memory as a whole.

    Args:
        images: Images (N, C, H, W) in 0..1, and labels (N,).
        dataset: Names the augmentation.
        passing: Settings of the passes.

    Attributes:
        x: The images.
        y: Their labels.
    """

    def __init__(
        self, images: tuple[Tensor, Tensor], dataset: Images | SmallerImages, **passing: Unpack[Passing]
    ) -> None:
        (self.x, self.y), self.dataset = images, dataset
        super().__init__(len(self.x), **passing)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(images (B, C, H, W), labels (B,)) per batch."""
        if not self.train:
            yield from zip(self.x.split(self.batch_size), self.y.split(self.batch_size), strict=True)
            return
        order, generator = self._shuffle()
        for rows in order.to(self.x.device).split(self.batch_size):
            x, y = self._sent(self.x[rows], self.y[rows])
            yield augment(x, self.dataset, generator), y

    def to(self, device: torch.device, *, resident: bool) -> None:
        """Give training batches on a device, where they are augmented, too.

        Args:
            device: The device.
            resident: Whether all images go there, or each batch when it is needed.
        """
        super().to(device, resident=resident)
        home = device if resident else "cpu"
        self.x, self.y = self.x.to(home), self.y.to(home)


class MappedBatches(Passes):
    """Augmented batches of images that lie in a memory-mapped file; a batch is read when it is needed.

    Args:
        images: Images (N, H, W, C), uint8, and labels (N,).
        rows: Which of them, in order.
        dataset: Names the augmentation.
        passing: Settings of the passes.
    """

    def __init__(
        self,
        images: tuple[np.ndarray, np.ndarray],
        rows: np.ndarray | slice,
        dataset: Images,
        **passing: Unpack[Passing],
    ) -> None:
        (self.pixels, self.labels), self.dataset = images, dataset
        self.part = np.arange(len(self.labels))[rows]
        super().__init__(len(self.part), **passing)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(images (B, C, H, W), labels (B,)) per batch."""
        import torch

        order, generator = self._shuffle() if self.train else (torch.arange(self.num_images), None)
        for chosen in order.split(self.batch_size):
            rows = self.part[chosen.numpy()]
            x, y = as_floats(self.pixels[rows]), torch.from_numpy(self.labels[rows])
            if generator is not None:
                x, y = self._sent(x, y)
                x = augment(x, self.dataset, generator)
            yield x, y


def as_floats(pixels_NHWC: np.ndarray) -> Tensor:
    """Images (N, H, W, C), uint8, as float32 (N, C, H, W) in 0..1."""
    import torch

    return torch.from_numpy(np.ascontiguousarray(pixels_NHWC.transpose(0, 3, 1, 2))).float().div_(255)


def augment(x_BCHW: Tensor, dataset: Images | SmallerImages, generator: torch.Generator) -> Tensor:
    """Random crop, flip and cutout of a whole batch, as the data set asks; keeps (B, C, H, W).

    A crop's border is black. A cut square has the data set's mean colour, which normalisation turns into 0:
    DARTS and its successors crop, flip, normalise, and then cut out (DeVries and Taylor, 2017).

    Args:
        x_BCHW: Images in 0..1, on any device.
        dataset: Names the changes.
        generator: Source of randomness, on the CPU, so that every device gets the same draws.
    """
    import torch
    import torch.nn.functional as F

    B, _, H, W = x_BCHW.shape
    device = x_BCHW.device
    if dataset.crop:
        pad = dataset.crop
        padded = F.pad(x_BCHW, (pad, pad, pad, pad))
        top, left = torch.randint(2 * pad + 1, (2, B, 1), generator=generator).to(device, non_blocking=True)
        rows, columns = top + torch.arange(H, device=device), left + torch.arange(W, device=device)
        images = torch.arange(B, device=device)[:, None, None, None]
        channels = torch.arange(x_BCHW.shape[1], device=device)[None, :, None, None]
        x_BCHW = padded[images, channels, rows[:, None, :, None], columns[:, None, None, :]]
    if dataset.flip:
        flipped = (torch.rand(B, generator=generator) < 0.5).to(device, non_blocking=True)
        x_BCHW = torch.where(flipped[:, None, None, None], x_BCHW.flip(3), x_BCHW)
    if dataset.cutout:
        side = dataset.cutout
        y = torch.randint(H, (B, 1), generator=generator)
        x = torch.randint(W, (B, 1), generator=generator)
        y, x = torch.stack([y, x]).to(device, non_blocking=True)
        row, column = torch.arange(H, device=device), torch.arange(W, device=device)
        in_rows = (row >= y - side // 2) & (row < y - side // 2 + side)
        in_columns = (column >= x - side // 2) & (column < x - side // 2 + side)
        cut = in_rows[:, None, :, None] & in_columns[:, None, None, :]
        mean, _ = dataset.normalisation()
        x_BCHW = torch.where(cut, mean.to(device, non_blocking=True), x_BCHW)
    return x_BCHW


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """x_train, y_train, x_test, y_test of an .npz file, as uint8 (N, H, W, C) and int64 (N,).

    Images may be uint8, or floats in 0..1; (N, H, W) means one channel. Labels are whole numbers from 0.

    Raises:
        ValueError: Not an .npz file, a key is missing, or an array has the wrong shape, type or range.
    """
    try:
        with arrays_of(path) as file:
            lacking = [key for key in KEYS if key not in file.files]
            if lacking:
                raise ValueError(f"{path} lacks {', '.join(lacking)}; it has {', '.join(file.files)}")
            arrays = {key: file[key] for key in KEYS}
    except (*UNREADABLE, OSError) as error:
        if isinstance(error, ValueError) and str(path) in str(error):
            raise
        if "pickle" in str(error):
            raise ValueError(f"{path} holds Python objects; only plain arrays are read") from None
        raise ValueError(f"{path} is not a readable .npz file ({error})") from None
    for part in ("train", "test"):
        x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
        arrays[f"x_{part}"] = x = _uint8(x, f"x_{part} of {path}")
        if y.shape != (len(x),) or y.dtype.kind not in "iu":
            raise ValueError(
                f"y_{part} of {path} must be {len(x)} whole numbers, not {y.dtype} of shape {y.shape}"
            )
        if len(y) == 0 or y.min() < 0:
            raise ValueError(f"y_{part} of {path} must hold labels from 0, and at least one")
        arrays[f"y_{part}"] = y.astype(np.int64)
    if arrays["x_train"].shape[1:] != arrays["x_test"].shape[1:]:
        raise ValueError(
            f"{path}: training images {arrays['x_train'].shape[1:]} and test images "
            f"{arrays['x_test'].shape[1:]} differ in shape"
        )
    _check_labels(path, np.unique(arrays["y_train"]).tolist(), np.unique(arrays["y_test"]).tolist())
    return arrays


def class_names(path: Path, num_classes: int) -> list[str] | None:
    """Names of the classes: the array `class_names` of an .npz file; None if it has none.

    Args:
        path: The file, of which `read_npz` has read the images.
        num_classes: Number of names that are needed.

    Raises:
        ValueError: The array is not one different, printable text per class.
    """
    try:
        with arrays_of(path) as file:
            if "class_names" not in file.files:
                return None
            names = file["class_names"]
    except (*UNREADABLE, OSError) as error:
        raise ValueError(f"{path}: class_names cannot be read ({error}); use an array of text") from None
    if names.dtype.kind != "U" or names.shape != (num_classes,):
        raise ValueError(
            f"{path}: class_names must be {num_classes} texts, not {names.dtype} of shape {names.shape}"
        )
    return checked_classes(names.tolist(), str(path))


def checked_classes(names: list[str], source: str) -> list[str]:
    """Names of classes that pages and files can show.

    Raises:
        ValueError: A name twice, empty, or with characters that cannot be printed; begins with `source`.
    """
    if odd := [name for name in names if not name.strip() or not name.isprintable()]:
        raise ValueError(f"{source}: the class name {odd[0]!r} is not printable text; rename the class")
    if len(set(names)) < len(names):
        raise ValueError(f"{source}: two classes have the same name; rename one of {', '.join(names[:5])}")
    return names


def _uint8(x: np.ndarray, name: str) -> np.ndarray:
    """Images as uint8 (N, H, W, C).

    Raises:
        ValueError: Another shape, type or range; begins with `name`.
    """
    if x.ndim == 3:
        x = x[..., None]
    if x.ndim != 4 or x.shape[3] not in (1, 3):
        raise ValueError(f"{name} must have shape (N, H, W), (N, H, W, 1) or (N, H, W, 3), not {x.shape}")
    if x.dtype.kind == "f":
        if x.size and not (np.isfinite(x).all() and x.min() >= 0 and x.max() <= 1):
            raise ValueError(f"{name} has floats outside 0..1; use those or uint8")
        x = np.rint(x * 255).astype(np.uint8)
    if x.dtype != np.uint8:
        raise ValueError(f"{name} must be uint8, or floats in 0..1, not {x.dtype}")
    return x


def _check_labels(path: Path, train: list[int], test: list[int]) -> None:
    """Raise ValueError unless training labels are 0, 1, ..., at least two, and contain every test label."""
    if train != list(range(len(train))):
        listed = ", ".join(map(str, train[:7])) + (", ..." if len(train) > 7 else "")
        raise ValueError(
            f"{path}: the labels in y_train are {listed}; they must be 0..{len(train) - 1} for {len(train)} "
            "classes (numpy.unique(y_train, return_inverse=True)[1])"
        )
    if len(train) < 2:
        raise ValueError(f"{path}: y_train has one label; a classifier needs images of at least two classes")
    if unknown := [label for label in test if label >= len(train)]:
        raise ValueError(f"{path}: y_test has the label {unknown[0]}, which is not in y_train")


def _shrunk(x_NHWC: np.ndarray, image_shape: Sequence[int]) -> np.ndarray:
    """Images averaged over squares down to `image_shape`; unchanged if the factor is not a whole number."""
    N, H, W, C = x_NHWC.shape
    _, height, width = image_shape
    factor = H // height
    if factor < 2 or (factor * height, factor * width) != (H, W):
        return x_NHWC
    squares = x_NHWC.reshape(N, height, factor, width, factor, C)
    return np.rint(squares.mean(axis=(2, 4), dtype=np.float32)).astype(np.uint8)


def _digits() -> dict[str, np.ndarray]:
    """scikit-learn's 1,797 handwritten digits, 8x8; a fixed fifth is the test set."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = np.rint(x * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8, 1)
    order = np.random.default_rng(splits.SPLIT_SEED).permutation(len(x))
    test, train = order[: len(x) // 5], order[len(x) // 5 :]
    y = y.astype(np.int64)
    return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}


@contextlib.contextmanager
def _impatient() -> Iterator[None]:
    """Let connections give up after `PATIENCE_SECONDS` without a byte."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(PATIENCE_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _torchvision(name: str) -> dict[str, np.ndarray]:
    """A data set of torchvision, downloaded into the data folder (or the cache, if that is read-only)."""
    import os

    from torchvision import datasets

    folder = data_folder()
    if folder.is_dir() and not os.access(folder, os.W_OK):
        folder = Path.home() / ".cache" / "hwnas"
    arrays = {}
    for part in ("train", "test"):
        try:
            with _impatient():
                images = getattr(datasets, name)(str(folder), train=part == "train", download=True)
        except Exception as error:  # torchvision raises RuntimeError, URLError, ConnectionError, ...
            reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
            raise ValueError(
                f"{name} is not in {folder} and could not be downloaded ({reason}); put torchvision's files "
                "there, name another folder by HWNAS_DATA, or give an .npz: dataset=npz dataset.path=<file>"
            ) from None
        x = np.asarray(images.data, dtype=np.uint8)
        arrays[f"x_{part}"] = x[..., None] if x.ndim == 3 else x
        arrays[f"y_{part}"] = np.asarray(images.targets, dtype=np.int64)
    return arrays
