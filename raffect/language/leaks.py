"""The leak guard: videos that other tables judge on are not trained on.

Splits are made task by task, so a training video of one task may be a validation or test video of
another one, and ``name_left`` or ``name_right`` (one of two people in a video) is of the same video
as ``name``. A head that learns from captions of units and is judged on expressions must not have
seen those videos.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
from annotated_types import Ge

from raffect.datasets.labels import read_label_task, read_labels
from raffect.datasets.targets import is_targets_file
from raffect.errors import RaffectError
from raffect.language.captions.captioned import Captioned
from raffect.storage.keys import of_each_name
from raffect.storage.paths import locate, read_parquet
from raffect.storage.records import Record
from raffect.storage.tables import read_metadata

_SIDE = re.compile(r"(?:_(?:left|right))+$")
_JUDGED = "validation or test videos"


@dataclass(frozen=True, kw_only=True)
class LeakGuard(Record):
    """What the guard did.

    Attributes:
        tables: Names of the tables whose validation and test videos were left out of training.
        videos: Training videos that were left out.
        rows: Their rows.
    """

    tables: tuple[str, ...] = ()
    videos: Annotated[int, Ge(0)] = 0
    rows: Annotated[int, Ge(0)] = 0

    def line(self) -> str:
        """As a line of text."""
        if not self.tables:
            return "leak guard: off, no videos that other tables judge on were left out of training"
        what = f"{self.videos:,} training videos ({self.rows:,} rows) left out"
        return f"leak guard: {what}, which are {_JUDGED} of {', '.join(self.tables)}"


def base_of(video: str) -> str:
    """The video that both of its people are in: its name without ``_left`` and ``_right``."""
    return _SIDE.sub("", video)


def bases_of(table: pa.Table) -> set[str]:
    """The videos of a table's rows, each once; see `base_of`."""
    return set(map(base_of, table["video"].cast(pa.string()).unique().to_pylist()))


def find_tables(words: Sequence[str], folder: Path | None, own: Collection[str]) -> list[Path]:
    """The tables that ``--not-in`` means.

    Args:
        words: Paths; ``others``: all other tables of classes or labels (such as no text describes
            are not judged by texts) in a folder; or ``none``.
        folder: None without one.
        own: Names of tables in it that are none of them: the one to be made, and the one that rows
            have their splits from.
    """
    if "none" in words:
        return []
    if "others" not in words:
        return [locate(word) for word in words]
    if folder is None:
        return []
    files = [file for file in sorted(folder.glob("*.parquet")) if file.name not in own]
    return [file for file in files if not is_targets_file(file) and _is_judged_by_texts(file)]


def _is_judged_by_texts(file: Path) -> bool:
    """Whether a file is a label table of classes or labels."""
    table = read_parquet(file)
    if not {"video", "split"} <= set(table.column_names) or "task" not in read_metadata(table):
        return False
    return read_label_task(table, file).kind in ("multiclass", "multilabel")


def guard(found: Captioned, tables: Sequence[Path]) -> tuple[Captioned, LeakGuard]:
    """Leave training rows of videos out that other tables judge on, in validation or test.

    Args:
        found: Rows with splits.
        tables: Label tables.

    Raises:
        RaffectError: If no training row is left, or a table is not a label table.
    """
    held_out: set[str] = set()
    for file in tables:
        rows = read_labels(file)
        held_out |= bases_of(rows.filter(pa.array(~is_split(rows, "train"))))
    names = tuple(file.name for file in tables)

    # Training rows alone: what is judged on may be judged on again
    is_train = is_split(found.table, "train")
    wrong = _is_of(found.table, held_out) & is_train
    videos = len(found.table["video"].filter(pa.array(wrong)).unique())
    if wrong.any() and (wrong == is_train).all():
        raise RaffectError(
            f"{found.where}: all {videos:,} training videos are {_JUDGED} of "
            f"{', '.join(names)}; name the tables that heads will be judged on with --not-in"
        )
    done = LeakGuard(tables=names, videos=videos, rows=int(wrong.sum()))
    return replace(found, table=found.table.filter(pa.array(~wrong))), done


def is_split(table: pa.Table, name: str) -> np.ndarray:
    """Which rows are of a split: bool, shape (N,)."""
    return of_each_name(table["split"], lambda split: split == name, bool)


def _is_of(table: pa.Table, bases: Collection[str]) -> np.ndarray:
    """Which rows are of one of some videos, whichever of its people: bool, shape (N,)."""
    return of_each_name(table["video"], lambda name: base_of(name) in bases, bool)
