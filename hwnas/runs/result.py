"""What a finished search found, as it is kept in result.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hwnas.files import read_json, shaped
from hwnas.store.evaluations import ANSWER_SHAPE


def read_result(path: Path) -> dict[str, Any]:
    """A run's result.json.

    Raises:
        ValueError: Not the result of a finished run; names the file.
    """
    result = read_json(path, "is not the result of a finished search")
    try:
        shaped(result, ANSWER_SHAPE)
    except ValueError as error:
        raise ValueError(f"{path} is not the result of a finished search ({error})") from None
    return dict(result)


MOST_REPORTED = 5_000
"""Of at most so many networks of a run, evenly spread, result.json says what only reports may show."""
