"""What is recorded of a batch of heads: statistics, predictions, weights, and a record each."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch

from raffect.bank.features import FeatureIndex
from raffect.datasets.tasks import Task
from raffect.heads.fit import FitJob, count, score_name
from raffect.heads.loss_kind import LossKind
from raffect.heads.predicting import predict
from raffect.heads.samples import Samples
from raffect.heads.snapshots import Fitted, History
from raffect.heads.workers import Workers
from raffect.metrics.intervals import judge
from raffect.metrics.scores import SNAPSHOTS, Snapshot
from raffect.metrics.task_kinds import kind_of
from raffect.provenance import git_commit, versions
from raffect.runs.data import Dataset, targets_of
from raffect.runs.fold_predictions import FoldPredictions
from raffect.runs.folder import RunFolder
from raffect.runs.group_statistics import Statistics
from raffect.runs.records import Curve, HeadRecord, NamedFile, TrainedBy
from raffect.runs.saved_heads import save_snapshot
from raffect.training.batch_job import BatchJob


def _describe_device(device: torch.device) -> str:
    """Name of the card, or ``cpu``."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def describe_training(
    job: BatchJob, fitted: Fitted, device: torch.device, workers: Workers, streams: bool
) -> TrainedBy:
    """Device, versions and time of a batch that was trained in this process."""
    return TrainedBy(
        device=_describe_device(device),
        threads=torch.get_num_threads(),
        num_workers=workers.size,
        streamed=streams,
        batch_of_heads=len(job.heads),
        wall_s=sum(entry["wall_s"] for entry in fitted.history),
        git_commit=git_commit(),
        versions=versions(),
    )


def record_batch(
    job: BatchJob,
    dataset: Dataset,
    folder: RunFolder,
    fitted: Fitted,
    fit_job: FitJob,
    frames: FeatureIndex,
    trained_by: TrainedBy,
) -> None:
    """Write statistics, predictions and weights, and last the record, of every head of a batch.

    Args:
        job: The batch.
        dataset: Its data.
        folder: Where to write.
        fitted: What training gave.
        fit_job: What it was given.
        frames: The samples that heads are judged on.
        trained_by: Device, versions and time.
    """
    # Statistics of every snapshot, and of every epoch for heads of folds
    loss, judged, in_fold = fit_job.prior.kind, fit_job.validation, job.heads[0].fold is not None
    # As curves and choices of epochs: a class that a head leaves out is no part of its score
    left_out = loss.left_out(fit_job.recipes)
    counts = {
        name: count(loss, fitted.heads(name), judged, left_out=left_out)
        for name in SNAPSHOTS
        if name in fitted.snapshots
    }
    statistics = _keep_statistics(job, folder, fitted, counts, frames, score_name(dataset.task))
    predictions = _keep_predictions(job, loss, folder, fitted, judged, frames)

    # One record a head, written after its weights: a record says that the head is finished
    for p, head in enumerate(job.heads):
        record = dataclasses.replace(
            _describe_head(job, dataset, fitted, counts, p, trained_by),
            statistics=statistics.get(head.id),
            predictions=None if fitted.diverged[p] else predictions,
        )
        if job.save_heads and not in_fold:
            for name in record.scores:
                save_snapshot(folder, record, dataset.facts, name, fitted.heads(name), p)
        folder.write_record(record)


def _describe_head(
    job: BatchJob,
    dataset: Dataset,
    fitted: Fitted,
    counts: Mapping[Snapshot, np.ndarray],
    p: int,
    trained_by: TrainedBy,
) -> HeadRecord:
    """The record of head number ``p``, which names no files yet."""
    task, kind = dataset.task, kind_of(dataset.task)
    head, any_counts = job.heads[p], next(iter(counts.values()))
    epochs = {name: int(fitted.snapshots[name].epoch[p]) for name in counts}
    scores = {
        name: judge(counts[name][p], task, kind, epoch) for name, epoch in epochs.items() if epoch
    }
    return HeadRecord(
        id=head.id,
        task=task,
        recipe=head.recipe,
        fold=head.fold,
        num_folds=head.num_folds,
        fingerprint=dataset.fingerprint,
        incomplete=dataset.facts.incomplete,
        group_name=dataset.facts.group_name,
        status="diverged" if fitted.diverged[p] else "done",
        note=fitted.diverged[p] or "",
        cv_epoch=job.cv_epochs.get(head.id),
        trained_by=trained_by,
        curve=curve_of(fitted.history, p, task),
        scores=scores,
        chance=kind.chance(any_counts[p].sum(0), task),
    )


def _keep_statistics(
    job: BatchJob,
    folder: RunFolder,
    fitted: Fitted,
    counts: Mapping[Snapshot, np.ndarray],
    frames: FeatureIndex,
    score: str,
) -> dict[str, NamedFile]:
    """Write statistics by epoch and group; which file has those of each head that has any."""
    by_head = {head.id: _by_epoch(fitted, counts, p, score) for p, head in enumerate(job.heads)}
    kept = {name: by_epoch for name, by_epoch in by_head.items() if by_epoch}
    if not kept:
        return {}
    return dict.fromkeys(kept, folder.write_statistics(Statistics(frames.groups, kept)))


def _keep_predictions(
    job: BatchJob,
    loss: LossKind,
    folder: RunFolder,
    fitted: Fitted,
    judged: Samples,
    frames: FeatureIndex,
) -> NamedFile | None:
    """Write what heads of a fold predict for it after their last epoch, but for diverged heads.

    Heads that give vectors to compare with predict nothing by themselves.
    """
    sound = [p for p, why in enumerate(fitted.diverged) if not why]
    wanted = job.config.save_predictions and kind_of(loss.task).answers
    if job.heads[0].fold is None or not wanted or not sound:
        return None
    scores = predict(loss, fitted.heads("last"), judged)
    return folder.write_predictions(
        FoldPredictions(
            video=frames.video,
            videos=frames.videos,
            frame=frames.frame,
            group=frames.group,
            groups=frames.groups,
            target=targets_of(frames, loss.task),
            heads={job.heads[p].id: scores[p] for p in sound},
        )
    )


def _by_epoch(
    fitted: Fitted, counts: Mapping[Snapshot, np.ndarray], p: int, score: str
) -> dict[int, np.ndarray]:
    """Statistics of one head by epoch: of its snapshots, and of all sound epochs if kept."""
    found = {
        epoch + 1: statistics[p]
        for epoch, statistics in enumerate(fitted.statistics)
        if fitted.history[epoch][score][p] is not None
    }
    found |= {int(fitted.snapshots[name].epoch[p]): counts[name][p] for name in counts}
    return {epoch: found[epoch] for epoch in sorted(found) if epoch}


def curve_of(history: History, p: int, task: Task) -> Curve:
    """Curves of head number ``p`` of a batch."""
    score = score_name(task)
    return Curve(
        lr=tuple(entry["lr"][p] for entry in history),
        train_loss=tuple(entry["train_loss"][p] for entry in history),
        validation=tuple(entry[score][p] for entry in history),
    )
