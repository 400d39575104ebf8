"""Groups that frames belong to: videos, subjects or pictures, or blocks of them where many."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa

from raffect.storage.keys import encode_video

MOST_GROUPS = 1000
"""Most groups that statistics are kept of; more of them (pictures, clips) are put into blocks."""
_BLOCK = re.compile(r"block [0-9]{3}")


def read_groups(
    labels: pa.Table, video: np.ndarray, videos: list[str]
) -> tuple[np.ndarray, list[str]]:
    """Group of each row, and the names of groups."""
    if "group" in labels.column_names:
        column = encode_video(labels["group"])
        numbers = column.indices.to_numpy(zero_copy_only=False)
        group, groups = drop_unused(numbers, column.dictionary.to_pylist())
    else:
        group, groups = video, videos
    if len(groups) <= MOST_GROUPS:
        return group, groups
    blocks, number = np.unique([block_of(name) for name in groups], return_inverse=True)
    return drop_unused(number[group], blocks.tolist())


def block_of(group: str) -> str:
    """Name of the block that holds a group, where there are more than `MOST_GROUPS`.

    It follows from the group's own name, whatever other groups there are.
    """
    return f"block {_hash(group) % MOST_GROUPS:03d}"


def are_blocks(groups: Iterable[str]) -> bool:
    """Whether these are names of blocks, not of single groups."""
    return all(_BLOCK.fullmatch(name) for name in groups)


def _hash(name: str) -> int:
    return int(hashlib.sha256(name.encode()).hexdigest()[:8], 16)


def drop_unused(number: np.ndarray, names: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    """Numbers and names, without the names that do not occur."""
    kept = np.flatnonzero(np.bincount(number, minlength=len(names)))
    new = np.empty(len(names), np.int32)
    new[kept] = np.arange(len(kept), dtype=np.int32)
    return new[number], [names[k] for k in kept.tolist()]
