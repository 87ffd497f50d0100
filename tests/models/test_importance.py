from __future__ import annotations

import numpy as np
import pytest
import torch

from hwnas.data.images import Batches, Images
from hwnas.training.importance import Importance


def test_probabilities_by_hand() -> None:
    importance = Importance(3, 4)
    assert importance.operations == pytest.approx([1 / 3] * 3)
    assert importance.images is None
    importance.see_operations(np.array([0.0, 2.0, 0.0]))  # 0 1 0
    importance.see_operations(np.array([4.0, 1.0, 0.0]))  # 2 1 0
    importance.see_images([0, 2, 0], [1.0, 4.0, 3.0])  # 2 0 4 0
    importance.end(0.5)
    assert importance.operations == pytest.approx([1 / 2, 1 / 3, 1 / 6])
    assert importance.images == pytest.approx([7 / 24, 3 / 24, 11 / 24, 3 / 24])
    importance.see_images([3], [1.0])  # norms of the epoch before are forgotten
    importance.end(0.8)
    assert importance.operations == pytest.approx([1 / 3] * 3)  # none was seen
    assert importance.images == pytest.approx([0.05, 0.05, 0.05, 0.85])


def test_a_checkpoint_has_the_probabilities() -> None:
    importance, other = Importance(2, 3), Importance(2, 3)
    other.load(importance.state())
    assert other.images is None
    importance.see_images([1], [1.0])
    importance.see_operations(np.array([1.0, 3.0]))
    importance.end(0.5)
    other.load(importance.state())
    assert other.operations.tolist() == importance.operations.tolist() == [0.375, 0.625]
    assert other.images is not None
    assert importance.images is not None
    assert other.images.tolist() == importance.images.tolist()


def test_images_are_drawn_by_their_probabilities() -> None:
    dataset = Images(
        "digits", source="digits", image_shape=[1, 8, 8], num_classes=10, crop=0, valid_fraction=0.5
    )
    x, y = dataset.split("train")
    batches = Batches((x, y), dataset, batch_size=100, seed=3)
    list(batches)
    assert batches.rows is not None
    assert len(set(batches.rows.tolist())) == 700
    batches.weights = torch.zeros(719, dtype=torch.float64)
    batches.weights[[5, 7]] = torch.tensor([0.25, 0.75], dtype=torch.float64)
    drawn = list(batches)
    assert len(drawn) == 7
    assert torch.equal(torch.cat([images for images, _ in drawn]), x[batches.rows])
    assert torch.equal(torch.cat([labels for _, labels in drawn]), y[batches.rows])
    assert batches.rows.bincount()[[5, 7]].tolist() == pytest.approx([175, 525], abs=40)
    batches.epoch = 1
    first = batches.rows.tolist()
    list(batches)
    assert batches.rows.tolist() == first
