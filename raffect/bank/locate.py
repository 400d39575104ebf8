"""Where every frame of a bank is: which row of which shard, from its plan and rejects alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from raffect.bank.format import Bank
from raffect.bank.records import Commit
from raffect.errors import RaffectError
from raffect.storage.keys import Vocabulary, positions


@dataclass(frozen=True)
class Location:
    """Where every extracted frame is, in the order of the bank, and the keys of the other frames.

    Attributes:
        keys: Key of each extracted frame.
        shard: Its shard, int32.
        row: Its row in the shard, int32.
        rejected: Keys of frames that could not be read.
        not_extracted: Keys of planned frames whose shard is not committed.
    """

    keys: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    rejected: np.ndarray
    not_extracted: np.ndarray


def locate(bank: Bank, vocabulary: Vocabulary, commits: Mapping[int, Commit]) -> Location:
    """Find every frame of a bank from its plan and its rejects alone.

    Args:
        bank: The bank.
        vocabulary: Numbers videos for the keys.
        commits: The result of `Bank.read_commits`.

    Raises:
        RaffectError: If plan, records and rejects do not fit each other.
    """
    # Which planned frames are committed
    plan = bank.plan
    keys, lengths = vocabulary.keys(plan.table), np.diff(plan.offsets)
    is_committed = np.repeat(np.isin(np.arange(plan.num_shards), list(commits)), lengths)
    for number, record in commits.items():
        if number >= plan.num_shards or record.rows + record.rejects != lengths[number]:
            what = f"shard {number:06d} does not fit the plan"
            raise RaffectError(f"{bank.path}: {what}; run `raffect bank verify`")

    # A shard holds its planned frames in order, without the rejects.
    listed = np.sort(vocabulary.keys(bank.read_rejects(commits.values())))
    is_rejected = positions(keys, listed) >= 0
    keep = is_committed & ~is_rejected
    kept = np.add.reduceat(keep, plan.offsets[:-1], dtype=np.int64) if len(keep) else lengths
    for number, record in commits.items():
        if kept[number] != record.rows:
            what = f"rejects of shard {number:06d} are not frames of it"
            raise RaffectError(f"{bank.path}: {what}; run `raffect bank verify`")
    return Location(
        keys=keys if keep.all() else keys[keep],
        shard=np.repeat(np.arange(plan.num_shards, dtype=np.int32), kept),
        row=_count_up(kept),
        rejected=keys[is_committed & is_rejected],
        not_extracted=keys[~is_committed],
    )


def _count_up(lengths: np.ndarray) -> np.ndarray:
    """``0, 1 ... n - 1`` for each n, one behind another, int32."""
    lengths = lengths[lengths > 0]
    steps = np.ones(lengths.sum(), np.int32)
    starts = np.cumsum(lengths) - lengths
    steps[starts] = 1 - np.concatenate([[1], lengths[:-1]])[: len(lengths)]
    return np.cumsum(steps, out=steps, dtype=np.int32)
