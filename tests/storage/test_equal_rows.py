"""Equal rows have one number, against numpy, in little memory."""

import tracemalloc

import numpy as np
import pytest

from raffect.storage.equal_rows import number_equal


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.int8, np.int64])
@pytest.mark.parametrize("shape", [(9000, 2), (9000, 40), (1, 3), (0, 3)])
def test_rows_are_numbered_as_numpy_finds_them_equal(dtype, shape):
    rng = np.random.default_rng(0)
    kinds = rng.integers(-2, 3, (max(shape[0] // 3, 1), shape[1]))
    rows = kinds[rng.integers(0, len(kinds), shape[0])].astype(dtype)
    rows[rng.random(shape) < 0.1] *= -1  # of 0 it makes -0
    number, first = number_equal(rows)
    _, start, inverse = np.unique(rows + 0, axis=0, return_index=True, return_inverse=True)
    np.testing.assert_array_equal(first[number], start[inverse.ravel()])
    np.testing.assert_array_equal(first, np.sort(start))


def test_long_rows_take_no_copy_of_them():
    rows = np.random.default_rng(0).normal(size=(40_000, 160)).astype(np.float16)
    tracemalloc.start()
    number_equal(rows)
    assert tracemalloc.get_traced_memory()[1] < rows.nbytes / 2
    tracemalloc.stop()
