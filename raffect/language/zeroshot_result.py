"""What `raffect zeroshot` found: UAR, WAR and macro F1 over the classes that have prompts."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from raffect.metrics.intervals import Headline
from raffect.metrics.recalls import only, uar, war
from raffect.metrics.scores import Chance, Score
from raffect.metrics.task_kinds import Multiclass, kind_of
from raffect.runs.conclusions import SweepResult
from raffect.runs.cross_validation import choose_epoch
from raffect.runs.folder import RunFolder
from raffect.runs.metrics_file import table
from raffect.runs.records import HeadRecord
from raffect.runs.spread import absent_lines, chance_text, headline_text, output_lines, short
from raffect.storage.records import Record
from raffect.storage.tables import write_csv


class _Uar(Multiclass):
    """Classes scored by UAR, for its interval."""

    def headline(self, statistics: np.ndarray) -> np.ndarray:
        return uar(statistics)


class _War(Multiclass):
    """Classes scored by WAR, for its interval."""

    def headline(self, statistics: np.ndarray) -> np.ndarray:
        return war(statistics)


@dataclass(frozen=True, kw_only=True)
class PromptScores(Record):
    """Scores of one prompt set on the validation split, over the outputs that it describes.

    Attributes:
        prompts: Name of the set.
        ensemble: How its prompts go together.
        head: Id of its head in the run folder.
        macro_f1: Mean F1 over the outputs, present or not.
        uar: Mean recall of the classes that occur; None for labels.
        war: Accuracy; None for labels.
        over_all: Macro F1 over all outputs of the task, as evaluate and report have it.
        held_out: Macro F1 over all outputs on the folds of the training split together; None
            without.
        is_chosen: Whether `held_out` is the highest.
        unknown: Words of its prompts that the weights never saw.
    """

    prompts: str
    ensemble: str
    head: str
    macro_f1: Headline
    uar: Headline | None
    war: Headline | None
    over_all: float
    held_out: float | None
    is_chosen: bool
    unknown: tuple[str, ...] = ()

    def row(self) -> dict[str, Any]:
        """One row of zeroshot.csv."""
        row: dict[str, Any] = {
            "prompts": self.prompts,
            "ensemble": self.ensemble,
            "chosen_on_folds": self.is_chosen,
            "held_out_macro_f1": self.held_out,
            "macro_f1_over_all": self.over_all,
        }
        for name in ("macro_f1", "uar", "war"):
            found = getattr(self, name)
            low, high = (found.interval_95 if found else None) or (None, None)
            score = found.score if found else None
            row |= {name: score, f"{name}.low": low, f"{name}.high": high}
        return row | {"head": self.head}


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

    @property
    def folder(self) -> Path:
        """The run folder."""
        return self.sweep.folder

    @property
    def chosen(self) -> PromptScores | None:
        """The prompt set that was chosen on folds of the training split; None without folds."""
        return next((found for found in self.scores if found.is_chosen), None)

    def to_pandas(self) -> Any:
        """One row a prompt set; a pandas DataFrame."""
        return table([found.row() for found in self.scores])

    def lines(self) -> list[str]:
        """The result as lines of text."""
        data, kind = self.sweep.data, kind_of(self.sweep.data.task)
        mark = data.incomplete_mark
        lines = [*data.missing_lines(), *self._opening()]

        # Each set, the chance level, and the one that was chosen without these scores
        width = max(len(self._name(found)) for found in self.scores)
        count = len(data.task.outputs)
        over = f" (all {count} {kind.parts})" if count > len(self.described) else ""
        for found in self.scores:
            held_out = f"  on folds{over} {short(found.held_out)}" if self.chosen else ""
            lines.append(f"{self._name(found):{width}}  {_scores_text(found)}{held_out}{mark}")
        lines.append(f"chance  macro F1 {chance_text(self.chance)}{self._chance_recalls()}")
        means = [found.macro_f1.score for found in self.scores]
        if len(means) > 1:
            spread = f"from {short(min(means))} to {short(max(means))}"
            lines.append(f"macro F1 of these {len(means)} goes {spread}")
        shown = self.chosen or self.scores[0]
        name = f"macro F1 of {self._name(shown)}"
        lines += absent_lines(self.outputs, {name: shown.macro_f1.score}, kind, "validation")
        if (chosen := self.chosen) is not None:
            lines.append(
                f"chosen on folds of the training split: {self._name(chosen)}, "
                f"{_scores_text(chosen)}; the validation split had no part in it{mark}"
            )
            lines += self._silent_line(chosen)
        elif len(self.scores) > 1:
            lines.append("nothing was chosen: the highest of these scores would be optimistic")
        if self.chosen or len(self.scores) == 1:
            lines += output_lines(self.outputs, kind)
        return [*lines, *self._closing()]

    def _name(self, found: PromptScores) -> str:
        several = len({other.ensemble for other in self.scores}) > 1
        return f"{found.prompts} ({found.ensemble})" if several else found.prompts

    def _opening(self) -> list[str]:
        data = self.sweep.data
        split, task = data.splits["validation"], data.task
        left_out = [name for name in task.outputs if name not in self.described]
        without = f"; {self.unit} of {', '.join(left_out)} are left out" if left_out else ""
        kind = kind_of(task)
        return [
            f"{task.name.upper()} zero-shot on {self.frames:,} validation {self.unit} of "
            f"{split.groups} {data.group_name}, {len(self.described)} {kind.parts}{without}"
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
        caveats = [f"caveat: {caveat}" for caveat in self.sweep.data.caveats]
        wrote = f"wrote {self.folder}: weights/, prompts/, zeroshot.csv, metrics.json, heads.csv"
        following = f"raffect report --runs {shlex.quote(str(self.folder))}"
        return [*dict.fromkeys(lines), *caveats, wrote, f"next: {following}"]


def describe_scores(
    folder: RunFolder,
    sweep: SweepResult,
    statistics: Mapping[str, np.ndarray],
    described: Sequence[str],
    unknown: Mapping[str, Sequence[str]],
    unit: str,
) -> ZeroshotResult:
    """Scores over the described outputs, which are also written to zeroshot.csv.

    Args:
        folder: The run.
        sweep: Its heads, as `raffect.runs.conclusions.conclude_sweep` describes them.
        statistics: By head and group on the validation split, shape (groups, A, B).
        described: Outputs that are judged: those with prompts, or under a rule for Other all.
        unknown: Words that the weights never saw, by prompt set.
        unit: ``frames`` or ``clips``.
    """
    # Classes with prompts alone; labels all have some
    task = sweep.data.task
    kind = kind_of(task)
    kept = [k for k, name in enumerate(task.outputs) if name in described]
    is_classes = isinstance(kind, Multiclass)
    parts = {name: only(found, kept) if is_classes else found for name, found in statistics.items()}

    # Every head
    main = sweep.cross_validated
    own = main.settings if main is not None else None
    held_out = _held_out(folder)
    scores = []
    for record in sweep.records:
        found, text = parts[record.id], record.recipe.text
        is_chosen = own is not None and all(record.settings[name] == own[name] for name in own)
        scores.append(
            PromptScores(
                prompts=text.prompts,
                ensemble=text.ensemble,
                head=record.id,
                macro_f1=Headline.of(found, kind),
                uar=Headline.of(found, _Uar()) if is_classes else None,
                war=Headline.of(found, _War()) if is_classes else None,
                over_all=record.scores["last"].headline,
                held_out=held_out.get(record.id),
                is_chosen=is_chosen,
                unknown=tuple(unknown.get(text.prompts, ())),
            )
        )
    write_csv(folder.path / "zeroshot.csv", [found.row() for found in scores])

    # What they are compared with
    shown = next((found.head for found in scores if found.is_chosen), scores[0].head)
    total, part = parts[shown].sum(0), replace(task, outputs=tuple(described))
    part = part if is_classes else task
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
        outputs=kind.score(total, part),
    )


def _held_out(folder: RunFolder) -> dict[str, float]:
    """Headline score on all folds together, by id of the head of the whole split."""
    by_head: dict[str, list[HeadRecord]] = {}
    for record in folder.read_records():
        if record.fold is not None:
            by_head.setdefault(record.id.split("-")[0], []).append(record)
    return {name: choose_epoch(folder, records)[1] for name, records in by_head.items()}


def _scores_text(found: PromptScores) -> str:
    parts = [("macro F1", found.macro_f1), ("UAR", found.uar), ("WAR", found.war)]
    return "  ".join(f"{name} {headline_text(score)}" for name, score in parts if score is not None)
