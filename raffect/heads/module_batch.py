"""Heads that are any module, side by side: torch.func runs and differentiates all of them at once.

A module here has no BatchNorm and no `nn.Dropout`: under vmap torch's own raises, or differs from
what the head does alone. Its noise comes from outside, as it does for every head.

Shape letters: P heads, N weights of a head, B samples, C outputs, Q penalties, K noise of a sample.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap

from raffect.heads.head_batch import Buffers, HeadBatch, HeadSpec, Moved
from raffect.heads.workers import Workers


class HeadModule(nn.Module):
    """One head, for use and for training."""

    @abstractmethod
    def forward(self, x: Tensor, noise: Tensor | None = None, *, training: bool = False) -> Tensor:
        """Outputs.

        Args:
            x: Samples, shape (B, D) or (B, T, D); a row of a window that is not there is all NaN.
            noise: Of `raffect.heads.head_batch.HeadBatch.forward`, shape (B, K + U); None in use.
            training: Whether the head's own losses are wanted behind the outputs.

        Returns:
            Shape (B, C), in training (B, C + Q).
        """


class ModuleSpec(HeadSpec):
    """A head that is any `HeadModule`, by torch.func."""

    @abstractmethod
    def module(self) -> HeadModule:
        """See `raffect.heads.head_batch.HeadSpec.module`."""

    def build(
        self,
        rows: Tensor,
        buffers: Buffers | None = None,
        workers: Workers | None = None,
    ) -> HeadBatch:
        """See `raffect.heads.head_batch.HeadSpec.build`."""
        return ModuleBatch(self, rows, buffers, workers)


class ModuleBatch(HeadBatch):
    """P heads of one module; see `raffect.heads.head_batch.HeadBatch`."""

    _pull_back: Callable[[Tensor], tuple[Tensor]]

    def __init__(
        self,
        spec: ModuleSpec,
        rows: Tensor,
        buffers: Buffers | None = None,
        workers: Workers | None = None,
    ) -> None:
        super().__init__(spec, rows, buffers, workers)
        # Which module it is; its own weights are never used.
        self._module = spec.module().to(rows.device, rows.dtype)

    def forward(
        self,
        rows: Tensor | Moved,
        batch: Tensor,
        noise: Tensor | None,
        *,
        update_buffers: bool,
    ) -> Tensor:
        """See `raffect.heads.head_batch.HeadBatch.forward`."""
        assert isinstance(rows, Tensor)
        buffers, by_head = self.buffers, (0, 0, 0, None if noise is None else 0)

        def run(rows: Tensor) -> Tensor:
            return vmap(self._run_one, by_head)(rows, buffers, batch, noise)

        outputs, self._pull_back = vjp(run, rows)[:2]
        return outputs

    def _run_one(
        self, row: Tensor, buffers: Buffers, batch: Tensor, noise: Tensor | None
    ) -> Tensor:
        state = {name: view[0] for name, view in self.spec.views(row[None]).items()}
        arguments = {"noise": noise, "training": True}
        return functional_call(self._module, state | buffers, (batch,), arguments)

    def backward(self, d_outputs: Tensor) -> None:
        """See `raffect.heads.head_batch.HeadBatch.backward`."""
        (gradient,) = self._pull_back(d_outputs)
        self.gradient.copy_(gradient)
        self.workers.sum_(self.gradient)

    @torch.no_grad()
    def predict(self, rows: Tensor, buffers: Buffers, batch: Tensor) -> Tensor:
        """See `raffect.heads.head_batch.HeadBatch.predict`."""

        def run_one(row: Tensor, buffers: Buffers) -> Tensor:
            state = {name: view[0] for name, view in self.spec.views(row[None]).items()}
            return functional_call(self._module, state | buffers, (batch,))

        return vmap(run_one)(rows, buffers)
