"""Figures of a trained network's answers, on logits that are given."""

from __future__ import annotations

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import nn

from hwnas.training.answered import answered, described
from hwnas.training.classifier import Classifier
from hwnas.training.recipe import Recipe


class Given:
    """Images of one pixel whose red names the label, and a batch of two at a time."""

    labels = torch.tensor([0, 0, 0, 1, 2])

    def batches(self, part: str, *, batch_size: int, seed: int = 0, train: bool = True, num_shards: int = 1):
        assert part == "test"
        x = (torch.arange(5) / 5).view(5, 1, 1, 1).expand(5, 3, 1, 1)
        return list(zip(x.split(2), self.labels.split(2), strict=True))


class Answers(nn.Module):
    """Class 0 with growing confidence, and class 1 for the last but one."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        number = (x[:, 0, 0, 0] * 5).round().long()
        logits = torch.tensor([[1.0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 5, 0], [4, 0, 0]])
        return logits[number]


def test_confusion_balance_and_worst() -> None:
    """Right are two of three of class 0, the one of class 1, and none of class 2: 3/5, and 5/9 balanced."""
    module = Classifier(Answers(), torch.zeros(3, 1, 1), torch.ones(3, 1, 1), Recipe(epochs=0), num_steps=0)
    found = answered(module, Given(), "test")
    assert found.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 0]]
    assert (found.accuracy, found.chance) == (3 / 5, 3 / 5)
    assert np.isclose(found.balanced_accuracy, (2 / 3 + 1 + 0) / 3)
    assert [(wrong.row, wrong.label, wrong.answer) for wrong in found.worst] == [(4, 2, 0), (2, 0, 1)]
    assert np.isclose(found.worst[0].probability, np.exp(4) / (np.exp(4) + 2))
    first = described(found, Given(), "test")["worst"][0]  # type: ignore[index]
    assert first["file"] is None
    picture = Image.open(io.BytesIO(base64.b64decode(first["picture"].partition(",")[2])))
    assert (picture.size, picture.getpixel((0, 0))) == ((1, 1), (204, 204, 204))
