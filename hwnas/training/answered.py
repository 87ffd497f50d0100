"""The answers of a trained network on test images: accuracies, confusion matrix, and the worst answers.

Shapes: B images, C channels, H height, W width.
"""

from __future__ import annotations

import base64
import heapq
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from hwnas.core import FloatArray
from hwnas.data.images import DataSet
from hwnas.training.classifier import Classifier, TrainingData, answers_by_batch

MAX_WORST = 12
"""Wrong answers that are kept, the most confident ones."""

MAX_CLASSES = 100
"""Classes up to which the confusion matrix is kept."""

PICTURE_SIDE = 96
"""Largest side of a kept picture, in pixels."""


@dataclass(frozen=True)
class Wrong:
    """A wrong answer.

    Attributes:
        row: The image's position in the part.
        label: Its class.
        answer: The class that the network gives.
        probability: The probability that the network gives to its answer, in 0..1.
        image: The image (C, H, W) in 0..1.
    """

    row: int
    label: int
    answer: int
    probability: float
    image: Tensor


@dataclass(frozen=True)
class Answered:
    """The answers on a part of a data set.

    Attributes:
        confusion: Number of images by class (rows) and answer (columns).
        worst: The most confident wrong answers, the most confident first.
    """

    confusion: np.ndarray
    worst: Sequence[Wrong]

    @property
    def accuracy(self) -> float:
        """Fraction of correct answers, in 0..1."""
        return int(np.trace(self.confusion)) / int(self.confusion.sum())

    @property
    def chance(self) -> float:
        """Fraction of the most frequent class, which a guess would reach, in 0..1."""
        return int(self.confusion.sum(axis=1).max()) / int(self.confusion.sum())

    @property
    def balanced_accuracy(self) -> float:
        """Mean over the classes of the fraction of their images that is answered correctly, in 0..1."""
        totals: FloatArray = self.confusion.sum(axis=1).astype(np.float64)
        return float((np.diag(self.confusion)[totals > 0] / totals[totals > 0]).mean())


def answered(module: Classifier, dataset: TrainingData, part: str) -> Answered:
    """Answer the images of a part, e.g. "test"; the module ends on the CPU."""
    pairs: list[np.ndarray] = []
    worst: list[tuple[float, int, Wrong]] = []
    classes = start = 0
    for x, logits, y in answers_by_batch(module, dataset, part):
        found, classes = logits.argmax(1), max(classes, logits.shape[1])
        pairs.append(np.stack([y.numpy(), found.numpy()]))
        probabilities = logits.softmax(1).gather(1, found[:, None])[:, 0]
        for row in (found != y).nonzero()[:, 0].tolist():
            one = float(probabilities[row]), -(start + row)
            if len(worst) < MAX_WORST or one > worst[0][:2]:
                wrong = Wrong(start + row, int(y[row]), int(found[row]), one[0], x[row].clone())
                (heapq.heappush if len(worst) < MAX_WORST else heapq.heapreplace)(worst, (*one, wrong))
        start += len(y)
    labels, answers = np.concatenate(pairs, axis=1)
    size = max(classes, int(labels.max()) + 1)
    confusion = np.bincount(labels * size + answers, minlength=size * size).reshape(size, size)
    return Answered(
        confusion, [wrong for _, _, wrong in sorted(worst, key=lambda item: item[:2], reverse=True)]
    )


def described(of: Answered, dataset: object, part: str) -> dict[str, object]:
    """The answers as JSON, for the run's page: "confusion" and "worst", with pictures as PNG."""
    files = dataset.file_names(part) if isinstance(dataset, DataSet) and of.worst else None
    return {
        "confusion": of.confusion.tolist() if len(of.confusion) <= MAX_CLASSES else None,
        "worst": [
            {
                "label": wrong.label,
                "answer": wrong.answer,
                "probability": wrong.probability,
                "file": None if files is None else files[wrong.row],
                "picture": _png(wrong.image),
            }
            for wrong in of.worst
        ],
    }


def _png(image_CHW: Tensor) -> str | None:
    """An image in 0..1 as a data URI; None if it is neither grey nor RGB."""
    from PIL import Image

    pixels = (image_CHW.clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    if pixels.shape[2] not in (1, 3):
        return None
    picture = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    picture.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
