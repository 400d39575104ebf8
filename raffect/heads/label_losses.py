"""Losses of labels: classes, labels that are each there or not, and values.

Shape letters: P heads, B frames of a batch, C outputs, N losses that a head's tail is taken over,
or samples that are judged.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raffect.heads import counting, losses
from raffect.heads.loss_kind import Losses, LossKind, Prior, Terms, Truth, UnweightedLoss
from raffect.recipe import LossConfig


class MulticlassLoss(LossKind):
    """Cross-entropy of a softmax; the predicted class is that of the largest output."""

    has_classes = True

    def classes(self, target: Tensor) -> Tensor | None:
        """The targets themselves."""
        return target

    def count_prior(self, targets: np.ndarray) -> Prior:
        """Frames of each class."""
        counts = np.bincount(targets, minlength=len(self.task.outputs))
        return Prior(self, torch.from_numpy(counts))

    def weights(self, config: LossConfig, prior: Prior) -> Tensor:
        """See `raffect.heads.losses.class_weights`."""
        return losses.class_weights(prior.positive, config.weighting, config.beta)

    def shift(self, prior: Prior) -> Tensor:
        """Log prior of each class."""
        return losses.class_shift(prior.positive)

    def losses(self, outputs_PBC: Tensor, target: Tensor, terms: Terms) -> Losses:
        """One loss a frame."""
        loss_PB, slope_PBC = losses.softmax_losses(outputs_PBC, target, terms.weights)
        return Losses(loss_PB, lambda by_PB: slope_PBC * by_PB[..., None], terms.valid)

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Softmax over the classes."""
        return outputs.softmax(-1)

    def _count(self, outputs_PNC: Tensor, truth: Truth) -> Tensor:
        """Confusion matrices."""
        predicted, num_classes = outputs_PNC.argmax(-1), outputs_PNC.shape[-1]
        return counting.count_confusion(
            truth.target, predicted, truth.video, truth.num_videos, num_classes
        )


class MultilabelLoss(LossKind):
    """Binary cross-entropy of each label.

    A label is predicted from a probability of 0.5 on, which is an output of 0.
    """

    def count_prior(self, targets: np.ndarray) -> Prior:
        """Active and inactive frames of each label."""
        positive, negative = ((targets == value).sum(0) for value in (1, 0))
        return Prior(self, torch.from_numpy(positive), torch.from_numpy(negative))

    def weights(self, config: LossConfig, prior: Prior) -> Tensor:
        """See `raffect.heads.losses.unit_weights`."""
        assert prior.negative is not None
        return losses.unit_weights(prior.positive, prior.negative, config.weighting, config.beta)

    def shift(self, prior: Prior) -> Tensor:
        """Log prior odds of each label."""
        assert prior.negative is not None
        return losses.unit_shift(prior.positive, prior.negative)

    def losses(self, outputs_PBC: Tensor, target: Tensor, terms: Terms) -> Losses:
        """One loss a label and frame, or with ``tail_over`` frames the mean over a frame's labels.

        Unlabelled ones do not count.
        """
        is_known = target >= 0
        loss_PBU, slope_PBU = losses.sigmoid_losses(outputs_PBC, target, terms.weights)
        if terms.tail_over == "frames":
            return of_frames(loss_PBU, slope_PBU, is_known)

        def by_outputs(by_PN: Tensor) -> Tensor:
            return slope_PBU * by_PN.view_as(slope_PBU)

        return Losses(loss_PBU.flatten(1), by_outputs, is_known.flatten(1))

    def probabilities(self, outputs: Tensor) -> Tensor:
        """Sigmoid of each label."""
        return outputs.sigmoid()

    def _count(self, outputs_PNC: Tensor, truth: Truth) -> Tensor:
        """Counts of each label."""
        return counting.count_labels(truth.target, outputs_PNC >= 0, truth.video, truth.num_videos)


class RegressionLoss(UnweightedLoss):
    """Squared error, the mean over a frame's labelled values; or ``ccc``, a loss of the batch."""

    names = ("default", "ccc")
    why = "numbers, not classes"

    def couples(self, name: str) -> bool:
        """The moments of CCC are those of the whole batch."""
        return name == "ccc"

    def count_prior(self, targets: np.ndarray) -> Prior:
        """Zeros: there are no classes to count."""
        return Prior(self, torch.zeros(len(self.task.outputs)))

    def losses(self, outputs_PBC: Tensor, target: Tensor, terms: Terms) -> Losses:
        """One loss a frame, or of ``ccc`` one in all.

        A frame without any labelled value does not count.
        """
        if terms.name == "ccc":
            loss_P, slope_PBV = losses.ccc_loss(outputs_PBC, target.to(outputs_PBC.dtype))
            return Losses(loss_P[:, None], lambda by_P1: slope_PBV * by_P1[..., None])
        error_PBV, slope_PBV = losses.squared_errors(outputs_PBC, target)
        return of_frames(error_PBV, slope_PBV, torch.isfinite(target))

    def probabilities(self, outputs: Tensor) -> Tensor:
        """The values themselves, within the task's limits.

        Beyond them a prediction is wrong for certain. Training has no such clamp: the gradient of
        an output beyond a limit would be 0, and it could not come back.
        """
        return outputs if self.task.limits is None else outputs.clamp(*self.task.limits)

    def _count(self, outputs_PNC: Tensor, truth: Truth) -> Tensor:
        """Moments of predictions within the task's limits."""
        predicted_PNC = self.probabilities(outputs_PNC)
        return counting.sum_moments(truth.target, predicted_PNC, truth.video, truth.num_videos)


def of_frames(loss_PBU: Tensor, slope_PBU: Tensor, is_known_PBU: Tensor) -> Losses:
    """One loss a frame, the mean over its labelled units; see `raffect.heads.losses.frame_means`.

    A frame without any does not count.
    """
    loss_PB, slope_PBU, mask_PB = losses.frame_means(loss_PBU, slope_PBU, is_known_PBU)
    return Losses(loss_PB, lambda by_PB: slope_PBU * by_PB[..., None], mask_PB)
