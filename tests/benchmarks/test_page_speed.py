"""The run page of many evaluations: how large it is, how long it takes to draw and to open."""

from __future__ import annotations

import resource
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from test_report import CHROMIUM, CONFIG, Page, make_run

from hwnas.reports.page import write_report
from hwnas.reports.view import MAX_DRAWN
from hwnas.spaces.fbnet import FBNet

FBNET = CONFIG.replace("toy.Toy\n  num_edges: 4\n  num_ops: 5", "fbnet.FBNet\n  variant: cifar100")


def run_of(folder: Path, num: int) -> Path:
    """A run on FBNet, whose networks all differ and have the longest genotypes but those of DARTS."""
    genotypes = FBNet(variant="cifar100").sample(np.random.default_rng(0), num)
    trials = [
        (i // 20, list(genotype), 0.5 + 0.4 * (i * 37 % 101) / 101, 1.0 + i * 61 % 997 / 100)
        for i, genotype in enumerate(genotypes)
    ]
    return make_run(folder, trials, config=FBNET)


def opened(page: Path, folder: Path) -> float:
    """Seconds that Chromium takes to start, open a page and give its document back."""
    arguments = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--dump-dom"]
    start = time.perf_counter()
    subprocess.run(
        [str(CHROMIUM), *arguments, f"--user-data-dir={folder / 'profile'}", page.as_uri()],
        capture_output=True,
        check=True,
        timeout=300,
    )
    return time.perf_counter() - start


@pytest.mark.parametrize(
    ("num", "megabytes"),
    [(2_000, 1.5), *(pytest.param(num, 5.0, marks=pytest.mark.slow) for num in (100_000, 1_000_000))],
)
def test_pages_stay_small(tmp_path: Path, num: int, megabytes: float) -> None:
    folder = run_of(tmp_path / "run", num)
    start = time.perf_counter()
    path = write_report(folder)
    seconds, size = time.perf_counter() - start, path.stat().st_size / 1e6
    assert size < megabytes
    assert num >= Page(path).data["known"][-1] >= min(num, MAX_DRAWN)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    print(f"\n{num:,} evaluations: {size:.2f} MB, drawn in {seconds:.2f} s, with at most {peak:.2f} GB")
    if CHROMIUM is not None:
        empty = tmp_path / "empty.html"
        empty.write_text("<!doctype html><title>empty</title>")
        opened(empty, tmp_path)  # the first start makes a profile
        bare, whole = (min(opened(page, tmp_path) for _ in range(3)) for page in (empty, path))
        print(f"opens in {whole - bare:.2f} s more than an empty page")


@pytest.mark.slow
def test_drawing_takes_less_than_in_proportion(tmp_path: Path) -> None:
    seconds = []
    for num in (2_000, 20_000):
        folder = run_of(tmp_path / str(num), num)
        write_report(folder)  # imports, templates
        start = time.perf_counter()
        write_report(folder)
        seconds.append(time.perf_counter() - start)
    print(f"\nten times as many evaluations take {seconds[1] / seconds[0]:.1f} times as long to draw")
    assert seconds[1] < 10 * seconds[0]
