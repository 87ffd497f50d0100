"""How architectures are drawn: the shape that all of a space share, and one of them as a picture.

A space that draws itself is `Drawable`; others are a strip with a box per decision.
"""

from __future__ import annotations

from dataclasses import dataclass

from hwnas.core import Genotype, SearchSpace

NUM_COLOURS = 8
COLOURS = {
    f"c{index}": colour
    for index, colour in enumerate(
        ("#67707a", "#0067a5", "#00805c", "#b9540a", "#a8457f", "#7d6500", "#1b87b8", "#6b3fa0")
    )
}
"""Of operations, by style class, as on a page in daylight."""

NODE_RADIUS = 14
"""Of a node's circle, in the drawing's units."""


@dataclass(frozen=True)
class Slot:
    """Where one decision of a genotype is drawn.

    Args:
        shape: "edge", a path that ends in an arrow, or "box".
        path: SVG path data.
        x: Centre of the label.
        y: Centre of the label.
        name: Of the decision, in words.
    """

    shape: str
    path: str
    x: float
    y: float
    name: str


@dataclass(frozen=True)
class Drawing:
    """The shape that all architectures of a space share, and how each operation looks in it.

    Args:
        width: Of the drawing, in its own units.
        height: Of the drawing.
        slots: One per decision of a genotype.
        nodes: (x, y, name) of the nodes.
        ops: (style class, label) per operation; "ghost" is drawn faintly, "off" not at all.
        names: Full name per operation, for a legend.
        captions: (x, y, text) beside the drawing's parts.
    """

    width: int
    height: int
    slots: tuple[Slot, ...]
    nodes: tuple[tuple[float, float, str], ...]
    ops: tuple[tuple[str, str], ...]
    names: tuple[str, ...]
    captions: tuple[tuple[float, float, str], ...] = ()


def strip(space: SearchSpace) -> Drawing:
    """A box per decision, sixteen in a row."""
    size, per_row, count = 20, 16, len(space.choices)
    boxes: list[Slot] = []
    for i in range(count):
        x, y = 1 + (i % per_row) * (size + 2), 1 + (i // per_row) * (size + 2)
        boxes.append(
            Slot("box", f"M{x} {y}h{size}v{size}h-{size}z", x + size / 2, y + size / 2, f"decision {i + 1}")
        )
    labels = [op if len(op) == 1 else str(index) for index, op in enumerate(space.ops)]
    ops = tuple((f"c{index % NUM_COLOURS}", label) for index, label in enumerate(labels))
    rows = -(-count // per_row)
    return Drawing(min(count, per_row) * (size + 2), rows * (size + 2), tuple(boxes), (), ops, space.ops)


def picture(shape: Drawing, genotype: Genotype) -> str:
    """An architecture as an SVG picture of its own."""
    parts = []
    for slot, op in zip(shape.slots, genotype, strict=True):
        style, label = shape.ops[op]
        if style == "off":
            continue
        colour = COLOURS.get(style, "#b6bcc4")
        line = f'stroke="{colour}"' + (' stroke-dasharray="2 4"' if style == "ghost" else "")
        if slot.shape == "edge":
            parts.append(
                f'<path d="{slot.path}" fill="none" {line} stroke-width="2" marker-end="url(#hwnas-end)"/>'
            )
        else:
            parts.append(f'<path d="{slot.path}" fill="white" {line}/>')
        if label:
            parts.append(
                f'<text x="{slot.x}" y="{slot.y}" fill="{colour}" stroke="white" stroke-width="4" '
                f'paint-order="stroke">{label}</text>'
            )
    parts += [
        f'<circle cx="{x}" cy="{y}" r="{NODE_RADIUS}" fill="white" stroke="#67707a"/>'
        f'<text x="{x}" y="{y}" fill="#1c2126">{name}</text>'
        for x, y, name in shape.nodes
    ]
    parts += [f'<text x="{x}" y="{y}" fill="#67707a">{name}</text>' for x, y, name in shape.captions]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{shape.width}" height="{shape.height}" '
        f'viewBox="0 0 {shape.width} {shape.height}" font-family="sans-serif" font-size="11" '
        'font-weight="600" text-anchor="middle" dominant-baseline="central">'
        '<defs><marker id="hwnas-end" viewBox="0 0 8 8" refX="6" refY="4" markerWidth="5" markerHeight="5" '
        'orient="auto"><path d="M0 0L8 4L0 8z" fill="#67707a"/></marker></defs>' + "".join(parts) + "</svg>"
    )
