"""A pre-norm transformer written out, so that torch.func runs many heads of it side by side.

Nothing here is fused, random or dependent on values: attention is two products and a softmax, a
mask is added to it, and dropout is a factor that comes from outside.

Shape letters: B samples, N tokens, W width, H attention heads, I width of all attention heads,
K factors of noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raffect.heads.head_batch import Shapes

EXPANSION = 4
"""Units of a block's hidden layer for each of its width, as in nearly every transformer."""
NOISE_OF_BLOCK = 2
"""Factors of noise that a block takes for each of its width; see `Block.forward`."""


def attend(
    queries: Tensor, keys_values: Tensor, heads: int, is_there: Tensor | None = None
) -> Tensor:
    """Softmax attention of tokens to tokens.

    Args:
        queries: Of the tokens that ask, shape (B, M, I).
        keys_values: Keys, and behind them values, of those that are asked, shape (B, N, 2 I).
        heads: H, which divides I.
        is_there: Tokens to attend to, bool, shape (B, N); all of them if None. A sample that has
            not a single one attends to all alike, which stays finite.

    Returns:
        Shape (B, M, I).

    Source:
        Vaswani et al. 2017, section 3.2.
    """
    asked = queries.unflatten(-1, (heads, -1)).transpose(1, 2)
    keys, values = keys_values.unflatten(-1, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    scores = asked @ keys.mT * keys.shape[-1] ** -0.5
    if is_there is not None:
        lowest = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~is_there[:, None, None, :], lowest)
    return (scores.softmax(-1) @ values).transpose(1, 2).flatten(2)


def ask(
    tokens: Tensor, weight: Tensor, bias: Tensor | None, *, first_only: bool
) -> tuple[Tensor, Tensor]:
    """Queries, and keys and values, for `attend`, by one matrix that has all three.

    Args:
        tokens: Shape (B, N, W).
        weight: Shape (3 I, W).
        bias: Of queries and of values, shape (2 I,), or None. Keys have none: a softmax does not
            see it, so that its gradient would be rounding noise, which Adam makes full steps of.
        first_only: Whether the first token alone asks.

    Returns:
        Shapes (B, N, I) or (B, 1, I), and (B, N, 2 I).
    """
    size = len(weight) // 3
    sizes = [size, 2 * size]
    if bias is not None:
        of_queries, of_values = bias.split(size)
        bias = torch.cat([of_queries, torch.zeros_like(of_queries), of_values])
    if not first_only:
        queries, keys_values = nn.functional.linear(tokens, weight, bias).split(sizes, -1)
        return queries, keys_values
    # Split at once: each slice would bring a gradient of the size of the whole matrix.
    weights = weight.split(sizes)
    biases = [None, None] if bias is None else bias.split(sizes)
    first = nn.functional.linear(tokens[:, :1], weights[0], biases[0])
    return first, nn.functional.linear(tokens, weights[1], biases[1])


class Block(nn.Module):
    """Attention, then a hidden layer with tanh-GELU, each added to what it was given normalised.

    Args:
        width: W.
        heads: H, which divides it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.bias = nn.Parameter(torch.zeros(2 * width))  # of `ask`
        self.up = nn.Linear(width, EXPANSION * width)
        self.down = nn.Linear(EXPANSION * width, width)

    def forward(
        self,
        x: Tensor,
        is_there: Tensor | None,
        noise: Tensor | None,
        *,
        first_only: bool = False,
    ) -> Tensor:
        """Tokens after the block.

        Args:
            x: Tokens, shape (B, N, W).
            is_there: See `attend`.
            noise: Factors by which the units of both branches are multiplied, shape (B, 2 W), the
                same for all tokens of a sample (Gal and Ghahramani 2016): so their number does not
                grow with the window. None drops nothing.
            first_only: Whether the first token alone is wanted; the others are then not computed.

        Returns:
            Shape (B, N, W), or (B, 1, W).
        """
        width, normal = x.shape[-1], self.norm1(x)
        if first_only:
            x = x[:, :1]
        queries, asked = ask(normal, self.qkv.weight, self.bias, first_only=first_only)
        looked = self.out(attend(queries, asked, self.heads, is_there))
        x = x + (looked if noise is None else looked * noise[:, None, :width])
        hidden = nn.functional.gelu(self.up(self.norm2(x)), approximate="tanh")
        thought = self.down(hidden)
        return x + (thought if noise is None else thought * noise[:, None, width:])


class Encoder(nn.Module):
    """Tokens in their order to one vector: that of a learnt token which attends to all.

    Args:
        tokens: N.
        width: W.
        heads: H.
        layers: How many blocks.
    """

    def __init__(self, tokens: int, width: int, heads: int, layers: int) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.zeros(width))
        self.position = nn.Parameter(torch.zeros(tokens, width))
        self.blocks = nn.ModuleList([Block(width, heads) for _ in range(layers)])
        self.norm = nn.LayerNorm(width)

    def forward(self, tokens: Tensor, is_there: Tensor, noise: Tensor | None) -> Tensor:
        """A vector a sample.

        Args:
            tokens: Shape (B, N, W).
            is_there: Bool, shape (B, N); what stands in the others changes nothing.
            noise: Of the blocks one after the other, shape (B, 2 W layers).

        Returns:
            Shape (B, W).
        """
        cls = self.cls.expand(tokens.shape[0], 1, -1)  # `len` would make it a constant of exports
        x = torch.cat([cls, tokens + self.position], 1)
        is_there = torch.cat([torch.ones_like(is_there[:, :1]), is_there], 1)
        for number, block in enumerate(self.blocks):
            own, is_last = noise_of(noise, number, x.shape[-1]), number == len(self.blocks) - 1
            x = block(x, is_there, own, first_only=is_last)
        return self.norm(x[:, 0])


def noise_of(noise: Tensor | None, block: int, width: int) -> Tensor | None:
    """The factors of one block out of those of all."""
    size = NOISE_OF_BLOCK * width
    return None if noise is None else noise[:, block * size : (block + 1) * size]


def linear_shapes(name: str, outputs: int, inputs: int) -> Shapes:
    """Shapes of an `nn.Linear`."""
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm_shapes(name: str, width: int) -> Shapes:
    """Shapes of an `nn.LayerNorm`."""
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def block_shapes(name: str, width: int) -> Shapes:
    """Shapes of a `Block`."""
    return {
        f"{name}.bias": (2 * width,),
        **norm_shapes(f"{name}.norm1", width),
        **norm_shapes(f"{name}.norm2", width),
        f"{name}.qkv.weight": (3 * width, width),
        **linear_shapes(f"{name}.out", width, width),
        **linear_shapes(f"{name}.up", EXPANSION * width, width),
        **linear_shapes(f"{name}.down", width, EXPANSION * width),
    }


def encoder_shapes(name: str, tokens: int, width: int, layers: int) -> Shapes:
    """Shapes of an `Encoder`."""
    out: Shapes = {f"{name}.cls": (width,), f"{name}.position": (tokens, width)}
    for number in range(layers):
        out |= block_shapes(f"{name}.blocks.{number}", width)
    return out | norm_shapes(f"{name}.norm", width)
