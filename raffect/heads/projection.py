"""The projection: one linear map of features into the space of a teacher, as Exp-CLIP has it.

It is learnt on images alone, against vectors that a teacher gives for them, and then maps images
and texts alike, since both towers of CLIP give vectors of one space: a metric that has been learnt.

Shape letters: B samples, T features of a window, D feature, E length of a vector, C texts.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from raffect.errors import require
from raffect.heads.head_batch import EmbeddingSpec, Shapes, normalise
from raffect.heads.module_batch import HeadModule, ModuleSpec
from raffect.heads.random import weights_generator
from raffect.heads.samples import fill_missing
from raffect.heads.spec_values import Bounds
from raffect.recipe import MOST_WIDTH, HeadConfig

SCALE = 100.0
"""Of logits: where CLIP's own ended (Radford et al. 2021, section 2.5), as Exp-CLIP's code has it.

It is not learnt. By SGD it falls while the map is still wrong, and with it the gradient of the map;
docs/decisions.md has the figures.
"""


@dataclasses.dataclass(frozen=True)
class ProjectionSpec(EmbeddingSpec, ModuleSpec):
    """Shape of a projection.

    Attributes:
        dim: D.
        outputs: E, as long as the targets.
        normalise: Whether features are divided by their norm before the mean of a window:
            ``"l2"``, or as Exp-CLIP has it ``"none"``. Of a single feature it changes nothing,
            since only the direction of an output counts.
    """

    dim: int
    outputs: int
    normalise: str = "none"

    kind = "projection"
    bounds: ClassVar[Bounds] = {"dim": (1, MOST_WIDTH), "outputs": (1, MOST_WIDTH)}
    words: ClassVar[Mapping[str, Sequence[str]]] = {"normalise": ("none", "l2")}

    @classmethod
    def from_config(
        cls, config: HeadConfig, dim: int, outputs: int, *, compares: bool = False
    ) -> Self:
        """See `raffect.heads.head_batch.HeadSpec.from_config`."""
        require(
            compares,
            "head.kind projection: gives vectors to compare, not classes or values; "
            "expected a table of targets, or head.kind mlp (head.depth 0 is one linear map)",
        )
        return cls(dim, outputs, config.normalise)

    @property
    def length(self) -> int:
        """E: length of a vector."""
        return self.outputs

    @property
    def weights(self) -> Shapes:
        """See `raffect.heads.head_batch.HeadSpec.weights`."""
        return {"weight": (self.outputs, self.dim)}

    def initial_row(self, seed: int, config: HeadConfig) -> Tensor:
        """Uniform weights by ``config.init``; ``torch``'s are those of Exp-CLIP's code.

        The spread is no mere scale: outputs do not depend on it, but the gradient falls with it, so
        that a rate moves large weights less.
        """
        bound = {"he": math.sqrt(6 / self.dim), "torch": 1 / math.sqrt(self.dim)}[config.init]
        row = torch.rand(self.num_weights, generator=weights_generator(seed))
        return (row * 2 - 1) * bound

    def embed_texts(self, state: Mapping[str, Tensor], texts_CD: Tensor) -> Tensor:
        """See `raffect.heads.head_batch.EmbeddingSpec.embed_texts`: by the map of the images."""
        weight = state["weight"]
        return normalise(texts_CD.to(weight) @ weight.mT, "l2")

    def module(self) -> HeadModule:
        """See `raffect.heads.head_batch.HeadSpec.module`."""
        return Projection(self)


class Projection(HeadModule):
    """One projection.

    Args:
        spec: Its shape.

    Source:
        Exp-CLIP (Zhao et al. 2025) and its code: a Linear without bias from 512 or 768 to 4096; of
        a video the mean of 16 frames' projections, which is the projection of their mean.
    """

    def __init__(self, spec: ProjectionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.weight = nn.Parameter(torch.zeros(spec.outputs, spec.dim))

    def forward(self, x: Tensor, noise: Tensor | None = None, *, training: bool = False) -> Tensor:
        """See `HeadModule.forward`; ``x`` is (B, D), or (B, T, D), of which the mean is mapped.

        A window without any row gives a vector of zeros.
        """
        if x.ndim == 3:
            x = self._mean(x)
        return SCALE * normalise(nn.functional.linear(x, self.weight), "l2")

    def _mean(self, windows: Tensor) -> Tensor:
        """The mean of the rows that are there, up to its length: shape (B, D) of (B, T, D)."""
        return normalise(fill_missing(windows)[0], self.spec.normalise).sum(1)
