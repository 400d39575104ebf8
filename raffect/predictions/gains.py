"""What decision rules gain, as a record: ``postprocess.json`` beside ``decision_rules.json``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

import numpy as np

from raffect.bank.facts import size_text
from raffect.metrics.intervals import Headline, Interval, difference_interval, plain_interval
from raffect.metrics.scores import Chance, Snapshot
from raffect.metrics.task_kinds import Kind, kind_of
from raffect.predictions.choose import Choice
from raffect.predictions.rules import REMEDY, DecisionRules, RuleName
from raffect.provenance import Provenance
from raffect.storage.records import Count, Record

GAINS_FILE = "postprocess.json"
"""Name of the record in a run folder."""


@dataclass(frozen=True, kw_only=True)
class Gain(Record):
    """How much higher one score is than another on the same frames.

    Attributes:
        gain: The difference.
        interval_95: Of the difference, paired by video or other group; None if nothing differs.
    """

    gain: float
    interval_95: Interval | None

    @classmethod
    def of(cls, after: np.ndarray, before: np.ndarray, kind: Kind) -> Self:
        """From statistics by group, each of shape (G, A, B)."""
        gain, interval = difference_interval(after, before, kind)
        return cls(gain=float(gain), interval_95=plain_interval(interval))


@dataclass(frozen=True, kw_only=True)
class RuleGain(Record):
    """What one rule gains beyond those before it, cross-fitted.

    Attributes:
        rule: Which.
        kept: Whether it was kept.
        gain: The difference.
    """

    rule: RuleName
    kept: bool
    gain: Gain


@dataclass(frozen=True, kw_only=True)
class Postprocessing(Record):
    """How decision rules were chosen and what they gain.

    Attributes:
        format: Of this record.
        run: Versions, commit, command and machine.
        runs: Run folders of the heads.
        rules: The chosen rules.
        snapshot: Of the heads that they name.
        frames: Labelled frames that they were chosen on.
        groups: Videos, subjects or pictures that these belong to.
        group_name: What these are called.
        num_parts: Parts of the frames for cross-fitting: folds.
        num_candidates: Heads to choose from.
        chance: Scores of predictors that never look at a frame, on the same frames.
        single: Mean score of the single heads whose mean ``before`` is.
        before: Of the plain mean of these heads.
        after: Of all kept rules, cross-fitted.
        difference: Between the two.
        on_chosen: Score on the very frames that the rules were chosen on: optimistic.
        gains: Of every rule that was tried, in the order in which they were chosen.
        curve: Half-width of the window and score of the ensemble with it, on all frames.
        incomplete: What a bank lacked; empty if nothing.
        caveats: What the scores must not be taken for.
        samples: What is labelled: ``frames`` or ``clips``.
    """

    format: Literal[1] = 1
    run: Provenance
    runs: tuple[str, ...]
    rules: DecisionRules
    snapshot: Snapshot
    frames: Count
    groups: Count
    group_name: str
    num_parts: Count
    num_candidates: Count
    chance: Chance
    single: float
    before: Headline
    after: Headline
    difference: Gain
    on_chosen: float
    gains: tuple[RuleGain, ...]
    curve: tuple[tuple[int, float], ...]
    incomplete: str = ""
    caveats: tuple[str, ...] = ()
    samples: str = "frames"

    @property
    def size(self) -> str:
        """What the rules were chosen on: ``8,000 frames of 60 videos``."""
        return size_text(self.frames, self.samples, self.groups, self.group_name)

    @property
    def kind(self) -> Kind:
        """How the heads are scored."""
        return kind_of(self.rules.task)

    @property
    def where(self) -> str:
        """``folds of the training split``, or the validation split with what that means."""
        if self.rules.chosen_on == "folds":
            return f"{self.num_parts} folds of the training split"
        return "the validation split itself: optimistic there"


def read_gains(folder: Path) -> Postprocessing | None:
    """The record of a run folder, or None.

    Raises:
        RaffectError: If it is damaged.
    """
    file = folder / GAINS_FILE
    if not file.exists():
        return None
    return Postprocessing.from_json(file.read_bytes(), file, REMEDY)


def describe_choice(choice: Choice, kind: Kind) -> dict:
    """The scores of a choice, as fields of `Postprocessing`."""
    return {
        "before": Headline.of(choice.before, kind),
        "after": Headline.of(choice.after, kind),
        "difference": Gain.of(choice.after, choice.before, kind),
        "on_chosen": float(kind.headline(choice.chosen.sum(0))),
        "gains": tuple(
            RuleGain(rule=step.rule, kept=step.kept, gain=Gain.of(step.after, step.before, kind))
            for step in choice.steps
        ),
        "curve": tuple(choice.curve.items()),
    }
