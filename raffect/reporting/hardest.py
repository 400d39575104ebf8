"""The frames that cost a head most: by class, label or value, from a table of predictions.

The loss of a class is -log p of the true class; of a label its binary cross-entropy; of a value the
squared error. Neighbours in a video look alike, so of each second one frame stands for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raffect.datasets.tasks import Task
from raffect.predictions.columns import TaskColumns, columns_of
from raffect.predictions.table import iter_predictions, read_facts
from raffect.reporting.truth import Truth
from raffect.storage.keys import Vocabulary

ALIKE = 25
"""Frames of a video of which one is shown."""
PER_VIDEO = 3
"""Most frames of a video among those of one class: one bad video must not hide the others."""
_TINY = 1e-12


@dataclass(frozen=True, kw_only=True)
class Hard:
    """A frame that costs much.

    Attributes:
        task: Name of the task.
        output: Class, label or value whose loss it is.
        video: Of the frame.
        frame: Its 1-based number.
        true: What its label says: the class, ``active`` or ``not active``, or the value.
        predicted: The predicted class, the label's probability, or the value.
        confidence: Probability of the predicted class; nothing for other kinds of tasks.
        loss: Nats, or squared error.
    """

    task: str
    output: str
    video: str
    frame: int
    true: str
    predicted: str
    confidence: float | None
    loss: float


def find_hardest(predictions: Path, truth: Truth, most: int = 12) -> list[Hard]:
    """Frames with the highest loss of each class, label and value, the highest first.

    Args:
        predictions: Table of `raffect predict`.
        truth: Labels of the frames.
        most: Of each class, label or value.
    """
    # Candidates of each output, thinned out after every part of the table
    names, facts = Vocabulary(), read_facts(predictions)
    kept: dict[tuple[str, int], pa.Table] = {}
    columns = columns_of(facts.tasks)
    wanted = [
        "video",
        "frame",
        *(name for task in truth.tasks for name in columns[task.name].names),
    ]
    for rows in iter_predictions(predictions, wanted):
        part = rows.filter(pc.field("video").is_valid())
        for task in truth.tasks:
            for output, found in _losses(part, columns[task.name], truth, names):
                before = kept.get((task.name, output))
                both = pa.concat_tables([before, found]) if before else found
                kept[task.name, output] = _thin_out(both)

    tasks = {task.name: task for task in truth.tasks}
    return [
        _describe(tasks[name], output, row, names)
        for name in tasks
        for output in range(len(tasks[name].outputs))
        if (name, output) in kept
        for row in kept[name, output].slice(0, most).to_pylist()
    ]


def _losses(
    part: pa.Table, columns: TaskColumns, truth: Truth, names: Vocabulary
) -> Iterator[tuple[int, pa.Table]]:
    """Number of each output with its frames: ``video`` as a number, ``frame, loss, true, ...``."""
    task = columns.task
    scores = np.stack([part[name].cast(pa.float64()).to_numpy() for name in columns.scores], 1)
    targets = truth.of(task, part["video"], part["frame"])
    predicted = _predicted_classes(part, columns)
    keys = names.keys(part)
    for output in range(len(task.outputs)):
        score, target = scores[:, output], targets[:, 0 if task.kind == "multiclass" else output]
        if task.kind == "multiclass":
            chosen = (target == output) & ~np.isnan(scores).any(axis=1)
            loss, shown = -np.log(np.maximum(score, _TINY)), predicted
            confidence = scores[np.arange(len(part)), predicted]
        elif task.kind == "multilabel":
            chosen = ~np.isnan(target) & ~np.isnan(score)
            right = np.where(target == 1, score, 1 - score)
            loss, shown = -np.log(np.maximum(right, _TINY)), score
            confidence = np.full(len(score), np.nan)
        else:
            chosen = ~np.isnan(target) & ~np.isnan(score)
            loss, shown, confidence = (score - target) ** 2, score, np.full(len(score), np.nan)
        if chosen.any():
            arrays = {"loss": loss, "true": target, "shown": shown, "confidence": confidence}
            found = {name: array[chosen] for name, array in arrays.items()}
            video, frame = keys[chosen] >> 32, keys[chosen] & 0xFFFFFFFF
            yield output, pa.table({"video": video, "frame": frame, **found})


def _predicted_classes(part: pa.Table, columns: TaskColumns) -> np.ndarray:
    """Number of the class that was decided on in each row; 0 where there is none."""
    if columns.task.kind != "multiclass":
        return np.zeros(len(part), np.int64)
    numbers = {name: k for k, name in enumerate(columns.task.outputs)}
    cells = part[columns.decisions[0]].to_pylist()
    return np.array([numbers.get(cell, 0) for cell in cells], np.int64)


def _thin_out(found: pa.Table) -> pa.Table:
    """The highest loss of each second, and the highest `PER_VIDEO` of those of each video."""
    found = found.sort_by([("loss", "descending"), ("video", "ascending"), ("frame", "ascending")])
    video, frame = found["video"].to_numpy(), found["frame"].to_numpy()
    _, first = np.unique((video << 32) | (frame // ALIKE), return_index=True)
    rows = np.sort(first)

    # Place of each among those of its video; rows are by loss
    order = np.argsort(video[rows], kind="stable")
    ordered = video[rows][order]
    starts = np.flatnonzero(np.r_[True, np.diff(ordered) != 0]) if len(ordered) else []
    place = np.arange(len(ordered)) - np.repeat(starts, np.diff(np.r_[starts, len(ordered)]))
    return found.take(pa.array(rows[np.sort(order[place < PER_VIDEO])]))


def _describe(task: Task, output: int, row: dict, names: Vocabulary) -> Hard:
    true, shown, confidence = row["true"], row["shown"], row["confidence"]
    if task.kind == "multiclass":
        texts = (task.outputs[int(true)], task.outputs[int(shown)])
    elif task.kind == "multilabel":
        texts = ("active" if true else "not active", f"probability {shown:.2f}")
    else:
        texts = (f"{true:+.2f}", f"{shown:+.2f}")
    return Hard(
        task=task.name,
        output=task.outputs[output],
        video=names.names[row["video"]],
        frame=row["frame"],
        true=texts[0],
        predicted=texts[1],
        confidence=None if np.isnan(confidence) else confidence,
        loss=row["loss"],
    )
