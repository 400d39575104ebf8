"""Go once through all frames of a bank in order, with what ensembles predict for each.

Each shard is read once, by threads that are a little ahead, and its features are dropped as soon as
they are predicted. The scores of a shard are kept until the last of its frames had its turn: in a
bank of one generation those of two or three shards, in one that was extended of a few for each
generation. So memory follows neither the number of frames nor the length of a video.

Shape letters: N frames, C outputs of all tasks together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pyarrow as pa

from raffect.bank.features import read_shard_features
from raffect.bank.in_order import FramesInOrder
from raffect.config import count_cores
from raffect.errors import RaffectError
from raffect.evaluation.ensemble import Ensemble
from raffect.predictions.columns import Predicted
from raffect.predictions.table import ROWS
from raffect.runs.data import first_not_finite

_READ_AHEAD = 65_536
"""Most rows of the shards that are read ahead; one shard at least."""

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

    def score(features: np.ndarray) -> np.ndarray:
        return np.concatenate([one.scores(features) for one in ensembles], axis=1)

    widest = max(max(one.rules.windows) for one in ensembles)
    columns = sum(len(one.task.outputs) for one in ensembles)
    with ThreadPoolExecutor(count_cores()) as pool:
        shards = _ScoredShards(frames, score, columns, pool)
        for start in range(0, len(frames), rows):
            stop = min(start + rows, len(frames))
            # With the frames around them that their windows reach
            first = int(np.searchsorted(frames.key, frames.key[start] - widest, "left"))
            last = int(np.searchsorted(frames.key, frames.key[stop - 1] + widest, "right"))
            scores = shards.take(first, last)
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


class _ScoredShards:
    """Scores of frames in order, from shards that are read once each.

    Args:
        frames: All frames.
        score: Features of a shard to scores, shape (rows, C).
        columns: C.
        pool: Reads.
    """

    def __init__(
        self,
        frames: FramesInOrder,
        score: Callable[[np.ndarray], np.ndarray],
        columns: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._frames, self._score, self._columns, self._pool = frames, score, columns, pool
        # Shards in the order of their first frames, and where the last frame of each is
        shards, first = np.unique(frames.shard, return_index=True)
        _, from_end = np.unique(frames.shard[::-1], return_index=True)
        self._coming = deque(n for n in shards[np.argsort(first)].tolist() if n >= 0)
        self._last = dict(zip(shards.tolist(), len(frames) - 1 - from_end, strict=True))
        self._reading: deque[tuple[int, Future[np.ndarray]]] = deque()
        self._open: dict[int, np.ndarray] = {}
        self._ahead = max(1, _READ_AHEAD // max(frames.bank.plan.shard_rows, 1))

    def take(self, start: int, stop: int) -> np.ndarray:
        """Scores of frames ``start`` to ``stop``: float32, NaN where a frame could not be read.

        ``start`` never goes back: what lies before it is dropped.
        """
        for number in [n for n in self._open if self._last[n] < start]:
            del self._open[number]
        out = np.full((stop - start, self._columns), np.nan, np.float32)
        shard, row = self._frames.shard[start:stop], self._frames.row[start:stop]
        order = np.argsort(shard, kind="stable")
        numbers, begins = np.unique(shard[order], return_index=True)
        for number, places in zip(numbers.tolist(), np.split(order, begins[1:]), strict=True):
            if number >= 0:
                out[places] = self._scores_of(number)[row[places]]
        return out

    def _scores_of(self, number: int) -> np.ndarray:
        """Scores of a shard; the others that come before it are read and predicted as well."""
        while number not in self._open:
            self._read_ahead()
            ready, reading = self._reading.popleft()
            features = reading.result()
            self._require_finite(ready, features)
            self._open[ready] = self._score(features)
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
