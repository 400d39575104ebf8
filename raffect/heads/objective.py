"""What a batch of heads minimises: losses of its outputs, weighted, adjusted and masked, and of them each head's worst share.

Shape letters: P heads, B frames of this worker's part of the batch, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raffect.heads import losses
from raffect.heads.loss_kinds import Prior, loss_kind
from raffect.heads.workers import Workers
from raffect.recipe import Recipe


class Objective:
    """The loss of a batch of heads.

    Args:
        recipes: One a head.
        prior: Counts of the training labels.
        device: Where the outputs are.
        dtype: Their type.
        workers: Who computes parts of a batch.

    Raises:
        RaffectError: If the kind of task does not have the loss.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        prior: Prior,
        device: torch.device,
        dtype: torch.dtype,
        workers: Workers,
    ) -> None:
        self.workers, self.kind = workers, loss_kind(prior.task)
        self.name, self.tail_over = recipes[0].loss.name, recipes[0].loss.tail_over
        for recipe in recipes:
            self.kind.require_loss(recipe.loss)
        self.alpha = torch.tensor(
            [recipe.loss.alpha for recipe in recipes], dtype=dtype, device=device
        )
        self.weights = self.shift = None
        if any(recipe.loss.weighting != "none" for recipe in recipes):
            self.weights = torch.stack(
                [self.kind.weights(recipe.loss, prior) for recipe in recipes]
            ).to(device, dtype)
        if any(recipe.loss.logit_adjustment for recipe in recipes):
            shifts = [recipe.loss.logit_adjustment * self.kind.shift(prior) for recipe in recipes]
            self.shift = torch.stack(shifts)[:, None].to(device, dtype)

    def loss(self, outputs_PBC: Tensor, target: Tensor) -> Tensor:
        """Loss of the global batch of each head, shape (P,), differentiable in this worker's outputs."""
        if self.name == "ccc":  # its moments are those of the global batch
            return losses.ccc_loss(
                self.workers.gather(outputs_PBC), self.workers.gather(target.to(outputs_PBC.dtype))
            )
        if self.shift is not None:
            outputs_PBC = outputs_PBC + self.shift
        loss_PN, mask_PN = self.kind.losses(outputs_PBC, target, self.weights, self.tail_over)
        return losses.cvar(
            self.workers.gather(loss_PN),
            self.alpha,
            None if mask_PN is None else self.workers.gather(mask_PN),
        )

    def gradient(self, outputs_PBC: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (P,), and its derivative by this worker's outputs."""
        outputs = outputs_PBC.detach().requires_grad_()
        with torch.enable_grad():
            loss_P = self.loss(outputs, target)
            (derivative,) = torch.autograd.grad(loss_P.sum(), outputs)
        return loss_P.detach(), derivative
