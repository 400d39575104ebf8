"""Label tables: a row a frame with its split and values; the task is kept in the metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.storage.paths import Damaged
from raffect.storage.tables import check_cells, read_table

LABEL_COLUMNS = ("video", "frame", "split")


def read_labels(path: Path) -> pa.Table:
    """Read a label table that `raffect prepare` wrote: ``video, frame, split, <values>``.

    Raises:
        RaffectError: If it is none, or a cell that names a frame, a split or a group is not what it
            should be.
    """
    table = read_table(path, LABEL_COLUMNS, "label table", "raffect prepare")
    texts = [name for name in ("video", "split", "group") if name in table.column_names]
    try:
        check_cells(table, texts, ("frame",))
    except (Damaged, KeyError) as error:
        what = f"{path}: damaged label table, {error}"
        raise RaffectError(f"{what}; make it again with `raffect prepare`") from error
    return table


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
