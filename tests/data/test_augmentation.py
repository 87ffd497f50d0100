from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as v2

from hwnas.data.augmentation import mixed, moved, recoloured


@pytest.mark.parametrize("shape", [(4, 3, 12, 12), (4, 1, 10, 16)])
def test_images_move_as_torchvision_moves_them_one_by_one(shape: tuple[int, ...]) -> None:
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    B, _, H, W = shape
    found = moved(images, np.random.default_rng(7), shift=0.2, rotate=30.0, scale=0.3)
    rng = np.random.default_rng(7)
    angles = rng.uniform(-np.deg2rad(30), np.deg2rad(30), B)
    sizes, shifts = rng.uniform(0.7, 1.3, B), rng.uniform(-0.4, 0.4, (B, 2))
    for image, moved_image, angle, size, (x, y) in zip(images, found, angles, sizes, shifts, strict=True):
        expected = v2.affine(
            image, np.rad2deg(angle), [x * W / 2, y * H / 2], size, [0.0, 0.0], v2.InterpolationMode.BILINEAR
        )
        # torchvision also fades the border by a mask of its own; within, both interpolate alike
        inside = v2.affine(torch.ones(1, H, W), np.rad2deg(angle), [x * W / 2, y * H / 2], size, [0.0, 0.0])
        inside = inside.squeeze(0) == 1
        assert inside.float().mean() > 0.3
        assert torch.allclose(moved_image[:, inside], expected[:, inside], atol=1e-4)


def test_a_shift_of_whole_pixels() -> None:
    class Draws:
        def uniform(self, low: float, high: float, size: int | tuple[int, ...]) -> np.ndarray:
            return np.full(size, high)

    image = torch.arange(1.0, 17).reshape(1, 1, 4, 4)
    found = moved(image, Draws(), shift=0.25, rotate=0.0, scale=0.0)  # type: ignore[arg-type]
    expected = torch.tensor([[0, 0, 0, 0], [0, 1, 2, 3], [0, 5, 6, 7], [0, 9, 10, 11.0]])
    assert torch.allclose(found[0, 0], expected, atol=1e-5)


def test_colours() -> None:
    images = torch.rand((16, 3, 4, 4), generator=torch.Generator().manual_seed(0))
    found = recoloured(images, np.random.default_rng(1), 0.4)
    brightness, contrast, saturation = np.random.default_rng(1).uniform(0.6, 1.4, (3, 16))
    for row in range(16):
        x = images[row].numpy() * brightness[row]
        x = x.mean() + contrast[row] * (x - x.mean())
        x = x.mean(0) + saturation[row] * (x - x.mean(0))
        np.testing.assert_allclose(found[row].numpy(), x.clip(0, 1), atol=1e-5)
    grey = images[:, :1].expand(-1, 3, -1, -1)
    one = recoloured(grey[:, :1], np.random.default_rng(1), 0.4)  # grey has no saturation
    assert torch.allclose(
        recoloured(grey, np.random.default_rng(1), 0.4), one.expand(-1, 3, -1, -1), atol=1e-6
    )


def test_mixup_and_cutmix() -> None:
    images = torch.arange(1.0, 9).reshape(8, 1, 1, 1).expand(8, 3, 6, 10)  # each image has one value
    weights, kinds = set(), set()
    for seed in range(20):
        x, others, weight = mixed(images, np.random.default_rng(seed), mixup=0.5, cutmix=1.0)
        assert sorted(others.tolist()) == list(range(8))
        own, other = images, images[others]
        assert torch.allclose(x.mean((1, 2, 3)), (weight * own + (1 - weight) * other)[:, 0, 0, 0], atol=1e-5)
        kinds.add("cutmix" if bool(((x == own) | (x == other)).all()) else "mixup")
        weights.add(weight)
    assert kinds == {"mixup", "cutmix"}
    assert len(weights) > 15
    assert all(0 <= weight <= 1 for weight in weights)
