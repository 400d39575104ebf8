"""Predictions of heads for frames that they were not trained on, from which rules are chosen.

Shape letters: H heads, N frames, C outputs, G groups, K parts of the frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from raffect.datasets.tasks import Task
from raffect.metrics.task_kinds import Kind, kind_of
from raffect.predictions.counting import Counting
from raffect.predictions.search import Counts


@dataclass(frozen=True)
class HeldOut:
    """Predictions of heads for labelled frames that they were not trained on.

    Attributes:
        task: The task.
        scores: Probabilities or values, shape (H, N, C).
        target: See `raffect.metrics.task_kinds.Kind.targets`, N rows.
        moment: Place of each frame on a line on which windows never reach another video, ascending,
            shape (N,); see `raffect.predictions.smoothing.timeline`.
        group: Number of each frame's group, shape (N,).
        num_groups: G.
        part: Number of each frame's part, shape (N,); a group has one part.
        num_parts: K, 2 or more.
        of_clips: Whether they are clips, which have no windows: numbers of their first frames say
            nothing of how near they are.
    """

    task: Task
    scores: np.ndarray
    target: np.ndarray
    moment: np.ndarray
    group: np.ndarray
    num_groups: int
    part: np.ndarray
    num_parts: int
    of_clips: bool = False

    @property
    def kind(self) -> Kind:
        """How they are scored."""
        return kind_of(self.task)

    @cached_property
    def parts(self) -> list[tuple[np.ndarray, Counting]]:
        """Rows of each part, and what counts them by group."""
        rows = [np.flatnonzero(self.part == part) for part in range(self.num_parts)]
        return [
            (found, Counting(self.task, self.target[found], self.group[found], self.num_groups))
            for found in rows
        ]

    def mean(self, counts: Counts) -> np.ndarray:
        """Mean of the heads' scores, each as often as ``counts`` says: float32, shape (N, C)."""
        total = np.zeros(self.scores.shape[1:], np.float32)
        for head, count in enumerate(counts):
            if count:
                total += self.scores[head].astype(np.float32) * (count / sum(counts))
        return total
