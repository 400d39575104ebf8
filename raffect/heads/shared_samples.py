"""Samples that workers hold together: each has its part of the features, in its own memory.

A step takes the samples that it would take from one memory. Every worker puts in what it holds of
the batch and zeros elsewhere; the bytes are added up over the workers, so that nothing is rounded.

Shape letters: P heads, B samples of the global batch, N samples, D length of a feature.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from raffect.heads.workers import Workers


@dataclass(frozen=True)
class SharedSamples:
    """Samples of which each worker holds the features of a part.

    Attributes:
        x: Features of this worker's samples, float16, shape (its number, D).
        first: Number of the first of them.
        y: Targets of all samples, as of `raffect.heads.samples.Samples`.
        workers: All of whom have such a part.
    """

    x: Tensor
    first: int
    y: Tensor
    workers: Workers

    def __len__(self) -> int:
        return len(self.y)

    def take_share(self, index_PB: Tensor, share: slice) -> tuple[Tensor, Tensor]:
        """See `raffect.heads.samples.Samples.take_share`; every worker calls it at once."""
        # What this worker holds of the global batch
        own = index_PB.flatten() - self.first
        is_here = (own >= 0) & (own < len(self.x))
        found = self.x.index_select(0, own.clamp(0, len(self.x) - 1))
        found.masked_fill_(~is_here[:, None], 0)

        # And what the others hold
        self.workers.sum_(found.view(torch.uint8))
        part = index_PB[:, share]
        y = self.y.index_select(0, part.flatten())
        x = found.view(*index_PB.shape, -1)[:, share]
        return x, y.view(*part.shape, *y.shape[1:])


def share_of(num_samples: int, workers: Workers) -> slice:
    """Numbers of the samples of which a worker holds the features; parts differ by one at most."""
    bounds = [num_samples * rank // workers.size for rank in (workers.rank, workers.rank + 1)]
    return slice(*bounds)
