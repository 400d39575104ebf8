"""What a run or a sweep found: tables and metrics.json in its folder, and an object with the same.

The object holds the scores, its `lines` are what the command prints.
"""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raffect.bank.facts import DataFacts
from raffect.errors import require
from raffect.metrics.scores import SNAPSHOTS, Chance, Snapshot
from raffect.metrics.task_kinds import kind_of
from raffect.provenance import describe_run
from raffect.recipe import PLAIN_ERM
from raffect.runs.against_erm import Baselines, difference_of
from raffect.runs.cross_validation import select_by_cv
from raffect.runs.folder import RunFolder
from raffect.runs.group_statistics import in_reading_order
from raffect.runs.main_setting import by_highest, choose_main_setting
from raffect.runs.metrics_file import HeadScores, Metrics, SettingScores, table
from raffect.runs.records import STOPPED, HeadRecord
from raffect.runs.spread import (
    CHOICE,
    LEAVE_OUT,
    NAMES,
    Spread,
    absent_lines,
    chance_text,
    finished,
    group_by_settings,
    is_erm,
    settings_text,
    spread,
    unseen_classes,
    varying,
)
from raffect.runs.tables import head_row, write_tables
from raffect.storage.atomic import write_atomic

_SHOWN_EPOCHS = 6


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What `raffect train` or `raffect tune` found; everything in it is in the run folder too.

    Attributes:
        folder: The run folder.
        metrics: Scores, as in its metrics.json.
        records: All heads of the command, in its order; heads of folds are in the folder alone.
        saved_heads: Whether weights were kept.
    """

    folder: Path
    metrics: Metrics
    records: tuple[HeadRecord, ...]
    saved_heads: bool = True

    @property
    def data(self) -> DataFacts:
        """What it was trained and judged on."""
        return self.metrics.data

    @property
    def chance(self) -> Chance:
        """Scores of predictors that do not look at the frames."""
        return self.metrics.chance

    def _missing(self) -> list[str]:
        return self.data.missing_lines()

    def _absent(self) -> list[str]:
        """Classes that the validation split lacks, and the headline scores over the others."""
        if unseen := unseen_classes(self.records):
            # They have frames, which count for no head that leaves them out
            return [
                f"left out of training and of these scores, which are of seen classes: {unseen}"
            ]
        score = finished(self.records)[0].scores["last"]
        scores = self.metrics.headline.scores.items()
        means = {NAMES[snapshot]: found.mean for snapshot, found in scores}
        return absent_lines(score, means, kind_of(self.data.task), "validation")

    def _closing(self) -> list[str]:
        """The caveat, what was written, and the command that comes next."""
        caveat = [f"caveat: {self.data.caveat}"] if self.data.caveat else []
        weights = "weights/, " if self.saved_heads else ""
        wrote = f"wrote {self.folder}: {weights}metrics.json, heads.csv, results.csv, per_group.csv"
        run = shlex.quote(str(self.folder))
        following = f"raffect report --runs {run}"
        if unseen_classes(self.records):
            bank = shlex.quote(self.data.bank)
            following = (
                f"raffect zeroshot --head {run} --bank {bank} --labels LABELS --task TASK "
                "--out OUT, for the recall of the unseen classes"
            )
        return [*caveat, wrote, f"next: {following}"]


@dataclass(frozen=True, kw_only=True)
class TrainResult(RunResult):
    """Heads of one setting and several seeds."""

    @property
    def scores(self) -> dict[Snapshot, Spread]:
        """Headline score by snapshot: mean, spread over seeds, interval over videos."""
        return self.metrics.headline.scores

    def to_pandas(self) -> Any:
        """One row a head: settings, scores, curve; a pandas DataFrame."""
        return table([head_row(record) for record in self.records])

    def lines(self) -> list[str]:
        """The result as lines of text."""
        facts, kind = self.data, kind_of(self.data.task)
        name = facts.task.name.upper()
        lines = [*_diverged_lines(self.records), *self._missing()]

        # A line a snapshot; heads of several seeds may have several best epochs
        for snapshot, found in self.scores.items():
            epochs = sorted(set(found.epochs))
            more = " ..." if len(epochs) > _SHOWN_EPOCHS else ""
            shown = ", ".join(map(str, epochs[:_SHOWN_EPOCHS])) + more
            score = f"{name} {NAMES[snapshot]:9} {kind.title} {found.text()}"
            lines.append(f"{score}; {CHOICE[snapshot]} (epoch {shown}){facts.incomplete_mark}")
        lines.append(f"{name} chance    {kind.title} {chance_text(self.chance)}")
        return [*lines, *self._absent(), *self._closing()]


@dataclass(frozen=True, kw_only=True)
class SweepResult(RunResult):
    """Heads of many settings."""

    @property
    def settings(self) -> tuple[SettingScores, ...]:
        """Scores of each setting."""
        return self.metrics.settings

    @property
    def best(self) -> SettingScores | None:
        """The setting with the highest val-last; None where settings leave out a class each.

        Chosen on the validation split itself, so optimistic.
        """
        return self.metrics.best

    @property
    def cross_validated(self) -> SettingScores | None:
        """The setting chosen on folds of the training split; None without ``--select cv``."""
        return self.metrics.cross_validated

    def to_pandas(self) -> Any:
        """One row a setting: its scores with their spread; a pandas DataFrame."""
        return table([setting.row() for setting in self.settings])

    def lines(self) -> list[str]:
        """The result as lines of text."""
        # A line a setting
        facts, mark = self.data, self.data.incomplete_mark
        rows = [setting.text() + mark for setting in self.settings]
        lines = [*self._missing(), self._opening(), *rows]

        # What to compare them with, and what the highest score is worth
        if self.metrics.left_out.get(STOPPED):
            lines.append(
                "heads that ASHA stopped had poor scores on the validation split: "
                "means over the others are optimistic"
            )
        lines.append(f"chance  {chance_text(self.chance)}")
        main = self.metrics.headline
        if self.best is None:
            score = f"{kind_of(facts.task).title} {main.scores['last'].text()}"
            lines.append(f"val-last: {score}; {main.chosen_by}{mark}")
        else:
            lines.append(
                f"highest val-last: {settings_text(self.best.settings)}, of {len(self.settings)} "
                f"settings compared on the validation split itself, so optimistic{mark}"
            )

        # The setting that was chosen without the validation split
        if (found := self.cross_validated) is not None:
            score = f"val-cv {kind_of(facts.task).title} {found.scores['cv'].text()}"
            lines.append(
                f"cross-validated:  {settings_text(found.settings)}, {score}; "
                f"neither settings nor epoch saw the validation split{mark}"
            )
        elif self.best and any(record.cv_epoch == 0 for record in self.records):
            lines.append("cross-validated:  nothing, no head was trained to the end on any fold")
        return [*lines, *self._absent(), *self._closing()]

    def _opening(self) -> str:
        """How many heads on how many frames, and how many heads are in no mean."""
        data, left_out = self.data, self.metrics.left_out.items()
        train = data.splits["train"]
        others = "".join(
            f"; {count} {status} and left out, see heads.csv" for status, count in left_out if count
        )
        score = f" by {kind_of(data.task).title}" if not kind_of(data.task).answers else ""
        return (
            f"{data.task.name.upper()}: {len(self.records)} heads on {train.frames:,} "
            f"{data.samples}, judged{score} on {data.size_of('validation', 'other')}{others}"
        )


def conclude_run(folder: RunFolder, facts: DataFacts, records: Sequence[HeadRecord]) -> TrainResult:
    """Write a run's tables and scores.

    Args:
        folder: The run.
        facts: Its data.
        records: Heads of the whole training split.

    Raises:
        RaffectError: If no head was trained to the end.
    """
    # Tables, which show what went wrong if no head was trained to the end
    every = folder.read_records()
    write_tables(folder, every)
    folder.drop_unnamed(every)
    sound = finished(records)
    require(bool(sound), f"no head finished; {'; '.join(_diverged_lines(records))}")

    # Scores of the one setting
    named = _settings(sound[0], ["loss.alpha", "sam.rho"])
    scores = SettingScores(settings=named, scores=_spreads(folder, sound))
    metrics = _describe(facts, records, (scores,))
    write_atomic(folder.path / "metrics.json", metrics.to_bytes())
    return TrainResult(folder=folder.path, metrics=metrics, records=tuple(records))


def conclude_sweep(
    folder: RunFolder,
    facts: DataFacts,
    records: Sequence[HeadRecord],
    axes: Sequence[str],
    saved_heads: bool,
) -> SweepResult:
    """Write a sweep's tables and scores; see `conclude_run`.

    Args:
        folder: The sweep.
        facts: Its data.
        records: Heads of the whole training split.
        axes: Settings that the sweep varies, by dotted name.
        saved_heads: Whether weights were kept.
    """
    # Tables, which show what went wrong if no head was trained to the end
    every = folder.read_records()
    write_tables(folder, every)
    folder.drop_unnamed(every)
    sound = finished(records)
    why = records[0].note if records else "nothing was trained"
    require(bool(sound), f"no head finished: {why}")

    # One row a setting, named by the axes and by the settings in which plain ERM differs
    groups = group_by_settings(sound)
    axes = [name for name in axes if name != "seed"] or ["loss.alpha"]
    differing = {"loss.alpha", "sam.rho", *varying(groups)}
    names = list(axes)
    if any(is_erm(group[0].recipe) for group in groups):
        names += [name for name in PLAIN_ERM if name in differing and name not in axes]
    baselines = Baselines(groups)
    row_of = {
        group[0].id: _row(folder, group, names, baselines.beside(group))
        for group in in_reading_order(groups)
    }
    rows = [row_of[group[0].id] for group in groups]

    # The best setting, the one that cross-validation chose, and the one that stands for the sweep
    selected = select_by_cv(folder, groups, every)
    main = choose_main_setting(folder, groups, selected)
    metrics = _describe(facts, records, tuple(rows))
    if main.rule == "classes":
        # Their scores are of different classes each, so that none is the best
        together = _row(folder, main.heads, names, None)
        named = replace(together, settings=together.settings | {LEAVE_OUT: "each"}, erm=False)
        metrics = replace(metrics, main=replace(named, chosen_by=main.why))
    else:
        best = max(rows, key=lambda row: row.scores["last"].mean)
        best = replace(best, chosen_by=by_highest(len(rows)))
        named = replace(row_of[main.heads[0].id], chosen_by=main.why)
        metrics = replace(metrics, best=best, main=named)
        if selected is not None:
            row = replace(row_of[selected[0].id], chosen_by="folds of the training split")
            metrics = replace(metrics, cross_validated=row)
    write_atomic(folder.path / "metrics.json", metrics.to_bytes())
    return SweepResult(
        folder=folder.path, metrics=metrics, records=tuple(records), saved_heads=saved_heads
    )


def _describe(
    facts: DataFacts,
    records: Sequence[HeadRecord],
    settings: tuple[SettingScores, ...],
) -> Metrics:
    statuses = Counter(record.status for record in records)
    heads = {
        record.id: HeadScores(seed=record.recipe.seed, status=record.status, scores=record.scores)
        for record in records
    }
    return Metrics(
        run=describe_run(),
        data=facts,
        chance=finished(records)[0].chance,
        settings=settings,
        left_out={status: statuses[status] for status in ("diverged", STOPPED)},
        heads=heads,
    )


def _row(
    folder: RunFolder,
    group: Sequence[HeadRecord],
    names: Sequence[str],
    erm: Sequence[HeadRecord] | None,
) -> SettingScores:
    counts, erm_counts = (
        [folder.statistics_of(record, "last") for record in heads] for heads in (group, erm or ())
    )
    return SettingScores(
        settings=_settings(group[0], names),
        scores=_spreads(folder, group),
        erm=is_erm(group[0].recipe),
        against_erm=difference_of(counts, erm_counts, group[0].kind) if erm else None,
    )


def _settings(record: HeadRecord, names: Sequence[str]) -> dict[str, Any]:
    return {name: record.settings[name] for name in names}


def _spreads(folder: RunFolder, group: Sequence[HeadRecord]) -> dict[Snapshot, Spread]:
    return {name: found for name in SNAPSHOTS if (found := spread(folder, group, name))}


def _diverged_lines(records: Sequence[HeadRecord]) -> list[str]:
    return [
        f"diverged: head {record.id} (seed {record.recipe.seed}): {record.note}"
        for record in records
        if record.status == "diverged"
    ]
