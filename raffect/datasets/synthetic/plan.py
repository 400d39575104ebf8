"""Which videos a drawn data set has: names, lengths, subjects, splits and expressions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raffect.datasets.affwild2.tasks import COMPLETE_EXPR_COUNTS
from raffect.errors import RaffectError

# Independent streams of random numbers from one seed
LOOK_STREAM, COURSE_STREAM, LAYOUT_STREAM = 1, 2, 3


@dataclass(frozen=True, kw_only=True)
class Video:
    """Plan of one drawn video.

    Attributes:
        name: Of its folder and annotation files.
        index: Number in the data set from 0.
        num_frames: Length.
        subject: Number of the person it shows.
        splits: Its split in each task, None where it is not part of the task.
        expressions: Labels of its segments in order.
    """

    name: str
    index: int
    num_frames: int
    subject: int
    splits: dict[str, str | None]
    expressions: tuple[int, ...]


def plan_videos(num_frames: int, seed: int) -> list[Video]:
    """Distribute frames over videos, subjects, splits and expressions.

    Args:
        num_frames: Lines in all, at least 200.
        seed: Decides the whole plan.

    Returns:
        Videos in order; the last two are a ``<name>`` and ``<name>_right`` pair, the two before
        ``_left`` and ``_right``.

    Raises:
        RaffectError: If there are too few frames.
    """
    if num_frames < 200:
        raise RaffectError(
            f"--frames {num_frames} is too few to show 8 expressions in two splits; "
            "take 200 or more"
        )
    rng = np.random.default_rng([seed, LAYOUT_STREAM])

    num_videos = int(np.clip(round(4 * (num_frames / 400) ** 0.5) * 2, 8, 594))
    lengths = _sample_lengths(rng, num_videos, num_frames)
    names = _name_videos(num_videos)

    # A subject keeps to one split of a task; tasks have splits of their own.
    splits = {
        task: ["validation" if k == rest else "train" for k in np.arange(num_videos) % 3]
        for task, rest in (("expr", 2), ("au", 1), ("va", 0))
    }

    # Segments of expressions, and the tasks that a video is part of
    segment = float(np.clip(num_frames / 250, 6, 45))
    videos: list[Video] = []
    for split in ("train", "validation"):
        indices = [i for i in range(num_videos) if splits["expr"][i] == split]
        counts = [max(1, round(lengths[i] / segment)) for i in indices]
        queue = _share_expressions(rng, sum(counts), split)
        for i, count in zip(indices, counts, strict=True):
            own = {
                task: splits[task][i] if rng.random() > 0.08 or num_videos < 20 else None
                for task in splits
            }
            video = Video(
                name=names[i],
                index=i,
                num_frames=int(lengths[i]),
                subject=i,
                splits=own,
                expressions=tuple(queue[:count]),
            )
            videos.append(video)
            queue = queue[count:]
    return sorted(videos, key=lambda video: video.index)


def _sample_lengths(rng: np.random.Generator, num_videos: int, num_frames: int) -> np.ndarray:
    """Frames of each video, int, shape (num_videos,); they add up to ``num_frames``."""
    lengths = rng.lognormal(0, 0.6, num_videos)
    lengths = np.maximum(20, np.round(lengths / lengths.sum() * num_frames)).astype(int)
    lengths[lengths.argmax()] += num_frames - lengths.sum()
    return lengths


def _name_videos(num_videos: int) -> list[str]:
    """Names of the kinds that Aff-Wild2 has; the last four belong to videos with two people."""
    names = [f"{i}-30-1920x1080" if i % 2 else f"video{i}" for i in range(num_videos)]
    first, second = str(num_videos), str(num_videos + 1)
    names[-4:] = [f"{first}_left", f"{first}_right", second, f"{second}_right"]
    return names


def _share_expressions(rng: np.random.Generator, num_segments: int, split: str) -> list[int]:
    """Expressions of a split's segments.

    Every class occurs if the segments suffice; the rest are in Aff-Wild2's proportions.
    """
    share = np.array(COMPLETE_EXPR_COUNTS[split], float)
    # Segments fade in and out of Neutral, which therefore needs fewer segments of its own.
    share[0] *= 0.35
    quota = np.maximum(1, np.floor(share / share.sum() * num_segments)).astype(int)
    queue = np.repeat(np.arange(len(quota)), quota)
    extra = rng.choice(len(quota), max(0, num_segments - len(queue)), p=share / share.sum())
    return rng.permutation(np.concatenate([queue, extra]))[:num_segments].tolist()
