"""What a pack minimises: losses of its logits, weighted, adjusted and masked, and of them each member's worst share.

Shape letters: P members, B frames of this worker's part of the batch, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raffect.model import losses
from raffect.model.workers import Workers
from raffect.recipe import Recipe


@dataclass(frozen=True)
class Prior:
    """How often each class occurs (EXPR), or each unit is active and inactive (AU), in the training rows."""

    positive: Tensor
    negative: Tensor | None = None


class Objective:
    """The loss of a pack's logits: weighted, adjusted and masked, and of it each member's worst share.

    Args:
        recipes: One a member.
        prior: Counts of the training labels.
        device: Where the logits are.
        dtype: Their type.
        workers: Who computes parts of a batch.
    """

    def __init__(self, recipes: Sequence[Recipe], prior: Prior, device: torch.device, dtype: torch.dtype, workers: Workers) -> None:
        self.workers, self.granularity = workers, recipes[0].loss.granularity
        self.alpha = torch.tensor([recipe.loss.alpha for recipe in recipes], dtype=dtype, device=device)
        weights, shifts = zip(*(_weights_and_shift(recipe, prior) for recipe in recipes), strict=True)
        self.weights = torch.stack(weights).to(device, dtype) if any(recipe.loss.weighting != "none" for recipe in recipes) else None
        self.shift = torch.stack(shifts)[:, None].to(device, dtype) if any(recipe.loss.logit_adjustment for recipe in recipes) else None

    def loss(self, logits_PBC: Tensor, target: Tensor) -> Tensor:
        """Loss of the global batch of each member, shape (P,), differentiable in this worker's logits."""
        if self.shift is not None:
            logits_PBC = logits_PBC + self.shift
        if target.ndim == 2:
            return losses.cvar(self.workers.gather(losses.softmax_losses(logits_PBC, target, self.weights)), self.alpha)
        values, mask = losses.sigmoid_losses(logits_PBC, target, self.weights), target >= 0
        if self.granularity == "sample":
            values, mask = losses.frame_means(values, mask)
        return losses.cvar(self.workers.gather(values.flatten(1)), self.alpha, self.workers.gather(mask.flatten(1)))

    def gradient(self, logits_PBC: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (P,), and its derivative by this worker's logits."""
        logits = logits_PBC.detach().requires_grad_()
        with torch.enable_grad():
            loss_P = self.loss(logits, target)
            (derivative,) = torch.autograd.grad(loss_P.sum(), logits)
        return loss_P.detach(), derivative


def count_labels(y: np.ndarray, outputs: int) -> Prior:
    """Class counts of (N,) labels, or active and inactive counts of (N, U) ones."""
    if y.ndim == 1:
        return Prior(torch.from_numpy(np.bincount(y, minlength=outputs)))
    return Prior(torch.from_numpy((y == 1).sum(0)), torch.from_numpy((y == 0).sum(0)))


def _weights_and_shift(recipe: Recipe, prior: Prior) -> tuple[Tensor, Tensor]:
    loss = recipe.loss
    if prior.negative is None:
        return losses.class_weights(prior.positive, loss.weighting, loss.beta), loss.logit_adjustment * losses.class_shift(prior.positive)
    return losses.unit_weights(prior.positive, prior.negative, loss.weighting, loss.beta), loss.logit_adjustment * losses.unit_shift(prior.positive, prior.negative)
