"""Names of off-the-shelf networks, e.g. "mobilenet_v3_small_x0.5" and "resnet18_w16"."""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.core import suggestion

SMALL_SIDE = 64
"""Images of a smaller side get the variants that are usual on CIFAR: less of their resolution is given up."""

DEPTHS = {
    "resnet10": (1, 1, 1, 1),
    "resnet14": (2, 2, 1, 1),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
}
"""Basic blocks per stage. Sources: He et al., CVPR 2016 (18, 34); pytorchcv (10, 14)."""

BASE_WIDTHS = (8, 16, 24, 32, 48, 64)
"""Channels of a ResNet's first stage; the published networks have 64."""

MULTIPLIERS = (0.25, 0.35, 0.5, 0.75, 1.0)
"""Of the widths of MobileNets, as in the paper of MobileNetV2 (Sandler et al., CVPR 2018) and in Keras."""

FAMILIES = {
    **dict.fromkeys(("mobilenet_v2", "mobilenet_v3_small", "mobilenet_v3_large"), ("_x", MULTIPLIERS)),
    **dict.fromkeys(DEPTHS, ("_w", BASE_WIDTHS)),
}
"""Beginning of the ending that says a width, and the widths; the last is that of a name without an ending."""


@dataclass(frozen=True)
class Known:
    """An off-the-shelf network.

    Attributes:
        family: What its name begins with, e.g. "resnet18".
        width: Channels of a ResNet's first stage, or the multiplier of a MobileNet's widths.
    """

    family: str
    width: float

    @property
    def depths(self) -> tuple[int, ...]:
        """Blocks per stage of a ResNet; of other networks none."""
        return DEPTHS.get(self.family, ())

    @property
    def options(self) -> dict[str, str]:
        """Options of `search_space=mobile` or `resnet` for this network where they are not the first."""
        depths = {f"s{number}.depth": str(depth) for number, depth in enumerate(self.depths, start=1)}
        return {"width": str(self.width), **depths}


def _all() -> dict[str, Known]:
    found = {}
    for family, (ending, widths) in FAMILIES.items():
        found[family] = Known(family, widths[-1])
        for width in widths[:-1]:
            found[f"{family}{ending}{width:g}"] = Known(family, width)
    return found


_KNOWN = _all()


def published(space: str) -> dict[str, dict[str, str]]:
    """Published networks that are points of `search_space=mobile` or `resnet`, as `Known.options` by name."""
    if space == "mobile":
        return {name: each.options for name, each in _KNOWN.items() if each.family == "mobilenet_v2"}
    found = {name: each.options for name, each in _KNOWN.items() if each.depths}
    return {**found, "resnet50": {**found["resnet34"], "block": "bottleneck"}}


def known_names() -> tuple[str, ...]:
    """Names of all off-the-shelf networks, by family: its full width, then from thin on."""
    return tuple(_KNOWN)


def known(name: str) -> Known:
    """The network of a name; "_x1.0" and "_w64" may be written as well.

    Raises:
        ValueError: An unknown name; says which are near.
    """
    plain = name.removesuffix("_x1.0").removesuffix("_w64")
    if plain not in _KNOWN:
        hint = suggestion(name, known_names()) or f"; known: {', '.join(FAMILIES)}, and narrower ones"
        raise ValueError(f"{name!r} is no network that is known here{hint}")
    return _KNOWN[plain]
