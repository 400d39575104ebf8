"""Whether two banks have the same labelled frames, so that heads on them can be compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from raffect.bank.features import FeatureIndex
from raffect.errors import RaffectError

Frames = Mapping[str, Mapping[str, np.ndarray]]
"""By split and video the numbers of frames (or first frames of clips), ascending."""


def list_frames(splits: Mapping[str, FeatureIndex]) -> Frames:
    """Labelled frames that have a feature."""
    return {split: dict(_iter_videos(index)) for split, index in splits.items()}


def _iter_videos(index: FeatureIndex) -> Iterator[tuple[str, np.ndarray]]:
    order = np.lexsort((index.frame, index.video))
    ends = np.flatnonzero(np.diff(index.video[order])) + 1
    for rows in np.split(order, ends):
        yield index.videos[index.video[rows[0]]], index.frame[rows]


def require_same_frames(one: tuple[Path, Frames], two: tuple[Path, Frames]) -> None:
    """Refuse banks whose heads would learn from, or be judged on, different frames.

    Args:
        one: A bank, and what `list_frames` gives of it.
        two: Another one, with the same splits.

    Raises:
        RaffectError: Counts the frames that one of them lacks, and names the first one.
    """
    for split in one[1]:
        for (has, there), (lacks, here) in ((one, two), (two, one)):
            lacking = {
                video: absent
                for video, frames in sorted(there[split].items())
                if len(absent := np.setdiff1d(frames, here[split].get(video, [])))
            }
            if lacking:
                video, absent = next(iter(lacking.items()))
                raise RaffectError(
                    f"{lacks}: lacks {sum(map(len, lacking.values())):,} labelled {split} frames "
                    f"that {has} has, first {video} frame {absent[0]}; banks are compared on the "
                    "same frames alone: `raffect extract` them, or leave one bank out"
                )
