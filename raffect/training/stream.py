"""Training rows through Ray Data, for banks that do not fit the device.

The training step is the same, the order of frames another. An epoch is a seeded order of shards,
cut into windows; Ray Data reads windows ahead, in order, and each is shuffled as a whole. What a
window holds follows from (seed, epoch) alone, never from the number of readers, so that runs repeat
and workers agree.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raffect.bank.clips import ClipIndex
from raffect.bank.features import FeatureIndex, read_rows
from raffect.bank.format import Bank
from raffect.bank.records import Commit
from raffect.bank.windows import WindowIndex
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require
from raffect.heads.workers import Workers
from raffect.ray_session.session import configure_data
from raffect.runs.data import targets_of
from raffect.runs.read_samples import check_finite
from raffect.storage.cells import as_cell, read_cell

WINDOW_ROWS = 32_768
"""Rows that are shuffled together: 50 MB of 768-d features."""
MEMORY_SHARE = 0.5
"""Share of the memory that features may take before they are streamed."""

Window = list[tuple[int, int, int]]
"""Shards that are shuffled together, as (shard, first row, last row + 1 of the index)."""


def decide_stream(
    choice: str, index: FeatureIndex, device: str, share: float = 1.0, num_workers: int = 1
) -> Literal["always", "never"]:
    """Whether features are streamed.

    With ``auto`` they are if they would take more than half of the memory: of the GPUs of all
    workers, or of a trial's ``share`` of one, or of the machine.

    This is decided once for a run, because it decides the order of frames; a run that goes on takes
    what was recorded.

    Raises:
        RaffectError: If clips or windows would be streamed, which need all features at hand.
    """
    if isinstance(index, ClipIndex):
        require(
            choice != "always", "--stream always: labels of clips are not streamed; leave it out"
        )
        return "never"
    windows = index.window if isinstance(index, WindowIndex) else None
    require(
        windows is None or choice != "always",
        "--stream always: windows (head.window) need features that stay in memory; leave it out",
    )
    if choice == "always" or choice == "never":  # noqa: PLR1714
        return choice
    # A trial has a share of a GPU; workers on GPUs hold a part each, unless they read windows
    memory: float = _memory_bytes(device)
    if _on_gpu(device):
        memory *= min(share, 1.0) * (num_workers if windows is None else 1)
    needed = 2 * len(index.shard) * index.dim + (0 if windows is None else windows.nbytes)
    fits = needed <= MEMORY_SHARE * memory
    require(
        windows is None or fits,
        f"head.window: windows and their features take {needed / 1e9:.1f} GB, more than half of "
        f"the memory ({memory / 1e9:.1f} GB), and are not streamed; take a shorter one, fewer "
        "frames, or --stream never to try it",
    )
    return "never" if fits else "always"


def are_short(splits: Sequence[FeatureIndex], device: str, workers: Workers) -> bool:
    """Whether the features of several workers do not all fit, so that each must do with a part.

    Then training features are shared (`can_share`), and those for validation are mapped. All
    workers take the same answer. It changes no result.

    Args:
        splits: What each would hold: samples for training and for validation.
        device: Of each worker.
        workers: Who calls this at once.
    """
    # Workers without GPUs may all be on this machine
    copies = 1 if _on_gpu(device) else workers.size
    needed = copies * sum(2 * len(index.shard) * index.dim for index in splits)
    is_short = needed > MEMORY_SHARE * _memory_bytes(device)
    answers = torch.tensor(float(is_short), device=device)
    return workers.size > 1 and bool(workers.sum_(answers) > 0)


def can_share(index: FeatureIndex) -> bool:
    """Whether workers can hold a part of the training features each: not of windows and clips."""
    return not isinstance(index, ClipIndex | WindowIndex)


def _on_gpu(device: str) -> bool:
    """Whether a configuration's device is a GPU here."""
    return device != "cpu" and torch.cuda.is_available()


def _memory_bytes(device: str) -> int:
    """Memory of the GPU, or of the machine."""
    if _on_gpu(device):
        return torch.cuda.get_device_properties(0).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


class RayStream:
    """Global batches of an epoch.

    Args:
        index: The frames.
        task: Their task.
        batch_size: Rows a batch; what is left at the end of an epoch is dropped.
        seed: Of the order.
        window_rows: Rows that are shuffled together, about.
    """

    def __init__(
        self,
        index: FeatureIndex,
        task: Task,
        batch_size: int,
        seed: int,
        window_rows: int = WINDOW_ROWS,
    ) -> None:
        self.index, self.y = index, targets_of(index, task)
        self.batch_size, self.seed, self.window_rows = batch_size, seed, window_rows
        shards, starts = np.unique(index.shard, return_index=True)
        self._shards = list(
            zip(shards.tolist(), starts.tolist(), [*starts[1:].tolist(), len(index)], strict=True)
        )

    def windows(self, epoch: int) -> list[Window]:
        """The windows of an epoch, in order."""
        out: list[Window] = [[]]
        for k in np.random.default_rng([self.seed, epoch]).permutation(len(self._shards)):
            if sum(stop - start for _, start, stop in out[-1]) >= self.window_rows:
                out.append([])
            out[-1].append(self._shards[k])
        return out

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (B, D) as float16 and labels of each batch of an epoch."""
        x_left = np.empty((0, self.index.dim), np.float16)
        y_left = self.y[:0]
        for number, (window, read) in enumerate(self._read(self.windows(epoch))):
            # Rows of a window in an order of their own, behind what the last one left
            rows = np.concatenate([np.arange(start, stop) for _, start, stop in window])
            check_finite(read, self.index, rows)
            order = np.random.default_rng([self.seed, epoch, number]).permutation(len(rows))
            x = np.concatenate([x_left, read[order]])
            y = np.concatenate([y_left, self.y[rows[order]]])

            # Whole batches; the rest waits for the next window
            whole = len(x) // self.batch_size * self.batch_size
            for start in range(0, whole, self.batch_size):
                yield (
                    torch.from_numpy(x[start : start + self.batch_size]),
                    torch.from_numpy(y[start : start + self.batch_size]),
                )
            x_left, y_left = x[whole:], y[whole:]

    def _read(self, windows: list[Window]) -> Iterator[tuple[Window, np.ndarray]]:
        """Each window with its features, shape (rows, D), in the order of its shards."""
        import ray
        from ray.data.exceptions import ExecutionTimeoutError

        configure_data()
        ray.data.DataContext.get_current().execution_options.preserve_order = True

        # One item a window: what a reader needs to find its rows
        items = [
            {
                "commits": [self.index.commits[shard].to_bytes() for shard, _, _ in window],
                "rows": np.concatenate([self.index.row[a:b] for _, a, b in window]).tobytes(),
                "sizes": [b - a for _, a, b in window],
            }
            for window in windows
        ]
        read = partial(_read_window, bank=str(self.index.bank.path), dim=self.index.dim)
        dataset = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
            read, batch_size=1, batch_format="pyarrow", num_cpus=0.5
        )

        # Windows as they arrive; readers are two ahead
        batches = dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=2)
        try:
            for window, batch in zip(windows, batches, strict=True):
                if failure := batch["failure"][0].as_py():
                    raise RaffectError(failure)
                yield window, read_cell(batch["x"]).view(np.float16).reshape(-1, self.index.dim)
        except ExecutionTimeoutError as error:
            raise RaffectError(
                "nothing was read for hours: readers find no free CPU, or the bank's storage "
                "hangs; the same command goes on from the last saved epoch"
            ) from error


def _read_window(batch: pa.Table, bank: str, dim: int) -> pa.Table:
    """One window's rows, in the order of its shards, as one cell.

    An error that another attempt would not fix travels as data, because Ray would wrap an exception
    in pages of its own text.
    """
    item: dict[str, Any] = batch.to_pylist()[0]
    rows = np.frombuffer(item["rows"], np.int32)
    out = np.empty((len(rows), dim), np.float16)
    start, failure = 0, None
    try:
        for content, size in zip(item["commits"], item["sizes"], strict=True):
            part = slice(start, start + size)
            commit = Commit.from_json(content, bank, "run the same command again")
            read_rows(Bank(bank), commit, rows[part], out[part])
            start += size
    except RaffectError as error:
        failure = str(error)
    return pa.table({"x": as_cell(out), "failure": pa.array([failure], pa.string())})
