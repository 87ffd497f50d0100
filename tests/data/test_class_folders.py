from __future__ import annotations

import os
import shutil
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hwnas.data.class_folders import ClassFolders
from hwnas.data.decoding import UnreadableError, each, square
from hwnas.data.folder import ImageFolder

SETTINGS: dict[str, Any] = {
    "image_size": 8,
    "auto_pixels": 1 << 26,
    "channels": "auto",
    "skip_corrupt": False,
    "test_fraction": 0.2,
    "valid_fraction": 0.25,
    "split": "stratified",
    "crop": "auto",
    "flip": True,
    "cutout": 0,
}


def images(path: Path, **settings: Any) -> ClassFolders:
    return ClassFolders("folder", path=str(path), **{**SETTINGS, **settings})


def write(folder: Path, counts: dict[str, int], size: tuple[int, int] = (12, 10)) -> Path:
    """PNGs per class; the red of an image is its number, the green that of its class."""
    for label, (name, num) in enumerate(counts.items()):
        (folder / name).mkdir(parents=True)
        for number in range(num):
            Image.new("RGB", size, (number, label, 0)).save(folder / name / f"{number:02}.png")
    return folder


def test_without_splits_each_class_is_divided(tmp_path: Path) -> None:
    """Of 10 and 20 images 2 and 4 test; of the other 8 and 16, 2 and 4 validate."""
    said: list[str] = []
    dataset = images(write(tmp_path / "fruit", {"apple": 10, "pear": 20}), announce=said.append)
    assert (dataset.name, dataset.classes, dataset.num_classes) == ("folder-fruit", ["apple", "pear"], 2)
    assert (dataset.image_shape, dataset.crop) == ((3, 8, 8), 0)
    parts = {part: dataset.split(part) for part in ("train", "valid", "all", "test")}
    assert {part: y.bincount().tolist() for part, (_, y) in parts.items()} == {
        "train": [6, 12],
        "valid": [2, 4],
        "all": [8, 16],
        "test": [2, 4],
    }
    seen = [
        (int(255 * x[0, 0, 0] + 0.5), int(y))
        for p in ("train", "valid", "test")
        for x, y in zip(*parts[p], strict=True)
    ]
    assert sorted(seen) == sorted([(n, 0) for n in range(10)] + [(n, 1) for n in range(20)])
    for part, (x, y) in parts.items():
        names = [
            f"{dataset.classes[int(label)]}/{int(255 * image[0, 0, 0] + 0.5):02}.png"
            for image, label in zip(x, y, strict=True)
        ]
        assert dataset.file_names(part) == names
    assert dataset.protocol.startswith(
        "validation on 25% of the training images, a seeded draw of each class"
    )
    assert said[0] == (
        "folder-fruit: 30 images of 2 classes, 10 to 20 each (24 to train, 6 drawn to test); "
        "shorter sides of 10 to 10 pixels become 8x8, 3 channels"
    )


def test_batches_are_those_of_images_in_memory(tmp_path: Path) -> None:
    """Shuffles and augmentation too; and the normalisation is that of the training images."""
    from hwnas.data.images import Batches

    dataset = images(write(tmp_path, {"a": 9, "b": 8}), crop=1)
    for settings in ({"batch_size": 4, "seed": 3}, {"batch_size": 5, "train": False}):
        mapped, whole = (
            dataset.batches("train", **settings),
            Batches(dataset.split("train"), dataset, **settings),
        )
        assert len(mapped) == len(whole)
        for (x, y), (x2, y2) in zip(mapped, whole, strict=True):
            assert torch.equal(x, x2)
            assert torch.equal(y, y2)
    x, _ = dataset.split("train")
    mean, std = dataset.normalisation()
    assert torch.allclose(mean.flatten(), x.mean(dim=(0, 2, 3)), atol=1e-6)
    assert torch.allclose(std.flatten(), x.std(dim=(0, 2, 3)).clamp_min(1e-6), atol=1e-6)


def test_own_splits(tmp_path: Path) -> None:
    counts = {"train": 5, "Validation": 2, "test": 3}
    for part, num in counts.items():
        write(tmp_path / part, {"a": num, "b": num})
    said: list[str] = []
    dataset = images(tmp_path, announce=said.append)
    assert "(10 in train/ to train, 4 in Validation/ to validate, 6 in test/ to test)" in said[0]
    for part, num in (("train", 5), ("valid", 2), ("all", 7), ("test", 3)):
        assert dataset.size(part) == 2 * num
    assert {name.split("/")[0] for name in dataset.file_names("valid")} == {"Validation"}
    assert "own validation set" in dataset.protocol
    before = dataset.fingerprint()
    shutil.rmtree(tmp_path / "test")  # then Validation/ tests, as for ImageNet
    dataset = images(tmp_path, announce=said.append)
    assert "(10 in train/ to train, 4 in Validation/ to test)" in said[-1]
    assert (dataset.size("all"), dataset.size("test")) == (10, 4)
    assert {name.split("/")[0] for name in dataset.file_names("test")} == {"Validation"}
    assert dataset.fingerprint() != before
    shutil.rmtree(tmp_path / "Validation")
    assert images(tmp_path).size("test") == 2  # drawn: one of each five


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    assert images(write(tmp_path, {"bus": 4, "train": 4})).classes == ["bus", "train"]


def test_files_are_read_upright_opaque_and_square(tmp_path: Path) -> None:
    """Red beside blue, 8 wide and 4 high, turned by a quarter: red above blue."""
    picture = Image.new("RGB", (8, 4), (255, 0, 0))
    picture.paste((0, 0, 255), (4, 0, 8, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: a quarter clockwise shows it upright
    picture.save(tmp_path / "turned.png", exif=exif)
    found = square(tmp_path / "turned.png", 4, grey=False)
    assert found[0].tolist() == [[255, 0, 0]] * 4  # the centre square has the rows 2 to 5 of 8
    assert found[3].tolist() == [[0, 0, 255]] * 4
    Image.new("RGBA", (4, 4), (10, 20, 30, 0)).save(tmp_path / "clear.png")
    assert (square(tmp_path / "clear.png", 2, grey=False) == 255).all()
    Image.fromarray(np.full((4, 4), 0x80FF, np.uint16)).save(tmp_path / "deep.png")
    assert square(tmp_path / "deep.png", 2, grey=True).tolist() == [[[128]] * 2] * 2
    Image.new("CMYK", (4, 4), (0, 0, 0, 255)).save(tmp_path / "print.jpg")
    assert square(tmp_path / "print.jpg", 2, grey=False).max() <= 1
    Image.new("LA", (4, 4), (100, 255)).save(tmp_path / "grey.png")
    assert square(tmp_path / "grey.png", 2, grey=False).tolist() == [[[100] * 3] * 2] * 2


def test_grey_images_have_one_channel(tmp_path: Path) -> None:
    write(tmp_path, {"a": 4, "b": 4})
    for file in tmp_path.rglob("*.png"):
        Image.open(file).convert("L").save(file)
    assert images(tmp_path).image_shape == (1, 8, 8)
    assert images(tmp_path).split("all")[0].shape == (6, 1, 8, 8)
    assert images(tmp_path, channels=3).image_shape == (3, 8, 8)
    Image.new("RGB", (9, 9)).save(tmp_path / "a" / "00.png")
    assert images(tmp_path).image_shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("size", "space", "pixels", "side", "why"),
    [
        ((70, 64), "hwnas.spaces.nasbench201.NasBench201", 1 << 26, 32, "the space's networks were made"),
        (
            (31, 50),
            "hwnas.spaces.nasbench201.NasBench201",
            1 << 26,
            28,
            "the median shorter side is 31 pixels",
        ),
        ((70, 100), None, 1 << 26, 64, "the median shorter side is 70 pixels"),
        ((70, 100), None, 8 * 48 * 48, 48, "8 larger images are more than dataset.auto_pixels=18,432"),
        ((300, 300), "hwnas.spaces.fbnet.FBNet", 1 << 26, 224, "the median shorter side is 300 pixels"),
    ],
)
def test_auto_size(tmp_path: Path, size: Any, space: str | None, pixels: int, side: int, why: str) -> None:
    said: list[str] = []
    write(tmp_path, {"a": 4, "b": 4}, size)
    dataset = images(
        tmp_path, image_size="auto", search_space=space, auto_pixels=pixels, announce=said.append
    )
    assert (dataset.image_shape, dataset.crop) == ((3, side, side), side // 16)
    assert why in said[0]


def test_the_cache_is_read_until_a_file_changes(tmp_path: Path) -> None:
    said: list[str] = []
    folder, store = write(tmp_path / "x", {"a": 4, "b": 4}), tmp_path / "store"
    first = images(folder, store_dir=store, announce=said.append).fingerprint()
    assert isinstance(images(folder, store_dir=store)._load()["x_train"], np.memmap)
    assert sum(text.startswith("reading 8 image files, once") for text in said) == 1
    assert images(folder, store_dir=store, announce=said.append).fingerprint() == first
    assert sum(text.startswith("reading") for text in said) == 1
    assert images(folder).fingerprint() == first
    (pixels,) = (store / "images").glob("*.bin")
    pixels.write_bytes(b"damaged")
    assert images(folder, store_dir=store, announce=said.append).fingerprint() == first
    assert sum(text.startswith("reading") for text in said) == 2
    Image.new("RGB", (9, 9), "white").save(folder / "a" / "00.png")
    assert images(folder, store_dir=store).fingerprint() != first
    shutil.copytree(folder, tmp_path / "y")
    assert images(tmp_path / "y", store_dir=store).fingerprint() != first


def test_unreadable_files_are_named_and_left_out_when_asked(tmp_path: Path) -> None:
    folder = write(tmp_path / "x", {"a": 10, "b": 10})
    whole = (folder / "a" / "03.png").read_bytes()
    (folder / "a" / "03.png").write_bytes(whole[:45])
    (folder / "b" / "04.png").write_bytes(b"no picture")
    (folder / "b" / "05.png").write_bytes(b"")
    (folder / "b" / "notes.txt").write_text("not an image")
    said: list[str] = []
    with pytest.raises(ValueError, match="3 of 20 files cannot be read as images") as error:
        images(folder, store_dir=tmp_path / "store", announce=said.append).size("train")
    for part in ("a/03.png: ", "b/04.png: no image", "b/05.png: an empty file", "dataset.skip_corrupt=true"):
        assert part in str(error.value)
    assert "left out" in said[1]
    assert "b/notes.txt" in said[1]
    dataset = images(folder, skip_corrupt=True, warn=said.append)
    assert dataset.size("all") + dataset.size("test") == 17
    assert "3 of 20 files cannot be read as images" in said[-1]
    for number in range(10):
        (folder / "b" / f"{number:02}.png").write_bytes(b"")
    with pytest.raises(ValueError, match="class b has 0 readable images to train on, and needs at least 2"):
        images(folder, skip_corrupt=True).size("all")


def test_test_images_that_are_training_images_are_counted(tmp_path: Path) -> None:
    for part in ("train", "test"):
        write(tmp_path / part, {"a": 3, "b": 3})
    Image.new("RGB", (9, 9), "white").save(tmp_path / "test" / "b" / "02.png")
    said: list[str] = []
    images(tmp_path, warn=said.append).size("test")
    assert said[0].startswith("5 of the 6 test images are training images, too, pixel by pixel")


def bomb() -> bytes:
    """A PNG of less than 100 bytes that says that it has 12,000 x 11,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 12_000, 11_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b""))
        + chunk(b"IEND", b"")
    )


def test_foreign_files_are_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bombs, programs for Ghostscript, pipes, and links in circles."""
    write(tmp_path / "x", {"a": 12, "b": 12})
    (tmp_path / "x" / "a" / "bomb.png").write_bytes(bomb())
    bombs = [tmp_path / "x" / "a" / "bomb.png"]
    (why,) = each(bombs, lambda file: square(file, 8, grey=False))
    assert str(why) == "12000 x 11000 pixels are more than 120,000,000"
    monkeypatch.setenv("PATH", "")
    program = tmp_path / "x" / "b" / "program.jpg"
    program.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(UnreadableError, match="no image"):
        square(program, 8, grey=False)
    (tmp_path / "x" / "a" / "again").symlink_to(tmp_path / "x" / "a")
    (tmp_path / "x" / "b" / "self").symlink_to(tmp_path / "x" / "b" / "self")
    os.mkfifo(tmp_path / "x" / "b" / "pipe.png")
    dataset = images(tmp_path / "x", skip_corrupt=True)
    assert dataset.size("all") + dataset.size("test") == 24


def test_folders_of_another_kind_are_refused(tmp_path: Path) -> None:
    def refused(message: str, folder: Path = tmp_path, **settings: Any) -> None:
        with pytest.raises(ValueError, match=message):
            images(folder, **settings)

    with pytest.raises(
        ValueError, match=r"dataset=folder needs dataset\.path=<folder with a folder of images"
    ):
        ClassFolders("x", path=None, **SETTINGS)
    refused("has no folders; a classifier needs images of at least two classes")
    refused("nowhere is not a folder; looked for", tmp_path / "nowhere")
    (tmp_path / "file.npz").write_bytes(b"x")
    refused(r"file\.npz is a file; .* \(dataset=npz reads a file of arrays\)", tmp_path / "file.npz")
    write(tmp_path / "one", {"a": 3})
    refused("one has one class, a; a classifier needs", tmp_path / "one")
    write(tmp_path / "deep" / "inside", {"a": 3, "b": 3})
    refused("did you mean dataset.path=.*deep/inside", tmp_path / "deep")
    (tmp_path / "one" / "b").mkdir()
    refused(r"one/b has no images \(\.jpg", tmp_path / "one")
    write(tmp_path / "few", {"a": 3, "b": 2})
    refused("class b has 0 readable images to test on, and needs at least 1", tmp_path / "few")
    write(tmp_path / "flat", {"train": 3, "val": 2})
    refused("train/ has no folders; the images of each class need a folder", tmp_path / "flat")
    write(tmp_path / "half" / "test", {"a": 3, "b": 3})
    refused("has test but no train/", tmp_path / "half")
    write(tmp_path / "half" / "train", {"a": 3, "c": 3})
    refused("train/ and test/ must have the same classes; only one of them has b, c", tmp_path / "half")
    write(tmp_path / "half" / "extra", {"a": 3})
    refused("has extra/ beside train/", tmp_path / "half")
    write(tmp_path / "odd", {"a\nb": 3, "c": 3})
    refused(r"the class name 'a\\nb' is not printable text", tmp_path / "odd")
    refused("image_size must be", tmp_path / "few", image_size=4)


def test_imagenet_starts_no_programs_either(tmp_path: Path) -> None:
    for part in ("train", "val"):
        write(tmp_path / part, {"a": 2, "b": 2})
    (tmp_path / "val" / "a" / "00.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    dataset = ImageFolder(
        "x",
        path=str(tmp_path),
        image_size=8,
        resize=8,
        color_jitter=[0, 0, 0, 0],
        valid_fraction=0.5,
        workers=1,
    )
    with pytest.raises(ValueError, match=r"00\.png is not a readable image"):
        list(dataset.batches("test", batch_size=4, train=False))


def test_files_of_any_name(tmp_path: Path) -> None:
    """Names that are no text, or would control a terminal, are shown as escapes."""
    folder = write(tmp_path / "x", {"a": 4, "b": 4})
    for number, odd in enumerate((b"\xff.png", b"line\n\x1b[2J.png")):
        (folder / "a" / f"{number:02}.png").rename(folder / "a" / os.fsdecode(odd))
    (folder / "b" / os.fsdecode(b"\xfe.png")).write_bytes(b"")
    said: list[str] = []
    for _ in range(2):  # read, and from the cache
        dataset = images(folder, store_dir=tmp_path / "store", skip_corrupt=True, warn=said.append)
        names = [*dataset.file_names("all"), *dataset.file_names("test")]
        assert {r"a/\udcff.png", "a/line\n\\x1b[2J.png"} <= set(names)
    assert len(said) == 2
    assert r"1 of 9 files cannot be read as images (b/\udcfe.png: an empty file)" in said[0]


def test_no_readable_image_at_all(tmp_path: Path) -> None:
    write(tmp_path / "x", {"a": 4, "b": 4})
    for file in (tmp_path / "x").rglob("*.png"):
        file.write_bytes(file.read_bytes()[:45])
    with pytest.raises(ValueError, match="class a has 0 readable images to train on"):
        images(tmp_path / "x", store_dir=tmp_path / "store", skip_corrupt=True).size("all")
    with pytest.raises(ValueError, match="class a has 0 readable images to train on"):
        images(tmp_path / "x", skip_corrupt=True).size("all")
