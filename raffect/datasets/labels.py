"""Label tables: a row a frame, or a clip, with its split and values.

The task is kept in the metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raffect.datasets.affwild2.tasks import read_task
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require
from raffect.storage.paths import Damaged
from raffect.storage.tables import check_cells, read_metadata, read_table, write_table

LABEL_COLUMNS = ("video", "frame", "split")
CLIP_COLUMNS = ("start", "end")


def read_labels(path: Path) -> pa.Table:
    """Read a label table that `raffect prepare` wrote: ``video, frame, split, <values>``.

    A table of clips has ``start`` and ``end`` instead of ``frame``; its ``frame`` becomes the
    first one.

    Raises:
        RaffectError: If it is none, or a cell that names a frame, a split or a group is not what it
            should be.
    """
    table = read_table(path, ("video", "split"), "label table", "raffect prepare")
    if not is_of_clips(table):
        table = read_table(path, LABEL_COLUMNS, "label table", "raffect prepare")
    texts = [name for name in ("video", "split", "group") if name in table.column_names]
    numbers = CLIP_COLUMNS if is_of_clips(table) else ("frame",)
    try:
        check_cells(table, texts, numbers)
        if is_of_clips(table):
            table = table.append_column("frame", table["start"])
            _require_order(table)
    except (Damaged, KeyError) as error:
        what = f"{path}: damaged label table, {error}"
        raise RaffectError(f"{what}; make it again with `raffect prepare`") from error
    return table


def read_label_task(table: pa.Table, file: Path, name: str = "") -> Task:
    """The task in the metadata of a label table.

    Args:
        table: Of `read_labels`.
        file: Where it was read, for errors.
        name: Of one of Aff-Wild2's tasks, for a table from before November 2026 that names none.

    Raises:
        RaffectError: If it names no task.
    """
    return read_task(read_metadata(table).get("task", name), str(file))


def is_of_clips(labels: pa.Table) -> bool:
    """Whether the rows of a label table are clips, not frames."""
    return all(labels.column_names.count(name) == 1 for name in CLIP_COLUMNS)


def write_clip_labels(
    path: Path, clips: pa.Table, task: Task, source: pa.Table | None = None
) -> None:
    """Write a label table of clips.

    Args:
        path: A Parquet file.
        clips: Columns ``video``, ``start`` and ``end`` (first and last frame, from 1), ``split``,
            those of the task, and perhaps ``group``, which intervals and folds keep together.
        task: What the clips are labelled with.
        source: Label table that they were made from: its edition, the name of its groups and
            whether its faces are drawn are those of the clips, too.

    Raises:
        RaffectError: If a column is missing, or a cell is not what it should be.
    """
    for name in CLIP_COLUMNS:
        found = clips.column_names.count(name)
        require(found == 1, f"clips: expected one column {name!r}, found {found}")
    write_labels(path, clips, task, source)


def write_labels(
    path: Path,
    rows: pa.Table,
    task: Task,
    source: pa.Table | None = None,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write a label table that was made from another one, or from a user's table.

    Args:
        path: A Parquet file.
        rows: As of `write_clip_labels`, or with ``frame`` instead of ``start`` and ``end``.
        task: What the rows are labelled with.
        source: Label table that they were made from: its edition, the name of its groups and
            whether its faces are drawn are those of the new table, too.
        about: More metadata.

    Raises:
        RaffectError: If a column is missing, or a cell is not what it should be.
    """
    what, names = ("clips", CLIP_COLUMNS) if is_of_clips(rows) else ("labels", ("frame",))
    for name in ("video", *names, "split", *task.columns):
        found = rows.column_names.count(name)
        require(found == 1, f"{what}: expected one column {name!r}, found {found}")
    known = {} if source is None else read_metadata(source)
    kept = {name: known[name] for name in ("edition", "synthetic", "groups") if name in known}
    metadata = {"raffect": "labels/1", "task": task.to_bytes().decode()}
    write_table(rows, path, kept | metadata | dict(about or {}))
    read_values(read_labels(path), task)


def _require_order(table: pa.Table) -> None:
    wrong = np.flatnonzero(table["end"].to_numpy() < table["start"].to_numpy())
    if len(wrong):
        raise Damaged(f"the clip of row {wrong[0]} ends before it starts")


def select_split(labels: pa.Table, split: str) -> pa.Table:
    """Rows of a label table that belong to ``split``."""
    return labels.filter(pc.field("split").cast(pa.string()) == split)


def read_values(labels: pa.Table, task: Task) -> np.ndarray:
    """Label columns of a table, shape (N, columns), in the smallest type that holds them all.

    An empty cell is NaN.

    Raises:
        RaffectError: If a column is missing or does not hold numbers.
    """
    for name in task.columns:
        if (count := labels.column_names.count(name)) != 1:
            raise RaffectError(
                f"these are not {task.name} labels: column {name!r} is "
                f"{'there twice' if count else 'missing'}; "
                f"give labels/{task.name}.parquet"
            )
        kind = labels[name].type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise RaffectError(
                f"{task.name} labels: column {name!r} is {kind}, expected numbers; "
                "make the table again with `raffect prepare`"
            )
    return np.stack([labels[column].to_numpy() for column in task.columns], 1)
