"""(video, frame) as one int64, so that joins of millions of rows are sorts and searches.

A `Vocabulary` gives each video name a number; the key is ``number << 32 | frame``. Keys of two
tables can be compared only if they were made with the same vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import pyarrow as pa

_AT_ONCE = 1 << 20
"""Rows that are worked on at a time, so that no list is copied whole."""


def is_utf8(name: str) -> bool:
    """Whether a file name can be stored as text; Python puts surrogates into one that cannot."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class Vocabulary:
    """Numbers for video names, in the order in which names first come up."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.names: list[str] = []
        self._number: dict[str, int] = {}
        for name in names:
            self.number(name)

    def number(self, name: str) -> int:
        """The number of ``name``, which gets a new one if it is not known yet."""
        number = self._number.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        return number

    def keys(self, table: pa.Table) -> np.ndarray:
        """Keys of a table with columns ``video`` and ``frame``: int64, shape (rows,)."""
        video = encode_video(table["video"])
        numbers = np.array([self.number(name) for name in video.dictionary.to_pylist()], np.int64)
        codes = video.indices.to_numpy(zero_copy_only=False)
        if not len(codes):
            return np.empty(0, np.int64)
        # In place: a list of frames may be so long that no second array of it fits.
        keys = (numbers << 32)[codes]
        frame = table["frame"].to_numpy()
        return np.bitwise_or(keys, frame, out=keys, dtype=np.int64, casting="unsafe")


def encode_video(column: pa.ChunkedArray) -> pa.DictionaryArray:
    """A string or dictionary column as one dictionary array."""
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    column = column.unify_dictionaries()
    if column.num_chunks == 1:
        return column.chunk(0)
    if column.num_chunks == 0:
        return pa.array([], pa.dictionary(pa.int32(), pa.string()))
    return pa.concat_arrays(column.chunks)


def without_others(column: pa.DictionaryArray) -> pa.DictionaryArray:
    """The same rows, with the names that occur alone, as text in the order of their first row."""
    codes = column.indices
    used = codes.unique()
    number = np.empty(len(column.dictionary), np.int32)
    number[used.to_numpy(zero_copy_only=False)] = np.arange(len(used), dtype=np.int32)
    indices = number[codes.to_numpy(zero_copy_only=False)]
    return pa.DictionaryArray.from_arrays(indices, column.dictionary.take(used).cast(pa.string()))


def of_each_name(column: pa.ChunkedArray, find: Callable[[str], Any], dtype: Any) -> np.ndarray:
    """What ``find`` makes of the name in each row, asked once a name: shape (rows,)."""
    names = encode_video(column)
    found = np.array([find(name) for name in names.dictionary.to_pylist()], dtype)
    return found[names.indices.to_numpy(zero_copy_only=False)]


def positions(keys: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Index of each key in the sorted array ``among``.

    Args:
        keys: int64, shape (N,).
        among: int64, ascending, shape (M,).

    Returns:
        Shape (N,); -1 for a key that ``among`` lacks. int32 where indices fit, else int64.
    """
    out = np.full(len(keys), -1, np.int32 if len(among) < 1 << 31 else np.int64)
    for start in range(0, len(keys) if len(among) else 0, _AT_ONCE):
        part = keys[start : start + _AT_ONCE]
        found = np.minimum(np.searchsorted(among, part), len(among) - 1)
        out[start : start + _AT_ONCE] = np.where(among[found] == part, found, -1)
    return out


def absent(keys: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Which keys the array ``among``, in any order, lacks: bool, shape (N,)."""
    # numpy's set functions hash, which takes ten times as long.
    return positions(keys, among if is_ascending(among) else np.sort(among)) < 0


def is_ascending(keys: np.ndarray) -> bool:
    """Whether no key is smaller than the one before it."""
    return first_not_above(keys, np.less) is None


def first_not_above(keys: np.ndarray, below: np.ufunc = np.less_equal) -> int | None:
    """Index of the first key that is not above the one before it; None if there is no such key."""
    for start in range(1, len(keys), _AT_ONCE):
        stop = min(start + _AT_ONCE, len(keys))
        wrong = below(keys[start:stop], keys[start - 1 : stop - 1])
        if wrong.any():
            return start + int(wrong.argmax())
    return None


def digest_keys(table: pa.Table) -> str:
    """SHA-256 of the (video, frame) rows in order; paths do not count, so images may be moved."""
    # Names are numbered alphabetically, since a dictionary may list them in any order.
    video = encode_video(table["video"])
    names = video.dictionary.to_pylist()
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    digest = hashlib.sha256("\n".join(names[i] for i in order).encode())
    if len(table):
        codes, frame = video.indices.to_numpy(zero_copy_only=False), table["frame"].to_numpy()
        for start in range(0, len(codes), _AT_ONCE):
            digest.update(rank[codes[start : start + _AT_ONCE]].tobytes())
        for start in range(0, len(frame), _AT_ONCE):
            digest.update(frame[start : start + _AT_ONCE].astype("<i4").tobytes())
    return digest.hexdigest()
