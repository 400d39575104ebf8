"""`raffect prepare --dataset table`: a CSV or Parquet file.

It has a row a picture, or a row a frame of a video.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pyarrow as pa

from raffect.config import PrepareConfig
from raffect.datasets.imported import Imported, count_splits, describe_counts
from raffect.datasets.sets.table_labels import read_columns
from raffect.datasets.sets.table_rows import Rows, read_rows
from raffect.datasets.tasks import Task
from raffect.errors import require


def import_table(config: PrepareConfig) -> Imported:
    """Read a table and find its pictures.

    A row is named by ``path`` (below an image root), or by ``video`` and ``frame``; the images then
    lie as in Aff-Wild2, unless ``path`` names them too. ``split`` and ``subject`` are optional, and
    so are labels. An empty cell is unlabelled, and so is -1 in classes and labels.

    Raises:
        RaffectError: If the file is not a table, names no pictures, or the kind of its labels is
            not clear.
    """
    file = config.annotations
    assert file is not None  # PrepareConfig has checked it

    # Rows and their pictures
    table = read_rows(file)
    require(
        "path" in table.column_names or {"video", "frame"} <= set(table.column_names),
        f"{file}: expected a column path, or video and frame; "
        f"found {', '.join(table.column_names)}",
    )
    rows = Rows(table, file, config)
    found = Imported(
        manifest=rows.manifest(),
        labels={},
        edition=file.name,
        digest=hashlib.sha256(file.read_bytes()).hexdigest(),
        groups=rows.groups,
    )
    used = f"{len(table):,} rows of {file.name}, {len(rows.table):,} of them used"
    images = f"{rows.count_missing():,} without an image; {len(found.manifest):,} images"
    found.lines = [f"table: {used}, {images}", *rows.listing.lines()]

    # Labels
    task, values = read_columns(rows.table, config, rows)
    if task is None:
        found.lines.append("labels: none, no column but " + ", ".join(table.column_names))
    else:
        _add_labels(found, task, values, rows)
    found.problems = rows.problems
    return found


def _add_labels(found: Imported, task: Task, values: dict[str, np.ndarray], rows: Rows) -> None:
    """Add the label table and its counts to what was found."""
    # Label table
    columns = {"video": rows.video, "frame": rows.frame, "split": rows.split()}
    labels = pa.table({**columns, **rows.group_column(), **values})
    labels = labels.sort_by([("video", "ascending"), ("frame", "ascending")])
    found.labels[task] = labels

    # Counts
    cells = np.stack([labels[name].to_numpy() for name in task.columns], 1)
    known = np.asarray(task.is_labelled(cells).any(axis=1))
    found.counts = count_splits(task, labels, known, found.manifest)

    # Report
    outputs = ", ".join(task.outputs)
    if task.kind == "multiclass":
        outputs = ", ".join(f"{k} {name}" for k, name in enumerate(task.outputs))
    found.lines += [f"labels: {task.name}, {task.kind}: {outputs}", f"split: {rows.how_split}"]
    found.lines += describe_counts(found.counts, rows.groups)
