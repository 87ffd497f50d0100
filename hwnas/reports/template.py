"""Pages from templates; every page is one HTML file."""

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
"""The templates of this package, each compiled once per process."""

BRAND = b'class="brand">hwnas'
"""Bytes that every page of every version has."""


def write_page(template: str, values: Mapping[str, object], path: Path) -> Path:
    """Write a page, whole or not at all; returns its path.

    Args:
        template: Name of the template, e.g. "report.html.j2".
        values: All values that the template names.
        path: The file; its folder is created if needed.

    Raises:
        ValueError: The file exists and is not a page of hwnas.
    """
    if path.is_file() and BRAND not in path.read_bytes():
        raise ValueError(f"{path} is not a page of hwnas and would be overwritten; move it away first")
    write_text(path, TEMPLATES.get_template(template).render(values))
    return path
