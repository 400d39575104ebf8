"""The frozen text tower as a function of token vectors, for prompts whose tokens are learnt.

open_clip's `encode_text` starts from numbers of tokens, which have no derivative. This one starts
from their vectors, is differentiable in them, and gives its own weights no gradient.

Every product is a batch of products, whose shape torch.func's vmap leaves as it is: it adds to the
batch. So texts that are encoded side by side have the vectors that they have alone, byte for byte
on a CPU.

Shape letters: N texts, L tokens of a text, W width of the tower, D length of a text's vector;
G classes, S descriptors of a class, M learnt tokens of a descriptor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from open_clip.transformer import QuickGELU, ResidualAttentionBlock
from torch import Tensor, nn
from torch.nn import functional

from raffect.encoders.text import TextEncoder
from raffect.errors import require

_QUICK = 1.702
"""QuickGELU's factor: ``x * sigmoid(1.702 x)``."""


class TextTower:
    """A frozen text tower that reads vectors of tokens; see `open_text_tower`.

    Args:
        model: An open_clip model, or its text tower.
        tokenizer: The model's.
        name: Of the model, for errors.
        device: Where it computes.
        dtype: float32; float64 for tests.

    Attributes:
        width: W, length of a token's vector.
        dim: D.
        context_length: Most tokens of a text, start and end included.

    Raises:
        RaffectError: If it is not a tower like CLIP's, whose tokens look back alone.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        name: str,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        # What kind of tower it is.
        tower = getattr(model, "text", model)
        _require_clip(model, tower, name)
        block = tower.transformer.resblocks[0]
        self._layers, self._heads = len(tower.transformer.resblocks), block.attn.num_heads
        self._is_quick, self._eps = isinstance(block.mlp.gelu, QuickGELU), tower.ln_final.eps
        self._tokenizer, self.name = tokenizer, name
        # Its weights by name, which get no gradient.
        self._weights = {
            key: value.detach().to(device, dtype)
            for key, value in tower.state_dict().items()
            if not key.startswith(("visual.", "logit_"))
        }
        if isinstance(tower.text_projection, nn.Parameter):
            self._weights["text_projection.weight"] = self._weights.pop("text_projection").T
        self.context_length = int(tokenizer.context_length)
        self.width = self._weights["token_embedding.weight"].shape[1]
        self.dim = len(self._weights["text_projection.weight"])

    def __call__(self, x: Tensor, end: Tensor) -> Tensor:
        """Vectors of texts.

        Args:
            x: Vectors of tokens, shape (N, L, W), the start first. What lies behind a text's end
                does not matter, since tokens look back alone; so L need not be more than the
                longest text has.
            end: Position of each text's end, int64, shape (N,).

        Returns:
            As `encode_text` gives them, not normalised: shape (N, D).
        """
        length = x.shape[1]
        x = x + self._weights["positional_embedding"][:length]
        later = torch.ones(length, length, dtype=torch.bool, device=x.device).triu(1)
        for layer in range(self._layers):
            name = f"transformer.resblocks.{layer}"
            x = x + self._attend(self._norm(x, f"{name}.ln_1"), f"{name}.attn", later)
            hidden = self._linear(self._norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc")
            x = x + self._linear(self._activate(hidden), f"{name}.mlp.c_proj")
        x = self._norm(x, "ln_final")
        at_end = x.gather(1, end[:, None, None].expand(-1, 1, x.shape[2]))
        return self._linear(at_end, "text_projection")[:, 0]

    def _attend(self, x: Tensor, name: str, later: Tensor) -> Tensor:
        """Attention of tokens to themselves and earlier ones, (N, L, W) to (N, L, W)."""
        count, length, width = x.shape
        projected = self._product(x, f"{name}.in_proj_weight", f"{name}.in_proj_bias")
        split = projected.reshape(count, length, 3, self._heads, width // self._heads)
        q, k, v = split.permute(2, 0, 3, 1, 4)
        scores = (q / math.sqrt(width // self._heads)) @ k.mT
        mixed = scores.masked_fill(later, -math.inf).softmax(-1) @ v
        return self._linear(mixed.transpose(1, 2).reshape(x.shape), f"{name}.out_proj")

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return functional.layer_norm(x, weight.shape, weight, bias, self._eps)

    def _activate(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(_QUICK * x) if self._is_quick else functional.gelu(x)

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return self._product(x, f"{name}.weight", f"{name}.bias")

    def _product(self, x: Tensor, weight: str, bias: str) -> Tensor:
        """A linear map of every token, as one product of all tokens of these texts."""
        # A batch of one product; without that batch vmap would make one product of all heads'.
        flat = torch.bmm(x.reshape(1, -1, x.shape[-1]), self._weights[weight].T[None])
        out = flat.view(*x.shape[:-1], -1)
        return out + self._weights[bias] if bias in self._weights else out

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self._weights["positional_embedding"].device

    def read(self, words: str) -> Tensor:
        """Vectors of the tokens of some words, without start and end: shape (L, W)."""
        return self._vectors(self._tokenizer.encode(words))

    def ends(self) -> tuple[Tensor, Tensor]:
        """Vectors of the tokens that begin and end every text, each of shape (W,)."""
        first, last = self._tokenizer.sot_token_id, self._tokenizer.eot_token_id
        return tuple(self._vectors([first, last]))

    def _vectors(self, tokens: Sequence[int]) -> Tensor:
        numbers = torch.tensor(tokens, dtype=torch.int64, device=self.device)
        return self._weights["token_embedding.weight"].index_select(0, numbers)

    def nearest(self, x: Tensor, count: int) -> list[list[tuple[str, float]]]:
        """Words of the vocabulary whose token's vector has the largest cosine with some vectors.

        Tokens that the weights never saw, whose vector is all 0, are left out, and so are start and
        end.

        Args:
            x: Shape (N, W).
            count: How many words of each vector.

        Returns:
            Words with their cosines, the largest first.
        """
        table = functional.normalize(self._weights["token_embedding.weight"], dim=-1)
        cosines = functional.normalize(x.to(table), dim=-1) @ table.T
        cosines[:, ~table.any(1)] = -math.inf
        special = [self._tokenizer.sot_token_id, self._tokenizer.eot_token_id]
        cosines[:, special] = -math.inf
        values, numbers = (found.tolist() for found in cosines.topk(count, dim=1))
        words = [[self._tokenizer.decode([k]).strip() for k in row] for row in numbers]
        return [list(zip(*both, strict=True)) for both in zip(words, values, strict=True)]


class LearntPrompts:
    """Vectors of prompts, each of which is: start, learnt tokens, perhaps words, end.

    Args:
        tower: The frozen tower.
        learnt: How many of its M learnt tokens each descriptor of each class uses: G lists of S.
        words: Words behind them, likewise; empty for none.

    Raises:
        RaffectError: If a prompt has more tokens than the tower reads.
    """

    def __init__(
        self,
        tower: TextTower,
        learnt: Sequence[Sequence[int]],
        words: Sequence[Sequence[str]],
    ) -> None:
        # The longest prompt fits.
        self._tower, self._shape = tower, (len(learnt), len(learnt[0]))
        counts = [count for row in learnt for count in row]
        behind = [text for row in words for text in row]
        read = [tower.read(text) for text in behind]
        for count, text, vectors in zip(counts, behind, read, strict=True):
            total, what = count + len(vectors) + 2, f"{count} learnt tokens"
            what += f" before {text[:60]!r}" if text else ""
            require(
                total <= tower.context_length,
                f"prompt of {total} tokens ({what}), {tower.name} reads {tower.context_length}; "
                "take fewer --head.tokens or shorter words",
            )
        # What is not learnt, and where learnt tokens stand: all prompts as long as the longest.
        length = 2 + max(count + len(vectors) for count, vectors in zip(counts, read, strict=True))
        first, last = tower.ends()
        self._fixed = first.new_zeros(len(counts), length, tower.width)
        position = torch.arange(length, device=tower.device)
        for k, (count, vectors) in enumerate(zip(counts, read, strict=True)):
            self._fixed[k, 0] = first
            self._fixed[k, 1 + count : 1 + count + len(vectors)] = vectors
            self._fixed[k, 1 + count + len(vectors)] = last
        used = torch.tensor(counts, device=tower.device)
        more = torch.tensor([len(vectors) for vectors in read], device=tower.device)
        self._end = 1 + used + more
        self._is_learnt = ((position >= 1) & (position <= used[:, None]))[..., None]

    def __call__(self, tokens: Tensor) -> Tensor:
        """Vectors of all prompts.

        Args:
            tokens: Vectors of the learnt tokens, shape (G, S, M, W); differentiable in those that
                are used.

        Returns:
            Not normalised, shape (G, S, D).
        """
        flat = tokens.flatten(0, 1)
        count, width = self._fixed.shape[1], flat.shape[-1]
        # Behind the start; M may be more or less than the rest of a prompt.
        flat = flat[:, : count - 1]
        behind = flat.new_zeros(len(flat), count - 1 - flat.shape[1], width)
        placed = torch.cat([flat.new_zeros(len(flat), 1, width), flat, behind], 1)
        x = torch.where(self._is_learnt, placed, self._fixed)
        return self._tower(x, self._end).view(*self._shape, -1)


def open_text_tower(
    encoder: TextEncoder, device: torch.device, dtype: torch.dtype = torch.float32
) -> TextTower:
    """The text tower of some weights as a function of token vectors.

    Args:
        encoder: Of `raffect.encoders.text.open_text_encoder`, which has checked the weights.
        device: Where it computes.
        dtype: float32; float64 for tests.

    Raises:
        RaffectError: If it is not a tower like CLIP's, whose tokens look back alone.
    """
    return TextTower(encoder.model, encoder.tokenizer, encoder.source.model, device, dtype)


def _require_clip(model: Any, tower: Any, name: str) -> None:
    """Refuse a text tower that computes anything else than CLIP's."""
    blocks = getattr(getattr(tower, "transformer", None), "resblocks", ())
    pool = getattr(tower, "pool_type", getattr(model, "text_pool_type", ""))
    is_clips = (
        len(blocks) > 0
        and all(type(block) is ResidualAttentionBlock for block in blocks)
        and all(isinstance(block.ls_1, nn.Identity) for block in blocks)
        and getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "cls_emb", None) is None
        and tower.text_projection is not None
        and pool in ("argmax", "eos")
    )
    require(
        is_clips,
        f"{name}: learnt prompts need a text tower like CLIP's, whose tokens look back alone; "
        "use a CLIP model",
    )
