"""The section of a run's page on the final network's answers on test images."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from hwnas.files import read_json, shaped
from hwnas.reports.view import View

MAX_TABLE = 24
"""Classes up to which the page has the whole confusion matrix."""

MAX_CONFUSED = 8
"""Pairs of classes that the page names, the most often confused ones."""

STRONGEST = 70
"""Strength of the colour behind all images of a class, in percent: numbers stay readable."""

ANSWERS = {
    "confusion": (None, [[int]]),
    "worst": [
        {"label": int, "answer": int, "probability": float, "file": (str, None), "picture": (str, None)}
    ],
}
"""Shape of the answers in architecture.json, for `files.shaped`."""

PICTURE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")
"""A picture inside the page; anything else would be asked of the network."""


@dataclass(frozen=True)
class Row:
    """A class's test images by answer: (number, strength of the colour) each; `own` is its column, from 1."""

    name: str
    own: int
    cells: list[tuple[int, int]]
    right: str


@dataclass(frozen=True)
class Worst:
    """A wrong answer, written out."""

    label: str
    answer: str
    probability: str
    file: str | None
    picture: str | None


@dataclass(frozen=True)
class Answers:
    """The confusion matrix, where it is small enough; what is confused most often; the worst answers."""

    names: list[str]
    rows: list[Row]
    note: str
    confused: list[str]
    worst: list[Worst]


def on_test_images(view: View) -> Answers | None:
    """The answers that the run's final network has given; None if none are known.

    Raises:
        ValueError: The file that has them is corrupt.
    """
    path = view.run.folder / "network" / "architecture.json"
    figures = read_json(path) if path.is_file() else {}
    if "answers" not in figures:  # of a version that kept none
        return None
    try:
        shaped(figures, {"answers": ANSWERS, "classes?": ([str], None), "num_classes": int})
        content = figures["answers"]
        names = figures.get("classes") or [str(label) for label in range(figures["num_classes"])]
        worst = [
            Worst(
                names[one["label"]],
                names[one["answer"]],
                f"{one['probability']:.1%}",
                one["file"],
                one["picture"] if PICTURE.fullmatch(one["picture"] or "") else None,
            )
            for one in content["worst"]
        ]
        if content["confusion"] is None:
            return Answers([], [], "", [], worst) if worst else None
        matrix = np.array(content["confusion"], dtype=np.int64)
        if matrix.shape != (len(names), len(names)) or matrix.min() < 0:
            raise ValueError(f"a confusion matrix {matrix.shape} of {len(names)} classes")
    except (IndexError, ValueError) as error:
        raise ValueError(f"{path} is corrupt: {error}") from None
    totals = matrix.sum(axis=1)
    shares = matrix / np.maximum(totals, 1)[:, None]
    rows = [
        Row(
            names[label],
            label + 1,
            [
                (int(number), round(STRONGEST * share))
                for number, share in zip(matrix[label], shares[label], strict=True)
            ],
            f"{shares[label, label]:.0%} of {totals[label]:,}",
        )
        for label in range(len(names))
    ]
    wrong = matrix - np.diag(np.diag(matrix))
    order = [divmod(int(place), len(names)) for place in np.argsort(-wrong, axis=None, kind="stable")]
    return Answers(
        names,
        rows if len(names) <= MAX_TABLE else [],
        f"{int(np.trace(matrix)):,} of {int(totals.sum()):,} are right.",
        [
            f"{names[label]}, taken for {names[answer]}: {wrong[label, answer]:,} of {totals[label]:,}"
            for label, answer in order[:MAX_CONFUSED]
            if wrong[label, answer] > 0
        ],
        worst,
    )
