"""The temporal head: a transformer over a window of features, added to their mean.

At its start the transformer adds nothing, so that a head which compares with texts begins as
mean-pooled CLIP, and learns what the order of a window says beyond that.

Shape letters: B samples, T features of a window, D feature, W width, C outputs, S snippets,
K factors of noise.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from raffect.errors import require
from raffect.heads.head_batch import EmbeddingSpec, Shapes, normalise
from raffect.heads.module_batch import HeadModule, ModuleSpec
from raffect.heads.random import weights_generator
from raffect.heads.samples import fill_missing
from raffect.heads.snippets import OrderLoss, Snippets, mean_of, order_shapes, snippet_shapes
from raffect.heads.spec_values import Bounds, refuse, require_same_length
from raffect.heads.transformer import (
    NOISE_OF_BLOCK,
    Encoder,
    encoder_shapes,
    linear_shapes,
    noise_of,
)
from raffect.recipe import (
    MOST_ATTENTION_HEADS,
    MOST_DEPTH,
    MOST_WIDTH,
    MOST_WINDOW,
    HeadConfig,
)

LOGIT_SCALE = math.log(100)
"""Where the learnt scale of logits starts: what CLIP's own training ends at (Radford et al. 2021,
section 2.5), so that the first step sees the probabilities that CLIP gives."""
TOKEN_STD = 0.02
"""Spread of the token's and the positions' first values, as small as those of the features."""
_SHORTEST = 1e-6
"""Vectors below this length have no direction."""


@dataclasses.dataclass(frozen=True)
class TemporalSpec(EmbeddingSpec, ModuleSpec):
    """Shape of a temporal head.

    Attributes:
        dim: D, length of a feature.
        width: W, of the transformer.
        layers: Its blocks.
        attention_heads: Of each of them; they divide the width.
        window: T.
        outputs: C; D for a head that compares.
        pool: What the transformer's answer is added to: ``"mean"`` of the window, or its
            ``"centre"``, row ``T // 2``; where that is not there, the mean.
        snippets: S, 0 or a divisor of T.
        order: Whether it learns the order of snippets beside; needs two or more.
        compares: Whether outputs are vectors to compare with targets; see `EmbeddingSpec`.
    """

    dim: int
    width: int
    layers: int
    attention_heads: int
    window: int
    outputs: int
    pool: str = "mean"
    snippets: int = 0
    order: bool = False
    compares: bool = False

    kind = "temporal"
    bounds: ClassVar[Bounds] = {
        "dim": (1, MOST_WIDTH),
        "width": (1, MOST_WIDTH),
        "layers": (1, MOST_DEPTH),
        "attention_heads": (1, MOST_ATTENTION_HEADS),
        "window": (1, MOST_WINDOW),
        "outputs": (1, MOST_WIDTH),
        "snippets": (0, MOST_WINDOW),
    }
    words: ClassVar[Mapping[str, Sequence[str]]] = {"pool": ("mean", "centre")}
    flags: ClassVar[Sequence[str]] = ("order", "compares")

    @classmethod
    def from_config(
        cls, config: HeadConfig, dim: int, outputs: int, *, compares: bool = False
    ) -> Self:
        """See `raffect.heads.head_batch.HeadSpec.from_config`."""
        width, heads = config.width or dim, config.attention_heads
        require(
            width % heads == 0,
            f"head.attention-heads {heads}: does not divide the width of the head ({width}); "
            "expected a divisor, or another head.width",
        )
        if compares:
            require_same_length(cls.kind, dim, outputs)
        return cls(
            dim=dim,
            width=width,
            layers=config.layers,
            attention_heads=heads,
            window=config.window,
            outputs=outputs,
            pool=config.pool,
            snippets=config.snippets,
            compares=compares,
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any], where: Path) -> Self:
        """See `raffect.heads.head_batch.HeadSpec.from_json`."""
        # Each value, then those that have to fit each other.
        spec = super().from_json(content, where)
        if spec.width % spec.attention_heads:
            raise refuse("attention_heads", spec.attention_heads, "a divisor of width", where)
        if spec.snippets and spec.window % spec.snippets:
            raise refuse("snippets", spec.snippets, "0 or a divisor of window", where)
        if spec.order and spec.snippets < 2:
            raise refuse("order", spec.order, "false for fewer than two snippets", where)
        if spec.compares and spec.outputs != spec.dim:
            raise refuse("outputs", spec.outputs, f"dim ({spec.dim})", where)
        return spec

    @property
    def weights(self) -> Shapes:
        """See `raffect.heads.head_batch.HeadSpec.weights`."""
        out = linear_shapes("inputs", self.width, self.dim)
        if self.snippets:
            out |= snippet_shapes("within", self.window // self.snippets, self.width)
        out |= encoder_shapes("encoder", self.snippets or self.window, self.width, self.layers)
        out |= linear_shapes("residual", self.dim, self.width)
        if self.compares:
            out["logit_scale"] = ()
        else:
            out |= linear_shapes("classify", self.outputs, self.dim)
        if self.order:
            out |= order_shapes("order", self.snippets, self.width)
        return out

    @property
    def length(self) -> int:
        """See `raffect.heads.head_batch.EmbeddingSpec.length`."""
        return self.outputs

    @property
    def num_noise(self) -> int:
        """Dropout's factors of both branches of each block; see `Block.forward`."""
        blocks = self.layers + (1 if self.snippets else 0)
        return NOISE_OF_BLOCK * self.width * blocks

    @property
    def num_uniform(self) -> int:
        """One number that draws the order in which a sample's snippets are shuffled."""
        return int(self.order)

    @property
    def num_penalties(self) -> int:
        """The loss of the order of snippets."""
        return int(self.order)

    def initial_row(self, seed: int, config: HeadConfig) -> Tensor:
        """A residual of 0, and weights by the number of their inputs, whatever ``config.init`` is.

        Their spread is 1 / sqrt(inputs), which keeps the size of what goes through a layer at any
        width; 0.02, as GPT-2 has it, is half of that at 768 and learns orders more slowly at less.
        """
        generator = weights_generator(seed)
        row = torch.zeros(self.num_weights)
        # Of vectors, those of norms are 1, biases 0, and the token and positions drawn.
        for name, view in self.views(row[None]).items():
            layer, _, kind = name.rpartition(".")
            if name == "logit_scale":
                view.fill_(LOGIT_SCALE)
            elif "norm" in layer and kind == "weight":
                view.fill_(1)
            elif kind != "bias" and layer != "residual":
                std = view.shape[-1] ** -0.5 if kind == "weight" else TOKEN_STD
                view.copy_(torch.randn(view.shape, generator=generator) * std)
        return row

    def module(self) -> HeadModule:
        """See `raffect.heads.head_batch.HeadSpec.module`."""
        return TemporalHead(self)


class TemporalHead(HeadModule):
    """One temporal head.

    Args:
        spec: Its shape.

    Source:
        EmoCLIP (Foteinopoulou and Patras 2024) has a transformer over CLIP's features whose token
        is the answer. Ours differs, since theirs starts as noise, below mean-pooled CLIP: features
        are divided by their norm first, the answer is added to their mean and starts at 0, weights
        start small, and rows that are not there are masked.
    """

    logit_scale: Tensor

    def __init__(self, spec: TemporalSpec) -> None:
        super().__init__()
        self.spec = spec
        self.inputs = nn.Linear(spec.dim, spec.width)
        sizes = spec.width, spec.attention_heads
        if spec.snippets:
            self.within = Snippets(spec.snippets, spec.window // spec.snippets, *sizes)
        self.encoder = Encoder(spec.snippets or spec.window, *sizes, spec.layers)
        self.residual = nn.Linear(spec.width, spec.dim)
        if spec.compares:
            self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE))
        else:
            self.classify = nn.Linear(spec.dim, spec.outputs)
        if spec.order:
            self.order = OrderLoss(spec.snippets, spec.width)

    def forward(self, x: Tensor, noise: Tensor | None = None, *, training: bool = False) -> Tensor:
        """See `HeadModule.forward`; ``x`` is (B, T, D), or (B, D) for a window of one.

        A window without any row gives the classifier's offset, or a vector of zeros.
        """
        rows, is_there = self._rows(x)
        tokens, token_is_there = self.inputs(rows), is_there
        if self.spec.snippets:
            # The snippets' block has the last factors.
            own = noise_of(noise, self.spec.layers, self.spec.width)
            tokens, token_is_there = self.within(tokens, is_there, own)
        vector = self._pool(rows, is_there)
        vector = vector + self.residual(self.encoder(tokens, token_is_there, noise))
        outputs = self._answer(vector)
        if training and self.spec.order:
            assert noise is not None
            loss = self._order_loss(tokens, token_is_there, noise)
            outputs = torch.cat([outputs, loss[:, None]], 1)
        return outputs

    def _rows(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows divided by their norm, 0 where there are none, and which are there."""
        x = x[:, None] if x.ndim == 2 else x
        if x.shape[1:] != (self.spec.window, self.spec.dim):
            expected = f"windows of {self.spec.window} features of length {self.spec.dim}"
            raise ValueError(f"samples of shape {tuple(x.shape)}: expected {expected}")
        rows, is_there = fill_missing(x)
        return normalise(rows, "l2"), is_there

    def _pool(self, rows: Tensor, is_there: Tensor) -> Tensor:
        """What the transformer's answer is added to, shape (B, D)."""
        mean, centre = mean_of(rows, is_there), self.spec.window // 2
        if self.spec.pool == "mean":
            return mean
        return torch.where(is_there[:, centre, None], rows[:, centre], mean)

    def _answer(self, vector: Tensor) -> Tensor:
        """Outputs of windows' vectors, shape (B, C) of (B, D)."""
        # A vector without a direction stays 0, with a gradient of 0: 1 / 0 would end the training.
        length = vector.norm(dim=-1, keepdim=True)
        unit = vector * (length > _SHORTEST) / length.clamp(min=_SHORTEST)
        if self.spec.compares:
            return self.logit_scale.exp() * unit
        # Numbers around 1, as behind a norm: a step of Adam moves logits as it does in an MLP.
        return self.classify(unit * math.sqrt(self.spec.dim))

    def _order_loss(self, tokens: Tensor, is_there: Tensor, noise: Tensor) -> Tensor:
        """Loss of the order of shuffled snippets, shape (B,)."""
        order = self.order.draw(noise[:, -1])
        there = self.order.shuffle(is_there, order)
        summary = self.encoder(self.order.shuffle(tokens, order), there, noise)
        return self.order(summary, is_there, order)
