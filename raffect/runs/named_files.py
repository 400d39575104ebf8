"""Parquet files of a run folder that are named by their content, and that heads' records name.

Such a file is whole before a record names it, equal ones have one name, and any other content is
refused where it is read.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from raffect.errors import RaffectError
from raffect.runs.records import NamedFile
from raffect.storage.atomic import write_atomic
from raffect.storage.paths import Damaged, read_buffer

T = TypeVar("T")
_NAME = re.compile(r"[0-9a-f]{16}\.parquet")
_REMEDY = "delete the records of its heads in heads/ and run the same command again"


def write_named(folder: Path, table: pa.Table, **options: Any) -> NamedFile:
    """Write a table.

    Args:
        folder: Where, such as ``statistics/`` of the run folder.
        table: With its metadata.
        options: Of `pyarrow.parquet.write_table`.

    Returns:
        What records name.
    """
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd", **options)
    content = sink.getvalue()
    sha256 = hashlib.sha256(content).hexdigest()
    file = NamedFile(name=f"{sha256[:16]}.parquet", sha256=sha256)
    write_atomic(folder / file.name, content.to_pybytes())
    return file


def read_named(folder: Path, file: NamedFile, parse: Callable[[pa.Buffer], T]) -> T:
    """Read what `write_named` wrote.

    Args:
        folder: Where.
        file: As records name it.
        parse: Makes something of the bytes; what it raises is damage of the file.

    Raises:
        RaffectError: If it is missing, or not the file that the records name.
    """
    path = folder / file.name
    try:
        if not _NAME.fullmatch(file.name):
            raise Damaged("not a name that raffect gives")
        content = read_buffer(path)
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise Damaged("not the file that the records name (SHA-256 differs)")
        return parse(content)
    except FileNotFoundError as error:
        raise RaffectError(f"{path}: missing; {_REMEDY}") from error
    except (Damaged, pa.ArrowException, KeyError, ValueError) as error:
        raise RaffectError(f"{path}: {str(error).splitlines()[0][:120]}; {_REMEDY}") from error
