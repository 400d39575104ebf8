"""A run folder as a report reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from raffect.bank.facts import DataFacts
from raffect.datasets.tasks import Task
from raffect.errors import RaffectError
from raffect.metrics.scores import Snapshot
from raffect.metrics.task_kinds import Kind, kind_of
from raffect.runs.cross_validation import select_by_cv
from raffect.runs.folder import RunFolder
from raffect.runs.records import STOPPED, HeadRecord, RunRecord
from raffect.runs.spread import (
    Spread,
    finished,
    group_by_settings,
    is_erm,
    spread,
    varying,
)

PAPER_ALPHA = 0.3


@dataclass(frozen=True)
class Run:
    """A run folder.

    Attributes:
        folder: The folder.
        record: Versions, machine and facts of the data.
        records: All heads.
        groups: Heads trained to the end, together by settings.
    """

    folder: RunFolder
    record: RunRecord
    records: Sequence[HeadRecord]
    groups: list[list[HeadRecord]] = field(default_factory=list)

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
    def has_folds(self) -> bool:
        """Whether epochs were cross-validated."""
        return any(record.fold is not None for record in self.records)

    @cached_property
    def varying(self) -> list[str]:
        """Settings, but for the seed, in which its groups differ."""
        return varying(self.groups)

    @cached_property
    def headline(self) -> list[HeadRecord]:
        """Heads of the settings that stand for the run.

        Those that cross-validation chose, else the paper's alpha where it is among them, else the
        first.
        """
        if (best := select_by_cv(self.folder, self.groups, self.records)) is not None:
            return list(best)

        # Nothing was cross-validated
        at_paper = [group for group in self.groups if _is_at_paper(group[0])]
        return (at_paper or self.groups)[0]

    def erm(self) -> list[HeadRecord] | None:
        """Heads of plain empirical risk minimisation, if there are any."""
        return next((group for group in self.groups if is_erm(group[0].recipe)), None)

    def spread(self, records: Sequence[HeadRecord], snapshot: Snapshot) -> Spread | None:
        """Mean and spread of a snapshot's score."""
        return spread(self.folder, records, snapshot)


def read_run(path: Path) -> Run:
    """Read a run folder.

    Raises:
        RaffectError: If it is not one, or nothing in it is finished.
    """
    folder = RunFolder(path.absolute())
    record, records = folder.read_run(), folder.read_records()

    # Scores are of heads that were trained to the end
    done = finished(records)
    if not done:
        raise RaffectError(
            f"{path}: no head is finished; run the same `raffect train` or `raffect tune` again"
        )
    return Run(folder, record, records, group_by_settings(done))


def _is_at_paper(record: HeadRecord) -> bool:
    return record.recipe.loss.alpha == PAPER_ALPHA and record.recipe.sam.rho > 0
