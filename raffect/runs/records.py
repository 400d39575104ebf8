"""What a run folder says of its data and of each head, as records.

``env.json`` holds a `RunRecord`, ``heads/<id>.json`` a `HeadRecord`; those of November 2026 are
read by `raffect.runs.first_format`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le

from raffect.bank.facts import DataFacts
from raffect.datasets.tasks import Task
from raffect.errors import require
from raffect.metrics.scores import Chance, JudgedScore, Snapshot, Status
from raffect.metrics.task_kinds import Kind, kind_of
from raffect.provenance import Provenance
from raffect.recipe import Recipe, digest
from raffect.storage.records import Count, Record

RUNNING, STOPPED = "running", "stopped"
"""Status of a head that a scheduler may still stop, and of one that it has stopped."""


@dataclass(frozen=True, kw_only=True)
class RunRecord(Record):
    """Where a run folder comes from.

    Attributes:
        format: Of the folder.
        command: ``train``, ``tune``, ``zeroshot`` or ``learn-prompts``.
        fingerprint: Names bank, labels and task: equal data, equal fingerprint.
        run: Versions, commit, command and machine.
        data: The data.
    """

    format: Literal[2] = 2
    command: Literal["train", "tune", "zeroshot", "learn-prompts"]
    fingerprint: str
    run: Provenance
    data: DataFacts


@dataclass(frozen=True)
class PlannedHead:
    """One head to train: a recipe, and for cross-validation the fold that it is judged on.

    Attributes:
        recipe: Its settings.
        fold: 0-based fold of the training split; None for a head of the whole split.
        num_folds: How many folds there are; 0 without.
    """

    recipe: Recipe
    fold: int | None = None
    num_folds: int = 0

    @cached_property
    def id(self) -> str:
        """Its name on disk; equal for equal settings."""
        fold = "" if self.fold is None else f"-fold{self.fold + 1}of{self.num_folds}"
        return digest(self.recipe) + fold


@dataclass(frozen=True, kw_only=True)
class Curve(Record):
    """A value an epoch; None where the head had diverged.

    Attributes:
        lr: Learning rate.
        train_loss: Mean training loss.
        validation: Headline score on validation, or on the held-out fold.
    """

    lr: tuple[float, ...] = ()
    train_loss: tuple[float | None, ...] = ()
    validation: tuple[float | None, ...] = ()

    def __post_init__(self) -> None:
        lengths = [len(values) for values in (self.lr, self.train_loss, self.validation)]
        require(len(set(lengths)) == 1, f"curves of {lengths} epochs, expected equal lengths")


@dataclass(frozen=True, kw_only=True)
class TrainedBy(Record):
    """What trained a head.

    Attributes:
        device: Name of the card, or ``cpu``.
        threads: CPU threads of a process.
        num_workers: Processes that shared each batch of frames.
        streamed: Whether features came through Ray Data.
        batch_of_heads: Heads that were trained side by side with it, itself included.
        wall_s: Seconds of training of all of them together.
        git_commit: Of raffect.
        versions: Of packages.
    """

    device: str = "?"
    threads: Count = 0
    num_workers: Annotated[int, Ge(1)] = 1
    streamed: bool = False
    batch_of_heads: Annotated[int, Ge(1)] = 1
    wall_s: Annotated[float, Ge(0)] = 0.0
    git_commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class NamedFile(Record):
    """A file that is named by its content, and its SHA-256; see `raffect.runs.named_files`."""

    name: str
    sha256: str


@dataclass(frozen=True, kw_only=True)
class HeadRecord(Record):
    """All that is known about one head. Once its status is ``done`` it is not trained again.

    Attributes:
        format: Of the run folder.
        id: Names the head: a digest of its recipe, and its fold.
        task: What it predicts.
        recipe: Its settings.
        fold: 0-based fold that judges it; None for a head of the whole training split.
        num_folds: How many folds there are; 0 without.
        fingerprint: Of the data.
        incomplete: What the bank lacked; empty if nothing.
        group_name: What its interval is over.
        status: ``done``; ``diverged``; ``running`` or ``stopped`` under a scheduler.
        note: Why it diverged or was stopped.
        cv_epoch: Epoch that the ``cv`` snapshot keeps; 0 if no fold was trained to the
            end, None without cross-validation.
        trained_by: Device, versions and time.
        curve: A value an epoch.
        scores: By snapshot.
        chance: Scores of predictors that do not look at the frames, on the same frames.
        statistics: Where the counts behind the scores lie; None in records of format 1, which hold
            them, and of heads that never had a sound epoch or were stopped.
        predictions: Where a head of a fold has its predictions for that fold, in its last epoch;
            None where they were not kept.
    """

    format: Literal[1, 2] = 2
    id: str
    task: Task
    recipe: Recipe
    fold: Annotated[int, Ge(0)] | None = None
    num_folds: Annotated[int, Ge(0), Le(1000)] = 0
    fingerprint: str
    incomplete: str = ""
    group_name: str = "videos"
    status: Status
    note: str = ""
    cv_epoch: int | None = None
    trained_by: TrainedBy = field(default_factory=TrainedBy)
    curve: Curve = field(default_factory=Curve)
    scores: dict[Snapshot, JudgedScore] = field(default_factory=dict)
    chance: Chance
    statistics: NamedFile | None = None
    predictions: NamedFile | None = None

    @property
    def kind(self) -> Kind:
        """How the head is scored."""
        return kind_of(self.task)

    @property
    def settings(self) -> dict[str, Any]:
        """The recipe by dotted name."""
        return self.recipe.settings


@dataclass(frozen=True, kw_only=True)
class BatchNote(Record):
    """Heads of a batch under way.

    Attributes:
        heads: By id, the epoch that the ``cv`` snapshot of each keeps; 0 for none.
    """

    heads: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class FoldsNote(Record):
    """Which folds a run chooses epochs on.

    Attributes:
        sha256: Of the fold of each training frame.
        scikit_learn: Version that dealt them.
    """

    sha256: str
    scikit_learn: str


def is_finished(record: HeadRecord | None, cv_epoch: int | None = None) -> bool:
    """Whether a head needs no more training, and keeps the cross-validated epoch."""
    if record is None or record.status == RUNNING:
        return False
    return cv_epoch is None or record.cv_epoch == cv_epoch
