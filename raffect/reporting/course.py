"""The predictions of one input as time courses, one of each face.

Overlay, timeline and index are drawn from these. A course is long: thirty minutes have 45,000
frames, a screen has a thousand columns, so curves are summed up by column (`bin_rows`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raffect.datasets.tasks import Task
from raffect.errors import require
from raffect.predictions.columns import columns_of
from raffect.reporting.opening import plural

_GAP = 1.5
"""Frames' distances above which a curve has a gap."""


@dataclass(frozen=True)
class FaceCourse:
    """One face over N frames.

    Attributes:
        number: From 1, in the order in which faces appear.
        video: Its name in a bank and in labels; empty where it has none.
        frame: 1-based numbers, ascending, int32, shape (N,).
        time_s: Seconds from the input's start, float64, shape (N,); NaN where that is unknown.
        box: Left, top, width and height in pixels, float32, shape (N, 4); NaN where unknown.
        status: Of each row, ``ok`` or why there is no prediction.
        scores: By the task's name, probabilities or values, float32, shape (N, C), NaN in rows
            without a prediction.
        decided: By the task's name, int64, -1 in rows without a prediction: the number of the
            class, shape (N, 1), or labels 0 or 1, (N, C); nothing for values.
    """

    number: int
    video: str
    frame: np.ndarray
    time_s: np.ndarray
    box: np.ndarray
    status: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    decided: Mapping[str, np.ndarray]

    @property
    def name(self) -> str:
        """What pages and pictures call it."""
        return f"face {self.number}"

    def row_of(self, frame: int) -> int | None:
        """The row of a frame; None without."""
        row = int(np.searchsorted(self.frame, frame))
        return row if row < len(self.frame) and self.frame[row] == frame else None


@dataclass(frozen=True)
class TimeCourse:
    """All faces of one input.

    Attributes:
        name: Of the input.
        tasks: What was predicted.
        faces: Those with most frames first.
        frame: Numbers of all frames that have a row, ascending, int32, shape (F,).
        place: Where each stands on the axis, float64, shape (F,).
        without_face: How many of them have none.
        doubted: Rows of faces that the detector doubts, of which nothing is predicted.
        span: Place of the first frame and end of the last one on the axis: seconds, or frame
            numbers where no row has a time.
        step: Distance of two frames on it.
        in_seconds: Which of both.
    """

    name: str
    tasks: tuple[Task, ...]
    faces: tuple[FaceCourse, ...]
    frame: np.ndarray
    place: np.ndarray
    without_face: int
    doubted: int
    span: tuple[float, float]
    step: float
    in_seconds: bool

    @property
    def frames(self) -> int:
        """Number of frames that have a row."""
        return len(self.frame)

    @property
    def counts(self) -> tuple[str, ...]:
        """Frames, faces, and where there is no prediction: ``200 frames``, ``1 face``, ..."""
        found = [plural(self.frames, "frame"), plural(len(self.faces), "face")]
        found.append(f"{plural(self.without_face, 'frame')} without a face")
        if self.doubted:
            found.append(f"{plural(self.doubted, 'face')} too unsure to predict")
        return tuple(found)

    def places(self, face: FaceCourse) -> np.ndarray:
        """Where a face's rows stand on the axis, float64, ascending, shape (N,)."""
        return face.time_s if self.in_seconds else face.frame.astype(np.float64)

    def select(self, face: FaceCourse, task: Task) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Places, scores and row numbers of the rows that have a prediction of a task."""
        rows = np.flatnonzero(~np.isnan(face.scores[task.name]).any(axis=1))
        return self.places(face)[rows], face.scores[task.name][rows], rows


def read_course(rows: pa.Table, tasks: Sequence[Task], name: str) -> TimeCourse:
    """Time courses of the rows of one input.

    Args:
        rows: Of a table of predictions (`raffect.predictions.columns`).
        tasks: All tasks of the table.
        name: What pages and pictures call the input.

    Raises:
        RaffectError: If no row has a frame.
    """
    rows = rows.filter(pc.field("frame").is_valid()).sort_by([("frame", "ascending")])
    require(len(rows) > 0, f"{name}: no frame of it is in the table of predictions")

    # A face is a number; in a bank of others' crops a video has one face, without a number
    status = np.array(rows["status"].to_pylist(), object)
    face_id = rows["face_id"].fill_null(0).to_numpy()
    if not face_id.any():
        face_id = np.isin(status, ("ok", "low_conf")).astype(np.int32)
    numbers, counts = np.unique(face_id[face_id > 0], return_counts=True)
    faces = [
        _read_face(rows.filter(pa.array(face_id == number)), tasks, int(number))
        for number in numbers[np.lexsort((numbers, -counts))]
    ]

    # The axis
    in_seconds = rows["timestamp_s"].null_count == 0
    axis = rows["timestamp_s" if in_seconds else "frame"].to_numpy().astype(np.float64)
    frame, first = np.unique(rows["frame"].to_numpy(), return_index=True)
    step = float(np.median(np.diff(axis[first]))) if len(frame) > 1 else 1.0
    return TimeCourse(
        name=name,
        tasks=tuple(tasks),
        faces=tuple(faces),
        frame=frame,
        place=axis[first],
        without_face=int((status == "no_face").sum()),
        doubted=int((status == "low_conf").sum()),
        span=(float(axis.min()), float(axis.max()) + step),
        step=step,
        in_seconds=in_seconds,
    )


def _read_face(rows: pa.Table, tasks: Sequence[Task], number: int) -> FaceCourse:
    scores, decided = {}, {}
    for task_name, columns in columns_of(tasks).items():
        scores[task_name] = _floats(rows, columns.scores)
        if columns.task.kind == "multiclass":
            numbers = {output: k for k, output in enumerate(columns.task.outputs)}
            cells = rows[columns.decisions[0]].to_pylist()
            decided[task_name] = np.array([[numbers.get(cell, -1)] for cell in cells], np.int64)
        elif columns.task.kind == "multilabel":
            cells = [rows[column].fill_null(-1).to_numpy() for column in columns.decisions]
            decided[task_name] = np.stack(cells, 1).astype(np.int64)
    return FaceCourse(
        number=number,
        video=next((name for name in rows["video"].to_pylist() if name), ""),
        frame=rows["frame"].to_numpy(),
        time_s=_floats(rows, ("timestamp_s",), np.float64)[:, 0],
        box=_floats(rows, ("x", "y", "w", "h")),
        status=tuple(rows["status"].to_pylist()),
        scores=scores,
        decided=decided,
    )


def _floats(rows: pa.Table, names: Sequence[str], dtype: type = np.float32) -> np.ndarray:
    """Columns side by side, NaN where a cell is empty: shape (rows, columns)."""
    return np.stack([rows[name].cast(pa.float64()).to_numpy() for name in names], 1).astype(dtype)


@dataclass(frozen=True)
class Bins:
    """Rows of a course summed up by columns of a picture.

    Attributes:
        low: Lowest value in each column, shape (columns, C); NaN in a gap.
        mean: Their means.
        high: Highest ones.
    """

    low: np.ndarray
    mean: np.ndarray
    high: np.ndarray


def bin_rows(places: np.ndarray, values: np.ndarray, span: tuple[float, float], num: int) -> Bins:
    """Lowest, mean and highest value by column, so that a spike of one frame is still seen.

    A column between two frames holds the earlier one; one in a gap, where frames are further apart
    than elsewhere, holds nothing.

    Args:
        places: Of the rows on the axis, ascending, shape (N,).
        values: Shape (N, C), without NaN.
        span: Where the first column begins and the last one ends.
        num: Number of columns.
    """
    low, mean, high = (np.full((num, values.shape[1]), np.nan, np.float32) for _ in range(3))
    if not len(places):
        return Bins(low, mean, high)

    # Rows of each column, whose edges are not exact
    step = float(np.median(np.diff(places))) if len(places) > 1 else 1.0
    edges = np.linspace(*span, num + 1)
    start = np.searchsorted(places, edges[:-1] - step * 1e-6, "left")
    stop = np.searchsorted(places, edges[1:] - step * 1e-6, "left")

    # Columns without a frame of their own hold the one before them, if it is near
    before = np.maximum(start - 1, 0)
    is_empty = stop == start
    near = (start > 0) & (edges[:-1] < (_ends(places, step) - step * 1e-6)[before])
    first = np.where(is_empty, before, start)
    count = np.where(is_empty, near, stop - start)

    for column in np.flatnonzero(count):
        part = values[first[column] : first[column] + count[column]]
        low[column], mean[column], high[column] = part.min(0), part.mean(0), part.max(0)
    return Bins(low, mean, high)


def _ends(places: np.ndarray, step: float) -> np.ndarray:
    """Until where each frame is shown: to the next one, or before a gap for one step."""
    after = np.append(places[1:], np.inf)
    return np.where(after - places < _GAP * step, after, places + step)
