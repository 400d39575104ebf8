"""The torch half of the kinds of tasks.

These are losses of a batch of heads, label priors, and how outputs become statistics.

Shape letters: P heads, B frames of a batch, C outputs, E numbers of a vector, N losses that a
head's tail is taken over.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raffect.datasets.tasks import Task
from raffect.errors import RaffectError, require
from raffect.heads import counting, losses
from raffect.heads.retrieval import TargetVectors, count_hits
from raffect.metrics.task_kinds import kind_of
from raffect.recipe import LossConfig, Recipe


@dataclass(frozen=True)
class Prior:
    """How often each output occurs in the training rows of a task.

    Attributes:
        task: The task.
        positive: Frames of each class, or active frames of each label, shape (C,).
        negative: Inactive frames of each label, shape (C,); None for other kinds.
        vectors: What outputs are compared with; None for other kinds than contrastive.
    """

    task: Task
    positive: Tensor
    negative: Tensor | None = None
    vectors: TargetVectors | None = None

    @property
    def kind(self) -> LossKind:
        """The torch half of the task's kind."""
        return loss_kind(self.task, self.vectors)

    def without(self, number: int) -> Prior:
        """The counts where frames of a class are not seen; -1 for none."""
        if number < 0:
            return self
        positive = self.positive.clone()
        positive[number] = 0
        return replace(self, positive=positive)


class Terms(NamedTuple):
    """What losses depend on beside outputs and targets.

    Attributes:
        name: The setting ``loss.name``.
        tail_over: The setting ``loss.tail_over``.
        weights: Of each output's positives, shape (P, C); None for all 1.
        temperature: The setting ``loss.soft_targets`` of each head, (P,); None for all 0.
        valid: Which samples each head may see, shape (P, B); None for all.
    """

    name: str = "default"
    tail_over: str = "units"
    weights: Tensor | None = None
    temperature: Tensor | None = None
    valid: Tensor | None = None


class LossKind(ABC):
    """What training asks of a task.

    Args:
        task: The task.
    """

    has_classes: ClassVar[bool] = False
    """Whether each sample is of one class, which a head can leave out."""
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
        what = f"loss.soft-targets {config.soft_targets:g}: task {self.task.name}"
        require(config.soft_targets == 0, f"{what} has no captions; expected 0")
        self.class_number(config.leave_out)

    def require_recipe(self, recipe: Recipe) -> None:
        """Refuse a recipe whose loss does not go with this kind or with the recipe's own head.

        Raises:
            RaffectError: Names the setting.
        """
        head, loss = recipe.head, recipe.loss
        self.require_loss(loss)
        require(
            not loss.leave_out or head.kind != "mlp" or head.depth == 0,
            f"loss.leave-out {loss.leave_out}: BatchNorm of hidden blocks would see its frames; "
            "expected head.depth 0, or a head of another kind than mlp",
        )

    def class_number(self, name: str) -> int:
        """Number of the class that ``loss.leave_out`` names; -1 for an empty name.

        Raises:
            RaffectError: If the task has no such class, or labels or values instead of classes.
        """
        if not name:
            return -1
        what = f"loss.leave-out {name[:60]}: task {self.task.name}"
        require(self.has_classes, f"{what} is {self.task.kind} and has no classes; leave it out")
        expected = ", ".join(self.task.outputs)
        require(name in self.task.outputs, f"{what} has no such class; expected one of {expected}")
        return self.task.outputs.index(name)

    def left_out(self, recipes: Sequence[Recipe]) -> Tensor | None:
        """Number of the class that each head leaves out, int64, shape (P,); None if all see all.

        Raises:
            RaffectError: See `class_number`.
        """
        numbers = [self.class_number(recipe.loss.leave_out) for recipe in recipes]
        return torch.tensor(numbers) if any(number >= 0 for number in numbers) else None

    def classes(self, target: Tensor) -> Tensor | None:
        """Class of each sample, shape (P, B), of targets (P, B, ...); None without classes."""
        return None

    def without(self, targets: np.ndarray, config: LossConfig) -> np.ndarray:
        """Targets (N, ...) without those of the class that a head leaves out."""
        classes = self.classes(torch.from_numpy(targets))
        assert classes is not None  # or `class_number` refuses to leave one out
        return targets[(classes != self.class_number(config.leave_out)).numpy()]

    def couples(self, name: str) -> bool:
        """Whether a sample's loss depends on other samples of the batch, by ``loss.name``."""
        return False

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
        self, outputs_PBC: Tensor, target: Tensor, terms: Terms
    ) -> tuple[Tensor, Tensor | None]:
        """Losses that each head's tail is taken over.

        Args:
            outputs_PBC: Of every head.
            target: Of every head, shape (P, B) or (P, B, C).
            terms: Weights and settings.

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
        self,
        outputs_PNC: Tensor,
        target: Tensor,
        video_N: Tensor,
        num_videos: int,
        left_out_P: Tensor | None = None,
    ) -> Tensor:
        """Additive statistics of each head and video; see `raffect.metrics.task_kinds`.

        Args:
            outputs_PNC: Outputs of every head for N samples.
            target: Of the samples, which all heads share.
            video_N: Number of each sample's video.
            num_videos: How many there are.
            left_out_P: Of `left_out`, on their device; its targets must not count for samples of
                other classes.

        Returns:
            Shape (P, videos, A, B).
        """


class MulticlassLoss(LossKind):
    """Cross-entropy of a softmax; the predicted class is that of the largest output."""

    has_classes = True

    def classes(self, target: Tensor) -> Tensor | None:
        """The targets themselves."""
        return target

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
        self, outputs_PBC: Tensor, target: Tensor, terms: Terms
    ) -> tuple[Tensor, Tensor | None]:
        """One loss a frame."""
        return losses.softmax_losses(outputs_PBC, target, terms.weights), terms.valid

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax over the classes."""
        return outputs.softmax(-1)

    def count(
        self,
        outputs_PNC: Tensor,
        target: Tensor,
        video_N: Tensor,
        num_videos: int,
        left_out_P: Tensor | None = None,
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
        self, outputs_PBC: Tensor, target: Tensor, terms: Terms
    ) -> tuple[Tensor, Tensor | None]:
        """One loss a label and frame, or with ``tail_over`` frames the mean over a frame's labels.

        Unlabelled ones do not count.
        """
        values, mask = losses.sigmoid_losses(outputs_PBC, target, terms.weights), target >= 0
        if terms.tail_over == "frames":
            values, mask = losses.frame_means(values, mask)
        return values.flatten(1), mask.flatten(1)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Sigmoid of each label."""
        return outputs.sigmoid()

    def count(
        self,
        outputs_PNC: Tensor,
        target: Tensor,
        video_N: Tensor,
        num_videos: int,
        left_out_P: Tensor | None = None,
    ) -> Tensor:
        """Counts of each label."""
        return counting.count_labels(target, outputs_PNC >= 0, video_N, num_videos)


class RegressionLoss(LossKind):
    """Squared error, the mean over a frame's labelled values; or ``ccc``, a loss of the batch."""

    names = ("default", "ccc")

    def require_loss(self, config: LossConfig) -> None:
        """Weights and priors of classes mean nothing for numbers."""
        super().require_loss(config)
        why = f"task {self.task.name} has numbers, not classes"
        what = f"loss.weighting {config.weighting}"
        require(config.weighting == "none", f"{what}: {why}; expected none")
        what = f"loss.logit-adjustment {config.logit_adjustment:g}"
        require(config.logit_adjustment == 0, f"{what}: {why}; expected 0")

    def couples(self, name: str) -> bool:
        """The moments of CCC are those of the whole batch."""
        return name == "ccc"

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
        self, outputs_PBC: Tensor, target: Tensor, terms: Terms
    ) -> tuple[Tensor, Tensor | None]:
        """One loss a frame, or of ``ccc`` one in all.

        A frame without any labelled value does not count.
        """
        if terms.name == "ccc":
            return losses.ccc_loss(outputs_PBC, target.to(outputs_PBC.dtype))[:, None], None
        errors = losses.squared_errors(outputs_PBC, target)
        return losses.frame_means(errors, torch.isfinite(target))

    def probabilities(self, outputs: Tensor) -> Tensor:
        """The values themselves, within the task's limits.

        Beyond them a prediction is wrong for certain. Training has no such clamp: the gradient of
        an output beyond a limit would be 0, and it could not come back.
        """
        return outputs if self.task.limits is None else outputs.clamp(*self.task.limits)

    def count(
        self,
        outputs_PNC: Tensor,
        target: Tensor,
        video_N: Tensor,
        num_videos: int,
        left_out_P: Tensor | None = None,
    ) -> Tensor:
        """Moments of predictions within the task's limits."""
        predicted_PNC = self.probabilities(outputs_PNC)
        return counting.sum_moments(target, predicted_PNC, video_N, num_videos)


class ContrastiveLoss(LossKind):
    """Symmetric InfoNCE of a batch of outputs against the vectors of their targets.

    Outputs are vectors of length 1 times the scale that a head has learnt; see
    `raffect.heads.head_batch.EmbeddingSpec`.

    Args:
        task: The task.
        vectors: Of its targets.
    """

    has_classes = True

    def __init__(self, task: Task, vectors: TargetVectors) -> None:
        super().__init__(task)
        self.vectors = vectors

    def require_loss(self, config: LossConfig) -> None:
        """Weights and priors of classes mean nothing for vectors."""
        super().require_loss(replace(config, soft_targets=0.0))
        why = f"task {self.task.name} has vectors to compare with, not classes to predict"
        what = f"loss.weighting {config.weighting}"
        require(config.weighting == "none", f"{what}: {why}; expected none")
        what = f"loss.logit-adjustment {config.logit_adjustment:g}"
        require(config.logit_adjustment == 0, f"{what}: {why}; expected 0")

    def classes(self, target: Tensor) -> Tensor | None:
        """The second number of a target."""
        return target[..., 1]

    def couples(self, name: str) -> bool:
        """The other samples of a batch are what a sample is told from."""
        return True

    def count_prior(self, targets: np.ndarray) -> Prior:
        """Frames of each class, and the vectors."""
        counts = np.bincount(targets[:, 1], minlength=len(self.task.outputs))
        return Prior(self.task, torch.from_numpy(counts), vectors=self.vectors)

    def weights(self, config: LossConfig, prior: Prior) -> Tensor:
        """All 1."""
        return torch.ones(len(self.task.outputs), dtype=torch.float64)

    def shift(self, prior: Prior) -> Tensor:
        """All 0."""
        return torch.zeros(len(self.task.outputs), dtype=torch.float64)

    def losses(
        self, outputs_PBC: Tensor, target: Tensor, terms: Terms
    ) -> tuple[Tensor, Tensor | None]:
        """One loss a sample."""
        number_PB = target[..., 0]
        vectors_PBE = self.vectors.take(number_PB, outputs_PBC.dtype)
        share_PBB = losses.text_shares(
            self.vectors.same[number_PB], vectors_PBE, terms.temperature, terms.valid
        )
        logits_PBB = outputs_PBC @ vectors_PBE.transpose(1, 2)
        return losses.info_nce_losses(logits_PBB, share_PBB, terms.valid), terms.valid

    def probabilities(self, outputs: Tensor) -> Tensor:
        """There are none: an output is no answer by itself.

        Raises:
            RaffectError: Says how answers are made of such heads.
        """
        require_answers(self.task)
        return outputs

    def count(
        self,
        outputs_PNC: Tensor,
        target: Tensor,
        video_N: Tensor,
        num_videos: int,
        left_out_P: Tensor | None = None,
    ) -> Tensor:
        """Hits among the candidates of each class."""
        num_classes = len(self.task.outputs)
        return count_hits(
            outputs_PNC, target, video_N, num_videos, num_classes, self.vectors, left_out_P
        )


LOSS_KINDS: dict[str, type[LossKind]] = {
    "multiclass": MulticlassLoss,
    "multilabel": MultilabelLoss,
    "regression": RegressionLoss,
    "contrastive": ContrastiveLoss,
}


def loss_kind(task: Task, vectors: TargetVectors | None = None) -> LossKind:
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
