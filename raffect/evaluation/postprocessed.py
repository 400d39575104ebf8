"""Scores of heads together, before and after their decision rules: a record, and its lines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from raffect.metrics.intervals import Headline
from raffect.metrics.scores import Score, Snapshot
from raffect.metrics.task_kinds import Kind
from raffect.predictions.gains import Gain
from raffect.runs.against_erm import Difference
from raffect.runs.spread import headline_text
from raffect.storage.records import Record


@dataclass(frozen=True, kw_only=True)
class Postprocessed(Record):
    """Scores of heads together, before and after decision rules.

    Attributes:
        file: The rules.
        chosen_on: What they were chosen on.
        snapshots: Of the heads that they name.
        heads: How many these are.
        before: Of the plain mean of these heads.
        after: With the rules.
        difference: Between the two, paired by video.
        score: All scores with the rules.
    """

    file: str
    chosen_on: Literal["folds", "validation", "nothing"]
    snapshots: tuple[Snapshot, ...]
    heads: int
    before: Headline
    after: Headline
    difference: Gain
    score: Score

    def lines(self, kind: Kind, split: str) -> list[str]:
        """Both scores, and what they must not be taken for."""
        gain = Difference(mean=self.difference.gain, interval_95=self.difference.interval_95)
        where = {"folds": "folds of the training split", "nothing": "nothing"}.get(
            self.chosen_on, "the validation split"
        )
        optimistic = ": optimistic here" if self.chosen_on == split else ""
        lines = [
            f"mean of {self.heads} head(s): {kind.title} {headline_text(self.before)}",
            f"with decision rules: {kind.title} {headline_text(self.after)}, {gain.text()} against "
            f"that mean; rules of {self.file}, chosen on {where}{optimistic}",
        ]
        others = [name for name in self.snapshots if name != "last"]
        if self.chosen_on == "folds" and others:
            named = " and ".join(others)
            lines.append(
                f"note: these rules were chosen on predictions after the last epoch, and applied "
                f"to {named} snapshots"
            )
        return lines
