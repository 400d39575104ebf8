"""Intervals over videos: how far other videos might have scored."""

from __future__ import annotations

import numpy as np

from raffect.metrics.task_kinds import Kind

BOOTSTRAP_DRAWS = 1000


def bootstrap_videos(
    statistics: np.ndarray, kind: Kind, seed: int, draws: int = BOOTSTRAP_DRAWS
) -> tuple[float, float]:
    """95 % interval of the headline score by a bootstrap over videos.

    Whole videos are drawn with replacement, since frames of a video are alike. Draws most often
    lose rare classes, which are hard, and so score a higher F1 than the split; the interval is
    moved back by the mean of that difference.

    Args:
        statistics: Of each video, (videos, ...); or of several heads, with one more dimension in
            front, whose mean score is wanted.
        kind: Of the task.
        seed: Of the draws.
        draws: How many.

    Returns:
        Lower and upper end.
    """
    statistics = statistics[None] if statistics.ndim == 3 else statistics
    # How often each draw takes each video, and the score of that sum of statistics.
    videos = statistics.shape[1]
    drawn = np.random.default_rng(seed).multinomial(videos, np.full(videos, 1 / videos), draws)
    scores = kind.resampled(np.einsum("dv,hvab->hdab", drawn, statistics, optimize=True))
    # Quantiles, moved so that the draws have the mean of the score.
    lift = scores.mean() - kind.headline(statistics.sum(1)).mean()
    low, high = np.clip(np.quantile(scores, (0.025, 0.975)) - lift, kind.lowest, 1)
    return float(low), float(high)
