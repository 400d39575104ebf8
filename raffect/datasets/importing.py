"""What every importer hands to `raffect prepare`: a list of images, label tables, and all that was wrong with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from raffect.datasets.tasks import Task
from raffect.storage.keys import Vocabulary, absent

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "train_set": "train",
    "training_set": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "dev": "validation",
    "val_set": "validation",
    "validation_set": "validation",
    "test": "test",
    "testing": "test",
    "test_set": "test",
}
"""How data sets call their splits, in lower case."""


@dataclass(frozen=True)
class Problem:
    """Something wrong in a file. ``line`` is 1-based, 0 when the whole file is meant."""

    file: str
    line: int
    what: str

    def __str__(self) -> str:
        return f"{self.file}{f':{self.line}' if self.line else ''}: {self.what}"


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """How much of one split of a task there is.

    Attributes:
        task: Name of the task.
        split: ``train``, ``validation`` or ``test``.
        rows: Rows of the label table.
        labelled: Those that carry a label.
        with_image: Those of them whose image is in the manifest.
        groups: Groups that intervals and folds keep together: videos, subjects or pictures.
    """

    task: str
    split: str
    rows: int
    labelled: int
    with_image: int
    groups: int


@dataclass(kw_only=True)
class Imported:
    """What an importer found.

    Attributes:
        manifest: ``video, frame, path, root``, sorted by (video, frame).
        labels: Task -> ``video, frame, split, <values>``, and ``group`` where intervals and folds keep together more than a video.
        edition: Which edition or file the labels come from.
        digest: SHA-256 of what the labels were read from.
        groups: What intervals and folds keep together: videos, subjects or pictures.
        synthetic: Whether raffect drew every image.
        counts: How much of each split of each task there is.
        lines: What the importer has to say, for people.
        problems: All that was wrong.
    """

    manifest: pa.Table
    labels: dict[Task, pa.Table]
    edition: str
    digest: str = ""
    groups: str = "videos"
    synthetic: bool = False
    counts: list[SplitCounts] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def deal_split(groups: list[str], share: float, seed: int) -> np.ndarray:
    """``train`` or ``validation`` for each row, whole groups together, by a hash: the same for a group whatever others there are.

    Args:
        groups: Group of each row.
        share: About this share of the groups is held out.
        seed: Another seed holds out others.
    """
    held_out = {
        name
        for name in set(groups)
        if int(hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()[:8], 16) < share * 2**32
    }
    return np.array(["validation" if name in held_out else "train" for name in groups])


def count_splits(
    task: Task, table: pa.Table, known: np.ndarray, manifest: pa.Table
) -> list[SplitCounts]:
    """Count a label table by split.

    Args:
        task: The task.
        table: Its label table.
        known: Which rows have a label, shape (rows,).
        manifest: The images there are.
    """
    vocabulary = Vocabulary()
    has_image = ~absent(vocabulary.keys(table), vocabulary.keys(manifest))
    names = np.array(
        (table["group"] if "group" in table.column_names else table["video"]).to_pylist(), object
    )
    splits = np.array(table["split"].to_pylist(), object)
    return [
        SplitCounts(
            task=task.name,
            split=split,
            rows=int(own.sum()),
            labelled=int((known & own).sum()),
            with_image=int((known & own & has_image).sum()),
            groups=len(set(names[own])),
        )
        for split in sorted(set(splits.tolist()))
        for own in [splits == split]
    ]


def describe_counts(counts: Iterable[SplitCounts], groups: str) -> list[str]:
    """A line a split; ``groups`` is the word for its groups."""
    return [
        f"{part.task} {part.split}: {part.rows:,} rows, {part.labelled:,} labelled, of {part.groups:,} {groups}"
        for part in counts
    ]
