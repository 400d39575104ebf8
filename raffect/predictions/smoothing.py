"""Means over a window of frames, by frame number.

A gap (frames without a face) stays a gap: a window holds the frames that are there. At the ends of
a video it is shorter. It never crosses videos: a call has the frames of one, or of many whose
numbers are set far apart (`timeline`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np


def smooth(scores: np.ndarray, frame: np.ndarray, half_width: int) -> np.ndarray:
    """Mean over the frames whose numbers differ by at most ``half_width``.

    Args:
        scores: Of the frames of one video, shape (N, C).
        frame: Their 1-based numbers, ascending, shape (N,).
        half_width: 0 or more; 0 changes nothing.

    Returns:
        float32, shape (N, C).
    """
    return next(smooth_all(scores, frame, [half_width]))


def smooth_all(
    scores: np.ndarray, frame: np.ndarray, half_widths: Sequence[int]
) -> Iterator[np.ndarray]:
    """`smooth` with one half-width after the other, which share most of the work."""
    # A running sum in float64: its rounding is far below a float32's
    total: np.ndarray | None = None
    for half_width in half_widths:
        if half_width == 0 or not len(frame):
            yield scores.astype(np.float32)
            continue
        if total is None:
            total = np.zeros((len(scores) + 1, scores.shape[1]))
            np.cumsum(scores, 0, np.float64, out=total[1:])
        start = np.searchsorted(frame, frame - half_width, "left")
        stop = np.searchsorted(frame, frame + half_width, "right")
        mean = total[stop]
        mean -= total[start]
        mean /= (stop - start)[:, None]
        yield mean.astype(np.float32)


def timeline(video: np.ndarray, frame: np.ndarray, most: int) -> np.ndarray:
    """Frames of many videos on one line, videos so far apart that no window reaches two of them.

    Args:
        video: Number of each frame's video, shape (N,), in any order.
        frame: 1-based numbers, shape (N,).
        most: Largest half-width.

    Returns:
        int64, shape (N,), to be sorted before `smooth`.
    """
    length = int(frame.max(initial=0)) + most + 1
    return video.astype(np.int64) * length + frame
