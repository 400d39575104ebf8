"""Columns of the table of predictions, the same in Parquet and CSV.

A row is a face in a frame. The first columns say which; those of each task follow:

- classes: ``expr`` (the name of the predicted class), ``expr_conf`` (its probability) and
  ``p_Neutral`` ... (all probabilities);
- labels: ``AU1`` ... (0 or 1) and ``p_AU1`` ...;
- values: ``valence``, ``arousal``.

A row without a prediction has empty cells there, and its ``status`` says why.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from raffect.datasets.tasks import Task

Status = Literal["ok", "no_face", "low_conf", "unreadable"]
"""Of a frame: predicted; without a face; with a face that its detector doubts, which is not
predicted; not decodable."""

FRAME_SCHEMA = pa.schema(
    [
        ("input", pa.string()),
        ("video", pa.string()),
        ("frame", pa.int32()),
        ("timestamp_s", pa.float64()),
        ("face_id", pa.int32()),
        ("status", pa.string()),
        ("face_conf", pa.float32()),
        ("x", pa.float32()),
        ("y", pa.float32()),
        ("w", pa.float32()),
        ("h", pa.float32()),
    ]
)
"""Which face: file, video and 1-based frame of the bank, seconds from its start, number of the face
in its input, status, the detector's confidence, and the box in pixels of the frame. For a bank of
faces that others cropped, ``video``, ``frame`` and ``status`` alone are known."""

_RESERVED = (*FRAME_SCHEMA.names, "model")


@dataclass(frozen=True)
class TaskColumns:
    """Columns of one task.

    Attributes:
        task: The task.
        decisions: One with the name of the class (classes), else one an output.
        probabilities: One an output; empty for values.
        confidence: Of the predicted class; empty for other kinds of tasks.
    """

    task: Task
    decisions: tuple[str, ...]
    probabilities: tuple[str, ...] = ()
    confidence: str = ""

    @property
    def names(self) -> list[str]:
        """All of them in order."""
        return [
            *self.decisions,
            *([self.confidence] if self.confidence else []),
            *self.probabilities,
        ]

    @property
    def scores(self) -> tuple[str, ...]:
        """Those with a number for each output: probabilities, or the values themselves."""
        return self.probabilities or self.decisions

    @property
    def schema(self) -> pa.Schema:
        """Names and types."""
        kinds = {"multiclass": pa.string(), "multilabel": pa.int8(), "regression": pa.float32()}
        types = dict.fromkeys(self.names, pa.float32())
        types |= dict.fromkeys(self.decisions, kinds[self.task.kind])
        return pa.schema([(name, types[name]) for name in self.names])


def columns_of(tasks: Sequence[Task]) -> dict[str, TaskColumns]:
    """Columns of each task, by its name.

    Where a name would occur twice, those of that task begin with the task's name.
    """
    plain = {task.name: _columns(task, "") for task in tasks}
    used = Counter(_RESERVED)
    used.update(name for columns in plain.values() for name in columns.names)
    return {
        task.name: _columns(task, f"{task.name}_")
        if any(used[name] > 1 for name in plain[task.name].names)
        else plain[task.name]
        for task in tasks
    }


def _columns(task: Task, prefix: str) -> TaskColumns:
    outputs = tuple(f"{prefix}{name}" for name in task.outputs)
    probabilities = tuple(f"{prefix}p_{name}" for name in task.outputs)
    if task.kind == "multiclass":
        name = f"{task.name}_class" if task.name in _RESERVED else task.name
        return TaskColumns(task, (name,), probabilities, f"{name}_conf")
    if task.kind == "multilabel":
        return TaskColumns(task, outputs, probabilities)
    return TaskColumns(task, outputs)


def schema_of(tasks: Sequence[Task]) -> pa.Schema:
    """All columns of a table of predictions of some tasks."""
    fields = [field for columns in columns_of(tasks).values() for field in columns.schema]
    return pa.schema([*FRAME_SCHEMA, *fields, ("model", pa.string())])


@dataclass(frozen=True)
class Predicted:
    """Predictions of one task for N frames.

    Attributes:
        scores: Probabilities or values, float32, shape (N, C); NaN in a row without a prediction.
        decided: Classes, int64, shape (N,); labels 0 or 1, int8, (N, C); or values, (N, C).
    """

    scores: np.ndarray
    decided: np.ndarray


def as_table(
    frames: pa.Table, predicted: Mapping[str, Predicted], tasks: Sequence[Task], model: str
) -> pa.Table:
    """Predictions as rows of the table.

    Args:
        frames: Columns of `FRAME_SCHEMA`; those that are missing are empty.
        predicted: By the task's name, as many rows as ``frames``.
        tasks: All tasks of the table.
        model: What the column ``model`` says of every row.
    """
    rows = len(frames)
    arrays: dict[str, pa.Array | pa.ChunkedArray] = {
        field.name: frames[field.name].cast(field.type)
        if field.name in frames.column_names
        else pa.nulls(rows, field.type)
        for field in FRAME_SCHEMA
    }
    for name, columns in columns_of(tasks).items():
        arrays |= _cells(columns, predicted[name])
    arrays["model"] = pa.repeat(model, rows)
    return pa.table(arrays, schema=schema_of(tasks))


def _cells(columns: TaskColumns, found: Predicted) -> dict[str, pa.Array]:
    """Cells of one task; empty where there is no prediction."""
    task, empty = columns.task, np.isnan(found.scores).any(axis=1)
    cells: dict[str, pa.Array] = {
        name: pa.array(found.scores[:, k], pa.float32(), mask=empty)
        for k, name in enumerate(columns.scores)
    }
    if task.kind == "multiclass":
        names = np.array(task.outputs, object)[found.decided]
        confidence = np.take_along_axis(found.scores, found.decided[:, None], 1)[:, 0]
        cells[columns.decisions[0]] = pa.array(names, pa.string(), mask=empty)
        cells[columns.confidence] = pa.array(confidence, pa.float32(), mask=empty)
    elif task.kind == "multilabel":
        for k, name in enumerate(columns.decisions):
            cells[name] = pa.array(found.decided[:, k].astype(np.int8), pa.int8(), mask=empty)
    return cells
