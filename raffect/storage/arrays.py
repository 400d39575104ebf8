"""Arrays in files of numpy (``.npy``) that a user provided."""

from __future__ import annotations

import io
import math
import mmap
from pathlib import Path

import numpy as np
from numpy.lib import format as npy

from raffect.storage.paths import Damaged, open_regular

_HEADER_BYTES = 1 << 17
"""More than a header ever has: its length is a number of two bytes, or numpy reads 10,000."""
_HEADERS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


def read_npy(content: bytes | mmap.mmap, most_cells: int | None = None) -> np.ndarray:
    """The array in the bytes of a ``.npy`` file, as a view of them. Pickled objects are refused.

    Args:
        content: The file's bytes, or a map of it.
        most_cells: Most cells that are expected; None for any number.

    Raises:
        Damaged: If they are no such array, cut off, or more cells.
    """
    try:
        head = io.BytesIO(content[:_HEADER_BYTES])
        if content[: len(npy.MAGIC_PREFIX)] != npy.MAGIC_PREFIX:
            raise Damaged(f"not a .npy file, it begins with {content[:6]!r}")
        version = npy.read_magic(head)
        if version not in _HEADERS:
            raise Damaged(f"version {version[0]}.{version[1]} of .npy, expected 1.0 or 2.0")
        shape, is_fortran, dtype = _HEADERS[version](head)
        cells = math.prod(shape)
        if dtype.hasobject:
            raise Damaged("holds Python objects, expected numbers or text")
        if min(shape, default=0) < 0 or (most_cells is not None and cells > most_cells):
            expected = "" if most_cells is None else f", expected {most_cells:,} at most"
            raise Damaged(f"{cells:,} cells{expected}")
        if cells * dtype.itemsize > len(content) - head.tell():
            raise Damaged(f"claims {cells:,} cells of {dtype}, and is cut off")
        found = np.frombuffer(content, dtype, cells, head.tell())
        return found.reshape(shape, order="F" if is_fortran else "C")
    except Damaged:
        raise
    except Exception as error:  # of wrong bytes numpy raises nearly anything
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise Damaged(reason) from error


def map_npy(path: Path) -> np.ndarray:
    """The array in a local ``.npy`` file, mapped: pages are read when they are used.

    Raises:
        Damaged: As `read_npy`, or if it is not a regular file.
        OSError: If it cannot be opened.
    """
    with open_regular(path) as file:
        try:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # no bytes
            raise Damaged("empty") from error
    return read_npy(content)
