"""A run folder as a report reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from raffect.bank.facts import DataFacts
from raffect.bank.groups import are_blocks
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.metrics.scores import Snapshot
from raffect.metrics.task_kinds import Kind, kind_of
from raffect.metrics.worst import WorstCases, find_worst, tail_difference
from raffect.runs.against_erm import Baselines, Difference, difference_of
from raffect.runs.cross_validation import select_by_cv
from raffect.runs.folder import RunFolder
from raffect.runs.main_setting import MainSetting, choose_main_setting
from raffect.runs.records import STOPPED, HeadRecord, RunRecord
from raffect.runs.spread import (
    LEAVE_OUT,
    Spread,
    finished,
    group_by_settings,
    is_erm,
    mean_score,
    spread,
    value_text,
    varying,
)

PAPER_ALPHA = 0.3
MOST_SETTINGS = 40
"""Settings of a sweep that tables and pictures show, the main one and plain ERM beside them."""

_NAMES_OF_ONE = {False: ["loss.alpha", "sam.rho"], True: ["text.prompts"]}
"""Settings that name a run of one setting: of heads that were trained, and of zero-shot heads."""

Heads = Sequence[HeadRecord]
"""Heads that differ in their seed alone."""


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        name: What tells it from other runs of the report.
        folder: The folder.
        record: Versions, machine and facts of the data.
        records: All heads.
        groups: Heads trained to the end, together by settings.
    """

    name: str
    folder: RunFolder
    record: RunRecord
    records: Sequence[HeadRecord]
    groups: Sequence[Heads]
    _spreads: dict[tuple[tuple[str, ...], Snapshot], Spread | None] = field(
        default_factory=dict, repr=False
    )
    _differences: dict[tuple[tuple[str, ...], ...], Difference | None] = field(
        default_factory=dict, repr=False
    )
    _worst: dict[tuple[tuple[str, ...], Snapshot], WorstCases | None] = field(
        default_factory=dict, repr=False
    )

    @property
    def data(self) -> DataFacts:
        """What its heads were trained and scored on."""
        return self.record.data

    @property
    def task(self) -> Task:
        """What its heads predict."""
        return self.data.task

    @property
    def kind(self) -> Kind:
        """How they are scored."""
        return kind_of(self.task)

    @property
    def title(self) -> str:
        """How tables and pictures call the task."""
        return self.task.name.upper()

    @property
    def mark(self) -> str:
        """Caveats that every picture of it must show, as lines below a title."""
        caveat = f"[{self.data.caveat}]" if self.data.caveat else ""
        return "".join(f"\n{line}" for line in (caveat, self.data.incomplete_mark.strip()) if line)

    @property
    def has_stopped(self) -> bool:
        """Whether a scheduler stopped heads."""
        return any(record.status == STOPPED for record in self.records)

    @property
    def is_trained(self) -> bool:
        """Whether its heads have epochs: heads made of texts have none."""
        return self.record.command != "zeroshot"

    @property
    def has_folds(self) -> bool:
        """Whether epochs were cross-validated."""
        return any(record.fold is not None for record in self.records)

    @cached_property
    def varying(self) -> list[str]:
        """Settings, but for the seed, in which its groups differ."""
        return varying(self.groups)

    @property
    def shown_settings(self) -> list[str]:
        """Settings that name its groups: those that vary, or else alpha and rho."""
        return self.varying or _NAMES_OF_ONE[self.record.command == "zeroshot"]

    @cached_property
    def main(self) -> MainSetting:
        """The setting that stands for it."""
        selected = select_by_cv(self.folder, self.groups, self.records)
        return choose_main_setting(self.folder, self.groups, selected)

    @cached_property
    def _baselines(self) -> Baselines[HeadRecord]:
        return Baselines(self.groups)

    @cached_property
    def erm(self) -> Heads | None:
        """Plain ERM to compare the main setting with: itself, or that beside it, if any."""
        main = self.main.heads
        return main if is_erm(main[0].recipe) else self._baselines.beside(main)

    @cached_property
    def shown_groups(self) -> list[Heads]:
        """Settings to show: all, or of too many those with the highest val-last."""
        if len(self.groups) <= MOST_SETTINGS:
            return list(self.groups)
        ranked = sorted(self.groups, key=lambda heads: -mean_score(heads, "last"))
        marked = (self.main.heads[0].id, self.erm[0].id if self.erm else "")
        others = [heads for heads in ranked[MOST_SETTINGS:] if heads[0].id in marked]
        return ranked[:MOST_SETTINGS] + others

    def spread(self, heads: Heads, snapshot: Snapshot) -> Spread | None:
        """Mean, spread and interval of a snapshot's score; computed once for each setting."""
        key = (_names(heads), snapshot)
        if key not in self._spreads:
            self._spreads[key] = spread(self.folder, heads, snapshot)
        return self._spreads[key]

    def worst(self, heads: Heads, snapshot: Snapshot) -> WorstCases | None:
        """Worst output and worst videos of a setting; computed once.

        Returns:
            None without the statistics of all heads.
        """
        key = (_names(heads), snapshot)
        if key not in self._worst:
            found = self._statistics(heads, snapshot)
            self._worst[key] = None if found is None else self._find_worst(heads, found)
        return self._worst[key]

    @cached_property
    def worst_by_chance(self) -> WorstCases | None:
        """The same of the predictor that scores the chance level; None without statistics."""
        heads = self.main.heads[:1]
        found = self._statistics(heads, "last")
        if found is None:
            return None
        return self._find_worst(heads, self.kind.statistics_by_chance(found[0])[None])

    def tail_difference(self, other: Run, baseline: Heads) -> Difference | None:
        """Difference of the main setting to heads of a run on equal data, on their worst videos.

        Returns:
            None without the statistics of all of them, and without a score of worst videos.
        """
        worst, found = (
            self.worst(self.main.heads, "last"),
            self._statistics(self.main.heads, "last"),
        )
        others = other._statistics(baseline, "last")
        if worst is None or worst.tail is None or found is None or others is None:
            return None
        mean, interval = tail_difference(found, others, self.kind)
        return Difference(mean=mean, interval_95=interval)

    def _statistics(self, heads: Heads, snapshot: Snapshot) -> np.ndarray | None:
        """Of heads by group, shape (heads, groups, A, B); None without those of all."""
        found = [self.folder.statistics_of(record, snapshot) for record in heads]
        known = [counts for counts in found if counts is not None]
        # Worst cases are of heads that were judged on the same samples
        alike = len({head.recipe.loss.leave_out for head in heads}) == 1
        return np.stack(known) if alike and len(known) == len(heads) else None

    def _find_worst(self, heads: Heads, statistics: np.ndarray) -> WorstCases:
        names = self.folder.read_statistics(heads[0])
        assert names is not None  # its statistics come from there
        by_group = not are_blocks(names.groups)
        return find_worst(statistics, self.kind, self.task.outputs, by_group=by_group)

    def against_erm(self, heads: Heads) -> Difference | None:
        """Difference of val-last to the plain ERM beside a setting; None without."""
        erm = self._baselines.beside(heads)
        return self.difference(heads, self, erm) if erm else None

    def difference(self, heads: Heads, other: Run, baseline: Heads) -> Difference | None:
        """Difference of val-last to heads of a run on equal data; computed once.

        Returns:
            None without the statistics of all of them.
        """
        key = (_names(heads), _names(baseline))
        if key not in self._differences:
            first, second = (
                [run.folder.statistics_of(record, "last") for record in records]
                for run, records in ((self, heads), (other, baseline))
            )
            self._differences[key] = difference_of(first, second, self.kind)
        return self._differences[key]

    def describe(self, heads: Heads) -> str:
        """A setting's values, such as ``alpha 0.3, rho 0.05``."""
        settings = heads[0].settings
        if len({head.recipe.loss.leave_out for head in heads}) > 1:
            settings = settings | {LEAVE_OUT: "each"}
        named = [(short_name(name), settings[name]) for name in self.shown_settings]
        return ", ".join(f"{name} {value_text(value)}" for name, value in named)


def _names(heads: Heads) -> tuple[str, ...]:
    """What tells heads from others; a setting's first head is also that of all heads together."""
    return tuple(record.id for record in heads)


def find_erm(run: Run, runs: Sequence[Run]) -> tuple[Run, Heads] | None:
    """The plain ERM to compare a run's main setting with, and the run that it is of.

    It is the run's own, or else that of the first of the others on equal data that has one.
    """
    alike = [other for other in runs if other.record.fingerprint == run.record.fingerprint]
    candidates = ((one, one.erm) for one in (run, *alike))
    return next(((one, heads) for one, heads in candidates if heads is not None), None)


def main_against_erm(run: Run, runs: Sequence[Run]) -> Difference | None:
    """Difference of the main setting's val-last to `find_erm`; None without, and for ERM itself."""
    found, heads = find_erm(run, runs), run.main.heads
    if found is None or found[1] is heads:
        return None
    return run.difference(heads, *found)


def short_name(setting: str) -> str:
    """``loss.alpha`` -> ``alpha``."""
    return setting.rpartition(".")[2]


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Read run folders.

    Raises:
        RaffectError: If one is not a run folder, or nothing in it is finished.
    """
    folders = [path.absolute() for path in paths]
    return [_read_run(*both) for both in zip(name_runs(folders), folders, strict=True)]


def _read_run(name: str, path: Path) -> Run:
    folder = RunFolder(path)
    record, records = folder.read_run(), folder.read_records()

    # Scores are of heads that were trained to the end
    done = finished(records)
    if not done:
        raise RaffectError(
            f"{path}: no head is finished; run the same `raffect train` or `raffect tune` again"
        )
    return Run(name, folder, record, records, group_by_settings(done))


def name_runs(paths: Sequence[Path]) -> list[str]:
    """As much of the end of each path as tells it from the others."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return [str(path) for path in paths]
