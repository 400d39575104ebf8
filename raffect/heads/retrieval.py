"""Vectors that heads compare their outputs with, and which of them come first.

Shape letters: P heads, N samples, B samples of a batch, V targets, E numbers of a vector, K
candidates, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from raffect.heads.head_batch import normalise
from raffect.heads.loss_kind import Truth
from raffect.metrics.retrieval import EXACT, MOST_CANDIDATES, Candidates


@dataclass(frozen=True)
class CandidateVectors:
    """Vectors of a contrastive task on a device.

    Attributes:
        vectors: float16, shape (V, E); a teacher's may be many, so they are not kept wider.
        same, distinct, guess, frequent, owner: See `raffect.metrics.retrieval.Candidates`.
    """

    vectors: Tensor
    same: Tensor
    distinct: Tensor | None
    guess: Tensor
    frequent: Tensor
    owner: Tensor

    @classmethod
    def of(cls, vectors: np.ndarray, candidates: Candidates, device: torch.device) -> Self:
        """Vectors as they are stored, shape (V, E), and their candidates, on a device."""

        def move(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        return cls(
            vectors=move(vectors),
            same=move(candidates.same),
            distinct=None if candidates.distinct is None else move(candidates.distinct),
            guess=move(candidates.guess),
            frequent=move(candidates.frequent),
            owner=move(candidates.owner),
        )

    def take(self, number: Tensor, dtype: torch.dtype) -> Tensor:
        """Vectors of length 1 by their numbers, shape (*number, E)."""
        found = self.vectors.index_select(0, number.flatten()).to(dtype)
        return normalise(found, "l2").view(*number.shape, self.vectors.shape[1])


def count_hits(
    outputs_PNE: Tensor, truth: Truth, num_classes: int, targets: CandidateVectors
) -> Tensor:
    """Statistics of retrieval of each head and video.

    Args:
        outputs_PNE: Vectors of every head for N samples, of any length.
        truth: What they are judged by; targets have the numbers of a vector and of a class. The
            vectors of the class that a head leaves out are no candidates for other samples.
        num_classes: C.
        targets: What outputs are compared with.

    Returns:
        float64, shape (P, videos, C, 4); see `raffect.metrics.retrieval.Contrastive`.
    """
    # What every sample adds to the four sums
    number_N, class_N = truth.target.unbind(1)
    same_N = targets.same[number_N]
    first_PN = rank_first(outputs_PNE, truth.target, targets, truth.left_out)
    hit_PN = (first_PN == same_N).double()
    constant_N = (targets.frequent[number_N] == same_N).double()
    guess = _guess(number_N, class_N, targets, truth.left_out)
    others = (torch.ones_like(constant_N), guess, constant_N)
    terms_PN4 = torch.stack([hit_PN, *(term.expand_as(hit_PN) for term in others)], -1)

    # Not index_add_, which on CUDA adds in any order
    shape = (len(outputs_PNE), truth.num_videos * num_classes, 4)
    out = torch.zeros(shape, dtype=torch.float64, device=outputs_PNE.device)
    cell_N = truth.video * num_classes + class_N
    out.transpose(0, 1).index_put_((cell_N,), terms_PN4.transpose(0, 1), accumulate=True)
    return out.view(len(outputs_PNE), truth.num_videos, num_classes, 4)


def _guess(
    number_N: Tensor, class_N: Tensor, targets: CandidateVectors, left_out_P: Tensor | None
) -> Tensor:
    """How often a guess among the candidates is right, shape (N,), or (P, N) where heads differ.

    Of blocks of many candidates those that a head leaves out are not taken off.
    """
    guess_N = targets.guess[number_N]
    if left_out_P is None or targets.distinct is None:
        return guess_N
    owner_K = targets.owner[targets.distinct]
    hidden_P1 = (owner_K == left_out_P[:, None]).sum(1, keepdim=True) * (left_out_P >= 0)[:, None]
    is_other_PN = class_N != left_out_P[:, None]
    count_PN = len(owner_K) - hidden_P1 * is_other_PN
    # Rounded as `find_candidates` has it, so that sums are exact
    return torch.where(hidden_P1 > 0, (EXACT / count_PN.double()).round() / EXACT, guess_N)


def rank_first(
    outputs_PNE: Tensor, target_N2: Tensor, targets: CandidateVectors, left_out_P: Tensor | None
) -> Tensor:
    """Which distinct target is nearest to each output among the candidates, int64, shape (P, N).

    Of equally near ones it is that of the lowest number. Arguments are those of `count_hits` and of
    its `raffect.heads.loss_kind.Truth`.
    """
    number_N, class_N = target_N2.unbind(1)
    if targets.distinct is not None:
        return _nearest(outputs_PNE, class_N, targets.distinct, targets, left_out_P)
    # Each block of targets with the samples that have one of them
    first_PN = torch.empty(outputs_PNE.shape[:2], dtype=torch.int64, device=outputs_PNE.device)
    block_N = number_N // MOST_CANDIDATES
    for block in block_N.unique().tolist():
        rows = (block_N == block).nonzero()[:, 0]
        start = block * MOST_CANDIDATES
        stop = min(start + MOST_CANDIDATES, len(targets.vectors))
        candidates = torch.arange(start, stop, device=rows.device)
        outputs = outputs_PNE[:, rows]
        first_PN[:, rows] = _nearest(outputs, class_N[rows], candidates, targets, left_out_P)
    return first_PN


def _nearest(
    outputs_PNE: Tensor,
    class_N: Tensor,
    candidates_K: Tensor,
    targets: CandidateVectors,
    left_out_P: Tensor | None,
) -> Tensor:
    """Which of the candidates is nearest, as the number of the first target that is equal."""
    score_PNK = outputs_PNE @ targets.take(candidates_K, outputs_PNE.dtype).T
    if left_out_P is not None:
        # Targets without a class of their own have -1, which no head leaves out
        hidden_P1 = torch.where(left_out_P < 0, -2, left_out_P)[:, None]
        is_hidden_PK = targets.owner[candidates_K] == hidden_P1
        is_hidden_PNK = is_hidden_PK[:, None] & (class_N != hidden_P1)[..., None]
        score_PNK = score_PNK.masked_fill(is_hidden_PNK, -torch.inf)
    return targets.same[candidates_K[score_PNK.argmax(-1)]]
