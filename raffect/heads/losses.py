"""Losses of a batch of heads: per frame or unit, weighted and masked; then the mean of the worst.

Shape letters: P heads, B frames of a batch, C classes, U units, E numbers of a vector, N elements
that a head's tail is taken over.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def softmax_losses(
    logits_PBC: Tensor, target_PB: Tensor, weight_PC: Tensor | None = None
) -> Tensor:
    """Cross-entropy of each frame, times the weight of its class.

    Args:
        logits_PBC: Floating point.
        target_PB: Class of each frame, int64.
        weight_PC: Class weights of each head.

    Returns:
        Shape (P, B), in nats.

    Example:
        >>> softmax_losses(torch.zeros(1, 2, 4), torch.tensor([[0, 3]])).exp()
        tensor([[4., 4.]])
    """
    loss_PB = -torch.log_softmax(logits_PBC, -1).gather(-1, target_PB[..., None])[..., 0]
    return loss_PB if weight_PC is None else loss_PB * weight_PC.gather(1, target_PB)


def sigmoid_losses(
    logits_PBU: Tensor, target_PBU: Tensor, weight_PU: Tensor | None = None
) -> Tensor:
    """Binary cross-entropy of each unit of each frame, positives times the unit's weight.

    It is 0 where a unit is unlabelled.

    Args:
        logits_PBU: Floating point.
        target_PBU: 1 active, 0 not, negative unlabelled.
        weight_PU: Weight of a unit's positives, of each head.

    Returns:
        Shape (P, B, U), in nats.

    Example:
        >>> sigmoid_losses(torch.zeros(1, 1, 3), torch.tensor([[[1, 0, -1]]])).exp()
        tensor([[[2., 2., 1.]]])
    """
    active = (target_PBU > 0).to(logits_PBU.dtype)
    positive = functional.softplus(-logits_PBU)
    if weight_PU is not None:
        positive = positive * weight_PU[:, None]
    loss = active * positive + (1 - active) * functional.softplus(logits_PBU)
    return torch.where(target_PBU >= 0, loss, torch.zeros_like(loss))


def squared_errors(outputs_PBV: Tensor, target_PBV: Tensor) -> Tensor:
    """Squared error of each value of each frame; 0 where it is not labelled (NaN).

    Args:
        outputs_PBV: Floating point.
        target_PBV: Of the same unit, NaN where unlabelled.

    Returns:
        Shape (P, B, V), in the squared unit.

    Example:
        >>> squared_errors(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.5, torch.nan]]]))
        tensor([[[0.2500, 0.0000]]])
    """
    # NaN is replaced before the difference, or it would return in the gradient.
    known = torch.isfinite(target_PBV)
    return torch.where(known, outputs_PBV - torch.where(known, target_PBV, 0), 0) ** 2


def ccc_loss(outputs_PBV: Tensor, target_PBV: Tensor) -> Tensor:
    """1 - concordance correlation of a batch, the mean over its values.

    A value that neither varies nor is predicted to vary in the batch is left out.

    Args:
        outputs_PBV: Floating point, over the global batch.
        target_PBV: NaN where unlabelled; that value then leaves the frame out.

    Returns:
        Shape (P,), in [0, 2]; 1 for a head whose batch has no labels.

    Source:
        Lin 1989: ccc = 2 cov / (var + var' + (mean - mean')^2), with population variances, as
        `raffect.metrics.agreement` scores it.

    Example:
        >>> ccc_loss(torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[1.0], [0.0]]]))
        tensor([2.])
    """
    known = torch.isfinite(target_PBV)
    count = known.sum(1).clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return torch.where(known, values, 0).sum(1) / count

    # Means and central moments over the labelled frames.
    target = torch.where(known, target_PBV, 0)
    mean_target, mean_output = mean(target), mean(outputs_PBV)
    off_target, off_output = target - mean_target[:, None], outputs_PBV - mean_output[:, None]
    spread = mean(off_target**2) + mean(off_output**2) + (mean_target - mean_output) ** 2
    # The inner `where` keeps the gradient finite where nothing varies.
    has_spread = spread > 0
    ratio = 2 * mean(off_target * off_output) / torch.where(has_spread, spread, 1)
    ccc = torch.where(has_spread, ratio, 0)
    return 1 - ccc.sum(1) / has_spread.sum(1).clamp(min=1)


def text_shares(
    same_PB: Tensor,
    vectors_PBE: Tensor,
    temperature_P: Tensor | None = None,
    valid_PB: Tensor | None = None,
) -> Tensor:
    """How far each text of a batch counts as that of each sample: what InfoNCE should find.

    Args:
        same_PB: Number of each sample's text; equal texts have equal numbers.
        vectors_PBE: Their vectors, of length 1.
        temperature_P: Of the cosines of texts, for each head: those near to a sample's own text
            count as its own, the more the higher it is. 0 or None: only equal texts do, alike.
        valid_PB: Which samples count; all by default.

    Returns:
        Shape (P, B, B), of the vectors' type: rows are samples, which add up to 1 over the texts of
        samples that count; a sample that does not count has all 0 where no equal text does.

    Source:
        Soft targets from similarities within one modality are those of Gao et al. 2023 (SoftCLIP).
    """
    equal_PBB = same_PB[:, :, None] == same_PB[:, None]
    if valid_PB is not None:
        equal_PBB = equal_PBB & valid_PB[:, None]
    equal_PBB = equal_PBB.to(vectors_PBE.dtype)
    share_PBB = equal_PBB / equal_PBB.sum(-1, keepdim=True).clamp(min=1)
    if temperature_P is None:
        return share_PBB
    # A head without a temperature takes any: its row is not used.
    safe_P = torch.where(temperature_P > 0, temperature_P, 1)
    cosine_PBB = vectors_PBE @ vectors_PBE.transpose(1, 2) / safe_P[:, None, None]
    soft_PBB = _hide_columns(cosine_PBB, valid_PB).softmax(-1)
    return torch.where((temperature_P > 0)[:, None, None], soft_PBB, share_PBB)


def info_nce_losses(
    logits_PBB: Tensor, share_PBB: Tensor, valid_PB: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE of each sample: mean of that from image to text and from text to image.

    Args:
        logits_PBB: Of each image (row) with each text (column), the scale included.
        share_PBB: Of `text_shares`.
        valid_PB: Which samples count, in losses of others as well; all by default.

    Returns:
        Shape (P, B), in nats, 0 or more; to be masked by ``valid_PB``.

    Source:
        Radford et al. 2021, figure 3, for texts that are all different. Deviation: where several
        texts of a batch count for a sample, the loss is the divergence of what was found from what
        counts, which has the gradient of the cross-entropy and no floor. A floor, the log of how
        often a text occurs, would put samples of frequent texts into CVaR's tail whatever a head
        does. For equal texts the gradient of the mean over a batch is also that of one text a
        sample: from image to text each of n equal texts is found with the same probability.

    Example:
        >>> share = text_shares(torch.tensor([[0, 1]]), torch.eye(2)[None])
        >>> info_nce_losses(torch.zeros(1, 2, 2), share).exp()
        tensor([[2., 2.]])
    """
    own_entropy_PB = torch.xlogy(share_PBB, share_PBB).sum(-1)
    loss_PB = own_entropy_PB
    for logits in (logits_PBB, logits_PBB.transpose(1, 2)):
        found_PBB = _hide_columns(logits, valid_PB).log_softmax(-1)
        loss_PB = loss_PB - (share_PBB * found_PBB).sum(-1) / 2
    return loss_PB


def _hide_columns(logits_PBB: Tensor, valid_PB: Tensor | None) -> Tensor:
    """Logits of which those of samples that do not count never win, whatever they are."""
    if valid_PB is None:
        return logits_PBB
    # Not infinite: a softmax over nothing but such would be NaN.
    lowest = torch.finfo(logits_PBB.dtype).min
    return logits_PBB.masked_fill(~valid_PB[:, None], lowest)


def frame_means(loss_PBU: Tensor, labelled_PBU: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the labelled units of each frame.

    Returns:
        Losses of shape (P, B), and which frames have a labelled unit, (P, B).
    """
    count = labelled_PBU.sum(-1)
    return (loss_PBU * labelled_PBU).sum(-1) / count.clamp(min=1), count > 0


def sample_means(loss_PBQ: Tensor, valid_PB: Tensor | None) -> Tensor:
    """Mean of several losses a sample over all samples, or those that count.

    Returns:
        Shape (P,); 0 for a head without a sample that counts.
    """
    mean_PB = loss_PBQ.mean(-1)
    if valid_PB is None:
        return mean_PB.mean(1)
    return torch.where(valid_PB, mean_PB, 0).sum(1) / valid_PB.sum(1).clamp(min=1)


def cvar(loss_PN: Tensor, alpha_P: Tensor, mask_PN: Tensor | None = None) -> Tensor:
    """Mean of the worst ``alpha`` share of each head's losses: conditional value at risk.

    ``alpha = 1`` is the plain mean; ``alpha <= 1/n`` is the maximum. Larger alpha is closer to the
    mean: the paper's text has it the other way round in section III-B.

    Args:
        loss_PN: Losses, shape (P, N), floating point.
        alpha_P: Tail share of each head, shape (P,), in (0, 1].
        mask_PN: Which losses count; all by default. ``n`` is their number.

    Returns:
        Shape (P,), differentiable in ``loss_PN``; 0 for a head without any loss that counts.

    Source:
        Lin et al. 2024, eq. (1). The minimum over lambda is reached at an order statistic, so one
        sort is exact: with k = alpha * n, the mean of the k largest losses, the last one counted by
        the fraction of k (Rockafellar and Uryasev 2000). Deviation: no search for lambda, and its
        subgradient at the perturbed point is taken there.

    Example:
        >>> cvar(torch.tensor([[4.0, 1.0, 2.0, 3.0]]), torch.tensor([0.375]))
        tensor([3.6667])
    """
    # Losses from the largest down; those that do not count come last.
    if mask_PN is None:
        count_P = torch.full_like(alpha_P, loss_PN.shape[1])
        ranked = loss_PN.sort(dim=1, descending=True).values
    else:
        count_P = mask_PN.sum(1).to(alpha_P.dtype)
        lowest = torch.finfo(loss_PN.dtype).min
        ranked = torch.where(mask_PN, loss_PN, lowest).sort(dim=1, descending=True).values
    # The share of each in the mean: 1 within the tail, a fraction at its end, 0 beyond.
    tail_P = alpha_P * count_P
    rank_N = torch.arange(loss_PN.shape[1], device=loss_PN.device, dtype=alpha_P.dtype)
    share_PN = (tail_P[:, None] - rank_N).clamp(0, 1)
    share_PN = share_PN / share_PN.sum(1, keepdim=True).clamp(min=torch.finfo(alpha_P.dtype).tiny)
    return (torch.where(share_PN > 0, ranked, 0) * share_PN).sum(1)


def class_weights(counts_C: Tensor, kind: str, beta: float) -> Tensor:
    """Weights of classes, scaled so that the mean over frames is 1; 0 for a class without frames.

    Args:
        counts_C: Frames a class, shape (C,).
        kind: ``"none"``, ``"inverse"`` frequency, or ``"effective"`` number.
        beta: Of the effective number.

    Returns:
        Shape (C,), float64.

    Source:
        Cui et al. 2019, eq. (7): (1 - beta) / (1 - beta^n). Deviation: scaled by frames, not by
        classes, so that the learning rate means the same with and without weights.
    """
    # A class without frames has weight 0, not infinity.
    counts = counts_C.double()
    present = (counts > 0).double()
    weights = _rarity(counts, kind, beta) * present
    return weights * counts.sum() / (weights * counts).sum()


def unit_weights(positive_U: Tensor, negative_U: Tensor, kind: str, beta: float) -> Tensor:
    """Weight of each unit's positives against its negatives; 1 for a unit that lacks either.

    Args:
        positive_U: Active frames a unit, shape (U,).
        negative_U: Inactive frames a unit.
        kind: ``"none"``, ``"inverse"`` frequency, or ``"effective"`` number.
        beta: Of the effective number.

    Returns:
        Shape (U,), float64.
    """
    positive, negative = positive_U.double(), negative_U.double()
    ratio = _rarity(positive, kind, beta) / _rarity(negative, kind, beta)
    return torch.where((positive > 0) & (negative > 0), ratio, torch.ones_like(ratio))


def _rarity(counts: Tensor, kind: str, beta: float) -> Tensor:
    """Weights before scaling: larger for what is rarer, all 1 for the kind ``"none"``."""
    counts = counts.clamp(min=1)
    if kind == "inverse":
        return 1 / counts
    return (1 - beta) / (1 - beta**counts) if kind == "effective" else torch.ones_like(counts)


def class_shift(counts_C: Tensor) -> Tensor:
    """Log prior of each class, to add to its logit in training.

    A class without frames counts as one with a single frame.

    Source:
        Menon et al. 2021, eq. (10).
    """
    counts = counts_C.double().clamp(min=1)
    return (counts / counts.sum()).log()


def unit_shift(positive_U: Tensor, negative_U: Tensor) -> Tensor:
    """Log prior odds of each unit, to add to its logit in training.

    A count of 0 frames is taken as 1.
    """
    return positive_U.double().clamp(min=1).log() - negative_U.double().clamp(min=1).log()
