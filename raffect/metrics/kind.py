"""What a task is to all code except the losses: the base of the kinds of tasks.

Each kind keeps additive statistics of a head on each video, shape (..., videos, A, B): those of
videos add up to those of a split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np

from raffect.datasets.tasks import Task
from raffect.metrics.scores import Chance, Score


class Kind(ABC):
    """What a task is to all code except the losses.

    Attributes:
        key: Name of the headline score in files, such as ``macro_f1``.
        title: The same as text.
        lowest: Lowest possible headline score.
        parts: Word for its outputs: classes, labels or values.
        part: Its singular.
        columns: Scores of one output, as (title, key); figures draw the first, and the last is a
            number of frames.
        counts_absent: Whether an output that does not occur counts 0 in the headline.
        answers: Whether outputs are answers for a frame, which can be written and post-processed.
    """

    key: ClassVar[str]
    title: ClassVar[str]
    lowest: ClassVar[float]
    parts: ClassVar[str]
    part: ClassVar[str]
    columns: ClassVar[tuple[tuple[str, str], ...]]
    counts_absent: ClassVar[bool] = True
    answers: ClassVar[bool] = True

    @property
    def curve_key(self) -> str:
        """Name of the headline score on validation in curves, such as ``val_macro_f1``."""
        return f"val_{self.key}"

    def num_columns(self, task: Task) -> int:
        """Label columns that a task of this kind has: one an output, unless a kind says more."""
        return len(task.outputs)

    @abstractmethod
    def targets(self, task: Task, values: np.ndarray) -> np.ndarray:
        """Label columns (N, columns) as training takes them, one row a frame."""

    @abstractmethod
    def find_wrong(self, task: Task, values: np.ndarray) -> np.ndarray:
        """Which values are neither a label of the task nor unlabelled: bool, (N, columns)."""

    @abstractmethod
    def why_untrainable(self, task: Task, targets: np.ndarray) -> str:
        """Why nothing can be learnt from these targets; empty if something can."""

    def headline(self, statistics: np.ndarray) -> np.ndarray:
        """Headline score of statistics (..., A, B): the mean over all outputs, shape (...)."""
        return self.output_scores(statistics).mean(-1)

    @abstractmethod
    def output_scores(self, statistics: np.ndarray) -> np.ndarray:
        """F1 or CCC of each of C outputs, from statistics (..., A, B): shape (..., C)."""

    @abstractmethod
    def occurs(self, statistics: np.ndarray) -> np.ndarray:
        """Which outputs the frames behind statistics (..., A, B) show: bool, shape (..., C).

        It follows from the labels alone, whatever a head predicts. An output that does not occur
        has a score of 0 whatever is predicted.
        """

    @abstractmethod
    def score(self, statistics: np.ndarray, task: Task) -> Score:
        """All scores of one head from statistics (A, B)."""

    @abstractmethod
    def chance(self, statistics: np.ndarray, task: Task) -> Chance:
        """The chance level, from any head's statistics (A, B).

        It is that of the best predictors that never look at a frame.
        """

    @abstractmethod
    def statistics_by_chance(self, statistics: np.ndarray) -> np.ndarray:
        """What the predictor that scores `chance`'s level would have as statistics, on average.

        Args:
            statistics: Of any head by group, shape (groups, A, B).

        Returns:
            The same shape.
        """

    @abstractmethod
    def count_frames(self, statistics: np.ndarray) -> np.ndarray:
        """Labelled frames of statistics (..., A, B): shape (...)."""

    @abstractmethod
    def shares(self, task: Task, values: np.ndarray) -> dict[str, float]:
        """Counts, rates or means by output of label columns (N, columns), to be shown."""

    def strata(self, targets: np.ndarray) -> np.ndarray | None:
        """Classes that folds should be alike in, shape (N,); None for a kind without classes."""
        return None
