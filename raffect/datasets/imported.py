"""What every importer returns to `raffect prepare`.

These are a list of images, label tables, and all that was wrong with them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pyarrow as pa

from raffect.datasets.problems import Problem
from raffect.datasets.synthetic.tree import count_drawn
from raffect.datasets.tasks import Task
from raffect.storage.keys import Vocabulary, absent

_NAMES_OF_SPLITS = {
    "train": ("train", "training", "train_set", "training_set"),
    "validation": ("val", "valid", "validation", "dev", "val_set", "validation_set"),
    "test": ("test", "testing", "test_set"),
}
SPLIT_NAMES = {name: split for split, names in _NAMES_OF_SPLITS.items() for name in names}
"""How data sets call their splits, in lower case."""


@dataclass(frozen=True, kw_only=True)
class SplitCounts:
    """How many rows and groups one split of a task has.

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
        labels: Task -> ``video, frame, split, <values>``, and ``group`` where intervals and folds
            keep together more than a video.
        edition: Which edition or file the labels come from.
        digest: SHA-256 of what the labels were read from.
        groups: What intervals and folds keep together: videos, subjects or pictures.
        counts: Rows and groups of each split of each task.
        lines: The importer's report, as lines of text.
        problems: All that was wrong.
        names: Name of a task -> the data set's own word or number for a class -> class; stored with
            the labels.
        captions: ``video, start, end, caption`` and perhaps more, of a data set that has texts.
    """

    manifest: pa.Table
    labels: dict[Task, pa.Table]
    edition: str
    digest: str = ""
    groups: str = "videos"
    counts: list[SplitCounts] = field(default_factory=list)
    lines: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    captions: pa.Table | None = None

    @cached_property
    def num_drawn(self) -> int:
        """Images that raffect drew, as far as this is certain."""
        return count_drawn(self.manifest)

    @property
    def synthetic(self) -> bool:
        """Whether raffect drew every image."""
        return self.num_drawn == len(self.manifest)


def deal_split(groups: Sequence[str], share: float, seed: int = 0) -> np.ndarray:
    """``train`` or ``validation`` for each row, whole groups together.

    A hash decides, so that a group's split does not depend on the other groups.

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


def hold_out(names: Sequence[str], splits: Sequence[str], share: float) -> list[str]:
    """Splits in which about a share of what trains is ``validation``, by hash.

    Args:
        names: Of clips or pictures, each its own group.
        splits: As given; ``test`` stays.
        share: Of those that train.
    """
    dealt = deal_split(names, share).tolist()
    return [new if old == "train" else old for new, old in zip(dealt, splits, strict=True)]


def count_splits(
    task: Task, table: pa.Table, known: np.ndarray, manifest: pa.Table
) -> list[SplitCounts]:
    """Count a label table by split.

    Args:
        task: The task.
        table: Its label table.
        known: Which rows have a label, shape (rows,).
        manifest: The images that were found.
    """
    # What each row has: an image (a clip its first one), a group and a split
    if "frame" not in table.column_names:
        table = table.append_column("frame", table["start"])
    vocabulary = Vocabulary()
    has_image = ~absent(vocabulary.keys(table), vocabulary.keys(manifest))
    groups = table["group" if "group" in table.column_names else "video"]
    names = np.array(groups.to_pylist(), object)
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
    lines = []
    for part in counts:
        sizes = f"{part.rows:,} rows, {part.labelled:,} labelled, of {part.groups:,} {groups}"
        lines.append(f"{part.task} {part.split}: {sizes}")
    return lines
