"""Recall of classes by heads that never saw them, as ``leave_one_out.json`` of a run folder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from raffect.metrics.intervals import Headline
from raffect.runs.against_erm import Difference
from raffect.runs.spread import headline_text, short
from raffect.storage.records import Count, Record

FILE = "leave_one_out.json"
"""Name of the record in a run folder."""
_REMEDY = "run the same `raffect zeroshot --head` again"


@dataclass(frozen=True, kw_only=True)
class UnseenClass(Record):
    """One class, or the mean over all of them.

    Attributes:
        name: Of the class.
        samples: Validation samples of it.
        groups: Videos, or other groups, that have any; 0 in files older than this field.
        prompts: Prompt set that the heads and the features were compared with.
        trained: Recall by the heads that never saw it: mean over seeds, interval over groups.
        plain: Recall by the same features without a head, against the same texts.
        gain: The first less the second.
    """

    name: str
    samples: Count
    groups: Count = 0
    prompts: str
    trained: Headline
    plain: Headline
    gain: Difference

    def why_no_interval(self, group_name: str) -> str:
        """`` (one video: no interval)``; empty with an interval."""
        if self.trained.interval_95 is not None or not self.groups:
            return ""
        group = group_name.removesuffix("s")
        why = f"one {group}" if self.groups == 1 else f"equal without any {group}"
        return f" ({why}: no interval)"

    def row(self) -> dict[str, Any]:
        """One row of leave_one_out.csv."""
        row: dict[str, Any] = {"class": self.name, "samples": self.samples, "groups": self.groups}
        row["prompts"] = self.prompts
        for name, score, interval in (
            ("recall", self.trained.score, self.trained.interval_95),
            ("recall_without_head", self.plain.score, self.plain.interval_95),
            ("difference", self.gain.mean, self.gain.interval_95),
        ):
            low, high = interval or (None, None)
            row |= {name: score, f"{name}.low": low, f"{name}.high": high}
        return row | {"recall.sd": self.trained.sd}


@dataclass(frozen=True, kw_only=True)
class LeaveOneOut(Record):
    """Every class by heads that were trained without it.

    Attributes:
        format: Of this record.
        run: Name of the run that trained the heads.
        classes: In the order of the task.
        mean: The mean over these classes.
        candidates: Classes that a sample can be taken for, all of them at once.
        is_chosen: Whether prompt sets were chosen on folds; else the set was the only one, or all
            are shown.
        unit: ``frames`` or ``clips``.
        group_name: What intervals are over.
        skipped: Classes that heads were trained without and that have no sample or no texts.
        caveats: What the scores must not be taken for.
    """

    format: Literal[1] = 1
    run: str
    classes: tuple[UnseenClass, ...]
    mean: UnseenClass
    candidates: Count
    is_chosen: bool
    unit: str
    group_name: str
    skipped: tuple[str, ...] = ()
    caveats: tuple[str, ...] = ()

    @property
    def chance(self) -> float:
        """Recall of a guess with equal shares, and the mean recall of any constant."""
        return 1 / self.candidates

    def lines(self) -> list[str]:
        """A short table."""
        samples = self.mean.samples
        lines = [
            f"leave one class out, {self.run}: recall of each class by heads that never saw it, "
            f"against texts of all {self.candidates} classes, {samples:,} {self.unit}"
        ]
        shown = (*self.classes, self.mean)
        width = max(len(one.name) for one in shown)
        names = max(len(one.prompts) for one in shown)
        for one in shown:
            prompts = f"{one.prompts:{names}}  " if names else ""
            name = self.group_name.removesuffix("s") if one.groups == 1 else self.group_name
            groups = f" of {one.groups} {name}" if one.groups else ""
            lines.append(
                f"  {one.name:{width}}  {prompts}{headline_text(one.trained)}"
                f"{one.why_no_interval(self.group_name)}  without a head "
                f"{headline_text(one.plain)}  difference {one.gain.text()}  "
                f"{one.samples:,} {self.unit}{groups}"
            )
        lines.append(
            f"  chance {short(self.chance)} (guesses with equal shares); intervals over "
            f"{self.group_name}"
        )
        if self.is_chosen:
            lines.append(
                "  prompt sets are chosen on folds of the training split by the recall of the "
                "other classes; neither they nor the heads saw the class"
            )
        if self.skipped:
            lines.append(f"  left out, without samples or texts: {', '.join(self.skipped)}")
        return lines


@dataclass(frozen=True, kw_only=True)
class LeaveOneOuts(Record):
    """All tables of a run folder: one a run of ``--head``, without folds one a prompt set."""

    tables: tuple[LeaveOneOut, ...] = ()


def read_leave_one_out(folder: Path) -> tuple[LeaveOneOut, ...]:
    """The tables of a run folder; empty without any.

    Raises:
        RaffectError: If the record is damaged.
    """
    file = folder / FILE
    if not file.exists():
        return ()
    return LeaveOneOuts.from_json(file.read_bytes(), file, _REMEDY).tables
