"""Which kind of loss a task has."""

from __future__ import annotations

from raffect.datasets.tasks import Task
from raffect.heads.contrastive import ContrastiveLoss
from raffect.heads.label_losses import MulticlassLoss, MultilabelLoss, RegressionLoss
from raffect.heads.loss_kind import LossKind
from raffect.heads.retrieval import CandidateVectors
from raffect.metrics.task_kinds import kind_of

LOSS_KINDS: dict[str, type[LossKind]] = {
    "multiclass": MulticlassLoss,
    "multilabel": MultilabelLoss,
    "regression": RegressionLoss,
    "contrastive": ContrastiveLoss,
}


def loss_kind(task: Task, vectors: CandidateVectors | None = None) -> LossKind:
    """The torch half of a task's kind.

    Args:
        task: The task.
        vectors: Of its targets, where these are vectors.

    Raises:
        RaffectError: If this version of raffect does not know it.
    """
    kind_of(task)  # which raises if the kind is unknown
    if (made := LOSS_KINDS[task.kind]) is not ContrastiveLoss:
        return made(task)
    assert vectors is not None
    return ContrastiveLoss(task, vectors)
