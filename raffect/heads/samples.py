"""What heads are trained and judged on: samples that the device holds, or a stream of batches.

Shape letters: N samples, M features, D length of a feature, T features of a window. A sample is a
feature (D,), or a window of features (T, D) as `raffect.heads.head_batch` describes it; "..."
stands for either.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Samples:
    """Samples and targets of one split on a device.

    Attributes:
        x: Samples, float16, shape (N, ...); or where ``window`` says so the features that windows
            are made of, shape (M, D). They and ``window`` may be on the CPU where the others are
            on a GPU, if they are judged alone.
        y: Targets of the task's kind: classes, int64 (N,); labels, int8 (N, L), negative where
            unlabelled; or values, float32 (N, V), NaN where unlabelled.
        video: Number of each sample's video, or other group that intervals keep together, int64,
            shape (N,).
        num_videos: How many there are.
        window: Row of ``x`` of each feature of a window, int32 or int64, shape (N, T); -1 where a
            window has none. None where ``x`` holds the samples themselves.
    """

    x: Tensor
    y: Tensor
    video: Tensor
    num_videos: int
    window: Tensor | None = None

    def __len__(self) -> int:
        return len(self.y)

    @property
    def features_per_sample(self) -> int:
        """T, or 1: what memory for some samples is counted in."""
        return 1 if self.window is None else self.window.shape[1]

    def take(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """Samples and targets by number.

        Args:
            index: int64, of any shape.

        Returns:
            Copies, of shapes (*index, ...) and (*index, *target).
        """
        flat = index.flatten()
        x, y = self._gather(flat), self.y.index_select(0, flat)
        return x.view(*index.shape, *x.shape[1:]), y.view(*index.shape, *y.shape[1:])

    def take_share(self, index_PB: Tensor, share: slice) -> tuple[Tensor, Tensor]:
        """Samples and targets of one worker's columns ``share`` of a global batch."""
        return self.take(index_PB[:, share])

    def part(self, which: slice) -> Samples:
        """The samples ``which``, in order."""
        y, video = self.y[which], self.video[which]
        if self.window is None:
            return Samples(self.x[which], y, video, self.num_videos)
        return Samples(self.x, y, video, self.num_videos, self.window[which])

    def samples(self) -> Tensor:
        """All samples, shape (N, ...): with windows a copy of T times the features."""
        if self.window is None:
            return self.x
        return self._gather(torch.arange(len(self), device=self.x.device))

    def _gather(self, index: Tensor) -> Tensor:
        """Copies of samples by number: shape (N, ...) for ``index`` of shape (N,)."""
        if self.window is None:
            return self.x.index_select(0, index)
        return take_windows(self.x, self.window.index_select(0, index))


def take_windows(x: Tensor, rows: Tensor) -> Tensor:
    """Windows of features.

    Args:
        x: Features, shape (M, D).
        rows: Row of each feature of a window, shape (N, T); -1 where it has none.

    Returns:
        Copies, shape (N, T, D), all NaN where a window has no feature.
    """
    found = x.index_select(0, rows.clamp(min=0).flatten()).view(*rows.shape, x.shape[-1])
    return found.masked_fill_((rows < 0)[..., None], float("nan"))


def fill_missing(windows: Tensor) -> tuple[Tensor, Tensor]:
    """Windows without NaN where a row is not there, which is where all of it is NaN.

    A row of which a part is NaN is a fault of the features: it stays, so that a loss shows it.

    Args:
        windows: As of `take_windows`, shape (..., T, D).

    Returns:
        Rows with 0 in those that are not there, shape (..., T, D), and which are, bool, (..., T).
    """
    is_there = ~windows.isnan().all(-1)
    return windows.masked_fill(~is_there[..., None], 0), is_there


class SampleStream(Protocol):
    """Where training samples come from when the device does not hold them."""

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Global batches of an epoch: samples (B, ...) and targets (B, *target), B the same."""
        ...


class Feed:
    """Where each batch of a stream lies on the device: the same memory, which a graph reads again.

    Args:
        x: Samples of a first batch, on the CPU, float16 as they come: half of float32's way.
        y: Its targets.
        device: Where the batches go.
    """

    def __init__(self, x: Tensor, y: Tensor, device: torch.device) -> None:
        self.x, self.y = (torch.empty_like(tensor, device=device) for tensor in (x, y))

    def put(self, x: Tensor, y: Tensor) -> None:
        """Take the next batch, without a wait for the one before on CUDA."""
        for held, new in ((self.x, x), (self.y, y)):
            # torch keeps pinned memory as it is until it has been copied.
            source = new.pin_memory() if held.is_cuda else new
            held.copy_(source, non_blocking=True)

    def take(self, num_heads: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Samples of a type and targets, the same for each head, shape (P, B, ...)."""
        x, y = self.x.to(dtype), self.y
        return x.expand(num_heads, *x.shape), y.expand(num_heads, *y.shape)
