"""What a head is worth, as records: its scores on a split, and what answering without looking would reach."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge

from raffect.storage.records import Record

Number = int | float
Snapshot = Literal["last", "best", "cv"]
SNAPSHOTS: tuple[Snapshot, ...] = ("last", "best", "cv")
"""Epochs of a head that are kept and judged: the last one, the best one on validation, the cross-validated one."""
Status = Literal["done", "diverged", "running", "stopped"]
"""How a head's training stands; a scheduler may stop one that is running."""


@dataclass(frozen=True, kw_only=True)
class Score(Record):
    """Scores of one head on one split.

    Attributes:
        headline: The one that heads are compared by: macro F1, or CCC of numbers.
        metrics: All scores of the task as a whole by name, the headline among them.
        outputs: Scores and frames of each class, label or value, by its name.
        confusion: Of classes: frames, rows true, columns predicted.
    """

    headline: float
    metrics: dict[str, float]
    outputs: dict[str, dict[str, Number]]
    confusion: tuple[tuple[int, ...], ...] | None = None


@dataclass(frozen=True, kw_only=True)
class JudgedScore(Score):
    """A score with the epoch that it is of and how far other videos might have scored.

    Attributes:
        epoch: 1-based.
        interval_95: Of the headline, over videos or other groups; None where their statistics were not kept.
    """

    epoch: Annotated[int, Ge(1)]
    interval_95: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Chance(Record):
    """Headline scores of predictors that never look at a face.

    Attributes:
        answer: What the best constant predictor answers, such as ``always Other``.
        majority: Its score; None where nothing was judged yet.
        prior: Score of guesses drawn with the split's own class shares, of classes alone.
    """

    answer: str
    majority: float | None
    prior: float | None = None

    @property
    def level(self) -> float:
        """The better of them: a head has to beat it to have learnt anything."""
        return max(value for value in (self.majority, self.prior, 0.0) if value is not None)

    @property
    def name(self) -> str:
        """Which of them that is."""
        by_prior = self.prior is not None and self.prior >= (self.majority or 0.0)
        return "guesses by the class shares" if by_prior else self.answer
