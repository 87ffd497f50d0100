"""ImageNet and other large sets of image files, which worker processes read while a network trains.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Unpack, cast

from annotated_types import Len

from hwnas.core import Count, Fraction, checked, seed_of
from hwnas.data.decoding import FORMATS, SUFFIXES
from hwnas.data.images import DataSet, Passes, Passing, word
from hwnas.data.splits import SPLIT_SEED
from hwnas.files import data_folder

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ImageFolder(DataSet):
    """Image files in torchvision's layout: `train/<class>/<file>` and `val/<class>/<file>`.

    Training images get a random crop, size, flip and colour jitter; all others are resized and cropped at the
    centre. `val` is the test set: only final training and reports use it.

    Args:
        name: Name of the data set, part of the store's key.
        path: Folder with `train` and `val`: absolute, or relative to the working folder or the data folder.
        image_size: Side of the square that networks see, in pixels.
        resize: Shorter side to which test images are resized before the crop, in pixels.
        color_jitter: Largest relative change of brightness, contrast, saturation, and shift of hue.
        valid_fraction: Fraction of the training images that is held out for validation.
        workers: Processes that read images, at least 1.

    Raises:
        ValueError: A missing folder, classes that differ between `train` and `val`, or a value out of range.

    Source of the augmentation: P-DARTS (Chen et al., ICCV 2019), as in EvNAS' train_imagenet.py.
    """

    @checked
    def __init__(
        self,
        name: str,
        *,
        path: str | None,
        image_size: Count,
        resize: Count,
        color_jitter: Annotated[Sequence[Fraction], Len(4, 4)],
        valid_fraction: Fraction,
        workers: Count,
    ) -> None:
        self.name = word(name)
        if not path:
            raise ValueError("dataset=imagenet needs dataset.path=<folder with train/ and val/>")
        if resize < image_size:
            raise ValueError(f"resize must be at least image_size ({image_size}), not {resize}")
        self.image_size, self.resize, self.workers = image_size, resize, workers
        self.valid_fraction = float(valid_fraction)
        self.color_jitter = tuple(map(float, color_jitter))
        self.path = _folder(path)
        self._classes = _classes(self.path / "train")
        others = _classes(self.path / "val")
        if others != self._classes:
            odd = sorted(set(others) ^ set(self._classes))
            raise ValueError(
                f"dataset.path={path}: train/ has {len(self._classes)} classes and val/ {len(others)}; "
                f"only one of them has {', '.join(odd[:3])}"
            )
        if len(self._classes) < 2:
            raise ValueError(
                f"dataset.path={path}: a classifier needs images of at least two classes, each in a folder; "
                f"train/ has {', '.join(self._classes) or 'none'}"
            )
        self._files: dict[str, list[tuple[Path, int]]] = {}

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return 3, self.image_size, self.image_size

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self._classes)

    @property
    def classes(self) -> list[str]:
        """Names of the classes' folders, sorted."""
        return self._classes

    def file_names(self, part: str) -> list[str]:
        """Names of the files of a part's images, relative to the folder."""
        return [file.relative_to(self.path).as_posix() for file, _ in self.files(part)]

    @property
    def augmentation(self) -> dict[str, object]:
        """Random changes of training images, as JSON."""
        return {"image_size": self.image_size, "color_jitter": list(self.color_jitter)}

    def files(self, part: str) -> list[tuple[Path, int]]:
        """File and label of every image of a part: "train", "valid", "all" (both) or "test".

        Raises:
            ValueError: The part has no images.
        """
        import numpy as np

        folder = self.path / ("val" if part == "test" else "train")
        if folder.name not in self._files:
            self._files[folder.name] = [
                (file, label)
                for label, name in enumerate(self.classes)
                for file in sorted((folder / name).rglob("*"))
                if file.suffix.lower() in SUFFIXES
            ]
        found = self._files[folder.name]
        if part in ("train", "valid"):
            order = np.random.default_rng(SPLIT_SEED).permutation(len(found))
            num_valid = max(1, round(self.valid_fraction * len(found)))
            rows = order[:num_valid] if part == "valid" else order[num_valid:]
            found = [found[row] for row in rows]
        if not found:
            raise ValueError(f"{folder} has no images ({', '.join(SUFFIXES)})")
        return found

    def size(self, part: str) -> int:
        """Number of images of a part."""
        return len(self.files(part))

    def batches(self, part: str, **passing: Unpack[Passing]) -> FileBatches:
        """Passes over a part of the images; see `files` and `Passing`."""
        return FileBatches(self.files(part), self, **passing)

    def normalisation(self) -> tuple[Tensor, Tensor]:
        """ImageNet's usual mean and standard deviation per channel, each (3, 1, 1)."""
        import torch

        return torch.tensor(IMAGENET_MEAN).view(3, 1, 1), torch.tensor(IMAGENET_STD).view(3, 1, 1)


class FileBatches(Passes):
    """Batches of image files, read and augmented by worker processes.

    Args:
        files: File and label of every image.
        dataset: Sizes, augmentation and number of workers.
        passing: Settings of the passes.

    Raises:
        ValueError: As `Passes`; while iterating, a file that is no image.
    """

    def __init__(
        self, files: Sequence[tuple[Path, int]], dataset: ImageFolder, **passing: Unpack[Passing]
    ) -> None:
        self.files, self.dataset = files, dataset
        super().__init__(len(files), **passing)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """(images (B, 3, H, W) in 0..1, labels (B,)) per batch."""
        import torch
        from torch.utils.data import DataLoader

        if self.train:
            order, generator = self._shuffle()
        else:
            order = torch.arange(len(self.files))
            generator = torch.Generator().manual_seed(seed_of(self.seed, self.epoch))
        files = _Files([self.files[row] for row in order.tolist()], self.dataset, self.train)
        loader = DataLoader(
            cast("Dataset[tuple[Tensor, Tensor]]", files),  # torch collates labels into a tensor
            batch_size=self.batch_size,
            num_workers=self.dataset.workers,
            pin_memory=torch.cuda.is_available(),
            generator=generator,  # seeds the workers
        )
        try:
            yield from loader
        except ValueError as error:  # its text ends with the worker's traceback
            raise ValueError(str(error).strip().splitlines()[-1].partition("ValueError: ")[2]) from None


class _Files:
    """Image tensors and labels by position, for a DataLoader."""

    def __init__(self, files: Sequence[tuple[Path, int]], dataset: ImageFolder, train: bool) -> None:
        from torchvision import transforms

        size = dataset.image_size
        steps = (
            [
                transforms.RandomResizedCrop(size),
                transforms.RandomHorizontalFlip(),
                transforms.ColorJitter(*dataset.color_jitter),
            ]
            if train
            else [transforms.Resize(dataset.resize), transforms.CenterCrop(size)]
        )
        self.files = files
        self.transform = transforms.Compose([*steps, transforms.ToTensor()])

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        from PIL import Image

        file, label = self.files[index]
        try:
            with Image.open(file, formats=FORMATS) as image:
                return self.transform(image.convert("RGB")), label
        except OSError as error:
            raise ValueError(f"{file} is not a readable image ({error})") from None


def _folder(path: str) -> Path:
    """The folder of a data set.

    Raises:
        ValueError: It does not exist, or lacks `train` or `val`.
    """
    places = [Path(path).expanduser(), data_folder() / path]
    for place in places:
        lacking = [part for part in ("train", "val") if not (place / part).is_dir()]
        if not lacking:
            return place
        if place.is_dir():
            raise ValueError(
                f"dataset.path={path}: {place} has no folder {' and no '.join(lacking)} "
                "(dataset=folder needs none)"
            )
    looked = " and ".join(str(place.absolute()) for place in dict.fromkeys(places))
    raise ValueError(f"dataset.path={path} is not a folder; looked for {looked}")


def _classes(folder: Path) -> list[str]:
    """Names of the classes, sorted; a class's label is its position."""
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir())
