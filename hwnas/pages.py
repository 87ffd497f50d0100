"""Writing a page from its template; every page is one HTML file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined


def write_page(template: str, values: Mapping[str, Any], path: Path) -> Path:
    """Write a page, whole or not at all; returns its path.

    Args:
        template: Its name below this package, e.g. "report.html.j2".
        values: What the template names; one that is missing is an error.
        path: The file; its folder is created if needed.
    """
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".tmp")
    partial.write_text(templates.get_template(template).render(values), encoding="utf-8")
    os.replace(partial, path)
    return path
