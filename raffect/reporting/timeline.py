"""A page a video: player, curves below each other, a click jumps to the time.

The page is one file without network. A video is not in it but lies beside it. A long video's curves
are summed up by column, so that its page stays small.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa

from raffect.datasets.tasks import Task
from raffect.predictions.table import PredictionFacts
from raffect.reporting.colors import colors_of
from raffect.reporting.course import FaceCourse, TimeCourse, bin_rows
from raffect.reporting.template import escape, fill_page, notes_of
from raffect.reporting.truth import Truth
from raffect.storage.atomic import write_atomic

COLUMNS, ALL_COLUMNS = 1200, 6000
"""Most columns of a curve, and of the curves of all faces of a page together."""


def write_timeline(
    course: TimeCourse,
    facts: PredictionFacts,
    out: Path,
    video: str = "",
    truth: Truth | None = None,
    links: Mapping[str, str] | None = None,
) -> None:
    """Write the page of one input.

    Args:
        course: Its predictions.
        facts: Of the table that they are from.
        out: The file.
        video: Path of a video relative to the page's folder; empty for none.
        truth: Labels to show beside predictions.
        links: Relative addresses by the text that leads there.
    """
    columns = _num_columns(course)
    data = {
        "span": course.span,
        "in_seconds": course.in_seconds,
        "step": course.step,
        "frame": _cells(
            bin_rows(course.place, course.frame[:, None], course.span, columns).high[:, 0]
        ),
        "columns": columns,
        "tasks": [_describe(course, task) for task in course.tasks],
        "faces": [
            _face_data(course, face, columns, truth)
            for face in sorted(course.faces, key=lambda face: face.number)
        ],
    }
    values = {
        "title": escape(course.name),
        "about": _about(course, facts, links or {}),
        "notes": notes_of(facts.caveats),
        "player": _player(video),
    }
    write_atomic(out, fill_page("timeline.html", values, data))


def _about(course: TimeCourse, facts: PredictionFacts, links: Mapping[str, str]) -> str:
    """Counts, model and links in one line."""
    parts = [*course.counts, f"model {facts.model}"]
    linked = [f'<a href="{quote(address)}">{escape(text)}</a>' for text, address in links.items()]
    return " &middot; ".join([*map(escape, parts), *linked])


def _player(video: str) -> str:
    if not video:
        return ""
    # A path may have bytes that are not UTF-8
    address = quote(os.fsencode(video))
    return f'<video src="{address}" controls preload="metadata" playsinline></video>'


def _num_columns(course: TimeCourse) -> int:
    """A column a frame, or as many as a page can hold."""
    frames = round((course.span[1] - course.span[0]) / course.step)
    room = ALL_COLUMNS // max(len(course.faces), 1)
    return max(1, min(frames, COLUMNS, max(room, 100)))


def _describe(course: TimeCourse, task: Task) -> dict[str, Any]:
    """What the page must know of a task."""
    legends = {
        "multiclass": (f"{task.name}: probability of each class, 0 to 1", ""),
        "multilabel": (
            f"{task.name}: probability of each label; bar above: predicted as active",
            "; bar below it: active in truth",
        ),
        "regression": (f"{task.name}: values", "; dashed: true"),
    }
    legend, truth = legends.get(task.kind, (task.name, ""))
    return {
        "name": task.name,
        "kind": task.kind,
        "outputs": task.outputs,
        "titles": [task.describe(output) for output in task.outputs],
        "colors": colors_of(task),
        "limits": task.limits or _limits(course, task),
        "legend": legend,
        "truth": truth,
    }


def _limits(course: TimeCourse, task: Task) -> tuple[float, float]:
    """Lowest and highest value of a task without limits, and 0."""
    found = [course.select(face, task)[1].ravel() for face in course.faces]
    values = np.concatenate([np.zeros(1), *found])
    low, high = float(values.min()), float(values.max())
    return low, high if high > low else low + 1


def _face_data(
    course: TimeCourse, face: FaceCourse, columns: int, truth: Truth | None
) -> dict[str, Any]:
    """One face: each task's curves."""
    tasks = {task.name: _task_data(course, face, task, columns, truth) for task in course.tasks}
    return {
        "title": face.name,
        "tasks": tasks,
    }


def _task_data(
    course: TimeCourse, face: FaceCourse, task: Task, columns: int, truth: Truth | None
) -> dict[str, Any]:
    """Lowest and highest value of each column in thousandths, and what was decided and is true.

    What most frames of a column have stands for it.
    """
    places, scores, rows = course.select(face, task)
    bins = bin_rows(places, scores, course.span, columns)
    data: dict[str, Any] = {"low": _thousandths(bins.low), "high": _thousandths(bins.high)}
    if task.kind != "regression":
        decided = face.decided[task.name][rows].astype(np.float32)
        data["decided"] = _most_frequent(course, places, decided, task, columns)
    if truth is not None and task in truth.tasks:
        targets = _targets(course, face, task, truth)
        labelled = ~np.isnan(targets).all(axis=1)
        places, targets = course.places(face)[labelled], targets[labelled]
        if task.kind == "regression":
            mean = bin_rows(places, np.nan_to_num(targets), course.span, columns).mean
            data["truth"] = _thousandths(mean)
        else:
            data["truth"] = _most_frequent(course, places, np.nan_to_num(targets), task, columns)
    return data


def _targets(course: TimeCourse, face: FaceCourse, task: Task, truth: Truth) -> np.ndarray:
    """Labels of a face's rows: under the name of its track, or else that of its input."""
    frame = pa.array(face.frame)
    names = dict.fromkeys(
        name for name in (face.video, course.name, Path(course.name).stem) if name
    )
    found = [truth.of(task, pa.array([name] * len(frame)), frame) for name in names]
    return next((one for one in found if not np.isnan(one).all()), found[0])


def _most_frequent(
    course: TimeCourse, places: np.ndarray, values: np.ndarray, task: Task, columns: int
) -> list[Any]:
    """The class that most frames of a column have, or for each label what most have."""
    if task.kind == "multiclass":
        values = np.eye(len(task.outputs), dtype=np.float32)[values[:, 0].astype(int)]
    share = bin_rows(places, values, course.span, columns).mean
    is_gap = np.isnan(share).any(axis=1)
    if task.kind == "multiclass":
        number = np.nan_to_num(share).argmax(1)
        return _cells(np.where(is_gap, np.nan, number))
    return [_cells(np.where(is_gap, np.nan, column >= 0.5)) for column in share.T]


def _thousandths(values: np.ndarray) -> list[list[int | None]]:
    """Columns of (columns, C) as whole numbers, None in a gap."""
    return [_cells(np.round(column * 1000)) for column in values.T]


def _cells(column: Sequence[float] | np.ndarray) -> list[int | None]:
    return [None if np.isnan(value) else int(value) for value in column]
