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
from raffect.heads.tail import Tail
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

        self.tail = Tail([config.alpha for config in configs], device, dtype)
        self.temperature = of_each([config.soft_targets for config in configs])
        orders = [config.order for config in configs]
        self.order = torch.tensor(orders, dtype=dtype, device=device)
        self.weights = self.shift = None
        priors = [prior.without(number) for number in numbers]
        pairs = list(zip(configs, priors, strict=True))
        if any(config.weighting != "none" for config in configs):
            weights = [self.kind.weights(config, own) for config, own in pairs]
            self.weights = torch.stack(weights).to(device, dtype)
        if any(config.logit_adjustment for config in configs):
            shifts = [config.logit_adjustment * self.kind.shift(own) for config, own in pairs]
            self.shift = torch.stack(shifts)[:, None].to(device, dtype)

    def gradient(self, outputs_PBC: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Loss of the global batch of each head and its derivative, in closed form.

        Nothing here is recorded for autograd or waits for the host.

        Args:
            outputs_PBC: Of this worker's part, shape (P, B, C + Q).
            target: Its targets.

        Returns:
            Shape (P,), and the derivative by this worker's outputs, of their shape.
        """
        workers = self.workers
        if not self.kind.couples(self.name):
            return self._gradient(outputs_PBC, target, workers)
        # Where a sample's loss depends on others, each worker computes the whole batch alone.
        whole = workers.gather(outputs_PBC), workers.gather(target)
        loss_P, derivative = self._gradient(*whole, Workers())
        return loss_P, derivative[:, workers.share(derivative.shape[1])]

    def _gradient(
        self, outputs_PBC: Tensor, target: Tensor, workers: Workers
    ) -> tuple[Tensor, Tensor]:
        """`gradient`, where a sample's loss does not depend on what other workers have."""
        # Losses of this part
        count = outputs_PBC.shape[-1] - self.num_penalties
        outputs_PBC, penalties_PBQ = outputs_PBC[..., :count], outputs_PBC[..., count:]
        if self.shift is not None:
            outputs_PBC = outputs_PBC + self.shift
        valid_PB = self._valid(target)
        terms = Terms(self.name, self.tail_over, self.weights, self.temperature, valid_PB)
        found = self.kind.losses(outputs_PBC, target, terms)

        # The tail is one of the global batch
        mask_PN = None if found.mask is None else workers.gather(found.mask)
        loss_P, share_PN = self.tail.cvar(workers.gather(found.values), mask_PN)
        derivative = found.by_outputs(share_PN[:, workers.share(share_PN.shape[1])])
        if not self.num_penalties:
            return loss_P, derivative

        # The heads' own losses, over all samples that they may see
        seen_PB = None if valid_PB is None else workers.gather(valid_PB)
        mean_P, share_PB = losses.sample_means(workers.gather(penalties_PBQ), seen_PB)
        share_PB = share_PB[:, workers.share(share_PB.shape[1])] * self.order[:, None]
        by_penalties = share_PB[..., None].expand_as(penalties_PBQ)
        return loss_P + self.order * mean_P, torch.cat([derivative, by_penalties], -1)

    def _valid(self, target: Tensor) -> Tensor | None:
        """Which samples each head may see, shape (P, B); None if all see all."""
        if self.left_out is None:
            return None
        classes_PB = self.kind.classes(target)
        assert classes_PB is not None  # kinds without classes leave nothing out
        return classes_PB != self.left_out[:, None]
