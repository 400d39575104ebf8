"""The training loop: epochs of a pack, each followed by validation, with what is worth keeping kept.

A member whose loss is no longer finite stops there: it keeps its last sound epoch and the others go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from raffect.data.tasks import Task
from raffect.errors import RaffectError
from raffect.metrics.kinds import kind_of
from raffect.model.checkpoint import load_state, save_state, to_cpu
from raffect.model.kinds import LossKind, Prior, loss_kind
from raffect.model.learner import Learner, Rows
from raffect.model.pack import Layout, fold, predict
from raffect.model.workers import Workers
from raffect.recipe import Recipe, digest

FUSE_STEPS = 30_000
"""Steps of a run from which compiling them first pays. A run that goes on decides as the one that began, so its bits stay the same."""
_PREDICT_ROWS = 32_768
_TENSORS = ("weights", "running_mean", "running_var")

History = list[dict[str, Any]]
"""One entry an epoch; see `Fitted.history`."""


class Source(Protocol):
    """Where training rows come from when the device does not hold them."""

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Global batches of an epoch: features (B, D) and labels."""
        ...


@dataclass
class Snapshot:
    """Members as they were at the end of an epoch of each one's own.

    Attributes:
        weights: Shape (P, N), on the training device.
        running_mean: Shape (P, depth, W).
        running_var: Likewise.
        epoch: 1-based, shape (P,); 0 for a member that has none.
    """

    weights: Tensor
    running_mean: Tensor
    running_var: Tensor
    epoch: np.ndarray

    def layers(self, layout: Layout) -> list[tuple[Tensor, Tensor]]:
        """In evaluation mode."""
        return fold(layout, self.weights, self.running_mean, self.running_var)


@dataclass
class Fitted:
    """What training leaves.

    Attributes:
        layout: Shape of the heads.
        history: One entry an epoch: ``epoch``, ``wall_s`` and, a value a member, ``lr``, ``train_loss``, and the headline score on
            validation under `score_name`.
        snapshots: ``last`` (the last sound epoch), ``best`` (highest headline score on validation, the first of equals), and ``chosen`` where asked for.
        diverged: A line for each member that stopped; None for the others.
    """

    layout: Layout
    history: History = field(default_factory=list)
    snapshots: dict[str, Snapshot] = field(default_factory=dict)
    diverged: list[str | None] = field(default_factory=list)


def fit(
    recipes: Sequence[Recipe],
    layout: Layout,
    prior: Prior,
    train: Rows | Source,
    validation: Rows,
    *,
    device: torch.device,
    dtype: torch.dtype = torch.float32,
    workers: Workers | None = None,
    keep_epochs: Sequence[int] | None = None,
    state_path: Path | None = None,
    fingerprint: str = "",
    save_every_s: float = 30.0,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[History], None] = lambda history: None,
) -> Fitted:
    """Train a pack.

    Args:
        recipes: One a member; they agree in `raffect.model.learner.PACK_WIDE`.
        layout: Shape of the heads.
        prior: Counts of the training labels.
        train: Rows on the device, or a source of batches, which are the same for all members.
        validation: Rows on the device.
        device: Where to train.
        dtype: float32; float64 for tests.
        workers: Who trains together; each calls this function.
        keep_epochs: 1-based epoch that each member's ``chosen`` snapshot keeps.
        state_path: File to go on from and to save to; removed by whoever has written the results.
        fingerprint: Of the data; a state of other data is refused.
        save_every_s: Seconds between saves; 0 saves after every epoch.
        on_step: Called after each step.
        on_epoch: Called after each epoch with the history so far, earlier attempts included.

    Returns:
        Snapshots and history.

    Raises:
        RaffectError: If the state belongs to other settings or data.
    """
    workers = workers or Workers()
    learner = Learner(recipes, layout, prior, device, dtype, workers)
    if device.type == "cuda" and workers.size == 1 and isinstance(train, Rows) and len(train) // recipes[0].batch_size * recipes[0].epochs >= FUSE_STEPS:
        learner.fuse()
    kind, losses, val_score = kind_of(prior.task), loss_kind(prior.task), score_name(prior.task)
    fitted = Fitted(layout, diverged=[None] * len(recipes))
    identity = {"recipes": [digest(recipe) for recipe in recipes], "keep_epochs": list(keep_epochs or ()), "data": fingerprint, "dtype": str(dtype)}
    if state_path is not None and state_path.exists():
        _resume(state_path, identity, learner, fitted)
    workers.require_same(len(fitted.history), "epochs of the saved state", device)
    saved = time.monotonic()
    for epoch in range(len(fitted.history), recipes[0].epochs):
        start, first_step = time.perf_counter(), int(learner.counter)
        rates = learner.set_epoch(epoch)
        for _ in learner.run_resident(train, epoch) if isinstance(train, Rows) else learner.run_stream(train.batches(epoch)):
            on_step()
        steps = int(learner.counter) - first_step
        train_loss = [loss if math.isfinite(loss) else None for loss in (learner.loss_sum / steps).tolist()]
        _note_diverged(learner, fitted, epoch, first_step)
        alive = np.array([line is None for line in fitted.diverged])
        current = Snapshot(learner.pack.weights, learner.pack.running_mean, learner.pack.running_var, np.full(len(recipes), epoch + 1))
        score = kind.headline(count(losses, current.layers(layout), validation, workers).sum(1))
        _keep_all(fitted, current, val_score, score, alive, keep_epochs)
        fitted.history.append(
            {"epoch": epoch + 1, "wall_s": time.perf_counter() - start, "steps": steps, "lr": rates, "train_loss": train_loss, val_score: [float(v) if ok else None for v, ok in zip(score, alive, strict=True)]}
        )  # fmt: skip
        if state_path is not None and workers.rank == 0 and epoch + 1 < recipes[0].epochs and time.monotonic() - saved >= save_every_s:
            _save(state_path, identity, learner, fitted)
            saved = time.monotonic()
        on_epoch(fitted.history)
        if not alive.any():
            break
    return fitted


def score_name(task: Task) -> str:
    """Under which name a history holds the headline score on validation, such as ``val_macro_f1``."""
    return f"val_{kind_of(task).key}"


@torch.no_grad()
def count(kind: LossKind, layers: list[tuple[Tensor, Tensor]], rows: Rows, workers: Workers | None = None) -> np.ndarray:
    """Additive statistics of every member and video, shape (P, videos, A, B); see `raffect.metrics.kinds`.

    Args:
        kind: Of the task.
        layers: Of `raffect.model.pack.fold`.
        rows: What to judge.
        workers: Each takes a part.
    """
    workers = workers or Workers()
    weight = layers[0][0]
    chunk = max(1, _PREDICT_ROWS // len(weight))
    total: Tensor | None = None
    for start in range(workers.rank * chunk, len(rows) + (workers.size - 1) * chunk, workers.size * chunk):
        part = slice(min(start, len(rows)), start + chunk)
        found = kind.count(predict(layers, rows.x[part].to(weight.dtype)), rows.y[part], rows.video[part], rows.num_videos)
        total = found if total is None else total + found
    assert total is not None  # every split has a row
    return workers.sum_(total).cpu().numpy()


def _note_diverged(learner: Learner, fitted: Fitted, epoch: int, first_step: int) -> None:
    sound = torch.isfinite(learner.pack.weights).all(1).tolist()
    for member, (step, is_sound) in enumerate(zip(learner.first_bad.tolist(), sound, strict=True)):
        if fitted.diverged[member] is None and (step >= 0 or not is_sound):
            where = f"step {step - first_step + 1} of epoch {epoch + 1}" if step >= 0 else f"the last step of epoch {epoch + 1}"
            kept = f"epoch {epoch} is kept" if epoch else "nothing is kept"
            fitted.diverged[member] = f"the loss was no longer finite at {where}; {kept}; try a smaller optim.lr or sam.rho"


def _keep_all(fitted: Fitted, current: Snapshot, name: str, score: np.ndarray, alive: np.ndarray, keep_epochs: Sequence[int] | None) -> None:
    best = np.array([max((e[name][p] for e in fitted.history if e[name][p] is not None), default=-math.inf) for p in range(len(score))])
    _keep(fitted, "last", current, alive)
    _keep(fitted, "best", current, alive & (score > best))
    if keep_epochs is not None:
        _keep(fitted, "chosen", current, alive & (current.epoch == np.array(keep_epochs)))


def _keep(fitted: Fitted, name: str, current: Snapshot, members: np.ndarray) -> None:
    if name not in fitted.snapshots:
        fitted.snapshots[name] = Snapshot(current.weights.clone(), current.running_mean.clone(), current.running_var.clone(), np.zeros_like(current.epoch))
    kept = fitted.snapshots[name]
    rows = torch.from_numpy(np.flatnonzero(members)).to(current.weights.device)
    for field_name in _TENSORS:
        getattr(kept, field_name)[rows] = getattr(current, field_name)[rows]
    kept.epoch = np.where(members, current.epoch, kept.epoch)


def _save(path: Path, identity: dict, learner: Learner, fitted: Fitted) -> None:
    tensors = learner.state()
    for name, kept in fitted.snapshots.items():
        tensors |= {f"{name}.{field_name}": to_cpu(getattr(kept, field_name)) for field_name in _TENSORS}
    epochs = {name: kept.epoch.tolist() for name, kept in fitted.snapshots.items()}
    save_state(path, tensors, {"identity": identity, "history": fitted.history, "diverged": fitted.diverged, "epochs": epochs})


def _resume(path: Path, identity: dict, learner: Learner, fitted: Fitted) -> None:
    tensors, about = load_state(path)
    if about["identity"] != identity:
        changed = [name for name in identity if about["identity"].get(name) != identity[name]]
        raise RaffectError(f"{path}: an unfinished run of other {' and '.join(changed)}; name another --out, or delete the file to train from the start")
    learner.load_state(tensors)
    fitted.history, fitted.diverged = about["history"], about["diverged"]
    for name, epoch in about["epochs"].items():
        parts = (tensors[f"{name}.{field_name}"].to(learner.device) for field_name in _TENSORS)
        fitted.snapshots[name] = Snapshot(*parts, np.array(epoch))
