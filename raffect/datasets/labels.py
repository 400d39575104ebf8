"""Label tables: a row a frame with its split and values; the task is kept in the metadata."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.storage.tables import read_table

LABEL_COLUMNS = ("video", "frame", "split")


def read_labels(path: Path) -> pa.Table:
    """Read a label table that `raffect prepare` wrote: ``video, frame, split, <values>``."""
    return read_table(path, LABEL_COLUMNS, "label table", "raffect prepare")


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
        if name not in labels.column_names:
            raise RaffectError(
                f"these are not {task.name} labels: column {name!r} is missing; "
                f"give labels/{task.name}.parquet"
            )
        kind = labels[name].type
        if not (pa.types.is_integer(kind) or pa.types.is_floating(kind)):
            raise RaffectError(
                f"{task.name} labels: column {name!r} is {kind}, expected numbers; "
                "make the table again with `raffect prepare`"
            )
    return np.stack([labels[column].to_numpy() for column in task.columns], 1)
