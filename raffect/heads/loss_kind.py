"""The torch half of a kind of tasks: what training and judging ask of it.

These are losses of a batch of heads, label priors, and how outputs become statistics. The kinds
themselves are in `raffect.heads.label_losses` and `raffect.heads.contrastive`.

Shape letters: P heads, B frames of a batch, C outputs, N losses that a head's tail is taken over,
or samples that are judged, A and B the statistics of a kind.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from raffect.datasets.tasks import Task
from raffect.errors import require
from raffect.recipe import LossConfig, Recipe


@dataclass(frozen=True)
class Prior:
    """How often each output occurs in the training rows of a task.

    Attributes:
        kind: The torch half of the task's kind.
        positive: Frames of each class, or active frames of each label, shape (C,).
        negative: Inactive frames of each label, shape (C,); None for other kinds.
    """

    kind: LossKind
    positive: Tensor
    negative: Tensor | None = None

    @property
    def task(self) -> Task:
        """The task."""
        return self.kind.task

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


class Losses(NamedTuple):
    """Losses that each head's tail is taken over.

    Attributes:
        values: Shape (P, N).
        by_outputs: From a head's derivative by its losses, (P, N), to the one by its outputs,
            (P, B, C): in closed form, since no training step records for autograd.
        mask: Which of them count, shape (P, N); None if all do.
    """

    values: Tensor
    by_outputs: Callable[[Tensor], Tensor]
    mask: Tensor | None = None


class Truth(NamedTuple):
    """What outputs of N samples are judged by, which all heads share.

    Attributes:
        target: Of each sample, shape (N, ...).
        video: Number of each sample's video, int64, shape (N,).
        num_videos: How many there are.
        left_out: Class of each head that does not count, neither its samples nor its targets among
            those of others, int64, shape (P,), -1 for none; None if all heads see all.
    """

    target: Tensor
    video: Tensor
    num_videos: int
    left_out: Tensor | None = None


class LossKind(ABC):
    """What training asks of a task.

    Args:
        task: The task.
    """

    has_classes: ClassVar[bool] = False
    """Whether each sample is of one class, which a head can leave out."""
    has_captions: ClassVar[bool] = False
    """Whether targets are vectors, of which near-duplicates can count for each other."""
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
        remedy = "give --labels a table of `raffect captions`, or set it to 0"
        is_known = self.has_captions or config.soft_targets == 0
        require(is_known, f"{what} has no captions; {remedy}")
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
    def losses(self, outputs_PBC: Tensor, target: Tensor, terms: Terms) -> Losses:
        """Losses that each head's tail is taken over, and their derivatives.

        Args:
            outputs_PBC: Of every head.
            target: Of every head, shape (P, B) or (P, B, C).
            terms: Weights and settings.
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

    def count(self, outputs_PNC: Tensor, truth: Truth) -> Tensor:
        """Additive statistics of each head and video; see `raffect.metrics.task_kinds`.

        Args:
            outputs_PNC: Outputs of every head for N samples.
            truth: What they are judged by.

        Returns:
            Shape (P, videos, A, B); 0 for the class that a head leaves out.
        """
        counts = self._count(outputs_PNC, truth)
        if truth.left_out is None:
            return counts
        number_A = torch.arange(counts.shape[2], device=counts.device)
        is_hidden_PA = number_A == truth.left_out[:, None]
        return counts.masked_fill(is_hidden_PA[:, None, :, None], 0)

    @abstractmethod
    def _count(self, outputs_PNC: Tensor, truth: Truth) -> Tensor:
        """`count`, where samples of a class that a head leaves out may count in its own rows."""


class UnweightedLoss(LossKind):
    """A kind to which weights and priors of outputs mean nothing."""

    why: ClassVar[str]
    """Why not."""

    def require_loss(self, config: LossConfig) -> None:
        """See `LossKind.require_loss`; a recipe may have neither weights nor priors."""
        super().require_loss(config)
        why = f"task {self.task.name} has {self.why}"
        what = f"loss.weighting {config.weighting}"
        require(config.weighting == "none", f"{what}: {why}; expected none")
        what = f"loss.logit-adjustment {config.logit_adjustment:g}"
        require(config.logit_adjustment == 0, f"{what}: {why}; expected 0")

    def weights(self, config: LossConfig, prior: Prior) -> Tensor:
        """All 1."""
        return torch.ones(len(self.task.outputs), dtype=torch.float64)

    def shift(self, prior: Prior) -> Tensor:
        """All 0."""
        return torch.zeros(len(self.task.outputs), dtype=torch.float64)
