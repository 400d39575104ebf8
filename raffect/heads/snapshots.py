"""What training keeps: snapshots of heads, each at its own epoch, and a state to go on from.

Shape letters: P heads, N weights of a head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from raffect.errors import RaffectError
from raffect.heads.checkpoint import load_state, save_state
from raffect.heads.head_batch import Buffers, HeadBatch, HeadSpec, to_cpu
from raffect.heads.learner import Learner, copy_same
from raffect.recipe import Recipe
from raffect.storage.records import Record

STATE_FORMAT = 2
"""Of the file that `save` writes; 1, which had no number, named tensors by the layers of an MLP."""

_RESTART = "delete it to train from the start"

History = list[dict[str, Any]]
"""One entry an epoch; see `Fitted.history`."""


@dataclass(frozen=True, kw_only=True)
class SavedState(Record):
    """What a state file holds beside its tensors.

    Attributes:
        format: Of the file.
        identity: What must be the same to go on.
        history: See `Fitted`.
        diverged: Likewise.
        epochs: Epoch of every head in each snapshot.
    """

    format: Literal[2] = 2
    identity: dict[str, Any]
    history: list[dict[str, Any]]
    diverged: list[str | None]
    epochs: dict[str, list[int]]


@dataclass
class Snapshot:
    """Heads as they were at the end of an epoch, which may differ between heads.

    Attributes:
        rows: Their weights, shape (P, N), on the training device.
        buffers: What belongs to them, each of shape (P, ...), likewise.
        epoch: 1-based, shape (P,); 0 for a head of which nothing is kept.
    """

    rows: Tensor
    buffers: Buffers
    epoch: np.ndarray

    @classmethod
    def of(cls, heads: HeadBatch) -> Snapshot:
        """A copy that holds no epoch of any head yet."""
        buffers = {name: buffer.clone() for name, buffer in heads.buffers.items()}
        return cls(heads.rows.clone(), buffers, np.zeros(len(heads), dtype=np.int64))

    def keep(self, heads: HeadBatch, which: np.ndarray, epoch: int) -> None:
        """Take over the heads ``which`` (bool, shape (P,)) as they are after ``epoch``."""
        # Only the rows of these heads are copied.
        index = torch.from_numpy(np.flatnonzero(which)).to(heads.rows.device)
        self.rows[index] = heads.rows[index]
        for name, buffer in self.buffers.items():
            buffer[index] = heads.buffers[name][index]
        self.epoch = np.where(which, epoch, self.epoch)

    def tensors(self, prefix: str) -> dict[str, Tensor]:
        """Rows and buffers by name."""
        buffers = {f"{prefix}.buffers.{name}": buffer for name, buffer in self.buffers.items()}
        return {f"{prefix}.rows": self.rows, **buffers}


@dataclass
class Fitted:
    """The result of training.

    Attributes:
        spec: What the heads are.
        history: One entry an epoch: ``epoch``, ``wall_s``, ``steps`` and, a value a head, ``lr``,
            ``train_loss``, and the headline score on validation under
            `raffect.heads.fit.score_name`.
        snapshots: ``last`` (the last sound epoch), ``best`` (highest headline score on validation,
            the first of equals), and ``cv`` where asked for.
        diverged: A line for each head that stopped; None for the others.
        statistics: Of every epoch, shape (P, groups, A, B), where asked for.
    """

    spec: HeadSpec
    history: History = field(default_factory=list)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    diverged: list[str | None] = field(default_factory=list)
    statistics: list[np.ndarray] = field(default_factory=list)

    def heads(self, name: str) -> HeadBatch:
        """The heads of a snapshot."""
        kept = self.snapshots[name]
        return self.spec.build(kept.rows, kept.buffers)

    def keep(self, name: str, heads: HeadBatch, which: np.ndarray, epoch: int) -> None:
        """Take over heads into a snapshot; see `Snapshot.keep`."""
        if name not in self.snapshots:
            self.snapshots[name] = Snapshot.of(heads)
        self.snapshots[name].keep(heads, which, epoch)


def save(path: Path, identity: Mapping[str, Any], learner: Learner, fitted: Fitted) -> None:
    """Write what training needs to go on.

    Args:
        path: The file, replaced.
        identity: Plain JSON values that must be the same to go on.
        learner: Between two epochs.
        fitted: The result so far.
    """
    # Tensors of the learner, of every snapshot, and the statistics of every epoch.
    tensors = learner.state()
    for name, kept in fitted.snapshots.items():
        tensors |= {key: to_cpu(tensor) for key, tensor in kept.tensors(name).items()}
    if fitted.statistics:
        tensors["statistics"] = torch.from_numpy(np.stack(fitted.statistics))
    about = SavedState(
        identity=dict(identity),
        history=fitted.history,
        diverged=fitted.diverged,
        epochs={name: kept.epoch.tolist() for name, kept in fitted.snapshots.items()},
    )
    save_state(path, tensors, about.to_json())


def resume(
    path: Path,
    identity: Mapping[str, Any],
    learner: Learner,
    fitted: Fitted,
    score: str,
    statistics: tuple[int, ...] = (),
) -> None:
    """Go on from what `save` wrote.

    Args:
        path: The file.
        identity: As given to `save`.
        learner: Before its first epoch.
        fitted: Likewise, without any result.
        score: Name of the headline score in the history.
        statistics: Shape of an epoch's statistics, (P, groups, A, B); empty where they are not
            kept.

    Raises:
        RaffectError: If it is damaged, or belongs to another version, other settings or other data.
    """
    # The file, and whether it is of this run.
    tensors, content = load_state(path)
    if content.get("format") != STATE_FORMAT:
        what = f"{path}: an unfinished run of another version of raffect"
        raise RaffectError(f"{what}; delete the file to train from the start")
    about = SavedState.from_json(content, path, _RESTART)
    if about.identity != identity:
        changed = [name for name in identity if about.identity.get(name) != identity[name]]
        what = f"{path}: an unfinished run of other {' and '.join(changed) or 'settings'}"
        remedy = "name another --out, or delete the file to train from the start"
        raise RaffectError(f"{what}; {remedy}")
    # The learner, then what it has left so far.
    try:
        _require_whole(about, learner.recipes, score, with_cv=bool(identity.get("cv_epochs")))
        learner.load_state(tensors)
        fitted.history, fitted.diverged = about.history, about.diverged
        fitted.statistics = _read_statistics(tensors, len(about.history), statistics)
        for name, epoch in about.epochs.items():
            kept = Snapshot.of(learner.heads)
            for key, tensor in kept.tensors(name).items():
                copy_same(tensor, tensors.get(key), key)
            kept.epoch = np.array(epoch)
            fitted.snapshots[name] = kept
    except ValueError as error:
        raise RaffectError(f"{path}: damaged, {error}; {_RESTART}") from error


def _read_statistics(
    tensors: Mapping[str, Tensor], epochs: int, shape: tuple[int, ...]
) -> list[np.ndarray]:
    """Statistics of each epoch, if they are kept."""
    if not shape:
        return []
    found = tensors.get("statistics")
    if found is None or tuple(found.shape) != (epochs, *shape):
        raise ValueError("statistics are missing or of another shape")
    return list(found.numpy())


def _require_whole(
    about: SavedState, recipes: Sequence[Recipe], score: str, *, with_cv: bool
) -> None:
    """Raise `ValueError` unless a state has a value for each head wherever it should."""
    # Heads, and the epochs of their snapshots.
    count, done = len(recipes), len(about.history)
    if len(about.diverged) != count or not 1 <= done <= recipes[0].epochs:
        raise ValueError(f"{len(about.diverged)} heads after {done} epochs")
    if set(about.epochs) != {"last", "best", *(["cv"] if with_cv else [])}:
        raise ValueError(f"snapshots {', '.join(about.epochs)}")
    for name, epochs in about.epochs.items():
        if len(epochs) != count or not all(0 <= epoch <= done for epoch in epochs):
            raise ValueError(f"epochs of snapshot {name}")
    # History; values of heads that had diverged are None.
    for number, entry in enumerate(about.history, start=1):
        lists = [entry.get(name) or [] for name in ("lr", "train_loss", score)]
        is_whole = (
            set(entry) == {"epoch", "wall_s", "steps", "lr", "train_loss", score}
            and entry["epoch"] == number
            and _is_number(entry["wall_s"])
            and type(entry["steps"]) is int
            and all(isinstance(values, list) and len(values) == count for values in lists)
            and all(_is_number(v) or v is None for values in lists[1:] for v in values)
            and all(map(_is_number, entry["lr"]))
        )
        if not is_whole:
            raise ValueError(f"history of epoch {number} is not as expected")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < math.inf
