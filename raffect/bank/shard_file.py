"""The Parquet files of a shard: its features, and its frames that could not be read."""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raffect.bank.plan import KEYS, key_table
from raffect.bank.records import MOST_THREADS, Commit, Identity
from raffect.storage.paths import Damaged, parse_parquet
from raffect.storage.tables import conform, read_metadata

REJECTS = pa.schema([("video", pa.string()), ("frame", pa.int32()), ("reason", pa.string())])
"""Schema of a rejects file."""


def shard_schema(dim: int) -> pa.Schema:
    """Schema of a shard file without its metadata."""
    return KEYS.append(pa.field("feature", pa.binary(2 * dim), nullable=False))


def format_shard(
    keys: pa.Table, features: np.ndarray, identity: Identity, threads: int | None = None
) -> bytes:
    """The file of a shard.

    Its metadata say which encoder made it, with how many threads, so that a bank whose
    ``bank.json`` is lost cannot be continued by another one, or with others.

    Args:
        keys: ``video, frame`` of its frames.
        features: float16, shape (frames, dim).
        identity: The encoder that made them.
        threads: Its CPU threads; None if it ran on a GPU, or it is not known.
    """
    keys, schema = key_table(keys), shard_schema(identity.dim)
    raw = np.ascontiguousarray(features, "<f2")
    buffers = [None, pa.py_buffer(raw)]
    feature = pa.FixedSizeBinaryArray.from_buffers(pa.binary(2 * identity.dim), len(raw), buffers)
    table = pa.Table.from_arrays([keys["video"], keys["frame"], feature], schema=schema)
    about = {"raffect": "shard/2", "weights_sha256": identity.weights_sha256}
    about["encoder"] = json.dumps(identity.compared, sort_keys=True)
    if threads is not None:
        about["threads"] = str(threads)
    return _format(table.replace_schema_metadata(about))


def format_rejects(keys: pa.Table, rejects: Mapping[int, str]) -> bytes:
    """The file of a shard's rejects; ``rejects`` gives the reasons by row of ``keys``."""
    rows = sorted(rejects)
    reasons = pa.array([rejects[row] for row in rows], pa.string())
    return _format(key_table(keys.take(rows)).append_column("reason", reasons))


def _format(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="none",
        use_dictionary=["video"],
        write_statistics=["video", "frame"],
        row_group_size=1 << 20,
        data_page_size=1 << 26,
    )
    return sink.getvalue().to_pybytes()


def parse_rejects(content: pa.Buffer, commit: Commit) -> pa.Table:
    """The table in a shard's rejects file.

    Raises:
        Damaged: If it has other columns, or another number of rows than was committed.
    """
    table = conform(parse_parquet(content), REJECTS)
    if len(table) != commit.rejects:
        raise Damaged(f"{len(table)} rows, its commit record says {commit.rejects}")
    return table


def parse_features(content: pa.Buffer, dim: int) -> np.ndarray:
    """Features of a shard's file: float16, shape (frames, dim), a view of ``content``.

    Raises:
        Damaged: If it is not such a file.
    """
    # The column, as one array
    table = parse_parquet(content, ["feature"])
    if table.column_names != ["feature"]:
        raise Damaged("column 'feature' is missing")
    column = table["feature"]
    if column.type != pa.binary(2 * dim):
        raise Damaged(f"features of type {column.type}, expected {2 * dim} bytes")
    if column.null_count:
        raise Damaged(f"{column.null_count} empty features")
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    # A view of its bytes
    if not len(array):
        return np.empty((0, dim), np.float16)
    count, offset = len(array) * dim, 2 * dim * array.offset
    return np.frombuffer(array.buffers()[1], "<f2", count, offset).reshape(len(array), dim)


def threads_of(table: pa.Table) -> int | None:
    """CPU threads of a shard's encoder, as the table of its file says; None if it does not."""
    text = read_metadata(table).get("threads", "")
    digits = text if text.isascii() and text.isdecimal() and len(text) < 8 else "0"
    return int(digits) if 1 <= int(digits) <= MOST_THREADS else None


def has_encoder(table: pa.Table, identity: Identity) -> bool | None:
    """Whether the table of a shard's file says that an encoder made it.

    Returns:
        None if it names the same weights and says nothing else, as in format 1.
    """
    about = read_metadata(table)
    if about.get("weights_sha256") != identity.weights_sha256:
        return False
    if (encoder := about.get("encoder")) is None:
        return None
    return encoder == json.dumps(identity.compared, sort_keys=True)
