from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hwnas.data.folder import ImageFolder

COLOURS = {"blue": (20, 40, 200), "red": (200, 40, 20)}


def write(folder: Path, num_train: int = 6, num_val: int = 3) -> Path:
    """JPEGs of two plain colours, of different sizes; one of them is grey, in a folder below its class."""
    for part, num in (("train", num_train), ("val", num_val)):
        for name, colour in COLOURS.items():
            (folder / part / name).mkdir(parents=True)
            for number in range(num):
                size = (40 + number, 30 + 2 * number)
                Image.new("RGB", size, colour).save(folder / part / name / f"{number}.JPEG", quality=95)
    (folder / "train" / "red" / "more").mkdir()
    Image.new("L", (50, 50), 77).save(folder / "train" / "red" / "more" / "grey.jpg")
    (folder / "train" / "red" / "notes.txt").write_text("not an image")
    return folder


def images(path: Path, **settings: Any) -> ImageFolder:
    arguments = {"image_size": 16, "resize": 20, "color_jitter": [0.4, 0.4, 0.4, 0.2], "workers": 2}
    return ImageFolder("imagenet", path=str(path), valid_fraction=0.25, **{**arguments, **settings})


def test_layout_and_splits(tmp_path: Path) -> None:
    dataset = images(write(tmp_path))
    assert (dataset.num_classes, dataset.image_shape) == (2, (3, 16, 16))
    assert dataset.classes == ["blue", "red"]
    assert len(dataset.files("all")) == 13
    assert [label for _, label in dataset.files("all")] == [0] * 6 + [1] * 7
    train, valid, test = (dataset.files(part) for part in ("train", "valid", "test"))
    assert (len(train), len(valid), len(test)) == (10, 3, 6)
    assert sorted(train + valid) == sorted(dataset.files("all"))
    assert all(file.parts[-3] == "val" for file, _ in test)


def test_test_images_are_resized_and_cropped_at_the_centre(tmp_path: Path) -> None:
    batches = images(write(tmp_path)).batches("test", batch_size=4, train=False)
    assert len(batches) == 2
    found = list(batches)
    assert [tuple(x.shape) for x, _ in found] == [(4, 3, 16, 16), (2, 3, 16, 16)]
    assert torch.cat([y for _, y in found]).tolist() == [0, 0, 0, 1, 1, 1]
    x = torch.cat([x for x, _ in found])
    assert torch.allclose(x[0].mean(dim=(1, 2)) * 255, torch.tensor([20.0, 40.0, 200.0]), atol=3)
    for (first, _), (second, _) in zip(found, batches, strict=True):
        assert torch.equal(first, second)


def test_training_passes_are_seeded_and_differ(tmp_path: Path) -> None:
    dataset = images(write(tmp_path))
    batches = dataset.batches("all", batch_size=4, seed=1)
    assert len(batches) == 3  # the thirteenth image is left out
    first, second = (torch.cat([x for x, _ in batches]) for _ in range(2))
    assert tuple(first.shape) == (12, 3, 16, 16)
    assert 0 <= first.min() < first.max() <= 1
    assert not torch.equal(first, second)
    again = dataset.batches("all", batch_size=4, seed=1)
    again.epoch = 1
    assert torch.equal(torch.cat([x for x, _ in again]), second)
    other = dataset.batches("all", batch_size=4, seed=2)
    assert not torch.equal(torch.cat([x for x, _ in other]), first)


def test_normalisation_is_imagenets(tmp_path: Path) -> None:
    mean, std = images(write(tmp_path)).normalisation()
    assert mean.shape == std.shape == (3, 1, 1)
    assert np.allclose(mean.flatten(), [0.485, 0.456, 0.406])
    assert np.allclose(std.flatten(), [0.229, 0.224, 0.225])


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "val" / "red" / "0.JPEG").write_bytes(b"no picture")
    batches = images(tmp_path).batches("test", batch_size=4, train=False)
    with pytest.raises(ValueError, match=r"^/.*/val/red/0\.JPEG is not a readable image \(cannot identify"):
        list(batches)


def test_missing_and_different_folders(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"dataset=imagenet needs dataset\.path=<folder with train/ and val/>"
    ):
        ImageFolder(
            "x", path=None, image_size=8, resize=8, color_jitter=[0, 0, 0, 0], valid_fraction=0.1, workers=1
        )
    with pytest.raises(ValueError, match=r"dataset.path=.*nowhere is not a folder; looked for"):
        images(tmp_path / "nowhere")
    (tmp_path / "half" / "train").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"half has no folder val"):
        images(tmp_path / "half")
    write(tmp_path / "odd")
    (tmp_path / "odd" / "val" / "green").mkdir()
    alone = tmp_path / "alone"
    for part in ("train", "val"):
        (alone / part / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"at least two classes, each in a folder; train/ has cat"):
        images(alone)
    with pytest.raises(ValueError, match=r"train/ has 2 classes and val/ 3; only one of them has green"):
        images(tmp_path / "odd")
    for part in ("train", "val"):
        for name in COLOURS:
            (tmp_path / "empty" / part / name).mkdir(parents=True)
    with pytest.raises(ValueError, match=r"empty/train has no images \(\.jpg, "):
        images(tmp_path / "empty").batches("all", batch_size=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"image_size": 0}, "image_size must be a whole number of at least 1, not 0"),
        ({"resize": 15}, r"resize must be at least image_size \(16\), not 15"),
        ({"workers": 0}, "workers must be a whole number of at least 1, not 0"),
        ({"color_jitter": [0.4]}, r"color_jitter must be a list of 4, each a number in 0..1, not \[0.4\]"),
    ],
)
def test_settings_are_checked(tmp_path: Path, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        images(write(tmp_path), **settings)


def test_fewer_images_than_a_batch(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="batch_size=7 on each of 2 devices is more than the 13 training images"
    ):
        images(write(tmp_path)).batches("all", batch_size=7, num_shards=2)
