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
        return (numbers[codes] << 32) | table["frame"].to_numpy().astype(np.int64)


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
        int64, shape (N,); -1 for a key that ``among`` lacks.
    """
    if not len(among):
        return np.full(len(keys), -1, np.int64)
    found = np.minimum(np.searchsorted(among, keys), len(among) - 1)
    return np.where(among[found] == keys, found, -1)


def absent(keys: np.ndarray, among: np.ndarray) -> np.ndarray:
    """Which keys the array ``among``, in any order, lacks: bool, shape (N,)."""
    # numpy's set functions hash, which takes ten times as long.
    return positions(keys, np.sort(among)) < 0


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
        digest.update(rank[video.indices.to_numpy(zero_copy_only=False)].tobytes())
        digest.update(table["frame"].to_numpy().astype("<i4").tobytes())
    return digest.hexdigest()
