"""Labels of a user's table: the task that its columns make, by their types or as asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.config import PrepareConfig
from raffect.datasets.sets.table_rows import RESERVED, Rows
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require

_MOST_CLASSES = 1000


def read_columns(
    table: pa.Table, config: PrepareConfig, rows: Rows
) -> tuple[Task | None, dict[str, np.ndarray]]:
    """The task that the label columns make, and their values."""
    # Label columns and their kind
    if missing := [name for name in config.columns if name not in table.column_names]:
        raise RaffectError(
            f"--columns {missing[0]}: not in {rows.file}; "
            f"its columns are {', '.join(table.column_names)}"
        )
    columns = config.columns or tuple(name for name in table.column_names if name not in RESERVED)
    if not columns or not config.with_labels:
        return None, {}
    kind = _choose_kind(table, columns, config, rows.file)
    if kind == "multiclass":
        return _read_classes(table[columns[0]], columns[0], config, rows)

    # Numbers
    for name in columns:
        if not _is_number(table[name].type):
            what = f"column {name!r} is {table[name].type}, expected numbers"
            raise RaffectError(f"{rows.file}: {what}; choose label columns with --columns")
    values = {name: np.array(table[name].cast(pa.float64()).to_numpy()) for name in columns}
    task = Task(
        name=config.task,
        kind=kind,
        outputs=columns,
        columns=columns,
        unlabelled=None if kind == "regression" else -1,
    )
    if kind == "regression":
        for name, column in values.items():
            _note_wrong(rows, name, column, np.isinf(column))
        return task, {name: column.astype(np.float32) for name, column in values.items()}

    # Multilabel: each 0, 1 or unlabelled
    labels = {}
    for name, column in values.items():
        _note_wrong(rows, name, column, np.isfinite(column) & ~np.isin(column, (-1, 0, 1)))
        labels[name] = np.where(np.isin(column, (0, 1)), column, -1).astype(np.int8)
    return task, labels


def _is_number(kind: pa.DataType) -> bool:
    tests = (pa.types.is_integer, pa.types.is_floating, pa.types.is_boolean)
    return any(test(kind) for test in tests)


def _choose_kind(
    table: pa.Table, columns: tuple[str, ...], config: PrepareConfig, file: Path
) -> str:
    """The kind that was asked for, or the only one that fits these columns."""
    # As asked for
    if config.kind != "auto":
        require(
            config.kind != "multiclass" or len(columns) == 1,
            f"--kind multiclass: has one label column, not {', '.join(columns)}; "
            "choose it with --columns",
        )
        return config.kind

    # By the types of the columns
    types = [table[name].type for name in columns]
    if len(columns) == 1 and (
        pa.types.is_string(types[0]) or pa.types.is_integer(types[0]) or config.classes
    ):
        return "multiclass"
    if all(pa.types.is_boolean(kind) or pa.types.is_integer(kind) for kind in types):
        values = set()
        for name in columns:
            values.update(table[name].cast(pa.int64()).unique().to_pylist())
        if values <= {-1, 0, 1, None}:
            return "multilabel"
    if all(pa.types.is_floating(kind) for kind in types):
        return "regression"
    found = ", ".join(f"{name} ({kind})" for name, kind in zip(columns, types, strict=True))
    raise RaffectError(
        f"{file}: what are these labels? {found}; "
        "add --kind multiclass, multilabel or regression, and choose columns with --columns"
    )


def _read_classes(
    column: pa.ChunkedArray, name: str, config: PrepareConfig, rows: Rows
) -> tuple[Task, dict[str, np.ndarray]]:
    """Classes by name, or by number where the column holds whole numbers."""
    # Cells as text, None where unlabelled
    is_number = pa.types.is_integer(column.type)
    texts = [None if cell in (None, -1, "-1") else str(cell).strip() for cell in column.to_pylist()]
    present = {text for text in texts if text}

    # Classes, and the number of each
    if is_number:
        numbers = {int(text) for text in present}
        low, high = min(numbers, default=0), max(numbers, default=0)
        require(
            low >= 0 and high < _MOST_CLASSES,
            f"{rows.file}: column {name!r} has classes from {low} to {high}, "
            f"expected 0 to {_MOST_CLASSES - 1} (-1 unlabelled)",
        )
        classes = config.classes or tuple(str(k) for k in range(max(numbers, default=-1) + 1))
        number = {str(k): k for k in range(len(classes))}
    else:
        classes = config.classes or tuple(sorted(present))
        number = {text: k for k, text in enumerate(classes)}
    require(
        2 <= len(classes) <= _MOST_CLASSES,
        f"{rows.file}: column {name!r} has {len(classes)} classes; "
        f"expected 2 to {_MOST_CLASSES}; for numbers add --kind regression",
    )

    # Number of each row's class; what is not a class is unlabelled
    for row, text in zip(rows.lines.tolist(), texts, strict=True):
        if text and text not in number:
            first = ", ".join(classes[:8])
            what = f"is not a class ({first}); unlabelled"
            rows.note(row, f"{name} {text[:40]!r} {what}", f"{name} {what}")
    values = np.array([number.get(text or "", -1) for text in texts], np.int16)
    task = Task(name=config.task, kind="multiclass", outputs=classes, columns=(name,))
    return task, {name: values}


def _note_wrong(rows: Rows, name: str, column: np.ndarray, wrong: np.ndarray) -> None:
    """Note the rows where ``wrong`` is true, and make them NaN in place."""
    for row in np.flatnonzero(wrong).tolist():
        what = "is not a label; unlabelled"
        rows.note(int(rows.lines[row]), f"{name} {column[row]:g} {what}", f"{name} {what}")
    column[wrong] = np.nan
