"""The temporal head of EmoCLIP's released code, with the same tensors under the same names.

It stands here to be compared with, and so that weights of that code can be brought in. A head that
is to work well is `raffect.heads.temporal`: this one starts as noise, below mean-pooled CLIP.

Shape letters: B samples, T features of a window, D feature, H attention heads, L layers.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from raffect.errors import require
from raffect.heads.head_batch import EmbeddingSpec, Shapes, normalise
from raffect.heads.module_batch import HeadModule, ModuleSpec
from raffect.heads.random import weights_generator
from raffect.heads.samples import fill_missing
from raffect.heads.spec_values import Bounds, require_same_length
from raffect.heads.temporal import LOGIT_SCALE
from raffect.heads.transformer import ask, attend, linear_shapes, norm_shapes
from raffect.recipe import MOST_ATTENTION_HEADS, MOST_DEPTH, MOST_WIDTH, HeadConfig

HEAD_WIDTH = 2048
"""Width of an attention head. The released code hands this number over as ``dim_head`` and the
feature's length as ``mlp_dim``; its class names them the other way round."""
POSITIONS = 1024
"""Learnt positions, the token's among them: so a window has at most 1,023 features."""
_LAYERS = "temporal.temporal_transformer.layers"


@dataclasses.dataclass(frozen=True)
class ReleasedEmoclipSpec(EmbeddingSpec, ModuleSpec):
    """Shape of a released head.

    Attributes:
        dim: D, length of a feature and of its vectors.
        layers: L; 2 in every script of the released code.
        attention_heads: H; 8 there.

    Example:
        >>> ReleasedEmoclipSpec(512, 2, 8).num_weights - 1  # without the scale
        68689408
    """

    dim: int
    layers: int
    attention_heads: int

    kind = "emoclip-released"
    bounds: ClassVar[Bounds] = {
        "dim": (1, MOST_WIDTH),
        "layers": (1, MOST_DEPTH),
        "attention_heads": (1, MOST_ATTENTION_HEADS),
    }

    @classmethod
    def from_config(
        cls, config: HeadConfig, dim: int, outputs: int, *, compares: bool = False
    ) -> Self:
        """See `raffect.heads.head_batch.HeadSpec.from_config`."""
        require(
            compares,
            "head.kind emoclip-released: does nothing but compare with texts; expected a task of "
            "captions, or head.kind temporal",
        )
        require_same_length(cls.kind, dim, outputs)
        require(
            config.window < POSITIONS,
            f"head.window {config.window}: head.kind emoclip-released has {POSITIONS} positions, "
            f"one of them its token's; expected at most {POSITIONS - 1}",
        )
        return cls(dim, config.layers, config.attention_heads)

    @property
    def weights(self) -> Shapes:
        """See `raffect.heads.head_batch.HeadSpec.weights`; names are those of the released code."""
        inner, dim = HEAD_WIDTH * self.attention_heads, self.dim
        out: Shapes = {
            "logit_scale": (),
            "temporal.cls_token": (1, 1, dim),
            "temporal.pos_embedding": (1, POSITIONS, dim),
        }
        for number in range(self.layers):
            attention, hidden = f"{_LAYERS}.{number}.0.fn", f"{_LAYERS}.{number}.1.fn"
            out |= norm_shapes(f"{attention}.norm", dim)
            out[f"{attention}.fn.to_qkv.weight"] = (3 * inner, dim)
            out |= linear_shapes(f"{attention}.fn.to_out.0", dim, inner)
            out |= norm_shapes(f"{hidden}.norm", dim)
            out |= linear_shapes(f"{hidden}.fn.net.0", dim, dim)
            out |= linear_shapes(f"{hidden}.fn.net.3", dim, dim)
        return out

    @property
    def outputs(self) -> int:
        """E, as many as the feature is long."""
        return self.dim

    @property
    def length(self) -> int:
        """See `raffect.heads.head_batch.EmbeddingSpec.length`."""
        return self.dim

    def initial_row(self, seed: int, config: HeadConfig) -> Tensor:
        """As the released code: token and positions from N(0, 1), Linear by torch's default.

        The scale is that of OpenAI's CLIP, which the code copies.
        """
        generator = weights_generator(seed)
        row = torch.zeros(self.num_weights)
        inputs = self.dim
        # A bias has the bound of the weight before it, which has the number of inputs.
        for name, view in self.views(row[None]).items():
            layer, _, kind = name.rpartition(".")
            if name == "logit_scale":
                view.fill_(LOGIT_SCALE)
            elif layer == "temporal":
                view.copy_(torch.randn(view.shape, generator=generator))
            elif layer.endswith("norm"):
                view.fill_(1.0 if kind == "weight" else 0.0)
            else:
                inputs = view.shape[-1] if kind == "weight" else inputs
                uniform = torch.rand(view.shape, generator=generator) * 2 - 1
                view.copy_(uniform * inputs**-0.5)
        return row

    def module(self) -> HeadModule:
        """See `raffect.heads.head_batch.HeadSpec.module`."""
        return ReleasedEmoclip(self)


class ReleasedEmoclip(HeadModule):
    """One released head: a pre-norm transformer over raw features, whose token is the vector.

    It has no padding mask; windows of the released code are always full, since they wrap around the
    end of a clip and mirror short ones. Ours do not, so here features that are not there are not
    attended to: a full window gives what the released code gives, and one with gaps at its end what
    that code gives for the shorter window.

    Args:
        spec: Its shape.

    Source:
        Foteinopoulou and Patras 2024, and the code at github.com/NickyFot/EmoCLIP (July 2024), of
        which names and shapes of tensors are taken; the code here is our own. Dropout is 0 there,
        and there is no norm behind the last layer.
    """

    def __init__(self, spec: ReleasedEmoclipSpec) -> None:
        super().__init__()
        self.spec = spec
        inner, dim = HEAD_WIDTH * spec.attention_heads, spec.dim
        self.logit_scale = nn.Parameter(torch.tensor(LOGIT_SCALE))
        layers = nn.ModuleList()
        for _ in range(spec.layers):
            qkv, out = nn.Linear(dim, 3 * inner, bias=False), nn.Linear(inner, dim)
            attention = _named(to_qkv=qkv, to_out=nn.ModuleList([out]))
            net = nn.ModuleDict({"0": nn.Linear(dim, dim), "3": nn.Linear(dim, dim)})
            parts = [
                _named(norm=nn.LayerNorm(dim), fn=part) for part in (attention, _named(net=net))
            ]
            layers.append(nn.ModuleList([_named(fn=part) for part in parts]))
        self.temporal = _named(temporal_transformer=_named(layers=layers))
        self.temporal.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.temporal.pos_embedding = nn.Parameter(torch.zeros(1, POSITIONS, dim))

    def forward(self, x: Tensor, noise: Tensor | None = None, *, training: bool = False) -> Tensor:
        """See `HeadModule.forward`; ``x`` is (B, T, D), or (B, D) for a window of one."""
        x = x[:, None] if x.ndim == 2 else x
        if not (x.ndim == 3 and x.shape[1] < POSITIONS and x.shape[2] == self.spec.dim):
            expected = f"windows of up to {POSITIONS - 1} features of length {self.spec.dim}"
            raise ValueError(f"samples of shape {tuple(x.shape)}: expected {expected}")
        # The token first; each with its position.
        state: Any = self.temporal
        rows, is_there = fill_missing(x)
        x = torch.cat([state.cls_token.expand(len(x), -1, -1), rows], 1)
        x = x + state.pos_embedding[:, : x.shape[1]]
        is_there = torch.cat([torch.ones_like(is_there[:, :1]), is_there], 1)
        # Of the last layer only the token is used.
        layers = state.temporal_transformer.layers
        for number, (attention, hidden) in enumerate(layers):
            first_only = number == len(layers) - 1
            x = self._attend(attention.fn, x, is_there, first_only)
            net = hidden.fn.fn.net
            inside = nn.functional.gelu(net["0"](hidden.fn.norm(x)), approximate="tanh")
            x = x + net["3"](inside)
        return self.logit_scale.exp() * normalise(x[:, 0], "l2")

    def _attend(self, part: Any, x: Tensor, is_there: Tensor, first_only: bool) -> Tensor:
        """Tokens after attention, shape (B, 1 + T, D), or (B, 1, D)."""
        normal, weight = part.norm(x), part.fn.to_qkv.weight
        queries, keys_values = ask(normal, weight, None, first_only=first_only)
        if first_only:
            x = x[:, :1]
        found = attend(queries, keys_values, self.spec.attention_heads, is_there)
        return x + part.fn.to_out[0](found)


def _named(**parts: nn.Module) -> nn.Module:
    """A module that does nothing but name its parts, as the names of a state need it."""
    out = nn.Module()
    for name, part in parts.items():
        out.add_module(name, part)
    return out
