"""What the learner needs of an optimiser over the rows of a batch of heads.

Heads of equal settings are one group and updated by one launch. torch.optim's classes would do the
same, but making one imports torch's compiler (2 s and 200 MB in every process that trains), and
rates that differ between heads need a group, and so a launch, each.

Shape letters: P heads, N weights of a head.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from raffect.recipe import OptimConfig


class Optimizer(ABC):
    """An update of every head of a batch.

    Args:
        configs: One a head; all of one ``name``.
        weights_PN: Updated in place.
        gradient_PN: Read at each step.

    Attributes:
        state: What it keeps of earlier steps; see `initial_state`.
        rates: Each head's rate of this step, on the device, shape (P,).
    """

    def __init__(
        self,
        configs: Sequence[OptimConfig],
        weights_PN: Tensor,
        gradient_PN: Tensor,
    ) -> None:
        self.state = self.initial_state(weights_PN)
        self._on_cuda = weights_PN.is_cuda
        self.rates = torch.tensor([config.lr for config in configs], device=weights_PN.device)
        # One group of heads for each distinct configuration: its rate, and its rows as lists.
        tensors = (weights_PN, gradient_PN, *self.state.values())
        self._rates: dict[OptimConfig, float | Tensor] = {}
        self._heads: dict[OptimConfig, list[int]] = {}
        self._rows: dict[OptimConfig, tuple[list[Tensor], ...]] = {}
        for config in configs:
            heads = [p for p, other in enumerate(configs) if other == config]
            self._rates[config] = self.rates[heads[0]] if self._on_cuda else config.lr
            self._heads[config] = heads
            self._rows[config] = tuple([tensor[p] for p in heads] for tensor in tensors)

    def set_rate(self, config: OptimConfig, rate: float) -> None:
        """The rate of heads with these settings.

        On CUDA a captured graph reads it from the same memory.
        """
        self.rates[self._heads[config]] = rate
        if not self._on_cuda:
            self._rates[config] = rate

    @torch.no_grad()
    def update(self) -> None:
        """One step of every head."""
        for config, tensors in self._rows.items():
            self.update_group(config, self._rates[config], *tensors)

    @abstractmethod
    def initial_state(self, weights_PN: Tensor) -> dict[str, Tensor]:
        """What it keeps of earlier steps, by the name in a saved state: each (P,) or (P, N)."""

    @abstractmethod
    def update_group(
        self,
        config: OptimConfig,
        rate: float | Tensor,
        weights: list[Tensor],
        gradients: list[Tensor],
        *state: list[Tensor],
    ) -> None:
        """One step of heads of equal settings.

        Args:
            config: Their settings.
            rate: Of this step; on CUDA a tensor there.
            weights: Of each head, shape (N,).
            gradients: Likewise.
            state: Likewise, in the order of `initial_state`.
        """
