"""Conditional value at risk: the mean of the worst share of each head's losses.

Shape letters: P heads, N losses that a head's tail is taken over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Tail:
    """The worst ``alpha`` share of each head's losses.

    ``alpha = 1`` is the plain mean; ``alpha <= 1/n`` is the maximum. Larger alpha is closer to the
    mean: the paper's text has it the other way round in section III-B.

    Args:
        alphas: Share of each head, in (0, 1].
        device: Where the losses are.
        dtype: Of what is computed with them; at least float32, which counts ranks exactly.

    Attributes:
        alpha: Share of each head, shape (P,).
        is_mean: Whether every head takes the plain mean, which needs no sort.
    """

    def __init__(self, alphas: Sequence[float], device: torch.device, dtype: torch.dtype) -> None:
        exact = torch.promote_types(dtype, torch.float32)
        self.alpha = torch.tensor(alphas, dtype=exact, device=device)
        self.is_mean = all(alpha == 1 for alpha in alphas)
        self._whole: Tensor | None = None

    def cvar(self, loss_PN: Tensor, mask_PN: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Mean of the tail, and its derivative.

        Args:
            loss_PN: Losses, shape (P, N), floating point.
            mask_PN: Which losses count; all by default. ``n`` is their number.

        Returns:
            CVaR, shape (P,), 0 for a head without any loss that counts; and its derivative by each
            loss, shape (P, N): each one's share in the mean, which is not to be changed. Of equal
            losses the earlier ones are taken first.

        Source:
            Lin et al. 2024, eq. (1). The minimum over lambda is reached at an order statistic, so
            one sort is exact: with k = alpha * n, the mean of the k largest losses, the last one
            counted by the fraction of k (Rockafellar and Uryasev 2000). Deviation: no search for
            lambda, and its subgradient at the perturbed point is taken there.

        Example:
            >>> tail = Tail([0.375], torch.device("cpu"), torch.float32)
            >>> tail.cvar(torch.tensor([[4.0, 1.0, 2.0, 3.0]]))
            (tensor([3.6667]), tensor([[0.6667, 0.0000, 0.0000, 0.3333]]))
        """
        length = loss_PN.shape[1]
        if mask_PN is None:
            ranked_PN, share_PN = loss_PN, self._shares_of_all(length, loss_PN.dtype)
        else:
            # Those that do not count come last, and add nothing whatever they are.
            share_PN = self._shares(mask_PN.sum(1), length, loss_PN.dtype)
            ranked_PN = torch.where(mask_PN, loss_PN, torch.finfo(loss_PN.dtype).min)
            loss_PN = torch.where(mask_PN, loss_PN, 0)
        # From shares by rank to shares in the order of samples, in which heads with and without a
        # tail add up alike.
        if not self.is_mean:
            order_PN = ranked_PN.argsort(dim=1, descending=True, stable=True)
            share_PN = torch.empty_like(share_PN).scatter_(1, order_PN, share_PN)
        elif mask_PN is not None:
            share_PN = torch.where(mask_PN, share_PN[:, :1], 0)
        return (loss_PN * share_PN).sum(1), share_PN

    def _shares_of_all(self, length: int, dtype: torch.dtype) -> Tensor:
        """`_shares` where all losses count: the same in every step, so they are kept."""
        if self._whole is None or self._whole.shape[1] != length:
            self._whole = self._shares(torch.full_like(self.alpha, length), length, dtype)
        return self._whole

    def _shares(self, count_P: Tensor, length: int, dtype: torch.dtype) -> Tensor:
        """Share in the mean of the largest loss, the second largest and so on: (P, length).

        1 / k within the tail, a fraction of that at its end, 0 beyond.
        """
        tail_P1 = (self.alpha * count_P)[:, None]
        rank_N = torch.arange(length, device=tail_P1.device, dtype=tail_P1.dtype)
        share_PN = (tail_P1 - rank_N).clamp_(0, 1)
        return (share_PN / tail_P1.clamp(min=torch.finfo(tail_P1.dtype).tiny)).to(dtype)
