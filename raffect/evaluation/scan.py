"""Go once through all frames of a bank in order, with what ensembles predict for each.

Each shard is read once, by threads that are a little ahead. Where all heads read single features,
those of a shard are predicted and dropped, and its scores are kept until the last of its frames had
its turn. Heads of windows need the features of the frames around, so that these are kept as long,
and frames are predicted block by block. Either way these are two or three shards in a bank of one
generation, and a few for each generation in one that was extended: memory follows neither the
number of frames nor the length of a video.

Shape letters: N frames, C outputs of all tasks together, D length of a feature.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol

import numpy as np
import pyarrow as pa

from raffect.bank.features import read_shard_features
from raffect.bank.in_order import FramesInOrder
from raffect.bank.windows import Window, around, renumber
from raffect.config import count_cores
from raffect.errors import RaffectError
from raffect.evaluation.ensemble import Ensemble
from raffect.evaluation.inputs import Inputs
from raffect.predictions.columns import Predicted
from raffect.predictions.table import ROWS
from raffect.runs.read_samples import first_not_finite

_READ_AHEAD = 65_536
"""Most rows of the shards that are read ahead; one shard at least."""
_BLOCK = 4_096
"""Frames that heads of windows predict together."""

Part = tuple[pa.Table, dict[str, Predicted]]
"""``video, frame, status`` of some frames, and what was predicted for them by the task's name."""


def predict_frames(
    frames: FramesInOrder, ensembles: Sequence[Ensemble], rows: int = ROWS
) -> Iterator[Part]:
    """Predict every frame, part by part.

    A window of decision rules goes by frame number, over the ends of parts, and never across
    videos. A frame that could not be read has no scores, and is in no window.

    Args:
        frames: Of `raffect.bank.in_order.frames_in_order`.
        ensembles: Of one task each.
        rows: Frames of a part.

    Raises:
        RaffectError: If a shard is damaged, or a feature is not finite.
    """

    widest = max(max(one.rules.windows) for one in ensembles)
    with ThreadPoolExecutor(count_cores()) as pool:
        found = _scores_in_order(frames, ensembles, pool)
        for start in range(0, len(frames), rows):
            stop = min(start + rows, len(frames))
            # With the frames around them that their windows reach
            first = int(np.searchsorted(frames.key, frames.key[start] - widest, "left"))
            last = int(np.searchsorted(frames.key, frames.key[stop - 1] + widest, "right"))
            scores = found.take(first, last)
            part = slice(start - first, stop - first)
            predicted, column = {}, 0
            for one in ensembles:
                own = scores[:, column : column + len(one.task.outputs)]
                predicted[one.task.name] = _decide(one, own, frames.key[first:last], part)
                column += len(one.task.outputs)
            yield frames.table(start, stop), predicted


def _decide(ensemble: Ensemble, scores: np.ndarray, key: np.ndarray, part: slice) -> Predicted:
    """Smooth the scores of some frames and decide part of them.

    Args:
        ensemble: Of the task.
        scores: Shape (N, C), NaN where a frame could not be read.
        key: ``video << 32 | frame`` of each. Taken for frame numbers, those of two videos are too
            far apart for any window.
        part: Which of them are wanted.
    """
    readable = ~np.isnan(scores).any(axis=1)
    smoothed = np.full(scores.shape, np.nan, np.float32)
    smoothed[readable] = ensemble.rules.smooth(scores[readable], key[readable])
    return Predicted(smoothed[part], ensemble.rules.decide(smoothed[part]))


def _score(
    ensembles: Sequence[Ensemble], inputs: np.ndarray | Mapping[Window, Inputs]
) -> np.ndarray:
    """Scores of all tasks side by side, float32, shape (N, C)."""
    return np.concatenate([one.scores(inputs) for one in ensembles], axis=1)


def _count_columns(ensembles: Sequence[Ensemble]) -> int:
    """C."""
    return sum(len(one.task.outputs) for one in ensembles)


class _Scores(Protocol):
    """Scores of frames in order."""

    def take(self, start: int, stop: int) -> np.ndarray:
        """Scores of frames ``start`` to ``stop``: float32, NaN where a frame could not be read.

        ``start`` never goes back: what lies before it is dropped.
        """
        ...


def _scores_in_order(
    frames: FramesInOrder, ensembles: Sequence[Ensemble], pool: ThreadPoolExecutor
) -> _Scores:
    windows = list(dict.fromkeys(window for one in ensembles for window in one.windows))
    if windows == [Window()]:
        kept = np.empty((0, _count_columns(ensembles)), np.float32)
        return _Shards(frames, partial(_score, ensembles), kept, pool)
    return _WindowScores(frames, ensembles, windows, pool)


class _WindowScores:
    """Scores of frames in order, of which some heads read windows.

    Args:
        frames: All frames.
        ensembles: Of one task each.
        windows: Shapes of samples that these read.
        pool: Reads.
    """

    def __init__(
        self,
        frames: FramesInOrder,
        ensembles: Sequence[Ensemble],
        windows: Sequence[Window],
        pool: ThreadPoolExecutor,
    ) -> None:
        self._frames, self._ensembles, self._windows = frames, ensembles, windows
        self._columns = _count_columns(ensembles)
        self._reach = max(window.reach for window in windows)
        kept = np.empty((0, frames.identity.dim), np.float16)
        self._shards = _Shards(frames, lambda features: features, kept, pool)
        # Blocks that may still be asked for, and where the first one begins
        self._blocks: deque[np.ndarray] = deque()
        self._first = self._done = 0

    def take(self, start: int, stop: int) -> np.ndarray:
        """See `_Scores.take`."""
        while self._done < stop:
            block = self._score_block(self._done, min(self._done + _BLOCK, len(self._frames)))
            self._blocks.append(block)
            self._done += len(block)
        while self._first + len(self._blocks[0]) <= start:
            self._first += len(self._blocks.popleft())
        return np.concatenate(self._blocks)[start - self._first : stop - self._first]

    def _score_block(self, start: int, stop: int) -> np.ndarray:
        """Scores of some frames, from the features of all that their windows have."""
        # Frames that can be read, and those that windows around them reach
        key, is_read = self._frames.key, self._frames.shard[start:stop] >= 0
        out = np.full((stop - start, self._columns), np.nan, np.float32)
        if not is_read.any():
            return out
        low = int(np.searchsorted(key, key[start] - self._reach, "left"))
        high = int(np.searchsorted(key, key[stop - 1] + self._reach, "right"))
        centre = key[start:stop][is_read]
        places = [around(centre, key[low:high], window) for window in self._windows]

        # Their features, each once; a frame that could not be read is NaN, as one that is not there
        used, rows = renumber(np.concatenate(places, axis=1), high - low)
        self._shards.forget(low)
        features = self._shards.gather(low + used)
        ends = np.cumsum([window.length for window in self._windows])
        parts = np.split(rows, ends[:-1], axis=1)
        inputs = {
            window: Inputs(features, part)
            for window, part in zip(self._windows, parts, strict=True)
        }
        out[is_read] = _score(self._ensembles, inputs)
        return out


class _Shards:
    """What is made of the features of frames, in order, from shards that are read once each.

    Args:
        frames: All frames.
        make: Features of a shard to what is kept of them, a row each.
        kept: No row of it.
        pool: Reads.
    """

    def __init__(
        self,
        frames: FramesInOrder,
        make: Callable[[np.ndarray], np.ndarray],
        kept: np.ndarray,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._frames, self._make, self._kept, self._pool = frames, make, kept, pool
        # Shards in the order of their first frames, and where the last frame of each is
        shards, first = np.unique(frames.shard, return_index=True)
        _, from_end = np.unique(frames.shard[::-1], return_index=True)
        self._coming = deque(n for n in shards[np.argsort(first)].tolist() if n >= 0)
        self._last = dict(zip(shards.tolist(), len(frames) - 1 - from_end, strict=True))
        self._reading: deque[tuple[int, Future[np.ndarray]]] = deque()
        self._open: dict[int, np.ndarray] = {}
        self._ahead = max(1, _READ_AHEAD // max(frames.bank.plan.shard_rows, 1))

    def take(self, start: int, stop: int) -> np.ndarray:
        """See `_Scores.take`."""
        self.forget(start)
        return self.gather(np.arange(start, stop))

    def forget(self, before: int) -> None:
        """Drop what is kept of frames before one, which are not asked for any more."""
        for number in [n for n in self._open if self._last[n] < before]:
            del self._open[number]

    def gather(self, places: np.ndarray) -> np.ndarray:
        """A row for each of some frames, NaN where it could not be read."""
        out = np.full((len(places), self._kept.shape[1]), np.nan, self._kept.dtype)
        shard, row = self._frames.shard[places], self._frames.row[places]
        order = np.argsort(shard, kind="stable")
        numbers, begins = np.unique(shard[order], return_index=True)
        for number, some in zip(numbers.tolist(), np.split(order, begins[1:]), strict=True):
            if number >= 0:
                out[some] = self._made_of(number)[row[some]]
        return out

    def _made_of(self, number: int) -> np.ndarray:
        """What is made of a shard; the others that come before it are read as well."""
        while number not in self._open:
            self._read_ahead()
            ready, reading = self._reading.popleft()
            features = reading.result()
            self._require_finite(ready, features)
            self._open[ready] = self._make(features)
        return self._open[number]

    def _read_ahead(self) -> None:
        bank, commits = self._frames.bank, self._frames.commits
        dim = self._frames.identity.dim
        while self._coming and len(self._reading) <= self._ahead:
            number = self._coming.popleft()
            job = self._pool.submit(read_shard_features, bank, commits[number], dim)
            self._reading.append((number, job))

    def _require_finite(self, number: int, features: np.ndarray) -> None:
        if (row := first_not_finite(features)) is None:
            return
        place = (self._frames.shard == number) & (self._frames.row == row)
        frame = self._frames.name(int(place.argmax()))
        raise RaffectError(
            f"{self._frames.bank.path}: the feature of {frame} is not finite, and perhaps others; "
            "encode with --encoder.precision float32 into a new bank"
        )
