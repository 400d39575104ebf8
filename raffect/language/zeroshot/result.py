"""What `raffect zeroshot` found: UAR, WAR and macro F1 over the classes that have prompts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from raffect.language.zeroshot.judging import Judged
from raffect.language.zeroshot.prompt_scores import PromptScores, score_prompts
from raffect.language.zeroshot.trained import TrainedHeads
from raffect.metrics.scores import Chance, Score
from raffect.metrics.task_kinds import Multiclass, kind_of
from raffect.runs.conclusions import SweepResult
from raffect.runs.folder import RunFolder
from raffect.runs.leave_one_out import LeaveOneOut
from raffect.runs.metrics_file import table
from raffect.runs.spread import absent_lines, chance_text, output_lines, short
from raffect.storage.tables import write_csv


@dataclass(frozen=True, kw_only=True)
class ZeroshotResult:
    """Scores of every prompt set, and the run folder that holds their heads.

    Attributes:
        sweep: The run as training would have found it.
        scores: One a prompt set and ensemble, in the order of the run.
        described: Outputs that are judged; frames of others are left out of `scores`.
        frames: Frames, or clips, of the described outputs.
        unit: ``frames`` or ``clips``.
        chance: Macro F1 of predictors that look at nothing, over the described outputs.
        chance_uar: Likewise UAR, of any constant; None for labels.
        chance_war: WAR of the most frequent class; None for labels.
        outputs: Scores of each described output of the chosen set.
        trained: The heads of ``--head``; empty without.
        left_out: Recall of classes that heads never saw; one table a run, or without folds one a
            prompt set.
        seen: Lines on what the trained heads have seen of the samples that they are judged on.
    """

    sweep: SweepResult
    scores: tuple[PromptScores, ...]
    described: tuple[str, ...]
    frames: int
    unit: str
    chance: Chance
    chance_uar: float | None
    chance_war: float | None
    outputs: Score
    trained: TrainedHeads = field(default_factory=TrainedHeads)
    left_out: tuple[LeaveOneOut, ...] = ()
    seen: tuple[str, ...] = ()

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.sweep.folder

    @property
    def chosen(self) -> PromptScores | None:
        """The prompt set that was chosen on folds of the training split; None without folds.

        With trained heads it is theirs, and `scores` says what was chosen without a head.
        """
        shown = _shown(self.scores)
        return shown if shown.is_chosen else None

    @property
    def shown(self) -> tuple[PromptScores, ...]:
        """Scores of which a line is printed: `left_out` has those of heads without a class."""
        return tuple(found for found in self.scores if not found.leave_out)

    def to_pandas(self) -> Any:
        """One row a prompt set; a pandas DataFrame."""
        return table([found.row() for found in self.scores])

    def lines(self) -> list[str]:
        """The result as lines of text."""
        data, kind = self.sweep.data, kind_of(self.sweep.data.task)
        mark = data.incomplete_mark
        lines = [*data.missing_lines(), *self._opening()]

        # Each set, and the chance level
        width = max(len(self._name(found)) for found in self.shown)
        count = len(data.task.outputs)
        over = f" (all {count} {kind.parts})" if count > len(self.described) else ""
        for found in self.shown:
            held_out = f"  on folds{over} {short(found.held_out)}" if self.chosen else ""
            lines.append(f"{self._name(found):{width}}  {found.text()}{held_out}{mark}")
            if found.gains:
                lines.append(f"{'':{width}}  difference to no head: {found.gains_text()}")
        lines.append(f"chance  macro F1 {chance_text(self.chance)}{self._chance_recalls()}")
        means = [found.macro_f1.score for found in self.shown]
        if len(means) > 1:
            spread = f"from {short(min(means))} to {short(max(means))}"
            lines.append(f"macro F1 of these {len(means)} goes {spread}")
        shown = _shown(self.scores)
        name = f"macro F1 of {self._name(shown)}"
        lines += absent_lines(self.outputs, {name: shown.macro_f1.score}, kind, "validation")

        # Those that were chosen without these scores, and classes that heads never saw
        if self.chosen is not None:
            for found in self.shown:
                if found.is_chosen:
                    lines.append(
                        f"{self._role(found)}chosen on folds of the training split: "
                        f"{self._name(found)}, {found.text()}; the validation split had no part "
                        f"in it{mark}"
                    )
                    lines += self._silent_line(found)
        elif len(self.shown) > 1:
            lines.append("nothing was chosen: the highest of these scores would be optimistic")
        if self.chosen or len(self.shown) == 1:
            lines.append(f"by {kind.part}, {self._name(shown)}:")
            lines += output_lines(self.outputs, kind, shown.heads)
        for found in self.left_out:
            lines += found.lines()
        return [*lines, *self.seen, *self._closing()]

    def _role(self, found: PromptScores) -> str:
        """Whether a score is the result of ``--head`` or what it is compared with."""
        if not self.trained.sources:
            return ""
        return "result, through the heads: " if found.trained else "comparison, without a head: "

    def _name(self, found: PromptScores) -> str:
        """A prompt set, as far as needed with ensemble, run, window and number of heads."""
        parts = [found.prompts]
        if len({other.ensemble for other in self.scores}) > 1:
            parts.append(f"({found.ensemble})")
        if self.trained.sources:
            parts.append(f"through {found.trained}" if found.trained else "without a head")
        if not found.trained and len({(other.window, other.stride) for other in self.scores}) > 1:
            parts.append(self._reading(found))
        return " ".join(parts)

    def _reading(self, found: PromptScores) -> str:
        """Which features a sample is the mean of."""
        if found.window == 1:
            return "(whole clips)" if self.unit == "clips" else "(single frames)"
        stride = f", stride {found.stride}" if found.stride > 1 else ""
        return f"(means of windows of {found.window}{stride})"

    def _opening(self) -> list[str]:
        data = self.sweep.data
        split, task = data.splits["validation"], data.task
        left_out = [name for name in task.outputs if name not in self.described]
        without = f"; {self.unit} of {', '.join(left_out)} are left out" if left_out else ""
        kind = kind_of(task)
        # What the names in the list below mean
        meaning = [
            "SET through RUN: texts of a prompt set, compared by the trained heads of a run",
            "SET without a head: texts of the same set, compared with the features as they are",
        ]
        return [
            f"{task.name.upper()} zero-shot on {self.frames:,} validation {self.unit} of "
            f"{split.groups} {data.group_name}, {len(self.described)} {kind.parts}{without}",
            *(meaning if self.trained.sources else ()),
        ]

    def _chance_recalls(self) -> str:
        if self.chance_uar is None:
            return ""
        return f", UAR {short(self.chance_uar)}, WAR {short(self.chance_war)} (most frequent class)"

    def _silent_line(self, chosen: PromptScores) -> list[str]:
        """The score over all classes of the task, where the set does not describe them all."""
        task = self.sweep.data.task
        left_out = [name for name in task.outputs if name not in self.described]
        if not left_out:
            return []
        return [
            f"over all {len(task.outputs)} classes, {', '.join(left_out)} too: macro F1 "
            f"{short(chosen.over_all)}, chance {chance_text(self.sweep.chance)}"
        ]

    def _closing(self) -> list[str]:
        """Words that say nothing to the encoder, caveats, what was written, what comes next."""
        lines = []
        for found in self.scores:
            if found.unknown:
                words = ", ".join(found.unknown[:8]) + (" ..." if len(found.unknown) > 8 else "")
                lines.append(f"the encoder has never seen words of {found.prompts}: {words}")
        caveats = dict.fromkeys((*self.sweep.data.caveats, *self.trained.caveats))
        more = "leave_one_out.csv, " if self.left_out else ""
        wrote = f"wrote {self.folder}: weights/, prompts/, zeroshot.csv, {more}metrics.json"
        marks = [f"caveat: {caveat}" for caveat in caveats]
        following = f"raffect report --runs {shlex.quote(str(self.folder))}"
        notes = dict.fromkeys((*lines, *self.trained.notes))
        return [*notes, *marks, f"{wrote}, heads.csv", f"next: {following}"]


def describe_scores(
    folder: RunFolder,
    sweep: SweepResult,
    judged: Judged,
    described: Sequence[str],
    unknown: Mapping[str, Sequence[str]],
    unit: str,
) -> ZeroshotResult:
    """Scores over the described outputs, which are also written to zeroshot.csv.

    Args:
        folder: The run.
        sweep: Its heads, as `raffect.runs.conclusions.conclude_sweep` describes them.
        judged: All heads.
        described: Outputs that are judged: those with prompts, or under a rule for Other all.
        unknown: Words that the weights never saw, by prompt set.
        unit: ``frames`` or ``clips``.
    """
    task = sweep.data.task
    kind = kind_of(task)
    scores, statistics = score_prompts(judged, task, described, unknown)
    write_csv(folder.path / "zeroshot.csv", [found.row() for found in scores])

    # What they are compared with
    is_classes = isinstance(kind, Multiclass)
    part = replace(task, outputs=tuple(described)) if is_classes else task
    found = statistics[_shown(scores).head]
    total = found[0].sum(0)
    true = total.sum(-1)
    return ZeroshotResult(
        sweep=sweep,
        scores=tuple(scores),
        described=tuple(described),
        frames=int(kind.count_frames(total)),
        unit=unit,
        chance=kind.chance(total, part),
        chance_uar=1 / max((true > 0).sum(), 1) if is_classes else None,
        chance_war=float(true.max() / max(true.sum(), 1)) if is_classes else None,
        outputs=kind.score(found.sum((0, 1)), part),
    )


def _shown(scores: Sequence[PromptScores]) -> PromptScores:
    """The scores that stand for all: those that were chosen on folds, of trained heads if any."""
    trained = [found for found in scores if found.trained and not found.leave_out]
    among = trained or [found for found in scores if not found.trained]
    return next((found for found in among if found.is_chosen), among[0])
