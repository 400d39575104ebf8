"""What heads are trained and judged on: samples that the device holds, or a stream of batches.

Shape letters: N samples, D feature. A sample is a feature (D,), or a window of features (T, D) as
`raffect.heads.head_batch` describes it; "..." stands for either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Samples and targets of one split on a device.

    Attributes:
        x: float16, shape (N, ...).
        y: Targets of the task's kind: classes, int64 (N,); labels, int8 (N, L), negative where
            unlabelled; or values, float32 (N, V), NaN where unlabelled.
        video: Number of each sample's video, or other group that intervals keep together, int64,
            shape (N,).
        num_videos: How many there are.
    """

    x: Tensor
    y: Tensor
    video: Tensor
    num_videos: int

    def __len__(self) -> int:
        return len(self.y)

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Samples and targets by number.

        Args:
            index: int64, of any shape.

        Returns:
            Copies, of shapes (*index, ...) and (*index, *target).
        """
        flat = index.flatten()
        x, y = self.x.index_select(0, flat), self.y.index_select(0, flat)
        return x.view(*index.shape, *x.shape[1:]), y.view(*index.shape, *y.shape[1:])

    def part(self, which: slice) -> Samples:
        """The samples ``which``, in order."""
        return Samples(self.x[which], self.y[which], self.video[which], self.num_videos)


class SampleStream(Protocol):
    """Where training samples come from when the device does not hold them."""

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Global batches of an epoch: samples (B, ...) and targets (B, *target)."""
        ...
