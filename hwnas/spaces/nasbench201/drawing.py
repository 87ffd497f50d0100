"""The cell of NAS-Bench-201 as a graph of four nodes."""

from __future__ import annotations

import numpy as np

from hwnas.spaces.drawing import NODE_RADIUS, Drawing, Slot
from hwnas.spaces.nasbench201.encoding import EDGES, OPS

_NODES = ((22.0, 92.0, "in"), (124.0, 34.0, "1"), (222.0, 92.0, "2"), (328.0, 92.0, "out"))
_BENDS = {(0, 3): 88.0, (1, 3): -36.0}  # the two long edges pass outside the others
_LOOKS = {
    "none": ("ghost", ""),
    "skip_connect": ("c0", "skip"),
    "nor_conv_1x1": ("c2", "1×1"),
    "nor_conv_3x3": ("c1", "3×3"),
    "avg_pool_3x3": ("c3", "pool"),
}


def cell() -> Drawing:
    """Nodes in a row, edges as curves between them."""
    slots = tuple(_edge(source, target) for source, target in EDGES)
    return Drawing(350, 158, slots, _NODES, tuple(_LOOKS[op] for op in OPS), OPS)


def _edge(source: int, target: int) -> Slot:
    """A quadratic curve between two nodes, cut at their circles, with its label in the middle."""
    a, b = np.array(_NODES[source][:2]), np.array(_NODES[target][:2])
    control = (a + b) / 2 + (0.0, _BENDS.get((source, target), 0.0))
    start = a + (control - a) / np.linalg.norm(control - a) * NODE_RADIUS
    end = b + (control - b) / np.linalg.norm(control - b) * (NODE_RADIUS + 2)
    x, y = (start + 2 * control + end) / 4
    points = " ".join(f"{value:.1f}" for value in (*control, *end))
    path, name = f"M{start[0]:.1f} {start[1]:.1f}Q{points}", f"{_NODES[source][2]}→{_NODES[target][2]}"
    return Slot("edge", path, round(float(x), 1), round(float(y), 1), name)
