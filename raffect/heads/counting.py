"""Additive statistics of heads on videos: confusion matrices, counts of labels, moments of values.

`raffect.metrics` makes scores of them.

Shape letters: P heads, N frames, V values.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raffect.metrics.agreement import MOMENTS


def count_confusion(
    true_N: Tensor, predicted_PN: Tensor, video_N: Tensor, num_videos: int, num_classes: int
) -> Tensor:
    """Confusion matrix of each video and head.

    Args:
        true_N: Classes, int64.
        predicted_PN: Classes that each head predicts, int64.
        video_N: Number of each frame's video, int64.
        num_videos: How many there are.
        num_classes: C.

    Returns:
        int64, shape (P, videos, C, C): rows are true, columns predicted.
    """
    # Each prediction is a number: the index of its cell in the flattened result.
    shape = (len(predicted_PN), num_videos, num_classes, num_classes)
    heads = torch.arange(len(predicted_PN), device=predicted_PN.device)[:, None]
    cell = ((heads * num_videos + video_N) * num_classes + true_N) * num_classes + predicted_PN
    return torch.bincount(cell.flatten(), minlength=math.prod(shape)).view(shape)


def count_labels(
    true_NL: Tensor, predicted_PNL: Tensor, video_N: Tensor, num_videos: int
) -> Tensor:
    """True and false positives and negatives of each label, video and head.

    Unlabelled ones are left out.

    Args:
        true_NL: 1 active, 0 not, negative unlabelled.
        predicted_PNL: Whether each head predicts the label, bool.
        video_N: Number of each frame's video, int64.
        num_videos: How many there are.

    Returns:
        int64, shape (P, videos, L, 4).
    """
    # Which of the four a prediction is, in the order of `raffect.metrics.f1`.
    is_true = true_NL > 0
    outcome = torch.where(predicted_PNL, torch.where(is_true, 0, 1), torch.where(is_true, 2, 3))
    # Each prediction is a number: the index of its cell in the flattened result.
    shape = (len(predicted_PNL), num_videos, true_NL.shape[1], 4)
    heads = torch.arange(len(predicted_PNL), device=predicted_PNL.device)[:, None, None]
    labels = torch.arange(true_NL.shape[1], device=true_NL.device)
    cell = ((heads * num_videos + video_N[:, None]) * len(labels) + labels) * 4 + outcome
    labelled = cell[:, true_NL >= 0].flatten()
    return torch.bincount(labelled, minlength=math.prod(shape)).view(shape)


def sum_moments(true_NV: Tensor, predicted_PNV: Tensor, video_N: Tensor, num_videos: int) -> Tensor:
    """Moments of each value, video and head over the frames where it is labelled (not NaN).

    Returns:
        float64, shape (P, videos, V, 6); see `raffect.metrics.agreement`.
    """
    # What each frame adds to the six sums; nothing where it is not labelled.
    known = torch.isfinite(true_NV)
    true = torch.where(known, true_NV, 0).double().expand(predicted_PNV.shape)
    predicted = torch.where(known, predicted_PNV.double(), 0)
    count = known.double().expand(predicted_PNV.shape)
    terms = torch.stack([count, true, predicted, true**2, predicted**2, true * predicted], -1)
    shape = (len(predicted_PNV), num_videos, true_NV.shape[1], MOMENTS)
    out = torch.zeros(shape, dtype=torch.float64, device=true_NV.device)
    # Not index_add_, which on CUDA adds in any order: a score's last bits would vary between runs.
    out.transpose(0, 1).index_put_((video_N,), terms.transpose(0, 1), accumulate=True)
    return out
