"""The choices of a module: a column per part of it, which is what their names begin with."""

from __future__ import annotations

from collections.abc import Sequence

from hwnas.spaces.drawing import NUM_COLOURS, Drawing, Slot

WIDTH, HEIGHT, PITCH, GAP = 96, 20, 40, 12


def columns(names: Sequence[str], ops: Sequence[str]) -> Drawing:
    """A box per choice; those of one part stand below each other, under the part's name.

    Args:
        names: Names of the choices: what is before the first "." is the part's.
        ops: Names of all options.
    """
    boxes: list[Slot] = []
    captions: list[tuple[float, float, str]] = []
    rows: dict[str, int] = {}
    for name in names:
        part, _, own = name.partition(".")
        column = list(rows).index(part) if part in rows else len(rows)
        row = rows[part] = rows.get(part, -1) + 1
        x, y = 1 + column * (WIDTH + GAP), 20 + row * PITCH
        captions.append((x + WIDTH / 2, y - 8, f"{part} {own}".strip() if row == 0 else own or part))
        boxes.append(Slot("box", f"M{x} {y}h{WIDTH}v{HEIGHT}h-{WIDTH}z", x + WIDTH / 2, y + HEIGHT / 2, name))
    looks = tuple((f"c{index % NUM_COLOURS}", op) for index, op in enumerate(ops))
    width, height = len(rows) * (WIDTH + GAP), 20 + (max(rows.values()) + 1) * PITCH
    return Drawing(width, height, tuple(boxes), (), looks, tuple(ops), tuple(captions))
