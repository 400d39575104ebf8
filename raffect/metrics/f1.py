"""F1 from confusion counts, which add up: those of videos to those of a split, those of workers to those of a run.

Counts have shape (..., K, 4): true positives, false positives, false negatives and true negatives of K classes or labels. Scores
always count all K of them: one that never occurs scores 0 and is not dropped, as scikit-learn's and torchmetrics' macro F1 would.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raffect.metrics.scores import Number


def one_against_rest(confusion: np.ndarray) -> np.ndarray:
    """Counts (..., C, 4) of each class against the others, from confusion matrices (..., C, C): rows true, columns predicted."""
    true = np.diagonal(confusion, axis1=-2, axis2=-1)
    predicted, there, all_ = (
        confusion.sum(-2),
        confusion.sum(-1),
        confusion.sum((-2, -1))[..., None],
    )
    return np.stack([true, predicted - true, there - true, all_ - predicted - there + true], -1)


def f1_scores(counts: np.ndarray) -> np.ndarray:
    """F1 of each class: shape (..., K), 0 where it neither occurs nor is predicted.

    Example:
        >>> f1_scores(np.array([[2, 1, 1, 0], [0, 0, 0, 4]])).round(3).tolist()
        [0.667, 0.0]
    """
    return divide(2 * counts[..., 0], 2 * counts[..., 0] + counts[..., 1] + counts[..., 2])


def resampled_macro_f1(counts: np.ndarray) -> np.ndarray:
    """Macro F1 of draws of videos, mean over heads.

    A class that no drawn video shows is left out of that draw's mean: the draw lost it, not the head. What the split itself lacks scores
    0 in every draw, as in the score.

    Args:
        counts: Shape (heads, draws, K, 4).

    Returns:
        Shape (draws,).
    """
    shown = counts[..., 0] + counts[..., 2] > 0
    never = ~shown.any(1, keepdims=True)
    return ((f1_scores(counts) * shown).sum(-1) / np.maximum((shown | never).sum(-1), 1)).mean(0)


def describe_classes(counts: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, Number]]:
    """Precision, recall, F1, support and number of predictions of each class, from counts (K, 4)."""
    true, predicted = counts[:, 0] + counts[:, 2], counts[:, 0] + counts[:, 1]
    precision, recall, f1 = (
        divide(counts[:, 0], predicted),
        divide(counts[:, 0], true),
        f1_scores(counts),
    )
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
    return np.divide(
        part, whole, out=np.zeros(np.shape(part), np.float64), where=np.asarray(whole) > 0
    )
