"""Losses of a batch of heads, per frame or unit, weighted and masked, with their derivatives.

Each comes with its slope in closed form, so that a training step needs no autograd.

Shape letters: P heads, B frames of a batch, C classes, U units, V values, E numbers of a vector,
Q losses of a head's own for a frame.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def softmax_losses(
    logits_PBC: Tensor, target_PB: Tensor, weight_PC: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Cross-entropy of each frame, times the weight of its class.

    Args:
        logits_PBC: Floating point.
        target_PB: Class of each frame, int64.
        weight_PC: Class weights of each head.

    Returns:
        Losses in nats, shape (P, B), and their derivatives by the logits, (P, B, C): softmax minus
        one-hot, times the weight.

    Example:
        >>> softmax_losses(torch.zeros(1, 1, 4), torch.tensor([[3]]))
        (tensor([[1.3863]]), tensor([[[ 0.2500,  0.2500,  0.2500, -0.7500]]]))
    """
    own_PB1 = target_PB[..., None]
    log_PBC = torch.log_softmax(logits_PBC, -1)
    log_own_PB1 = log_PBC.gather(-1, own_PB1)
    # The probability less 1 by expm1, which keeps its digits where a frame is nearly right.
    slope_PBC = log_PBC.exp().scatter_(-1, own_PB1, log_own_PB1.expm1())
    loss_PB = -log_own_PB1[..., 0]
    if weight_PC is None:
        return loss_PB, slope_PBC
    weight_PB = weight_PC.gather(1, target_PB)
    return loss_PB * weight_PB, slope_PBC.mul_(weight_PB[..., None])


def sigmoid_losses(
    logits_PBU: Tensor, target_PBU: Tensor, weight_PU: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Binary cross-entropy of each unit of each frame, positives times the unit's weight.

    It is 0 where a unit is unlabelled.

    Args:
        logits_PBU: Floating point.
        target_PBU: 1 active, 0 not, negative unlabelled.
        weight_PU: Weight of a unit's positives, of each head.

    Returns:
        Losses in nats and their derivatives by the logits, each of shape (P, B, U).

    Example:
        >>> sigmoid_losses(torch.zeros(1, 1, 3), torch.tensor([[[1, 0, -1]]]))
        (tensor([[[0.6931, 0.6931, 0.0000]]]), tensor([[[-0.5000,  0.5000,  0.0000]]]))
    """
    is_active = target_PBU > 0
    # How far a logit is on the wrong side, and the weight of that; 0 where unlabelled.
    sign = torch.where(is_active, -1.0, 1.0).to(logits_PBU.dtype)
    factor = (target_PBU >= 0).to(logits_PBU.dtype)
    if weight_PU is not None:
        factor = torch.where(is_active, weight_PU[:, None], factor)
    wrong = sign * logits_PBU
    # -log(sigmoid) is exact on both sides, where softplus changes its formula at 20.
    return functional.logsigmoid(-wrong) * -factor, wrong.sigmoid() * (sign * factor)


def squared_errors(outputs_PBV: Tensor, target_PBV: Tensor) -> tuple[Tensor, Tensor]:
    """Squared error of each value of each frame; 0 where it is not labelled (NaN).

    Args:
        outputs_PBV: Floating point.
        target_PBV: Of the same unit, NaN where unlabelled.

    Returns:
        Losses in the squared unit and their derivatives, each of shape (P, B, V).

    Example:
        >>> squared_errors(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[0.5, torch.nan]]]))
        (tensor([[[0.2500, 0.0000]]]), tensor([[[1., 0.]]]))
    """
    difference = outputs_PBV - target_PBV.to(outputs_PBV.dtype)
    error = torch.where(torch.isfinite(target_PBV), difference, 0)
    return error**2, 2 * error


def ccc_loss(outputs_PBV: Tensor, target_PBV: Tensor) -> tuple[Tensor, Tensor]:
    """1 - concordance correlation of a batch, the mean over its values.

    A value that neither varies nor is predicted to vary in the batch is left out.

    Args:
        outputs_PBV: Floating point, over the global batch.
        target_PBV: NaN where unlabelled; that value then leaves the frame out.

    Returns:
        Loss, shape (P,), in [0, 2], 1 for a head whose batch has no labels; and its derivative by
        the outputs, shape (P, B, V).

    Source:
        Lin 1989: ccc = 2 cov / (var + var' + (mean - mean')^2), with population variances, as
        `raffect.metrics.agreement` scores it. Its derivative by an output is
        2 / (n spread) * (target - mean_target - ccc * (output - mean_target)), spread being the
        denominator.

    Example:
        >>> ccc_loss(torch.tensor([[[0.0], [1.0]]]), torch.tensor([[[1.0], [0.0]]]))[0]
        tensor([2.])
    """
    known = torch.isfinite(target_PBV)
    count_PV = known.sum(1).clamp(min=1)

    def mean(values: Tensor) -> Tensor:
        return torch.where(known, values, 0).sum(1) / count_PV

    # Means and central moments over the labelled frames.
    target = torch.where(known, target_PBV, 0)
    mean_target, mean_output = mean(target), mean(outputs_PBV)
    off_target, off_output = target - mean_target[:, None], outputs_PBV - mean_output[:, None]
    spread = mean(off_target**2) + mean(off_output**2) + (mean_target - mean_output) ** 2
    # A value without spread is left out, and has no slope.
    has_spread = spread > 0
    scale_PV = torch.where(has_spread, 2 / torch.where(has_spread, spread, 1), 0)
    ccc_PV = mean(off_target * off_output) * scale_PV
    num_P = has_spread.sum(1).clamp(min=1)
    # How the mean of what is left rises with each output.
    rise = off_target - ccc_PV[:, None] * (outputs_PBV - mean_target[:, None])
    scale_PV = scale_PV / (count_PV * num_P[:, None])
    return 1 - ccc_PV.sum(1) / num_P, torch.where(known, rise * -scale_PV[:, None], 0)


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
) -> tuple[Tensor, Tensor, Tensor]:
    """Symmetric InfoNCE of each sample: mean of that from image to text and from text to image.

    Args:
        logits_PBB: Of each image (row) with each text (column), the scale included.
        share_PBB: Of `text_shares`.
        valid_PB: Which samples count, in losses of others as well; all by default.

    Returns:
        Losses, shape (P, B), in nats, 0 or more, to be masked by ``valid_PB``. Then, each of shape
        (P, B, B), the derivative of an image's loss (first index) by the logits of its row, and
        that of a text's loss by the logits of its column.

    Source:
        Radford et al. 2021, figure 3, for texts that are all different. Deviation: where several
        texts of a batch count for a sample, the loss is the divergence of what was found from what
        counts, which has the gradient of the cross-entropy and no floor. A floor, the log of how
        often a text occurs, would put samples of frequent texts into CVaR's tail whatever a head
        does. For equal texts the gradient of the mean over a batch is also that of one text a
        sample: from image to text each of n equal texts is found with the same probability.

    Example:
        >>> share = text_shares(torch.tensor([[0, 1]]), torch.eye(2)[None])
        >>> info_nce_losses(torch.zeros(1, 2, 2), share)[0].exp()
        tensor([[2., 2.]])
    """
    total_PB1 = share_PBB.sum(-1, keepdim=True)
    loss_PB, slopes = torch.xlogy(share_PBB, share_PBB).sum(-1), []
    for logits in (logits_PBB, logits_PBB.transpose(1, 2)):
        log_PBB = _hide_columns(logits, valid_PB).log_softmax(-1)
        loss_PB = loss_PB - (share_PBB * log_PBB).sum(-1) / 2
        slopes.append((log_PBB.exp() * total_PB1 - share_PBB) / 2)
    return loss_PB, *slopes


def _hide_columns(logits_PBB: Tensor, valid_PB: Tensor | None) -> Tensor:
    """Logits of which those of samples that do not count never win, whatever they are."""
    if valid_PB is None:
        return logits_PBB
    # Not infinite: a softmax over nothing but such would be NaN.
    lowest = torch.finfo(logits_PBB.dtype).min
    return logits_PBB.masked_fill(~valid_PB[:, None], lowest)


def frame_means(
    loss_PBU: Tensor, slope_PBU: Tensor, labelled_PBU: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean over the labelled units of each frame.

    Args:
        loss_PBU: Losses, 0 where unlabelled.
        slope_PBU: Their derivatives.
        labelled_PBU: Which units are labelled.

    Returns:
        Losses of shape (P, B), their derivatives (P, B, U), and which frames have a labelled unit,
        (P, B).
    """
    count_PB = labelled_PBU.sum(-1)
    divisor_PB = count_PB.clamp(min=1)
    return loss_PBU.sum(-1) / divisor_PB, slope_PBU / divisor_PB[..., None], count_PB > 0


def sample_means(loss_PBQ: Tensor, valid_PB: Tensor | None) -> tuple[Tensor, Tensor]:
    """Mean of several losses a sample over all samples, or those that count.

    Returns:
        Shape (P,), 0 for a head without a sample that counts; and its derivative by each of the
        losses of a sample, shape (P, B).
    """
    mean_PB = loss_PBQ.mean(-1)
    if valid_PB is None:
        share_PB = torch.full_like(mean_PB, 1 / mean_PB.shape[1])
    else:
        share_PB = valid_PB.to(mean_PB.dtype) / valid_PB.sum(1, keepdim=True).clamp(min=1)
        mean_PB = mean_PB.masked_fill(~valid_PB, 0)
    return (mean_PB * share_PB).sum(1), share_PB / loss_PBQ.shape[-1]


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
