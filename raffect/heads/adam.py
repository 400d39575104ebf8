"""Adam over the rows of a batch of heads, by torch's fused kernel.

One launch updates all heads of equal settings. torch.optim's classes would do the same, but making
one imports torch's compiler (2 s and 200 MB in every process that trains), and rates that differ
between heads need a group, and so a launch, each.

Shape letters: P heads, N weights of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam

from raffect.recipe import OptimConfig

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8
"""torch's defaults."""
STATE = ("exp_avg", "exp_avg_sq", "step")


class Adam:
    """Adam, or AdamW with decay apart from the gradient, for every head of a batch.

    Args:
        configs: One a head; all of one ``name``.
        weights_PN: Updated in place.
        gradient_PN: Read at each step.

    Attributes:
        exp_avg: Mean of gradients, shape (P, N).
        exp_avg_sq: Mean of their squares, likewise.
        step: Updates so far of each head, float32, shape (P,).
    """

    def __init__(
        self,
        configs: Sequence[OptimConfig],
        weights_PN: Tensor,
        gradient_PN: Tensor,
    ) -> None:
        # Moments, in the layout of the weights.
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(weights_PN), torch.zeros_like(weights_PN)
        self.step = torch.zeros(len(weights_PN), device=weights_PN.device)
        self._decoupled, self._on_cuda = configs[0].name == "adamw", weights_PN.is_cuda
        # One group of heads for each distinct configuration: its rate, and its rows as lists.
        self._rates: dict[OptimConfig, float | Tensor] = {}
        for config in configs:
            on_device = torch.tensor(config.lr, device=weights_PN.device)
            self._rates[config] = on_device if self._on_cuda else config.lr
        tensors = (weights_PN, gradient_PN, self.exp_avg, self.exp_avg_sq, self.step)
        self._rows: dict[OptimConfig, tuple[list[Tensor], ...]] = {}
        for config in self._rates:
            heads = [p for p, other in enumerate(configs) if other == config]
            self._rows[config] = tuple([tensor[p] for p in heads] for tensor in tensors)

    def set_rate(self, config: OptimConfig, rate: float) -> None:
        """The rate of heads with these settings.

        On CUDA a captured graph reads it from the same memory.
        """
        held = self._rates[config]
        if isinstance(held, Tensor):
            held.fill_(rate)
        else:
            self._rates[config] = rate

    @torch.no_grad()
    def update(self) -> None:
        """One step of every head."""
        for config, (weights, gradients, averages, squares, steps) in self._rows.items():
            adam(
                weights,
                gradients,
                averages,
                squares,
                [],
                steps,
                fused=True,
                capturable=self._on_cuda,
                decoupled_weight_decay=self._decoupled,
                amsgrad=False,
                maximize=False,
                lr=self._rates[config],
                beta1=BETA1,
                beta2=BETA2,
                eps=EPS,
                weight_decay=config.weight_decay,
            )
