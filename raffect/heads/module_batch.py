"""Heads that are any module, side by side, by torch.func.

A module here has no BatchNorm and no `nn.Dropout`: under vmap torch's own raises, or differs from
what the head does alone. Its noise comes from outside, as it does for every head. Its buffers are
constants of a head: no pass moves them.

Shape letters: P heads, N weights of a head, B samples, C outputs, Q penalties, K noise of a sample.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from raffect.heads.head_batch import Buffers, HeadBatch, HeadSpec, Moved
from raffect.heads.spec_values import (
    Bounds,
    require_bounds,
    require_flags,
    require_names,
    require_words,
)
from raffect.heads.workers import Workers

_REFUSED = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
"""Modules that keep or draw something of their own in training."""
_ALIGNED = 64
"""Bytes: new memory begins at multiples of it."""


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

    bounds: ClassVar[Bounds] = {}
    """Least and largest value of each whole number of its `from_json`."""
    words: ClassVar[Mapping[str, Sequence[str]]] = {}
    """What each of its texts may be."""
    flags: ClassVar[Sequence[str]] = ()
    """Names of what is true or false."""

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> Self:
        """See `raffect.heads.head_batch.HeadSpec.from_json`; each value is checked by itself."""
        require_names(cls, content, where)
        require_bounds(content, cls.bounds, where)
        require_words(content, cls.words, where)
        require_flags(content, cls.flags, where)
        return cls(**content)

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
    """P heads of one module; see `raffect.heads.head_batch.HeadBatch`.

    On CUDA all heads are one call of the module under vmap. On the CPU they are called one after
    the other, on tensors that begin where new ones do: there the last bits of a product depend on
    how many matrices it takes and on where they begin in memory, and so would a head on its batch.
    """

    spec: ModuleSpec
    _outputs: list[Tensor]
    _leaves: list[Tensor]

    def __init__(
        self,
        spec: ModuleSpec,
        rows: Tensor,
        buffers: Buffers | None = None,
        workers: Workers | None = None,
    ) -> None:
        super().__init__(spec, rows, buffers, workers)
        self._at_once = rows.is_cuda
        # Which module it is, without weights of its own: each call brings those of a head.
        self._module = spec.module().to(rows.device, rows.dtype)
        for part in self._module.modules():
            if isinstance(part, _REFUSED):
                raise TypeError(f"a head of kind {spec.kind} has a {type(part).__name__}")
        for weight in self._module.requires_grad_(requires_grad=False).parameters():
            weight.data = weight.new_empty(0)

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
        # Tensors by name are what is differentiated: through the views of whole rows each of them
        # would cost a matrix of zeros.
        weights = self._split_all(self.spec.views(rows.detach()))
        self._leaves = [leaf.requires_grad_() for parts in weights.values() for leaf in parts]
        inputs = [self._split(batch)] if noise is None else [self._split(batch), self._split(noise)]
        with torch.enable_grad():
            self._outputs = self._run(
                weights | self._split_all(self.buffers), inputs, training=True
            )
        return self._join([outputs.detach() for outputs in self._outputs])

    def backward(self, d_outputs: Tensor) -> None:
        """See `raffect.heads.head_batch.HeadBatch.backward`; what `forward` kept is freed."""
        upstream = self._split(d_outputs)
        gradients = torch.autograd.grad(
            self._outputs, self._leaves, upstream, materialize_grads=True
        )
        del self._outputs, self._leaves
        torch._foreach_copy_(self._gradient_parts, gradients)
        self.workers.sum_(self.gradient)

    @cached_property
    def _gradient_parts(self) -> list[Tensor]:
        """Where each leaf's gradient is written."""
        views = self.spec.views(self.gradient).values()
        return [part for view in views for part in ([view] if self._at_once else view)]

    def predict(self, rows: Tensor, buffers: Buffers, batch: Tensor) -> Tensor:
        """See `raffect.heads.head_batch.HeadBatch.predict`."""
        return self.predictor(rows, buffers)(batch)

    def predictor(self, rows: Tensor, buffers: Buffers) -> Callable[[Tensor], Tensor]:
        """See `raffect.heads.head_batch.HeadBatch.predictor`."""
        tensors = self._split_all(self.spec.views(rows.detach()) | buffers)

        @torch.no_grad()
        def predict(batch: Tensor) -> Tensor:
            shared = (
                [batch.expand(len(rows), *batch.shape)] if self._at_once else [batch] * len(rows)
            )
            return self._join(self._run(tensors, [shared], training=False))

        return predict

    def _run(
        self,
        tensors: Mapping[str, list[Tensor]],
        inputs: Sequence[list[Tensor]],
        *,
        training: bool,
    ) -> list[Tensor]:
        """Outputs of the module with these tensors, a call a part of each list."""

        def call(state: dict[str, Tensor], *inputs: Tensor) -> Tensor:
            return functional_call(self._module, state, inputs, {"training": training})

        run = vmap(call) if self._at_once else call
        each_call = zip(*tensors.values(), strict=True)
        states = [dict(zip(tensors, parts, strict=True)) for parts in each_call]
        return [run(state, *own) for state, *own in zip(states, *inputs, strict=True)]

    def _split(self, tensor: Tensor) -> list[Tensor]:
        """A tensor (P, ...) as one part a call, on the CPU where memory of its own would begin."""
        if self._at_once:
            return [tensor]
        return [own.clone() if own.data_ptr() % _ALIGNED else own for own in tensor]

    def _split_all(self, tensors: Mapping[str, Tensor]) -> dict[str, list[Tensor]]:
        return {name: self._split(tensor) for name, tensor in tensors.items()}

    def _join(self, parts: list[Tensor]) -> Tensor:
        """What calls gave, as one tensor (P, ...)."""
        return parts[0] if self._at_once else torch.stack(parts)
