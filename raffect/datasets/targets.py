"""Targets that are vectors: of a caption's text, or of a teacher. Training never sees a text.

A label table of the kind ``contrastive`` holds the number of a vector in each row; the vectors lie
beside it in ``<its name>.targets.parquet``, and their SHA-256 in its metadata. The file has a
column ``vector`` of float16, a row a target in the order of their numbers, and perhaps ``caption``,
which is for reading alone.

Shape letters: V targets, E numbers of a vector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from annotated_types import Ge, Le, Lt

from raffect.datasets.labels import read_values, write_labels
from raffect.datasets.tasks import MOST_OUTPUTS, Task
from raffect.errors import RaffectError, require
from raffect.storage.atomic import write_atomic
from raffect.storage.paths import Damaged, has_file, parse_parquet, read_buffer
from raffect.storage.records import Record
from raffect.storage.tables import read_metadata

KIND = "contrastive"
"""Kind of these tasks."""
SUFFIX = ".targets.parquet"
"""What the name of a file of vectors ends with."""
CAPTIONS_OF = "captions_of"
"""Metadata of a label table: name of the table that captions of no data set are from."""
_MOST_TARGETS = 1 << 31
_CHUNK = 4096
"""Vectors that are worked on at a time: a teacher has one for each of a million frames."""
_REMEDY = "make the table and its targets again"


@dataclass(frozen=True, kw_only=True)
class TargetFacts(Record):
    """Which vectors a label table goes with.

    Attributes:
        file: Their file, in the folder of the label table.
        sha256: SHA-256 of the file.
        count: V.
        dim: E.
        image_sha256: Fingerprint of the image tower that belongs to the text tower, where the
            vectors are of texts: features of other weights cannot be compared with them. Empty for
            a teacher's vectors.
    """

    file: str
    sha256: str
    count: Annotated[int, Ge(1), Lt(_MOST_TARGETS)]
    dim: Annotated[int, Ge(1), Le(MOST_OUTPUTS)]
    image_sha256: str = ""

    def __post_init__(self) -> None:
        # A name alone: a table must not make raffect read any other file.
        if not self.file.endswith(SUFFIX) or set(self.file) & set("/\\:\0"):
            raise ValueError(f"targets {self.file[:60]}: expected the name of a file *{SUFFIX}")


@dataclass(frozen=True)
class Targets:
    """Vectors of a label table.

    Attributes:
        vectors: float16, shape (V, E), each of length 1 up to rounding.
        facts: Where they are from.
    """

    vectors: np.ndarray
    facts: TargetFacts


def contrastive_task(name: str, classes: Sequence[str] = ()) -> Task:
    """A task whose targets are vectors.

    Args:
        name: Of the task and its label table.
        classes: Names of the classes that the targets come from, where they do: rows then have a
            column ``class`` with their number, and scores are by class.
    """
    columns = ("target", "class") if classes else ("target",)
    return Task(name=name, kind=KIND, outputs=tuple(classes) or ("caption",), columns=columns)


def is_targets_file(path: Path) -> bool:
    """Whether a file beside label tables holds vectors by its name, and so is no label table."""
    return path.name.endswith(SUFFIX)


def write_targets(
    path: Path,
    rows: pa.Table,
    task: Task,
    vectors: np.ndarray,
    *,
    captions: Sequence[str] = (),
    image_sha256: str = "",
    source: pa.Table | None = None,
    about: Mapping[str, str] | None = None,
) -> TargetFacts:
    """Write a label table and the vectors that it names.

    Args:
        path: The label table; the vectors are written beside it.
        rows: Columns ``video``, ``split``, ``frame`` or ``start`` and ``end``, ``target`` with the
            number of a vector, ``class`` where the task has classes, and perhaps ``group``.
        task: See `contrastive_task`.
        vectors: Shape (V, E), of any length above 0: they are stored divided by it, since they are
            only ever compared by cosine.
        captions: The text of each vector; may be empty.
        image_sha256: See `TargetFacts`.
        source: See `raffect.datasets.labels.write_labels`.
        about: More metadata of the label table.

    Returns:
        What the label table says of the vectors.

    Raises:
        RaffectError: If a row names no vector or class, a vector is not finite or all 0, or
            captions are not as many as vectors.
    """
    # Everything is checked before anything is written
    unit = _divide_by_length(vectors, path)
    require(
        len(captions) in (0, len(unit)),
        f"targets of {path}: {len(captions)} captions of {len(unit)} vectors",
    )
    require_numbers(rows, task, len(unit), path)

    # The vectors' file, then the table, which names it
    content = _to_parquet(unit, captions)
    facts = TargetFacts(
        file=f"{path.stem}{SUFFIX}",
        sha256=hashlib.sha256(content).hexdigest(),
        count=len(unit),
        dim=unit.shape[1],
        image_sha256=image_sha256,
    )
    write_atomic(path.parent / facts.file, memoryview(content))
    named = {"targets": facts.to_bytes().decode()}
    write_labels(path, rows, task, source, dict(about or {}) | named)
    return facts


def _divide_by_length(vectors: np.ndarray, path: Path) -> np.ndarray:
    """Vectors of length 1, float16, shape (V, E).

    Raises:
        RaffectError: If they are not such vectors, or some have no direction.
    """
    require(
        vectors.ndim == 2 and vectors.shape[0] > 0 and 0 < vectors.shape[1] <= MOST_OUTPUTS,
        f"targets of {path}: vectors of shape {vectors.shape}; expected (V, E), none of them 0",
    )
    unit, bad = np.empty(vectors.shape, np.float16), []
    for start in range(0, len(vectors), _CHUNK):
        part = vectors[start : start + _CHUNK].astype(np.float64)
        lengths = np.linalg.norm(part, axis=1)
        is_bad = ~np.isfinite(lengths) | (lengths == 0)
        bad += (start + np.flatnonzero(is_bad)).tolist()
        unit[start : start + _CHUNK] = part / np.where(is_bad, np.inf, lengths)[:, None]
    if bad:
        raise RaffectError(
            f"targets of {path}: {len(bad)} vectors are not finite or all 0, first number "
            f"{bad[0]}; leave them out"
        )
    return unit


def _to_parquet(unit: np.ndarray, captions: Sequence[str]) -> pa.Buffer:
    """A file of vectors, and perhaps their captions."""
    flat = pa.array(unit.ravel())
    columns: dict[str, pa.Array] = {
        "vector": pa.FixedSizeListArray.from_arrays(flat, unit.shape[1])
    }
    if len(captions):
        columns["caption"] = pa.array(captions, pa.string())
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


def read_targets(path: Path, table: pa.Table) -> Targets:
    """Read the vectors that a label table names; every value is checked.

    Args:
        path: The label table's file.
        table: What it holds.

    Raises:
        RaffectError: If the vectors are missing, not those that the table was written with, or not
            vectors of finite numbers.
    """
    # What the table says, and the file that it names
    text = read_metadata(table).get("targets")
    if text is None:
        raise RaffectError(f"{path}: names no targets; {_REMEDY}")
    facts = TargetFacts.from_json(text, f"{path}, its targets", _REMEDY)
    file = path.parent / facts.file
    require(has_file(file), f"{file}: no such file, which {path} names; copy both together")
    content = read_buffer(file)
    found = hashlib.sha256(content).hexdigest()
    require(
        found == facts.sha256,
        f"{file}: not the targets that {path} was written with "
        f"(SHA-256 {found[:12]}, expected {facts.sha256[:12]}); copy both together, or {_REMEDY}",
    )

    # Its vectors
    try:
        return Targets(_parse(content, facts), facts)
    except Damaged as error:
        raise RaffectError(f"{file}: damaged targets, {error}; {_REMEDY}") from error


def require_numbers(rows: pa.Table, task: Task, count: int, path: Path) -> None:
    """Refuse rows that name vectors that are not there.

    Args:
        rows: Of a label table.
        task: Its task.
        count: V.
        path: The table's file, for errors.

    Raises:
        RaffectError: Names the first wrong row.
    """
    target = read_values(rows, task)[:, 0]
    wrong = ~((target >= 0) & (target < count) & (target == np.floor(target)))
    wrong &= task.is_labelled(target)
    if wrong.any():
        row = int(wrong.argmax())
        what = f"{int(wrong.sum())} rows name no target, first row {row}"
        raise RaffectError(
            f"{path}: {what} ({target[row]:g}); expected 0 to {count - 1}; {_REMEDY}"
        )


def _parse(content: pa.Buffer, facts: TargetFacts) -> np.ndarray:
    """The vectors in a file's bytes, float16, shape (V, E), a view of what Arrow decoded.

    Raises:
        Damaged: If they are not what the facts say.
    """
    table = parse_parquet(content)
    if table.column_names.count("vector") != 1:
        raise Damaged("expected one column 'vector'")
    column, expected = table["vector"], pa.list_(pa.float16(), facts.dim)
    if column.type != expected:
        raise Damaged(f"column 'vector' is {str(column.type)[:60]}, expected {expected}")
    if len(column) != facts.count:
        raise Damaged(f"{len(column)} vectors, expected {facts.count}")
    try:
        column.validate(full=True)
    except pa.ArrowException as error:
        raise Damaged(str(error).splitlines()[0][:120]) from error
    flat = column.combine_chunks().flatten()
    if column.null_count or flat.null_count:
        raise Damaged("column 'vector' has empty cells")
    count, offset = facts.count * facts.dim, 2 * flat.offset
    numbers = np.frombuffer(flat.buffers()[1], "<f2", count, offset)
    # Arrow's memory may be written to, as torch wants it, unless others share it.
    vectors = np.require(numbers, requirements="W").reshape(facts.count, facts.dim)
    for start in range(0, len(vectors), _CHUNK):
        lengths = np.linalg.norm(vectors[start : start + _CHUNK].astype(np.float32), axis=1)
        if (bad := ~np.isfinite(lengths) | (lengths == 0)).any():
            raise Damaged(f"vector {start + int(bad.argmax())} is not finite or all 0")
    return vectors
