"""The table of predictions on disk: written in parts, whole or not at all, and read in parts.

Parquet holds its facts (`PredictionFacts`) in its metadata; beside a CSV file they lie in
``<file>.json``. Columns are those of `raffect.predictions.columns`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from raffect.bank.format import Identity
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require
from raffect.predictions.columns import schema_of
from raffect.predictions.rules import DecisionRules
from raffect.provenance import Provenance
from raffect.storage.atomic import atomic_path, write_atomic
from raffect.storage.paths import has_file
from raffect.storage.records import Record

ROWS = 65_536
"""Most rows of a row group, and of a part that is read."""
_KEY = b"raffect predictions"
_REMEDY = "make it again with `raffect predict`"


@dataclass(frozen=True, kw_only=True)
class PredictionFacts(Record):
    """Where predictions come from.

    Attributes:
        format: Of the table.
        rules: How the probabilities of each task were averaged, smoothed and decided.
        bank: Path of the bank.
        bank_digest: Its content.
        encoders: Which encoders made its features.
        caveats: What every table and picture must say.
        incomplete: Which planned frames the bank lacked, as text; empty for a complete one.
        run: Versions, commit, command and machine.
    """

    format: Literal[1] = 1
    rules: tuple[DecisionRules, ...]
    bank: str
    bank_digest: str
    encoders: tuple[Identity, ...] = ()
    caveats: tuple[str, ...] = ()
    incomplete: str = ""
    run: Provenance

    @property
    def tasks(self) -> list[Task]:
        """What was predicted."""
        return [rules.task for rules in self.rules]

    @property
    def model(self) -> str:
        """What the column ``model`` says: tasks and how many heads."""
        return " + ".join(rules.model for rules in self.rules)


class PredictionWriter:
    """Adds rows to a table that is being written; see `write_predictions`."""

    def __init__(self, path: Path, schema: pa.Schema, facts: PredictionFacts) -> None:
        self._writer: Any
        if path.suffix == ".csv":
            self._writer = pa.csv.CSVWriter(path, schema)
        else:
            # Numbers repeat too seldom for a dictionary
            texts = [field.name for field in schema if pa.types.is_string(field.type)]
            self._writer = pq.ParquetWriter(
                path,
                schema.with_metadata({_KEY: facts.to_bytes()}),
                compression="zstd",
                use_dictionary=texts,
            )

    def write(self, rows: pa.Table) -> None:
        """Add rows; see `raffect.predictions.columns.as_table`."""
        for start in range(0, len(rows), ROWS):
            self._writer.write_table(rows.slice(start, ROWS))

    def close(self) -> None:
        """Finish the file."""
        self._writer.close()


@contextlib.contextmanager
def write_predictions(path: Path, facts: PredictionFacts) -> Generator[PredictionWriter]:
    """Write a table part by part; it appears whole at the end of the block, or not at all.

    Args:
        path: ``.parquet`` or ``.csv``.
        facts: Where the predictions come from.

    Raises:
        RaffectError: If the file has another ending.
    """
    require_suffix(path)
    with atomic_path(path) as temporary:
        # The writer chooses by the ending, which a temporary file has not.
        file = temporary.with_name(f"{temporary.name}{path.suffix}")
        writer = PredictionWriter(file, schema_of(facts.tasks), facts)
        try:
            yield writer
            writer.close()
            file.replace(temporary)
        finally:
            file.unlink(missing_ok=True)
    if path.suffix == ".csv":
        write_atomic(_facts_path(path), facts.to_bytes())


def require_suffix(path: Path) -> None:
    """Raise unless a file is Parquet or CSV by its name."""
    require(
        path.suffix in (".parquet", ".csv"),
        f"{path}: expected a name that ends in .parquet or .csv",
    )


def read_facts(path: Path) -> PredictionFacts:
    """Where the predictions of a table come from.

    Raises:
        RaffectError: If it is not a table of predictions.
    """
    require_suffix(path)
    require(has_file(path), f"{path}: no such table of predictions; make it with `raffect predict`")
    if path.suffix == ".csv":
        facts = _facts_path(path)
        require(has_file(facts), f"{facts}: missing, it says what {path.name} holds; {_REMEDY}")
        return PredictionFacts.from_json(facts.read_bytes(), facts, _REMEDY)
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, error) from error
    require(_KEY in metadata, f"{path}: not a table of predictions; {_REMEDY}")
    return PredictionFacts.from_json(metadata[_KEY], path, _REMEDY)


def iter_predictions(path: Path, columns: Sequence[str] | None = None) -> Iterator[pa.Table]:
    """Rows of a table in parts of at most `ROWS`, in order.

    Args:
        path: Of `write_predictions`.
        columns: Only these; all by default.

    Raises:
        RaffectError: If it is damaged, or lacks a column.
    """
    schema = schema_of(read_facts(path).tasks)
    try:
        parts = _csv_parts(path, schema) if path.suffix == ".csv" else _parquet_parts(path, columns)
        for part in parts:
            found = pa.Table.from_batches([part])
            yield found.select(list(columns or schema.names))
    except (pa.ArrowException, KeyError, OSError) as error:
        raise _unreadable(path, error) from error


def read_predictions(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """All rows of a table; arguments and errors are those of `iter_predictions`."""
    parts = list(iter_predictions(path, columns))
    schema = schema_of(read_facts(path).tasks)
    wanted = pa.schema([schema.field(name) for name in columns]) if columns else schema
    return pa.concat_tables([wanted.empty_table(), *(part.cast(wanted) for part in parts)])


def _parquet_parts(path: Path, columns: Sequence[str] | None) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(ROWS, columns=list(columns) if columns else None)


def _csv_parts(path: Path, schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    convert = pa.csv.ConvertOptions(
        column_types=schema, strings_can_be_null=True, quoted_strings_can_be_null=False
    )
    with pa.csv.open_csv(path, convert_options=convert) as reader:
        yield from reader


def _facts_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")


def _unreadable(path: Path, error: Exception) -> RaffectError:
    what = str(error).splitlines()[0][:120]
    return RaffectError(f"{path}: not a readable table of predictions ({what}); {_REMEDY}")
