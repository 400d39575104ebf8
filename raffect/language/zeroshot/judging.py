"""Zero-shot heads judged: on held-out folds of the training split, and on the validation split."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch

from raffect.bank.features import FeatureIndex
from raffect.heads.fit import count
from raffect.heads.loss_kinds import loss_kind
from raffect.heads.samples import Samples
from raffect.language.classifiers import Classifier, build_batch, choose_thresholds
from raffect.language.sources import Source
from raffect.metrics.intervals import judge
from raffect.metrics.scores import Snapshot
from raffect.metrics.task_kinds import kind_of
from raffect.provenance import git_commit, versions
from raffect.recipe import HeadConfig, Recipe
from raffect.runs.data import Dataset, targets_of
from raffect.runs.folder import RunFolder
from raffect.runs.group_statistics import Statistics
from raffect.runs.read_samples import read_rows
from raffect.runs.records import Curve, HeadRecord, PlannedHead, TrainedBy
from raffect.runs.saved_heads import save_snapshot

_EPOCH = 1
"""Heads that are not trained here have one epoch."""


@dataclass(frozen=True)
class Group:
    """Heads of one source: one for each prompt set and ensemble.

    Attributes:
        source: What gives vectors.
        recipes: One a head.
        classifiers: Likewise; without a threshold yet.
        keeps_folds: Whether folds are recorded, by which the setting that stands for a run is
            chosen; not for what only stands beside.
    """

    source: Source
    recipes: Sequence[Recipe]
    classifiers: Sequence[Classifier]
    keeps_folds: bool = True


@dataclass(frozen=True)
class Judged:
    """What became of the heads of some groups.

    Attributes:
        records: Of the whole training split, in order.
        statistics: By head and group on the validation split, shape (groups, A, B).
        on_folds: By head, of all held-out folds together, shape (A, B); empty without folds.
    """

    records: list[HeadRecord] = field(default_factory=list)
    statistics: dict[str, np.ndarray] = field(default_factory=dict)
    on_folds: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Judge:
    """Judges and records heads.

    Attributes:
        dataset: The data.
        folder: Where results go.
        device: Where to compute.
        folds: Of the training split; 0 judges on none.
        has_threshold: Whether an undescribed class is predicted below a threshold.
    """

    dataset: Dataset
    folder: RunFolder
    device: torch.device
    folds: int
    has_threshold: bool

    def run(self, group: Group, rows: Mapping[str, Rows], found: Judged) -> None:
        """Judge the heads of a group.

        Args:
            group: The heads.
            rows: Samples by split, read as the group's source reads them.
            found: Gets the results.
        """
        seen = {split: part.embed(group.source) for split, part in rows.items()}
        train = seen.get("train")
        if train is not None:
            self._run_folds(group, train, found)
        classifiers = self._finish(group, train)
        heads = [PlannedHead(recipe) for recipe in group.recipes]
        counts = self._count(group, classifiers, seen["validation"])
        found.records.extend(self._record(heads, counts, seen["validation"], group, classifiers))
        found.statistics.update(_by_id(heads, counts))

    def _run_folds(self, group: Group, train: Rows, found: Judged) -> None:
        """Judge on every held-out fold."""
        fold_of = self.dataset.fold_of_frames(self.folds)
        for fold in range(self.folds):
            held_out = train.select(fold_of == fold)
            # Only thresholds are chosen on the other folds
            others = train.select(fold_of != fold) if self.has_threshold else None
            heads = [PlannedHead(recipe, fold, self.folds) for recipe in group.recipes]
            counts = self._count(group, self._finish(group, others), held_out)
            if group.keeps_folds:
                self._record(heads, counts, held_out, group)
            for recipe, statistics in zip(group.recipes, counts, strict=True):
                name = PlannedHead(recipe).id
                found.on_folds[name] = found.on_folds.get(name, 0) + statistics.sum(0)

    def _finish(self, group: Group, train: Rows | None) -> list[Classifier]:
        """The classifiers, with thresholds chosen on training samples where these are asked for."""
        classifiers = list(group.classifiers)
        if not self.has_threshold:
            return classifiers
        assert train is not None
        found = choose_thresholds(
            classifiers, train.samples.x, train.targets, normalise=group.source.normalise
        )
        pairs = zip(classifiers, found, strict=True)
        return [classifier.with_threshold(value) for classifier, value in pairs]

    def _count(self, group: Group, classifiers: list[Classifier], rows: Rows) -> np.ndarray:
        """Statistics of each head and group of samples, shape (P, groups, A, B)."""
        batch = build_batch(classifiers, self.device, group.source.normalise)
        return count(loss_kind(self.dataset.task), batch, rows.samples)

    def _record(
        self,
        heads: Sequence[PlannedHead],
        counts: np.ndarray,
        rows: Rows,
        group: Group,
        classifiers: Sequence[Classifier] = (),
    ) -> list[HeadRecord]:
        """Write statistics, the heads made of classifiers, if any, and behind them the records."""
        kept = {name: {_EPOCH: found} for name, found in _by_id(heads, counts).items()}
        file = self.folder.write_statistics(Statistics(rows.index.groups, kept))
        trained_by = TrainedBy(
            device=str(self.device),
            threads=torch.get_num_threads(),
            batch_of_heads=len(heads),
            wall_s=time.perf_counter() - rows.start,
            git_commit=git_commit(),
            versions=versions(),
        )
        records = []
        for p, (head, found) in enumerate(zip(heads, counts, strict=True)):
            record = replace(self._describe(head, found, trained_by, group), statistics=file)
            if classifiers:
                batch = group.source.compose(classifiers[p], self.device)
                for name in record.scores:
                    save_snapshot(self.folder, record, self.dataset.facts, name, batch, 0)
            self.folder.write_record(record)
            records.append(record)
        return records

    def _describe(
        self, head: PlannedHead, statistics: np.ndarray, trained_by: TrainedBy, group: Group
    ) -> HeadRecord:
        """The record of one head from its statistics by group."""
        task, facts = self.dataset.task, self.dataset.facts
        kind = kind_of(task)
        score = judge(statistics, task, kind, _EPOCH)
        cv = self.folds > 0 and head.fold is None and group.keeps_folds
        names: tuple[Snapshot, ...] = ("last", "best", *(("cv",) if cv else ()))
        return HeadRecord(
            id=head.id,
            task=task,
            recipe=head.recipe,
            fold=head.fold,
            num_folds=head.num_folds,
            fingerprint=self.dataset.fingerprint,
            incomplete=facts.incomplete,
            group_name=facts.group_name,
            status="done",
            cv_epoch=_EPOCH if cv else None,
            trained_by=trained_by,
            curve=Curve(lr=(0.0,), train_loss=(None,), validation=(score.headline,)),
            scores=dict.fromkeys(names, score),
            chance=kind.chance(statistics.sum(0), task),
        )


@dataclass(frozen=True)
class Rows:
    """Samples of a split on the device, and where they are from.

    Attributes:
        index: Where their features lie.
        samples: Features, or vectors of a trained head.
        targets: Labels, as training takes them.
        start: When they were taken up, by `time.perf_counter`.
    """

    index: FeatureIndex
    samples: Samples
    targets: np.ndarray
    start: float = field(default_factory=time.perf_counter)

    def embed(self, source: Source) -> Rows:
        """The same by the vectors of a source."""
        return Rows(self.index, source.embed(self.samples), self.targets)

    def select(self, keep: np.ndarray) -> Rows:
        """Some of them, with their own groups; ``keep`` is a mask of shape (N,)."""
        index, rows = self.index.select(keep), torch.from_numpy(keep).to(self.samples.x.device)
        group = torch.from_numpy(index.group.astype(np.int64)).to(rows.device)
        x, y = self.samples.x[rows], self.samples.y[rows]
        return Rows(index, Samples(x, y, group, len(index.groups)), self.targets[keep])


def read_splits(
    dataset: Dataset, splits: Sequence[str], head: HeadConfig, device: torch.device
) -> dict[str, Rows]:
    """Samples of some splits as heads of a recipe read them."""
    indices = {split: dataset.rows(split, head) for split in splits}
    task = dataset.task
    return {
        split: Rows(index, read_rows(index, task, device), targets_of(index, task))
        for split, index in indices.items()
    }


def _by_id(heads: Sequence[PlannedHead], counts: np.ndarray) -> dict[str, np.ndarray]:
    return {head.id: found for head, found in zip(heads, counts, strict=True)}
