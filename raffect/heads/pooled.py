"""The mean of a window's normalised features: what temporal heads are compared with.

It learns nothing but the scale of its vectors. Beside texts it is mean-pooled zero-shot CLIP.

Shape letters: B samples, T features of a window, D length of a feature.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from raffect.errors import require
from raffect.heads.head_batch import EmbeddingSpec, Shapes, normalise
from raffect.heads.module_batch import HeadModule, ModuleSpec
from raffect.heads.samples import fill_missing
from raffect.heads.spec_values import Bounds
from raffect.recipe import MOST_WIDTH, HeadConfig

_CLIP_SCALE = math.log(1 / 0.07)
"""Logarithm of the scale that CLIP starts from."""


@dataclass(frozen=True)
class PooledSpec(EmbeddingSpec, ModuleSpec):
    """The mean of the normalised features that are there, of length 1, times a learnt scale.

    Attributes:
        dim: D.
    """

    dim: int

    kind = "pooled"
    bounds: ClassVar[Bounds] = {"dim": (1, MOST_WIDTH)}

    @classmethod
    def from_config(
        cls, config: HeadConfig, dim: int, outputs: int, *, compares: bool = False
    ) -> Self:
        """See `raffect.heads.head_batch.HeadSpec.from_config`."""
        require(
            compares and outputs == dim,
            "head.kind pooled: only compares features with texts of the same encoder; expected "
            "captions, or head.kind temporal",
        )
        return cls(dim)

    @property
    def length(self) -> int:
        """See `raffect.heads.head_batch.EmbeddingSpec.length`."""
        return self.dim

    @property
    def weights(self) -> Shapes:
        """See `raffect.heads.head_batch.HeadSpec.weights`."""
        return {"logit_scale": ()}

    def initial_row(self, seed: int, config: HeadConfig) -> Tensor:
        """See `raffect.heads.head_batch.HeadSpec.initial_row`: CLIP's scale, whatever the seed."""
        return torch.full((1,), _CLIP_SCALE)

    def module(self) -> Pooled:
        """See `raffect.heads.head_batch.HeadSpec.module`."""
        return Pooled()


class Pooled(HeadModule):
    """One such head."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = nn.Parameter(torch.tensor(_CLIP_SCALE))

    def forward(self, x: Tensor, noise: Tensor | None = None, *, training: bool = False) -> Tensor:
        """See `raffect.heads.module_batch.HeadModule.forward`."""
        if x.ndim == 3:
            # A sum does where a mean would: only the direction counts
            x = normalise(fill_missing(x)[0], "l2").sum(-2)
        return normalise(x, "l2") * self.logit_scale.exp()
