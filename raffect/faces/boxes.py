"""Boxes that another tool found: tables of OpenFace, py-feat, MTCNN, or our own columns.

OpenFace writes a CSV a video without boxes: they are taken from its 68 landmarks, and so are the
eyes. py-feat counts frames from 0, all others from 1; a table of unknown make in which a frame 0
occurs counts from 0.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import csv

from raffect.errors import RaffectError
from raffect.faces.tracks import FIELDS
from raffect.storage.paths import Damaged, printable, read_parquet

_PY_FEAT = ("FaceRectX", "FaceRectY", "FaceRectWidth", "FaceRectHeight")
_CORNERS = ("x1", "y1", "x2", "y2")
_OWN = ("x", "y", "w", "h")
_INPUTS = ("input", "path", "file", "image", "video", "filename")
_AS_TEXT = {f"{blank}{name}": pa.string() for name in _INPUTS for blank in ("", " ")}
"""Columns of a CSV file that stay text: an input may be called 001."""
_SCORES = ("score", "FaceScore", "confidence", "prob", "probability")
_LEFT_EYE, _RIGHT_EYE, _POINTS = range(36, 42), range(42, 48), range(68)
_MOST_PIXELS = 1e6


@dataclass(frozen=True)
class BoxTable:
    """The boxes of some inputs.

    Attributes:
        file: Where they come from.
        inputs: Input of each row as the table names it, shape (rows,); None if it names none.
        frames: Number of the frame of each row, from 1, int64, shape (rows,).
        rows: Boxes, float64 (rows, `FIELDS`).
        names: Inputs that the table names, also those that have no box.
    """

    file: Path
    inputs: np.ndarray | None
    frames: np.ndarray
    rows: np.ndarray
    names: tuple[str, ...] = ()

    def of(self, path: Path) -> Boxes:
        """The boxes of an input, which a table names by the end of its path, or by its stem.

        Raises:
            RaffectError: If several of the table's names may mean it.
        """
        if self.inputs is None:
            return Boxes(self.frames, self.rows)
        mine = self.inputs == self.find(path)
        return Boxes(self.frames[mine], self.rows[mine])

    def find(self, path: Path) -> str | None:
        """Which of the table's names is that of an input; None if it has no row of it.

        Raises:
            RaffectError: If several of them may mean it.
        """
        whole = printable(path)
        ends = [whole, *(whole[place + 1 :] for place, sign in enumerate(whole) if sign == "/")]
        for name in (*ends, os.path.splitext(ends[-1])[0]):
            if name in self._known:
                return name
        # Files may have been moved since.
        same = self._by_file_name.get(ends[-1], [])
        if len(same) > 1:
            shown = f"{same[0]}, {same[1]}"
            raise RaffectError(f"{self.file}: rows of {shown} may be of {whole}; name it in full")
        return same[0] if same else None

    @cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.names)

    @cached_property
    def _by_file_name(self) -> dict[str, list[str]]:
        """The names that end in each file name."""
        found: dict[str, list[str]] = {}
        for name in self.names:
            found.setdefault(os.path.basename(name), []).append(name)
        return found


class Boxes:
    """The boxes of one input, as a detector."""

    def __init__(self, frames: np.ndarray, rows: np.ndarray) -> None:
        order = np.lexsort((*rows[:, 3::-1].T, frames))
        self._frames, self._rows = frames[order], rows[order]

    def detect(self, rgb: np.ndarray, frame: int) -> np.ndarray:
        """The rows of a frame; its pixels are not looked at."""
        start, stop = np.searchsorted(self._frames, (frame, frame + 1))
        return self._rows[start:stop]


@dataclass(frozen=True)
class BoxFolder:
    """A folder with one CSV an input, each named as its input (`file_name`)."""

    folder: Path

    def of(self, path: Path) -> Boxes:
        """The boxes of an input; none if it has no file."""
        if (name := self.find(path)) is None:
            return Boxes(np.empty(0, np.int64), np.empty((0, len(FIELDS))))
        return read_boxes(self.folder / name).of(path)

    def find(self, path: Path) -> str | None:
        """The name of an input's file; None if it has none."""
        name = file_name(path)
        return name if (self.folder / name).is_file() else None


def file_name(path: Path) -> str:
    """What the file of an input is called in a folder of boxes: ``clip.csv`` of ``clip.mp4``."""
    return f"{path.stem}.csv"


def find_all(file: Path, inputs: Sequence[Path]) -> list[Path]:
    """Look for every input in a table of boxes, or in a folder of them.

    Returns:
        The inputs that it does not name.

    Raises:
        RaffectError: If boxes may be of two inputs, or of which input they are is not clear; or if
            none of the inputs is named.
    """
    boxes = read_boxes(file)
    files = {os.path.realpath(path): Path(os.path.abspath(path)) for path in inputs}
    if isinstance(boxes, BoxTable) and boxes.inputs is None:
        if len(files) > 1:
            raise RaffectError(
                f"--boxes {file}: has no column input, and there are {len(files):,} inputs; add "
                "it, or give a folder with a file each (clip.csv for clip.mp4)"
            )
        return []
    owners: dict[str, Path] = {}
    lacking = []
    for path in files.values():
        if (name := boxes.find(path)) is None:
            lacking.append(path)
        elif (other := owners.setdefault(name, path)) != path:
            raise RaffectError(
                f"--boxes {file}: rows of {name} may be of {printable(other)} or of "
                f"{printable(path)}; give one table with a column input that names each by its "
                "path (one without a face by a row without a box)"
            )
    if files and len(lacking) == len(files):
        raise RaffectError(f"--boxes {file}: {_describe_misses(boxes, lacking)}")
    return lacking


def _describe_misses(boxes: BoxTable | BoxFolder, inputs: Sequence[Path]) -> str:
    """What a table or folder of boxes has in place of what all inputs are called."""
    count, first = f"none of the {len(inputs):,} input(s)", printable(inputs[0])
    if isinstance(boxes, BoxFolder):
        return f"holds a file of {count}; expected {printable(file_name(inputs[0]))} for {first}"
    named = f"; it names {boxes.names[0]!r}" if boxes.names else ""
    return f"has a row of {count}; expected {printable(inputs[0].name)!r} for {first}{named}"


@lru_cache(4)
def read_boxes(file: Path) -> BoxTable | BoxFolder:
    """Read a table of boxes, or a folder of them.

    Rows without a finite box of positive size are left out, and so are those that OpenFace marks as
    failed.

    Raises:
        RaffectError: If the file is missing, or it has no columns of a known kind.
    """
    if file.is_dir():
        return BoxFolder(file)
    table = _read_table(file)
    frames = _numbers(table, "frame") if "frame" in table.column_names else np.ones(len(table))
    rows, is_py_feat = _read_rows(file, table), _PY_FEAT[0] in table.column_names
    good = np.isfinite(rows[:, :4]).all(1) & (rows[:, 2:4] > 0).all(1) & np.isfinite(frames)
    good &= (np.abs(rows[:, :4]) < _MOST_PIXELS).all(1) & (np.abs(frames) < 1 << 31)
    if "success" in table.column_names:
        good &= _numbers(table, "success") == 1
    first = 0 if is_py_feat or (len(frames) and np.nanmin(frames) == 0) else 1
    column = next((name for name in _INPUTS if name in table.column_names), None)
    inputs, names = None, ()
    if column is not None:
        cells = [_plain_name(cell) for cell in table[column].to_pylist()]
        inputs, names = np.array(cells, object)[good], tuple(sorted(set(cells)))
    numbers = frames[good].astype(np.int64) + 1 - first
    return BoxTable(file, inputs, numbers, rows[good], names)


def _plain_name(cell: object) -> str:
    """An input's name as its path would be written; empty for an empty cell."""
    name = "" if cell is None else str(cell).strip()
    return os.path.normpath(name) if name else ""


def _read_table(file: Path) -> pa.Table:
    """A CSV or Parquet file, with the blanks around its column names cut off."""
    try:
        if file.suffix == ".parquet":
            table = read_parquet(file)
        else:
            table = csv.read_csv(file, convert_options=csv.ConvertOptions(column_types=_AS_TEXT))
    except FileNotFoundError as error:
        raise RaffectError(f"--boxes {file}: no such file") from error
    except (Damaged, pa.ArrowException, OSError) as error:
        what = str(error).splitlines()[0][:120]
        raise RaffectError(f"--boxes {file}: not a readable table ({what})") from error
    names = [name.strip() for name in table.column_names]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise RaffectError(f"--boxes {file}: column {twice[0]!r} is there twice; drop one")
    return table.rename_columns(names)


def _read_rows(file: Path, table: pa.Table) -> np.ndarray:
    """Boxes, scores and eyes in the columns of `FIELDS`, unchecked."""
    names, rows = set(table.column_names), np.full((len(table), len(FIELDS)), np.nan)
    points = {f"{axis}_{k}" for axis in "xy" for k in _POINTS}
    if names >= set(_OWN):
        rows[:, :4] = _columns(table, _OWN)
    elif names >= set(_PY_FEAT):
        rows[:, :4] = _columns(table, _PY_FEAT)
    elif names >= set(_CORNERS):
        corners = _columns(table, _CORNERS)
        rows[:, :2], rows[:, 2:4] = corners[:, :2], corners[:, 2:] - corners[:, :2]
    elif names >= points:
        x, y = (_columns(table, [f"{axis}_{k}" for k in _POINTS]) for axis in "xy")
        low = np.stack([x.min(1), y.min(1)], 1)
        rows[:, :2], rows[:, 2:4] = low, np.stack([x.max(1), y.max(1)], 1) - low
    else:
        raise RaffectError(
            f"--boxes {file}: no columns of a known kind; expected frame and x, y, w, h, or "
            "x1, y1, x2, y2, or FaceRectX ... (py-feat), or x_0 ... y_67 (OpenFace)"
        )
    if names >= points:
        eyes = [f"{axis}_{k}" for part in (_LEFT_EYE, _RIGHT_EYE) for axis in "xy" for k in part]
        rows[:, 5:] = _columns(table, eyes).reshape(len(table), 4, 6).mean(2)
    score = next((name for name in _SCORES if name in names), None)
    rows[:, 4] = 1.0 if score is None else np.clip(np.nan_to_num(_numbers(table, score)), 0, 1)
    return rows


def _columns(table: pa.Table, names: tuple[str, ...] | list[str]) -> np.ndarray:
    return np.stack([_numbers(table, name) for name in names], 1)


def _numbers(table: pa.Table, name: str) -> np.ndarray:
    """A column as numbers; NaN for empty cells."""
    try:
        return table[name].cast(pa.float64()).to_numpy(zero_copy_only=False).astype(float)
    except pa.ArrowException as error:
        what = str(error).splitlines()[0][:80]
        raise RaffectError(f"--boxes: column {name!r} has no numbers ({what})") from error
