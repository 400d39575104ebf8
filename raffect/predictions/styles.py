"""CSV files of one input: the columns of the table, or those of OpenFace.

OpenFace 2 writes ``frame, face_id, timestamp, confidence, success``, and for units ``AU01_c`` (0 or
1). It also writes intensities, ``AU01_r``, which heads do not predict. What it has no name for
follows under the table's own names. A frame without a face has a row with ``success`` 0.

Source: https://github.com/TadasBaltrusaitis/OpenFace/wiki/Output-Format
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.csv

from raffect.datasets.tasks import Task
from raffect.errors import require
from raffect.predictions.columns import columns_of
from raffect.storage.atomic import atomic_path

Style = Literal["plain", "openface"]
_UNIT = re.compile(r"AU(\d{1,2})")


def require_style(style: Style, tasks: Sequence[Task]) -> None:
    """Refuse OpenFace's columns where no task has action units.

    Raises:
        RaffectError: Says what is predicted instead.
    """
    has_units = any(_UNIT.fullmatch(name) for task in tasks for name in task.outputs)
    names = ", ".join(task.name for task in tasks)
    require(
        style == "plain" or has_units,
        f"--style openface: is for action units, and these heads predict {names}; add a run of AU",
    )


def write_styled(rows: pa.Table, tasks: Sequence[Task], style: Style, out: Path) -> None:
    """Write the rows of one input as CSV.

    Args:
        rows: Of a table of predictions.
        tasks: Of that table.
        style: Which columns.
        out: The file.
    """
    table = rows if style == "plain" else _as_openface(rows, tasks)
    with atomic_path(out) as temporary:
        pyarrow.csv.write_csv(table, temporary, pyarrow.csv.WriteOptions(quoting_style="needed"))


def _as_openface(rows: pa.Table, tasks: Sequence[Task]) -> pa.Table:
    success = [int(status == "ok") for status in rows["status"].to_pylist()]
    table = {
        "frame": rows["frame"],
        "face_id": rows["face_id"].fill_null(0),
        "timestamp": rows["timestamp_s"].fill_null(0.0),
        "confidence": rows["face_conf"].fill_null(0.0),
        "success": pa.array(success, pa.int8()),
    }
    for columns in columns_of(tasks).values():
        for name in columns.names:
            found = _UNIT.fullmatch(name)
            table[f"AU{int(found[1]):02}_c" if found else name] = rows[name]
    return pa.table(table)
