"""Windows: a sample is T features, around a labelled frame or evenly spread over a clip.

A window is of one video. Around a frame it goes by frame number: a frame that the bank lacks, since
it was never there, could not be read or lies before the first or behind the last of its video,
stays a gap. Frames around a labelled one need no label. Each feature is read once, however many
windows it is in.

Shape letters: N samples, M features, F frames of the bank, T features of a window.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from raffect.bank.clips import ClipIndex, between
from raffect.bank.features import FeatureIndex
from raffect.bank.in_order import FramesInOrder
from raffect.bank.locate import locate
from raffect.storage.keys import Vocabulary, positions


class Window(NamedTuple):
    """How many features a sample has, and how many frames one is from the next.

    Features of a window around frame f are those of frames ``f + (k - length // 2) * stride`` for k
    from 0 to ``length - 1``. In a clip they are evenly spread, and ``stride`` has no meaning.
    """

    length: int = 1
    stride: int = 1

    @property
    def reach(self) -> int:
        """Frames from the one that a window is around to its farthest one."""
        return self.length // 2 * self.stride


@dataclass(frozen=True)
class WindowIndex(FeatureIndex):
    """Where the features of N windows are stored.

    ``y, video, frame, group`` are of the N samples, in the order that they have as single features;
    ``shard`` and ``row`` are of the M features that any window has, in the order of the bank, and
    `read` gives those.

    Attributes:
        window: Number of each feature of a window among the M, int32, shape (N, T); -1 for one
            that the bank lacks.
    """

    window: np.ndarray

    def __len__(self) -> int:
        return len(self.y)

    def select(self, keep: np.ndarray) -> WindowIndex:
        """Only some samples, with the features, videos and groups that these need."""
        window = self.window[keep]
        used, window = renumber(window, len(self.shard))
        return replace(
            self,
            shard=self.shard[used],
            row=self.row[used],
            window=window,
            **self.describe_kept(keep),
        )

    def name_of(self, feature: int) -> str:
        """Which frame feature number ``feature`` of the M is of, for an error."""
        vocabulary = Vocabulary()
        found = locate(self.bank, vocabulary, self.commits)
        is_it = (found.shard == self.shard[feature]) & (found.row == self.row[feature])
        key = int(found.keys[is_it.argmax()])
        return f"{vocabulary.names[key >> 32]} frame {key & 0xFFFFFFFF}"

    @property
    def fullest(self) -> int:
        """Most features that any window has."""
        return int((self.window >= 0).sum(1).max())


def find_windows(index: FeatureIndex, frames: FramesInOrder, window: Window) -> WindowIndex:
    """Windows of samples.

    Args:
        index: The samples: labelled frames, or labelled clips.
        frames: All frames of the same bank, of the same commits.
        window: Their shape.
    """
    # Frames that were read, and where in them each window finds its features
    is_read = frames.shard >= 0
    keys, shard, row = frames.key[is_read], frames.shard[is_read], frames.row[is_read]
    centre = _keys_of(index, frames)
    if isinstance(index, ClipIndex):
        last = (centre >> 32 << 32) | index.end
        places = spread(centre, last, keys, window.length)
    else:
        places = around(centre, keys, window)

    # Each of them once, in the order of the bank
    used, places = renumber(places, len(keys))
    order = np.lexsort((row[used], shard[used]))
    number = np.full(len(used) + 1, -1, np.int32)
    number[order] = np.arange(len(used), dtype=np.int32)
    base = {item.name: getattr(index, item.name) for item in fields(FeatureIndex)}
    shard, row = shard[used][order].astype(np.int64), row[used][order].astype(np.int64)
    commits = {one: frames.commits[one] for one in np.unique(shard).tolist()}
    base |= {"shard": shard, "row": row, "commits": commits}
    return WindowIndex(**base, window=number[places])


def around(centre: np.ndarray, among: np.ndarray, window: Window) -> np.ndarray:
    """Places of the features of windows around frames.

    Args:
        centre: ``video << 32 | frame`` of the frames, shape (N,), in any order.
        among: The same of the frames that there are, ascending, shape (F,).
        window: Its shape.

    Returns:
        Places in ``among``, int32, shape (N, T); -1 for a frame that is not there.
    """
    # A frame number below 1 or above the last becomes a key that no video has: frame numbers fill
    # half of their 32 bits. Ascending keys are searched many times faster.
    order = np.argsort(centre, kind="stable")
    ascending = centre[order]
    out = np.empty((len(centre), window.length), np.int32)
    for k in range(window.length):
        shift = (k - window.length // 2) * window.stride
        out[order, k] = positions(ascending + shift, among)
    return out


def spread(first: np.ndarray, last: np.ndarray, among: np.ndarray, length: int) -> np.ndarray:
    """Places of evenly spread features of clips: the middle one of each of T equal parts.

    Args:
        first: ``video << 32 | frame`` of the first frame of each clip, shape (N,).
        last: Of its last frame.
        among: The same of the frames that there are, ascending, shape (F,).
        length: T.

    Returns:
        Places in ``among``, int32, ascending, shape (N, T). A clip of fewer frames has each of them
        once, and then -1.
    """
    low, count = between(among, first, last)
    low, count = low[:, None], count[:, None]
    k = np.arange(length)
    few = np.where(k < count, k, -1 - low)
    return (low + np.where(count > length, (2 * k + 1) * count // (2 * length), few)).astype(
        np.int32
    )


def _keys_of(index: FeatureIndex, frames: FramesInOrder) -> np.ndarray:
    """Key of each sample's frame, or of its clip's first one, by the numbers of ``frames``."""
    number_of = {name: number for number, name in enumerate(frames.videos)}
    numbers = np.array([number_of[name] for name in index.videos], np.int64)
    return (numbers[index.video] << 32) | index.frame.astype(np.int64)


def renumber(window: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers below ``size`` that occur in windows, ascending, and these by place among them.

    A number -1 stays -1.
    """
    # The last place of each table is what -1 points at.
    occurs = np.zeros(size + 1, bool)
    occurs[window] = True
    used = np.flatnonzero(occurs[:-1])
    number = np.full(size + 1, -1, np.int32)
    number[used] = np.arange(len(used), dtype=np.int32)
    return used, number[window]
