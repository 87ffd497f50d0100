"""CITATION.cff has what the Citation File Format 1.2.0 requires, and every method's paper."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from hwnas import __version__
from hwnas.build import conf_folder

CITATION = yaml.safe_load((Path(__file__).parents[1] / "CITATION.cff").read_text())


def test_what_the_format_requires() -> None:
    assert {"cff-version", "message", "title", "authors"} <= set(CITATION)
    assert CITATION["cff-version"] == "1.2.0"
    assert CITATION["type"] == "software"
    assert CITATION["license"] == "Apache-2.0"
    assert CITATION["version"] == __version__
    for entry in CITATION["references"]:
        assert {"type", "title", "authors", "year"} <= set(entry)
        assert entry["type"] in ("article", "conference-paper")
        assert ("conference" in entry) == (entry["type"] == "conference-paper")
        assert all(set(author) == {"family-names", "given-names"} for author in entry["authors"])
        assert re.fullmatch(r"https://arxiv\.org/abs/\d{4}\.\d{5}", entry["url"])
        assert re.fullmatch(r"10\.\d{4,}/\S+", entry.get("doi", "10.1145/3449639.3459275"))


def test_every_method_has_its_paper() -> None:
    notes = " ".join(entry["notes"] for entry in CITATION["references"])
    baselines = {"cascade", "local_search", "random", "regularized_evolution", "surrogate"}
    methods = {path.stem for path in (conf_folder() / "strategy").glob("*.yaml")} - baselines
    assert set(re.findall(r"strategy=(\w+)", notes)) == methods
    assert len(CITATION["references"]) == 7
    assert "hwnas prune" in notes
