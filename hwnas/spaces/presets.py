"""Published architectures by name."""

from __future__ import annotations

import re
from collections.abc import Collection

from hwnas.core import Genotype, SearchSpace, suggestion
from hwnas.spaces.darts import encoding as darts
from hwnas.spaces.fbnet import encoding as fbnet
from hwnas.spaces.known.names import published


def space_of(name: str) -> str | None:
    """The search space that has a published architecture of this name."""
    presets: dict[str, Collection[str]] = {
        "darts": darts.PRESETS,
        "fbnet": fbnet.PRESETS,
        **{space: published(space) for space in ("mobile", "resnet")},
    }
    return next((space for space, known in presets.items() if name in known), None)


def architecture(space: SearchSpace, text: str) -> Genotype:
    """The architecture of a preset's name or of a text in the space's form.

    Raises:
        ValueError: An unknown name, or malformed text.
    """
    if text in space.presets:
        return space.from_str(space.presets[text])
    if (other := space_of(text)) is not None:
        raise ValueError(f"arch={text} is an architecture of search_space={other}, not of {space.name}")
    if space.presets and re.fullmatch(r"\w+(-\w+)?", text):  # texts of 22 blocks have more dashes
        hint = suggestion(text, list(space.presets)) or f"; known: {', '.join(space.presets)}"
        raise ValueError(f"arch={text} is no published architecture of the {space.name} space{hint}")
    return space.from_str(text)
