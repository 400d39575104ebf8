"""Features as samples on a device: whole, mapped, or shared by workers; all of them finite."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from raffect.bank.features import FeatureIndex
from raffect.bank.windows import WindowIndex
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.heads.samples import Samples
from raffect.heads.shared_samples import SharedSamples, share_of
from raffect.heads.workers import Workers
from raffect.runs.data import targets_of

_CHECKED_ROWS = 256
"""Rows that are checked at a time: so few that they stay in the cache."""


def read_rows(index: FeatureIndex, task: Task, device: torch.device) -> Samples:
    """Read features onto a device, each once, however many windows it is in.

    Raises:
        RaffectError: If a feature is not finite.
    """
    return _as_samples(index.read(), index, task, device, device)


def read_mapped_rows(index: FeatureIndex, task: Task, device: torch.device) -> Samples:
    """As `read_rows`, but features are a file in the folder for temporary ones, and mapped.

    Only what is being judged is then in memory; the file is gone with the process.

    Raises:
        RaffectError: If a feature is not finite.
    """
    # Network file systems keep a mapped file, under another name, until nobody maps it any more.
    with tempfile.TemporaryDirectory(prefix="raffect-", ignore_cleanup_errors=True) as folder:
        x = index.read(Path(folder) / "features.npy")
    return _as_samples(x, index, task, device, torch.device("cpu"))


def _as_samples(
    x: np.ndarray, index: FeatureIndex, task: Task, device: torch.device, place: torch.device
) -> Samples:
    """Samples of features, which are at ``place`` with the windows, and all else on the device."""
    check_finite(x, index)
    arrays = (targets_of(index, task), index.group.astype(np.int64))
    targets, groups = (torch.from_numpy(array).to(device) for array in arrays)
    window = None
    if isinstance(index, WindowIndex):
        window = torch.from_numpy(index.window).to(place)
    return Samples(torch.from_numpy(x).to(place), targets, groups, len(index.groups), window)


def read_shared_rows(
    index: FeatureIndex, task: Task, device: torch.device, workers: Workers
) -> SharedSamples:
    """Read this worker's part of the features onto its device; all workers do so at once.

    Raises:
        RaffectError: If a feature is not finite.
    """
    share, keep = share_of(len(index), workers), np.zeros(len(index), bool)
    keep[share] = True
    own = index.select(keep)
    x = own.read()
    check_finite(x, own)
    features, targets = (torch.from_numpy(a).to(device) for a in (x, targets_of(index, task)))
    return SharedSamples(features, share.start, targets, workers)


def check_finite(x: np.ndarray, index: FeatureIndex, rows: np.ndarray | None = None) -> None:
    """Refuse NaN and infinity, and name the frame that has them.

    One such feature makes every weight NaN within an epoch.

    Args:
        x: Features, shape (M, dim).
        index: What they are of.
        rows: Row of ``index`` of each feature, shape (M,); all in order by default.

    Raises:
        RaffectError: Names the first one.
    """
    if (row := first_not_finite(x)) is not None:
        row = row if rows is None else int(rows[row])
        raise RaffectError(
            f"{index.bank.path}: the feature of {index.name_of(row)} is not finite, and perhaps "
            "others; encode with --encoder.precision float32 into a new bank"
        )


def first_not_finite(x: np.ndarray) -> int | None:
    """The first of some features, float16, shape (N, dim), that has NaN or infinity in it."""
    for start in range(0, len(x), _CHECKED_ROWS):
        # In float16, infinity has the exponent 0x7C00 and NaN the same with a fraction behind it.
        part = x[start : start + _CHECKED_ROWS].view(np.uint16)
        if (part & 0x7FFF).max() >= 0x7C00:
            return start + int(((part & 0x7FFF) >= 0x7C00).any(axis=1).argmax())
    return None
