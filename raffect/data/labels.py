"""Names and marks of the three Aff-Wild2 tasks, in the order of the data set's own files.

This module alone knows label order. Everything that prints, stores or maps a label takes it from here, by name.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

EXPRESSIONS = ("Neutral", "Anger", "Disgust", "Fear", "Happiness", "Sadness", "Surprise", "Other")
"""EXPR classes; the position is the label."""

ACTION_UNITS = {
    "AU1": "inner brows raised",
    "AU2": "outer brows raised",
    "AU4": "brows lowered and drawn together",
    "AU6": "cheeks raised",
    "AU7": "eyelids tightened",
    "AU10": "upper lip raised",
    "AU12": "lip corners pulled up",
    "AU15": "lip corners pulled down",
    "AU23": "lips tightened",
    "AU24": "lips pressed together",
    "AU25": "lips parted",
    "AU26": "jaw dropped",
}
"""AU names in file order, with what the FACS manual sees."""

SPLITS = ("train", "validation")


@dataclass(frozen=True)
class Task:
    """One task: what its columns are called, which mark means unlabelled, and what a complete copy holds.

    Attributes:
        name: ``"expr"``, ``"au"`` or ``"va"``.
        columns: Value columns of a label table.
        dtype: Type of the values.
        unlabelled: Value that marks a missing label.
        header: Header line of an annotation file, exact.
        complete_annotated: Annotated frames a split has in a complete copy (ABAW editions 5, 6 and 8).
        complete_with_image: Those of them that have an aligned image; empty where nobody published it.
        complete_videos: Videos a split has.
    """

    name: str
    columns: tuple[str, ...]
    dtype: np.dtype
    unlabelled: float
    header: str
    complete_annotated: dict[str, int]
    complete_with_image: dict[str, int]
    complete_videos: dict[str, int]


EXPR = Task(
    "expr", ("expression",), np.dtype(np.int8), -1, ",".join(EXPRESSIONS),
    {"train": 597_361, "validation": 284_230}, {"train": 586_959, "validation": 279_749}, {"train": 248, "validation": 70},
)  # fmt: skip
AU = Task(
    "au", tuple(ACTION_UNITS), np.dtype(np.int8), -1, ",".join(ACTION_UNITS),
    {"train": 1_359_523, "validation": 445_845}, {}, {"train": 295, "validation": 105},
)  # fmt: skip
VA = Task(
    "va", ("valence", "arousal"), np.dtype(np.float32), -5, "valence,arousal",
    {"train": 1_679_857, "validation": 382_021}, {}, {"train": 356, "validation": 76},
)  # fmt: skip

TASKS = {task.name: task for task in (EXPR, AU, VA)}

COMPLETE_EXPR_COUNTS = {
    "train": (177_198, 16_573, 10_771, 9_080, 95_463, 78_751, 31_615, 165_866),
    "validation": (82_258, 6_126, 5_296, 8_408, 34_511, 25_157, 12_332, 106_444),
}
"""EXPR frames a class in a complete copy (train counted over ``cropped`` images)."""

COMPLETE_AU_RATES = (0.118, 0.050, 0.154, 0.266, 0.397, 0.344, 0.245, 0.028, 0.031, 0.026, 0.627, 0.074)
"""Share of positive frames a unit in a complete copy's training split."""


def labelled(task: Task, values: np.ndarray) -> np.ndarray:
    """Which rows carry at least one label.

    Args:
        task: The task the values belong to.
        values: Shape (N, columns).

    Returns:
        bool array of shape (N,). A VA row needs both values, an AU row at least one unit.
    """
    known = values != task.unlabelled
    return known.all(axis=1) if task is VA else known.any(axis=1)
