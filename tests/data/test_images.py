from __future__ import annotations

import socket
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hwnas.data import images as images_module
from hwnas.data.images import Batches, Images, augment, read_npz


def digits(**settings: Any) -> Images:
    return Images("digits", source="digits", image_shape=[1, 8, 8], num_classes=10, **settings)


def test_digits_shapes_and_counts() -> None:
    images = digits()
    assert (images.image_shape, images.num_classes) == ((1, 8, 8), 10)
    sizes = {"train": 1150, "valid": 288, "all": 1438, "test": 359}
    for part, size in sizes.items():
        x, y = images.split(part)
        assert (tuple(x.shape), tuple(y.shape)) == ((size, 1, 8, 8), (size,))
        assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
        assert (x.min(), x.max()) == (0.0, 1.0)
        assert y.unique().tolist() == list(range(10))


def test_digits_are_those_of_scikit_learn() -> None:
    from sklearn.datasets import load_digits

    images = digits()
    x = torch.cat([images.split("all")[0], images.split("test")[0]]).flatten(1)
    ours = sorted((x * 16).round().int().tolist())
    assert ours == sorted(load_digits().data.astype(int).tolist())


def test_size_is_read_from_the_file_when_not_given(tmp_path: Path) -> None:
    images = Images("npz", source="npz", image_shape=None, num_classes=None, path=str(write(tmp_path)))
    assert images.name == "npz-images"
    assert (images.image_shape, images.num_classes) == ((1, 4, 5), 3)


def keys(x: torch.Tensor) -> list[bytes]:
    return [row.numpy().tobytes() for row in x]


@pytest.mark.parametrize("fraction", [0.2, 0.5, 0.01])
def test_splits_are_disjoint_and_the_same_every_time(fraction: float) -> None:
    images = digits(valid_fraction=fraction)
    train, valid, everything = (images.split(part)[0] for part in ("train", "valid", "all"))
    assert len(valid) == round(fraction * 1438)
    assert sorted(keys(train) + keys(valid)) == sorted(keys(everything))
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    again = digits(valid_fraction=fraction)
    for part in ("train", "valid", "test"):
        assert torch.equal(images.split(part)[0], again.split(part)[0])
        assert torch.equal(images.split(part)[1], again.split(part)[1])
    assert not set(keys(images.split("test")[0])) & set(keys(everything))


def test_labels_stay_with_their_images() -> None:
    images = digits()
    x_all, y_all = images.split("all")
    label = dict(zip(keys(x_all), y_all.tolist(), strict=True))
    for part in ("train", "valid"):
        x, y = images.split(part)
        assert [label[key] for key in keys(x)] == y.tolist()


def test_normalisation_and_fingerprint(tmp_path: Path) -> None:
    mean, std = digits().normalisation()
    x = (digits().split("train")[0] - mean) / std
    assert tuple(mean.shape) == (1, 1, 1)
    assert x.mean().item() == pytest.approx(0.0, abs=1e-5)
    assert x.std().item() == pytest.approx(1.0, abs=1e-5)
    assert digits().fingerprint() == digits().fingerprint()

    def fingerprint(**changes: Any) -> str:
        path = str(write(tmp_path, **changes))
        return Images("x", source="npz", image_shape=None, num_classes=None, path=path).fingerprint()

    other_pixel = ARRAYS["x_test"].copy()
    other_pixel[0, 0, 0] ^= 1
    prints = {fingerprint(), fingerprint(x_test=other_pixel), fingerprint(y_test=np.array([1, 1]))}
    assert len(prints) == 3


@pytest.mark.parametrize("fraction", [0, 1, -0.1, 1.5])
def test_fraction_is_checked(fraction: float) -> None:
    with pytest.raises(ValueError, match=r"valid_fraction must be a number above 0 and below 1"):
        digits(valid_fraction=fraction)


def test_other_settings_are_checked() -> None:
    with pytest.raises(ValueError, match=r"crop must be a whole number of at least 0, not -1"):
        digits(crop=-1)
    with pytest.raises(ValueError, match=r"cutout must be a whole number of at least 0, not 1\.5"):
        digits(cutout=1.5)
    with pytest.raises(ValueError, match=r"dataset=npz needs dataset\.path="):
        Images("npz", source="npz", image_shape=None, num_classes=None)


# --- augmentation --------------------------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def ramp(num: int = 64, channels: int = 2, height: int = 6, width: int = 5) -> torch.Tensor:
    """Images whose pixels are all different and above 0."""
    size = channels * height * width
    return (torch.arange(size).view(1, channels, height, width) + 1.0).repeat(num, 1, 1, 1)


def test_no_augmentation_is_the_identity() -> None:
    x = ramp()
    assert torch.equal(augment(x, digits(crop=0, flip=False, cutout=0), generator()), x)


def test_crop_shifts_each_image_by_at_most_the_padding() -> None:
    x = ramp(200)
    y = augment(x, digits(crop=1), generator())
    assert y.shape == x.shape
    padded = torch.nn.functional.pad(x[:1], (1, 1, 1, 1))[0]
    shifts = {(top, left): padded[:, top : top + 6, left : left + 5] for top in range(3) for left in range(3)}
    found = [next(s for s, image in shifts.items() if torch.equal(image, row)) for row in y]
    assert set(found) == set(shifts)  # all nine occur


def test_flip_mirrors_about_half_of_the_images() -> None:
    x = ramp(400)
    y = augment(x, digits(flip=True), generator())
    flipped = [torch.equal(row, x[0].flip(2)) for row in y]
    assert all(f or torch.equal(row, x[0]) for f, row in zip(flipped, y, strict=True))
    assert 150 < sum(flipped) < 250


@pytest.mark.parametrize("side", [1, 2, 3, 8])
def test_cutout_paints_one_square_across_channels(side: int) -> None:
    x = ramp(300)
    images = digits(cutout=side)
    y = augment(x, images, generator())
    mean, _ = images.normalisation()
    cut = y == mean  # the ramp has whole numbers only
    assert torch.equal(y[~cut], x[~cut])
    assert torch.equal(cut[:, 0], cut[:, 1])
    num = cut[:, 0].sum(dim=(1, 2))
    assert num.min() >= 1
    assert num.max() == min(side, 6) * min(side, 5)
    heights = cut[:, 0].any(dim=2).sum(dim=1)
    widths = cut[:, 0].any(dim=1).sum(dim=1)
    assert torch.equal(heights * widths, num)  # a rectangle
    assert cut[:, 0].any(dim=0).all()  # every pixel is hit now and then


def coloured(folder: Path, **settings: Any) -> Images:
    """24 images of two channels' means that are far apart: 200, 20 and 100 of 255, and noise."""
    rng = np.random.default_rng(3)
    x = (np.array([200, 20, 100]) + rng.integers(-15, 16, size=(24, 6, 6, 3))).astype(np.uint8)
    path = write(folder, x_train=x, y_train=np.arange(24) % 3, x_test=x[:3], y_test=np.arange(3))
    return Images("x", source="npz", image_shape=None, num_classes=None, path=str(path), **settings)


def test_a_cut_pixel_is_the_mean_and_0_once_normalised(tmp_path: Path) -> None:
    """Cutout comes after normalisation in the papers' code: what is cut is 0 there, the mean before it."""
    images = coloured(tmp_path, cutout=3)
    x, _ = images.split("train")
    by_hand = np.round(x.double().numpy() * 255).mean(axis=(0, 2, 3)) / 255
    (cut, _), = images.batches("train", batch_size=len(x), seed=1)  # fmt: skip
    (whole, _), = coloured(tmp_path).batches("train", batch_size=len(x), seed=1)  # fmt: skip
    changed = (cut != whole).any(dim=1)
    assert 0.05 < changed.float().mean() < 0.3
    pixels = cut.double().permute(0, 2, 3, 1)[changed]
    np.testing.assert_allclose(pixels, np.broadcast_to(by_hand, pixels.shape), rtol=0, atol=1e-6)
    mean, std = images.normalisation()
    assert (((cut - mean) / std).permute(0, 2, 3, 1)[changed] == 0).all()


def test_cutout_alone_changes_what_weights_are_known_by(tmp_path: Path) -> None:
    """Weights from when squares were black are others; without cutout they are what they were."""
    images = coloured(tmp_path)
    assert images.identity() == [images.fingerprint(), 0.2, 0, False, 0]
    images = coloured(tmp_path, cutout=3)
    assert images.identity() == [images.fingerprint(), 0.2, 0, False, 3, "mean"]


def test_augmentation_is_a_function_of_its_generator() -> None:
    images = digits(crop=2, flip=True, cutout=2)
    first, again, other = (augment(ramp(), images, generator(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(ramp(), ramp())


# --- batches -------------------------------------------------------------------------------------------


def all_of(batches: Batches) -> tuple[torch.Tensor, torch.Tensor]:
    parts = list(batches)
    assert len(parts) == len(batches)
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts])


def numbered(num: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(num).view(-1, 1, 1, 1).float(), torch.arange(num)


def test_training_batches_are_shuffled_whole_and_seeded() -> None:
    x, y = numbered(50)
    create = lambda seed: Batches((x, y), digits(), batch_size=8, seed=seed)  # noqa: E731
    first, again, other = create(1), create(1), create(2)
    assert len(first) == 6
    passes = [all_of(first)[1].tolist() for _ in range(3)]
    assert passes == [all_of(again)[1].tolist() for _ in range(3)]
    assert len({tuple(p) for p in passes}) == 3  # another order in every epoch
    assert all(len(p) == len(set(p)) == 48 for p in passes)  # no image twice; two left out
    assert [len(labels) for _, labels in first] == [8] * 6
    assert all_of(other)[1].tolist() not in passes
    images, labels = all_of(first)
    assert images.flatten().tolist() == labels.tolist()


def test_training_batches_are_augmented_differently_in_every_epoch() -> None:
    x, y = ramp(8), torch.arange(8)
    batches = Batches((x, y), digits(crop=2), batch_size=8)
    by_label = []
    for _ in range(2):
        images, labels = all_of(batches)
        by_label.append(images[labels.argsort()])
    assert not torch.equal(by_label[0], by_label[1])


def test_evaluation_batches_pass_once_in_order() -> None:
    x, y = numbered(21)
    batches = Batches((x, y), digits(crop=2, flip=True, cutout=3), batch_size=8, train=False)
    assert len(batches) == 3
    for _ in range(2):
        images, labels = all_of(batches)
        assert torch.equal(images, x)
        assert torch.equal(labels, y)


def test_too_few_images_for_a_batch() -> None:
    x, y = numbered(7)
    with pytest.raises(ValueError, match="batch_size=8 is more than the 7 training images"):
        Batches((x, y), digits(), batch_size=8)
    assert len(Batches((x, y), digits(), batch_size=8, train=False)) == 1


# --- files ---------------------------------------------------------------------------------------------

ARRAYS = {
    "x_train": np.arange(60, dtype=np.uint8).reshape(3, 4, 5),
    "y_train": np.array([0, 1, 2]),
    "x_test": np.arange(40, dtype=np.uint8).reshape(2, 4, 5),
    "y_test": np.array([1, 0]),
}


def write(folder: Path, drop: str = "", **changes: np.ndarray) -> Path:
    path = folder / "images.npz"
    np.savez(path, **{key: array for key, array in {**ARRAYS, **changes}.items() if key != drop})
    return path


def test_read_npz(tmp_path: Path) -> None:
    arrays = read_npz(write(tmp_path, more=np.zeros(3)))
    assert {key: (array.shape, array.dtype.name) for key, array in arrays.items()} == {
        "x_train": ((3, 4, 5, 1), "uint8"),
        "y_train": ((3,), "int64"),
        "x_test": ((2, 4, 5, 1), "uint8"),
        "y_test": ((2,), "int64"),
    }
    assert np.array_equal(arrays["x_train"][..., 0], ARRAYS["x_train"])


def test_class_names_of_an_npz(tmp_path: Path) -> None:
    """They are no images: the fingerprint stays."""

    def images(**more: Any) -> Images:
        path = str(write(tmp_path, **more))
        return Images("npz", source="npz", image_shape=None, num_classes=None, path=path)

    num = len(np.unique(ARRAYS["y_train"]))
    names = [f"class {label}" for label in range(num)]
    assert images().classes is None
    before = images().fingerprint()
    assert images(class_names=np.array(names)).classes == names
    assert images(class_names=np.array(names)).fingerprint() == before
    with pytest.raises(ValueError, match=f"class_names must be {num} texts, not int64 of shape"):
        images(class_names=np.arange(num)).size("train")
    with pytest.raises(ValueError, match="class_names cannot be read"):
        images(class_names=np.array(names, dtype=object)).size("train")
    with pytest.raises(ValueError, match="two classes have the same name"):
        images(class_names=np.array(["x"] * num)).size("train")


def test_read_npz_accepts_colours_floats_and_small_labels(tmp_path: Path) -> None:
    colours = np.linspace(0, 1, 180, dtype=np.float32).reshape(3, 4, 5, 3)
    test = np.zeros((2, 4, 5, 3), dtype=np.float16)
    test[0, 0, 0] = (0.0, 0.5, 1.0)
    arrays = read_npz(
        write(tmp_path, x_train=colours, x_test=test, y_train=np.array([0, 2, 1], dtype=np.uint8))
    )
    assert arrays["x_train"].shape == (3, 4, 5, 3)
    assert (arrays["x_train"].min(), arrays["x_train"].max()) == (0, 255)
    assert arrays["x_test"][0, 0, 0].tolist() == [0, 128, 255]
    assert arrays["y_train"].tolist() == [0, 2, 1]
    assert arrays["y_train"].dtype == np.int64


def test_split_of_a_file_scales_to_one(tmp_path: Path) -> None:
    path = str(write(tmp_path))
    x, y = Images("x", source="npz", image_shape=None, num_classes=None, path=path).split("test")
    assert tuple(x.shape) == (2, 1, 4, 5)
    assert x[1, 0, 3, 4].item() == pytest.approx(39 / 255)
    assert y.tolist() == [1, 0]


def shaped(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.zeros(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_train": shaped(3, 20)}, r"x_train of .* must have shape \(N, H, W\).*, not \(3, 20\)"),
        ({"x_test": shaped(2, 4, 5, 2)}, r"x_test of .* must have shape .*, not \(2, 4, 5, 2\)"),
        ({"x_train": shaped(3, 1, 4, 5)}, r"x_train of .* must have shape .*, not \(3, 1, 4, 5\)"),
        (
            {"x_train": shaped(3, 4, 5, dtype=np.int64)},
            "x_train of .* must be uint8, or floats in 0..1, not int64",
        ),
        ({"x_test": shaped(2, 4, 5, dtype=bool)}, "x_test of .* must be uint8, or floats in 0..1, not bool"),
        ({"x_train": np.full((3, 4, 5), 1.01)}, r"x_train of .* has floats outside 0\.\.1"),
        ({"x_train": np.full((3, 4, 5), -0.01)}, r"x_train of .* has floats outside 0\.\.1"),
        ({"x_test": np.full((2, 4, 5), np.nan)}, r"x_test of .* has floats outside 0\.\.1"),
        ({"y_train": np.array([0, 1])}, r"y_train of .* must be 3 whole numbers, not int64 of shape \(2,\)"),
        (
            {"y_train": np.eye(3, dtype=int)},
            r"y_train of .* must be 3 whole numbers, not int64 of shape \(3, 3\)",
        ),
        ({"y_test": np.array([0.0, 1.0])}, r"y_test of .* must be 2 whole numbers, not float64"),
        ({"y_test": np.array([0, -1])}, "y_test of .* must hold labels from 0"),
        (
            {"x_test": shaped(0, 4, 5), "y_test": shaped(0)},
            "y_test of .* must hold labels from 0, and at least one",
        ),
        ({"x_test": np.empty((0, 4, 5)), "y_test": shaped(0)}, "y_test of .* and at least one"),
        ({"x_test": shaped(2, 5, 4)}, r"training images \(4, 5, 1\) and test images \(5, 4, 1\) differ"),
        ({"y_test": np.array([0, 3])}, "y_test has the label 3, which is not in y_train"),
        (
            {"y_train": np.array([1, 2, 3])},
            r"the labels in y_train are 1, 2, 3; they must be 0\.\.2 for 3 classes",
        ),
        ({"y_train": np.array([0, 20, 10])}, r"are 0, 10, 20; they must be 0\.\.2 for 3 classes"),
        ({"y_train": np.array([0, 0, 0])}, "y_train has one label; .* at least two classes"),
    ],
)
def test_malformed_arrays_are_refused(tmp_path: Path, changes: dict[str, np.ndarray], message: str) -> None:
    path = write(tmp_path, **changes)
    with pytest.raises(ValueError, match=message) as error:
        read_npz(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("key", ["x_train", "y_train", "x_test", "y_test"])
def test_each_missing_key_is_named(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match=rf"images\.npz lacks {key}; it has "):
        read_npz(write(tmp_path, drop=key))


def test_objects_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path, y_train=np.array([{"label": 0}, 1, 2], dtype=object))
    with pytest.raises(ValueError, match=r"images\.npz holds Python objects; only plain arrays are read"):
        read_npz(path)


@pytest.mark.parametrize("kind", ["truncated", "text", "empty", "npy", "damaged", "folder"])
def test_what_is_no_npz_is_refused(tmp_path: Path, kind: str) -> None:
    path = write(tmp_path)
    if kind == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif kind == "text":
        path.write_text("label,pixel\n0,255\n")
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "npy":
        with path.open("wb") as file:
            np.save(file, ARRAYS["x_train"])
    elif kind == "damaged":
        np.savez_compressed(path, **ARRAYS)
        content = bytearray(path.read_bytes())
        content[60:90] = bytes(30)  # inside the first array
        path.write_bytes(content)
    else:
        path.unlink()
        path.mkdir()
    with pytest.raises(ValueError, match=r"images\.npz is not a readable \.npz file"):
        read_npz(path)


def test_missing_file_names_where_it_was_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    images = Images("x", source="npz", image_shape=None, num_classes=None, path="lost.npz")
    with pytest.raises(ValueError, match=r"file 'lost\.npz' not found; looked for ") as error:
        images.split("train")
    assert str(tmp_path / "lost.npz") in str(error.value)


def test_shrinking_averages_over_squares(tmp_path: Path) -> None:
    """Of 2x2 squares: (0 + 1 + 2 + 4) / 4 = 1.75, rounded 2; (10 + 10 + 11 + 11) / 4 = 10.5, to even 10."""
    x = np.zeros((3, 2, 4, 3), dtype=np.uint8)
    x[0, :, :, 0] = [[0, 1, 10, 10], [2, 4, 11, 11]]
    y = np.array([0, 1, 2])
    path = write(tmp_path, x_train=x, y_train=y, x_test=x, y_test=y)

    def images(shape: list[int], shrink: bool = True) -> Images:
        return Images(
            "npz",
            source="npz",
            image_shape=shape,
            num_classes=3,
            path=str(path),
            shrink=shrink,
            benchmark="b",
        )

    small = images([3, 1, 2])
    assert small.benchmark == "b"
    assert sorted((small.split("all")[0][:, 0] * 255).round().tolist()) == [[[0, 0]], [[0, 0]], [[2, 10]]]
    assert torch.equal(images([3, 2, 4]).split("all")[0], images([3, 2, 4], False).split("all")[0])
    for shape, shrink in (([3, 1, 2], False), ([3, 2, 2], True), ([3, 4, 8], True)):
        with pytest.raises(ValueError, match=r"dataset\.image_shape of npz-images is .* have \[3, 2, 4\]"):
            images(shape, shrink).split("all")


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It accepts connections and says nothing; torchvision itself would wait for ever."""
    from torchvision.datasets import MNIST

    monkeypatch.setenv("HWNAS_DATA", str(tmp_path))
    monkeypatch.setattr(images_module, "PATIENCE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(MNIST, "mirrors", [address])
        mnist = Images("mnist", source="MNIST", image_shape=[1, 28, 28], num_classes=10)
        start = time.monotonic()
        with pytest.raises(ValueError, match=r"MNIST is not in .* and could not be downloaded"):
            mnist.split("train")
        assert time.monotonic() - start < 60
    assert socket.getdefaulttimeout() is None
