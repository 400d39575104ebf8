"""SGD with momentum over the rows of a batch of heads, by torch's fused kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from raffect.heads.optimizer import Optimizer
from raffect.recipe import OptimConfig


class Sgd(Optimizer):
    """SGD as torch has it: weight decay in the gradient, no dampening, no Nesterov.

    See `raffect.heads.optimizer.Optimizer`.
    """

    def initial_state(self, weights_PN: Tensor) -> dict[str, Tensor]:
        """Velocity: with 0 the first step is the gradient alone, as in torch."""
        return {"momentum_buffer": torch.zeros_like(weights_PN)}

    def update_group(
        self,
        config: OptimConfig,
        rate: float | Tensor,
        weights: list[Tensor],
        gradients: list[Tensor],
        *state: list[Tensor],
    ) -> None:
        """See `raffect.heads.optimizer.Optimizer.update_group`."""
        (velocities,) = state
        sgd(
            weights,
            gradients,
            [*velocities],
            fused=True,
            weight_decay=config.weight_decay,
            momentum=config.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
