"""Means over a window of frames, by frame number.

A gap (frames without a face) stays a gap: a window holds the frames that are there. At the ends of
a video it is shorter. It never crosses videos: a call has the frames of one.
"""

from __future__ import annotations

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
    if half_width == 0 or not len(frame):
        return scores.astype(np.float32)
    # A running sum in float64: its rounding is far below a float32's.
    total = np.concatenate([np.zeros((1, scores.shape[1])), np.cumsum(scores, 0, np.float64)])
    start = np.searchsorted(frame, frame - half_width, "left")
    stop = np.searchsorted(frame, frame + half_width, "right")
    return ((total[stop] - total[start]) / (stop - start)[:, None]).astype(np.float32)
