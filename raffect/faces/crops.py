"""Crops: the square around a face, 112x112, as Aff-Wild2's aligned crops show faces.

In those the eyes are level, 0.31 of the side apart. Where a detector gives the eyes, crops are
turned and sized by them; otherwise by the box, which OpenCV's cascade makes `_BOX_EYES` distances
between the eyes wide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import simplejpeg
from PIL import Image

from raffect.faces.tracks import FIELDS

SIDE = 112
"""Side of a crop in pixels."""
_BOX_EYES = 2.5
"""Side of a cascade's box in distances between the eyes."""
_BELOW_EYES = 0.12
"""From between the eyes down to the centre of a crop, in distances between the eyes."""
_QUALITY = 95
_MOST_SIDES = 4
"""Largest crop, in longer sides of the picture; a box from a file may be anything."""
_SHEET_COLUMNS, _SHEET_GAP = 8, 4
_EYES = slice(FIELDS.index("left_x"), None)


def place_square(face: np.ndarray, margin: float) -> tuple[float, float, float, float]:
    """The square to cut out for a face.

    Args:
        face: `FIELDS` of a face.
        margin: Border on each side, as a share of the box.

    Returns:
        Its centre x and y and its side in pixels, and the angle in radians by which the eyes are
        turned clockwise.
    """
    left_x, left_y, right_x, right_y = face[_EYES]
    apart = math.hypot(right_x - left_x, right_y - left_y)
    if not apart > 0:  # NaN without eyes
        x, y, w, h = face[:4]
        return x + w / 2, y + h / 2, max(w, h) * (1 + 2 * margin), 0.0
    angle = math.atan2(right_y - left_y, right_x - left_x)
    down = _BELOW_EYES * apart
    x = (left_x + right_x) / 2 - math.sin(angle) * down
    y = (left_y + right_y) / 2 + math.cos(angle) * down
    return x, y, apart * _BOX_EYES * (1 + 2 * margin), angle


def cut_out(rgb: np.ndarray, face: np.ndarray, margin: float) -> np.ndarray | None:
    """The crop of a face, black where it leaves the picture.

    Args:
        rgb: uint8 (height, width, 3).
        face: `FIELDS` of the face.
        margin: Of `place_square`.

    Returns:
        uint8 (`SIDE`, `SIDE`, 3); None if the face does not touch the picture, or is much larger.
    """
    height, width = rgb.shape[:2]
    x, y, side, angle = place_square(face, margin)
    if not 1 <= side <= _MOST_SIDES * max(height, width):
        return None
    # The part of the picture that holds the square, whichever way it is turned
    reach = side / 2 * (abs(math.cos(angle)) + abs(math.sin(angle))) + 2
    left, top = max(0, math.floor(x - reach)), max(0, math.floor(y - reach))
    right, bottom = min(width, math.ceil(x + reach)), min(height, math.ceil(y + reach))
    if right <= left or bottom <= top:
        return None
    part = Image.fromarray(np.ascontiguousarray(rgb[top:bottom, left:right]))
    x, y = x - left, y - top
    # Upright at its own scale, then resized with a filter that does not skip pixels
    if angle:
        pixels = max(SIDE, math.ceil(side))
        step = side / pixels
        cos, sin = math.cos(angle) * step, math.sin(angle) * step
        start_x = x - (cos - sin) * pixels / 2
        start_y = y - (sin + cos) * pixels / 2
        turn = (cos, -sin, start_x, sin, cos, start_y)
        bicubic = Image.Resampling.BICUBIC
        square = part.transform((pixels, pixels), Image.Transform.AFFINE, turn, bicubic)
        return np.asarray(square.resize((SIDE, SIDE), bicubic))
    first_x, first_y = math.floor(x - side / 2), math.floor(y - side / 2)
    whole = math.ceil(side) + 1
    square = part.crop((first_x, first_y, first_x + whole, first_y + whole))
    box = (x - side / 2 - first_x, y - side / 2 - first_y)
    area = (*box, min(box[0] + side, whole), min(box[1] + side, whole))
    return np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC, area))


def encode(crop: np.ndarray) -> bytes:
    """A crop as JPEG, with colours at full resolution."""
    crop = np.ascontiguousarray(crop)
    return simplejpeg.encode_jpeg(crop, _QUALITY, colorspace="RGB", colorsubsampling="444")


def draw_sheet(crops: Sequence[np.ndarray]) -> np.ndarray:
    """Crops side by side in rows of eight, uint8 (height, width, 3)."""
    columns, rows = min(len(crops), _SHEET_COLUMNS), math.ceil(len(crops) / _SHEET_COLUMNS)
    step = SIDE + _SHEET_GAP
    shape = rows * step + _SHEET_GAP, columns * step + _SHEET_GAP, 3
    sheet = np.full(shape, 255, np.uint8)
    for place, crop in enumerate(crops):
        row, column = divmod(place, _SHEET_COLUMNS)
        top, left = row * step + _SHEET_GAP, column * step + _SHEET_GAP
        sheet[top : top + SIDE, left : left + SIDE] = crop
    return sheet
