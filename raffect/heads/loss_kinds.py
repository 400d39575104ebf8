"""The torch half of the kinds of tasks.

These are losses of a batch of heads, label priors, and how outputs become statistics.

Shape letters: P heads, B frames of a batch, C outputs, N losses that a head's tail is taken over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from raffect.datasets.tasks import Task
from raffect.errors import require
from raffect.heads import counting, losses
from raffect.metrics.task_kinds import kind_of
from raffect.recipe import LossConfig


@dataclass(frozen=True)
class Prior:
    """How often each output occurs in the training rows of a task.

    Attributes:
        task: The task.
        positive: Frames of each class, or active frames of each label, shape (C,).
        negative: Inactive frames of each label, shape (C,); None for other kinds.
    """

    task: Task
    positive: Tensor
    negative: Tensor | None = None


class LossKind(ABC):
    """What training asks of a task.

    Args:
        task: The task.
    """

    names: ClassVar[tuple[str, ...]] = ("default",)
    """Values of ``loss.name`` that it knows."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def require_loss(self, config: LossConfig) -> None:
        """Refuse a loss that this kind does not have.

        Raises:
            RaffectError: Names the setting.
        """
        what = f"loss.name {config.name}: task {self.task.name} is {self.task.kind}"
        expected = " or ".join(self.names)
        require(config.name in self.names, f"{what}; expected {expected}")

    @abstractmethod
    def count_prior(self, targets: np.ndarray) -> Prior:
        """Counts of the training targets; see `raffect.metrics.task_kinds.Kind.targets`."""

    @abstractmethod
    def weights(self, config: LossConfig, prior: Prior) -> Tensor:
        """Weight of each output's positives, float64, shape (C,)."""

    @abstractmethod
    def shift(self, prior: Prior) -> Tensor:
        """What full logit adjustment adds to the outputs in training, float64, shape (C,)."""

    @abstractmethod
    def losses(
        self, outputs_PBC: Tensor, target: Tensor, weight_PC: Tensor | None, tail_over: str
    ) -> tuple[Tensor, Tensor | None]:
        """Losses that each head's tail is taken over.

        Args:
            outputs_PBC: Of every head.
            target: Of every head, shape (P, B) or (P, B, C).
            weight_PC: Of each output's positives; None for all 1.
            tail_over: The setting ``loss.tail_over``.

        Returns:
            Losses (P, N), and which of them count, of that shape; None if all do.
        """

    @abstractmethod
    def probabilities(self, outputs: Tensor) -> Tensor:
        """What a head's outputs mean, as predictions are written and averaged.

        Args:
            outputs: Of any number of heads and samples, shape (..., C), floating point.

        Returns:
            The same shape and type: probabilities of classes, which add up to 1; of each label; or
            values within the task's limits, where it has any.
        """

    @abstractmethod
    def count(
        self, outputs_PNC: Tensor, target: Tensor, video_N: Tensor, num_videos: int
    ) -> Tensor:
        """Additive statistics of each head and video; see `raffect.metrics.task_kinds`.

        Args:
            outputs_PNC: Outputs of every head for N samples.
            target: Of the samples, which all heads share.
            video_N: Number of each sample's video.
            num_videos: How many there are.

        Returns:
            Shape (P, videos, A, B).
        """


class MulticlassLoss(LossKind):
    """Cross-entropy of a softmax; the predicted class is that of the largest output."""

    def count_prior(self, targets: np.ndarray) -> Prior:
        """Frames of each class."""
        counts = np.bincount(targets, minlength=len(self.task.outputs))
        return Prior(self.task, torch.from_numpy(counts))

    def weights(self, config: LossConfig, prior: Prior) -> Tensor:
        """See `raffect.heads.losses.class_weights`."""
        return losses.class_weights(prior.positive, config.weighting, config.beta)

    def shift(self, prior: Prior) -> Tensor:
        """Log prior of each class."""
        return losses.class_shift(prior.positive)

    def losses(
        self, outputs_PBC: Tensor, target: Tensor, weight_PC: Tensor | None, tail_over: str
    ) -> tuple[Tensor, Tensor | None]:
        """One loss a frame."""
        return losses.softmax_losses(outputs_PBC, target, weight_PC), None

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax over the classes."""
        return outputs.softmax(-1)

    def count(
        self, outputs_PNC: Tensor, target: Tensor, video_N: Tensor, num_videos: int
    ) -> Tensor:
        """Confusion matrices."""
        predicted, num_classes = outputs_PNC.argmax(-1), outputs_PNC.shape[-1]
        return counting.count_confusion(target, predicted, video_N, num_videos, num_classes)


class MultilabelLoss(LossKind):
    """Binary cross-entropy of each label.

    A label is predicted from a probability of 0.5 on, which is an output of 0.
    """

    def count_prior(self, targets: np.ndarray) -> Prior:
        """Active and inactive frames of each label."""
        positive, negative = ((targets == value).sum(0) for value in (1, 0))
        return Prior(self.task, torch.from_numpy(positive), torch.from_numpy(negative))

    def weights(self, config: LossConfig, prior: Prior) -> Tensor:
        """See `raffect.heads.losses.unit_weights`."""
        assert prior.negative is not None
        return losses.unit_weights(prior.positive, prior.negative, config.weighting, config.beta)

    def shift(self, prior: Prior) -> Tensor:
        """Log prior odds of each label."""
        assert prior.negative is not None
        return losses.unit_shift(prior.positive, prior.negative)

    def losses(
        self, outputs_PBC: Tensor, target: Tensor, weight_PC: Tensor | None, tail_over: str
    ) -> tuple[Tensor, Tensor | None]:
        """One loss a label and frame, or with ``tail_over`` frames the mean over a frame's labels.

        Unlabelled ones do not count.
        """
        values, mask = losses.sigmoid_losses(outputs_PBC, target, weight_PC), target >= 0
        if tail_over == "frames":
            values, mask = losses.frame_means(values, mask)
        return values.flatten(1), mask.flatten(1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Sigmoid of each label."""
        return outputs.sigmoid()

    def count(
        self, outputs_PNC: Tensor, target: Tensor, video_N: Tensor, num_videos: int
    ) -> Tensor:
        """Counts of each label."""
        return counting.count_labels(target, outputs_PNC >= 0, video_N, num_videos)


class RegressionLoss(LossKind):
    """Squared error, the mean over a frame's labelled values; or ``ccc``.

    ``ccc`` has no loss of a single frame; see `raffect.heads.objective.Objective.loss`.
    """

    names = ("default", "ccc")

    def require_loss(self, config: LossConfig) -> None:
        """Weights and priors of classes mean nothing for numbers."""
        super().require_loss(config)
        why = f"task {self.task.name} has numbers, not classes"
        what = f"loss.weighting {config.weighting}"
        require(config.weighting == "none", f"{what}: {why}; expected none")
        what = f"loss.logit-adjustment {config.logit_adjustment:g}"
        require(config.logit_adjustment == 0, f"{what}: {why}; expected 0")

    def count_prior(self, targets: np.ndarray) -> Prior:
        """Zeros: there are no classes to count."""
        return Prior(self.task, torch.zeros(len(self.task.outputs)))

    def weights(self, config: LossConfig, prior: Prior) -> Tensor:
        """All 1."""
        return torch.ones(len(self.task.outputs), dtype=torch.float64)

    def shift(self, prior: Prior) -> Tensor:
        """All 0."""
        return torch.zeros(len(self.task.outputs), dtype=torch.float64)

    def losses(
        self, outputs_PBC: Tensor, target: Tensor, weight_PC: Tensor | None, tail_over: str
    ) -> tuple[Tensor, Tensor | None]:
        """One loss a frame; a frame without any labelled value does not count."""
        errors = losses.squared_errors(outputs_PBC, target)
        return losses.frame_means(errors, torch.isfinite(target))

    def probabilities(self, outputs: Tensor) -> Tensor:
        """The values themselves, within the task's limits.

        Beyond them a prediction is wrong for certain. Training has no such clamp: the gradient of
        an output beyond a limit would be 0, and it could not come back.
        """
        return outputs if self.task.limits is None else outputs.clamp(*self.task.limits)

    def count(
        self, outputs_PNC: Tensor, target: Tensor, video_N: Tensor, num_videos: int
    ) -> Tensor:
        """Moments of predictions within the task's limits."""
        predicted_PNC = self.probabilities(outputs_PNC)
        return counting.sum_moments(target, predicted_PNC, video_N, num_videos)


LOSS_KINDS: dict[str, type[LossKind]] = {
    "multiclass": MulticlassLoss,
    "multilabel": MultilabelLoss,
    "regression": RegressionLoss,
}


def loss_kind(task: Task) -> LossKind:
    """The torch half of a task's kind.

    Raises:
        RaffectError: If this version of raffect does not know it.
    """
    kind_of(task)  # which raises if the kind is unknown
    return LOSS_KINDS[task.kind](task)
