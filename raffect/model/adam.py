"""Adam over the rows of a pack, by torch's fused kernel, a launch for all members of equal settings.

torch.optim's classes would do the same, but making one imports torch's compiler (2 s and 200 MB in every process that trains), and
rates that differ between members need a group, and so a launch, each.

Shape letters: P members, N weights of a member.
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
    """Adam, or AdamW with decay apart from the gradient, for every member of a pack.

    Args:
        configs: One a member; all of one ``name``.
        weights_PN: Updated in place.
        gradient_PN: Read at each step.

    Attributes:
        exp_avg: Mean of gradients, shape (P, N).
        exp_avg_sq: Mean of their squares, likewise.
        step: Updates so far of each member, float32, shape (P,).
    """

    def __init__(self, configs: Sequence[OptimConfig], weights_PN: Tensor, gradient_PN: Tensor) -> None:
        self.exp_avg, self.exp_avg_sq = torch.zeros_like(weights_PN), torch.zeros_like(weights_PN)
        self.step = torch.zeros(len(weights_PN), device=weights_PN.device)
        self._decoupled, self._on_cuda = configs[0].name == "adamw", weights_PN.is_cuda
        self._rates: dict[OptimConfig, float | Tensor] = {config: torch.tensor(config.lr, device=weights_PN.device) if self._on_cuda else config.lr for config in configs}

        def rows(members: list[int]) -> tuple[list[Tensor], ...]:
            return tuple([tensor[p] for p in members] for tensor in (weights_PN, gradient_PN, self.exp_avg, self.exp_avg_sq, self.step))

        self._rows = {config: rows([p for p, other in enumerate(configs) if other == config]) for config in configs}

    def set_rate(self, config: OptimConfig, rate: float) -> None:
        """The rate of members with these settings; on CUDA a captured graph reads it from the same memory."""
        held = self._rates[config]
        if isinstance(held, Tensor):
            held.fill_(rate)
        else:
            self._rates[config] = rate

    @torch.no_grad()
    def update(self) -> None:
        """One step of every member."""
        for config, (weights, gradients, averages, squares, steps) in self._rows.items():
            adam(
                weights, gradients, averages, squares, [], steps, fused=True, capturable=self._on_cuda, decoupled_weight_decay=self._decoupled, amsgrad=False, maximize=False,
                lr=self._rates[config], beta1=BETA1, beta2=BETA2, eps=EPS, weight_decay=config.weight_decay,
            )  # fmt: skip
