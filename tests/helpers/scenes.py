"""Videos of drawn faces that move through a picture, and tables of predictions of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raffect.bank.facts import DRAWN_CAVEAT
from raffect.datasets.affwild2.tasks import AU, EXPR, VA
from raffect.datasets.synthetic import tree
from raffect.datasets.tasks import Task
from raffect.predictions.columns import FRAME_SCHEMA, Predicted, as_table
from raffect.predictions.rules import WeightedHead, plain_rules
from raffect.predictions.table import PredictionFacts
from raffect.provenance import describe_run

TASKS = (EXPR, AU, VA)
SIDE = 112
"""Of a drawn face in pixels."""


def draw_people(frames: int, faces: int = 1, seed: int = 5) -> list[tuple[Any, np.ndarray]]:
    """What happens to each of some people, and their pictures, (frames, 112, 112, 3)."""
    people = []
    for index in range(faces):
        expressions = (*(4, 6, 1, 5, 2)[index:], 4, 6)
        video = tree.Video(
            name=f"p{index}",
            index=index,
            num_frames=frames,
            subject=index,
            splits={},
            expressions=expressions,
        )
        course = tree.draw_course(video, seed)
        pictures = np.full((frames, SIDE, SIDE, 3), 90, np.uint8)
        for number, picture in tree.iter_frames(video, course, seed):
            pictures[number - 1] = picture
        people.append((course, pictures))
    return people


def box_of(index: int, frame: int, width: int, height: int, faces: int = 1) -> tuple[int, int]:
    """Left and top of a face in a frame: it drifts within its part of the picture."""
    room = width // faces - SIDE
    x = index * (width // faces) + int(room * (0.5 + 0.4 * np.sin(frame / 17 + index)))
    return x, int((height - SIDE) * (0.5 + 0.4 * np.cos(frame / 23 + index)))


def draw_scene(people: Sequence, width: int = 320, height: int = 180) -> Iterable[np.ndarray]:
    """Frames (height, width, 3) with all people in them, where they have a face."""
    ramp = np.linspace(60, 110, width).astype(np.uint8)
    for frame in range(len(people[0][1])):
        picture = np.repeat(np.repeat(ramp[None, :, None], height, 0), 3, 2).copy()
        for index, (course, pictures) in enumerate(people):
            if course.face[frame]:
                x, y = box_of(index, frame, width, height, len(people))
                picture[y : y + SIDE, x : x + SIDE] = pictures[frame]
        yield picture


def predict_scene(
    people: Sequence,
    name: str,
    tasks: Sequence[Task] = TASKS,
    rate: float | None = 25.0,
    width: int = 320,
    height: int = 180,
) -> pa.Table:
    """Rows of a table of predictions: mostly right, a little blurred in time."""
    rows, scores = [], {task.name: [] for task in tasks}
    rng = np.random.default_rng(1)
    for index, (course, _) in enumerate(people):
        found = {"expr": _classes(course.expr, rng), "au": _labels(course.au, rng)}
        found["va"] = np.clip(np.where(course.va < -1, 0, course.va), -1, 1)
        for frame in np.flatnonzero(course.face).tolist():
            x, y = box_of(index, frame, width, height, len(people))
            box = {"x": x, "y": y, "w": SIDE, "h": SIDE}
            who = {"video": f"{Path(name).stem}_face{index + 1}", "face_id": index + 1}
            rows.append({"frame": frame + 1, "status": "ok", "face_conf": 0.97, **who, **box})
            for task in tasks:
                scores[task.name].append(found[task.name][frame])
    seen = {row["frame"] for row in rows}
    for frame in sorted({*range(1, len(people[0][1]) + 1)} - seen):
        rows.append({"frame": frame, "status": "no_face"})
        for task in tasks:
            scores[task.name].append(np.full(len(task.outputs), np.nan))
    for row in rows:
        row |= {"input": name, "timestamp_s": (row["frame"] - 1) / rate if rate else None}
    predicted = {task.name: decide(task, np.array(scores[task.name])) for task in tasks}
    model = facts_of(tasks).model
    return as_table(pa.Table.from_pylist(rows, FRAME_SCHEMA), predicted, tasks, model)


def decide(task: Task, scores: np.ndarray) -> Predicted:
    """Scores (N, C) with what plain rules decide."""
    scores = scores.astype(np.float32)
    return Predicted(scores, plain_rules(task).decide(np.nan_to_num(scores)))


def facts_of(tasks: Sequence[Task] = TASKS, caveats=(DRAWN_CAVEAT,)) -> PredictionFacts:
    """Facts of a table of predictions."""
    head = WeightedHead(folder="head", sha256="0" * 64)
    return PredictionFacts(
        rules=tuple(plain_rules(task, (head,)) for task in tasks),
        bank="bank",
        bank_digest="0" * 16,
        caveats=tuple(caveats),
        run=describe_run(),
    )


def _classes(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    hot = np.eye(8)[np.maximum(labels, 0)] * 5 + rng.normal(0, 0.7, (len(labels), 8))
    kernel = np.ones(9) / 9
    soft = np.stack([np.convolve(column, kernel, "same") for column in hot.T], 1)
    return np.exp(soft) / np.exp(soft).sum(1, keepdims=True)


def _labels(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    kernel = np.ones(7) / 7
    known = np.maximum(labels, 0)
    return np.clip(
        np.stack([np.convolve(column, kernel, "same") for column in known.T], 1) * 0.9
        + rng.uniform(0, 0.1, labels.shape),
        0,
        1,
    )


def table_of_boxes(boxes: Sequence, times: Sequence | None = None) -> pa.Table:
    """Rows with EXPR alone, a frame for each box (x, y, width, height)."""
    times = times or [k / 25 for k in range(len(boxes))]
    rows = [
        {
            "input": "a",
            "video": "a_face1",
            "frame": k + 1,
            "timestamp_s": times[k],
            "face_id": 1,
            "status": "ok",
            **dict(zip("xywh", map(float, box), strict=True)),
        }
        for k, box in enumerate(boxes)
    ]
    predicted = {"expr": decide(EXPR, np.full((len(boxes), 8), 0.125))}
    return as_table(pa.Table.from_pylist(rows, FRAME_SCHEMA), predicted, [EXPR], "expr")
