"""Safe reading of foreign image files: pictures of known formats and bounded size, upright and square.

Whatever a file is named, only decoders of `FORMATS` read it; others may start programs (EPS: Ghostscript).
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")

MAX_PIXELS = 120_000_000
"""Pixels that an image may have; decoding one takes up to 4 bytes for each."""

AT_ONCE = 256
"""Images that wait for being decoded."""

GREY_MODES = ("1", "L", "LA", "La", "I;16", "I;16B", "I;16L", "I")

T = TypeVar("T")


class UnreadableError(ValueError):
    """A file that is no image, or a damaged one, or one that is too large; says why."""


def size_and_grey(file: Path) -> tuple[int, int, bool]:
    """Width and height in pixels, and whether the image is grey, from the beginning of a file.

    Raises:
        UnreadableError: The file is no image.
    """
    return _opened(file, lambda image: (*image.size, image.mode in GREY_MODES))


def square(file: Path, side: int, *, grey: bool) -> np.ndarray:
    """The image of a file, shape (side, side, C), uint8: upright, its centre square, scaled.

    Images are turned as EXIF says. Transparent parts are white. 16 bits become 8. `exports/templates` has
    the same steps for the model card.

    Args:
        file: The file; of several pictures in it the first counts.
        side: Height and width of the result.
        grey: Whether the result has one channel; else it has three, also for a grey image.

    Raises:
        UnreadableError: The file is no image, or a damaged one.
    """
    from PIL import Image, ImageOps

    def read(image: Image.Image) -> np.ndarray:
        image.load()
        plain = _opaque(ImageOps.exif_transpose(image)).convert("L" if grey else "RGB")
        fitted = ImageOps.fit(plain, (side, side), Image.Resampling.BILINEAR)
        return np.asarray(fitted).reshape(side, side, -1)

    return _opened(file, read)


def each(files: Sequence[Path], read: Callable[[Path], T]) -> Iterator[T | UnreadableError]:
    """The result of reading each file, in order, or the error where it cannot be read; by threads."""

    def result(file: Path) -> T | UnreadableError:
        try:
            return read(file)
        except UnreadableError as error:
            return error

    with warnings.catch_warnings(), ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
        warnings.simplefilter("ignore")  # PIL warns of odd EXIF data and of large images
        for start in range(0, len(files), AT_ONCE):
            yield from threads.map(result, files[start : start + AT_ONCE])


def _opened(file: Path, read: Callable[[Image], T]) -> T:
    """What `read` makes of the image in a file."""
    from PIL import Image

    try:
        with Image.open(file, formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise UnreadableError(f"{width} x {height} pixels are more than {MAX_PIXELS:,}")
            return read(image)
    except UnreadableError:
        raise
    except Image.UnidentifiedImageError:
        size = file.stat().st_size
        raise UnreadableError("no image" if size else "an empty file") from None
    except Exception as error:  # PIL raises many kinds for a damaged file
        raise UnreadableError(" ".join(str(error).split())[:100] or type(error).__name__) from None


def _opaque(image: Image) -> Image:
    """An image without transparency, 8 bits per channel."""
    from PIL import Image

    if image.mode == "F":
        raise UnreadableError("its pixels are floating-point numbers")
    if image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image
