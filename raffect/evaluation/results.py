"""What `raffect evaluate` finds: scores of the heads of one task, and of several together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from raffect.bank.facts import DataFacts
from raffect.datasets.tasks import Task
from raffect.evaluation.common_outputs import CommonOutputs
from raffect.evaluation.postprocessed import Postprocessed
from raffect.metrics.intervals import Interval
from raffect.metrics.scores import Chance, JudgedScore, Snapshot
from raffect.metrics.task_kinds import kind_of
from raffect.metrics.worst import WorstCases
from raffect.provenance import Provenance
from raffect.recipe import Recipe
from raffect.runs.metrics_file import SettingScores, table
from raffect.runs.spread import (
    absent_lines,
    chance_text,
    output_lines,
    settings_text,
    short,
    unseen_classes,
)
from raffect.runs.tables import group_rows
from raffect.runs.worst import worst_text
from raffect.storage.atomic import write_atomic
from raffect.storage.records import Record
from raffect.storage.tables import write_csv

SUM_FILE = "sum.json"


@dataclass(frozen=True, kw_only=True)
class EvaluatedHead(Record):
    """One head with its score.

    Attributes:
        folder: Its folder.
        id: Its name in its run.
        recipe: Its settings.
        incomplete: What was missing in the bank that it was trained on; empty if nothing.
        trained_on: Fingerprint of the data that it was trained on, which with ``id`` names it
            wherever its folder lies; empty in files older than this field.
        score: On the frames of the evaluation.
    """

    folder: str
    id: str
    recipe: Recipe
    incomplete: str = ""
    trained_on: str = ""
    score: JudgedScore


@dataclass(frozen=True, kw_only=True)
class Evaluation(Record):
    """Scores of the heads of one task: a ``metrics.json`` of `raffect evaluate`.

    Attributes:
        format: Of this file.
        run: Versions, commit, command and machine.
        data: What the heads were scored on.
        split: Its split.
        snapshot: Which one of each head.
        chance: Scores of predictors that never look at a face.
        heads: One by one.
        settings: Together by settings, with spread over seeds.
        worst_by_chance: Worst output and worst videos of the predictor of the chance level; None
            in files older than this field.
        postprocessed: The heads together, before and after decision rules; None without rules.
        common: What was judged where outputs of heads and labels were matched by name; ``data`` is
            then of these outputs and their samples alone. None where all had to be the same.
        caveats: Of heads and data: what the scores must not be taken for.
    """

    format: Literal[2] = 2
    run: Provenance
    data: DataFacts
    split: str
    snapshot: Snapshot
    chance: Chance
    heads: tuple[EvaluatedHead, ...]
    settings: tuple[SettingScores, ...]
    worst_by_chance: WorstCases | None = None
    postprocessed: Postprocessed | None = None
    common: CommonOutputs | None = None
    caveats: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaskResult:
    """An evaluation, and the statistics that it was computed from.

    Attributes:
        evaluation: All scores.
        statistics: Of each head and group, shape (heads, groups, A, B).
        groups: Names of the groups: videos, subjects or pictures, or blocks of them.
        notes: What was done with heads that diverged.
    """

    evaluation: Evaluation
    statistics: np.ndarray
    groups: Sequence[str]
    notes: tuple[str, ...] = ()

    @property
    def task(self) -> Task:
        """What the heads predict."""
        return self.evaluation.data.task

    @property
    def heads(self) -> tuple[EvaluatedHead, ...]:
        """The heads, one by one."""
        return self.evaluation.heads

    @property
    def settings(self) -> tuple[SettingScores, ...]:
        """The heads together by settings."""
        return self.evaluation.settings

    def rows(self) -> list[dict[str, Any]]:
        """A row a head: its settings and scores."""
        return [
            {"id": head.id, "folder": head.folder, "epoch": head.score.epoch}
            | head.recipe.settings
            | head.score.metrics
            | dict(zip(("low", "high"), head.score.interval_95 or (None, None), strict=True))
            for head in self.heads
        ]

    def lines(self) -> list[str]:
        """The result as lines of text."""
        found, facts = self.evaluation, self.evaluation.data
        kind = kind_of(facts.task)
        lines = [
            *self.notes,
            *facts.missing_lines(),
            f"{facts.task.name.upper()} {found.split}: {facts.size_of(found.split)}; "
            f"snapshot {found.snapshot} of {len(found.heads)} head(s)",
        ]
        if found.common is not None:
            lines += found.common.lines(kind.parts, facts.samples)

        # Scores, and what they must not be taken for
        lacking = [h for h in found.heads if h.recipe.text.head and h.recipe.loss.leave_out]
        if lacking:
            lines.append(
                f"{len(lacking)} heads were trained without one class each, whose recall is their "
                "result: see the run's leave_one_out.csv; below is what has no head"
            )
        shown = [one for one in found.settings if not (lacking and one.settings.get("text.head"))]
        for setting in shown:
            name, score = settings_text(setting.settings), setting.scores[found.snapshot].text()
            lines.append(f"{name}: {kind.title} {score}{setting.difference}{facts.incomplete_mark}")
            if setting.worst is not None:
                lines.append(f"  {worst_text(setting.worst, kind, facts.group_name)}")
        if found.postprocessed is not None:
            lines += found.postprocessed.lines(kind, found.split)
        lines.append(f"chance: {chance_text(found.chance)}")
        if found.worst_by_chance is not None:
            lines.append(f"  {worst_text(found.worst_by_chance, kind, facts.group_name)}")
        means = {
            settings_text(setting.settings): setting.scores[found.snapshot].mean
            for setting in shown
        }
        if unseen := unseen_classes(found.heads):
            lines.append(f"left out of these scores, which are of seen classes: {unseen}")
        else:
            lines += absent_lines(found.heads[0].score, means, kind, found.split)
        if found.split == "train":
            lines.append("these frames were trained on: this is no measure of how well a head does")
        elif found.snapshot == "best":
            trained = "the validation split of the training run"
            lines.append(f"epoch chosen on {trained}: optimistic there")

        # Scores of each output, for one setting alone, and remaining caveats
        if len(found.settings) == 1:
            score = kind.score(self.statistics.sum((0, 1)), facts.task)
            lines += output_lines(score, kind, len(self.statistics))
        return [*lines, *(f"caveat: {caveat}" for caveat in found.caveats)]

    def write(self, folder: Path) -> None:
        """Write metrics.json and per_group.csv."""
        write_atomic(folder / "metrics.json", self.evaluation.to_bytes())
        rows = [
            {"id": head.id, **row}
            for head, found in zip(self.heads, self.statistics, strict=True)
            for row in group_rows(kind_of(self.task), found, self.groups)
        ]
        write_csv(folder / "per_group.csv", rows)


@dataclass(frozen=True, kw_only=True)
class SumOfTasks(Record):
    """The score of ABAW's multi-task challenge: the sum of the headline scores of its tasks.

    Attributes:
        tasks: Mean headline score over the heads of each task, by the task's name.
        mean: Their sum.
        sd: Standard deviation of the sum of heads that are drawn one from each task: the root of
            the summed variances over seeds. None if a task has one head.
        interval_95: Of ``mean``, over the union of the tasks' videos; None without.
        groups: Videos of that union.
        group_name: What they are.
        chance: Sum of the chance levels.
        caveats: What it must not be taken for.
    """

    tasks: dict[str, float]
    mean: float
    sd: float | None
    interval_95: Interval | None
    groups: int
    group_name: str
    chance: float
    caveats: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """The score, what it is the sum of, and chance."""
        names = " + ".join(f"{name.upper()} {short(mean)}" for name, mean in self.tasks.items())
        sd = f" ± {short(self.sd)} over seeds" if self.sd is not None else ""
        ends = ""
        if self.interval_95 is not None:
            low, high = self.interval_95
            over = f"{self.groups} {self.group_name} of all tasks together"
            ends = f", [{short(low)}, {short(high)}] over {over}"
        return [
            f"sum, the score of ABAW's multi-task challenge: {short(self.mean)}{sd}{ends}",
            f"  {names}; chance: {short(self.chance)}",
        ]


@dataclass(frozen=True, kw_only=True)
class EvaluateResult:
    """Results of `raffect evaluate`.

    Attributes:
        tasks: One a run.
        total: The sum of the scores, if the runs are those of a multi-task challenge.
        notes: Why there is no sum of such runs.
        out: Folder that all was written to; None if it was not written.
    """

    tasks: tuple[TaskResult, ...]
    total: SumOfTasks | None = None
    notes: tuple[str, ...] = ()
    out: Path | None = None

    @property
    def heads(self) -> tuple[EvaluatedHead, ...]:
        """The heads of all tasks, one by one."""
        return tuple(head for task in self.tasks for head in task.heads)

    @property
    def settings(self) -> tuple[SettingScores, ...]:
        """The heads of each task together by settings."""
        return tuple(setting for task in self.tasks for setting in task.settings)

    def to_pandas(self) -> Any:
        """One row a head: its settings and scores; a pandas DataFrame."""
        rows = [row for task in self.tasks for row in task.rows()]
        names = dict.fromkeys(name for row in rows for name in row)
        return table([{name: row.get(name) for name in names} for row in rows])

    def lines(self) -> list[str]:
        """The results as lines of text, tasks with an empty line between."""
        lines = [line for task in self.tasks for line in ("", *task.lines())][1:]
        if self.total is not None:
            lines += ["", *self.total.lines()]
        lines += self.notes
        if self.out is None:
            return lines
        several = f" of each task in {self.out}/TASK" if len(self.tasks) > 1 else ""
        total = f", {SUM_FILE}" if self.total is not None else ""
        return [*lines, f"wrote {self.out}: metrics.json, per_group.csv{several}{total}"]

    def write(self, folder: Path) -> None:
        """Write the results: one task's into the folder itself, several into a folder of each."""
        for task in self.tasks:
            task.write(folder / task.task.name if len(self.tasks) > 1 else folder)
        if self.total is not None:
            write_atomic(folder / SUM_FILE, self.total.to_bytes())
