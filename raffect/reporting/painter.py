"""Draw predictions beside a picture: boxes in it, bars right of it, the time course below it.

Nothing covers the picture but the boxes and their numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from raffect.datasets.tasks import Task
from raffect.reporting.colors import FACES, color_of, colors_of, rgb
from raffect.reporting.course import FaceCourse, TimeCourse
from raffect.reporting.strip import BACKGROUND, EMPTY, INK, MUTED, draw_strip, font_of

SMALLEST, LONGEST = 360, 960
"""Sides of the picture between which it is enlarged or shrunk: letters must be legible, and a film
in 4K would take minutes a minute."""
TOP_CLASSES = 3
_COLUMN, _BAR = 18, 16
"""Width of the right column and of its bars, in sizes of a letter."""


class Painter:
    """Draws the frames of one input.

    Attributes:
        size: Width and height of the drawn frames, both even, as video needs.
        scale: Their pixels for each pixel of the input.
    """

    def __init__(self, course: TimeCourse, width: int, height: int, caveats: Sequence[str]) -> None:
        """Lay out frames for pictures of ``width`` x ``height`` pixels."""
        self.course, self.caveats = course, caveats
        self.scale = min(max(1.0, SMALLEST / min(width, height)), LONGEST / max(width, height))
        self._picture = (max(2, round(width * self.scale)), max(2, round(height * self.scale)))

        # Right column and strip; one picture has no time course
        self._text = min(max(sum(self._picture) // 90, 11), 18)
        column = _COLUMN * self._text
        total = self._picture[0] + column
        self._strip = draw_strip(course, total, self._text) if course.frames > 1 else None
        below = self._strip.image.height if self._strip else 0
        notes = _line(self._text) if caveats else 0
        self._tall = max(self._picture[1], self._needed())
        full = self._tall + below + notes
        self.size = (total + total % 2, full + full % 2)

        # What is alike in all frames
        self._empty = Image.new("RGB", self.size, BACKGROUND)
        if self._strip:
            self._empty.paste(self._strip.image, (0, self._tall))
        if caveats:
            draw, place = ImageDraw.Draw(self._empty), (self._text, self._tall + below)
            draw.text(place, "; ".join(caveats), MUTED, font_of(self._text))

    def paint(self, picture: Image.Image, frame: int, place: float) -> Image.Image:
        """One frame.

        Args:
            picture: RGB, as displayed.
            frame: Its 1-based number.
            place: Where it stands on the course's axis.
        """
        canvas = self._empty.copy()
        canvas.paste(picture.resize(self._picture, Image.Resampling.BILINEAR))
        draw = ImageDraw.Draw(canvas)

        # Faces of this frame: box in the picture, numbers beside it
        y, left = self._text // 2, self._picture[0] + self._text
        found = [(face, row) for face in self._faces() if (row := face.row_of(frame)) is not None]
        for k, (face, row) in enumerate(found):
            self._draw_box(draw, face, row)
            if y + self._height_of(face, row) > self._tall:
                more = f"and {len(found) - k} more"
                draw.text((left, self._tall - _line(self._text)), more, MUTED, font_of(self._text))
                break
            y = self._draw_numbers(draw, face, row, left, y)
        if not found:
            draw.text((left, y), "no face", MUTED, font_of(self._text))

        # Cursor of the strip
        if self._strip and self._strip.lanes:
            x = self._strip.column_of(place)
            draw.line([(x, self._tall), (x, self._tall + self._strip.lanes)], INK, 2)
        return canvas

    def _faces(self) -> list[FaceCourse]:
        return sorted(self.course.faces, key=lambda face: face.number)

    def _draw_box(self, draw: ImageDraw.ImageDraw, face: FaceCourse, row: int) -> None:
        if np.isnan(face.box[row]).any():
            return
        x, y, width, height = (float(value) * self.scale for value in face.box[row])
        color, line = rgb(color_of(face.number - 1, FACES)), max(2, self._text // 6)
        draw.rectangle([x, y, x + width, y + height], outline=color, width=line)

        # Its number on a tag above it, or inside where there is no room
        font, text = font_of(self._text), str(face.number)
        room = font.getlength(text) + self._text // 2
        top = y - _line(self._text) if y >= _line(self._text) else y
        draw.rectangle([x, top, x + room, top + _line(self._text)], fill=color)
        middle = (x + room / 2, top + _line(self._text) / 2)
        draw.text(middle, text, BACKGROUND, font, anchor="mm")

    def _needed(self) -> int:
        """Pixels for the numbers of one face, whatever it shows."""
        lines = 2 + sum(_num_lines(task) for task in self.course.tasks)
        return _line(self._text) * lines

    def _height_of(self, face: FaceCourse, row: int) -> int:
        return _line(self._text) * (1 + len(self._entries(face, row)))

    def _draw_numbers(
        self, draw: ImageDraw.ImageDraw, face: FaceCourse, row: int, x: int, y: int
    ) -> int:
        """Name of a face and what is predicted; the row below them."""
        font, text = font_of(self._text), self._text
        draw.text((x, y), face.name, rgb(color_of(face.number - 1, FACES)), font)
        if face.status[row] != "ok":
            draw.text((x + 5 * text, y), face.status[row], MUTED, font)
        y += _line(text)
        for name, bar, color in self._entries(face, row):
            if bar is not None:
                width = _BAR * text
                first, last = (x + share * width for share in sorted(bar))
                draw.rectangle([x, y + 1, x + width, y + text + 3], fill=EMPTY)
                draw.rectangle([first, y + 1, max(last, first + 1), y + text + 3], fill=color)
            draw.text((x + 4, y), name, INK, font)
            y += _line(text)
        return y + text // 2

    def _entries(
        self, face: FaceCourse, row: int
    ) -> list[tuple[str, tuple[float, float] | None, tuple[int, int, int]]]:
        """Lines of one face: text, both ends of its bar from 0 to 1, or no bar, and color."""
        entries = []
        for task in self.course.tasks:
            scores = face.scores[task.name][row]
            if np.isnan(scores).any():
                continue
            colors = colors_of(task)
            if task.kind == "multiclass":
                for k in np.argsort(-scores, kind="stable")[:TOP_CLASSES]:
                    text = f"{task.outputs[k]} {scores[k]:.2f}"
                    entries.append((text, (0.0, float(scores[k])), _dim(colors[k])))
            elif task.kind == "multilabel":
                active = np.flatnonzero(face.decided[task.name][row] == 1)
                names = [task.describe(task.outputs[k]) for k in active]
                limit = _num_lines(task)
                rest = [f"and {len(names) - limit + 1} more"] if len(names) > limit else []
                shown = names[: limit - 1] + rest if rest else names
                entries += [(self._shorten(name), None, EMPTY) for name in shown]
            else:
                # From 0, which lies in the middle between limits of -1 and 1
                low, high = task.limits or (0.0, 1.0)
                for k, name in enumerate(task.outputs):
                    ends = np.clip((np.array([0.0, scores[k]]) - low) / (high - low), 0, 1)
                    bar = (float(ends[0]), float(ends[1]))
                    entries.append((f"{name} {scores[k]:+.2f}", bar, _dim(colors[k])))
        return entries

    def _shorten(self, name: str) -> str:
        """As much of a name as fits."""
        room = _BAR * self._text
        if font_of(self._text).getlength(name) <= room:
            return name
        while name and font_of(self._text).getlength(f"{name}...") > room:
            name = name[:-1]
        return f"{name.rstrip()}..."


def _line(text: int) -> int:
    return int(1.5 * text)


def _num_lines(task: Task) -> int:
    """Most lines that a task has beside a picture."""
    if task.kind == "multiclass":
        return min(TOP_CLASSES, len(task.outputs))
    return min(6, len(task.outputs))


def _dim(color: str) -> tuple[int, int, int]:
    """A color on which white letters are legible."""
    red, green, blue = (int(0.65 * value) for value in rgb(color))
    return red, green, blue
