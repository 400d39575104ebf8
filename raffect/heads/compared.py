"""Heads that compare: an embedding head's vectors times those of texts, so that classes come out.

A head that has learnt to compare with texts recognises any classes that texts describe. With the
texts fixed it is a head like any other, which is judged, saved and used as all are.

Shape letters: P heads, B samples, E length of a vector, C outputs, Q penalties.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from raffect.errors import RaffectError
from raffect.heads.head_batch import Buffers, EmbeddingSpec, HeadBatch, HeadSpec, Moved, Shapes
from raffect.heads.spec_values import require_bounds, require_names
from raffect.heads.workers import Workers
from raffect.recipe import MOST_WIDTH, HeadConfig

_INNER = "inner."
"""In front of the names of the embedding head's tensors."""


@dataclass(frozen=True)
class ComparedSpec(HeadSpec):
    """``inner(x) @ classes.T + offset``.

    ``classes`` and ``offset`` are buffers: they come from texts and are never trained.

    Attributes:
        inner: The embedding head.
        outputs: C.
    """

    inner: EmbeddingSpec
    outputs: int

    kind = "compared"

    @property
    def weights(self) -> Shapes:
        """See `raffect.heads.head_batch.HeadSpec.weights`: those of the embedding head."""
        return {f"{_INNER}{name}": shape for name, shape in self.inner.weights.items()}

    @property
    def buffers(self) -> Shapes:
        """See `raffect.heads.head_batch.HeadSpec.buffers`."""
        own = {"classes": (self.outputs, self.inner.length), "offset": (self.outputs,)}
        return {f"{_INNER}{name}": shape for name, shape in self.inner.buffers.items()} | own

    @property
    def num_noise(self) -> int:
        """See `raffect.heads.head_batch.HeadSpec.num_noise`."""
        return self.inner.num_noise

    @property
    def num_uniform(self) -> int:
        """See `raffect.heads.head_batch.HeadSpec.num_uniform`."""
        return self.inner.num_uniform

    @property
    def num_penalties(self) -> int:
        """See `raffect.heads.head_batch.HeadSpec.num_penalties`."""
        return self.inner.num_penalties

    def initial_row(self, seed: int, config: HeadConfig) -> Tensor:
        """See `raffect.heads.head_batch.HeadSpec.initial_row`."""
        return self.inner.initial_row(seed, config)

    def build(
        self,
        rows: Tensor,
        buffers: Buffers | None = None,
        workers: Workers | None = None,
    ) -> HeadBatch:
        """See `raffect.heads.head_batch.HeadSpec.build`."""
        return ComparedBatch(self, rows, buffers, workers)

    def module(self) -> nn.Module:
        """See `raffect.heads.head_batch.HeadSpec.module`."""
        return Compared(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> Self:
        """See `raffect.heads.head_batch.HeadSpec.from_json`; a head inside one compares no more."""
        # Here, since that module imports this one
        from raffect.heads.head_kinds import read_spec

        require_names(cls, content, where)
        require_bounds(content, {"outputs": (1, MOST_WIDTH)}, where)
        outputs, nested = content["outputs"], content["inner"]

        # The kind is looked at first, so that a chain of heads in heads is never followed
        is_compared = isinstance(nested, dict) and nested.get("kind") == cls.kind
        inner = None if is_compared else read_spec(nested, where)
        if not isinstance(inner, EmbeddingSpec):
            found = f"{where}: the head inside its head gives no vectors to compare"
            raise RaffectError(f"{found}; make it again with `raffect zeroshot --head`")
        return cls(inner, outputs)

    def to_json(self) -> dict[str, Any]:
        """See `raffect.heads.head_batch.HeadSpec.to_json`."""
        return {"kind": self.kind, "inner": self.inner.to_json(), "outputs": self.outputs}


class Compared(nn.Module):
    """One head that compares, for use."""

    classes: Tensor
    offset: Tensor

    def __init__(self, spec: ComparedSpec) -> None:
        super().__init__()
        self.inner = spec.inner.module()
        self.register_buffer("classes", torch.zeros(spec.outputs, spec.inner.length))
        self.register_buffer("offset", torch.zeros(spec.outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (B, C) of samples (B, ...)."""
        return self.inner(x) @ self.classes.mT + self.offset


class ComparedBatch(HeadBatch):
    """P heads that compare, by a batch of their embedding heads on the same rows."""

    spec: ComparedSpec

    def __init__(
        self,
        spec: ComparedSpec,
        rows: Tensor,
        buffers: Buffers | None = None,
        workers: Workers | None = None,
    ) -> None:
        super().__init__(spec, rows, buffers, workers)
        # It shares rows and buffers, and writes its gradient to its own matrix, which is ours
        self._inner = spec.inner.build(rows, _inner_of(self.buffers), workers)

    @cached_property
    def gradient(self) -> Tensor:
        """See `raffect.heads.head_batch.HeadBatch.gradient`."""
        return self._inner.gradient

    def initial_buffers(self) -> Buffers:
        """Those of embedding heads before any training; all texts 0."""
        inner = self.spec.inner.build(self.rows).buffers
        return super().initial_buffers() | {f"{_INNER}{name}": x for name, x in inner.items()}

    def forward(
        self,
        rows: Tensor | Moved,
        batch: Tensor,
        noise: Tensor | None,
        *,
        update_buffers: bool,
    ) -> Tensor:
        """See `raffect.heads.head_batch.HeadBatch.forward`."""
        found = self._inner.forward(rows, batch, noise, update_buffers=update_buffers)
        vectors, penalties = found.split([self.spec.inner.length, self.spec.num_penalties], -1)
        return torch.cat([_compare(vectors, self.buffers), penalties], -1)

    def backward(self, d_outputs: Tensor) -> None:
        """See `raffect.heads.head_batch.HeadBatch.backward`."""
        self._inner.backward(self._through_classes(d_outputs))

    def climb(self, d_outputs: Tensor, rho_P: Tensor) -> Moved | None:
        """See `raffect.heads.head_batch.HeadBatch.climb`."""
        return self._inner.climb(self._through_classes(d_outputs), rho_P)

    def predict(self, rows: Tensor, buffers: Buffers, batch: Tensor) -> Tensor:
        """See `raffect.heads.head_batch.HeadBatch.predict`."""
        return self.predictor(rows, buffers)(batch)

    def predictor(self, rows: Tensor, buffers: Buffers) -> Callable[[Tensor], Tensor]:
        """See `raffect.heads.head_batch.HeadBatch.predictor`."""
        embed = self._inner.predictor(rows, _inner_of(buffers))
        return lambda batch: _compare(embed(batch), buffers)

    def _through_classes(self, d_outputs: Tensor) -> Tensor:
        """From the derivative by outputs and penalties to that by vectors and penalties."""
        d_logits, d_penalties = d_outputs.split([self.spec.outputs, self.spec.num_penalties], -1)
        return torch.cat([_multiply(d_logits, self.buffers["classes"]), d_penalties], -1)


def _compare(vectors: Tensor, buffers: Buffers) -> Tensor:
    """Outputs (P, B, C) of vectors (P, B, E)."""
    return _multiply(vectors, buffers["classes"].mT) + buffers["offset"][:, None]


def _multiply(first: Tensor, second: Tensor) -> Tensor:
    """Products of matrices, a pair a head.

    On the CPU one after the other and in memory of their own: the last bits depend on both, and a
    head must not depend on its batch.
    """
    if first.is_cuda:
        return first @ second
    pairs = zip(first, second, strict=True)
    return torch.stack([one.clone() @ other.contiguous().clone() for one, other in pairs])


def _inner_of(buffers: Buffers) -> Buffers:
    """The buffers of the embedding heads by their own names."""
    start = len(_INNER)
    return {name[start:]: x for name, x in buffers.items() if name.startswith(_INNER)}
