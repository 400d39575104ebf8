"""What belongs to Aff-Wild2 alone.

These are its three tasks in the order of its own files, what a complete copy holds, and published
scores.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raffect.datasets.tasks import Task
from raffect.errors import RaffectError

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
"""AU names in file order, with their descriptions after the FACS manual."""

EXPR = Task(name="expr", kind="multiclass", outputs=EXPRESSIONS, columns=("expression",))
AU = Task(
    name="au",
    kind="multilabel",
    outputs=tuple(ACTION_UNITS),
    columns=tuple(ACTION_UNITS),
    descriptions=tuple(ACTION_UNITS.values()),
)
VA = Task(
    name="va",
    kind="regression",
    outputs=("valence", "arousal"),
    columns=("valence", "arousal"),
    unlabelled=-5,
    limits=(-1, 1),
)
TASKS = (EXPR, AU, VA)
"""Of its multi-task challenge too.

That one's score is the mean CCC of valence and arousal, plus the macro F1 of the expressions, plus
that of the units (ABAW 4 and 7): the sum of the headline scores of these three.
"""
HEADERS = {EXPR: ",".join(EXPRESSIONS), AU: ",".join(ACTION_UNITS), VA: "valence,arousal"}
"""Header line of an annotation file of each task, exact."""
DTYPES = {EXPR: np.dtype(np.int8), AU: np.dtype(np.int8), VA: np.dtype(np.float32)}
"""Type of each task's label columns."""


def read_task(content: Any, where: str) -> Task:
    """The task that a label table, a run or a head names.

    Args:
        content: A JSON object, as it is or as text; in files from before November 2026 the name of
            one of Aff-Wild2's tasks.
        where: The file, for errors.

    Raises:
        RaffectError: If it is not a task.
    """
    if isinstance(content, str) and not content.lstrip().startswith("{"):
        if (task := next((task for task in TASKS if task.name == content), None)) is not None:
            return task
        names = ", ".join(task.name for task in TASKS)
        raise RaffectError(
            f"{where}: task {content[:40]!r} is not one that raffect knows ({names}); "
            "make the label table again with `raffect prepare`"
        )
    return Task.from_json(content, where)


@dataclass(frozen=True, kw_only=True)
class CompleteCopy:
    """What a complete copy has of a task (ABAW editions 5, 6 and 8), by split.

    Attributes:
        annotated: Annotated frames.
        videos: Videos.
        with_image: Annotated frames that have an aligned image; empty where this is not published.
        shares: Numbers to show below a copy's own, as text: frames of each class, or rates of each
            unit.
        published: Macro F1 of others on the validation split (Lin et al. 2024, Table I).
    """

    annotated: dict[str, int]
    videos: dict[str, int]
    with_image: dict[str, int] = field(default_factory=dict)
    shares: dict[str, tuple[str, ...]] = field(default_factory=dict)
    published: dict[str, float] = field(default_factory=dict)


COMPLETE_EXPR_COUNTS = {
    "train": (177_198, 16_573, 10_771, 9_080, 95_463, 78_751, 31_615, 165_866),
    "validation": (82_258, 6_126, 5_296, 8_408, 34_511, 25_157, 12_332, 106_444),
}
"""EXPR frames a class in a complete copy (train counted over ``cropped`` images)."""

_AU_PER_MILLE = (118, 50, 154, 266, 397, 344, 245, 28, 31, 26, 627, 74)
COMPLETE_AU_RATES = tuple(count / 1000 for count in _AU_PER_MILLE)
"""Share of positive frames a unit in a complete copy's training split."""

COMPLETE = {
    EXPR: CompleteCopy(
        annotated={"train": 597_361, "validation": 284_230},
        videos={"train": 248, "validation": 70},
        with_image={"train": 586_959, "validation": 279_749},
        shares={
            split: tuple(f"{count:,}" for count in counts)
            for split, counts in COMPLETE_EXPR_COUNTS.items()
        },
        published={"official baseline (VGG16)": 0.25, "Lin et al. 2024": 0.36},
    ),
    AU: CompleteCopy(
        annotated={"train": 1_359_523, "validation": 445_845},
        videos={"train": 295, "validation": 105},
        shares={"train": tuple(f"{rate:.3f}" for rate in COMPLETE_AU_RATES)},
        published={"official baseline (VGG16)": 0.39, "Lin et al. 2024": 0.43},
    ),
    VA: CompleteCopy(
        annotated={"train": 1_679_857, "validation": 382_021},
        videos={"train": 356, "validation": 76},
    ),
}


def published_scores(
    task: Task, validation_frames: int, validation_videos: int
) -> dict[str, float]:
    """Scores of others that may be shown beside ours.

    There are none unless the validation split is Aff-Wild2's own and complete.
    """
    copy = COMPLETE.get(task)
    if copy is None or validation_videos != copy.videos["validation"]:
        return {}
    annotated = copy.annotated["validation"]
    return copy.published if 0.98 * annotated <= validation_frames <= annotated else {}
