"""Files of a challenge's entry: rows as text, written, and read back before they appear.

Shape letters: N rows, C outputs of all tasks together.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.csv

from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.predictions.rules import DecisionRules
from raffect.predictions.table import ROWS
from raffect.storage.atomic import atomic_path

_pc: Any = pa.compute
"""Its functions are made at run time, so that no checker of types knows them."""
_DECIMALS = 6
"""Digits of a value behind the point."""


def cells_of(rules: Sequence[DecisionRules], scores: np.ndarray) -> pa.StringArray:
    """What is decided, as the cells of each row behind its picture.

    Args:
        rules: Of each task, in the order of the columns.
        scores: Probabilities or values of all of them side by side, shape (N, C).

    Returns:
        Such as ``3`` for a class, ``0,1,0`` for labels and ``-0.250000,0.125000`` for values; three
        tasks are joined by commas.
    """
    columns, start = [], 0
    for one in rules:
        decided = one.decide(scores[:, start : start + len(one.task.outputs)])
        start += len(one.task.outputs)
        for values in decided.T if decided.ndim == 2 else [decided]:
            columns.append(_as_text(values, one.task))
    return _pc.binary_join_element_wise(*columns, ",")


def _as_text(values: np.ndarray, task: Task) -> pa.StringArray:
    if task.kind != "regression":
        return pa.array(values).cast(pa.string())
    # Decimals are written in full, where floats may have an exponent
    exact = np.round(values.astype(np.float64), _DECIMALS)
    return pa.array(exact).cast(pa.decimal128(30, _DECIMALS)).cast(pa.string())


def write_entry(
    path: Path,
    header: str,
    ending: str,
    images: pa.StringArray | None,
    cells: pa.StringArray,
    tasks: Sequence[Task],
) -> None:
    """Write one file, read it back, and only then let it appear.

    Args:
        path: The file.
        header: Its first line.
        ending: Of its lines.
        images: First cell of each row; None for rows without.
        cells: The others, of `cells_of`.
        tasks: What they predict, in order.

    Raises:
        RaffectError: If what was written is not what was asked for.
    """
    rows = cells if images is None else _pc.binary_join_element_wise(images, cells, ",")
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            file.write(f"{header}{ending}".encode())
            for start in range(0, len(rows), ROWS):
                lines = [*rows.slice(start, ROWS).to_pylist(), ""]
                file.write(ending.join(lines).encode())
        if wrong := find_fault(temporary, header, ending, images, len(cells), tasks):
            raise RaffectError(f"{path}: not written, {wrong}; please report this")


def find_fault(
    path: Path,
    header: str,
    ending: str,
    images: pa.StringArray | None,
    rows: int,
    tasks: Sequence[Task],
) -> str:
    """Read a file of an entry and compare it with what it should list.

    Returns:
        What is wrong: its header, line ends, number or order of rows, or a value that the task does
        not have; empty if nothing is.
    """
    # Header and line ends
    content = path.read_bytes()
    start, end = f"{header}{ending}".encode(), ending.encode()
    if not content.startswith(start):
        return "its header is another"
    if content.count(end) != rows + 1 or content.count(b"\n") != rows + 1:
        return f"it has not {rows:,} rows with the line ends of the template"

    # Rows, as any reader of CSV sees them
    columns = [f"{task.name} {k}" for task in tasks for k in range(_width(task))]
    names = columns if images is None else ["image", *columns]
    types = dict.fromkeys(columns, pa.float64()) | {"image": pa.string()}
    try:
        table = pa.csv.read_csv(
            pa.BufferReader(content[len(start) :]),
            pa.csv.ReadOptions(column_names=names),
            pa.csv.ParseOptions(quote_char=False),
            pa.csv.ConvertOptions(column_types=types),
        )
    except pa.ArrowException as error:
        return f"it is not readable ({str(error).splitlines()[0][:120]})"
    found = table["image"] if images is not None else None
    if len(table) != rows or (found is not None and not found.equals(pa.chunked_array([images]))):
        return "its rows are not those of the template in its order"
    return next((why for task in tasks if (why := _wrong_value(table, task))), "")


def _width(task: Task) -> int:
    """Cells that a task has in a row."""
    return 1 if task.kind == "multiclass" else len(task.outputs)


def _wrong_value(table: pa.Table, task: Task) -> str:
    """Which value a task does not have; empty if it has them all."""
    low, high = task.limits or (-np.inf, np.inf)
    if task.kind == "multiclass":
        low, high = 0, len(task.outputs) - 1
    elif task.kind == "multilabel":
        low, high = 0, 1
    for k in range(_width(task)):
        values = table[f"{task.name} {k}"].to_numpy()
        is_right = np.isfinite(values) & (values >= low) & (values <= high)
        if task.kind != "regression":
            is_right &= values == np.floor(values)
        if not is_right.all():
            return f"it has {values[~is_right][0]} for {task.name}, expected {low} to {high}"
    return ""
