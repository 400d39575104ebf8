"""Adam over the rows of a batch of heads, by torch's fused kernel."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim.adam import adam

from raffect.heads.optimizer import Optimizer
from raffect.recipe import OptimConfig

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""torch's defaults."""


class Adam(Optimizer):
    """Adam, or AdamW with decay apart from the gradient.

    See `raffect.heads.optimizer.Optimizer`.
    """

    def initial_state(self, weights_PN: Tensor) -> dict[str, Tensor]:
        """Mean of gradients and of their squares, and updates so far, float32."""
        return {
            "exp_avg": torch.zeros_like(weights_PN),
            "exp_avg_sq": torch.zeros_like(weights_PN),
            "step": torch.zeros(len(weights_PN), device=weights_PN.device),
        }

    def update_group(
        self,
        config: OptimConfig,
        rate: float | Tensor,
        weights: list[Tensor],
        gradients: list[Tensor],
        *state: list[Tensor],
    ) -> None:
        """See `raffect.heads.optimizer.Optimizer.update_group`."""
        averages, squares, steps = state
        adam(
            weights,
            gradients,
            averages,
            squares,
            [],
            steps,
            fused=True,
            capturable=self._on_cuda,
            decoupled_weight_decay=config.name == "adamw",
            amsgrad=False,
            maximize=False,
            lr=rate,
            beta1=BETA1,
            beta2=BETA2,
            eps=EPS,
            weight_decay=config.weight_decay,
        )
