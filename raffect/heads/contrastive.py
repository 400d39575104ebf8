"""The loss of captions: outputs are compared with the vectors of texts or of a teacher.

Shape letters: P heads, B samples of a batch, C outputs, E numbers of a vector, N losses that a
head's tail is taken over, or samples that are judged.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.heads import losses
from raffect.heads.loss_kind import Losses, Prior, Terms, Truth, UnweightedLoss
from raffect.heads.retrieval import CandidateVectors, count_hits
from raffect.metrics.task_kinds import kind_of


class ContrastiveLoss(UnweightedLoss):
    """Symmetric InfoNCE of a batch of outputs against the vectors of their targets.

    Outputs are vectors of length 1 times the scale that a head has learnt; see
    `raffect.heads.head_batch.EmbeddingSpec`.

    Args:
        task: The task.
        vectors: Of its targets.
    """

    has_classes = has_captions = True
    why = "vectors to compare with, not classes to predict"

    def __init__(self, task: Task, vectors: CandidateVectors) -> None:
        super().__init__(task)
        self.vectors = vectors

    def classes(self, target: Tensor) -> Tensor | None:
        """The second number of a target."""
        return target[..., 1]

    def couples(self, name: str) -> bool:
        """A sample's vector is compared with those of all samples of the batch."""
        return True

    def count_prior(self, targets: np.ndarray) -> Prior:
        """Frames of each class, and the vectors."""
        counts = np.bincount(targets[:, 1], minlength=len(self.task.outputs))
        return Prior(self, torch.from_numpy(counts))

    def losses(self, outputs_PBC: Tensor, target: Tensor, terms: Terms) -> Losses:
        """One loss a sample."""
        number_PB = target[..., 0]
        vectors_PBE = self.vectors.take(number_PB, outputs_PBC.dtype)
        share_PBB = losses.text_shares(
            self.vectors.same[number_PB], vectors_PBE, terms.temperature, terms.valid
        )
        logits_PBB = outputs_PBC @ vectors_PBE.transpose(1, 2)
        loss_PB, of_image, of_text = losses.info_nce_losses(logits_PBB, share_PBB, terms.valid)

        def by_outputs(by_PB: Tensor) -> Tensor:
            by_PB1 = by_PB[..., None]
            return (of_image * by_PB1 + (of_text * by_PB1).mT) @ vectors_PBE

        return Losses(loss_PB, by_outputs, terms.valid)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Always refused: an output is a vector, and no answer by itself.

        Raises:
            RaffectError: Says how answers are made of such heads.
        """
        require_answers(self.task)
        return outputs

    def _count(self, outputs_PNC: Tensor, truth: Truth) -> Tensor:
        """Hits among the candidates of each class."""
        return count_hits(outputs_PNC, truth, len(self.task.outputs), self.vectors)


def require_answers(task: Task) -> None:
    """Refuse to predict with heads whose outputs are vectors to compare with.

    Raises:
        RaffectError: Says how a classifier is made of them.
    """
    if not kind_of(task).answers:
        raise RaffectError(
            f"task {task.name} is {task.kind}: its heads give vectors, not answers; make a "
            "classifier of them with `raffect zeroshot --head RUN`, and use its run"
        )
