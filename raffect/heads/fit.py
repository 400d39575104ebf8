"""The training loop: epochs of a batch of heads, each followed by validation.

A head whose loss is no longer finite stops there: it keeps its last sound epoch, the others go on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raffect.datasets.tasks import Task
from raffect.heads.head_batch import HeadBatch, HeadSpec
from raffect.heads.learner import AnySamples, Learner
from raffect.heads.loss_kind import LossKind, Prior, Truth
from raffect.heads.samples import Samples
from raffect.heads.snapshots import Fitted, History, resume, save
from raffect.heads.workers import Workers
from raffect.metrics.task_kinds import kind_of
from raffect.recipe import Recipe, digest

_PREDICTIONS = 32_768
"""Features times heads that are predicted at once."""


@dataclass(frozen=True, kw_only=True)
class FitJob:
    """What `fit` is to train, and on what."""

    recipes: Sequence[Recipe]
    """One a head; they agree in `raffect.heads.shared_settings.SHARED_SETTINGS`."""
    spec: HeadSpec
    """What the heads are."""
    prior: Prior
    """Counts of the training labels."""
    train: AnySamples
    """Samples on the device or on those of all workers together, or a stream of batches, which are
    the same for all heads."""
    validation: Samples
    """Samples on the device."""
    device: torch.device
    """Where to train."""
    dtype: torch.dtype = torch.float32
    """float32; float64 for tests."""
    workers: Workers = field(default_factory=Workers)
    """The processes that train together; each of them calls `fit`."""
    cv_epochs: Sequence[int] | None = None
    """1-based epoch that each head's ``cv`` snapshot keeps: the cross-validated one."""
    keep_statistics: bool = False
    """Whether the statistics of every epoch are kept."""
    state_path: Path | None = None
    """File to go on from and to save to; removed by the caller once results are written."""
    fingerprint: str = ""
    """Of the data; a state of other data is refused."""
    save_every_s: float = 30.0
    """Seconds between saves; 0 saves after every epoch."""
    compile: bool = False
    """Whether steps are fused by torch.compile; see `raffect.heads.learner.Learner.fuse`."""

    @property
    def num_epochs(self) -> int:
        """Epochs of every head."""
        return self.recipes[0].epochs

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same to go on from a saved state: plain JSON values."""
        return {
            "recipes": [digest(recipe) for recipe in self.recipes],
            "heads": self.spec.to_json(),
            "cv_epochs": list(self.cv_epochs or ()),
            "compile": self.compile,
            "data": self.fingerprint,
            "dtype": str(self.dtype),
        }


def fit(
    job: FitJob,
    *,
    on_step: Callable[[], None] = lambda: None,
    on_epoch: Callable[[History], None] = lambda history: None,
    on_resume: Callable[[History], None] = lambda history: None,
) -> Fitted:
    """Train a batch of heads.

    Args:
        job: What to train, and on what.
        on_step: Called after each step.
        on_epoch: Called after each epoch with the history so far, earlier attempts included.
        on_resume: Called before the first epoch with the history of earlier attempts, if any.

    Returns:
        Snapshots and history.

    Raises:
        RaffectError: If the saved state belongs to another version, other settings or other data.
    """
    # Heads as they start, or as an earlier attempt left them.
    learner = Learner(job.recipes, job.spec, job.prior, job.device, job.dtype, job.workers)
    if job.compile:
        learner.fuse()
    fitted = Fitted(job.spec, diverged=[None] * len(job.recipes))
    if job.state_path is not None and job.state_path.exists():
        score, one = score_name(job.prior.task), job.validation.part(slice(1))
        found = count(job.prior.kind, learner.heads, one)
        shape = found.shape if job.keep_statistics else ()
        resume(job.state_path, job.identity, learner, fitted, score, shape)
    job.workers.require_same(len(fitted.history), "epochs of the saved state", job.device)
    if fitted.history:
        on_resume(fitted.history)
    # Epochs, saved from time to time; the last one is not, since its results are written.
    saved = time.monotonic()
    for epoch in range(len(fitted.history), job.num_epochs):
        alive = _run_epoch(job, learner, fitted, epoch, on_step)
        is_due = epoch + 1 < job.num_epochs and time.monotonic() - saved >= job.save_every_s
        if job.state_path is not None and job.workers.rank == 0 and is_due:
            save(job.state_path, job.identity, learner, fitted)
            saved = time.monotonic()
        on_epoch(fitted.history)
        if not alive.any():
            break
    return fitted


def score_name(task: Task) -> str:
    """Under which name a history holds the headline score on validation: ``val_macro_f1``."""
    return kind_of(task).curve_key


@torch.no_grad()
def count(
    kind: LossKind,
    heads: HeadBatch,
    samples: Samples,
    workers: Workers | None = None,
    left_out: Tensor | None = None,
    columns: Sequence[int] | None = None,
) -> np.ndarray:
    """Additive statistics of every head and video; see `raffect.metrics.task_kinds`.

    Args:
        kind: Of the task.
        heads: What to judge.
        samples: What to judge it on.
        workers: Each takes a part.
        left_out: Class of each head whose samples and targets count as if there were none, shape
            (P,), -1 for none; see `raffect.heads.loss_kind.LossKind.left_out`.
        columns: Numbers of the outputs that are judged, those of ``kind`` in its order, so that
            the others are never predicted; all by default.

    Returns:
        Shape (P, videos, A, B).
    """
    # Parts of a size that bounds memory, whatever the number of heads.
    workers = workers or Workers()
    predict = heads.predictor(heads.rows, heads.buffers)
    chunk = max(1, _PREDICTIONS // (len(heads) * samples.features_per_sample))
    total: Tensor | None = None
    classes = None if left_out is None else left_out.to(heads.rows.device)
    # Every worker takes as many parts as the others; the last ones may be empty.
    last = len(samples) + (workers.size - 1) * chunk
    for start in range(workers.rank * chunk, last, workers.size * chunk):
        part = samples.part(slice(min(start, len(samples)), start + chunk))
        outputs = predict(part.samples().to(heads.rows))
        outputs = outputs if columns is None else outputs[..., list(columns)]
        found = kind.count(outputs, Truth(part.y, part.video, part.num_videos, classes))
        total = found if total is None else total + found
    assert total is not None  # every split has a sample
    return workers.sum_(total).cpu().numpy()


def _run_epoch(
    job: FitJob,
    learner: Learner,
    fitted: Fitted,
    epoch: int,
    on_step: Callable[[], None],
) -> np.ndarray:
    """Train for an epoch (0-based), judge and keep; returns which heads are sound, shape (P,)."""
    # Train; the host waits for the device at the end of the epoch alone.
    start, first_step = time.perf_counter(), int(learner.counter)
    rates = learner.set_epoch(epoch)
    for _ in learner.run(job.train, epoch):
        on_step()
    num_steps = int(learner.counter) - first_step
    losses = (learner.loss_sum / num_steps).tolist()
    _note_diverged(learner, fitted, epoch, first_step)
    alive = np.array([line is None for line in fitted.diverged])
    # Judge on validation, and keep the snapshots that this epoch is for.
    left_out = job.prior.kind.left_out(job.recipes)
    counts = count(job.prior.kind, learner.heads, job.validation, job.workers, left_out)
    score = kind_of(job.prior.task).headline(counts.sum(1))
    name = score_name(job.prior.task)
    _keep_all(job, learner.heads, fitted, name, score, alive)
    if job.keep_statistics:
        fitted.statistics.append(counts)
    # JSON has no NaN: heads that diverged have None.
    fitted.history.append(
        {
            "epoch": epoch + 1,
            "wall_s": time.perf_counter() - start,
            "steps": num_steps,
            "lr": rates,
            "train_loss": [loss if math.isfinite(loss) else None for loss in losses],
            name: [float(v) if ok else None for v, ok in zip(score, alive, strict=True)],
        },
    )
    return alive


def _note_diverged(learner: Learner, fitted: Fitted, epoch: int, first_step: int) -> None:
    """Add a line for each head that diverged in this epoch (0-based)."""
    # The last update may spoil weights after a loss that was still finite.
    sound = torch.isfinite(learner.heads.rows).all(1).tolist()
    kept = f"epoch {epoch} is kept" if epoch else "nothing is kept"
    for head, step in enumerate(learner.first_bad.tolist()):
        if fitted.diverged[head] is not None or (step < 0 and sound[head]):
            continue
        which = f"step {step - first_step + 1}" if step >= 0 else "the last step"
        where = f"the loss was no longer finite at {which} of epoch {epoch + 1}"
        fitted.diverged[head] = f"{where}; {kept}; try a smaller optim.lr or sam.rho"


def _keep_all(
    job: FitJob,
    heads: HeadBatch,
    fitted: Fitted,
    name: str,
    score: np.ndarray,
    alive: np.ndarray,
) -> None:
    """Take over what the next epoch's history entry describes into the snapshots."""
    epoch = len(fitted.history) + 1
    earlier = [[entry[name][head] for entry in fitted.history] for head in range(len(heads))]
    best = [max((v for v in values if v is not None), default=-math.inf) for values in earlier]
    # Of equals the earlier epoch stays the best.
    fitted.keep("last", heads, alive, epoch)
    fitted.keep("best", heads, alive & (score > np.array(best)), epoch)
    if job.cv_epochs is not None:
        fitted.keep("cv", heads, alive & (np.array(job.cv_epochs) == epoch), epoch)
