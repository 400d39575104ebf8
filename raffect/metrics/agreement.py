"""Agreement of numbers from moments, which add up.

These are concordance (CCC) and Pearson's (PCC) correlation, and root mean squared error.

Moments have shape (..., V, 6): of V values the number of labelled frames, and the sums of truth,
prediction, truth squared, prediction squared and their product, in float64.
"""

from __future__ import annotations

import numpy as np

from raffect.metrics.f1 import divide

MOMENTS = 6


def ccc(moments: np.ndarray) -> np.ndarray:
    """Concordance correlation of each value: shape (..., V).

    It is 0 where nothing is labelled or nothing varies.

    Source:
        Lin 1989, with population variances as ABAW has it: 2 cov / (var + var' + (mean - mean')^2).

    Example:
        >>> ccc(np.array([[2, 1, 1, 1, 1, 1]]))  # truth and prediction are both 0, 1
        array([1.])
    """
    _, true, predicted, var_true, var_predicted, covariance = _central(moments)
    return divide(2 * covariance, var_true + var_predicted + (true - predicted) ** 2)


def pcc(moments: np.ndarray) -> np.ndarray:
    """Pearson's correlation of each value: shape (..., V), 0 where either does not vary."""
    *_, var_true, var_predicted, covariance = _central(moments)
    return divide(covariance, np.sqrt(var_true * var_predicted))


def rmse(moments: np.ndarray) -> np.ndarray:
    """Root mean squared error of each value, in its own unit: shape (..., V).

    It is 0 where nothing is labelled.
    """
    count, *_, true2, predicted2, product = np.moveaxis(moments, -1, 0)
    return np.sqrt(np.maximum(divide(true2 + predicted2 - 2 * product, count), 0))


def _central(moments: np.ndarray) -> tuple[np.ndarray, ...]:
    """Count, both means, both variances and the covariance."""
    count, true, predicted, true2, predicted2, product = np.moveaxis(moments, -1, 0)
    # Rounding may leave a variance of 0 just below it.
    mean, mean_predicted = divide(true, count), divide(predicted, count)
    var_true = np.maximum(divide(true2, count) - mean**2, 0)
    var_predicted = np.maximum(divide(predicted2, count) - mean_predicted**2, 0)
    covariance = divide(product, count) - mean * mean_predicted
    return count, mean, mean_predicted, var_true, var_predicted, covariance
