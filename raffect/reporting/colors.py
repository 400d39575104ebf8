"""Colors of outputs and faces, alike in overlays, timelines and strips.

Each differs visibly from the others and is legible on black and on white.
"""

from __future__ import annotations

from raffect.datasets.tasks import Task

OUTPUTS = (
    "#8a94a0",
    "#e0475c",
    "#5f9e3e",
    "#9b6dd6",
    "#e3a90b",
    "#3d86f5",
    "#f07f3c",
    "#2fa79d",
    "#c05a9e",
    "#8c6d46",
)
"""Of classes in the order of their task; the first is Neutral's in Aff-Wild2."""
_LABELS, _VALUES = 5, 8
"""Color of all labels of a task; the first of values, after those of eight classes."""
FACES = ("#ffd23f", "#4cc9f0", "#ff7096", "#80ed99", "#c8a2ff", "#ffa552")
"""Of faces in a frame."""


def color_of(place: int, palette: tuple[str, ...] = OUTPUTS) -> str:
    """The color of an output or face; they repeat where there are more than colors."""
    return palette[place % len(palette)]


def colors_of(task: Task) -> list[str]:
    """The color of each output of a task.

    Labels share one, and values have other ones than Aff-Wild2's classes, which stand beside them.
    """
    if task.kind == "multilabel":
        return [color_of(_LABELS)] * len(task.outputs)
    first = _VALUES if task.kind == "regression" else 0
    return [color_of(first + k) for k in range(len(task.outputs))]


def rgb(color: str) -> tuple[int, int, int]:
    """``#ff8000`` as numbers from 0 to 255."""
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue
