"""Every planned frame of a bank in the order of video and frame, labelled or not.

A bank that was extended has frames of one video in shards of several generations; each generation
is sorted, so that going through all frames in this order opens few shards at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raffect.bank.format import Bank
from raffect.bank.locate import locate
from raffect.bank.records import Commit, Identity
from raffect.storage.keys import Vocabulary, is_ascending


@dataclass(frozen=True)
class FramesInOrder:
    """N frames of a bank that were read or rejected, sorted by video, then frame.

    Attributes:
        bank: The bank.
        identity: Its encoder.
        commits: Record of each shard.
        videos: Names of videos, sorted.
        key: ``video << 32 | frame``, ascending, int64, shape (N,).
        shard: Shard of each frame, int32, shape (N,); -1 for one that could not be read.
        row: Its row in the shard, int32, shape (N,).
        not_extracted: Planned frames that are not here, since their shard is not committed, or is
            damaged or gone.
    """

    bank: Bank
    identity: Identity
    commits: Mapping[int, Commit]
    videos: list[str]
    key: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    not_extracted: int

    def __len__(self) -> int:
        return len(self.key)

    def describe_incomplete(self) -> str:
        """``1,024 of 8,000 frames``; empty for a complete bank."""
        if not self.not_extracted:
            return ""
        return f"{self.not_extracted:,} of {len(self) + self.not_extracted:,} frames"

    def table(self, start: int, stop: int) -> pa.Table:
        """``video, frame, status`` of some of them; the status is ``ok`` or ``unreadable``."""
        key, is_bad = self.key[start:stop], self.shard[start:stop] < 0
        video = key >> 32
        first, last = (int(video[0]), int(video[-1])) if len(video) else (0, -1)
        names = pa.array(self.videos[first : last + 1], pa.string())
        return pa.table(
            {
                "video": names.take(pa.array(video - first)),
                "frame": (key & 0xFFFFFFFF).astype(np.int32),
                "status": pa.array(["ok", "unreadable"]).take(pa.array(is_bad.astype(np.int8))),
            }
        )

    def name(self, place: int) -> str:
        """``video frame 12``: one of them, for an error."""
        key = int(self.key[place])
        return f"{self.videos[key >> 32]} frame {key & 0xFFFFFFFF}"


def frames_in_order(bank: Bank, commits: Mapping[int, Commit] | None = None) -> FramesInOrder:
    """Find every frame of a bank; features are not read.

    Args:
        bank: The bank.
        commits: The result of `Bank.read_commits`, by default of now.

    Raises:
        RaffectError: If nothing is extracted yet, or plan and records do not fit each other.
    """
    identity = bank.require_identity()
    commits = bank.read_commits() if commits is None else commits
    vocabulary = Vocabulary()
    found = locate(bank, vocabulary, commits)

    # Videos by name
    rank = np.empty(len(vocabulary.names), np.int64)
    by_name = sorted(range(len(rank)), key=vocabulary.names.__getitem__)
    rank[by_name] = np.arange(len(rank))

    # Frames that were read, and those that were not
    key = np.concatenate([found.keys, found.rejected])
    rejected = np.full(len(found.rejected), -1, np.int32)
    shard, row = np.concatenate([found.shard, rejected]), np.concatenate([found.row, rejected])
    if by_name != list(range(len(rank))):
        key = (rank[key >> 32] << 32) | (key & 0xFFFFFFFF)
    if not is_ascending(key):  # as a bank of one generation is
        order = np.argsort(key, kind="stable")
        key, shard, row = key[order], shard[order], row[order]
    return FramesInOrder(
        bank=bank,
        identity=identity,
        commits=commits,
        videos=[vocabulary.names[number] for number in by_name],
        key=key,
        shard=shard,
        row=row,
        not_extracted=len(found.not_extracted),
    )
