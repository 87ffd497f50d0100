"""The stages of FBNet, side by side."""

from __future__ import annotations

from hwnas.spaces.drawing import Drawing, Slot
from hwnas.spaces.fbnet.encoding import BLOCKS, LAYERS, OPS


def stages() -> Drawing:
    """A column per stage, its layers from top to bottom, each a box with kernel and expansion."""
    width, height, gap = 46, 20, 4
    boxes: list[Slot] = []
    for stage, number in enumerate(LAYERS):
        for layer in range(number):
            x, y = 1 + stage * (width + gap), 1 + layer * (height + gap)
            path = f"M{x} {y}h{width}v{height}h-{width}z"
            boxes.append(Slot("box", path, x + width / 2, y + height / 2, f"layer {len(boxes) + 1}"))
    looks = [
        (f"c{index}", f"{kernel}×{kernel} " + (f"g{groups}" if groups > 1 else f"e{expansion}"))
        for index, (kernel, expansion, groups) in enumerate(BLOCKS)
    ]
    looks.append(("ghost", "skip"))
    size = len(LAYERS) * (width + gap), max(LAYERS) * (height + gap)
    return Drawing(*size, tuple(boxes), (), tuple(looks), OPS)
