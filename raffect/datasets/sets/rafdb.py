"""RAF-DB, its basic part: pictures in seven expressions, with one split.

``list_patition_label.txt`` has lines ``train_00001.jpg 5``; a picture lies anywhere as
``train_00001_aligned.jpg`` or under its own name. The numbers are those of its readme.
"""

from __future__ import annotations

import re

import numpy as np

from raffect.config import PrepareConfig
from raffect.datasets.expressions import expression_task
from raffect.datasets.imported import SPLIT_NAMES, Imported
from raffect.datasets.problems import PICTURE
from raffect.datasets.root import Root, open_place
from raffect.datasets.sets.picture_sets import Picture, PictureSet, read_class
from raffect.errors import RaffectError, require

CLASSES = ("Surprise", "Fear", "Disgust", "Happiness", "Sadness", "Anger", "Neutral")
"""Numbered from 1."""
NAMES = {str(number): name for number, name in enumerate(CLASSES, 1)}

_LIST = r"(?:.*/)?list_par?tition_label\.txt"
_LINE = re.compile(r"\s*((train|test)\w*?)(?:_aligned)?(?:\.(?:jpe?g|png))?[\s,]+(\S+)\s*", re.I)
_COMPOUND = ("8", "9", "10", "11")
_COMPLETE = "a complete copy has 12,271 to train on and 3,068 to test on (Li et al. 2017)"


def recognise(root: Root) -> str:
    """Why a root is RAF-DB's; empty if it is not."""
    found = root.find(_LIST)
    return f"list {found[0]}" if found else ""


def import_rafdb(config: PrepareConfig, root: Root | None = None) -> Imported:
    """Read the list and find its pictures; a picture is its own group, named as in the list.

    Raises:
        RaffectError: If there is not one list, it is the compound part's, or no picture is found.
    """
    # The list
    place = open_place(config, root)
    files = place.lists.find(_LIST)
    require(
        len(files) == 1,
        f"{place.lists.path}: expected one list_patition_label.txt, found "
        f"{', '.join(files[:3]) or 'none'}; name its folder with --annotations",
    )
    task = expression_task(CLASSES)
    data = PictureSet("RAF-DB", place, _COMPLETE, files[0], {task: np.dtype(np.int16)}, NAMES)
    compounds = 0
    for line in place.lists.lines(files[0]):
        match = _LINE.fullmatch(line.text)
        if match is None:
            what = "expected train_00001.jpg and a class; left out"
            data.problems.append(line.problem(f"{line.text[:60]!r}: {what}", what))
            continue
        compounds += match[3] in _COMPOUND
        cells = read_class(line, match[3], task, NAMES, data.problems)
        data.add(Picture(line, match[1], SPLIT_NAMES[match[2].lower()], {task: cells}))
    _require_basic(data, compounds, f"{place.lists.path}/{files[0]}")
    return data.to_imported(config, _key_of)


def _key_of(path: str) -> tuple[str, int]:
    """Name of a picture and its rank: aligned ones before others."""
    stem = PICTURE.sub("", path.rpartition("/")[2])
    return re.sub(r"_aligned$", "", stem), int(not stem.endswith("_aligned"))


def _require_basic(data: PictureSet, compounds: int, where: str) -> None:
    """Refuse the list of the compound part, whose first seven numbers mean other classes.

    Raises:
        RaffectError: If there are classes 8 to 11, more than a few by mistake, or no lines.
    """
    require(bool(data.pictures), f"{where}: no line names a picture and its class")
    if compounds > 0.01 * len(data.pictures):
        raise RaffectError(
            f"{where}: {compounds:,} lines have classes 8 to 11, as the compound part has; "
            "give the root of the basic part"
        )
