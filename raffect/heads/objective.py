"""What a batch of heads minimises.

These are losses of its outputs, weighted, adjusted and masked, and of them each head's worst share.

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
        configs = [recipe.loss for recipe in recipes]
        self.name, self.tail_over = configs[0].name, configs[0].tail_over
        for config in configs:
            self.kind.require_loss(config)
        self.alpha = torch.tensor([config.alpha for config in configs], dtype=dtype, device=device)
        # None where no head needs them, which saves a kernel in every step.
        self.weights = self.shift = None
        if any(config.weighting != "none" for config in configs):
            weights = [self.kind.weights(config, prior) for config in configs]
            self.weights = torch.stack(weights).to(device, dtype)
        if any(config.logit_adjustment for config in configs):
            shifts = [config.logit_adjustment * self.kind.shift(prior) for config in configs]
            self.shift = torch.stack(shifts)[:, None].to(device, dtype)

    def loss(self, outputs_PBC: Tensor, target: Tensor) -> Tensor:
        """Loss of the global batch of each head, shape (P,).

        It is differentiable in this worker's outputs.
        """
        # CCC has no losses of single frames: its moments are those of the global batch.
        if self.name == "ccc":
            known = self.workers.gather(target.to(outputs_PBC.dtype))
            return losses.ccc_loss(self.workers.gather(outputs_PBC), known)
        if self.shift is not None:
            outputs_PBC = outputs_PBC + self.shift
        loss_PN, mask_PN = self.kind.losses(outputs_PBC, target, self.weights, self.tail_over)
        # The tail is one of the global batch as well.
        loss_PN = self.workers.gather(loss_PN)
        mask_PN = None if mask_PN is None else self.workers.gather(mask_PN)
        return losses.cvar(loss_PN, self.alpha, mask_PN)

    def gradient(self, outputs_PBC: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (P,), and its derivative by this worker's outputs."""
        outputs = outputs_PBC.detach().requires_grad_()
        with torch.enable_grad():
            loss_P = self.loss(outputs, target)
            (derivative,) = torch.autograd.grad(loss_P.sum(), outputs)
        return loss_P.detach(), derivative
