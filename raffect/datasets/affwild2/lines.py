"""One line of an annotation file each: its values, or what it should have been."""

from __future__ import annotations

import re
from collections.abc import Callable

from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.datasets.tasks import Task

MTL_HEADER = "image,valence,arousal,expression,aus"
"""Header of a file of the multi-task challenge, whose lines have 16 columns."""

_INT = re.compile(rb"-?[0-9]{1,3}")
_FLOAT = re.compile(rb"-?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,3})?")
_MTL_IMAGE = re.compile(rb"(.+)/0*([0-9]{1,9})\.[A-Za-z]{3,4}", re.S)


def parse_expression(line: bytes) -> tuple[int, ...]:
    """One EXPR line, ``-1``..``7``.

    Raises:
        ValueError: If it is anything else; only ASCII digits count as numbers.
    """
    if not _INT.fullmatch(line) or not -1 <= (value := int(line)) <= 7:
        raise ValueError(f"expected one integer from -1 to 7, found {_show(line)}")
    return (value,)


def parse_units(line: bytes) -> tuple[int, ...]:
    """One AU line of 12 values, each ``-1``, ``0`` or ``1``.

    Raises:
        ValueError: If it is anything else.
    """
    cells = [cell.strip() for cell in line.split(b",")]
    if len(cells) != 12 or any(cell not in (b"-1", b"0", b"1") for cell in cells):
        raise ValueError(f"expected 12 values of -1, 0 or 1, found {_show(line)}")
    return tuple(map(int, cells))


def parse_valence_arousal(line: bytes) -> tuple[float, ...]:
    """One VA line of two values in [-1, 1], or -5 for unlabelled.

    Raises:
        ValueError: If it is anything else.
    """
    cells = [cell.strip() for cell in line.split(b",")]
    if len(cells) == 2 and all(_FLOAT.fullmatch(cell) for cell in cells):
        values = tuple(map(float, cells))
        if all(-1 <= value <= 1 or value == -5 for value in values):
            return values
    raise ValueError(f"expected two values from -1 to 1 (or -5), found {_show(line)}")


PARSERS: dict[Task, Callable[[bytes], tuple]] = {
    EXPR: parse_expression,
    AU: parse_units,
    VA: parse_valence_arousal,
}
"""By task, for a line of a file of its own."""


def parse_mtl(line: bytes) -> tuple[tuple[str, int], tuple]:
    """(video, frame) of one MTL line, and its VA, EXPR and AU values.

    Raises:
        ValueError: If it is anything else.
    """
    cells = [cell.strip() for cell in line.split(b",")]
    match = _MTL_IMAGE.fullmatch(cells[0])
    if len(cells) != 16 or not match or int(match[2]) < 1:
        raise ValueError(f"expected video/00001.jpg and 15 values, found {_show(line)}")
    video = match[1].decode("utf-8", "strict")
    values = (
        parse_valence_arousal(b",".join(cells[1:3])),
        parse_expression(cells[3]),
        parse_units(b",".join(cells[4:])),
    )
    return (video, int(match[2])), values


def _show(line: bytes) -> str:
    text = line[:60].decode("utf-8", "backslashreplace")
    return repr(text) + ("..." if len(line) > 60 else "")
