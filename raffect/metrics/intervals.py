"""Intervals over videos: how far other videos might have scored."""

from __future__ import annotations

import numpy as np

from raffect.metrics.kinds import Kind

BOOTSTRAP_DRAWS = 1000


def bootstrap_videos(
    statistics: np.ndarray, kind: Kind, seed: int, draws: int = BOOTSTRAP_DRAWS
) -> tuple[float, float]:
    """95 % interval of the headline score when whole videos are drawn again with replacement, since frames of a video are alike.

    Of F1, rare classes are lost by draws most often and are hard, which lifts the draws above the score; the interval is moved back by
    the mean of that difference.

    Args:
        statistics: Of each video, (videos, ...); or of several heads, with one more dimension in front, whose mean score is wanted.
        kind: Of the task.
        seed: Of the draws.
        draws: How many.

    Returns:
        Lower and upper end.
    """
    statistics = statistics[None] if statistics.ndim == 3 else statistics
    videos = statistics.shape[1]
    drawn = np.random.default_rng(seed).multinomial(videos, np.full(videos, 1 / videos), draws)
    scores = kind.resampled(np.einsum("dv,hvab->hdab", drawn, statistics, optimize=True))
    lift = scores.mean() - kind.headline(statistics.sum(1)).mean()
    low, high = np.clip(np.quantile(scores, (0.025, 0.975)) - lift, kind.lowest, 1)
    return float(low), float(high)
