"""Scores of a head on a split, and the chance level beside them, as records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge

from raffect.storage.records import Record

Number = int | float
Snapshot = Literal["last", "best", "cv"]
SNAPSHOTS: tuple[Snapshot, ...] = ("last", "best", "cv")
"""Epochs of a head that are kept and judged.

They are the last one, the best one on validation, and the cross-validated one.
"""
Status = Literal["done", "diverged", "running", "stopped"]
"""How a head's training stands; a scheduler may stop one that is running."""


@dataclass(frozen=True, kw_only=True)
class Score(Record):
    """Scores of one head on one split.

    Attributes:
        headline: The score that heads are compared by: macro F1, or CCC for numbers.
        metrics: All scores of the task as a whole by name, the headline among them.
        outputs: Scores and frames of each class, label or value, by its name.
        confusion: Frames of each pair of classes: rows true, columns predicted; None for other
            kinds of tasks.
    """

    headline: float
    metrics: dict[str, float]
    outputs: dict[str, dict[str, Number]]
    confusion: tuple[tuple[int, ...], ...] | None = None

    @property
    def absent(self) -> tuple[str, ...]:
        """Outputs without a true or labelled frame: each counts 0 in the headline."""
        return tuple(
            name
            for name, part in self.outputs.items()
            if not part.get("support", part.get("frames"))
        )

    def over_present(self, headline: float) -> float:
        """A headline score as the mean over the outputs that occur alone."""
        return headline * len(self.outputs) / max(len(self.outputs) - len(self.absent), 1)


@dataclass(frozen=True, kw_only=True)
class JudgedScore(Score):
    """A score with its epoch, and an interval of what other videos might have scored.

    Attributes:
        epoch: 1-based.
        interval_95: Of the headline, over videos or other groups; None where their statistics were
            not kept.
    """

    epoch: Annotated[int, Ge(1)]
    interval_95: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Chance(Record):
    """Headline scores of predictors that never look at a face.

    Attributes:
        answer: What the best constant predictor answers, such as ``always Other``.
        majority: Score of the best constant; None where nothing was judged yet.
        prior: Score of classes drawn at random with the split's own shares; None for other kinds of
            tasks than classes.
    """

    answer: str
    majority: float | None
    prior: float | None = None

    @property
    def level(self) -> float:
        """The better of the two: a head has to beat it to have learnt anything."""
        return max(value for value in (self.majority, self.prior, 0.0) if value is not None)

    @property
    def name(self) -> str:
        """The predictor that scores `level`."""
        by_prior = self.prior is not None and self.prior >= (self.majority or 0.0)
        return "guesses by the class shares" if by_prior else self.answer


def mean_chance(chances: Sequence[Chance]) -> Chance:
    """The mean over folds; the best constant may be another one in each."""
    answers = {chance.answer for chance in chances}
    majority = [chance.majority for chance in chances if chance.majority is not None]
    prior = [chance.prior for chance in chances if chance.prior is not None]
    return Chance(
        answer=answers.pop() if len(answers) == 1 else "the best constant of each fold",
        majority=float(np.mean(majority)) if majority else None,
        prior=float(np.mean(prior)) if prior else None,
    )
