"""What heads of any window read: samples of a split, and what each head makes of its own.

Shape letters: M features, N samples, D length of a feature, T features of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from raffect.bank.windows import Window, WindowIndex
from raffect.heads.checkpoint import HeadCard, load_batch
from raffect.heads.head_batch import HeadBatch
from raffect.heads.samples import Samples, take_windows
from raffect.runs.data import Dataset
from raffect.runs.read_samples import read_rows
from raffect.runs.windows import window_of


class SavedHead(Protocol):
    """A head on disk."""

    @property
    def folder(self) -> Path:
        """Its folder."""
        ...

    @property
    def card(self) -> HeadCard:
        """What it is."""
        ...


@dataclass(frozen=True)
class Inputs:
    """Samples of one shape.

    Attributes:
        features: float16, shape (M, D).
        window: Number of each feature of a window, shape (N, T), -1 where it has none. None where
            the features are the samples.
    """

    features: np.ndarray
    window: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.features if self.window is None else self.window)

    def to(self, device: torch.device) -> Callable[[slice], Tensor]:
        """Move all features to a device; returns what gives some samples there.

        These are of shape (B, T, D), or (B, D) where T is 1.
        """
        # A copy where needed, since torch takes no view of a file's bytes
        is_own = self.features.flags.writeable
        x = torch.from_numpy(self.features if is_own else self.features.copy()).to(device)
        if self.window is None:
            return lambda part: x[part]
        rows = torch.from_numpy(self.window).to(device)
        if rows.shape[1] == 1:
            return lambda part: take_windows(x, rows[part])[:, 0]
        return lambda part: take_windows(x, rows[part])


def read_inputs(dataset: Dataset, split: str, heads: Sequence[SavedHead]) -> dict[Window, Inputs]:
    """Samples of a split in each shape that some heads read."""
    configs = [head.card.recipe.head for head in heads]
    found = {}
    for window, config in {window_of(config): config for config in configs}.items():
        index = dataset.rows(split, config)
        rows = index.window if isinstance(index, WindowIndex) else None
        found[window] = Inputs(index.read(), rows)
    return found


def judge_each(
    dataset: Dataset,
    split: str,
    heads: Sequence[SavedHead],
    device: torch.device,
    judge: Callable[[HeadBatch, Samples, SavedHead], np.ndarray],
) -> list[np.ndarray]:
    """What ``judge`` makes of each head and the samples of a split as that head reads them.

    Samples are on the device in one shape at a time.
    """
    found: dict[int, np.ndarray] = {}
    places: dict[Window, list[int]] = {}
    for place, head in enumerate(heads):
        places.setdefault(window_of(head.card.recipe.head), []).append(place)
    for alike in places.values():
        index = dataset.rows(split, heads[alike[0]].card.recipe.head)
        samples = read_rows(index, dataset.task, device)
        for place in alike:
            found[place] = judge(load_batch(heads[place].folder, device)[0], samples, heads[place])
        del samples
    return [found[place] for place in range(len(heads))]
