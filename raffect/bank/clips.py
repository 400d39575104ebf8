"""Clips: a sample is a stretch of a video, its feature the mean of the normalised ones in it.

A label table of clips has ``start`` and ``end``, the first and the last frame, instead of
``frame``. All else works on clips as on frames: heads, zero-shot, folds and intervals.

Shape letters: N clips, M rows of the bank in them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from raffect.bank.features import FeatureIndex, Missing, describe_samples, gather, select_labelled
from raffect.bank.format import Bank
from raffect.bank.locate import Location, locate
from raffect.bank.records import Commit
from raffect.config import count_cores
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require
from raffect.storage.keys import Vocabulary

_CHUNK = 16_384
"""Rows that are added up at a time, in float32."""


@dataclass(frozen=True)
class ClipIndex(FeatureIndex):
    """Where the features of N labelled clips are stored.

    ``y, video, frame, group`` are of the clips, and ``frame`` is a clip's first frame; ``shard``
    and ``row`` are of the M rows in them, in the order of the bank.

    Attributes:
        clip: Clip of each row, shape (M,).
        end: Last frame of each clip, shape (N,).
    """

    clip: np.ndarray
    end: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def select(self, keep: np.ndarray) -> ClipIndex:
        """Only some clips, with their videos and groups; ``keep`` is a mask of shape (N,)."""
        rows = keep[self.clip]
        return replace(
            self,
            shard=self.shard[rows],
            row=self.row[rows],
            clip=(np.cumsum(keep) - 1)[self.clip[rows]],
            end=self.end[keep],
            **self.describe_kept(keep),
        )

    def read(self, memmap: Path | None = None, threads: int | None = None) -> np.ndarray:
        """Mean of the normalised features of each clip, float16, shape (N, dim)."""
        return pool(gather(self, memmap, threads or count_cores()), self.clip, len(self))


def pool(x: np.ndarray, clip: np.ndarray, num_clips: int) -> np.ndarray:
    """Mean of the normalised rows of each clip.

    Args:
        x: Features, shape (M, dim).
        clip: Clip of each, shape (M,); every clip has a row.
        num_clips: N.

    Returns:
        float16, shape (N, dim).
    """
    total = np.zeros((num_clips, x.shape[1]), np.float32)
    order = np.argsort(clip, kind="stable")
    for start in range(0, len(order), _CHUNK):
        rows = order[start : start + _CHUNK]
        part = x[rows].astype(np.float32)
        norms = np.linalg.norm(part, axis=1, keepdims=True)
        part /= np.where(norms > 0, norms, 1)
        numbers, firsts = np.unique(clip[rows], return_index=True)
        total[numbers] += np.add.reduceat(part, firsts, axis=0)
    counts = np.bincount(clip, minlength=num_clips)
    return (total / counts[:, None]).astype(np.float16)


def find_clips(
    bank: Bank, labels: pa.Table, task: Task, split: str, *, commits: Mapping[int, Commit]
) -> ClipIndex:
    """Find the features of labelled clips; see `raffect.bank.features.find_features`.

    A clip of which planned frames are not extracted yet counts as not extracted.

    Raises:
        RaffectError: If no clip has a feature, or one is there twice.
    """
    # Keys of the ends of labelled clips
    identity = bank.require_identity()
    labels, values = select_labelled(labels, task, split, None)
    vocabulary = Vocabulary()
    location = locate(bank, vocabulary, commits)
    first = vocabulary.keys(labels)
    end = labels["end"].to_numpy().astype(np.int64)
    last = (first >> 32 << 32) | end
    _require_once(first, last, task, split, vocabulary)

    # Rows between these ends; frames are looked for in the order of their keys
    order = np.argsort(location.keys, kind="stable")
    low, count = between(location.keys[order], first, last)
    missing, keep = _missing(location, first, last, count)
    require(
        bool(keep.any()),
        f"{bank.path}: no clip of {task.name} {split} has both a label and a feature "
        f"({len(first)} are labelled); check --labels and `raffect bank info`",
    )
    low, count, labels = low[keep], count[keep], labels.filter(pa.array(keep))
    place = np.repeat(low - (np.cumsum(count) - count), count) + np.arange(count.sum())
    rows, clip = order[place], np.repeat(np.arange(len(count)), count)
    by_bank = np.argsort(rows, kind="stable")
    rows, clip = rows[by_bank], clip[by_bank]

    shard = location.shard[rows]
    return ClipIndex(
        bank=bank,
        dim=identity.dim,
        shard=shard,
        row=location.row[rows],
        commits={number: commits[number] for number in np.unique(shard).tolist()},
        y=values[keep],
        **describe_samples(first[keep], labels, vocabulary),
        missing=missing,
        clip=clip,
        end=end[keep].astype(np.int32),
    )


def _require_once(
    first: np.ndarray, last: np.ndarray, task: Task, split: str, vocabulary: Vocabulary
) -> None:
    pairs, counts = np.unique(np.stack([first, last]), axis=1, return_counts=True)
    if (counts > 1).any():
        key, end = pairs[:, counts.argmax()].tolist()
        name = f"{vocabulary.names[key >> 32]} {key & 0xFFFFFFFF}-{end & 0xFFFFFFFF}"
        raise RaffectError(f"{task.name} labels name a clip of {split} twice, first {name}")


def between(keys: np.ndarray, first: np.ndarray, last: np.ndarray) -> tuple[np.ndarray, ...]:
    """First place in ascending ``keys`` that is in each range, and how many are."""
    low = np.searchsorted(keys, first, side="left")
    return low, np.maximum(np.searchsorted(keys, last, side="right") - low, 0)


def _missing(
    location: Location, first: np.ndarray, last: np.ndarray, count: np.ndarray
) -> tuple[Missing, np.ndarray]:
    """Clips without a feature, by reason, and which clips have one."""
    waiting, rejected = (
        between(np.sort(keys), first, last)[1] > 0
        for keys in (location.not_extracted, location.rejected)
    )
    keep, is_empty = (count > 0) & ~waiting, (count == 0) & ~waiting
    is_rejected = is_empty & rejected
    missing = Missing(
        no_image=int((is_empty & ~rejected).sum()),
        rejected=int(is_rejected.sum()),
        not_extracted=int(waiting.sum()),
    )
    return missing, keep
