"""Arrays and tables as one cell of an Arrow column, in which processes hand over a whole shard."""

from __future__ import annotations

import numpy as np
import pyarrow as pa


def as_cell(values: np.ndarray) -> pa.Array:
    """The bytes of a C-contiguous array as a large_binary column of one row, without a copy."""
    flat = values.reshape(-1).view(np.uint8)
    offsets = np.array([0, flat.size], np.int64)
    buffers = [None, pa.py_buffer(offsets), pa.py_buffer(flat)]
    return pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, buffers)


def read_cell(column: pa.ChunkedArray) -> np.ndarray:
    """The bytes of a large_binary column's one row, uint8, as a view.

    Arrow's own ``column[0].as_buffer()`` copies them.
    """
    (chunk,) = (chunk for chunk in column.chunks if len(chunk))
    _, offsets, values = chunk.buffers()
    start, stop = np.frombuffer(offsets, np.int64)[chunk.offset : chunk.offset + 2]
    return np.frombuffer(values, np.uint8)[start:stop] if stop > start else np.empty(0, np.uint8)


def table_to_bytes(table: pa.Table) -> bytes:
    """A table as an Arrow stream, compressed: names and numbers of frames take an eighth then."""
    sink, options = pa.BufferOutputStream(), pa.ipc.IpcWriteOptions(compression="zstd")
    with pa.ipc.new_stream(sink, table.schema, options=options) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def table_from_bytes(content: bytes) -> pa.Table:
    """The table that `table_to_bytes` wrote."""
    return pa.ipc.open_stream(content).read_all()
