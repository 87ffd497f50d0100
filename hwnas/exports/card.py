"""The model card of an exported network: Markdown, from the figures of the export."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=False,  # Markdown
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def literal(text: object) -> str:
    """Text whose characters mean themselves in Markdown; names of folders and files come from anywhere."""
    return re.sub(r"([\\`*\[\]<>|&])", r"\\\1", str(text))


TEMPLATES.filters["literal"] = literal


def card(content: Mapping[str, object]) -> str:
    """The card's text.

    Args:
        content: What `hwnas export` keeps in export.json.
    """
    sizes = [f"{name} {content[name]}" for name in ("variant", "channels", "num_cells") if name in content]
    return TEMPLATES.get_template("card.md.j2").render(content, sizes=", ".join(sizes))
