"""Colors of outputs and faces, alike in overlays, timelines and strips.

Each differs visibly from the others and is legible on black and on white.
"""

from __future__ import annotations

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
"""Of classes and values in the order of the task; the first is Neutral's in Aff-Wild2."""
FACES = ("#ffd23f", "#4cc9f0", "#ff7096", "#80ed99", "#c8a2ff", "#ffa552")
"""Of faces in a frame."""


def color_of(place: int, palette: tuple[str, ...] = OUTPUTS) -> str:
    """The color of an output or face; they repeat where there are more than colors."""
    return palette[place % len(palette)]


def rgb(color: str) -> tuple[int, int, int]:
    """``#ff8000`` as numbers from 0 to 255."""
    red, green, blue = bytes.fromhex(color[1:])
    return red, green, blue
