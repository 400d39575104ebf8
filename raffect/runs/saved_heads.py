"""The weights of a run's heads, each snapshot with all that its record says."""

from __future__ import annotations

from raffect.bank.facts import DataFacts
from raffect.heads.checkpoint import HeadCard, save_head
from raffect.heads.head_batch import HeadBatch
from raffect.metrics.scores import Snapshot
from raffect.runs.folder import RunFolder
from raffect.runs.records import HeadRecord


def save_snapshot(
    folder: RunFolder,
    record: HeadRecord,
    facts: DataFacts,
    name: Snapshot,
    batch: HeadBatch,
    p: int,
) -> None:
    """Write the weights of one snapshot of a head.

    Args:
        folder: The run.
        record: Of the head; it has a score of the snapshot.
        facts: Of the run's data.
        name: The snapshot.
        batch: Heads as they were at its epoch.
        p: Which of them it is.
    """
    trained = record.trained_by
    card = HeadCard(
        head=batch.spec.to_json(),
        id=record.id,
        status=record.status,
        snapshot=name,
        recipe=record.recipe,
        data=facts,
        validation=record.scores[name],
        chance=record.chance,
        device=trained.device,
        threads=trained.threads,
        versions=trained.versions,
        git_commit=trained.git_commit,
    )
    save_head(folder.weights_path(record.id, name), card, batch.state(p))
