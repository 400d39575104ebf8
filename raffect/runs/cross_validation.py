"""Epochs and settings chosen on held-out folds of the training split."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from collections.abc import Sequence

import numpy as np

from raffect.errors import require
from raffect.recipe import Recipe
from raffect.runs.folder import RunFolder, find_records
from raffect.runs.records import FoldsNote, HeadRecord, PlannedHead
from raffect.runs.spread import group_by_settings, settings_key
from raffect.storage.atomic import write_atomic


def heads_of_folds(recipes: Sequence[Recipe], folds: int) -> list[PlannedHead]:
    """Every recipe on every fold."""
    return [PlannedHead(recipe, fold, folds) for fold in range(folds) for recipe in recipes]


def keep_folds(folder: RunFolder, fold_of_frames: np.ndarray) -> None:
    """Note the folds of a run, so that it does not go on with others.

    Args:
        folder: The run. One without a note, of an earlier version, gets one.
        fold_of_frames: Fold of each training frame, shape (N,).

    Raises:
        RaffectError: If folds are noted and others: scikit-learn deals them, and another version
            may do so otherwise.
    """
    from sklearn import __version__

    sha256 = hashlib.sha256(fold_of_frames.astype("<i8").tobytes()).hexdigest()
    file = folder.path / "folds.json"
    if not file.exists():
        write_atomic(file, FoldsNote(sha256=sha256, scikit_learn=__version__).to_bytes())
        return
    found = FoldsNote.from_json(file.read_bytes(), file, "name a new --out")
    require(
        found.sha256 == sha256,
        f"--out {folder.path}: its folds are those of scikit-learn {found.scikit_learn}, and "
        f"{__version__} deals others; go on with that version, or name a new folder",
    )


def choose_epochs(folder: RunFolder, recipes: Sequence[Recipe], folds: int) -> dict[str, int]:
    """The epoch that cross-validation chooses for each setting, by head; 0 where none was sound."""
    groups: dict[Recipe, list[Recipe]] = {}
    for recipe in recipes:
        groups.setdefault(dataclasses.replace(recipe, seed=0), []).append(recipe)
    cv_epochs = {}
    for alike in groups.values():
        names = [head.id for head in heads_of_folds(alike, folds)]
        epoch, _ = choose_epoch(folder, find_records(folder, names))
        cv_epochs |= {PlannedHead(recipe).id: epoch for recipe in alike}
    return cv_epochs


def choose_epoch(folder: RunFolder, records: Sequence[HeadRecord]) -> tuple[int, float]:
    """Epoch with the highest headline score on held-out folds; the first of equals.

    The folds of a seed are scored together, by the sum of their statistics: a fold that lacks a
    class would score 0 there, and lower the epochs that its head is best at. The score is the mean
    over seeds.

    Args:
        folder: The run.
        records: All folds of heads of one setting. A seed of which a fold diverged has the lowest
            score of the metric in every epoch.

    Returns:
        The 1-based epoch and its mean score; 0 and 0 if no fold was trained to the end.
    """
    done = [record for record in records if record.status == "done"]
    if not done:
        return 0, 0.0

    # One curve a seed, or a fold where statistics of all epochs were not kept (November 2026)
    curves = _pooled_curves(folder, records)
    if curves is None:
        curves = _curves_by_fold(records)

    # `argmax` finds the first of equals
    mean = curves.mean(0)
    return int(mean.argmax()) + 1, float(mean.max())


def _pooled_curves(folder: RunFolder, records: Sequence[HeadRecord]) -> np.ndarray | None:
    """Score of each seed in each epoch over all its folds; None without their statistics."""
    kind, epochs = records[0].kind, _num_epochs(records)
    seeds: dict[int, list[HeadRecord]] = {}
    for record in records:
        seeds.setdefault(record.recipe.seed, []).append(record)

    curves = np.full((len(seeds), epochs), kind.lowest)
    for curve, folds in zip(curves, seeds.values(), strict=True):
        if any(fold.status != "done" for fold in folds):
            continue
        found = [folder.sums_by_epoch(fold) for fold in folds]
        if any(len(by_epoch) < epochs for by_epoch in found):
            return None
        for epoch in range(epochs):
            pooled = np.sum([by_epoch[epoch + 1] for by_epoch in found], axis=0)
            curve[epoch] = kind.headline(pooled)
    return curves


def _curves_by_fold(records: Sequence[HeadRecord]) -> np.ndarray:
    """Score of each fold in each epoch, the lowest one where it diverged."""
    curves = np.full((len(records), _num_epochs(records)), records[0].kind.lowest)
    for row, record in zip(curves, records, strict=True):
        if record.status == "done":
            row[:] = record.curve.validation
    return curves


def _num_epochs(records: Sequence[HeadRecord]) -> int:
    return max(len(record.curve.lr) for record in records)


def select_by_cv(
    folder: RunFolder, groups: Sequence[Sequence[HeadRecord]], records: Sequence[HeadRecord]
) -> Sequence[HeadRecord] | None:
    """The group whose settings score highest on held-out folds, each at its own best epoch.

    Args:
        folder: The run.
        groups: Of `group_by_settings`.
        records: All records, those of folds among them.

    Returns:
        None without folds, or if none was trained to the end.
    """
    folds = group_by_settings([record for record in records if record.fold is not None])
    by_settings = {settings_key(group[0]): group for group in folds}

    # Settings of which no fold was trained to the end come last
    def held_out(group: Sequence[HeadRecord]) -> float:
        epoch, score = choose_epoch(folder, by_settings.get(settings_key(group[0]), []))
        return score if epoch else -math.inf

    best = max(groups, key=held_out) if folds else []
    return best if any("cv" in record.scores for record in best) else None
