"""Classes whose headline is another score than macro F1, for its intervals and differences."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raffect.metrics.f1 import divide
from raffect.metrics.recalls import uar, war
from raffect.metrics.task_kinds import Multiclass


class Uar(Multiclass):
    """Classes scored by their mean recall."""

    key, title = "uar", "UAR"

    def headline(self, statistics: np.ndarray) -> np.ndarray:
        """Unweighted average recall of the classes that occur."""
        return uar(statistics)


class War(Multiclass):
    """Classes scored by accuracy."""

    key, title = "war", "WAR"

    def headline(self, statistics: np.ndarray) -> np.ndarray:
        """Weighted average recall."""
        return war(statistics)


class RecallOf(Multiclass):
    """Classes scored by the recall of one of them.

    Args:
        number: Of the class.
    """

    key, title = "recall", "recall"

    def __init__(self, number: int) -> None:
        self._number = number

    def headline(self, statistics: np.ndarray) -> np.ndarray:
        """Recall of the class; 0 where it does not occur."""
        row = statistics[..., self._number, :]
        return divide(row[..., self._number], row.sum(-1))


class F1Of(Multiclass):
    """Some classes, on their own frames; one that is predicted as any other class is missed.

    Args:
        classes: Their numbers.
    """

    def __init__(self, classes: Sequence[int]) -> None:
        self._classes = list(classes)

    def output_scores(self, statistics: np.ndarray) -> np.ndarray:
        """F1 of each of these classes."""
        own = np.zeros_like(statistics)
        own[..., self._classes, :] = statistics[..., self._classes, :]
        return super().output_scores(own)[..., self._classes]
