"""How heads do where they do worst: on one class, and on the worst 30 % of videos.

Both stand beside the mean, which hides them. docs/metrics.md says why they are defined as they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from raffect.metrics.intervals import Interval, interval_around, jackknife
from raffect.metrics.task_kinds import Kind
from raffect.storage.records import Record

TAIL = 0.3
"""Share of videos: the paper's alpha, whatever alpha a head was trained with."""
FEWEST_FRAMES = 10
"""Labelled frames from which a video has a score of its own.

A share of fewer frames has a standard error of up to .16, as much as good videos differ from bad.
"""


@dataclass(frozen=True, kw_only=True)
class WorstCases(Record):
    """Worst output and worst videos of heads that differ in their seed alone.

    Attributes:
        output: Mean over heads of the lowest F1 or CCC of an output; None if none occurs.
        output_sd: Standard deviation over heads (n - 1); None for one head.
        outputs: For how many heads each output is the lowest, the most frequent one first.
        tail: Mean over heads of the score of their worst 30 % of videos; None if there are no two
            videos with a score of their own.
        tail_sd: As ``output_sd``.
        tail_interval_95: Of ``tail``, over other videos; None without.
        groups: Videos (or other groups) that have a score of their own.
        heads: How many.
    """

    output: float | None
    output_sd: float | None = None
    outputs: dict[str, int] = field(default_factory=dict)
    tail: float | None = None
    tail_sd: float | None = None
    tail_interval_95: Interval | None = None
    groups: int = 0
    heads: int


def find_worst(
    statistics: np.ndarray, kind: Kind, outputs: Sequence[str], *, by_group: bool = True
) -> WorstCases:
    """Worst output and worst videos of some heads.

    Args:
        statistics: Shape (heads, videos, A, B).
        kind: Of the task.
        outputs: Names of its outputs.
        by_group: Whether each group is one video (subject, picture). Blocks of them hide the worst
            ones, and then there is no score of the worst.
    """
    # Each head's own worst output and worst videos; then the mean over heads
    lowest, which = worst_outputs(statistics, kind)
    counts = Counter(outputs[k] for k in which).most_common()
    found = WorstCases(
        output=_mean(lowest),
        output_sd=_sd(lowest),
        outputs=dict(counts),
        heads=len(statistics),
    )
    scores = group_scores(statistics, kind)
    if not by_group or scores.shape[1] < 2:
        return found
    tails = tail_mean(scores)
    without = _without_each(scores).mean(0)
    return replace(
        found,
        tail=float(tails.mean()),
        tail_sd=_sd(tails),
        tail_interval_95=interval_around(float(tails.mean()), without, kind.lowest),
        groups=scores.shape[1],
    )


def worst_outputs(statistics: np.ndarray, kind: Kind) -> tuple[np.ndarray, np.ndarray]:
    """Each head's lowest score of an output over all videos together, and which output that is.

    Outputs that do not occur are left out: they have a score of 0 whatever a head does.

    Args:
        statistics: Shape (heads, videos, A, B).
        kind: Of the task.

    Returns:
        Shapes (heads,) both; empty if no output occurs.
    """
    total = statistics.sum(1)
    candidates = np.flatnonzero(kind.occurs(total[0]))
    if not len(candidates):
        return np.zeros(0), np.zeros(0, int)
    scores = kind.output_scores(total)[:, candidates]
    return scores.min(1), candidates[scores.argmin(1)]


def group_scores(statistics: np.ndarray, kind: Kind) -> np.ndarray:
    """The headline score of each video over the outputs that occur in it.

    Args:
        statistics: Shape (heads, videos, A, B).
        kind: Of the task.

    Returns:
        Shape (heads, V): of the V videos with `FEWEST_FRAMES` labelled frames or more in which an
        output occurs. Which those are follows from the labels, so it is the same for all heads.
    """
    occurs = kind.occurs(statistics[0])
    judged = occurs.any(-1) & (kind.count_frames(statistics[0]) >= FEWEST_FRAMES)
    scores, shown = kind.output_scores(statistics[:, judged]), occurs[judged]
    return (scores * shown).sum(-1) / np.maximum(shown.sum(-1), 1)


def tail_mean(scores: np.ndarray, share: float = TAIL) -> np.ndarray:
    """Mean of the lowest ``share`` of scores: conditional value at risk of what is missing to 1.

    Args:
        scores: Shape (..., V).
        share: In (0, 1]. With k = share * V the k lowest count, the last one by the fraction of k,
            and if k is less than 1 the lowest alone.

    Returns:
        Shape (...).

    Source:
        As `raffect.heads.tail.Tail.cvar`, which takes the highest losses.

    Example:
        >>> tail_mean(np.array([0.9, 0.2, 0.5, 0.4]), 0.375).round(4).item()
        0.2667
    """
    return np.sort(scores, -1) @ _tail_weights(scores.shape[-1], share)


def tail_difference(
    first: np.ndarray, second: np.ndarray, kind: Kind
) -> tuple[float, Interval | None]:
    """How much higher the first heads score than the second on their worst videos.

    Args:
        first: Statistics, shape (heads, videos, A, B).
        second: Likewise, of the same videos in the same order, which have the same labels.
        kind: Of the task.

    Returns:
        The difference and its 95 % interval, paired by video. Each head has worst videos of its
        own.
    """
    scores, others = group_scores(first, kind), group_scores(second, kind)
    difference = float(tail_mean(scores).mean() - tail_mean(others).mean())
    without = _without_each(scores).mean(0) - _without_each(others).mean(0)
    return difference, jackknife(difference, without)


def _without_each(scores: np.ndarray) -> np.ndarray:
    """`tail_mean` of scores (heads, V) without each video in turn: shape (heads, V)."""
    order = np.argsort(scores, -1)
    ranked = np.take_along_axis(scores, order, -1)
    weights = _tail_weights(scores.shape[1] - 1, TAIL)

    # Scores below the one left out keep their rank, those above it move down by one
    below, above = np.zeros_like(ranked), np.zeros_like(ranked)
    below[:, 1:] = np.cumsum(weights * ranked[:, :-1], -1)
    above[:, 1:] = np.cumsum(weights * ranked[:, 1:], -1)
    without = np.empty_like(ranked)
    np.put_along_axis(without, order, below + above[:, -1:] - above, -1)
    return without


def _tail_weights(count: int, share: float) -> np.ndarray:
    """Weights of scores in ascending order; they add up to 1."""
    size = max(share * count, 1.0)
    return np.clip(size - np.arange(count), 0, 1) / size


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _sd(values: np.ndarray) -> float | None:
    return float(values.std(ddof=1)) if len(values) > 1 else None
