"""Parquet tables that commands hand to each other.

They are written whole, and an error of reading one names the command that makes it.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raffect.errors import RaffectError
from raffect.storage.atomic import atomic_path
from raffect.storage.paths import Damaged, has_file, read_parquet


def write_table(table: pa.Table, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a Parquet file atomically, with ``metadata`` as text in its schema."""
    table = table.replace_schema_metadata(dict(metadata))
    with atomic_path(path) as temporary:
        pq.write_table(table, temporary, compression="zstd", row_group_size=1 << 20)


def read_table(
    path: Path,
    columns: tuple[str, ...],
    kind: str,
    maker: str,
    only: tuple[str, ...] | None = None,
) -> pa.Table:
    """Read a table.

    Args:
        path: A Parquet file.
        columns: Columns that it must have.
        kind: What it should be, such as ``manifest``, for errors.
        maker: The command that makes such a table, for errors.
        only: Those of ``columns`` that are read; by default the whole table.

    Raises:
        RaffectError: If it is missing or unreadable, or lacks a column.
    """
    if not has_file(path):
        raise RaffectError(f"{path}: no such {kind}; make it with `{maker}`")
    try:
        table = read_parquet(path, only)
    except Damaged as error:
        if only is not None:
            return read_table(path, columns, kind, maker)  # which says what is wrong
        what = f"not a readable Parquet file ({error})"
        raise RaffectError(f"{path}: {what}; make it again with `{maker}`") from error
    for name in only or columns:
        if fault := _fault_of_name(table, name):
            raise RaffectError(f"{path}: not a {kind}, {fault}; make it with `{maker}`")
    return table


def check_cells(table: pa.Table, texts: Sequence[str], numbers: Sequence[str]) -> None:
    """Check every cell of some columns, whatever a file claims of itself.

    Args:
        table: With these columns.
        texts: Columns of text, as dictionaries or not.
        numbers: Columns of whole numbers from 1 to 2147483647.

    Raises:
        Damaged: If a column is of another type, has empty cells, text that is not UTF-8, or other
            numbers.
    """
    for name in (*texts, *numbers):
        found = _plain(table.schema.field(name).type)
        is_text = pa.types.is_string(found) or pa.types.is_large_string(found)
        if not (is_text if name in texts else pa.types.is_integer(found)):
            expected = "text" if name in texts else "int32"
            raise Damaged(f"column {name!r} is {str(found)[:40]}, expected {expected}")
        _require_full(table, name)
        try:
            table[name].validate(full=True)
        except pa.ArrowException as error:
            what = str(error).splitlines()[0][:120]
            raise Damaged(f"column {name!r} is damaged ({what})") from error
    for name in numbers:
        values = table[name].to_numpy()
        if len(values) and not (values.min() >= 1 and values.max() < 1 << 31):
            found = f"{values.min()} to {values.max()}"
            raise Damaged(f"column {name!r} has numbers from {found}, expected 1 or more")


def conform(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table's columns of a schema, in its order and types, without metadata.

    Text may be a dictionary or not. Every cell is checked: what a file claims of itself may be
    wrong.

    Raises:
        Damaged: If a column is missing, there twice or of another type, has empty cells, or
            text that is not UTF-8.
    """
    for field in schema:
        if fault := _fault_of_name(table, field.name):
            raise Damaged(fault)
        found = table.schema.field(field.name).type
        if _plain(found) != _plain(field.type):
            raise Damaged(f"column {field.name!r} is {found}, expected {field.type}")
        _require_full(table, field.name)
    table = table.select(schema.names)
    try:
        table.validate(full=True)
        columns = [_as_type(table[field.name], field.type) for field in schema]
        return pa.Table.from_arrays(columns, schema=schema)
    except (pa.ArrowException, ValueError) as error:
        raise Damaged(str(error).splitlines()[0][:120]) from error


def _fault_of_name(table: pa.Table, name: str) -> str:
    """Why a table has not one column of a name; empty if it has."""
    count = table.column_names.count(name)
    return "" if count == 1 else f"column {name!r} is {'there twice' if count else 'missing'}"


def _require_full(table: pa.Table, name: str) -> None:
    """Raise `Damaged` if a column has empty cells."""
    if empty := table[name].null_count:
        raise Damaged(f"column {name!r} has {empty} empty cells")


def _as_type(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    # Through plain text, since a dictionary may have indices of another type
    return column if column.type == kind else column.cast(_plain(kind)).cast(kind)


def _plain(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def read_metadata(table: pa.Table) -> dict[str, str]:
    """The metadata that `write_table` stored in a table's schema; "?" for what is not UTF-8."""
    pairs = (table.schema.metadata or {}).items()
    return {key.decode(errors="replace"): value.decode(errors="replace") for key, value in pairs}


def write_csv(
    path: Path, rows: Iterable[Mapping[str, Any]], columns: Sequence[str] | None = None
) -> None:
    """Write rows with the given columns, or those of the first row; without both an empty file.

    Rows are taken one by one: of millions none has to be in memory.
    """
    rows = iter(rows)
    first = list(itertools.islice(rows, 1))
    names = columns or (list(first[0]) if first else [])
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        if names:
            writer = csv.DictWriter(file, names, lineterminator="\n")
            writer.writeheader()
            writer.writerows(itertools.chain(first, rows))


def table_of(rows: Iterable[Any], kind: Any) -> pa.Table:
    """Dataclass objects as a table with one column for each field; paths as text.

    Args:
        rows: The objects.
        kind: Their class, which names the columns even if there are no rows.
    """
    rows, columns = list(rows), {}
    for part in dataclasses.fields(kind):
        cells = [getattr(row, part.name) for row in rows]
        columns[part.name] = [str(cell) if isinstance(cell, Path) else cell for cell in cells]
    return pa.table(columns)
