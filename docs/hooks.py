"""Pages of the site besides docs/: README, CONTRIBUTING and CHANGELOG, and a reference page per module."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}


def rooms() -> list[str]:
    """Names of the modules and packages in hwnas/ that others may use, in alphabetical order."""
    package = ROOT / "hwnas"
    found = [*package.glob("*.py"), *(path.parent for path in package.glob("*/__init__.py"))]
    return sorted(path.stem for path in found if not path.stem.startswith("_"))


def on_config(config: MkDocsConfig) -> None:
    """Adds the reference to the navigation."""
    config.nav.append({"Reference": [{name: f"reference/{name}.md"} for name in rooms()]})


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages from outside of docs/."""
    for path, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / path).read_text()))
    for name in rooms():
        files.append(File.generated(config, f"reference/{name}.md", content=f"::: hwnas.{name}\n"))


def on_page_markdown(markdown: str, **_: object) -> str:
    """Turns links between files of the repository into links between pages; folders become plain words."""
    for path, page in PAGES.items():
        markdown = re.sub(rf"\]\((\.\./)?{re.escape(path)}\)", f"]({page})", markdown)
    return re.sub(r"\[([^]]+)\]\([\w/]+/\)", r"\1", markdown.replace("](docs/", "]("))
