"""Snippets: a window is looked at part by part, then as a whole; and the order of its parts as a
task of its own.

Shape letters: B samples, T features of a window, S snippets, F = T / S features of one, W width,
O orders.
"""

from __future__ import annotations

import functools
import itertools
import math

import torch
from torch import Tensor, nn

from raffect.heads.head_batch import Shapes
from raffect.heads.transformer import Block, block_shapes, linear_shapes

MOST_ORDERS = 24
"""Orders to recognise: all of up to 4 snippets, and as many of more."""
_GOLDEN = 618_033_988_749_895, 10**15
"""The golden section as a fraction: multiples of it spread evenly."""


class Snippets(nn.Module):
    """One vector a snippet: attention among its features, then the mean of those that are there.

    Args:
        snippets: S.
        features: F.
        width: W.
        heads: Attention heads.

    Source:
        Liu et al. 2023, "Expression Snippet Transformer", which does so inside of its ResNet-18;
        here the features are a frozen encoder's.
    """

    def __init__(self, snippets: int, features: int, width: int, heads: int) -> None:
        super().__init__()
        self.snippets = snippets
        self.position = nn.Parameter(torch.zeros(features, width))
        self.block = Block(width, heads)

    def forward(
        self, tokens: Tensor, is_there: Tensor, noise: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Vectors of snippets, and which snippets have a feature at all.

        Args:
            tokens: Of a window, shape (B, T, W).
            is_there: Bool, shape (B, T).
            noise: Of the block, shape (B, 2 W), the same for all snippets of a sample.

        Returns:
            Shapes (B, S, W) and (B, S).
        """
        # Snippets are samples of the block; a window's features stand one after the other.
        # No size is -1, which torch cannot infer where there are 0 samples.
        samples, features, width = tokens.shape[0], len(self.position), tokens.shape[-1]
        there = is_there.reshape(samples * self.snippets, features)
        x = tokens.reshape(*there.shape, width) + self.position
        x = self.block(
            x, there, None if noise is None else noise.repeat_interleave(self.snippets, 0)
        )
        means = mean_of(x, there)
        shape = samples, self.snippets
        return means.view(*shape, width), there.any(1).view(shape)


class OrderLoss(nn.Module):
    """How well the order of shuffled snippets is recognised: cross-entropy over `orders_of`.

    Args:
        snippets: S.
        width: W.

    Source:
        Liu et al. 2023, "Expression Snippet Transformer for robust video-based facial expression
        recognition": shuffled snippet order prediction. Here the main outputs are always those of
        the snippets in their order, which is what a head sees in use; the shuffled ones train what
        both share. Which orders are recognised, and how the loss is weighted, is ours.
    """

    orders: Tensor

    def __init__(self, snippets: int, width: int) -> None:
        super().__init__()
        orders = torch.tensor(orders_of(snippets))  # shape (O, S)
        self.register_buffer("orders", orders, persistent=False)
        self.classify = nn.Linear(width, len(orders))

    def draw(self, uniform: Tensor) -> Tensor:
        """Number of an order for each sample, int64, by its number in [0, 1), both shape (B,)."""
        count = len(self.orders)
        return (uniform * count).long().clamp(0, count - 1)

    def shuffle(self, values: Tensor, order: Tensor) -> Tensor:
        """Snippets of each sample in its order: shape (B, S, ...), by numbers of shape (B,)."""
        places = self.orders[order]
        places = places.view(*places.shape, *[1] * (values.ndim - 2))
        return values.take_along_dim(places.expand(values.shape), 1)

    def forward(self, summary: Tensor, is_there: Tensor, order: Tensor) -> Tensor:
        """The loss in nats of each sample, shape (B,).

        Args:
            summary: Of the shuffled snippets, shape (B, W).
            is_there: Which of a sample's snippets have a feature, bool, shape (B, S); fewer than
                two have no order, and cost nothing.
            order: What `draw` gave, shape (B,).
        """
        log_p = self.classify(summary).log_softmax(-1)
        loss = -log_p.take_along_dim(order[:, None], 1)[:, 0]
        return loss * (is_there.sum(1) > 1)


@functools.cache
def orders_of(snippets: int) -> tuple[tuple[int, ...], ...]:
    """The orders of so many snippets that are recognised.

    All S! up to `MOST_ORDERS`, else as many permutations, spread evenly over the list of all of
    them: a classifier of 7! would have as many outputs as most data sets have clips.

    Example:
        >>> orders_of(2), len(orders_of(4)), len(orders_of(7))
        (((0, 1), (1, 0)), 24, 24)
    """
    total = math.factorial(snippets)
    if total <= MOST_ORDERS:
        return tuple(itertools.permutations(range(snippets)))
    step = total * _GOLDEN[0] // _GOLDEN[1]
    return tuple(_permutation(k * step % total, snippets) for k in range(MOST_ORDERS))


def _permutation(rank: int, size: int) -> tuple[int, ...]:
    """The permutation of ``range(size)`` with a 0-based place in the list of all of them."""
    left, out = list(range(size)), []
    for remaining in range(size - 1, -1, -1):
        place, rank = divmod(rank, math.factorial(remaining))
        out.append(left.pop(place))
    return tuple(out)


def mean_of(values: Tensor, is_there: Tensor) -> Tensor:
    """Mean over the rows that are there, (B, ..., W) of (B, ..., N, W); 0 where there are none."""
    kept = values.masked_fill(~is_there[..., None], 0)
    return kept.sum(-2) / is_there.sum(-1, keepdim=True).clamp(min=1)


def snippet_shapes(name: str, features: int, width: int) -> Shapes:
    """Shapes of `Snippets`."""
    return {f"{name}.position": (features, width), **block_shapes(f"{name}.block", width)}


def order_shapes(name: str, snippets: int, width: int) -> Shapes:
    """Shapes of `OrderLoss`."""
    return linear_shapes(f"{name}.classify", len(orders_of(snippets)), width)
