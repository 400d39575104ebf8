"""An array crosses processes as one cell of a column, without a copy."""

import numpy as np
import pyarrow as pa
import pytest

from raffect.storage.cells import as_cell, read_cell


@pytest.mark.parametrize(
    "values",
    [
        np.arange(12, dtype=np.float16).reshape(3, 4),
        np.zeros((0, 4), np.float16),
        np.arange(5, dtype=np.uint8),
    ],
)
def test_a_cell_holds_the_bytes_of_an_array(values):
    column = pa.chunked_array([as_cell(values)])
    assert column[0].as_py() == values.tobytes()
    np.testing.assert_array_equal(read_cell(column).view(values.dtype), values.reshape(-1))


def test_a_cell_is_never_copied():
    values = np.arange(1000, dtype=np.uint8)
    assert np.shares_memory(read_cell(pa.chunked_array([as_cell(values)])), values)


def test_a_slice_and_empty_chunks_give_the_one_row():
    empty = pa.array([], pa.large_binary())
    part = pa.array([b"aa", b"bcd", b"e"], pa.large_binary()).slice(1, 1)
    column = pa.chunked_array([empty, part])
    assert read_cell(column).tobytes() == b"bcd"
