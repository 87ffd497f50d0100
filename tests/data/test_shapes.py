from __future__ import annotations

import numpy as np

from hwnas.data.shapes import CATEGORICAL, FACTORS, SIDE, Shapes, every_factor, render


def dataset() -> Shapes:
    return Shapes("shapes", valid_fraction=0.1)


def test_every_combination_once_and_no_two_look_alike() -> None:
    factors = every_factor()
    assert len(factors) == 3 * 4 * 8 * 8 * 8 == 6144
    assert len(np.unique(factors, axis=0)) == 6144
    assert tuple(factors.max(axis=0) + 1) == tuple(FACTORS.values())
    images = render(factors)
    assert images.shape == (6144, SIDE, SIDE)
    assert len(np.unique(images.reshape(6144, -1), axis=0)) == 6144


def test_factors_move_and_scale_the_shape() -> None:
    def moments(factors: list[int]) -> tuple[float, float, float]:
        image = render(np.array([factors]))[0] / 255.0
        y, x = np.mgrid[:SIDE, :SIDE] + 0.5
        return image.sum(), (image * x).sum() / image.sum(), (image * y).sum() / image.sum()

    for shape in (0, 1):  # symmetric about their centre
        area, x, y = moments([shape, 0, 2, 0, 7])
        assert abs(x - 9.5) < 0.05  # 32/2 - (32/2 - 9.5)
        assert abs(y - 22.5) < 0.05
        assert moments([shape, 3, 2, 0, 7])[0] > 2 * area  # sides 8 and 5: 2.56 times the area
    # An ellipse of half-axes 5 and 2.5, a rectangle of sides 9 and 4.5
    assert abs(moments([0, 0, 0, 3, 3])[0] - np.pi * 5 * 2.5) < 2
    assert abs(moments([1, 0, 0, 3, 3])[0] - 9 * 4.5) < 2


def test_rotation_by_a_quarter_turn() -> None:
    # Of eight angles in a half turn the fifth is a quarter; x and y are both in the middle of neighbours, so
    # the turned image is the transposed one of swapped places.
    for shape in (0, 1):
        lying, standing = render(np.array([[shape, 2, 0, 2, 5], [shape, 2, 4, 5, 2]]))
        assert np.abs(lying.astype(int) - standing.T).max() <= 1


def test_it_is_a_classification_data_set_with_known_factors() -> None:
    data = dataset()
    assert (data.image_shape, data.num_classes) == ((1, 32, 32), 3)
    x, y = data.split("test")
    factors = data.test_factors()
    assert x.shape == (1228, 1, 32, 32)
    assert y.tolist() == factors[:, 0].tolist()
    assert np.array_equal((x[:, 0] * 255).round().numpy().astype(np.uint8), render(factors))
    assert [len(data.split(part)[1]) for part in ("train", "valid", "all")] == [4424, 492, 4916]
    assert len(CATEGORICAL) == factors.shape[1]
    assert data.fingerprint() == dataset().fingerprint()
    x, _ = next(iter(data.batches("train", batch_size=8)))
    assert x.shape == (8, 1, 32, 32)
