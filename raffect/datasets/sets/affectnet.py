"""AffectNet: pictures with one of eight expressions, valence and arousal, train and validation.

Newer copies have ``<split>_set/images/<id>.jpg`` and ``<split>_set/annotations/<id>_exp.npy``,
``_val.npy`` and ``_aro.npy``; older ones ``training.csv`` and ``validation.csv``, whose pictures
are photographs with the box of a face.
"""

from __future__ import annotations

import math
import re
from collections import Counter

import numpy as np

from raffect.config import PrepareConfig
from raffect.datasets.affwild2.tasks import VA
from raffect.datasets.expressions import expression_task
from raffect.datasets.imported import SPLIT_NAMES, Imported
from raffect.datasets.problems import PICTURE, Line, unread_lines
from raffect.datasets.root import Place, Root, open_place
from raffect.datasets.sets.picture_sets import (
    Picture,
    PictureSet,
    Values,
    read_class,
    unlabelled_of,
)
from raffect.errors import require
from raffect.progress import stage
from raffect.storage.arrays import read_npy
from raffect.storage.paths import Damaged

CLASSES = ("Neutral", "Happiness", "Sadness", "Surprise", "Fear", "Disgust", "Anger", "Contempt")
"""Numbered from 0, in the order of the data set's own readme."""
NAMES = {str(number): name for number, name in enumerate(CLASSES)}
WITHOUT_CLASS = {"8": "None", "9": "Uncertain", "10": "Non-Face"}
"""Numbers of pictures that have no expression."""

_EXPR = expression_task(CLASSES)
_TASKS = {_EXPR: np.dtype(np.int16), VA: np.dtype(np.float32)}
_ARRAYS = r"(?:.*/)?(?P<split>[^/]*)/annotations/(?P<id>[^/]+)_(?P<kind>exp|val|aro)\.npy"
_TABLES = r"(?:.*/)?(?P<split>training|validation)\.csv"
_COLUMNS = ("subdirectory_filepath", "expression", "valence", "arousal")
_PUBLISHED = (
    "subdirectory_filepath",
    *("face_x", "face_y", "face_width", "face_height", "facial_landmarks"),
    *("expression", "valence", "arousal"),
)
_COMPLETE = (
    "a complete copy has 287,651 with a class to train on and 3,999 or 4,000 to validate on "
    "(Mollahosseini et al. 2017)"
)


def recognise(root: Root) -> str:
    """Why a root is AffectNet's; empty if it is not."""
    if arrays := root.find(_ARRAYS):
        return f"file {arrays[0]}"
    for file in root.find(_TABLES):
        first = (root.peek_cells(file) or [""])[0].strip()
        if first.lower() == _COLUMNS[0]:
            return f"column {first} of {file}"
    return ""


def import_affectnet(config: PrepareConfig, root: Root | None = None) -> Imported:
    """Read either layout: tasks ``expr`` and ``va``.

    Raises:
        RaffectError: If there are neither arrays nor tables, or no picture is found.
    """
    place = open_place(config, root)
    data = PictureSet("AffectNet", place, _COMPLETE, "", _TASKS, NAMES)
    without, tables = Counter[str](), place.lists.find(_TABLES)
    if arrays := place.lists.find(_ARRAYS):
        with stage(f"reading {len(arrays):,} arrays"):
            _read_arrays(data, place, arrays, without)
        data.lines += unread_lines("arrays are read; ", tables)
        key_of = _key_of_array
    else:
        require(
            bool(tables),
            f"{place.lists.path}: no annotations of AffectNet; expected "
            "train_set/annotations/<id>_exp.npy, or training.csv",
        )
        for file in tables:
            _read_table(data, place.lists, file, without)
        data.edition = ", ".join(tables)
        data.lines.append("pictures: photographs with a box of a face each, which is not cut out")
        key_of = _key_of_table
    require(bool(data.pictures), f"{place.lists.path}: the annotations name no picture")
    if without:
        counts = [f"{without[word]:,} {name}" for word, name in WITHOUT_CLASS.items()]
        data.lines.append(f"without an expression by the data set's own word: {', '.join(counts)}")
    return data.to_imported(config, key_of)


def _read_arrays(data: PictureSet, place: Place, files: list[str], without: Counter[str]) -> None:
    """One array a picture and kind of label."""
    # Arrays by picture; its name has the split, since numbers occur in both
    found: dict[tuple[str, str], dict[str, str]] = {}
    for file in files:
        match = re.fullmatch(_ARRAYS, file, re.I)
        assert match is not None
        split = SPLIT_NAMES.get(match["split"].lower())
        if split is None:
            kind = "not below train_set or val_set; left out"
            data.problems.append(Line(file, 0, "").problem(f"array {kind}", kind))
            continue
        found.setdefault((split, match["id"]), {})[match["kind"].lower()] = file
    data.edition = "arrays"

    for (split, number), kinds in found.items():
        first = Line(next(iter(kinds.values())), 0, "")
        lines = {kind: Line(file, 0, "") for kind, file in kinds.items()}
        cells = {kind: _read_array(data, place.lists, file) for kind, file in kinds.items()}
        for kind in ("exp", "val", "aro"):
            if kind not in kinds:
                what = f"no array of kind {kind}; unlabelled"
                data.problems.append(first.problem(f"{number}: {what}", what))
        labels = {
            _EXPR: _read_expression(data, lines.get("exp", first), cells.get("exp"), without),
            VA: _read_va(data, lines.get("val", first), cells.get("val"), cells.get("aro")),
        }
        data.add(Picture(first, f"{split}/{number}", split, labels))


def _read_array(data: PictureSet, root: Root, file: str) -> str | None:
    """The one cell of an array as text; None if there is no such cell."""
    # An array without a cell is a ValueError, and letters beyond Unicode are a SystemError
    try:
        return str(read_npy(root.read(file), most_cells=1).item()).strip()
    except (Damaged, ValueError, SystemError) as error:
        kind = "not an array of one number; unlabelled"
        what = f"{kind} ({str(error)[:60]})"
        data.problems.append(Line(file, 0, "").problem(what, kind))
        return None


def _read_table(data: PictureSet, root: Root, file: str, without: Counter[str]) -> None:
    """Rows of a table; without a header its columns are those of the published ones."""
    split = "train" if file.lower().endswith("training.csv") else "validation"
    places: dict[str, int] = {}
    for line, row in root.iter_cells(file):
        # Header
        names = [cell.strip().lower() for cell in row]
        if not places and _COLUMNS[0] in names:
            places = {name: names.index(name) for name in _COLUMNS if name in names}
            missing = [name for name in _COLUMNS if name not in places]
            require(not missing, f"{root.path}/{file}: no column {', '.join(missing)}")
            continue
        if not places:
            size = len(_PUBLISHED)
            require(len(row) == size, f"{root.path}/{file}: expected a header, or {size} columns")
            places = {name: _PUBLISHED.index(name) for name in _COLUMNS}
            data.lines.append(f"{file}: no header; columns as published")

        # A picture
        if len(row) <= max(places.values()) or not row[places[_COLUMNS[0]]].strip():
            what = "expected a picture, a class, valence and arousal; left out"
            data.problems.append(line.problem(f"{line.text[:60]!r}: {what}", what))
            continue
        path, word, valence, arousal = (row[places[name]].strip() for name in _COLUMNS)
        labels = {
            _EXPR: _read_expression(data, line, word, without),
            VA: _read_va(data, line, valence, arousal),
        }
        data.add(Picture(line, _key_of_table(path)[0], split, labels))


def _read_expression(
    data: PictureSet, line: Line, word: str | None, without: Counter[str]
) -> Values:
    if word in WITHOUT_CLASS:
        without[word] += 1
        return unlabelled_of(_EXPR)
    if word is None:
        return unlabelled_of(_EXPR)
    return read_class(line, word, _EXPR, NAMES, data.problems)


def _read_va(data: PictureSet, line: Line, valence: str | None, arousal: str | None) -> Values:
    """Valence and arousal; -2 is the data set's own mark for neither."""
    if valence is None or arousal is None:
        return unlabelled_of(VA)
    try:
        values = float(valence), float(arousal)
    except ValueError:
        values = math.nan, math.nan
    if all(-1 <= value <= 1 for value in values):
        return values
    if values != (-2, -2):
        kind = "expected valence and arousal from -1 to 1; unlabelled"
        what = f"{valence[:20]!r} and {arousal[:20]!r}: {kind}"
        data.problems.append(line.problem(what, kind))
    return unlabelled_of(VA)


def _key_of_array(path: str) -> tuple[str, int] | None:
    """Name of a picture in ``<split>_set/images``."""
    parts = PICTURE.sub("", path).split("/")
    if len(parts) < 3 or parts[-2].lower() != "images":
        return None
    split = SPLIT_NAMES.get(parts[-3].lower())
    return None if split is None else (f"{split}/{parts[-1]}", 0)


def _key_of_table(path: str) -> tuple[str, int]:
    """Folder and name of a picture, as tables name it."""
    return "/".join(PICTURE.sub("", path.replace("\\", "/")).split("/")[-2:]), 0
