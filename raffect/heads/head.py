"""The shape of an MLP head, and one such head for use: an ordinary torch module.

Shape letters: B samples, D feature, W hidden width, C outputs.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from raffect.errors import require
from raffect.heads.head_batch import Buffers, HeadBatch, HeadSpec, Shapes, normalise
from raffect.heads.random import weights_generator
from raffect.heads.spec_values import require_bounds, require_names, require_words
from raffect.heads.workers import Workers
from raffect.recipe import MOST_DEPTH, MOST_WIDTH, HeadConfig

MOMENTUM = 0.1
"""Of BatchNorm's running statistics, as in torch."""
EPS = 1e-5
"""BatchNorm's guard against a variance of 0, as in torch."""


@dataclasses.dataclass(frozen=True)
class MlpSpec(HeadSpec):
    """Shape of an MLP.

    Attributes:
        dim: D, length of a feature.
        width: W, units of a hidden block; 0 where there is none.
        depth: Hidden blocks; 0 is a linear probe.
        outputs: C.
        normalise: ``"l2"`` divides each feature by its norm first, ``"none"`` does not.
    """

    dim: int
    width: int
    depth: int
    outputs: int
    normalise: str = "none"

    kind = "mlp"

    @classmethod
    def from_config(
        cls, config: HeadConfig, dim: int, outputs: int, *, compares: bool = False
    ) -> Self:
        """See `raffect.heads.head_batch.HeadSpec.from_config`."""
        require(not compares, "head.kind mlp: does not compare with texts; expected temporal")
        width = (config.width or dim) if config.depth else 0
        return cls(dim, width, config.depth, outputs, config.normalise)

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> Self:
        """See `raffect.heads.head_batch.HeadSpec.from_json`."""
        require_names(cls, content, where)
        # Only a head with hidden blocks has a width.
        least_width = 1 if content["depth"] else 0
        bounds = {
            "dim": (1, MOST_WIDTH),
            "width": (least_width, MOST_WIDTH * least_width),
            "depth": (0, MOST_DEPTH),
            "outputs": (1, MOST_WIDTH),
        }
        require_bounds(content, bounds, where)
        require_words(content, {"normalise": ("none", "l2")}, where)
        return cls(**content)

    @property
    def weights(self) -> Shapes:
        """See `raffect.heads.head_batch.HeadSpec.weights`."""
        out: Shapes = {}
        inputs = self.dim
        for block in range(self.depth):
            out[f"{linear_name(block)}.weight"] = (self.width, inputs)
            out[f"{linear_name(block)}.bias"] = (self.width,)
            out[f"{norm_name(block)}.weight"] = (self.width,)
            out[f"{norm_name(block)}.bias"] = (self.width,)
            inputs = self.width
        out[f"{linear_name(self.depth)}.weight"] = (self.outputs, inputs)
        out[f"{linear_name(self.depth)}.bias"] = (self.outputs,)
        return out

    @property
    def buffers(self) -> Shapes:
        """BatchNorm's running statistics."""
        out: Shapes = {}
        for block in range(self.depth):
            out[f"{norm_name(block)}.running_mean"] = (self.width,)
            out[f"{norm_name(block)}.running_var"] = (self.width,)
        return out

    @property
    def num_noise(self) -> int:
        """Dropout's factors of all hidden units, a block after the other."""
        return self.depth * self.width

    def initial_row(self, seed: int, config: HeadConfig) -> Tensor:
        """BatchNorm as the identity, Linear by ``config.init``."""
        generator = weights_generator(seed)
        row = torch.zeros(self.num_weights)
        norms = {norm_name(block) for block in range(self.depth)}
        inputs = self.dim
        # A bias has the bound of the weight before it, which has the number of inputs.
        for name, view in self.views(row[None]).items():
            layer, _, kind = name.rpartition(".")
            if layer in norms:
                view.fill_(1.0 if kind == "weight" else 0.0)
                continue
            inputs = view.shape[-1] if kind == "weight" else inputs
            he = math.sqrt(6 / inputs) if kind == "weight" else 0.0
            bound = {"he": he, "torch": 1 / math.sqrt(inputs)}[config.init]
            view.copy_((torch.rand(view.shape, generator=generator) * 2 - 1) * bound)
        return row

    def build(
        self,
        rows: Tensor,
        buffers: Buffers | None = None,
        workers: Workers | None = None,
    ) -> HeadBatch:
        """See `raffect.heads.head_batch.HeadSpec.build`."""
        # Here, since that module imports this one.
        from raffect.heads.mlp import MlpBatch

        return MlpBatch(self, rows, buffers, workers)

    def module(self) -> Head:
        """See `raffect.heads.head_batch.HeadSpec.module`."""
        return Head(self)


class Head(nn.Module):
    """Hidden blocks Linear -> BatchNorm -> ReLU -> Dropout, then one Linear.

    Args:
        spec: Its shape.
        dropout: Share of hidden units dropped in training mode.

    Source:
        Lin et al. 2024, section II-B. A head without hidden blocks is a linear probe.

    Example:
        >>> sum(p.numel() for p in Head(MlpSpec(768, 768, 3, 8)).parameters())
        1782536
    """

    def __init__(self, spec: MlpSpec, dropout: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        layers: list[nn.Module] = []
        # Names of a state follow from the order of the layers; see `linear_name`.
        inputs = spec.dim
        for _ in range(spec.depth):
            norm = nn.BatchNorm1d(spec.width, eps=EPS, momentum=MOMENTUM)
            layers += [nn.Linear(inputs, spec.width), norm, nn.ReLU(), nn.Dropout(dropout)]
            inputs = spec.width
        self.layers = nn.Sequential(*layers, nn.Linear(inputs, spec.outputs))

    def forward(self, x: Tensor | np.ndarray) -> Tensor:
        """Outputs (B, C) of raw features (B, D), which may be a bank's own float16 array."""
        if isinstance(x, np.ndarray):
            x = torch.from_numpy(np.array(x))  # a copy: those of a bank cannot be written
        x = x.to(next(self.parameters()))
        return self.layers(normalise(x, self.spec.normalise))


def linear_name(block: int) -> str:
    """Name of a block's Linear; the last Linear is that of block ``depth``."""
    return f"layers.{4 * block}"


def norm_name(block: int) -> str:
    """Name of a block's BatchNorm."""
    return f"layers.{4 * block + 1}"
