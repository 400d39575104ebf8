"""Scores from additive counts: counts of videos add up to those of a split, those of workers to those of a run.

Counts have shape (..., K, 4): true positives, false positives, false negatives and true negatives of K classes or units. Scores
always count all K of them: one that never occurs scores 0 and is not dropped, as scikit-learn's and torchmetrics' macro F1 would.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from raffect.data.labels import EXPR, EXPRESSIONS, Task

BOOTSTRAP_DRAWS = 1000


def count_confusion(truth_N: Tensor, guess_PN: Tensor, video_N: Tensor, num_videos: int, num_classes: int) -> Tensor:
    """Confusion matrix of each video and member.

    Args:
        truth_N: Classes, int64.
        guess_PN: Classes that each member says, int64.
        video_N: Number of each frame's video, int64.
        num_videos: How many there are.
        num_classes: C.

    Returns:
        int64, shape (P, videos, C, C): rows are the truth, columns the guess.
    """
    members = torch.arange(len(guess_PN), device=guess_PN.device)[:, None]
    cell = ((members * num_videos + video_N) * num_classes + truth_N) * num_classes + guess_PN
    counts = torch.bincount(cell.flatten(), minlength=len(guess_PN) * num_videos * num_classes**2)
    return counts.view(len(guess_PN), num_videos, num_classes, num_classes)


def count_units(truth_NU: Tensor, guess_PNU: Tensor, video_N: Tensor, num_videos: int) -> Tensor:
    """Hits and misses of each unit, video and member; unlabelled units (negative) are left out.

    Returns:
        int64, shape (P, videos, U, 4).
    """
    units = truth_NU.shape[1]
    is_true = truth_NU > 0
    kind = torch.where(guess_PNU, torch.where(is_true, 0, 1), torch.where(is_true, 2, 3))
    members = torch.arange(len(guess_PNU), device=guess_PNU.device)[:, None, None]
    cell = ((members * num_videos + video_N[:, None]) * units + torch.arange(units, device=truth_NU.device)) * 4 + kind
    counts = torch.bincount(cell[:, truth_NU >= 0].flatten(), minlength=len(guess_PNU) * num_videos * units * 4)
    return counts.view(len(guess_PNU), num_videos, units, 4)


def hits(counts: np.ndarray, task: Task) -> np.ndarray:
    """Counts of a task as (..., K, 4): a confusion matrix is seen one class against the rest, unit counts are that already."""
    if task is not EXPR:
        return counts
    true = np.diagonal(counts, axis1=-2, axis2=-1)
    said, there, all_ = counts.sum(-2), counts.sum(-1), counts.sum((-2, -1))[..., None]
    return np.stack([true, said - true, there - true, all_ - said - there + true], -1)


def f1_scores(hits: np.ndarray) -> np.ndarray:
    """F1 of each class: shape (..., K), 0 where it neither occurs nor is said.

    Example:
        >>> f1_scores(np.array([[2, 1, 1, 0], [0, 0, 0, 4]])).round(3).tolist()
        [0.667, 0.0]
    """
    return _ratio(2 * hits[..., 0], 2 * hits[..., 0] + hits[..., 1] + hits[..., 2])


def macro_f1(counts: np.ndarray, task: Task) -> np.ndarray:
    """Mean F1 over all classes or units: shape (...)."""
    return f1_scores(hits(counts, task)).mean(-1)


def score(counts: np.ndarray, task: Task, names: tuple[str, ...]) -> dict:
    """All scores of one member from counts summed over videos, as plain JSON values.

    Returns:
        ``macro_f1``; ``accuracy`` (EXPR); a line a class with precision, recall, F1, support and share said; ``confusion`` (EXPR).
    """
    table = hits(counts, task)
    precision, recall = _ratio(table[:, 0], table[:, 0] + table[:, 1]), _ratio(table[:, 0], table[:, 0] + table[:, 2])
    f1 = f1_scores(table)
    classes = {
        name: {"precision": float(precision[k]), "recall": float(recall[k]), "f1": float(f1[k]), "support": int(table[k, 0] + table[k, 2]), "said": int(table[k, 0] + table[k, 1])}
        for k, name in enumerate(names)
    }
    out = {"macro_f1": float(f1.mean()), "classes": classes}
    if task is EXPR:
        out |= {"accuracy": float(np.trace(counts) / max(counts.sum(), 1)), "confusion": counts.tolist()}
    return out


def bootstrap_videos(counts: np.ndarray, task: Task, seed: int, draws: int = BOOTSTRAP_DRAWS) -> tuple[float, float]:
    """95 % interval of macro F1 when whole videos are drawn again with replacement, since frames of a video are alike.

    A class that no drawn video shows is left out of that draw's mean: the draw lost it, not the head. Rare classes are lost most often
    and are hard, which lifts the draws above the score; the interval is moved back by the mean of that difference.

    Args:
        counts: Counts of each video, (videos, C, C) or (videos, U, 4); or of several heads, with one more dimension in front,
            whose mean score is wanted.
        task: Their task.
        seed: Of the draws.
        draws: How many.

    Returns:
        Lower and upper end.
    """
    counts = counts[None] if counts.ndim == 3 else counts
    videos = counts.shape[1]
    drawn = np.random.default_rng(seed).multinomial(videos, np.full(videos, 1 / videos), draws)
    table = hits(np.einsum("dv,hvab->hdab", drawn, counts, optimize=True), task)
    shown = table[..., 0] + table[..., 2] > 0
    never = ~shown.any(1, keepdims=True)  # what the split itself lacks scores 0 in every draw, as in the score
    scores = ((f1_scores(table) * shown).sum(-1) / np.maximum((shown | never).sum(-1), 1)).mean(0)
    lift = scores.mean() - macro_f1(counts.sum(1), task).mean()
    low, high = np.clip(np.quantile(scores, (0.025, 0.975)) - lift, 0, 1)
    return float(low), float(high)


def trivial(counts: np.ndarray, task: Task) -> Mapping[str, str | float]:
    """The best predictors that never look.

    Args:
        counts: Of any member; only how often each class occurs is used.
        task: Their task.

    Returns:
        ``answer``, the best constant one (one expression for every frame, or every unit always active), and its ``macro_f1``. For
        EXPR also ``guess``, what guesses drawn with the split's own class shares p_k score on average: F1 of class k is p_k, so it
        is 1/8 whatever the shares, and no other blind guess reaches more. For units the constant is the best.
    """
    if task is not EXPR:
        positive, labelled = hits(counts, task)[:, [0, 2]].sum(1), counts.sum(1)
        return {"answer": "all units active", "macro_f1": float(_ratio(2 * positive, positive + labelled).mean())}
    there = counts.sum(1)
    best = int(there.argmax())
    constant = float(_ratio(2 * there[best], there[best] + there.sum())) / len(EXPRESSIONS)
    return {"answer": f"always {EXPRESSIONS[best]}", "macro_f1": constant, "guess": 1 / len(EXPRESSIONS)}


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.divide(part, whole, out=np.zeros(np.shape(part), np.float64), where=np.asarray(whole) > 0)
