"""A strip of pixels that shows the whole time course of an input: lanes of its faces and tasks."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from raffect.datasets.tasks import Task
from raffect.reporting.colors import FACES, color_of, colors_of, rgb
from raffect.reporting.course import FaceCourse, TimeCourse, bin_rows

MOST_LANES = 6
"""Lanes of a strip; faces with most frames come first."""
BACKGROUND, EMPTY, INK, MUTED = (20, 24, 29), (34, 40, 47), (232, 236, 240), (150, 160, 170)


@functools.cache
def font_of(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's DejaVu Sans at a size in pixels; it has Latin, Greek and Cyrillic letters."""
    import matplotlib as mpl

    file = Path(mpl.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(file), size)


@dataclass(frozen=True)
class Strip:
    """A drawn strip.

    Attributes:
        image: Its pixels.
        left: Column of the first place on the axis; names stand left of it.
        width: Columns of the axis.
        lanes: Rows of all lanes; the legend stands below them.
        span: Where the axis begins and ends.
    """

    image: Image.Image
    left: int
    width: int
    lanes: int
    span: tuple[float, float]

    def column_of(self, place: float) -> int:
        """The column that shows a place of the axis."""
        low, high = self.span
        share = (place - low) / (high - low) if high > low else 0.0
        return self.left + round(min(max(share, 0.0), 1.0) * (self.width - 1))


def draw_strip(course: TimeCourse, width: int, size: int) -> Strip:
    """Draw all lanes, names left of them and a legend of the classes below.

    Args:
        course: The predictions.
        width: Pixels.
        size: Of the letters in pixels; heights follow it.
    """
    # Lanes from top to bottom
    num_faces = max(1, MOST_LANES // len(course.tasks))
    shown = sorted(course.faces[:num_faces], key=lambda face: face.number)
    lanes = [(face, task) for face in shown for task in course.tasks]
    names = [f"{face.name}  {task.name}" for face, task in lanes]
    font = font_of(size)
    left = 2 * size + max((int(font.getlength(name)) for name in names), default=0)
    right, gap = size, size // 3
    heights = [_height(task, size) for _, task in lanes]
    legend = _wrap_legend(course, width - 2 * size, size) if lanes else []
    below = _line(size) * (len(legend) if lanes else 1)
    height = sum(heights) + gap * (len(lanes) + 2) + below

    # Pixels of the lanes, and their names
    image = Image.new("RGB", (width, height), BACKGROUND)
    draw = ImageDraw.Draw(image)
    y = gap
    for (face, task), name, tall in zip(lanes, names, heights, strict=True):
        pixels = _lane(course, face, task, width - left - right, tall)
        image.paste(Image.fromarray(pixels), (left, y))
        color = rgb(color_of(face.number - 1, FACES))
        draw.text((size, y + tall / 2), name, color, font, anchor="lm")
        y += tall + gap
    if not lanes:
        draw.text((size, y), "no face in any frame", MUTED, font)
    for line in legend:
        for x, color, text in line:
            draw.rectangle((size + x, y + 2, size + x + size - 3, y + size - 1), color)
            draw.text((size + x + int(1.3 * size), y), text, MUTED, font)
        y += _line(size)
    lanes_height = height - below - gap if lanes else 0
    return Strip(image, left, width - left - right, lanes_height, course.span)


def _line(size: int) -> int:
    return int(1.5 * size)


def _height(task: Task, size: int) -> int:
    """Pixels of a lane: labels have a row each."""
    if task.kind == "multilabel":
        return max(2 * size, min(len(task.outputs), 4 * size) * max(2, size // 3))
    return 2 * size + size // 2


def _lane(course: TimeCourse, face: FaceCourse, task: Task, width: int, height: int) -> np.ndarray:
    """Pixels of one lane, uint8, shape (height, width, 3)."""
    places, scores, _ = course.select(face, task)
    mean = bin_rows(places, scores, course.span, width).mean
    draw = {"multiclass": _draw_classes, "multilabel": _draw_labels}.get(task.kind, _draw_values)
    pixels = draw(mean, task, height)
    pixels[:, np.isnan(mean).any(axis=1)] = EMPTY
    return pixels


def _draw_classes(mean: np.ndarray, task: Task, height: int) -> np.ndarray:
    """Probabilities on top of each other; they fill the lane."""
    palette = np.array([rgb(color) for color in colors_of(task)], np.uint8)
    total = np.cumsum(mean, axis=1)
    level = (np.arange(height)[::-1] + 0.5) / height * total[:, -1:]
    number = (total[:, None, :] < level[:, :, None]).sum(2)
    return palette[np.minimum(number, len(palette) - 1)].transpose(1, 0, 2).copy()


def _draw_labels(mean: np.ndarray, task: Task, height: int) -> np.ndarray:
    """A row for each label, the brighter the more probable."""
    row = np.arange(height) * len(task.outputs) // height
    share = np.nan_to_num(mean[:, row].T)[:, :, None]
    bright = np.array(rgb(colors_of(task)[0]), float)
    return (share * bright + (1 - share) * np.array(EMPTY)).astype(np.uint8)


def _draw_values(mean: np.ndarray, task: Task, height: int) -> np.ndarray:
    """A line for each value, and one at 0."""
    low, high = task.limits or (
        float(np.nanmin(mean, initial=0)),
        float(np.nanmax(mean, initial=1)),
    )
    pixels = np.full((height, len(mean), 3), EMPTY, np.uint8)

    def row_of(value: np.ndarray) -> np.ndarray:
        share = np.clip((np.nan_to_num(value) - low) / max(high - low, 1e-9), 0, 1)
        return np.round((1 - share) * (height - 2)).astype(int)

    pixels[row_of(np.zeros(1))[0]] = MUTED
    for k, color in enumerate(colors_of(task)):
        # From each column's value to that of the next one, so that the line is closed
        rows = row_of(mean[:, k])
        after = np.append(rows[1:], rows[-1:])
        top, bottom = np.minimum(rows, after)[None], np.maximum(rows, after)[None]
        y = np.arange(height)[:, None]
        pixels[(y >= top) & (y <= bottom + 1)] = rgb(color)
    return pixels


def _wrap_legend(
    course: TimeCourse, width: int, size: int
) -> list[list[tuple[int, tuple[int, int, int], str]]]:
    """Lines of a legend: column, color and name of each class and value."""
    entries = [
        (rgb(color), name)
        for task in course.tasks
        if task.kind != "multilabel"
        for color, name in zip(colors_of(task), task.outputs, strict=True)
    ]
    lines, x = [[]] if entries else [], 0
    for color, name in entries:
        room = int(font_of(size).getlength(name)) + 3 * size
        if x and x + room > width:
            lines.append([])
            x = 0
        lines[-1].append((x, color, name))
        x += room
    return lines
