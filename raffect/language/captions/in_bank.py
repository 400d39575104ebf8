"""Which frames of a bank rows of a table have: a caption is learnt from features that are there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raffect.bank.clips import between
from raffect.bank.format import Bank
from raffect.bank.locate import Location, locate
from raffect.language.captions.captioned import ends_of
from raffect.storage.keys import Vocabulary, of_each_name

Ranges = tuple[np.ndarray, np.ndarray]
"""Lowest and highest key of each row, int64, shape (N,)."""


@dataclass(frozen=True)
class BankFrames:
    """All frames of a bank's plan.

    Attributes:
        vocabulary: Numbers the videos of the plan.
        location: Where each frame is.
    """

    vocabulary: Vocabulary
    location: Location

    def find_known(self, table: pa.Table) -> np.ndarray:
        """Which rows are of a video of the plan: bool, shape (N,)."""
        return self._numbers(table) >= 0

    def count(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """Frames of each row that are extracted, and that are not yet: int64, shape (N,) each."""
        ranges, found = self._ranges(table), self.location
        return _count(found.keys, ranges), _count(found.not_extracted, ranges)

    def ends_of_videos(self, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
        """First and last planned frame of each row's video, int64, shape (N,); 0 if unknown."""
        found = self.location
        keys = np.sort(np.concatenate([found.keys, found.rejected, found.not_extracted]))
        number = self._numbers(table)
        first = np.searchsorted(keys, number << 32)
        last = np.searchsorted(keys, (number + 1) << 32) - 1
        known = number >= 0
        frames = keys & 0xFFFFFFFF
        return np.where(known, frames[first * known], 0), np.where(known, frames[last * known], 0)

    def _numbers(self, table: pa.Table) -> np.ndarray:
        """Number of the video of each row, -1 for one that the plan lacks."""
        known = {name: number for number, name in enumerate(self.vocabulary.names)}
        return of_each_name(table["video"], lambda name: known.get(name, -1), np.int64)

    def _ranges(self, table: pa.Table) -> Ranges:
        """Keys of the ends of each row; a video that the plan lacks has none in it."""
        first, last = ends_of(table)
        number = self._numbers(table) << 32
        return number | first, number | last


def find_frames(bank: Bank) -> BankFrames:
    """All frames of a bank.

    Raises:
        RaffectError: If plan, records and rejects do not fit each other.
    """
    vocabulary = Vocabulary()
    return BankFrames(vocabulary, locate(bank, vocabulary, bank.read_commits()))


def _count(keys: np.ndarray, ranges: Ranges) -> np.ndarray:
    return between(np.sort(keys), *ranges)[1]
