"""Joins of frames: the same in blocks as at once, and as a dictionary of Python gives them."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from raffect.storage import keys as module
from raffect.storage.keys import (
    Vocabulary,
    absent,
    digest_keys,
    encode_video,
    first_not_above,
    is_ascending,
    positions,
    without_others,
)


@pytest.fixture(params=[1, 3, 1000])
def _blocks(request, monkeypatch):
    monkeypatch.setattr(module, "_AT_ONCE", request.param)


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("lengths", [(0, 0), (0, 5), (5, 0), (1, 1), (40, 17), (17, 40)])
def test_positions_and_absences_are_those_of_a_dictionary(lengths):
    rng = np.random.default_rng(sum(lengths))
    keys, among = (rng.integers(0, 60, length) << 33 for length in lengths)
    among = np.unique(among)
    place = {key: k for k, key in enumerate(among.tolist())}
    expected = [place.get(key, -1) for key in keys.tolist()]
    found = positions(keys, among)
    assert found.dtype == np.int32
    assert found.tolist() == expected
    assert absent(keys, rng.permutation(among)).tolist() == [k < 0 for k in expected]


@pytest.mark.usefixtures("_blocks")
@pytest.mark.parametrize("length", [0, 1, 2, 3, 4, 7])
def test_a_break_of_the_order_is_found_wherever_it_is(length):
    keys = np.arange(length)
    assert first_not_above(keys) is None
    for k in range(1, length):
        doubled, fallen = keys.copy(), keys.copy()
        doubled[k], fallen[k] = keys[k - 1], -5
        assert (first_not_above(doubled), is_ascending(doubled)) == (k, True)
        assert (first_not_above(fallen), is_ascending(fallen)) == (k, False)


@pytest.mark.usefixtures("_blocks")
def test_a_digest_of_keys_is_that_of_all_rows_at_once():
    rows = pa.table({"video": ["b", "a", "b", "c"], "frame": pa.array([7, 1, 8, 2], pa.int32())})
    digest = hashlib.sha256(b"a\nb\nc")
    digest.update(np.array([1, 0, 1, 2], np.int64).tobytes())
    digest.update(np.array([7, 1, 8, 2], "<i4").tobytes())
    assert digest_keys(rows) == digest.hexdigest()


@pytest.mark.parametrize("kind", [pa.uint8(), pa.int32(), pa.int64(), pa.uint64()])
def test_keys_are_video_and_frame_whatever_type_a_frame_has(kind):
    rows = pa.table({"video": ["b", "a", "b"], "frame": pa.array([7, 1, 255], kind)})
    assert Vocabulary(["a", "b"]).keys(rows).tolist() == [1 << 32 | 7, 1, 1 << 32 | 255]


@pytest.mark.parametrize("rows", [0, 1, 50])
def test_names_that_do_not_occur_leave_a_dictionary_in_the_order_of_the_rows(rows):
    names = np.random.default_rng(rows).integers(0, 30, rows + 9).astype(str)
    whole = pa.chunked_array([pa.array(names).dictionary_encode()])
    part = encode_video(whole.slice(9))
    expected = part.cast(pa.string()).dictionary_encode()
    found = without_others(part)
    assert found.equals(expected)
    assert found.type == expected.type
    assert found.dictionary.equals(expected.dictionary)
