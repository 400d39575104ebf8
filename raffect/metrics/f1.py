"""F1 from confusion counts, which add up.

Counts of videos add up to those of a split, and counts of workers to those of a run. They have
shape (..., K, 4): true positives, false positives, false negatives and true negatives of K classes
or labels. Scores always count all K of them: one that never occurs scores 0 and is not dropped, as
scikit-learn's and torchmetrics' macro F1 would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raffect.metrics.scores import Number


def one_against_rest(confusion: np.ndarray) -> np.ndarray:
    """Counts of each class against the others.

    Args:
        confusion: Confusion matrices, shape (..., C, C): rows true, columns predicted.

    Returns:
        Shape (..., C, 4).
    """
    hits = np.diagonal(confusion, axis1=-2, axis2=-1)
    true, predicted = confusion.sum(-1), confusion.sum(-2)
    frames = confusion.sum((-2, -1))[..., None]
    return np.stack([hits, predicted - hits, true - hits, frames - predicted - true + hits], -1)


def f1_scores(counts: np.ndarray) -> np.ndarray:
    """F1 of each class: shape (..., K), 0 where it neither occurs nor is predicted.

    Example:
        >>> f1_scores(np.array([[2, 1, 1, 0], [0, 0, 0, 4]])).round(3).tolist()
        [0.667, 0.0]
    """
    return divide(2 * counts[..., 0], 2 * counts[..., 0] + counts[..., 1] + counts[..., 2])


def describe_classes(counts: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, Number]]:
    """Precision, recall, F1, support and number of predictions of each class, by its name.

    Args:
        counts: Shape (K, 4).
        names: Of the K classes.
    """
    # Frames where a class is true, and where it is predicted.
    true, predicted = counts[:, 0] + counts[:, 2], counts[:, 0] + counts[:, 1]
    precision, recall = divide(counts[:, 0], predicted), divide(counts[:, 0], true)
    f1 = f1_scores(counts)
    return {
        name: {
            "precision": float(precision[k]),
            "recall": float(recall[k]),
            "f1": float(f1[k]),
            "support": int(true[k]),
            "predicted": int(predicted[k]),
        }
        for k, name in enumerate(names)
    }


def divide(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """``part / whole``, 0 where ``whole`` is not positive."""
    out = np.zeros(np.shape(part), np.float64)
    return np.divide(part, whole, out=out, where=np.asarray(whole) > 0)
