"""Recalls from confusion matrices, shape (..., C, C): rows true, columns predicted.

The field's names are UAR, unweighted average recall, and WAR, weighted average recall: accuracy.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from raffect.metrics.f1 import divide


def uar(confusion: np.ndarray) -> np.ndarray:
    """Mean recall of the classes that occur: scikit-learn's balanced accuracy, shape (...).

    Example:
        >>> float(uar(np.array([[3, 1, 0], [1, 1, 0], [0, 0, 0]])))
        0.625
    """
    true = confusion.sum(-1)
    recall = divide(np.diagonal(confusion, axis1=-2, axis2=-1), true)
    return divide(recall.sum(-1), (true > 0).sum(-1))


def war(confusion: np.ndarray) -> np.ndarray:
    """Share of frames that are right: accuracy, shape (...)."""
    return divide(np.trace(confusion, axis1=-2, axis2=-1), confusion.sum((-2, -1)))


def only(confusion: np.ndarray, classes: Sequence[int]) -> np.ndarray:
    """Frames of some classes alone, as far as they were predicted as one of these.

    Args:
        confusion: Shape (..., C, C).
        classes: Numbers of K classes.

    Returns:
        Shape (..., K, K). Where no other class is ever predicted, it is what a predictor of these
        classes does on their frames.
    """
    return confusion[..., classes, :][..., classes]
