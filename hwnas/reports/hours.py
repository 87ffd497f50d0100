"""Estimated hours of the published experiments on one GPU, from rates that `make gpu` measured there."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

TRAIN = 25_000
"""Images of CIFAR-10 that train a supernet; as many validate."""

Rates = Mapping[str, float]
"""By name: images or candidates per second; of evaluations seconds per validation image and architecture."""

AUTHORS: Rates = {"darts: training": 277.0, "darts: evaluation": 6.3 / TRAIN}
"""The authors' code on an H100: training images per second, and 6.3 s per architecture on 25,000 images."""


@dataclass(frozen=True)
class Work:
    """What an experiment computes on CIFAR-10.

    Args:
        space: Of the networks.
        epochs: Of the supernet.
        networks: Evaluated with the supernet's weights, or scored.
        cells: Cells of the supernet, as a multiple of those that were measured.
        kind: "supernet"; "rmi": networks are candidates; "final": epochs on 50,000 images of one network.
        published_s: Published seconds, for experiments whose rates nobody published.
    """

    space: str
    epochs: int
    networks: int
    cells: float = 1.0
    kind: str = "supernet"
    published_s: float | None = None

    def seconds(self, rates: Rates) -> float | None:
        """Seconds at these rates; None where one that is needed is missing."""
        needed = {
            "supernet": {f"{self.space}: training", f"{self.space}: evaluation"},
            "rmi": {f"{self.space}: rmi"},
            "final": {f"{self.space}: final training"},
        }[self.kind]
        if not needed <= set(rates):
            return None
        if self.kind == "rmi":
            return self.networks / rates[f"{self.space}: rmi"]
        if self.kind == "final":
            return self.epochs * 2 * TRAIN / rates[f"{self.space}: final training"]
        training = self.epochs * TRAIN / rates[f"{self.space}: training"]
        return self.cells * (training + self.networks * TRAIN * rates[f"{self.space}: evaluation"])


WORK = {
    "evnas_nasbench201": Work("nasbench201", 50, 50 * 50, published_s=20_250),
    "cmanas_nasbench201": Work("nasbench201", 100, 101 * 14, published_s=13_896),
    "nevonas_nasbench201": Work("nasbench201", 50, 50 * 20, published_s=9_434),
    "pevonas_nasbench201": Work("nasbench201", 3 * 50, 300 * 20, published_s=4_509),
    "evnas_darts": Work("darts", 50, 50 * 50),
    "cmanas_darts": Work("darts", 100, 101 * 20),
    "nevonas_darts": Work("darts", 50, 50 * 20),
    "pevonas_darts": Work("darts", 3 * 50, 600 * 20, cells=20 / 8),
    "mo_hdnas": Work("nasbench201", 0, 100 * 20, kind="rmi", published_s=0.65 * 3600),
    "hw_evrsnas": Work("nasbench201", 0, 50 * 50, kind="rmi"),
    "train_evnas_a_cifar10": Work("darts", 600, 1, kind="final"),
    "train_evnas_a_cifar100": Work("darts", 600, 1, kind="final"),
}
"""At most so much: a network is evaluated once with the same weights, and pEvoNAS stops once it converges.
On NAS-Bench-201 the times are published; rates on the DARTS space are those of the authors' code."""


def measured(path: Path) -> Rates:
    """Rates in the file that `make gpu` wrote; none where it is missing, or of tiny sizes.

    Args:
        path: build/gpu.json.
    """
    if not path.is_file():
        return {}
    content = json.loads(path.read_text())
    if content["sizes"] != "published":
        return {}
    return {row["rate"]: row["per_second"] for row in content["rates"] if row.get("rate")}


def estimates(rates: Rates) -> list[tuple[str, float | None, str]]:
    """Name, hours on one GPU, and where they come from, of each published experiment.

    Args:
        rates: Measured ones; where they are missing those of the authors' code, or the published time.
    """
    rows: list[tuple[str, float | None, str]] = []
    for name, work in WORK.items():
        seconds, source = work.seconds(rates), "measured rates"
        if seconds is None:
            seconds, source = work.seconds(AUTHORS), "rates of the authors' code on an H100"
        if seconds is None:
            seconds, source = work.published_s, "published time"
        rows.append(
            (name, None if seconds is None else seconds / 3600, source if seconds else "not measured")
        )
    return rows


def in_lines(rates: Rates) -> str:
    """The estimates as lines of a table."""
    lines = [
        f"{name:<24}{'' if hours is None else f'{hours:.1f}':>8}  {source}"
        for name, hours, source in estimates(rates)
    ]
    return "\n".join([f"{'experiment':<24}{'hours':>8}  by", *lines])
