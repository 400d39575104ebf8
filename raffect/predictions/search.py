"""The searches behind decision rules: ensemble weights, thresholds, and biases of classes.

Shape letters: H heads, N frames, C outputs, K parts of the frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from raffect.metrics.f1 import divide

Counts = tuple[int, ...]
"""How often each head is in an ensemble."""

_MOST_STEPS, _PATIENCE = 40, 8
"""Heads that greedy selection takes at most, and how many without a gain before it stops."""
BINS = 1000
"""Bins of a histogram of probabilities."""
_REACH, _STEP = 8.0, 0.05
"""Biases of classes are searched from -8 to 8 in steps of 0.05."""
_SWEEPS = 10


def select_greedily(
    scores_of: Callable[[Counts], Sequence[float]], num_heads: int, most_steps: int = _MOST_STEPS
) -> Counts:
    """Greedy selection of heads with replacement.

    The head that raises the score most is added again and again, from none on; the best of the
    ensembles on the way is the result. The first one is the best single head, so that the result
    is never worse.

    Args:
        scores_of: Scores of the ensembles that have one more of each head, shape (H,).
        num_heads: H.
        most_steps: Most heads in the ensemble, repetitions included.

    Returns:
        How often each head is in the best ensemble, at least one of them once.

    Source:
        Caruana et al. 2004, "Ensemble selection from libraries of models", without its bagging.
    """
    counts, best, highest, since = (0,) * num_heads, (0,) * num_heads, -np.inf, 0
    for _ in range(most_steps):
        scores = scores_of(counts)
        head, score = int(np.argmax(scores)), max(scores)
        counts = (*counts[:head], counts[head] + 1, *counts[head + 1 :])
        best, highest, since = (counts, score, 0) if score > highest else (best, highest, since + 1)
        if since >= _PATIENCE:
            break
    return best


def best_threshold(scores: np.ndarray, true: np.ndarray, otherwise: float) -> float:
    """The threshold with the highest F1 over all cut points; the highest one of equals.

    Args:
        scores: Probabilities of one label in descending order, shape (N,); at least one.
        true: Whether it is active, shape (N,).
        otherwise: What to return if no threshold has an F1 above 0.

    Returns:
        Half way between the last score that is taken and the first that is not, or 0 for all.
    """
    # F1 of a cut below each frame, where the next score differs
    hits, taken = np.cumsum(true), np.arange(1, len(scores) + 1)
    ends = np.append(scores[:-1] != scores[1:], True)
    f1 = np.where(ends, 2 * hits / (taken + hits[-1]), -1.0)
    cut = int(f1.argmax())
    if f1[cut] <= 0:
        return otherwise
    if cut + 1 == len(scores):
        return 0.0
    # Rounding may not let the next score in
    last, following = np.float32(scores[cut]), np.float32(scores[cut + 1])
    middle = np.float32((last + following) / 2)
    return float(middle if middle > following else last)


def best_f1(histograms: np.ndarray) -> np.ndarray:
    """Highest F1 of labels over thresholds, from histograms of their probabilities.

    Args:
        histograms: Frames by probability from 0 to 1, shape (..., 2, `BINS`): inactive ones, then
            active ones.

    Returns:
        Shape (...), at most one bin's worth below what `best_threshold` reaches.
    """
    taken = histograms[..., ::-1].cumsum(-1)
    hits = taken[..., 1, :]
    return divide(2 * hits, taken.sum(-2) + hits[..., -1:]).max(-1)


def search_bias(
    log_scores: np.ndarray, true: np.ndarray, starts: Sequence[np.ndarray] = ()
) -> tuple[np.ndarray, float]:
    """What to add to each class's log probability for a high macro F1.

    Coordinate search: one class after the other gets the best value of a grid while the others
    stay, until nothing gains, from zero and from the negative log prior.

    Args:
        log_scores: Shape (N, C).
        true: Classes, shape (N,).
        starts: Biases to begin with in place of these two, each of shape (C,).

    Returns:
        Shape (C,), with a mean of 0, and its macro F1. All 0 where nothing is better than zero.

    Source:
        Logit adjustment (Menon et al. 2021) with the prior replaced by a search.
    """
    num_classes = log_scores.shape[1]
    frequency = np.maximum(np.bincount(true, minlength=num_classes), 1) / len(true)
    prior = -np.log(frequency)
    usual = (np.zeros(num_classes), prior - prior.mean())
    found = [_climb(log_scores, true, start) for start in starts or usual]
    bias, score = max(found, key=lambda pair: pair[1])  # the first of equals
    return np.round(bias - bias.mean(), 6), score


def _climb(log_scores: np.ndarray, true: np.ndarray, start: np.ndarray) -> tuple[np.ndarray, float]:
    """Coordinate search from one start: the bias and its macro F1."""
    bias = np.clip(np.round(start / _STEP) * _STEP, -_REACH, _REACH)
    highest = _scores_by_bias(log_scores, true, bias, 0)[round((bias[0] + _REACH) / _STEP)]
    unchanged = 0
    for turn in range(_SWEEPS * len(bias)):
        chosen = turn % len(bias)
        scores = _scores_by_bias(log_scores, true, bias, chosen)
        place = int(scores.argmax())
        # Only what is better moves, or a plateau would be wandered over for nothing
        if scores[place] > highest + 1e-12:
            bias[chosen], highest, unchanged = place * _STEP - _REACH, scores[place], 0
        else:
            unchanged += 1
        if unchanged >= len(bias):
            break
    return bias, highest


def _scores_by_bias(
    log_scores: np.ndarray, true: np.ndarray, bias: np.ndarray, chosen: int
) -> np.ndarray:
    """Macro F1 at each value of the grid for the bias of one class, the others as they are."""
    # The best of the other classes, and from which place of the grid on the chosen one beats it
    num_classes, places = len(bias), round(2 * _REACH / _STEP) + 1
    others = log_scores + bias.astype(log_scores.dtype)
    others[:, chosen] = -np.inf
    rival = others.argmax(1)
    margin = np.take_along_axis(others, rival[:, None], 1)[:, 0] - log_scores[:, chosen]
    first = np.clip(np.ceil((margin + _REACH) / _STEP), 0, places).astype(np.int64)

    # Frames by that place: of each rival, of each rival that is right, of the chosen one's own
    shape = (places + 1, num_classes)
    cell = first * num_classes + rival
    rivals = np.bincount(cell, minlength=shape[0] * shape[1]).reshape(shape)
    right = np.bincount(cell[rival == true], minlength=shape[0] * shape[1]).reshape(shape)
    own = np.bincount(first[true == chosen], minlength=shape[0])

    # Predictions and hits of every class at each place
    taken = rivals.cumsum(0)[:places]
    predicted = rivals.sum(0) - taken
    hits = right.sum(0) - right.cumsum(0)[:places]
    predicted[:, chosen], hits[:, chosen] = taken.sum(1), own.cumsum()[:places]
    support = np.bincount(true, minlength=num_classes)
    return divide(2 * hits, predicted + support).mean(1)


def thin(count: int, size: int, most: int) -> slice:
    """Every so many-th of ``count`` frames that their numbers stay below ``most``.

    Frames that follow one another are alike, so that a search loses little.

    Args:
        count: N.
        size: Numbers of a frame.
        most: Numbers that a search takes.
    """
    return slice(None, None, max(1, -(-count * size // most)))


def by_part(statistics: np.ndarray, left_out: int | None) -> np.ndarray:
    """Statistics (K, A, B) added up over the parts but for one: shape (A, B)."""
    total = statistics.sum(0)
    return total if left_out is None else total - statistics[left_out]
