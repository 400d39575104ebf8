"""What a batch of heads minimises.

These are losses of its outputs, weighted, adjusted and masked, and of them each head's worst share;
and beside them the heads' own losses.

Shape letters: P heads, B frames of this worker's part of the batch, C outputs, Q losses of a head's
own for a frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from raffect.heads import losses
from raffect.heads.loss_kind import Prior, Terms
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
        num_penalties: Q.

    Raises:
        RaffectError: If the kind of task does not have the loss, or the class to leave out.
    """

    def __init__(
        self,
        recipes: Sequence[Recipe],
        prior: Prior,
        device: torch.device,
        dtype: torch.dtype,
        workers: Workers,
        num_penalties: int = 0,
    ) -> None:
        self.workers, self.kind, self.num_penalties = workers, prior.kind, num_penalties
        configs = [recipe.loss for recipe in recipes]
        self.name, self.tail_over = configs[0].name, configs[0].tail_over
        for recipe in recipes:
            self.kind.require_recipe(recipe)
        left_out = self.kind.left_out(recipes)
        numbers = [-1] * len(recipes) if left_out is None else left_out.tolist()
        self.left_out = None if left_out is None else left_out.to(device)

        # None where no head needs them, which saves a kernel in every step.
        def of_each(values: Sequence[float]) -> Tensor | None:
            found = torch.tensor(values, dtype=dtype, device=device)
            return found if any(values) else None

        self.alpha = torch.tensor([config.alpha for config in configs], dtype=dtype, device=device)
        self.temperature = of_each([config.soft_targets for config in configs])
        self.order = of_each([config.order for config in configs])
        self.weights = self.shift = None
        priors = [prior.without(number) for number in numbers]
        pairs = list(zip(configs, priors, strict=True))
        if any(config.weighting != "none" for config in configs):
            weights = [self.kind.weights(config, own) for config, own in pairs]
            self.weights = torch.stack(weights).to(device, dtype)
        if any(config.logit_adjustment for config in configs):
            shifts = [config.logit_adjustment * self.kind.shift(own) for config, own in pairs]
            self.shift = torch.stack(shifts)[:, None].to(device, dtype)

    def loss(self, outputs_PBC: Tensor, target: Tensor) -> Tensor:
        """Loss of the global batch of each head, shape (P,).

        Args:
            outputs_PBC: Of this worker's part, shape (P, B, C + Q).
            target: Its targets.

        Returns:
            Differentiable in this worker's outputs.
        """
        # Where a sample's loss depends on others, they are those of the global batch.
        gather = self.workers.gather
        if couples := self.kind.couples(self.name):
            outputs_PBC, target = gather(outputs_PBC), gather(target)
        count = outputs_PBC.shape[-1] - self.num_penalties
        outputs_PBC, penalties_PBQ = outputs_PBC[..., :count], outputs_PBC[..., count:]
        if self.shift is not None:
            outputs_PBC = outputs_PBC + self.shift
        valid_PB = self._valid(target)
        terms = Terms(self.name, self.tail_over, self.weights, self.temperature, valid_PB)
        loss_PN, mask_PN = self.kind.losses(outputs_PBC, target, terms)

        # The tail is one of the global batch in any case.
        if not couples:
            loss_PN, mask_PN = gather(loss_PN), None if mask_PN is None else gather(mask_PN)
        loss_P = losses.cvar(loss_PN, self.alpha, mask_PN)
        if self.order is None:
            return loss_P

        # The heads' own losses, over all samples that they may see
        if not couples:
            penalties_PBQ = gather(penalties_PBQ)
            valid_PB = None if valid_PB is None else gather(valid_PB)
        return loss_P + self.order * losses.sample_means(penalties_PBQ, valid_PB)

    def _valid(self, target: Tensor) -> Tensor | None:
        """Which samples each head may see, shape (P, B); None if all see all."""
        if self.left_out is None:
            return None
        classes_PB = self.kind.classes(target)
        assert classes_PB is not None  # kinds without classes leave nothing out
        return classes_PB != self.left_out[:, None]

    def gradient(self, outputs_PBC: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The loss (P,), and its derivative by this worker's outputs."""
        outputs = outputs_PBC.detach().requires_grad_()
        with torch.enable_grad():
            loss_P = self.loss(outputs, target)
            (derivative,) = torch.autograd.grad(loss_P.sum(), outputs)
        return loss_P.detach(), derivative
