"""The off-the-shelf networks that a search may be compared with."""

from __future__ import annotations

from collections.abc import Sequence

from hwnas.core import suggestion
from hwnas.spaces.known import known_names

USUAL = (
    "mobilenet_v2_x0.25",
    "mobilenet_v2_x0.5",
    "mobilenet_v2",
    "mobilenet_v3_small_x0.25",
    "mobilenet_v3_small_x0.5",
    "mobilenet_v3_small",
    "resnet10_w8",
    "resnet18_w8",
    "resnet10_w16",
    "resnet18_w16",
    "resnet10_w32",
    "resnet18_w32",
    "resnet18",
)
"""Networks of which `baselines=auto` takes one per family."""


def check_baselines(baselines: str | Sequence[str], trains: bool) -> None:
    """Raise ValueError for baselines that do not exist or cannot be trained.

    Args:
        baselines: "auto", or names.
        trains: Whether the search ends with a training.
    """
    if isinstance(baselines, str):
        if baselines != "auto":
            raise ValueError(f"baselines must be auto or a list, e.g. [resnet18_w16], not {baselines!r}")
        return
    known = known_names()
    for name in baselines:
        if name not in known:
            raise ValueError(f"baselines has no network {name!r}{suggestion(str(name), known)}")
    if len(set(baselines)) < len(baselines):
        raise ValueError(f"baselines=[{','.join(baselines)}] names a network twice")
    if baselines and not trains:
        raise ValueError(
            "baselines are trained like the best network, and this search ends without a training: it needs "
            "images, trainer.epochs above 0, and no table that knows the accuracies"
        )
