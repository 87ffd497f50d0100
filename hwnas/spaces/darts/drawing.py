"""The two cells of DARTS, one below the other."""

from __future__ import annotations

import math

from hwnas.spaces.darts.encoding import CELL_EDGES, EDGES, NUM_NODES, OPS
from hwnas.spaces.drawing import NODE_RADIUS, Drawing, Slot

_LOOKS = {
    "none": ("off", ""),
    "max_pool_3x3": ("c3", "max"),
    "avg_pool_3x3": ("c5", "avg"),
    "skip_connect": ("c0", "skip"),
    "sep_conv_3x3": ("c1", "sep3"),
    "sep_conv_5x5": ("c6", "sep5"),
    "dil_conv_3x3": ("c2", "dil3"),
    "dil_conv_5x5": ("c4", "dil5"),
}


def cells() -> Drawing:
    """A cell's nodes in a row, edges of even sources in arcs above it, of odd ones below."""
    step, height, rise = 61.0, 158.0, 15.0
    nodes, slots, captions = [], [], []
    for row, cell in enumerate(("normal", "reduce")):
        middle = row * height + 92.0
        captions.append((26.0, row * height + 10.0, cell))
        nodes += [(22.0 + node * step, middle, str(node)) for node in range(NUM_NODES + 2)]
        for source, target in CELL_EDGES:
            a, b = 22.0 + source * step, 22.0 + target * step
            x, span = (a + b) / 2, target - source
            if span == 1:
                slots.append((f"M{a + NODE_RADIUS} {middle}H{b - NODE_RADIUS - 2}", x, middle))
            else:
                top = middle + (rise * span + 1) * (1 if source % 2 else -1)
                control = 2 * top - middle  # a quadratic curve comes half as near
                length = math.hypot(x - a, control - middle)
                out = (x - a) / length, (control - middle) / length
                start = f"{a + NODE_RADIUS * out[0]:.1f} {middle + NODE_RADIUS * out[1]:.1f}"
                end = f"{b - (NODE_RADIUS + 2) * out[0]:.1f} {middle + (NODE_RADIUS + 2) * out[1]:.1f}"
                slots.append((f"M{start}Q{x} {control:.1f} {end}", x, top))
    named = [
        Slot("edge", path, x, y, f"{cell} {source}→{target}")
        for (path, x, y), (cell, source, target) in zip(slots, EDGES, strict=True)
    ]
    looks = tuple(_LOOKS[op] for op in OPS)
    return Drawing(350, int(2 * height), tuple(named), tuple(nodes), looks, OPS, tuple(captions))
