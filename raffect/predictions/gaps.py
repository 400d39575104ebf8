"""Scores of frames that were not predicted, from those of their neighbours.

Challenges list frames without a face too. Between two predicted frames of a video scores are
interpolated linearly by frame number; before the first and after the last they are held; a video
without any predicted frame gets a prior.

Shape letters: M predicted frames, N wanted frames, C outputs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

HOW = ("predicted", "interpolated", "held", "prior")
"""Where a score comes from, by number: the frame itself, its two neighbours, the first or last
predicted frame of its video, or nothing in its video."""


@dataclass(frozen=True)
class Filling:
    """How each of N wanted frames gets its scores.

    Attributes:
        before: Row of the predicted frame at or before it, shape (N,); M stands for the prior.
        after: Row of the one at or after it, shape (N,).
        share: Weight of ``after``, float32, shape (N,).
        how: Number in `HOW`, int8, shape (N,).
    """

    before: np.ndarray
    after: np.ndarray
    share: np.ndarray
    how: np.ndarray

    def iter_scores(
        self, scores: np.ndarray, prior: np.ndarray, rows: int
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Scores of the wanted frames, part by part.

        Args:
            scores: Of the predicted frames, shape (M, C).
            prior: For a video without any, shape (C,).
            rows: Frames of a part.

        Yields:
            Which frames, and their scores, float32, shape (n, C).
        """
        known = np.concatenate([scores, prior[None]]).astype(np.float32)
        for start in range(0, len(self.how), rows):
            part = slice(start, start + rows)
            share = self.share[part, None]
            yield part, known[self.before[part]] * (1 - share) + known[self.after[part]] * share


def fill_gaps(known: np.ndarray, wanted: np.ndarray) -> Filling:
    """Find the neighbours of frames.

    Args:
        known: ``video << 32 | frame`` of the predicted frames, ascending, int64, shape (M,).
        wanted: The same of the wanted frames, in any order, shape (N,).
    """
    # The nearest predicted frames of the same video
    after = np.searchsorted(known, wanted, "left")
    before = np.searchsorted(known, wanted, "right") - 1
    has_after = _same_video(known, after, wanted)
    has_before = _same_video(known, before, wanted)

    # One of them twice where the other is missing, and the prior without both
    before = np.where(has_before, before, np.where(has_after, after, len(known)))
    after = np.where(has_after, after, before)
    is_between = has_before & has_after & (before != after)
    how = np.select([is_between, has_before & has_after, has_before | has_after], [1, 0, 2], 3)

    # How far between them
    share = np.zeros(len(wanted), np.float32)
    low, high = known[before[is_between]], known[after[is_between]]
    share[is_between] = (wanted[is_between] - low) / (high - low)
    return Filling(before, after, share, how.astype(np.int8))


def _same_video(known: np.ndarray, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether these rows of ``known`` are there, and of the videos of ``wanted``."""
    if not len(known):
        return np.zeros(len(wanted), bool)
    inside = (rows >= 0) & (rows < len(known))
    return inside & (known[np.clip(rows, 0, len(known) - 1)] >> 32 == wanted >> 32)
