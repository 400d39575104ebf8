"""95 % intervals over videos: how far other videos might have scored.

Frames of a video are alike, so whole videos are left out, one at a time: the jackknife.
docs/metrics.md says what the intervals cover, which ``benchmarks/coverage.py`` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from raffect.datasets.tasks import Task
from raffect.metrics.scores import JudgedScore
from raffect.metrics.task_kinds import Kind
from raffect.storage.records import Record

Interval = tuple[float, float]
"""Lower and upper end."""

_CONFIDENCE = 0.95
_MORE_FREEDOM = 2
"""Degrees of freedom beyond the effective number of videos.

That number counts V videos with normal differences as V / 3, because a normal variable has kurtosis
3. Without these two the intervals of 13 videos cover .94-.96 and are 1.8-2.0 times as wide as a
bootstrap's; with them .91-.95 and 1.5-1.7 times.
"""
_NOTHING = 1e-12
"""Differences below it are rounding."""


def plain_interval(interval: Interval | None) -> Interval | None:
    """An interval of Python's own numbers."""
    return None if interval is None else (float(interval[0]), float(interval[1]))


@dataclass(frozen=True, kw_only=True)
class Headline(Record):
    """A headline score.

    Attributes:
        score: All frames together; of several heads the mean.
        interval_95: Over videos or other groups; None where nothing is known of others.
        sd: Standard deviation over heads (n - 1); None for one head.
    """

    score: float
    interval_95: Interval | None
    sd: float | None = None

    @classmethod
    def of(cls, statistics: np.ndarray, kind: Kind) -> Self:
        """From statistics by group, shape (G, A, B), or of several heads, (H, G, A, B)."""
        scores = np.atleast_1d(kind.headline(statistics.sum(-3)))
        return cls(
            score=float(scores.mean()),
            interval_95=plain_interval(score_interval(statistics, kind)),
            sd=float(scores.std(ddof=1)) if len(scores) > 1 else None,
        )


def score_interval(statistics: np.ndarray, kind: Kind) -> Interval | None:
    """95 % interval of a headline score over videos.

    Args:
        statistics: Of each video, (videos, A, B); or of several heads, (heads, videos, A, B), whose
            mean score is wanted.
        kind: Of the task.

    Returns:
        Lower and upper end, around the score; None for one video, or if the score is the same
        whichever video is left out: then nothing is known of other videos.

    Source:
        Efron and Stein 1981, on the logit of the score's place in its range (for correlations that
        is twice Fisher's z), with the jackknife's correction of bias: pooled macro F1 of few videos
        is too low. A score at an end of its range has no logit and is taken as it is.
    """
    return interval_around(*_leave_one_out(statistics, kind), kind.lowest)


def judge(statistics: np.ndarray, task: Task, kind: Kind, epoch: int) -> JudgedScore:
    """The scores of one head, with the interval of its headline.

    Args:
        statistics: By video or other group, shape (groups, A, B).
        task: The task.
        kind: Its kind.
        epoch: 1-based epoch of the head.
    """
    score = kind.score(statistics.sum(0), task)
    return JudgedScore(**vars(score), epoch=epoch, interval_95=score_interval(statistics, kind))


def interval_around(
    score: float, without: np.ndarray, lowest: float, highest: float = 1.0
) -> Interval | None:
    """95 % interval of any score that is known without each video in turn.

    Args:
        score: On all videos.
        without: Without each of them, shape (videos,).
        lowest: Lowest possible score.
        highest: Highest possible score.

    Returns:
        See `score_interval`.
    """
    # At an end of the range there is no logit
    inside = lowest < min(score, *without) and max(score, *without) < highest
    if not inside:
        ends = jackknife(score, without)
        return None if ends is None else tuple(np.clip(ends, lowest, highest).tolist())
    ends = jackknife(_logit(score, lowest, highest), _logit(without, lowest, highest))
    if ends is None:
        return None
    return tuple((lowest + (highest - lowest) / (1 + np.exp(-np.array(ends)))).tolist())


@dataclass(frozen=True, kw_only=True)
class Summand:
    """Heads of one task, whose mean score is part of a sum.

    Attributes:
        kind: Of the task.
        statistics: Shape (heads, videos, A, B).
        groups: Names of the videos; parts of one name are of one video.
    """

    kind: Kind
    statistics: np.ndarray
    groups: Sequence[str]


def sum_interval(parts: Sequence[Summand]) -> tuple[float, Interval | None]:
    """The sum of the mean scores of heads of several tasks, and its 95 % interval.

    A video that is left out is left out of every task that has it, so that the interval is over
    the union of the tasks' videos, as `score_interval` is over one task's.
    """
    # Without each video of the union; a task that lacks the video keeps its score
    names = sorted({name for part in parts for name in part.groups})
    place = {name: k for k, name in enumerate(names)}
    total, without = 0.0, np.zeros(len(names))
    for part in parts:
        own = sorted(set(part.groups))
        row = {name: k for k, name in enumerate(own)}
        merged = np.zeros((len(part.statistics), len(own), *part.statistics.shape[2:]))
        numbers = np.array([row[name] for name in part.groups])
        np.add.at(merged.swapaxes(0, 1), numbers, part.statistics.swapaxes(0, 1))
        score, dropped = _leave_one_out(merged, part.kind)
        change = np.zeros(len(names))
        change[[place[name] for name in own]] = dropped - score
        total, without = total + score, without + score + change
    return total, interval_around(
        total, without, sum(part.kind.lowest for part in parts), len(parts)
    )


def difference_interval(
    first: np.ndarray, second: np.ndarray, kind: Kind
) -> tuple[float, Interval | None]:
    """How much higher the first heads score than the second on the same videos.

    Args:
        first: Statistics as for `score_interval`.
        second: Likewise, of the same videos in the same order.
        kind: Of the task.

    Returns:
        The difference and its 95 % interval, paired by video: see `score_interval`.
    """
    return contrast_interval([(1.0, first), (-1.0, second)], kind)


def contrast_interval(
    parts: Sequence[tuple[float, np.ndarray]], kind: Kind
) -> tuple[float, Interval | None]:
    """A weighted sum of mean scores on the same videos, such as a difference of differences.

    Args:
        parts: Weights, and statistics as for `score_interval`, of the same videos in the same
            order.
        kind: Of the task.

    Returns:
        The sum and its 95 % interval, paired by video: see `score_interval`.
    """
    # What makes a video hard for all heads cancels out where weights add up to 0
    value, without = 0.0, np.zeros(parts[0][1].shape[-3])
    for weight, statistics in parts:
        score, dropped = _leave_one_out(statistics, kind)
        value, without = value + weight * score, without + weight * dropped
    return value, jackknife(value, without)


def _leave_one_out(statistics: np.ndarray, kind: Kind) -> tuple[float, np.ndarray]:
    """The mean score over heads, and that without each video, shape (videos,)."""
    statistics = statistics[None] if statistics.ndim == 3 else statistics
    totals = statistics.sum(1)
    # Head by head, since all differences of many heads would not fit into memory
    without = [
        kind.headline(total - by_video) for total, by_video in zip(totals, statistics, strict=True)
    ]
    return float(kind.headline(totals).mean()), np.mean(without, axis=0)


def jackknife(value: float, without: np.ndarray) -> Interval | None:
    """Interval of a value from the values without each video, shape (videos,)."""
    videos, deviations = len(without), without - without.mean()
    if videos < 2 or np.abs(deviations).max() < _NOTHING:
        return None

    # Effective number of videos: few if few long ones decide
    square = (deviations**2).sum()
    effective = square**2 / (deviations**4).sum()

    # Around the value without its bias; a reader expects the value itself inside
    from scipy.special import stdtrit  # not needed by a program that only reads scores

    centre = videos * value - (videos - 1) * without.mean()
    quantile = stdtrit(effective + _MORE_FREEDOM, (1 + _CONFIDENCE) / 2)
    half = quantile * np.sqrt((videos - 1) / videos * square)
    return min(value, centre - half), max(value, centre + half)


def _logit(score, lowest: float, highest: float):
    """Logit of the place of scores in their range."""
    return np.log(score - lowest) - np.log(highest - score)
