"""Targets that are vectors: which vectors a head has to choose from, and how often it is right.

A sample is right if of all *candidates* its own target comes first, or one with an equal vector.
Candidates are all distinct vectors, or of many the block of numbers that the own target is in, so
that they follow from the targets alone.

Shape letters: V targets, E numbers of a vector, N samples, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raffect.datasets.tasks import Task
from raffect.metrics.f1 import divide
from raffect.metrics.kind import Kind
from raffect.metrics.scores import Chance, Score
from raffect.storage.equal_rows import number_equal

MOST_CANDIDATES = 1024
"""Most distinct vectors that a head chooses from. Of more, targets 0 to 1023 are candidates for
each other, then 1024 to 2047, and so on."""
EXACT = 2**30
"""What chances are rounded to a fraction of: sums of millions of such are exact, and so the same in
whatever parts they are added up."""
HITS, SAMPLES, GUESSED, CONSTANT = range(4)
"""Columns of the statistics; see `Contrastive`."""


@dataclass(frozen=True)
class Candidates:
    """What each target is compared with.

    Attributes:
        same: Number of the first target with an equal vector, int64, shape (V,).
        distinct: Numbers of the distinct vectors, where all are candidates; None for blocks.
        guess: How often a guess among a target's candidates is right, float64, shape (V,).
        frequent: Of a target's candidates the one that most samples have, int64, shape (V,).
        owner: Class of all samples that have the target, int64, shape (V,); -1 for a target of
            several classes, or of no sample.
    """

    same: np.ndarray
    distinct: np.ndarray | None
    guess: np.ndarray
    frequent: np.ndarray
    owner: np.ndarray


def find_candidates(vectors: np.ndarray, targets: np.ndarray) -> Candidates:
    """The candidates of every target.

    Args:
        vectors: float16, shape (V, E).
        targets: Target and class of every sample of a label table, in whatever split, as
            `Contrastive.targets` has them, shape (N, 2).
    """
    # Equal vectors
    number, first = number_equal(vectors)
    same = first[number]

    # Numbers that are candidates for each other
    all_numbers = np.arange(len(vectors))
    is_few = len(first) <= MOST_CANDIDATES
    size = len(vectors) if is_few else MOST_CANDIDATES
    counts = np.bincount(targets[:, 0], minlength=len(vectors))
    guess, frequent = np.zeros(len(vectors)), np.zeros(len(vectors), np.int64)
    for start in range(0, len(vectors), size):
        numbers = all_numbers[start : start + size]
        found, place = np.unique(same[numbers], return_inverse=True)
        guess[numbers] = round(EXACT / len(found)) / EXACT
        frequent[numbers] = found[np.bincount(place, counts[numbers]).argmax()]

    # The class that has a target to itself
    pairs = np.unique(np.stack([same[targets[:, 0]], targets[:, 1]]), axis=1)
    owner = np.full(len(vectors), -1)
    owner[pairs[0]] = np.where(np.bincount(pairs[0])[pairs[0]] == 1, pairs[1], -1)
    return Candidates(same, first if is_few else None, guess, frequent, owner[same])


class Contrastive(Kind):
    """A vector a frame or clip: of a caption's text, or of a teacher.

    Statistics (C, 4): samples whose own target ranks first among its candidates, all samples, and
    how many a guess among the candidates, and the most frequent candidate, would have right.
    Headline: mean recall of the classes that occur, which for one vector a class is UAR.
    """

    key, title, lowest = "recall_at_1", "recall@1", 0.0
    parts, part = "classes", "class"
    columns = (("recall@1", "recall_at_1"), ("by a guess", "guess"), ("frames", "support"))
    counts_absent = answers = False

    def num_columns(self, task: Task) -> int:
        """The target's number, and that of the class where a task has classes."""
        return 2 if len(task.outputs) > 1 or len(task.columns) == 2 else 1

    def targets(self, task: Task, values: np.ndarray) -> np.ndarray:
        """Number of the target and of the class, int64, shape (N, 2)."""
        whole = values if values.shape[1] > 1 else np.hstack([values, 0 * values])
        return whole.astype(np.int64)

    def find_wrong(self, task: Task, values: np.ndarray) -> np.ndarray:
        """Numbers below 0, of no class or not whole; and half of a pair that lacks the other."""
        known = task.is_labelled(values)
        most = np.array([np.inf, len(task.outputs)][: values.shape[1]])
        is_number = (values >= 0) & (values < most) & (values == np.floor(values))
        return (known & ~is_number) | (~known & known.any(1, keepdims=True))

    def why_untrainable(self, task: Task, targets: np.ndarray) -> str:
        """One target alone has no others to compare with."""
        if len(found := np.unique(targets[:, 0])) > 1:
            return ""
        return f"one target only (number {found[0]}, {len(targets)} frames); expected two or more"

    def headline(self, statistics: np.ndarray) -> np.ndarray:
        """Mean recall of the classes that occur."""
        return _mean_recall(statistics, HITS)

    def output_scores(self, statistics: np.ndarray) -> np.ndarray:
        """Recall of each class."""
        return divide(statistics[..., HITS], statistics[..., SAMPLES])

    def occurs(self, statistics: np.ndarray) -> np.ndarray:
        """Classes with a sample."""
        return statistics[..., SAMPLES] > 0

    def score(self, statistics: np.ndarray, task: Task) -> Score:
        """``recall_at_1`` over classes, ``accuracy`` over samples, and recall of each class."""
        recall = self.output_scores(statistics)
        guess = divide(statistics[:, GUESSED], statistics[:, SAMPLES])
        total = statistics.sum(0)
        mean = float(self.headline(statistics))
        return Score(
            headline=mean,
            metrics={
                "recall_at_1": mean,
                "accuracy": float(divide(total[HITS], total[SAMPLES])),
            },
            outputs={
                name: {
                    "recall_at_1": float(recall[k]),
                    "guess": float(guess[k]),
                    "support": int(statistics[k, SAMPLES]),
                }
                for k, name in enumerate(task.outputs)
            },
        )

    def chance(self, statistics: np.ndarray, task: Task) -> Chance:
        """A guess among the candidates, or always the most frequent one: the better of both.

        Where samples have different candidates their number is the harmonic mean.
        """
        column, total = _better(statistics), statistics.sum(0)
        number = f"{divide(total[SAMPLES], total[GUESSED]):,.0f}"
        answer = f"a guess among {number} candidates"
        if column == CONSTANT:
            answer = f"always the most frequent of {number} candidates"
        return Chance(answer=answer, majority=float(_mean_recall(statistics, column)))

    def statistics_by_chance(self, statistics: np.ndarray) -> np.ndarray:
        """Hits of the better of both."""
        out = statistics.copy()
        out[..., HITS] = statistics[..., _better(statistics.sum(0))]
        return out

    def count_frames(self, statistics: np.ndarray) -> np.ndarray:
        """All samples."""
        return statistics[..., SAMPLES].sum(-1).astype(np.int64)

    def shares(self, task: Task, values: np.ndarray) -> dict[str, float]:
        """Frames of each class."""
        counts = np.bincount(self.targets(task, values)[:, 1], minlength=len(task.outputs))
        return dict(zip(task.outputs, counts.tolist(), strict=True))

    def strata(self, targets: np.ndarray) -> np.ndarray | None:
        """The classes, if there are several."""
        classes = targets[:, 1]
        return classes if len(np.unique(classes)) > 1 else None


def _mean_recall(statistics: np.ndarray, column: int) -> np.ndarray:
    """Mean over the classes that occur, of statistics (..., C, 4): shape (...)."""
    samples = statistics[..., SAMPLES]
    recall = divide(statistics[..., column], samples)
    return divide(recall.sum(-1), (samples > 0).sum(-1))


def _better(statistics: np.ndarray) -> int:
    """Which predictor that never looks scores higher, from statistics (C, 4): its column."""
    return max((GUESSED, CONSTANT), key=lambda column: float(_mean_recall(statistics, column)))
