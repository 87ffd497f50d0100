"""Writing a page from its template; every page is one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from hwnas.files import write_text

TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
"""Ours, each compiled once in a process."""

BRAND = b'class="brand">hwnas'
"""What every page of ours has, whatever its version."""


def write_page(template: str, values: Mapping[str, object], path: Path) -> Path:
    """Write a page, whole or not at all; returns its path.

    Args:
        template: Its name in templates/, e.g. "report.html.j2".
        values: What the template names; one that is missing is an error.
        path: The file; its folder is created if needed.

    Raises:
        ValueError: There is a file at `path` that is no page of ours.
    """
    if path.is_file() and BRAND not in path.read_bytes():
        raise ValueError(f"{path} is not a page of hwnas and would be overwritten; move it away first")
    write_text(path, TEMPLATES.get_template(template).render(values))
    return path
