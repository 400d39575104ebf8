"""Pictures as a viewer shows them: decoded as in `raffect.datasets.frames`, and turned upright."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image

from raffect.datasets.frames import decode, read_bytes

SUFFIXES = frozenset([".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"])
"""File names in folders that are taken for pictures."""
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What turns a picture upright, by its EXIF orientation."""


def read_picture(path: Path) -> np.ndarray:
    """Read a picture: uint8 RGB, upright, shape (height, width, 3).

    Raises:
        BadFrame: If it cannot be read, is no picture, or is too large.
        RaffectError: If its folder cannot be read.
    """
    folder, name = os.path.split(os.path.abspath(path))
    content = read_bytes(folder, name)
    rgb = decode(content)
    turn = _TURNS.get(_orientation(content))
    return rgb if turn is None else np.asarray(Image.fromarray(rgb).transpose(turn))


def _orientation(content: bytes) -> int | None:
    """EXIF orientation of a picture that can be decoded; None where it has none or a broken one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with Image.open(io.BytesIO(content)) as image:
                return image.getexif().get(_ORIENTATION)
        except Exception:  # parsers of hostile metadata raise nearly anything
            return None
