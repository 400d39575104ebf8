"""Heads that compare: an embedding head's vectors times those of texts, so that classes come out.

A head that has learnt to compare with texts recognises any classes that texts describe. With the
texts fixed it is a head like any other, which is judged, saved and used as all are.

Shape letters: B samples, E length of a vector, C outputs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from raffect.errors import RaffectError
from raffect.heads.head_batch import EmbeddingSpec, Shapes
from raffect.heads.module_batch import HeadModule, ModuleSpec
from raffect.heads.spec_values import require_bounds, require_names
from raffect.recipe import MOST_WIDTH, HeadConfig

_INNER = "inner."
"""In front of the names of the embedding head's tensors."""


@dataclass(frozen=True)
class ComparedSpec(ModuleSpec):
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

    def module(self) -> HeadModule:
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
        if not (isinstance(inner, EmbeddingSpec) and inner.compares):
            found = f"{where}: the head inside its head gives no vectors to compare"
            raise RaffectError(f"{found}; make it again with `raffect zeroshot --head`")
        return cls(inner, outputs)

    def to_json(self) -> dict[str, Any]:
        """See `raffect.heads.head_batch.HeadSpec.to_json`."""
        return {"kind": self.kind, "inner": self.inner.to_json(), "outputs": self.outputs}


class Compared(HeadModule):
    """One head that compares.

    Args:
        spec: Its shape.
    """

    classes: Tensor
    offset: Tensor

    def __init__(self, spec: ComparedSpec) -> None:
        super().__init__()
        self.inner = spec.inner.module()
        self.register_buffer("classes", torch.zeros(spec.outputs, spec.inner.length))
        self.register_buffer("offset", torch.zeros(spec.outputs))

    def forward(self, x: Tensor, noise: Tensor | None = None, *, training: bool = False) -> Tensor:
        """See `HeadModule.forward`; penalties are those of the embedding head."""
        found = self.inner(x, noise, training=training)
        vectors, penalties = found.tensor_split([self.classes.shape[1]], 1)
        return torch.cat([vectors @ self.classes.mT + self.offset, penalties], 1)
