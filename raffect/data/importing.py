"""What every importer hands to `raffect prepare`: a list of images, label tables, and all that was wrong with them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from raffect.data.tasks import Task

SPLIT_NAMES = {
    "train": "train", "training": "train", "train_set": "train", "training_set": "train",
    "val": "validation", "valid": "validation", "validation": "validation", "dev": "validation", "val_set": "validation", "validation_set": "validation",
    "test": "test", "testing": "test", "test_set": "test",
}  # fmt: skip
"""How data sets call their splits, in lower case."""


@dataclass(frozen=True)
class Problem:
    """Something wrong in a file. ``line`` is 1-based, 0 when the whole file is meant."""

    file: str
    line: int
    what: str


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
        lines: What the importer has to say, for people.
        problems: All that was wrong.
    """

    manifest: pa.Table
    labels: dict[Task, pa.Table]
    edition: str
    digest: str = ""
    groups: str = "videos"
    synthetic: bool = False
    lines: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)


def deal_split(groups: list[str], share: float, seed: int) -> np.ndarray:
    """``train`` or ``validation`` for each row, whole groups together, by a hash: the same for a group whatever others there are.

    Args:
        groups: Group of each row.
        share: About this share of the groups is held out.
        seed: Another seed holds out others.
    """
    held_out = {name for name in set(groups) if int(hashlib.sha256(f"{seed}/{name}".encode()).hexdigest()[:8], 16) < share * 2**32}
    return np.array(["validation" if name in held_out else "train" for name in groups])


def describe_split(task: Task, table: pa.Table, known: np.ndarray, groups: str) -> list[str]:
    """A line a split: rows, labelled ones and groups.

    Args:
        task: The task.
        table: Its label table.
        known: Which rows have a label.
        groups: What its groups are called.
    """
    names = np.array((table["group"] if "group" in table.column_names else table["video"]).to_pylist(), object)
    splits = np.array(table["split"].to_pylist(), object)
    return [
        f"{task.name} {split}: {int((splits == split).sum()):,} rows, {int((known & (splits == split)).sum()):,} labelled, of {len(set(names[splits == split])):,} {groups}"
        for split in sorted(set(splits.tolist()))
    ]
