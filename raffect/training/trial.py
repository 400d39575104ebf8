"""One trial of a sweep: a batch of heads, what it reports of each epoch, and notes in its records.

A scheduler may end a trial at any report, so under one what is known of a head is in its record
before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from raffect.config import TuneConfig
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.heads.fit import score_name
from raffect.heads.snapshots import History
from raffect.metrics.scores import Chance, JudgedScore, Snapshot
from raffect.metrics.task_kinds import kind_of
from raffect.recipe import PLAIN_ERM
from raffect.runs.data import Dataset
from raffect.runs.folder import RunFolder
from raffect.runs.records import RUNNING, STOPPED, HeadRecord, PlannedHead, TrainedBy
from raffect.training.batch_job import BatchJob, CvEpochs
from raffect.training.recording import curve_of
from raffect.training.run_batch import open_data, run_batch
from raffect.training.train import epoch_note


@dataclass(frozen=True)
class SweepJob:
    """What every trial of a sweep knows; it trains the batch of its number.

    Attributes:
        config: With paths that are valid on every machine.
        batches: Heads of each trial.
        cv_epochs: Epochs that cross-validation chose.
        axes: Settings that the sweep varies, which name its curves.
        task: What the heads predict.
    """

    config: TuneConfig
    batches: list[list[PlannedHead]]
    cv_epochs: CvEpochs
    axes: list[str]
    task: Task


def run_trial(trial: dict[str, Any], sweep: SweepJob) -> None:
    """One trial: train a batch of heads and report each epoch; safe to run again at any time."""
    from ray import tune as ray_tune

    config, heads = sweep.config, sweep.batches[trial["batch"]]
    folder, score = RunFolder(config.out), score_name(sweep.task)
    seen: History = []

    def report(history: History) -> None:
        ray_tune.report(_report_of(history, heads, sweep))

    def on_epoch(history: History) -> None:
        seen[:] = history
        # A scheduler may end a trial at any report, so the last one waits for the records.
        if len(history) == heads[0].recipe.epochs:
            return
        if config.scheduler != "none":
            folder.write_record(_unfinished_record(dataset, heads[0], history))
        report(history)

    try:
        dataset = open_data(config, [head.recipe.head for head in heads])
        job = BatchJob(
            config=config,
            heads=tuple(heads),
            cv_epochs=sweep.cv_epochs,
            threads=config.threads or config.cpus_per_trial,
            save_heads=config.save_heads,
        )
        run_batch(job, dataset, on_epoch=on_epoch)
    except RaffectError as error:
        # Another attempt would not help, so Ray must not see a failure.
        ray_tune.report({"failure": str(error), score: 0.0, "epoch": 0})
    else:
        if len(seen) == heads[0].recipe.epochs:
            report(seen)


def _report_of(history: History, heads: Sequence[PlannedHead], sweep: SweepJob) -> dict[str, Any]:
    """What a trial reports of its last epoch: means over its heads, and each one's score by name.

    Heads that have diverged are left out.
    """
    entry, score = history[-1], score_name(sweep.task)
    sound = [
        (head, value) for head, value in zip(heads, entry[score], strict=True) if value is not None
    ]
    by_head = {_axis_text(head, sweep.axes): value for head, value in sound}
    scores = [value for _, value in sound]
    losses = [value for value in entry["train_loss"] if value is not None]

    # The report; where no head is left there is no loss to report
    found = {name: entry[name] for name in ("epoch", "steps", "wall_s")}
    found |= {
        score: sum(scores) / max(len(scores), 1),
        "note": epoch_note(history, sweep.task),
        "head": by_head,
    }
    return found | ({"train_loss": sum(losses) / len(losses)} if losses else {})


def _axis_text(head: PlannedHead, axes: Sequence[str]) -> str:
    """A head's name among the curves of a sweep; MLflow takes few characters in names."""
    settings = head.recipe.settings
    names = [*axes, *(name for name in (*PLAIN_ERM, "seed") if name not in axes)]
    return "_".join(f"{name.rpartition('.')[2]}-{settings[name]}" for name in names)


def _unfinished_record(dataset: Dataset, head: PlannedHead, history: History) -> HeadRecord:
    """What is known of a head that a scheduler may stop at any epoch."""
    # The last and the highest score so far
    key, curve = kind_of(dataset.task).key, curve_of(history, 0, dataset.task)
    sound = [(value, k + 1) for k, value in enumerate(curve.validation) if value is not None]
    so_far: dict[Snapshot, tuple[float, int]] = {}
    if sound:
        so_far = {"last": sound[-1], "best": max(sound)}
    return HeadRecord(
        id=head.id,
        task=dataset.task,
        recipe=head.recipe,
        fingerprint=dataset.fingerprint,
        incomplete=dataset.facts.incomplete,
        group_name=dataset.facts.group_name,
        status=RUNNING,
        note=f"after epoch {len(history)}",
        trained_by=TrainedBy(wall_s=sum(entry["wall_s"] for entry in history)),
        curve=curve,
        scores={
            name: JudgedScore(headline=value, metrics={key: value}, outputs={}, epoch=epoch)
            for name, (value, epoch) in so_far.items()
        },
        chance=Chance(answer="not judged", majority=None),
    )


def mark_stopped(folder: RunFolder, batches: list[list[PlannedHead]]) -> None:
    """Mark heads that the scheduler stopped: their trials have ended, their records say running.

    Args:
        folder: The sweep.
        batches: Those whose trials have ended.
    """
    for head in (head for batch in batches for head in batch):
        record = folder.read_record(head.id)
        if record is not None and record.status == RUNNING:
            note = f"stopped by ASHA {record.note}"
            folder.write_record(dataclasses.replace(record, status=STOPPED, note=note))
            folder.drop_state([head.id])
